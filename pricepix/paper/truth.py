"""A planted pattern, and how near the networks of a replication come to it: where it is, and where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.paper.cells import model_title
from pricepix.paper.results import CellResult
from pricepix.paper.tables import Figure

__all__ = ["Truth", "planted_figures"]

PLANTED, ELSEWHERE = "Where the pattern was planted", "Elsewhere"


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


def planted_figures(results: Sequence[CellResult], panel: Panel, truth: Truth) -> Iterator[Figure]:
    """Yield the accuracy of every model, and that of the planted signal, with and without the pattern.

    All windows of the test with a return count. At its own horizon the signal is right with its known chance, and no
    rule more often; at others, how often its sign came true is counted.
    """
    code = np.searchsorted(panel.offsets, np.arange(len(panel)), side="right") - 1
    has = np.zeros(panel.n_instruments, bool)
    has[code[truth.signal != 0]] = True
    for title, group in ((PLANTED, True), (ELSEWHERE, False)):
        for result in results:
            own = (has[code[result.row]] == group) & ~np.isnan(result.returns)
            rose = result.returns[own] > 0
            for model, scores in result.scores.items():
                right = float(np.mean((scores[own] > 0.5) == rose)) if own.any() else float("nan")
                yield Figure(title, model_title(model), result.cell.name, "accuracy", right)
            best = 0.5
            if group and result.cell.horizon == truth.horizon:
                best = truth.accuracy
            elif group:
                best = (
                    float(np.mean((truth.signal[result.row[own]] > 0) == rose)) if own.any() else float("nan")
                )
            yield Figure(title, "The planted signal", result.cell.name, "accuracy", best)
            error = float(np.sqrt(0.25 / max(1, int(own.sum()))))
            yield Figure(title, "Standard error", result.cell.name, "accuracy", error)
            yield Figure(title, "Windows", result.cell.name, "count", float(own.sum()))
