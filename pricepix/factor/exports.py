"""A factor cache in other people's formats."""

from __future__ import annotations

import json
import pickle
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pricepix.bars.times import to_series
from pricepix.factor.calendar import day_and_interval

if TYPE_CHECKING:
    import pandas

    from pricepix.bars.panel import Panel
    from pricepix.factor.cache import FactorCache

__all__ = ["long_table", "to_alphalens", "to_image_trading", "to_qlib", "write_csv", "write_parquet"]


def long_table(cache: FactorCache) -> pl.DataFrame:
    """Return a row a known value, by time: instrument, time, factor and, where kept, spread."""
    time, values = cache.matrix()
    bar, code = np.nonzero(~np.isnan(values))
    names = pl.Series(cache.instruments.tolist(), dtype=pl.String)
    columns: dict[str, Any] = {
        "instrument": names.gather(code),
        "time": to_series(time[bar], cache.tz),
        "factor": values[bar, code],
    }
    if cache.spread is not None:
        spread_time, spread = cache.matrix("spread")
        columns["spread"] = spread[np.searchsorted(spread_time, time)[bar], code]
    return pl.DataFrame(columns)


def write_parquet(cache: FactorCache, path: str | PathLike[str]) -> Path:
    """Write the long table as Parquet; return the path."""
    long_table(cache).write_parquet(Path(path))
    return Path(path)


def write_csv(cache: FactorCache, path: str | PathLike[str]) -> Path:
    """Write the long table as CSV; return the path. Days stand as dates, bars within days with their time."""
    table = long_table(cache)
    days = len(cache.intervals) == 1 and cache.intervals[0] == "00:00"
    written = pl.col("time").dt.strftime("%Y-%m-%d") if days else pl.col("time").dt.to_string("iso:strict")
    table.with_columns(written).write_csv(Path(path))
    return Path(path)


def to_alphalens(cache: FactorCache) -> pandas.Series:
    """Return the factor as alphalens takes it: a Series indexed by (date, asset).

    Dates carry the market's zone where there is one, as prices given to alphalens must.
    """
    frame = long_table(cache)
    pd, index = _pandas_index(frame, ("date", "asset"))
    return pd.Series(frame["factor"].to_numpy().astype(np.float64), index=index, name="factor")


def to_qlib(cache: FactorCache) -> pandas.DataFrame:
    """Return the factor as Qlib takes it: column ``score``, indexed by (datetime, instrument).

    Qlib's times have no zone: they are the market's wall-clock times.
    """
    frame = long_table(cache)
    if cache.tz is not None:
        frame = frame.with_columns(pl.col("time").dt.replace_time_zone(None))
    pd, index = _pandas_index(frame, ("datetime", "instrument"))
    return pd.DataFrame({"score": frame["factor"].to_numpy()}, index=index)


def to_image_trading(cache: FactorCache, folder: str | PathLike[str], panel: Panel | None = None) -> Path:
    """Write the raw file and the index that ImageTrading's ``testing.py`` writes.

    The file ``CNN.delay{shift}.N{intervals}.{instruments}f`` holds float32 (days, instruments, intervals), C
    order, NaN where nothing is known; ImageTrading's delay is its prediction window and one bar, the bars
    from the image's last bar to the one at which it trades: score with that `shift`. ``indexing.pkl`` holds
    what ImageTrading's does: days as int32 YYYYMMDD (``DIDX``), names (``Ticker``, U32) and times of day
    (``TIDX``). ``indexing.json`` holds the same for those who open no pickles.

    Parameters
    ----------
    cache : FactorCache
    folder : str or path
        Made if it does not exist.
    panel : Panel, optional
        The file then has all of the panel's days; otherwise those of the cache.

    Returns
    -------
    pathlib.Path
        The raw file.
    """
    values = np.asarray(cache.factor[:], np.float32)
    days = cache.days.astype(np.int64)
    if panel is not None:
        every = np.unique(day_and_interval(panel.calendar, panel.tz)[0])
        place = np.searchsorted(every, days)
        if len(days) and (place.max() >= len(every) or not np.array_equal(every[place], days)):
            raise ValueError(
                "the panel lacks days that the cache has: give the panel that the store was made from"
            )
        wide = np.full((len(every), *values.shape[1:]), np.nan, np.float32)
        wide[place] = values
        values, days = wide, every
    names = cache.instruments
    if len(names) and max(len(name) for name in names) > 32:
        longest = max(names, key=len)
        raise ValueError(f"ImageTrading holds names of up to 32 characters; {str(longest)!r} is longer")
    dates = np.char.replace(days.astype("datetime64[D]").astype(str), "-", "").astype(np.int32)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"CNN.delay{cache.shift}.N{len(cache.intervals)}.{len(names)}f"
    values.tofile(path)
    index = {"DIDX": dates, "Ticker": names.astype("U32"), "TIDX": np.array(cache.intervals)}
    (folder / "indexing.pkl").write_bytes(pickle.dumps(index))
    (folder / "indexing.json").write_text(
        json.dumps({key: value.tolist() for key, value in index.items()}, indent=1, ensure_ascii=False)
    )
    return path


def _pandas_index(frame: pl.DataFrame, names: tuple[str, str]) -> tuple[Any, Any]:
    """Return pandas, and the (time, instrument) index of a long table."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("this export needs pandas: pip install pandas") from error
    time = frame["time"]
    zone = time.dtype.time_zone if isinstance(time.dtype, pl.Datetime) else None
    stamps = pd.DatetimeIndex(time.to_physical().to_numpy().view("datetime64[ns]"))
    if zone is not None:
        stamps = stamps.tz_localize("UTC").tz_convert(zone)
    arrays = [stamps, pd.Index(frame["instrument"].to_list(), dtype=object)]
    return pd, pd.MultiIndex.from_arrays(arrays, names=names)
