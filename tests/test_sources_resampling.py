"""Resampling: against polars, across clock changes, sessions and gaps; no partial bar is ever kept."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pricepix as pp
from pricepix.bars import Session, resample

MINUTE = 60_000_000_000


def minutes(times, tz=None, **columns) -> pp.Panel:
    """Bars of one instrument whose close counts up from 1."""
    n = len(times)
    close = np.arange(1.0, n + 1)
    table = {
        "time": times,
        "open": close - 0.5,
        "high": close + 1,
        "low": close - 0.75,
        "close": close,
        "volume": close,
    }
    return pp.Panel.from_table(pl.DataFrame(table | columns), tz=tz, progress=False)


def stamps(panel: pp.Panel) -> list[str]:
    return [panel.stamp(int(t)) for t in panel.time]


def grid(start: str, n: int, step: str = "1m") -> pl.Series:
    first = np.datetime64(start, "ns")
    return pl.Series(first + np.arange(n) * np.timedelta64(int(step[:-1]), step[-1]))


@pytest.mark.parametrize("every", ["5m", "15m", "1h", "1d"])
def test_real_minutes_equal_those_of_polars(shared, every):
    table = pl.read_parquet(shared / "data" / "lean_minute.parquet")
    ours = resample(table, every, until="2030-01-01").to_polars()
    theirs = (
        table.sort("ticker", "ts")
        .group_by_dynamic("ts", every=every, group_by="ticker", closed="left", label="left")
        .agg(
            pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last(),
            pl.col("volume").sum(),
        )
        .sort("ticker", "ts")
        .rename({"ticker": "instrument", "ts": "time"})
        .with_columns(pl.col("time").cast(pl.Datetime("ns")))
    )  # fmt: skip
    assert len(ours) > 20
    assert ours.equals(theirs)


def test_real_minutes_can_be_drawn(shared):
    panel = resample(
        str(shared / "data" / "lean_minute.parquet"), "5min", session="us", columns={"time": "ts"}
    )
    assert any("outside the session" in remark for remark in panel.report.remarks)
    store = pp.render_universe(panel, pp.ImageSpec.preset("jkx20"), horizons=(1,), progress=False)
    assert len(store) > 500
    assert store.read().any(axis=(1, 2)).all()


@given(data=st.data())
@settings(max_examples=30)
def test_any_minutes_equal_those_of_polars(data):
    """Missing prices and minutes, several instruments, any length that divides a day."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    every = data.draw(st.sampled_from(["2m", "5m", "30m", "4h", "1d"]))
    frames = []
    for name in "AB":
        at = np.flatnonzero(rng.random(2000) < rng.uniform(0.1, 1))[: rng.integers(5, 500)]
        close = rng.integers(100, 200, len(at)).astype(float)
        bars = {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": close}
        bars = {key: np.where(rng.random(len(at)) < 0.1, np.nan, values) for key, values in bars.items()}
        time = np.datetime64("2024-03-09T20:00", "ns") + at * np.timedelta64(1, "m")
        frames.append(pl.DataFrame({"instrument": [name] * len(at), "time": time, **bars}))
    table = pl.concat(frames).with_columns(pl.col(pl.Float64).fill_nan(None))
    until = "2024-04-01"
    ours = (
        resample(table, every, until=until, step="1min")
        .to_polars()
        .with_columns(pl.col(pl.Float64).fill_nan(None))
    )
    theirs = (
        table.group_by_dynamic("time", every=every, group_by="instrument", closed="left", label="left")
        .agg(
            pl.col("open").drop_nulls().first(), pl.col("high").max(), pl.col("low").min(),
            pl.col("close").drop_nulls().last(),
            pl.when(pl.col("volume").count() > 0).then(pl.col("volume").sum()).alias("volume"),
        )
        .sort("instrument", "time")
    )  # fmt: skip
    assert ours.equals(theirs.with_columns(pl.col("time").cast(pl.Datetime("ns"))))


def test_the_partial_last_bar_is_dropped():
    table = minutes(grid("2024-01-02T00:00", 8))
    short = resample(table, "5min")
    assert stamps(short) == ["2024-01-02"]
    assert short.bars[0].tolist() == [0.5, 6, 0.25, 5, 15]
    assert any("1 partial last bars" in remark for remark in short.report.remarks)
    assert len(resample(table, "5min", until="2024-01-02 00:10")) == 2
    assert len(resample(minutes(grid("2024-01-02T00:00", 10)), "5min")) == 2


def test_each_instrument_ends_with_its_own_data():
    times = pl.concat([grid("2024-01-02T00:00", 10), grid("2024-01-02T00:00", 7)])
    table = minutes(times, instrument=["A"] * 10 + ["B"] * 7)
    assert np.diff(resample(table, "5min").offsets).tolist() == [2, 1]
    assert np.diff(resample(table, "5min", until="all").offsets).tolist() == [2, 2]


def test_later_data_change_no_bar_that_was():
    table = minutes(grid("2024-01-02T00:00", 60))
    whole = resample(table, "5min")
    for n in range(5, 60):
        part = resample(table.select(end=int(table.time[n - 1])), "5min")
        np.testing.assert_array_equal(part.bars, whole.bars[: len(part)])
        np.testing.assert_array_equal(part.time, whole.time[: len(part)])


@pytest.mark.parametrize(("day", "hours"), [("2024-03-10", 23), ("2024-11-03", 25), ("2024-06-03", 24)])
def test_days_on_which_the_clocks_change(day, hours):
    """New York, minute by minute: hours are hours, days are days, and every minute lands in one bar."""
    # Midnight of the day in spring still has winter's time, that of the day in autumn summer's.
    behind = 5 if day == "2024-03-10" else 4
    first = int(np.datetime64(day, "ns").astype(np.int64)) + behind * 60 * MINUTE
    times = pl.Series(first + np.arange(hours * 60) * MINUTE).cast(pl.Datetime("ns", "UTC"))
    panel = minutes(times.dt.convert_time_zone("America/New_York"))
    hourly = resample(panel, "1h")
    assert len(hourly) == hours
    assert set(np.diff(hourly.time)) == {60 * MINUTE}
    assert hourly.bars[:, 4].sum() == panel.bars[:, 4].sum()
    daily = resample(panel, "1d")
    assert stamps(daily)[0].startswith(f"{day} 00:00:00")
    assert len(daily) == 1
    assert daily.bars[0].tolist() == [
        0.5,
        hours * 60 + 1,
        0.25,
        hours * 60,
        hours * 60 * (hours * 60 + 1) / 2,
    ]
    four = resample(panel, "4h", label="end")
    assert len(four) == -(-hours // 4)
    assert four.time[-1] == first + hours * 60 * MINUTE
    # In UTC the same minutes know of no change.
    utc = minutes(times)
    assert set(np.diff(resample(utc, "1h").time)) == {60 * MINUTE}


def test_zones_are_those_of_the_wall_or_of_the_table():
    aware = minutes(grid("2024-01-02T00:00", 1440 * 2), tz="Asia/Kolkata")
    naive = minutes(grid("2024-01-02T00:00", 1440 * 2))
    assert stamps(resample(aware, "1d"))[0] == "2024-01-02 00:00:00+05:30"
    assert stamps(resample(naive, "1d")) == ["2024-01-02", "2024-01-03"]


def test_a_session_ends_bars_at_lunch_and_night():
    """Chinese five-minute bars, stamped with their ends, become the nine half-hours."""
    session = Session.of("ashare")
    days = ["2021-01-07", "2021-01-08", "2021-01-11"]
    times = [f"{day} {clock}" for day in days for clock in session.stamps("5min")]
    panel = resample(minutes(times), "30min", session=session, stamps="end")
    assert [s[11:] for s in stamps(panel)[:9]] == session.stamps("30min")
    assert len(panel) == 27
    first_day = panel.bars[:9]
    assert first_day[0].tolist() == [0.5, 2, 0.25, 1, 1]  # the auction alone
    assert first_day[1].tolist() == [1.5, 8, 1.25, 7, sum(range(2, 8))]
    assert first_day[4].tolist() == [19.5, 26, 19.25, 25, sum(range(20, 26))]  # ends with the morning
    assert first_day[5].tolist() == [25.5, 32, 25.25, 31, sum(range(26, 32))]  # begins after lunch
    daily = resample(minutes(times), "1d", session=session, stamps="end")
    assert daily.bars[:, 3].tolist() == [49, 98, 147]
    assert [s[11:] for s in stamps(daily)] == ["15:00"] * 3


def test_minutes_outside_of_the_session_are_left_out_and_told():
    panel = resample(minutes(grid("2024-01-02T09:00", 60), tz="America/New_York"), "10min", session="us")
    assert stamps(panel) == [f"2024-01-02 09:{m}0:00-05:00" for m in (3, 4, 5)]
    assert "30 bars outside the session were left out" in panel.report.remarks
    with pytest.raises(ValueError, match="none of the 60 bars lies within the session"):
        resample(minutes(grid("2024-01-02T03:00", 60)), "10min", session="us")
    with pytest.raises(ValueError, match="read them with tz='America/New_York'"):
        resample(minutes(grid("2024-01-02T15:00", 60), tz="UTC"), "10min", session="us")


def test_gaps_can_be_bars():
    times = pl.concat(
        [grid("2024-01-02T00:00", 30), grid("2024-01-02T00:05", 5), grid("2024-01-02T00:20", 10)]
    )
    table = minutes(times, instrument=["A"] * 30 + ["B"] * 15, up_limit=[True] * 45)
    absent, there = resample(table, "5min"), resample(table, "5min", gaps="missing")
    assert np.diff(absent.offsets).tolist() == [6, 3]
    assert np.diff(there.offsets).tolist() == [6, 5]
    rows = there.rows_of("B")
    assert np.isnan(there.bars[rows, 3]).tolist() == [False, True, True, False, False]
    assert there.fields["up_limit"][rows].tolist() == [True, False, False, True, True]
    np.testing.assert_array_equal(there.time[rows], there.time[there.rows_of("A")][1:])


def test_fields_are_merged():
    panel = minutes(
        grid("2024-01-02T00:00", 4), total_return=[0.1, 0.1, None, 0.5], market_cap=[1.0, 2, 3, 4],
        up_limit=[True, False, False, True], eligible=[False, True, True, False],
    )  # fmt: skip
    merged = resample(panel, "2min")
    np.testing.assert_allclose(merged.fields["total_return"], [0.21, 0.5])
    assert merged.fields["market_cap"].tolist() == [2, 4]
    assert merged.fields["up_limit"].tolist() == [False, True]
    assert merged.fields["eligible"].tolist() == [True, False]


def test_one_file_an_instrument(tmp_path):
    for name in ("BTC", "ETH"):
        minutes(grid("2024-01-02T00:00", 20)).to_polars().drop("instrument").write_csv(
            tmp_path / f"{name}.csv"
        )
    panel = resample(tmp_path, "10min", tz="UTC", progress=False)
    assert panel.instruments.tolist() == ["BTC", "ETH"]
    assert np.diff(panel.offsets).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": "30s"}, "is not a whole number"),
        ({"every": "90s"}, "is not a whole number"),
        ({"every": "7min"}, "fraction of a day"),
        ({"every": "5min", "stamps": "middle"}, "stamps='middle'"),
        ({"every": "5min", "gaps": "fill"}, "gaps='fill'"),
        ({"every": "1d"}, "no bar of '1d' is complete"),
    ],
)
def test_what_cannot_be_merged_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resample(minutes(grid("2024-01-02T00:00", 20)), **arguments)


def test_the_report_counts_the_instruments_of_a_selection():
    two = pl.concat(
        minutes(grid("2024-01-02T00:00", 10)).to_polars().with_columns(instrument=pl.lit(n)) for n in "AB"
    )
    selected = resample(pp.Panel.from_table(two, progress=False).select(["B"]), "5min")
    assert (selected.report.rows, selected.report.instruments) == (2, 1)


def test_a_single_bar_has_no_length():
    with pytest.raises(ValueError, match="pass step="):
        resample(minutes(grid("2024-01-02T00:00", 1)), "5min")
