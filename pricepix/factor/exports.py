"""A factor cache in the formats of other libraries."""

from __future__ import annotations

import io
import json
import pickle
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.factor.calendar import day_and_interval

if TYPE_CHECKING:
    import pandas


# Times and numbers are no text, and ISO times begin with a digit.
_FORMULA: Final = r"^[=+\-@\t\r\n]"

__all__ = ["csv_bytes", "to_alphalens", "to_image_trading", "to_qlib", "write_csv"]


def write_csv(table: pl.DataFrame, path: str | PathLike[str], *, guard: bool = True) -> Path:
    """Write a long table as CSV, times in ISO form, as dates where none has a time of day; return the path.

    With `guard` an apostrophe is put before text that begins with ``=``, ``+``, ``-``, ``@`` or a control character
    at which cells may begin: a spreadsheet would run it as a formula. Numbers stay as they are.
    """
    Path(path).write_bytes(csv_bytes(table, guard=guard))
    return Path(path)


def csv_bytes(table: pl.DataFrame, *, time: str = "time", guard: bool = True) -> bytes:
    """Return what ``write_csv`` writes; `time` is the name of the column of times."""
    column = table[time]
    zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
    _, interval = day_and_interval(column.to_physical().to_numpy(), zone)
    clock = pl.col(time).dt
    written = clock.to_string("iso:strict") if interval.any() else clock.strftime("%Y-%m-%d")
    table = table.with_columns(written)
    if guard:
        table = table.with_columns(pl.col(pl.String).str.replace(_FORMULA, r"'${0}"))
    content = io.BytesIO()
    table.write_csv(content)
    return content.getvalue()


def to_alphalens(frame: pl.DataFrame) -> pandas.Series:
    """Return a long table as alphalens takes it: a Series indexed by (date, asset).

    Dates carry the market's zone where there is one, as prices given to alphalens must.
    """
    pd, index = _pandas_index(frame, ("date", "asset"))
    return pd.Series(frame["factor"].to_numpy().astype(np.float64), index=index, name="factor")


def to_qlib(frame: pl.DataFrame) -> pandas.DataFrame:
    """Return a long table as Qlib takes it: column ``score``, indexed by (datetime, instrument).

    Qlib's times have no zone: they are the market's wall-clock times.
    """
    if frame.schema["time"].time_zone is not None:  # type: ignore[attr-defined]
        frame = frame.with_columns(pl.col("time").dt.replace_time_zone(None))
    pd, index = _pandas_index(frame, ("datetime", "instrument"))
    return pd.DataFrame({"score": frame["factor"].to_numpy()}, index=index)


class Cube(NamedTuple):
    """The values of a factor cache with what their axes stand for."""

    values: NDArray[np.float32]
    """float32 (days, instruments, intervals); NaN where nothing is known."""
    days: NDArray[np.datetime64]
    """datetime64[D] (days,)."""
    instruments: NDArray[np.str_]
    intervals: list[str]
    """Times of day, ``HH:MM``."""
    shift: int
    """Bars from an image's last bar to the bar at which its value stands."""


def to_image_trading(
    cube: Cube, folder: str | PathLike[str], calendar: NDArray[np.int64] | None = None, tz: str | None = None
) -> Path:
    """Write the raw file and the index that ImageTrading's ``testing.py`` writes.

    The file ``CNN.delay{shift}.N{intervals}.{instruments}f`` holds float32 (days, instruments, intervals), C
    order, NaN where nothing is known; ImageTrading's delay is its prediction window and one bar, the bars
    from the image's last bar to the one at which it trades: score with that `shift`. ``indexing.pkl`` holds
    what ImageTrading's does: days as int32 YYYYMMDD (``DIDX``), names (``Ticker``, U32) and times of day
    (``TIDX``). ``indexing.json`` holds the same for those who open no pickles.

    Parameters
    ----------
    cube : Cube
    folder : str or path
        Made if it does not exist.
    calendar : numpy.ndarray, int64, optional
        Times of a panel's bars, nanoseconds: the file then has all of the panel's days; otherwise those of
        the cache.
    tz : str, optional
        The panel's time zone.

    Returns
    -------
    pathlib.Path
        The raw file.
    """
    values, names = cube.values, cube.instruments
    days = cube.days.astype(np.int64)
    if calendar is not None:
        all_days = np.unique(day_and_interval(calendar, tz)[0])
        place = np.searchsorted(all_days, days)
        if len(days) and (place.max() >= len(all_days) or not np.array_equal(all_days[place], days)):
            raise ValueError(
                "the panel lacks days that the cache has: give the panel that the store was made from"
            )
        wide = np.full((len(all_days), *values.shape[1:]), np.nan, np.float32)
        wide[place] = values
        values, days = wide, all_days
    if len(names) and max(len(name) for name in names) > 32:
        longest = max(names, key=len)
        raise ValueError(f"ImageTrading holds names of up to 32 characters; {str(longest)!r} is longer")
    dates = np.char.replace(days.astype("datetime64[D]").astype(str), "-", "").astype(np.int32)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"CNN.delay{cube.shift}.N{len(cube.intervals)}.{len(names)}f"
    values.tofile(path)
    index = {"DIDX": dates, "Ticker": names.astype("U32"), "TIDX": np.array(cube.intervals)}
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
    times = pd.DatetimeIndex(time.to_physical().to_numpy().view("datetime64[ns]"))
    if zone is not None:
        times = times.tz_localize("UTC").tz_convert(zone)
    arrays = [times, pd.Index(frame["instrument"].to_list(), dtype=object)]
    return pd, pd.MultiIndex.from_arrays(arrays, names=names)
