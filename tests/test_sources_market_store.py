"""Stores streamed from a market cache: byte for byte those of the whole panel, whatever is read at a time."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import pricepix as pp
from pricepix.bars import MarketArrays, write_market_cache
from pricepix.build import MarketReading, StoreOptions, WindowChoice, build_market_store
from pricepix.build import market as market_store
from pricepix.samples import simulate_market
from pricepix.samples.ashare import simulate_arrays
from pricepix.store.objects import HISTORY


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return simulate_market(
        tmp_path_factory.mktemp("market") / "cache", 12, 14, seed=4, halt_rate=0.01, suspension_rate=0.06,
        split_rate=0.04, st_share=0.3, list_late=0.4, start="2021-01-20",
    )  # fmt: skip


def tree(folder) -> dict[str, bytes]:
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def build(cache, spec, path, **given):
    """``build_market_store``, with the fields of its option objects as keywords."""

    def taken(kind):
        return kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind) if f.name in given})

    objects = {
        "windows": taken(WindowChoice),
        "reading": taken(MarketReading),
        "options": taken(StoreOptions),
    }
    return build_market_store(cache, spec, path, **objects, **given)


def both(cache, tmp_path, spec, *, memory, reading=None, days=None, stocks=None, **arguments):
    """Build from the whole panel and streamed; return the two trees of files."""
    reading = reading or {}
    panel = cache.panel(days, stocks, **reading)
    a = pp.render_universe(panel, spec, tmp_path / "whole", mode="overwrite", progress=False, **arguments)
    b = build(
        cache, spec, tmp_path / "streamed", mode="overwrite", memory=memory, progress=False, days=days,
        stocks=stocks, **reading, **arguments,
    )  # fmt: skip
    assert len(a) == len(b) > 0
    return tree(tmp_path / "whole"), tree(tmp_path / "streamed")


SPEC = pp.ImageSpec.preset("it9")


@pytest.mark.parametrize("memory", [1, 400_000, "1GiB"])
@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        (SPEC.replace(ma=(60,), volume=True, max_missing=3), {"horizons": (1, 50)}),
        (SPEC.replace(ma=(60,), ma_warmup="omit"), {"horizons": (), "layout": "uint8"}),
        (SPEC, {"horizons": (5,), "delay": 2, "every": "day"}),
        (SPEC, {"horizons": (1,), "every": "week", "max_gap": "3d"}),
        (
            SPEC,
            {"horizons": (1,), "start": "2021-01-22 10:00", "end": "2021-02-02", "sample": 0.5, "seed": 3},
        ),
        (SPEC, {"horizons": (1, 3), "shard": 256, "chunk": 64}),
        (
            SPEC,
            {
                "horizons": (1,),
                "reading": {"adjust": False, "no_trade": "keep", "filtered": False, "decimals": 2},
            },
        ),
        (SPEC, {"horizons": (1,), "days": slice(3, 9), "stocks": slice(2, 7)}),
    ],
)
def test_bytes_are_those_of_the_whole_panel(cache, tmp_path, spec, arguments, memory):
    arguments = {"layout": "bits", "chunk": 100} | arguments
    whole, streamed = both(cache, tmp_path, spec, memory=memory, **arguments)
    assert whole == streamed


def test_bytes_do_not_depend_on_threads(cache, tmp_path):
    for n in (1, 2, 5):
        build(cache, SPEC, tmp_path / str(n), chunk=33, threads=n, memory=1, progress=False)
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "5")


def test_a_streamed_store_is_verified_and_appended_to_like_any(cache, tmp_path):
    build(cache, SPEC, tmp_path / "store", days=slice(0, 10), memory=1, progress=False)
    store = pp.open_store(tmp_path / "store")
    assert store.verify(cache.panel(slice(0, 10)), sample=None).ok
    pp.append(store, cache.panel(), progress=False)
    build(cache, SPEC, tmp_path / "whole", progress=False)
    a, b = pp.open_store(tmp_path / "store"), pp.open_store(tmp_path / "whole")
    np.testing.assert_array_equal(a.read(), b.read())
    for h in a.horizons:
        np.testing.assert_array_equal(a.returns(h), b.returns(h))


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A cache as it is after 10 days and after 14: two stocks are halted in between, one of them for two days."""
    market = {
        key: np.array(values) for key, values in vars(simulate_arrays(6, 14, seed=7, st_share=0.3)).items()
    }
    for key in ("open", "high", "low", "close"):
        market[key][9, 1, 45:] = np.nan
        market[key][9, 4, 30:] = np.nan
        market[key][10:12, 4] = np.nan
    # The vendor carries the last close on; its volume says that it is none.
    market["close"][9, 1, 45:] = market["close"][9, 1, 44]
    market["volume"][np.isnan(market["open"])] = 0.0
    folder = tmp_path_factory.mktemp("growing")

    def until(n):
        part = {key: values if key == "instruments" else values[:n] for key, values in market.items()}
        return write_market_cache(folder / str(n), MarketArrays(**part), dtype=np.float64)

    return until(10), until(14)


READINGS = [{}, {"filtered": False}, {"no_trade": "keep"}, {"no_trade": "keep", "filtered": False}]


@pytest.mark.parametrize("reading", READINGS)
def test_later_days_add_no_window_to_earlier_ones(growing, reading):
    before, after = (
        pp.WindowIndex.from_panel(cache.panel(**reading), SPEC.replace(max_missing=None)) for cache in growing
    )
    known = after.time <= before.panel.time.max()
    assert after.time[~known].size > 0
    assert before.time.tolist() == after.time[known].tolist()
    assert before.instrument.tolist() == after.instrument[known].tolist()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("every", ["bar", "day"])
def test_a_store_of_a_cache_that_grew_is_the_one_built_anew(growing, tmp_path, reading, every):
    """And its scores resume where they stopped."""
    from pricepix import factor

    before, after = growing
    spec = SPEC.replace(ma=(20,), ma_warmup="omit")
    arguments = {"every": every, "progress": False, **reading}
    build(before, spec, tmp_path / "store", memory=1, **arguments)
    fresh = build(after, spec, tmp_path / "fresh", **arguments)

    def ink(images):
        return images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)

    def score(store, where, **options):
        return factor.score(store, ink, where, values="score", model_id="ink", progress=False, **options)

    score(pp.open_store(tmp_path / "store"), tmp_path / "factor")
    grown = pp.append(tmp_path / "store", after.panel(**reading), progress=False)
    stored = tree(tmp_path / "store")
    del stored[HISTORY]
    assert stored == tree(tmp_path / "fresh")
    scored = score(grown, tmp_path / "factor", append=True)
    anew = score(fresh, tmp_path / "anew")
    np.testing.assert_array_equal(scored.matrix()[1], anew.matrix()[1])


@pytest.mark.parametrize("threads", [1, 7, 64])
def test_days_are_read_together_whatever_the_threads(cache, tmp_path, monkeypatch, threads):
    """With the memory of the public function, in which all days of this market have room many times."""
    write = market_store._Market.write
    parts = []
    monkeypatch.setattr(market_store._Market, "write", lambda *a: (parts.append(a[2]), write(*a))[1])
    build(cache, SPEC, tmp_path / "store", threads=threads, progress=False)
    assert parts == [slice(0, 14)]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_drawn_at_a_time_follows_the_memory(cache, tmp_path, monkeypatch, threads):
    render = market_store.render_rows
    drawn = []

    def noted(panel, row, spec, out, **options):
        drawn.append(out.nbytes)
        return render(panel, row, spec, out, **options)

    monkeypatch.setattr(market_store, "render_rows", noted)
    build(cache, "it49", tmp_path / "store", chunk=16, memory=3_000_000, threads=threads, progress=False)
    chunk = 16 * 147 * 19
    assert chunk < max(drawn) <= 3_000_000 // (4 * threads) < sum(drawn)


def test_a_build_resumes_with_different_threads_and_memory(cache, tmp_path, monkeypatch):
    arguments = {"chunk": 64, "progress": False}
    build(cache, SPEC, tmp_path / "whole", **arguments)
    write = market_store._Market.write
    parts = []

    def stops(self, writer, part):
        if len(parts) == 2:
            raise KeyboardInterrupt
        write(self, writer, part)
        parts.append((part.start, part.stop))

    monkeypatch.setattr(market_store._Market, "write", stops)
    small = 2 * 12 * 49 * (180 * 4 + 80 * 3)
    with pytest.raises(KeyboardInterrupt):
        build(cache, SPEC, tmp_path / "part", memory=small, threads=3, **arguments)
    assert parts == [(0, 4), (4, 8)]
    monkeypatch.setattr(market_store._Market, "write", lambda *a: (parts.append(a[2]), write(*a))[1])
    build(cache, SPEC, tmp_path / "part", mode="resume", memory=1, threads=5, **arguments)
    assert parts[2:] == [slice(day, day + 1) for day in range(8, 14)]
    assert tree(tmp_path / "part") == tree(tmp_path / "whole")


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_stopped_build_resumes(cache, tmp_path, monkeypatch, after):
    arguments = {"chunk": 64, "shard": 128, "memory": 1, "progress": False}
    build(cache, SPEC, tmp_path / "whole", **arguments)
    write = market_store._Market.write
    calls = []

    def stops(self, writer, part):
        write(self, writer, part)
        calls.append(part)
        if len(calls) > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(market_store._Market, "write", stops)
    with pytest.raises(KeyboardInterrupt) as stopped:
        build(cache, SPEC, tmp_path / "part", **arguments)
    assert (
        f"stopped with {after} of 14 days done; the same call with mode='resume'"
        in stopped.value.__notes__[0]
    )
    with pytest.raises(ValueError, match="not finished"):
        pp.open_store(tmp_path / "part")
    with pytest.raises(FileExistsError, match="mode='resume' continues it"):
        build(cache, SPEC, tmp_path / "part", **arguments)
    with pytest.raises(ValueError, match="delay is 1, the store's 0"):
        build(cache, SPEC, tmp_path / "part", mode="resume", delay=1, **arguments)
    calls.clear()
    monkeypatch.setattr(market_store._Market, "write", lambda *a: (calls.append(a), write(*a))[1])
    build(cache, SPEC, tmp_path / "part", mode="resume", **arguments)
    assert len(calls) == 14 - after
    assert tree(tmp_path / "part") == tree(tmp_path / "whole")
    # A finished one is left alone.
    calls.clear()
    build(cache, SPEC, tmp_path / "part", mode="resume", **arguments)
    assert not calls


def test_stretches_follow_the_memory(cache):
    def stretches(memory):
        return market_store._Market(
            cache, slice(0, 14), slice(0, 12), SPEC, 50, None, memory, {}, None, None, {}
        ).stretches()

    assert len(stretches(1)) == 14
    assert len(stretches(1 << 30)) == 1
    parts = stretches(12 * 49 * (180 * 4 + 80 * 3))
    assert [(p.start, p.stop) for p in parts] == [(0, 4), (4, 8), (8, 12), (12, 14)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 3}, "every=3: a market that is read in stretches"),
        ({"layout": "png"}, "layout='png'"),
        ({"mode": "append"}, "mode='append'"),
        ({"start": "2021-03-01", "end": "2021-02-01"}, "swap them"),
        ({"shard": 100, "chunk": 64}, "shard=100 is not a multiple of the 64 windows of a chunk"),
        ({"shard": "256MB"}, "shard='256MB' is not a multiple of the 32768 windows of a chunk"),
        ({"chunk": 10**9}, r"chunk=1000000000 images of 27x27 are 729.0 GB of pixels.*: give at most \d+"),
        ({"threads": 0}, "threads=0: give a whole number of at least 1, or None for all"),
        ({"no_trade": "x"}, "no_trade='x'"),
        ({"sample": 0.0}, "sample=0.0"),
        ({"max_gap": "long"}, "not a duration"),
        ({"days": ("2022-01-01", None)}, "none of the cache's 14 days"),
        ({"horizons": (0,)}, "horizon"),
        ({"memory": "much"}, "not a size"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(cache, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(cache, SPEC, tmp_path / "store", progress=False, **arguments)
    assert not (tmp_path / "store").exists()


def test_a_market_without_a_window_leaves_nothing(cache, tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the \d+ candidate windows can be drawn \(dropped: too_short"
    ):
        build(cache, pp.ImageSpec(lookback=700, height=64), tmp_path / "store", progress=False, horizons=())
    with pytest.raises((FileNotFoundError, ValueError)):
        pp.open_store(tmp_path / "store")
    build(cache, SPEC, tmp_path / "store", progress=False)


def test_scores_of_five_minute_bars_stand_one_bar_later(tmp_path):
    """Hand-checked cells: over lunch, night, weekend and the spring festival."""
    from pricepix import factor

    cache = simulate_market(
        tmp_path / "cache", 3, 12, start="2021-02-01", halt_rate=0, suspension_rate=0, list_late=0
    )
    assert cache.days.astype(str).tolist()[4:8] == ["2021-02-05", "2021-02-08", "2021-02-09", "2021-02-17"]
    store = build(cache, "it49", tmp_path / "store", progress=False)
    panel = cache.panel()
    # A score that says which image it is of: unlike for any two.
    place = iter(range(10**6))

    def number(images):
        return np.array([next(place) / len(store) for _ in images], np.float32)

    scores = factor.score(store, number, None, shift=1, panel=panel, values="score", progress=False)
    assert scores.shape == (12, 3, 49)
    assert scores.intervals == cache.stamps
    name = str(cache.instruments[0])
    position = {
        str(t)[:16]: k
        for k, (i, t) in enumerate(store.index.select("instrument", "time").iter_rows())
        if i == name
    }
    for known, stands in (
        ("2021-02-03 09:30", "2021-02-03 09:35"),
        ("2021-02-03 11:30", "2021-02-03 13:05"),  # lunch
        ("2021-02-03 15:00", "2021-02-04 09:30"),  # night
        ("2021-02-05 15:00", "2021-02-08 09:30"),  # weekend
        ("2021-02-09 15:00", "2021-02-17 09:30"),  # spring festival
    ):
        if known in position:
            assert scores.at(name, stands) == np.float32(position[known] / len(store)), known
    assert len([t for t in position if t.endswith(("11:30", "15:00"))]) > 15
    # The last bar's score has no bar to stand at, and the first windows' bars have none before.
    assert np.isnan(scores.at(name, "2021-02-01 15:00"))
