"""Read arrays of bars, (time, instrument[, interval]), a block of instruments at a time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pricepix.bars import tables
from pricepix.bars.times import DAY_NS, MINUTE_NS, TimeOptions, format_time, read_column
from pricepix.bars.values import locked

_BLOCK_BYTES = 16 << 20
_MOST_BYTES = 256 << 20
_LEAST_WIDTH = 8


def sliceable(name: str, array: Any) -> Any:
    """Return the array as it is if it can be sliced, else as a numpy array; it must hold numbers."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__")):
        array = np.asarray(array)
    kind = np.dtype(array.dtype).kind
    if kind not in "fiub":
        raise TypeError(f"{name} holds {array.dtype}: expected numbers")
    return array


def common_shape(prices: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that all prices have; fields of three axes may have one value a day."""
    shape = tuple(prices["open"].shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"open has {len(shape)} axes; expected (time, instrument) or (day, instrument, interval), got {shape}"
        )
    for key, array in prices.items():
        if tuple(array.shape) != shape:
            raise ValueError(
                f"{key} has shape {tuple(array.shape)}, but open has {shape}: they must be the same"
            )
    for key, array in fields.items():
        if tuple(array.shape) not in (shape, shape[:2]):
            also = f" or {shape[:2]}" if len(shape) == 3 else ""
            raise ValueError(f"{key} has shape {tuple(array.shape)}; expected {shape}{also}")
    if 0 in shape:
        raise ValueError(f"the arrays have shape {shape}: there are no bars in them")
    return shape


def instrument_names(instruments: Any, array: Any, width: int) -> np.ndarray:
    """Return the names along the second axis: as given, from an xarray coordinate, or "0", "1", ..."""
    if instruments is None and hasattr(array, "coords") and array.dims[1] in array.coords:
        instruments = array.coords[array.dims[1]].values
    if instruments is None:
        return np.array([str(i) for i in range(width)])
    if isinstance(instruments, str):
        raise TypeError(f"instruments must be a sequence of names, got the text {instruments!r}")
    names = [n.item() if isinstance(n, np.generic) else n for n in instruments]
    if len(names) != width:
        raise ValueError(
            f"{len(names)} instruments were named, but the arrays hold {width} along their second axis"
        )
    out = np.array([n.strip("\0") if isinstance(n, str) else str(n) for n in names], dtype=np.str_)
    distinct, times = np.unique(out, return_counts=True)
    if len(distinct) < width:
        raise ValueError(f"instrument {str(distinct[times > 1][0])!r} is named more than once")
    return out


def bar_times(
    time: Any,
    intervals: Any,
    array: Any,
    days: int,
    per_day: int,
    options: TimeOptions,
    remarks: list[str],
    three: bool,
) -> tuple[np.ndarray, str | None]:
    """Return the stamps, int64 ns (days, intervals), and their zone."""
    if intervals is not None and not three:
        raise ValueError("intervals= is for arrays of (day, instrument, interval)")
    if time is None and hasattr(array, "coords") and array.dims[0] in array.coords:
        time = array.coords[array.dims[0]].values
    if time is None and intervals is None:
        remarks.append(
            "no time was given: bars are numbered by days since 1970" + (" and minutes" if three else "")
        )
        return np.arange(days)[:, None] * DAY_NS + np.arange(per_day)[None, :] * MINUTE_NS, options.tz
    if time is None:
        raise ValueError("intervals= needs the days: pass time=")
    if (
        intervals is None
        and three
        and hasattr(array, "coords")
        and array.dims[2] in array.coords
        and np.ndim(time) == 1
    ):
        intervals = array.coords[array.dims[2]].values
    try:
        shape = np.shape(time)
    except ValueError as error:
        raise ValueError(f"time is no array: its rows are of different lengths ({error})") from error
    if intervals is not None:
        offsets = _interval_offsets(intervals, per_day)
        if shape != (days,):
            raise ValueError(
                f"time has shape {shape}; with intervals= it must hold the {days} days of the first axis"
            )
        ns, zone = _read_times(time, TimeOptions(None, options.time_format, options.time_unit), remarks)
        if zone is not None:
            raise ValueError(
                f"the days carry the time zone {zone}; with intervals= give plain dates, and the zone as tz="
            )
        if (ns % DAY_NS).any():
            raise ValueError("with intervals= time must hold dates without a time of day")
        stamps = ns[:, None] + offsets[None, :]
        if options.tz is None:
            return stamps, None
        ns, zone = _read_times(stamps.reshape(-1).view("M8[ns]"), options, remarks)
        return ns.reshape(days, per_day), zone
    expected = (days, per_day) if three else (days,)
    if shape != expected:
        more = "; for days pass intervals= as well" if three and shape == (days,) else ""
        raise ValueError(f"time has shape {shape}, expected {expected} as the arrays are{more}")
    if three:
        time = np.asarray(time).reshape(-1)
    ns, zone = _read_times(time, options, remarks)
    return ns.reshape(days, per_day), zone


def _read_times(time: Any, options: TimeOptions, remarks: list[str]) -> tuple[np.ndarray, str | None]:
    if type(time).__module__.partition(".")[0] == "pandas":
        series = time.to_series() if hasattr(time, "to_series") else time
        values = tables.pandas_column(series, "time", "the arrays", remarks)
    elif isinstance(time, np.ndarray) and time.dtype.kind == "M":
        values = time
    elif isinstance(time, np.ndarray) and time.dtype.kind not in "O":
        values = pl.Series("time", time.astype(np.str_) if time.dtype.kind == "S" else time)
    else:
        values = pl.Series("time", list(time), strict=False)
    read = read_column(values, "time of the arrays", options)
    return read.ticks * read.scale, (options.tz or read.tz) if read.tz is not None else None


def _interval_offsets(intervals: Any, per_day: int) -> np.ndarray:
    out = []
    for value in intervals:
        if isinstance(value, str):
            try:
                value = dt.time.fromisoformat(value)
            except ValueError:
                raise ValueError(f"intervals: {value!r} is not a time of day such as '09:35'") from None
        if isinstance(value, dt.time):
            value = dt.timedelta(
                hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
            )
        if not isinstance(value, dt.timedelta | np.timedelta64):
            raise TypeError(
                f"intervals must hold times of day ('09:35', datetime.time, timedelta), got {value!r}"
            )
        out.append(np.timedelta64(value, "ns").astype(np.int64))
    if len(out) != per_day:
        raise ValueError(
            f"{len(out)} intervals were named, but the arrays hold {per_day} along their third axis"
        )
    return np.array(out, np.int64)


def time_order(stamps: np.ndarray, on_bad: str, tz: str | None) -> tuple[np.ndarray | None, int, int]:
    """Return the order of the first axis that makes times ascend (None: as it is), and what was found."""
    if (np.diff(stamps.reshape(-1)) > 0).all():
        return None, 0, 0
    unsorted = int((np.diff(stamps[:, 0]) < 0).sum())
    order = np.argsort(stamps[:, 0], kind="stable")
    repeated = np.flatnonzero(np.diff(stamps[order, 0]) == 0) + 1
    if len(repeated):
        if on_bad != "drop_bar":
            first = ", ".join(format_time(int(stamps[order[r], 0]), tz) for r in repeated[:5])
            raise ValueError(
                f"duplicate_time: {len(repeated)} times stand more than once along the first axis, the first are "
                f"{first}; remove them, or pass on_bad='drop_bar' to keep the first of each"
            )
        order = np.delete(order, repeated)
    if (np.diff(stamps[order].reshape(-1)) <= 0).any():
        raise ValueError(
            "the times of the intervals do not ascend within the day, or reach into the next day"
        )
    return order, unsorted, len(repeated)


def block_width(array: Any, bars: int, width: int) -> int:
    """Instruments a block: about 16 MiB an array, in whole chunks where the array has them."""
    step = max(_LEAST_WIDTH, _BLOCK_BYTES // (8 * bars))
    chunks = getattr(array, "chunks", None)
    if chunks is None and hasattr(array, "encoding"):
        chunks = array.encoding.get("chunks")
    if chunks and len(chunks) > 1:
        chunk = chunks[1] if isinstance(chunks[1], int) else max(chunks[1])
        # Chunks too wide for memory are decoded once a block rather than kept whole.
        if chunk * bars * 8 <= _MOST_BYTES:
            step = max(chunk, step // chunk * chunk)
    return min(step, width)


def read_block(
    array: Any, a: int, b: int, order: np.ndarray | None, shape: tuple[int, ...], dtype: Any, name: str
) -> np.ndarray:
    """Instruments a:b of an array as a read-only contiguous (day, instrument, interval) array."""
    values = np.asarray(array[:, a:b])
    if order is not None:
        values = values[order]
    if np.dtype(dtype) == np.bool_ and values.dtype != np.bool_:
        known = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
        if (known & (values != 0) & (values != 1)).any():
            unexpected = values[known & (values != 0) & (values != 1)][0]
            hint = "; a limit price is not a flag: pass abs(close - limit) < 1e-4" if "limit" in name else ""
            raise ValueError(f"{name} must hold true and false, got {unexpected!r}{hint}")
        values = known & (values == 1)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] != (*shape, 1)[2]:
        values = np.broadcast_to(values, (*values.shape[:2], shape[2]))
    return locked(np.ascontiguousarray(values, dtype=dtype))
