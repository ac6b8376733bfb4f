"""A vendor's table in our names, with what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from pricepix._checks import printable
from pricepix.bars.panel import Panel
from pricepix.bars.tables import reworded, scan_table

__all__ = ["PreparedBars", "VendorTable", "code_list"]

_BLANKS = ("", ".", "NaN", "nan", "NA", "null")


@dataclass(frozen=True)
class PreparedBars:
    """Bars of a vendor as a table that ``Panel.from_table`` takes."""

    table: pl.LazyFrame
    """Columns by our names."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``Panel.from_table`` that the vendor's conventions ask for, such as ``negative_prices``."""
    remarks: tuple[str, ...] = ()
    """What was decided, with its counts; they stand in the panel's report."""
    origin: str = "the table"

    def panel(self, **options: Any) -> Panel:
        """Return the checked panel; `options` are those of ``Panel.from_table`` and take precedence."""
        with reworded(self.origin):
            found = Panel.from_table(self.table, **{**self.options, **options})
        report = replace(found.report, remarks=(*self.remarks, *found.report.remarks))
        parts = (found.bars, found.offsets, found.instruments, found.time, found.tz, dict(found.fields))
        return Panel(*parts, report)


class VendorTable:
    """The columns of a vendor's table, found by name whatever their case."""

    def __init__(self, source: Any, kind: str) -> None:
        self.frame, self.origin = scan_table(source)
        self.kind = kind
        with reworded(self.origin):
            self.schema = dict(self.frame.collect_schema())
        self.names: dict[str, str] = {}
        for name in self.schema:
            if name.strip().casefold() in self.names:
                raise ValueError(f"{self.origin}: more than one column is named {name!r}, whatever its case")
            self.names[name.strip().casefold()] = name

    def __contains__(self, name: str) -> bool:
        return name.casefold() in self.names

    def require(self, *names: str) -> None:
        """Raise ValueError naming all columns that are missing."""
        if missing := [name for name in names if name not in self]:
            found = ", ".join(repr(printable(name)) for name in list(self.names.values())[:40])
            raise ValueError(
                f"{self.origin} is not {self.kind}: it has no column {', '.join(missing)}. Columns found: {found}"
            )

    def column(self, name: str) -> pl.Expr:
        """Return a column by the vendor's name; one that is not there is null throughout."""
        return pl.col(self.names[name.casefold()]) if name in self else pl.lit(None)

    def text(self, name: str) -> pl.Expr:
        """Return a column as text without blanks around it, empty text as null."""
        text = self.column(name).cast(pl.String).str.strip_chars()
        return pl.when(text != "").then(text)

    def number(self, name: str, missing: Iterable[str] = ()) -> pl.Expr:
        """Return a column as float64; blanks and the codes `missing` are null, other text is an error."""
        if name not in self:
            return pl.lit(None, pl.Float64)
        if self.schema[self.names[name.casefold()]].is_numeric():
            return self.column(name).cast(pl.Float64).fill_nan(None)
        text = self.text(name)
        return pl.when(~text.is_in([*_BLANKS, *missing])).then(text).cast(pl.Float64)

    def price(self, name: str) -> pl.Expr:
        """Return a column as prices: 0 is null."""
        value = self.number(name)
        return pl.when(value != 0).then(value)

    def date(self, name: str) -> pl.Expr:
        """Return a column of dates, of text such as 2020-01-31, 20200131 or 2020/1/31, or of numbers 20200131."""
        dtype = self.schema[self.names[name.casefold()]]
        if dtype == pl.Date:
            return self.column(name)
        if isinstance(dtype, pl.Datetime):
            return self.column(name).dt.date()
        text = self.column(name).cast(pl.Int64).cast(pl.String) if dtype.is_numeric() else self.text(name)
        text = text.str.replace_all("/", "-", literal=True)
        forms = [text.str.to_date(form, strict=False) for form in ("%Y-%m-%d", "%Y%m%d")]
        # What is no date is an error of the second form.
        return pl.when(forms[0].is_null()).then(text).str.to_date("%Y%m%d").fill_null(forms[0])


def code_list(given: Any, name: str) -> list[int] | None:
    """Return codes as whole numbers, None for no choice."""
    if given is None:
        return None
    if isinstance(given, str) or not all(hasattr(code, "__index__") for code in given):
        raise TypeError(f"{name}={given!r}: give whole numbers, such as (10, 11), or None for all")
    return [int(code) for code in given]
