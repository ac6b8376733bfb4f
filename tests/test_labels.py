"""Forward returns: exactly h bars, of one instrument, and missing where anything they need is."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricepix import ImageSpec, Panel, WindowIndex, forward_returns
from pricepix.windows.labels import NO_TIME

DAY = 86400 * 10**9
NAN = math.nan


def panel_of(closes, returns=None, start=dt.date(2020, 1, 1)):
    """A panel with these closes by instrument, and total returns if given; days in a row."""
    tables = []
    for name, close in closes.items():
        days = pl.date_range(start, start + dt.timedelta(days=len(close) - 1), eager=True)
        price = pl.Series(np.asarray(close, float))
        columns = dict.fromkeys(("open", "high", "low", "close"), price)
        if returns is not None:
            columns["total_return"] = pl.Series(np.asarray(returns[name], float))
        tables.append(
            pl.DataFrame({"time": days, **columns, "volume": 1.0}).with_columns(instrument=pl.lit(name))
        )
    return Panel.from_table(pl.concat(tables), on_bad="keep", progress=False)


def rows_of(panel):
    return np.arange(len(panel), dtype=np.int64)


# ---- by hand


def test_horizon_is_exactly_h_bars():
    panel = panel_of({"A": [100, 110, 121, 133.1, 146.41]})
    for h in (1, 2, 3, 4):
        label = forward_returns(panel, rows_of(panel), h)
        expected = [1.1**h - 1] * (5 - h) + [NAN] * h
        np.testing.assert_allclose(label.value, expected, rtol=1e-6)
        assert label.value.dtype == np.float32
        days = panel.time.tolist()
        assert label.decision_time.tolist() == days
        assert label.entry_time.tolist() == days
        assert label.exit_time.tolist() == days[h:] + [NO_TIME] * h


def test_delay_moves_entry_and_exit():
    panel = panel_of({"A": [100, 200, 100, 300, 600, 300]})
    label = forward_returns(panel, rows_of(panel), 2, delay=1)
    np.testing.assert_array_equal(label.value, np.array([300 / 200 - 1, 5, 0, NAN, NAN, NAN], np.float32))
    days = panel.time.tolist()
    assert label.entry_time.tolist() == [*days[1:], NO_TIME]
    assert label.exit_time.tolist() == days[3:] + [NO_TIME] * 3
    assert label.decision_time.tolist() == days
    assert (label.horizon, label.delay, label.price) == (2, 1, "close")


def test_last_bars_never_borrow_from_the_next_instrument():
    panel = panel_of({"A": [1, 2, 4], "B": [1000, 3000, 9000], "C": [5]})
    label = forward_returns(panel, rows_of(panel), 1)
    np.testing.assert_array_equal(label.value, [1, 1, NAN, 2, 2, NAN, NAN])
    long = forward_returns(panel, rows_of(panel), 3)
    assert np.isnan(long.value).all()
    assert (long.exit_time == NO_TIME).all()
    delayed = forward_returns(panel, rows_of(panel), 1, delay=3)
    assert np.isnan(delayed.value).all()
    assert (delayed.entry_time == NO_TIME).all()


def test_missing_close_at_entry_or_exit_is_a_missing_return_and_no_other():
    panel = panel_of({"A": [10, NAN, 12, 13, NAN, 15, 18]})
    label = forward_returns(panel, rows_of(panel), 2)
    expected = [12 / 10 - 1, NAN, NAN, 15 / 13 - 1, NAN, NAN, NAN]
    np.testing.assert_array_equal(label.value, np.array(expected, np.float32))
    # the exit exists, though its price does not: later data may fill it in
    assert label.exit_time[1] == panel.time[3]
    assert label.exit_time[2] == panel.time[4]


@pytest.mark.parametrize("bad", [0.0, -5.0, np.inf, NAN])
def test_price_that_is_none_gives_no_return(bad):
    panel = panel_of({"A": [10, bad, 12]})
    np.testing.assert_array_equal(forward_returns(panel, rows_of(panel), 1).value, [NAN, NAN, NAN])


def test_total_returns_compound():
    panel = panel_of({"A": [10] * 5}, {"A": [NAN, 0.5, -0.5, 1.0, 0.1]})
    label = forward_returns(panel, rows_of(panel), 2)
    assert label.price == "total_return"
    np.testing.assert_allclose(label.value, [1.5 * 0.5 - 1, 0.5 * 2 - 1, 2 * 1.1 - 1, NAN, NAN], atol=1e-7)
    by_close = forward_returns(panel, rows_of(panel), 2, price="close")
    np.testing.assert_array_equal(by_close.value, [0, 0, 0, NAN, NAN])
    assert by_close.price == "close"


def test_total_return_missing_inside_is_bridged_missing_at_an_end_is_missing():
    """A return is quoted against the last price there was, so a hole inside loses nothing."""
    panel = panel_of(
        {"A": [10] * 6, "B": [10] * 3}, {"A": [NAN, 0.1, NAN, 0.2, NAN, 0.3], "B": [NAN, 0.5, 0.5]}
    )
    label = forward_returns(panel, rows_of(panel), 2)
    # A: exit 2 missing; entry 1, exit 3 over the hole at 2; entry 2 missing; entry 3, exit 5; then none
    expected = [NAN, 0.2, NAN, 0.3, NAN, NAN, 1.5 * 1.5 - 1, NAN, NAN]
    np.testing.assert_allclose(label.value, expected, rtol=1e-6)


def test_loss_of_everything_is_a_return_of_minus_one():
    panel = panel_of({"A": [10] * 3}, {"A": [0.0, -1.0, 0.4]})
    np.testing.assert_array_equal(forward_returns(panel, rows_of(panel), 2).value, [-1, NAN, NAN])


def test_return_beyond_float32_is_missing():
    panel = panel_of({"A": [1e-300, 1.0, 2.0]})
    np.testing.assert_array_equal(forward_returns(panel, rows_of(panel), 1).value, [NAN, 1, NAN])
    panel = panel_of({"A": [1] * 3}, {"A": [0, 1e30, 1e30]})
    assert np.isnan(forward_returns(panel, rows_of(panel), 2).value).all()


# ---- against a plain loop


def returns_by_loop(panel, row, h, d, by_total):
    """The definition, one window at a time, in Python floats."""
    i = int(np.searchsorted(panel.offsets, row, side="right")) - 1
    first, stop = int(panel.offsets[i]), int(panel.offsets[i + 1])
    entry, leave = row + d, row + d + h
    if leave >= stop:
        return NAN
    if not by_total:
        a, b = float(panel.bars[entry, 3]), float(panel.bars[leave, 3])
        return b / a - 1 if a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b) else NAN
    total = panel.fields["total_return"]
    if math.isnan(total[leave]) or (entry > first and math.isnan(total[entry])):
        return NAN
    level = 1.0
    for r in range(entry + 1, leave + 1):
        if not math.isnan(total[r]):
            level *= 1 + float(total[r])
    return level - 1


@st.composite
def markets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    missing = draw(st.sampled_from([0.0, 0.2]))
    closes, returns = {}, {}
    for name in "ABC"[: draw(st.integers(1, 3))]:
        n = draw(st.integers(1, 40))
        closes[name] = np.round(50 * np.exp(np.cumsum(rng.normal(0, 0.05, n))), 2)
        returns[name] = np.round(rng.normal(0, 0.05, n), 4)
        closes[name][rng.random(n) < missing] = NAN
        returns[name][rng.random(n) < missing] = NAN
        closes[name][0] = 1.0  # a panel holds at least one bar
    return closes, returns


@given(markets(), st.integers(1, 45), st.integers(0, 45), st.booleans())
def test_returns_equal_a_plain_loop(market, h, d, by_total):
    panel = panel_of(*market)
    label = forward_returns(panel, rows_of(panel), h, d, "total_return" if by_total else "close")
    expected = [returns_by_loop(panel, row, h, d, by_total) for row in range(len(panel))]
    np.testing.assert_array_equal(label.value, np.array(expected, np.float32))
    for i in range(panel.n_instruments):
        a, b = panel.offsets[i], panel.offsets[i + 1]
        days = panel.time[a:b].tolist() + [NO_TIME] * (h + d)
        assert label.entry_time[a:b].tolist() == days[d : d + b - a]
        assert label.exit_time[a:b].tolist() == days[d + h : d + h + b - a]


@given(markets(), st.integers(1, 6), st.integers(0, 3), st.booleans(), st.data())
@settings(max_examples=30)
def test_nothing_after_the_exit_matters(market, h, d, by_total, data):
    """Change every bar after a window's exit, or leave them out: its return is the same."""
    closes, returns = market
    name = data.draw(st.sampled_from(sorted(closes)))
    n = len(closes[name])
    cut = data.draw(st.integers(1, n))
    changed = {k: v.copy() for k, v in closes.items()}, {k: v.copy() for k, v in returns.items()}
    changed[0][name][cut:] = 777.0
    changed[1][name][cut:] = 0.777
    shortened = {**closes, name: closes[name][:cut]}, {**returns, name: returns[name][:cut]}
    how = (h, d, "total_return" if by_total else "close")
    panels = [panel_of(*market), panel_of(*changed), panel_of(*shortened)]
    values = []
    for panel in panels:
        whole = forward_returns(panel, rows_of(panel), *how)
        values.append(whole.value[panel.rows_of(name)])
    settled = max(0, cut - h - d)
    np.testing.assert_array_equal(values[0][:settled], values[1][:settled])
    np.testing.assert_array_equal(values[0][:settled], values[2][:settled])
    assert np.isnan(values[2][settled:]).all()  # unknown yet, never guessed


@given(markets(), st.integers(1, 6), st.booleans())
@settings(max_examples=30)
def test_nothing_before_the_entry_matters(market, h, by_total):
    closes, returns = market
    panel = panel_of(closes, returns)
    changed = {k: np.concatenate([[3.0], v[1:]]) for k, v in closes.items()}
    rescaled = panel_of(changed, {k: np.concatenate([[9.0], v[1:]]) for k, v in returns.items()})
    price = "total_return" if by_total else "close"
    later = np.setdiff1d(rows_of(panel), panel.offsets[:-1])
    a = forward_returns(panel, later, h, 0, price)
    b = forward_returns(rescaled, later, h, 0, price)
    np.testing.assert_array_equal(a.value, b.value)


# ---- windows


def test_windows_of_an_index_and_panel_rows_are_one(make_walk):
    closes = {name: make_walk(40, seed)[:, 3] for seed, name in enumerate("AB")}
    panel = panel_of(closes)
    index = WindowIndex.from_panel(panel, ImageSpec(3, 16, max_missing=None), "week")
    by_index = forward_returns(panel, index, 5)
    for rows in (index.row, index.row.astype(np.int32), index.row.tolist(), index.row.astype(np.uint64)):
        np.testing.assert_array_equal(forward_returns(panel, rows, 5).value, by_index.value)
    assert np.array_equal(by_index.decision_time, index.time)
    np.testing.assert_array_equal(forward_returns(panel, index[3:7], 5).value, by_index.value[3:7])
    empty = forward_returns(panel, [], 5)
    assert empty.value.shape == empty.exit_time.shape == (0,)


def test_price_auto_takes_total_returns_where_there_are_any():
    assert forward_returns(panel_of({"A": [1, 2]}), [0], 1).price == "close"
    assert forward_returns(panel_of({"A": [1, 2]}, {"A": [NAN, 0.1]}), [0], 1).price == "total_return"


def test_panel_by_table():
    panel = panel_of({"A": [1, 2, 4]})
    assert forward_returns(panel.to_polars(), [0, 1], 1).value.tolist() == [1, 1]


# ---- errors


@pytest.mark.parametrize("horizon", [0, -1, 2.0, "5", None, True, 2**40])
def test_horizon_that_is_none(horizon):
    with pytest.raises(ValueError, match=rf"horizon={horizon!r}: give a whole number of bars from"):
        forward_returns(panel_of({"A": [1, 2]}), [0], horizon)


@pytest.mark.parametrize("delay", [-1, 0.5, None, False])
def test_delay_that_is_none(delay):
    with pytest.raises(ValueError, match=rf"delay={delay!r}: give a whole number of bars from"):
        forward_returns(panel_of({"A": [1, 2]}), [0], 1, delay)


def test_unknown_price():
    with pytest.raises(
        ValueError, match="price='adj' is not known: choose one of 'auto', 'close', 'total_return'"
    ):
        forward_returns(panel_of({"A": [1, 2]}), [0], 1, price="adj")
    with pytest.raises(
        ValueError, match="price='total_return' needs total returns, which the panel does not have"
    ):
        forward_returns(panel_of({"A": [1, 2]}), [0], 1, price="total_return")


@pytest.mark.parametrize("rows", [[-1], [2], [0, 10**12]])
def test_rows_outside_the_panel(rows):
    with pytest.raises(
        ValueError, match=r"windows end at panel rows .* but the panel has rows 0 to 1: give rows of"
    ):
        forward_returns(panel_of({"A": [1, 2]}), np.array(rows), 1)


@pytest.mark.parametrize("rows", [[0.5], [[0, 1]], ["A"], [True]])
def test_rows_that_are_none(rows):
    with pytest.raises(ValueError, match="give a WindowIndex, or panel rows as integers"):
        forward_returns(panel_of({"A": [1, 2]}), rows, 1)


def test_windows_of_another_panel(make_walk):
    ours, theirs = (panel_of({"A": make_walk(n)[:, 3]}) for n in (30, 31))
    index = WindowIndex.from_panel(theirs, ImageSpec(3, 16))
    with pytest.raises(ValueError, match="the windows are those of another panel"):
        forward_returns(ours, index, 1)
    twin = panel_of({"A": make_walk(31)[:, 3]})  # read twice from one table: as good as the same
    assert len(forward_returns(twin, index, 1).value) == len(index)
