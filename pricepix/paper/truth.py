"""A planted pattern, and how near the networks of a replication come to it: where it is, and where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.paper.cells import model_title
from pricepix.paper.errors import share_error
from pricepix.paper.results import CellResult
from pricepix.paper.tables import Figure

__all__ = ["Truth", "planted_figures"]

PLANTED, ELSEWHERE, SIGNAL = "Where the pattern was planted", "Elsewhere", "The planted signal"


@dataclass(frozen=True)
class Truth:
    """What is known of a simulated market.

    Attributes
    ----------
    signal : numpy.ndarray, int8 (rows,)
        1 or -1 where a bar tells that the price will rise or fall, 0 where nothing was planted.
    accuracy : float
        Chance that it is right.
    horizon : int
        Bars of the return whose sign it tells.
    """

    signal: NDArray[np.int8]
    accuracy: float
    horizon: int


def planted_figures(
    results: Sequence[CellResult], panel: Panel, truth: Truth, every: str
) -> Iterator[Figure]:
    """Yield the accuracy of every model, and that of the planted signal, with and without the pattern.

    All windows of the test with a return count. At its own horizon the signal is right with its known chance, and no
    rule more often; at others, how often its sign came true is counted. `every` is ``bar`` where windows end at every
    bar, so that the returns of as many dates as a horizon has bars overlap: their standard errors know that.
    """
    code = np.searchsorted(panel.offsets, np.arange(len(panel)), side="right") - 1
    has = np.zeros(panel.n_instruments, bool)
    has[code[truth.signal != 0]] = True
    for title, group in ((PLANTED, True), (ELSEWHERE, False)):
        for result in results:
            own = (has[code[result.row]] == group) & ~np.isnan(result.returns)
            rose = result.returns[own] > 0
            horizon, time = result.cell.horizon, result.time[own]
            overlap = horizon if every == "bar" else 1
            for model, scores in result.scores.items():
                right = (scores[own] > 0.5) == rose
                yield _share(title, model_title(model), result, right, time, overlap)
            if group and horizon != truth.horizon:
                yield _share(
                    title, SIGNAL, result, (truth.signal[result.row[own]] > 0) == rose, time, overlap
                )
            else:
                best = truth.accuracy if group else 0.5
                yield Figure(title, SIGNAL, result.cell.name, "accuracy", best)
            yield Figure(title, "Windows", result.cell.name, "count", float(own.sum()))


def _share(
    title: str,
    row: str,
    result: CellResult,
    right: NDArray[np.bool_],
    time: NDArray[np.int64],
    overlap: int,
) -> Figure:
    share = float(right.mean()) if len(right) else float("nan")
    return Figure(title, row, result.cell.name, "accuracy", share, error=share_error(right, time, overlap))
