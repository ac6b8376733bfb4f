"""Evaluate a factor on its market: statistics, portfolios, price signals, one result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import bars
from pricepix.bars.panel import Panel
from pricepix.bars.times import format_times
from pricepix.factor.cache import CacheLike, FactorCache, open_cache, stamps
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.metrics import (
    calibration,
    classification,
    classification_by_date,
    information_coefficient,
    series_summary,
)
from pricepix.factor.evaluation.portfolio import (
    Book,
    hold,
    performance,
    quantile_membership_change,
    quantile_returns,
    quantiles,
)
from pricepix.factor.evaluation.rebalancing import bars_per_year, rebalances, rebalances_per_year
from pricepix.factor.evaluation.result import Evaluation, Floats
from pricepix.factor.evaluation.signals import BASELINES, history
from pricepix.factor.origin import OtherBarsWarning, other_bars
from pricepix.factor.seen import dates_seen
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME

_DECAY: Final = (1, 2, 3, 5, 10, 20, 40, 60, 120)

_NAMED: Final = (("week", 52.0), ("month", 12.0), ("quarter", 4.0))

_HORIZON: Final = 20


def evaluate(
    cache: FactorCache | CacheLike,
    panel: Panel | Any,
    horizon: int | None = None,
    *,
    delay: int | None = None,
    quantiles: int = 10,
    rebalance: str | int | None = None,
    costs: float | Sequence[float] = (0.0, 0.0005, 0.001, 0.002),
    untradable: str = "exclude",
    max_wait: int = 5,
    price: str = "auto",
    delays: int | Sequence[int] = (0, 1, 2, 3, 4, 5),
    horizons: int | Sequence[int] | None = None,
    baselines: str | Sequence[str] = ("STR", "WSTR", "MOM", "TREND"),
    columns: Mapping[str, Any] | None = None,
    periods_per_year: float | None = None,
    start: Any = None,
    end: Any = None,
    progress: bool = True,
) -> Evaluation:
    """Judge a factor on its market.

    Parameters
    ----------
    cache : FactorCache, str or path
    panel : Panel, PanelImages or anything ``Panel.from_table`` takes
        The bars; every instrument and every bar of the cache must be in it. Of panel images, their panel.
    horizon : int, optional
        Bars over which the factor is asked to tell returns. By default those that its model learned, as the
        cache says, or 20 where it does not.
    delay : int, optional
        Bars from the one at which a value stands to the entry. By default that of the images' returns, as the
        cache says, less the shift: a cache that was scored with a shift already stands at the bar from which it
        may be traded.
    quantiles : int
        Number of portfolios; ties as ``portfolio.quantiles`` says.
    rebalance : {"bar", "day", "week", "month", "quarter", "horizon"} or int, optional
        When portfolios are formed: see ``calendar.rebalances``. By default the week, month or quarter that
        comes within a quarter of `horizon`, as in the paper, else ``"horizon"``. Where the horizon is longer
        than the time between, portfolios overlap: each is held for as many rebalancings as make up the
        horizon.
    costs : float or sequence of float
        Costs per side, as a share of what is traded.
    untradable : {"exclude", "delay", "ignore"}
        Entries that cannot be made (no trade, or at a limit): see ``portfolio.hold``. They are counted.
    max_wait : int
        Bars that ``"delay"`` waits.
    price : {"auto", "close", "total_return"}
        What returns are computed from: see ``forward_returns``.
    delays : int or sequence of int
        Entries, in bars after `delay`, of the delay curve.
    horizons : int or sequence of int, optional
        Horizons of the decay; by default 1 to 120 bars, as far as the data go.
    baselines : str or sequence of str
        Any of STR, WSTR, MOM and TREND; ``()`` for none.
    columns : mapping, optional
        More signals to compare with, by name: an array with a value a panel row, a table with columns
        instrument, time and one more, or another FactorCache.
    periods_per_year : float, optional
        Bars a year; told from the calendar by default: see ``calendar.bars_per_year``.
    start, end : str, date or datetime, optional
        First and last date of the factor to be judged.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        Cache and panel do not belong together, the horizon is longer than the data, or there are fewer
        instruments than quantiles.

    Warns
    -----
    OtherBarsWarning
        The panel can be shown to have other bars than the one that the factor was scored from. Result and report
        say so, too, as they do of dates that are not out of sample.

    Notes
    -----
    All bars of the panel, not the judged dates alone, are laid out on grids of bars by the cache's instruments,
    with 8 bytes a cell. Beside the panel itself at most seven and a half of them are held at a time, and what the
    judged dates need. Five-minute bars of 5,000 stocks, of which the default baselines take 15,112 before the first
    judged date and the portfolios 3,467 after the last one, make grids of 0.7 GiB.
    """
    cache = cache if isinstance(cache, FactorCache) else open_cache(cache)
    panel = _bars(panel)
    horizon, delay = settled(cache.attrs, horizon, delay)
    costs, baselines = _several("costs", costs), _several("baselines", baselines)
    delays = _several("delays", delays)
    horizons = None if horizons is None else _several("horizons", horizons)
    for cost in costs:
        if isinstance(cost, bool | str) or not hasattr(cost, "__float__") or not 0 <= cost < 1:
            raise ValueError(
                f"costs={costs}: a cost per side is a share of what is traded, from 0 to less than 1, such as 0.001"
            )
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"baselines={baselines}: {unknown[0]!r} is not one of {', '.join(BASELINES)}")
    time, names, values = _values(cache, panel, start, end)
    factor = values.astype(np.float64)
    market = Market.of(panel, names, price)
    known = np.searchsorted(market.time, time)
    judge = _Judge(
        cache,
        market,
        time,
        known,
        factor,
        horizon,
        delay,
        int(quantiles),
        untradable,
        int(max_wait),
        periods_per_year or bars_per_year(market.time, panel.tz),
    )
    forward = judge.checked_returns()
    other = other_bars(cache, panel, market.price)
    if other is not None:
        warnings.warn(other, OtherBarsWarning, stacklevel=2)
    every = judge.default_rebalance() if rebalance is None else rebalance
    with tqdm(total=6, desc="evaluate", disable=not progress) as bar:
        figures: dict[str, Any] = {
            "horizon": horizon,
            "delay": delay,
            "quantiles": int(quantiles),
            "rebalance": every,
            "untradable": untradable,
            "notes": [] if other is None else [other],
            "data": judge.data(forward),
        }
        figures["notes"] += judge.not_out_of_sample(figures["data"])
        series: dict[str, Any] = {"time": _iso(time, panel.tz)}
        judge.statistics(forward, figures, series)
        bar.update()
        judge.sorts(forward, figures, series)
        bar.update()
        judge.portfolios(every, costs, figures, series)
        bar.update()
        figures["holding"] = judge.holding()
        bar.update()
        figures["delays"] = judge.delay_curve(every, delays)
        figures["decay"] = judge.decay(horizons)
        bar.update()
        figures["baselines"] = judge.compared(forward, every, baselines, columns or {})
        bar.update()
    figures["lineage"] = _lineage(cache, panel)
    return Evaluation(figures, series, cache)


def settled(attrs: Mapping[str, Any], horizon: int | None, delay: int | None) -> tuple[int, int]:
    """Return the horizon and delay to judge a factor by: those given, else those that its cache records."""
    if horizon is None:
        horizon = _HORIZON if attrs.get("horizon") is None else attrs["horizon"]
    if delay is None:
        # Values stand `shift` bars after their images, from whose last bar the labels' delay counts.
        delay = max(0, (attrs.get("delay") or 0) - attrs["shift"])
    bars(horizon, "horizon", 1)
    bars(delay, "delay", 0)
    return int(horizon), int(delay)


def _bars(panel: Any) -> Panel:
    if isinstance(panel, ImageSet):
        if panel.panel is None:
            raise ValueError(
                f"{panel.kind} {panel.location} has images and no bars: give the panel that it was made from"
            )
        return panel.panel
    return Panel.of(panel)


def _several(name: str, given: Any) -> tuple[Any, ...]:
    """Take one value for a sequence of one."""
    if isinstance(given, str) or (np.ndim(given) == 0 and hasattr(given, "__float__")):
        return (given,)
    try:
        return tuple(given)
    except TypeError:
        raise TypeError(
            f"{name}={given!r} is a {type(given).__name__}: give one value or a sequence"
        ) from None


def reach(per_year: float, **settings: Any) -> tuple[int, int]:
    """Return how many bars before the first judged date, and after the last one, `evaluate` looks at.

    A panel of these alone gives the figures of one that has all bars, but for the trend factor: its months are
    counted from the panel's first bar.

    Parameters
    ----------
    per_year : float
        Bars a year, where `settings` has no ``periods_per_year``.
    **settings
        Keyword arguments of `evaluate`, whose defaults hold for the others; horizon and delay as `settled` gives
        them, or those of a cache that records none.

    Raises
    ------
    TypeError
        A setting that `evaluate` does not have.
    """
    asked = signature(evaluate).bind_partial(**settings)
    asked.apply_defaults()
    given = asked.arguments
    horizon, delay = settled({"shift": 0}, given["horizon"], given["delay"])
    rebalance, horizons = given["rebalance"], given["horizons"]
    per_year = given["periods_per_year"] or per_year
    longest = max((horizon, *(_DECAY if horizons is None else _several("horizons", horizons))))
    # Portfolios by quarter are always looked at, and the last one is held for another quarter.
    period = max(horizon, rebalance if isinstance(rebalance, int) else 0, math.ceil(per_year / 3.5))
    delays, baselines = _several("delays", given["delays"]), _several("baselines", given["baselines"])
    after = delay + max((0, *delays)) + given["max_wait"] + max(longest, period) + 1
    before = max((1, *(history(name, per_year) for name in baselines if name in BASELINES)))
    return before, after


@dataclass(frozen=True)
class _Judge:
    """A factor on the grid of its market."""

    cache: FactorCache
    market: Market
    time: NDArray[np.int64]
    known: NDArray[np.int64]
    factor: Floats
    horizon: int
    delay: int
    n: int
    untradable: str
    max_wait: int
    per_year: float

    @property
    def step(self) -> float:
        """Median bars from a date of the factor to the next."""
        return float(np.median(np.diff(self.known))) if len(self.known) > 1 else 1.0

    @property
    def overlap(self) -> int:
        return max(1, math.ceil(self.horizon / self.step))

    def checked_returns(self) -> Floats:
        most = int((~np.isnan(self.factor)).sum(axis=1).max())
        if most < self.n:
            raise ValueError(
                f"quantiles={self.n}, but no date has values of more than {most} instruments: give "
                "quantiles= of at "
                f"most {most}, at least 2, or a larger universe"
            )
        bars = len(self.market.time)
        if bars - int(self.known[0]) <= self.horizon + self.delay:
            raise ValueError(
                f"horizon={self.horizon} with delay={self.delay} is longer than the data: the panel has "
                f"{bars - int(self.known[0]) - 1} bars after the factor's first: give a shorter horizon or "
                "a panel that "
                "goes on"
            )
        forward = self.market.forward(self.known, self.horizon, self.delay)
        if not (~np.isnan(forward) & ~np.isnan(self.factor)).any():
            raise ValueError(
                f"none of the factor's {len(self.time)} dates has a return over {self.horizon} bars: the "
                "panel's prices "
                "are missing there, or end too soon"
            )
        return forward

    @cached_property
    def seen(self) -> tuple[NDArray[np.bool_], int | None, bool]:
        """Which dates the model has seen: see `dates_seen`."""
        cache = self.cache
        return dates_seen(cache.attrs["model"], self.time, self.market.time, cache.shift, cache.tz)

    def not_out_of_sample(self, data: Mapping[str, Any]) -> list[str]:
        """Say so if any date is not out of sample."""
        if not data["dates_seen"]:
            return []
        later, whole = data["first_date_unseen"], self.seen[2]
        remedy = "No date is: score later images" if later is None else f"Judge it with start={later!r}"
        more = "" if whole else "; its checkpoint does not say what it validated on, which may reach further"
        return [
            f"{data['dates_seen']:,} of the {data['dates']:,} dates are not out of sample: the model has seen returns "
            f"through {data['seen_through']}, in training or validation{more}. {remedy}"
        ]

    def default_rebalance(self) -> str:
        for name, per_year in _NAMED:
            if abs(self.horizon / (self.per_year / per_year) - 1.0) <= 0.25:
                return name
        return "horizon"

    def data(self, forward: Floats) -> dict[str, Any]:
        tz = self.market.panel.tz
        scored = ~np.isnan(self.factor)
        labelled = scored & ~np.isnan(forward)
        without = ~labelled.any(axis=1)
        count = scored.sum(axis=1)
        seen, through, _ = self.seen
        after = int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 0
        return {
            "instruments": int(scored.any(axis=0).sum()),
            "dates": len(self.time),
            "first": _iso(self.time[:1], tz)[0],
            "last": _iso(self.time[-1:], tz)[0],
            "values": int(scored.sum()),
            "values_with_return": int(labelled.sum()),
            "values_without_bar": int((scored & (self.market.row[self.known] < 0)).sum()),
            "dates_without_returns": int(without.sum()),
            "first_date_without_returns": _iso(self.time[without][:1], tz)[0] if without.any() else None,
            "dates_with_fewer_instruments_than_quantiles": int((count < self.n).sum()),
            "instruments_a_date": {
                "min": int(count.min()),
                "median": float(np.median(count)),
                "max": int(count.max()),
            },
            "seen_through": None if through is None else _iso(np.array([through]), tz)[0],
            "dates_seen": int(seen.sum()),
            "first_date_unseen": _iso(self.time[after : after + 1], tz)[0] if after < len(seen) else None,
            "bars_per_year": self.per_year,
            "return_price": self.market.price,
        }

    def statistics(self, forward: Floats, figures: dict[str, Any], series: dict[str, Any]) -> None:
        rank_ic = information_coefficient(self.factor, forward, "spearman")
        linear = information_coefficient(self.factor, forward, "pearson")
        figures["ic"] = {
            "rank": series_summary(rank_ic, self.overlap),
            "pearson": series_summary(linear, self.overlap),
        }
        series["rank_ic"], series["pearson_ic"] = rank_ic, linear
        figures["classification"] = None
        if self.cache.is_probability:
            by_date = classification_by_date(self.factor, forward)
            names = [name for name in by_date if name != "n"]
            figures["classification"] = {
                "pooled": classification(self.factor, forward),
                "by_date": {
                    name: {
                        k: v
                        for k, v in series_summary(by_date[name]).items()
                        if k in ("dates", "mean", "std")
                    }
                    for name in names
                },
            }
            series["classification"] = by_date
            figures["calibration"] = calibration(self.factor, forward)

    def sorts(self, forward: Floats, figures: dict[str, Any], series: dict[str, Any]) -> None:
        """Forward returns of quantiles on every date of the factor, whatever the rebalancing."""
        group = quantiles(self.factor, self.n)
        by_date = quantile_returns(group, forward, self.n)
        changed = [quantile_membership_change(group, k) for k in (1, self.n)]
        with np.errstate(invalid="ignore"):
            spread = by_date[:, -1] - by_date[:, 0]
        figures["sorts"] = {
            "mean_forward_return": [_mean(by_date[:, k]) for k in range(self.n)],
            "spread": series_summary(spread, self.overlap),
            "names_replaced": {"q1": _mean(changed[0]), f"q{self.n}": _mean(changed[1])},
            "instruments": [_mean((group == k + 1).sum(axis=1)[group.any(axis=1)]) for k in range(self.n)],
        }
        series["spread"] = spread

    def book(
        self,
        every: str | int,
        *,
        factor: Floats | None = None,
        delay: int | None = None,
        cap: Floats | None = None,
    ) -> Book:
        """Portfolios on this factor or another on the same dates."""
        at = rebalances(self.known, self.market.time, self.market.panel.tz, every, self.horizon)
        place = np.searchsorted(self.known, at)
        step = float(np.median(np.diff(at))) if len(at) > 1 else float(self.horizon)
        late = self.delay if delay is None else delay
        return hold(
            (self.factor if factor is None else factor)[place],
            self.market.level,
            at,
            n=self.n,
            end=int(at[-1]) + late + self.horizon if len(at) == 1 else None,
            cohorts=max(1, round(self.horizon / step)),
            delay=late,
            cap=None if cap is None else cap[at],
            tradable=self.market.tradable,
            untradable=self.untradable,
            max_wait=self.max_wait,
        )

    def pace(self, book: Book, every: str | int) -> float:
        return rebalances_per_year(book.decision, every, self.per_year)

    def portfolios(
        self, every: str | int, costs: Sequence[float], figures: dict[str, Any], series: dict[str, Any]
    ) -> None:
        figures["portfolios"] = {}
        caps = self.market.cap()
        for weighting in ("equal", "value") if caps is not None else ("equal",):
            book = self.book(every, cap=caps if weighting == "value" else None)
            per_year = self.pace(book, every)
            found: dict[str, Any] = {
                "rebalancings": len(book.entry),
                "rebalancings_per_year": per_year,
                "cohorts": book.cohorts,
                "counts": book.counts,
            }
            for p, name in enumerate(book.names):
                turned = book.turnover[1:, p]
                traded = 2.0 * _mean(turned)
                mean = _mean(book.period_returns[:, p])
                found[name] = {
                    "periods": performance(book.period_returns[:, p], per_year),
                    "bars": performance(book.bar_returns[:, p], self.per_year),
                    "monthly_turnover": traded / 2.0 * per_year / 12.0,
                    "break_even_cost": mean / traded if traded > 0 else float("nan"),
                    "net": {
                        f"{cost:g}": {
                            "periods": performance(book.net_periods(cost)[:, p], per_year),
                            "bars": performance(book.net_bars(cost)[:, p], self.per_year),
                        }
                        for cost in costs
                    },
                }
            figures["portfolios"][weighting] = found
            tz = self.market.panel.tz
            series[f"portfolio_{weighting}"] = {
                "names": list(book.names),
                "time": _iso(self.market.time[book.bars], tz),
                "bar_returns": book.bar_returns,
                "entry": _iso(self.market.time[book.entry], tz),
                "period_returns": book.period_returns,
                "turnover": book.turnover,
            }

    def holding(self) -> dict[str, Any]:
        """The long-short portfolio, rebalanced by week, month, quarter and horizon."""
        out: dict[str, Any] = {}
        for every in ("week", "month", "quarter", "horizon"):
            try:
                book = self.book(every)
            except ValueError:
                out[every] = None  # The data close no such period.
                continue
            per_year = self.pace(book, every)
            turned = book.turnover[1:, -1]
            out[every] = {
                "rebalancings": len(book.entry),
                "cohorts": book.cohorts,
                **performance(book.period_returns[:, -1], per_year),
                "monthly_turnover": _mean(turned) * per_year / 12.0,
            }
        return out

    def delay_curve(self, every: str | int, delays: Sequence[int]) -> list[dict[str, Any]]:
        out = []
        for extra in delays:
            bars(extra, "delays", 0)
            late = self.delay + int(extra)
            ic = information_coefficient(self.factor, self.market.forward(self.known, self.horizon, late))
            row: dict[str, Any] = {"bars_late": int(extra), "rank_ic": series_summary(ic, self.overlap)}
            try:
                book = self.book(every, delay=late)
                row["long_short"] = performance(book.period_returns[:, -1], self.pace(book, every))
            except ValueError:
                row["long_short"] = None
            out.append(row)
        return out

    def decay(self, horizons: Sequence[int] | None) -> list[dict[str, Any]]:
        longest = len(self.market.time) - 1 - int(self.known[0]) - self.delay
        wanted = sorted({*_DECAY, self.horizon}) if horizons is None else [int(h) for h in horizons]
        out = []
        for h in wanted:
            bars(h, "horizons", 1)
            if h > longest:
                if horizons is not None:
                    raise ValueError(
                        f"horizons={tuple(horizons)}: {h} bars are longer than the data, {longest} bars"
                    )
                continue
            ic = information_coefficient(self.factor, self.market.forward(self.known, h, self.delay))
            if (~np.isnan(ic)).any():
                overlap = max(1, math.ceil(h / self.step))
                out.append({"horizon": h, "rank_ic": series_summary(ic, overlap)})
        return out

    def compared(
        self, forward: Floats, every: str | int, baselines: Sequence[str], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        signals = {name: BASELINES[name](self.market, self.known, self.per_year) for name in baselines}
        for name, given in columns.items():
            if name in signals:
                raise ValueError(f"columns={name!r} bears the name of a baseline: call it otherwise")
            signals[name] = _column(name, given, self.market)[self.known]
        out: dict[str, Any] = {}
        for name, signal in signals.items():
            # The same instruments on the same dates as the factor.
            same = np.where(np.isnan(self.factor), np.nan, signal)
            if np.isnan(same).all():
                out[name] = {"values": 0}
                continue
            found: dict[str, Any] = {
                "values": int((~np.isnan(same)).sum()),
                "rank_correlation": series_summary(information_coefficient(self.factor, same), self.overlap),
                "rank_ic": series_summary(information_coefficient(same, forward), self.overlap),
                "long_short": None,
            }
            if int((~np.isnan(same)).sum(axis=1).max()) >= self.n:
                book = self.book(every, factor=same)
                found["long_short"] = performance(book.period_returns[:, -1], self.pace(book, every))
            out[name] = found
        return out


def _values(
    cache: FactorCache, panel: Panel, start: Any, end: Any
) -> tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.float32]]:
    """Bars, instruments and values of the cache, checked to belong to the panel."""
    if cache.tz != panel.tz:
        raise ValueError(
            f"cache {cache.location} has times of zone {cache.tz}, the panel of {panel.tz}: give the panel that the "
            "images were made from"
        )
    first = None if start is None else panel.as_time(start)
    last = None if end is None else panel.as_time(end, end=True)
    time, values = cache.matrix(first=first, last=last)
    if len(time) == 0:
        if first is None and last is None:
            raise ValueError(f"cache {cache.location} holds no value at all")
        covered = np.sort(cache.time[cache.time != NO_TIME])
        raise ValueError(
            f"no date of the factor lies from start={start!r} to end={end!r}: the days of cache "
            f"{cache.location} go from {stamps(covered[:1], cache.tz)} to {stamps(covered[-1:], cache.tz)}"
        )
    # An instrument without any value says nothing, and the panel need not know it.
    valued = ~np.isnan(values).all(axis=0)
    used = cache.instruments[valued]
    unknown = used[~np.isin(used, panel.instruments)]
    strange = time[~np.isin(time, panel.calendar)]
    if len(unknown) or len(strange):
        absent = panel.instruments[~np.isin(panel.instruments, cache.instruments)]
        faults = []
        if len(unknown):
            faults.append(f"instruments of the cache that the panel lacks: {_some(unknown)}")
            faults.append(f"instruments of the panel that the cache lacks: {_some(absent)}")
        if len(strange):
            spare = panel.calendar[~np.isin(panel.calendar, cache.time)]
            faults.append(f"times of the cache that the panel lacks: {stamps(strange, cache.tz)}")
            faults.append(f"times of the panel that the cache lacks: {stamps(spare, panel.tz) or 'none'}")
        raise ValueError(
            f"cache {cache.location} and the panel do not belong together\n  " + "\n  ".join(faults) + "\n"
            "give the panel that the images were made from"
        )
    return time, used, values[:, valued]


def _column(name: str, given: Any, market: Market) -> Floats:
    """Values of a user's column on the market's grid, float64 (bars, instruments)."""
    panel = market.panel
    if isinstance(given, FactorCache):
        time, found = given.matrix()
        grid = np.full(market.row.shape, np.nan)
        bar = np.isin(time, market.time)
        shared = np.flatnonzero(np.isin(given.instruments, market.instruments))
        place = {str(x): j for j, x in enumerate(market.instruments)}
        where = np.array([place[str(x)] for x in given.instruments[shared]], np.int64)
        grid[np.ix_(np.searchsorted(market.time, time[bar]), where)] = found[bar][:, shared]
        return grid
    if (
        isinstance(given, pl.DataFrame)
        or hasattr(given, "__arrow_c_stream__")
        or hasattr(given, "reset_index")
    ):
        table = given if isinstance(given, pl.DataFrame) else pl.from_dataframe(given)
        extra = [c for c in table.columns if c not in ("instrument", "time")]
        if not {"instrument", "time"} <= set(table.columns) or len(extra) != 1:
            raise ValueError(
                f"columns[{name!r}] has the columns {', '.join(table.columns)}: give instrument, time and "
                "one more"
            )
        keys = panel.to_polars().select("instrument", "time")
        values = table.select(
            pl.col("instrument").cast(pl.String),
            pl.col("time").cast(keys.schema["time"]),
            pl.col(extra[0]).cast(pl.Float64),
        )
        rows = keys.join(values, on=["instrument", "time"], how="left", maintain_order="left")
        given = rows[extra[0]].fill_null(float("nan")).to_numpy()
    column = np.asarray(given, np.float64)
    if column.shape != (len(panel),):
        raise ValueError(
            f"columns[{name!r}] has shape {column.shape}: give a value a panel row, ({len(panel)},), a "
            "table with "
            "columns instrument, time and one more, or a FactorCache"
        )
    there = market.row >= 0
    return np.where(there, column[np.where(there, market.row, 0)], np.nan)


def _lineage(cache: FactorCache, panel: Panel) -> dict[str, Any]:
    from pricepix._version import __version__

    names = ("store", "store_digest", "spec", "spec_digest", "model", "horizon", "delay", "shift", "versions")
    held = {name: cache.attrs.get(name) for name in names}
    return {
        **held,
        "cache": cache.location,
        "scored_panel_digest": cache.attrs.get("panel_digest"),
        "panel_digest": panel.digest,
        "panel": repr(panel),
        "evaluated_by": f"pricepix {__version__}",
    }


def _mean(values: Any) -> float:
    x = np.asarray(values, np.float64)
    x = x[~np.isnan(x)]
    return float(x.mean()) if len(x) else float("nan")


def _some(names: NDArray[np.str_], most: int = 5) -> str:
    shown = ", ".join(repr(str(x)) for x in names[:most]) or "none"
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _iso(time: NDArray[np.int64], tz: str | None) -> list[str]:
    """Times as text: days alone where none has a time of day."""
    return format_times(time, tz, "%Y-%m-%dT%H:%M:%S" if tz is None else "%Y-%m-%dT%H:%M:%S%z")
