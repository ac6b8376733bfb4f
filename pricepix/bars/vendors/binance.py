"""Binance's klines: files of data.binance.vision, with or without a header, as CSV or in a zip."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

import polars as pl

from pricepix.bars.vendors.numbers import as_float, as_int, utc_times

__all__ = ["COLUMNS", "NAMES", "is_headless", "read_klines"]

NAMES: Final = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count", "taker_buy_volume",
    "taker_buy_quote_volume", "ignore",
)  # fmt: skip
"""Columns of a kline; files of spot markets have no header."""
COLUMNS: Final = {"open_time", "close_time", "taker_buy_quote_volume"}
_FILE: Final = re.compile(r"^([^-]+)-(?:\d+(?:s|m|h|d|w|mo)|M)-", re.IGNORECASE)
_MICROSECONDS: Final = 10**14
"""Times of spot files count microseconds since 2025; in milliseconds this is the year 5138."""


def is_headless(line: list[str]) -> bool:
    """Whether the first line of a file is a kline: twelve values, the first a time, the others numbers."""
    if len(line) != len(NAMES) or not re.fullmatch(r"\d{13}|\d{16}", line[0].strip()):
        return False
    return all(re.fullmatch(r"[0-9.eE+-]+", value.strip()) for value in line)


def read_klines(table: pl.DataFrame, path: str) -> pl.DataFrame:
    """Return klines as bars, named by what stands before the interval in the file's name: ``BTCUSDT-1m-2024-01.csv``.

    The time of a bar is its ``open_time``.
    """
    ticks = as_int(table["open_time"], path)
    late = (ticks >= _MICROSECONDS).fill_null(False)
    if late.any() and not late.all():
        raise ValueError(
            f"{path}: some times count milliseconds and some microseconds; give files of one kind at a time"
        )
    times = utc_times(ticks, "us" if late.any() else "ms", path)
    prices = {name: as_float(table[name], path) for name in ("open", "high", "low", "close", "volume")}
    name = PurePath(path.replace("\\", "/")).name
    match = _FILE.match(name)
    symbol = match[1] if match else name.partition(".")[0]
    return pl.DataFrame({"instrument": pl.repeat(symbol, len(times), eager=True), "time": times, **prices})
