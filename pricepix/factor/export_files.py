"""A factor cache as files of other libraries' formats, written whole or not at all."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any, Final

import polars as pl

from pricepix._checks import choice
from pricepix.bars.times import as_time
from pricepix.factor.cache import CacheLike, FactorCache, long_table, open_cache
from pricepix.factor.exports import write_csv
from pricepix.location import atomic_file

__all__ = ["FORMATS", "export", "qlib_name"]

FORMATS: Final = ("parquet", "csv", "qlib", "alphalens")
_SUFFIXES: Final = (".parquet", ".csv")
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
) -> Path:
    """Write the values of a factor cache for other programs.

    A file is written beside its place and renamed, so that no reader finds half of it.

    Parameters
    ----------
    cache : FactorCache, str or path
    out : str or path
        A file that ends in ``.parquet`` or ``.csv``; with `partition` a folder.
    format : {"parquet", "csv", "qlib", "alphalens"}, optional
        Which columns: ``parquet`` and ``csv``, the default by the name of the file, have instrument, time, factor and,
        where kept, spread; ``qlib`` has datetime, instrument (``SH600000``) and score; ``alphalens`` has date, asset
        and factor.
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
    pathlib.Path
        `out`.

    Raises
    ------
    ValueError
        A name with another suffix; a format that is not known.
    """
    out = Path(out)
    kind = out.suffix.lower()
    if partition:
        if kind in _SUFFIXES:
            raise ValueError(f"{out}: with partition it is a folder; give a name without {kind}")
    elif kind not in _SUFFIXES:
        raise ValueError(f"{out}: end the name in .parquet or .csv, or pass partition=True for a file a day")
    format = choice(format or (kind.removeprefix(".") or "parquet"), "format", FORMATS)
    if not isinstance(cache, FactorCache):
        cache = open_cache(cache)
    if as_of is not None:
        cache = cache.as_of(as_of)
    table = long_table(cache)
    ticks = table["time"].to_physical()
    kept = pl.repeat(True, len(table), eager=True)
    if start is not None:
        kept &= ticks >= as_time(start, cache.tz)
    if end is not None:
        kept &= ticks <= as_time(end, cache.tz, end=True)
    table = table.filter(kept)
    if last is not None:
        newest = table["time"].unique().sort().tail(last)
        table = table.filter(pl.col("time").is_in(newest.implode()))
    table = table.sort("time", "instrument")
    out.parent.mkdir(parents=True, exist_ok=True)
    if partition:
        limits = [
            None if end is None else str(_day(end, cache.tz)),
            None if start is None else str(_day(start, cache.tz)),
        ]
        _write_days(table, out, format, limits[1], limits[0], whole=last is None)
    else:
        with atomic_file(out) as partial:
            _write(_columns(table, format), partial, kind)
    return out


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


def _write(table: pl.DataFrame, path: Path, kind: str) -> None:
    if kind != ".csv":
        table.write_parquet(path)
        return
    time = next(name for name in ("time", "datetime", "date") if name in table.columns)
    write_csv(table.rename({time: "time"}), path)
    if time != "time":
        head, _, rest = path.read_text(encoding="utf-8").partition("\n")
        names = [time if name == "time" else name for name in head.split(",")]
        path.write_text(f"{','.join(names)}\n{rest}", encoding="utf-8")


def _day(value: Any, tz: str | None) -> Any:
    ns = as_time(value, tz)
    column = pl.Series([ns]).cast(pl.Datetime("ns"))
    if tz is not None:
        column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(tz)
    return column.dt.date()[0]


def _write_days(
    table: pl.DataFrame, folder: Path, format: str, first: str | None, last: str | None, *, whole: bool
) -> None:
    """Write a file a day, and remove those of days that have no values any more."""
    written = set()
    for (day,), part in table.group_by(pl.col("time").dt.date().alias("day"), maintain_order=True):
        name = f"date={day}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / name / "factor.parquet") as partial:
            _columns(part.drop("day", strict=False), format).write_parquet(partial)
        written.add(name)
    if not whole:
        return
    for path in sorted(folder.glob("date=*")):
        day = path.name.removeprefix("date=")
        if path.name in written or (first and day < first) or (last and day > last):
            continue
        (path / "factor.parquet").unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()
