"""What could mislead a researcher: deaths, missing returns, overlapping horizons, thin calendars, short samples."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from test_factor_evaluation import QUIET, cache_of

import pricepix as pp
from pricepix.factor import evaluate
from pricepix.factor.evaluation.market import Market

OPTIONS = {"quantiles": 5, "baselines": (), "delays": (0,), "horizons": (), "progress": False}


def signal_market(names=60, bars=260, seed=5, accuracy=0.6, horizon=5):
    """A market with a planted signal: its table, and the signal as probabilities (bars, instruments)."""
    frame = pp.samples.simulate(
        names, bars, seed=seed, bayes_accuracy=accuracy, horizon=horizon, **QUIET
    )
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
