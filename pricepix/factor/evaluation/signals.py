"""Price signals to compare a factor with, from the same panel and dates: reversal, momentum, trend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.kernels import trend_values, upper_triangle
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.rebalancing import closes_month, month_ends
from pricepix.factor.evaluation.row_blocks import frozen, on_threads

__all__ = ["BASELINES", "TREND_LAGS", "history", "momentum", "reversal", "trend"]

TREND_LAGS: Final = (3, 5, 10, 20, 50, 100, 200, 400, 600, 800, 1000)
"""Moving averages of Han, Zhou and Zhu (2016), in bars."""

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]


def reversal(market: Market, at: Positions, bars: int) -> Floats:
    """Return minus the return over the last `bars` bars, float64 (dates, instruments)."""
    return -_past_return(market, at, bars, 0)


def momentum(market: Market, at: Positions, bars: int, skip: int) -> Floats:
    """Return the return from `bars` bars ago to `skip` bars ago, which leaves out the last month's reversal."""
    return _past_return(market, at, bars, skip)


def trend(
    market: Market,
    at: Positions,
    month: int | None = None,
    lags: Sequence[int] = TREND_LAGS,
    memory: int = 12,
) -> Floats:
    """Trend factor of Han, Zhou and Zhu (2016): the return expected from moving averages of many lags.

    At every month's end the month's returns are regressed, across instruments, on the averages over each lag,
    divided by the price, at the end of the month before. The mean of the slopes over the last `memory` months,
    times today's averages over price, is the expected return. The value for a date uses no later data, and
    depends neither on which other dates are asked for nor on where the panel begins, once the lags are covered.

    Parameters
    ----------
    market : Market
    at : numpy.ndarray, int64 (dates,)
        Positions along the calendar.
    month : int, optional
        By default months are those of the calendar, as in the paper. A number of bars counts them back from each
        date instead: a regression a date rather than a month.
    lags : sequence of int
        A lag takes part in a month's regression if at least half of the instruments with a price had as many bars
        by then, and in a date's value if it took part in one of the months averaged for it; its slope is 0 in
        the others.
    memory : int
        Months of slopes that are averaged; fewer at first.

    Returns
    -------
    numpy.ndarray, float64 (dates, instruments)
        NaN where an average is missing or no slopes are known yet.
    """
    out = np.full((len(at), market.level.shape[1]), np.nan)
    if len(at) == 0:
        return out
    averages = _Averages.of(market, lags)
    slopes: dict[tuple[int, int], Floats] = {}
    used, mean = np.zeros((len(at), len(lags)), bool), np.zeros((len(at), len(lags)))
    for j, ends in enumerate(_months_before(market, at, month)):
        past: list[Floats] = []
        for pair in itertools.pairwise(ends):
            if pair not in slopes:
                slopes[pair] = averages.slopes(pair[1], pair[0])
            if not np.isnan(slopes[pair][0]):
                past.insert(0, slopes[pair])
            if len(past) == memory:
                break
        if past:
            used[j] = (np.array(past) != 0.0).any(axis=0)
            mean[j] = np.array(past).mean(axis=0)
    averages.expect(at, used, mean, out)
    return out


@dataclass(frozen=True)
class _Averages:
    """Moving averages of a market's levels, over the level."""

    level: Floats
    total: Floats
    """Sums of the levels before each bar, one bar more than there are."""
    n_prices: NDArray[np.int64]
    lags: Sequence[int]

    @classmethod
    def of(cls, market: Market, lags: Sequence[int]) -> _Averages:
        level = market.level
        total = np.vstack([np.zeros((1, level.shape[1])), np.cumsum(np.nan_to_num(level), axis=0)])
        return cls(level, total, np.cumsum(~np.isnan(level), axis=0), lags)

    def expect(self, at: Positions, used: NDArray[np.bool_], slope: Floats, out: Floats) -> None:
        """Fill `out` with averages over price times slopes, both of the lags that are used at each position."""
        on_threads(
            trend_values,
            len(at),
            4 * len(self.lags) * self.level.shape[1],
            frozen(at, np.int64),
            frozen(self.level),
            frozen(self.total),
            frozen(self.n_prices, np.int64),
            frozen(self.lags, np.int64),
            frozen(used, np.bool_),
            frozen(slope),
            out,
        )

    def over_price(self, t: int) -> Floats:
        """Return averages over price at bar t, (instruments, lags); NaN with fewer bars than the lag."""
        columns = np.full((self.level.shape[1], len(self.lags)), np.nan)
        for k, lag in enumerate(self.lags):
            enough = self.n_prices[t] >= lag
            if enough.any():
                mean = (self.total[t + 1] - self.total[t + 1 - lag]) / lag
                columns[enough, k] = mean[enough] / self.level[t][enough]
        return columns

    def slopes(self, begin: int, end: int) -> Floats:
        """Regress the returns from one month's end to the next on the averages at the first; NaN if it cannot be."""
        x, r = self.over_price(begin), self.level[end] / self.level[begin] - 1.0
        priced = self.n_prices[begin] > 0
        used = 2 * np.count_nonzero(~np.isnan(x), axis=0) >= np.count_nonzero(priced)
        good = priced & ~np.isnan(r) & ~np.isnan(x[:, used]).any(axis=1)
        if not used.any() or np.count_nonzero(good) <= np.count_nonzero(used) + 1:
            return np.full(len(self.lags), np.nan)
        block = np.column_stack([np.ones(int(good.sum())), x[np.ix_(good, used)], r[good]])
        triangle = np.empty((block.shape[1], block.shape[1]))
        upper_triangle(block, triangle)
        found = np.zeros(len(self.lags))
        # As of the block itself, whose singular values are those of the triangle.
        smallest = len(block) * np.finfo(np.float64).eps
        found[used] = np.linalg.lstsq(triangle[:-1, :-1], triangle[:-1, -1], rcond=smallest)[0][1:]
        return found


def _months_before(market: Market, at: Positions, month: int | None) -> Iterator[list[int]]:
    """Yield, for each date, the month ends that it knows of, the latest first."""
    if month is not None:
        yield from (list(range(t, -1, -month)) for t in at.tolist())
        return
    last = month_ends(market.time, market.panel.tz, market.thin("month"))
    closing = closes_month(market.time, market.panel.tz)
    for t in at.tolist():
        known = last[: int(np.searchsorted(last, t, side="left"))][::-1].tolist()
        # That a month is over with this very bar must not be learned from later ones.
        yield [t, *known] if closing[t] else known


def _past_return(market: Market, at: Positions, bars: int, skip: int) -> Floats:
    """Return the return from `bars` ago to `skip` ago; NaN without a price at both and a bar now."""
    level = market.level
    out = np.full((len(at), level.shape[1]), np.nan)
    enough = at >= bars
    t = at[enough]
    out[enough] = level[t - skip] / level[t - bars] - 1.0
    out[market.row[at] < 0] = np.nan
    return out


def _week(market: Market, at: Positions, per_year: float) -> Floats:
    return reversal(market, at, max(1, round(per_year / 52)))


def _month(market: Market, at: Positions, per_year: float) -> Floats:
    return reversal(market, at, max(1, round(per_year / 12)))


def _momentum(market: Market, at: Positions, per_year: float) -> Floats:
    year = max(2, round(per_year))
    return momentum(market, at, year, min(max(1, round(per_year / 12)), year - 1))


def _trend(market: Market, at: Positions, per_year: float) -> Floats:
    return trend(market, at)


BASELINES: Final[dict[str, Callable[[Market, Positions, float], Floats]]] = {
    "STR": _month,
    "WSTR": _week,
    "MOM": _momentum,
    "TREND": _trend,
}
"""Functions of (market, positions, bars a year): 1-month and 1-week reversal, 12-2 momentum, trend."""


def history(name: str, per_year: float) -> int:
    """Return how many bars before a date a baseline uses, those of the trend's longest average included."""
    month, week, year = (max(1, round(per_year / n)) for n in (12, 52, 1))
    return {"STR": month, "WSTR": week, "MOM": year, "TREND": 16 * month + max(TREND_LAGS)}[name]
