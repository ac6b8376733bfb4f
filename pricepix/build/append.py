"""Appending: the windows that came since, and the returns that became known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import choice
from pricepix.bars import kernels as bars_kernels
from pricepix.bars.panel import Panel
from pricepix.build.chunk_writer import Painter, in_threads
from pricepix.build.finish import last_objects
from pricepix.build.plan import PARTITION_BYTES
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.location import Location, StoreLike
from pricepix.store.chunks import checksum
from pricepix.store.commit import commit, finish_pending, staged
from pricepix.store.format import Geometry, chunk_key, dump, encode_column
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.store.objects import HISTORY
from pricepix.windows.index import DROP_REASONS, WindowIndex
from pricepix.windows.schedule import scheduled_times

ON_REVISION: Final = ("raise", "rebuild")
_SHOWN: Final = 5
_HISTORY_LENGTH: Final = 200


def append(
    store: ImageStore | StoreLike,
    panel: Any,
    *,
    mask: NDArray[np.bool_] | None = None,
    on_revision: str = "raise",
    workers: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ImageStore:
    """Add to a store the windows of bars that came since, and fill in the forward returns that became known.

    Afterwards the store is, byte for byte, the one that ``render_universe`` would build from `panel` with the
    arguments the store was built with. Only the chunks (or shards) that change are written. A process that
    dies on the way leaves the store as it was or as it will be, never between; readers may have it open
    meanwhile.

    Parameters
    ----------
    store : ImageStore, str, path or zarr store
    panel : Panel or anything ``Panel.from_table`` takes
        The whole history: the bars that the store was made from, as they were, and those that came since. New
        instruments are welcome.
    mask : numpy.ndarray, bool (rows,), optional
        As in ``render_universe``; required exactly if the store was built with one.
    on_revision : {"raise", "rebuild"}
        What to do if bars that the store was made from are not what they were (a split, a correction, an
        instrument that is gone): refuse and name the instruments, or draw again every chunk that holds one of
        their windows.
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
        If the panel can not continue the store: history revised (with ``on_revision="raise"``), other fields,
        another time zone, another mask.
    BlockingIOError
        If another process writes this store.

    Notes
    -----
    Windows of the schedules ``"day"``, ``"week"``, ``"month"`` and ``"quarter"`` stand at the last bar of
    each period that the panel knows. If the store's last period was not over, its windows move to the
    period's later bars.
    """
    choice(on_revision, "on_revision", ON_REVISION)
    where = store.objects.location if isinstance(store, ImageStore) else Location.of(store, storage_options)
    if not open_store(where).objects.checked:
        raise ValueError(f"store {where.name} lives in memory: append to one on disk, or render it anew")
    panel = Panel.of(panel)
    with WriteLock(where) as lock:
        finish_pending(where)
        old = open_store(where)
        _check_same_kind(old, panel, mask)
        change = _plan(old, panel, mask, on_revision)
        if change is not None:
            _write(old, panel, change, workers or os.cpu_count() or 1, progress, lock)
    return open_store(where)


class _Change(NamedTuple):
    """What an append is going to do."""

    attributes: dict[str, Any]
    windows: WindowIndex
    """The store's windows to be, from `base` on."""
    base: int
    kept: int
    """Windows at the front that stay as they are, labels aside."""
    total: int
    chunks: NDArray[np.int64]
    """Image chunks to draw, whole shards, ascending."""
    labels_from: int
    """First window whose labels may have changed."""
    codes: NDArray[np.int32] | None
    """New position of each instrument, if that is not the old one."""


def _check_same_kind(old: ImageStore, panel: Panel, mask: NDArray[np.bool_] | None) -> None:
    attrs = old.attrs
    if panel.tz != old.tz:
        raise ValueError(
            f"the panel's time zone is {panel.tz}, that of store {old.location} {old.tz}: read it with "
            f"tz={old.tz!r}"
        )
    if list(panel.fields) != attrs["panel_fields"]:
        raise ValueError(
            f"the panel has the fields {', '.join(panel.fields) or 'none'}, store {old.location} was made "
            f"from {', '.join(attrs['panel_fields']) or 'none'}: read it with the same columns, or build the "
            "store anew"
        )
    if (mask is None) != (attrs["schedule"]["mask"] is None):
        raise ValueError(
            f"store {old.location} was built {'without' if mask is not None else 'with'} a mask: "
            f"{'leave mask out' if mask is not None else 'give mask=, one flag a panel row'}"
        )
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != (len(panel),)):
        raise ValueError(
            f"mask is {mask.dtype} {mask.shape}, expected bool {(len(panel),)}: one flag a panel row"
        )


def _plan(old: ImageStore, panel: Panel, mask: NDArray[np.bool_] | None, on_revision: str) -> _Change | None:
    """Find out what changes; None if nothing does."""
    if panel.digest == old.attrs["panel_digest"] and mask is None:
        return None
    code, ends, revised, gone = _overlap(old, panel)
    if gone or len(revised):
        _revision(old, panel, revised, gone, on_revision)
    known = code >= 0
    if (np.diff(code[known]) <= 0).any():
        raise ValueError(
            f"the panel's instruments stand in another order than those of store {old.location}: give them "
            "in the same order, or build the store anew"
        )
    schedule = dict(old.attrs["schedule"])
    if mask is not None:
        _check_mask(old, panel, mask, code, ends)
        schedule["mask"] = hashlib.blake2b(np.packbits(mask).data, digest_size=8).hexdigest()
    clean = not gone and not len(revised)
    change = _continue(old, panel, mask, schedule, code, ends) if clean else None
    return change or _compare(old, panel, mask, schedule, code, revised)


def _overlap(
    old: ImageStore, panel: Panel
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], list[str]]:
    """Compare the bars that the store was made from with the panel's.

    Returns the new position of each old instrument (-1 if it is gone), the panel row one past the old rows of
    each of the panel's instruments, the new positions of instruments whose bars changed, and the names of
    those gone.
    """
    places = {name: i for i, name in enumerate(panel.instruments.tolist())}
    names = old.instruments.tolist()
    code = np.array([places.get(name, -1) for name in names], np.int32)
    rows = np.zeros(panel.n_instruments, np.int64)
    known = code >= 0
    rows[code[known]] = old.objects.instrument_rows[known]
    length = np.diff(panel.offsets)
    short = rows > length
    ends = panel.offsets[:-1] + np.minimum(rows, length)
    # A panel in which every instrument is cut in two, at the end of its old rows, tells the digests of both
    # halves.
    cuts = np.append(np.stack([panel.offsets[:-1], ends], axis=1).reshape(-1), panel.offsets[-1])
    halves = Panel(panel.bars, cuts, np.repeat(panel.instruments, 2), panel.time, panel.tz, panel.fields)
    digest = halves.instrument_digests[::2]
    differs = np.zeros(panel.n_instruments, np.bool_)
    differs[code[known]] = (digest[code[known]] != old.objects.instrument_digest[known]).any(axis=1)
    gone = [name for name, place in zip(names, code.tolist(), strict=True) if place < 0]
    return code, ends, np.flatnonzero(differs | short).astype(np.int32), gone


def _revision(
    old: ImageStore, panel: Panel, revised: NDArray[np.int32], gone: list[str], on_revision: str
) -> None:
    if on_revision == "rebuild":
        return
    told = []
    for what, names in (("changed", panel.instruments[revised].tolist()), ("are gone", gone)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            told.append(f"bars of {', '.join(names[:_SHOWN])}{more} {what}")
    raise ValueError(
        f"the history that store {old.location} was made from was revised: {'; '.join(told)}. If that is "
        "right (a split, a correction), append with on_revision='rebuild', which draws their windows again; "
        "the panel must hold the whole history, not its end alone"
    )


def _check_mask(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_],
    code: NDArray[np.int32],
    ends: NDArray[np.int64],
) -> None:
    flags = [mask[panel.offsets[c] : ends[c]] for c in code.tolist() if c >= 0]
    found = hashlib.blake2b(np.packbits(np.concatenate(flags)).data, digest_size=8).hexdigest()
    if found != old.attrs["schedule"]["mask"]:
        raise ValueError(
            f"over the bars that store {old.location} was made from, the mask has the digest {found}, the "
            f"store's {old.attrs['schedule']['mask']}: give the same flags for them, or build the store anew"
        )


def _continue(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    schedule: dict[str, Any],
    code: NDArray[np.int32],
    ends: NDArray[np.int64],
) -> _Change | None:
    """Plan the usual case, all new bars later than all old ones, without a look at old windows; else None."""
    first = panel.offsets[:-1]
    had, has_new = ends > first, ends < panel.offsets[1:]
    if not had.any():
        return None
    last_old = int(panel.time[ends[had] - 1].max())
    if has_new.any() and int(panel.time[ends[has_new]].min()) <= last_old:
        return None
    every = schedule["every"]
    flags = scheduled_times(panel, every)
    later = panel.calendar > last_old
    if isinstance(every, str) and len(flags) and not flags[np.searchsorted(panel.calendar, last_old)]:
        return None  # the store's last period was not over: its windows move
    chosen = later & flags if len(flags) else later
    begin = last_old + 1 if schedule["start"] is None else max(last_old + 1, panel.as_time(schedule["start"]))
    end = None if schedule["end"] is None else panel.as_time(schedule["end"], end=True)
    chosen &= panel.calendar >= begin
    if end is not None:
        chosen &= panel.calendar <= end
    counts = dict(old.attrs["drop_counts"])
    candidates = int(old.attrs["candidates"])
    new_row, new_code = np.zeros(0, np.int64), np.zeros(0, np.int32)
    if chosen.any():
        found = _index(panel, old, schedule, mask, start=begin)
        new_row, new_code = found.row, found.instrument
        for name, count in found.counts.items():
            counts[name] = counts.get(name, 0) + count
        candidates += found.candidates
    counts = {name: counts[name] for name in DROP_REASONS.values() if name in counts}

    # Labels become known where their exit lay beyond the old rows.
    reach = max(old.horizons, default=0) + old.delay
    labels_from = len(old)
    grown = had & has_new
    if reach and grown.any():
        since = int(panel.time[np.maximum(first[grown], ends[grown] - reach)].min())
        labels_from = _position(old, since)
    moved = code if len(code) != panel.n_instruments or (code != np.arange(len(code))).any() else None
    total = len(old) + len(new_row)
    chunks = _chunks_from(old, len(old), total) if len(new_row) else np.zeros(0, np.int64)
    size = old.objects.chunk_format.windows
    base = min(labels_from, int(chunks[0]) * size if len(chunks) else total, len(old))
    base = base // INDEX_CHUNK * INDEX_CHUNK
    # Labels of whole chunks of the index are computed, so windows are needed from where such a chunk begins.
    index_chunk = base // INDEX_CHUNK
    old_code = old.column("instrument_index", index_chunk)
    old_code = code[old_code] if len(old_code) else old_code
    old_row = _rows(panel, old_code, old.column("time", index_chunk))
    windows = WindowIndex(
        panel,
        old.spec,
        np.concatenate([old_row, new_row]),
        np.concatenate([old_code, new_code]).astype(np.int32),
        counts,
        schedule,
    )
    attributes = _attributes(old, panel, windows, schedule, counts, candidates, total)
    return _Change(attributes, windows, base, len(old), total, chunks, labels_from, moved)


def _compare(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    schedule: dict[str, Any],
    code: NDArray[np.int32],
    revised: NDArray[np.int32],
) -> _Change:
    """Plan any other case: find all windows again and keep those at the front that are the same."""
    windows = _index(panel, old, schedule, mask)
    if len(windows) == 0:
        raise ValueError(
            f"no window of store {old.location} can be drawn from this panel: build the store anew"
        )
    n = min(len(old), len(windows))
    old_code = code[old.instrument_index[:n]]
    same = (old_code == windows.instrument[:n]) & (old.time[:n] == panel.time[windows.row[:n]])
    kept = n if same.all() else int(np.flatnonzero(~same)[0])
    chunks = (
        _chunks_from(old, kept, len(windows)) if kept < max(len(old), len(windows)) else np.zeros(0, np.int64)
    )
    if len(revised):
        flags = np.zeros(panel.n_instruments, np.bool_)
        flags[revised] = True
        unit = old.objects.chunk_format.object_windows
        touched = np.unique(np.flatnonzero(flags[windows.instrument[:kept]]) // unit)
        kept_by_revision = int(touched[0]) * unit if len(touched) else kept
        per = unit // old.objects.chunk_format.windows
        more = (touched[:, None] * per + np.arange(per)).reshape(-1)
        most = old.objects.chunk_format.chunks(len(windows))
        chunks = np.union1d(chunks, more[more < most])
        kept = min(kept, kept_by_revision)
    moved = code if len(code) != panel.n_instruments or (code != np.arange(len(code))).any() else None
    attributes = _attributes(
        old, panel, windows, schedule, dict(windows.counts), windows.candidates, len(windows)
    )
    return _Change(attributes, windows, 0, kept, len(windows), chunks, 0, moved)


def _index(
    panel: Panel,
    old: ImageStore,
    schedule: Mapping[str, Any],
    mask: NDArray[np.bool_] | None,
    start: Any = None,
) -> WindowIndex:
    return WindowIndex.from_panel(
        panel,
        old.spec,
        schedule["every"],
        start=schedule["start"] if start is None else start,
        end=schedule["end"],
        mask=mask,
        sample=schedule["sample"],
        seed=schedule["seed"] or 0,
        max_gap=schedule["max_gap_ns"],
    )


def _attributes(
    old: ImageStore,
    panel: Panel,
    windows: WindowIndex,
    schedule: Mapping[str, Any],
    counts: Mapping[str, int],
    candidates: int,
    total: int,
) -> dict[str, Any]:
    return {
        **{k: v for k, v in old.attrs.items() if k != "metadata_digest"},
        "panel_digest": panel.digest,
        "windows": total,
        "instruments": panel.n_instruments,
        "candidates": candidates,
        "drop_counts": dict(counts),
        "schedule": dict(schedule),
    }


def _chunks_from(old: ImageStore, window: int, total: int) -> NDArray[np.int64]:
    """Image chunks to draw if windows from `window` on are new: whole shards, to the end."""
    form = old.objects.chunk_format
    first = window // form.object_windows * (form.object_windows // form.windows)
    return np.arange(first, form.chunks(total))


def _position(old: ImageStore, time: int) -> int:
    """First window at `time` or later, reading no more of the index than it takes."""
    column = next(c for c in old.objects.geometry.columns if c.name == "time")
    for chunk in reversed(range(old.objects.geometry.index_chunks)):
        values = old.objects.column_chunk(column, chunk)
        if values[0] < time:
            return chunk * INDEX_CHUNK + int(np.searchsorted(values, time))
    return 0


def _rows(panel: Panel, code: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int64]:
    row = np.empty(len(code), np.int64)
    bars_kernels.find_rows(panel.time, panel.offsets, code, time, row)
    if len(row) and row.min() < 0:
        raise ValueError(
            f"a window of the store ends at {panel.stamp(int(time[row.argmin()]))}, where the panel has no "
            "bar"
        )
    return row


def _write(
    old: ImageStore, panel: Panel, change: _Change, workers: int, progress: bool, lock: WriteLock
) -> None:
    """Write what changes beside the store, then make it the store."""
    where = old.objects.location
    geometry = Geometry(old.objects.chunk_format, change.total, panel.n_instruments, old.horizons)
    checks = _carried(old, geometry)
    slices = geometry.checksum_slices()
    size = old.objects.chunk_format.windows
    painter = Painter(
        where, geometry, change.windows, old.delay, old.attrs["label_price"], base=change.base, key=staged
    )

    def draw(run: tuple[int, int]) -> int:
        checks[slices["images"]][run[0] : run[1]] = painter.images(*run)
        return min(change.total, run[1] * size) - run[0] * size

    runs = _runs(change.chunks, old, workers)
    drawn = sum(min(change.total, b * size) - a * size for a, b in runs)
    with tqdm(
        total=drawn,
        desc=f"append {os.path.basename(where.name)}",
        unit="img",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        with ThreadPoolExecutor(workers, "pricepix-write") as writers:
            painter.writers = writers
            for count in in_threads(draw, runs, workers):
                bar.update(count)
        index_from = min(change.kept, change.labels_from, len(old), change.total) // INDEX_CHUNK

        def index(chunk: int) -> None:
            for column, stored in zip(geometry.columns, painter.index(chunk), strict=True):
                _put_changed(where, checks[slices[column.name]], column.name, chunk, stored)

        list(in_threads(index, range(index_from, geometry.index_chunks), workers))
        if change.codes is not None:
            _renumber(old, geometry, change.codes, index_from, checks[slices["instrument_index"]])
    objects, root = last_objects(geometry, change.attributes, panel, checks)
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
    gone = set(old.objects.geometry.objects()) - set(geometry.objects())
    commit(where, root, sorted(gone))


def _carried(old: ImageStore, geometry: Geometry) -> NDArray[np.uint32]:
    """The old checksums at their new places, 0 for chunks that are new."""
    checks = np.zeros(sum(count for _, count in geometry.arrays()), np.uint32)
    before, after = old.objects.geometry.checksum_slices(), geometry.checksum_slices()
    for name, there in after.items():
        here = old.objects.checksums[before[name]]
        n = min(len(here), there.stop - there.start)
        checks[there][:n] = here[:n]
    return checks


def _runs(chunks: NDArray[np.int64], old: ImageStore, workers: int) -> list[tuple[int, int]]:
    """Cut chunks into runs of neighbours, whole shards each, small enough for memory and for all workers."""
    form = old.objects.chunk_format
    per = form.object_windows // form.windows
    most = max(
        1, min(PARTITION_BYTES // (form.windows * form.packed_bytes), -(-len(chunks) // (4 * workers)))
    )
    most = max(1, most // per) * per
    runs: list[tuple[int, int]] = []
    for chunk in chunks.tolist():
        if runs and runs[-1][1] == chunk and chunk - runs[-1][0] < most:
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
