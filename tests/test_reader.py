"""The bulk reader: every image once, in an order that depends on seed, epoch, rank and worker alone."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pricepix as pp
from pricepix.images.buffers import BatchBuffers
from pricepix.images.image_set import select
from pricepix.render.memory import HUGE_PAGE
from pricepix.store.image_store import ImageStore
from pricepix.store.pool_reader import BatchReader

MODES = {
    "in order": {"shuffle": False},
    "in memory": {"shuffle": True},
    "through a pool": {"shuffle": True, "pool_bytes": 7000},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageStore]:
    folder = tmp_path_factory.mktemp("stores")
    table = pp.samples.simulate(12, 90, seed=2, delist_rate=0, split_rate=0)
    built = {
        f"{preset}-{layout}": pp.render_universe(
            table,
            preset,
            folder / f"{preset}-{layout}",
            horizons=(5,),
            layout=layout,
            chunk=64,
            progress=False,
        )
        for preset in ("jkx5", "it9")
        for layout in ("uint8", "bits")
    }
    built["memory"] = pp.render_universe(table, "jkx5", None, horizons=(5,), chunk=64, progress=False)
    return built


def _indices(reader: BatchReader, epoch: int = 0, start: int = 0) -> list[np.ndarray]:
    return [batch.index.copy() for batch in reader.epoch(epoch, start)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["jkx5-uint8", "jkx5-bits", "it9-uint8", "it9-bits", "memory"])
def test_images_are_the_stores(stores: dict[str, ImageStore], name: str, mode: str) -> None:
    """27x27 pixels fill no whole bytes, so images of that size start inside a byte."""
    store = stores[name]
    pixels = store.read()
    seen = []
    for batch in BatchReader(store.objects, batch_size=50, **MODES[mode]):
        assert batch.images.dtype == np.uint8
        np.testing.assert_array_equal(batch.images, pixels[batch.index])
        seen.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(store)))


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_every_chosen_image_once_whoever_reads(stores: dict[str, ImageStore], mode: str, data: Any) -> None:
    store = stores["jkx5-bits"]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    chosen = np.sort(rng.choice(len(store), data.draw(st.integers(40, len(store))), replace=False))
    ranks, workers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    size, epoch = data.draw(st.integers(2, 70)), data.draw(st.integers(0, 3))
    got, lengths = [], set()
    for rank in range(ranks):
        for worker in range(workers):
            reader = BatchReader(
                store.objects, chosen, batch_size=size, rank=rank, ranks=ranks, worker=worker, workers=workers,
                prefetch=0, threads=1, **MODES[mode],
            )  # fmt: skip
            batches = _indices(reader, epoch)
            lengths.add(len(batches))
            assert len(batches) == len(reader)
            assert all(0 < len(batch) <= size for batch in batches)
            assert reader.images_per_epoch == sum(map(len, batches))
            got += batches
    np.testing.assert_array_equal(np.sort(np.concatenate(got)), chosen)
    assert len(lengths) == 1


@pytest.mark.parametrize("mode", MODES)
def test_order_depends_on_seed_and_epoch_alone(stores: dict[str, ImageStore], mode: str) -> None:
    store = stores["jkx5-bits"]
    first = np.concatenate(
        _indices(BatchReader(store.objects, batch_size=32, seed=3, threads=1, prefetch=0, **MODES[mode]), 2)
    )
    again = BatchReader(store.objects, batch_size=32, seed=3, threads=4, prefetch=5, **MODES[mode])
    np.testing.assert_array_equal(np.concatenate(_indices(again, 2)), first)
    other_layout = BatchReader(stores["jkx5-uint8"].objects, batch_size=32, seed=3, **MODES[mode])
    np.testing.assert_array_equal(np.concatenate(_indices(other_layout, 2)), first)
    if MODES[mode]["shuffle"]:
        assert not np.array_equal(np.concatenate(_indices(again, 1)), first)
        assert not np.array_equal(
            np.concatenate(_indices(BatchReader(store.objects, batch_size=32, seed=4, **MODES[mode]), 2)),
            first,
        )
    else:
        np.testing.assert_array_equal(first, np.arange(len(store)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", [0, 1, 7, 16])
def test_an_epoch_goes_on_from_any_batch(stores: dict[str, ImageStore], mode: str, start: int) -> None:
    store = stores["jkx5-bits"]
    pixels = store.read()
    reader = BatchReader(store.objects, batch_size=30, rank=1, ranks=2, seed=1, **MODES[mode])
    whole = _indices(reader, 4)
    late = list(
        BatchReader(store.objects, batch_size=30, rank=1, ranks=2, seed=1, prefetch=0, **MODES[mode]).epoch(
            4, start
        )
    )
    assert len(late) == max(len(whole) - start, 0)
    for batch, index in zip(late, whole[start:], strict=True):
        np.testing.assert_array_equal(batch.index, index)
        np.testing.assert_array_equal(batch.images, pixels[index])


def test_short_batches(stores: dict[str, ImageStore]) -> None:
    store = stores["jkx5-bits"]
    sizes = [len(b) for b in _indices(BatchReader(store.objects, np.arange(100), batch_size=32))]
    assert sizes == [32, 32, 32, 4]
    assert [
        len(b) for b in _indices(BatchReader(store.objects, np.arange(100), batch_size=32, drop_last=True))
    ] == [
        32,
        32,
        32,
    ]
    # 65 images for two: the one with 32 gives two batches as well, so that ranks stay in step.
    by_rank = [
        [len(b) for b in _indices(BatchReader(store.objects, np.arange(65), batch_size=32, rank=r, ranks=2))]
        for r in (0, 1)
    ]
    assert by_rank == [[31, 1], [32, 1]]


def test_other_chunks_are_not_read(tmp_path: Path, stores: dict[str, ImageStore]) -> None:
    store = pp.render_universe(
        pp.samples.simulate(12, 90, seed=2), "jkx5", tmp_path / "s", horizons=(5,), chunk=64, progress=False
    )
    for chunk in range(store.images.cdata_shape[0]):
        if chunk != 3:
            (tmp_path / "s" / "images" / "c" / str(chunk) / "0" / "0").unlink()
    chosen = np.arange(200, 240)
    for mode in MODES.values():
        np.testing.assert_array_equal(
            np.sort(np.concatenate(_indices(BatchReader(store.objects, chosen, **mode)))), chosen
        )
        with pytest.raises(
            ValueError, match=r"chunk images/c/0/0/0 of store .* is missing: restore or rebuild"
        ):
            _indices(BatchReader(store.objects, **(mode | {"shuffle": False})))


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    store = pp.render_universe(
        pp.samples.simulate(12, 90, seed=2), "jkx5", tmp_path / "s", horizons=(5,), chunk=64, progress=False
    )
    path = tmp_path / "s" / "images" / "c" / "1" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for prefetch in (0, 2):
        with pytest.raises(ValueError, match=r"chunk images/c/1/0/0 of store .* is damaged"):
            _indices(BatchReader(store.objects, prefetch=prefetch))


def test_select(stores: dict[str, ImageStore]) -> None:
    store = stores["jkx5-bits"]
    day = store.time.view("datetime64[ns]").astype("datetime64[D]")
    names = store.instruments[store.instrument_index]
    chosen = select(
        store,
        time=("2000-02", "2000-03-15"),
        instruments=["S0003", "S0001"],
        mask=np.arange(len(store)) % 2 == 0,
    )
    expected = (
        (day >= np.datetime64("2000-02-01")) & (day <= np.datetime64("2000-03-15"))
        & np.isin(names, ["S0001", "S0003"]) & (np.arange(len(store)) % 2 == 0)
    )  # fmt: skip
    assert 0 < len(chosen) < len(store)
    np.testing.assert_array_equal(chosen, np.flatnonzero(expected))
    assert len(select(store)) == len(store)
    assert len(select(store, time=("2000-03", None))) == np.count_nonzero(day >= np.datetime64("2000-03-01"))


def _in_child(reader: BatchReader, expected: np.ndarray, answer: Any) -> None:
    answer.put(bool(np.array_equal(np.concatenate([b.index for b in reader]), expected)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("mode", MODES)
# From 3.12 on Python warns of a fork while threads run; zarr keeps one.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_other_processes_read_the_same(stores: dict[str, ImageStore], method: str, mode: str) -> None:
    if sys.platform == "win32":
        pytest.skip("no fork on Windows")
    reader = BatchReader(stores["jkx5-bits"].objects, batch_size=40, **MODES[mode])
    expected = np.concatenate([b.index for b in reader])
    context = mp.get_context(method)
    answer = context.Queue()
    child = context.Process(target=_in_child, args=(reader, expected, answer))
    child.start()
    assert answer.get(timeout=120)
    child.join()
    assert child.exitcode == 0


def test_a_reader_survives_pickling_without_its_pool(stores: dict[str, ImageStore]) -> None:
    reader = BatchReader(stores["jkx5-bits"].objects)
    expected = np.concatenate(_indices(reader))
    dumped = pickle.dumps(reader)
    assert len(dumped) < stores["jkx5-bits"].read().nbytes / 8
    np.testing.assert_array_equal(np.concatenate(_indices(pickle.loads(dumped))), expected)


def test_any_zarr_store(stores: dict[str, ImageStore]) -> None:
    """A store that is no folder is read through zarr's own store object."""
    assert not isinstance(stores["memory"].images.store, zarr.storage.LocalStore)
    a = BatchReader(stores["memory"].objects, batch_size=64, seed=1)
    b = BatchReader(stores["jkx5-bits"].objects, batch_size=64, seed=1)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_that_are_kept_are_not_overwritten(stores: dict[str, ImageStore], prefetch: int) -> None:
    store = stores["jkx5-uint8"]
    pixels = store.read()
    kept = [
        (batch.images[2:], batch.index[2:])
        for batch in BatchReader(store.objects, batch_size=16, prefetch=prefetch)
    ]
    for images, index in kept:
        np.testing.assert_array_equal(images, pixels[index])


KEPT = {
    "view": lambda images: images[2:],
    "view of a view": lambda images: images[2:][::2].transpose(0, 2, 1)[:, 1:],
    "base of a view": lambda images: images[2:].base,
    "reshaped": lambda images: images.reshape(-1).view(np.uint64),
    "strided": lambda images: np.lib.stride_tricks.as_strided(images, (3, 4), (16, 2)),
    "memoryview": lambda images: memoryview(images)[3:],
    "array of a memoryview": lambda images: np.asarray(memoryview(images)[3:]),
    "tensor": lambda images: pytest.importorskip("torch").from_numpy(images),
    "view of a tensor": lambda images: pytest.importorskip("torch").from_numpy(images)[1:].permute(0, 2, 1),
    "array of a tensor": lambda images: pytest.importorskip("torch").from_numpy(images[1:])[1].numpy(),
    "tensor by DLPack": lambda images: pytest.importorskip("torch").from_dlpack(images),
}


def pixels_of(kept: Any) -> np.ndarray:
    return kept.numpy() if hasattr(kept, "numpy") else np.asarray(kept)


class TestBuffers:
    """Whatever is made of a batch without a copy protects its memory; once it is gone the memory is used again."""

    @pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
    def test_what_is_kept_is_protected(self, keep: Callable[[np.ndarray], Any]) -> None:
        buffers = BatchBuffers((64, 60))
        images = buffers.take(16)
        address = images.ctypes.data
        images[:] = 7
        kept = keep(images)
        expected = pixels_of(kept).copy()
        del images
        others = [buffers.take(16) for _ in range(3)]
        for other in others:
            other[:] = 9
            assert not np.may_share_memory(other, pixels_of(kept))
        np.testing.assert_array_equal(pixels_of(kept), expected)
        del kept
        assert buffers.take(16).ctypes.data == address

    def test_memory_is_used_again(self) -> None:
        buffers = BatchBuffers((64, 60))
        addresses = set()
        for _ in range(50):
            images = buffers.take(256)
            addresses.add(images.ctypes.data)
            del images
        assert len(addresses) == 1

    def test_batches_differ_in_memory_and_may_differ_in_size(self) -> None:
        buffers = BatchBuffers((27, 27))
        batches = [buffers.take(size) for size in (5, 5, 3) * 5]
        assert [len(batch) for batch in batches] == [5, 5, 3] * 5
        for i, batch in enumerate(batches):
            batch[:] = i
        assert (
            [int(batch.min()) for batch in batches]
            == [int(batch.max()) for batch in batches]
            == list(range(15))
        )

    def test_large_batches_begin_where_huge_pages_do(self) -> None:
        assert BatchBuffers((64, 60)).take(256).ctypes.data % HUGE_PAGE == 0


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefetch", [0, 3])
def test_readers_overwrite_nothing_that_is_kept(
    stores: dict[str, ImageStore], mode: str, prefetch: int, keep: Callable[[np.ndarray], Any]
) -> None:
    reader = BatchReader(stores["jkx5-bits"].objects, batch_size=16, prefetch=prefetch, **MODES[mode])
    kept, expected = [], []
    for images, _ in reader:
        kept.append(keep(images))
        expected.append(pixels_of(kept[-1]).copy())
        del images
    for one, other in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(pixels_of(one), other)


def test_memory_does_not_grow_over_epochs(stores: dict[str, ImageStore]) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    reader = BatchReader(stores["jkx5-uint8"].objects, batch_size=64, pool_bytes=9000)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def run(epochs: int) -> int:
        for epoch in range(epochs):
            for _ in reader.epoch(epoch):
                pass
        return resident()

    before = run(20)
    # 60 epochs read 12 MB of pixels each as many times: a leak of a hundredth part would show.
    assert run(60) - before < 8 << 20


def test_stopping_early_leaves_no_threads(stores: dict[str, ImageStore]) -> None:
    import threading

    before = threading.active_count()
    for batch in BatchReader(stores["jkx5-uint8"].objects, batch_size=16):
        assert len(batch.index) == 16
        break
    batches = iter(BatchReader(stores["jkx5-uint8"].objects, batch_size=16, pool_bytes=9000))
    next(batches)
    batches.close()
    assert threading.active_count() <= before


def test_shuffle_quality_of_the_stated_pool() -> None:
    """Distance in the epoch of neighbours in the store, against the n / 3 of a full permutation."""
    from pricepix.store import kernels

    n = 60_000
    rng = np.random.default_rng(0)
    for share, least, most in ((0.10, 0.25, 0.31), (0.25, 0.57, 0.62), (0.52, 0.90, 0.93)):
        chunks = rng.permutation(n // 500)
        flow = (chunks[:, None] * 500 + np.arange(500)).ravel()
        capacity = int(share * n)
        pool = flow[:capacity].copy()
        empty, out = np.empty((n, 0), np.uint8), np.empty(n, np.int64)
        kernels.exchange(empty, pool, capacity, rng.random(n), empty, flow[capacity:], empty, out)
        place = np.empty(n, np.int64)
        place[out] = np.arange(n)
        neighbours = np.abs(np.diff(place))[np.arange(1, n) % 500 != 0]
        assert least < neighbours.mean() / (n / 3) < most


class TestBadInput:
    def test_arguments(self, stores: dict[str, ImageStore]) -> None:
        store = stores["jkx5-bits"]
        for options, message in (
            ({"batch_size": 0}, "batch_size=0"),
            ({"rank": 2, "ranks": 2}, "rank=2: give a whole number from 0 to 1"),
            ({"worker": -1}, "worker=-1"),
            ({"threads": 0}, "threads=0"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": None}, "seed=None: give a whole number of at least 0"),
            ({"seed": 1.5}, "seed=1.5"),
            ({"prefetch": None}, "prefetch=None: give a whole number of at least 0"),
            ({"threads": "all"}, "threads='all'"),
            ({"rank": "0"}, "rank='0'"),
            ({"workers": 0}, "workers=0: give a whole number of at least 1"),
            ({"selection": np.array([], int)}, "0 images are chosen for 1 ranks and workers"),
            ({"selection": np.array([1, 1])}, "names a window twice"),
            ({"selection": np.array([10**9])}, "positions run from"),
            ({"selection": np.ones(3, bool)}, r"the mask has shape \(3,\)"),
            ({"selection": np.array([0.5])}, "float64"),
        ):
            with pytest.raises(ValueError, match=message):
                BatchReader(store.objects, **options)
        with pytest.raises(ValueError, match="the epoch has"):
            BatchReader(store.objects).epoch(0, 10**6)

    def test_selection(self, stores: dict[str, ImageStore]) -> None:
        with pytest.raises(KeyError, match="no instrument 'ABC' in store"):
            select(stores["jkx5-bits"], instruments=["ABC"])
        with pytest.raises(ValueError, match="'soon' is not a time"):
            select(stores["jkx5-bits"], time=("soon", None))

    @pytest.mark.parametrize(
        ("time", "pair"),
        [
            ("2000-03", ("2000-03", "2000-03")),
            ("2000-02-16 00:00", ("2000-02-16 00:00", "2000-02-16 00:00")),
            ("2000-02:2000-03", ("2000-02", "2000-03")),
            ("2000-02-16 09:35 .. 2000-03", ("2000-02-16 09:35", "2000-03")),
            ("2000-03:", ("2000-03", None)),
            (slice("2000-02", None), ("2000-02", None)),
            (("2000-03",), ("2000-03", "2000-04-15")),
            (5, ("2000-03", "2000-04-15")),
        ],
        ids=str,
    )
    def test_a_period_is_a_pair(
        self, stores: dict[str, ImageStore], time: Any, pair: tuple[Any, Any]
    ) -> None:
        store = stores["jkx5-bits"]
        with pytest.raises(
            ValueError, match=re.escape(f"time is {time!r}; give") + ".*" + re.escape(f"time={pair!r}")
        ):
            store.batches(time=time)
        assert len(select(store, time=pair))

    def test_unknown_arguments(self, stores: dict[str, ImageStore]) -> None:
        store = stores["jkx5-bits"]
        for images in (store, store.load()):
            with pytest.raises(
                TypeError, match="batches has no argument 'batchsize'; did you mean 'batch_size'"
            ):
                images.batches(batchsize=5)
            with pytest.raises(
                TypeError, match="no argument 'colour'; choose from time, instruments, mask, batch_size"
            ):
                images.batches(colour=5)
            # Every argument that a message could advise is taken.
            assert len(
                images.batches(device="cpu", augment=None, pool_bytes=1 << 20, ranks=2, workers=1, prefetch=0)
            )
