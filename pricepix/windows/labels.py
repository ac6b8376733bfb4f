"""Forward returns: what happened after a window's last bar."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import bars, choice
from pricepix.bars.panel import Panel
from pricepix.windows import kernels

if TYPE_CHECKING:
    from pricepix.windows.index import WindowIndex

NO_TIME: Final = int(np.iinfo(np.int64).min)
"""Stands for a missing time in int64 nanoseconds, as NaT does in ``datetime64[ns]``."""

PRICES: Final = ("auto", "close", "total_return")


@dataclass(frozen=True)
class ForwardReturn:
    """The forward return of every window over one horizon.

    A class such as "up" is derived from ``value`` when a model is trained, never stored: NaN stays NaN.
    """

    horizon: int
    """Bars from entry to exit, exactly."""
    delay: int
    """Bars from the window's last bar (the decision) to the entry."""
    price: str
    """``close`` or ``total_return``: what the return was computed from."""
    value: NDArray[np.float32]
    """float32 (n,): price(t + delay + horizon) / price(t + delay) - 1, NaN where it is not known."""
    exit_time: NDArray[np.int64]
    """int64 (n,) nanoseconds: the bar at whose price a position is left, ``NO_TIME`` if there is none."""
    _panel: Panel = field(repr=False)
    _rows: NDArray[np.int64] = field(repr=False)
    _instruments: NDArray[np.int32] = field(repr=False)

    @cached_property
    def decision_time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the window's last bar."""
        return self._panel.time[self._rows]

    @cached_property
    def entry_time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the bar at whose price a position is entered, ``NO_TIME`` for none."""
        entry = self._rows + self.delay
        exists = entry < self._panel.offsets[self._instruments + 1]
        return np.where(exists, self._panel.time[np.where(exists, entry, 0)], NO_TIME)


def forward_returns(
    panel: Any, windows: WindowIndex | NDArray[np.int64], horizon: int, delay: int = 0, price: str = "auto"
) -> ForwardReturn:
    """Compute the forward return of every window over `horizon` bars.

    For a window that ends at bar t of its instrument the return is
    ``price(t + delay + horizon) / price(t + delay) - 1``, counted in bars of that instrument only: a label
    never reaches into another instrument, and bars that are missing still count as bars.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
    windows : WindowIndex or array_like, int64 (n,)
        The windows, or the panel rows at which they end.
    horizon : int
        Bars held, at least 1.
    delay : int
        Bars between decision and entry, at least 0.
    price : {"auto", "close", "total_return"}
        ``close`` takes the panel's close; ``total_return`` compounds the panel's total returns, skipping
        those missing inside the horizon; ``auto`` takes total returns where the panel has them.

    Returns
    -------
    ForwardReturn

    Raises
    ------
    ValueError
        If horizon or delay is out of range, the panel has no total returns though they are asked for, or the
        windows are not this panel's.

    Examples
    --------
    >>> import numpy as np
    >>> from pricepix import Panel
    >>> close = np.array([[10.0], [11.0], [12.0], [15.0]])
    >>> days = np.datetime64("2020-01-01") + np.arange(4)
    >>> panel = Panel.from_arrays(close, close, close, close, time=days, instruments=["A"], progress=False)
    >>> forward_returns(panel, np.array([0, 1, 3]), horizon=2).value
    array([0.2       , 0.36363637,        nan], dtype=float32)
    """
    horizon = bars(horizon, "horizon", 1)
    delay = bars(delay, "delay", 0)
    panel = Panel.of(panel)
    source = label_price(panel, price)
    offsets = panel.offsets
    rows, instruments = _rows_of(panel, windows)
    value = np.empty(len(rows), np.float32)
    exit_time = np.empty(len(rows), np.int64)
    if source == "total_return":
        kernel: Any = kernels.total_returns
        prices = panel.fields["total_return"]
    else:
        kernel, prices = kernels.price_returns, panel.bars
    kernel(prices, panel.time, offsets, rows, instruments, horizon, delay, value, exit_time, NO_TIME)
    return ForwardReturn(horizon, delay, source, value, exit_time, panel, rows, instruments)


def label_price(panel: Panel, price: str) -> str:
    """Resolve ``price="auto"`` for this panel and check the choice."""
    choice(price, "price", PRICES)
    has_returns = "total_return" in panel.fields
    if price == "auto":
        return "total_return" if has_returns else "close"
    if price == "total_return" and not has_returns:
        raise ValueError(
            "price='total_return' needs total returns, which the panel does not have: map a column to "
            "total_return when reading it, or use price='close'"
        )
    return price


def _rows_of(
    panel: Panel, windows: WindowIndex | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Panel row and instrument of each window, checked to lie in this panel."""
    offsets = panel.offsets
    if not isinstance(windows, (np.ndarray, list, tuple)):
        other = windows.panel
        if other is not panel and not (
            np.array_equal(other.offsets, offsets) and np.array_equal(other.time, panel.time)
        ):
            raise ValueError(
                f"the windows are those of another panel ({other!r}), not of this one ({panel!r}): "
                "make them with WindowIndex.from_panel(panel, spec)"
            )
        return windows.row, windows.instrument
    windows = np.asarray(windows)
    if windows.ndim != 1 or (windows.dtype.kind not in "iu" and len(windows)):
        raise ValueError(
            f"windows is {windows.dtype} {windows.shape}: give a WindowIndex, or panel rows as integers (n,)"
        )
    if len(windows) and (windows.min() < 0 or windows.max() >= len(panel)):
        raise ValueError(
            f"windows end at panel rows {windows.min()} to {windows.max()}, but the panel has rows 0 to "
            f"{len(panel) - 1}: give rows of this panel"
        )
    rows = np.ascontiguousarray(windows, np.int64).view()
    instruments = (np.searchsorted(offsets, rows, side="right") - 1).astype(np.int32)
    # Read-only, as those of an index: Numba compiles a kernel once more for writable arrays.
    rows.flags.writeable = instruments.flags.writeable = False
    return rows, instruments
