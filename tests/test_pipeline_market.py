"""Runs on market caches: the steps read what they need, and find what they would find in the whole panel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pricepix as pp
from pricepix.bars import MarketCache
from pricepix.build import MarketReading, build_market_store
from pricepix.samples import simulate_market
from pricepix.workflow import source
from pricepix.workflow.config import Config
from pricepix.workflow.pipeline import run


def tree(folder) -> dict[str, bytes]:
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def half_hours(tmp_path_factory):
    return simulate_market(
        tmp_path_factory.mktemp("market") / "cache",
        14,
        150,
        every="30min",
        seed=8,
        st_share=0.2,
        list_late=0.3,
    )


def market_config(cache, out, **sections) -> Config:
    return Config.from_dict(
        {
            "out": str(out),
            "data": {"market_cache": str(cache.folder), "adjust": "multiply", "days": [None, "2021-07-20"]},
            "image": {"preset": "it9", "ma": [18], "max_missing": 3},
            "store": {"horizons": [1, 5], "layout": "bits", "memory": 1, "start": "2021-02-01"},
            **sections,
        }
    )


def test_a_market_cache_is_never_read_as_a_whole(half_hours, tmp_path, monkeypatch):
    """The same bytes as from the whole panel, and no step asks for all days."""
    config = market_config(half_hours, tmp_path / "out")
    panel = half_hours.panel((None, "2021-07-20"))
    whole = pp.render_universe(
        panel, config.image.spec(), tmp_path / "whole", horizons=(1, 5), layout="bits", start="2021-02-01",
        progress=False,
    )  # fmt: skip
    asked = []
    read = MarketCache.panel

    def noted(cache, days=None, *args, **options):
        asked.append(cache.day_range(days))
        return read(cache, days, *args, **options)

    monkeypatch.setattr(MarketCache, "panel", noted)
    assert run(config, echo=lambda line: None, progress=False) == tmp_path / "out" / "store.zarr"
    assert tree(tmp_path / "out" / "store.zarr") == tree(tmp_path / "whole")
    # Days one by one, with history before them and a day after.
    assert max(days.stop - days.start for days in asked) < 10 < len(asked)

    bars = source.MarketSource(config)
    np.testing.assert_array_equal(bars.scoring_panel().calendar, panel.calendar)
    assert bars.scoring_panel().tz == panel.tz
    assert bars.training_panel() is None
    settings = {"horizon": 5, "start": "2021-05-06", "end": "2021-05-14", "baselines": ["WSTR"]}
    judged = bars.evaluation_panel(settings, whole)
    days = np.unique(judged.calendar.astype("M8[ns]").astype("M8[D]"))
    # A week of bars before, for reversal, and a quarter of a year after, for the quarterly portfolios.
    assert days[0] == np.datetime64("2021-04-23")
    assert days[-1] == np.datetime64("2021-07-20")
    assert len(days) < len(half_hours.days)


@pytest.mark.parametrize("per_year", [None, 4536.0])
def test_days_around_the_judged_ones_give_the_figures_of_all(half_hours, tmp_path, per_year):
    """A factor judged on the days that a run reads has the figures of the whole panel, whatever a year has."""
    from pricepix import factor

    config = market_config(half_hours, tmp_path / "out")
    run(config, echo=lambda line: None, progress=False)
    store, panel = pp.open_store(tmp_path / "out" / "store.zarr"), half_hours.panel((None, "2021-07-20"))
    bars = source.MarketSource(config)

    def lit(images):
        return images.mean(axis=(1, 2)) / 255

    cache = factor.score(store, lit, tmp_path / "f", shift=1, panel=bars.scoring_panel(), progress=False)
    same = factor.score(store, lit, None, shift=1, panel=panel, progress=False)
    assert (
        cache.shape == same.shape == (len(np.unique(panel.calendar.astype("M8[ns]").astype("M8[D]"))), 14, 9)
    )
    np.testing.assert_array_equal(cache.matrix()[1], same.matrix()[1])
    settings = {
        "horizon": 5, "start": "2021-03-15", "end": "2021-03-26", "quantiles": 3, "delays": [0, 2],
        "baselines": ["STR", "WSTR"], "periods_per_year": per_year,
    }  # fmt: skip
    judged = bars.evaluation_panel(settings, store)
    assert len(judged.calendar) < len(panel.calendar)
    part = factor.evaluate(cache, judged, progress=False, **settings).to_dict()
    whole = factor.evaluate(cache, panel, progress=False, **settings).to_dict()
    assert part.pop("lineage") != whole.pop("lineage")
    assert part == whole


def test_a_finished_store_is_compared_with_what_is_asked_for(half_hours, tmp_path):
    options = {"horizons": (1,), "mode": "resume", "progress": False, "memory": 1}
    build_market_store(
        half_hours, "it9", tmp_path / "store", reading=MarketReading(days=slice(0, 20)), **options
    )
    before = tree(tmp_path / "store")
    build_market_store(
        half_hours, "it9", tmp_path / "store", reading=MarketReading(days=slice(0, 20)), **options
    )
    assert tree(tmp_path / "store") == before
    with pytest.raises(ValueError, match=r"not made from this: horizons is \[1, 5\] here, \[1\] there"):
        build_market_store(
            half_hours,
            "it9",
            tmp_path / "store",
            reading=MarketReading(days=slice(0, 20)),
            **(options | {"horizons": (1, 5)}),
        )
    with pytest.raises(
        ValueError, match=r"was not made from this: panel_digest is \w{32} here, \w{32} there"
    ):
        build_market_store(
            half_hours, "it9", tmp_path / "store", reading=MarketReading(days=slice(0, 21)), **options
        )
    config = market_config(half_hours, tmp_path / "out")
    lines: list[str] = []
    for _ in range(2):
        run(config, echo=lines.append, progress=False)
    assert [line.split()[0] for line in lines] == ["data", "build", "data", "build"]
    assert lines[3].startswith("build     up to date")
    other = market_config(half_hours, tmp_path / "out", image={"preset": "it9", "ma": [20]})
    with pytest.raises(ValueError, match="not made from this: spec_digest"):
        run(other, echo=lines.append, progress=False)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"price": "total_return"}, "a market_cache has no total returns"),
        ({"every": 7}, "give store.every as bar, day"),
        ({"shard": "256MB"}, "store.shard as a number of windows"),
    ],
)
def test_what_a_market_cache_cannot_have(half_hours, tmp_path, store, message):
    with pytest.raises(ValueError, match=message):
        market_config(half_hours, tmp_path / "out", store=store)
    with pytest.raises(ValueError, match="memory is for a market_cache"):
        Config.from_dict(
            {
                "out": "x",
                "data": {"sample": "stocks"},
                "image": {"preset": "jkx5"},
                "store": {"memory": "1GiB"},
            }
        )
