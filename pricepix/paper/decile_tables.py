"""Tables I to IV and IX: decile portfolios by horizon, their holding periods, the largest names, the controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.market import Market
from pricepix.paper.cells import MODELS, model_title
from pricepix.paper.formation import DECILES, deciles
from pricepix.paper.published_figures import lookup
from pricepix.paper.results import CellResult, Signals
from pricepix.paper.tables import Figure

__all__ = ["ROWS", "Book", "books_of", "control_figures", "decile_figures", "holding_figures"]

Floats = NDArray[np.float64]

ROWS: Final = ("Low", *(str(k) for k in range(2, DECILES)), "High", "High - Low")
_WEIGHTINGS: Final = {"equal": "Equal weight", "value": "Value weight"}


@dataclass(frozen=True)
class Book:
    """A signal of a table's column: portfolios are formed of it.

    Attributes
    ----------
    cell : str
        Name of the cell; of a baseline, that whose formations it shares.
    model : str
        ``cnn``, a control, or a baseline such as ``STR``.
    signal : numpy.ndarray, float64 (periods, instruments)
    shared : Signals
    differs : str
        Letters of what differs from the paper.
    """

    cell: str
    model: str
    signal: Floats
    shared: Signals
    differs: str

    @property
    def is_baseline(self) -> bool:
        """Whether it is a price signal rather than a model's."""
        return self.model not in MODELS

    @property
    def title(self) -> str:
        """The head of its column."""
        if self.is_baseline:
            return self.model
        return self.cell if self.model == "cnn" else f"{self.cell} {model_title(self.model, short=True)}"

    @property
    def published_cell(self) -> str:
        """The cell of its published figures: baselines have none."""
        return "" if self.is_baseline else self.cell


def books_of(
    results: Sequence[CellResult],
    signals: Mapping[str, Signals],
    letters: Mapping[str, str],
    models: Sequence[str],
) -> list[Book]:
    """Return the columns of a table: every cell's models, then the baselines once.

    Parameters
    ----------
    results : sequence of CellResult
        Cells of one horizon.
    signals : mapping of cell name to Signals
    letters : mapping
        ``model`` and ``baseline``: the letters of what differs.
    models : sequence of str
        Which of the models, in this order.
    """
    books = [
        Book(r.cell.name, model, signals[r.cell.name].models[model], signals[r.cell.name], letters["model"])
        for r in results
        for model in models
        if model in signals[r.cell.name].models
    ]
    for r in results[:1]:
        shared = signals[r.cell.name]
        books += [
            Book(r.cell.name, name, grid, shared, letters["baseline"])
            for name, grid in shared.baselines.items()
        ]
    return books


def decile_figures(table: str, books: Sequence[Book]) -> Iterator[Figure]:
    """Yield mean return and Sharpe ratio a year of every decile, and turnover a month, of every book."""
    for weighting, panel in _WEIGHTINGS.items():
        for book in books:
            shared = book.shared
            if weighting == "value" and shared.cap is None:
                continue
            found, turnover = deciles(
                shared.formation, book.signal, shared.returns, shared.cap, weighting == "value"
            )
            for row, decile in zip(ROWS, found, strict=True):
                for statistic, value in (("mean", decile.mean), ("sharpe", decile.sharpe)):
                    yield _figure(table, book, weighting, panel, row, statistic, value)
            yield _figure(table, book, weighting, panel, "Turnover", "turnover", turnover)


def _figure(
    table: str, book: Book, weighting: str, panel: str, row: str, statistic: str, value: float
) -> Figure:
    named = "high - low" if statistic == "turnover" else row.lower()
    known = lookup(table, book.published_cell, book.model, weighting, named, statistic)
    return Figure(panel, row, book.title, statistic, value, known, book.differs)


def holding_figures(
    table: str, books: Sequence[Book], market: Market, cuts: Sequence[int]
) -> Iterator[Figure]:
    """Yield what highest less lowest earns in each stretch of the holding period, cut at so many days.

    Names and weights are those at formation; a later stretch starts from them anew. Annualised by the formations a
    year, so that the means of the stretches add up to nearly that of the whole.
    """
    for weighting, panel in _WEIGHTINGS.items():
        for book in books:
            shared = book.shared
            if weighting == "value" and shared.cap is None:
                continue
            stretches = shared.formation.parts(market, cuts)
            bounds = [1, *(cut + 1 for cut in cuts)]
            ends = [*map(str, cuts), "end"]
            whole = [(f"Days {a} to {b}", r) for a, b, r in zip(bounds, ends, stretches, strict=True)]
            for row, returns in [*whole, ("Whole period", shared.returns)]:
                found, _ = deciles(shared.formation, book.signal, returns, shared.cap, weighting == "value")
                for statistic, value in (("mean", found[-1].mean), ("sharpe", found[-1].sharpe)):
                    yield Figure(panel, row, book.title, statistic, value, differs=book.differs)


def control_figures(
    results: Sequence[CellResult], signals: Mapping[str, Signals], differs: str
) -> Iterator[Figure]:
    """Yield the equally weighted Sharpe ratio of highest less lowest of every model, cell by cell."""
    for r in results:
        shared = signals[r.cell.name]
        for model in MODELS:
            if model in shared.models:
                found, _ = deciles(shared.formation, shared.models[model], shared.returns, shared.cap)
                known = lookup("IX", r.cell.name, model, "equal", "high - low", "sharpe")
                if model == "cnn":
                    known = lookup("I", r.cell.name, model, "equal", "high - low", "sharpe")
                yield Figure(
                    "Equal weight",
                    model_title(model),
                    r.cell.name,
                    "sharpe",
                    found[-1].sharpe,
                    known,
                    differs,
                )
