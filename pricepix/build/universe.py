"""From a panel to an image store: plan, render in partitions, write, finish."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from pricepix._checks import bars, choice, whole_number_or_none
from pricepix._checks import horizons as checked_horizons
from pricepix.bars.panel import Panel
from pricepix.build.chunk_writer import Painter, run_here
from pricepix.build.finish import finish
from pricepix.build.plan import Plan, Task, partition_chunks
from pricepix.build.target import MODES, _check_location, _state
from pricepix.images.chunking import default_chunk
from pricepix.images.drawing import render_panel
from pricepix.images.lineage import lineage
from pricepix.location import Location, StoreLike, ZarrObjects
from pricepix.render.memory import memory_for
from pricepix.spec import ImageSpec
from pricepix.store.chunks import LAYOUTS, MAX_CHUNK_BYTES, ChunkFormat, parse_size
from pricepix.store.commit import finish_pending
from pricepix.store.format import ROOT, Geometry, chunk_key, encode_strings
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import KEY as LOCK
from pricepix.store.lock import WriteLock
from pricepix.store.objects import FORMAT_VERSION, StoreObjects
from pricepix.windows.index import WindowIndex, find_windows, windows_digest
from pricepix.windows.labels import label_price

if TYPE_CHECKING:
    from distributed import Client


def render_universe(
    panel: Any,
    spec: ImageSpec | str | Mapping[str, Any],
    store: StoreLike | None = None,
    horizons: Sequence[int] = (5, 20, 60),
    delay: int = 0,
    every: str | int = "bar",
    layout: str = "uint8",
    mode: str = "create",
    *,
    price: str = "auto",
    start: Any = None,
    end: Any = None,
    mask: NDArray[np.bool_] | None = None,
    sample: float | None = None,
    seed: int = 0,
    max_gap: Any = None,
    chunk: int | None = None,
    shard: int | str | None = None,
    workers: int | None = None,
    client: Client | None = None,
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ImageStore:
    """Draw every window of a universe and keep images, index and forward returns together in a store.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars: a panel, a data frame, or the path of a CSV, Parquet or Feather file.
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    store : str, path, zarr store or None
        Where to write. ``None`` keeps the store in memory, uncompressed.
    horizons : sequence of int
        Horizons, in bars, of the forward returns to keep.
    delay : int
        Bars from a window's last bar to the entry of its forward returns.
    every, start, end, mask, sample, seed, max_gap
        Which windows to draw: see ``WindowIndex.from_panel``.
    layout : {"uint8", "bits"}
        One byte a pixel, which every Zarr reader opens as what it is, or one bit a pixel before compression:
        a third of the bytes, and faster to build and to read.
    mode : {"create", "resume", "overwrite"}
        ``create`` refuses a location that exists. ``resume`` goes on with a build that was stopped, from the
        same panel, spec, windows and layout; it begins one where there is none, and leaves a finished store
        as it is. ``overwrite`` replaces a pricepix store.
    price : {"auto", "close", "total_return"}
        What forward returns are computed from: see ``forward_returns``.
    chunk : int, optional
        Windows a chunk; by default what makes 16 MB before compression in layout ``uint8`` (4096 of 64x60)
        and 8 MB in ``bits`` (16384).
    shard : int or str, optional
        Put many chunks into one object, for object stores and file systems that dislike many files: so many
        windows, or objects of about such a size (``"256MB"``). A worker holds a whole shard in memory.
    workers : int, optional
        Partitions drawn, compressed and written at a time, each in a thread of its own; all cores by default.
        ``0`` does everything in the calling thread, for debugging. The bytes do not depend on it.
    client : dask.distributed.Client, optional
        Draw on the workers of a cluster. They must see the same path or URL; the panel is laid down in the
        unfinished store once and mapped into their memory from there.
    threads : int, optional
        Threads to find the windows with, and the default for `workers`.
    storage_options : mapping, optional
        For a URL: keys, region, endpoint, as ``obstore.store.from_url`` takes them.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ImageStore

    Raises
    ------
    ValueError
        If an argument can not be used, the panel has bad bars, or no window survives; before anything is
        written.
    FileExistsError
        If the location exists and `mode` is ``create``, or holds something that is no pricepix store.
    BlockingIOError
        If another process writes this store.
    OSError
        If the store can not be written to, or its disk is full: what is done stays done, for
        ``mode="resume"``.
    """
    spec = ImageSpec.of(spec)
    choice(layout, "layout", LAYOUTS)
    choice(mode, "mode", MODES)
    threads = whole_number_or_none(threads, "threads", 1, otherwise="None for all")
    workers = whole_number_or_none(workers, "workers", 0, otherwise="None for all")
    chunk = whole_number_or_none(chunk, "chunk", 1, unit="windows", otherwise="None for the usual size")
    height, width = spec.shape
    if chunk is not None and chunk * height * width > MAX_CHUNK_BYTES:
        raise ValueError(
            f"chunk={chunk} images of {height}x{width} are {chunk * height * width / 1e9:.1f} GB of pixels, more "
            f"than the codec takes at once: give at most {MAX_CHUNK_BYTES // (height * width)}"
        )
    horizons = checked_horizons(horizons)
    delay = bars(delay, "delay", 0)
    where = None if store is None else Location.of(store, storage_options)
    if where is None:
        for name, value in (("client", client), ("shard", shard), ("storage_options", storage_options)):
            if value:
                raise ValueError(f"{name}= is for stores that are written: give store=, or leave it out")
    else:
        _check_location(where, mode)
        if client is not None and isinstance(where, ZarrObjects):
            raise ValueError(
                f"workers of a cluster can not reach {where.name}: give a path or URL that all of them see"
            )
    panel = Panel.of(panel)
    windows = find_windows(
        panel, spec, every, start=start, end=end, mask=mask, sample=sample, seed=seed, max_gap=max_gap,
        threads=threads,
    )  # fmt: skip
    chunk = chunk or default_chunk(*spec.shape, layout)
    made = lineage(panel, windows, horizons, delay, label_price(panel, price), layout, chunk)
    # The order of the attributes is part of a store's bytes.
    first = {"format_version": FORMAT_VERSION, "created_by": made["created_by"], "complete": False}
    attributes = {**first, **made}
    if where is None:
        return _in_memory(panel, windows, attributes, threads)
    count = (
        os.cpu_count() or 1
        if workers is None and threads is None
        else workers
        if workers is not None
        else threads
    )
    assert count is not None
    shard_windows = _shard_windows(shard, panel, windows, ChunkFormat(layout, *spec.shape, chunk))
    form = ChunkFormat(layout, *spec.shape, chunk, shard=shard_windows)
    at_once = count if client is None else max(1, sum(client.nthreads().values()))
    plan = Plan(
        panel_digest=panel.digest,
        windows_digest=windows_digest(windows),
        spec_digest=spec.digest,
        layout=layout,
        chunk=chunk,
        shard=shard_windows,
        height=spec.shape[0],
        width=spec.shape[1],
        windows=len(windows),
        instruments=panel.n_instruments,
        horizons=horizons,
        delay=delay,
        label_price=attributes["label_price"],
        partition=partition_chunks(form, len(windows), at_once),
    )
    if shard_windows:
        attributes["shard"] = shard_windows
    with WriteLock(where) as lock:
        _check_location(where, mode)
        finished = _begin(where, plan, attributes, mode)
        if finished is not None:
            return finished
        frozen = Plan.read(where) or plan
        done = frozen.done(where)
        with _told_how_to_go_on(where, frozen):
            _work(where, frozen, panel, windows, done, count, client, progress)
            lock.check()
            finish(where, frozen.geometry, attributes, panel, _checksums(frozen, where))
    return open_store(where)


def _shard_windows(shard: int | str | None, panel: Panel, windows: WindowIndex, form: ChunkFormat) -> int:
    """Windows a shard, a multiple of those a chunk; 0 for no shards."""
    if shard is None:
        return 0
    if isinstance(shard, str):
        size = parse_size(shard)
        # What a chunk from the middle comes to tells how many make such an object.
        middle = max(0, (len(windows) - form.windows) // 2)
        some = windows[middle : middle + form.windows]
        each = len(form.encode(render_panel(panel, some, bits=True))) / len(some) * form.windows
        return max(1, round(size / each)) * form.windows
    if isinstance(shard, bool) or not isinstance(shard, int) or shard < form.windows:
        raise ValueError(
            f"shard={shard!r} is no size of a shard: give a number of windows, at least a chunk's "
            f"{form.windows}, or a size such as '256MB'"
        )
    return -(-shard // form.windows) * form.windows


def _begin(where: Location, plan: Plan, attributes: Mapping[str, Any], mode: str) -> ImageStore | None:
    """Freeze the plan into the store, or check it against the one there; return a finished store."""
    state = _state(where)
    if mode == "resume" and state == "finished":
        finish_pending(where)
        _check_finished(where, plan)
        return open_store(where)
    if mode == "resume" and state == "unfinished":
        theirs = Plan.read(where)
        if theirs is not None:
            plan.check_same(theirs, where)
            if where.get(ROOT) is not None:
                return None
    if state != "absent":
        # The group's metadata go first: nothing is taken for a store without them.
        where.delete(ROOT)
        where.delete_all(keep=LOCK)
    for key, content in plan.geometry.metadata({**attributes, "complete": False}).items():
        where.put(key, content)
    plan.write(where)
    return None


def _check_finished(where: Location, plan: Plan) -> None:
    """Refuse to take another store for the one that this build would give."""
    attrs = open_store(where).attrs
    for name, mine in (
        ("panel_digest", plan.panel_digest),
        ("spec_digest", plan.spec_digest),
        ("layout", plan.layout),
        ("chunk", plan.chunk),
        ("shard", plan.shard),
        ("horizons", list(plan.horizons)),
        ("delay", plan.delay),
        ("label_price", plan.label_price),
        ("windows", plan.windows),
    ):
        theirs = attrs.get(name, 0 if name == "shard" else None)
        if theirs != mine:
            raise ValueError(
                f"store {where.name} is finished, and was not made from this: {name} is {mine} here, "
                f"{theirs} there. pricepix.append(store, panel) adds later bars; mode='overwrite' builds it "
                "anew"
            )


@contextmanager
def _told_how_to_go_on(where: Location, plan: Plan) -> Iterator[None]:
    """Say in every error, and in an interruption, what is done and how to go on."""
    try:
        yield
    except BaseException as error:
        try:
            done, of = len(plan.done(where)), sum(1 for _ in plan.tasks())
        except Exception:
            raise error from None
        advice = (
            f"the build of store {where.name} stopped with {done} of {of} partitions done; the same call "
            "with mode='resume' goes on from there"
        )
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, f"{error.strerror}: {advice}", error.filename) from error
        error.add_note(advice)
        raise


def _work(
    where: Location,
    plan: Plan,
    panel: Panel,
    windows: WindowIndex,
    done: Mapping[Task, Any],
    workers: int,
    client: Client | None,
    progress: bool,
) -> None:
    """Do what is left of a plan."""
    left = [task for task in plan.tasks() if task not in done]
    chunk, n = plan.chunk, plan.windows

    def windows_of(task: Task) -> int:
        return min(n, task.last * chunk) - task.first * chunk if task.kind == "images" else 0

    total = sum(map(windows_of, left))
    with tqdm(
        total=n, initial=n - total, desc=f"render {os.path.basename(where.name)}", unit="img",
        unit_scale=True,        disable=not progress,
    ) as bar:  # fmt: skip
        if client is not None:
            from pricepix.build.cluster import run_on

            finished: Iterable[Task] = run_on(client, where, plan, panel, windows, left)
        else:
            painter = Painter(where, plan.geometry, windows, plan.delay, plan.label_price)
            finished = run_here(painter, left, workers)
        for task in finished:
            bar.update(windows_of(task))


def _checksums(plan: Plan, where: Location) -> NDArray[np.uint32]:
    """Gather the checksums of all partitions, in the order of ``Geometry.arrays``, the last three open."""
    done = plan.done(where)
    missing = [task for task in plan.tasks() if task not in done]
    if missing:
        named = ", ".join(f"{t.kind} chunks {t.first} to {t.last - 1}" for t in missing[:5])
        raise ValueError(
            f"{len(missing)} partitions of store {where.name} are not done ({named}): build it again with "
            "mode='resume'"
        )
    geometry = plan.geometry
    slices = geometry.checksum_slices()
    found = np.zeros(sum(count for _, count in geometry.arrays()), np.uint32)
    for task, checks in done.items():
        if task.kind == "images":
            found[slices["images"]][task.first : task.last] = checks
        else:
            for column, check in zip(geometry.columns, checks, strict=True):
                found[slices[column.name]][task.first] = check
    return found


def _in_memory(
    panel: Panel, windows: WindowIndex, attributes: dict[str, Any], threads: int | None
) -> ImageStore:
    """Render into one array whose slices are the chunks of a Zarr group in memory."""
    n = len(windows)
    form = ChunkFormat(attributes["layout"], *windows.spec.shape, attributes["chunk"], compressed=False)
    geometry = Geometry(form, n, panel.n_instruments, tuple(attributes["horizons"]))
    # Hashing the panel costs as much as drawing it; nobody needs to recognise the bars of a store in memory.
    documents = geometry.metadata({**attributes, "compressed": False, "complete": True})
    keys: dict[str, Any] = {key: cpu.Buffer.from_bytes(content) for key, content in documents.items()}
    where = ZarrObjects(MemoryStore(keys), "memory")
    count = form.chunks(n)
    if form.layout == "uint8":
        pixels = memory_for((count * form.windows, form.height, form.width))
        render_panel(panel, windows, out=pixels[:n], threads=threads)
        pixels[n:] = 0
        parts = pixels.reshape(count, -1)
    else:
        # Memory for both the images and, from its front on, their chunks: chunk after chunk takes the place of
        # images that are laid out already. Fresh memory costs more than drawing into it.
        size = n * form.packed_bytes
        memory = np.empty(max(count * form.raw_bytes, size + count), np.uint8)
        bits = memory[len(memory) - size :].reshape(n, form.packed_bytes)
        render_panel(panel, windows, out=bits, bits=True, threads=threads)
        parts = memory[: count * form.raw_bytes].reshape(count, form.raw_bytes)
        for i in range(count):
            parts[i] = form.pack(bits[i * form.windows : (i + 1) * form.windows])
    for i in range(count):
        keys[chunk_key("images", i)] = cpu.Buffer.from_array_like(parts[i])
    painter = Painter(where, geometry, windows, attributes["delay"], attributes["label_price"])
    for i in range(geometry.index_chunks):
        painter.write_index(i)
    where.put(chunk_key("instruments", 0), encode_strings(panel.instruments, compressed=False))
    return ImageStore(StoreObjects(where, json.loads(documents[ROOT])))
