"""The simulated market is what it says, and its planted pattern is as good as it says and no better."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import pricepix as pp
from pricepix.samples.ashare import simulate_arrays

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def market() -> pl.DataFrame:
    return pp.samples.simulate(60, 800, seed=1, halt_rate=0.003, split_rate=0.001, delist_rate=0.0005)


def test_bars_are_clean_and_on_the_grid(market: pl.DataFrame) -> None:
    prices = market.drop_nulls("close").select("open", "high", "low", "close").to_numpy()
    o, h, low, c = prices.T
    assert (prices > 0).all()
    assert (h >= np.maximum(o, c)).all()
    assert (low <= np.minimum(o, c)).all()
    np.testing.assert_array_equal(prices, np.round(prices * 100) / 100)
    volume = market["volume"].to_numpy()
    assert (volume >= 0).all()
    np.testing.assert_array_equal(volume, np.round(volume))


def test_a_panel_takes_it_without_complaint(market: pl.DataFrame) -> None:
    panel = pp.Panel.from_table(market)
    assert len(panel) == len(market)
    assert panel.report.ok
    assert {"adjustment_factor", "total_return"} <= set(panel.fields)


def test_halts_splits_delistings_and_late_listings(market: pl.DataFrame) -> None:
    halted = market.filter(pl.col("close").is_null())
    assert len(halted) > 50
    assert (halted["volume"] == 0).all()
    assert (
        halted.select(pl.all_horizontal(pl.col("open", "high", "low", "total_return").is_null()))
        .to_series()
        .all()
    )
    spans = market.group_by("instrument").agg(
        pl.col("time").min().alias("first"), pl.col("time").max().alias("last")
    )
    first, last = market["time"].min(), market["time"].max()
    assert 0 < spans.filter(pl.col("first") > first).height < 30
    assert 0 < spans.filter(pl.col("last") < last).height < 50
    traded = market.drop_nulls("close").with_columns(
        jump=(pl.col("adjustment_factor") / pl.col("adjustment_factor").shift(1).over("instrument")),
        raw=pl.col("close") / pl.col("close").shift(1).over("instrument"),
        adjusted=(pl.col("close") * pl.col("adjustment_factor"))
        / (pl.col("close") * pl.col("adjustment_factor")).shift(1).over("instrument"),
    ).drop_nulls("jump")  # fmt: skip
    splits = traded.filter((pl.col("jump") - 1).abs() > 1e-9)
    assert len(splits) > 10
    # A split moves the traded price by its ratio, and the total return not at all.
    np.testing.assert_allclose(splits["raw"] * splits["jump"], splits["adjusted"], rtol=1e-12)
    np.testing.assert_allclose(traded["total_return"] + 1, traded["adjusted"], rtol=1e-9)
    assert traded["total_return"].abs().max() < 0.6


def test_open_gaps_from_the_last_close(market: pl.DataFrame) -> None:
    adjusted = pl.col("close") * pl.col("adjustment_factor")
    opened = pl.col("open") * pl.col("adjustment_factor")
    change = (opened / adjusted.shift(1).over("instrument")).log().drop_nulls()
    gap = market.drop_nulls("close").select(change).to_series()
    # 0.3 of a day's variance, of instruments from 20% to 50% a year, with some gaps of five times the size.
    assert 0.009 < gap.std() < 0.016
    assert (gap.abs() > 5 * gap.std()).mean() > 0.0005


def test_seed_decides() -> None:
    a, b, c = (pp.samples.simulate(5, 50, seed=s) for s in (1, 1, 2))
    assert a.equals(b)
    assert not a.equals(c)


def test_a_seed_always_gives_the_same_prices() -> None:
    """Prices on the grid, so that a last digit of a logarithm does not decide."""
    daily = {"seed": 7, "list_late": 0, "split_rate": 0.02}
    # The default was "median" before: no other test holds prices of a simulated market.
    assert pp.samples.simulate(3, 60, **daily)["close"].to_list()[::45] == [296.16, 49.06, 43.04, 10.16]
    median = pp.samples.simulate(3, 60, drift="median", **daily)
    assert median["close"].to_list()[::45] == [296.28, 49.08, 44.76, 10.77]
    minutes = pp.samples.simulate(2, 90, seed=7, interval="5m", bayes_accuracy=0.7, list_late=0)
    assert minutes["close"].to_list()[::45] == [63.8, 63.28, 48.21, 48.59]
    market = simulate_arrays(3, 4, seed=7, split_rate=0.3, halt_rate=0.05)
    closes = [[36.43, 5.15, 21.52], [35.9, 5.07, 19.31], [36.42, 2.57, 14.19], [18.68, 2.61, 9.19]]
    assert market.close[:, :, 20].tolist() == closes
    assert market.up_limit[:, 0].tolist() == [40.6, 41.22, 40.7, 19.55]


@pytest.mark.parametrize("drift", ["mean", "median"])
def test_a_random_walk_has_no_direction(drift: Any) -> None:
    options = {"halt_rate": 0, "split_rate": 0, "delist_rate": 0, "list_late": 0}
    table = pp.samples.simulate(200, 1000, seed=3, drift=drift, **options)
    close = table["close"].to_numpy().reshape(200, 1000)
    step = close[:, 5::5] / close[:, :-5:5]
    n = np.count_nonzero(step != 1)
    assert abs(np.count_nonzero(step > 1) / n - 0.5) < 3 * 0.5 / n**0.5
    # No memory either: the sign of a step says nothing about the next one's.
    same = np.sign(step[:, 1:] - 1) == np.sign(step[:, :-1] - 1)
    assert abs(same.mean() - 0.5) < 3 * 0.5 / same.size**0.5 + 0.002


def last_close(images: np.ndarray) -> np.ndarray:
    return 31.0 - images[:, :25, 14].argmax(axis=1)


def steepness(images: np.ndarray) -> np.ndarray:
    return images[:, :25, 2].argmax(axis=1) - images[:, :25, 14].argmax(axis=1).astype(float)


def body(images: np.ndarray) -> np.ndarray:
    """How much of the height the last two bars fill: calm or wild."""
    return (images[:, :25, 9:15] > 0).sum(axis=(1, 2)).astype(float)


def volume(images: np.ndarray) -> np.ndarray:
    return (images[:, 26:, 12:15] > 0).sum(axis=(1, 2)).astype(float)


def anything(images: np.ndarray) -> np.ndarray:
    pattern = np.random.default_rng(0).normal(0, 1, images.shape[1:])
    return np.einsum("nij,ij->n", (images > 0).astype(float), pattern)


def earned(drift: Any) -> dict[str, list[np.ndarray]]:
    """Returns by date of long, short and long-short portfolios of five image functions, and of volatility."""
    found: dict[str, list[np.ndarray]] = {}
    functions = (last_close, steepness, body, volume, anything)
    for seed in range(10):
        panel = pp.Panel.from_table(
            pp.samples.simulate(60, 500, seed=seed, drift=drift), adjust="multiply", progress=False
        )
        images = pp.PanelImages(panel, "jkx5", horizons=(5,), every=5)
        pictures, returns = images.read(), images.returns(5)
        with np.errstate(invalid="ignore"):
            spread = np.log(panel.bars[:, 1] / panel.bars[:, 2])
        # Over the row's last 40 bars, or fewer: the most volatile names are mostly the same.
        mean = np.convolve(np.nan_to_num(spread), np.ones(40) / 40)[: len(spread)]
        scores = {f.__name__: f(pictures) for f in functions} | {"volatility": mean[images.windows.row]}
        noise = np.random.default_rng(seed).random(len(images)) * 1e-6
        for name, score in scores.items():
            sums = []
            for t in np.unique(images.time):
                own = np.flatnonzero((images.time == t) & ~np.isnan(returns))
                if len(own) < 20:
                    continue
                order = own[np.argsort((score + noise)[own])]
                n = len(order) // 5
                low, high = returns[order[:n]].mean(), returns[order[-n:]].mean()
                sums.append((high, -low, high - low))
            found.setdefault(name, []).append(np.array(sums))
    return {name: list(np.concatenate(parts).T) for name, parts in found.items()}


def z_scores(drift: Any) -> dict[tuple[str, str], float]:
    return {
        (name, side): float(x.mean() / x.std(ddof=1) * len(x) ** 0.5)
        for name, sides in earned(drift).items()
        for side, x in zip(("long", "short", "long-short"), sides, strict=True)
    }


def test_no_portfolio_of_any_image_function_earns_anything() -> None:
    found = z_scores("mean")
    assert len(found) == 18
    assert all(abs(z) < 3 for z in found.values()), found
    # With steps of median 0 the same draws pay those who hold the volatile names, and most of all who hold any.
    median = z_scores("median")
    assert median["volatility", "long"] - found["volatility", "long"] > 3
    assert median["volatility", "long-short"] - found["volatility", "long-short"] > 2
    assert sum(z for (_, side), z in median.items() if side == "long") / 6 > 2


def test_prices_stay_above_a_tick_and_volatility_is_what_was_asked_for() -> None:
    options = {"halt_rate": 0, "split_rate": 0, "delist_rate": 0, "list_late": 0}
    table = pp.samples.simulate(100, 2000, seed=1, volatility=(0.4, 0.4), jump_rate=0, **options)
    close = table["close"].to_numpy().reshape(100, 2000)
    assert close.min() > 0.1
    yearly = np.diff(np.log(close), axis=1).std(axis=1) * 252**0.5
    assert 0.38 < np.median(yearly) < 0.45


@pytest.mark.parametrize("horizon", [1, 5, 20])
@pytest.mark.parametrize("accuracy", [0.5, 0.65, 0.9, 1.0])
def test_planted_accuracy_is_what_was_asked_for(horizon: int, accuracy: float) -> None:
    table = pp.samples.simulate(
        60,
        800,
        seed=4,
        bayes_accuracy=accuracy,
        horizon=horizon,
        price=(50, 200),
        halt_rate=0.01,
        split_rate=0.001,
    )
    known = table.with_columns(
        ret=(pl.col("close") * pl.col("adjustment_factor"))
        .pct_change(horizon)
        .shift(-horizon)
        .over("instrument")
    ).drop_nulls("ret")
    signal, ret = known["signal"].to_numpy() > 0, known["ret"].to_numpy()
    assert (ret != 0).all()
    right = (ret > 0) == signal
    error = 0.5 / len(right) ** 0.5
    assert abs(right.mean() - accuracy) <= 3 * error * (2 * (accuracy * (1 - accuracy)) ** 0.5)
    # The rest of the past adds nothing: not the last return, not the last signals.
    past = known.with_columns(
        before=pl.col("total_return").shift(1).over("instrument") > 0,
        last=pl.col("signal").shift(1).over("instrument") > 0,
    ).drop_nulls()
    for name in ("before", "last"):
        for side in (True, False):
            part = past.filter(pl.col(name) == side)
            rate = ((part["ret"] > 0) == (part["signal"] > 0)).mean()
            assert abs(rate - accuracy) <= 4 * 0.5 / len(part) ** 0.5


def test_planted_signal_shows_in_the_last_bar() -> None:
    table = pp.samples.simulate(20, 300, seed=4, bayes_accuracy=0.65).drop_nulls("close")
    top, bottom = pl.max_horizontal("open", "close"), pl.min_horizontal("open", "close")
    shown = table.select(
        (bottom - pl.col("low") > pl.col("high") - top).alias("long_below"), pl.col("signal") > 0
    )
    assert (shown["long_below"] == shown["signal"]).mean() > 0.995


def test_intraday_bars_fill_the_session() -> None:
    table = pp.samples.simulate(3, 400, interval="5m", seed=0, list_late=0, halt_rate=0, delist_rate=0)
    stamps = table.filter(instrument="S0000")["time"]
    assert stamps.dtype == pl.Datetime("ns")
    first_day = stamps.filter(stamps.dt.date() == stamps[0].date())
    assert len(first_day) == 78
    assert (str(first_day[0].time()), str(first_day[-1].time())) == ("09:35:00", "16:00:00")
    assert set(stamps.dt.weekday()) <= {1, 2, 3, 4, 5}
    hours = pp.samples.simulate(2, 14, interval="1h", seed=0, list_late=0)["time"].dt.time()
    assert [str(t) for t in hours[:7]] == [f"{h}:30:00" for h in range(10, 16)] + ["16:00:00"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruments": 0}, "instruments=0"),
        ({"bars": 1}, "bars=1"),
        ({"interval": "2d"}, "interval='2d' is not known: choose one of '1d'"),
        ({"bayes_accuracy": 0.4}, "bayes_accuracy=0.4"),
        ({"horizon": 0}, "horizon=0: give"),
        ({"volatility": (0.5, 0.2)}, "volatility=\\(0.5, 0.2\\)"),
        ({"tick": 5.0}, "tick=5.0"),
        ({"correlation": 1.0}, "correlation=1.0"),
        ({"halt_rate": 2.0}, "halt_rate=2.0: give a number from 0 to 1"),
        ({"halts": "gone"}, "halts='gone' is not known"),
        ({"drift": "none"}, "drift='none' is not known"),
        ({"start": "someday"}, "start='someday': give a day"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pp.samples.simulate(**({"instruments": 3, "bars": 30} | options))


def test_real_stocks() -> None:
    pytest.importorskip("bokeh_sampledata")
    table = pp.samples.stocks()
    assert table.columns == ["symbol", "date", "open", "high", "low", "close", "volume"]
    assert table["symbol"].unique(maintain_order=True).to_list() == ["AAPL", "FB", "GOOG", "IBM", "MSFT"]
    row = table.row(0, named=True)
    assert (str(row["date"]), row["open"], row["close"], row["volume"]) == (
        "2000-03-01",
        118.56,
        130.31,
        9616100.0,
    )
    factor = pp.samples.stocks(adjustment_factor=True).filter(symbol="AAPL")
    # Two for one in February 2005.
    before, after = (
        factor.filter(date=pl.lit(day).str.to_date())["adjustment_factor"][0]
        for day in ("2005-02-25", "2005-02-28")
    )
    assert after / before == pytest.approx(2, rel=1e-3)


def test_missing_package() -> None:
    code = "import sys; sys.modules['bokeh_sampledata'] = None; import pricepix; pricepix.samples.stocks()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1].endswith('bokeh-sampledata: pip install "pricepix[sample]"')


def test_the_bundled_table_is_what_its_recipe_makes() -> None:
    from pricepix.samples import make_bundled

    # Logarithms may differ in the last digit between machines.
    assert_frame_equal(pp.samples.bundled(), make_bundled.make(), check_exact=False, rel_tol=1e-12)


def test_the_bundled_table_needs_nothing_else_and_is_small() -> None:
    from pricepix.samples.make_bundled import NAMES

    panel = pp.Panel.from_table(pp.samples.bundled(), adjust="multiply", progress=False)
    assert panel.instruments.tolist() == list(NAMES)
    assert panel.report.ok
    assert (ROOT / "pricepix" / "samples" / "bundled.parquet").stat().st_size < 300_000
