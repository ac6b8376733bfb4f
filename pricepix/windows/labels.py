"""Forward returns: what happened after a window's last bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import bars, choice
from pricepix.bars import kernels as bars_kernels
from pricepix.bars.panel import Panel
from pricepix.bars.values import locked
from pricepix.windows import kernels

if TYPE_CHECKING:
    from pricepix.windows.index import WindowIndex

NO_TIME: Final = int(np.iinfo(np.int64).min)
"""Stands for a missing time in int64 nanoseconds, as NaT does in ``datetime64[ns]``."""

PRICES: Final = ("auto", "close", "total_return")

DELISTINGS: Final = ("auto", "hold", "missing")


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
    delisting: str
    """``hold`` or ``missing``: the return of an instrument whose bars end within the horizon."""
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

    @cached_property
    def died(self) -> NDArray[np.bool_]:
        """bool (n,): the instrument's bars end within the horizon, and the return to its last level is kept."""
        leave = self._rows + (self.delay + self.horizon)
        return (leave >= self._panel.offsets[self._instruments + 1]) & ~np.isnan(self.value)

    @property
    def died_within_horizon(self) -> int:
        """How many windows ``died``."""
        return int(np.count_nonzero(self.died))


class ReturnRule(NamedTuple):
    """How forward returns are computed, whatever the horizon: what a set of images records beside them."""

    delay: int
    """Bars from decision to entry."""
    price: str
    """``close`` or ``total_return``."""
    delisting: str
    """``hold`` or ``missing``."""

    @classmethod
    def of(cls, panel: Panel, delay: int, price: str, delisting: str) -> ReturnRule:
        """Return the rule for a panel, with ``auto`` resolved; see ``forward_returns``."""
        price = label_price(panel, price)
        return cls(bars(delay, "delay", 0), price, label_delisting(price, delisting))

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> ReturnRule:
        """Return the rule that a set of images records; those that record no ``delisting`` leave it missing."""
        delisting = str(attributes.get("delisting", "missing"))
        return cls(int(attributes["delay"]), str(attributes["label_price"]), delisting)

    def returns(self, panel: Panel, windows: WindowIndex | NDArray[np.int64], horizon: int) -> ForwardReturn:
        """Return ``forward_returns`` over a horizon by this rule."""
        return forward_returns(panel, windows, horizon, self.delay, self.price, self.delisting)

    def deaths(self, panel: Panel, windows: WindowIndex, horizons: Sequence[int]) -> dict[str, int]:
        """Count, by horizon, the windows whose instrument ends within it and whose return is kept."""
        if self.delisting != "hold" or not horizons or not len(windows):
            return {str(horizon): 0 for horizon in horizons}
        # Only windows near the end of an instrument that ends before the market does: few, whatever the panel.
        last = panel.offsets[1:] - 1
        ended = panel.time[last] < panel.calendar[-1]
        near = windows.row + (self.delay + max(horizons)) > last[windows.instrument]
        rows = windows.row[near & ended[windows.instrument]]
        return {str(h): self.returns(panel, rows, h).died_within_horizon for h in horizons}


def forward_returns(
    panel: Any,
    windows: WindowIndex | NDArray[np.int64],
    horizon: int,
    delay: int = 0,
    price: str = "auto",
    delisting: str = "auto",
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
        ``close`` takes the panel's close; ``total_return`` compounds the panel's total returns (see Notes);
        ``auto`` takes total returns where the panel has them.
    delisting : {"auto", "hold", "missing"}
        The return of an instrument whose bars end within the horizon while the market's go on. ``hold``: it
        runs to the instrument's last level and stays there, in cash, until the horizon. ``missing``: it is NaN.
        ``auto`` is ``hold`` for total returns and ``missing`` for closes, which do not know what a holder of
        a delisted stock got.

    Returns
    -------
    ForwardReturn

    Notes
    -----
    *Missing total returns.* A bar without a price and without a return changes nothing: the next return is
    measured from the last price there was. A bar with a price but without a return (the first after a halt in
    ``pct_change``, RET "C" of CRSP) gets the return that its close has against the last known close, over the
    returns known in between, so that both prices must have the same adjustment: equal ``adjustment_factor``
    where the panel has that field, else closes as the panel holds them. Where the factor differs, or is missing,
    and before the instrument's first known return, that bar's return is not known, and a forward return that
    needs it is NaN: so an instrument that brings no total return at all has no forward returns, as it has no
    value in ``factor.evaluate``. A bar with a price can be entered whether or not its own return is known.

    *Delisting.* With ``hold``, an instrument has ended if its last row lies before the last time of the panel's
    calendar. Its return is kept if the close at the entry, and the price or return of its last row (a row
    without a price may hold the return of the delisting), are known. ``exit_time`` is then the market's h-th
    bar after the entry, at the earliest the first after the instrument's last row, so that a purge by exit
    times stays right; a label whose market bar has not come is NaN. Instruments that end with the panel are
    alive: a return that reaches past their last row is NaN. Rows that are left out while an instrument is
    halted at the panel's end look as if it had ended: give such bars as rows without prices.
    ``ForwardReturn.died`` tells which returns these are.

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
    panel = Panel.of(panel)
    rule = ReturnRule.of(panel, delay, price, delisting)
    rows, instruments = _rows_of(panel, windows)
    value = np.empty(len(rows), np.float32)
    exit_time = np.empty(len(rows), np.int64)
    fill_returns(panel, rows, instruments, horizon, rule, value, exit_time)
    return ForwardReturn(
        horizon, rule.delay, rule.price, value, exit_time, rule.delisting, panel, rows, instruments
    )


def fill_returns(
    panel: Panel,
    rows: NDArray[np.int64],
    instruments: NDArray[np.int32],
    horizon: int,
    rule: ReturnRule,
    value: NDArray[Any],
    exit_time: NDArray[np.int64],
) -> None:
    """Write the forward returns of windows that end at some panel rows, unchecked.

    `instruments` are those of the rows. `value` may be float64: returns are rounded to float32, as labels are
    stored, in either case.
    """
    calendar = panel.calendar if rule.delisting == "hold" else _NO_CALENDAR
    where = (panel.bars, panel.time, panel.offsets, calendar, rows, instruments, horizon, rule.delay)
    if rule.price == "total_return":
        kernels.total_returns(bridged_returns(panel), *where, value, exit_time, NO_TIME)
    else:
        kernels.price_returns(*where, value, exit_time, NO_TIME)


_NO_CALENDAR: Final = locked(np.zeros(0, np.int64))


def bridged_returns(panel: Panel) -> NDArray[np.float64]:
    """Return the panel's total returns, with those that are missing beside a known price bridged.

    float64 (rows,): the panel's own array where nothing is to bridge. Infinite where a return is missing beside
    a price and is not bridged; NaN at bars that have neither, and at an instrument's first price. See the
    notes of ``forward_returns``.
    """
    if "bridged_returns" not in panel._cache:
        returns = panel.fields["total_return"]
        found = returns
        if bars_kernels.missing_returns(panel.bars, returns, panel.offsets, np.empty(0, np.int64))[0]:
            found = np.empty(len(panel))
            factor = panel.fields.get("adjustment_factor", _NO_FACTOR)
            kernels.bridge_returns(panel.bars, returns, factor, panel.offsets, found)
        panel._cache["bridged_returns"] = locked(found)
    bridged: NDArray[np.float64] = panel._cache["bridged_returns"]
    return bridged


_NO_FACTOR: Final = locked(np.zeros(0))


def label_delisting(price: str, delisting: str) -> str:
    """Resolve ``delisting="auto"`` for returns of a price, ``close`` or ``total_return``, and check the choice."""
    choice(delisting, "delisting", DELISTINGS)
    if delisting == "auto":
        return "hold" if price == "total_return" else "missing"
    return delisting


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
        if not hasattr(windows, "panel"):
            raise TypeError(f"windows is a {type(windows).__name__}; give a WindowIndex, or panel rows")
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
