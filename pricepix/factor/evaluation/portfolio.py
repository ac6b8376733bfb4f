"""Quantiles of a factor, and how a portfolio did: returns, turnover, drawdown. Pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pricepix._checks import whole_number
from pricepix.factor.evaluation.metrics import MINIMUM_HORIZONS, mean_test, newey_west_t

__all__ = [
    "drawdown",
    "performance",
    "quantile_membership_change",
    "quantile_returns",
    "quantiles",
    "turnover",
]

Floats = NDArray[np.float64]


def quantiles(factor: ArrayLike, n: int = 10) -> NDArray[np.int8]:
    """Sort the instruments of each date into quantiles, 1 the lowest.

    The edges are the values at the shares k/n of the sorted factor, linearly interpolated; an instrument is
    in quantile k if it lies above edge k - 1 and not above edge k. So equal values are never parted: ties on
    an edge all belong to the lower side, and a quantile may then be larger, or empty. Where all values differ
    this is ``pandas.qcut``, and so alphalens; where edges coincide those raise an error.

    Parameters
    ----------
    factor : array (dates, instruments)
        NaN belongs to no quantile.
    n : int
        Number of quantiles, 2 to 100.

    Returns
    -------
    numpy.ndarray, int8 (dates, instruments)
        1 to n; 0 for NaN, and throughout on dates with fewer than `n` known values.
    """
    n = whole_number(n, "quantiles", 2, 100)
    x = np.asarray(factor, np.float64)
    known = ~np.isnan(x)
    count = known.sum(axis=1)
    out = np.zeros(x.shape, np.int8)
    use = count >= n
    if not use.any():
        return out
    x, known, count = x[use], known[use], count[use]
    ordered = np.sort(x, axis=1)
    group = np.ones(x.shape, np.int8)
    row = np.arange(len(x))
    for k in range(1, n):
        # In whole numbers, so that an edge that falls on an instrument is exactly its value.
        low, part = np.divmod((count - 1) * k, n)
        a = ordered[row, low]
        b = ordered[row, np.minimum(low + 1, count - 1)]
        edge = np.where(part == 0, a, a + (b - a) * (part / n))
        group += x > edge[:, None]
    out[use] = np.where(known, group, 0)
    return out


def quantile_returns(group: NDArray[np.int8], returns: ArrayLike, n: int) -> Floats:
    """Mean forward return of each quantile on each date, equally weighted, (dates, n); NaN where empty."""
    r = np.asarray(returns, np.float64)
    out = np.full((len(group), n), np.nan)
    for k in range(1, n + 1):
        member = (group == k) & ~np.isnan(r)
        count = member.sum(axis=1)
        total = np.where(member, r, 0.0).sum(axis=1)
        out[:, k - 1] = np.divide(total, count, out=np.full(len(group), np.nan), where=count > 0)
    return out


def quantile_membership_change(group: NDArray[np.int8], quantile: int) -> Floats:
    """Share of a quantile's names that were not in it on the date before, float64 (dates,).

    The turnover that alphalens reports. NaN on the first date, and where the quantile is empty on this date
    or the one before.
    """
    member = group == quantile
    count = member.sum(axis=1)
    out = np.full(len(group), np.nan)
    fresh = (member[1:] & ~member[:-1]).sum(axis=1)
    known = (count[1:] > 0) & (count[:-1] > 0)
    out[1:][known] = fresh[known] / count[1:][known]
    return out


def turnover(before: ArrayLike, after: ArrayLike, returns: ArrayLike) -> Floats:
    """One rebalancing's turnover: ``1/2 sum |w_t - w_(t-1) (1 + r) / (1 + sum w_(t-1) r)|``.

    Jiang, Kelly and Xiu (2023), without their division by the months of the holding period. A long-short
    portfolio's weights are +1 and -1 in sum, so that it can reach 2, a long one's 1.

    Parameters
    ----------
    before, after : array (portfolios, instruments)
        Weights after the last rebalancing and after this one.
    returns : array (instruments,)
        Returns between the two. NaN counts as 0.

    Returns
    -------
    numpy.ndarray, float64 (portfolios,)
    """
    w, r = np.asarray(before, np.float64), np.nan_to_num(np.asarray(returns, np.float64))
    drifted = w * (1.0 + r) / (1.0 + w @ r)[:, None]
    return 0.5 * np.abs(np.asarray(after, np.float64) - drifted).sum(axis=1)


def drawdown(returns: ArrayLike) -> Floats:
    """Loss from the highest value so far, the start included, float64 (n,): 0 or negative."""
    value = np.cumprod(1.0 + np.nan_to_num(np.asarray(returns, np.float64)))
    return value / np.maximum.accumulate(np.maximum(value, 1.0)) - 1.0


def performance(
    returns: ArrayLike, periods_per_year: float, minimum: int = MINIMUM_HORIZONS
) -> dict[str, float]:
    """Summarise a series of simple returns.

    Parameters
    ----------
    returns : array (n,)
        One a period; NaN are left out.
    periods_per_year : float
    minimum : int
        Periods that a t, a p-value and a Sharpe ratio need; they are NaN with fewer.

    Returns
    -------
    dict
        ``periods``; ``mean`` a period, its ``t``, ``dof`` and ``p_value`` (see ``mean_test``) and its
        ``newey_west_t``; ``annual_mean`` = mean x periods a year;
        ``annual_return``, compounded; ``volatility`` = standard deviation (n - 1) x sqrt(periods a year);
        ``sharpe`` = mean / standard deviation x sqrt(periods a year), of returns as they are (no risk-free
        rate is taken off); ``max_drawdown``, negative; ``total_return``.
    """
    r = np.asarray(returns, np.float64)
    r = r[~np.isnan(r)]
    n = len(r)
    nan = float("nan")
    mean = float(r.mean()) if n else nan
    std = float(r.std(ddof=1)) if n > 1 else nan
    if n > 1 and r.min() == r.max():
        std = 0.0
    total = float(np.prod(1.0 + r)) if n else nan
    enough = n >= max(2, minimum)
    tested = mean_test(r if enough else r[:0])
    return {
        "periods": n,
        "mean": mean,
        **tested._asdict(),
        "newey_west_t": newey_west_t(r) if enough else nan,
        "annual_mean": mean * periods_per_year,
        "annual_return": float(total ** (periods_per_year / n) - 1.0) if n and total > 0 else nan,
        "volatility": std * float(np.sqrt(periods_per_year)),
        "sharpe": mean / std * float(np.sqrt(periods_per_year)) if enough and std > 0 else nan,
        "max_drawdown": float(drawdown(r).min()) if n else nan,
        "total_return": total - 1.0,
    }
