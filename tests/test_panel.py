"""What a panel is and holds, what the checks on entry find and do, and how to look things up in it."""

from __future__ import annotations

import datetime as dt
import pickle
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricepix.bars import hashing
from pricepix.bars.panel import Panel, panel_digest
from pricepix.bars.report import ERRORS, NOTES, PanelReport

DAY = 86_400_000_000_000
NAN = float("nan")
INF = float("inf")


def table(*rows, **columns) -> pl.DataFrame:
    """Rows of (instrument, day of January 2020, open, high, low, close, volume)."""
    frame = pl.DataFrame(
        [(r[0], dt.date(2020, 1, r[1]), *map(float, r[2:])) for r in rows],
        schema=["instrument", "time", "open", "high", "low", "close", "volume"],
        orient="row",
        strict=False,
    )
    return frame.with_columns(**{k: pl.Series(v, strict=False) for k, v in columns.items()})


GOOD = (
    ("A", 2, 1, 3, 1, 2, 10),
    ("A", 3, 2, 3, 1, 2, 0),
    ("A", 6, 2, 2, 2, 2, NAN),
    ("B", 2, 5, 6, 4, 5, 20),
    ("B", 3, 5, 6, 4, 5, 30),
)


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


# -------------------------------------------------------------------------------------------- what is found

# kind, the bar of A on January 3 that has it, what drop_bar leaves
FAULTS = [
    ("high_below_low", (2, 1, 3, 2, 0)),
    ("nonpositive_price", (0, 3, 1, 2, 0)),
    ("nonpositive_price", (2, 3, -1, 2, 0)),
    ("nonpositive_price", (-2, -3, -1, -2, 0)),
    ("infinite_price", (2, INF, 1, 2, 0)),
    ("infinite_price", (2, 3, -INF, 2, 0)),
    ("infinite_volume", (2, 3, 1, 2, INF)),
    ("infinite_volume", (2, 3, 1, 2, -INF)),
    ("negative_volume", (2, 3, 1, 2, -5)),
]


@pytest.mark.parametrize(("kind", "bar"), FAULTS)
def test_faults_of_a_bar(kind, bar):
    rows = (*GOOD[:1], ("A", 3, *bar), *GOOD[2:])
    frame = table(*rows)
    with pytest.raises(ValueError, match=f"bars that cannot be right: (.*, )?1 {kind}") as caught:
        Panel.from_table(frame)
    text = str(caught.value)
    assert ERRORS[kind] in text
    assert f"A 2020-01-03: open {bar[0]:g}, high {bar[1]:g}, low {bar[2]:g}, close {bar[3]:g}" in text
    assert "on_bad='drop_bar'" in text
    assert "on_bad='keep'" in text

    dropped = Panel.from_table(frame, on_bad="drop_bar")
    assert len(dropped) == 5
    assert np.isnan(dropped.bars[1]).all()
    np.testing.assert_array_equal(
        dropped.bars[[0, 2, 3, 4]], Panel.from_table(table(*GOOD)).bars[[0, 2, 3, 4]]
    )
    assert dropped.report.counts[kind] == 1
    assert dropped.report.dropped == 1
    assert not dropped.report.ok
    assert dropped.report.examples[kind][0][2:] == pytest.approx(bar)

    kept = Panel.from_table(frame, on_bad="keep")
    np.testing.assert_array_equal(kept.bars[1], bar)
    assert kept.report.counts[kind] == 1
    assert kept.report.dropped == 0


def test_one_error_names_everything():
    frame = table(
        *[("A", d, 0, 3, 1, 2, 1) for d in range(1, 9)],
        ("B", 1, 1, 1, 2, 1, 1),
        ("B", 2, 1, 2, 1, 1, 1),
        ("B", 2, 1, 2, 1, 2, 1),
    )
    with pytest.raises(ValueError, match="1 duplicate_time, 1 high_below_low, 8 nonpositive_price") as caught:
        Panel.from_table(frame)
    text = str(caught.value)
    assert "A 2020-01-05: " in text
    assert "A 2020-01-06: " not in text
    assert "and 3 more" in text
    assert "B 2020-01-02: open 1, high 2, low 1, close 2, volume 1" in text
    assert "negative_prices='midpoint'" in text
    assert "on_bad='keep'" not in text  # It could not keep the duplicate.


def test_duplicate_times():
    frame = table(*GOOD[:2], ("A", 3, 7, 7, 7, 7, 7), *GOOD[2:], total_return=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    with pytest.raises(ValueError, match="1 duplicate_time"):
        Panel.from_table(frame)
    with pytest.raises(
        ValueError,
        match=r"(?s)cannot keep two rows of one instrument at one time.*A 2020-01-03: open 7.*first of each",
    ):
        Panel.from_table(frame, on_bad="keep")
    panel = Panel.from_table(frame, on_bad="drop_bar")
    np.testing.assert_array_equal(panel.bars, Panel.from_table(table(*GOOD)).bars)
    assert panel.offsets.tolist() == [0, 3, 5]
    assert panel.fields["total_return"].tolist() == [0.1, 0.2, 0.4, 0.5, 0.6]
    assert panel.report.counts == {"duplicate_time": 1}
    assert panel.report.dropped == 1


def test_one_time_in_two_instruments_is_no_duplicate():
    assert Panel.from_table(table(("A", 2, 1, 1, 1, 1, 1), ("B", 2, 1, 1, 1, 1, 1))).report.ok


def test_impossible_returns():
    frame = table(*GOOD, total_return=[NAN, -66.0, -1.0, INF, 0.5])
    with pytest.raises(ValueError, match="2 impossible_return"):
        Panel.from_table(frame)
    panel = Panel.from_table(frame, on_bad="drop_bar")
    np.testing.assert_array_equal(panel.fields["total_return"], [NAN, NAN, -1.0, NAN, 0.5])
    np.testing.assert_array_equal(panel.bars, Panel.from_table(table(*GOOD)).bars)
    kept = Panel.from_table(frame, on_bad="keep")
    np.testing.assert_array_equal(kept.fields["total_return"], [NAN, -66.0, -1.0, INF, 0.5])


def test_a_dropped_bar_keeps_its_return():
    frame = table(("A", 2, 1, 1, 2, 1, 1), ("A", 3, 1, 1, 1, 1, 1), total_return=[0.1, 0.2])
    panel = Panel.from_table(frame, on_bad="drop_bar")
    assert panel.fields["total_return"].tolist() == [0.1, 0.2]


NOTED = [
    ("missing_bar", (NAN, NAN, NAN, NAN, 5)),
    ("missing_bar", (None, None, None, None, None)),
    ("partial_bar", (NAN, 3, 1, 2, 5)),
    ("partial_bar", (2, 3, 1, None, 5)),
    ("outside_range", (4, 3, 1, 2, 5)),
    ("outside_range", (2, 3, 1, 0.5, 5)),
]


@pytest.mark.parametrize(("kind", "bar"), NOTED)
def test_notes_are_never_errors(kind, bar):
    frame = table(*GOOD).with_columns(
        pl.Series(name, [values[0], bar[k], *values[2:]], dtype=pl.Float64)
        for k, (name, values) in enumerate(
            (n, table(*GOOD)[n].to_list()) for n in ("open", "high", "low", "close", "volume")
        )
    )
    panel = Panel.from_table(frame)
    assert panel.report.counts == {kind: 1}
    assert panel.report.ok
    assert panel.report.notes == {kind: 1}
    assert panel.report.examples[kind][0][:2] == ("A", "2020-01-03")
    np.testing.assert_array_equal(panel.bars[1], [NAN if x is None else x for x in bar])


def test_zero_volume_stays_zero_and_no_volume_is_missing():
    panel = Panel.from_table(table(*GOOD))
    assert panel.bars[1, 4] == 0.0
    assert np.isnan(panel.bars[2, 4])
    assert np.isnan(Panel.from_table(table(*GOOD).drop("volume")).bars[:, 4]).all()


def test_unsorted_times_are_sorted_and_counted():
    panel = Panel.from_table(table(*[GOOD[k] for k in (1, 4, 0, 2, 3)]))
    assert panel.digest == Panel.from_table(table(*GOOD)).digest
    assert panel.report.counts == {"unsorted_time": 2}
    assert "rows came before the row above them" in str(panel.report)


def test_instruments_interleaved_by_time_are_not_unsorted():
    panel = Panel.from_table(table(*[GOOD[k] for k in (0, 3, 1, 4, 2)]))
    assert panel.digest == Panel.from_table(table(*GOOD)).digest
    assert not panel.report.counts


def test_midpoints():
    frame = table(("A", 2, -2, -3, -1, -2, 10), ("A", 3, 2, 3, 1, -2, 10), ("A", 6, 2, 3, 1, 2, 10))
    with pytest.raises(ValueError, match="2 nonpositive_price"):
        Panel.from_table(frame)
    panel = Panel.from_table(frame, negative_prices="midpoint")
    assert (panel.bars == [2, 3, 1, 2, 10]).all()
    assert panel.report.counts == {"midpoint_price": 2}
    assert panel.report.examples["midpoint_price"][0].close == -2.0
    with pytest.raises(ValueError, match="1 high_below_low"):
        Panel.from_table(table(("A", 2, -2, -1, -3, -2, 10)), negative_prices="midpoint")
    with pytest.raises(ValueError, match="1 nonpositive_price"):
        Panel.from_table(table(("A", 2, 0, 3, 1, 2, 10)), negative_prices="midpoint")


def test_midpoints_beside_bars_that_are_dropped():
    frame = table(("A", 2, -2, -3, -1, -2, 10), ("A", 3, 2, 1, 3, -2, 10))
    panel = Panel.from_table(frame, negative_prices="midpoint", on_bad="drop_bar")
    np.testing.assert_array_equal(panel.bars, [[2, 3, 1, 2, 10], [NAN] * 5])


# --------------------------------------------------------------------------------------------------- factors


def test_adjustment():
    frame = table(*GOOD, adjustment_factor=[2.0, 2.0, 1.0, 4.0, 1.0], total_return=[0.1] * 5)
    raw = np.array([r[2:] for r in GOOD], float)
    factor = np.array([2.0, 2, 1, 4, 1])
    plain = Panel.from_table(frame)
    np.testing.assert_array_equal(plain.bars, raw)
    assert plain.report.counts == {"unapplied_factor": 3}
    divided = Panel.from_table(frame, adjust="divide")
    np.testing.assert_array_equal(divided.bars[:, :4], raw[:, :4] / factor[:, None])
    np.testing.assert_array_equal(divided.bars[:, 4], raw[:, 4] * factor)
    assert not divided.report.counts
    multiplied = Panel.from_table(frame, adjust="multiply")
    np.testing.assert_array_equal(multiplied.bars[:, :4], raw[:, :4] * factor[:, None])
    np.testing.assert_array_equal(multiplied.bars[:, 4], raw[:, 4] / factor)
    assert multiplied.fields["adjustment_factor"].tolist() == factor.tolist()
    assert multiplied.fields["total_return"].tolist() == [0.1] * 5


def test_a_factor_of_one_is_nothing_to_note():
    assert not Panel.from_table(table(*GOOD, adjustment_factor=[1.0] * 4 + [NAN])).report.counts


def test_factors_that_cannot_be_applied():
    frame = table(*GOOD[:4], ("B", 3, NAN, NAN, NAN, NAN, 0), adjustment_factor=[0.0, NAN, 2.0, INF, NAN])
    with pytest.raises(ValueError, match="3 bad_factor"):
        Panel.from_table(frame, adjust="divide")
    panel = Panel.from_table(frame, adjust="divide", on_bad="drop_bar")
    assert np.isnan(panel.bars).all(axis=1).tolist() == [True, True, False, True, True]
    assert panel.report.dropped == 3
    with pytest.raises(ValueError, match="adjust='divide' needs a column with the adjustment factor"):
        Panel.from_table(table(*GOOD), adjust="divide")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"on_bad": "drop"},
            "on_bad='drop' is not known (did you mean 'drop_bar'?): choose one of 'raise', 'drop_bar', 'keep'",
        ),
        ({"negative_prices": "abs"}, "negative_prices='abs' is not known: choose one of 'error', 'midpoint'"),
        ({"adjust": "split"}, "adjust='split' is not known: choose one of None, 'divide', 'multiply'"),
    ],
)
def test_choices(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Panel.from_table(table(*GOOD), **options)
    with pytest.raises(ValueError, match=re.escape(text)):
        Panel.from_arrays(*[np.ones((2, 2))] * 4, **options)


# ---------------------------------------------------------------------------------------------------- report


def test_report_prints():
    frame = table(("A", 2, 1, 1, 2, 1, 1), ("A", 3, NAN, NAN, NAN, NAN, NAN))
    text = str(Panel.from_table(frame, on_bad="drop_bar").report)
    assert text.splitlines()[0] == "2 rows of 1 instruments, on_bad='drop_bar'"
    assert "high_below_low" in text
    assert "      A 2020-01-02: open 1, high 1, low 2, close 1, volume 1" in text
    assert "dropped" in text
    assert "missing_bar" in text
    clean = str(Panel.from_table(table(*GOOD)).report)
    assert "errors: none" in clean
    assert "notes: none" in clean


def test_report_cannot_be_changed():
    report = Panel.from_table(table(*GOOD)).report
    with pytest.raises(AttributeError):
        report.rows = 3
    with pytest.raises(TypeError):
        report.counts["missing_bar"] = 3
    assert PanelReport().ok
    assert not set(ERRORS) & set(NOTES)


def test_times_in_reports_are_those_of_the_market():
    frame = table(("A", 2, 1, 1, 2, 1, 1))
    with pytest.raises(ValueError, match="A 2020-01-02 00:00:00-05:00: open 1"):
        Panel.from_table(frame, tz="America/New_York")


# ---------------------------------------------------------------------------------------------------- digest


@st.composite
def markets(draw) -> pl.DataFrame:
    rows = []
    for k in range(draw(st.integers(1, 4))):
        days = draw(st.lists(st.integers(1, 31), min_size=1, max_size=8, unique=True))
        for day in days:
            low = draw(st.floats(0.01, 1000))
            price = st.floats(low, low + 10)
            volume = draw(st.one_of(st.just(NAN), st.just(0.0), st.floats(0, 1e9)))
            rows.append((f"I{k}", day, draw(price), low + 10, low, draw(price), volume))
    return table(
        *rows, eligible=[draw(st.booleans()) for _ in rows], total_return=[0.01 * r[1] for r in rows]
    )


@given(markets(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(frame, random):
    panel = Panel.from_table(frame, progress=False)
    order = list(range(len(frame)))
    random.shuffle(order)
    other = Panel.from_table(frame[order], progress=False)
    assert other.digest == panel.digest
    np.testing.assert_array_equal(other.bars, panel.bars)
    np.testing.assert_array_equal(other.time, panel.time)
    for name, values in panel.fields.items():
        np.testing.assert_array_equal(other.fields[name], values)
    by_hand = frame.sort("instrument", "time")
    np.testing.assert_array_equal(
        panel.bars, by_hand.select("open", "high", "low", "close", "volume").to_numpy()
    )
    np.testing.assert_array_equal(panel.fields["eligible"], by_hand["eligible"].to_numpy())


@given(markets())
def test_a_panel_survives_the_way_through_polars(frame):
    panel = Panel.from_table(frame, progress=False)
    assert Panel.from_table(panel.to_polars(), progress=False).digest == panel.digest


@given(markets(), st.data())
def test_every_change_changes_the_digest(frame, data):
    panel = Panel.from_table(frame, progress=False)
    row = data.draw(st.integers(0, len(panel) - 1))
    column = data.draw(st.integers(0, 4))
    bars = panel.bars.copy()
    bars[row, column] = np.nextafter(bars[row, column], INF) if not np.isnan(bars[row, column]) else 3.0
    parts = (panel.offsets, panel.instruments, panel.time, panel.tz, panel.fields)
    changed = Panel(bars, *parts)
    assert changed.digest != panel.digest
    differ = (changed.instrument_digests != panel.instrument_digests).any(axis=1)
    assert np.flatnonzero(differ).tolist() == [np.searchsorted(panel.offsets, row, side="right") - 1]


def test_whatever_belongs_to_the_panel_is_in_the_digest():
    p = Panel.from_table(table(*GOOD, eligible=[True] * 5, market_cap=[1.0] * 5))

    def change(**parts):
        given = {n: getattr(p, n) for n in ("bars", "offsets", "instruments", "time", "tz", "fields")}
        return Panel(**(given | parts)).digest

    flags = p.fields["eligible"].copy()
    flags[0] = False
    caps = p.fields["market_cap"].copy()
    digests = {
        change(),
        change(time=p.time + 1),
        change(tz="UTC"),
        change(instruments=np.array(["A", "C"])),
        change(offsets=np.array([0, 2, 5])),
        change(fields={}),
        change(fields={"eligible": p.fields["eligible"]}),
        change(fields=dict(p.fields) | {"eligible": flags}),
        change(fields={"eligible": p.fields["eligible"], "total_return": caps}),
        change(bars=p.bars[::-1].copy()),
        change(bars=p.bars[:, ::-1].copy()),
    }
    assert len(digests) == 11
    assert change() == p.digest


def test_missing_values_and_zeros_have_one_form():
    p = Panel.from_table(table(*GOOD, market_cap=[1.0, NAN, 0.0, 1.0, 1.0]))
    bars, caps = p.bars.copy(), p.fields["market_cap"].copy()
    bars[1, 4] = -0.0
    bars[2, 4] = np.frombuffer(np.uint64(0xFFF8000000000123).tobytes(), np.float64)[0]
    caps[1], caps[2] = -bars[2, 4], -0.0
    assert Panel(bars, p.offsets, p.instruments, p.time, p.tz, {"market_cap": caps}).digest == p.digest


def test_digest_is_the_same_everywhere():
    """A change of this value orphans every store ever built: the format version must change with it."""
    p = Panel.from_table(table(*GOOD, eligible=[True, False] * 2 + [True], market_cap=[1.0] * 5))
    assert p.digest == "a5502434d066ce490e6c2ba2d3654df7"


def test_a_digest_needs_no_panel_in_memory():
    p = Panel.from_table(table(*GOOD, eligible=[True] * 5, market_cap=[1.0] * 5))
    facts = (p.instruments, p.offsets, p.instrument_digests)
    assert panel_digest(*facts, ("market_cap", "eligible"), None) == p.digest
    assert panel_digest(*facts, ("eligible", "market_cap"), None) != p.digest
    assert panel_digest(*facts, ("market_cap", "eligible"), "UTC") != p.digest


def test_hash_agrees_with_plain_integers():
    """The compiled rounds against Python's integers, modulo 2**64."""
    mask = (1 << 64) - 1
    p1, p2, p3, p4, p5 = (int(x) for x in (hashing._P1, hashing._P2, hashing._P3, hashing._P4, hashing._P5))

    def turn(acc, value):
        acc = (acc + value * p2) & mask
        acc = ((acc << 31) | (acc >> 33)) & mask
        return acc * p1 & mask

    def spread(x):
        x = (x ^ x >> 33) * p2 & mask
        x = (x ^ x >> 29) * p3 & mask
        return x ^ x >> 32

    p = Panel.from_table(table(*GOOD[:2]))
    lanes = [p1, p2, p3, p4, p5, p1 ^ p3]
    for row, time in zip(p.bars.view(np.uint64).tolist(), p.time.tolist(), strict=True):
        lanes = [turn(lane, value) for lane, value in zip(lanes, [*row, time], strict=True)]
    x, y = p4, p5
    for lane in lanes:
        x = turn(x, lane)
        y = turn(y ^ x, spread(lane))
    assert p.instrument_digests.tolist() == [[spread(x), spread(y)]]


# -------------------------------------------------------------------------------------------------- calendar


@given(markets())
def test_calendar_and_time_codes(frame):
    panel = Panel.from_table(frame, progress=False)
    np.testing.assert_array_equal(panel.calendar, np.unique(panel.time))
    np.testing.assert_array_equal(panel.calendar[panel.time_code], panel.time)
    assert panel.time_code.dtype == np.int32


def test_calendar_of_instruments_that_share_nothing():
    """More foreign times than the buffer holds at once."""
    n, m = 3000, 60
    rng = np.random.default_rng(0)
    time = np.concatenate([np.sort(rng.choice(10**12, n, replace=False)) for _ in range(m)])
    names = np.array([f"I{k:02d}" for k in range(m)])
    panel = Panel(np.ones((n * m, 5)), np.arange(m + 1) * n, names, time)
    np.testing.assert_array_equal(panel.calendar, np.unique(time))
    np.testing.assert_array_equal(panel.calendar[panel.time_code], time)


# ----------------------------------------------------------------------------------------------- looking up


@pytest.fixture
def panel() -> Panel:
    return Panel.from_table(table(*GOOD, eligible=[True] * 5))


def test_rows_of(panel):
    assert panel.rows_of("A") == slice(0, 3)
    assert panel.rows_of("B") == slice(3, 5)
    assert panel.n_instruments == 2
    assert len(panel) == 5
    with pytest.raises(KeyError, match="no instrument 'b' in the panel; did you mean 'B'"):
        panel.rows_of("b")
    with pytest.raises(KeyError, match="no instrument 'XYZ' in the panel; there are A, B"):
        panel.rows_of("XYZ")


@pytest.mark.parametrize(
    "time",
    [
        "2020-01-03",
        "20200103",
        "2020-01-03 00:00",
        "2020-01-03T00:00:00",
        dt.date(2020, 1, 3),
        dt.datetime(2020, 1, 3),
        np.datetime64("2020-01-03"),
        np.datetime64("2020-01-03T00:00", "ns"),
        ns("2020-01-03"),
        np.int64(ns("2020-01-03")),
    ],
)
def test_locate(panel, time):
    assert panel.locate("A", time) == 1
    assert panel.locate("B", time) == 4


def test_locate_a_timestamp_of_pandas(panel):
    pd = pytest.importorskip("pandas")
    assert panel.locate("A", pd.Timestamp("2020-01-03")) == 1
    assert panel.as_time(pd.Timestamp("2020-01-03 00:00:00.000000001")) == ns("2020-01-03") + 1


def test_locate_what_is_not_there(panel):
    with pytest.raises(KeyError, match="A has no bar at 2020-01-04; nearest are 2020-01-03 and 2020-01-06"):
        panel.locate("A", "2020-01-04")
    with pytest.raises(KeyError, match="nearest are 2020-01-02'"):
        panel.locate("A", "2019-01-04")
    with pytest.raises(KeyError, match="nearest are 2020-01-06'"):
        panel.locate("A", "2021-01-04")
    with pytest.raises(KeyError, match="no instrument 'C'"):
        panel.locate("C", "2020-01-03")
    with pytest.raises(ValueError, match="'soon' is not a time; expected ISO form"):
        panel.locate("A", "soon")
    with pytest.raises(ValueError, match="'2020-13-01' is not a time"):
        panel.locate("A", "2020-13-01")
    with pytest.raises(ValueError, match="expected a time, got NaT"):
        panel.locate("A", np.datetime64("NaT", "ns"))
    for odd in (1.5, None, True, ["2020-01-03"]):
        with pytest.raises(TypeError, match=r"expected a time \(ISO text"):
            panel.locate("A", odd)
    with pytest.raises(ValueError, match="has a time zone, but the panel has none"):
        panel.locate("A", "2020-01-03T00:00:00+00:00")


@pytest.fixture
def intraday() -> Panel:
    stamps = [dt.datetime(2020, 3, d, 9, m) for d in (6, 9) for m in (30, 35)] + [
        dt.datetime(2020, 3, 10, 9, 30)
    ]
    ones = [1.0] * 5
    frame = pl.DataFrame({"time": stamps, "open": ones, "high": ones, "low": ones, "close": ones})
    return Panel.from_table(frame, name="A", tz="America/New_York")


def test_locate_in_a_zone(intraday):
    assert intraday.locate("A", "2020-03-09 09:35") == 3
    assert intraday.locate("A", "2020-03-09T13:35:00+00:00") == 3
    assert intraday.locate("A", dt.datetime(2020, 3, 9, 13, 35, tzinfo=dt.UTC)) == 3
    assert intraday.locate("A", dt.datetime(2020, 3, 6, 9, 35)) == 1
    assert intraday.locate("A", "2020-03-10") == 4
    with pytest.raises(
        KeyError, match=r"A has 2 bars on 2020-03-09, from 2020-03-09 09:30:00-04:00 to .*time of day"
    ):
        intraday.locate("A", "2020-03-09")


def test_as_time(panel, intraday):
    assert panel.as_time("2020-01-03", end=True) == ns("2020-01-04") - 1
    assert panel.as_time("2020-01", end=True) == ns("2020-02-01") - 1
    assert panel.as_time("2020", end=True) == ns("2021-01-01") - 1
    assert panel.as_time("2020") == ns("2020-01-01")
    assert panel.as_time("2020-01-03 10:00", end=True) == ns("2020-01-03T10:00")
    assert panel.as_time(dt.date(2020, 1, 3), end=True) == ns("2020-01-04") - 1
    assert panel.as_time(np.datetime64("2020-01"), end=True) == ns("2020-02-01") - 1
    assert panel.as_time(5, end=True) == 5
    # A day on which the clocks change has 23 hours.
    assert intraday.as_time("2020-03-08", end=True) - intraday.as_time("2020-03-08") == 23 * 3600 * 10**9 - 1


def test_stamps(panel, intraday):
    assert panel.stamp(ns("2020-01-03")) == "2020-01-03"
    assert panel.stamp(ns("2020-01-03T09:35")) == "2020-01-03 09:35"
    assert panel.stamp(ns("2020-01-03T09:35:01")) == "2020-01-03 09:35:01"
    assert panel.stamp(ns("2020-01-03T09:35:01") + 1) == "2020-01-03 09:35:01.000000001"
    assert intraday.stamp(ns("2020-01-03T14:35:01") + 1) == "2020-01-03 09:35:01.000000001-05:00"


def test_select(panel):
    one = panel.select("B")
    assert one.instruments.tolist() == ["B"]
    np.testing.assert_array_equal(one.bars, panel.bars[3:])
    assert list(one.fields) == ["eligible"]
    assert panel.select() is panel
    assert panel.select(["B", "A"]) is panel
    early = panel.select(end="2020-01-03")
    assert early.offsets.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(early.bars, panel.bars[[0, 1, 3, 4]])
    assert (
        early.digest == Panel.from_table(table(*[GOOD[k] for k in (0, 1, 3, 4)], eligible=[True] * 4)).digest
    )
    late = panel.select(start="2020-01-04")
    assert late.instruments.tolist() == ["A"]
    assert len(late) == 1
    assert len(panel.select(["A"], "2020-01-03", "2020-01-03")) == 1
    with pytest.raises(ValueError, match=r"nothing is left of Panel.*start='2021-01-01'"):
        panel.select(start="2021-01-01")
    with pytest.raises(ValueError, match="nothing is left"):
        panel.select(start="2020-01-03", end="2020-01-02")
    with pytest.raises(KeyError, match="no instrument 'C'"):
        panel.select(["A", "C"])


def test_select_keeps_the_last_day_whole(intraday):
    assert len(intraday.select(end="2020-03-09")) == 4
    assert len(intraday.select(start="2020-03-09 09:35")) == 2


def test_to_polars(intraday):
    frame = intraday.to_polars()
    assert frame.columns == ["instrument", "time", "open", "high", "low", "close", "volume"]
    assert frame.schema["time"] == pl.Datetime("ns", "America/New_York")
    assert Panel.from_table(frame).digest == intraday.digest


def test_repr(panel, intraday):
    assert (
        repr(panel)
        == "Panel(5 rows of 2 instruments, 2020-01-02 to 2020-01-06, no time zone, fields eligible)"
    )
    assert "America/New_York" in repr(intraday)


def test_of(panel):
    assert Panel.of(panel) is panel
    assert Panel.of(table(*GOOD, eligible=[True] * 5)).digest == panel.digest
    assert Panel.of(table(*GOOD).rename({"close": "x"}), columns={"close": "x"}).n_instruments == 2
    with pytest.raises(
        TypeError, match="a Panel has been read already: on_bad cannot be applied to it any more"
    ):
        Panel.of(panel, on_bad="keep")


def test_panels_cannot_be_changed(panel):
    for array in (
        panel.bars,
        panel.offsets,
        panel.time,
        panel.instruments,
        panel.fields["eligible"],
        panel.calendar,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError, match="a panel cannot be changed: tried to set 'tz'"):
        panel.tz = "UTC"
    with pytest.raises(AttributeError, match="a panel cannot be changed"):
        del panel.tz
    with pytest.raises(TypeError):
        panel.fields["eligible"] = None


def test_pickle(panel):
    digest, calendar = panel.digest, panel.calendar
    again = pickle.loads(pickle.dumps(panel))
    assert again.digest == digest
    np.testing.assert_array_equal(again.calendar, calendar)
    assert again.report == panel.report
    assert again.fields.keys() == panel.fields.keys()
    with pytest.raises(ValueError, match="read-only"):
        again.bars[0] = 0
    part = panel.select("A")
    assert len(pickle.dumps(part)) < len(pickle.dumps(panel)) + 500


def test_a_panel_from_its_parts(panel):
    parts = {n: getattr(panel, n) for n in ("bars", "offsets", "instruments", "time")}
    assert Panel(**parts).report.rows == 5
    with pytest.raises(
        ValueError, match=r"bars must be a C-contiguous float64 array of shape \(5, 5\), got float32"
    ):
        Panel(**parts | {"bars": panel.bars.astype(np.float32)})
    with pytest.raises(ValueError, match="bars must be a C-contiguous"):
        Panel(**parts | {"bars": np.asfortranarray(panel.bars)})
    with pytest.raises(ValueError, match=r"time must be a C-contiguous int64 array of shape \(5,\)"):
        Panel(**parts | {"time": panel.time[:4]})
    with pytest.raises(ValueError, match="offsets must ascend from 0 to the number of rows, 5"):
        Panel(**parts | {"offsets": np.array([0, 3, 4])})
    with pytest.raises(ValueError, match=r"unknown fields \['beta'\]; a panel can carry total_return"):
        Panel(**parts, fields={"beta": np.ones(5)})
    with pytest.raises(ValueError, match="eligible must be a C-contiguous bool array"):
        Panel(**parts, fields={"eligible": np.ones(5)})


# ------------------------------------------------------------------------------------------------ from arrays


def cube(days: int = 20, width: int = 11, per_day: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (days, width) if per_day is None else (days, width, per_day)
    low = np.round(rng.uniform(10, 20, shape), 2)
    high = low + 2.0
    return {
        "open": low + np.round(rng.uniform(0, 2, shape), 2),
        "high": high,
        "low": low,
        "close": low + np.round(rng.uniform(0, 2, shape), 2),
        "volume": np.round(rng.uniform(0, 1e6, shape)),
    }


def as_table(arrays, stamps, names) -> pl.DataFrame:
    """The rows of (time, instrument) arrays, one by one."""
    rows = []
    for j, name in enumerate(names):
        for t, stamp in enumerate(stamps):
            rows.append({"instrument": name, "time": stamp} | {k: float(v[t, j]) for k, v in arrays.items()})
    return pl.DataFrame(rows)


DAYS = np.arange("2020-01-01", "2020-01-21", dtype="M8[D]")
NAMES = [f"S{j:02d}" for j in range(11)]


def test_arrays_equal_the_table(monkeypatch):
    arrays = cube()
    by_table = Panel.from_table(as_table(arrays, DAYS.astype(object), NAMES))
    panel = Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS)
    assert panel.digest == by_table.digest
    assert panel.report.ok
    monkeypatch.setattr("pricepix.bars.arrays._BLOCK_BYTES", 8 * 20 * 3)
    monkeypatch.setattr("pricepix.bars.arrays._LEAST_WIDTH", 1)
    assert Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS).digest == by_table.digest


@pytest.mark.parametrize("kind", ["fortran", "memmap", "list", "strided", "zarr", "xarray", "dask"])
def test_kinds_of_arrays(kind, tmp_path):
    arrays = cube()
    expected = Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS).digest
    if kind == "fortran":
        made = {k: np.asfortranarray(v) for k, v in arrays.items()}
    elif kind == "list":
        made = {k: v.tolist() for k, v in arrays.items()}
    elif kind == "strided":
        made = {k: np.repeat(np.repeat(v, 2, 0), 3, 1)[::2, ::3] for k, v in arrays.items()}
    elif kind == "memmap":
        made = {}
        for k, v in arrays.items():
            v.tofile(tmp_path / k)
            made[k] = np.memmap(tmp_path / k, np.float64, "r", shape=v.shape)
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        made = {}
        for k, v in arrays.items():
            made[k] = zarr.create_array(str(tmp_path / k), shape=v.shape, chunks=(7, 4), dtype="f8")
            made[k][:] = v
    elif kind == "dask":
        da = pytest.importorskip("dask.array")
        made = {k: da.from_array(v, chunks=(7, 4)) for k, v in arrays.items()}
    else:
        xr = pytest.importorskip("xarray")
        made = {
            k: xr.DataArray(v, {"time": DAYS.astype("M8[ns]"), "asset": NAMES}, ("time", "asset"))
            for k, v in arrays.items()
        }
        assert Panel.from_arrays(**made).digest == expected
    assert Panel.from_arrays(**made, instruments=NAMES, time=DAYS).digest == expected


def test_missing_ends_are_trimmed_and_missing_bars_inside_stay():
    arrays = cube(6, 3)
    for name in ("open", "high", "low", "close"):
        arrays[name][:2, 0] = NAN  # Begins late.
        arrays[name][5:, 0] = NAN  # Ends early.
        arrays[name][3, 1] = NAN  # Halted for a day.
        arrays[name][:, 2] = NAN  # Never traded.
    arrays["close"][1, 0] = 15.0  # A close alone is a bar.
    panel = Panel.from_arrays(**arrays, instruments=["A", "B", "C"], time=DAYS[:6])
    assert panel.offsets.tolist() == [0, 4, 10, 10]
    assert panel.instruments.tolist() == ["A", "B", "C"]
    assert panel.stamp(panel.time[0]) == "2020-01-02"
    assert np.isnan(panel.bars[4 + 3, :4]).all()
    assert panel.report.counts == {"missing_bar": 1, "partial_bar": 1}
    assert panel.rows_of("C") == slice(10, 10)
    with pytest.raises(KeyError, match="it has no bars"):
        panel.locate("C", "2020-01-02")
    assert panel.calendar.size == 6
    assert panel.select(["B", "C"]).instruments.tolist() == ["B", "C"]
    assert panel.select(start="2020-01-02").instruments.tolist() == ["A", "B"]


def test_three_axes():
    arrays = cube(5, 4, 3)
    minutes = [dt.timedelta(hours=9, minutes=35), dt.timedelta(hours=11), dt.timedelta(hours=15)]
    stamps = DAYS[:5].astype("M8[ns]")[:, None] + np.array(minutes, "m8[ns]")[None, :]
    flat = {k: v.transpose(0, 2, 1).reshape(15, 4) for k, v in arrays.items()}
    expected = Panel.from_arrays(**flat, instruments=NAMES[:4], time=stamps.reshape(-1))
    assert Panel.from_arrays(**arrays, instruments=NAMES[:4], time=stamps).digest == expected.digest
    for intervals in (
        ["09:35", "11:00", "15:00:00"],
        [dt.time(9, 35), dt.time(11), dt.time(15)],
        minutes,
        np.array(minutes, "m8[m]"),
    ):
        panel = Panel.from_arrays(**arrays, instruments=NAMES[:4], time=DAYS[:5], intervals=intervals)
        assert panel.digest == expected.digest
    days = ["20200101", "20200102", "20200103", "20200104", "20200105"]
    panel = Panel.from_arrays(
        **arrays, instruments=NAMES[:4], time=days, intervals=minutes, tz="Asia/Shanghai"
    )
    assert panel.tz == "Asia/Shanghai"
    assert panel.time[0] == ns("2020-01-01T01:35")


def test_three_axes_of_xarray():
    xr = pytest.importorskip("xarray")
    arrays = cube(5, 4, 3)
    minutes = np.array([575, 660, 900], "m8[m]")
    coordinates = {"day": DAYS[:5].astype("M8[ns]"), "asset": NAMES[:4], "interval": minutes.astype("m8[ns]")}
    made = {k: xr.DataArray(v, coordinates, ("day", "asset", "interval")) for k, v in arrays.items()}
    expected = Panel.from_arrays(**arrays, instruments=NAMES[:4], time=DAYS[:5], intervals=minutes)
    assert Panel.from_arrays(**made).digest == expected.digest


def test_fields_of_arrays():
    arrays = cube(5, 4, 3)
    rng = np.random.default_rng(1)
    factor = rng.uniform(1, 2, (5, 4))
    mask = rng.random((5, 4)) < 0.5
    limit = (rng.random((5, 4, 3)) < 0.5).astype(float)
    limit[0, 0, 0] = NAN
    panel = Panel.from_arrays(
        **arrays,
        instruments=NAMES[:4],
        time=DAYS[:5],
        intervals=["09:35", "11:00", "15:00"],
        adjustment_factor=factor,
        eligible=mask,
        up_limit=limit,
        market_cap=None,
        adjust="multiply",
    )
    day, name, interval = 2, 3, 1
    row = panel.rows_of("S03").start + day * 3 + interval
    assert set(panel.fields) == {"adjustment_factor", "eligible", "up_limit"}
    assert panel.fields["adjustment_factor"][row] == factor[day, name]
    assert panel.fields["eligible"][row] == mask[day, name]
    assert panel.fields["up_limit"][row] == (limit[day, name, interval] == 1)
    assert not panel.fields["up_limit"][0]
    assert panel.bars[row, 3] == arrays["close"][day, name, interval] * factor[day, name]
    assert panel.bars[row, 4] == arrays["volume"][day, name, interval] / factor[day, name]


def test_arrays_without_names_times_or_volume():
    arrays = cube(5, 4)
    del arrays["volume"]
    panel = Panel.from_arrays(**arrays)
    assert panel.instruments.tolist() == ["0", "1", "2", "3"]
    assert panel.time[:2].tolist() == [0, DAY]
    assert np.isnan(panel.bars[:, 4]).all()
    assert "no time was given" in str(panel.report)
    three = Panel.from_arrays(*[np.ones((2, 1, 3))] * 4)
    assert three.time.tolist() == [0, 60 * 10**9, 120 * 10**9, DAY, DAY + 60 * 10**9, DAY + 120 * 10**9]


def test_instruments_of_arrays_keep_their_order():
    panel = Panel.from_arrays(*[np.ones((2, 3))] * 4, instruments=[10107, "B", np.str_("A")], time=DAYS[:2])
    assert panel.instruments.tolist() == ["10107", "B", "A"]
    assert panel.rows_of("A") == slice(4, 6)


def test_arrays_out_of_order():
    arrays = cube()
    order = np.random.default_rng(3).permutation(20)
    expected = Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS)
    mixed = {k: v[order] for k, v in arrays.items()}
    panel = Panel.from_arrays(**mixed, instruments=NAMES, time=DAYS[order])
    assert panel.digest == expected.digest
    assert panel.report.counts["unsorted_time"] == int((np.diff(order) < 0).sum())


def test_arrays_with_a_time_twice():
    arrays = cube(4, 2)
    days = DAYS[[0, 1, 1, 2]]
    with pytest.raises(
        ValueError, match=r"duplicate_time: 1 times stand more than once .* 2020-01-02; remove them"
    ):
        Panel.from_arrays(**arrays, time=days)
    panel = Panel.from_arrays(**arrays, time=days, on_bad="drop_bar")
    assert panel.report.dropped == 1
    np.testing.assert_array_equal(panel.bars[:3, 3], arrays["close"][[0, 1, 3], 0])


def test_float32_arrays_are_widened_and_noted():
    arrays = {k: v.astype(np.float32) for k, v in cube().items()}
    panel = Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS)
    assert panel.bars.dtype == np.float64
    assert panel.report.notes["float32_input"] == 220
    np.testing.assert_array_equal(panel.bars[:20, 3], arrays["close"][:, 0].astype(float))


def test_faults_in_arrays():
    arrays = cube()
    arrays["high"][3, 2] = 1.0
    with pytest.raises(ValueError, match=r"1 high_below_low(?s:.*)S02 2020-01-04: "):
        Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS)
    panel = Panel.from_arrays(**arrays, instruments=NAMES, time=DAYS, on_bad="drop_bar")
    assert np.isnan(panel.bars[panel.locate("S02", "2020-01-04")]).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"open": np.ones(5)}, ValueError, r"open has 1 axes; expected \(time, instrument\) or"),
        ({"high": np.ones((4, 4))}, ValueError, r"high has shape \(4, 4\), but open has \(5, 4\)"),
        ({"close": np.full((5, 4), "x")}, TypeError, "close holds <U1: expected numbers"),
        ({"instruments": ["A", "B"]}, ValueError, "2 instruments were named, but the arrays hold 4"),
        ({"instruments": ["A", "B", "A", "C"]}, ValueError, "instrument 'A' is named more than once"),
        ({"instruments": "ABCD"}, TypeError, "instruments must be a sequence of names"),
        ({"time": DAYS[:3]}, ValueError, r"time has shape \(3,\), expected \(5,\)"),
        ({"time": ["soon"] * 5}, ValueError, "time of the arrays: 'soon' in row 0 is not a time"),
        ({"intervals": ["09:35"]}, ValueError, r"intervals= is for arrays of \(day, instrument, interval\)"),
        ({"eligible": np.ones((5, 3), bool)}, ValueError, r"eligible has shape \(5, 3\); expected \(5, 4\)"),
        (
            {"up_limit": np.full((5, 4), 11.5)},
            ValueError,
            r"up_limit must hold true and false, got .*11\.5.*not a flag",
        ),
        ({"adjust": "divide"}, ValueError, "adjust='divide' needs adjustment_factor="),
        ({"tz": "Mars/Base"}, ValueError, "tz='Mars/Base' is not a zone"),
        (
            {"market_capp": np.ones((5, 4))},
            TypeError,
            "'market_capp' is not a field; did you mean 'market_cap'",
        ),
        ({"time_unit": "h"}, ValueError, "time_unit='h' is not known: choose one of"),
        (
            dict.fromkeys(("open", "high", "low", "close"), np.full((5, 4), NAN)),
            ValueError,
            "every price is missing",
        ),
        (
            dict.fromkeys(("open", "high", "low", "close", "volume"), np.empty((0, 4))),
            ValueError,
            "there are no bars in them",
        ),
    ],
)
def test_arrays_that_do_not_fit(change, error, text):
    with pytest.raises(error, match=text):
        Panel.from_arrays(**(cube(5, 4) | change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"time": DAYS[:5]},
            ValueError,
            r"time has shape \(5,\), expected \(5, 3\).*pass intervals= as well",
        ),
        ({"intervals": ["09:35"] * 3}, ValueError, "intervals= needs the days: pass time="),
        (
            {"time": DAYS[:5], "intervals": ["09:35"]},
            ValueError,
            "1 intervals were named, but the arrays hold 3",
        ),
        (
            {"time": DAYS[:5], "intervals": ["9h", "10h", "11h"]},
            ValueError,
            "'9h' is not a time of day such as '09:35'",
        ),
        ({"time": DAYS[:5], "intervals": [1, 2, 3]}, TypeError, "intervals must hold times of day"),
        (
            {"time": DAYS[:4], "intervals": ["09:35"] * 3},
            ValueError,
            "it must hold the 5 days of the first axis",
        ),
        (
            {"time": DAYS[:5], "intervals": ["11:00", "10:00", "12:00"]},
            ValueError,
            "do not ascend within the day",
        ),
        (
            {"time": DAYS[:5].astype("M8[h]") + np.timedelta64(1, "h"), "intervals": ["11:00"] * 3},
            ValueError,
            "dates without a time of day",
        ),
        (
            {"time": ["2020-01-01T00:00:00Z"] * 5, "intervals": ["11:00"] * 3},
            ValueError,
            "the days carry the time zone UTC; with intervals= give plain dates",
        ),
    ],
)
def test_three_axes_that_do_not_fit(change, error, text):
    with pytest.raises(error, match=text):
        Panel.from_arrays(**(cube(5, 4, 3) | change))


def test_time_of_arrays_in_other_forms():
    pd = pytest.importorskip("pandas")
    arrays = cube(5, 4)
    expected = Panel.from_arrays(**arrays, time=DAYS[:5])
    texts = [str(d) for d in DAYS[:5]]
    for time in (
        texts,
        DAYS[:5].astype(object),
        pd.DatetimeIndex(texts),
        pd.Series(pd.to_datetime(texts)),
        [20200101, 20200102, 20200103, 20200104, 20200105],
    ):
        assert Panel.from_arrays(**arrays, time=time).digest == expected.digest
    aware = Panel.from_arrays(**arrays, time=pd.DatetimeIndex(texts).tz_localize("Asia/Tokyo"))
    assert aware.tz == "Asia/Tokyo"
    assert aware.digest == Panel.from_arrays(**arrays, time=texts, tz="Asia/Tokyo").digest


# -------------------------------------------------------------------------------------------------- real bars


@pytest.mark.parametrize(
    ("name", "rows", "instruments"), [("lean_daily", 70_025, 21), ("lean_minute", 21_258, 10)]
)
def test_real_bars(shared, name, rows, instruments):
    path = shared / "data" / f"{name}.parquet"
    panel = Panel.from_table(path)
    assert len(panel) == rows
    assert panel.n_instruments == instruments
    frame = pl.read_parquet(path)
    time = frame.columns[1]
    by_hand = frame.sort("ticker", time)
    np.testing.assert_array_equal(
        panel.bars, by_hand.select("open", "high", "low", "close", "volume").to_numpy()
    )
    np.testing.assert_array_equal(panel.time, by_hand[time].dt.timestamp("ns").to_numpy())
    lengths = by_hand.group_by("ticker", maintain_order=True).len()
    assert panel.instruments.tolist() == lengths["ticker"].to_list()
    np.testing.assert_array_equal(np.diff(panel.offsets), lengths["len"].to_numpy())
    np.testing.assert_array_equal(panel.calendar, np.unique(panel.time))
    assert Panel.from_table(frame.sample(fraction=1, shuffle=True, seed=0)).digest == panel.digest
    assert Panel.from_table(frame.sort(time, maintain_order=True)).digest == panel.digest


# ---- what is absent


def returns_of(*rows) -> pl.DataFrame:
    """Rows of (instrument, day of January 2020, close, total return)."""
    frame = pl.DataFrame(
        [(r[0], dt.date(2020, 1, r[1]), r[2], r[3]) for r in rows],
        schema={"instrument": pl.String, "time": pl.Date, "close": pl.Float64, "total_return": pl.Float64},
        orient="row",
    )
    return frame.with_columns(open="close", high="close", low="close", volume=pl.lit(1.0))


def test_row_of_a_delisting_is_kept_by_tables_and_arrays_alike():
    """It has a return and no price; returns before the first price, and rows with neither, say nothing."""
    frame = returns_of(
        ("A", 1, 10.0, NAN), ("A", 2, 11.0, 0.1), ("A", 3, NAN, -0.9),
        ("B", 2, 5.0, NAN), ("B", 3, 5.0, 0.0), ("B", 4, 5.0, 0.0),
    )  # fmt: skip
    by_table = Panel.from_table(frame, progress=False)
    close = np.array([[10.0, NAN], [11.0, 5.0], [NAN, 5.0], [NAN, 5.0]])
    returns = np.array([[NAN, 0.2], [0.1, NAN], [-0.9, 0.0], [NAN, 0.0]])
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"], "M8[D]")
    by_array = Panel.from_arrays(
        close, close, close, close, np.ones((4, 2)), total_return=returns, time=days, instruments=["A", "B"],
        progress=False,
    )  # fmt: skip
    assert by_array.digest == by_table.digest
    assert by_array.fields["total_return"][by_array.rows_of("A")].tolist()[1:] == [0.1, -0.9]


def test_missing_returns_beside_prices_are_noted():
    frame = returns_of(
        ("A", 1, 10.0, NAN), ("A", 2, 10.2, 0.02), ("A", 3, NAN, NAN), ("A", 4, 5.0, NAN), ("B", 3, NAN, NAN),
        ("B", 4, 5.0, NAN),
    )  # fmt: skip
    report = Panel.from_table(frame, progress=False).report
    assert report.notes["missing_return"] == 1
    assert [(row.instrument, row.close) for row in report.examples["missing_return"]] == [("A", 5.0)]
    assert "a price has no total return" in str(report)
    # A code of CRSP that drop_bar makes missing leaves its price without a return.
    coded = returns_of(("A", 1, 10.0, NAN), ("A", 2, 10.2, -66.0))
    found = Panel.from_table(coded, on_bad="drop_bar", progress=False).report.counts
    assert found["impossible_return"] == found["missing_return"] == 1


def holed() -> pl.DataFrame:
    """Four instruments on ten days: one lacks two days, one trades on a day of its own."""
    rows = [(name, day, 10.0, 0.0) for name in "ABC" for day in range(1, 11) if (name, day) not in HOLES]
    return returns_of(*rows, *(("D", day, 10.0, 0.0) for day in range(2, 9)), ("D", 12, 10.0, 0.0))


HOLES = (("B", 4), ("B", 5))


def test_holes_are_noted():
    report = Panel.from_table(holed(), progress=False).report
    # D lacks two days before its last row; the day on which it trades is its own, and no hole of the others.
    assert report.notes["absent_bar"] == 4
    assert [(row.instrument, row.time) for row in report.examples["absent_bar"]] == [
        ("B", "2020-01-06"),
        ("D", "2020-01-12"),
    ]
    assert "absent_bar" not in Panel.from_table(holed().filter(pl.col("instrument") == "A")).report.notes


def test_thin_times_are_noted():
    stray = returns_of(("A", 3, 10.0, 0.0))
    frame = pl.concat([returns_of(*((n, d, 10.0, 0.0) for n in "ABC" for d in (1, 2, 6))), stray])
    report = Panel.from_table(frame, progress=False).report
    assert report.notes["thin_time"] == 1
    assert [(row.instrument, row.time) for row in report.examples["thin_time"]] == [("A", "2020-01-03")]
    # In an array the others have a row on that day, without a price.
    close = np.full((4, 3), 10.0)
    close[2, 1:] = NAN
    report = Panel.from_arrays(close, close, close, close, progress=False).report
    assert report.notes["thin_time"] == 1


def test_holes_become_missing_bars():
    frame = holed().with_columns(eligible=pl.lit(True))
    kept = Panel.from_table(frame, progress=False)
    filled = Panel.from_table(frame, gaps="missing", progress=False)
    assert len(filled) == len(kept) + 4
    assert filled.report.rows == len(filled)
    assert filled.report.notes["absent_bar"] == 4
    days = filled.time[filled.rows_of("B")]
    assert (np.diff(days) == DAY).all()
    new = filled.rows_of("B").start + np.array([3, 4])
    assert np.isnan(filled.bars[new]).all()
    assert np.isnan(filled.fields["total_return"][new]).all()
    assert not filled.fields["eligible"][new].any()
    old = ~np.isnan(filled.bars[:, 3])
    np.testing.assert_array_equal(filled.bars[old], kept.bars)
    np.testing.assert_array_equal(filled.time[old], kept.time)
    with pytest.raises(ValueError, match="gaps='fill' is not known: choose one of 'keep', 'missing'"):
        Panel.from_table(frame, gaps="fill")
