"""A factor on the grid of its market, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pricepix._checks import of_kind
from pricepix.bars.times import format_times
from pricepix.factor.cache import FactorCache
from pricepix.factor.evaluation.holding import Portfolios, simulate_holding
from pricepix.factor.evaluation.inputs import column_values
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.metrics import (
    MINIMUM_HORIZONS,
    MINIMUM_PAIRS,
    calibration,
    classification,
    classification_by_date,
    information_coefficient,
    series_summary,
)
from pricepix.factor.evaluation.paper import PAPER_PER_MONTH, PaperPortfolios, paper_portfolios
from pricepix.factor.evaluation.portfolio import (
    performance,
    quantile_membership_change,
    quantile_returns,
    quantiles,
)
from pricepix.factor.evaluation.rebalancing import period_ends, rebalances, rebalances_per_year
from pricepix.factor.evaluation.signals import BASELINES
from pricepix.factor.evaluation.sorted_rows import SortedRows
from pricepix.factor.training_overlap import TrainingOverlap, training_overlap
from pricepix.windows.schedule import PERIODS

__all__ = ["Evaluator", "Settings", "default_rebalance", "iso_times"]

Floats = NDArray[np.float64]
Figures = dict[str, Any]

# Periods that may stand for a horizon, with their number a year.
_PERIODS: Final = (("week", 52.0), ("month", 12.0), ("quarter", 4.0))


@dataclass(frozen=True)
class Settings:
    """How a factor is evaluated: the arguments of ``evaluate``, resolved."""

    horizon: int
    """Bars."""
    delay: int
    """Bars to the entry."""
    quantiles: int
    rebalance: str | int
    untradable: str
    max_wait: int
    """Bars."""
    per_year: float
    """Bars a year."""
    convention: str
    """``pricepix`` or ``paper``."""
    period_end_share: float
    """Of the instruments with a bar in a period, how many must have one for it to end there."""
    costs: tuple[float, ...]
    """Per side, as shares of what is traded."""


@dataclass(frozen=True)
class Evaluator:
    """A factor laid beside its market, with the figures of its evaluation as methods."""

    cache: FactorCache
    market: Market
    time: NDArray[np.int64]
    """int64 (dates,)."""
    factor: Floats
    """float64 (dates, instruments)."""
    settings: Settings

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """int64 (dates,): where the dates lie on the market's calendar."""
        return np.searchsorted(self.market.time, self.time)

    def thin(self, rebalance: str | int | None = None) -> NDArray[np.bool_]:
        """Return the bars, bool (bars,), at which no period ends, since too few of its instruments have a bar.

        Where portfolios are not formed by periods, those at which no month ends.
        """
        every = self._rebalance(rebalance)
        return self.market.thin(every if every in PERIODS else "month", self.settings.period_end_share)

    def overlap(self, horizon: int) -> int:
        """Return how many dates of the factor a return over `horizon` bars spans."""
        step = float(np.median(np.diff(self.position))) if len(self.position) > 1 else 1.0
        return max(1, math.ceil(horizon / step))

    @cached_property
    def forward(self) -> Floats:
        """float64 (dates, instruments): the returns that the factor is to forecast; there are some."""
        s = self.settings
        widest = int((~np.isnan(self.factor)).sum(axis=1).max())
        if widest < s.quantiles:
            raise ValueError(
                f"quantiles={s.quantiles}, but no date has values of more than {widest} instruments: give quantiles= "
                f"of at most {widest}, at least 2, or a larger universe"
            )
        after = len(self.market.time) - int(self.position[0])
        if after <= s.horizon + s.delay:
            raise ValueError(
                f"horizon={s.horizon} with delay={s.delay} is longer than the data: the panel has {after - 1} bars "
                "after the factor's first: give a shorter horizon or a longer panel"
            )
        returns = self.market.forward(self.position, s.horizon, s.delay)
        if not (~np.isnan(returns) & ~np.isnan(self.factor)).any():
            raise ValueError(
                f"none of the factor's {len(self.time)} dates has a return over {s.horizon} bars: the panel's prices "
                "are missing there, or end too soon"
            )
        return returns

    @cached_property
    def sorted_factor(self) -> SortedRows:
        """The factor's instruments in the order of their values."""
        return SortedRows.of(self.factor)

    @cached_property
    def sorted_forward(self) -> SortedRows:
        """The same of the returns that it is to forecast."""
        return SortedRows.of(self.forward)

    def rank_ic(self, horizon: int, delay: int) -> Floats:
        """Return the rank IC with the returns over a horizon, float64 (dates,)."""
        s = self.settings
        if (horizon, delay) == (s.horizon, s.delay):
            returns = self.sorted_forward
        else:
            returns = SortedRows.of(self.market.forward(self.position, horizon, delay))
        return self.sorted_factor.correlations(returns, MINIMUM_PAIRS)

    @cached_property
    def training(self) -> TrainingOverlap:
        """The dates that the model was trained or validated on."""
        cache = self.cache
        return training_overlap(cache.attrs["model"], self.time, self.market.time, cache.shift, cache.tz)

    def data(self) -> Figures:
        """Count what there is to evaluate."""
        tz = self.market.panel.tz
        scored = ~np.isnan(self.factor)
        labelled = scored & ~np.isnan(self.forward)
        without = ~labelled.any(axis=1)
        count = scored.sum(axis=1)
        seen, through, _ = self.training
        unknown = self.market.without_level
        within = slice(int(self.position[0]), int(self.position[-1]) + 1)
        dies, known = self.market.deaths(self.position, self.settings.horizon, self.settings.delay)
        after = int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 0
        return {
            "instruments": int(scored.any(axis=0).sum()),
            "dates": len(self.time),
            "first": iso_times(self.time[:1], tz)[0],
            "last": iso_times(self.time[-1:], tz)[0],
            "values": int(scored.sum()),
            "values_with_return": int(labelled.sum()),
            "values_without_bar": int((scored & (self.market.row[self.position] < 0)).sum()),
            "instruments_without_level": int((unknown & scored.any(axis=0)).sum()),
            "values_without_level": int((scored & np.isnan(self.market.level[self.position])).sum()),
            "returns_bridged_by_price": int(self.market.bridged[within].sum()),
            "statistics_count": "bars of the instrument",
            "portfolios_count": "bars of the market",
            "returns_longer_than_horizon": int(
                (scored & self.market.longer(self.position, self.settings.horizon, self.settings.delay)).sum()
            ),
            "returns_not_bridged": self._count_breaks(within),
            "delisting": self.market.delisting,
            "died_within_horizon": int((scored & dies).sum()),
            "died_without_return": int((scored & dies & ~known).sum()),
            "dates_without_returns": int(without.sum()),
            "first_date_without_returns": iso_times(self.time[without][:1], tz)[0] if without.any() else None,
            "dates_with_fewer_instruments_than_quantiles": int((count < self.settings.quantiles).sum()),
            "instruments_a_date": {
                "min": int(count.min()),
                "median": float(np.median(count)),
                "max": int(count.max()),
            },
            "seen_through": None if through is None else iso_times(np.array([through]), tz)[0],
            "dates_seen": int(seen.sum()),
            "first_date_unseen": iso_times(self.time[after : after + 1], tz)[0]
            if after < len(seen)
            else None,
            "thin_bars": int(self.thin()[within].sum()),
            "bars_per_year": self.settings.per_year,
            "return_price": self.market.price,
        }

    def _count_breaks(self, within: slice) -> int:
        breaks = self.market.breaks
        return 0 if breaks is None else int((breaks[within.stop - 1] - breaks[within.start]).sum())

    def statistics(self) -> tuple[Figures, Figures]:
        """Return information coefficients, classification and calibration, and their series by date."""
        overlap = self.overlap(self.settings.horizon)
        rank_ic = self.rank_ic(self.settings.horizon, self.settings.delay)
        linear = information_coefficient(self.factor, self.forward, "pearson")
        figures: Figures = {
            "ic": {"rank": series_summary(rank_ic, overlap), "pearson": series_summary(linear, overlap)},
            "classification": None,
        }
        series: Figures = {"rank_ic": rank_ic, "pearson_ic": linear}
        if self.cache.is_probability:
            by_date = classification_by_date(self.factor, self.forward)
            summaries = {name: series_summary(values) for name, values in by_date.items() if name != "n"}
            figures["classification"] = {
                "pooled": classification(self.factor, self.forward),
                "by_date": {
                    name: {key: summary[key] for key in ("dates", "mean", "std")}
                    for name, summary in summaries.items()
                },
            }
            figures["calibration"] = calibration(self.factor, self.forward)
            series["classification"] = by_date
        return figures, series

    def sorts(self) -> tuple[Figures, Figures]:
        """Return forward returns of quantiles on every date of the factor, whatever the rebalancing."""
        n = self.settings.quantiles
        group = quantiles(self.factor, n)
        by_date = quantile_returns(group, self.forward, n)
        replaced = [quantile_membership_change(group, k) for k in (1, n)]
        with np.errstate(invalid="ignore"):
            spread = by_date[:, -1] - by_date[:, 0]
        figures = {
            "mean_forward_return": [_mean(by_date[:, k]) for k in range(n)],
            "spread": series_summary(spread, self.overlap(self.settings.horizon)),
            "names_replaced": {"q1": _mean(replaced[0]), f"q{n}": _mean(replaced[1])},
            "instruments": [_mean((group == k + 1).sum(axis=1)[group.any(axis=1)]) for k in range(n)],
        }
        return {"sorts": figures}, {"spread": spread}

    def simulate(
        self,
        rebalance: str | int | None = None,
        *,
        factor: Floats | None = None,
        delay: int | None = None,
        cap: Floats | None = None,
    ) -> Portfolios:
        """Simulate portfolios on this factor, or on another one of the same dates.

        Parameters
        ----------
        rebalance, delay
            By default those of the settings.
        factor : array (dates, instruments), optional
        cap : array (bars, instruments), optional
            Weights are proportional to it.
        """
        s, market = self.settings, self.market
        delay = s.delay if delay is None else delay
        if s.convention == "paper":
            return self._by_the_paper(
                self._rebalance(rebalance), self.factor if factor is None else factor, delay, cap
            )
        every = self._rebalance(rebalance)
        thin = self.thin(every) if every in PERIODS else None
        at = rebalances(self.position, market.time, market.panel.tz, every, s.horizon, thin)
        values = self.factor if factor is None else factor
        step = float(np.median(np.diff(at))) if len(at) > 1 else float(s.horizon)
        return simulate_holding(
            values[np.searchsorted(self.position, at)],
            market.level,
            at,
            n=s.quantiles,
            end=int(at[-1]) + delay + s.horizon if len(at) == 1 else None,
            cohorts=max(1, round(s.horizon / step)),
            delay=delay,
            cap=None if cap is None else cap[at],
            tradable=market.tradable,
            untradable=s.untradable,
            max_wait=s.max_wait,
        )

    def _by_the_paper(
        self, rebalance: str | int, factor: Floats, delay: int, cap: Floats | None
    ) -> PaperPortfolios:
        """Portfolios from each period's end to the next one's, by the authors' definitions."""
        if rebalance not in PAPER_PER_MONTH:
            raise ValueError(
                f"rebalance={rebalance!r}: convention='paper' rebalances by week, month or quarter; give one of them"
            )
        market = self.market
        ends = period_ends(market.time, market.panel.tz, rebalance, self.thin(rebalance))
        ends = ends[ends + delay < len(market.time)]
        known = np.isin(ends[:-1], self.position)
        decision = ends[:-1][known]
        entry, leave = decision + delay, ends[1:][known] + delay
        if len(entry) == 0:
            raise ValueError(f"no portfolio can be held: the factor is known at the end of no {rebalance}")
        # Who has no bar at the next period's end has no return; volume does not matter.
        there = (market.row[entry] >= 0) & (market.row[leave] >= 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            returns = np.where(there, market.level[leave] / market.level[entry] - 1.0, np.nan)
        caps = self.caps
        return paper_portfolios(
            factor[np.searchsorted(self.position, decision)],
            returns,
            decision,
            entry,
            leave,
            n=self.settings.quantiles,
            cap=None if caps is None else caps[decision],
            by_value=cap is not None,
        )

    @cached_property
    def caps(self) -> Floats | None:
        """Market capitalisations, float64 (bars, instruments), where the panel has them."""
        return self.market.cap()

    def rebalancings_per_year(self, portfolios: Portfolios, rebalance: str | int | None = None) -> float:
        """Return how often portfolios were formed, a year."""
        return rebalances_per_year(portfolios.decision, self._rebalance(rebalance), self.settings.per_year)

    def _rebalance(self, given: str | int | None) -> str | int:
        return self.settings.rebalance if given is None else given

    def weightings(self) -> tuple[Figures, Figures]:
        """Return the portfolios, equally weighted and, where the panel has capitalisations, by value."""
        figures: Figures = {}
        series: Figures = {}
        caps = self.caps
        tz = self.market.panel.tz
        for weighting in ("equal", "value") if caps is not None else ("equal",):
            portfolios = self.simulate(cap=caps if weighting == "value" else None)
            per_year = self.rebalancings_per_year(portfolios)
            figures[weighting] = {
                "rebalancings": len(portfolios.entry),
                "rebalancings_per_year": per_year,
                "cohorts": portfolios.cohorts,
                "ramp_up": portfolios.full,
                "counts": portfolios.counts,
                "died_while_held": self._deaths(portfolios),
                **{name: self._returns(portfolios, p, per_year) for p, name in enumerate(portfolios.names)},
            }
            series[f"portfolio_{weighting}"] = {
                "names": list(portfolios.names),
                "time": iso_times(self.market.time[portfolios.bars], tz),
                "bar_returns": portfolios.bar_returns,
                "entry": iso_times(self.market.time[portfolios.entry], tz),
                "period_returns": portfolios.period_returns,
                "turnover": portfolios.turnover,
            }
        return {"portfolios": figures}, series

    def _deaths(self, portfolios: Portfolios) -> Figures:
        """Count the entries, over all quantiles, whose rows end before they are sold."""
        market = self.market
        entry, k = portfolios.entry, portfolios.cohorts
        stop = np.append(entry[k:], np.full(min(k, len(entry)), portfolios.bars[-1]))
        group = quantiles(
            self.factor[np.searchsorted(self.position, portfolios.decision)], self.settings.quantiles
        )
        held = (group > 0) & ~np.isnan(market.level[entry])
        died = held & market.ended & (market.last_bar > entry[:, None]) & (market.last_bar <= stop[:, None])
        row, column = np.nonzero(died)
        worth = market.level[market.last_bar[column], column] / market.level[entry[row], column]
        return {
            "count": int(died.sum()),
            "share": float(died.sum() / max(1, held.sum())),
            "mean_return": _mean(worth - 1.0),
        }

    def _returns(self, portfolios: Portfolios, p: int, per_year: float) -> Figures:
        """Return the performance of one portfolio, before and after costs."""
        full = portfolios.full
        periods = portfolios.period_returns[full:, p]
        minimum = MINIMUM_HORIZONS * portfolios.cohorts
        few = len(periods) < minimum
        # A bar of the authors' portfolios is a period.
        bars_per_year = per_year if self.settings.convention == "paper" else self.settings.per_year
        traded = 2.0 * self._turnover(portfolios, p)

        def both(periods: Floats, bars: Floats) -> Figures:
            by_bar = bars[portfolios.full_bar :, p]
            return {
                "periods": performance(periods[full:, p], per_year, minimum),
                "bars": performance(by_bar, bars_per_year, len(by_bar) + 1 if few else minimum),
            }

        return {
            **both(portfolios.period_returns, portfolios.bar_returns),
            "monthly_turnover": traded / 2.0 * self._per_month(per_year),
            "break_even_cost": _mean(periods) / traded if traded > 0 else float("nan"),
            "net": {
                f"{cost:g}": both(portfolios.net_periods(cost), portfolios.net_bars(cost))
                for cost in self.settings.costs
            },
        }

    def long_short(self, portfolios: Portfolios, per_year: float) -> Figures:
        """Return the performance of the long-short portfolio, before costs."""
        minimum = MINIMUM_HORIZONS * portfolios.cohorts
        return performance(portfolios.period_returns[portfolios.full :, -1], per_year, minimum)

    def _per_month(self, per_year: float, rebalance: str | int | None = None) -> float:
        """Return how often portfolios are formed a month; the authors' month has four weeks."""
        if self.settings.convention == "paper":
            return PAPER_PER_MONTH[str(self._rebalance(rebalance))]
        return per_year / 12.0

    def _turnover(self, portfolios: Portfolios, p: int) -> float:
        """Return the mean turnover of a rebalancing, without the first purchase and the ramp-up."""
        return _mean(portfolios.turnover[portfolios.full + 1 :, p])

    def holding(self) -> Figures:
        """Return the long-short portfolio, rebalanced by week, month, quarter and horizon."""
        figures: Figures = {}
        for rebalance in ("week", "month", "quarter", "horizon"):
            try:
                portfolios = self.simulate(rebalance)
            except ValueError:
                figures[rebalance] = None  # The data close no such period.
                continue
            per_year = self.rebalancings_per_year(portfolios, rebalance)
            figures[rebalance] = {
                "rebalancings": len(portfolios.entry),
                "cohorts": portfolios.cohorts,
                **self.long_short(portfolios, per_year),
                "monthly_turnover": self._turnover(portfolios, -1) * self._per_month(per_year, rebalance),
            }
        return figures

    def compare(self, baselines: tuple[str, ...], columns: Mapping[str, Any]) -> Figures:
        """Return how other signals did on the factor's instruments and dates."""
        s = self.settings
        signals = {name: BASELINES[name](self.market, self.position, s.per_year) for name in baselines}
        of_kind(columns, "columns", Mapping, "a mapping from names to signals")
        for name, given in columns.items():
            if name in signals:
                raise ValueError(f"columns={name!r} is the name of a baseline: give another name")
            signals[name] = column_values(name, given, self.market)[self.position]
        figures: Figures = {}
        for name, signal in signals.items():
            shared = np.where(np.isnan(self.factor), np.nan, signal)
            if np.isnan(shared).all():
                figures[name] = {"values": 0}
                continue
            count = (~np.isnan(shared)).sum(axis=1)
            overlap = self.overlap(s.horizon)
            by_value = SortedRows.of(shared)
            figures[name] = {
                "values": int(count.sum()),
                "rank_correlation": series_summary(
                    by_value.correlations(self.sorted_factor, MINIMUM_PAIRS), overlap
                ),
                "rank_ic": series_summary(by_value.correlations(self.sorted_forward, MINIMUM_PAIRS), overlap),
                "long_short": None,
            }
            if int(count.max()) >= s.quantiles:
                portfolios = self.simulate(factor=shared)
                per_year = self.rebalancings_per_year(portfolios)
                figures[name]["long_short"] = self.long_short(portfolios, per_year)
        return figures


def default_rebalance(horizon: int, per_year: float) -> str:
    """Return the week, month or quarter that comes within a quarter of a horizon, else ``"horizon"``."""
    for name, a_year in _PERIODS:
        if abs(horizon / (per_year / a_year) - 1.0) <= 0.25:
            return name
    return "horizon"


def iso_times(time: NDArray[np.int64], tz: str | None) -> list[str]:
    """Write times as ISO text: as dates where none has a time of day."""
    return format_times(time, tz, "%Y-%m-%dT%H:%M:%S" if tz is None else "%Y-%m-%dT%H:%M:%S%z")


def _mean(values: ArrayLike) -> float:
    x = np.asarray(values, np.float64)
    x = x[~np.isnan(x)]
    return float(x.mean()) if len(x) else float("nan")
