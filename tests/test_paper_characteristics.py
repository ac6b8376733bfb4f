"""Characteristics and their rank correlations against transcriptions with pandas, and nothing from later bars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix import samples
from pricepix.factor.evaluation.market import Market
from pricepix.paper.characteristics import CHARACTERISTICS, bid_ask_spread, characteristics
from pricepix.paper.choice_of_tables import Tables

pd = pytest.importorskip("pandas")

NAMES, BARS = 9, 340


def table(seed: int = 4) -> pl.DataFrame:
    """Bars with halts, volumes of 0, late listings, and market caps."""
    rng = np.random.default_rng(seed)
    found = samples.simulate(
        NAMES, BARS, seed=seed, halt_rate=0.01, halts="absent", split_rate=0.0, list_late=0.2
    )
    quiet = pl.Series(rng.random(len(found)) < 0.05)
    return found.with_columns(
        volume=pl.when(quiet).then(0.0).otherwise(pl.col("volume")),
        market_cap=found["close"] * rng.uniform(1e5, 1e7, len(found)),
    )


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(table(), progress=False)


@pytest.fixture(scope="module")
def frames(panel: pp.Panel) -> dict[str, Any]:
    long = panel.to_polars().to_pandas()
    return {
        name: long.pivot(index="time", columns="instrument", values=name)
        for name in ("high", "low", "close", "volume", "total_return", "market_cap")
    }


AT = [280, 300, 339]


@pytest.fixture(scope="module")
def found(panel: pp.Panel) -> dict[str, Any]:
    return characteristics(Market.of(panel, panel.instruments), np.array(AT))


def transcribed(frames: dict[str, Any]) -> dict[str, Any]:
    """Frames (days, names) of what is not already one of the evaluation's own signals."""
    month, year = 21, 252
    level = (1 + frames["total_return"].fillna(0)).cumprod().where(frames["close"].notna().cummax())
    close, volume = frames["close"], frames["volume"]
    step = (level / level.shift(1) - 1).where(close.notna())
    traded = close * volume
    at_least = {"window": month, "min_periods": math.ceil(month / 2)}
    market = step.mean(axis=1)
    spreads = pd.DataFrame(bid_ask_by_hand(frames), close.index, close.columns)
    return {
        "Volatility": step.rolling(**at_least).std(),
        "52-week high": level / level.rolling(year).max(),
        "Dollar volume": np.log(traded.fillna(0).rolling(month).mean()),
        "Zero-trade days": (volume == 0).where(volume.notna()).astype(float).rolling(**at_least).mean(),
        "Amihud illiquidity": (step.abs() / traded.where(traded > 0) * 1e6).rolling(**at_least).mean(),
        "Size": np.log(frames["market_cap"]),
        "Bid-ask spread": spreads.rolling(**at_least).mean(),
        "market": market,
        "step": step,
    }


def bid_ask_by_hand(frames: dict[str, Any]) -> Any:
    """Corwin and Schultz (2012), equations 14 and 18, a pair of days at a time."""
    high, low, close = (frames[name].to_numpy() for name in ("high", "low", "close"))
    out = np.full(high.shape, np.nan)
    k = 3 - 2 * math.sqrt(2)
    for t in range(1, len(high)):
        for j in range(high.shape[1]):
            numbers = [high[t - 1, j], low[t - 1, j], close[t - 1, j], high[t, j], low[t, j]]
            if np.isnan(numbers).any():
                continue
            h0, l0, c0, h1, l1 = numbers
            if c0 > h1:
                h1, l1 = c0, l1 + c0 - h1
            elif c0 < l1:
                h1, l1 = h1 - (l1 - c0), c0
            beta = math.log(h0 / l0) ** 2 + math.log(h1 / l1) ** 2
            gamma = math.log(max(h0, h1) / min(l0, l1)) ** 2
            alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / k - math.sqrt(gamma / k)
            out[t, j] = max(0.0, 2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha)))
    return out


def test_all_equal_their_transcriptions(found: dict[str, Any], frames: dict[str, Any]) -> None:
    expected = transcribed(frames)
    for name in (
        "Volatility",
        "52-week high",
        "Dollar volume",
        "Zero-trade days",
        "Amihud illiquidity",
        "Size",
    ):
        np.testing.assert_allclose(
            found[name], expected[name].to_numpy()[AT], rtol=1e-9, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(
        found["Bid-ask spread"], expected["Bid-ask spread"].to_numpy()[AT], rtol=1e-9, atol=1e-12
    )
    assert np.nanmax(found["Bid-ask spread"]) > 0


def trend_by_hand(level: Any, at: list[int]) -> np.ndarray:
    """Han, Zhou and Zhu (2016), written from the article: forecasts from averages over 3 to 1000 days.

    Levels are (days, names), carried over halts. At each month's end the returns of the month are regressed across
    names on averages over price at its start; slopes of the last twelve months are averaged. A lag takes part where
    half of the names have so many days.
    """
    lags = [3, 5, 10, 20, 50, 100, 200, 400, 600, 800, 1000]
    ratio = {lag: level.rolling(lag, min_periods=lag).mean() / level for lag in lags}
    month = pd.Series(level.index.to_period("M"), level.index)
    ends = np.flatnonzero((month != month.shift(-1)).to_numpy()).tolist()
    following = level.index + pd.offsets.BDay(1)
    closing = (following.to_period("M") != level.index.to_period("M")).tolist()
    out = []
    for t in at:
        known = [end for end in ends if end < t] + ([t] if closing[t] else [])
        past: list[np.ndarray] = []
        for start, end in zip(known[-2::-1], known[:0:-1], strict=True):
            x = pd.DataFrame({lag: ratio[lag].iloc[start] for lag in lags})
            priced = level.iloc[start].notna()
            used = [lag for lag in lags if 2 * x[lag].notna().sum() >= priced.sum()]
            ret = level.iloc[end] / level.iloc[start] - 1
            good = priced & ret.notna() & x[used].notna().all(axis=1)
            if not used or good.sum() <= len(used) + 1:
                continue
            design = np.column_stack([np.ones(good.sum()), x.loc[good, used]])
            slopes = pd.Series(np.linalg.lstsq(design, ret[good].to_numpy(), rcond=None)[0][1:], used)
            past.append(slopes.reindex(lags, fill_value=0.0).to_numpy())
            if len(past) == 12:
                break
        mean, took_part = np.mean(past, axis=0), (np.array(past) != 0).any(axis=0)
        value = pd.Series(0.0, level.columns)
        for k, lag in enumerate(lags):
            if took_part[k]:
                value = value + mean[k] * ratio[lag].iloc[t]
        out.append(value.to_numpy())
    return np.array(out)


def test_the_trend_equals_its_transcription() -> None:
    bars = samples.simulate(40, 420, seed=8, halt_rate=0.01, halts="absent", split_rate=0.0, list_late=0.2)
    market = Market.of(panel := pp.Panel.from_table(bars, progress=False), panel.instruments)
    long = panel.to_polars().to_pandas()
    step, close = (
        long.pivot(index="time", columns="instrument", values=v) for v in ("total_return", "close")
    )
    level = (1 + step.fillna(0)).cumprod().where(close.notna().cummax())
    month_end = next(
        t for t in range(400, 420) if level.index[t].month != (level.index[t] + pd.offsets.BDay(1)).month
    )
    at = [300, 355, month_end, 419]
    found = characteristics(market, np.array(at))["TREND"]
    there = close.notna().to_numpy()[at]
    ours, theirs = found[there], trend_by_hand(level, at)[there]
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)
    assert np.isfinite(ours).mean() > 0.5


def test_the_price_signals_equal_their_transcriptions(found: dict[str, Any], frames: dict[str, Any]) -> None:
    """MOM, STR and WSTR: returns over parts of a year of 252 days, of levels carried over halts."""
    level = (1 + frames["total_return"].fillna(0)).cumprod().where(frames["close"].notna().cummax()).ffill()
    there = frames["close"].notna().to_numpy()[AT]
    for name, expected in {
        "MOM": level.shift(21) / level.shift(252) - 1,
        "STR": -(level / level.shift(21) - 1),
        "WSTR": -(level / level.shift(5) - 1),
    }.items():
        ours, theirs = found[name][there], expected.to_numpy()[AT][there]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=name)
        assert np.isfinite(ours).sum() > 10


def test_beta_and_delay_equal_regressions(found: dict[str, Any], frames: dict[str, Any]) -> None:
    sm = pytest.importorskip("statsmodels.api")
    expected = transcribed(frames)
    step, market = expected["step"], expected["market"]
    lagged = pd.concat([market.shift(lag) for lag in range(5)], axis=1)
    known = 0
    for k, t in enumerate(AT):
        rows = slice(t - 251, t + 1)
        for j, name in enumerate(step.columns):
            y = step[name].iloc[rows]
            x = sm.add_constant(lagged.iloc[rows].to_numpy())
            use = y.notna().to_numpy() & ~np.isnan(x).any(axis=1)
            if use.sum() < 126:
                assert np.isnan(found["Beta"][k, j])
                continue
            known += 1
            narrow, wide = (sm.OLS(y.to_numpy()[use], x[use][:, :m]).fit() for m in (2, 6))
            assert found["Beta"][k, j] == pytest.approx(narrow.params[1], abs=1e-9)
            assert found["Price delay"][k, j] == pytest.approx(1 - narrow.rsquared / wide.rsquared, abs=1e-8)
    assert known >= 2 * len(AT)


def test_nothing_comes_from_later_bars(panel: pp.Panel, found: dict[str, Any]) -> None:
    bars = panel.bars.copy()
    later = panel.time_code > AT[0]
    bars[later] *= np.random.default_rng(0).uniform(1.5, 3.0, (int(later.sum()), 1))
    fields = {name: np.where(later, 7.0, values) for name, values in panel.fields.items()}
    other = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, fields)
    again = characteristics(Market.of(other, other.instruments), np.array(AT))
    assert set(again) == set(CHARACTERISTICS)
    for name, values in again.items():
        np.testing.assert_array_equal(values[0], found[name][0], err_msg=name)


def test_a_spread_is_found(make_walk: Any) -> None:
    """Highs at the ask and lows at the bid, 2% apart around a calm price."""
    rng = np.random.default_rng(1)
    middle = 50 * np.exp(np.cumsum(rng.normal(0, 0.002, (4000, 1)), axis=0))
    wide = np.abs(rng.normal(0, 0.002, middle.shape))
    high, low = middle * (1 + wide) * 1.01, middle * (1 - wide) / 1.01
    found = np.nanmean(bid_ask_spread(high, low, middle))
    assert found == pytest.approx(0.02, abs=0.003)
    assert np.isnan(bid_ask_spread(high, low, middle)[0]).all()


def test_without_caps_there_is_no_size(panel: pp.Panel) -> None:
    fields = {k: v for k, v in panel.fields.items() if k != "market_cap"}
    bare = pp.Panel(panel.bars, panel.offsets, panel.instruments, panel.time, panel.tz, fields)
    assert "Size" not in characteristics(Market.of(bare, bare.instruments), np.array([300]))


def test_characteristics_of_the_user_stand_beside(panel: pp.Panel) -> None:
    market = Market.of(panel, panel.instruments)
    rng = np.random.default_rng(0)
    by_row = rng.random(len(panel))
    keys = panel.to_polars().select("instrument", "time")
    frame = keys.with_columns(Coverage=pl.Series(by_row)).sample(fraction=0.5, seed=1)
    found = Tables(characteristics={"By row": by_row, "Coverage": frame}).own(market)
    there = market.row >= 0
    np.testing.assert_array_equal(found["By row"][there], by_row[market.row[there]])
    known = ~np.isnan(found["Coverage"])
    assert known.sum() == len(frame)
    np.testing.assert_array_equal(found["Coverage"][known], found["By row"][known])
    for given, message in (
        ({"Size": by_row}, "'Size' is one of the tables' own rows"),
        ({"Mine": by_row[:5]}, r"characteristics\['Mine'\] has shape \(5,\)"),
        ({"Mine": keys}, r"characteristics\['Mine'\] has the columns instrument, time"),
        (
            {"Mine": frame.with_columns(instrument=pl.lit("elsewhere"))},
            r"\['Mine'\] has no value at any bar of the panel",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Tables(characteristics=given).own(market)
    with pytest.raises(ValueError, match="tables='0'"):
        Tables(("0",))
