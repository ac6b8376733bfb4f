"""A factor cache as files of other libraries' formats, written whole or not at all."""

from __future__ import annotations

import io
import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pricepix._checks import choice
from pricepix.bars.times import as_time
from pricepix.factor.cache import CacheLike, FactorCache, long_table, open_cache
from pricepix.factor.exports import Cube, csv_bytes, to_image_trading
from pricepix.location import Location, atomic_file
from pricepix.windows.labels import NO_TIME

__all__ = ["FORMATS", "export", "qlib_name"]

FORMATS: Final = ("parquet", "csv", "qlib", "alphalens", "image_trading")
_SUFFIXES: Final = (".parquet", ".csv")
_TIMES: Final = ("time", "datetime", "date")
_FILE: Final = "factor.parquet"
# The exchanges of Chinese stocks, as other vendors write them, and as Qlib does.
_EXCHANGES: Final = {"SH": "SH", "XSHG": "SH", "SS": "SH", "SZ": "SZ", "XSHE": "SZ", "BJ": "BJ", "XBSE": "BJ"}
_SIX_DIGITS: Final = re.compile(r"(?:([A-Za-z]{2})[.]?)?(\d{6})(?:[.]([A-Za-z]{2,4}))?")
_BY_DIGIT: Final = {
    "6": "SH",
    "9": "SH",
    "5": "SH",
    "0": "SZ",
    "3": "SZ",
    "1": "SZ",
    "2": "SZ",
    "4": "BJ",
    "8": "BJ",
}


def export(
    cache: FactorCache | CacheLike,
    out: str | PathLike[str],
    *,
    format: str | None = None,
    start: Any = None,
    end: Any = None,
    as_of: Any = None,
    last: int | None = None,
    partition: bool = False,
) -> Path | str:
    """Write the values of a factor cache for other programs.

    A file is written beside its place and renamed, an object of a bucket is put at once, so that no reader finds half
    of it.

    Parameters
    ----------
    cache : FactorCache, str or path
    out : str or path
        A file, or the URL of an object such as ``s3://bucket/factor.parquet``, that ends in ``.parquet`` or ``.csv``;
        with `partition`, and for ``image_trading``, a folder.
    format : {"parquet", "csv", "qlib", "alphalens", "image_trading"}, optional
        Which columns: ``parquet`` and ``csv``, the default by the name of the file, have instrument, time, factor and,
        where kept, spread; ``qlib`` has datetime, instrument (``SH600000``) and score; ``alphalens`` has date, asset
        and factor. ``image_trading`` is the raw file and the index that ImageTrading's ``testing.py`` writes, in a
        folder: see ``FactorCache.to_image_trading``.
    start, end : str, date or datetime, optional
        First and last time of the values, both included.
    as_of : str, date or datetime, optional
        Write the factor as it was known then: see ``FactorCache.as_of``.
    last : int, optional
        Only so many of the newest times.
    partition : bool
        Write a file a day, ``date=2024-03-08/factor.parquet``, as Hive, polars, DuckDB and Spark read them. Files of
        days within `start` and `end` that have no values any more are removed; others stay.

    Returns
    -------
    pathlib.Path or str
        `out`: a path, or the URL.

    Raises
    ------
    ValueError
        A name with another suffix; a format that is not known.
    """
    where, name, kind = _place(out, partition or format == "image_trading")
    format = choice(format or (kind.removeprefix(".") or "parquet"), "format", FORMATS)
    if not isinstance(cache, FactorCache):
        cache = open_cache(cache)
    if as_of is not None:
        cache = cache.as_of(as_of)
    first = None if start is None else as_time(start, cache.tz)
    until = None if end is None else as_time(end, cache.tz, end=True)
    if format == "image_trading":
        return _write_image_trading(cache, where, first, until, last)
    if last is not None:
        first = _newest(cache, first, until, last)
    table = long_table(cache, first, until)
    table = table.sort("time", "instrument")
    if partition:
        limits = [
            None if end is None else str(_day(end, cache.tz)),
            None if start is None else str(_day(start, cache.tz)),
        ]
        _write_days(table, where, format, limits[1], limits[0], whole=last is None)
    else:
        _put(where, name, _encoded(_columns(table, format), kind))
    return Path(out) if where.path is not None else fspath(out)


def _newest(cache: FactorCache, first: int | None, until: int | None, count: int) -> int | None:
    """Return the time of the `count`-th newest bar with a value, looking at no more days than it takes."""
    days = len(cache.days)
    for held in (2 * count, days):
        begin = cache.time[max(0, days - held) :]
        known = begin[begin != NO_TIME]
        start = int(known.min()) if held < days and len(known) else first
        if first is not None and start is not None:
            start = max(start, first)
        time = cache.matrix(first=start, last=until)[0]
        if len(time) >= count:
            return int(time[-count])
    return first


def _place(out: str | PathLike[str], folder: bool) -> tuple[Location, str, str]:
    """Return the folder or the prefix of an export, the name of its file there, and the suffix of that."""
    text = fspath(out)
    kind = Path(text).suffix.lower()
    if folder:
        if kind in _SUFFIXES:
            raise ValueError(f"{text}: this export is a folder; give a name without {kind}")
        return Location.of(out), "", ""
    if kind not in _SUFFIXES:
        raise ValueError(f"{text}: end the name in .parquet or .csv, or pass partition=True for a file a day")
    if "://" not in text:
        return Location.of(Path(text).parent), Path(text).name, kind
    above, _, name = text.rpartition("/")
    return Location.of(above), name, kind


def _put(where: Location, name: str, content: bytes) -> None:
    """Write an object at once, a file beside its place and renamed."""
    if where.path is None:
        where.put(name, content)
        return
    path = where.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def _write_image_trading(
    cache: FactorCache, where: Location, first: int | None, until: int | None, last: int | None
) -> Path:
    """Write ImageTrading's files of the days that have a bar within the limits."""
    if where.path is None:
        raise ValueError(f"{where.name}: image_trading writes a folder of this machine; give a path")
    wanted = cache.time != NO_TIME
    wanted &= (first is None) | (cache.time >= (first or 0))
    wanted &= (until is None) | (cache.time <= (until or 0))
    if last is not None and wanted.any():
        wanted &= cache.time >= np.unique(cache.time[wanted])[-last:][0]
    days = np.flatnonzero(wanted.any(axis=1))
    chosen = slice(int(days[0]), int(days[-1]) + 1) if len(days) else slice(0, 0)
    values = np.asarray(cache.factor[chosen], np.float32)
    values[~np.broadcast_to(wanted[chosen, None, :], values.shape)] = np.nan
    cube = Cube(values, cache.days[chosen], cache.instruments, cache.intervals, cache.shift)
    return to_image_trading(cube, where.path)


def qlib_name(name: str) -> str:
    """Return an instrument's name as Qlib writes it: ``SH600000`` for ``600000.SH``, ``600000.XSHG`` or ``600000``.

    Names that are no six digits of a Chinese exchange stay.
    """
    match = _SIX_DIGITS.fullmatch(name)
    if match is None:
        return name
    given = (match[1] or match[3] or "").upper()
    exchange = _EXCHANGES.get(given) if given else _BY_DIGIT.get(match[2][0])
    return f"{exchange}{match[2]}" if exchange else name


def _columns(table: pl.DataFrame, format: str) -> pl.DataFrame:
    zone = getattr(table.schema["time"], "time_zone", None)
    if format == "qlib":
        # Qlib's times are the market's wall clock.
        time = pl.col("time").dt.replace_time_zone(None) if zone else pl.col("time")
        names = table["instrument"].unique()
        named = pl.col("instrument").replace(names, names.map_elements(qlib_name, return_dtype=pl.String))
        return table.select(time.alias("datetime"), named, pl.col("factor").alias("score"))
    if format == "alphalens":
        return table.select(pl.col("time").alias("date"), pl.col("instrument").alias("asset"), "factor")
    return table


def _encoded(table: pl.DataFrame, kind: str) -> bytes:
    if kind == ".csv":
        return csv_bytes(table, time=next(name for name in _TIMES if name in table.columns))
    content = io.BytesIO()
    table.write_parquet(content)
    return content.getvalue()


def _day(value: Any, tz: str | None) -> Any:
    ns = as_time(value, tz)
    column = pl.Series([ns]).cast(pl.Datetime("ns"))
    if tz is not None:
        column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(tz)
    return column.dt.date()[0]


def _write_days(
    table: pl.DataFrame, where: Location, format: str, first: str | None, last: str | None, *, whole: bool
) -> None:
    """Write a file a day, and remove those of days that have no values any more."""
    written = set()
    for (day,), part in table.group_by(pl.col("time").dt.date().alias("day"), maintain_order=True):
        name = f"date={day}"
        _put(where, f"{name}/{_FILE}", _encoded(_columns(part.drop("day", strict=False), format), ".parquet"))
        written.add(name)
    if not whole:
        return
    for key in sorted(where.list()):
        name, _, file = key.partition("/")
        day = name.removeprefix("date=")
        if (
            file != _FILE
            or day == name
            or name in written
            or (first and day < first)
            or (last and day > last)
        ):
            continue
        where.delete(key)
        folder = None if where.path is None else where.path / name
        if folder is not None and not any(folder.iterdir()):
            folder.rmdir()
