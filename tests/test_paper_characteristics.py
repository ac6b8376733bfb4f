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
