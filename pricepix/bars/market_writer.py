"""Writing market caches: arrays of a market as the raw files that ImageTrading reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import path_of
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


@dataclass(frozen=True)
class MarketArrays:
    """A market as arrays, as it was traded: what a market cache holds."""

    days: Any
    """Trading days, ascending."""
    instruments: Any
    """Sequence of names, up to 32 characters each."""
    open: Any
    """Array (days, stocks, intervals); NaN where a stock is not listed, suspended or halted. So are the next three."""
    high: Any
    low: Any
    close: Any
    volume: Any = None
    """Array (days, stocks, intervals); 0 where nothing was traded."""
    not_st: Any = None
    """Array bool (days, stocks), the ASHARE_FILTER: False while a stock, under special treatment, is not eligible."""
    adjustment_factor: Any = None
    """Array (days, stocks): rises with every split; prices times it are comparable over time."""
    up_limit: Any = None
    """Array (days, stocks): the day's highest price."""
    down_limit: Any = None
    """Array (days, stocks): the day's lowest price."""


def write_market_cache(
    folder: str | os.PathLike[str],
    market: MarketArrays,
    *,
    dtype: Any = np.float32,
    files: Mapping[str, str] | None = None,
    session: Session | str | None = "ashare",
) -> MarketCache:
    """Write a market cache of ImageTrading's layout.

    Parameters
    ----------
    folder : str or path
        Made if it does not exist. Files that are there are not overwritten.
    market : MarketArrays
        The arrays to write.
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
    if not isinstance(market, MarketArrays):
        raise TypeError(
            f"market is a {type(market).__name__}: give MarketArrays(days=..., instruments=..., open=..., high=..., "
            "low=..., close=...)"
        )
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype={dtype}: a market cache holds float32 or float64")
    dates = _dates(market.days)
    names = np.array([str(name) for name in market.instruments], np.str_)
    check_names(names, "instruments")
    if names.dtype.itemsize > _NAME_BYTES:
        raise ValueError(f"{max(names, key=len)!r} is longer than a market cache's 32 characters")
    values = {
        "OPEN": market.open, "HIGH": market.high, "LOW": market.low, "CLOSE": market.close,
        "VOLUME": market.volume, "ASHARE_FILTER": market.not_st, "ADJ_FACTOR": market.adjustment_factor,
        "UP_LIMIT": market.up_limit, "DN_LIMIT": market.down_limit,
    }  # fmt: skip
    blocks = {key: np.asarray(block) for key, block in values.items() if block is not None}
    shape = _checked_shape(blocks, len(dates), len(names))
    bar_stamps(Session.of(session), shape[2])

    root = path_of(folder, "folder")
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
    if not len(dates) or (np.diff(dates) <= np.timedelta64(0, "D")).any():
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
