"""Appending: the windows that came since, and the returns that became known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, whole_number_or_none
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.build.append_plan import ON_REVISION, Change, plan_change
from pricepix.build.chunk_writer import ChunkWriter
from pricepix.build.finish import PanelFacts, empty_checksums, last_objects
from pricepix.build.plan import PARTITION_BYTES
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.threads import map_unordered
from pricepix.location import Location, StoreLike
from pricepix.store.chunks import checksum
from pricepix.store.commit import commit, finish_pending, staged
from pricepix.store.format import Geometry, chunk_key, dump, encode_column
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.store.objects import HISTORY
from pricepix.store.packed_view import PACKED_VIEW, packed_view
from pricepix.windows.labels import ReturnRule

_HISTORY_LENGTH: Final = 200


def append(
    store: ImageStore | StoreLike,
    panel: Any,
    *,
    mask: NDArray[np.bool_] | None = None,
    on_revision: str = "raise",
    asof: Any = None,
    workers: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ImageStore:
    """Add to a store the windows of bars that came since, and fill in the forward returns that became known.

    Afterwards the store is, byte for byte, the one that ``render_universe`` would build from `panel` with the
    arguments the store was built with (and `asof`). Only the chunks (or shards) that change are written. A process that
    dies midway leaves the store as it was before or as it is after, never between; readers may have it open
    meanwhile.

    Parameters
    ----------
    store : ImageStore, str, path or zarr store
    panel : Panel or anything ``Panel.from_table`` takes
        The whole history: the bars that the store was made from, unchanged, and those that came since. It may
        have new instruments.
    mask : numpy.ndarray, bool (rows,), optional
        As in ``render_universe``; required exactly if the store was built with one.
    on_revision : {"raise", "rebuild"}
        What to do if bars that the store was made from have changed (a correction, an instrument that is gone,
        or a split where prices are adjusted to the last bar): refuse and name the instruments, or draw again
        every chunk that holds one of their windows. Prices read with ``anchor="first"`` do not change by later
        splits and dividends: of such a panel only what came since is drawn.
    asof : str, date, datetime or int, optional
        The time up to which the panel holds all bars, as in ``Periods``, instead of the one that the store was built
        with: the windows of a week before a holiday then come at once. A date means the end of that day.
    workers : int, optional
        Threads; all cores by default.
    storage_options : mapping, optional
        For a URL: keys, region, endpoint, as ``obstore.store.from_url`` takes them.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ImageStore
        The store, opened anew.

    Raises
    ------
    ValueError
        If the panel cannot continue the store: history revised (with ``on_revision="raise"``), different
        fields, a different time zone, a different mask.
    BlockingIOError
        If another process writes this store.

    Notes
    -----
    Windows of the schedules ``"day"``, ``"week"``, ``"month"`` and ``"quarter"`` stand at the end of each period
    that is known to be over, so they do not move as bars come. A holiday at the end of a period may be known as
    one only when the next bar has come; its windows are then added with that bar, as a build from scratch has
    them.
    """
    choice(on_revision, "on_revision", ON_REVISION)
    workers = whole_number_or_none(workers, "workers", 0, otherwise="None for all")
    threads = os.cpu_count() or 1 if workers is None else max(1, workers)
    where = store.objects.location if isinstance(store, ImageStore) else Location.of(store, storage_options)
    if not open_store(where).objects.checked:
        raise ValueError(f"store {where.name} lives in memory: append to one on disk, or render it anew")
    panel = Panel.of(panel)
    with WriteLock(where) as lock:
        finish_pending(where)
        old = open_store(where)
        change = plan_change(old, panel, mask, on_revision, asof)
        if change is not None:
            _write(old, panel, change, threads, progress, lock)
    return open_store(where)


def _write(
    old: ImageStore, panel: Panel, change: Change, threads: int, progress: bool, lock: WriteLock
) -> None:
    """Write what changes beside the store, then make it the store."""
    where = old.objects.location
    geometry = Geometry(old.objects.chunk_format, change.total, panel.n_instruments, old.horizons)
    checks = _carried(old, geometry)
    slices = geometry.checksum_slices()
    size = old.objects.chunk_format.windows
    rule = ReturnRule.from_attributes(old.attrs)
    writer = ChunkWriter(where, geometry, change.windows, rule, base=change.base, key=staged)

    def draw(run: tuple[int, int]) -> int:
        checks[slices["images"]][run[0] : run[1]] = writer.write_images(*run)
        return min(change.total, run[1] * size) - run[0] * size

    runs = _runs(change.chunks, old, threads)
    drawn = sum(min(change.total, b * size) - a * size for a, b in runs)
    with progress_bar(drawn, f"append {os.path.basename(where.name)}", "img", progress) as bar:
        with ThreadPoolExecutor(threads, "pricepix-write") as writers:
            writer.writers = writers
            for count in map_unordered(draw, runs, threads):
                bar.update(count)
        index_from = min(change.kept, change.labels_from, len(old), change.total) // INDEX_CHUNK

        def index(chunk: int) -> None:
            for column, stored in zip(geometry.columns, writer.encoded_index(chunk), strict=True):
                _put_changed(where, checks[slices[column.name]], column.name, chunk, stored)

        list(map_unordered(index, range(index_from, geometry.index_chunks), threads))
        if change.codes is not None:
            _renumber(old, geometry, change.codes, index_from, checks[slices["instrument_index"]])
    objects, root = last_objects(geometry, change.attributes, PanelFacts.of(panel), checks)
    if where.get(PACKED_VIEW) is not None:
        objects[PACKED_VIEW] = packed_view(geometry.form, geometry.windows)
    for key, content in objects.items():
        where.put(staged(key), content)
    # A reader of the state before must know which of its windows it can still read.
    history = json.loads(bytes(where.get(HISTORY) or b"[]"))
    entry = {
        "before": old.attrs["metadata_digest"],
        "after": root["attributes"]["metadata_digest"],
        "kept": change.kept,
    }
    where.put(staged(HISTORY), dump([*history, entry][-_HISTORY_LENGTH:]))
    lock.check()
    removed = set(old.objects.geometry.objects()) - set(geometry.objects())
    commit(where, root, sorted(removed))


def _carried(old: ImageStore, geometry: Geometry) -> NDArray[np.uint32]:
    """The old checksums at their new places, 0 for chunks that are new."""
    checks = empty_checksums(geometry)
    before, after = old.objects.geometry.checksum_slices(), geometry.checksum_slices()
    for name, there in after.items():
        here = old.objects.checksums[before[name]]
        n = min(len(here), there.stop - there.start)
        checks[there][:n] = here[:n]
    return checks


def _runs(chunks: NDArray[np.int64], old: ImageStore, threads: int) -> list[tuple[int, int]]:
    """Cut chunks into runs of neighbours, whole shards each, small enough for memory and for all threads."""
    form = old.objects.chunk_format
    per = form.object_windows // form.windows
    size = min(PARTITION_BYTES // (form.windows * form.packed_bytes), -(-len(chunks) // (4 * threads)))
    limit = max(1, size // per) * per
    runs: list[tuple[int, int]] = []
    for chunk in chunks.tolist():
        if runs and runs[-1][1] == chunk and chunk - runs[-1][0] < limit:
            runs[-1] = (runs[-1][0], chunk + 1)
        else:
            runs.append((chunk, chunk + 1))
    return runs


def _put_changed(where: Location, checks: NDArray[np.uint32], name: str, chunk: int, stored: bytes) -> None:
    if int(checks[chunk]) != checksum(stored):
        where.put(staged(chunk_key(name, chunk)), stored)
        checks[chunk] = checksum(stored)


def _renumber(
    old: ImageStore, geometry: Geometry, codes: NDArray[np.int32], last: int, checks: NDArray[np.uint32]
) -> None:
    """Write the chunks of ``instrument_index`` before `last` anew: instruments came in between."""
    column = geometry.columns[0]
    for chunk in range(last):
        stored = encode_column(column, codes[old.objects.column_chunk(column, chunk)])
        _put_changed(old.objects.location, checks, column.name, chunk, stored)
