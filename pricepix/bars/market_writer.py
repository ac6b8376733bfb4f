"""Writing market caches: arrays of a market as the raw files that ImageTrading reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.market_cache import MarketCache, bar_stamps
from pricepix.bars.market_files import (
    AXES,
    INTRADAY,
    KEYS,
    MOST_STOCKS,
    STANDARD,
    as_date,
    check_names,
    file_name,
    read_name,
)
from pricepix.bars.sessions import Session

_MOST_INTERVALS: Final = 99
_NAME_BYTES: Final = 128


def write_market_cache(
    folder: str | os.PathLike[str],
    *,
    days: Any,
    instruments: Sequence[str],
    open: Any,
    high: Any,
    low: Any,
    close: Any,
    volume: Any = None,
    not_st: Any = None,
    adjustment_factor: Any = None,
    up_limit: Any = None,
    down_limit: Any = None,
    dtype: Any = np.float32,
    files: Mapping[str, str] | None = None,
    session: Session | str | None = "ashare",
) -> MarketCache:
    """Write a market cache of ImageTrading's layout.

    Parameters
    ----------
    folder : str or path
        Made if it does not exist. Files that are there are not overwritten.
    days : sequence of dates, (days,)
        Trading days, ascending.
    instruments : sequence of str
        Names, up to 32 characters.
    open, high, low, close, volume : array_like, (days, stocks, intervals)
    not_st : array_like, bool (days, stocks), optional
        True where windows of a stock are eligible (ASHARE_FILTER).
    adjustment_factor, up_limit, down_limit : array_like, (days, stocks), optional
        What prices are to be multiplied with, and the day's limit prices.
    dtype : numpy.dtype
        float32 or float64, of all numbers but the axes.
    files : mapping, optional
        Paths by key (OPEN, ...), without the shape that their names end in, relative to the folder; by
        default those of ImageTrading's code.
    session : Session, str or None
        As in `MarketCache`.

    Returns
    -------
    MarketCache
        The cache just written.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not match, names too long, days that do not ascend, more than 9,999 stocks or 99
        intervals, which a file name cannot hold.
    FileExistsError
        A file is there already.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype={dtype}: a market cache holds float32 or float64")
    dates = _dates(days)
    names = np.array([str(name) for name in instruments], np.str_)
    check_names(names, "instruments")
    if names.dtype.itemsize > _NAME_BYTES:
        raise ValueError(f"{max(names, key=len)!r} is longer than a market cache's 32 characters")
    values = {
        "OPEN": open, "HIGH": high, "LOW": low, "CLOSE": close, "VOLUME": volume, "ASHARE_FILTER": not_st,
        "ADJ_FACTOR": adjustment_factor, "UP_LIMIT": up_limit, "DN_LIMIT": down_limit,
    }  # fmt: skip
    blocks = {key: np.asarray(block) for key, block in values.items() if block is not None}
    shape = _checked_shape(blocks, len(dates), len(names))
    bar_stamps(Session.of(session), shape[2])

    root = Path(folder)
    stems = {key: path.partition(".N*")[0] for key, path in STANDARD.items()} | dict(files or {})
    if unknown := sorted(set(stems) - set(KEYS)):
        raise ValueError(
            f"files: {unknown[0]!r} is not a file of a market cache; known are {', '.join(KEYS)}"
        )
    blocks["TRADE_DATES"] = np.char.replace(dates.astype(str), "-", "").astype(np.int32)
    blocks["UNIVERSE_UID"] = names.astype("<U32")
    written: dict[str, Path] = {}
    for key, block in blocks.items():
        if key in AXES:
            ending = file_name("", block.dtype)
        else:
            kind = np.dtype(np.bool_) if key == "ASHARE_FILTER" else dtype
            ending = file_name("", kind, shape[1], shape[2] if key in INTRADAY else None)
        written[key] = root / f"{stems[key]}{ending}"
        if written[key].exists():
            raise FileExistsError(f"{written[key]} exists already: give another folder")
    for key, path in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = read_name(path.name).dtype
        np.ascontiguousarray(blocks[key]).astype(kind, copy=False).tofile(path)
    relative = {key: str(path.relative_to(root)) for key, path in written.items()}
    return MarketCache(root, relative, session=session)


def _dates(days: Any) -> NDArray[np.datetime64]:
    dates = np.array([as_date(day) for day in days], "datetime64[D]")
    if not len(dates) or (np.diff(dates) <= np.timedelta64(0)).any():
        raise ValueError("days must hold at least one day, and ascend without repeating")
    return dates


def _checked_shape(blocks: Mapping[str, NDArray[Any]], days: int, stocks: int) -> tuple[int, int, int]:
    """Return the shape of the prices; ValueError if an array has another or a file name cannot hold it."""
    shape = blocks["OPEN"].shape
    if len(shape) != 3 or shape[:2] != (days, stocks):
        raise ValueError(f"open has shape {shape}, expected ({days} days, {stocks} stocks, intervals)")
    if shape[1] > MOST_STOCKS or shape[2] > _MOST_INTERVALS:
        raise ValueError(
            f"a file name holds up to {MOST_STOCKS:,} stocks and {_MOST_INTERVALS} intervals, got {shape}"
        )
    for key, block in blocks.items():
        expected = shape if key in INTRADAY else shape[:2]
        if block.shape != expected:
            raise ValueError(f"{key} has shape {block.shape}, expected {expected}")
    return shape
