"""Scoring a store into a factor cache: places, shifts, resumption, appending, exports, refusals."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import zarr
from clusters import local_client

import pricepix as pp
from pricepix.factor import open_cache, score
from pricepix.factor.cache_writer import CacheWriter
from pricepix.factor.panel_check import read_labels
from pricepix.factor.scorer import Scorer
from pricepix.location import Folder
from pricepix.store.lock import WriteLock

SPEC = pp.ImageSpec.preset("jkx5")


def ink(images: np.ndarray) -> np.ndarray:
    """Share of pixels that are lit: a model without weights whose value can be checked by eye."""
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def other(images: np.ndarray) -> np.ndarray:
    return np.full(len(images), 0.5, np.float32)


def panel_of(instruments=6, bars=60, **options) -> pp.Panel:
    settings = {"seed": 1, "split_rate": 0.0, "delist_rate": 0.01, "list_late": 0.5, **options}
    return pp.Panel.from_table(pp.samples.simulate(instruments, bars, **settings), progress=False)


def store_of(panel, location=None, **options):
    options = {"horizons": (5,), "chunk": 16, "progress": False, **options}
    return pp.render_universe(panel, SPEC, location, **options)


@pytest.fixture(scope="module")
def panel():
    return panel_of()


@pytest.fixture(scope="module")
def store(panel, tmp_path_factory):
    return store_of(panel, tmp_path_factory.mktemp("cache") / "store.zarr")


def expected_values(store) -> dict[tuple[str, int], float]:
    names, values = store.instruments[store.instrument_index], ink(store.read())
    return {(str(n), int(t)): float(v) for n, t, v in zip(names, store.time, values, strict=True)}


def found_values(cache) -> dict[tuple[str, int], float]:
    time, values = cache.matrix()
    bar, code = np.nonzero(~np.isnan(values))
    return {
        (str(cache.instruments[i]), int(time[b])): float(values[b, i]) for b, i in zip(bar, code, strict=True)
    }


# --------------------------------------------------------------------------------------------- places


def test_every_score_stands_at_its_bar_and_nothing_else_does(store, tmp_path):
    cache = score(store, ink, tmp_path / "factor.zarr", progress=False)
    assert found_values(cache) == expected_values(store)
    assert cache.factor.chunks[0] == 1
    assert cache.intervals == ["00:00"]
    assert cache.attrs["windows"] == len(store)
    assert cache.attrs["complete"]
    assert cache.attrs["store_digest"] == store.digest
    assert {"pricepix", "numpy", "zarr", "python"} <= set(cache.attrs["versions"])
    name, time = next(iter(expected_values(store)))
    day = str(np.datetime64(time, "ns").astype("datetime64[D]"))
    assert cache.at(name, day) == expected_values(store)[name, time]
    assert len(open_cache(tmp_path / "factor.zarr").days) == len(np.unique(store.time))


def test_xarray_opens_the_cache_as_it_is(store, tmp_path):
    xr = pytest.importorskip("xarray")
    cache = score(store, ink, tmp_path / "factor.zarr", progress=False)
    with xr.open_zarr(tmp_path / "factor.zarr", consolidated=False) as data:
        assert data.factor.dims == ("day", "instrument", "interval")
        assert data.factor.dtype == np.float32
        assert data.day.dtype.kind == "M"
        assert data.time.dims == ("day", "interval")
        (name, time), value = next(iter(expected_values(store).items()))
        stamp = np.datetime64(time, "ns")
        picked = data.factor.sel(instrument=name, interval="00:00", day=stamp.astype("datetime64[D]"))
        assert float(picked) == value
        assert picked.time.values == stamp
    assert cache.to_xarray().factor.shape == cache.shape


def test_the_panel_gives_all_days_of_its_calendar(panel, store, tmp_path):
    cache = score(store, ink, tmp_path / "factor.zarr", panel=panel, progress=False)
    assert len(cache.days) == len(panel.calendar)
    assert found_values(cache) == expected_values(store)


@pytest.fixture(scope="module")
def intraday():
    frame = pp.samples.simulate(3, 40, interval="1h", seed=3, split_rate=0, delist_rate=0, list_late=0)
    frame = frame.filter(pl.col("time") != frame["time"].unique().sort()[11])  # a bar the market skipped
    return pp.Panel.from_table(frame, tz="America/New_York", progress=False)


def test_a_window_at_no_bar_of_the_cache_has_no_value_there(panel, store, tmp_path):
    days = np.unique(store.time)
    some = store_of(panel, every="week")
    cache = score(some, ink, tmp_path / "f.zarr", progress=False)
    at_own = np.isin(store.time, some.time)
    assert 0 < len(np.unique(some.time)) < len(days)
    values = cache.of_windows(store)
    assert np.isnan(values[~at_own]).all()
    expected = expected_values(some)
    keys = zip(store.instruments[store.instrument_index[at_own]], store.time[at_own], strict=True)
    np.testing.assert_array_equal(values[at_own], [expected[str(name), int(time)] for name, time in keys])


@pytest.mark.parametrize("shift", [0, 1, 3, 9])
def test_shift_moves_along_the_markets_bars_and_over_days(intraday, tmp_path, shift):
    store = store_of(intraday)
    cache = score(store, ink, tmp_path / "f.zarr", shift=shift, panel=intraday, progress=False)
    calendar = intraday.calendar
    moved = {}
    for (name, time), value in expected_values(store).items():
        at = int(np.searchsorted(calendar, time)) + shift
        if at < len(calendar):
            moved[name, int(calendar[at])] = value
    assert found_values(cache) == moved
    assert len(cache.intervals) == 7
    assert cache.intervals[0] == "10:30"
    assert cache.attrs["unplaced"] == len(store) - len(moved)
    # One step by hand: the last bar of a day goes to the first bars of the next.
    if shift == 1:
        day, interval = 2, 0
        assert cache.factor[day, 0, interval] == pytest.approx(
            expected_values(store)[str(cache.instruments[0]), int(cache.time[1, 6])]
        )


def test_a_sparse_store_needs_the_panel_to_be_shifted(panel, tmp_path):
    store = store_of(panel, every="week")
    with pytest.raises(ValueError, match="windows of store memory end only at every week: give panel="):
        score(store, ink, tmp_path / "f.zarr", shift=1, progress=False)
    cache = score(store, ink, tmp_path / "f.zarr", shift=1, panel=panel, progress=False)
    calendar = panel.calendar
    first = calendar[np.searchsorted(calendar, store.time[0]) + 1]
    assert cache.matrix()[0][0] == first
    with pytest.raises(ValueError, match="shift=-1: give a whole number of bars from 0"):
        score(store, ink, tmp_path / "g.zarr", shift=-1, progress=False)


# ------------------------------------------------------------------------------- resuming and appending


def stop(*arguments):
    raise KeyboardInterrupt


class Stops:
    """A model that fails after some calls, as a machine does."""

    def __init__(self, calls: int) -> None:
        self.left, self.scored = calls, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.scored += len(images)
        return ink(images)


def test_a_stopped_run_goes_on_where_it_stopped(store, tmp_path):
    whole = score(store, ink, tmp_path / "whole.zarr", progress=False)
    where = tmp_path / "stopped.zarr"
    with pytest.raises(KeyboardInterrupt):
        score(store, Stops(3), where, model_id="ink", progress=False)
    with pytest.raises(ValueError, match="is not finished"):
        open_cache(where)
    again = Stops(10**6)
    cache = score(store, again, where, model_id="ink", progress=False)
    assert np.array_equal(cache.factor[:], whole.factor[:], equal_nan=True)
    assert again.scored < len(store) - 20
    nothing = Stops(0)
    score(store, nothing, where, model_id="ink", progress=False)
    assert nothing.scored == 0


def test_a_new_cache_stopped_before_its_last_word_scores_nothing_again(store, tmp_path):
    where, counted = tmp_path / "factor.zarr", Stops(10**6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt) as raised:
            score(store, counted, where, model_id="ink", progress=False)
    assert f"stopped with {len(store):,} windows done; the same call resumes" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match=rf"is not finished \({len(store)} windows are scored\)"):
        open_cache(where)
    counted.scored = 0
    (where / "note.txt").write_text("mine")
    (where / "_build" / "tmp").mkdir(exist_ok=True)
    (where / "_build" / "tmp" / "left").write_text("half")
    (where / "factor" / "c" / "99").write_text("of a store that was longer")
    cache = score(store, counted, where, model_id="ink", progress=False)
    assert counted.scored == 0
    assert found_values(cache) == expected_values(store)
    assert (where / "note.txt").read_text() == "mine"
    assert not (where / "_build").exists()
    assert not (where / "factor" / "c" / "99").exists()


@pytest.mark.parametrize("shift", [0, 2])
def test_a_period_alone_is_scored_and_may_be_scored_on(panel, store, tmp_path, shift):
    days = np.unique(store.time)
    first, last, later = (str(days[k].astype("M8[ns]").astype("M8[D]")) for k in (10, 20, 30))
    calls = []

    def counted(images):
        calls.append(len(images))
        return ink(images)

    def of(a, b):
        options = {"shift": shift, "panel": panel, "model_id": "ink", "progress": False}
        return score(store, counted, tmp_path / "factor.zarr", start=a, end=b, **options)

    cache = of(first, last)
    inside = (store.time >= days[10]) & (store.time <= days[20])
    assert sum(calls) == inside.sum()
    assert f" {inside.sum()} windows of ink" in repr(cache)
    assert cache.attrs["complete"]
    assert cache.attrs["unplaced"] == 0
    calendar = panel.calendar
    expected = {
        (name, int(calendar[np.searchsorted(calendar, time) + shift])): value
        for (name, time), value in expected_values(store).items()
        if days[10] <= time <= days[30]
    }
    at_most = calendar[np.searchsorted(calendar, days[20]) + shift]
    assert found_values(cache) == {key: v for key, v in expected.items() if key[1] <= at_most}
    calls.clear()
    assert found_values(of(first, last)) == found_values(cache)
    assert not calls
    assert found_values(of(first, later)) == expected
    # The images of a day that was left open are at most scored once more.
    assert sum(calls) <= ((store.time > days[20 - shift]) & (store.time <= days[30])).sum()
    with pytest.raises(ValueError, match="another start"):
        of(last, later)
    with pytest.raises(
        ValueError, match=r"no image of store .* lies in the time to score: its windows run from"
    ):
        score(store, ink, None, start="2050-01-01", progress=False)


@pytest.mark.parametrize("shift", [0, 2])
def test_appending_a_day_touches_that_day_alone(panel, tmp_path, shift):
    where = tmp_path / "f.zarr"
    end = str(np.datetime64(int(panel.calendar[-2]), "ns").astype("datetime64[D]"))
    short, full = store_of(panel, end=end), store_of(panel)
    score(short, ink, where, shift=shift, progress=False)
    before = {p: p.stat().st_mtime_ns for p in (where / "factor" / "c").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="pass append=True"):
        score(full, ink, where, shift=shift, progress=False)
    calls = Stops(10**6)
    with pytest.raises(ValueError, match="a cache never mixes models"):
        score(full, calls, where, shift=shift, append=True, model_id="another", progress=False)
    cache = score(full, ink, where, shift=shift, append=True, progress=False)
    fresh = score(full, ink, tmp_path / "fresh.zarr", shift=shift, progress=False)
    assert found_values(cache) == found_values(fresh)
    after = {p: p.stat().st_mtime_ns for p in (where / "factor" / "c").rglob("*") if p.is_file()}
    assert {p for p in before if after[p] != before[p]} == set()
    assert len(after) - len(before) == 1


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("on_workers", [False, True])
def test_a_cache_with_nothing_left_to_score_is_finished(panel, tmp_path, shift, on_workers):
    """Whether the store has grown beyond the end, or the run stopped between its last day and its last word."""
    days = np.array([np.datetime64(int(time), "ns").astype("datetime64[D]") for time in panel.calendar])
    end = str(days[-12])
    for name, last in (("short", days[-5]), ("full", days[-1])):
        store_of(panel, tmp_path / name, end=str(last))
    where, counted = tmp_path / "factor.zarr", Stops(10**6)

    def of(name, end, **options):
        options = {"shift": shift, "panel": panel, "model_id": "ink", "progress": False, **options}
        return score(pp.open_store(tmp_path / name), counted, where, end=end, **options)

    first = of("short", end)
    done = first.attrs["windows"]
    assert done % 16, "the windows must end within a chunk"
    values = first.matrix()[1]
    counted.scored = 0
    with contextlib.ExitStack() as stack:
        client = None
        if on_workers:
            stack.enter_context(warnings.catch_warnings())
            client = stack.enter_context(local_client())
        with pytest.MonkeyPatch.context() as patch:
            # As a kill leaves it between the last day and the last word.
            patch.setattr(CacheWriter, "finish", stop)
            with pytest.raises(KeyboardInterrupt):
                of("full", end, append=True, client=client)
        assert open_cache(where).attrs["store_digest"] == pp.open_store(tmp_path / "short").digest
        for name, until in (("full", end), ("full", str(days[-14])), ("full", end)):
            # An earlier end leaves what is there.
            cache = of(name, until, append=True, client=client)
            assert cache.attrs["complete"]
            assert cache.attrs["windows"] == done
            assert cache.attrs["store_digest"] == pp.open_store(tmp_path / "full").digest
            np.testing.assert_array_equal(cache.matrix()[1], values)
    assert counted.scored == 0


def test_appending_scores_new_windows_only_and_takes_new_instruments(tmp_path):
    frame = pp.samples.simulate(5, 60, seed=2, split_rate=0, delist_rate=0, list_late=0)
    days = frame["time"].unique().sort()
    newcomer = pl.col("instrument") == "S0001"
    frame = frame.filter(~newcomer | (pl.col("time") > days[40]))
    early = frame.filter(pl.col("time") <= days[40])
    old, new = (store_of(pp.Panel.from_table(f, progress=False)) for f in (early, frame))
    counted = Stops(10**6)
    score(old, counted, tmp_path / "f.zarr", model_id="ink", progress=False)
    counted.scored = 0
    cache = score(new, counted, tmp_path / "f.zarr", model_id="ink", append=True, progress=False)
    assert counted.scored == len(new) - len(old)
    assert found_values(cache) == expected_values(new)
    assert cache.instruments.tolist() == ["S0000", "S0002", "S0003", "S0004", "S0001"]


def test_a_changed_history_is_refused_where_that_is_asked_for(panel, tmp_path):
    early = store_of(panel, start=str(np.datetime64(int(panel.calendar[20]), "ns")))
    score(store_of(panel), ink, tmp_path / "f.zarr", progress=False)
    before = open_cache(tmp_path / "f.zarr").matrix()
    with pytest.raises(
        ValueError, match=r"history that cache .* was scored from was revised: \d+ or more windows"
    ):
        score(early, ink, tmp_path / "f.zarr", append=True, on_revision="raise", progress=False)
    for found, expected in zip(open_cache(tmp_path / "f.zarr").matrix(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    cache = score(early, ink, tmp_path / "f.zarr", append=True, progress=False)
    assert found_values(cache) == expected_values(early)


# --------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def networks():
    torch = pytest.importorskip("torch")
    from pricepix.train.models import PriceCNN

    made = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        made.append(PriceCNN("jkx5").eval())
    return made


def test_networks_checkpoints_and_ensembles_score_alike(store, networks, tmp_path):
    from pricepix.train.checkpoints import save_model
    from pricepix.train.models import Ensemble

    net = networks[0]
    direct = net.predict(store.read())
    cache = score(store, net, tmp_path / "a.zarr", progress=False)
    found = found_values(cache)
    names = store.instruments[store.instrument_index]
    for k in (0, 50, len(store) - 1):
        assert found[str(names[k]), int(store.time[k])] == pytest.approx(float(direct[k]), abs=1e-6)
    for i, member in enumerate(networks):
        folder = tmp_path / "run" / f"member_{i}"
        folder.mkdir(parents=True)
        save_model(member, folder / "best.ckpt")
    one = score(store, tmp_path / "run" / "member_0" / "best.ckpt", tmp_path / "b.zarr", progress=False)
    assert one.attrs["model"]["digest"] == cache.attrs["model"]["digest"]
    assert found_values(one) == found

    both = score(store, tmp_path / "run", tmp_path / "c.zarr", spread=True, progress=False)
    ensemble = Ensemble(networks)
    again = score(
        store, ensemble, tmp_path / "c.zarr", spread=True, progress=False
    )  # the same: nothing to do
    assert again.attrs["model"]["members"] == 3
    parts = np.stack([m.predict(store.read()) for m in networks])
    time, spread = both.matrix("spread")
    k = 40
    at = np.searchsorted(time, store.time[k]), list(both.instruments).index(names[k])
    assert spread[at] == pytest.approx(parts[:, k].std(ddof=1), rel=1e-3)
    assert both.matrix()[1][at] == pytest.approx(parts[:, k].mean(), abs=1e-6)
    with pytest.raises(ValueError, match="holds the members' spread: pass spread=True"):
        score(store, ensemble, tmp_path / "c.zarr", progress=False)
    with pytest.raises(ValueError, match="spread=True needs an ensemble"):
        score(store, net, tmp_path / "d.zarr", spread=True, progress=False)


def test_a_lower_precision_scores_nearly_alike_and_is_not_mixed(store, networks, tmp_path):
    exact = score(store, networks[0], None, progress=False).matrix()[1]
    rough = score(store, networks[0], tmp_path / "f", precision="bf16-mixed", progress=False)
    assert rough.attrs["precision"] == "bf16-mixed"
    difference = np.abs(rough.matrix()[1] - exact)
    assert 0 < np.nanmax(difference) < 0.02
    with pytest.raises(ValueError, match=r"has another precision \(bf16-mixed, not 32-true\)"):
        score(store, networks[0], tmp_path / "f", progress=False)
    with pytest.raises(
        ValueError, match="precision='half' is not known: choose one of '32-true', 'bf16-mixed'"
    ):
        score(store, networks[0], None, precision="half", progress=False)


def test_a_walk_forward_run_scores_each_fold_on_its_own_test_period(store, networks, tmp_path):
    from pricepix.store.sealed_files import write_sealed_yaml
    from pricepix.train.checkpoints import save_model

    times = np.unique(store.time)
    stamp = [str(np.datetime64(int(t), "ns").astype("datetime64[s]")) for t in times]
    run = tmp_path / "run"
    folds = []
    for k, (a, b) in enumerate(((20, 29), (30, 39))):
        folds.append({"name": f"{k}", "test": {"images": 9, "first": stamp[a], "last": stamp[b]}})
        (run / f"fold_{k}" / "member_0").mkdir(parents=True)
        save_model(networks[k], run / f"fold_{k}" / "member_0" / "best.ckpt")
    write_sealed_yaml(run / "config.yaml", {"folds": folds, "ensemble": 1})
    cache = score(store, run, tmp_path / "f.zarr", progress=False)
    found = found_values(cache)
    names = store.instruments[store.instrument_index]
    images = store.read()
    expected = {}
    # The newest windows have no returns yet, and so belong to no test; the last fold's network scores them.
    for k, (a, b) in enumerate(((20, 29), (30, len(times) - 1))):
        own = np.flatnonzero((store.time >= times[a]) & (store.time <= times[b]))
        for i, value in zip(own, networks[k].predict(images[own]), strict=True):
            expected[str(names[i]), int(store.time[i])] = float(value)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(times) > 45
    assert cache.attrs["model"]["name"] == "jkx5, 2 folds"
    assert [stage["last"] for stage in cache.attrs["model"]["seen"]] == [int(times[29]), None]
    score(store, run, tmp_path / "f.zarr", progress=False)  # recognised
    folds[1]["test"]["first"] = stamp[25]
    write_sealed_yaml(run / "config.yaml", {"folds": folds, "ensemble": 1})
    with pytest.raises(ValueError, match=r"the test periods of fold_0 and fold_1 of run .* overlap"):
        score(store, run, tmp_path / "g.zarr", progress=False)


def test_a_checkpoint_for_other_images_is_refused_before_anything_is_written(store, tmp_path):
    pytest.importorskip("torch")
    from pricepix.train.models import PriceCNN

    with pytest.raises(ValueError, match=r"takes images of 64x60, those of store .* are 32x15"):
        score(store, PriceCNN("jkx20"), tmp_path / "f.zarr", progress=False)
    net = PriceCNN("jkx5")
    net.metadata = {"image_spec": SPEC.replace(ma=()).to_dict(), "horizon": 5}
    with pytest.raises(ValueError, match=r"trained on other images .* ma \[\], not \[5\]"):
        score(store, net, tmp_path / "f.zarr", progress=False)
    assert not (tmp_path / "f.zarr").exists()


def test_damaged_weights_are_an_error_not_a_factor(store, networks, tmp_path):
    import copy

    import torch

    broken = copy.deepcopy(networks[0])
    with torch.no_grad():
        broken.linear.bias[0] = float("nan")
    with pytest.raises(ValueError, match="its weights are damaged"):
        score(store, broken, tmp_path / "f.zarr", progress=False)


def some(images: np.ndarray) -> np.ndarray:
    """No value for every third image, by what is drawn on it."""
    found = ink(images)
    return np.where(np.round(found * 1e4).astype(int) % 3 == 0, np.nan, found)


def none(images: np.ndarray) -> np.ndarray:
    return np.full(len(images), np.nan)


def test_images_without_a_value_are_counted(panel, store, tmp_path):
    expected = int(np.isnan(some(store.read())).sum())
    assert 0 < expected < len(store)
    cache = score(store, some, tmp_path / "some.zarr", progress=False)
    assert cache.attrs["without_value"] == expected
    assert f"{len(store)} windows ({expected} without a value) of" in repr(cache)
    assert score(store, ink, None, progress=False).attrs["without_value"] == 0
    assert "without" not in repr(score(store, ink, None, progress=False))
    with pytest.warns(
        UserWarning, match=r"\.none gave no value for any image of store .*store.zarr: the factor"
    ):
        empty = score(store, none, None, progress=False)
    assert empty.attrs["without_value"] == len(store)
    assert f"{len(store)} windows (none with a value) of" in repr(empty)
    # Whether it is stopped, resumed or appended to, and of only a period.
    end = str(np.datetime64(int(panel.calendar[-6]), "ns").astype("datetime64[D]"))
    early = store_of(panel, end=end)
    stopping = Stops(3)

    def stops(images):
        stopping(images)
        return some(images)

    where = tmp_path / "stopped.zarr"
    with pytest.raises(KeyboardInterrupt):
        score(early, stops, where, model_id="some", batch=16, progress=False)
    score(early, some, where, model_id="some", progress=False)
    cache = score(store, some, where, model_id="some", append=True, progress=False)
    assert cache.attrs["without_value"] == expected
    part = score(store, some, None, end=end, progress=False)
    assert part.attrs["without_value"] == np.isnan(some(early.read())).sum() < expected


def test_panel_images_are_called_that(panel):
    images = pp.PanelImages(panel, SPEC, horizons=(5,), every="week")
    for options, message in (
        ({"shift": 1}, "windows of panel images of 6 instruments end only at every week"),
        ({"start": "2050-01-01"}, "no image of panel images of 6 instruments lies in the time"),
        (
            {"client": SimpleNamespace(scatter=None)},
            "workers cannot open panel images of 6 instruments, which lives in this process",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            score(images, ink, None, progress=False, **options)


def test_what_functions_return_is_checked(store, tmp_path):
    cases = [
        (lambda images: images.mean(axis=(1, 2)), "which are not probabilities: pass values='score'"),
        (lambda images: np.zeros((len(images), 2)), "must return a number an image"),
        (lambda images: np.full(len(images), np.inf), "infinite scores"),
    ]
    for k, (function, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            score(store, function, tmp_path / f"{k}.zarr", progress=False)
    ranked = score(store, cases[0][0], tmp_path / "r.zarr", values="score", progress=False)
    assert not ranked.is_probability
    middle = float(np.median(ink(store.read())))
    some = score(store, lambda x: np.where(ink(x) > middle, np.nan, ink(x)), None, progress=False)
    assert 0 < len(found_values(some)) < len(store)
    with pytest.raises(TypeError, match="score has no argument 'bach'; did you mean 'batch'"):
        score(store, ink, None, bach=3)
    with pytest.raises(TypeError, match="model is a int; give a checkpoint"):
        score(store, 7, tmp_path / "t.zarr")


def test_functions_that_cannot_be_told_apart_are_not_resumed(store, tmp_path):
    assert Scorer(ink).digest != Scorer(other).digest
    assert Scorer(ink).digest == Scorer(ink).digest
    with open(__file__) as file:

        def reads(images):
            return ink(images) * (file.closed + 1)

        assert Scorer(reads).digest is None
        score(store, reads, tmp_path / "f.zarr", progress=False)
        message = r"\(it reaches a TextIOWrapper, whose state cannot be read\): name it by model_id="
        with pytest.raises(ValueError, match=message):
            score(store, reads, tmp_path / "f.zarr", append=True, progress=False)
    with pytest.raises(ValueError, match="a cache never mixes models"):
        score(store, other, tmp_path / "f.zarr", progress=False)


def test_workers_of_a_cluster_score_the_same(store, networks, tmp_path):
    here = score(store, networks[0], tmp_path / "here.zarr", progress=False)
    with warnings.catch_warnings(), local_client(threads=2) as client:
        warnings.simplefilter("ignore")
        there = score(store, networks[0], tmp_path / "there.zarr", client=client, progress=False)
        with pytest.raises(ValueError, match="cannot open store memory, which lives in this process"):
            score(store_of(panel_of(2, 30)), ink, tmp_path / "x.zarr", client=client)
    assert np.allclose(here.factor[:], there.factor[:], atol=1e-6, equal_nan=True)


# -------------------------------------------------------------------------------------- other locations


def test_locations_that_hold_something_else_are_left_alone(store, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a factor cache"):
        score(store, ink, tmp_path / "folder")
    with pytest.raises(FileExistsError, match="is a file"):
        score(store, ink, tmp_path / "folder" / "note.txt")
    with pytest.raises(FileExistsError, match="is not a factor cache"):
        score(store, ink, store.location)
    with pytest.raises(ValueError, match="an image store: open it with open_store"):
        open_cache(store.location)
    with pytest.raises(FileNotFoundError, match="no factor cache at"):
        open_cache(tmp_path / "nowhere")
    assert len(score(store, ink, None, progress=False).days) > 0


def test_another_format_version_is_named(store, tmp_path):
    score(store, ink, tmp_path / "f.zarr", progress=False)
    for version in (1, 2, 99):
        zarr.open_group(tmp_path / "f.zarr", mode="r+").attrs["format_version"] = version
        message = (
            f"format version {version}, this release reads version 3: score to a new location, or remove"
        )
        with pytest.raises(ValueError, match=message):
            open_cache(tmp_path / "f.zarr")
        with pytest.raises(ValueError, match=message):
            score(store, ink, tmp_path / "f.zarr", progress=False)


# ----------------------------------------------------------------------------------------------- damage


@pytest.fixture
def with_panel(panel, store, tmp_path):
    """A cache with days that have no value, and none that a chunk is missing of."""
    return score(store, ink, tmp_path / "f.zarr", panel=panel, progress=False).location


def read_all(where):
    cache = open_cache(where)
    axes = cache.days, cache.time, cache.instruments, cache.intervals, read_labels(cache)
    return cache.factor[:], *axes, cache.values("scored/image")[:], cache.source_chunks, cache.journal()


def test_a_flipped_bit_is_found_in_every_file_and_named(with_panel):
    assert open_cache(with_panel).verify().ok
    rng = np.random.default_rng(4)
    files = sorted(path for path in Path(with_panel).rglob("*") if path.is_file())
    values = [path for path in files if path.parent.parent.parent.name == "c"]
    assert len(values) > 30
    for path in [*values[::8], *(path for path in files if path not in values)]:
        key = str(path.relative_to(with_panel))
        whole = path.read_bytes()
        for bit in rng.integers(8 * len(whole), size=4).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            if key == "zarr.json":
                with pytest.raises(
                    ValueError, match=r"zarr\.json|not a factor cache|format version|metadata"
                ):
                    read_all(with_panel)
                continue
            if key == "integrity/checksums/c/0":
                with pytest.raises(ValueError, match=f"{key} of cache .* is damaged"):
                    read_all(with_panel)
                continue
            report = open_cache(with_panel).verify()
            assert [key in problem for problem in report.problems] == [True], (key, bit, report)
            if not key.endswith("zarr.json"):  # what Zarr's metadata say stands in the group's, too
                with pytest.raises(ValueError, match=f"{key} of cache .* is damaged"):
                    read_all(with_panel)
        path.write_bytes(whole)
    assert open_cache(with_panel).verify().ok


def test_a_missing_chunk_is_an_error_and_never_nan(store, with_panel):
    chunks = sorted((Path(with_panel) / "factor" / "c").iterdir())
    lost, other = chunks[5] / "0" / "0", chunks[6] / "0" / "0"
    day = int(chunks[5].name)
    content = lost.read_bytes()
    lost.unlink()
    cache = open_cache(with_panel)
    key = f"factor/c/{day}/0/0"
    for read in (lambda: cache.factor[day], cache.matrix, cache.to_polars, lambda: cache.of_windows(store)):
        with pytest.raises(ValueError, match=f"{key} of cache .* is missing"):
            read()
    assert [p for p in cache.verify().problems if key in p and "missing" in p]
    # A whole chunk in the place of another is found as well.
    lost.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=f"{key} of cache .* is not the one that was written"):
        cache.matrix()
    lost.write_bytes(content)
    (Path(with_panel) / "factor" / "c" / "stray").write_bytes(b"1")
    assert "do not belong to the cache, the first is factor/c/stray" in str(cache.verify())


def test_an_open_cache_stays_what_it_was_while_it_is_appended_to(panel, tmp_path):
    where = tmp_path / "f.zarr"
    end = str(np.datetime64(int(panel.calendar[-5]), "ns").astype("datetime64[D]"))
    score(store_of(panel, end=end), ink, where, model_id="ink", progress=False)
    early = open_cache(where)
    expected = early.matrix()
    lazy = early.to_xarray() if importlib.util.find_spec("xarray") else None
    score(store_of(panel), ink, where, model_id="ink", append=True, progress=False)
    for found, before in zip(early.matrix(), expected, strict=True):
        assert np.array_equal(found, before, equal_nan=True)
    assert len(open_cache(where).days) == len(early.days) + 4
    if lazy is not None:
        with pytest.raises(ValueError, match="was appended to since it was opened, and time/c/0/0 changed"):
            lazy.time.values  # noqa: B018


def test_two_scorers_do_not_write_one_cache(store, tmp_path):
    where = tmp_path / "f.zarr"
    with (
        WriteLock(Folder(where)),
        pytest.raises(BlockingIOError, match=r"cache .* is being written by process"),
    ):
        score(store, ink, where, progress=False)
    assert score(store, ink, where, progress=False).verify().ok
    assert not (where / "_build").exists()


@pytest.mark.parametrize("kind", ["memory", "url", "local"])
def test_caches_live_in_any_zarr_store(store, tmp_path, kind):
    made = {
        "memory": zarr.storage.MemoryStore,
        "url": lambda: f"memory://{tmp_path.name}",
        "local": lambda: zarr.storage.LocalStore(tmp_path / "f.zarr"),
    }
    where = made[kind]()
    cache = score(store, ink, where, progress=False)
    assert found_values(cache) == found_values(open_cache(where)) == expected_values(store)
    assert cache.verify().ok


def test_the_command_line_says_what_it_verifies(store, tmp_path):
    from click.testing import CliRunner

    from pricepix.cli import main

    where = score(store, ink, tmp_path / "f.zarr", progress=False).location
    found = CliRunner().invoke(main, ["verify", "--no-progress", where])
    assert (found.exit_code, found.output.split(":")[0]) == (0, f"factor cache {where} (checksums)")
    assert CliRunner().invoke(main, ["verify", "--no-progress", where, "--sample", "3"]).exit_code == 1
    assert (
        CliRunner()
        .invoke(main, ["verify", "--no-progress", store.location])
        .output.startswith("image store ")
    )
    path = next(path for path in (tmp_path / "f.zarr" / "factor" / "c").rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-9])
    found = CliRunner().invoke(main, ["verify", "--no-progress", where])
    assert found.exit_code == 1
    assert str(path.relative_to(where)) in found.output


# --------------------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory):
    return score(store, ink, tmp_path_factory.mktemp("exports") / "f.zarr", progress=False)


def test_parquet_and_csv_hold_every_value(cache, store, tmp_path):
    table = pl.read_parquet(cache.to_parquet(tmp_path / "f.parquet"))
    assert table.columns == ["instrument", "time", "factor"]
    expected = expected_values(store)
    found = zip(table["instrument"], table["time"].to_physical(), table["factor"], strict=True)
    assert {(n, t): v for n, t, v in found} == expected
    written = pl.read_csv(cache.to_csv(tmp_path / "f.csv"), try_parse_dates=True)
    assert written["time"].dtype == pl.Date
    assert written["factor"].to_list() == pytest.approx(table["factor"].to_list(), rel=1e-6)


def test_alphalens_takes_the_factor(cache, panel):
    pd = pytest.importorskip("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("alphalens.utils")
        frame = panel.to_polars()
        prices = pd.DataFrame({c: frame[c].to_list() for c in ("instrument", "time", "close")}).pivot(
            index="time", columns="instrument", values="close"
        )
        prices.index = pd.DatetimeIndex(prices.index).as_unit("ns")
        clean = utils.get_clean_factor_and_forward_returns(
            cache.to_alphalens(), prices, quantiles=2, periods=(1,), max_loss=0.5
        )
    assert clean.index.names == ["date", "asset"]
    assert len(clean) > 100


def test_qlib_form(cache, intraday):
    pd = pytest.importorskip("pandas")
    frame = cache.to_qlib()
    assert frame.index.names == ["datetime", "instrument"]
    assert frame.columns.tolist() == ["score"]
    assert frame.index.is_monotonic_increasing or frame.sort_index().index.is_unique
    zoned = score(store_of(intraday), ink, None, progress=False)
    stamps = zoned.to_qlib().index.get_level_values(0)
    assert stamps.tz is None
    assert stamps[0] == pd.Timestamp("2000-01-04 11:30")
    assert str(zoned.to_alphalens().index.levels[0].tz) == "America/New_York"


def test_image_trading_files_read_as_its_own(intraday, tmp_path):
    store = store_of(intraday)
    cache = score(store, ink, tmp_path / "f.zarr", shift=2, panel=intraday, progress=False)
    path = cache.to_image_trading(tmp_path / "it", intraday)
    assert path.name == "CNN.delay2.N7.3f"
    # As ImageTrading reads its own: dtype by the name's last letter, shape from the index.
    index = pickle.loads((tmp_path / "it" / "indexing.pkl").read_bytes())
    raw = np.fromfile(path, np.float32).reshape(len(index["DIDX"]), len(index["Ticker"]), len(index["TIDX"]))
    assert np.array_equal(raw, cache.factor[:], equal_nan=True)
    assert index["DIDX"].dtype == np.int32
    assert index["DIDX"][0] == 20000103
    assert index["TIDX"].tolist() == cache.intervals
    assert json.loads((tmp_path / "it" / "indexing.json").read_text())["Ticker"] == index["Ticker"].tolist()
