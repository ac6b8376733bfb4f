"""Builds in partitions: the bytes depend on nothing but panel, spec and layout; resumption, shards, locks."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until
from zarr.storage import MemoryStore

import pricepix as pp
from pricepix.build import plan
from pricepix.build.chunk_writer import ChunkWriter
from pricepix.build.plan import Plan
from pricepix.location import Location
from pricepix.store.chunks import numcodecs_allowed, parse_size
from pricepix.store.lock import LEASE_SECONDS, WriteLock


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(12, 120, seed=5), adjust="multiply", progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class StopBuildError(Exception):
    """Ends a build in its midst."""


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    original = ChunkWriter.write_images
    begun = []

    def images(self: ChunkWriter, first: int, last: int) -> Any:
        begun.append(first)
        if len(begun) > calls:
            raise StopBuildError
        return original(self, first, last)

    monkeypatch.setattr(ChunkWriter, "write_images", images)


@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.parametrize("layout", ["bits", "uint8"])
def test_bytes_do_not_depend_on_how_the_work_is_cut(
    panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory, layout: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    options: dict[str, Any] = {"horizons": (1, 5), "layout": layout, "chunk": 64, "progress": False}
    options["shard"] = data.draw(st.sampled_from([None, 64, 200]))
    pp.render_universe(panel, "jkx5", folder / "one", workers=0, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PARTITION_BYTES", data.draw(st.integers(1, 1 << 17)))
        workers = data.draw(st.integers(0, 3))
        stops = data.draw(st.lists(st.integers(0, 6), max_size=2))
        for calls in stops:
            with pytest.MonkeyPatch.context() as inner:
                stop_after(inner, calls)
                try:
                    pp.render_universe(
                        panel, "jkx5", folder / "two", workers=workers, mode="resume", **options
                    )
                except StopBuildError as error:
                    assert "mode='resume'" in error.__notes__[0]  # noqa: PT017 - it may also come to its end
        pp.render_universe(panel, "jkx5", folder / "two", workers=workers, mode="resume", **options)
    assert tree(folder / "two") == tree(folder / "one")


def test_resume_refuses_what_would_give_other_bytes(
    panel: pp.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 64, "progress": False}
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StopBuildError):
            pp.render_universe(panel, "jkx5", tmp_path / "s", **options)
    assert Plan.read(Location.of(tmp_path / "s")).panel_digest == panel.digest  # type: ignore[union-attr]
    other = panel.select(panel.instruments[:5].tolist())
    with pytest.raises(ValueError, match=f"panel_digest is {other.digest}, the store's {panel.digest}"):
        pp.render_universe(other, "jkx5", tmp_path / "s", mode="resume", **options)
    mine, theirs = (pp.ImageSpec.preset(name).digest for name in ("jkx20", "jkx5"))
    with pytest.raises(ValueError, match=f"spec_digest is {mine}, the store's {theirs}"):
        pp.render_universe(panel, "jkx20", tmp_path / "s", mode="resume", **options)
    for change, named in (
        ({"layout": "uint8"}, "layout is uint8, the store's bits"),
        ({"chunk": 32}, "chunk is 32, the store's 64"),
        ({"horizons": 1}, r"horizons is \(1,\), the store's \(1, 5\)"),
        ({"every": "week"}, "windows_digest is"),
        ({"delay": 2}, "delay is 2, the store's 0"),
        ({"price": "close"}, "label_price is close, the store's total_return"),
        ({"shard": 128}, "shard is 128, the store's 0"),
    ):
        with pytest.raises(ValueError, match=named):
            pp.render_universe(panel, "jkx5", tmp_path / "s", mode="resume", **{**options, **change})
    store = pp.render_universe(panel, "jkx5", tmp_path / "s", mode="resume", **options)
    # Finished: the same call gives it back untouched, another is refused.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    again = pp.render_universe(panel, "jkx5", tmp_path / "s", mode="resume", **options)
    assert again.digest == store.digest
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(
        ValueError, match="is finished, and was not made from this: layout is uint8 here, bits"
    ):
        pp.render_universe(panel, "jkx5", tmp_path / "s", mode="resume", **{**options, "layout": "uint8"})


def test_a_plan_of_another_release(panel: pp.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StopBuildError):
            pp.render_universe(panel, "jkx5", tmp_path / "s", chunk=64, progress=False)
    path = tmp_path / "s/_build/plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": 1}))
    with pytest.raises(ValueError, match="is damaged or from a different release"):
        pp.render_universe(panel, "jkx5", tmp_path / "s", chunk=64, mode="resume", progress=False)


def test_an_error_in_a_worker_stops_the_build_and_keeps_what_is_done(
    panel: pp.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"horizons": (1,), "layout": "bits", "chunk": 64, "progress": False}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(StopBuildError):
            pp.render_universe(panel, "jkx5", tmp_path / "s", workers=1, **options)
    done = len(list((tmp_path / "s/_build/done").glob("images-*")))
    assert done == 3
    assert not (tmp_path / "s/_build/lock").exists()
    with pytest.raises(FileExistsError, match="unfinished build"):
        pp.render_universe(panel, "jkx5", tmp_path / "s", **options)
    assert pp.render_universe(panel, "jkx5", tmp_path / "s", mode="overwrite", **options).verify(panel).ok


@pytest.mark.parametrize("layout", ["bits", "uint8"])
def test_shards_are_what_zarr_reads(panel: pp.Panel, tmp_path: Path, layout: str) -> None:
    plain = pp.render_universe(panel, "jkx5", tmp_path / "p", layout=layout, chunk=64, progress=False)
    store = pp.render_universe(
        panel, "jkx5", tmp_path / "s", layout=layout, chunk=64, shard=200, progress=False
    )
    assert store.images.shards == (256, 32, 15)
    assert store.images.chunks == (64, 32, 15)
    assert store.shards == len(list((tmp_path / "s/images/c").iterdir())) == -(-len(store) // 256)
    assert np.array_equal(store.read(), plain.read())
    assert np.array_equal(store.images[:].astype(bool), plain.read() > 0)
    with numcodecs_allowed():
        unconsolidated = zarr.open_group(tmp_path / "s", mode="r", use_consolidated=False)["images"]
    assert np.array_equal(unconsolidated[:100].astype(bool), plain.read(slice(100)) > 0)  # type: ignore[index]
    for shard in range(store.shards):
        chunks = store.read_shard(shard)
        images = [
            store.chunk_format.decode(stored, store.chunk_windows(shard * 4 + i))
            for i, stored in enumerate(chunks)
        ]
        assert np.array_equal(np.concatenate(images), plain.read(slice(shard * 256, (shard + 1) * 256)))
    with pytest.raises(IndexError, match="lies outside the store's"):
        store.read_shard(store.shards)
    with pytest.raises(ValueError, match="has no shards"):
        plain.read_shard(0)


def test_shards_by_size(panel: pp.Panel, tmp_path: Path) -> None:
    store = pp.render_universe(
        panel, "jkx5", tmp_path / "s", layout="bits", chunk=16, shard="5kB", progress=False
    )
    sizes = [path.stat().st_size for path in (tmp_path / "s/images/c").rglob("0/0") if path.is_file()]
    assert 4000 < np.median(sizes) < 6500
    assert store.attrs["shard"] % 16 == 0
    assert [parse_size(text) for text in ("256MB", "1 GiB", "10k")] == [256_000_000, 1 << 30, 10_000]
    for bad in ("big", "0MB", 3, True):
        with pytest.raises(ValueError, match=r"is not the size of a shard|is not a size"):
            pp.render_universe(panel, "jkx5", tmp_path / "b", chunk=16, shard=bad, progress=False)
    assert not (tmp_path / "b").exists()


def test_rows_and_digests_are_kept_for_appends(panel: pp.Panel, tmp_path: Path) -> None:
    store = pp.render_universe(panel, "jkx5", tmp_path / "s", layout="bits", progress=False)
    assert np.array_equal(store.objects.instrument_rows, np.diff(panel.offsets))
    assert np.array_equal(store.objects.instrument_digest, panel.instrument_digests)


class TestOtherPlaces:
    def test_memory_and_file_urls(self, panel: pp.Panel, tmp_path: Path) -> None:
        options: dict[str, Any] = {"horizons": (1,), "layout": "bits", "chunk": 64, "progress": False}
        disk = pp.render_universe(panel, "jkx5", f"file://{tmp_path}/s", **options)
        url = f"memory://{tmp_path.name}"
        memory = pp.render_universe(panel, "jkx5", url, **options)
        assert np.array_equal(pp.open_store(url).read(), disk.read())
        where = memory.objects.location
        assert {key: bytes(where.get(key) or b"") for key in where.list()} == tree(tmp_path / "s")
        assert memory.verify(panel).ok
        with pytest.raises(FileExistsError, match="exists already"):
            pp.render_universe(panel, "jkx5", url, **options)
        with pytest.raises(FileNotFoundError, match="no store at memory://none"):
            pp.open_store("memory://none")

    def test_a_zarr_store_object(self, panel: pp.Panel) -> None:
        objects = MemoryStore()
        store = pp.render_universe(panel, "jkx5", objects, layout="bits", chunk=64, progress=False)
        assert pp.open_store(objects).verify(panel).ok
        half = panel.select(end=panel.stamp(int(panel.calendar[80])))
        objects = MemoryStore()
        pp.render_universe(half, "jkx5", objects, layout="bits", chunk=64, progress=False)
        assert np.array_equal(pp.append(objects, panel, progress=False).read(), store.read())

    def test_options_are_for_urls(self, panel: pp.Panel, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="storage_options are for URLs"):
            pp.render_universe(panel, "jkx5", tmp_path / "s", storage_options={"region": "x"}, progress=False)
        with pytest.raises(ValueError, match="is for stores that are written"):
            pp.render_universe(panel, "jkx5", None, shard=128, progress=False)
        with pytest.raises(TypeError, match="is not a location"):
            pp.open_store(7)  # type: ignore[arg-type]


class TestLease:
    """The lock of places that are no folder."""

    def test_one_at_a_time_and_a_dead_one_gives_way(self) -> None:
        where = Location.of(MemoryStore())
        busy = pytest.raises(BlockingIOError, match=f"process {os.getpid()} on {socket.gethostname()}")
        with WriteLock(where), busy:
            WriteLock(where).__enter__()
        assert where.is_empty()
        ticket = {"pid": 2**22 - 1, "host": socket.gethostname(), "since": "then", "token": "t"}
        where.put("_build/lock", json.dumps({**ticket, "expires": time.time() + 60}).encode())
        with WriteLock(where):
            pass
        elsewhere = {**ticket, "host": "elsewhere", "expires": time.time() + 60}
        where.put("_build/lock", json.dumps(elsewhere).encode())
        with pytest.raises(BlockingIOError, match="on elsewhere since then"):
            WriteLock(where).__enter__()
        where.put("_build/lock", json.dumps({**elsewhere, "expires": time.time() - 1}).encode())
        with WriteLock(where):
            pass

    def test_it_is_renewed_and_its_loss_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pricepix.store.lock.LEASE_SECONDS", 0.2)
        assert LEASE_SECONDS == 120.0
        where = Location.of(MemoryStore())

        def expires() -> float:
            return json.loads(bytes(where.get("_build/lock") or b""))["expires"]

        with WriteLock(where) as lock:
            first = expires()
            wait_until(lambda: expires() > first)
            lock.check()
            where.put("_build/lock", b"{}")
            wait_until(lambda: lock.lost)
            with pytest.raises(BlockingIOError, match="was lost"):
                lock.check()


def test_a_reader_while_a_store_grows(panel: pp.Panel, tmp_path: Path) -> None:
    """Readers open and read all the time: each sees a whole state, one that stays open keeps its own."""
    ends = [panel.stamp(int(panel.calendar[k])) for k in (60, 75, 90, 105, 119)]
    parts = [panel.select(end=end) for end in ends]
    expected = {
        part.digest: pp.render_universe(part, "jkx5", layout="bits", horizons=(1,), progress=False).read()
        for part in parts
    }
    target = tmp_path / "s"
    early = pp.render_universe(
        parts[0], "jkx5", target, layout="bits", horizons=(1,), chunk=64, progress=False
    )
    seen: list[str] = []
    faults: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                store = pp.open_store(target)
                digest = store.attrs["panel_digest"]
                assert np.array_equal(store.read(), expected[digest])
                assert np.array_equal(early.read(), expected[parts[0].digest])
                seen.append(digest)
        except BaseException as error:
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for part in parts[1:]:
            pp.append(target, part, progress=False)
            count = len(seen)
            wait_until(lambda: len(seen) >= count + 3 or bool(faults))  # noqa: B023
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not faults, faults
    assert len(set(seen)) >= 4


def test_memory_does_not_grow_with_the_partitions(panel: pp.Panel) -> None:
    """A partition is bounded in bytes, whatever the number of windows."""
    from pricepix.store.chunks import ChunkFormat

    for height, width in ((64, 60), (147, 147), (32, 15)):
        for layout in ("bits", "uint8"):
            from pricepix.images.chunking import default_chunk

            form = ChunkFormat(layout, height, width, default_chunk(height, width, layout))
            for n in (10**5, 10**7, 4 * 10**8):
                chunks = plan.partition_chunks(form, n, 2)
                assert chunks * form.windows * form.packed_bytes <= plan.PARTITION_BYTES


def test_frames_go_in_as_they_are(tmp_path: Path) -> None:
    frame = pp.samples.simulate(3, 60, seed=1)
    store = pp.render_universe(frame, "jkx5", tmp_path / "s", layout="bits", horizons=1, progress=False)
    assert store.verify(frame).ok
    more = pp.samples.simulate(3, 60, seed=1).with_columns(pl.col("volume") * 1.0)
    assert len(pp.append(store, more, progress=False)) == len(store)


def test_drawing_while_the_allocator_gives_memory_back(panel: pp.Panel) -> None:
    """What a kernel still works on is not freed: pages that are given back would read as zero."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        pytest.skip("needs glibc's malloc_trim")
    windows = pp.WindowIndex.from_panel(panel, "jkx20")
    expected = {bits: pp.render_panel(panel, windows, bits=bits, threads=1) for bits in (True, False)}
    over = threading.Event()
    wrong: list[str] = []

    def draw() -> None:
        while not over.is_set():
            for bits, images in expected.items():
                try:
                    if not np.array_equal(pp.render_panel(panel, windows, bits=bits, threads=1), images):
                        wrong.append("images")
                except ValueError as error:
                    wrong.append(str(error))

    workers = [threading.Thread(target=draw) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        # Whatever the drawing is doing: a thousand times, and meanwhile it has the cores.
        for _ in range(1000):
            trim(0)
            over.wait(0.001)
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert wrong == []
