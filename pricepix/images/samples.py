"""When and of what windows are: what a split sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pricepix.images.rows import store_rows

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel

__all__ = ["Samples"]

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """When and of what the windows are. All arrays are (n,), times int64 nanoseconds.

    Attributes
    ----------
    time : numpy.ndarray
        Time of a window's last bar: the time of the decision.
    exit_time : numpy.ndarray
        Time at which its label is known.
    start_time : numpy.ndarray
        Time of its first bar.
    instrument : numpy.ndarray
        int32 codes.
    usable : numpy.ndarray
        bool: windows without a target are in no part.
    tz : str or None
        Zone in which periods are read.
    not_chosen : int
        How many windows with a target are not usable because nobody asked for them.
    """

    time: Index
    exit_time: Index
    start_time: Index
    instrument: NDArray[np.int32]
    usable: NDArray[np.bool_]
    tz: str | None = None
    not_chosen: int = 0

    @classmethod
    def from_store(
        cls, store: Any, horizon: int, usable: NDArray[np.bool_], panel: Panel | None = None
    ) -> Samples:
        """Take them from a store.

        A store does not keep the first bar's time. Given the panel it is looked up; else it is put
        lookback - 1 mean bars before the last, a bar's mean length being that of the horizon's bars.
        """
        time, exit_time = store.time, store.exit_time(horizon)
        code = store.instrument_index
        if panel is not None:
            start = panel.time[store_rows(store, panel) - (store.spec.lookback - 1)]
        else:
            known = exit_time > time
            bar = float(np.mean((exit_time - time)[known])) / (horizon + store.delay) if known.any() else 0.0
            start = time - np.int64(round((store.spec.lookback - 1) * bar))
        return cls(time, exit_time, start, code, usable, store.tz)
