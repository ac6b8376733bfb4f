"""The oracle against the golden files: only one that agrees with all of them may judge a kernel."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from golden_files import cases

HEIGHT = {5: 32, 20: 64, 60: 96}


def assert_oracle_draws(case, **how):
    """Every valid window identical, every invalid one refused."""
    assert case.valid.any()
    assert not case.valid.all()
    for i in range(len(case.ohlcv)):
        ma = None if case.ma is None else case.ma[i]
        limits = None if case.at_limit is None else case.at_limit[i]
        image, reason = oracle.draw(case.ohlcv[i], ma, volume=case.volume, at_limit=limits, **how)
        where = f"{case.name}, window {i}, {case.kind[i]}: {reason}"
        assert (image is not None) == case.valid[i], where
        if image is not None:
            assert np.array_equal(image, case.images[i]), where


@pytest.mark.parametrize("bars", [5, 20, 60])
def test_oracle_equals_the_authors_drawer(golden, bars):
    found = list(cases(f"jkx_{bars}", golden(f"jkx_{bars}")))
    assert len(found) == 4
    for case in found:
        assert_oracle_draws(case, height=HEIGHT[bars])


@pytest.mark.parametrize("bars", [5, 20])
def test_oracle_equals_cnn_for_trading(golden, bars):
    found = list(cases(f"cnnft_{bars}", golden(f"cnnft_{bars}")))
    assert len(found) == 4
    for case in found:
        assert_oracle_draws(case, style="cnn_for_trading", height=HEIGHT[bars])


@pytest.mark.parametrize("bars", [9, 49])
def test_oracle_equals_image_trading(golden, bars):
    (case,) = cases(f"imagetrading_{bars}", golden(f"imagetrading_{bars}"))
    assert_oracle_draws(case, style="image_trading", height=3 * bars, scale="per_field")


@pytest.mark.parametrize("bars", [5, 20, 60])
def test_oracle_equals_the_authors_pipeline_from_raw_rows(golden, bars):
    file = golden(f"jkx_e2e_{bars}")
    assert len(file["raw"]) == 100
    for raw, ohlcv, ma, expected in zip(file["raw"], file["ohlcv"], file["ma"], file["img"], strict=True):
        rebuilt = oracle.rebuild_returns(raw, bars)
        average = oracle.moving_average_rebuilt(rebuilt[:, 3], bars)[-bars:]
        # bit for bit: a difference in the last place moves a pixel in 1 window of 300
        np.testing.assert_array_equal(rebuilt[-bars:], ohlcv)
        np.testing.assert_array_equal(average, ma)
        image, reason = oracle.draw(rebuilt[-bars:], average, height=HEIGHT[bars], volume=True)
        assert reason == "valid"
        assert np.array_equal(image, expected)


@pytest.mark.parametrize("bars", [5, 20])
def test_oracle_equals_the_average_of_cnn_for_trading(golden, bars):
    file = golden(f"cnnft_{bars}")
    for pad, history, ohlcv, ma in zip(file["pad"], file["history"], file["ohlcv"], file["ma"], strict=True):
        close = np.concatenate([history[len(history) - pad :, 3], ohlcv[:, 3]])
        average = oracle.moving_average(close, 20, min_count=1)[-bars:]
        np.testing.assert_allclose(average, ma, rtol=1e-14)  # pandas adds in another order


def test_running_average_equals_pandas():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(7)
    for _ in range(300):
        n = int(rng.integers(1, 9))
        close = np.round(rng.uniform(0.3, 1.7, 30), int(rng.integers(1, 16)))
        close[rng.random(30) < rng.choice([0.0, 0.05, 0.3])] = np.nan
        if rng.random() < 0.3:
            close[5:20] = close[5]
        expected = pd.Series(close).rolling(n).sum().to_numpy() / n
        np.testing.assert_array_equal(oracle.moving_average_rebuilt(close, n), expected)


def test_plain_average_counts_missing_closes():
    close = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 9.0])
    np.testing.assert_array_equal(oracle.moving_average(close, 2), [np.nan, 1.5, np.nan, np.nan, 4.5, 7.0])
    np.testing.assert_array_equal(oracle.moving_average(close, 2, min_count=1), [1, 1.5, 2, 4, 4.5, 7])


def test_merged_bars_by_hand():
    nan = np.nan
    bars = np.array(
        [
            [9.0, 9.0, 9.0, 9.0, 9.0],  # an incomplete group: left out
            [1.0, 5.0, 1.0, 3.0, 10.0],
            [2.0, 7.0, 2.0, nan, 20.0],
            [nan, nan, 3.0, 4.0, nan],
            [6.0, nan, nan, 8.0, 5.0],
        ]
    )
    expected = [[1.0, 7.0, 1.0, nan, 30.0], [nan, nan, 3.0, 8.0, 5.0]]
    np.testing.assert_array_equal(oracle.aggregate(bars, 2), expected)
    np.testing.assert_array_equal(oracle.aggregate(bars, 1), bars)


def test_rebuilt_bars_by_hand():
    nan = np.nan
    raw = np.array(
        [
            [8.0, 16.0, 4.0, 8.0, 7.0, 0.3],  # the return into the first row means nothing
            [4.0, 8.0, 2.0, -4.0, 0.0, 1.0],  # level 2; minus marks a midpoint; no trade
            [4.0, 8.0, 2.0, nan, 5.0, 0.5],  # level 3, the close alone
            [4.0, 8.0, 2.0, 4.0, 5.0, nan],  # nothing known
            [2.0, 2.0, 2.0, 2.0, -9.0, 1.0],  # level 6
        ]
    )
    expected = [
        [0.5, 1.0, 0.25, 0.5, 7.0],
        [1.0, 2.0, 0.5, 1.0, nan],
        [nan, nan, nan, 1.5, 5.0],
        [nan, nan, nan, nan, 5.0],
        [3.0, 3.0, 3.0, 3.0, 9.0],
    ]
    np.testing.assert_array_equal(oracle.rebuild_returns(raw, 4), expected)
