"""Caches that follow a store through late bars, corrections, renames and removals, and what they remember of it."""

from __future__ import annotations

import functools
import types

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix.factor import open_cache, score
from pricepix.factor.cache_changes import image_digests
from pricepix.factor.cache_writer import CacheWriter
from pricepix.factor.function_identity import identify

SPEC = pp.ImageSpec.preset("jkx5")


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


class Counter:
    def __init__(self) -> None:
        self.scored = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.scored += len(images)
        return ink(images)


def bars_of(instruments=5, bars=40, seed=1, **options) -> pl.DataFrame:
    settings = {"split_rate": 0.0, "delist_rate": 0.0, "list_late": 0.0, **options}
    return pp.samples.simulate(instruments, bars, seed=seed, **settings)


def panel_of(frame) -> pp.Panel:
    return pp.Panel.from_table(frame, progress=False)


def stored(frame, where, **options) -> pp.ImageStore:
    options = {"horizons": (1,), "chunk": 16, "progress": False, "mode": "overwrite", **options}
    return pp.render_universe(panel_of(frame), SPEC, where, **options)


def values(cache) -> dict[tuple[str, int], float]:
    table = cache.to_polars()
    rows = zip(table["instrument"], table["time"].to_physical(), table["factor"], strict=True)
    return {(name, time): value for name, time, value in rows}


def scored(store, where, model=ink, **options):
    return score(store, model, where, append=True, model_id="ink", progress=False, **options)


def corrected(frame, name: str, day: int) -> pl.DataFrame:
    """Return the bars with another high on one day."""
    time = frame["time"].unique().sort()[day]
    hit = (pl.col("instrument") == name) & (pl.col("time") == time)
    return frame.with_columns(pl.when(hit).then(pl.col("high") * 1.3).otherwise(pl.col("high")).alias("high"))


def until(frame, day: int, names=None) -> pl.DataFrame:
    last = frame["time"].unique().sort()[day]
    found = frame.filter(pl.col("time") <= last)
    if names is not None:
        found = found.filter((pl.col("time") < last) | pl.col("instrument").is_in(names))
    return found


# ------------------------------------------------------------------------------------ what a model is

WEIGHTS = np.ones(3)


def reads_a_global(images: np.ndarray) -> np.ndarray:
    return (ink(images) * WEIGHTS[0]).astype(np.float32)


def test_a_function_is_its_globals_too(tmp_path, monkeypatch):
    """The usual notebook: a function over a global model, which is trained again."""
    store = stored(bars_of(), tmp_path / "s")
    first = values(score(store, reads_a_global, tmp_path / "f", progress=False))
    again = score(store, reads_a_global, tmp_path / "f", progress=False)
    assert values(again) == first
    monkeypatch.setitem(globals(), "WEIGHTS", np.full(3, 0.5))
    with pytest.raises(ValueError, match="a cache never mixes models"):
        score(store, reads_a_global, tmp_path / "f", progress=False)
    trained = score(store, reads_a_global, tmp_path / "g", progress=False)
    assert max(values(trained).values()) == pytest.approx(max(first.values()) / 2)


def test_nothing_to_do_is_said(tmp_path, capsys, caplog):
    store = stored(bars_of(), tmp_path / "s")
    score(store, ink, tmp_path / "f", progress=False)
    with caplog.at_level("INFO", "pricepix"):
        score(store, ink, tmp_path / "f", progress=True)
    said = f"nothing to do: {len(store)} windows were scored before by "
    assert said in capsys.readouterr().err
    assert said in caplog.text


def test_what_a_function_reaches_is_told_apart():
    def scaled(factor):
        return lambda images: images * factor

    def default(images, factor=1.0):
        return images * factor

    def another(images, factor=2.0):
        return images * factor

    class Model:
        scale = 1.0

        def __init__(self, weights):
            self.weights = weights

        def __call__(self, images):
            return self.helper(images) * self.weights[0]

        def helper(self, images):
            return images * self.scale

    module = types.ModuleType("written_by_hand")
    exec("W = 1.0\nUNUSED = 0\ndef inner(x): return x * W\ndef predict(x): return inner(x)", module.__dict__)
    namespace = {"m": module, "__name__": "written_by_hand"}
    exec("def through(x): return m.predict(x)", namespace)
    through = namespace["through"]

    same = [
        lambda: scaled(1.0),
        lambda: default,
        lambda: functools.partial(default, factor=3.0),
        lambda: Model(np.arange(3.0)),
        lambda: Model(np.arange(3.0)).helper,
        lambda: through,
    ]
    digests = [identify(make())[0] for make in same]
    assert None not in digests
    assert [identify(make())[0] for make in same] == digests
    assert len(set(digests)) == len(digests)
    assert identify(scaled(2.0))[0] != digests[0]
    assert identify(another)[0] != digests[1]
    assert identify(functools.partial(default, factor=4.0))[0] != digests[2]
    assert identify(Model(np.arange(1.0, 4.0)))[0] != digests[3]
    module.UNUSED = 1
    assert identify(through)[0] == digests[5]
    module.W = 2.0
    assert identify(through)[0] != digests[5]
    Model.scale = 2.0
    assert identify(Model(np.arange(3.0)))[0] != digests[3]
    # A circle of objects, a library's functions, and names that are not bound yet.
    around = [1.0]
    around.append(around)
    assert identify(lambda images: around[0] * np.mean(images) + not_there)[0] is not None  # noqa: F821


def test_what_cannot_be_identified_says_why(tmp_path):
    with open(__file__) as file:
        assert "TextIOWrapper" in identify(lambda images: file.read())[1]
    assert "eval()" in identify(lambda images: eval("images"))[1]
    assert identify(lambda images: eval("images"), "mine") == identify(ink, "mine")


def test_weights_of_networks_in_reach_identify_a_function():
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))

    @torch.no_grad()
    def predict(images):
        return torch.softmax(network(torch.as_tensor(images)), 1)[:, 1]

    first = identify(predict)[0]
    assert first is not None
    assert identify(predict)[0] == first
    with torch.no_grad():
        network[1].bias[0] += 1.0
    assert identify(predict)[0] != first


# --------------------------------------------------------------------------------------- revisions


def test_digests_of_images_tell_pixels_apart():
    rng = np.random.default_rng(3)
    images = np.where(rng.random((5000, 32, 15)) < 0.2, 255, 0).astype(np.uint8)
    found = image_digests(images)
    assert len(np.unique(found)) == len(images)
    assert np.array_equal(image_digests(images[4090:4100]), found[4090:4100])
    for at in ((0, 0), (31, 14), (17, 3)):
        other = images[:1].copy()
        other[(0, *at)] ^= 255
        assert image_digests(other)[0] != found[0]
    assert (image_digests(np.zeros((2, 32, 15), np.uint8)) != 0).all()


@pytest.mark.parametrize("shift", [0, 2])
def test_a_correction_is_scored_again_and_remembered(tmp_path, shift):
    frame = bars_of()
    scored(stored(frame, tmp_path / "s"), tmp_path / "f", shift=shift, known="2024-03-01")
    before = values(open_cache(tmp_path / "f"))
    other = corrected(frame, "S0002", 20)
    store, model = stored(other, tmp_path / "s"), Counter()
    cache = scored(store, tmp_path / "f", model, shift=shift, known="2024-03-02")
    fresh = scored(store, tmp_path / "g", shift=shift)
    assert values(cache) == values(fresh) != before
    differ = [key for key, value in values(fresh).items() if before[key] != value]
    assert 0 < len(differ) <= model.scored <= 5 + shift  # the images that show the bar, and no others
    assert {name for name, _ in differ} == {"S0002"}
    history = cache.scored_at
    assert history["revised"].to_list() == [0, model.scored]
    assert history["added"].to_list() == [len(before), 0]
    assert values(cache.as_of("2024-03-01")) == before
    assert values(cache.as_of("2024-03-02")) == values(fresh)
    assert cache.verify().ok
    with pytest.raises(
        ValueError, match=r"knew nothing by 2024-02-29.*: its first scores became known 2024-03-01"
    ):
        cache.as_of("2024-02-29")


def test_late_bars_renames_and_removals_are_followed(tmp_path):
    """Half of the feed today, the rest an hour later; a new name; a ticker that is gone."""
    frame = bars_of(6, 40)
    where, names = tmp_path / "f", ["S0000", "S0003", "S0005"]
    half = until(frame, 30, names)
    scored(stored(half, tmp_path / "s"), where, known="2024-01-01")
    halves = values(open_cache(where))
    model = Counter()
    whole = stored(until(frame, 30), tmp_path / "s")
    cache = scored(whole, where, model, known="2024-01-02")
    assert model.scored == 3
    assert values(cache) == values(scored(whole, tmp_path / "g1"))
    evening = values(cache)

    renamed = frame.with_columns(pl.col("instrument").replace("S0003", "NEW"))
    store, model = stored(until(renamed, 31), tmp_path / "s"), Counter()
    cache = scored(store, where, model, known="2024-01-03", rename={"S0003": "NEW"})
    assert model.scored == 6
    assert values(cache) == values(scored(store, tmp_path / "g2"))
    assert cache.scored_at["removed"].sum() == 0
    named = values(cache)

    gone = until(renamed, 32).filter(pl.col("instrument") != "S0001")
    store, model = stored(gone, tmp_path / "s"), Counter()
    cache = scored(store, where, model, known="2024-01-04")
    assert model.scored == 5
    assert values(cache) == values(scored(store, tmp_path / "g3"))
    assert cache.scored_at["removed"].to_list() == [0, 0, 0, sum(name == "S0001" for name, _ in named)]
    for day, expected in (("01", halves), ("02", evening), ("03", named), ("04", values(cache))):
        assert values(cache.as_of(f"2024-01-{day}")) == expected
    # A renamed ticker whose map is not given is scored again, and comes to the same.
    again = stored(gone.with_columns(pl.col("instrument").replace("S0002", "XX")), tmp_path / "s")
    cache = scored(again, where)
    assert values(cache) == values(scored(again, tmp_path / "g4"))
    assert cache.verify().ok


def test_a_day_that_comes_late_takes_its_place(tmp_path):
    frame = bars_of(3, 30)
    days = frame["time"].unique().sort()
    without = frame.filter(pl.col("time") != days[20])
    scored(stored(without, tmp_path / "s"), tmp_path / "f", known="2024-01-01")
    before = values(open_cache(tmp_path / "f"))
    store = stored(frame, tmp_path / "s")
    cache = scored(store, tmp_path / "f", known="2024-01-02")
    assert values(cache) == values(scored(store, tmp_path / "g"))
    assert values(cache.as_of("2024-01-01")) == before
    assert cache.verify().ok
    assert len(cache.days) == len(np.unique(store.time))


def test_revisions_may_be_kept_and_are_counted_until_they_are_scored(tmp_path):
    frame = bars_of()
    scored(stored(frame, tmp_path / "s"), tmp_path / "f")
    before, model = values(open_cache(tmp_path / "f")), Counter()
    store = stored(corrected(frame, "S0002", 20), tmp_path / "s")
    cache = scored(store, tmp_path / "f", model, on_revision="keep")
    assert model.scored == 0
    assert values(cache) == before
    kept = cache.attrs["kept"]
    assert kept > 0
    cache = scored(store, tmp_path / "f", on_revision="keep")
    assert cache.attrs["kept"] == kept
    cache = scored(store, tmp_path / "f", model)
    assert model.scored == kept
    assert cache.attrs["kept"] == 0
    assert values(cache) == values(scored(store, tmp_path / "g"))


def test_rescaled_prices_cost_no_scoring(tmp_path):
    """A split rescales a history by a power of two: the same pixels."""
    frame = bars_of()
    scored(stored(frame, tmp_path / "s"), tmp_path / "f")
    hit = pl.col("instrument") == "S0001"
    prices = [
        pl.when(hit).then(pl.col(name) / 4).otherwise(pl.col(name)).alias(name)
        for name in ("open", "high", "low", "close")
    ]
    model = Counter()
    cache = scored(stored(frame.with_columns(prices), tmp_path / "s"), tmp_path / "f", model)
    assert model.scored == 0
    assert cache.attrs["store_digest"] == pp.open_store(tmp_path / "s").digest


def test_an_append_goes_on_from_the_start_that_the_cache_has(tmp_path):
    frame = bars_of()
    days = frame["time"].unique().sort()
    start = str(days[15])[:10]
    scored(stored(until(frame, 30), tmp_path / "s"), tmp_path / "f", start=start)
    store = stored(frame, tmp_path / "s")
    cache = scored(store, tmp_path / "f")
    assert cache.attrs["start"] == start or str(cache.attrs["start"]).startswith(start)
    assert values(cache) == values(scored(store, tmp_path / "g", start=start))


def test_a_stopped_rescoring_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    frame = bars_of(5, 60)
    store = stored(until(frame, 50), tmp_path / "s")
    for name in ("f", "whole"):
        scored(store, tmp_path / name)
    other = corrected(corrected(frame, "S0002", 20), "S0004", 52)
    store = stored(other.filter(pl.col("instrument") != "S0001"), tmp_path / "s")
    calls = 0

    def stops(images):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return ink(images)

    with pytest.raises(KeyboardInterrupt):
        scored(store, tmp_path / "f", stops)
    calls = 3
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", lambda writer: stops(None))
        with pytest.raises(KeyboardInterrupt):
            scored(store, tmp_path / "f")
    scored(store, tmp_path / "f")
    scored(store, tmp_path / "whole")
    trees = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("f", "whole")
    ]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_history_of_revisions_is_remembered(tmp_path, seed):
    """Random evenings of corrections, late bars and removals, in daily and hourly bars, with and without a shift."""
    rng = np.random.default_rng(seed)
    shift, interval = (0, 2, 2)[seed], ("1d", "1d", "1h")[seed]
    frame = bars_of(5, 36, seed=seed, interval=interval)
    known: dict[str, dict] = {}
    for evening in range(5):
        day = 16 + 4 * evening
        last = frame["time"].unique().sort()[day]
        if rng.random() < 0.5:
            frame = corrected(frame, f"S000{rng.integers(5)}", int(rng.integers(day)))
        held = [f"S000{k}" for k in rng.permutation(5)[: rng.integers(3)]]
        seen = frame.filter(
            (pl.col("time") <= last) & ~((pl.col("time") == last) & pl.col("instrument").is_in(held))
        )
        if rng.random() < 0.3:
            seen = seen.filter(pl.col("instrument") != f"S000{rng.integers(5)}")
        store = stored(seen, tmp_path / "s")
        panel = panel_of(seen)
        date = f"2024-05-{evening + 1:02d}"
        cache = scored(store, tmp_path / "f", shift=shift, known=date, panel=panel)
        fresh = scored(store, tmp_path / f"g{evening}", shift=shift, panel=panel)
        known[date] = values(fresh)
        assert values(cache) == known[date]
        assert cache.verify().ok
    cache = open_cache(tmp_path / "f")
    for date, expected in known.items():
        assert values(cache.as_of(date)) == expected
