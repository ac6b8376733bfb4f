"""A table of the paper: figures beside the published ones, as CSV, LaTeX, and rows for HTML."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from io import StringIO
from typing import Final, NamedTuple

__all__ = ["Comparison", "Figure", "Grid", "Table", "format_figure", "latex_text"]

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
    """

    panel: str
    row: str
    column: str
    statistic: str
    value: float
    published: float = math.nan
    differs: str = ""

    @property
    def difference(self) -> float:
        """This figure less the published one."""
        return self.value - self.published


class Grid(NamedTuple):
    """A panel of a table as text."""

    title: str
    columns: list[tuple[str, int]]
    """Titles, and how many columns each spans."""
    statistics: list[str]
    rows: list[tuple[str, list[str]]]


class Comparison(NamedTuple):
    """A figure beside the published one, as text."""

    panel: str
    row: str
    column: str
    statistic: str
    here: str
    published: str
    difference: str
    differs: str


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
        By letter, where definitions or data are not the paper's.
    """

    number: str
    split: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    differences: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its files."""
        return "_".join(part for part in ("table", self.number or "planted", self.split) if part)

    def value(self, panel: str, row: str, column: str, statistic: str) -> float:
        """Return a figure; KeyError if the table has none of that name."""
        for figure in self.figures:
            if (figure.panel, figure.row, figure.column, figure.statistic) == (panel, row, column, statistic):
                return figure.value
        raise KeyError(f"table {self.number} has no {statistic} of {row!r} in {column!r}, {panel!r}")

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
                rows.append((row, cells))
            titles = [(column, len(statistics)) for column, statistics in columns.items()]
            found.append(Grid(panel, titles, [_FORMATS[statistic][0] for _, statistic in order], rows))
        return found

    def comparisons(self) -> list[Comparison]:
        """Return the figures beside published ones, as text."""
        return [
            Comparison(
                figure.panel, figure.row, figure.column,
                "" if figure.statistic in _ALONE else _FORMATS[figure.statistic][0],
                format_figure(figure.statistic, figure.value),
                format_figure(figure.statistic, figure.published),
                format_figure(figure.statistic, figure.difference, sign=True),
                figure.differs,
            )
            for figure in self.figures
            if not math.isnan(figure.published)
        ]  # fmt: skip

    def to_csv(self) -> str:
        """Return every figure as CSV: value, published figure, difference, and what differs, in full."""
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
                "published",
                "difference",
                "differs",
            ]
        )
        for figure in self.figures:
            numbers = [
                "" if math.isnan(x) else repr(x) for x in (figure.value, figure.published, figure.difference)
            ]
            texts = [figure.panel, figure.row, figure.column, figure.statistic]
            why = "; ".join(self.differences[letter] for letter in figure.differs)
            writer.writerow([self.number, self.split, *map(_plain_cell, texts), *numbers, why])
        return out.getvalue()

    def to_latex(self) -> str:
        """Return the table as LaTeX, with ``booktabs``: its panels, and the figures beside the published ones."""
        lines = [f"% Table {self.number}: \\usepackage{{booktabs}}"]
        for grid in self.grids():
            width = 1 + len(grid.statistics)
            lines += [f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}", "\\toprule"]
            if grid.title:
                lines.append(f"\\multicolumn{{{width}}}{{l}}{{{latex_text(grid.title)}}} \\\\")
            heads = [f"\\multicolumn{{{span}}}{{c}}{{{latex_text(title)}}}" for title, span in grid.columns]
            lines += [
                " & ".join(["", *heads]) + " \\\\",
                " & ".join(["", *map(latex_text, grid.statistics)]) + " \\\\",
            ]
            lines.append("\\midrule")
            lines += [
                " & ".join([latex_text(row), *map(latex_text, cells)]) + " \\\\" for row, cells in grid.rows
            ]
            lines += ["\\bottomrule", "\\end{tabular}", ""]
        compared = self.comparisons()
        if compared:
            lines += ["\\begin{tabular}{llllrrrl}", "\\toprule"]
            head = ["panel", "row", "column", "", "here", "published", "difference", "differs"]
            lines += [" & ".join(head) + " \\\\", "\\midrule"]
            lines += [" & ".join(map(latex_text, row)) + " \\\\" for row in compared]
            lines += ["\\bottomrule", "\\end{tabular}", ""]
        notes = [f"({letter}) {text}" for letter, text in self.differences.items()]
        lines += [f"% {' '.join(note.split())}" for note in [*self.notes, *notes]]
        return "\n".join(lines) + "\n"


def format_figure(statistic: str, value: float, sign: bool = False) -> str:
    """Write a number as its statistic is written; a dash if it is not known."""
    if not math.isfinite(value):
        return "-"
    _, factor, digits, unit = _FORMATS[statistic]
    text = f"{value * factor:{'+' if sign else ''},.{digits}f}{unit}"
    # A number that rounds to 0 has no sign.
    return text.replace("-", "") if set(text) <= set("-0.%") else text


def latex_text(text: str) -> str:
    """Return text as LaTeX prints it."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c if c.isprintable() else " ") for c in text)


def _plain_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
