"""Table X: another market, scored by the networks of this one and by networks of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pricepix.factor.evaluation.market import Market
from pricepix.paper.choice_of_tables import TABLES
from pricepix.paper.context import Context
from pricepix.paper.differences import differences
from pricepix.paper.page import Section
from pricepix.paper.plan import Plan, make_plan
from pricepix.paper.published_figures import lookup
from pricepix.paper.results import cell_result, signals_of
from pricepix.paper.sections import Request
from pricepix.paper.tables import Table
from pricepix.paper.transfer import DIRECT, market_figures, with_direct_scores

__all__ = ["Foreign", "other_markets", "transferred"]


class Foreign(NamedTuple):
    """Another market: its bars, and the networks that are trained on it."""

    name: str
    context: Context
    plan: Plan


def other_markets(home: Context, request: Request) -> list[Foreign]:
    """Plan the cells on every other market.

    Raises
    ------
    ValueError
        A market without the total returns that the networks learn images rebuilt from.
    """
    found = []
    for name, panel in request.markets.items():
        if home.training.rebuild == "returns" and "total_return" not in panel.fields:
            raise ValueError(
                f"transfer[{name!r}] has no total returns, and the networks learn images rebuilt from them: map a "
                "column to total_return, or give Training(rebuild=None)"
            )
        # Stores show the bars of the first market.
        training = replace(home.training, stores={})
        context = Context(home.folder / "transfer" / name, panel, training)
        plan = make_plan(context, request.cells, request.splits, ("cnn",), request.seeds)
        found.append(Foreign(name, context, plan))
    return found


def transferred(home: Context, plan: Plan, request: Request, foreign: Foreign) -> list[Section]:
    """Score the cells on another market, whose networks are trained, and return a section of it for each split.

    Networks of both kinds are judged on the same windows: those of the market's test that lie in the test of the
    networks of `home`.
    """
    name, target, own = foreign
    panel = target.panel
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
        sections.append(
            Section(f"{split}_{name}", f"Transfer to {name}, split {split}", None, [table], [], by_letter)
        )
    return sections
