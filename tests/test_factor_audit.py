"""The look-ahead audit: it passes on the whole pipeline, and finds leaks that were put there."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from factor_files import change_values

import pricepix as pp
from pricepix.factor import score
from pricepix.render.draw import render_rows
from pricepix.workflow.audit import audit
from pricepix.workflow.audit.tampering import replaced_after


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def panel():
    frame = pp.samples.simulate(
        8, 140, seed=5, split_rate=0, delist_rate=0.003, list_late=0.3, halt_rate=0.02
    )
    rng = np.random.default_rng(0)
    flags = {name: pl.Series(rng.random(len(frame)) < 0.1) for name in ("up_limit", "down_limit")}
    return pp.Panel.from_table(
        frame.with_columns(**flags, eligible=pl.Series(rng.random(len(frame)) < 0.9)), progress=False
    )


@pytest.fixture(scope="module")
def store(panel, tmp_path_factory):
    return pp.render_universe(
        panel, "jkx5", tmp_path_factory.mktemp("audit") / "store.zarr", horizons=(5, 20), progress=False
    )


@pytest.mark.parametrize("shift", [0, 2])
def test_the_whole_pipeline_does_not_look_ahead(panel, store, tmp_path, shift):
    cache = score(store, ink, tmp_path / "f.zarr", shift=shift, panel=panel, progress=False)
    found = audit(panel, store, cache, model=ink, progress=False)
    assert found.ok, str(found)
    assert found.windows == len(store)
    late = np.unique(store.time)[len(np.unique(store.time)) - shift :]  # whose values have no bar yet
    assert found.scores == found.placed == len(store) - np.isin(store.time, late).sum()
    assert 0 < found.labels < 2 * found.windows
    assert found.changed_after > 50
    assert str(found).startswith("audit: no leak found; ")


@pytest.mark.parametrize(
    "options",
    [
        {"every": "week"},
        {"every": "month"},
        {"sample": 0.5, "seed": 3},
        {"spec": "it9"},
        {"spec": "cnnft5"},
        {"spec": pp.ImageSpec.preset("jkx5").replace(rebuild="returns")},
        {"delay": 2, "price": "close"},
    ],
    ids=str,
)
def test_other_stores(panel, options):
    settings = {"spec": "jkx5", "horizons": (5,), "progress": False, **options}
    store = pp.render_universe(panel, store=None, **settings)
    found = audit(panel, store, progress=False)
    assert found.ok, str(found)
    assert found.windows > 10


@pytest.mark.parametrize("options", [{}, {"every": "week", "delay": 1}, {"sample": 0.5, "seed": 3}], ids=str)
def test_panel_images_and_loaded_stores_are_audited(panel, store, options):
    images = pp.PanelImages(panel, "jkx5", horizons=(5, 20), **options)
    cache = score(images, ink, None, progress=False)
    found = audit(panel, images, cache, model=ink, progress=False)
    assert found.ok, str(found)
    assert found.scores == found.windows > 10
    if not options:
        of_store = audit(panel, store, score(store, ink, None, progress=False), model=ink, progress=False)
        for same in (store.load(), images):
            cache = score(same, ink, None, progress=False)
            assert audit(panel, same, cache, model=ink, progress=False) == of_store
    other = pp.Panel.from_table(pp.samples.simulate(8, 140, seed=6), progress=False)
    with pytest.raises(ValueError, match=r"panel images of 8 instruments came from another panel \(digest"):
        audit(other, images, progress=False)


def test_panel_images_of_the_future_are_found(panel, monkeypatch):
    """Windows that end a bar later than they say."""
    images = pp.PanelImages(panel, "jkx5", horizons=(5,))
    rows = np.minimum(images.windows.row + 1, panel.offsets[images.windows.instrument + 1] - 1)
    monkeypatch.setattr(pp.PanelImages, "read_into", leaking(rows, images, pp.PanelImages.read_into))
    found = audit(panel, images, progress=False)
    assert not found.ok
    assert "images changed" in str(found)


def leaking(rows, images, read):
    """Read the images of `images` a bar late, all others as they are."""

    def late(self, positions, out):
        if self is not images:
            read(self, positions, out)
            return
        render_rows(self.panel, rows[positions], self.spec, out, reason=np.empty(len(positions), np.uint8))

    return late


def test_a_trained_network_found_by_the_cache(panel, store, tmp_path):
    torch = pytest.importorskip("torch")
    from pricepix.train.checkpoints import save_model
    from pricepix.train.models import PriceCNN

    torch.manual_seed(0)
    save_model(PriceCNN("jkx5"), tmp_path / "m.ckpt")
    score(store, tmp_path / "m.ckpt", tmp_path / "f.zarr", progress=False)
    found = audit(panel, store.location, tmp_path / "f.zarr", limit=80, date="2000-05-01", progress=False)
    assert found.ok, str(found)
    assert 40 <= found.scores <= 160
    assert found.date.startswith("2000-05-01")


def test_a_cache_of_a_period_is_audited_within_it(panel, store, tmp_path):
    days = np.unique(store.time)
    start = str(days[-30].astype("M8[ns]").astype("M8[D]"))
    cache = score(store, ink, tmp_path / "f.zarr", start=start, panel=panel, progress=False)
    found = audit(panel, store, cache, model=ink, progress=False)
    assert found.ok, str(found)
    assert 0 < found.scores == found.placed
    assert found.scores == np.count_nonzero(store.time >= days[-30])
    with pytest.raises(ValueError, match=r"holds no score of an image up to .*: give a later date"):
        audit(
            panel,
            store,
            cache,
            model=ink,
            date=str(days[40].astype("M8[ns]").astype("M8[D]")),
            progress=False,
        )


def test_scores_of_lower_precision_are_audited_in_it(panel, store, tmp_path):
    torch = pytest.importorskip("torch")
    from pricepix.train.models import PriceCNN

    torch.manual_seed(0)
    network = PriceCNN("jkx5")
    cache = score(store, network, tmp_path / "f.zarr", precision="bf16-mixed", progress=False)
    found = audit(panel, store, cache, model=network, progress=False)
    assert found.ok, str(found)
    exact = score(store, network, None, progress=False)
    assert np.nanmax(np.abs(exact.matrix()[1] - cache.matrix()[1])) > 2e-4  # twice the audit's tolerance


def test_images_of_the_future_are_found(panel):
    """A store whose every bar shows the one after it."""
    bars = np.array(panel.bars)
    for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True):
        bars[a : b - 1] = bars[a + 1 : b]
    leaky = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, dict(panel.fields))
    store = pp.render_universe(leaky, "jkx5", None, horizons=(5,), progress=False)
    found = audit(panel, store, progress=False)
    assert not found.ok
    assert "LEAK" in str(found)


def test_labels_that_changed_are_found(panel):
    store = pp.render_universe(panel, "jkx5", None, horizons=(5,), price="close", progress=False)
    scaled = np.array(panel.bars)
    scaled[:, :4] *= np.linspace(1.0, 1.0001, len(scaled))[:, None]  # too little to move many pixels
    other = pp.Panel(scaled, panel.offsets, panel.instruments, panel.time, panel.tz, dict(panel.fields))
    found = audit(other, store, progress=False)
    assert any("returns over 5 bars changed" in problem for problem in found.problems)


def test_scores_in_the_wrong_place_are_found(panel, store, tmp_path):
    cache = score(store, ink, tmp_path / "f.zarr", panel=panel, progress=False)
    values = cache.factor[:]
    early = np.concatenate([values[1:], values[-1:]])  # each value a day before it is known
    change_values(tmp_path / "f.zarr", early)
    found = audit(panel, store, tmp_path / "f.zarr", model=ink, progress=False)
    assert any("are not those of the images" in problem for problem in found.problems)
    values[3, 0, 0] = 0.5  # a value out of nowhere
    change_values(tmp_path / "f.zarr", values)
    found = audit(panel, store, tmp_path / "f.zarr", model=ink, progress=False)
    assert any("values up to the date, but" in problem for problem in found.problems)


def test_garbage_leaves_the_past_alone_and_nothing_else(panel):
    last = int(panel.calendar[70])
    changed, mask = replaced_after(panel, last, np.ones(len(panel), bool), np.random.default_rng(0))
    past = panel.time <= last
    assert np.array_equal(changed.bars[past], panel.bars[past], equal_nan=True)
    assert (changed.bars[~past] != panel.bars[~past]).any(axis=1).all()
    for name, values in panel.fields.items():
        assert np.array_equal(changed.fields[name][past], values[past], equal_nan=values.dtype != bool)
        assert not np.array_equal(changed.fields[name][~past], values[~past])
    assert mask[past].all()
    assert not mask[~past].all()


def test_what_does_not_belong_together(panel, store, tmp_path):
    other = pp.Panel.from_table(pp.samples.simulate(8, 140, seed=6), progress=False)
    with pytest.raises(ValueError, match=r"store .* came from another panel"):
        audit(other, store, progress=False)
    cache = score(store, ink, tmp_path / "f.zarr", progress=False)
    with pytest.raises(ValueError, match=r"does not say where its model .* is: pass model="):
        audit(panel, store, cache, progress=False)
    with pytest.raises(ValueError, match="is not the one of the cache"):
        audit(panel, store, cache, model=lambda images: images[:, 0, 0] / 255.0, progress=False)
    with pytest.raises(ValueError, match=r"no window of store .* stands at or before"):
        audit(panel, store, date="1999-01-01", progress=False)
    with pytest.raises(ValueError, match="pass mask= if and only if"):
        audit(panel, store, mask=np.ones(len(panel), bool), progress=False)
    with pytest.raises(ValueError, match="delisting_rate=2: give the share of names"):
        audit(panel, store, delisting_rate=2, progress=False)
    with pytest.raises(ValueError, match="date is empty"):
        audit(panel, store, date=[], progress=False)
    shorter = pp.render_universe(panel, "jkx5", None, horizons=(5,), every="week", progress=False)
    with pytest.raises(ValueError, match="holds the scores of images of digest"):
        audit(panel, shorter, cache, model=ink, progress=False)
