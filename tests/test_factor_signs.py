"""Whatever a market does to its names, every figure of an evaluation tells of the same profit or loss.

Labels, information coefficients, sorts, decay, classification and portfolios see one market: where the truth is a
loss, none of them may show a gain.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from test_factor_evaluation import QUIET, cache_of

import pricepix as pp
from pricepix.factor import evaluate

OPTIONS = {"baselines": (), "delays": (0, 1), "progress": False}


def table_of(day, close, step, score, deaths=None):
    """Bars by name of arrays (days, names), and the score until each death; the last row of one loses 90%."""
    frames, score = [], score.astype(np.float32).copy()
    for j in range(close.shape[1]):
        gone = deaths is not None and deaths[:, j].any()
        end = int(np.argmax(deaths[:, j])) if gone else len(day)
        price, moved, time = close[:end, j], step[:end, j].copy(), day[:end]
        moved[:1] = np.nan
        if gone:
            price, moved, time = np.append(price, np.nan), np.append(moved, -0.9), day[: end + 1]
            score[end:, j] = np.nan
        columns = dict.fromkeys(("open", "high", "low", "close"), price)
        frame = pl.DataFrame({"time": time, **columns, "volume": 1.0, "total_return": moved})
        frames.append(frame.with_columns(instrument=pl.lit(f"N{j:03d}")))
    return pl.concat(frames).with_columns(
        pl.col("open", "high", "low", "close", "total_return").fill_nan(None)
    ), score


def mirrored_market(bars=520, names=400, seed=11):
    """Names in pairs of equal returns and opposite scores, so that scores foretell nothing, to the last digit.

    The two top deciles by score die with a probability of 0.1% a day: a row without a price, which loses 90%.
    """
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((bars, names // 2))
    for t in range(1, bars):
        score[t] = 0.99 * score[t - 1] + np.sqrt(1 - 0.99**2) * score[t]
    score = np.hstack([score, -score])
    step = np.tile(rng.normal(0, 0.01, (bars, names // 2)), 2)
    high = score >= np.quantile(score, 0.8, axis=1, keepdims=True)
    dies = (rng.random((bars, names)) < 0.001) & np.vstack([np.zeros((1, names), bool), high[:-1]])
    dies[:30] = False
    day = np.arange("2010-01-01", "2013-01-01", dtype="datetime64[D]")
    day = day[np.is_busday(day)][:bars]
    close = 100 * np.cumprod(1 + step, axis=0)
    return day, close, step, 0.5 + 0.1 * np.tanh(score), dies


def every_figure(found, horizon):
    """The figures of one evaluation, each above 0 for a gain, by name."""
    f = found.figures
    portfolio = f["portfolios"]["equal"]["long_short"]
    figures = {
        "rank IC": f["ic"]["rank"]["mean"],
        "Pearson IC": f["ic"]["pearson"]["mean"],
        "sorts": f["sorts"]["spread"]["mean"],
        "portfolio": portfolio["periods"]["mean"],
        "portfolio by bar": portfolio["bars"]["mean"],
        "decay": next(d["rank_ic"]["mean"] for d in f["decay"] if d["horizon"] == horizon),
        "delay": f["delays"][0]["rank_ic"]["mean"],
        "holding": f["holding"]["month"]["mean"],
    }
    if f["classification"] is not None:
        pooled = f["classification"]["pooled"]
        figures["accuracy"], figures["AUC"] = pooled["accuracy"] - 0.5, pooled["auc"] - 0.5
    return figures


def test_deaths_are_a_loss_in_every_figure(tmp_path):
    day, close, step, score, dies = mirrored_market()
    options = {**OPTIONS, "quantiles": 10, "horizons": (5, 20, 60), "horizon": 20}
    frame, scored = table_of(day, close, step, score)
    panel = pp.Panel.from_table(frame, progress=False)
    found = every_figure(evaluate(cache_of(panel, scored, tmp_path / "f.zarr"), panel, **options), 20)
    # Without deaths nothing is foretold. (Halves of the cross-section have equal returns.)
    for name in ("rank IC", "Pearson IC", "sorts", "accuracy", "AUC"):
        assert found[name] == pytest.approx(0, abs=1e-4), name

    frame, scored = table_of(day, close, step, score, dies)
    panel = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(panel, scored, tmp_path / "g.zarr")
    result = evaluate(cache, panel, **options)
    figures = every_figure(result, 20)
    assert {name for name, value in figures.items() if not value < 0} == set()
    assert all(point["rank_ic"]["mean"] < 0 for point in result.figures["decay"])
    assert figures["sorts"] < -0.01  # by hand: 2% of a decile within 20 bars, each -90%
    assert f"rank IC {figures['rank IC']:.4f}" in repr(result)
    assert result.figures["data"]["died_within_horizon"] > 400

    # And so it is in what networks learn.
    rows = np.arange(len(panel))
    label = pp.forward_returns(panel, rows, 20)
    code = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    value = scored[panel.time_code, code]
    known = ~np.isnan(label.value) & ~np.isnan(value)
    top, bottom = (known & chosen for chosen in (value > 0.58, value < 0.42))
    assert label.value[top].mean() - label.value[bottom].mean() < -0.01
    assert label.died_within_horizon >= result.figures["data"]["died_within_horizon"]


# ---------------------------------------------------------------------- defects, on real and simulated bars


def real_market(shared):
    path = shared / "data" / "lean_daily.parquet"
    if not path.is_file():
        pytest.skip(f"real bars not found: {path}")
    frame = pl.read_parquet(path).filter(pl.col("date").dt.year().is_between(2009, 2013))
    frame = frame.rename({"ticker": "instrument", "date": "time"}).with_columns(pl.col("time").dt.date())
    days = frame["time"].n_unique()
    return frame.filter(pl.len().over("instrument") > 0.9 * days)


def simulated_market(shared):
    frame = pp.samples.simulate(40, 500, seed=3, **QUIET)
    return frame.select("instrument", pl.col("time").dt.date(), "open", "high", "low", "close", "volume")


def with_returns(frame):
    change = pl.col("close").pct_change().over("instrument", order_by="time")
    return frame.sort("instrument", "time").with_columns(total_return=change, adjustment_factor=pl.lit(1.0))


def plain(frame):
    return frame


def stray_row(frame):
    """One name has a row on the Saturday before a month's end."""
    friday = frame.filter(pl.col("time").dt.weekday() == 5)["time"].unique().sort()[30]
    row = frame.filter(pl.col("time") == friday).head(1)
    return pl.concat([frame, row.with_columns(pl.col("time").dt.offset_by("1d"), total_return=pl.lit(0.0))])


def missing_returns(frame):
    """One return in a hundred is missing beside its price."""
    gone = pl.Series(np.random.default_rng(5).random(len(frame)) < 0.01)
    return frame.with_columns(total_return=pl.when(gone).then(None).otherwise("total_return"))


def nameless_returns(frame):
    """A quarter of the names has prices and no total return."""
    names = frame["instrument"].unique().sort()[::4].to_list()
    return frame.with_columns(
        total_return=pl.when(pl.col("instrument").is_in(names)).then(None).otherwise("total_return")
    )


def holes(frame):
    """A fiftieth of all rows is absent."""
    return frame.filter(pl.Series(np.random.default_rng(6).random(len(frame)) > 0.02))


def later_split(frame):
    """A split of 7:1 on the last day, in half of the names, as a vendor adjusts for it."""
    names = frame["instrument"].unique().sort()[::2].to_list()
    before = pl.col("instrument").is_in(names) & (pl.col("time") < pl.col("time").max())
    prices = [
        pl.when(before).then(pl.col(p) * 7).otherwise(p).alias(p) for p in ("open", "high", "low", "close")
    ]
    return frame.with_columns(*prices, adjustment_factor=pl.when(before).then(1 / 7).otherwise(1.0))


def half_a_month(frame):
    """The data end on the tenth of a month."""
    last = frame["time"].max()
    first = (
        last.replace(day=1) if last.day > 10 else (last.replace(day=1) - dt.timedelta(days=1)).replace(day=1)
    )
    return frame.filter(pl.col("time") < first + dt.timedelta(days=10))


DEFECTS = [plain, stray_row, missing_returns, nameless_returns, holes, later_split, half_a_month]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("market", [real_market, simulated_market])
def test_headline_sorts_and_portfolio_tell_the_same(market, defect, sign, shared, tmp_path):
    """A score that knows 60 of 100 signs of the next 20 bars, or has them wrong, is a gain, or a loss, everywhere."""
    clean = with_returns(market(shared))
    ahead = (pl.col("close").shift(-20) / pl.col("close") - 1).over("instrument", order_by="time")
    rng = np.random.default_rng(7)
    noise = pl.Series(rng.standard_normal(len(clean)))
    signal = clean.select(
        "instrument",
        "time",
        signal=sign * ahead.fill_null(0.0) + 0.3 * noise * ahead.std().over("instrument"),
    )
    panel = pp.Panel.from_table(defect(clean), adjust="multiply", anchor="first", progress=False)
    value = panel.to_polars().with_columns(pl.col("time").dt.date()).select("instrument", "time")
    known = value.join(signal, on=["instrument", "time"], how="left")["signal"].to_numpy()
    grid = np.full((len(panel.calendar), panel.n_instruments), np.nan, np.float32)
    code = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    grid[panel.time_code, code] = 1 / (1 + np.exp(-10 * known))
    cache = cache_of(panel, grid, tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=20, quantiles=4, horizons=(20,), **OPTIONS)
    figures = every_figure(found, 20)
    assert {name for name, value in figures.items() if not sign * value > 0} == set()


@pytest.mark.parametrize("market", [real_market, simulated_market])
def test_deaths_turn_every_figure_around(market, shared, tmp_path):
    """A good score, but its highest names die: of 20 bars' returns, none shows the gain that they had."""
    clean = with_returns(market(shared))
    wide = clean.pivot(on="instrument", index="time", values="close").sort("time")
    wide = wide.with_columns(pl.all().exclude("time").forward_fill().backward_fill())
    close = wide.drop("time").to_numpy()
    step = np.vstack([np.zeros((1, close.shape[1])), close[1:] / close[:-1] - 1])
    day = wide["time"].to_numpy()
    # The highest tenth of a persistent score dies now and then; each loses 90%. Its names are many copies.
    copies = -(-200 // close.shape[1])
    close, step = np.tile(close, copies), np.tile(step, copies)
    rng = np.random.default_rng(9)
    score = (
        np.cumsum(rng.standard_normal(close.shape), axis=0) / np.sqrt(np.arange(1, len(close) + 1))[:, None]
    )
    high = score >= np.quantile(score, 0.75, axis=1, keepdims=True)
    dies = (rng.random(close.shape) < 0.01) & np.vstack([np.zeros((1, close.shape[1]), bool), high[:-1]])
    dies[:30] = False
    frame, value = table_of(day, close, step, 0.5 + 0.1 * np.tanh(score), dies)
    panel = pp.Panel.from_table(frame, progress=False)
    cache = cache_of(panel, value, tmp_path / "f.zarr")
    found = evaluate(cache, panel, horizon=20, quantiles=4, horizons=(20,), **OPTIONS)
    figures = every_figure(found, 20)
    assert {name for name, value in figures.items() if not value < 0} == set()
    assert [note for note in found.notes if "died while held" in note]
