"""Real bars from end to end: 70,025 rows of 21 tickers, some of them a few rows long.

Counts and returns are computed a second time with polars and numpy alone, images by the oracle.
"""

from __future__ import annotations

import numpy as np
import oracle
import polars as pl
import pytest

from pricepix import ImageSpec, Panel, open_store, render_universe

HORIZONS = (5, 20, 60)
PRESETS = ("jkx5", "jkx20", "jkx60")


@pytest.fixture(scope="module")
def table(shared):
    path = shared / "data" / "lean_daily.parquet"
    if not path.is_file():
        pytest.skip(f"real bars not found: {path}")
    return pl.read_parquet(path)


@pytest.fixture(scope="module")
def panel(table):
    return Panel.from_table(table, progress=False)


@pytest.fixture(scope="module", params=PRESETS)
def store(request, panel, tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "store.zarr"
    layout = "uint8" if request.param == "jkx5" else "bits"
    return render_universe(panel, request.param, path, horizons=HORIZONS, layout=layout, progress=False)


def expected_index(table, spec):
    """Windows and forward returns by polars, ordered by (time, instrument); and what was dropped."""
    lookback, ma = spec.lookback, max(spec.ma)
    by = {"partition_by": "ticker", "order_by": "date"}
    prices = ("open", "high", "low", "close")
    highest = pl.max_horizontal(prices).rolling_max(lookback).over(**by)
    lowest = pl.min_horizontal(prices).rolling_min(lookback).over(**by)
    frame = (
        table.sort("ticker", "date")
        .with_columns(bar=pl.int_range(1, pl.len() + 1).over("ticker"), flat=highest == lowest)
        .with_columns(
            (pl.col("close").shift(-h).over(**by) / pl.col("close") - 1).cast(pl.Float32).alias(f"ret_{h}")
            for h in HORIZONS
        )
        .with_columns(pl.col("date").shift(-h).over(**by).alias(f"exit_time_{h}") for h in HORIZONS)
    )
    # An average of equal closes is that close: a flat window is flat with its averages if those are too.
    longer = lookback + ma - 1
    settled = pl.col("close").rolling_max(longer) == pl.col("close").rolling_min(longer)
    frame = frame.with_columns(flat=pl.col("flat") & settled.over(**by))
    short = frame["bar"] < lookback
    warming = (frame["bar"] >= lookback) & (frame["bar"] < longer)
    drawn = frame.filter(pl.col("bar") >= longer)
    counts = {"too_short": short.sum(), "ma_warmup": warming.sum(), "flat": drawn["flat"].sum()}
    kept = drawn.filter(~pl.col("flat")).sort("date", "ticker")
    return kept, {reason: n for reason, n in counts.items() if n}


def test_bars_are_what_the_expectations_rest_on(table, panel):
    assert len(panel) == table.height == 70_025
    assert panel.n_instruments == table["ticker"].n_unique() == 21
    assert table.null_count().pipe(lambda counts: sum(counts.row(0))) == 0
    assert np.isfinite(panel.bars).all()
    lengths = np.diff(panel.offsets)
    assert (lengths < 10).sum() >= 4  # tickers that never fill a window


def test_counts_equal_an_independent_count(table, store):
    kept, counts = expected_index(table, store.spec)
    assert len(store) == store.images.shape[0] == kept.height
    assert store.attrs["drop_counts"] == counts
    assert len(store) + sum(counts.values()) == table.height
    got = store.index.group_by("instrument").len().sort("instrument")
    expected = kept.group_by("ticker").len().sort("ticker")
    assert got["instrument"].to_list() == expected["ticker"].to_list()
    assert got["len"].to_list() == expected["len"].to_list()


def test_index_and_returns_equal_an_independent_computation(table, store):
    kept, _ = expected_index(table, store.spec)
    index = store.index
    assert index["instrument"].to_list() == kept["ticker"].to_list()
    assert index["time"].cast(pl.Datetime("us")).to_list() == kept["date"].to_list()
    for h in HORIZONS:
        np.testing.assert_array_equal(
            store.returns(h), kept[f"ret_{h}"].fill_null(float("nan")).to_numpy().astype(np.float32)
        )
        exits = index[f"exit_time_{h}"].cast(pl.Datetime("us"))
        assert exits.to_list() == kept[f"exit_time_{h}"].to_list()
        # unknown exactly for the last h bars of every ticker
        lengths = table.group_by("ticker").len()["len"]
        first = store.spec.lookback + max(store.spec.ma) - 1
        unknown = sum(min(h, max(0, n - first + 1)) for n in lengths)
        assert np.isnan(store.returns(h)).sum() == exits.null_count() == unknown


def test_random_images_equal_the_oracle(table, store):
    """1,000 images over the three sizes, and the first and last of each."""
    spec = store.spec
    (n,) = spec.ma
    rng = np.random.default_rng(20)
    chosen = np.unique(np.concatenate([rng.choice(len(store), 334, replace=False), [0, len(store) - 1]]))
    tickers = table.partition_by("ticker", as_dict=True)
    bars = {
        name: rows.sort("date").select("open", "high", "low", "close", "volume").to_numpy()
        for (name,), rows in tickers.items()
    }
    times = {name: rows["date"].sort().to_list() for (name,), rows in tickers.items()}
    images = store.read(chosen)
    index = store.index[chosen.tolist()]
    for image, name, time in zip(
        images, index["instrument"], index["time"].cast(pl.Datetime("us")), strict=True
    ):
        end = times[name].index(time) + 1
        rows = bars[name][end - spec.lookback - n + 1 : end]
        average = oracle.moving_average(rows[:, 3], n)[-spec.lookback :]
        expected, reason = oracle.draw(rows[-spec.lookback :], average, height=spec.height, volume=True)
        assert reason == "valid"
        assert np.array_equal(image, expected), f"{name} {time}"


def test_store_verifies(panel, store):
    """The small images in full, of the larger ones a sample."""
    sample = None if store.spec.lookback == 5 else 5000
    report = open_store(store.location).verify(panel, sample=sample)
    assert not report["problems"]
    assert report["rendered"] == (sample or len(store))


def test_short_tickers_are_counted_not_drawn(table, store):
    lengths = dict(table.group_by("ticker").len().iter_rows())
    needed = store.spec.lookback + max(store.spec.ma) - 1
    drawn = set(store.index["instrument"])
    assert {name for name, n in lengths.items() if n < needed}.isdisjoint(drawn)
    assert {name for name, n in lengths.items() if n >= needed} == drawn


def test_weekly_subset_is_a_part_of_the_whole(panel, store):
    """The same images by another way: fewer windows, another layout, in memory."""
    weekly = render_universe(
        panel, store.spec, horizons=(5,), every="week", start="2015-01-01", progress=False
    )
    whole = store.index.select("instrument", "time", "ret_5").with_row_index("position")
    part = weekly.index.select("instrument", "time", weekly_ret_5="ret_5")
    joined = part.join(whole, on=["instrument", "time"], how="left", maintain_order="left")
    assert joined["position"].null_count() == 0
    assert np.array_equal(joined["weekly_ret_5"].to_numpy(), joined["ret_5"].to_numpy(), equal_nan=True)
    some = np.random.default_rng(0).choice(joined.height, 1000, replace=False)
    assert np.array_equal(weekly.read(some), store.read(joined["position"].to_numpy()[some]))


@pytest.mark.parametrize("preset", ["it9", "it49", "cnnft5", "cnnft20"])
def test_other_styles_equal_the_oracle(panel, table, preset):
    """The compatibility styles have drops of their own; what they draw is what the oracle draws."""
    spec = ImageSpec.preset(preset)
    one = panel.select(["GOOG", "AIG"] if {"GOOG", "AIG"} <= set(panel.instruments) else None, "2008-06-01")
    store = render_universe(one, spec, horizons=(), progress=False)
    frame = one.to_polars()
    positions = {key: i for i, key in enumerate(store.index.select("instrument", "time").iter_rows())}
    rng = np.random.default_rng(5)
    refused = 0
    for name in one.instruments:
        rows = frame.filter(pl.col("instrument") == name)
        bars = rows.select("open", "high", "low", "close", "volume").to_numpy()
        first = spec.lookback + spec.history
        for end in rng.choice(np.arange(first, len(bars) + 1), 60, replace=False):
            average = None
            if spec.ma:
                average = oracle.moving_average(bars[:end, 3], spec.ma[0], 1)[-spec.lookback :]
            window = bars[end - spec.lookback : end]
            image, _ = oracle.draw(window, average, style=spec.style, height=spec.height, volume=spec.volume)
            position = positions.get((name, rows["time"][int(end) - 1]))
            assert (image is None) == (position is None)
            refused += image is None
            if image is not None:
                assert np.array_equal(store.read([position])[0], image)
    assert refused < 60
