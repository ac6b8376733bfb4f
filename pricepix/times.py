"""Times as the package keeps them, int64 nanoseconds, and as people read them."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray


def to_series(nanoseconds: NDArray[np.int64], tz: str | None) -> pl.Series:
    """Return times as a polars series: instants shown in zone `tz`, or wall-clock times if it is None."""
    times = pl.Series(np.asarray(nanoseconds, np.int64)).cast(pl.Datetime("ns"))
    times = times.set(times.is_not_null() & (times.to_physical() == np.iinfo(np.int64).min), None)
    if tz is None:
        return times
    return times.dt.replace_time_zone("UTC").dt.convert_time_zone(tz)
