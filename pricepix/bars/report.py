"""The report of the checks that bars pass on their way into a panel: counts and examples by kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from pricepix._checks import printable
from pricepix.bars import display
from pricepix.bars.columns import BAR

#: Kinds of faults, which `on_bad` refuses, drops or keeps.
ERRORS: dict[str, str] = {
    "duplicate_time": "an instrument has two rows at one time",
    "high_below_low": "the high is below the low",
    "nonpositive_price": "a price is zero or negative",
    "infinite_price": "a price is infinite",
    "infinite_volume": "the volume is infinite",
    "negative_volume": "the volume is negative",
    "impossible_return": "the total return is below -1 or infinite (CRSP codes of missing: -66 to -99)",
    "bad_factor": "the adjustment factor to be applied is missing, zero, negative or infinite",
}

#: Kinds of findings that are worth knowing and never an error.
NOTES: dict[str, str] = {
    "unsorted_time": "rows came before the row above them and were sorted",
    "missing_bar": "all four prices are missing",
    "partial_bar": "some of the four prices are missing",
    "midpoint_price": "negative prices were taken as bid/ask midpoints",
    "outside_range": "open or close lies outside low to high",
    "float32_input": "prices came as float32: 7 digits, so that up to 1 image in 12 may differ by a pixel",
    "unapplied_factor": "an adjustment factor other than 1 is there and was not applied (adjust=None)",
    "missing_return": "a price has no total return (an instrument's first one apart): labels use the price ratio",
    "before_first_return": "of these, rows before an instrument's first total return, or without any: no label",
    "absent_bar": "an instrument has no row at a time between its first and last at which others have one",
    "thin_time": "rows stand at times at which fewer than half of the instruments then alive have one",
}

# In the order of the bits of `pricepix.bars.kernels`.
BAR_KINDS = (
    "high_below_low", "nonpositive_price", "infinite_price", "infinite_volume", "negative_volume", "missing_bar",
    "partial_bar", "midpoint_price", "outside_range",
)  # fmt: skip


class BadRow(NamedTuple):
    """One row of the input, named in a report, with its original values."""

    instrument: str
    time: str
    open: float
    high: float
    low: float
    close: float
    volume: float

    def __str__(self) -> str:
        values = ", ".join(f"{n} {v:.10g}" for n, v in zip(BAR, self[2:], strict=True))
        return f"{printable(self.instrument, '')} {self.time}: {values}"


@dataclass(frozen=True, repr=False)
class PanelReport:
    """The findings of the checks on entry.

    Attributes
    ----------
    rows, instruments
        Size of the panel.
    counts
        Rows by kind, for every kind of `ERRORS` and `NOTES` that occurred.
    examples
        The first few rows of a kind, where rows can be named.
    dropped
        Bars made missing and duplicate rows left out by ``on_bad="drop_bar"``.
    on_bad
        How errors were to be treated.
    remarks
        Anything else: columns not used, zones replaced.
    """

    rows: int = 0
    instruments: int = 0
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    examples: Mapping[str, tuple[BadRow, ...]] = field(default_factory=lambda: MappingProxyType({}))
    dropped: int = 0
    on_bad: str = "raise"
    remarks: tuple[str, ...] = ()

    @property
    def errors(self) -> dict[str, int]:
        """Counts of the kinds that are errors."""
        return {k: n for k, n in self.counts.items() if k in ERRORS}

    @property
    def notes(self) -> dict[str, int]:
        """Counts of the kinds that are never errors."""
        return {k: n for k, n in self.counts.items() if k in NOTES}

    @property
    def ok(self) -> bool:
        """Whether no error was found."""
        return not self.errors

    def table(self, kinds: Mapping[str, int]) -> str:
        """Return the counts of some kinds with their first rows, one kind a paragraph."""
        lines = []
        for kind, count in kinds.items():
            lines.append(f"  {kind:<18} {count:>12,}  {(ERRORS | NOTES)[kind]}")
            lines += [f"      {row}" for row in self.examples.get(kind, ())]
            more = count - len(self.examples.get(kind, ()))
            if self.examples.get(kind) and more > 0:
                lines.append(f"      and {more:,} more")
        return "\n".join(lines)

    def __repr__(self) -> str:
        found = ", ".join(f"{kind} {count:,}" for kind, count in (*self.errors.items(), *self.notes.items()))
        dropped = f", {self.dropped:,} dropped" if self.dropped else ""
        size = f"{self.rows:,} rows of {self.instruments:,} instruments"
        return f"PanelReport({size}: {found or 'nothing found'}{dropped})"

    def _repr_html_(self) -> str:
        about = f"{self.rows:,} rows of {self.instruments:,} instruments, on_bad={self.on_bad!r}"
        return display.page("PanelReport", about, *self.html_parts())

    def html_parts(self) -> list[str]:
        """Return the findings as parts of a page of `pricepix.bars.display`."""
        found = [
            (kind, "error" if kind in ERRORS else "note", count, (ERRORS | NOTES)[kind])
            for kind, count in (*self.errors.items(), *self.notes.items())
        ]
        if not found:
            return [display.notes(self.remarks), display.text("The checks on entry found nothing.")]
        parts = [display.table(["finding", "", "rows", "what it means"], found, words=(0, 1, 3))]
        if self.dropped:
            parts.append(
                display.notes([f"{self.dropped:,} bars were made missing, or duplicate rows left out"])
            )
        named = [(kind, row) for kind, rows in self.examples.items() for row in rows]
        if named:
            parts.append(
                display.details("First rows", display.table(["finding", "row"], named, words=(0, 1)))
            )
        return [*parts, display.notes(self.remarks)]

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows of {self.instruments:,} instruments, on_bad={self.on_bad!r}"]
        lines += ["errors:", self.table(self.errors)] if self.errors else ["errors: none"]
        if self.dropped:
            lines.append(
                f"  dropped            {self.dropped:>12,}  bars made missing or duplicate rows left out"
            )
        lines += ["notes:", self.table(self.notes)] if self.notes else ["notes: none"]
        lines += [f"  {printable(remark)}" for remark in self.remarks]
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"counts": dict(self.counts), "examples": dict(self.examples)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        proxied = {k: MappingProxyType(state[k]) for k in ("counts", "examples")}
        self.__dict__.update(state | proxied)
