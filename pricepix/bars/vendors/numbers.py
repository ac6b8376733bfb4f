"""Numbers and times of vendors' files, which come as text: each value is one, missing, or an error that names it."""

from __future__ import annotations

from typing import Literal

import polars as pl

from pricepix._checks import short

__all__ = ["as_float", "as_int", "utc_times"]


def as_float(values: pl.Series, origin: str) -> pl.Series:
    """Return a column as float64; empty text is missing."""
    return _cast(values, pl.Float64(), "a number", origin)


def as_int(values: pl.Series, origin: str) -> pl.Series:
    """Return a column as int64; empty text is missing."""
    return _cast(values, pl.Int64(), "a whole number", origin)


def _cast(values: pl.Series, dtype: pl.DataType, kind: str, origin: str) -> pl.Series:
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        values = values.set(values == "", None)
    found = values.cast(dtype, strict=False)
    wrong = (found.is_null() & values.is_not_null()).arg_true()
    if len(wrong):
        raise ValueError(
            f"{origin}: column {values.name!r}, row {wrong[0]} holds {short(values[wrong[0]])}, which is not {kind}"
        )
    return found


def utc_times(values: pl.Series, unit: Literal["ms", "us", "ns"], origin: str) -> pl.Series:
    """Return times that count since 1970 UTC, as times with the zone UTC; none may be missing."""
    ticks = as_int(values, origin)
    if ticks.null_count():
        raise ValueError(f"{origin}: column {values.name!r}, row {ticks.is_null().arg_true()[0]} has no time")
    return ticks.cast(pl.Datetime(unit)).dt.replace_time_zone("UTC").rename("time")
