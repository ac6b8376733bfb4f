"""A table of the paper: figures beside the published ones, as CSV, LaTeX, and rows for HTML."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from io import StringIO
from typing import Final, NamedTuple

from pricepix.paper.latex import PREAMBLE, latex_float, latex_number, latex_tabular, latex_text

__all__ = ["Comparison", "Figure", "Grid", "Row", "Table", "format_figure"]

_FORMATS: Final = {
    "mean": ("Ret", 100.0, 1, "%"),
    "sharpe": ("SR", 1.0, 2, ""),
    "turnover": ("Turnover", 100.0, 0, "%"),
    "accuracy": ("Accuracy", 100.0, 1, "%"),
    "expected": ("Best known", 100.0, 1, "%"),
    "correlation": ("Rank corr.", 1.0, 3, ""),
    "coefficient": ("Coef.", 1.0, 3, ""),
    "t": ("t", 1.0, 1, ""),
    "mcfadden_r2": ("R2", 100.0, 2, "%"),
    "count": ("N", 1.0, 0, ""),
}
"""How statistics are called and written: title, factor, digits, unit."""

_ALONE: Final = ("turnover", "count", "mcfadden_r2")
"""Statistics that have rows of their own, in the columns of the others."""


@dataclass(frozen=True)
class Figure:
    """A number of a table, and the published one where it is known.

    Attributes
    ----------
    panel : str
        Part of the table: ``Equal weight``.
    row, column : str
    statistic : str
    value : float
        Returns a year, turnover a month, accuracy and R2 as shares; NaN where it is not known.
    published : float
        NaN where none is known.
    differs : str
        Letters of the table's `differences` that apply.
    error : float
        Standard error of `value`; NaN where none is known.
    """

    panel: str
    row: str
    column: str
    statistic: str
    value: float
    published: float = math.nan
    differs: str = ""
    error: float = math.nan

    @property
    def difference(self) -> float:
        """This figure less the published one."""
        return self.value - self.published


class Row(NamedTuple):
    """A row of a panel as text."""

    name: str
    """Empty for a row of standard errors, which belongs to the row above."""
    cells: list[str]


class Grid(NamedTuple):
    """A panel of a table as text."""

    title: str
    columns: list[tuple[str, int]]
    """Titles, and how many columns each spans."""
    statistics: list[str]
    rows: list[Row]

    @property
    def is_plain(self) -> bool:
        """Whether all columns show one statistic, which then need not stand above each of them."""
        return len(self.statistics) == len(self.columns) and len(set(self.statistics)) == 1


class Comparison(NamedTuple):
    """A figure beside the published one, as text."""

    panel: str
    row: str
    column: str
    statistic: str
    here: str
    error: str
    """Standard error of the figure here, in parentheses; empty where none is known."""
    published: str
    difference: str
    differs: str
    """Letters of what differs."""


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes
    ----------
    number : str
        As in the paper: ``I``.
    split : str
        Of what was trained.
    title : str
    figures : tuple of Figure
    notes : tuple of str
        What a reader must know: cells that were skipped and why, weightings that are missing.
    differences : dict of str to str
        By letter, where definitions or data are not the paper's: a word, a colon, and how.
    rows_with_errors : tuple of str or None
        Rows whose standard errors are printed below them; all that have some by default. The CSV has every one.
    """

    number: str
    split: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    differences: dict[str, str] = field(default_factory=dict)
    rows_with_errors: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Name of its files."""
        return "_".join(part for part in ("table", self.number or "planted", self.split) if part)

    def figure(self, panel: str, row: str, column: str, statistic: str) -> Figure:
        """Return a figure, with its standard error; KeyError if the table has none of that name."""
        for figure in self.figures:
            if (figure.panel, figure.row, figure.column, figure.statistic) == (panel, row, column, statistic):
                return figure
        raise KeyError(f"table {self.number} has no {statistic} of {row!r} in {column!r}, {panel!r}")

    def value(self, panel: str, row: str, column: str, statistic: str) -> float:
        """Return the value of a figure; KeyError if the table has none of that name."""
        return self.figure(panel, row, column, statistic).value

    def letters(self) -> str:
        """Letters of all that differs in any figure."""
        return "".join(sorted({letter for figure in self.figures for letter in figure.differs}))

    def differing(self, letters: str) -> str:
        """Return in a word each what letters stand for: ``bars, seeds``."""
        return ", ".join(self.differences[letter].partition(":")[0] for letter in letters)

    def grids(self) -> list[Grid]:
        """Return its panels as text, rows and columns in the order of the figures."""
        found = []
        for panel in dict.fromkeys(figure.panel for figure in self.figures):
            own = [figure for figure in self.figures if figure.panel == panel]
            columns: dict[str, list[str]] = {}
            for column in dict.fromkeys(figure.column for figure in own):
                every = list(dict.fromkeys(f.statistic for f in own if f.column == column))
                columns[column] = [name for name in every if name not in _ALONE] or every[:1]
            order = [(column, name) for column, statistics in columns.items() for name in statistics]
            texts = {(f.row, f.column, f.statistic): format_figure(f.statistic, f.value) for f in own}
            errors = {(f.row, f.column, f.statistic): format_error(f) for f in own if self._prints_error(f)}
            rows = []
            for row in dict.fromkeys(figure.row for figure in own):
                # What has one number for all statistics of a column stands in the first of them.
                alone = {
                    f.column: texts[row, f.column, f.statistic]
                    for f in own
                    if f.row == row and f.statistic in _ALONE
                }
                cells = [
                    texts.get((row, column, statistic))
                    or (alone.get(column, "") if statistic == columns[column][0] else "")
                    for column, statistic in order
                ]
                rows.append(Row(row, cells))
                below = [errors.get((row, column, statistic), "") for column, statistic in order]
                if any(below):
                    rows.append(Row("", below))
            titles = [(column, len(statistics)) for column, statistics in columns.items()]
            found.append(Grid(panel, titles, [_FORMATS[statistic][0] for _, statistic in order], rows))
        return found

    def _prints_error(self, figure: Figure) -> bool:
        shown = self.rows_with_errors is None or figure.row in self.rows_with_errors
        return shown and math.isfinite(figure.error)

    def comparisons(self) -> list[Comparison]:
        """Return the figures beside published ones, as text."""
        return [
            Comparison(
                figure.panel, figure.row, figure.column,
                "" if figure.statistic in _ALONE else _FORMATS[figure.statistic][0],
                format_figure(figure.statistic, figure.value),
                format_error(figure),
                format_figure(figure.statistic, figure.published),
                format_figure(figure.statistic, figure.difference, sign=True),
                figure.differs,
            )
            for figure in self.figures
            if not math.isnan(figure.published)
        ]  # fmt: skip

    def to_csv(self) -> str:
        """Return every figure as CSV: value, its error, published figure, difference, and what differs, in full."""
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            [
                "table",
                "split",
                "panel",
                "row",
                "column",
                "statistic",
                "value",
                "standard_error",
                "published",
                "difference",
                "differs",
            ]
        )
        for figure in self.figures:
            numbers = [
                "" if math.isnan(x) else repr(x)
                for x in (figure.value, figure.error, figure.published, figure.difference)
            ]
            texts = [figure.panel, figure.row, figure.column, figure.statistic]
            why = "; ".join(self.differences[letter] for letter in figure.differs)
            writer.writerow([self.number, self.split, *map(_plain_cell, texts), *numbers, why])
        return out.getvalue()

    def to_latex(self) -> str:
        """Return the table as LaTeX: a float a panel, and one of the figures beside the published ones.

        It needs the packages booktabs and graphicx. What is wider than a line is shrunk to one.
        """
        of = f"Jiang, Kelly and Xiu (2023), Table {self.number}: " if self.number else ""
        name = f"{of}{self.title}"
        lines = [f"% In the preamble: {PREAMBLE}"]
        grids, compared = self.grids(), self.comparisons()
        for k, grid in enumerate(grids):
            caption = f"{name}; {grid.title[0].lower()}{grid.title[1:]}" if grid.title else name
            lines += latex_float(
                caption, _latex_grid(grid), self._printed_notes() if k == len(grids) - 1 else []
            )
        if compared:
            head = ["", "", "", "", "here", "(error)", "published", "difference", "differs"]
            rows = [
                [
                    *map(latex_text, (c.panel, c.column, c.row, c.statistic)),
                    *map(latex_number, (c.here, c.error, c.published, c.difference)),
                    latex_text(c.differs),
                ]
                for c in compared
            ]
            tabular = latex_tabular("llllrrrrl", [" & ".join(head)], rows)
            unchecked = [
                "Published figures come from secondary transcriptions, none checked against the article."
            ]
            lines += latex_float(f"{name}; beside the published figures", tabular, unchecked)
        return "\n".join(lines) + "\n"

    def _printed_notes(self) -> list[str]:
        """Notes, what parentheses are, and what the letters stand for."""
        errors = any(self._prints_error(figure) for figure in self.figures)
        return [
            *self.notes,
            *(["Standard errors in parentheses."] if errors else []),
            *(f"({letter}) {self.differences[letter]}." for letter in self.letters()),
        ]


def _latex_grid(grid: Grid) -> list[str]:
    width = 1 + len(grid.statistics)
    heads = [f"\\multicolumn{{{span}}}{{c}}{{{latex_text(title)}}}" for title, span in grid.columns]
    lines = [" & ".join(["", *heads])]
    if not grid.is_plain:
        lines.append(" & ".join(["", *map(latex_text, grid.statistics)]))
    rows = [[latex_text(row.name), *map(latex_number, row.cells)] for row in grid.rows]
    return latex_tabular("l" + "r" * (width - 1), lines, rows)


def format_figure(statistic: str, value: float, sign: bool = False) -> str:
    """Write a number as its statistic is written; a dash if it is not known."""
    if not math.isfinite(value):
        return "-"
    _, factor, digits, unit = _FORMATS[statistic]
    text = f"{value * factor:{'+' if sign else ''},.{digits}f}{unit}"
    # A number that rounds to 0 has no sign.
    return text.replace("-", "") if set(text) <= set("-0.%") else text


def format_error(figure: Figure) -> str:
    """Write the standard error of a figure as tables print it, without its unit; nothing if it is not known."""
    text = format_figure(figure.statistic, figure.error).removesuffix(_FORMATS[figure.statistic][3])
    return f"({text})" if math.isfinite(figure.error) else ""


def _plain_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
