"""Portfolios by the definitions of the authors of "(Re-)Imag(in)ing Price Trends", as their code computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pricepix.factor.evaluation.holding import Portfolios

__all__ = ["PAPER_PER_MONTH", "PaperPortfolios", "paper_portfolios"]

Floats = NDArray[np.float64]

PAPER_PER_MONTH: Final = {"week": 4.0, "month": 1.0, "quarter": 1.0 / 3.0}
"""Rebalancings a month by which the authors scale turnover: a month has four weeks."""


@dataclass(frozen=True)
class PaperPortfolios(Portfolios):
    """Portfolios of the authors: a bar is a period, and there is no separate short side.

    Their cost is that of two trades of everything, every period: twice `cost` off the highest quantile, and on
    top of the lowest, which is sold short.
    """

    def net_periods(self, cost: float) -> Floats:
        """Period returns after a cost per side, as the authors take it off."""
        out = self.period_returns.copy()
        out[:, 0] += 2.0 * cost
        out[:, -2] -= 2.0 * cost
        out[:, -1] = out[:, -2] - out[:, 0]
        return out

    def net_bars(self, cost: float) -> Floats:
        """The same: a bar is a period."""
        return self.net_periods(cost)


def paper_portfolios(
    factor: ArrayLike,
    returns: ArrayLike,
    decision: NDArray[np.int64],
    entry: NDArray[np.int64],
    leave: NDArray[np.int64],
    *,
    n: int = 10,
    cap: ArrayLike | None = None,
    by_value: bool = False,
) -> PaperPortfolios:
    """Form the authors' quantile portfolios at every period's end and hold them to the next one.

    Instruments without a return over the next period are dropped before breakpoints are taken, and those without
    a market cap, too, where there are caps. A period in which the 10th and the 90th percentile coincide, or an
    empty quantile, returns 0.

    Parameters
    ----------
    factor : array (periods, instruments)
    returns : array (periods, instruments)
        To the next period's end; NaN where there is none.
    decision, entry, leave : numpy.ndarray, int64 (periods,)
        Positions along the calendar.
    n : int
    cap : array (periods, instruments), optional
    by_value : bool
        Weigh by `cap`, else equally.
    """
    score, r = np.asarray(factor, np.float64), np.asarray(returns, np.float64)
    size = None if cap is None else np.abs(np.asarray(cap, np.float64))
    kept = ~np.isnan(score) & ~np.isnan(r)
    counts = {
        "entries": int((~np.isnan(score)).sum()),
        "no_return": int((~np.isnan(score) & np.isnan(r)).sum()),
    }
    if size is not None:
        counts["no_cap"] = int((kept & np.isnan(size)).sum())
        kept &= ~np.isnan(size)
    periods = np.zeros((len(score), n))
    turned = np.zeros(len(score))
    before: tuple[Floats, Floats] | None = None
    for k in range(len(score)):
        own = np.flatnonzero(kept[k])
        if len(own) == 0 or np.equal(*np.percentile(score[k, own], [10, 90])):
            continue
        weight = np.zeros((n, score.shape[1]))
        weight[:, own] = _weights(score[k, own], None if not by_value or size is None else size[k, own], n)
        moved = np.where(kept[k], r[k], 0.0)
        periods[k] = weight @ moved
        spread = weight[-1] - weight[0]
        if before is not None:
            old, past = before
            turned[k] = 0.5 * np.abs(spread - old * (1.0 + past) / (1.0 + old @ past)).sum()
        before = spread, moved
    if len(turned):
        turned[0] = np.nan
    returns_of = np.column_stack([periods, periods[:, -1] - periods[:, 0]])
    turnover = np.full(returns_of.shape, np.nan)
    turnover[:, -1] = turned
    return PaperPortfolios(
        names=(*(f"q{k}" for k in range(1, n + 1)), "long_short"),
        decision=decision,
        entry=entry,
        cohorts=1,
        bars=leave,
        bar_returns=returns_of,
        period_returns=returns_of,
        turnover=turnover,
        counts=counts,
    )


def _weights(score: Floats, size: Floats | None, n: int) -> Floats:
    """Weights (n, instruments) of the quantiles: above the lower edge, which the lowest includes, to the upper."""
    edges = np.percentile(score, np.arange(n + 1) * 100.0 / n)
    member = (score > edges[:-1, None]) & (score <= edges[1:, None])
    member[0] |= score == edges[0]
    weight = member * (1.0 if size is None else size)
    total = weight.sum(axis=1, keepdims=True)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
