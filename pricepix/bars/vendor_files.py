"""Files in a vendor's own shape: told by their first line, read as text, and made tables of bars."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Final

import polars as pl

from pricepix._checks import short
from pricepix.bars.vendors import binance, databento, lean, polygon, stooq

__all__ = ["Reader", "read_csv", "read_zip", "reader_of"]

Reader = Callable[[pl.DataFrame, str], pl.DataFrame]
"""Makes bars of a file's columns of text and its path."""

_BY_COLUMNS: Final[tuple[tuple[set[str], Reader], ...]] = (
    (binance.COLUMNS, binance.read_klines),
    (databento.COLUMNS, databento.read_ohlcv),
    (polygon.COLUMNS, polygon.read_flat_file),
    (stooq.COLUMNS, stooq.read_bulk),
)
_SMALL_BYTES: Final = 64 << 20
_MAX_RATIO: Final = 100
_MOST_BYTES: Final = 4 << 30


def reader_of(columns: Sequence[str]) -> Reader | None:
    """Return what reads a CSV file with these columns; None if it is a plain table."""
    names = set(columns)
    return next((reader for known, reader in _BY_COLUMNS if known <= names), None)


def read_csv(path: str, reader: Reader, separator: str) -> pl.DataFrame:
    """Read a CSV file of a vendor; without a separator it is one of Binance's without a header."""
    if separator:
        table = pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
    else:
        table = pl.read_csv(
            path, has_header=False, new_columns=list(binance.NAMES), infer_schema=False, glob=False
        )
    return reader(table, path)


def read_zip(path: str) -> pl.DataFrame:
    """Read a zip that holds one CSV file of Binance's or Lean's.

    Raises
    ------
    ValueError
        No zip, none or several files in it, one that expands beyond 100 times its size, or bars of another shape.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            members = [m for m in packed.infolist() if not m.is_dir()]
            if len(members) != 1:
                raise ValueError(
                    f"{path}: holds {len(members):,} files; expected a zip of one CSV file of bars"
                )
            member = members[0]
            limit = min(max(_SMALL_BYTES, _MAX_RATIO * member.compress_size), _MOST_BYTES)
            with packed.open(member) as file:
                content = file.read(limit + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        # RuntimeError: encrypted.
        raise ValueError(f"{path}: not a readable zip file: {error}") from error
    if len(content) > limit:
        raise ValueError(
            f"{path}: {short(member.filename)} expands beyond the {limit:,} bytes that a table in a zip of this size "
            "may take: unpack it first if it is sound"
        )
    return _of_bytes(content, path, member.filename)


def _of_bytes(content: bytes, path: str, member: str) -> pl.DataFrame:
    try:
        head = content[: 1 << 16].decode("utf-8-sig").partition("\n")[0].strip()
        line = next(csv.reader([head]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {short(member)} is not a CSV file: {error}") from error
    if set(line) >= binance.COLUMNS:
        return binance.read_klines(pl.read_csv(io.BytesIO(content), infer_schema=False), member)
    if binance.is_headless(line):
        table = pl.read_csv(
            io.BytesIO(content), has_header=False, new_columns=list(binance.NAMES), infer_schema=False
        )
        return binance.read_klines(table, member)
    if lean.is_trades(line):
        return lean.read_trades(
            pl.read_csv(io.BytesIO(content), has_header=False, infer_schema=False), path, member
        )
    raise ValueError(
        f"{path}: {short(member)} begins with {short(head)}, which is a bar neither of Binance's nor of Lean's: unpack "
        "the zip and give its CSV file"
    )
