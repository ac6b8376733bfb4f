"""Images drawn when they are asked for, and stores held in memory: the same as the store on disk, everywhere."""

from __future__ import annotations

import gc
import importlib.util
import json
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pricepix as pp
from pricepix.images import drawing
from pricepix.images.batches import DirectReader
from pricepix.images.image_set import ImageSet
from pricepix.images.shared_arrays import SharedArrays
from pricepix.store.pool_reader import BatchReader

ROOT = Path(__file__).resolve().parents[1]


def _market(instruments: int = 8, bars: int = 150, seed: int = 3) -> pp.Panel:
    """Halts leave bars without prices, listings come late, and instruments are delisted."""
    table = pp.samples.simulate(
        instruments, bars, seed=seed, halt_rate=0.02, list_late=0.4, delist_rate=0.004
    )
    panel = pp.Panel.from_table(table, progress=False)
    assert np.isnan(panel.bars).any()
    assert len(set(np.diff(panel.offsets))) > 1
    return panel


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return _market()


SPECS = {
    **{name: pp.ImageSpec.preset(name) for name in pp.ImageSpec.presets()},
    # Outside the fast path: pixels alone, several averages, merged bars, a scale a field, an odd height.
    "pixel": pp.ImageSpec(20, chart="pixel", ma=(5, 20), volume=True),
    "merged": pp.ImageSpec(20, height=31, aggregate=4, ma=(8,), ma_warmup="omit"),
    "per_field": pp.ImageSpec(9, style="image_trading", scale="per_field", max_missing=2),
}
CHOICES: dict[str, dict[str, Any]] = {
    "all": {},
    "months": {"every": "month", "horizons": (1, 5)},
    "every third": {"every": 3, "delay": 1, "price": "close"},
    "part": {"start": "2000-04-03", "end": "2000-06-30", "horizons": 5, "sample": 0.6, "seed": 7},
    "no horizon": {"horizons": (), "max_gap": "5d"},
}


def _same(one: ImageSet, other: ImageSet) -> None:
    assert len(one) == len(other)
    assert one.index.equals(other.index)
    assert (one.spec, one.horizons, one.delay, one.tz) == (other.spec, other.horizons, other.delay, other.tz)
    np.testing.assert_array_equal(one.instruments, other.instruments)
    np.testing.assert_array_equal(one.read(), other.read())


class TestSameAsAStore:
    @pytest.mark.parametrize("layout", ["uint8", "bits"])
    @pytest.mark.parametrize("spec", SPECS)
    def test_pixels_and_labels_of_every_spec(self, panel: pp.Panel, spec: str, layout: str) -> None:
        store = pp.render_universe(panel, SPECS[spec], layout=layout, progress=False)
        images = pp.PanelImages(panel, SPECS[spec])
        _same(images, store)
        assert images.attrs["drop_counts"] == store.attrs["drop_counts"]
        assert images.attrs["schedule"] == store.attrs["schedule"]

    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize("spec", ["jkx5", "pixel"])
    def test_every_choice_of_windows(self, panel: pp.Panel, spec: str, choice: str) -> None:
        store = pp.render_universe(panel, SPECS[spec], None, **CHOICES[choice], progress=False)
        _same(pp.PanelImages(panel, SPECS[spec], **CHOICES[choice]), store)

    def test_masks(self, panel: pp.Panel) -> None:
        mask = np.random.default_rng(0).random(len(panel)) < 0.3
        _same(
            pp.PanelImages(panel, "jkx5", mask=mask),
            pp.render_universe(panel, "jkx5", mask=mask, progress=False),
        )

    def test_rebuilt_prices_and_total_returns(self, panel: pp.Panel) -> None:
        close = panel.bars[:, 3]
        total = np.append(np.nan, close[1:] / close[:-1] - 1)
        total[panel.offsets[:-1]] = np.nan
        other = pp.Panel(
            panel.bars, panel.offsets, panel.instruments, panel.time, None, {"total_return": total}
        )
        spec = pp.ImageSpec(20, ma=(20,), volume=True, rebuild="returns")
        _same(pp.PanelImages(other, spec), pp.render_universe(other, spec, progress=False))

    @given(data=st.data())
    def test_any_selection_in_any_order(self, panel: pp.Panel, data: Any) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=())
        whole = images.read()
        chosen = np.array(data.draw(st.lists(st.integers(-len(images), len(images) - 1), max_size=40)), int)
        np.testing.assert_array_equal(images.read(chosen), whole[chosen])
        out = np.full((len(chosen), 32, 30), 7, np.uint8)[:, :, ::2]
        images.read(chosen, out)
        np.testing.assert_array_equal(out, whole[chosen])

    @pytest.mark.parametrize("spec", [*SPECS, "two", "three", "seven"])
    def test_windows_alone_and_among_others(self, panel: pp.Panel, spec: str) -> None:
        """Windows that share bars are drawn together, those of a shuffled batch one by one."""
        lookback = {"two": 2, "three": 3, "seven": 7}.get(spec)
        drawn = SPECS[spec] if lookback is None else pp.ImageSpec(lookback, height=40, volume=True)
        images = pp.PanelImages(panel, drawn)
        whole = images.read()
        seen = 0
        for batch in images.batches(batch_size=3, prefetch=0, seed=1):
            np.testing.assert_array_equal(batch.images, whole[batch.index])
            seen += len(batch.index)
        assert seen == len(images)

    def test_the_rest_of_the_face(self, panel: pp.Panel, tmp_path: Path) -> None:
        store = pp.render_universe(panel, "jkx5", tmp_path / "s", chunk=64, progress=False)
        images = pp.PanelImages(panel, "jkx5")
        name, time = images.index["instrument"][40], images.index["time"][40]
        np.testing.assert_array_equal(images.image(name, time), store.read([40])[0])
        assert images.locate(name, time) == store.locate(name, time) == 40
        for h in store.horizons:
            np.testing.assert_array_equal(images.returns(h), store.returns(h))
            np.testing.assert_array_equal(images.exit_time(h), store.exit_time(h))
        np.testing.assert_array_equal(images.to_dask()[10:20].compute(), store.read(slice(10, 20)))
        with pytest.raises(TypeError, match="batches has no argument 'batchsize'; did you mean 'batch_size'"):
            images.batches(batchsize=5)
        assert images.to_xarray().load().equals(store.to_xarray().load())
        np.testing.assert_array_equal(images.read_chunk(0, np.array([3, 1])), store.read([3, 1]))
        assert "PanelImages(of 8 instruments" in repr(images)

    def test_xarray_writes_what_it_was_given(self, panel: pp.Panel, tmp_path: Path) -> None:
        """To Zarr without a warning, to netCDF at all: their attributes are text and numbers."""
        import xarray as xr

        store = pp.render_universe(panel, "jkx5", tmp_path / "s", progress=False)
        for k, images in enumerate([pp.PanelImages(panel, "jkx5"), store, store.load()]):
            given = images.to_xarray()
            assert json.loads(given.attrs["spec"]) == images.spec.to_dict()
            assert json.loads(given.attrs["schedule"]) == images.attrs["schedule"]
            assert set(given.attrs) == {name for name, value in images.attrs.items() if value is not None}
            given.to_zarr(tmp_path / f"{k}.zarr", consolidated=False)
            with xr.open_zarr(tmp_path / f"{k}.zarr", consolidated=False) as found:
                assert found.equals(given)
                assert found.attrs == given.attrs
            if importlib.util.find_spec("h5netcdf"):
                given.to_netcdf(tmp_path / f"{k}.nc", engine="h5netcdf")
                with xr.open_dataset(tmp_path / f"{k}.nc", engine="h5netcdf") as found:
                    assert found.equals(given)
                    assert found.attrs == given.attrs
            pytest.importorskip("scipy")
            # The format before netCDF4 has no unsigned bytes.
            index = given.drop_vars("images")
            index.to_netcdf(tmp_path / f"{k}.old.nc", engine="scipy")
            with xr.open_dataset(tmp_path / f"{k}.old.nc", engine="scipy") as found:
                assert found.equals(index)
                assert found.attrs == index.attrs

    def test_digests_tell_what_decides(self, panel: pp.Panel) -> None:
        same = [pp.PanelImages(panel, "jkx5"), pp.PanelImages(_market(), "jkx5")]
        assert same[0].digest == same[1].digest
        mask = np.arange(len(panel)) % 2 == 0
        other = [
            pp.PanelImages(panel, "jkx5", **choice)
            for choice in ({"every": 2}, {"mask": mask}, {"mask": ~mask}, {"delay": 1}, {"horizons": (5,)})
        ]
        other += [pp.PanelImages(panel, "jkx20"), pp.PanelImages(_market(seed=4), "jkx5")]
        assert len({images.digest for images in [same[0], *other]}) == 1 + len(other)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"horizons": (0,)}, "horizon=0: give a whole number of bars from"),
            ({"horizons": (5, 5)}, "names a horizon twice"),
            ({"delay": -1}, "delay=-1"),
            (
                {"every": "year"},
                "every='year' is not known: choose one of 'bar', 'day', 'week', 'month', 'quarter'",
            ),
            ({"price": "open"}, "price='open' is not known"),
            ({"sample": 2.0}, "sample=2.0: give a number above 0 and at most 1"),
            ({"threads": 0}, "threads=0"),
            ({"start": "2010-01-01"}, "no bar lies between"),
            ({"mask": np.ones(3, bool)}, "mask is bool"),
            ({"max_gap": "soon"}, "'soon' is not a duration"),
        ],
    )
    def test_errors_are_those_of_a_build(
        self, panel: pp.Panel, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as built:
            pp.render_universe(panel, "jkx5", progress=False, **options)
        with pytest.raises(ValueError, match=message) as drawn:
            pp.PanelImages(panel, "jkx5", **options)
        assert str(drawn.value) == str(built.value)

    def test_no_window(self, panel: pp.Panel) -> None:
        with pytest.raises(ValueError, match=r"none of the .* candidate windows can be drawn"):
            pp.PanelImages(panel, "jkx5", mask=np.zeros(len(panel), bool))

    def test_what_is_handed_out_cannot_change_the_labels(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        for array in (images.returns(5), images.exit_time(5), images.time, images.instrument_index):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0

    def test_unknown_columns_and_chunks(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        for name in ("foo", "return_5", "ret_five"):
            with pytest.raises(KeyError, match=f"no column '{name}': choose time"):
                images.column(name)
        for chunk in (-1, 99):
            with pytest.raises(IndexError, match=f"no chunk {chunk} of panel images"):
                images.read_chunk(chunk)

    def test_unknown_horizon(self, panel: pp.Panel) -> None:
        with pytest.raises(ValueError, match=r"panel images of 8 instruments has no forward returns over 7"):
            pp.PanelImages(panel, "jkx5").returns(7)


@pytest.fixture(scope="module")
def store(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> pp.ImageStore:
    path = tmp_path_factory.mktemp("stores") / "s"
    return pp.render_universe(panel, "jkx5", path, layout="bits", chunk=64, progress=False)


@pytest.fixture(scope="module", params=["panel", "packed", "pixels"])
def images(request: Any, panel: pp.Panel, store: pp.ImageStore) -> ImageSet:
    if request.param == "panel":
        return pp.PanelImages(panel, "jkx5")
    return store.load(packed=request.param == "packed")


class TestLoaded:
    @pytest.mark.parametrize("layout", ["uint8", "bits", "memory uint8", "memory bits"])
    @pytest.mark.parametrize("spec", ["jkx5", "jkx20", "merged"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_same_as_its_store(
        self, panel: pp.Panel, tmp_path: Path, spec: str, layout: str, packed: bool
    ) -> None:
        where = None if "memory" in layout else tmp_path / "s"
        store = pp.render_universe(
            panel, SPECS[spec], where, layout=layout.removeprefix("memory "), chunk=64, progress=False
        )
        loaded = store.load(packed=packed)
        _same(loaded, store)
        assert loaded.digest == store.digest
        height, width = store.spec.shape
        each = (height * width + 7) // 8 if packed else height * width
        assert loaded.nbytes == len(store) * each
        rng = np.random.default_rng(0)
        chosen = rng.integers(0, len(store), 300)
        np.testing.assert_array_equal(loaded.read(chosen), store.read(chosen))

    @pytest.mark.parametrize("packed", [True, False])
    def test_a_damaged_chunk_is_named(self, panel: pp.Panel, tmp_path: Path, packed: bool) -> None:
        store = pp.render_universe(panel, "jkx5", tmp_path / "s", chunk=64, progress=False)
        path = tmp_path / "s" / "images" / "c" / "1" / "0" / "0"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"chunk images/c/1/0/0 of store .* is damaged"):
            pp.open_store(store.location).load(packed=packed)


class TestReader:
    @given(data=st.data())
    def test_every_chosen_image_once_whoever_reads(self, images: ImageSet, data: Any) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
        chosen = np.sort(rng.choice(len(images), data.draw(st.integers(40, len(images))), replace=False))
        ranks, workers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
        size, epoch = data.draw(st.integers(2, 70)), data.draw(st.integers(0, 3))
        shuffle = data.draw(st.booleans())
        got, lengths = [], set()
        for rank in range(ranks):
            for worker in range(workers):
                reader = images.batches(
                    mask=chosen, batch_size=size, rank=rank, ranks=ranks, worker=worker, workers=workers,
                    shuffle=shuffle, prefetch=0,
                )  # fmt: skip
                batches = [batch.index for batch in reader.epoch(epoch)]
                lengths.add(len(batches))
                assert len(batches) == len(reader)
                assert reader.images_per_epoch == sum(map(len, batches))
                got += batches
        np.testing.assert_array_equal(np.sort(np.concatenate(got)), chosen)
        assert len(lengths) == 1

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("prefetch", [0, 2])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_batches_are_those_of_the_store(
        self, images: ImageSet, store: pp.ImageStore, threads: int, prefetch: int, shuffle: bool
    ) -> None:
        """Order too: training on either gives the same weights."""
        options: dict[str, Any] = {"batch_size": 50, "seed": 4, "rank": 1, "ranks": 2, "shuffle": shuffle}
        theirs = store.batches(**options)
        assert isinstance(theirs, BatchReader)
        ours = images.batches(**options, threads=threads, prefetch=prefetch, pool_bytes=1000)
        assert isinstance(ours, DirectReader)
        for start in (0, 3):
            pairs = zip(ours.epoch(2, start), theirs.epoch(2, start), strict=True)
            kept = [(one, other.images.copy(), other.index) for one, other in pairs]
            for one, pixels, index in kept:
                np.testing.assert_array_equal(one.index, index)
                np.testing.assert_array_equal(one.images, pixels)

    def test_drop_last_and_start(self, images: ImageSet) -> None:
        reader = images.batches(mask=np.arange(100), batch_size=32, drop_last=True, prefetch=0)
        assert [len(batch.index) for batch in reader] == [32, 32, 32]
        assert [len(batch.index) for batch in reader.epoch(0, 2)] == [32]
        with pytest.raises(ValueError, match="the epoch has 3 batches"):
            reader.epoch(0, 4)

    def test_epochs_and_seeds_differ(self, images: ImageSet) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            reader = images.batches(seed=seed, batch_size=64)
            return np.concatenate([batch.index for batch in reader.epoch(epoch)]).tolist()

        assert order(1, 2) == order(1, 2)
        assert len({tuple(order(*key)) for key in ((1, 2), (1, 3), (2, 2))}) == 3

    def test_an_error_reaches_whoever_asks(self, panel: pp.Panel) -> None:
        """Bars that change under the windows are an error and no image."""
        bars = panel.bars.copy()
        mine = pp.Panel(bars, panel.offsets, panel.instruments, panel.time)
        images = pp.PanelImages(mine, "jkx5")
        bars.flags.writeable = True
        bars[:] = np.nan
        for options in ({"prefetch": 0}, {"prefetch": 2}, {"threads": 3}):
            with pytest.raises(ValueError, match="can no longer be drawn"):
                list(images.batches(**options))


def _in_child(images: ImageSet, worker: int, expected: Any, answer: Any) -> None:
    got = [
        (batch.index, int(np.count_nonzero(batch.images)))
        for batch in images.batches(batch_size=40, worker=worker, workers=2)
    ]
    reached = np.array_equal(images.returns(5), expected, equal_nan=True)
    answer.put(([index.tolist() for index, _ in got], sum(lit for _, lit in got), bool(reached)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
# From 3.12 on Python warns of a fork while threads run; zarr keeps one.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_two_workers_share_an_epoch(images: ImageSet, method: str) -> None:
    context = mp.get_context(method)
    answer = context.Queue()
    workers = [
        context.Process(target=_in_child, args=(images, worker, images.returns(5), answer))
        for worker in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [answer.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    seen = np.concatenate([np.concatenate(indices) for indices, _, _ in found])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(images)))
    assert sum(lit for _, lit, _ in found) == np.count_nonzero(images.read())
    assert all(same for _, _, same in found)


def test_workers_that_stay_hear_of_the_next_epoch(panel: pp.Panel) -> None:
    torch = pytest.importorskip("torch")
    from pricepix.train import StoreDataset

    images = pp.PanelImages(panel, "jkx5", horizons=())
    dataset = StoreDataset(images, batch_size=64)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="spawn"
    )
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append(torch.cat([index for _, index in loader]).tolist())
    assert orders[0] != orders[1]
    for epoch, order in enumerate(orders):
        batches = images.batches(batch_size=64).epoch(epoch)
        assert order == np.concatenate([batch.index for batch in batches]).tolist()


def test_options_of_drawn_images_are_refused_by_a_store(store: pp.ImageStore) -> None:
    for option in ({"augment": pp.Augment(invert=0.5)}, {"device": "cuda"}):
        with pytest.raises(ValueError, match=r"is for images that are drawn .*: take PanelImages"):
            store.batches(**option)
    with pytest.raises(ValueError, match=r"batch_size=2\.5: give a whole number"):
        store.batches(batch_size=2.5)
    with pytest.raises(ValueError, match="not as many batches for each of 2 ranks"):
        store.batches(mask=np.arange(5), batch_size=1, ranks=2)


class TestAveragesKept:
    """Random batches of specs with an average draw from a copy of the panel that has it beside the bars."""

    def drawn(self, images: pp.PanelImages) -> Any:
        return np.concatenate([batch.images for batch in images.batches(batch_size=64, prefetch=0)])

    def test_not_of_a_panel_too_large_to_keep_twice(
        self, panel: pp.Panel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = pp.PanelImages(panel, "jkx20")
        expected = self.drawn(images)
        assert images._batch_renderer.table is not None
        assert images._batch_renderer.table.nbytes == 48 * len(panel)
        for most, kept in ((48 * len(panel), True), (48 * len(panel) - 1, False)):
            monkeypatch.setattr(drawing, "TABLE_BYTES", most)
            other = pp.PanelImages(panel, "jkx20")
            assert (other._batch_renderer.table is not None) == kept
            np.testing.assert_array_equal(self.drawn(other), expected)

    def test_not_for_a_few_windows_nor_without_an_average(self, panel: pp.Panel) -> None:
        week = pp.PanelImages(panel, "jkx5", every="week")
        assert week._batch_renderer.table is not None
        for batch in week.batches(batch_size=16):
            np.testing.assert_array_equal(batch.images, week.read(batch.index))
        for few in (pp.PanelImages(panel, "jkx20", sample=0.1), pp.PanelImages(panel, pp.ImageSpec(20, 64))):
            drawn = self.drawn(few)
            assert few._batch_renderer.table is None
            assert len(drawn) == len(few)


class TestPickles:
    def test_they_are_small_and_map_one_file(self, images: ImageSet) -> None:
        whole = images.read()
        dumped = pickle.dumps(images)
        assert len(dumped) < 8000 < whole.nbytes / 8
        again = pickle.loads(dumped)
        _same(again, images)
        assert again.digest == images.digest
        # A pickle of what was unpickled names the same file.
        before = set(_files(os.getpid()))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).read(), whole)
        assert set(_files(os.getpid())) == before

    def test_readers_are_small_too(self, images: ImageSet) -> None:
        reader = images.batches(batch_size=64, seed=3)
        dumped = pickle.dumps(reader)
        assert len(dumped) < 4000 < 8 * len(images)
        for one, other in zip(pickle.loads(dumped), reader, strict=True):
            np.testing.assert_array_equal(one.index, other.index)
            np.testing.assert_array_equal(one.images, other.images)

    @pytest.mark.parametrize("preset", ["jkx20", "cnnft20"])
    def test_readers_share_the_averages(self, panel: pp.Panel, preset: str) -> None:
        images = pp.PanelImages(panel, preset)
        # Not even what was pickled before its first batch makes one of its own.
        elsewhere = pickle.loads(pickle.dumps(images))
        assert elsewhere._shared_table is not None
        assert images._batch_renderer.table is not None
        reader = images.batches(batch_size=64, seed=3)
        again = pickle.loads(pickle.dumps(reader))
        table = again.images._batch_renderer.table
        assert not table.flags.owndata
        assert not table.flags.writeable
        np.testing.assert_array_equal(table, images._batch_renderer.table)
        files = _files(os.getpid())
        assert pickle.loads(pickle.dumps(again)).images._shared_table.path == images._shared_table.path
        assert _files(os.getpid()) == files
        for batch in again:
            np.testing.assert_array_equal(batch.images, images.read(batch.index))

    def test_images_of_a_panel_share_it_once(self, panel: pp.Panel) -> None:
        one, other = pp.PanelImages(panel, "jkx5"), pp.PanelImages(panel, "jkx20")
        before = set(_files(os.getpid()))
        first = pickle.dumps(one)
        between = set(_files(os.getpid()))
        second = pickle.dumps(other)
        # The first may have to write the panel, the second writes its windows, and bars with its average, alone.
        assert len(between - before) <= 3
        assert len(set(_files(os.getpid())) - between) == 2
        _same(pickle.loads(first), one)
        _same(pickle.loads(second), other)

    def test_what_is_mapped_cannot_be_written(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5")
        again = pickle.loads(pickle.dumps(images))
        with pytest.raises(ValueError, match="read-only"):
            again.panel.bars[0, 0] = 1.0

    def test_the_file_goes_with_the_object(self) -> None:
        shared = SharedArrays({"x": np.arange(5), "empty": np.empty((0, 3)), "names": np.array(["a", "bc"])})
        dumped = pickle.dumps(shared)
        path = Path(str(shared.path))
        assert path.exists()
        again = pickle.loads(dumped)
        assert list(again["names"]) == ["a", "bc"]
        assert again["empty"].shape == (0, 3)
        del shared
        gc.collect()
        assert not path.exists()
        # Who has it mapped keeps it.
        assert again["x"].tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(FileNotFoundError, match="the process that pickled them has ended"):
            pickle.loads(dumped)

    @pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
    def test_nothing_is_left_of_a_process(self, tmp_path: Path, end: str) -> None:
        code = f"""
            import os, pickle
            import numpy as np
            from pricepix.images.shared_arrays import SharedArrays
            shared = SharedArrays({{"x": np.arange(5)}})
            pickle.dumps(shared)
            assert os.path.exists(shared.path)
            {end}
        """
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

        def run(code: str) -> None:
            subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False)

        run(code)
        if "kill" in end:
            # The next that shares clears up.
            assert len(list(tmp_path.iterdir())) == 1
            run(code.replace(end, "pass"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform == "win32", reason="no limits on Windows")
    def test_nothing_is_left_on_a_full_disk(self, tmp_path: Path) -> None:
        code = """
            import pickle, resource, signal
            import numpy as np
            from pricepix.images.shared_arrays import SharedArrays
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            try:
                pickle.dumps(SharedArrays({"x": np.zeros((1 << 20) + 100, np.uint8)}))
            except OSError:
                print("refused")
        """
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, capture_output=True
        )
        assert done.stdout.split() == [b"refused"]
        assert not list(tmp_path.iterdir())

    def test_files_of_the_living_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        one, other = SharedArrays({"x": np.arange(3)}), SharedArrays({"x": np.arange(4)})
        dumped = pickle.dumps(one)
        pickle.dumps(other)
        assert len(list(tmp_path.iterdir())) == 2
        assert pickle.loads(dumped)["x"].tolist() == [0, 1, 2]


def _files(pid: int) -> list[str]:
    """Files of shared arrays that a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    links = [os.readlink(link) for link in folder.iterdir() if link.is_symlink() and os.path.lexists(link)]
    return [link for link in links if "pricepix-shared-" in link]
