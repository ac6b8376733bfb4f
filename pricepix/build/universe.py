"""From a panel to an image store: plan, render in partitions, write, finish."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from pricepix._checks import is_whole, optional_module, whole_number_or_none
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.build.chunk_writer import ChunkWriter, run_local
from pricepix.build.finish import PanelFacts, empty_checksums, finish, store_attributes
from pricepix.build.plan import Plan, Task, partition_chunks
from pricepix.build.request import BuildRequest, StoreOptions
from pricepix.build.target import (
    check_finished,
    check_location,
    clear_location,
    location_state,
    with_resume_hint,
)
from pricepix.images.drawing import render_panel
from pricepix.images.lineage import lineage
from pricepix.location import Location, StoreLike, ZarrObjects
from pricepix.render.memory import memory_for
from pricepix.spec import ImageSpec
from pricepix.store.chunks import ChunkFormat, parse_size
from pricepix.store.commit import finish_pending
from pricepix.store.format import ROOT, Geometry, chunk_key, encode_strings
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.store.objects import StoreObjects
from pricepix.windows.index import WindowIndex, find_windows, windows_digest
from pricepix.windows.labels import ReturnRule
from pricepix.windows.schedule import Periods

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
    delisting: str = "auto",
    start: Any = None,
    end: Any = None,
    mask: NDArray[np.bool_] | None = None,
    sample: float | None = None,
    seed: int = 0,
    max_gap: Any = None,
    periods: Periods | Mapping[str, Any] | None = None,
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
    every, start, end, mask, sample, seed, max_gap, periods
        Which windows to draw: see ``WindowIndex.from_panel``.
    layout : {"uint8", "bits"}
        One byte a pixel, which every Zarr reader opens as what it is, or one bit a pixel before compression:
        a third of the bytes, and faster to build and to read.
    mode : {"create", "resume", "overwrite"}
        ``create`` refuses a location that exists. ``resume`` continues an interrupted build of the same panel,
        spec, windows and layout; it starts one where there is none, and leaves a finished store as it is.
        ``overwrite`` replaces a pricepix store.
    price : {"auto", "close", "total_return"}
        What forward returns are computed from: see ``forward_returns``.
    delisting : {"auto", "hold", "missing"}
        The forward returns of instruments whose bars end within the horizon: see ``forward_returns``. By default
        they are kept where the panel brings total returns, and missing where it has only prices. The store's
        attribute ``died_within_horizon`` counts those that are kept.
    chunk : int, optional
        Windows a chunk; by default what makes 16 MB before compression in layout ``uint8`` (4096 of 64x60)
        and 8 MB in ``bits`` (16384).
    shard : int or str, optional
        Put many chunks into one object, for object stores and file systems that dislike many files: a number
        of windows, or the approximate size of an object (``"256MB"``). A worker holds a whole shard in memory.
    workers : int, optional
        Partitions drawn, compressed and written at a time, each in a thread of its own; all cores by default.
        ``0`` does everything in the calling thread, for debugging. The bytes do not depend on it.
    client : dask.distributed.Client, optional
        Draw on the workers of a cluster. They must see the same path or URL; the panel is written once, into
        the unfinished store, and mapped into their memory from there.
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
        If an argument cannot be used, the panel has bad bars, or no window survives; before anything is
        written.
    FileExistsError
        If the location exists and `mode` is ``create``, or it holds something that is not a pricepix store.
    BlockingIOError
        If another process writes this store.
    OSError
        If the store cannot be written to, or its disk is full: what is done is kept for ``mode="resume"``.
    """
    options = StoreOptions(layout, chunk, shard, storage_options)
    request = BuildRequest.checked(spec, horizons, delay, mode, options, threads)
    workers = whole_number_or_none(workers, "workers", 0, otherwise="None for all")
    where = None if store is None else Location.of(store, storage_options)
    _check_target(where, mode, options, client)
    panel = Panel.of(panel)
    windows = find_windows(
        panel,
        request.spec,
        every,
        start=start,
        end=end,
        mask=mask,
        sample=sample,
        seed=seed,
        max_gap=max_gap,
        periods=periods,
        threads=request.threads,
    )
    rule = ReturnRule.of(panel, request.delay, price, delisting)
    made = lineage(panel, windows, request.horizons, rule, layout, request.chunk)
    if where is None:
        return _in_memory(windows, rule, store_attributes(made), request.threads)
    workforce = _Workforce(request.thread_count if workers is None else workers, client, progress)
    shard_windows = _shard_windows(shard, windows, request.form())
    plan = _plan(request, rule, windows, shard_windows, workforce.at_once)
    with WriteLock(where) as lock:
        check_location(where, mode)
        attributes = store_attributes(made, shard_windows)
        if not _start_build(where, plan, attributes, mode):
            return open_store(where)
        # A build that is resumed keeps the partitions it was cut into.
        plan = Plan.read(where) or plan
        with with_resume_hint(where, lambda: f"{len(plan.done(where))} of {plan.task_count} partitions"):
            _run_plan(where, plan, windows, workforce)
            lock.check()
            finish(where, plan.geometry, attributes, PanelFacts.of(panel), _checksums(plan, where))
    return open_store(where)


class _Workforce(NamedTuple):
    """Who does the work of a plan: threads of this process, or the workers of a cluster."""

    workers: int
    client: Client | None
    progress: bool

    @property
    def at_once(self) -> int:
        """Partitions drawn at a time."""
        if self.client is None:
            return self.workers
        return max(1, sum(self.client.nthreads().values()))


def _check_target(where: Location | None, mode: str, options: StoreOptions, client: Client | None) -> None:
    """Refuse a location that cannot be written, and arguments that a store in memory has no use for."""
    if where is None:
        unused = {"client": client, "shard": options.shard, "storage_options": options.storage_options}
        for name, value in unused.items():
            if value:
                raise ValueError(f"{name}= is for stores that are written: give store=, or leave it out")
        return
    check_location(where, mode)
    if client is None:
        return
    optional_module("distributed", "distributed", "client=")
    if isinstance(where, ZarrObjects):
        raise ValueError(
            f"workers of a cluster cannot reach {where.name}: give a path or URL that all of them see"
        )


def _shard_windows(shard: int | str | None, windows: WindowIndex, form: ChunkFormat) -> int:
    """Windows a shard, a multiple of those a chunk; 0 for no shards."""
    if shard is None:
        return 0
    if isinstance(shard, str):
        size = parse_size(shard)
        # The encoded size of a chunk from the middle tells how many chunks make an object of that size.
        middle = max(0, (len(windows) - form.windows) // 2)
        part = windows[middle : middle + form.windows]
        each = len(form.encode(render_panel(part.panel, part, bits=True))) / len(part) * form.windows
        return max(1, round(size / each)) * form.windows
    if not is_whole(shard) or shard < form.windows:
        raise ValueError(
            f"shard={shard!r} is not the size of a shard: give a number of windows, at least a chunk's "
            f"{form.windows}, or a size such as '256MB'"
        )
    return -(-int(shard) // form.windows) * form.windows


def _plan(request: BuildRequest, rule: ReturnRule, windows: WindowIndex, shard: int, at_once: int) -> Plan:
    form = request.form(shard)
    return Plan(
        panel_digest=windows.panel.digest,
        windows_digest=windows_digest(windows),
        spec_digest=request.spec.digest,
        layout=request.layout,
        chunk=request.chunk,
        shard=shard,
        height=form.height,
        width=form.width,
        windows=len(windows),
        instruments=windows.panel.n_instruments,
        horizons=request.horizons,
        delay=rule.delay,
        label_price=rule.price,
        delisting=rule.delisting,
        partition=partition_chunks(form, len(windows), at_once),
    )


def _start_build(where: Location, plan: Plan, attributes: Mapping[str, Any], mode: str) -> bool:
    """Write the plan into the store, or check it against the one there; False if the store is finished."""
    state = location_state(where)
    if mode == "resume" and state == "finished":
        finish_pending(where)
        attrs = open_store(where).attrs
        decisive = (
            "panel_digest",
            "spec_digest",
            "layout",
            "chunk",
            "shard",
            "horizons",
            "delay",
            "label_price",
            "delisting",
        )
        expected = {name: getattr(plan, name) for name in (*decisive, "windows")}
        expected["horizons"] = list(plan.horizons)
        check_finished(
            where.name,
            attrs,
            expected,
            "pricepix.append(store, panel) adds later bars; mode='overwrite' builds it anew",
        )
        return False
    if mode == "resume" and state == "unfinished":
        stored = Plan.read(where)
        if stored is not None:
            plan.check_same(stored, where)
            if where.get(ROOT) is not None:
                return True
    if state != "absent":
        clear_location(where)
    for key, content in plan.geometry.metadata({**attributes, "complete": False}).items():
        where.put(key, content)
    plan.write(where)
    return True


def _run_plan(where: Location, plan: Plan, windows: WindowIndex, workforce: _Workforce) -> None:
    """Do what is left of a plan."""
    done = plan.done(where)
    left = [task for task in plan.tasks() if task not in done]
    chunk, n = plan.chunk, plan.windows

    def windows_of(task: Task) -> int:
        return min(n, task.last * chunk) - task.first * chunk if task.kind == "images" else 0

    total = sum(map(windows_of, left))
    with progress_bar(
        n, f"render {os.path.basename(where.name)}", "img", workforce.progress, done=n - total
    ) as bar:
        if workforce.client is not None:
            from pricepix.build.cluster import run_on_cluster

            finished: Iterable[Task] = run_on_cluster(workforce.client, where, plan, windows, left)
        else:
            writer = ChunkWriter(where, plan.geometry, windows, plan.rule)
            finished = run_local(writer, left, workforce.workers)
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
    found = empty_checksums(geometry)
    for task, checks in done.items():
        if task.kind == "images":
            found[slices["images"]][task.first : task.last] = checks
        else:
            for column, check in zip(geometry.columns, checks, strict=True):
                found[slices[column.name]][task.first] = check
    return found


def _in_memory(
    windows: WindowIndex, rule: ReturnRule, attributes: dict[str, Any], threads: int | None
) -> ImageStore:
    """Render into one array whose slices are the chunks of a Zarr group in memory."""
    panel, n = windows.panel, len(windows)
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
    writer = ChunkWriter(where, geometry, windows, rule)
    for i in range(geometry.index_chunks):
        writer.write_index(i)
    where.put(chunk_key("instruments", 0), encode_strings(panel.instruments, compressed=False))
    return ImageStore(StoreObjects(where, json.loads(documents[ROOT])))
