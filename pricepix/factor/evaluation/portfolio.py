"""Portfolios sorted on a factor: quantiles, weights, holding, turnover and cost, as pure functions of arrays.

Matrices are (bars, instruments) along the market's calendar, decisions are positions along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pricepix._checks import choice, whole_number
from pricepix.factor.evaluation.metrics import newey_west_t

__all__ = [
    "UNTRADABLE",
    "Book",
    "Tradable",
    "drawdown",
    "hold",
    "performance",
    "quantile_membership_change",
    "quantile_returns",
    "quantiles",
    "turnover",
]

UNTRADABLE: Final = ("exclude", "delay", "ignore")
_NEVER: Final = int(np.iinfo(np.int64).max)

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


def performance(returns: ArrayLike, periods_per_year: float) -> dict[str, float]:
    """Summarise a series of simple returns.

    Parameters
    ----------
    returns : array (n,)
        One a period; NaN are left out.
    periods_per_year : float

    Returns
    -------
    dict
        ``periods``; ``mean`` a period and its ``newey_west_t``; ``annual_mean`` = mean x periods a year;
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
    return {
        "periods": n,
        "mean": mean,
        "newey_west_t": newey_west_t(r),
        "annual_mean": mean * periods_per_year,
        "annual_return": float(total ** (periods_per_year / n) - 1.0) if n and total > 0 else nan,
        "volatility": std * float(np.sqrt(periods_per_year)),
        "sharpe": mean / std * float(np.sqrt(periods_per_year)) if n > 1 and std > 0 else nan,
        "max_drawdown": float(drawdown(r).min()) if n else nan,
        "total_return": total - 1.0,
    }


@dataclass(frozen=True)
class Tradable:
    """At which bars an instrument can be bought or sold, bool (bars, instruments) each."""

    buy: NDArray[np.bool_]
    """It traded, and was not locked at its upper limit."""
    sell: NDArray[np.bool_]
    """It traded, and was not locked at its lower limit."""


@dataclass(frozen=True)
class Book:
    """What became of quantile portfolios that were formed again and again.

    Portfolios stand in this order: quantile 1 to n, all long; ``short``, the lowest quantile among what can
    be sold; and ``long_short``, the highest quantile minus ``short``.
    """

    names: tuple[str, ...]
    decision: NDArray[np.int64]
    """int64 (rebalancings,): positions at which weights were decided."""
    entry: NDArray[np.int64]
    """int64 (rebalancings,): positions at which they were traded."""
    cohorts: int
    """Portfolios held at a time, each for that many rebalancings."""
    bars: NDArray[np.int64]
    """int64 (m,): the positions to which `bar_returns` belong."""
    bar_returns: Floats
    """float64 (m, portfolios), before costs."""
    period_returns: Floats
    """float64 (rebalancings, portfolios), from a rebalancing to the next, before costs."""
    turnover: Floats
    """float64 (rebalancings, portfolios); the first is the purchase out of cash."""
    counts: dict[str, int]
    """Candidate entries, and what kept some of them out."""

    def net_periods(self, cost: float) -> Floats:
        """Period returns after a cost per side: `cost` times all bought and sold, twice the turnover."""
        return self.period_returns - 2.0 * cost * self.turnover

    def net_bars(self, cost: float) -> Floats:
        """Bar returns after a cost per side, which falls on the bar after a rebalancing."""
        out = self.bar_returns.copy()
        first = np.searchsorted(self.bars, self.entry + 1)
        out[first] -= 2.0 * cost * self.turnover
        return out


def hold(
    factor: ArrayLike,
    level: ArrayLike,
    decision: ArrayLike,
    *,
    n: int = 10,
    end: int | None = None,
    cohorts: int = 1,
    delay: int = 0,
    cap: ArrayLike | None = None,
    tradable: Tradable | None = None,
    untradable: str = "exclude",
    max_wait: int = 5,
) -> Book:
    """Form quantile portfolios at each decision, hold them, and report every bar.

    At a decision the instruments are sorted by `quantiles` and weighted equally, or by `cap`. They are bought
    at the entry, `delay` bars later, at its close, and then held without a trade, so that weights drift, to
    the entry of the rebalancing `cohorts` later. With more than one cohort the portfolio's return is the mean
    over the cohorts held (Jegadeesh and Titman, 1993). An instrument that stops trading keeps its last value
    until it is sold.

    Parameters
    ----------
    factor : array (decisions, instruments)
    level : array (bars, instruments)
        Value of a unit held since the beginning, carried over bars without a price; NaN before the first
        price.
    decision : array of int (decisions,)
        Positions of the decisions, ascending.
    n : int
        Number of quantiles.
    end : int, optional
        Position at which the last portfolio is sold. By default after as many bars as the median period.
        Where the calendar ends before that, the last decision is left out.
    cohorts : int
    delay : int
    cap : array (decisions, instruments), optional
        Weights are proportional to it; instruments where it is missing or not positive are left out and
        counted.
    tradable : Tradable, optional
        All bars by default.
    untradable : {"exclude", "delay", "ignore"}
        What becomes of an entry at which a long cannot be bought or a short cannot be sold: left out, its
        weight going to the others; put off to the first bar of the next `max_wait` at which it can, in cash
        until then, and all along if there is none; or traded all the same.
    max_wait : int

    Returns
    -------
    Book

    Raises
    ------
    ValueError
        An unknown option, or a calendar too short to close a single period.
    """
    choice(untradable, "untradable", UNTRADABLE)
    if cohorts < 1 or delay < 0 or max_wait < 0:
        raise ValueError(
            f"cohorts={cohorts}, delay={delay}, max_wait={max_wait}: give 1 cohort or more, no negative bars"
        )
    values, levels = np.asarray(factor, np.float64), np.asarray(level, np.float64)
    at = np.asarray(decision, np.int64)
    entry, stop = _periods(at, delay, len(levels), end)
    at, values = at[: len(entry)], values[: len(entry)]
    group = quantiles(values, n)
    caps = None if cap is None else np.asarray(cap, np.float64)[: len(entry)]
    names = (*(f"q{k}" for k in range(1, n + 1)), "short", "long_short")
    counts = dict.fromkeys(
        ("entries", "no_price", "no_cap", "cannot_buy", "cannot_sell", "delayed", "never_traded"), 0
    )
    policy = _Entry(tradable, untradable, max_wait, counts)

    bounds = np.append(entry, stop)
    m = len(entry)
    bar_sum = np.zeros((stop - entry[0], n + 1))
    bar_count = np.zeros((stop - entry[0], n + 1))
    periods = np.full((m, n + 2), np.nan)
    turned = np.full((m, n + 2), np.nan)
    live: list[_Cohort] = []
    before: Floats | None = None
    for k in range(m):
        a, b = int(bounds[k]), int(bounds[k + 1])
        new = policy.cohort(group[k], None if caps is None else caps[k], levels, a, n)
        # The oldest cohort makes room for the new one.
        live = [*live[-(cohorts - 1) :], new] if cohorts > 1 else [new]
        filled = np.stack([c.weight.any(axis=1) for c in live])
        held = np.stack([c.weight for c in live]).sum(axis=0) / np.maximum(filled.sum(axis=0), 1)[:, None]
        both = np.vstack([held, held[n - 1] - held[n]])
        if before is None:
            turned[k] = 0.5 * np.abs(both).sum(axis=1)
        else:
            turned[k] = turnover(before, both, levels[a] / levels[int(bounds[k - 1])] - 1.0)
        before = both
        span = slice(a - int(entry[0]), b - int(entry[0]))
        bar_count[span] = filled.sum(axis=0)
        live, total = _carry(live, levels, a, b)
        bar_sum[span] += total
    with np.errstate(invalid="ignore", divide="ignore"):
        bar = bar_sum / bar_count
    bar[bar_count == 0] = np.nan
    for k in range(m):
        part = bar[bounds[k] - entry[0] : bounds[k + 1] - entry[0]]
        periods[k, : n + 1] = np.prod(1.0 + part, axis=0) - 1.0
    periods[:, n + 1] = periods[:, n - 1] - periods[:, n]
    bars_all = np.column_stack([bar, bar[:, n - 1] - bar[:, n]])
    return Book(
        names, at, entry, cohorts, np.arange(entry[0] + 1, stop + 1), bars_all, periods, turned, counts
    )


def _periods(at: NDArray[np.int64], delay: int, bars: int, end: int | None) -> tuple[NDArray[np.int64], int]:
    """Entries whose period the calendar closes, and the position at which the last is sold."""
    entry = at + delay
    entry = entry[entry < bars - 1]
    if len(entry) == 0:
        raise ValueError(
            "no portfolio can be held: the first decision stands at bar "
            f"{at[0] if len(at) else '-'} of {bars} and is traded {delay} bars later; the panel must go on "
            "after that"
        )
    step = int(np.median(np.diff(entry))) if len(entry) > 1 else 0
    stop = int(entry[-1]) + step if end is None else int(end)
    if stop > bars - 1 or stop <= entry[-1]:
        stop, entry = int(entry[-1]), entry[:-1]
    if len(entry) == 0:
        raise ValueError("no portfolio can be held: the data end before the first holding period does")
    return entry, stop


@dataclass(frozen=True)
class _Cohort:
    """Weights (n + 1, instruments) in sum 1 or, where a quantile is empty, 0; the last row is ``short``."""

    weight: Floats
    buy_at: NDArray[np.int64]
    sell_at: NDArray[np.int64]
    """Bars at which each instrument is entered, as a long and as a short."""
    latest: int
    """The last of these bars among the instruments that it has."""

    def carry(self, level: Floats, a: int, b: int) -> tuple[_Cohort, Floats]:
        """Hold from bar a to bar b; return the drifted cohort and its bar returns (b - a, n + 1)."""
        weight = np.zeros_like(self.weight)
        steps = np.zeros((b - a, len(weight)))
        for rows, at in ((slice(0, -1), self.buy_at), (slice(-1, None), self.sell_at)):
            own = self.weight[rows]
            member = np.flatnonzero(own.any(axis=0))
            filled = own.any(axis=1)
            growth = _growth(level, member, a, b, at[member])
            worth = own[:, member] @ growth.T
            worth[~filled] = 1.0
            steps[:, rows] = (worth[:, 1:] / worth[:, :-1] - 1.0).T
            weight[rows, member] = own[:, member] * growth[-1] / worth[:, -1:]
        return _Cohort(weight, self.buy_at, self.sell_at, self.latest), steps


def _carry(live: list[_Cohort], level: Floats, a: int, b: int) -> tuple[list[_Cohort], Floats]:
    """Hold cohorts from bar a to bar b; return them and the sum of their bar returns, (b - a, n + 1)."""
    late = [c for c in live if c.latest > a]
    prompt = [c for c in live if c.latest <= a]
    carried = {id(c): c.carry(level, a, b) for c in late}
    total = np.zeros((b - a, len(live[0].weight)))
    for _, steps in carried.values():
        total += steps
    moved: dict[int, _Cohort] = {}
    if prompt:
        # Cohorts that are wholly invested share the instruments' growth: one product for all of them.
        growth = level[a : b + 1] / level[a]
        growth[np.isnan(growth)] = 1.0  # Without a price there is no weight either.
        stacked = np.concatenate([c.weight for c in prompt])
        worth = stacked @ growth.T
        worth[~stacked.any(axis=1)] = 1.0
        steps = worth[:, 1:] / worth[:, :-1] - 1.0
        total += steps.reshape(len(prompt), -1, b - a).sum(axis=0).T
        stacked *= growth[-1]
        stacked /= worth[:, -1:]
        for c, weight in zip(prompt, np.split(stacked, len(prompt)), strict=True):
            moved[id(c)] = _Cohort(weight, c.buy_at, c.sell_at, c.latest)
    return [carried[id(c)][0] if id(c) in carried else moved[id(c)] for c in live], total


@dataclass(frozen=True)
class _Entry:
    """How cohorts are entered when not everything can be traded; counts what it meets."""

    tradable: Tradable | None
    untradable: str
    max_wait: int
    counts: dict[str, int]

    def cohort(
        self, group: NDArray[np.int8], cap: Floats | None, level: Floats, entry: int, n: int
    ) -> _Cohort:
        chosen = group > 0
        priced = ~np.isnan(level[entry])
        self.counts["entries"] += int(np.count_nonzero(chosen))
        self.counts["no_price"] += int(np.count_nonzero(chosen & ~priced))
        chosen = chosen & priced
        size = np.ones(len(group))
        if cap is not None:
            size = np.where(cap > 0, cap, 0.0)
            self.counts["no_cap"] += int(np.count_nonzero(chosen & ~(cap > 0)))
        longs, shorts = chosen, chosen & (group == 1)
        buy_at = np.full(len(group), entry, np.int64)
        sell_at = buy_at.copy()
        if self.tradable is not None and self.untradable != "ignore":
            no_buy, no_sell = longs & ~self.tradable.buy[entry], shorts & ~self.tradable.sell[entry]
            self.counts["cannot_buy"] += int(np.count_nonzero(no_buy))
            self.counts["cannot_sell"] += int(np.count_nonzero(no_sell))
            if self.untradable == "exclude":
                longs, shorts = longs & ~no_buy, shorts & ~no_sell
            else:
                self._wait(self.tradable.buy, no_buy, entry, buy_at)
                self._wait(self.tradable.sell, no_sell, entry, sell_at)
        weight = np.zeros((n + 1, len(group)))
        for k in range(n):
            weight[k] = np.where(longs & (group == k + 1), size, 0.0)
        weight[n] = np.where(shorts, size, 0.0)
        total = weight.sum(axis=1, keepdims=True)
        weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        latest = max(
            int(buy_at[weight[:-1].any(axis=0)].max(initial=entry)),
            int(sell_at[weight[-1] > 0].max(initial=entry)),
        )
        return _Cohort(weight, buy_at, sell_at, latest)

    def _wait(
        self, open_: NDArray[np.bool_], stuck: NDArray[np.bool_], entry: int, at: NDArray[np.int64]
    ) -> None:
        later = open_[entry + 1 : entry + 1 + self.max_wait, stuck]
        if len(later):
            found, wait = np.any(later, axis=0), np.argmax(later, axis=0)
        else:
            found, wait = np.zeros(later.shape[1], np.bool_), np.zeros(later.shape[1], np.int64)
        at[stuck] = np.where(found, entry + 1 + wait, _NEVER)
        self.counts["delayed"] += int(found.sum())
        self.counts["never_traded"] += int((~found).sum())


def _growth(level: Floats, member: NDArray[np.intp], a: int, b: int, at: NDArray[np.int64]) -> Floats:
    """Worth at bars a to b of a unit put into each member at its bar `at`; (b - a + 1, members)."""
    block = level[a : b + 1, member]
    growth = block / block[0]
    for j in np.flatnonzero(at > a):
        wait = min(int(at[j]) - a, b - a)
        growth[wait:, j] = block[wait:, j] / block[wait, j]
        growth[:wait, j] = 1.0
    return growth
