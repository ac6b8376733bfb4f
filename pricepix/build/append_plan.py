"""What an append changes: the windows that are new, the chunks to draw, the labels that became known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import RevisedHistoryError, printable
from pricepix.bars import kernels as bars_kernels
from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.store.image_store import ImageStore
from pricepix.windows.index import DROP_REASONS, NoCandidatesError, WindowIndex
from pricepix.windows.labels import ReturnRule
from pricepix.windows.schedule import Periods, find_schedule

ON_REVISION: Final = ("raise", "rebuild")
_SHOWN: Final = 5


class Change(NamedTuple):
    """The result of planning an append: what to draw and to write."""

    attributes: dict[str, Any]
    windows: WindowIndex
    """The windows of the new store, from `base` on."""
    base: int
    kept: int
    """Windows at the front that stay as they are, apart from their labels."""
    total: int
    chunks: NDArray[np.int64]
    """Image chunks to draw, whole shards, ascending."""
    labels_from: int
    """First window whose labels may have changed."""
    codes: NDArray[np.int32] | None
    """New position of each instrument, None if nothing moves."""


class _Overlap(NamedTuple):
    """The bars that a store was made from, in a panel that should continue them."""

    code: NDArray[np.int32]
    """New position of each of the store's instruments, -1 if it was removed."""
    ends: NDArray[np.int64]
    """For each of the panel's instruments, the panel row one past its old rows."""
    revised: NDArray[np.int32]
    """New positions of instruments whose bars changed."""
    removed: list[str]
    """Names of the instruments that the panel lacks."""

    @property
    def codes(self) -> NDArray[np.int32] | None:
        """New position of each instrument, None if nothing moves."""
        moved = len(self.code) != len(self.ends) or (self.code != np.arange(len(self.code))).any()
        return self.code if moved else None


def plan_change(
    old: ImageStore, panel: Panel, mask: NDArray[np.bool_] | None, on_revision: str, asof: Any = None
) -> Change | None:
    """Find out what changes; None if nothing does.

    `asof` takes the place of the one that the store's periods have.

    Raises
    ------
    ValueError
        If the panel cannot continue the store.
    """
    _check_same_kind(old, panel, mask)
    schedule = _schedule_asof(old, asof)
    same_periods = schedule.get("periods") == old.attrs["schedule"].get("periods")
    if panel.digest == old.attrs["panel_digest"] and mask is None and same_periods:
        return None
    overlap = _overlap(old, panel)
    clean = not overlap.removed and not len(overlap.revised)
    if not clean and on_revision == "raise":
        raise _revision(old, panel, overlap)
    if (np.diff(overlap.code[overlap.code >= 0]) <= 0).any():
        raise ValueError(
            f"the panel's instruments are in a different order than those of store {old.location}: give them "
            "in the same order, or build the store anew"
        )
    if mask is not None:
        _check_mask(old, panel, mask, overlap)
        schedule["mask"] = _mask_digest(mask)
    change = _continued(old, panel, mask, schedule, overlap) if clean else None
    return change or _compared(old, panel, mask, schedule, overlap)


def _schedule_asof(old: ImageStore, asof: Any) -> dict[str, Any]:
    """Return the store's schedule, as of a later time if one is given."""
    schedule = dict(old.attrs["schedule"])
    if asof is None:
        return schedule
    periods = schedule.get("periods")
    if periods is None:
        raise ValueError(
            f"asof={asof!r} is for weeks, months and quarters, but store {old.location} has windows at "
            f"every={schedule['every']!r}: leave asof out"
        )
    changed = Periods.of({**periods, "asof": asof})
    before = periods.get("asof")
    later = as_time(changed.asof, old.tz, end=True)
    if before is not None and later < as_time(before, old.tz, end=True):
        raise ValueError(
            f"asof={asof!r} lies before that of store {old.location}, {before}: periods that were over would not be"
        )
    return {**schedule, "periods": changed.to_dict()}


def _check_same_kind(old: ImageStore, panel: Panel, mask: NDArray[np.bool_] | None) -> None:
    attrs = old.attrs
    if panel.tz != old.tz:
        raise ValueError(
            f"the panel's time zone is {panel.tz}, that of store {old.location} {old.tz}: read it with "
            f"tz={old.tz!r}"
        )
    if list(panel.fields) != attrs["panel_fields"]:
        old_fields = printable(", ".join(map(str, attrs["panel_fields"])), "") or "none"
        raise ValueError(
            f"the panel has the fields {', '.join(panel.fields) or 'none'}, store {old.location} was made "
            f"from {old_fields}: read it with the same columns, or build the "
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


def _overlap(old: ImageStore, panel: Panel) -> _Overlap:
    """Compare the bars that the store was made from with the panel's."""
    places = {name: i for i, name in enumerate(panel.instruments.tolist())}
    names = old.instruments.tolist()
    code = np.array([places.get(name, -1) for name in names], np.int32)
    rows = np.zeros(panel.n_instruments, np.int64)
    known = code >= 0
    rows[code[known]] = old.objects.instrument_rows[known]
    length = np.diff(panel.offsets)
    short = rows > length
    ends = panel.offsets[:-1] + np.minimum(rows, length)
    digest = _halves(panel, ends).instrument_digests[::2]
    differs = np.zeros(panel.n_instruments, np.bool_)
    differs[code[known]] = (digest[code[known]] != old.objects.instrument_digest[known]).any(axis=1)
    removed = [name for name, place in zip(names, code.tolist(), strict=True) if place < 0]
    return _Overlap(code, ends, np.flatnonzero(differs | short).astype(np.int32), removed)


def _halves(panel: Panel, ends: NDArray[np.int64]) -> Panel:
    """Return a panel in which every instrument is cut in two, at the end of its old rows, without a copy."""
    cuts = np.append(np.stack([panel.offsets[:-1], ends], axis=1).reshape(-1), panel.offsets[-1])
    return Panel(panel.bars, cuts, np.repeat(panel.instruments, 2), panel.time, panel.tz, panel.fields)


def _revision(old: ImageStore, panel: Panel, overlap: _Overlap) -> ValueError:
    parts = []
    for what, names in (
        ("changed", panel.instruments[overlap.revised].tolist()),
        ("are gone", overlap.removed),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"bars of {printable(', '.join(names[:_SHOWN]), '')}{more} {what}")
    return RevisedHistoryError(
        f"the history that store {old.location} was made from was revised: {'; '.join(parts)}. If that is "
        "right (a split, a correction), append with on_revision='rebuild', which draws their windows again "
        "(splits revise no prices that are read with anchor='first'); the panel must hold the whole history, not only "
        "its end"
    )


def _mask_digest(flags: NDArray[np.bool_]) -> str:
    return hashlib.blake2b(np.packbits(flags).data, digest_size=8).hexdigest()


def _check_mask(old: ImageStore, panel: Panel, mask: NDArray[np.bool_], overlap: _Overlap) -> None:
    known = [c for c in overlap.code.tolist() if c >= 0]
    found = _mask_digest(np.concatenate([mask[panel.offsets[c] : overlap.ends[c]] for c in known]))
    if found != old.attrs["schedule"]["mask"]:
        raise ValueError(
            f"over the bars that store {old.location} was made from, the mask has the digest {found}, the "
            f"store's {old.attrs['schedule']['mask']}: give the same flags for them, or build the store anew"
        )


def _continued(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    schedule: dict[str, Any],
    overlap: _Overlap,
) -> Change | None:
    """Plan the usual case, all new bars later than all old ones, without a look at old windows; else None."""
    first, ends = panel.offsets[:-1], overlap.ends
    had, has_new = ends > first, ends < panel.offsets[1:]
    if not had.any():
        return None
    last_old = int(panel.time[ends[had] - 1].max())
    if has_new.any() and int(panel.time[ends[has_new]].min()) <= last_old:
        return None
    begin = _first_open(panel, schedule, last_old, old.attrs["schedule"].get("periods"))
    if begin is None:
        return None
    new = _later_windows(old, panel, mask, schedule, begin)
    counts = dict(old.attrs["drop_counts"])
    # Instruments of the period that was open are counted again, now that more of it is known.
    were_open = counts.pop("period_open", 0)
    for name, count in new.counts.items():
        counts[name] = counts.get(name, 0) + count
    counts = {name: counts[name] for name in DROP_REASONS.values() if name in counts}
    # Labels become known where their exit lay beyond the old rows.
    reach = max(old.horizons, default=0) + old.delay
    labels_from = len(old)
    grown = had & has_new
    if ReturnRule.from_attributes(old.attrs).delisting == "hold":
        # Of instruments that ended, those whose exit is a bar of the market that had not come.
        codes = panel.time_code[np.maximum(ends - 1, 0)]
        grown |= had & (codes >= np.searchsorted(panel.calendar, last_old) - reach)
    if reach and grown.any():
        labels_from = _position(old, int(panel.time[np.maximum(first[grown], ends[grown] - reach)].min()))
    total = len(old) + len(new)
    chunks = _chunks_from(old, len(old), total) if len(new) else np.zeros(0, np.int64)
    size = old.objects.chunk_format.windows
    base = min(labels_from, int(chunks[0]) * size if len(chunks) else total, len(old))
    # Labels of whole chunks of the index are computed, so windows are needed from where such a chunk begins.
    index_chunk = base // INDEX_CHUNK
    base = index_chunk * INDEX_CHUNK
    windows = _joined(old, panel, overlap.code, index_chunk, new, counts, schedule)
    candidates = int(old.attrs["candidates"]) - were_open + new.candidates
    deaths = _deaths(old, windows, overlap.ends, len(old) - base, last_old)
    attributes = _attributes(old, windows, candidates, total, deaths)
    return Change(attributes, windows, base, len(old), total, chunks, labels_from, overlap.codes)


def _first_open(
    panel: Panel, schedule: Mapping[str, Any], last_old: int, old_periods: Mapping[str, Any] | None
) -> int | None:
    """Return the time from which on windows may be new, given that the store's last bar is at `last_old`.

    That is the next bar or, in a schedule of periods, the beginning of the first period that was not over. None
    if windows before it may have moved: bars came to a period that was over.
    """
    every, periods = schedule["every"], Periods.of(schedule.get("periods"))
    now = find_schedule(panel, every, periods)
    old_times = int(np.searchsorted(panel.calendar, last_old)) + 1
    if not len(now.period):
        return last_old + 1
    before = find_schedule(panel, every, Periods.of(old_periods), times=old_times)
    settled = before.open_period if before.open_period >= 0 else len(before.last_end)
    if (before.last_end[:settled] != now.last_end[:settled]).any():
        return None
    if old_times < len(now.period) and now.period[old_times] < settled:
        return None
    first = int(np.searchsorted(now.period, settled))
    return int(panel.calendar[first]) if first < len(now.period) else last_old + 1


def _later_windows(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    schedule: Mapping[str, Any],
    begin: int,
) -> WindowIndex:
    """Find the windows that end at a time or later."""
    start, end = schedule["start"], schedule["end"]
    if start is not None:
        begin = max(begin, panel.as_time(start))
    if end is None or begin <= panel.as_time(end, end=True):
        try:
            return _index(panel, old, schedule, mask, start=begin)
        except NoCandidatesError:
            pass
    return WindowIndex(panel, old.spec, np.zeros(0, np.int64), np.zeros(0, np.int32), {}, schedule)


def _joined(
    old: ImageStore,
    panel: Panel,
    code: NDArray[np.int32],
    index_chunk: int,
    new: WindowIndex,
    counts: Mapping[str, int],
    schedule: Mapping[str, Any],
) -> WindowIndex:
    """Return the store's windows from a chunk of its index on, and the new ones after them."""
    old_code = old.column("instrument_index", index_chunk)
    old_code = code[old_code] if len(old_code) else old_code
    old_row = _rows(panel, old_code, old.column("time", index_chunk))
    row = np.concatenate([old_row, new.row])
    instrument = np.concatenate([old_code, new.instrument]).astype(np.int32)
    return WindowIndex(panel, old.spec, row, instrument, counts, schedule)


def _compared(
    old: ImageStore,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    schedule: dict[str, Any],
    overlap: _Overlap,
) -> Change:
    """Plan any other case: find all windows again and keep those at the front that are the same."""
    windows = _index(panel, old, schedule, mask)
    total = len(windows)
    if total == 0:
        raise ValueError(
            f"no window of store {old.location} can be drawn from this panel: build the store anew"
        )
    n = min(len(old), total)
    old_code = overlap.code[old.instrument_index[:n]]
    same = (old_code == windows.instrument[:n]) & (old.time[:n] == panel.time[windows.row[:n]])
    kept = n if same.all() else int(np.flatnonzero(~same)[0])
    chunks = _chunks_from(old, kept, total) if kept < max(len(old), total) else np.zeros(0, np.int64)
    if len(overlap.revised):
        form = old.objects.chunk_format
        flags = np.zeros(panel.n_instruments, np.bool_)
        flags[overlap.revised] = True
        unit = form.object_windows
        touched = np.unique(np.flatnonzero(flags[windows.instrument[:kept]]) // unit)
        per = unit // form.windows
        more = (touched[:, None] * per + np.arange(per)).reshape(-1)
        chunks = np.union1d(chunks, more[more < form.chunks(total)])
        if len(touched):
            kept = min(kept, int(touched[0]) * unit)
    deaths = ReturnRule.from_attributes(old.attrs).deaths(panel, windows, old.horizons)
    attributes = _attributes(old, windows, windows.candidates, total, deaths)
    return Change(attributes, windows, 0, kept, total, chunks, 0, overlap.codes)


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
        periods=schedule.get("periods"),
    )


def _deaths(
    old: ImageStore, windows: WindowIndex, ends: NDArray[np.int64], n_old: int, last_old: int
) -> dict[str, int]:
    """Count the kept returns of instruments that ended, without a look at windows whose labels are settled.

    The first `n_old` of `windows` are the store's: what they counted for when the panel's instruments had
    their rows up to `ends`, and its last bar was at `last_old`, is replaced by what they count for now.
    """
    rule, panel = ReturnRule.from_attributes(old.attrs), windows.panel
    now = rule.deaths(panel, windows, old.horizons)
    if n_old == 0 or rule.delisting != "hold":
        before = dict.fromkeys(now, 0)
    else:
        past = _halves(panel, ends)
        past._cache["calendar"] = panel.calendar[: int(np.searchsorted(panel.calendar, last_old)) + 1]
        seen = WindowIndex(past, old.spec, windows.row[:n_old], 2 * windows.instrument[:n_old], {}, {})
        before = rule.deaths(past, seen, old.horizons)
    counted = old.attrs.get("died_within_horizon", {})
    return {h: counted.get(h, 0) - before[h] + now[h] for h in now}


def _attributes(
    old: ImageStore, windows: WindowIndex, candidates: int, total: int, deaths: Mapping[str, int]
) -> dict[str, Any]:
    found = {
        **{k: v for k, v in old.attrs.items() if k != "metadata_digest"},
        "panel_digest": windows.panel.digest,
        "windows": total,
        "instruments": windows.panel.n_instruments,
        "candidates": candidates,
        "drop_counts": dict(windows.counts),
        "schedule": dict(windows.schedule),
    }
    # A store that was made before deaths were counted does not begin to count them.
    return {**found, "died_within_horizon": dict(deaths)} if "died_within_horizon" in found else found


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
