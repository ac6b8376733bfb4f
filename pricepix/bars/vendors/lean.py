"""Lean's zips: trades of one symbol, prices of equities in ten-thousandths, times without a zone."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

import polars as pl

from pricepix.bars.vendors.numbers import as_float, as_int

__all__ = ["is_trades", "read_trades"]

_SCALE: Final = 10_000.0
_SCALED: Final = {"equity", "option", "indexoption"}
_UNSCALED: Final = {"crypto", "cryptofuture", "forex", "cfd", "future", "index"}
_MINUTE: Final = re.compile(r"^(\d{8})_(.+?)_(minute|second|tick)_(trade|quote)", re.IGNORECASE)
_NAMES: Final = ("open", "high", "low", "close", "volume")


def is_trades(line: list[str]) -> bool:
    """Whether the first line of the file in a zip is a bar of Lean's: a time or milliseconds, and five numbers."""
    if len(line) != 6:
        return False
    time = r"\d{8}( \d{2}:\d{2})?|\d{1,8}"
    return bool(re.fullmatch(time, line[0].strip())) and all(
        re.fullmatch(r"[0-9.eE+-]+", value.strip()) for value in line[1:]
    )


def read_trades(table: pl.DataFrame, path: str, member: str) -> pl.DataFrame:
    """Return the rows of a file as bars.

    Parameters
    ----------
    table : polars.DataFrame
        Six columns of text.
    path : str
        Of the zip. A folder on the way, ``equity`` or ``crypto``, says whether prices are ten-thousandths, and the
        file's stem is the symbol of daily and hourly bars.
    member : str
        Name of the file in the zip: ``20240102_spy_minute_trade.csv`` says the day and the symbol of minutes.

    Returns
    -------
    polars.DataFrame
        instrument, time (wall clock of the market: the start of a bar), open, high, low, close, volume.
    """
    folders = {part.lower() for part in PurePath(path.replace("\\", "/")).parts[:-1]}
    scaled, unscaled = bool(folders & _SCALED), bool(folders & _UNSCALED)
    whole = all(not table[name].str.contains(".", literal=True).any() for name in table.columns[1:5])
    if scaled == unscaled and whole:
        raise ValueError(
            f"{path}: no folder on the way to it is called equity, crypto, forex or future, so that it is not known "
            "whether its prices are ten-thousandths: keep Lean's folders"
        )
    scale = _SCALE if scaled and not unscaled else 1.0
    match = _MINUTE.match(PurePath(member).name)
    stem = PurePath(path.replace("\\", "/")).name.rpartition(".")[0]
    first = table.columns[0]
    if match:
        if match[4].lower() == "quote":
            raise ValueError(
                f"{path}: holds quotes; pricepix reads trades: give the files that end in _trade.zip"
            )
        symbol = match[2]
        times = _from_midnight(match[1], table[first], path)
    else:
        symbol = re.sub(r"_trade$", "", stem)
        times = _stamps(table[first].str.strip_chars(), path)
    values = {
        name: as_float(table[column].rename(name), path) / (scale if name != "volume" else 1.0)
        for name, column in zip(_NAMES, table.columns[1:], strict=True)
    }
    return pl.DataFrame(
        {"instrument": pl.repeat(symbol.upper(), len(table), eager=True), "time": times, **values}
    )


def _from_midnight(day: str, ticks: pl.Series, path: str) -> pl.Series:
    milliseconds = as_int(ticks, path)
    if milliseconds.null_count() or not ((milliseconds >= 0) & (milliseconds < 86_400_000)).all():
        raise ValueError(f"{path}: a time is not in the milliseconds of a day")
    midnight = pl.Series([day]).str.to_datetime("%Y%m%d", time_unit="ms", strict=False)
    if midnight.null_count():
        raise ValueError(f"{path}: {day} in the file's name is not a day")
    return (midnight.dt.epoch("ms")[0] + milliseconds).cast(pl.Datetime("ms")).rename("time")


def _stamps(text: pl.Series, path: str) -> pl.Series:
    try:
        if text.str.contains(" ", literal=True).any():
            times = text.str.to_datetime("%Y%m%d %H:%M", time_unit="ms")
        else:
            return text.str.to_date("%Y%m%d").rename("time")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: a time is not of the form 20240131 00:00") from error
    if (times == times.dt.truncate("1d")).all():
        return times.dt.date().rename("time")
    return times.rename("time")
