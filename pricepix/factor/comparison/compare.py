"""`compare`: two factors on the same names, dates and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import choice, optional_module, whole_number
from pricepix.bars.panel import Panel
from pricepix.factor.cache import CacheLike, FactorCache, open_cache
from pricepix.factor.comparison.bootstrap import Bootstrap, bootstrap_by_month, month_numbers
from pricepix.factor.comparison.spanning import chosen_columns, factor_returns, span
from pricepix.factor.evaluation.evaluate import resolve_horizon
from pricepix.factor.evaluation.evaluator import Evaluator, Settings, default_rebalance, iso_times
from pricepix.factor.evaluation.holding import Portfolios
from pricepix.factor.evaluation.inputs import panel_of, read_factor
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.metrics import information_coefficient, series_summary
from pricepix.factor.evaluation.portfolio import quantiles as quantile_groups
from pricepix.factor.evaluation.rebalancing import bars_per_year
from pricepix.factor.evaluation.result import format_number, json_value
from pricepix.factor.evaluation.universe import Universe

__all__ = ["Comparison", "compare"]

Floats = NDArray[np.float64]

_MINIMUM: Final = 10
_BOOTSTRAP: Final = Bootstrap()


@dataclass(frozen=True)
class Comparison:
    """Two factors on the same names and dates; ``compare`` returns one.

    Attributes
    ----------
    names : (str, str)
    figures : dict
        ``ic`` and ``sharpe``: both, their difference, its 95% interval and p-value, from months drawn with replacement;
        ``spanning``: the alpha of each on the other and on the given models; ``rank_correlation`` of the two by date,
        ``return_correlation`` of their long-short returns, ``overlap`` of the lowest and highest quantiles; ``data``.
    series : dict
        ``time``, and the long-short return of each period by name.
    """

    names: tuple[str, str]
    figures: dict[str, Any]
    series: dict[str, Any]

    def __repr__(self) -> str:
        a, b = self.names
        ic, sharpe = self.figures["ic"], self.figures["sharpe"]
        return (
            f"Comparison({a} less {b}: rank IC {_difference(ic, 4)}; Sharpe {_difference(sharpe, 2)}; "
            f"alpha of {a} on {b} {format_number(100 * self.figures['spanning'][a][b]['alpha'], 1)}% a year)"
        )

    def table(self) -> pl.DataFrame:
        """Return what is compared as a table: figure, both, difference, interval, p-value."""
        rows = []
        for name, label in (("ic", "rank IC"), ("sharpe", "Sharpe ratio a year, long-short")):
            found = self.figures[name]
            rows.append([label, *(found[key] for key in ("a", "b", "difference", "low", "high", "p_value"))])
        nan = float("nan")
        for own, models in self.figures["spanning"].items():
            for model, found in models.items():
                pair = (found["alpha"], nan) if own == self.names[0] else (nan, found["alpha"])
                rows.append(
                    [f"alpha of {own} on {model}, a year (t {found['t']:.2f})", *pair, nan, nan, nan, nan]
                )
        rows += [
            ["rank correlation of the factors", self.figures["rank_correlation"]["mean"], *[nan] * 5],
            ["correlation of long-short returns", self.figures["return_correlation"], *[nan] * 5],
            *(
                [f"overlap of the {side} quantile", self.figures["overlap"][side], *[nan] * 5]
                for side in ("lowest", "highest")
            ),
        ]
        schema = ["figure", *self.names, "difference", "low", "high", "p_value"]
        return pl.DataFrame(rows, schema=schema, orient="row")

    def to_dict(self) -> dict[str, Any]:
        """Return figures and series as JSON values."""
        return json_value({"names": self.names, **self.figures, "series": self.series})

    def figure(self, path: str | PathLike[str]) -> Path:
        """Draw the cumulated long-short returns of both and their difference as a PNG file. Needs matplotlib."""
        optional_module("matplotlib", "report", "figure")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(made)
        axes = made.add_subplot()
        time = np.array(self.series["time"], "datetime64[s]")
        one, other = (np.asarray(self.series[name]) for name in self.names)
        lines = ((one, self.names[0]), (other, self.names[1]), (one - other, "difference"))
        for (values, name), style in zip(lines, ("-", "-", ":"), strict=True):
            # Names are anybody's: nothing in them is read as a formula or hidden.
            axes.plot(time, np.cumsum(values), style, label=f" {name}", linewidth=1.5)
        axes.axhline(0.0, linewidth=0.5, color="0.5")
        axes.set_ylabel("cumulated long-short return")
        legend = axes.legend(frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        made.savefig(path, dpi=120)
        return Path(path)


def compare(
    a: FactorCache | CacheLike,
    b: FactorCache | CacheLike,
    panel: Panel | Any,
    *,
    names: tuple[str, str] = ("a", "b"),
    horizon: int | None = None,
    quantiles: int = 10,
    convention: Literal["pricepix", "paper"] = "pricepix",
    rebalance: str | int | None = None,
    universe: Any = None,
    returns: Any = None,
    models: Mapping[str, Sequence[str]] | None = None,
    bootstrap: Bootstrap = _BOOTSTRAP,
) -> Comparison:
    """Compare two factors where both have a value.

    Parameters
    ----------
    a, b : FactorCache, str or path
        Of one panel, with the same delay.
    panel : Panel, PanelImages or anything ``Panel.from_table`` takes
    names : (str, str)
        What they are called.
    horizon : int, optional
        Bars of the returns; by default those that `a` records.
    quantiles : int
    convention : {"pricepix", "paper"}
    rebalance : str or int, optional
        As of ``evaluate``.
    universe : Universe, mapping, callable or array, optional
        As of ``evaluate``.
    returns : table, optional
        Returns of known factors: a column ``time`` and one a factor, simple returns a bar as shares, such as those of
        the market, size, value, profitability, investment and momentum. They are compounded over each holding period.
    models : mapping of str to sequence of str, optional
        Columns of `returns` to span by, by name: ``{"CAPM": ["mkt"], "FF5+MOM": [...]}``. By default one of all.
    bootstrap : Bootstrap
        How often calendar months are drawn with replacement, and the seed.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The factors share no value, do not belong to the panel, or have other delays; `returns` cannot be read.

    Notes
    -----
    Equal weights. The alpha of a on b is the intercept of a's long-short returns on b's: what a earns that b does not
    explain, with errors of Newey and West.
    """
    caches = [c if isinstance(c, FactorCache) else open_cache(c) for c in (a, b)]
    if len({str(name) for name in names}) != 2:
        raise ValueError(f"names={names!r}: give two names that differ")
    choice(convention, "convention", ("pricepix", "paper"))
    if not isinstance(bootstrap, Bootstrap):
        raise TypeError(f"bootstrap={bootstrap!r}: give factor.Bootstrap(draws=1000, seed=0)")
    panel = panel_of(panel)
    horizon, delay = resolve_horizon(caches[0].attrs, horizon)
    if (other := resolve_horizon(caches[1].attrs, horizon)[1]) != delay:
        raise ValueError(
            f"{names[0]} is traded {delay} bars after its values and {names[1]} {other}: score both alike"
        )
    pair = _Pair.of(caches, panel, Universe.of(universe))
    per_year = bars_per_year(pair.market.time, panel.tz)
    settings = Settings(
        horizon=horizon, delay=delay, quantiles=whole_number(quantiles, "quantiles", 2, 100),
        rebalance=default_rebalance(horizon, per_year) if rebalance is None else rebalance,
        untradable="exclude", max_wait=5, per_year=per_year, convention=convention, period_end_share=0.5, costs=(),
    )  # fmt: skip
    judges = [
        Evaluator(cache, pair.market, pair.time, values, settings)
        for cache, values in zip(caches, pair.values, strict=True)
    ]
    books = [judge.simulate() for judge in judges]
    first = books[0]
    a_year = judges[0].rebalancings_per_year(first)
    earned = np.column_stack([book.period_returns[first.full :, -1] for book in books])
    entry = first.entry[first.full :]
    figures: dict[str, Any] = {
        "ic": _ic(judges, pair.time, panel.tz, bootstrap),
        "sharpe": bootstrap_by_month(
            lambda r: _sharpe(r, a_year),
            earned,
            month_numbers(pair.market.time[entry], panel.tz),
            bootstrap,
        ),
        "rank_correlation": series_summary(information_coefficient(pair.values[0], pair.values[1])),
        "return_correlation": _correlation(earned),
        "overlap": _overlap(pair.values, settings.quantiles),
        "data": {
            "dates": len(pair.time),
            "values": int((~np.isnan(pair.values[0])).sum()),
            "periods": len(earned),
            "horizon": horizon,
            "rebalance": settings.rebalance,
            "convention": convention,
            "draws": bootstrap.draws,
            "seed": bootstrap.seed,
        },
    }
    known = None if returns is None else factor_returns(returns, panel, entry, _leave(first, entry))
    figures["spanning"] = _spanning(names, earned, known, models, a_year)
    series = {
        "time": iso_times(pair.market.time[entry], panel.tz),
        names[0]: earned[:, 0],
        names[1]: earned[:, 1],
    }
    return Comparison(names, figures, series)


@dataclass(frozen=True)
class _Pair:
    """Values of two factors on one grid, known where both are."""

    market: Market
    time: NDArray[np.int64]
    values: list[Floats]

    @classmethod
    def of(cls, caches: Sequence[FactorCache], panel: Panel, universe: Universe) -> _Pair:
        read = [read_factor(cache, panel) for cache in caches]
        time = np.intersect1d(read[0][0], read[1][0])
        names = np.intersect1d(read[0][1], read[1][1])
        market = Market.of(panel, names)
        grids = []
        for own_time, own_names, values in read:
            order = np.argsort(own_names)
            columns = order[np.searchsorted(own_names, names, sorter=order)]
            grids.append(values[np.searchsorted(own_time, time)][:, columns].astype(np.float64))
        shared = ~np.isnan(grids[0]) & ~np.isnan(grids[1])
        if not universe.is_everything and len(time):
            shared &= universe.select(market, np.searchsorted(market.time, time))
        kept = np.asarray(shared.any(axis=1))
        if not kept.any():
            raise ValueError(
                "the two factors have no value of the same instrument at the same time in the universe"
            )
        return cls(market, time[kept], [np.where(shared, grid, np.nan)[kept] for grid in grids])


def _ic(
    judges: Sequence[Evaluator], time: NDArray[np.int64], tz: str | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    by_date = np.column_stack([information_coefficient(j.factor, j.forward) for j in judges])
    known = ~np.isnan(by_date).any(axis=1)
    month = month_numbers(time[known], tz)
    return bootstrap_by_month(
        lambda x: float(x.mean()) if len(x) else float("nan"), by_date[known], month, bootstrap
    )


def _sharpe(returns: Floats, per_year: float) -> float:
    sd = float(returns.std(ddof=1)) if len(returns) >= _MINIMUM else 0.0
    return float(returns.mean()) / sd * float(np.sqrt(per_year)) if sd > 0 else float("nan")


def _correlation(earned: Floats) -> float:
    varies = len(earned) > 2 and bool((earned.std(axis=0) > 0).all())
    return float(np.asarray(np.corrcoef(earned.T))[0, 1]) if varies else float("nan")


def _overlap(values: Sequence[Floats], n: int) -> dict[str, float]:
    """Share of one factor's lowest, or highest, names that are also the other's: the mean over dates and both ways."""
    groups = [quantile_groups(grid, n) for grid in values]
    found = {}
    for side, k in (("lowest", 1), ("highest", n)):
        one, other = (group == k for group in groups)
        both = (one & other).sum(axis=1)
        sizes = (one.sum(axis=1) + other.sum(axis=1)) / 2.0
        shares = both[sizes > 0] / sizes[sizes > 0]
        found[side] = float(shares.mean()) if len(shares) else float("nan")
    return found


def _leave(book: Portfolios, entry: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each period ends: at the next entry, the last one where the portfolios do."""
    if len(book.bars) == len(book.entry):
        # A bar of the authors' portfolios is a period: it bears the time of its sale.
        return book.bars[len(book.entry) - len(entry) :]
    return np.append(entry[1:], book.bars[-1])


def _spanning(
    names: tuple[str, str],
    earned: Floats,
    known: tuple[list[str], Floats] | None,
    models: Mapping[str, Sequence[str]] | None,
    per_year: float,
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        other = names[1 - k]
        found[name] = {other: span(earned[:, k], earned[:, [1 - k]], [other], per_year)}
        if known is None:
            if models is not None:
                raise ValueError("models names columns of returns: give returns")
            continue
        columns, values = known
        chosen = {"given factors": columns} if models is None else models
        for model, places in chosen_columns(chosen, columns).items():
            found[name][model] = span(earned[:, k], values[:, places], [columns[p] for p in places], per_year)
    return found


def _difference(found: Mapping[str, Any], digits: int) -> str:
    numbers = [format_number(found[key], digits) for key in ("difference", "low", "high")]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]}, p {format_number(found['p_value'], 3)})"
