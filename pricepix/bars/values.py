"""Columns of values in: numbers, text and flags of any kind to blocks of float64 and bool."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from pricepix.bars.columns import BAR, BOOL_FIELDS, FIELDS
from pricepix.bars.remote import within
from pricepix.bars.tables import Part, reworded

BLOCK = 1 << 17
"""Rows that are read at a time."""
#: Text that stands for a missing number.
NULLS = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None", "none", ".")
_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0")


def _bad_value(part: Part, name: str, value: Any, row: int, count: int, hint: str = "") -> ValueError:
    return ValueError(
        f"column {part.names[name]!r} of {part.origin}, taken as {name}: {value!r} in row {row} (counting from 0) "
        f"is not a {'number' if name not in BOOL_FIELDS else 'yes or no'}; {count} such rows{hint}"
    )


def _bad_type(part: Part, name: str, dtype: Any, expected: str) -> ValueError:
    return ValueError(
        f"column {part.names[name]!r} of {part.origin}, taken as {name}, is of type {dtype}: expected {expected}"
    )


def _numbers(series: pl.Series, part: Part, name: str, nulls: Sequence[str]) -> pl.Series:
    """Return text as float64; ValueError naming the first value that is not a number."""
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        raise _bad_type(part, name, series.dtype, "numbers")
    text = series.str.strip_chars()
    text = text.set(text.is_in(list(nulls)), None)
    out = text.cast(pl.Float64, strict=False)
    bad = out.is_null() & text.is_not_null()
    if bad.any():
        at, wrong = int(bad.arg_true()[0]), text.filter(bad)
        hint = _number_hint(wrong, part.names[name])
        if not hint and len(wrong) == text.count() and wrong.n_unique() > 1:
            hint = (
                "; no value is one: strip what is not a number, or name another column: "
                f"columns={{{name!r}: ...}}"
            )
        hint = hint or f"; if it marks a missing value: null_values=[{text[at]!r}]"
        raise _bad_value(part, name, series[at], at, int(bad.sum()), hint)
    return out


def _number_hint(bad: pl.Series, column: str) -> str:
    """Return how to convert text with a currency sign, a percent sign or commas to numbers, or nothing."""
    sign = re.sub(r"[-+\s\d.,]", "", bad[0])
    # No other letters: 1.5k is not 1.5.
    if sign != "%" and not re.fullmatch("[A-Z]{3}", sign) and "Sc" not in map(unicodedata.category, sign):
        sign = ""
    steps, rest = f"pl.col({column!r})", bad
    if sign:
        steps += f".str.replace({sign!r}, '', literal=True).str.strip_chars()"
        rest = rest.str.replace(sign, "", literal=True).str.strip_chars()
    if rest.str.contains(",", literal=True).any():
        thousands = rest.str.contains(r"^[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?$").all()
        decimals = rest.str.contains(r"^[-+]?\d*(,\d+)?$").all()
        if thousands and decimals:
            return (
                f"; convert the column before it is read, {steps}.str.replace_all(',', '').cast(pl.Float64) where "
                "commas group thousands, .str.replace(',', '.') where they are decimal points"
            )
        steps += ".str.replace_all(',', '')" if thousands else ".str.replace(',', '.')"
        rest = rest.str.replace_all(",", "") if thousands else rest.str.replace(",", ".")
    if rest is bad or rest.cast(pl.Float64, strict=False).null_count():
        return ""
    reason = f"they carry {sign!r}: " if sign else ""
    percent = " / 100" if sign == "%" else ""
    return f"; {reason}convert the column before it is read, {steps}.cast(pl.Float64){percent}"


def _flags(series: pl.Series, part: Part, name: str) -> pl.Series:
    """Return a column as booleans, missing ones False; ValueError naming the first value that is neither."""
    if series.dtype == pl.Boolean:
        return series.fill_null(False)
    hint = ""
    if series.dtype.is_numeric():
        number = series.cast(pl.Float64).fill_nan(None)
        bad = (number != 0) & (number != 1)
        out = number == 1
        if name.endswith("limit"):
            hint = "; a limit price is not a flag: pass (close - limit).abs() < 1e-4"
    elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
        text = series.cast(pl.String).str.strip_chars().str.to_lowercase()
        text = text.set(text.is_in([n.lower() for n in NULLS]), None)
        out = text.is_in(_TRUE)
        bad = ~text.is_in([*_TRUE, *_FALSE])
    else:
        raise _bad_type(part, name, series.dtype, "true and false")
    bad = bad.fill_null(False)
    if bad.any():
        at = int(bad.arg_true()[0])
        raise _bad_value(part, name, series[at], at, int(bad.sum()), hint)
    return out.fill_null(False)


def locked(array: np.ndarray) -> np.ndarray:
    """Return a read-only view: kernels are compiled for one kind of array, and panels cannot change."""
    view = array.view()
    view.flags.writeable = False
    return view


def prepare_values(parts: list[Part], null_values: Sequence[str]) -> list[str]:
    """Make every value column in memory numeric (or boolean), and return the fields that any part has."""
    nulls = (*NULLS, *null_values)
    for part in parts:
        for name, column in part.names.items():
            values = part.columns.get(name)
            if values is None or name in ("instrument", "time"):
                continue
            array = isinstance(values, np.ndarray)
            if name in BOOL_FIELDS:
                if not array:
                    part.columns[name] = _flags(values, part, name)
                elif values.dtype.kind != "b":
                    part.columns[name] = _flags(pl.Series(values), part, name).to_numpy()
                continue
            if array and values.dtype.kind not in "fiu":
                raise _bad_type(part, name, values.dtype, "numbers")
            if not array and not values.dtype.is_numeric():
                part.columns[name] = _numbers(values, part, name, nulls)
            elif name in BAR and values.dtype == (np.float32 if array else pl.Float32):
                part.float32.append(column)
    return [name for name in FIELDS if any(name in part.names for part in parts)]


def _block(values: Any, a: int, b: int, flags: bool) -> np.ndarray:
    """Rows a:b of a column as a read-only contiguous float64 (or bool) array, missing as NaN (or False)."""
    if isinstance(values, np.ndarray):
        out = np.ascontiguousarray(values[a:b], dtype=np.bool_ if flags else np.float64)
    else:
        part = values.slice(a, b - a)
        out = part.fill_null(False).to_numpy() if flags else part.cast(pl.Float64).to_numpy()
        out = np.ascontiguousarray(out)
    return locked(out)


def blocks(parts: list[Part], fields: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray | None]]]:
    """Yield (first row, columns by our names) in the order of the rows; None for a column that is absent."""
    row = 0
    for part in parts:
        if part.rows == 0:
            continue
        names = [n for n in (*BAR, *fields) if n in part.names]
        absent: dict[str, np.ndarray | None] = {n: None for n in (*BAR, *fields) if n not in part.names}
        for columns, rows in _batches(part, names):
            for a in range(0, rows, BLOCK):
                b = min(a + BLOCK, rows)
                yield row + a, absent | {n: _block(columns[n], a, b, n in BOOL_FIELDS) for n in names}
            row += rows
        part.columns.clear()


def _batches(part: Part, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield columns by our names with their number of rows: those in memory at once, others as they are read."""
    if part.scan is None:
        yield part.columns, part.rows
        return
    rows = 0
    select = part.scan.select(list(dict.fromkeys(part.names[n] for n in names)))
    batches = iter(select.collect_batches(chunk_size=BLOCK, maintain_order=True))
    while True:
        with reworded(part.origin):
            batch = within(part.seconds, part.origin, lambda: next(batches, None))
        if batch is None:
            break
        yield {n: batch.get_column(part.names[n]) for n in names}, batch.height
        rows += batch.height
    if rows != part.rows:
        raise OSError(f"{part.origin} changed while it was read: {part.rows} rows first, {rows} then")
