"""LaTeX of tables: text that prints as it stands, tabulars no wider than a line, floats with notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["PREAMBLE", "latex_float", "latex_number", "latex_tabular", "latex_text"]

PREAMBLE: Final = "\\usepackage{booktabs,graphicx}"
"""What a document needs that takes the tables in."""

_SPECIAL: Final = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "''",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    """Return text as LaTeX prints it, on one line."""
    return "".join(_SPECIAL.get(c, c if c.isprintable() else " ") for c in text)


def latex_number(text: str) -> str:
    """Return a number with a minus sign in place of its hyphen; what is not known is a dash."""
    return "--" if text in ("-", "(-)") else latex_text(text).replace("-", "$-$")


def latex_tabular(columns: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a tabular between rules.

    Parameters
    ----------
    columns : str
        Alignment, such as ``lrr``.
    heads : iterable of str
        Lines above the rule, without their end.
    rows : iterable of sequence of str
        Cells that are LaTeX already.
    """
    body = [" & ".join(cells) + " \\\\" for cells in rows]
    above = [f"{head} \\\\" for head in heads]
    return [
        f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *above, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"
    ]  # fmt: skip


def latex_float(caption: str, tabular: Iterable[str], notes: Iterable[str]) -> list[str]:
    """Return the lines of a float: caption, a tabular that is shrunk to the line if it is wider, notes below it."""
    printed = [latex_text(" ".join(note.split())) for note in notes]
    below = ["\\par\\medskip", "\\begin{minipage}{\\linewidth}\\footnotesize", *printed, "\\end{minipage}"]
    return [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{latex_text(caption)}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        *tabular,
        "}",
        *(below if printed else []),
        "\\end{table}",
        "",
    ]
