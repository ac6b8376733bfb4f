"""Market caches: reading a panel, streaming it into a store, and one-minute bars beside polars.

pytest benchmarks/test_sources.py --benchmark-columns=min,median,rounds
"""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest

from pricepix import ImageSpec, Panel
from pricepix.bars import resample
from pricepix.build import build_market_store
from pricepix.samples import simulate_market


@pytest.fixture(scope="module")
def cache(size, tmp_path_factory):
    """Five-minute bars of 12 days, 10 times the stocks of the daily benchmarks."""
    return simulate_market(tmp_path_factory.mktemp("market") / "cache", 10 * size.instruments, 12, seed=1)


def bars_of(cache) -> int:
    first, stop = cache.spans()
    return int((stop - first).sum())


def test_panel(benchmark, cache, per_second):
    benchmark.group = "market cache"
    per_second("bars", bars_of(cache))
    benchmark(cache.panel)


@pytest.mark.parametrize("ma", [(), (245,)], ids=["plain", "ma245+volume"])
def test_stream(benchmark, cache, per_second, tmp_path, ma):
    """Reading, drawing, compressing and writing, a day at a time."""
    benchmark.group = "market cache"
    spec = ImageSpec.preset("it49").replace(ma=ma, volume=bool(ma))
    serial = itertools.count()

    def build():
        return build_market_store(cache, spec, tmp_path / str(next(serial)), memory=1, progress=False)

    per_second("images", len(build()))
    benchmark.pedantic(build, rounds=2)


@pytest.fixture(scope="module")
def minutes(size):
    """One-minute bars around the clock, a tenth of them missing."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(size.instruments):
        at = np.flatnonzero(rng.random(size.bars * 10) < 0.9)
        close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 1e-3, len(at)))), 2)
        bars = {"open": close, "high": close + 0.1, "low": close - 0.1, "close": close, "volume": close}
        time = np.datetime64("2024-01-01", "ns") + at * np.timedelta64(60_000_000_000, "ns")
        frames.append(pl.DataFrame({"instrument": [f"S{i:03d}"] * len(at), "time": time, **bars}))
    return pl.concat(frames)


def test_resample(benchmark, minutes, per_second):
    benchmark.group = "one-minute bars to five"
    per_second("bars", len(minutes))
    panel = Panel.from_table(minutes, progress=False)
    benchmark(lambda: resample(panel, "5min"))


def test_resample_polars(benchmark, minutes, per_second):
    benchmark.group = "one-minute bars to five"
    per_second("bars", len(minutes))
    merged = [
        pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last(),
        pl.col("volume").sum(),
    ]  # fmt: skip
    benchmark(lambda: minutes.group_by_dynamic("time", every="5m", group_by="instrument").agg(*merged))
