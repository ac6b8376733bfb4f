"""Evaluate a factor on its market: statistics, portfolios, price signals, one result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import bars, choice, fraction, number, whole_number
from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.factor.cache import CacheLike, FactorCache, open_cache
from pricepix.factor.evaluation.decay import DECAY_HORIZONS, decay_curve, delay_curve
from pricepix.factor.evaluation.evaluator import Evaluator, Settings, default_rebalance, iso_times
from pricepix.factor.evaluation.inputs import one_or_several, panel_of, read_factor
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.notes import evaluation_notes
from pricepix.factor.evaluation.rebalancing import bars_per_year
from pricepix.factor.evaluation.result import Evaluation
from pricepix.factor.evaluation.signals import BASELINES, history
from pricepix.factor.evaluation.universe import Universe
from pricepix.factor.panel_check import DifferentPanelWarning, panel_mismatch
from pricepix.windows.schedule import PERIOD_END_SHARE

__all__ = ["bars_needed", "evaluate", "resolve_horizon"]

# Bars, where neither the caller nor the cache names a horizon.
_HORIZON: Final = 20


def evaluate(
    cache: FactorCache | CacheLike,
    panel: Panel | Any,
    horizon: int | None = None,
    *,
    delay: int | None = None,
    quantiles: int = 10,
    convention: Literal["pricepix", "paper"] = "pricepix",
    rebalance: str | int | None = None,
    period_end_share: float = PERIOD_END_SHARE,
    costs: float | Sequence[float] = (0.0, 0.0005, 0.001, 0.002),
    untradable: str = "exclude",
    max_wait: int = 5,
    price: str = "auto",
    delisting: Literal["auto", "hold", "missing"] | None = None,
    delays: int | Sequence[int] = (0, 1, 2, 3, 4, 5),
    horizons: int | Sequence[int] | None = None,
    baselines: str | Sequence[str] = ("STR", "WSTR", "MOM", "TREND"),
    columns: Mapping[str, Any] | None = None,
    universe: Universe | Mapping[str, Any] | Callable[[Panel], Any] | NDArray[Any] | None = None,
    periods_per_year: float | None = None,
    start: Any = None,
    end: Any = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a factor on its market.

    Parameters
    ----------
    cache : FactorCache, str or path
    panel : Panel, PanelImages or anything ``Panel.from_table`` takes
        The bars. They must include every instrument and every bar of the cache. Panel images bring theirs.
    horizon : int, optional
        Bars of the returns that the factor is to forecast. By default those that its model was trained on, as
        the cache records them, or 20 where it records none.
    delay : int, optional
        Bars from the one at which a value stands to the entry. By default that of the images' returns, as the
        cache records it, less the shift: values that were scored with a shift already stand at the bar from
        which they may be traded.
    quantiles : int
        Number of portfolios. Equal values are never parted, so that a quantile may be larger than others.
    convention : {"pricepix", "paper"}
        Whose definitions portfolios follow. ``"paper"`` computes them as the authors' code does: see the table in
        the documentation's page on evaluation. It rebalances by week, month or quarter.
    rebalance : {"bar", "day", "week", "month", "quarter", "horizon"} or int, optional
        When portfolios are formed: at every bar, at the last one of each period, or so many bars apart. By
        default the week, month or quarter that comes within a quarter of `horizon`, as in the paper, else
        ``"horizon"``. Where the horizon is longer than the time between rebalancings, portfolios overlap:
        each is held for as many rebalancings as make up the horizon.
    period_end_share : float
        A week, month or quarter ends at its last bar at which at least this share of the instruments with a bar
        in it have one, so that a stray row does not move it: the rule of windows (``Periods.share``). One that
        the factor or the panel leaves before it is over forms no portfolio.
    costs : float or sequence of float
        Costs per side, as a share of what is traded.
    untradable : {"exclude", "delay", "ignore"}
        How to treat entries that cannot be made (no trade, or at a limit): leave them out, wait for the first
        bar at which they can, or trade all the same. They are counted.
    max_wait : int
        Bars that ``"delay"`` waits.
    price : {"auto", "close", "total_return"}
        What returns are computed from: see ``forward_returns``.
    delisting : {"auto", "hold", "missing"}, optional
        The forward return of an instrument whose rows end, before the market's do, within the horizon.
        ``"hold"``: to its last level, if its return at the end is known, which then stays in cash until the
        horizon, as portfolios value it. ``"missing"``: none. By default ``"hold"`` where returns are computed from
        total returns, which hold that of the delisting, and ``"missing"``, with a note, where from prices.
    delays : int or sequence of int
        Entries, in bars after `delay`, of the delay curve.
    horizons : int or sequence of int, optional
        Horizons of the decay; by default 1 to 120 bars, as far as the data reach.
    baselines : str or sequence of str
        Any of STR, WSTR, MOM and TREND; ``()`` for none.
    columns : mapping, optional
        More signals to compare with, by name: an array with a value a panel row, a table with columns
        instrument, time and one more, or another FactorCache.
    universe : Universe, mapping, callable or array, optional
        Which instruments count on a date, by what is known at its close: see `Universe`. Values of all others are
        left out of every figure. ``{"top": 500}``, ``{"min_price": 5}``, or a mask of the panel's rows.
    periods_per_year : float, optional
        Bars a year; by default derived from the calendar's spacing.
    start, end : str, date or datetime, optional
        First and last date of the factor to be evaluated.
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
    DifferentPanelWarning
        The panel's bars provably differ from those that the factor was scored from. Result and report say so,
        too, as they do of dates that are not out of sample.

    Notes
    -----
    All bars of the panel, not only the evaluated dates, are laid out on grids of bars by the cache's instruments,
    with 8 bytes a cell. Besides the panel itself at most seven and a half of them are held at a time, and what the
    evaluated dates need. Five-minute bars of 5,000 stocks, of which the default baselines take 17,128 before the
    first evaluated date and the portfolios 3,467 after the last one, make grids of 0.7 GiB.
    """
    cache = cache if isinstance(cache, FactorCache) else open_cache(cache)
    panel = panel_of(panel)
    horizon_assumed = horizon is None and cache.attrs.get("horizon") is None
    horizon, delay = resolve_horizon(cache.attrs, horizon, delay)
    quantiles = whole_number(quantiles, "quantiles", 2, 100)
    costs, baselines = _checked_costs(costs), _checked_baselines(baselines)
    delays = one_or_several("delays", delays)
    horizons = None if horizons is None else one_or_several("horizons", horizons)
    time, names, values = read_factor(cache, panel, start, end)
    market = Market.of(panel, names, price, delisting)
    universe = Universe.of(universe)
    time, values, empty_dates = _within(universe, market, time, values)
    if periods_per_year is not None and not number(periods_per_year, "periods_per_year", above=True) < 1e9:
        raise ValueError(f"periods_per_year={periods_per_year!r}: there are fewer bars in a year")
    per_year = periods_per_year or bars_per_year(market.time, panel.tz)
    settings = Settings(
        horizon=horizon,
        delay=delay,
        quantiles=quantiles,
        rebalance=default_rebalance(horizon, per_year) if rebalance is None else rebalance,
        untradable=untradable,
        max_wait=bars(max_wait, "max_wait", 0),
        per_year=per_year,
        convention=choice(convention, "convention", ("pricepix", "paper")),
        period_end_share=fraction(period_end_share, "period_end_share"),
        costs=costs,
    )
    evaluator = Evaluator(cache, market, time, values.astype(np.float64), settings)
    data = evaluator.data()
    mismatch = panel_mismatch(cache, panel, market.price)
    if mismatch is not None:
        warnings.warn(mismatch, DifferentPanelWarning, stacklevel=2)
    figures: dict[str, Any] = {
        "horizon": horizon,
        "delay": delay,
        "quantiles": quantiles,
        "convention": convention,
        "rebalance": settings.rebalance,
        "untradable": untradable,
        "universe": str(universe),
        "notes": [],
        "data": data,
    }
    series: dict[str, Any] = {"time": iso_times(time, panel.tz)}
    with progress_bar(6, "evaluate", on=progress) as bar:
        for part in (evaluator.statistics, evaluator.sorts, evaluator.weightings):
            found, by_date = part()
            figures |= found
            series |= by_date
            bar.update()
        figures["holding"] = evaluator.holding()
        bar.update()
        figures["delays"] = delay_curve(evaluator, delays)
        figures["decay"] = decay_curve(evaluator, horizons)
        bar.update()
        figures["baselines"] = evaluator.compare(baselines, columns or {})
        bar.update()
    figures["notes"] = evaluation_notes(evaluator, figures, mismatch, horizon_assumed)
    if empty_dates:
        figures["notes"].append(
            f"no value belongs to the universe ({universe}) on {empty_dates:,} dates, which are left out"
        )
    figures["lineage"] = _lineage(cache, panel)
    return Evaluation(figures, series, cache)


def _within(
    universe: Universe, market: Market, time: NDArray[np.int64], values: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Leave out values of instruments outside the universe, and dates on which nothing is left; count those."""
    if universe.is_everything:
        return time, values, 0
    chosen = universe.select(market, np.searchsorted(market.time, time))
    values = np.where(chosen, values, np.float32(np.nan))
    filled = ~np.isnan(values).all(axis=1)
    if not filled.any():
        raise ValueError(
            f"no value of the factor belongs to an instrument of the universe ({universe}): give wider conditions"
        )
    return time[filled], values[filled], int((~filled).sum())


def _checked_costs(given: float | Sequence[float]) -> tuple[float, ...]:
    costs = one_or_several("costs", given)
    for cost in costs:
        if isinstance(cost, bool | str) or not hasattr(cost, "__float__") or not 0 <= cost < 1:
            raise ValueError(
                f"costs={costs}: a cost per side is a share of what is traded, from 0 to less than 1, such as 0.001"
            )
    return costs


def _checked_baselines(given: str | Sequence[str]) -> tuple[str, ...]:
    baselines = one_or_several("baselines", given)
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise ValueError(f"baselines={baselines}: {unknown[0]!r} is not one of {', '.join(BASELINES)}")
    return baselines


def resolve_horizon(
    attrs: Mapping[str, Any], horizon: int | None = None, delay: int | None = None
) -> tuple[int, int]:
    """Return the horizon and delay to evaluate a factor by: those given, else those that its cache records."""
    if horizon is None:
        horizon = _HORIZON if attrs.get("horizon") is None else attrs["horizon"]
    if delay is None:
        # Values stand `shift` bars after their images, from whose last bar the labels' delay counts.
        delay = max(0, (attrs.get("delay") or 0) - attrs["shift"])
    return bars(horizon, "horizon", 1), bars(delay, "delay", 0)


def bars_needed(per_year: float, **settings: Any) -> tuple[int, int]:
    """Return how many bars before the first evaluated date, and after the last one, `evaluate` needs.

    A panel of only these gives the figures of one that has all bars.

    Parameters
    ----------
    per_year : float
        Bars a year, where `settings` has no ``periods_per_year``.
    **settings
        Keyword arguments of `evaluate`, whose defaults hold for the others; horizon and delay as
        `resolve_horizon` returns them, or those of a cache that records none.

    Raises
    ------
    TypeError
        A setting that `evaluate` does not have.
    """
    asked = signature(evaluate).bind_partial(**settings)
    asked.apply_defaults()
    given = asked.arguments
    horizon, delay = resolve_horizon({"shift": 0}, given["horizon"], given["delay"])
    rebalance, horizons = given["rebalance"], given["horizons"]
    per_year = given["periods_per_year"] or per_year
    longest = max((horizon, *(DECAY_HORIZONS if horizons is None else one_or_several("horizons", horizons))))
    # Portfolios by quarter are always simulated, and the last one is held for another quarter.
    period = max(horizon, rebalance if isinstance(rebalance, int) else 0, math.ceil(per_year / 3.5))
    delays = one_or_several("delays", given["delays"])
    baselines = one_or_several("baselines", given["baselines"])
    after = delay + max((0, *delays)) + given["max_wait"] + max(longest, period) + 1
    before = max((1, *(history(name, per_year) for name in baselines if name in BASELINES)))
    return before, after


def _lineage(cache: FactorCache, panel: Panel) -> dict[str, Any]:
    names = ("store", "store_digest", "spec", "spec_digest", "model", "horizon", "delay", "shift", "versions")
    return {
        **{name: cache.attrs.get(name) for name in names},
        "cache": cache.location,
        "scored_panel_digest": cache.attrs.get("panel_digest"),
        "panel_digest": panel.digest,
        "panel": repr(panel),
        "evaluated_by": f"pricepix {__version__}",
    }
