"""Table X: another market, scored by the networks of this one and by networks of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pricepix.bars.panel import Panel
from pricepix.factor.evaluation.market import Market
from pricepix.paper.context import Context
from pricepix.paper.differences import differences
from pricepix.paper.page import Section
from pricepix.paper.plan import Plan, make_plan
from pricepix.paper.published_figures import lookup
from pricepix.paper.results import cell_result, signals_of
from pricepix.paper.sections import TABLES, Request
from pricepix.paper.tables import Table
from pricepix.paper.transfer import DIRECT, market_figures, with_direct_scores
from pricepix.paper.workers import run_tasks

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["check_markets", "transferred"]


def check_markets(markets: Mapping[str, Panel], rebuild: str | None) -> None:
    """Refuse a market whose images cannot be drawn as those that the networks learn."""
    for name, panel in markets.items():
        if rebuild == "returns" and "total_return" not in panel.fields:
            raise ValueError(
                f"transfer[{name!r}] has no total returns, and the networks learn images rebuilt from them: map "
                "a column to total_return, or give Training(rebuild=None)"
            )


def transferred(
    home: Context,
    plan: Plan,
    request: Request,
    name: str,
    panel: Panel,
    client: Client | None,
    echo: Callable[[str], Any],
) -> list[Section]:
    """Train and score the cells on another market, and return a section of it for each split.

    Networks of both kinds are judged on the same windows: those of the market's test that lie in the test of the
    networks of `home`.
    """
    target = Context(home.folder / "transfer" / name, panel, home.training)
    own = make_plan(target, request.cells, request.splits, ("cnn",), request.seeds)
    missing = own.missing(target)
    echo(f"transfer to {name}: {len(own.tasks)} networks, {len(own.tasks) - len(missing)} of them done")
    run_tasks(target, missing, client, echo)
    market = Market.of(panel, panel.instruments)
    sections = []
    for split in request.splits:
        results, notes = [], []
        for cell in request.cells:
            if (split, cell.name) not in own.parts:
                notes.append(f"{cell.name}: skipped, {own.skipped[split, cell.name]}.")
                continue
            found = cell_result(target, own, cell, split, ("cnn",), request.seeds)
            found = with_direct_scores(home, plan, cell, request.seeds, target, found)
            if DIRECT not in found.scores:
                notes.append(f"{cell.name}: the networks were tested on no time of this market's test.")
                continue
            shared = np.isnan(found.scores[DIRECT])
            results.append(
                replace(found, scores={m: np.where(shared, np.nan, x) for m, x in found.scores.items()})
            )
        if not results:
            continue
        parts = [part for result in results for part in result.parts]
        first, last = min(part.first for part in parts), max(part.last for part in parts)
        by_letter, letters = differences(target, market, split, first, last, request.seeds, request.universe)
        signals = {r.cell.name: signals_of(target, market, r, request.universe, ()) for r in results}
        figures = tuple(market_figures(results, signals, lookup, letters["model"]))
        table = Table("X", f"{split}_{name}", f"{TABLES['X']}: {name}", figures, tuple(notes), by_letter)
        sections.append(Section(f"Transfer to {name}, split {split}", [table], [], by_letter))
    return sections
