"""The market in which a factor trades: a panel's bars on the grid of its calendar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice
from pricepix.factor.evaluation.holding import Tradable
from pricepix.factor.evaluation.kernels import DIES, KNOWN, LONGER, OwnBars, forward_spans, lay_out
from pricepix.factor.evaluation.row_blocks import frozen, on_threads
from pricepix.windows.labels import label_price
from pricepix.windows.schedule import PERIOD_END_SHARE, count_by_period, may_end

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel

__all__ = ["DELISTING", "Market"]

DELISTING: Final = ("hold", "missing")


@dataclass(frozen=True)
class Market:
    """Some instruments of a panel on a (bars, instruments) grid."""

    panel: Panel
    instruments: NDArray[np.str_]
    code: NDArray[np.int32]
    """int32 (instruments,): their positions in the panel."""
    time: NDArray[np.int64]
    """int64 (bars,): the panel's whole calendar."""
    row: NDArray[np.int64]
    """int64 (bars, instruments): the panel row, -1 where an instrument has no bar."""
    price: str
    """``close`` or ``total_return``: what returns are computed from."""
    delisting: str
    """``hold`` or ``missing``: the forward return of an instrument whose rows end within the horizon."""
    level: NDArray[np.float64]
    """Value of a unit held since the first price, carried over bars without one.

    Where returns are computed from total returns, NaN before the price from which the instrument's first one is
    measured, so throughout for an instrument without any: its value is not known, so that it can be neither traded
    nor sorted. Else NaN before the first price.
    """
    tradable: Tradable
    """Bars with a close and a volume (a volume that is missing counts as traded), short of the limits."""
    bridged: NDArray[np.int64]
    """int64 (bars,): total returns that are missing beside a known price, for which the price stands in."""
    breaks: NDArray[np.int32] | None = None
    """int32 (bars, instruments): such returns so far that the price cannot stand in for; None if there are none.

    The adjustment factor is not the same at both prices. Portfolios pass over such a bar, returns across it are
    not known.
    """

    @classmethod
    def of(
        cls,
        panel: Panel,
        instruments: Sequence[str] | NDArray[np.str_],
        price: str = "auto",
        delisting: str | None = None,
    ) -> Market:
        """Lay out the bars of `instruments`; all of them must be in the panel.

        `price` and `delisting` are those of ``evaluate``.
        """
        names = np.asarray(instruments, np.str_)
        price = label_price(panel, price)
        choice(delisting, "delisting", (None, "auto", *DELISTING))
        if delisting in (None, "auto"):
            delisting = "hold" if price == "total_return" else "missing"
        assert delisting is not None
        calendar, code = panel.calendar, panel.time_code
        row = np.full((len(calendar), len(names)), -1, np.int64)
        for j, name in enumerate(names):
            own = panel.rows_of(str(name))
            row[code[own], j] = np.arange(own.start, own.stop)
        close = _on_grid(panel.bars[:, 3], row)
        close[~(close > 0)] = np.nan
        bridged, breaks = np.zeros(len(calendar), np.int64), None
        if price == "close":
            level = _carried(close)
        else:
            step = _on_grid(panel.fields["total_return"], row)
            level, bridged, breaks = _return_levels(
                close, step, row, panel.fields.get("adjustment_factor", np.empty(0))
            )
        traded = ~(np.isnan(close) | (_on_grid(panel.bars[:, 4], row) == 0))

        def flag(field: str) -> NDArray[np.bool_]:
            if field not in panel.fields:
                return np.zeros(row.shape, bool)
            there = row >= 0
            return np.asarray(panel.fields[field][np.where(there, row, 0)] & there)

        tradable = Tradable(traded & ~flag("up_limit"), traded & ~flag("down_limit"))
        index = np.array([panel.index_of(str(name)) for name in names], np.int32)
        return cls(panel, names, index, calendar, row, price, delisting, level, tradable, bridged, breaks)

    @cached_property
    def last_bar(self) -> NDArray[np.int64]:
        """int64 (instruments,): the bar at which each instrument's rows end."""
        return self.panel.time_code[self.panel.offsets[self.code + 1] - 1]

    def thin(self, every: str, share: float = PERIOD_END_SHARE) -> NDArray[np.bool_]:
        """bool (bars,): bars at which no day, week, month or quarter may end, by the rule of windows.

        Fewer than `share` of the panel's instruments with a bar in the period have one there: see ``may_end``.
        """
        if (every, share) not in self._thin:
            self._thin[every, share] = ~may_end(*count_by_period(self.panel, every), share)
        return self._thin[every, share]

    @cached_property
    def _thin(self) -> dict[tuple[str, float], NDArray[np.bool_]]:
        return {}

    @property
    def ended(self) -> NDArray[np.bool_]:
        """bool (instruments,): those whose rows end before the market's do."""
        return self.last_bar < len(self.time) - 1

    @property
    def without_level(self) -> NDArray[np.bool_]:
        """bool (instruments,): those whose value is never known, such as names without any total return."""
        return np.asarray(np.isnan(self.level).all(axis=0))

    def cap(self) -> NDArray[np.float64] | None:
        """Market capitalisation, float64 (bars, instruments), or None where the panel has none."""
        return self.cap_at(slice(None))

    def cap_at(self, position: NDArray[np.int64] | slice) -> NDArray[np.float64] | None:
        """Market capitalisation at some positions, float64 (positions, instruments), or None."""
        if "market_cap" not in self.panel.fields:
            return None
        return _on_grid(self.panel.fields["market_cap"], self.row[position])

    def forward(self, position: NDArray[np.int64], horizon: int, delay: int = 0) -> NDArray[np.float64]:
        """Forward returns from some positions, float64 (positions, instruments), by the labels' own rule.

        Counted in each instrument's own bars, between the levels that portfolios are valued by; NaN where it has
        no bar, or not enough after it. Where its rows end before the calendar does, ``delisting="hold"`` takes
        the return to the last level, which then stays in cash until the market's bar `horizon` bars on.
        """
        return self._spans(position, horizon, delay)[0]

    def deaths(
        self, position: NDArray[np.int64], horizon: int, delay: int = 0
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where an instrument's rows end within the horizon, and where its return at the end is known.

        Both are bool (positions, instruments).
        """
        state = self._spans(position, horizon, delay)[1]
        dies = (state & DIES) > 0
        return dies, dies & ((state & KNOWN) > 0)

    def longer(self, position: NDArray[np.int64], horizon: int, delay: int = 0) -> NDArray[np.bool_]:
        """Return where a forward return, in the instrument's own bars, spans more than `horizon` of the market's.

        Some of the instrument's rows are absent there while others trade: a portfolio, which is held for bars of
        the market, sells earlier. bool (positions, instruments).
        """
        return np.asarray((self._spans(position, horizon, delay)[1] & LONGER) > 0)

    def _spans(
        self, position: NDArray[np.int64], horizon: int, delay: int
    ) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Return forward returns, and their states as bits that `kernels` names, (positions, instruments) each."""
        shape = (len(position), len(self.code))
        value, state = np.empty(shape), np.empty(shape, np.uint8)
        breaks = np.empty((0, 0), np.int32) if self.breaks is None else self.breaks
        on_threads(
            forward_spans,
            len(position),
            8 * len(self.code),
            frozen(position, np.int64),
            OwnBars(
                frozen(self.row, np.int64),
                frozen(self.panel.time_code, np.int32),
                frozen(self._known, np.bool_),
                frozen(self.panel.offsets[self.code + 1], np.int64),
                frozen(self.ended, np.bool_),
            ),
            frozen(self.level),
            frozen(breaks, np.int32),
            horizon,
            delay,
            self.delisting == "hold",
            value,
            state,
        )
        return value, state

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """bool (rows of the panel,): whether the value there is known, not only carried over from before."""
        priced = np.asarray(self.panel.bars[:, 3] > 0)
        if self.price == "close":
            return priced
        return priced | ~np.isnan(self.panel.fields["total_return"])


def _on_grid(column: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.float64]:
    """Lay a value a panel row on the grid, float64 (bars, instruments); NaN where there is no bar."""
    out = np.empty(row.shape)
    on_threads(lay_out, len(row), 2 * row.shape[1], frozen(column), frozen(row, np.int64), out)
    return out


class _Levels(NamedTuple):
    level: NDArray[np.float64]
    bridged: NDArray[np.int64]
    """int64 (bars,): returns that were bridged."""
    breaks: NDArray[np.int32] | None
    """int32 (bars, instruments): how many returns before it could be neither known nor bridged, if any."""


def _return_levels(
    close: NDArray[np.float64],
    step: NDArray[np.float64],
    row: NDArray[np.int64],
    factor: NDArray[np.float64],
) -> _Levels:
    """Compound total returns from the price on from which each instrument's first one is measured.

    A later return that is missing where the price is known is the price's own change since its last bar, over the
    returns known in between, provided that the adjustment factor of both (by panel row; empty if there is none)
    is the same. Without a price, too, the level stays: the next return is quoted against the last price that
    exists.
    """
    begun = np.maximum.accumulate(~np.isnan(close), axis=0)
    unknown = _begin_with_returns(begun, close, step)
    # The return of an instrument's first bar reaches back before it.
    compounded = begun & np.vstack([np.zeros((1, close.shape[1]), bool), begun[:-1]])
    growth = np.where(compounded & ~np.isnan(step), 1.0 + step, 1.0)
    bar, column = np.nonzero(compounded & np.isnan(step) & ~np.isnan(close) & ~unknown)
    breaks = None
    if len(bar):
        # Few instruments miss any: only for theirs is the last price looked up, which takes three more grids.
        some, place = np.unique(column, return_inverse=True)
        last = _last_known(close[:, some])[bar - 1, place]
        since = np.cumprod(growth[:, some], axis=0)
        ratio = close[bar, column] / close[last, column] / (since[bar - 1, place] / since[last, place])
        same = np.ones(len(bar), bool)
        if len(factor):
            same = np.asarray(factor[row[bar, column]] == factor[row[last, column]])
        growth[bar[same], column[same]] = ratio[same]
        if not same.all():
            breaks = np.zeros(close.shape, np.int32)
            breaks[bar[~same], column[~same]] = 1
            np.cumsum(breaks, axis=0, out=breaks)
        bar = bar[same]
    level = np.asarray(np.cumprod(growth, axis=0), np.float64)
    level[~begun] = np.nan
    level[:, unknown] = np.nan
    return _Levels(level, np.bincount(bar, minlength=len(close)), breaks)


def _begin_with_returns(
    begun: NDArray[np.bool_], close: NDArray[np.float64], step: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Let instruments begin, in `begun`, at the last price before their first total return; return which have none.

    An instrument's value is not known before: labels do not bridge its prices there either. Those with one bar
    only are not among those without returns.
    """
    known = ~np.isnan(step[1:]) & begun[:-1]
    first = np.where(known.any(axis=0), np.argmax(known, axis=0) + 1, len(begun))
    start = np.argmax(begun, axis=0)
    # Nearly all have a return at their second bar.
    for j in np.flatnonzero(begun.any(axis=0) & (first > start + 1)).tolist():
        priced = np.flatnonzero(~np.isnan(close[: first[j], j]))
        if len(priced) > 1:
            begun[: priced[-1], j] = False
    later = np.count_nonzero(~np.isnan(close), axis=0) > 1
    return np.asarray(later & (first == len(begun)))


def _last_known(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the position of the last value that is not NaN, at each place of each column; 0 where there is none."""
    last = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.asarray(np.maximum.accumulate(last, axis=0))


def _carried(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace NaN by the last value above it."""
    return np.take_along_axis(values, _last_known(values), 0)
