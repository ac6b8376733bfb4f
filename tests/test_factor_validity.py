"""What could mislead a researcher: deaths, missing returns, overlapping horizons, thin calendars, short samples."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from factor_files import change_attributes
from test_factor_evaluation import QUIET, cache_of

import pricepix as pp
from pricepix.factor import evaluate
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.rebalancing import period_ends
from pricepix.windows.schedule import Periods, find_schedule

OPTIONS = {"quantiles": 5, "baselines": (), "delays": (0,), "horizons": (), "progress": False}


def signal_market(names=60, bars=260, seed=5, accuracy=0.6, horizon=5):
    """A market with a planted signal: its table, and the signal as probabilities (bars, instruments)."""
    frame = pp.samples.simulate(names, bars, seed=seed, bayes_accuracy=accuracy, horizon=horizon, **QUIET)
    signal = frame.pivot(on="instrument", index="time", values="signal").drop("time").to_numpy()
    return frame.drop("signal"), np.where(signal > 0, accuracy, 1 - accuracy).astype(np.float32)


def with_noise(value, seed=0):
    """Values with their ties broken at random, so that quantiles are of equal size."""
    return (value + np.random.default_rng(seed).uniform(0, 0.01, value.shape)).astype(np.float32)


# ------------------------------------------------------------------------------------------- levels


def test_names_without_total_returns_are_not_tradable_and_are_told(tmp_path):
    """Half of 60 names have prices and no total return: their value is not known, and is not 1.0 for ever."""
    frame, value = signal_market()
    if "total_return" not in frame.columns:
        change = pl.col("close").pct_change().over("instrument", order_by="time")
        frame = frame.with_columns(total_return=change)
    names = frame["instrument"].unique().sort().to_list()
    mixed = frame.with_columns(
        total_return=pl.when(pl.col("instrument").is_in(names[::2])).then(None).otherwise("total_return")
    )
    panel = pp.Panel.from_table(mixed, progress=False)
    value = with_noise(value)
    found = evaluate(cache_of(panel, value, tmp_path / "f.zarr"), panel, horizon=5, **OPTIONS)
    market = Market.of(panel, panel.instruments)
    assert np.isnan(market.level[:, ::2]).all()
    assert not np.isnan(market.level[:, 1::2]).any()
    kept = panel.select(names[1::2])
    alone = evaluate(cache_of(kept, value[:, 1::2], tmp_path / "g.zarr"), kept, horizon=5, **OPTIONS)
    mean, expected = (
        f.figures["portfolios"]["equal"]["long_short"]["periods"]["mean"] for f in (found, alone)
    )
    assert mean == pytest.approx(expected, rel=0.25)
    assert found.figures["data"]["instruments_without_level"] == 30
    (note,) = [n for n in found.notes if "no total return" in n]
    assert "30 of the 60 instruments (50.0% of the factor's values)" in note
    assert not [n for n in alone.notes if "no total return" in n]


def test_values_before_an_instruments_first_total_return_are_left_out_as_their_labels_are(tmp_path):
    """A third of the names brings returns from bar 100 on only."""
    frame, value = signal_market(30, 260)
    names = frame["instrument"].unique().sort().to_list()
    place = pl.int_range(pl.len()).over("instrument", order_by="time")
    late = pl.col("instrument").is_in(names[::3]) & (place < 100)
    panel = pp.Panel.from_table(
        frame.with_columns(total_return=pl.when(late).then(None).otherwise("total_return")), progress=False
    )
    found = evaluate(cache_of(panel, with_noise(value), tmp_path / "f.zarr"), panel, horizon=5, **OPTIONS)
    data = found.figures["data"]
    # The first known return, at bar 100, is measured from bar 99.
    assert (data["values_without_level"], data["instruments_without_level"]) == (990, 0)
    assert [
        n
        for n in found.notes
        if n.startswith("12.7% of the factor's values come before their instrument's first")
    ]
    label = pp.forward_returns(panel, np.arange(len(panel)), 5).value
    grid = np.full(value.shape, np.nan)
    grid[panel.time_code, np.repeat(np.arange(30), np.diff(panel.offsets))] = label
    forward = Market.of(panel, panel.instruments).forward(np.arange(len(value)), 5)
    np.testing.assert_array_equal(np.isnan(grid), np.isnan(forward))
    np.testing.assert_allclose(grid, forward, rtol=1e-5, atol=1e-7)


def test_a_missing_return_beside_a_known_price_is_bridged_and_counted(tmp_path):
    """CRSP: 10.2, a gap, 5.0 with RET "C". Not 0%."""
    rng = np.random.default_rng(1)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, (80, 6)), axis=0))
    close[40:, 0] *= 0.5
    step = np.vstack([np.full((1, 6), np.nan), close[1:] / close[:-1] - 1])
    step[40, 0] = np.nan
    panel = pp.Panel.from_arrays(
        close, close, close, close, total_return=step, instruments=list("ABCDEF"), progress=False
    )
    market = Market.of(panel, panel.instruments)
    assert market.level[40, 0] / market.level[39, 0] == pytest.approx(close[40, 0] / close[39, 0])
    cache = cache_of(panel, rng.random(close.shape).astype(np.float32), tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=2, **{**OPTIONS, "quantiles": 2})
    assert found.figures["data"]["returns_bridged_by_price"] == 1
    assert [n for n in found.notes if "1 total return is missing beside a known price" in n]
    known = Market.of(panel, panel.instruments).forward(np.arange(80), 2)
    assert known[38:41, 0] == pytest.approx(close[40:43, 0] / close[38:41, 0] - 1)
    # Where the adjustment changes in between, the return is not known, and neither is any across it.
    factor = np.ones(close.shape)
    factor[40:, 0] = 2.0
    panel = pp.Panel.from_arrays(
        close, close, close, close, total_return=step, adjustment_factor=factor, instruments=list("ABCDEF"),
        progress=False,
    )  # fmt: skip
    broken = Market.of(panel, panel.instruments).forward(np.arange(80), 2)
    assert np.flatnonzero(np.isnan(broken[:78, 0])).tolist() == [38, 39]
    assert not np.isnan(broken[:78, 1:]).any()
    found = evaluate(tmp_path / "f.zarr", panel, horizon=2, **{**OPTIONS, "quantiles": 2})
    assert found.figures["data"]["returns_not_bridged"] == 1
    assert [n for n in found.notes if "beside a price of another adjustment factor" in n]


# ----------------------------------------------------------------------------------------- delistings


@pytest.fixture(scope="module")
def deadly():
    """400 names; the two top deciles by score die with 0.1% a day, in a row without a price that loses 90%."""
    rng = np.random.default_rng(11)
    bars, names = 520, 400
    score = rng.standard_normal((bars, names))
    for t in range(1, bars):
        score[t] = 0.995 * score[t - 1] + np.sqrt(1 - 0.995**2) * score[t]
    step = rng.normal(0, 0.008, (bars, names)) + 0.00002 * score
    high = score >= np.quantile(score, 0.8, axis=1, keepdims=True)
    dies = (rng.random((bars, names)) < 0.001) & np.vstack([np.zeros((1, names), bool), high[:-1]])
    dies[:30] = False
    close = 100 * np.cumprod(1 + step, axis=0)
    label = [f"N{i:03d}" for i in range(names)]
    day = np.arange("2010-01-01", "2013-01-01", dtype="datetime64[D]")
    day = day[np.is_busday(day)][:bars]
    frames, score = [], score.astype(np.float32)
    for j in range(names):
        end = int(np.argmax(dies[:, j])) if dies[:, j].any() else bars
        known = slice(0, end)
        price, moved, time = close[known, j], step[known, j], day[known]
        if end < bars:
            price, moved, time = np.append(price, np.nan), np.append(moved, -0.9), day[: end + 1]
            score[end:, j] = np.nan
        columns = dict.fromkeys(("open", "high", "low", "close"), price)
        frames.append(
            pl.DataFrame({"time": time, **columns, "volume": 1.0, "total_return": moved}).with_columns(
                instrument=pl.lit(label[j])
            )
        )
    frame = pl.concat(frames).with_columns(pl.col("open", "high", "low", "close").fill_nan(None))
    return pp.Panel.from_table(frame, progress=False), score


def death_returns(panel, score, horizon):
    """The 20-bar returns by hand: compounded total returns, in cash after the last row."""
    step = np.zeros(score.shape)
    code = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    step[panel.time_code, code] = np.nan_to_num(panel.fields["total_return"])
    level = np.cumprod(1 + step, axis=0)
    out = np.full(score.shape, np.nan)
    out[:-horizon] = level[horizon:] / level[:-horizon] - 1
    return np.where(np.isnan(score), np.nan, out)


def test_statistics_see_the_deaths_that_portfolios_see(deadly, tmp_path):
    panel, score = deadly
    cache_of(panel, score, tmp_path / "f.zarr")
    zarr_score(tmp_path / "f.zarr")
    options = {**OPTIONS, "quantiles": 10, "horizons": (20,)}
    held = evaluate(tmp_path / "f.zarr", panel, horizon=20, **options)
    missing = evaluate(tmp_path / "f.zarr", panel, horizon=20, delisting="missing", **options)
    assert held.figures["data"]["delisting"] == "hold"
    expected = death_returns(panel, score, 20)
    found = Market.of(panel, panel.instruments).forward(np.arange(len(panel.calendar)), 20)
    np.testing.assert_allclose(np.where(np.isnan(score), np.nan, found), expected, atol=1e-12)

    def signs(result):
        f = result.figures
        return [
            np.sign(x)
            for x in (
                f["sorts"]["spread"]["mean"],
                f["portfolios"]["equal"]["long_short"]["periods"]["mean"],
            )
        ]

    assert signs(held) == [-1, -1]
    assert signs(missing) == [1, -1]  # the sorts did not see the loss
    ic, without = (r.figures["ic"]["rank"]["mean"] for r in (held, missing))
    # By ranks a death is only the last place, of 400.
    assert ic == pytest.approx(np.nanmean(information_coefficient(score, expected)), abs=1e-9)
    assert ic < without - 0.005
    died = held.figures["data"]["died_within_horizon"]
    # A row that is the last one, 20 bars on, is still a label like any other.
    gone = np.isnan(score[19:-1]) & ~np.isnan(score[:-20])
    assert died == gone.sum() == missing.figures["data"]["died_within_horizon"]
    assert held.figures["data"]["values_with_return"] - died == missing.figures["data"]["values_with_return"]
    dead = held.figures["portfolios"]["equal"]["died_while_held"]
    assert dead["count"] > 10
    assert dead["mean_return"] == pytest.approx(-0.9, abs=0.03)
    assert [n for n in held.notes if "died while held, with a mean return of -" in n]
    assert [n for n in held.notes if f"{died:,} of the factor's values" in n and "'hold'" in n]
    assert [n for n in missing.notes if "statistics do not see the loss" in n]
    assert held.figures["decay"][0]["rank_ic"]["mean"] == ic


def test_prices_alone_hold_no_return_of_a_death(deadly, tmp_path):
    panel, score = deadly
    frame = panel.to_polars().drop("total_return").filter(pl.col("close").is_not_nan())
    prices = pp.Panel.from_table(frame, progress=False)
    cache_of(prices, score, tmp_path / "f.zarr")
    zarr_score(tmp_path / "f.zarr")
    found = evaluate(tmp_path / "f.zarr", prices, horizon=20, **OPTIONS)
    assert found.figures["data"]["delisting"] == "missing"
    assert [n for n in found.notes if "delisting='missing'" in n]
    with pytest.raises(
        ValueError, match="delisting='drop' is not known: choose one of None, 'auto', 'hold', 'missing'"
    ):
        evaluate(tmp_path / "f.zarr", prices, delisting="drop", **OPTIONS)


def zarr_score(where):
    """Mark a cache's values as scores that are no probabilities."""
    change_attributes(where, {"values": "score"})


# ------------------------------------------------------------------------------------- short samples


def test_returns_within_one_horizon_have_no_t(tmp_path):
    """97 dates of noise, 47 with returns, all within one 50-bar horizon: there is no t of 8.80."""
    panel = pp.Panel.from_table(pp.samples.simulate(30, 97, seed=3, **QUIET), progress=False)
    rng = np.random.default_rng(0)
    level = np.cumsum(rng.standard_normal((97, 30)), axis=0)
    cache = cache_of(panel, 1 / (1 + np.exp(-level)), tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=50, rebalance="week", **OPTIONS)
    ic, equal = found.figures["ic"]["rank"], found.figures["portfolios"]["equal"]["long_short"]
    assert ic["dates"] == 47
    for value in (
        ic["t"],
        ic["p_value"],
        ic["newey_west_t"],
        equal["periods"]["sharpe"],
        equal["bars"]["sharpe"],
    ):
        assert np.isnan(value)
    assert repr(found).startswith("Evaluation(horizon 50, 47 dates with returns: rank IC ")
    assert "(t -), long-short Sharpe -)" in repr(found)
    assert [
        n for n in found.notes if "the 47 dates with returns span fewer than ten horizons of 50 bars" in n
    ]
    assert [n for n in found.notes if "holding period" in n and "too few for a Sharpe ratio" in n]
    page = pp.factor.write_report(found, tmp_path / "r.html").read_text()
    assert "97 dates, 47 of them with returns" in page


def test_what_is_not_known_or_assumed_is_a_note(tmp_path):
    frame, value = signal_market(30, 260)
    panel = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(panel, with_noise(value), tmp_path / "f.zarr")
    found = evaluate(cache, panel, **OPTIONS)
    assert [n for n in found.notes if n.startswith("nothing is known of this model's training")]
    assert [n for n in found.notes if n.startswith("the horizon of 20 bars is assumed")]
    told = evaluate(cache, panel, horizon=20, **OPTIONS)
    assert not [n for n in told.notes if "is assumed" in n]


def test_figures_too_good_to_be_true_are_a_note(tmp_path):
    frame, _ = signal_market(40, 260)
    panel = pp.Panel.from_table(frame, progress=False)
    leak = Market.of(panel, panel.instruments).forward(np.arange(260), 5)
    cache = cache_of(panel, (0.5 + leak).clip(0, 1).astype(np.float32), tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=5, **OPTIONS)
    (note,) = [n for n in found.notes if "look for a leak" in n]
    assert note.startswith("a mean rank IC of 1.00 and a Sharpe ratio of ")


def test_adjustment_factors_that_were_not_applied_are_a_note(tmp_path):
    bars = pp.samples.simulate(12, 160, seed=5, split_rate=0.01)
    values = np.random.default_rng(1).random((160, 12)).astype(np.float32)
    for adjust in (None, "multiply"):
        panel = pp.Panel.from_table(bars, adjust=adjust, progress=False)
        cache = cache_of(panel, values, tmp_path / f"{adjust}.zarr")
        found = evaluate(cache, panel, horizon=5, **OPTIONS)
        told = [n for n in found.notes if "adjustment factor that was not applied" in n]
        assert bool(told) == (adjust is None)


# ------------------------------------------------------------------------------------------- calendar


def test_a_stray_row_moves_no_month_end(tmp_path):
    """One Saturday row of one ticker, the last day of a month: the month's end of all others stays."""
    frame, value = signal_market(30, 260)
    clean = pp.Panel.from_table(frame, progress=False)
    day = clean.calendar.astype("datetime64[ns]").astype("datetime64[D]")
    month_end = np.array([d for d in day if (d + 1).astype("datetime64[M]") != d.astype("datetime64[M]")])
    friday = next(
        d
        for d in day
        if (d.astype(int) + 3) % 7 == 4
        and (d + 3).astype("datetime64[M]") != d.astype("datetime64[M]")
        and (d + 1).astype("datetime64[M]") == d.astype("datetime64[M]")
    )
    assert len(month_end)
    row = frame.filter(pl.col("instrument") == frame["instrument"][0]).head(1)
    row = row.with_columns(time=pl.lit(friday + 1).cast(frame.schema["time"]), total_return=0.0)
    strayed = pp.Panel.from_table(pl.concat([frame, row]).sort("instrument", "time"), progress=False)
    at = int(np.searchsorted(strayed.calendar, (friday + 1).astype("datetime64[ns]").astype(np.int64)))
    value = with_noise(value)
    grown = np.insert(value, at, np.nan, axis=0)
    grown[at, 0] = 0.5
    found = evaluate(cache_of(strayed, grown, tmp_path / "f.zarr"), strayed, horizon=20, **OPTIONS)
    expected = evaluate(cache_of(clean, value, tmp_path / "g.zarr"), clean, horizon=20, **OPTIONS)
    assert found.figures["rebalance"] == expected.figures["rebalance"] == "month"
    months, same = (f.series["portfolio_equal"] for f in (found, expected))
    assert months["entry"] == same["entry"]
    np.testing.assert_allclose(months["period_returns"], same["period_returns"], atol=1e-12)
    assert found.figures["data"]["thin_bars"] == 1
    assert expected.figures["data"]["thin_bars"] == 0
    assert [n for n in found.notes if "at 1 of the panel's bars" in n]
    moved = evaluate(
        tmp_path / "f.zarr", strayed, horizon=20, **{**OPTIONS, "period_end_share": 0.001}
    ).series["portfolio_equal"]
    assert moved["entry"] != same["entry"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("every", ["week", "month"])
def test_windows_and_portfolios_end_periods_at_the_same_bars(every, share):
    """Of a market in which a third of all rows is absent, and names come and go."""
    rng = np.random.default_rng(8)
    days = np.arange("2020-01-01", "2020-07-01", dtype="M8[D]")
    rows = [
        (name, day.item())
        for name in range(20)
        for first, length in [rng.integers((0, 30), 90)]
        for day in days[first : first + length]
        if rng.random() > 1 / 3
    ]
    frame = pl.DataFrame(rows, schema={"instrument": pl.Int64, "time": pl.Date}, orient="row")
    price = {name: 10.0 for name in ("open", "high", "low", "close")}
    panel = pp.Panel.from_table(
        frame.with_columns(**{k: pl.lit(v) for k, v in price.items()}), progress=False
    )
    schedule = find_schedule(panel, every, Periods(share=share, complete=True))
    # The rule also holds where a factor has values of some instruments only.
    market = Market.of(panel, panel.instruments[:4])
    ends = period_ends(market.time, None, every, market.thin(every, share))
    np.testing.assert_array_equal(ends, schedule.last_end)


def test_an_end_in_mid_month_forms_no_portfolio(tmp_path):
    frame, value = signal_market(30, 260)
    panel = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(panel, with_noise(value), tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=20, end="2000-07-14", **OPTIONS)
    assert found.series["portfolio_equal"]["entry"][-1][:7] == "2000-06"
    whole = evaluate(cache, panel, horizon=20, **OPTIONS)
    assert found.series["portfolio_equal"]["entry"] == whole.series["portfolio_equal"]["entry"][:6]


def test_own_bars_and_market_bars_are_named_where_they_differ(tmp_path):
    """A fifth of one name's rows is absent while others trade."""
    frame, value = signal_market(20, 200)
    rng = np.random.default_rng(4)
    name = frame["instrument"][0]
    holed = frame.filter((pl.col("instrument") != name) | pl.Series(rng.random(len(frame)) > 0.2))
    panel = pp.Panel.from_table(holed, progress=False)
    row = Market.of(panel, panel.instruments).row
    value = np.where(row >= 0, with_noise(value), np.nan)
    found = evaluate(cache_of(panel, value, tmp_path / "f.zarr"), panel, horizon=5, **OPTIONS)
    own = np.flatnonzero(row[:, 0] >= 0)
    expected = np.count_nonzero(own[5:] - own[:-5] > 5)
    data = found.figures["data"]
    assert data["returns_longer_than_horizon"] == expected > 50
    assert (data["statistics_count"], data["portfolios_count"]) == (
        "bars of the instrument",
        "bars of the market",
    )
    assert [n for n in found.notes if n.startswith(f"{expected:,} of the ") and "own bars" in n]
