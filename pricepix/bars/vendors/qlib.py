"""Qlib's binary folder: ``calendars/day.txt``, ``instruments/all.txt`` and ``features/<symbol>/close.day.bin``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pricepix._checks import short

__all__ = ["is_folder", "read_folder"]

_FIELDS: Final = {"open": "open", "high": "high", "low": "low", "close": "close", "volume": "volume"}
_MOST_BYTES: Final = 1 << 30
"""A feature of an instrument holds 4 bytes a bar: this is 268 million bars."""


def is_folder(path: Any) -> bool:
    """Whether a path is a data folder of Qlib."""
    folder = Path(str(path)).expanduser()
    return (folder / "calendars").is_dir() and (folder / "features").is_dir()


def read_folder(path: Any, freq: str | None = None) -> pl.DataFrame:
    """Read all instruments of a folder.

    Prices stand as Qlib keeps them: adjusted by the feature ``factor``, volumes divided by it; float32.

    Parameters
    ----------
    path : path
    freq : str, optional
        ``"day"`` or ``"1min"``; by default the only one that the folder has.

    Returns
    -------
    polars.DataFrame
        instrument, time, open, high, low, close, volume (float32).

    Raises
    ------
    ValueError
        Several frequencies, no bars, or a file that does not fit the calendar.
    """
    folder = Path(str(path)).expanduser()
    found = sorted(p.stem for p in (folder / "calendars").glob("*.txt") if not p.stem.endswith("_future"))
    if freq is None:
        if len(found) != 1:
            listed = ", ".join(found) or "none"
            raise ValueError(
                f"{folder}: calendars of {listed}: choose one, with pricepix.bars.vendors.qlib.read_folder(path, "
                "freq=...), whose frame Panel.from_table takes"
            )
        freq = found[0]
    elif freq not in found:
        raise ValueError(f"{folder}: no calendar of freq={freq!r}; there are {', '.join(found) or 'none'}")
    calendar = _read_calendar(folder / "calendars" / f"{freq}.txt")
    names = _names(folder)
    parts = []
    for own in sorted(p for p in (folder / "features").iterdir() if p.is_dir()):
        if not (own / f"close.{freq}.bin").is_file():
            continue
        first, columns = _read_features(own, freq, len(calendar))
        n = len(columns["close"])
        times = calendar[first : first + n]
        table = pl.DataFrame({"time": times, **columns})
        bars = table.filter(pl.any_horizontal(pl.col(c).is_not_nan() for c in columns))
        name = pl.lit(names.get(own.name.lower(), own.name.upper())).alias("instrument")
        parts.append(bars.select(name, pl.all()))
    if not parts:
        raise ValueError(f"{folder}: no instrument has a file close.{freq}.bin in features/")
    return pl.concat(parts)


def _read_calendar(path: Path) -> pl.Series:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    text = pl.Series("time", lines, dtype=pl.String)
    try:
        if all(len(line) == 10 for line in lines):
            return text.str.to_date("%Y-%m-%d")
        return text.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ns")
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{path}: a line is not a time of the form 2020-01-02 or 2020-01-02 09:31:00"
        ) from error


def _names(folder: Path) -> dict[str, str]:
    """Return the names of instruments as they are written, by the names of their folders."""
    path = folder / "instruments" / "all.txt"
    if not path.is_file():
        return {}
    names = (line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name.lower(): name for name in names if name}


def _read_features(own: Path, freq: str, bars: int) -> tuple[int, dict[str, np.ndarray]]:
    """Return the place of the first bar in the calendar, and the columns, all from there on."""
    found: dict[str, tuple[int, np.ndarray]] = {}
    for ours, theirs in _FIELDS.items():
        path = own / f"{theirs}.{freq}.bin"
        if not path.is_file():
            if ours == "volume":
                continue
            raise ValueError(f"{own}: there is no file {path.name}; bars need open, high, low and close")
        size = path.stat().st_size
        if size % 4 or not 4 <= size <= _MOST_BYTES:
            raise ValueError(
                f"{path}: {size:,} bytes; expected float32 values, the first a place in the calendar"
            )
        values = np.fromfile(path, "<f4")
        first = float(values[0])
        if not (first >= 0 and first.is_integer() and first + len(values) - 1 <= bars):
            raise ValueError(
                f"{path}: begins at {short(first)} and holds {len(values) - 1:,} bars, beyond the {bars:,} times of "
                "the calendar"
            )
        found[ours] = int(first), values[1:]
    start = min(first for first, _ in found.values())
    stop = max(first + len(values) for first, values in found.values())
    columns = {}
    for name, (first, values) in found.items():
        column = np.full(stop - start, np.nan, np.float32)
        column[first - start : first - start + len(values)] = values
        columns[name] = column
    return start, columns
