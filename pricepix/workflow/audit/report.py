"""The result of an audit: a table of checks, what each looked at, found, and cannot see."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Final, Literal

from pricepix._checks import printable
from pricepix.bars import display

__all__ = ["Audit", "Check"]

_COLUMNS: Final = {"check": 15, "dates": 25, "result": 45, "cannot see": 38}


@dataclass
class Check:
    """One question of an audit, and its answer."""

    name: str
    """What was checked, in a word or two."""
    dates: str
    """The dates that it looked at."""
    cannot_see: str
    """Leaks of this kind that would pass unseen."""
    seen: str = ""
    """What it compared and found, in a sentence."""
    problems: list[str] = field(default_factory=list)
    """Leaks, in sentences."""
    known: bool = True
    """False where there is too little to tell, or nothing to look at: neither passed nor failed."""

    @property
    def result(self) -> Literal["ok", "LEAK", "not known"]:
        """How it ended."""
        return "LEAK" if self.problems else "ok" if self.known else "not known"


@dataclass(repr=False)
class Audit:
    """What an audit compared and what it found. Print it: the table has a row for each check."""

    dates: list[str]
    """The dates after which bars were replaced, and removed. At the last one of the panel nothing is."""
    windows: int = 0
    """Windows that were drawn again and compared."""
    labels: int = 0
    """Forward returns, realised at or before a date, that were computed again and compared."""
    scores: int = 0
    """Scores that were computed again and compared."""
    placed: int = 0
    """Values of the cache, checked to stand no earlier than `shift` bars after their window."""
    changed_after: int = 0
    """Images after a date that the garbage changed, of a sample; 0 would mean that nothing was tested."""
    checks: list[Check] = field(default_factory=list)

    @property
    def date(self) -> str:
        """The last of the dates."""
        return self.dates[-1]

    @property
    def problems(self) -> list[str]:
        """The leaks of all checks, in sentences; empty where nothing was found."""
        return [problem for check in self.checks for problem in check.problems]

    @property
    def ok(self) -> bool:
        """Whether no check found a leak. A check that could not tell does not fail the audit."""
        return not self.problems

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}: this audit has {', '.join(check.name for check in self.checks)}")

    def _outcome(self) -> str:
        unknown = sum(check.result == "not known" for check in self.checks)
        found = sum(check.result == "LEAK" for check in self.checks)
        head = f"{found} of {len(self.checks)} checks found a leak" if found else "no leak found"
        return f"{head}; {unknown} of {len(self.checks)} could not tell" if unknown else head

    def __repr__(self) -> str:
        compared = f"{self.windows:,} windows, {self.labels:,} labels, {self.scores:,} scores compared"
        return f"Audit({self._outcome()}; {compared})"

    def _repr_html_(self) -> str:
        counts = {"images drawn again": self.windows, "labels computed again": self.labels}
        counts |= {"scores computed again": self.scores, "values placed": self.placed}
        rows = [
            (check.name, check.result, "; ".join(check.problems) or check.seen, check.dates, check.cannot_see)
            for check in self.checks
        ]
        head = ["check", "result", "what was found", "dates", "what it cannot see"]
        return display.page(
            "Audit",
            self._outcome(),
            display.notes(self.problems),
            display.tiles({name: n for name, n in counts.items() if n}),
            display.table(head, rows, words=range(5)),
        )

    def __str__(self) -> str:
        head = f"audit: {self._outcome()}"
        rows = [list(_COLUMNS), ["-" * width for width in _COLUMNS.values()]]
        for check in self.checks:
            text = "; ".join(check.problems) if check.problems else check.seen
            rows.append([check.name, check.dates, f"{check.result}: {text}", check.cannot_see])
        return printable("\n".join([head, "", *(line for row in rows for line in _lines(row))]))


def _lines(row: list[str]) -> list[str]:
    """Write one row of the table, each cell wrapped to its column."""
    widths = list(_COLUMNS.values())
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]
