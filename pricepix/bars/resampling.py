"""Longer bars from shorter ones: one-minute tables of any vendor to bars of any length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice
from pricepix.bars import market_kernels as kernels
from pricepix.bars.panel import Panel
from pricepix.bars.sessions import Session
from pricepix.bars.times import DAY_NS, NO_TIME, duration_ns, format_duration, to_series

Times = NDArray[np.int64]


def resample(
    bars: Any,
    every: Any,
    *,
    session: Session | str | None = None,
    stamps: Literal["start", "end"] = "start",
    label: Literal["start", "end"] | None = None,
    gaps: Literal["absent", "missing"] = "absent",
    until: Any = None,
    step: Any = None,
    **options: Any,
) -> Panel:
    """Merge short bars into longer ones.

    Open of the first, highest high, lowest low, close of the last, sum of the volumes; missing values are
    skipped. A bar never spans a lunch break or a night. Total returns are compounded; of factors, flags and
    market capitalisation the last is kept.

    Parameters
    ----------
    bars : Panel or anything ``Panel.from_table`` takes
        Short bars: one table for all, or a file an instrument.
    every : str or timedelta
        Length of the new bars, at most a day: ``"5min"``, ``"1h"``, ``"1d"``. They are counted from the open
        of each trading period, or without a session from midnight in the panel's zone by elapsed time, so
        that days of 23 or 25 hours are cut without overlap (only their last bar can be shorter).
    session : Session, str or None
        The market's hours; see `Session.of`. Rows outside are left out, and counted in the report's remarks.
        None for markets that never close.
    stamps : {"start", "end"}
        Whether a short bar is stamped with its start, as most vendors do, or its end.
    label : {"start", "end"}, optional
        What the new bars are stamped with; by default the same.
    gaps : {"absent", "missing"}
        Bars in which an instrument has no row: absent, or there as missing bars wherever another instrument
        has one between its first and last, so that all instruments count the same bars.
    until : str, datetime or "all", optional
        When the data end, as in `Panel.as_time`. A bar that ends later is partial and dropped. By default
        each instrument's data end with its own last bar, so that no partial bar is ever kept and later data
        never change an earlier bar; ``"all"`` says that all data end with the last bar of any instrument.
    step : str or timedelta, optional
        Length of the short bars; by default the shortest distance between two of an instrument.
    **options
        Given to ``Panel.from_table``: columns, instrument, time, tz, ...

    Returns
    -------
    Panel

    Raises
    ------
    ValueError
        A length that is not a whole number of the short bars; a session in a different zone than the data;
        no row inside the session, or no bar that is complete.

    Examples
    --------
    >>> import polars as pl
    >>> open = pl.Series([1.0, 2, 3, 4, 5])
    >>> bars = {"time": [f"2024-01-02 00:0{m}" for m in range(5)], "open": open}
    >>> panel = resample(bars | {"high": open + 1, "low": open - 0.5, "close": open + 0.5}, "2min")
    >>> panel.bars[:, :4].tolist()
    [[1.0, 3.0, 0.5, 2.5], [3.0, 5.0, 2.5, 4.5]]
    """
    choice(stamps, "stamps", ("start", "end"))
    choice(label, "label", (None, "start", "end"))
    choice(gaps, "gaps", ("absent", "missing"))
    panel = Panel.of(bars, **options)
    hours = Session.of(session)
    if hours.periods is not None and panel.tz is not None and hours.tz not in (None, panel.tz):
        raise ValueError(
            f"the session's clock is that of {hours.tz}, the data's that of {panel.tz}: read them with "
            f"tz={hours.tz!r}"
        )
    short = _step(panel) if step is None else duration_ns(step, "step")
    length = duration_ns(every, "every")
    if length < short or (short and length % short):
        raise ValueError(
            f"every={every!r} is not a whole number of the bars that came, which are {format_duration(short)} "
            "long: choose a multiple, or pass step= if they are shorter than they look"
        )
    start, end = _bounds(panel, hours, every, stamps)
    outside = int(np.count_nonzero(start == NO_TIME))
    if outside == len(panel):
        raise ValueError(f"none of the {len(panel):,} bars lies within the session {hours.periods}")

    merged, fields, first, instrument = _merge(panel, start)
    complete = end[first] <= _data_ends(panel, until, short if stamps == "start" else 0)[instrument]
    if not complete.any():
        raise ValueError(f"no bar of {every!r} is complete: the data end before the first of them does")
    partial = len(first) - int(np.count_nonzero(complete))
    time = (start if (label or stamps) == "start" else end)[first]
    offsets = np.searchsorted(instrument[complete], np.arange(panel.n_instruments + 1)).astype(np.int64)
    fields = {name: values[complete] for name, values in fields.items()}
    new = _NewBars(merged[complete], time[complete], offsets, fields)
    if gaps == "missing":
        new = _with_missing(new)
    remarks = [f"resampled from bars of {format_duration(short)} to {every}"]
    if outside:
        remarks.append(f"{outside:,} bars outside the session were left out")
    if partial:
        remarks.append(f"{partial:,} partial last bars were dropped")
    report = replace(
        panel.report,
        rows=len(new.bars),
        instruments=panel.n_instruments,
        remarks=(*panel.report.remarks, *remarks),
    )
    new_bars, time = np.ascontiguousarray(new.bars), np.ascontiguousarray(new.time)
    return Panel(new_bars, new.offsets, panel.instruments, time, panel.tz, new.fields, report)


class _NewBars(NamedTuple):
    """Longer bars, by instrument and time."""

    bars: NDArray[np.float64]
    time: Times
    offsets: Times
    fields: dict[str, NDArray[Any]]


def _merge(panel: Panel, start: Times) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]], Times, Times]:
    """Merge the rows whose new bar has one start; return bars, fields, and each bar's first row and instrument."""
    group, first = np.empty(len(panel), np.int64), np.empty(len(panel), np.int64)
    counts = np.empty(panel.n_instruments, np.int64)
    n = kernels.group_rows(panel.offsets, panel.time, start, group, first, counts)
    bars = np.empty((n, 5))
    kernels.merge_bars(panel.bars, group, bars)
    fields: dict[str, NDArray[Any]] = {}
    for name, values in panel.fields.items():
        fields[name] = np.empty(n, values.dtype)
        merge = kernels.merge_returns if name == "total_return" else kernels.merge_last
        merge(values, group, fields[name])
    return bars, fields, first[:n], np.repeat(np.arange(panel.n_instruments), counts)


def _bounds(panel: Panel, hours: Session, every: Any, stamps: str) -> tuple[Times, Times]:
    """Start and end of the new bar of each row, in the panel's time; NO_TIME outside the hours."""
    starts, ends = hours.edges(every)
    wall = panel.time
    if panel.tz is not None:
        wall = to_series(panel.time, panel.tz).dt.replace_time_zone(None).to_physical().to_numpy()
    # A bar that is stamped with its end belongs where its inside is.
    inside = wall if stamps == "start" else wall - 1
    day = np.floor_divide(inside, DAY_NS)
    if hours.periods is None:
        # By the time since midnight, so that a day of 23 or 25 hours is cut like any other.
        midnight = _midnight(day, panel)
        clock = panel.time - midnight if stamps == "start" else panel.time - midnight - 1
        length = int(ends[0] - starts[0])
        opened = midnight + np.floor_divide(clock, length) * length
        if length == DAY_NS:
            opened, closed = midnight, _midnight(day + 1, panel)
        else:
            closed = np.minimum(opened + length, _midnight(day + 1, panel))
        return opened, closed
    clock = inside - day * DAY_NS
    which = np.searchsorted(starts, clock, side="right") - 1
    good = (which >= 0) & (clock < ends[which])
    offset = panel.time - wall
    opened = np.where(good, day * DAY_NS + starts[which] + offset, NO_TIME)
    closed = np.where(good, day * DAY_NS + ends[which] + offset, NO_TIME)
    return opened, closed


def _midnight(day: Times, panel: Panel) -> Times:
    """The instants at which days begin; where the clocks skip midnight, the first instant after it."""
    if panel.tz is None:
        return day * DAY_NS
    distinct, place = np.unique(day, return_inverse=True)
    at = np.array([panel.as_time(np.datetime64(int(d), "D")) for d in distinct], np.int64)
    return at[place]


def _data_ends(panel: Panel, until: Any, short: int) -> Times:
    """When each instrument's data end, int64 (instruments,)."""
    n = panel.n_instruments
    if until is not None and until != "all":
        return np.full(n, panel.as_time(until, end=True), np.int64)
    filled = np.diff(panel.offsets) > 0
    last = np.full(n, NO_TIME, np.int64)
    last[filled] = panel.time[panel.offsets[1:][filled] - 1] + short
    return np.full(n, last.max(), np.int64) if until == "all" else last


def _step(panel: Panel) -> int:
    """The shortest distance between two bars of an instrument."""
    gaps = np.diff(panel.time)
    edges = panel.offsets[1:-1] - 1
    own = np.ones(len(gaps), np.bool_)
    own[edges[(edges >= 0) & (edges < len(gaps))]] = False
    if not own.any():
        raise ValueError("every instrument has a single bar: pass step=, the length of the bars that came")
    return int(gaps[own].min())


def _with_missing(new: _NewBars) -> _NewBars:
    """Insert missing bars, so that an instrument has all bars of the calendar from its first to its last."""
    bars, time, offsets, fields = new
    calendar = np.unique(time)
    code = np.searchsorted(calendar, time)
    filled = np.diff(offsets) > 0
    a, b = np.zeros(len(filled), np.int64), np.zeros(len(filled), np.int64)
    a[filled], b[filled] = code[offsets[:-1][filled]], code[offsets[1:][filled] - 1] + 1
    new_offsets = np.concatenate([[0], np.cumsum(b - a)]).astype(np.int64)
    rows = int(new_offsets[-1])
    place = code + np.repeat(new_offsets[:-1] - a, np.diff(offsets))
    new_time = calendar[np.arange(rows) - np.repeat(new_offsets[:-1] - a, b - a)]
    new_bars = np.full((rows, 5), np.nan)
    new_bars[place] = bars
    new_fields = {}
    for name, values in fields.items():
        new_fields[name] = np.full(rows, False if values.dtype == np.bool_ else np.nan, values.dtype)
        new_fields[name][place] = values
    return _NewBars(new_bars, new_time, new_offsets, new_fields)
