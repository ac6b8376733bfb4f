"""The files of a market cache: their names, which tell type and shape, and its axes of days and stocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import nearest

INTRADAY: Final = ("OPEN", "HIGH", "LOW", "CLOSE", "VOLUME")
DAILY: Final = ("ASHARE_FILTER", "ADJ_FACTOR", "UP_LIMIT", "DN_LIMIT")
AXES: Final = ("TRADE_DATES", "UNIVERSE_UID")
KEYS: Final = (*INTRADAY, *DAILY, *AXES)
REQUIRED: Final = ("OPEN", "HIGH", "LOW", "CLOSE", *AXES)
#: Where ImageTrading's code looks; a star stands for the shape in the name.
STANDARD: Final[Mapping[str, str]] = {
    "OPEN": "IntervalFull/IntervalFull.open.N*",
    "HIGH": "IntervalFull/IntervalFull.high.N*",
    "LOW": "IntervalFull/IntervalFull.low.N*",
    "CLOSE": "IntervalFull/IntervalFull.close.N*",
    "VOLUME": "IntervalFull/IntervalFull.volume.N*",
    "ASHARE_FILTER": "AShareNST/AShareNST.N*",
    "ADJ_FACTOR": "ForwardAdjPrices/ForwardAdjPrices.S_DQ_ADJFACTOR.N*",
    "UP_LIMIT": "Limits/UplimPrice.N*",
    "DN_LIMIT": "Limits/DnlimPrice.N*",
    "TRADE_DATES": "_universe/dates.N*",
    "UNIVERSE_UID": "_universe/uid.N*",
}
MOST_STOCKS: Final = 9999
"""Stocks whose number fits into a file name."""

_DTYPES: Final = {"I": "<i4", "L": "<i8", "c": "|b1", "d": "<f8", "f": "<f4", "i": "<u4"}
_LETTERS: Final = {np.dtype(dtype): letter for letter, dtype in _DTYPES.items()}
_TEXT: Final = re.compile(r"(?<!\d)(\d+)C$")


class RawFile(NamedTuple):
    """What the name of a file says about it."""

    dtype: np.dtype[Any]
    stocks: int | None
    intervals: int | None


def read_name(name: str) -> RawFile:
    """Read type and shape from a file name.

    The last character names the type: ``I`` int32, ``L`` int64, ``i`` uint32, ``f`` float32, ``d`` float64,
    ``c`` bool, and ``128C`` text of 128 bytes, 32 characters of four bytes. Characters [-5:-1] are the number
    of stocks, [-8:-6] the number of intervals of intraday files.

    Examples
    --------
    >>> read_name("IntervalFull.open.N49,5184f")
    RawFile(dtype=dtype('float32'), stocks=5184, intervals=49)
    >>> read_name("AShareNST.N,5184c")
    RawFile(dtype=dtype('bool'), stocks=5184, intervals=None)
    >>> read_name("uid.N128C")
    RawFile(dtype=dtype('<U32'), stocks=None, intervals=None)
    """
    if text := _TEXT.search(name):
        size = int(text[1])
        if size == 0 or size % 4:
            raise ValueError(f"{name}: text of {size} bytes is not a whole number of 4-byte characters")
        return RawFile(np.dtype(f"<U{size // 4}"), None, None)
    letter = name[-1:]
    if letter not in _DTYPES:
        raise ValueError(
            f"{name}: the last character of a file's name is its type, one of {', '.join(_DTYPES)}, or as in "
            f"128C text, not {letter!r}"
        )
    dtype = np.dtype(_DTYPES[letter])
    stocks = int(name[-5:-1]) if name[-5:-1].isdigit() and name[-6:-5] == "," else None
    intervals = int(name[-8:-6]) if stocks is not None and name[-8:-6].isdigit() else None
    return RawFile(dtype, stocks, intervals)


def file_name(stem: str, dtype: Any, stocks: int | None = None, intervals: int | None = None) -> str:
    """Return the name of a file of this type and shape; ``read_name`` is its inverse."""
    dtype = np.dtype(dtype)
    if dtype.kind == "U":
        return f"{stem}.N{dtype.itemsize}C"
    shape = "" if stocks is None else f"{'' if intervals is None else f'{intervals:02d}'},{stocks:04d}"
    return f"{stem}.N{shape}{_LETTERS[dtype]}"


def find_files(folder: Path, files: Mapping[str, Any] | None) -> dict[str, Path]:
    asked: dict[str, Any] = dict(STANDARD)
    if files is not None:
        for key in files:
            if key not in KEYS:
                raise ValueError(
                    f"files: {key!r} is not a file of a market cache{nearest(str(key), KEYS)}; known are "
                    f"{', '.join(KEYS)}"
                )
        asked = dict(files)
    found: dict[str, Path] = {}
    missing: list[str] = []
    for key in KEYS:
        pattern = asked.get(key)
        if pattern is None:
            if key in REQUIRED:
                missing.append(f"{key} (not named)")
            continue
        path = Path(pattern) if Path(pattern).is_absolute() else folder / pattern
        if path.is_file():
            found[key] = path
            continue
        hits = sorted(p for p in path.parent.glob(path.name) if p.is_file()) if "*" in path.name else []
        if len(hits) > 1:
            raise ValueError(
                f"{key}: {len(hits)} files fit {path}, such as {hits[0].name} and {hits[1].name}"
            )
        if hits:
            found[key] = hits[0]
        elif key in REQUIRED or files is not None:
            missing.append(f"{key} ({path})")
    if missing:
        raise FileNotFoundError(f"the market cache {folder} lacks {', '.join(missing)}")
    return found


def read_days(path: Path) -> NDArray[np.datetime64]:
    raw = read_name(path.name)
    if raw.dtype.kind not in "iu":
        raise ValueError(f"{path.name}: trading days are whole numbers YYYYMMDD, not {raw.dtype}")
    if path.stat().st_size == 0 or path.stat().st_size % raw.dtype.itemsize:
        raise ValueError(
            f"{path} holds {path.stat().st_size:,} bytes, which is not a whole number of {raw.dtype} days"
        )
    numbers = np.fromfile(path, raw.dtype).astype(np.int64)
    year, month, day = numbers // 10000, numbers // 100 % 100, numbers % 100
    try:
        dates = np.array(
            [f"{y:04d}-{m:02d}-{d:02d}" for y, m, d in zip(year, month, day, strict=True)], "datetime64[D]"
        )
    except ValueError as error:
        raise ValueError(f"{path}: trading days are whole numbers YYYYMMDD; {error}") from None
    wrong = np.flatnonzero(np.diff(dates) <= np.timedelta64(0, "D"))
    if len(wrong):
        k = int(wrong[0])
        raise ValueError(f"{path}: trading days must ascend, but {dates[k + 1]} follows {dates[k]}")
    return dates


def read_names(path: Path) -> NDArray[np.str_]:
    raw = read_name(path.name)
    if raw.dtype.kind != "U":
        raise ValueError(f"{path.name}: names of stocks are text, such as uid.N128C, not {raw.dtype}")
    if path.stat().st_size == 0 or path.stat().st_size % raw.dtype.itemsize:
        raise ValueError(
            f"{path} holds {path.stat().st_size:,} bytes, which is not a whole number of names of {raw.dtype.itemsize}"
        )
    code_points = np.fromfile(path, "<u4")
    if code_points.max() > 0x10FFFF:
        raise ValueError(f"{path} does not hold UTF-32 text, as its name says: text of 4 bytes a character")
    names = np.char.strip(np.fromfile(path, raw.dtype).astype(np.str_))
    # Empty names at the end are room for later stocks.
    filled = np.flatnonzero(names != "")
    names = names[: filled[-1] + 1] if len(filled) else names[:0]
    check_names(names, str(path))
    return np.array(names.tolist(), np.str_)


def check_names(names: NDArray[np.str_], where: str) -> None:
    if not len(names):
        raise ValueError(f"{where}: no stock has a name")
    if (names == "").any():
        raise ValueError(f"{where}: stock {int(np.flatnonzero(names == '')[0])} has no name")
    distinct, times = np.unique(names, return_counts=True)
    if len(distinct) < len(names):
        raise ValueError(f"{where}: {str(distinct[times > 1][0])!r} is named more than once")


def as_date(day: Any) -> Any:
    """Return a date in a form that `as_time` reads; whole numbers are YYYYMMDD."""
    if isinstance(day, (int, np.integer)) and not isinstance(day, bool):
        day = str(int(day))
    if isinstance(day, str) and len(day) == 8 and day.isdigit():
        return f"{day[:4]}-{day[4:6]}-{day[6:]}"
    return day
