"""Times and durations: columns of any form to nanoseconds, times to and from text, the ends of periods.

Everywhere in pricepix a time is int64 nanoseconds since 1970: UTC where there is a zone, wall clock where
there is none.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import choice, is_whole, short

MINUTE_NS: Final = 60_000_000_000
DAY_NS: Final = 1440 * MINUTE_NS
"""A day in nanoseconds; days of 23 or 25 hours, when clocks change, are not this long."""
EARLIEST: Final = int(np.iinfo(np.int64).min)
"""The first time of a period that has no start."""
LATEST: Final = int(np.iinfo(np.int64).max)
"""The last time of a period that has no end."""
NO_TIME: Final = int(np.iinfo(np.int64).min)
"""Stands for a time that is missing."""
_LAST_DAY: Final = LATEST // DAY_NS - 1
"""Days from 1970 that nanoseconds can hold, in either direction."""
OUT_OF_RANGE: Final = "times must lie between the years 1678 and 2262: nanoseconds cannot hold others"
_TICK_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_EPOCH_DIGITS = {10: "s", 13: "ms", 16: "us", 19: "ns"}


def _formats() -> list[str]:
    days = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d")
    clocks = ("%H:%M:%S%.f", "%H:%M")
    out = [*days, "%Y%m%d%H%M", "%Y%m%d%H%M%S"]
    for day in days:
        for between in (" ", "T"):
            for clock in clocks:
                out += [f"{day}{between}{clock}", f"{day}{between}{clock}%#z"]
    return out


TIME_FORMATS = tuple(_formats())

# The end of a date that is written as an instant: midnight, and the offset of the zone whose midnight it is.
_MIDNIGHT = r"(?:^|[ T])00:00(?::00(?:\.0+)?)?\s*(?:Z|UTC|[+-]\d\d:?\d\d|[+-]\d\d)$"
_OFFSET = re.compile(r"(?:Z|UTC|([+-])(\d\d):?(\d\d)?)$")
# Times of which at least this share is midnight are dates: with two bars a day only half would be.
_DATES = 0.9
_PROBED = 1000


@dataclass
class Times:
    """The time column of one part: ticks since 1970, their length in ns, and the zone (None: wall clock)."""

    ticks: np.ndarray
    scale: int
    tz: str | None


@dataclass(frozen=True)
class TimeOptions:
    """How to read times; see `Panel.from_table` for the meaning of each."""

    tz: str | None = None
    time_format: str | None = None
    time_unit: str | None = None

    def __post_init__(self) -> None:
        choice(self.time_unit, "time_unit", (None, *_TICK_NS))
        object.__setattr__(self, "tz", check_zone(self.tz))


def is_zone(name: str) -> bool:
    """Return whether the tz database knows this zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        return False
    return True


def check_zone(tz: Any) -> str | None:
    """Return `tz` if it names a zone of the tz database (or is None), else raise."""
    if tz is None:
        return None
    if not isinstance(tz, str):
        key = getattr(tz, "key", None)
        if not isinstance(key, str):
            raise TypeError(f"tz must be the name of a time zone such as 'America/New_York', got {tz!r}")
        tz = key
    if not is_zone(tz):
        raise ValueError(
            f"tz={tz!r} is not a zone of the tz database; expected a name such as 'America/New_York'"
        )
    return "UTC" if tz in ("Etc/UTC", "Zulu") else tz


def mixed_zones(zones: Sequence[tuple[str | None, str]]) -> ValueError:
    """Return the error for (zone, place) pairs that differ in their zones."""
    found = " and ".join(f"{'no time zone' if z is None else z} in {where}" for z, where in zones)
    return ValueError(
        f"mixed time zones: {found}. Bring all times to one zone first: convert the aware ones with "
        "tz_convert('UTC'), and say what the naive ones are with tz_localize(...)"
    )


def read_column(key: Any, where: str, options: TimeOptions) -> Times:
    """Read a column of times of any form: a numpy array of datetime64, or a polars series.

    `where` names the column in errors.
    """
    if isinstance(key, np.ndarray):
        if key.dtype.kind == "M":
            unit = np.datetime_data(key.dtype)[0]
            simple = unit in _TICK_NS and np.datetime_data(key.dtype)[1] == 1
            if simple and options.tz is None and not np.isnat(key).any():
                return Times(np.ascontiguousarray(key).view(np.int64), _TICK_NS[unit], None)
            key = key.astype("M8[ms]" if unit not in _TICK_NS or unit == "s" else f"M8[{unit}]")
        key = pl.Series(key)
    series: pl.Series = key
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype.is_float():
        series = series.fill_nan(None)
        # Beyond 64 bits, infinity included.
        if (far := series.abs() >= 2.0**63).any():
            at = int(far.arg_true()[0])
            raise ValueError(f"{where}: {series[at]} in row {at} (counting from 0) is not a time")
        if (series.drop_nulls() == series.drop_nulls().round(0)).all():
            series = series.cast(pl.Int64)
    if series.null_count() == len(series):
        raise ValueError(f"{where} is missing in every row")
    if series.null_count():
        at = int(series.is_null().arg_true()[0])
        raise ValueError(
            f"{where} is missing in {series.null_count()} rows, the first is row {at} (counting from 0): "
            "every bar needs a time"
        )
    tz = None
    text = None
    if options.time_unit is not None:
        if series.dtype == pl.String:
            # A CSV file has its counts as text.
            counted = series.str.strip_chars().cast(pl.Int64, strict=False)
            series = series if counted.null_count() else counted
        if not series.dtype.is_integer():
            raise ValueError(
                f"time_unit={options.time_unit!r} is for counts since 1970, but {where} is {series.dtype}"
            )
        since = Times(series.cast(pl.Int64).to_numpy(), _TICK_NS[options.time_unit], "UTC")
        return _kept_dates(since, where, options, series)
    if series.dtype.is_integer():
        series = _parse(series.cast(pl.String), where, options, was_number=True)
    elif series.dtype == pl.String:
        text, series = series, _parse(series, where, options)
    if isinstance(series.dtype, pl.Datetime):
        unit, tz = series.dtype.time_unit, series.dtype.time_zone
        if tz is not None:
            aware = Times(series.to_physical().to_numpy(), _TICK_NS[unit], check_zone(tz))
            return _kept_dates(aware, where, options, series if text is None else text)
    elif series.dtype == pl.Date:
        if options.tz is None:
            return Times(series.to_physical().cast(pl.Int64).to_numpy(), DAY_NS, None)
        series = series.cast(pl.Datetime("us"))
        unit = "us"
    else:
        raise ValueError(
            f"{where} is of type {series.dtype}: expected dates, datetimes, or text or numbers that hold them"
        )
    if options.tz is not None:
        local = series.dt.replace_time_zone(options.tz, ambiguous="null", non_existent="null")
        if local.null_count():
            at = int(local.is_null().arg_true()[0])
            raise ValueError(
                f"{where}: {series[at]} in row {at} happens twice or never in {options.tz} (the clocks change); "
                f"{local.null_count()} such rows. Bring the times to UTC before they are read"
            )
        return Times(local.to_physical().to_numpy(), _TICK_NS[unit], options.tz)
    return Times(series.to_physical().to_numpy(), _TICK_NS[unit], None)


def _kept_dates(times: Times, where: str, options: TimeOptions, column: pl.Series) -> Times:
    """Return the times; ValueError if they are dates, given as midnights of a zone, that a different zone moves.

    `column` is what they were read from: text still has the midnights of its own offsets, which the times, in
    UTC, no longer show.
    """
    zone = options.tz or times.tz
    written = column.dtype == pl.String
    if zone == times.tz and not written:
        return times
    # A few rows show for nearly every table that it holds no dates; only where it might are all rows checked.
    for every in dict.fromkeys((max(1, len(column) // _PROBED), 1)):
        ns = times.ticks[::every] * times.scale
        if written:
            dates = column.gather_every(every).str.strip_chars().str.contains(_MIDNIGHT).to_numpy()
        else:
            dates = _clock(ns, times.tz) == 0
        if dates.mean() < _DATES:
            return times
    clock = _clock(ns, zone)
    moved = dates & (clock != 0)
    if moved.any():
        hours = [str(np.datetime64(int(t), "ns"))[11:16] for t in np.unique(clock[moved])]
        moved_to = " or ".join(hours) if len(hours) <= 3 else f"{hours[0]} to {hours[-1]}"
        at = int(moved.argmax())
        text = column[at].strip() if written else None
        raise _moved_dates(where, options, times.tz, int(ns[at]), moved_to, column.name or "time", text)
    return times


def _moved_dates(
    where: str, options: TimeOptions, tz: str | None, ns: int, hours: str, name: str, text: str | None
) -> ValueError:
    """Return the error for dates that `tz=` would move to other hours; `ns` and `text` are the first of them."""
    zone = options.tz or tz
    column = f"pl.col({name!r})"
    if text is not None:
        sign, hour, minute = _OFFSET.search(text).groups(default="0")  # type: ignore[union-attr]
        offset = (int(hour) * 60 + int(minute)) * (-1 if sign == "-" else 1)
        came, place = repr(text), "their offset"
        day = str(np.datetime64(ns + offset * 60_000_000_000, "ns"))[:10]
        keep = "tz='UTC'" if offset == 0 else "tz= the zone they are of, such as 'Asia/Shanghai' for +08:00"
        drop = f"give only the dates (polars: {column}.str.slice(0, 10)), or {keep}"
        moments = f"{column}.str.to_datetime(time_zone='UTC')"
    else:
        came, place = format_time(ns, tz), str(tz)
        day = came[:10]
        if options.time_unit is not None:
            column = f"pl.from_epoch({column}, {options.time_unit!r})"
            drop, moments = f"{column}.dt.date()", f"{column}.dt.replace_time_zone({tz!r})"
        else:
            drop, moments = f"{column}.dt.replace_time_zone(None); pandas: .dt.tz_localize(None)", column
        drop = f"drop their zone before they are read (polars: {drop}), or keep it with tz={tz!r}"
    there = format_time(ns, zone)
    which = "same day" if there.startswith(day) else "day before"
    mover = f"tz={zone!r}" if options.tz else f"{zone}, in which times with offsets are read,"
    return ValueError(
        f"{where}: the bars come at 00:00 of {place}, as dates do; {mover} would put them at {hours} of the {which} "
        f"({came} is {there} there). If they are dates, {drop}. If they are moments, as in a market that never "
        f"closes, convert them (polars: {moments}.dt.convert_time_zone({zone!r}))"
    )


def _clock(ns: NDArray[np.int64], tz: str | None) -> NDArray[np.int64]:
    """Time of day in a zone, in ns."""
    wall = ns if tz == "UTC" else to_series(ns, tz).dt.replace_time_zone(None).to_physical().to_numpy()
    return wall % DAY_NS


def _to_datetime(text: pl.Series, fmt: str) -> pl.Series:
    return text.str.to_datetime(fmt, strict=False, time_unit="ns")


def _parse(text: pl.Series, where: str, options: TimeOptions, was_number: bool = False) -> pl.Series:
    text = text.str.strip_chars()
    first = text[0]
    if options.time_format is not None:
        formats = [options.time_format]
    elif was_number:
        formats = [
            f
            for f in ("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S")
            if len(first) == {6: 8, 10: 12, 12: 14}[len(f)]
        ]
        formats = formats if first[:2] in ("18", "19", "20", "21") else []
    else:
        formats = list(TIME_FORMATS)
    probe = text.slice(0, 1)
    fits = [f for f in formats if _safe_parse(probe, f) is not None]
    if not fits:
        raise ValueError(
            f"{where}: {first!r} in row 0 is not a time pricepix can read{_time_hint(first, options)}"
        )
    best: pl.Series | None = None
    for fmt in fits:
        parsed = _to_datetime(text, fmt)
        if parsed.null_count() == 0:
            best = parsed
            break
        if best is None or parsed.null_count() < best.null_count():
            best = parsed
    assert best is not None
    if best.null_count():
        at = int(best.is_null().arg_true()[0])
        value = text[at]
        aware = isinstance(best.dtype, pl.Datetime) and best.dtype.time_zone is not None
        others = [
            f
            for f in TIME_FORMATS
            if options.time_format is None and _safe_parse(text.slice(at, 1), f) is not None
        ]
        if others and aware != any("%#z" in f for f in others):
            zones = ("has a time zone", "has none") if aware else ("has none", "has one")
            raise ValueError(
                f"{where}: mixed time zones: {first!r} in row 0 {zones[0]}, {value!r} in row {at} {zones[1]}. "
                "Write all times in one way"
            )
        raise ValueError(
            f"{where}: {value!r} in row {at} (counting from 0) is not a time written like {first!r} in row 0; "
            f"{best.null_count()} such rows{_time_hint(value, options)}"
        )
    _check_years(text, fmt, where)
    return best


def _check_years(text: pl.Series, fmt: str, where: str) -> None:
    """Raise ValueError if nanoseconds cannot hold a time: polars lets 2300 become 1715.

    Of times that begin with their year, the first and the last as text show all.
    """
    if fmt.startswith("%Y"):
        text = pl.Series([text.min(), text.max()])
    day = text.str.to_datetime(fmt, strict=False, time_unit="us").dt.epoch("d")
    if (far := day.abs() > _LAST_DAY).any():
        at = int(far.arg_true()[0])
        raise ValueError(f"{where}: {text[at]!r}: {OUT_OF_RANGE}")


def _safe_parse(text: pl.Series, fmt: str) -> Any:
    try:
        return _to_datetime(text, fmt)[0]
    except pl.exceptions.PolarsError:
        return None


def _time_hint(value: str, options: TimeOptions) -> str:
    if options.time_format is not None:
        return f" with time_format={options.time_format!r}"
    digits = value.lstrip("-")
    if digits.isdigit() and len(digits) in _EPOCH_DIGITS:
        unit = _EPOCH_DIGITS[len(digits)]
        return f"; if it counts since 1970, say in what: time_unit={unit!r} ('s', 'ms', 'us' or 'ns')"
    return "; expected ISO times or YYYYMMDD. Say how it is written: time_format='%d/%m/%Y %H:%M'"


def format_time(ns: int, tz: str | None) -> str:
    """Return a time as ISO text: in its zone with the offset, or as wall-clock time without needless zeros."""
    if tz is None:
        at = np.datetime64(int(ns), "ns")
        for unit in ("D", "m", "s"):
            if at == at.astype(f"M8[{unit}]"):
                return str(at.astype(f"M8[{unit}]")).replace("T", " ")
        return str(at).replace("T", " ")
    seconds, rest = divmod(int(ns), 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, ZoneInfo(tz))
    text = moment.strftime("%Y-%m-%d %H:%M:%S") + (f".{rest:09d}" if rest else "")
    offset = moment.strftime("%z")
    return f"{text}{offset[:3]}:{offset[3:5]}"


def format_times(time: NDArray[np.int64], tz: str | None, intraday: str = "%Y-%m-%d %H:%M") -> list[str]:
    """Return times as text: only the dates where none has a time of day, else as `intraday` says, in their zone."""
    series = to_series(time, tz)
    wall = series.dt.replace_time_zone(None).to_physical().to_numpy()
    clock = (wall % DAY_NS != 0) & (time != NO_TIME)
    return series.dt.strftime(intraday if clock.any() else "%Y-%m-%d").to_list()


def as_time(value: Any, tz: str | None, end: bool = False) -> int:
    """Return a point in time as int64 ns; see `Panel.as_time`, which passes its zone."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not EARLIEST <= int(value) <= LATEST:
            raise ValueError(f"{short(value)}: {OUT_OF_RANGE}")
        return int(value)
    at, aware = _moment(value)
    if aware:
        if tz is None:
            raise ValueError(f"{value} has a time zone, but the panel has none: give the wall-clock time")
        return int(_in_nanoseconds(at).astype(np.int64))
    unit: Any
    unit, step = np.datetime_data(at.dtype)
    if end and unit in ("Y", "M", "W", "D"):
        return _localised(at + np.timedelta64(step, unit), tz) - 1
    return _localised(at, tz)


def time_range(start: Any, end: Any, tz: str | None) -> tuple[int, int]:
    """Return the first and the last ns of a period, in which both ends lie; None is an open end."""
    first = EARLIEST if start is None else as_time(start, tz)
    return first, LATEST if end is None else as_time(end, tz, end=True)


def period_ends(period: Any) -> tuple[Any, Any]:
    """Return the two ends of a period as they were written, None where it is open.

    Parameters
    ----------
    period : str or (start, end)
        ``"1993:2000"``, ``"2000-02-16 09:35..2000-03"``, ``"2000-03:"``; a single time stands for both ends.

    Raises
    ------
    ValueError
        Neither a pair nor text that holds one.
    """
    if isinstance(period, str):
        # Colons also stand in clock times, so two dots separate those.
        parts = period.split(".." if ".." in period else ":")
        if len(parts) == 1 or is_time(period):
            parts = [period, period]
        if len(parts) == 2:
            return parts[0].strip() or None, parts[1].strip() or None
    elif isinstance(period, Sequence) and not isinstance(period, bytes) and len(period) == 2:
        return period[0], period[1]
    raise ValueError(f"period is {period!r}; give 'START:END' or (start, end), for example '1993:2000'")


def is_time(text: str) -> bool:
    """Return whether text is one date or time."""
    try:
        _moment(text)
    except ValueError:
        return False
    return True


def _moment(value: Any) -> tuple[np.datetime64, bool]:
    """Return a time as datetime64, in units of days or longer if it is a date, and whether it is UTC."""
    if isinstance(value, str):
        text = value.strip()
        try:
            if text.isdigit() and len(text) == 8:
                return np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}"), False
            if len(text) in (4, 7, 10) and text.replace("-", "").isdigit():
                return np.datetime64(text), False
            value = dt.datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{text!r} is not a time; expected ISO form such as '2020-03-16' or '2020-03-16 09:35'"
            ) from None
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            raise ValueError("expected a time, got NaT")
        return value, False
    if isinstance(value, dt.datetime):
        aware = value.tzinfo is not None
        if aware:
            value = value.astimezone(dt.UTC)
        nanoseconds = getattr(value, "nanosecond", 0)  # Timestamps of pandas hold more than microseconds.
        wall = dt.datetime.combine(value.date(), value.time())
        return _in_nanoseconds(np.datetime64(wall, "us")) + np.timedelta64(nanoseconds, "ns"), aware
    if isinstance(value, dt.date):
        return np.datetime64(value, "D"), False
    raise TypeError(
        f"expected a time (ISO text, datetime, date, numpy.datetime64 or int ns), got {type(value).__name__}"
    )


def _in_nanoseconds(at: np.datetime64) -> np.datetime64:
    """Return a time in nanoseconds; ValueError where they would overflow, which numpy does not say."""
    if abs(int(at.astype("M8[D]").astype(np.int64))) > _LAST_DAY:
        raise ValueError(f"{at}: {OUT_OF_RANGE}. Leave out an end of a period that is open")
    return at.astype("M8[ns]")


def _localised(at: np.datetime64, tz: str | None) -> int:
    ns = int(_in_nanoseconds(at).astype(np.int64))
    if tz is None:
        return ns
    seconds, rest = divmod(ns, 1_000_000_000)
    wall = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
    return int(wall.replace(tzinfo=ZoneInfo(tz)).timestamp()) * 1_000_000_000 + rest


def to_series(nanoseconds: NDArray[np.int64], tz: str | None) -> pl.Series:
    """Return times as a polars series: instants shown in zone `tz`, or wall-clock times if it is None."""
    times = pl.Series(np.asarray(nanoseconds, np.int64)).cast(pl.Datetime("ns"))
    times = times.set(times.is_not_null() & (times.to_physical() == NO_TIME), None)
    if tz is None:
        return times
    return times.dt.replace_time_zone("UTC").dt.convert_time_zone(tz)


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|m|min|h|d|w)")

_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": MINUTE_NS,
    "min": MINUTE_NS,
    "h": 60 * MINUTE_NS,
    "d": DAY_NS,
    "w": 7 * DAY_NS,
}


def duration_ns(value: Any, name: str = "") -> int:
    """Return a duration in ns: ``"10d"``, ``"30min"``, a timedelta, or ns as an int; errors mention `name`."""
    ns = -1
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match:
            ns = int(Decimal(match[1]) * _UNITS[match[2]])
    elif isinstance(value, timedelta):
        ns = (value.days * 86400 + value.seconds) * 10**9 + value.microseconds * 1000
    elif isinstance(value, np.timedelta64):
        # Months, years and NaT have no length.
        if not np.isnat(value) and np.datetime_data(value)[0] not in ("Y", "M", "generic"):
            ns = int(value.astype("timedelta64[ns]").astype(np.int64))
    elif is_whole(value):
        ns = int(value)
    if ns < 0:
        raise ValueError(
            f"{name and name + '='}{value!r} is not a duration: give a number with a unit ({', '.join(_UNITS)}) such "
            "as '10d', a timedelta, or nanoseconds as a whole number, not below 0"
        )
    return min(ns, LATEST)


def format_duration(ns: int) -> str:
    """Return a duration in the largest unit of which it is a whole number: ``"5 min"``."""
    for unit in ("d", "h", "min", "s", "ms"):
        if ns and ns % _UNITS[unit] == 0:
            return f"{ns // _UNITS[unit]} {unit}"
    return f"{ns} ns"
