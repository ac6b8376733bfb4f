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
from pricepix.factor.evaluation.market import Market
from pricepix.windows.labels import NO_TIME

DAY = 86400 * 10**9
NAN = math.nan


def panel_of(closes, returns=None, start=dt.date(2020, 1, 1), factors=None):
    """A panel with these closes by instrument, and total returns and factors if given; days in a row."""
    tables = []
    for name, close in closes.items():
        days = pl.date_range(start, start + dt.timedelta(days=len(close) - 1), eager=True)
        price = pl.Series(np.asarray(close, float))
        columns = dict.fromkeys(("open", "high", "low", "close"), price)
        if returns is not None:
            columns["total_return"] = pl.Series(np.asarray(returns[name], float))
        if factors is not None:
            columns["adjustment_factor"] = pl.Series(np.asarray(factors[name], float))
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


def test_bars_without_price_and_return_are_skipped_inside_and_missing_at_an_end():
    """A return is quoted against the last price there was, so a halt inside loses nothing."""
    panel = panel_of(
        {"A": [10, 11, NAN, 13.2, NAN, 17.16], "B": [10, 15, 22.5]},
        {"A": [NAN, 0.1, NAN, 0.2, NAN, 0.3], "B": [NAN, 0.5, 0.5]},
    )
    label = forward_returns(panel, rows_of(panel), 2, delisting="missing")
    # A: exit 2 missing; entry 1, exit 3 over the hole at 2; entry 2 missing; entry 3, exit 5; then none
    expected = [NAN, 0.2, NAN, 0.3, NAN, NAN, 1.5 * 1.5 - 1, NAN, NAN]
    np.testing.assert_allclose(label.value, expected, rtol=1e-6)


def test_missing_return_beside_a_price_is_the_ratio_of_prices():
    """CRSP: 10.2, a gap, 5.0 with RET "C", which is no number. That bar lost half, not nothing."""
    panel = panel_of({"A": [10.0, 10.2, NAN, 5.0, 5.3]}, {"A": [NAN, 0.02, NAN, NAN, 0.06]})
    label = forward_returns(panel, rows_of(panel), 3)
    expected = [5.0 / 10.0 - 1, 5.3 / 10.2 - 1, NAN, NAN, NAN]
    np.testing.assert_allclose(label.value, expected, rtol=1e-6)
    assert panel.report.notes["missing_return"] == 1
    assert [row.close for row in panel.report.examples["missing_return"]] == [5.0]


def test_pct_change_after_halts_gives_the_returns_of_prices():
    """One bar in a hundred is halted: pandas leaves the change missing there and at the bar after it."""
    rng = np.random.default_rng(1)
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, 2000)))
    close[rng.random(2000) < 0.01] = NAN
    close[0] = 50.0
    change = np.concatenate([[NAN], close[1:] / close[:-1] - 1])
    panel = panel_of({"A": close}, {"A": change})
    total = forward_returns(panel, rows_of(panel), 20)
    by_close = forward_returns(panel, rows_of(panel), 20, price="close")
    np.testing.assert_allclose(total.value, by_close.value, rtol=1e-5, atol=1e-7)
    after = int((~np.isnan(close[1:]) & np.isnan(close[:-1])).sum())
    assert panel.report.notes["missing_return"] == after


def test_prices_of_different_adjustment_are_no_bridge():
    closes, returns = {"A": [10, 10, 5, 6, 6.6]}, {"A": [NAN, 0.0, NAN, 0.2, 0.1]}

    def values(factors):
        panel = panel_of(closes, returns, factors=factors)
        return forward_returns(panel, rows_of(panel), 2).value

    np.testing.assert_allclose(values({"A": [1, 1, 1, 1, 1]}), [-0.5, -0.4, 0.32, NAN, NAN], rtol=1e-6)
    # A split at the bar whose return is missing: what it needs is not known, what begins there is.
    np.testing.assert_allclose(values({"A": [1, 1, 2, 2, 2]}), [NAN, NAN, 0.32, NAN, NAN], rtol=1e-6)
    np.testing.assert_allclose(values({"A": [NAN] * 5}), [NAN, NAN, 0.32, NAN, NAN], rtol=1e-6)


def test_instrument_without_any_total_return_has_no_forward_return():
    """As in evaluations: what its holder got is not known, and later returns do not change that."""
    closes = {"A": [10, 11, 12], "B": [5, 6, 9], "C": [5, 6, 9, 18, 36]}
    returns = {"A": [NAN, 0.1, 0.1], "B": [NAN] * 3, "C": [0.2, NAN, NAN, 1.0, NAN]}
    panel = panel_of(closes, returns)
    label = forward_returns(panel, rows_of(panel), 1, delisting="missing")
    # C: its first known return is measured from 9; the last one is bridged.
    np.testing.assert_allclose(label.value, [0.1, 0.1, NAN, *[NAN] * 3, NAN, NAN, 1.0, 1.0, NAN], rtol=1e-6)
    assert panel.report.notes["missing_return"] == 5
    assert panel.report.notes["before_first_return"] == 4
    level = Market.of(panel, panel.instruments).level
    np.testing.assert_allclose(level[:, 2], [NAN, NAN, 1, 2, 4])
    assert np.isnan(level[:, 1]).all()


# ---- delisting


def test_return_of_an_instrument_that_dies_runs_to_its_last_level():
    """A last row without a price holds the return of the delisting; then the rest is cash."""
    panel = panel_of(
        {"A": [10, 11, NAN], "B": [1, 1, 1, 1, 1, 1]}, {"A": [NAN, 0.1, -0.9], "B": [NAN, 0, 0, 0, 0, 0]}
    )
    days = panel.time[panel.rows_of("B")].tolist()
    label = forward_returns(panel, [0, 1, 2], 3)
    np.testing.assert_allclose(label.value, [1.1 * 0.1 - 1, -0.9, NAN], rtol=1e-6)
    assert label.exit_time.tolist() == [days[3], days[4], NO_TIME]
    assert label.died.tolist() == [True, True, False]
    assert (label.delisting, label.died_within_horizon) == ("hold", 2)
    # The market has not had five bars after the entry at bar 1.
    later = forward_returns(panel, [0, 1], 5)
    np.testing.assert_allclose(later.value, [-0.89, NAN], rtol=1e-6)
    assert later.exit_time.tolist() == [days[5], NO_TIME]
    delayed = forward_returns(panel, [0, 1], 3, delay=1)
    np.testing.assert_allclose(delayed.value, [-0.9, NAN], rtol=1e-6)
    assert delayed.exit_time.tolist() == [days[4], NO_TIME]
    left_out = forward_returns(panel, [0, 1, 2], 3, delisting="missing")
    assert np.isnan(left_out.value).all()
    assert (left_out.exit_time == NO_TIME).all()
    assert left_out.died_within_horizon == 0


def test_instruments_that_end_with_the_panel_are_alive():
    panel = panel_of({"A": [10, 11, 12], "B": [1, 2, 3]}, {"A": [NAN, 0.1, 0.1], "B": [NAN, 1, 0.5]})
    label = forward_returns(panel, rows_of(panel), 2)
    assert np.isnan(label.value).tolist() == [False, True, True] * 2
    assert label.died_within_horizon == 0


def test_end_whose_level_is_not_known_has_no_return():
    panel = panel_of({"A": [10, 11, NAN], "B": [1] * 6}, {"A": [NAN, 0.1, NAN], "B": [0] * 6})
    label = forward_returns(panel, [0, 1], 3)
    assert np.isnan(label.value).all()
    assert (label.exit_time == NO_TIME).all()


def test_prices_alone_do_not_say_what_a_holder_got():
    panel = panel_of({"A": [10, 11], "B": [1] * 6})
    assert forward_returns(panel, [0], 3).delisting == "missing"
    assert np.isnan(forward_returns(panel, [0], 3).value).all()
    kept = forward_returns(panel, [0, 1], 3, delisting="hold")
    np.testing.assert_allclose(kept.value, [0.1, 0.0], rtol=1e-6)
    assert kept.exit_time.tolist() == panel.time[panel.rows_of("B")][[3, 4]].tolist()


def test_exit_of_a_death_never_lies_before_what_it_is_made_of():
    """An instrument with few rows: the market's bar comes before its last row, the exit after it."""
    rows = {"A": [0, 4], "B": range(8)}
    frame = pl.concat(
        pl.DataFrame({"instrument": name, "time": [dt.date(2020, 1, 1 + d) for d in days]})
        for name, days in rows.items()
    ).with_columns([pl.lit(1.0).alias(c) for c in ("open", "high", "low", "close", "total_return")])
    panel = Panel.from_table(frame, progress=False)
    label = forward_returns(panel, [0], 2)
    assert label.exit_time.tolist() == [panel.time[panel.rows_of("B")][5]]
    assert label.value.tolist() == [1.0]


def test_unknown_delisting():
    with pytest.raises(
        ValueError, match="delisting='drop' is not known: choose one of 'auto', 'hold', 'missing'"
    ):
        forward_returns(panel_of({"A": [1, 2]}), [0], 1, delisting="drop")


def test_loss_of_everything_is_a_return_of_minus_one():
    panel = panel_of({"A": [10] * 3}, {"A": [0.0, -1.0, 0.4]})
    np.testing.assert_array_equal(forward_returns(panel, rows_of(panel), 2).value, [-1, NAN, NAN])


def test_return_beyond_float32_is_missing():
    panel = panel_of({"A": [1e-300, 1.0, 2.0]})
    np.testing.assert_array_equal(forward_returns(panel, rows_of(panel), 1).value, [NAN, 1, NAN])
    panel = panel_of({"A": [1] * 3}, {"A": [0, 1e30, 1e30]})
    assert np.isnan(forward_returns(panel, rows_of(panel), 2).value).all()


# ---- against a plain loop


def steps_by_loop(close, total):
    """The growth over each bar, in Python floats: None where there is neither a price nor a return."""
    steps, last, since, begun = [], None, 1.0, False
    for price, moved in zip(close, total, strict=True):
        step = None if math.isnan(moved) else 1 + float(moved)
        if step is None and not math.isnan(price) and last is not None:
            step = price / last / since if begun else math.nan
        elif step is not None:
            since *= step
            begun = begun or last is not None
        steps.append(step)
        if not math.isnan(price):
            last, since = price, 1.0
    return steps


def returns_by_loop(panel, row, h, d, by_total, hold):
    """The definition, one window at a time, in Python floats: the return and its exit time."""
    i = int(np.searchsorted(panel.offsets, row, side="right")) - 1
    first, stop = int(panel.offsets[i]), int(panel.offsets[i + 1])
    entry, leave = row + d, row + d + h
    close = [float(c) for c in panel.bars[first:stop, 3]]
    steps = steps_by_loop(close, panel.fields["total_return"][first:stop])
    exit_time = panel.time[leave] if leave < stop else NO_TIME
    if leave >= stop:
        calendar = sorted(set(panel.time.tolist()))
        later = [t for t in calendar if t > panel.time[stop - 1]]
        if not hold or entry >= stop or not later or math.isnan(close[entry - first]):
            return NAN, NO_TIME
        after = calendar[calendar.index(panel.time[entry]) :]
        leave = stop - 1
        if math.isnan(close[leave - first]) and (not by_total or steps[leave - first] is None):
            return NAN, NO_TIME
        if h >= len(after):
            return NAN, NO_TIME
        exit_time = max(after[h], later[0])
    a, b = close[entry - first], close[leave - first]
    if not by_total:
        return b / a - 1, exit_time
    dead = leave < row + d + h
    if (steps[entry - first] is None and math.isnan(a)) or (steps[leave - first] is None and not dead):
        return NAN, exit_time
    level = 1.0
    for r in range(entry + 1 - first, leave + 1 - first):
        level *= 1.0 if steps[r] is None else steps[r]
    return level - 1, exit_time


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


@given(markets(), st.integers(1, 45), st.integers(0, 45), st.booleans(), st.booleans())
def test_returns_equal_a_plain_loop(market, h, d, by_total, hold):
    panel = panel_of(*market)
    how = ("total_return" if by_total else "close", "hold" if hold else "missing")
    label = forward_returns(panel, rows_of(panel), h, d, *how)
    expected = [returns_by_loop(panel, row, h, d, by_total, hold) for row in range(len(panel))]
    np.testing.assert_allclose(label.value, [value for value, _ in expected], rtol=2e-6, atol=2e-7)
    assert label.exit_time.tolist() == [exit_time for _, exit_time in expected]
    for i in range(panel.n_instruments):
        a, b = panel.offsets[i], panel.offsets[i + 1]
        days = panel.time[a:b].tolist() + [NO_TIME] * (h + d)
        assert label.entry_time[a:b].tolist() == days[d : d + b - a]


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
    how = (h, d, "total_return" if by_total else "close", "missing")
    panels = [panel_of(*market), panel_of(*changed), panel_of(*shortened)]
    values = []
    for panel in panels:
        whole = forward_returns(panel, rows_of(panel), *how)
        values.append(whole.value[panel.rows_of(name)])
    settled = max(0, cut - h - d)
    np.testing.assert_array_equal(values[0][:settled], values[1][:settled])
    np.testing.assert_array_equal(values[0][:settled], values[2][:settled])
    assert np.isnan(values[2][settled:]).all()  # unknown yet, never guessed


@given(markets(), st.integers(1, 6), st.integers(0, 3), st.booleans())
@settings(max_examples=30)
def test_nothing_after_the_exit_matters_to_a_death(market, h, d, by_total):
    """Leave out every bar of the market after a kept return's exit: it is the same."""
    panel = panel_of(*market)
    how = (h, d, "total_return" if by_total else "close", "hold")
    whole = forward_returns(panel, rows_of(panel), *how)
    for row in np.flatnonzero(whole.died).tolist():
        seen = panel.select(end=int(whole.exit_time[row]))
        name = str(panel.instruments[np.searchsorted(panel.offsets, row, side="right") - 1])
        at = seen.locate(name, int(panel.time[row]))
        label = forward_returns(seen, [at], *how)
        assert label.value[0] == whole.value[row]
        assert label.exit_time[0] == whole.exit_time[row]


@given(markets(), st.integers(1, 6), st.booleans())
@settings(max_examples=30)
def test_nothing_before_the_entry_matters(market, h, by_total):
    closes, returns = market
    panel = panel_of(closes, returns)
    changed = {k: np.concatenate([[3.0], v[1:]]) for k, v in closes.items()}
    rescaled = panel_of(changed, {k: np.concatenate([[9.0], v[1:]]) for k, v in returns.items()})
    price = "total_return" if by_total else "close"
    later = np.setdiff1d(rows_of(panel), panel.offsets[:-1])
    # From an entry without a price, a bar whose return is missing is bridged from the price before it.
    later = later[~np.isnan(panel.bars[later, 3])]
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
