"""The market in which a factor trades: a panel's bars on the grid of its calendar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.holding import Tradable
from pricepix.windows.labels import ReturnRule, fill_returns, label_price

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel

__all__ = ["Market"]


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
    level: NDArray[np.float64]
    """Value of a unit held since the first price, carried over bars without one; NaN before it."""
    tradable: Tradable
    """Bars with a close and a volume (a volume that is missing counts as traded), short of the limits."""

    @classmethod
    def of(cls, panel: Panel, instruments: Sequence[str] | NDArray[np.str_], price: str = "auto") -> Market:
        """Lay out the bars of `instruments`; all of them must be in the panel."""
        names = np.asarray(instruments, np.str_)
        price = label_price(panel, price)
        calendar, code = panel.calendar, panel.time_code
        row = np.full((len(calendar), len(names)), -1, np.int64)
        for j, name in enumerate(names):
            own = panel.rows_of(str(name))
            row[code[own], j] = np.arange(own.start, own.stop)
        there = row >= 0
        safe = np.where(there, row, 0)
        close = np.where(there, panel.bars[:, 3][safe], np.nan)
        close[~(close > 0)] = np.nan
        volume = panel.bars[:, 4][safe]
        if price == "close":
            level = _carried(close)
        else:
            step = np.where(there, panel.fields["total_return"][safe], np.nan)
            begun = np.maximum.accumulate(~np.isnan(close), axis=0)
            # The return of an instrument's first bar reaches back before it.
            first = begun & ~np.vstack([np.zeros((1, len(names)), bool), begun[:-1]])
            level = np.asarray(
                np.cumprod(1.0 + np.where(np.isnan(step) | first | ~begun, 0.0, step), axis=0), np.float64
            )
            level[~begun] = np.nan
        traded = there & ~np.isnan(close) & ~(volume == 0)

        def flag(field: str) -> NDArray[np.bool_]:
            if field not in panel.fields:
                return np.zeros(row.shape, bool)
            return np.asarray(panel.fields[field][safe] & there)

        tradable = Tradable(traded & ~flag("up_limit"), traded & ~flag("down_limit"))
        index = np.array([panel.index_of(str(name)) for name in names], np.int32)
        return cls(panel, names, index, calendar, row, price, level, tradable)

    def cap(self) -> NDArray[np.float64] | None:
        """Market capitalisation, float64 (bars, instruments), or None where the panel has none."""
        if "market_cap" not in self.panel.fields:
            return None
        there = self.row >= 0
        return np.where(there, self.panel.fields["market_cap"][np.where(there, self.row, 0)], np.nan)

    def forward(self, position: NDArray[np.int64], horizon: int, delay: int = 0) -> NDArray[np.float64]:
        """Forward returns from some positions, float64 (positions, instruments), by the labels' own rule.

        Counted in each instrument's own bars; NaN where it has no bar, or not enough after it.
        """
        rows = self.row[position]
        there = rows >= 0
        code = np.broadcast_to(self.code, rows.shape)[there]
        # The kernels round to float32, as the labels are stored; sums over instruments need float64.
        value = np.empty(len(code), np.float64)
        exit_time = np.empty(len(code), np.int64)
        rule = ReturnRule(delay, self.price, "missing")
        fill_returns(self.panel, rows[there], code, horizon, rule, value, exit_time)
        out = np.full(rows.shape, np.nan)
        out[there] = value
        return out


def _carried(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace NaN by the last value above it."""
    last = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(last, axis=0), 0)
