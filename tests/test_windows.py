"""WindowIndex: which windows there are, why the others are not, and that the future has no say in it."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricepix import ImageSpec, Panel, WindowIndex, render_panel
from pricepix.windows.schedule import Periods, find_schedule

DAY = 86400 * 10**9
SPEC = ImageSpec(4, 16)


def bars(n, seed=0):
    """Bars (n, 5): a clean random walk."""
    rng = np.random.default_rng(seed)
    close = 50 + np.cumsum(rng.normal(0, 1, n)) * 0.1
    open_ = close + rng.normal(0, 0.1, n)
    high, low = np.maximum(open_, close) + 0.05, np.minimum(open_, close) - 0.05
    return np.column_stack([open_, high, low, close, rng.integers(1, 100, n)])


def table(name, times, seed=0, values=None):
    rows = bars(len(times), seed) if values is None else values
    frame = pl.DataFrame(rows, schema=["open", "high", "low", "close", "volume"], orient="row")
    return frame.with_columns(pl.lit(name).alias("instrument"), pl.Series("time", times))


def read(*tables, **how):
    return Panel.from_table(pl.concat(tables), progress=False, **how)


def weekdays(start, n):
    days = pl.date_range(start, start + dt.timedelta(days=2 * n + 10), eager=True)
    return days.filter(days.dt.weekday() < 6).head(n)


@pytest.fixture(scope="module")
def market():
    """Three stocks on weekdays: one long, one listed late, one with holes; the calendar is their union."""
    days = weekdays(dt.date(2019, 11, 4), 400)
    holed = days.filter(np.random.default_rng(1).random(len(days)) < 0.8)
    return pl.concat([table("A", days, 1), table("B", days[150:], 2), table("C", holed, 3)])


def pairs(index):
    """(instrument, time) of every window, in the order of the index."""
    frame = index.to_polars()
    return list(zip(frame["instrument"], frame["time"].dt.replace_time_zone(None), strict=True))


def period_ends(frame, period):
    """The last time of each period at which half of its instruments have a row, or most where none has as many."""
    frame = frame.with_columns(period=period(pl.col("time")))
    size = pl.col("instrument").n_unique().over("period").alias("size")
    rows = frame.with_columns(size).group_by("period", "size", "time").agg(rows=pl.len())
    most = pl.col("rows").max().over("period")
    enough = pl.min_horizontal(pl.col("size") / 2, most)
    return rows.filter(pl.col("rows") >= enough).group_by("period").agg(pl.col("time").max())


def absent(frame, period):
    """Instruments with a row in a period and none at its end, summed over periods."""
    frame = frame.with_columns(period=period(pl.col("time")))
    ends = frame.join(period_ends(frame, period), on=["period", "time"], how="semi")
    return frame.select("instrument", "period").n_unique() - ends.height


COMPLETE = {"complete": True}


def expected_pairs(frame, lookback, period=None, nth=None, start=None, end=None, history=0):
    """The same from polars alone: bars counted within each instrument, the calendar cut into periods."""
    frame = frame.sort("instrument", "time").with_columns(pl.col("time").cast(pl.Datetime("ns")))
    frame = frame.with_columns(seen=pl.int_range(1, pl.len() + 1).over("instrument"))
    calendar = frame.select("time").unique().sort("time")
    if period:
        calendar = period_ends(frame, period)
    elif nth:
        calendar = calendar.with_row_index().filter((pl.col("index") + 1) % nth == 0)
    frame = frame.join(calendar.select("time"), on="time", how="semi")
    if start is not None:
        frame = frame.filter(pl.col("time") >= start)
    if end is not None:
        frame = frame.filter(pl.col("time") <= end)
    short = frame.filter(pl.col("seen") < lookback).height
    warming = frame.filter(pl.col("seen").is_between(lookback, lookback + history - 1)).height
    kept = frame.filter(pl.col("seen") >= lookback + history).sort("time", "instrument")
    counts = {"too_short": short, "ma_warmup": warming}
    return list(zip(kept["instrument"], kept["time"], strict=True)), {k: n for k, n in counts.items() if n}


# ---- schedules

PERIODS = {
    "day": lambda time: time.dt.date(),
    "week": lambda time: time.dt.iso_year() * 100 + time.dt.week(),
    "month": lambda time: time.dt.strftime("%Y-%m"),
    "quarter": lambda time: time.dt.year() * 10 + time.dt.quarter(),
}


@pytest.mark.parametrize("lookback", [1, 4, 60])
@pytest.mark.parametrize("every", ["bar", "day", "week", "month", "quarter", 1, 2, 5, 7, 399])
def test_schedules_of_daily_bars(market, every, lookback):
    index = WindowIndex.from_panel(read(market), ImageSpec(lookback, 16), every, periods=COMPLETE)
    nth = every if isinstance(every, int) else None
    expected, counts = expected_pairs(market, lookback, PERIODS.get(every), nth)
    assert pairs(index) == expected
    if every in PERIODS and (missed := absent(market, PERIODS[every])):
        counts["absent_at_end"] = missed
    assert index.counts == counts
    assert index.candidates == len(expected) + sum(counts.values())


@pytest.mark.parametrize("every", ["bar", "day", "week", "month", 13])
@pytest.mark.parametrize("tz", [None, "UTC", "America/New_York", "Asia/Shanghai"])
def test_schedules_of_intraday_bars_go_by_the_wall_clock_of_the_market(every, tz):
    """10-minute bars round the clock in UTC: where a day ends depends on the zone."""
    instants = pl.datetime_range(
        dt.datetime(2021, 2, 26), dt.datetime(2021, 3, 17), "50m", time_zone="UTC", eager=True
    )
    times = instants.dt.replace_time_zone(None) if tz is None else instants.dt.convert_time_zone(tz)
    frame = pl.concat([table("A", times, 1), table("B", times.gather_every(3), 2)])
    panel = read(frame)
    assert panel.tz == tz
    local = frame.with_columns(pl.col("time").dt.replace_time_zone(None))
    if tz == "America/New_York":  # the hour that the clock skipped: no two bars share a wall-clock time
        assert local.group_by("instrument", "time").len()["len"].max() == 1
    nth = every if isinstance(every, int) else None
    expected, counts = expected_pairs(local, 4, PERIODS.get(every), nth)
    index = WindowIndex.from_panel(panel, SPEC, every, periods=COMPLETE)
    assert pairs(index) == expected
    if every in PERIODS and (missed := absent(local, PERIODS[every])):
        counts["absent_at_end"] = missed
    assert index.counts == counts


@pytest.mark.parametrize("zone", ["America/Havana", "America/Sao_Paulo", "Asia/Beirut"])
def test_days_that_have_no_midnight(zone):
    """Clocks there are put forward at midnight, so that a day begins at 01:00."""
    instants = pl.datetime_range(
        dt.datetime(2016, 1, 1), dt.datetime(2018, 12, 31), "6h", time_zone="UTC", eager=True
    )
    frame = table("A", instants.dt.convert_time_zone(zone))
    local = frame.with_columns(pl.col("time").dt.replace_time_zone(None))
    index = WindowIndex.from_panel(read(frame), SPEC, "day", periods=COMPLETE)
    assert pairs(index) == expected_pairs(local, 4, PERIODS["day"])[0]


def test_period_ends_are_those_of_the_universe(market):
    """A stock without a bar on the month's last day has no window then: cross-sections stay whole."""
    index = WindowIndex.from_panel(read(market), SPEC, "month", periods=COMPLETE)
    times = index.to_polars()["time"].dt.date().unique().sort()
    months = market.group_by(PERIODS["month"](pl.col("time"))).agg(pl.col("time").max().alias("last"))
    assert times.to_list() == months["last"].sort().to_list()
    holed = market.filter(pl.col("instrument") == "C")["time"].to_list()
    missed = [day for day in times if day not in holed]
    assert missed  # the fixture has such a month
    assert not [pair for pair in pairs(index) if pair[0] == "C" and pair[1].date() in missed]
    assert index.counts["absent_at_end"] == len(missed)


def trading_days(names, first, last, holidays=()):
    """Bars of some stocks on weekdays."""
    days = pl.date_range(first, last, eager=True)
    days = days.filter((days.dt.weekday() <= 5) & ~days.is_in(list(holidays)))
    return pl.concat([table(name, days, seed) for seed, name in enumerate(names)])


def test_one_stray_row_does_not_move_the_calendar_of_all():
    """A Saturday row of one ticker among 50, at the end of February."""
    names = [f"N{i:02}" for i in range(50)]
    frame = trading_days(names, dt.date(2020, 1, 1), dt.date(2020, 3, 31))
    stray = frame.filter((pl.col("instrument") == "N07") & (pl.col("time").dt.date() == dt.date(2020, 2, 28)))
    stray = stray.with_columns(time=pl.lit(dt.datetime(2020, 2, 29)).cast(frame.schema["time"]))
    plain = WindowIndex.from_panel(read(frame), SPEC, "month")
    panel = read(frame, stray)
    index = WindowIndex.from_panel(panel, SPEC, "month")
    assert pairs(index) == pairs(plain)
    assert len(index) == 150
    assert panel.report.notes["thin_time"] == 1
    assert index.schedule["periods"] == {"share": 0.5, "exchange": None, "complete": False, "asof": None}
    # With a share of none, the one row is the month's end, and the others are counted as absent there.
    moved = WindowIndex.from_panel(panel, SPEC, "month", periods={"share": 0.02})
    assert moved.counts["absent_at_end"] == 49
    assert len(moved) == 101


def test_a_name_that_trades_on_all_days_has_the_weeks_of_the_others():
    frame = trading_days([f"N{i}" for i in range(9)], dt.date(2020, 1, 6), dt.date(2020, 3, 27))
    days = pl.date_range(dt.date(2020, 1, 6), dt.date(2020, 3, 29), eager=True)
    index = WindowIndex.from_panel(read(frame, table("X", days, 9)), SPEC, "week")
    assert set(index.to_polars()["time"].dt.weekday()) == {5}
    assert len(index) == 120


@pytest.mark.parametrize(
    ("every", "last", "is_over"),
    [
        ("week", dt.date(2020, 3, 25), False),
        ("week", dt.date(2020, 3, 27), True),
        ("month", dt.date(2020, 3, 30), False),
        ("month", dt.date(2020, 3, 31), True),
        ("month", dt.date(2020, 2, 28), True),  # a Friday, the last weekday of February
        ("quarter", dt.date(2020, 2, 28), False),
        ("quarter", dt.date(2020, 3, 31), True),
        ("day", dt.date(2020, 3, 25), True),
    ],
)
def test_a_period_that_may_go_on_has_no_window(every, last, is_over):
    panel = read(trading_days("AB", dt.date(2020, 1, 1), last))
    index = WindowIndex.from_panel(panel, SPEC, every)
    complete = WindowIndex.from_panel(panel, SPEC, every, periods=COMPLETE)
    if is_over:
        assert pairs(index) == pairs(complete)
        assert "period_open" not in index.counts
    else:
        assert pairs(index) == pairs(complete)[:-2]
        assert index.counts["period_open"] == 2
    assert index.candidates == complete.candidates


def test_holiday_at_the_end_of_a_week_is_known_to_the_exchange():
    """Good Friday: without a calendar, the week of Thursday 9 April 2020 is over when Monday comes."""
    good_friday = [dt.date(2020, 4, 10)]
    frame = trading_days("AB", dt.date(2020, 1, 1), dt.date(2020, 4, 14), good_friday)
    until = read(frame.filter(pl.col("time").dt.date() <= dt.date(2020, 4, 9)))

    def last_week(panel, **periods):
        return max(
            pair[1].date() for pair in pairs(WindowIndex.from_panel(panel, SPEC, "week", periods=periods))
        )

    assert last_week(until) == dt.date(2020, 4, 3)
    assert last_week(until, complete=True) == dt.date(2020, 4, 9)
    assert last_week(read(frame)) == dt.date(2020, 4, 9)
    pytest.importorskip("exchange_calendars")
    assert last_week(until, exchange="XNYS") == dt.date(2020, 4, 9)
    with pytest.raises(
        ValueError, match="exchange='XXXX': the package exchange_calendars has no such calendar"
    ):
        last_week(until, exchange="XXXX")


@pytest.mark.parametrize(
    ("asof", "is_over"),
    [
        ("2020-04-09", False),  # Friday may come
        ("2020-04-10 12:00", False),
        ("2020-04-10", True),
        (dt.date(2020, 4, 12), True),
        (np.datetime64("2020-04-13T09:30"), True),
        (dt.datetime(2020, 5, 1), True),
        ("2020-01-01", False),
    ],
)
def test_a_week_is_over_as_of_a_time_after_its_last_trading_day(asof, is_over):
    """Good Friday again, and nothing but the time at which the data were drawn."""
    panel = read(trading_days("AB", dt.date(2020, 1, 1), dt.date(2020, 4, 9)))
    index = WindowIndex.from_panel(panel, SPEC, "week", periods={"asof": asof})
    assert index.time.max() == panel.as_time(dt.date(2020, 4, 9) if is_over else dt.date(2020, 4, 3))
    assert index.counts.get("period_open", 0) == (0 if is_over else 2)
    again = Periods.of(json.loads(json.dumps(index.schedule["periods"])))
    assert find_schedule(panel, "week", again).open_period == (-1 if is_over else 14)


def test_a_day_is_over_as_of_its_midnight():
    """A half day, whose last bar is earlier than those of other days, in the market's zone."""
    times = [
        dt.datetime(2020, 3, day, hour)
        for day in (2, 3, 4, 5)
        for hour in range(10, 17)
        if (day, hour) < (5, 13)
    ]
    panel = read(table("A", pl.Series(times)), tz="America/New_York")
    for asof, days in (("2020-03-05 15:00", 3), ("2020-03-05", 4), ("2020-03-06 04:59:59+00:00", 3),
                       ("2020-03-06 05:00+00:00", 4)):  # fmt: skip
        assert len(WindowIndex.from_panel(panel, SPEC, "day", periods={"asof": asof})) == days


def test_a_day_is_over_at_its_usual_last_bar():
    times = [
        dt.datetime(2020, 3, day, hour)
        for day in (2, 3, 4, 5)
        for hour in range(10, 17)
        if (day, hour) < (5, 15)
    ]
    frame = table("A", pl.Series(times))
    days = WindowIndex.from_panel(read(frame), SPEC, "day").to_polars()["time"]
    assert days.dt.day().to_list() == [2, 3, 4]
    assert set(days.dt.hour()) == {16}


def test_weekly_bars_are_the_weeks():
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 3, 25), "1w", eager=True)  # Wednesdays
    assert len(WindowIndex.from_panel(read(table("A", days)), SPEC, "week")) == len(days) - 3


@pytest.mark.parametrize(
    ("periods", "message"),
    [
        ({"share": 0}, "share=0: give a number above 0 and at most 1"),
        ({"complete": "yes"}, "complete='yes': give True or False"),
        ({"exchange": 5}, "exchange=5: give the name of a calendar"),
        ({"asof": True}, "asof=True: give the time"),
        ({"asof": "soon"}, "'soon' is not a time"),
        ({"shares": 1}, "give Periods"),
        ("week", "give Periods"),
    ],
)
def test_periods_that_are_none(market, periods, message):
    with pytest.raises((TypeError, ValueError), match=message):
        WindowIndex.from_panel(read(market), SPEC, "week", periods=periods)


# ---- start and end


def test_start_and_end_are_included(market):
    start, end = dt.datetime(2020, 3, 4), dt.datetime(2020, 6, 10)
    expected, counts = expected_pairs(market, 4, start=start, end=end)
    panel = read(market)
    spellings = [
        ("2020-03-04", "2020-06-10"),
        (dt.date(2020, 3, 4), dt.date(2020, 6, 10)),
        (start, end),
        (np.datetime64("2020-03-04"), np.datetime64("2020-06-10")),
        (1583280000 * 10**9, 1591747200 * 10**9),
    ]
    for a, b in spellings:
        index = WindowIndex.from_panel(panel, SPEC, start=a, end=b)
        assert pairs(index) == expected
        assert index.counts == counts
        assert index.time.min() == 1583280000 * 10**9
        assert index.time.max() == 1591747200 * 10**9


def test_windows_reach_back_before_the_start(market):
    """`start` bounds where windows end: history before it is still seen."""
    whole = WindowIndex.from_panel(read(market), SPEC)
    part = WindowIndex.from_panel(read(market), SPEC, start="2020-03-04")
    first = part.row[part.instrument == 0].min()
    assert first - SPEC.lookback + 1 < np.flatnonzero(whole.panel.time >= part.time.min())[0]
    assert set(part.row) == set(whole.row[whole.time >= whole.panel.as_time("2020-03-04")])


@pytest.mark.parametrize("tz", [None, "Asia/Shanghai"])
def test_date_as_end_includes_the_day_of_the_market(tz):
    times = pl.datetime_range(dt.datetime(2021, 3, 1), dt.datetime(2021, 3, 9, 23), "1h", eager=True)
    panel = read(table("A", times), tz=tz)
    index = WindowIndex.from_panel(panel, SPEC, start="2021-03-03", end="2021-03-05")
    shown = index.to_polars()["time"].dt.replace_time_zone(None)
    assert shown.to_list() == [t for t in times if dt.date(2021, 3, 3) <= t.date() <= dt.date(2021, 3, 5)]
    month = WindowIndex.from_panel(panel, SPEC, end="2021-03")
    assert month.time.max() == panel.time.max()
    to_the_minute = WindowIndex.from_panel(panel, SPEC, end="2021-03-05 10:30")
    assert to_the_minute.to_polars()["time"].dt.replace_time_zone(None).max() == dt.datetime(2021, 3, 5, 10)


# ---- what drops a window


def test_history_of_the_averages_is_waited_for_or_done_without(market):
    panel = read(market)
    for spec in (ImageSpec(5, ma=(3, 9)), ImageSpec(6, 32, ma=(8, 2), aggregate=2), ImageSpec(5, ma=(5,))):
        index = WindowIndex.from_panel(panel, spec)
        expected, counts = expected_pairs(market, spec.lookback, history=spec.history)
        assert pairs(index) == expected
        assert index.counts == counts
        omitted = WindowIndex.from_panel(panel, spec.replace(ma_warmup="omit"))
        expected, counts = expected_pairs(market, spec.lookback)
        assert pairs(omitted) == expected
        assert omitted.counts == counts
    assert index.counts == {"too_short": 12, "ma_warmup": 12}


def test_mask_and_eligible_choose_where_windows_end_and_splice_nothing():
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 1, 20), eager=True)
    eligible = np.ones(20, bool)
    eligible[[6, 7, 15]] = False
    frame = table("A", days)
    masked = WindowIndex.from_panel(read(frame), SPEC, mask=eligible)
    by_field = WindowIndex.from_panel(read(frame.with_columns(eligible=pl.Series(eligible))), SPEC)
    for index in (masked, by_field):
        assert index.row.tolist() == [r for r in range(3, 20) if eligible[r]]
        assert index.counts == {"too_short": 3, "masked": 3}
    # The masked bars are drawn where a later window holds them.
    whole = WindowIndex.from_panel(read(frame), SPEC)
    images = dict(zip(whole.row.tolist(), render_panel(whole.panel, whole), strict=True))
    for row, image in zip(masked.row.tolist(), render_panel(masked.panel, masked), strict=True):
        assert np.array_equal(image, images[row])


def test_mask_given_overrules_the_field():
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 1, 20), eager=True)
    panel = read(table("A", days).with_columns(eligible=pl.lit(False)))
    assert len(WindowIndex.from_panel(panel, SPEC)) == 0
    assert len(WindowIndex.from_panel(panel, SPEC, mask=np.ones(20, bool))) == 17


def test_nothing_eligible_is_an_empty_index_that_says_why():
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 1, 20), eager=True)
    index = WindowIndex.from_panel(read(table("A", days)), SPEC, mask=np.zeros(20, bool))
    assert len(index) == 0
    assert index.counts == {"too_short": 3, "masked": 17}
    assert repr(index) == "WindowIndex(0 of 20 windows; dropped: too_short 3, masked 17)"
    assert render_panel(index.panel, index).shape == (0, 16, 12)
    assert index.to_polars().shape == (0, 3)


@pytest.mark.parametrize(
    "gap",
    [
        "3d",
        "72h",
        "4320 min",
        "4320m",
        "259200s",
        "0.5d",
        "3.5d",
        dt.timedelta(days=3),
        np.timedelta64(3, "D"),
        3 * DAY,
        "1w",
        "4d",
        "10d",
        0,
    ],
)
def test_no_window_lies_across_a_hole(market, gap):
    units = {"d": DAY, "h": DAY // 24, "min": DAY // 1440, "m": DAY // 1440, "s": 10**9, "w": 7 * DAY}
    if isinstance(gap, str):
        number = gap.rstrip("abcdefghijklmnopqrstuvwxyz ")
        limit = float(number) * units[gap[len(number) :].strip()]
    else:
        limit = (
            gap
            if isinstance(gap, int)
            else gap / type(gap)(1, "D" if isinstance(gap, np.timedelta64) else 0) * DAY
        )
    panel = read(market)
    index = WindowIndex.from_panel(panel, SPEC, max_gap=gap)
    whole = WindowIndex.from_panel(panel, SPEC)
    inside = [np.diff(panel.time[row - 3 : row + 1]).max() <= limit for row in whole.row]
    assert index.row.tolist() == whole.row[inside].tolist()
    assert index.counts == {**whole.counts, **({"gap": inside.count(False)} if not all(inside) else {})}


def test_hole_just_before_a_window_does_not_matter():
    times = [0, 1, 2, 10, 11, 12, 13, 14]
    panel = read(table("A", [dt.date(2020, 1, 1) + dt.timedelta(days=t) for t in times]))
    index = WindowIndex.from_panel(panel, SPEC, max_gap="1d")
    assert index.row.tolist() == [6, 7]
    assert index.counts == {"too_short": 3, "gap": 3}
    assert index.schedule["max_gap_ns"] == DAY


@pytest.mark.parametrize("most", [None, 0, 1, 2, 3, 4, 10**30])
def test_missing_bars_are_counted_in_the_window(most):
    rows = bars(40)
    rng = np.random.default_rng(5)
    rows[rng.random(40) < 0.25, 1] = np.nan  # no high
    rows[rng.random(40) < 0.15, 2] = np.nan  # no low
    rows[20:23, 0] = np.nan  # no open: the bar is drawn
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 2, 9), eager=True)
    panel = read(table("A", days, values=rows), on_bad="keep")
    index = WindowIndex.from_panel(panel, SPEC.replace(max_missing=most))
    missing = np.isnan(rows[:, 1:3]).any(axis=1)
    limit = 4 if most is None else most
    expected = [r for r in range(3, 40) if missing[r - 3 : r + 1].sum() <= limit]
    assert index.row.tolist() == expected
    dropped = 37 - len(expected)
    assert index.counts == {"too_short": 3, **({"missing_bars": dropped} if dropped else {})}


def test_what_can_not_be_drawn_is_dropped_under_the_drawers_own_reason():
    rows = np.tile([10.0, 10.0, 10.0, 10.0, 5.0], (8, 1))  # flat
    rows = np.concatenate([rows, bars(8), np.full((6, 5), np.nan), bars(6, 1)])
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 1, 28), eager=True)
    panel = read(table("A", days, values=rows), on_bad="keep")
    index = WindowIndex.from_panel(panel, SPEC)
    assert index.row.tolist() == [r for r in range(8, 28) if r not in (19, 20, 21)]
    assert index.counts == {"too_short": 3, "no_price": 3, "flat": 5}
    needs_all = WindowIndex.from_panel(panel, SPEC.replace(style="cnn_for_trading"))
    assert needs_all.row.tolist() == [*range(11, 16), 25, 26, 27]
    expected = {"too_short": 3, "no_price": 3, "flat": 5, "missing_price": 6, "flat_bars": 3}
    assert needs_all.counts == expected
    needs_volume = WindowIndex.from_panel(panel, ImageSpec(4, 32, style="cnn_for_trading", volume=True))
    assert needs_volume.counts["constant_volume"] == 5


def test_infinite_prices_are_never_drawn():
    rows = bars(12)
    rows[5, 1] = np.inf
    days = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 1, 12), eager=True)
    panel = Panel.from_table(table("A", days, values=rows), on_bad="keep", progress=False)
    index = WindowIndex.from_panel(panel, SPEC)
    kept_as_it_is = bool(np.isinf(panel.bars).any())
    if kept_as_it_is:
        assert index.counts == {"too_short": 3, "infinite": 4}
        assert index.row.tolist() == [3, 4, 9, 10, 11]
    else:
        assert np.isnan(panel.bars[5, 1])
        assert index.counts == {"too_short": 3}


def test_every_candidate_is_kept_or_counted_once():
    """Everything at once: each row of the panel is a window, a drop of one reason, or no candidate."""
    rng = np.random.default_rng(3)
    tables = []
    for name in "ABCDE":
        days = weekdays(dt.date(2020, 1, 1), 300)
        days = days.filter(rng.random(300) < 0.93)
        rows = bars(len(days), rng.integers(99))
        rows[1:][rng.random(len(days) - 1) < 0.1, :4] = np.nan
        rows[50:90, :4] = rows[0, 0]
        tables.append(
            table(name, days, values=rows).with_columns(eligible=pl.Series(rng.random(len(days)) < 0.9))
        )
    panel = read(*tables, on_bad="keep")
    spec = ImageSpec(5, ma=(10,), max_missing=2)
    index = WindowIndex.from_panel(
        panel, spec, "week", start="2020-01-02", end="2020-11-30", sample=0.7, max_gap="4d"
    )
    scheduled = WindowIndex.from_panel(panel, ImageSpec(1, 2, style="image_trading"), "week")
    reasons = {
        "too_short",
        "ma_warmup",
        "masked",
        "sampled_out",
        "gap",
        "missing_bars",
        "flat",
        "absent_at_end",
    }
    assert set(index.counts) == reasons
    assert all(n > 0 for n in index.counts.values())
    weeks = expected_pairs(
        panel.to_polars(), 1, PERIODS["week"], start=dt.datetime(2020, 1, 2), end=dt.datetime(2020, 11, 30)
    )
    assert index.candidates == len(weeks[0]) + index.counts["absent_at_end"]
    assert len(index) + sum(index.counts.values()) == index.candidates
    assert scheduled.candidates > index.candidates


# ---- order and parts


def test_order_is_time_then_instrument(market):
    index = WindowIndex.from_panel(read(market), SPEC)
    order = np.lexsort([index.instrument, index.time])
    assert np.array_equal(order, np.arange(len(index)))
    assert index.row.dtype == np.int64
    assert index.instrument.dtype == np.int32
    offsets = index.panel.offsets
    assert (offsets[index.instrument] <= index.row - SPEC.lookback + 1).all()
    assert (index.row < offsets[index.instrument + 1]).all()


def test_order_of_instruments_given_as_arrays_is_theirs():
    close = np.cumsum(np.random.default_rng(0).normal(0, 1, (12, 3)), axis=0) * 0.1 + 50
    days = np.arange("2020-01-01", "2020-01-13", dtype="datetime64[D]")
    panel = Panel.from_arrays(
        close, close + 0.1, close - 0.1, close + 0.05, instruments=["Z", "B", "M"], time=days, progress=False
    )
    index = WindowIndex.from_panel(panel, SPEC)
    assert index.to_polars()["instrument"].to_list() == ["Z", "B", "M"] * 9


def test_parts_of_an_index(market):
    index = WindowIndex.from_panel(read(market), SPEC, "week")
    n = len(index)
    mask = np.arange(n) % 3 == 0
    for part, positions in [
        (slice(5, 20), range(5, 20)),
        (slice(None, None, -1), range(n - 1, -1, -1)),
        (mask, np.flatnonzero(mask)),
        (np.array([7, 3, 3]), [7, 3, 3]),
        (4, [4]),
        (-1, [n - 1]),
        (slice(0, 0), []),
    ]:
        some = index[part]
        assert pairs(some) == [pairs(index)[i] for i in positions]
        assert some.candidates == len(some) == len(positions)  # nothing was dropped in this part
        assert (some.spec, some.panel, some.schedule) == (index.spec, index.panel, index.schedule)
    with pytest.raises(IndexError):
        index[n]


def test_an_index_can_not_be_changed(market):
    index = WindowIndex.from_panel(read(market), SPEC)
    before = render_panel(index.panel, index)
    for some in (index, index[3:], index[[1, 5]], pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        for array in (some.row, some.instrument):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    assert np.array_equal(render_panel(index.panel, index), before)
    # Whoever gave the arrays may write his own.
    row, instrument = index.row.copy(), index.instrument.copy()
    own = WindowIndex(index.panel, SPEC, row, instrument, {}, {})
    assert row.flags.writeable
    assert instrument.flags.writeable
    assert not own.row.flags.writeable


def test_an_index_remembers_how_it_was_chosen(market):
    panel = read(market)
    mask = np.arange(len(panel)) % 2 == 0
    index = WindowIndex.from_panel(
        panel, SPEC, np.int64(3), start="2020-01-02", end=dt.date(2020, 5, 5), mask=mask,
        sample=np.float32(0.5), seed=np.int64(9), max_gap="5d",
    )  # fmt: skip
    schedule = json.loads(json.dumps(index.schedule))  # a store keeps it as JSON
    assert schedule == index.schedule
    assert (schedule["every"], schedule["sample"], schedule["seed"]) == (3, 0.5, 9)
    assert schedule["start"] == "2020-01-02"
    assert schedule["end"].startswith("2020-05-05")
    assert schedule["max_gap_ns"] == 5 * DAY
    other = WindowIndex.from_panel(panel, SPEC, mask=~mask).schedule
    assert other["mask"] not in (None, schedule["mask"])
    assert WindowIndex.from_panel(panel, SPEC).schedule == {
        "every": "bar", "start": None, "end": None, "mask": None, "sample": None,
        "seed": None, "max_gap_ns": None,
        "periods": None,
    }  # fmt: skip


def test_spec_by_name_and_panel_by_table(market):
    by_name = WindowIndex.from_panel(market, "jkx5")
    assert by_name.spec == ImageSpec.preset("jkx5")
    assert pairs(by_name) == pairs(
        WindowIndex.from_panel(read(market), {"lookback": 5, "ma": [5], "volume": True})
    )
    assert render_panel(by_name.panel, by_name).shape == (len(by_name), 32, 15)


# ---- sampling


def names(index):
    return set(pairs(index))


def test_sample_keeps_its_share_and_counts_the_rest():
    times = pl.datetime_range(dt.datetime(2000, 1, 1), dt.datetime(2000, 12, 31), "1h", eager=True)
    panel = read(*(table(f"S{i}", times, i) for i in range(4)))
    n = len(WindowIndex.from_panel(panel, SPEC))
    for share in (0.01, 0.3, 0.9):
        for seed in (0, 1):
            index = WindowIndex.from_panel(panel, SPEC, sample=share, seed=seed)
            # five standard deviations of a binomial
            assert abs(len(index) - share * n) < 5 * np.sqrt(n * share * (1 - share))
            assert index.counts["sampled_out"] == n - len(index)
            by_stock = np.bincount(index.instrument) / (n / 4)
            assert np.abs(by_stock - share).max() < 5 * np.sqrt(share * (1 - share) / (n / 4))
    # A window survives a smaller sample only if it survives a larger one; seeds are independent.
    small, large = (WindowIndex.from_panel(panel, SPEC, sample=s) for s in (0.3, 0.9))
    assert names(small) < names(large)
    other = WindowIndex.from_panel(panel, SPEC, sample=0.3, seed=1)
    both = len(names(small) & names(other))
    assert abs(both - 0.09 * n) < 5 * np.sqrt(n * 0.09 * 0.91)
    # neighbouring bars, and the same bar of two stocks, are drawn independently
    kept = np.zeros((4, len(times)), bool)
    kept[small.instrument, small.row - panel.offsets[small.instrument]] = True
    kept = kept[:, 3:]
    for a, b in [(kept[:, 1:], kept[:, :-1]), (kept[0], kept[1]), (kept[2], kept[3])]:
        assert abs((a & b).mean() - 0.09) < 5 * np.sqrt(0.09 * 0.91 / a.size)


def test_sample_of_one_is_everything(market):
    panel = read(market)
    assert pairs(WindowIndex.from_panel(panel, SPEC, sample=1.0)) == pairs(
        WindowIndex.from_panel(panel, SPEC)
    )


def test_sample_never_moves(market):
    """The draw hashes instrument, time and seed: a change of the hash would break every append."""
    index = WindowIndex.from_panel(
        read(market), SPEC, sample=0.02, seed=3, start="2020-01-01", end="2020-06-30"
    )
    assert [(name, str(time.date())) for name, time in pairs(index)] == PINNED_SAMPLE


PINNED_SAMPLE = [
    ("C", "2020-01-27"),
    ("C", "2020-02-11"),
    ("C", "2020-06-05"),
    ("A", "2020-06-08"),
    ("A", "2020-06-09"),
]


# ---- neither the future nor the neighbours have a say


@st.composite
def markets(draw):
    """A few instruments by name, on a common calendar of days, holes, missing bars, flat stretches."""
    tables = {}
    for name in draw(st.lists(st.sampled_from("ABCDEF"), min_size=1, max_size=4, unique=True)):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        n = draw(st.integers(1, 60))
        days = np.flatnonzero(rng.random(90) < draw(st.sampled_from([0.6, 1.0])))[:n]
        rows = bars(len(days), draw(st.integers(0, 99)))
        rows[rng.random(len(days)) < draw(st.sampled_from([0.0, 0.3])), :4] = np.nan
        rows[3:9] = rows[3:4] if len(rows) > 3 else 1.0
        times = [dt.date(2020, 1, 1) + dt.timedelta(days=int(d)) for d in days]
        frame = table(name, pl.Series(times, dtype=pl.Date), values=rows)
        tables[name] = frame.with_columns(eligible=pl.Series(rng.random(len(days)) < 0.9, dtype=pl.Boolean))
    return {name: frame for name, frame in tables.items() if frame.height}


@st.composite
def arguments(draw):
    ma = draw(st.sampled_from([(), (3,), (8,)]))
    spec = ImageSpec(
        draw(st.integers(1, 6)), 16, ma=ma, ma_warmup=draw(st.sampled_from(["drop", "omit"])),
        max_missing=draw(st.sampled_from([None, 0, 2])),
    )  # fmt: skip
    how = {
        "sample": draw(st.sampled_from([None, 0.5])),
        "seed": draw(st.integers(0, 5)),
        "max_gap": draw(st.sampled_from([None, "2d"])),
        "start": draw(st.sampled_from([None, "2019-06-01"])),
    }
    return spec, how


def indexed(tables, spec, every, **how):
    return WindowIndex.from_panel(read(*tables, on_bad="keep"), spec, every, **how)


@given(markets(), arguments(), st.integers(1, 80))
@settings(max_examples=40)
def test_later_bars_change_no_earlier_window(market, how, today):
    spec, how = how
    cut = dt.date(2020, 1, 1) + dt.timedelta(days=today)
    known = [frame.filter(pl.col("time") <= cut) for frame in market.values()]
    if not sum(frame.height for frame in known):
        return
    for every in ("bar", 3):
        try:
            before = indexed([f for f in known if f.height], spec, every, **how)
        except ValueError:
            continue  # no bar on the schedule yet
        after = indexed(market.values(), spec, every, **how)
        earlier = [pair for pair in pairs(after) if pair[1].date() <= cut]
        assert pairs(before) == earlier


@given(markets(), arguments())
@settings(max_examples=40)
def test_other_instruments_have_no_say(market, how):
    spec, how = how
    together = pairs(indexed(market.values(), spec, "bar", **how))
    apart = [pair for frame in market.values() for pair in pairs(indexed([frame], spec, "bar", **how))]
    assert together == sorted(apart, key=lambda pair: (pair[1], pair[0]))


@given(markets(), arguments(), st.sampled_from(["bar", "week", "month", 4]))
@settings(max_examples=40)
def test_counts_add_up_and_threads_do_not_matter(market, how, every):
    spec, how = how
    how["periods"] = COMPLETE
    try:
        index = indexed(market.values(), spec, every, **how)
    except ValueError:
        assert every == 4
        return
    rows = pl.concat(market.values())
    nth = every if isinstance(every, int) else None
    candidates, _ = expected_pairs(rows, 1, PERIODS.get(every), nth)
    missed = absent(rows, PERIODS[every]) if every in PERIODS else 0
    assert index.candidates == len(candidates) + missed
    one = WindowIndex.from_panel(index.panel, spec, every, threads=1, **how)
    assert np.array_equal(one.row, index.row)
    assert one.counts == index.counts


# ---- errors


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"every": "fortnight"},
            "every='fortnight' is not known: choose one of 'bar', 'day', 'week', 'month'",
        ),
        ({"every": 0}, "every=0: give a whole number of bars of at least 1, or one of 'bar'"),
        ({"every": -3}, "every=-3: give a whole number of bars"),
        ({"every": 2.5}, "every=2.5: give a whole number of bars"),
        ({"every": True}, "every=True: give a whole number of bars"),
        ({"every": None}, "every=None: give a whole number of bars"),
        (
            {"start": "2020-06-01", "end": "2020-05-01"},
            "start='2020-06-01' lies after end='2020-05-01': swap them",
        ),
        (
            {"start": "2031-01-01"},
            "no bar lies between start='2031-01-01' and end=None .* covers 2019-11-04 to 2021-",
        ),
        ({"end": "2011-01-01"}, "no bar lies between start=None and end='2011-01-01'"),
        ({"every": 10**30}, "no bar lies between start=None and end=None on the schedule every=1000"),
        ({"start": "yesterday"}, "'yesterday' is not a time"),
        ({"sample": 0}, "sample=0: give a number above 0 and at most 1"),
        ({"sample": 1.01}, "sample=1.01: give a number above 0 and at most 1"),
        ({"sample": -0.1}, "give a number above 0 and at most 1"),
        ({"sample": float("nan")}, "sample=nan: give a number above 0 and at most 1"),
        ({"sample": "half"}, "sample='half': give a number above 0 and at most 1"),
        ({"sample": True}, "sample=True: give a number above 0 and at most 1"),
        ({"sample": [0.5]}, "give a number above 0 and at most 1"),
        ({"sample": 0.5, "seed": None}, "seed=None: give a whole number"),
        ({"sample": 0.5, "seed": 1.5}, "seed=1.5: give a whole number"),
        ({"seed": "x"}, "seed='x': give a whole number"),
        (
            {"mask": np.ones(3, bool)},
            r"mask is bool \(3,\), expected bool \(\d+,\): one flag for each panel row",
        ),
        ({"mask": [1, 0]}, r"mask is int64 \(2,\), expected bool"),
        ({"max_gap": "10 parsecs"}, "'10 parsecs' is not a duration: give a number with a unit"),
        ({"max_gap": "10"}, "max_gap='10' is not a duration"),
        ({"max_gap": "-3d"}, "is not a duration"),
        ({"max_gap": dt.timedelta(days=-1)}, "is not a duration.*not below 0"),
        ({"max_gap": -1}, "-1 is not a duration"),
        ({"max_gap": 1.5}, "1.5 is not a duration"),
        ({"max_gap": True}, "True is not a duration"),
        ({"max_gap": np.timedelta64("NaT", "D")}, "is not a duration"),
        ({"max_gap": np.timedelta64(1, "M")}, "is not a duration"),
    ],
    ids=str,
)
def test_refuses_and_says_why(market, how, message):
    with pytest.raises(ValueError, match=message):
        WindowIndex.from_panel(read(market), SPEC, **how)


def test_time_with_a_zone_for_bars_without_one(market):
    with pytest.raises((TypeError, ValueError), match="zone"):
        WindowIndex.from_panel(read(market), SPEC, start=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


def test_rebuilding_without_returns_is_refused(market):
    with pytest.raises(ValueError, match="needs total returns, but the panel has no optional fields"):
        WindowIndex.from_panel(read(market), ImageSpec(4, 16, rebuild="returns"))


def test_limit_of_centuries_is_no_limit(market):
    panel = read(market)
    for gap in ("999999999d", 10**30):
        assert len(WindowIndex.from_panel(panel, SPEC, max_gap=gap)) == len(
            WindowIndex.from_panel(panel, SPEC)
        )
