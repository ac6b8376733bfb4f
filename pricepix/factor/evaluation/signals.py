"""Price signals to compare a factor with, from the same panel and dates: reversal, momentum, trend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.market import Market

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
    market: Market, at: Positions, month: int, lags: Sequence[int] = TREND_LAGS, memory: int = 12
) -> Floats:
    """Trend factor of Han, Zhou and Zhu (2016): the return expected from moving averages of many lags.

    At every month's end the month's returns are regressed, across instruments, on the averages over each lag,
    divided by the price, at the end of the month before. The mean of the slopes over the last `memory` months,
    times today's averages over price, is the expected return. The value for a date uses no later data.

    Parameters
    ----------
    market : Market
    at : numpy.ndarray, int64 (dates,)
        Positions along the calendar.
    month : int
        Bars of a month.
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
    level = market.level
    out = np.full((len(at), level.shape[1]), np.nan)
    if len(at) == 0:
        return out
    total = np.vstack([np.zeros((1, level.shape[1])), np.cumsum(np.nan_to_num(level), axis=0)])
    n_prices = np.cumsum(~np.isnan(level), axis=0)

    def ratios(t: int) -> Floats:
        """Return averages over price at bar t, (instruments, lags); NaN with fewer bars than the lag."""
        columns = np.full((level.shape[1], len(lags)), np.nan)
        for k, lag in enumerate(lags):
            enough = n_prices[t] >= lag
            if enough.any():
                mean = (total[t + 1] - total[t + 1 - lag]) / lag
                columns[enough, k] = mean[enough] / level[t][enough]
        return columns

    ends = np.arange(month - 1, int(at[-1]) + 1, month)
    slopes = np.full((len(ends), len(lags)), np.nan)
    for m in range(1, len(ends)):
        x, r = ratios(int(ends[m - 1])), level[ends[m]] / level[ends[m - 1]] - 1.0
        priced = n_prices[ends[m - 1]] > 0
        used = 2 * np.count_nonzero(~np.isnan(x), axis=0) >= np.count_nonzero(priced)
        good = priced & ~np.isnan(r) & ~np.isnan(x[:, used]).any(axis=1)
        if used.any() and np.count_nonzero(good) > np.count_nonzero(used) + 1:
            design = np.column_stack([np.ones(int(good.sum())), x[np.ix_(good, used)]])
            slopes[m] = 0.0
            slopes[m, used] = np.linalg.lstsq(design, r[good], rcond=None)[0][1:]
    for j, t in enumerate(at.tolist()):
        past = slopes[: int(np.searchsorted(ends, t, side="right"))]
        past = past[~np.isnan(past[:, 0])][-memory:]
        used = (past != 0.0).any(axis=0)
        if used.any():
            out[j] = ratios(t)[:, used] @ past[:, used].mean(axis=0)
    return out


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
    return trend(market, at, max(1, round(per_year / 12)))


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
    return {"STR": month, "WSTR": week, "MOM": year, "TREND": 14 * month + max(TREND_LAGS)}[name]
