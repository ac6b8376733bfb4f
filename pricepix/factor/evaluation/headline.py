"""The figures that a reader sees first: after costs, each with its uncertainty."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from pricepix.factor.evaluation.formatting import format_number, format_percent

__all__ = ["Tile", "headline", "headline_cost"]

_COST: Final = 0.001
"""A side: headline figures are after the cost nearest to it of those that were evaluated."""


class Tile(NamedTuple):
    """One headline figure."""

    name: str
    value: str
    range: str = ""
    """Two standard errors either way, as text; empty where they are not known."""


def headline_cost(figures: dict[str, Any]) -> str | None:
    """Return the cost a side, as a key of ``net``, that headline figures are after; None without any."""
    costs = [cost for cost in figures["portfolios"]["equal"]["long_short"]["net"] if float(cost) > 0]
    return min(costs, key=lambda cost: abs(float(cost) - _COST), default=None)


def headline(figures: dict[str, Any]) -> list[Tile]:
    """Return the headline figures of an evaluation.

    Means have two standard errors of the test that gives their t; the Sharpe ratio S those of Lo (2002),
    ``sqrt((S / t)^2 + S^2 / (2 n))``, whose first term knows the series' autocorrelation.

    Parameters
    ----------
    figures : dict
        ``Evaluation.figures``.

    Returns
    -------
    list of Tile
    """
    ic = figures["ic"]["rank"]
    long_short = figures["portfolios"]["equal"]["long_short"]
    cost = headline_cost(figures)
    net = long_short if cost is None else long_short["net"][cost]
    after = "before costs" if cost is None else f"after {float(cost):.2%} a side"
    periods = net["periods"]
    tiles = [
        Tile("mean rank IC", format_number(ic["mean"], 4), _range(ic["mean"], ic["t"], lambda v: f"{v:.4f}")),
        Tile(
            f"long-short mean a year, {after}",
            format_percent(periods["annual_mean"]),
            _range(periods["annual_mean"], periods["t"], lambda v: f"{v:.1%}"),
        ),
        Tile(
            f"long-short Sharpe a year, {after}", format_number(periods["sharpe"], 2), _sharpe_range(periods)
        ),
        Tile(f"deepest drawdown, {after}", format_percent(net["bars"]["max_drawdown"])),
        Tile("turnover a month", format_percent(long_short["monthly_turnover"], 0)),
        Tile("cost a side that takes it all", _break_even(long_short["break_even_cost"])),
    ]
    if figures["classification"]:
        pooled = figures["classification"]["pooled"]
        tiles += [
            Tile("accuracy", format_percent(pooled["accuracy"], 2)),
            Tile("AUC", format_number(pooled["auc"], 4)),
        ]
    return tiles


def _break_even(cost: float) -> str:
    """Write the cost that takes the mean return to 0; a mean below 0 has none."""
    return format_percent(cost, 2) if cost > 0 else "-"


def _range(mean: float, t: float, write: Any) -> str:
    if not (math.isfinite(mean) and math.isfinite(t)) or t == 0:
        return ""
    return f"± {write(2.0 * abs(mean / t))}"


def _sharpe_range(periods: dict[str, Any]) -> str:
    sharpe, t, n = periods["sharpe"], periods["t"], periods["periods"]
    if not (math.isfinite(sharpe) and math.isfinite(t)) or t == 0 or not n:
        return ""
    return f"± {2.0 * math.sqrt((sharpe / t) ** 2 + sharpe**2 / (2 * n)):.2f}"
