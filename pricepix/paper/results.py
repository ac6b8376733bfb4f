"""Scores of a replication as signals at formation, beside the returns that followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.bars.times import to_series
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.rebalancing import bars_per_year
from pricepix.factor.evaluation.signals import BASELINES
from pricepix.factor.evaluation.universe import Universe
from pricepix.paper.cells import Cell
from pricepix.paper.context import Context
from pricepix.paper.formation import Formation
from pricepix.paper.parts import Part
from pricepix.paper.plan import Plan
from pricepix.paper.tasks import Task, scored_windows

__all__ = ["CellResult", "Signals", "cell_result", "signals_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CellResult:
    """The scores of a cell: the mean over seeds, by model.

    Attributes
    ----------
    cell : Cell
    split : str
    parts : list of Part
    window : numpy.ndarray, int64 (n,)
        Positions, in the cell's images, of the windows that were scored.
    row, time : numpy.ndarray, int64 (n,)
        Panel row and time of each window's last bar.
    returns : numpy.ndarray, float32 (n,)
        The forward returns that the cell learns; NaN where they are not known.
    scores : dict of str to numpy.ndarray, float64 (n,)
        Probabilities of a rise, by model.
    """

    cell: Cell
    split: str
    parts: list[Part]
    window: NDArray[np.int64]
    row: NDArray[np.int64]
    time: NDArray[np.int64]
    returns: NDArray[np.float32]
    scores: dict[str, Floats]

    def to_polars(self, context: Context) -> pl.DataFrame:
        """Return the scores as a table: instrument, time, forward return, and a column a model."""
        panel = context.panel
        code = np.searchsorted(panel.offsets, self.row, side="right") - 1
        return pl.DataFrame(
            {
                "instrument": panel.instruments[code].tolist(),
                "time": to_series(self.time, panel.tz),
                f"ret_{self.cell.horizon}": self.returns,
                **self.scores,
            }
        )


def cell_result(
    context: Context, plan: Plan, cell: Cell, split: str, models: Sequence[str], seeds: int
) -> CellResult:
    """Read the scores of a cell and average them over seeds."""
    parts, images = plan.parts[split, cell.name], context.images(cell)
    index = [scored_windows(context, cell, part) for part in parts]
    scores = {}
    for model in models:
        means = []
        for part in parts:
            total = np.zeros(len(scored_windows(context, cell, part)))
            for seed in range(seeds):
                total += Task(cell, split, part, model, seed).scores(context)
            means.append(total / seeds)
        scores[model] = np.concatenate(means)
    window = np.concatenate(index)
    return CellResult(
        cell, split, parts, window, context.rows(cell)[window], images.time[window],
        images.returns(cell.horizon)[window], scores,
    )  # fmt: skip


@dataclass(frozen=True)
class Signals:
    """Signals at the formations of a horizon, with what a table needs beside them.

    Attributes
    ----------
    formation : Formation
        Those at which the cell has a score of any instrument of the universe.
    models, baselines : dict of str to numpy.ndarray, float64 (periods, instruments)
        NaN outside the universe, and where there is no score.
    returns : numpy.ndarray, float64 (periods, instruments)
    cap : numpy.ndarray or None
        Market caps at formation.
    empty : int
        Formations left out because the universe has no instrument with a score.
    """

    formation: Formation
    models: dict[str, Floats]
    baselines: dict[str, Floats]
    returns: Floats
    cap: Floats | None
    empty: int


def signals_of(
    context: Context, market: Market, result: CellResult, universe: Universe, baselines: Sequence[str]
) -> Signals:
    """Lay the scores of a cell on its formations, within a universe."""
    panel, cell = context.panel, result.cell
    tested = [(part.first, part.last) for part in result.parts]
    formation = Formation.of(panel, cell.horizon, context.training.delay, tested)
    decided = market.time[formation.decision]
    place = np.searchsorted(decided, result.time)
    place[place == len(decided)] = 0
    stands = decided[place] == result.time
    code = np.searchsorted(panel.offsets, result.row, side="right") - 1
    inside = universe.select(market, formation.decision)
    models = {}
    for model, scores in result.scores.items():
        grid = np.full((len(formation), panel.n_instruments), np.nan)
        grid[place[stands], code[stands]] = scores[stands]
        models[model] = np.where(inside, grid, np.nan)
    first = next(iter(models.values()))
    filled = np.asarray(~np.isnan(first).all(axis=1))
    formation = formation.among(filled)
    per_year = bars_per_year(market.time, panel.tz)
    others = {
        name: np.where(inside[filled], BASELINES[name](market, formation.decision, per_year), np.nan)
        for name in baselines
    }
    return Signals(
        formation,
        {model: grid[filled] for model, grid in models.items()},
        others,
        formation.returns(market),
        market.cap_at(formation.decision),
        int((~filled).sum()),
    )
