"""Tables I to IV and IX: decile portfolios by horizon, their holding periods, the largest names, the controls."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.comparison.bootstrap import Bootstrap, bootstrap_by_month, month_numbers
from pricepix.factor.evaluation.market import Market
from pricepix.paper.cells import MODELS, model_title
from pricepix.paper.formation import DECILES, Decile, deciles
from pricepix.paper.published_figures import lookup
from pricepix.paper.results import CellResult, Signals
from pricepix.paper.tables import Figure

__all__ = ["ROWS", "Book", "books_of", "control_figures", "decile_figures", "holding_figures"]

Floats = NDArray[np.float64]

ROWS: Final = ("Low", *(str(k) for k in range(2, DECILES)), "High", "High - Low")
_BOOTSTRAP: Final = Bootstrap(draws=500)
"""Of months, for the error of a difference."""
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
                for statistic, value, error in _statistics(decile):
                    known = lookup(table, book.published_cell, book.model, weighting, row.lower(), statistic)
                    yield Figure(panel, row, book.title, statistic, value, known, book.differs, error)
            known = lookup(table, book.published_cell, book.model, weighting, ROWS[-1].lower(), "turnover")
            yield Figure(panel, "Turnover", book.title, "turnover", turnover, known, book.differs)
            counted = ~np.isnan(book.signal) & ~np.isnan(shared.returns)
            if shared.cap is not None:
                counted &= ~np.isnan(shared.cap)
            names = float(counted.sum(axis=1).mean()) if len(counted) else float("nan")
            for row, count in (("Formations", float(len(counted))), ("Names at each", names)):
                yield Figure(panel, row, book.title, "count", count, differs=book.differs)


def _statistics(portfolio: Decile) -> tuple[tuple[str, float, float], ...]:
    """Name, value and standard error of what is told of a portfolio."""
    return (
        ("mean", portfolio.mean, portfolio.mean_error),
        ("sharpe", portfolio.sharpe, portfolio.sharpe_error),
    )


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
                for statistic, value, error in _statistics(found[-1]):
                    yield Figure(panel, row, book.title, statistic, value, differs=book.differs, error=error)


def control_figures(
    results: Sequence[CellResult],
    signals: Mapping[str, Signals],
    differs: str,
    market: Market,
) -> Iterator[Figure]:
    """Yield the equally weighted Sharpe ratio of highest less lowest of every model, cell by cell.

    Below each control: the CNN's less its own, what the second dimension adds. Its standard error is that of calendar
    months drawn with replacement, each with the returns of both.
    """
    panel = "Equal weight"
    for r in results:
        shared, name = signals[r.cell.name], r.cell.name
        month = month_numbers(market.time[shared.formation.entry], market.panel.tz)
        cnn = np.empty(0)
        for model in MODELS:
            if model not in shared.models:
                continue
            spread = deciles(shared.formation, shared.models[model], shared.returns, shared.cap)[0][-1]
            known = lookup("I" if model == "cnn" else "IX", name, model, "equal", "high - low", "sharpe")
            title = model_title(model)
            yield Figure(panel, title, name, "sharpe", spread.sharpe, known, differs, spread.sharpe_error)
            if model == "cnn":
                cnn = spread.series
                continue
            both = np.column_stack([cnn, spread.series])
            statistic = functools.partial(_sharpe, per_year=shared.formation.per_year)
            less = bootstrap_by_month(statistic, both, month, _BOOTSTRAP)
            yield Figure(
                panel, f"CNN less {title}", name, "sharpe", less["difference"], differs=differs,
                error=less["standard_error"],
            )  # fmt: skip


def _sharpe(returns: Floats, per_year: float) -> float:
    sd = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    return float(returns.mean()) / sd * float(np.sqrt(per_year)) if sd > 0 else float("nan")
