"""Evaluation: its figures against the functions behind them, planted signals, random walks, baselines."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from factor_files import change_attributes, write_cache

import pricepix as pp
from pricepix.factor import evaluate, open_cache
from pricepix.factor.cache_format import FORMAT_VERSION, CacheContent
from pricepix.factor.calendar import day_and_interval, interval_names
from pricepix.factor.evaluation.evaluate import bars_needed
from pricepix.factor.evaluation.holding import simulate_holding
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.portfolio import quantile_returns, quantiles
from pricepix.factor.evaluation.signals import momentum, reversal, trend
from pricepix.windows.labels import NO_TIME, forward_returns

QUIET = {"split_rate": 0.0, "delist_rate": 0.0, "list_late": 0.0, "halt_rate": 0.0}


def cache_of(panel, values, where, *, instruments=None, time=None):
    """A factor cache with the given values, float (bars, instruments), on the panel's calendar."""
    names = panel.instruments if instruments is None else np.asarray(instruments)
    time = panel.calendar if time is None else time
    day, interval = day_and_interval(time, panel.tz)
    days, day_at = np.unique(day, return_inverse=True)
    intervals, at = np.unique(interval, return_inverse=True)
    spec = pp.ImageSpec.preset("jkx5")
    attrs = {
        "format": "pricepix-factor",
        "format_version": FORMAT_VERSION,
        "complete": True,
        "values": "probability",
        "shift": 0,
        "store_digest": "s",
        "spec": spec.to_dict(),
        "spec_digest": spec.digest,
        "windows": 0,
        "tz": panel.tz,
        "model": {"digest": "m", "name": "by hand"},
    }
    stamps = np.full((len(days), len(intervals)), NO_TIME, np.int64)
    stamps[day_at, at] = time
    block = np.full((len(days), len(names), len(intervals)), np.nan, np.float32)
    block[day_at, :, at] = values
    listed = [str(name) for name in names]
    content = CacheContent(days, stamps, listed, interval_names(intervals), False, len(names), {}, {})
    write_cache(where, attrs, content, block)
    return open_cache(where)


def market_panel(instruments=30, bars=260, seed=0, **options):
    return pp.Panel.from_table(
        pp.samples.simulate(instruments, bars, seed=seed, **{**QUIET, **options}), progress=False
    )


@pytest.fixture(scope="module")
def panel():
    return market_panel(volatility=(0.2, 0.5), halt_rate=0.004, list_late=0.2)


@pytest.fixture(scope="module")
def random_factor(panel):
    rng = np.random.default_rng(9)
    values = rng.random((len(panel.calendar), panel.n_instruments)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    return values


@pytest.fixture(scope="module")
def cache(panel, random_factor, tmp_path_factory):
    return cache_of(panel, random_factor, tmp_path_factory.mktemp("evaluation") / "f.zarr")


@pytest.fixture(scope="module")
def result(cache, panel):
    return evaluate(cache, panel, horizon=5, quantiles=5, progress=False)


# ---------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_the_functions_behind_them(result, panel, random_factor):
    market = Market.of(panel, panel.instruments)
    known = np.arange(len(panel.calendar))
    forward = market.forward(known, 5)
    factor = random_factor.astype(np.float64)
    ic = information_coefficient(factor, forward)
    assert result.figures["ic"]["rank"]["mean"] == pytest.approx(np.nanmean(ic))
    assert np.array_equal(result.series["rank_ic"], ic, equal_nan=True)
    spread = quantile_returns(quantiles(factor, 5), forward, 5)
    assert result.figures["sorts"]["mean_forward_return"] == pytest.approx(np.nanmean(spread, axis=0))
    assert result.figures["rebalance"] == "week"
    assert result.figures["data"]["bars_per_year"] == 252
    book = result.figures["portfolios"]["equal"]
    assert book["rebalancings_per_year"] == 52
    assert book["cohorts"] == 1
    net = book["long_short"]["net"]
    assert net["0"]["periods"]["mean"] > net["0.001"]["periods"]["mean"]
    cost = book["long_short"]["periods"]["mean"] - net["0.001"]["periods"]["mean"]
    turned = result.series["portfolio_equal"]["turnover"][:, -1].mean()
    assert cost == pytest.approx(2 * 0.001 * turned)
    # Random names, a fifth on each side, replaced every week: nearly all of both legs, 2 by our count.
    assert 1.3 * 52 / 12 < book["long_short"]["monthly_turnover"] < 1.9 * 52 / 12


def test_forward_returns_are_the_labels(panel):
    market = Market.of(panel, panel.instruments)
    found = market.forward(np.arange(len(market.time)), 5, 1)
    label = forward_returns(panel, np.arange(len(panel)), 5, 1)
    bar, code = panel.time_code, np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    same = found[bar, code]
    assert np.array_equal(np.isnan(same), np.isnan(label.value))
    np.testing.assert_allclose(same, label.value, rtol=1e-7, atol=1e-12)
    moved = np.abs(label.value) > 1e-12
    assert np.array_equal(np.sign(same[moved]), np.sign(label.value[moved]))


def test_value_weights_where_the_panel_has_caps(panel, random_factor, tmp_path):
    frame = panel.to_polars().with_columns(market_cap=pl.col("close") * 1e6)
    with_caps = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(with_caps, random_factor, tmp_path / "f.zarr")
    found = evaluate(cache, with_caps, horizon=5, quantiles=5, baselines=(), progress=False)
    assert set(found.figures["portfolios"]) == {"equal", "value"}
    market = Market.of(with_caps, with_caps.instruments)
    series = found.series["portfolio_value"]
    at = np.searchsorted(market.time, np.array(series["entry"], "datetime64[ns]").astype(np.int64))
    book = simulate_holding(
        random_factor[at], market.level, at, n=5, cap=market.cap()[at], tradable=market.tradable
    )
    assert series["period_returns"][:-1] == pytest.approx(book.period_returns[: len(at) - 1])


def test_overlapping_portfolios_when_the_horizon_exceeds_the_rebalance(cache, panel):
    found = evaluate(cache, panel, horizon=20, quantiles=5, rebalance="week", baselines=(), progress=False)
    book = found.figures["portfolios"]["equal"]
    assert book["cohorts"] == 4
    single = evaluate(cache, panel, horizon=5, quantiles=5, rebalance="week", baselines=(), progress=False)
    ratio = (
        book["long_short"]["monthly_turnover"]
        / single.figures["portfolios"]["equal"]["long_short"]["monthly_turnover"]
    )
    assert 0.2 < ratio < 0.45  # a quarter of the book is replaced a week, and some drift
    assert set(found.figures["holding"]) == {"week", "month", "quarter", "horizon"}
    assert found.figures["holding"]["week"]["cohorts"] == 4
    assert found.figures["holding"]["quarter"]["cohorts"] == 1


def test_limits_at_entry_are_left_out_and_counted(panel, random_factor, tmp_path):
    rng = np.random.default_rng(1)
    frame = panel.to_polars().with_columns(
        up_limit=pl.Series(rng.random(len(panel)) < 0.2), down_limit=pl.Series(rng.random(len(panel)) < 0.1)
    )
    limited = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(limited, random_factor, tmp_path / "f.zarr")
    counts = {}
    for policy in ("exclude", "delay", "ignore"):
        found = evaluate(
            cache, limited, horizon=5, quantiles=5, untradable=policy, baselines=(), progress=False
        )
        counts[policy] = found.figures["portfolios"]["equal"]["counts"]
    entries = counts["exclude"]["entries"]
    assert counts["exclude"]["cannot_buy"] == pytest.approx(0.2 * entries, rel=0.2)
    assert counts["exclude"]["cannot_sell"] == pytest.approx(0.1 * entries / 5, rel=0.5)
    assert counts["delay"]["delayed"] > 0.9 * counts["delay"]["cannot_buy"]
    assert counts["ignore"]["cannot_buy"] == 0


def test_the_json_holds_everything_and_no_nan(result, tmp_path):
    found = json.loads(result.to_json(tmp_path / "e.json").read_text())
    for key in ("ic", "classification", "calibration", "sorts", "portfolios", "holding", "delays", "decay"):
        assert found[key]
    assert set(found["baselines"]) == {"STR", "WSTR", "MOM", "TREND"}
    assert len(found["series"]["rank_ic"]) == found["data"]["dates"]
    assert [row["bars_late"] for row in found["delays"]] == [0, 1, 2, 3, 4, 5]
    assert [row["horizon"] for row in found["decay"]] == [1, 2, 3, 5, 10, 20, 40, 60, 120]
    assert found["lineage"]["panel_digest"]
    assert result.table().filter(portfolio="long_short").height == 1


# -------------------------------------------------------------------------- a known answer, and none


def test_a_planted_signal_earns_the_sharpe_its_construction_predicts(tmp_path):
    """Long those with signal +1, short those with -1, equally, held for the horizon h.

    With accuracy q the return R of a name with signal s has the sign y = s with chance q. Given y, R does not
    depend on s. So E[R | s=1] - E[R | s=-1] = (2q - 1) (E[R | y=1] - E[R | y=-1]), and, names being
    independent, the long-short return of n_l and n_s names has variance V(R | s=1) / n_l + V(R | s=-1) / n_s,
    where R given s is a mixture, with weights q and 1 - q, of R given y=1 and y=-1. Only the moments of R
    given its own sign come from the market.
    """
    q, h, names = 0.6, 5, 60
    frame = pp.samples.simulate(names, 1500, seed=4, bayes_accuracy=q, horizon=h, **QUIET)
    panel = pp.Panel.from_table(frame.drop("signal"), progress=False)
    signal = frame.pivot(on="instrument", index="time", values="signal").drop("time").to_numpy()
    value = np.where(signal > 0, q, 1 - q).astype(np.float32)
    cache = cache_of(panel, value, tmp_path / "f.zarr")
    found = evaluate(
        cache, panel, horizon=h, quantiles=2, rebalance="horizon", baselines=(), delays=(0, 1), progress=False
    ).figures

    returns = Market.of(panel, panel.instruments).forward(np.arange(1500), h)
    rises, falls = returns[returns > 0], returns[returns < 0]
    gap = (2 * q - 1) * (rises.mean() - falls.mean())

    def variance(weight: float) -> float:
        mean = weight * rises.mean() + (1 - weight) * falls.mean()
        return weight * (rises**2).mean() + (1 - weight) * (falls**2).mean() - mean**2

    # Half of the names have each signal; the mean of 1/n over a binomial is about (1 + 1/n) / n.
    n = names / 2 * (1 - 1 / names)
    per_period = gap / np.sqrt((variance(q) + variance(1 - q)) / n)
    predicted = per_period * np.sqrt(252 / h)
    book = found["portfolios"]["equal"]
    periods = book["long_short"]["periods"]["periods"]
    error = np.sqrt((1 + per_period**2 / 2) / periods) * np.sqrt(252 / h)  # Lo (2002), independent periods
    measured = book["long_short"]["periods"]["sharpe"]
    assert predicted > 5 * error
    assert abs(measured - predicted) < 3 * error
    assert found["classification"]["pooled"]["accuracy"] == pytest.approx(q, abs=0.01)
    assert found["classification"]["pooled"]["brier"] == pytest.approx(q * (1 - q), abs=0.005)
    assert found["calibration"]["error"] < 0.01
    # One bar late the signal is worth little: most of the forecast's sign is settled on the way.
    assert found["delays"][1]["rank_ic"]["mean"] < found["delays"][0]["rank_ic"]["mean"]


def test_a_random_walk_earns_nothing(result):
    for figure in (result.figures["ic"]["rank"], result.figures["sorts"]["spread"]):
        assert abs(figure["newey_west_t"]) < 3
    periods = result.figures["portfolios"]["equal"]["long_short"]["periods"]
    years = periods["periods"] / 52
    assert abs(periods["sharpe"]) < 3 / np.sqrt(years)
    accuracy = result.figures["classification"]["pooled"]
    assert abs(accuracy["auc"] - 0.5) < 3 * 0.5 / np.sqrt(accuracy["n"] / 5)


# -------------------------------------------------------------------------------------------- baselines


@pytest.fixture(scope="module")
def long_market():
    return Market.of(market_panel(20, 700, seed=3), market_panel(20, 700, seed=3).instruments)


def test_reversal_and_momentum_by_hand(long_market):
    at = np.array([10, 300, 699])
    level = long_market.level
    assert np.isnan(reversal(long_market, at, 21)[0]).all()
    assert reversal(long_market, at, 21)[1] == pytest.approx(1 - level[300] / level[279])
    assert momentum(long_market, at, 252, 21)[2] == pytest.approx(level[678] / level[447] - 1)


def test_trend_finds_reversal_in_a_market_that_reverts():
    rng = np.random.default_rng(6)
    bars, names = 600, 40
    noise = rng.normal(0, 0.03, (bars, names))
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, (bars, names)), axis=0) + noise)
    labels = [f"N{i}" for i in range(names)]
    panel = pp.Panel.from_arrays(close, close, close, close, instruments=labels, progress=False)
    market = Market.of(panel, panel.instruments)
    at = np.arange(300, 590)
    found = trend(market, at, 21)
    ic = information_coefficient(found, market.forward(at, 21))
    assert np.nanmean(ic) > 0.3
    # What comes later changes nothing.
    later = np.concatenate([close[:451], close[451:] * rng.uniform(0.5, 2, close[451:].shape)])
    other = pp.Panel.from_arrays(later, later, later, later, instruments=labels, progress=False)
    again = trend(Market.of(other, other.instruments), at, 21)
    assert np.array_equal(found[at <= 450], again[at <= 450], equal_nan=True)


def test_how_long_the_calendar_is_changes_no_earlier_value_of_the_trend():
    """Which lags take part is decided by the bars so far: 100 enters at bar 100, 200 at bar 200, whatever follows."""
    rng = np.random.default_rng(7)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (520, 30)), axis=0))
    # A third is listed late, and has no value before it has the averages.
    close[:150, ::3] = np.nan
    labels = [f"N{i}" for i in range(30)]

    def found(bars: int) -> np.ndarray:
        part = close[:bars]
        panel = pp.Panel.from_arrays(part, part, part, part, instruments=labels, progress=False)
        return trend(Market.of(panel, panel.instruments), np.arange(bars), 21)

    whole = found(520)
    for bars in (130, 205, 300, 410):
        assert np.array_equal(found(bars), whole[:bars], equal_nan=True)
    assert np.isfinite(whole[130, 1])
    assert np.isnan(whole[130, 0])
    assert np.isfinite(whole[390]).all()


def test_the_first_value_of_the_trend_by_hand():
    rng = np.random.default_rng(8)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (45, 25)), axis=0))
    labels = [f"N{i}" for i in range(25)]
    panel = pp.Panel.from_arrays(close, close, close, close, instruments=labels, progress=False)
    value = trend(Market.of(panel, panel.instruments), np.array([20, 41, 43]), 21, lags=(3, 10, 100))
    assert np.isnan(value[0]).all()

    def ratio(t: int) -> np.ndarray:
        return np.stack([close[t + 1 - lag : t + 1].mean(axis=0) / close[t] for lag in (3, 10)], axis=1)

    design = np.column_stack([np.ones(25), ratio(20)])
    slopes = np.linalg.lstsq(design, close[41] / close[20] - 1, rcond=None)[0][1:]
    np.testing.assert_allclose(value[1], ratio(41) @ slopes, rtol=1e-9)
    # A month of bars counts back from its date, and the day it begins at does not depend on any other.
    design = np.column_stack([np.ones(25), ratio(22)])
    slopes = np.linalg.lstsq(design, close[43] / close[22] - 1, rcond=None)[0][1:]
    np.testing.assert_allclose(value[2], ratio(43) @ slopes, rtol=1e-9)


def test_the_trend_depends_on_neither_the_first_bar_nor_the_other_dates():
    rng = np.random.default_rng(9)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (600, 30)), axis=0))
    day = np.arange("2010-01-01", "2013-01-01", dtype="datetime64[D]")
    day = day[np.is_busday(day)][:600]

    def found(first: int, at: np.ndarray, last: int = 600) -> np.ndarray:
        part = close[first:last]
        panel = pp.Panel.from_arrays(
            part,
            part,
            part,
            part,
            time=day[first:last],
            instruments=[f"N{i}" for i in range(30)],
            progress=False,
        )
        return trend(Market.of(panel, panel.instruments), at - first, lags=(3, 10, 50))

    at = np.arange(500, 600)
    whole = found(0, at)
    assert np.isfinite(whole).all()
    for first in (1, 7, 20, 100):
        np.testing.assert_allclose(found(first, at), whole, rtol=1e-8)
    np.testing.assert_array_equal(found(0, at[[3, 50]]), whole[[3, 50]])
    for last in (520, 530, 541, 590):
        np.testing.assert_array_equal(found(0, at[: last - 500], last), whole[: last - 500])


def test_months_of_the_trend_are_the_calendars():
    rng = np.random.default_rng(10)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (70, 25)), axis=0))
    day = np.arange("2010-01-01", "2011-01-01", dtype="datetime64[D]")
    day = day[np.is_busday(day)][:70]
    panel = pp.Panel.from_arrays(
        close, close, close, close, time=day, instruments=[f"N{i}" for i in range(25)], progress=False
    )
    january, february = (int(np.flatnonzero(day.astype("datetime64[M]") == np.datetime64(m))[-1])
                         for m in ("2010-01", "2010-02"))  # fmt: skip
    t = february + 5
    value = trend(Market.of(panel, panel.instruments), np.array([january, t]), lags=(3, 10))
    assert np.isnan(value[0]).all()

    def ratio(t: int) -> np.ndarray:
        return np.stack([close[t + 1 - lag : t + 1].mean(axis=0) / close[t] for lag in (3, 10)], axis=1)

    design = np.column_stack([np.ones(25), ratio(january)])
    slopes = np.linalg.lstsq(design, close[february] / close[january] - 1, rcond=None)[0][1:]
    np.testing.assert_allclose(value[1], ratio(t) @ slopes, rtol=1e-9)


def test_bars_around_the_evaluated_ones_are_those_of_the_settings():
    # A year for momentum before; two quarters' ends, five bars' delay and five bars' wait after.
    assert bars_needed(252.0, baselines=["MOM"]) == (252, 131)
    assert bars_needed(252.0, baselines=["MOM"], periods_per_year=2520.0) == bars_needed(
        2520.0, baselines=["MOM"]
    )
    assert bars_needed(252.0, baselines=["MOM"], periods_per_year=2520.0) == (2520, 731)
    assert bars_needed(252.0, baselines=["MOM"], periods_per_year=None, quantiles=3, end="2021-01-01") == (
        252,
        131,
    )
    assert bars_needed(12096.0) == (17128, 3467)
    # Without a decay curve, a quarter and the horizon remain.
    assert bars_needed(252.0, baselines=["MOM"], horizons=()) == (252, 83)
    # The defaults of a cache that records nothing; the delay counts.
    assert bars_needed(252.0, baselines="MOM", horizon=None, delay=None, delays=5) == (252, 131)
    assert bars_needed(252.0, baselines="MOM", delay=3) == (252, 134)
    with pytest.raises(TypeError, match="unexpected keyword argument 'per_years'"):
        bars_needed(252.0, per_years=12.0)


def test_a_users_column_in_every_form(cache, panel, random_factor):
    wide = np.full(random_factor.shape, np.nan)
    code = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    mine = np.random.default_rng(2).random(len(panel))
    wide[panel.time_code, code] = mine
    table = (
        panel.to_polars()
        .select("instrument", "time")
        .with_columns(value=pl.Series(mine))
        .sample(fraction=1.0, shuffle=True, seed=1)
    )
    found = evaluate(
        cache,
        panel,
        horizon=5,
        quantiles=5,
        baselines=(),
        columns={"array": mine, "table": table, "itself": cache},
        progress=False,
    ).figures["baselines"]
    factor = np.where(np.isnan(wide), np.nan, random_factor)
    expected = np.nanmean(information_coefficient(factor, wide))
    assert found["array"]["rank_correlation"]["mean"] == pytest.approx(expected)
    assert found["table"] == found["array"]
    assert found["itself"]["rank_correlation"]["mean"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"columns\['short'\] has shape \(3,\)"):
        evaluate(cache, panel, horizon=5, quantiles=5, columns={"short": [1, 2, 3]}, progress=False)


# ----------------------------------------------------------------------------------------------- errors


def test_cache_and_panel_of_different_instruments_or_calendars(cache, panel, random_factor, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)the panel lacks: 'S0003'.*that the cache lacks: none"):
        evaluate(cache, panel.select([n for n in panel.instruments if n != "S0003"]), progress=False)
    shorter = panel.select(end=str(np.datetime64(int(panel.calendar[-20]), "ns").astype("datetime64[D]")))
    with pytest.raises(
        ValueError, match=r"(?s)times of the cache that the panel lacks: 2000-12.*and 14 more"
    ):
        evaluate(cache, shorter, progress=False)
    zoned = pp.Panel.from_table(panel.to_polars(), tz="America/New_York", progress=False)
    with pytest.raises(ValueError, match="has times of zone None, the panel of America/New_York"):
        evaluate(cache, zoned, progress=False)


def test_a_horizon_longer_than_the_data(cache, panel):
    with pytest.raises(
        ValueError, match="horizon=300 with delay=0 is longer than the data: the panel has 259"
    ):
        evaluate(cache, panel, horizon=300, quantiles=5, progress=False)
    with pytest.raises(ValueError, match="horizon=0: give a whole number of bars from 1"):
        evaluate(cache, panel, horizon=0, progress=False)
    with pytest.raises(ValueError, match="400 bars are longer than the data, 259 bars"):
        evaluate(cache, panel, horizon=5, quantiles=5, horizons=(5, 400), progress=False)


def test_fewer_instruments_than_quantiles(cache, panel):
    with pytest.raises(ValueError, match=r"quantiles=40, but no date has values of more than 30 instruments"):
        evaluate(cache, panel, quantiles=40, progress=False)


def test_dates_without_returns_are_counted_or_an_error(cache, panel, random_factor, tmp_path):
    found = evaluate(cache, panel, horizon=20, quantiles=5, baselines=(), progress=False).figures["data"]
    assert found["dates_without_returns"] == 20
    assert found["first_date_without_returns"] == str(
        np.datetime64(int(panel.calendar[-20]), "ns").astype("datetime64[D]")
    )
    nothing = np.where(np.arange(260)[:, None] < 200, np.nan, random_factor)
    frame = panel.to_polars()
    gone = frame["time"] > frame["time"].unique().sort()[200]
    names = ("open", "high", "low", "close", "total_return")
    blank = frame.with_columns(pl.when(gone).then(None).otherwise(pl.col(c)).alias(c) for c in names)
    hollow = pp.Panel.from_table(blank, progress=False)
    late = cache_of(hollow, nothing, tmp_path / "late.zarr")
    with pytest.raises(ValueError, match="none of the factor's 60 dates has a return over 20 bars"):
        evaluate(late, hollow, quantiles=5, progress=False)
    empty = cache_of(panel, np.full(random_factor.shape, np.nan), tmp_path / "empty.zarr")
    with pytest.raises(ValueError, match="has no values: score images for which"):
        evaluate(empty, panel, progress=False)


def test_other_arguments_are_checked(cache, panel):
    cases = [
        ({"costs": (5.0,)}, "a cost per side is a share"),
        ({"baselines": ("SRT",)}, "'SRT' is not one of STR, WSTR, MOM, TREND"),
        ({"rebalance": "fortnight"}, "rebalance='fortnight' is not known"),
        ({"untradable": "drop"}, "untradable='drop' is not known: choose one of"),
        ({"start": "2030-01-01"}, "no date of the factor lies from start='2030-01-01'"),
        ({"delays": (-1,)}, "delays=-1: give a whole number of bars"),
        ({"costs": "0.001"}, r"costs=\('0.001',\): a cost per side is a share"),
        ({"costs": float("nan")}, "a cost per side is a share"),
        ({"baselines": "SRT"}, "'SRT' is not one of STR, WSTR, MOM, TREND"),
        ({"quantiles": 2.5}, "quantiles=2.5: give a whole number from 2 to 100"),
        ({"max_wait": 1.5}, "max_wait=1.5: give a whole number of bars from 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate(cache, panel, horizon=5, **{"quantiles": 5, "progress": False, **options})
    for name in ("costs", "baselines", "delays"):
        with pytest.raises(TypeError, match=f"{name}=None is a NoneType: give one value or a sequence"):
            evaluate(cache, panel, horizon=5, quantiles=5, progress=False, **{name: None})


def test_one_value_is_a_sequence_of_one(cache, panel):
    one, several = (
        evaluate(cache, panel, horizon=5, quantiles=5, progress=False, **given).to_dict()
        for given in (
            {"costs": np.float64(0.001), "baselines": "MOM", "delays": 1, "horizons": 5},
            {"costs": (0.001,), "baselines": ["MOM"], "delays": (1,), "horizons": [5]},
        )
    )
    assert one == several
    assert list(one["baselines"]) == ["MOM"]
    assert list(one["portfolios"]["equal"]["long_short"]["net"]) == ["0.001"]


def test_scores_that_are_not_probabilities_are_only_ranked(panel, random_factor, tmp_path):
    where = tmp_path / "f.zarr"
    cache_of(panel, random_factor * 10 - 5, where)
    change_attributes(where, {"values": "score"})
    found = evaluate(where, panel, horizon=5, quantiles=5, baselines=(), progress=False).figures
    assert found["classification"] is None
    assert found["ic"]["rank"]["dates"] > 200
