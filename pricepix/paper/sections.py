"""The tables and charts of one split, from the scores of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.bars.times import format_times
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.universe import Universe
from pricepix.paper.cells import Cell, model_title
from pricepix.paper.characteristics import characteristics
from pricepix.paper.charts import Chart, accuracy_chart, cumulative_chart
from pricepix.paper.choice_of_tables import TABLES, Tables
from pricepix.paper.context import Context
from pricepix.paper.correlation_table import correlation_figures
from pricepix.paper.decile_tables import (
    ROWS,
    Book,
    books_of,
    control_figures,
    decile_figures,
    holding_figures,
)
from pricepix.paper.differences import differences
from pricepix.paper.formation import DECILES, deciles, period_of
from pricepix.paper.logits import (
    MOST_WINDOWS,
    characteristic_figures,
    has_statsmodels,
    market_data_figures,
)
from pricepix.paper.page import Section
from pricepix.paper.parts import SPLITS
from pricepix.paper.published_figures import lookup
from pricepix.paper.results import CellResult, Signals, signals_of
from pricepix.paper.tables import Figure, Table
from pricepix.paper.transfer import DIRECT, SOURCE, time_scale_figures
from pricepix.paper.truth import Truth, planted_figures

__all__ = ["Request", "section_of"]

_BOOTSTRAP: Final = "Errors of differences: calendar months drawn with replacement, 500 times."
BASELINES: Final = ("MOM", "STR", "WSTR", "TREND")
_HOLDING_CUTS: Final = (5, 20)
_LARGEST: Final = 500
_FEW_FORMATIONS: Final = 24


@dataclass(frozen=True)
class Request:
    """What a replication is asked for: the arguments of ``replicate``, checked."""

    cells: tuple[Cell, ...]
    splits: Mapping[str, Any]
    models: tuple[str, ...]
    seeds: int
    tables: Tables
    universe: Universe
    markets: Mapping[str, Panel]
    """Other markets, by name."""


@dataclass(frozen=True)
class _Maker:
    """Makes the tables of a split."""

    context: Context
    market: Market
    split: str
    results: Sequence[CellResult]
    request: Request
    letters: dict[str, str]
    differences: dict[str, str]

    def groups(self) -> dict[int, list[CellResult]]:
        """Cells by horizon, the shortest first."""
        found: dict[int, list[CellResult]] = {}
        for result in sorted(self.results, key=lambda r: r.cell.horizon):
            found.setdefault(result.cell.horizon, []).append(result)
        return found

    def is_weekly(self, horizon: int) -> bool:
        """Whether portfolios of a horizon belong to Table I."""
        return period_of(self.context.panel, horizon) == "week"

    def signals(self, results: Iterable[CellResult], universe: Universe) -> dict[str, Signals]:
        """Lay the scores of cells on their formations."""
        return {r.cell.name: signals_of(self.context, self.market, r, universe, BASELINES) for r in results}

    def table(self, number: str, figures: Iterable[Figure], notes: Iterable[str] = ()) -> Table:
        """Return a table; a note stands once."""
        return Table(
            number, self.split, TABLES.get(number, ""), tuple(figures),
            tuple(dict.fromkeys(notes)), self.differences,
        )  # fmt: skip

    def books(self, results: Sequence[CellResult], signals: Mapping[str, Signals]) -> list[Book]:
        """Return the columns of a table of portfolios: images, the first control in their scale, baselines."""
        shown = [model for model in self.request.models if model in ("cnn", "cnn1d:image", "logistic:image")][
            :2
        ]
        return books_of(results, signals, self.letters, shown)

    def controls(self, signals: Mapping[str, Signals]) -> tuple[Figure, ...]:
        """Return the figures of Table IX."""
        own = [r for r in self.results if len(signals[r.cell.name].formation) >= 2]
        return tuple(control_figures(own, signals, self.letters["model"], self.market))

    def decile_table(
        self, number: str, groups: Mapping[int, list[CellResult]], signals: Mapping[str, Signals], named: bool
    ) -> Table | None:
        """Return Table I, II or IV of cells by horizon; None without a cell."""
        figures: list[Figure] = []
        notes: list[str] = []
        for horizon, results in groups.items():
            own = {name: found for name, found in signals.items() if len(found.formation) >= 2}
            shown = [r for r in results if r.cell.name in own]
            notes += _notes_of(results, signals)
            prefix = f"R{horizon}, " if named else ""
            for figure in decile_figures(number, self.books(shown, own)):
                figures.append(replace(figure, panel=_panel(prefix, figure.panel)))
        if not figures:
            return None
        return replace(self.table(number, figures, notes), rows_with_errors=(ROWS[-1],))


def section_of(
    context: Context,
    split: str,
    results: Sequence[CellResult],
    request: Request,
    truth: Truth | None = None,
    merged: Mapping[str, CellResult] | None = None,
) -> Section:
    """Return the tables and charts of a split; `merged` has the results of merged images by table."""
    market = Market.of(context.panel, context.panel.instruments)
    parts = [part for result in results for part in result.parts]
    first, last = min(part.first for part in parts), max(part.last for part in parts)
    by_letter, letters = differences(context, market, split, first, last, request.seeds, request.universe)
    maker = _Maker(context, market, split, results, request, letters, by_letter)
    signals = maker.signals(results, request.universe)
    tables = [table for table in _tables(maker, signals, truth) if table is not None]
    for number, result in (merged or {}).items():
        tables.append(_time_scale_table(maker, number, result, signals))
    title = SPLITS.get(split, f"Split {split}")
    return Section(split, title, _glance(maker, signals), tables, _charts(maker, signals), by_letter)


def _glance(maker: _Maker, signals: Mapping[str, Signals]) -> Table | None:
    """A row a cell: the CNN, what was published of it, and what it adds to the first of the controls."""
    shown = ("CNN", *(model_title(model) for model in maker.request.models[1:2]))
    figures = []
    for figure in maker.controls(signals):
        name, own = figure.row, replace(figure, panel="", row=figure.column)
        if name in shown:
            figures.append(replace(own, column=name))
        if name == "CNN":
            table = "I" if maker.is_weekly(int(figure.column.rpartition("R")[2])) else "II"
            known = lookup(table, figure.column, "cnn", "equal", "high - low", "sharpe")
            for column, value in (("Published", known), ("Difference", figure.value - known)):
                figures.append(Figure("", figure.column, column, "sharpe", value))
        elif name == f"CNN less {shown[-1]}":
            figures.append(replace(own, column=name))
    if not figures:
        return None
    notes = ["Sharpe ratio a year of the highest less the lowest decile, equal weights, before costs."]
    return Table("", maker.split, "At a glance", tuple(figures), tuple(notes))


def _tables(maker: _Maker, signals: Mapping[str, Signals], truth: Truth | None) -> Iterator[Table | None]:
    groups, wanted = maker.groups(), maker.request.tables.numbers
    weekly = {h: own for h, own in groups.items() if maker.is_weekly(h)}
    longer = {h: own for h, own in groups.items() if h not in weekly}
    if truth is not None:
        figures = planted_figures(maker.results, maker.context.panel, truth, maker.context.training.every)
        note = (
            f"The planted signal tells the sign of the return over {truth.horizon} bars with a chance of "
            f"{truth.accuracy:.0%}, and no rule knows more of that sign. Elsewhere no rule is right more often than "
            "not. Prices that must end where the pattern says revert a little, too: over other horizons a network may "
            "be right more often than the signal. Errors know that windows of a date, and returns that overlap, go "
            "together."
        )
        found = maker.table("", figures, [note])
        yield replace(found, title="Accuracy of signs, where a pattern was planted and elsewhere")
    if "I" in wanted:
        yield maker.decile_table("I", weekly, signals, len(weekly) > 1)
    if "II" in wanted:
        yield maker.decile_table("II", longer, signals, True)
    if "III" in wanted:
        yield _holding_table(maker, groups, signals)
    if "IV" in wanted and "market_cap" in maker.context.panel.fields:
        yield _largest_table(maker, groups)
    if any(number in wanted for number in ("V", "VI", "VII")):
        yield from _characteristic_tables(maker, signals)
    if "VIII" in wanted and has_statsmodels():
        figures = market_data_figures(maker.results, signals, maker.context, lookup, maker.letters["model"])
        yield maker.table(
            "VIII",
            figures,
            [
                f"Lag 0 is the image's last bar. Out of sample: the later half of the test. At most {MOST_WINDOWS:,} "
                "windows at formations, evenly spaced. What is a sum of others, such as the average of the image's own "
                "closes, is left out. A dash stands where there are too few windows, or one sign only."
            ],
        )
    if "IX" in wanted and len(maker.request.models) > 1:
        yield maker.table("IX", maker.controls(signals), [_BOOTSTRAP])


def _characteristic_tables(maker: _Maker, signals: Mapping[str, Signals]) -> Iterator[Table]:
    """Tables V, VI and VII: characteristics at the formations of each cell; cells of one horizon mostly share them."""
    found: dict[str, Mapping[str, NDArray[np.float64]]] = {}
    known: dict[bytes, Mapping[str, NDArray[np.float64]]] = {}
    given = maker.request.tables.own(maker.market)
    for result in maker.results:
        decision = signals[result.cell.name].formation.decision
        key = decision.tobytes()
        if key not in known:
            known[key] = characteristics(maker.market, decision) | {
                name: grid[decision] for name, grid in given.items()
            }
        found[result.cell.name] = known[key]
    own = [result for result in maker.results if len(signals[result.cell.name].formation)]
    wanted, letters = maker.request.tables.numbers, maker.letters["both"]
    note = (
        "All characteristics come from the panel's bars and are known at the formation: windows are months and years "
        "of bars, the market is the equally weighted mean of the panel's names."
    )
    if given:
        note = f"Given with the call: {', '.join(given)}. {note.replace('All characteristics', 'All others')}"
    if "V" in wanted:
        shown = [model for model in maker.request.models if model in ("cnn", "cnn1d:image")]
        figures = tuple(correlation_figures(own, signals, found, shown, letters))
        varied = {figure.row for figure in figures if np.isfinite(figure.value)}
        notes = ["Means over formations of the rank correlation across names.", note]
        if left := [row for row in dict.fromkeys(figure.row for figure in figures) if row not in varied]:
            notes.append(f"Left out, as the same for all names or not known: {', '.join(left)}.")
        yield maker.table("V", (figure for figure in figures if figure.row in varied), notes)
    if not has_statsmodels():
        return
    ranked = "Ranks at each formation, from -1/2 to 1/2. t as if all pairs were independent. " + note
    if "VI" in wanted:
        yield maker.table("VI", characteristic_figures(own, signals, found, letters, False), [ranked])
    if "VII" in wanted:
        yield maker.table("VII", characteristic_figures(own, signals, found, letters, True), [ranked])


def _time_scale_table(maker: _Maker, number: str, result: CellResult, signals: dict[str, Signals]) -> Table:
    """Table XI or XII: a network of five bars on longer images."""
    own = signals_of(maker.context, maker.market, result, maker.request.universe, ())
    home = f"I{result.cell.image.lookback}/R{result.cell.horizon}"
    beside = (home, signals[home]) if home in signals else None
    figures = time_scale_figures(result, own, beside, maker.letters["model"])
    notes = list(_notes_of([result], signals | {result.cell.name: own}))
    if DIRECT not in result.scores:
        notes.append(f"No network of {SOURCE} was tested on the same time: ask for the cell {SOURCE}, too.")
    return maker.table(number, figures, notes)


def _holding_table(
    maker: _Maker, groups: Mapping[int, list[CellResult]], signals: Mapping[str, Signals]
) -> Table | None:
    """Table III: horizons long enough to be cut at 5 and at 20 bars."""
    figures = []
    for horizon, results in groups.items():
        cuts = [cut for cut in _HOLDING_CUTS if cut < horizon]
        if cuts:
            for figure in holding_figures("III", maker.books(results, signals), maker.market, cuts):
                figures.append(replace(figure, panel=_panel(f"R{horizon}, ", figure.panel)))
    return maker.table("III", figures) if figures else None


def _largest_table(maker: _Maker, groups: Mapping[int, list[CellResult]]) -> Table | None:
    """Table IV: the same portfolios of the largest names."""
    names = maker.context.panel.n_instruments
    count = _LARGEST if names >= 3 * _LARGEST else max(DECILES, names // 3)
    universe = replace(maker.request.universe, top=count)
    signals = maker.signals(maker.results, universe)
    found = maker.decile_table("IV", groups, signals, True)
    if found is None:
        return None
    return replace(
        found, title=f"The {count:,} largest names", notes=(f"Universe: {universe}.", *found.notes)
    )


def _notes_of(results: Sequence[CellResult], signals: Mapping[str, Signals]) -> Iterator[str]:
    """What a reader must know of some cells; what is true of several is said once."""
    said: dict[str, list[str]] = {}
    for result in results:
        own = signals[result.cell.name]
        if own.empty:
            text = f"{own.empty:,} formations have no scored name in the universe and are left out."
            said.setdefault(text, []).append(result.cell.name)
        if len(own.formation) < 2:
            text = "fewer than 2 formations have a scored name in the universe; no portfolio."
            said.setdefault(text, []).append(result.cell.name)
        elif len(own.formation) < _FEW_FORMATIONS:
            text = f"{len(own.formation)} formations: Sharpe ratios of so few are of little meaning."
            said.setdefault(text, []).append(result.cell.name)
    for text, names in said.items():
        yield f"{', '.join(names)}: {text}"


def _panel(prefix: str, panel: str) -> str:
    return f"{prefix}{panel[0].lower()}{panel[1:]}" if prefix else panel


def _charts(maker: _Maker, signals: Mapping[str, Signals]) -> list[Chart]:
    """Cumulated returns and accuracy by decile, a chart a horizon."""
    charts = []
    for horizon, results in maker.groups().items():
        first = signals[results[0].cell.name]
        if len(first.formation) < 2:
            continue
        returns = {}
        for book in maker.books(results, signals):
            shared = book.shared
            if len(shared.formation) == len(first.formation):
                found, _ = deciles(shared.formation, book.signal, shared.returns, shared.cap)
                returns[book.title] = found[-1].series
        dates = format_times(maker.market.time[first.formation.leave], maker.context.panel.tz)
        charts.append(
            cumulative_chart(
                f"Cumulated returns, R{horizon}", dates, returns, first.formation.per_year, BASELINES
            )
        )
        for r in results:
            if np.isfinite(r.returns).any():
                scores = {model_title(model): score for model, score in r.scores.items()}
                charts.append(accuracy_chart(f"Accuracy by decile, {r.cell.name}", scores, r.returns))
    return charts
