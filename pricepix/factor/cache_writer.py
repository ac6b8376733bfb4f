"""Write scores into a factor cache: a new one, or one that is resumed or appended to.

Days of a new cache are written in place, where nobody looks before ``zarr.json`` is there, which comes last. Those of
an append are written beside the cache, and become it by one write (``pricepix.store.commit``). Either way, what is
done is recorded below ``_build`` stretch by stretch, from which a stopped scoring resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.cache import FactorCache
from pricepix.factor.cache_changes import (
    Changes,
    Part,
    block_digests,
    find_changes,
    revision_error,
    source_chunks,
    source_form,
)
from pricepix.factor.cache_days import COUNTS, BaseDays, Cells, DayBuffer, Scored
from pricepix.factor.cache_format import (
    CHECKSUM_KEY,
    DIGESTS,
    FORMAT,
    IMAGES,
    CacheContent,
    checksum_table,
    fill_of,
    object_checksum,
)
from pricepix.factor.cache_journal import CHANGES, Commit, Journal
from pricepix.factor.cache_objects import DONE, PLAN, CacheObjects, read_root
from pricepix.factor.cache_plan import Plan, Progress
from pricepix.factor.calendar import interval_names, interval_times
from pricepix.factor.panel_check import panel_labels, read_labels
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.factor.scorer import Scorer
from pricepix.location import BUILD, Folder, Location
from pricepix.store.chunks import seal, unseal
from pricepix.store.commit import STAGE, commit, finish_pending, staged
from pricepix.store.format import ROOT, dump
from pricepix.store.lock import KEY as LOCK
from pricepix.store.lock import WriteLock
from pricepix.windows.labels import NO_TIME

__all__ = ["CacheWriter", "Request", "check_location", "prepare_cache"]

# An image store whose build has only begun is not ours.
_STORE_PLAN: Final = f"{BUILD}/plan.json"
# Folders of a cache's own objects. Whatever else somebody puts beside them stays.
_OWN: Final = tuple(
    f"{name}/"
    for name in (
        "factor",
        "spread",
        "scored",
        "day",
        "time",
        "instrument",
        "interval",
        "labels",
        "journal",
        "integrity",
    )
)
# Attributes in which a cache agrees with the call that resumes it, and what messages call them.
_SAME: Final = {
    "spec_digest": "image spec",
    "shift": "shift",
    "delay": "delay",
    "tz": "zone",
    "values": "values",
    "precision": "precision",
    "start": "start",
}
# Attributes that an append takes from the call.
_RENEWED: Final = ("store_digest", "panel_digest", "panel_shape", "store", "versions", "model")

Times = NDArray[np.int64]


def check_location(location: Location) -> None:
    """Raise FileExistsError if a location holds something that is not a factor cache, whole or unfinished."""
    name = location.name
    if isinstance(location, Folder) and location.path.is_file():
        raise FileExistsError(f"{name} is a file; a factor cache is a folder: give another path")
    content = location.get(ROOT)
    if content is not None:
        try:
            found = json.loads(bytes(content))["attributes"]["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            found = False
    else:
        # A kill at the very start or end leaves nothing but what lies below ``_build``.
        keys = set(location.list()) if location.get(PLAN) is None else set()
        found = _STORE_PLAN not in keys and all(key.startswith(f"{BUILD}/") for key in keys)
    if not found:
        raise FileExistsError(f"{name} exists already and is not a factor cache: give another path")


@dataclass(frozen=True)
class Request:
    """What is to be scored, by what, and the attributes that its cache gets."""

    attrs: dict[str, Any]
    placement: Placement
    windows: StoreWindows
    scorer: Scorer
    spread: bool
    append: bool
    on_revision: str
    rename: Mapping[str, str]
    """New names of instruments of the cache, by old name."""
    known: int
    """Nanoseconds: when the values become known."""
    by_windows: bool
    """Whether the calendar is the times of the store's windows."""


def prepare_cache(location: Location, lock: WriteLock, request: Request) -> CacheWriter | None:
    """Return what writes the cache, from where an earlier call stopped; None if nothing is left to do.

    The caller holds the lock. What a killed writer left behind is finished, resumed or removed.
    """
    root = read_root(location)
    if root is not None and "pending" in root["attributes"]:
        finish_pending(location)
    base = None if root is None else FactorCache(CacheObjects.open(location, finish=False))
    if base is not None:
        check_same(location.name, request, base.attrs, base.spread is not None)
        if not _continues(base, request):
            location.delete_all(BUILD, keep=LOCK)
            return None
        request = _over_base(base, request)
    plan = Plan.read(location, base)
    if plan is not None and base is None:
        check_same(location.name, request, plan.attributes, plan.spread)
    progress: Progress | None = None
    checksums: dict[str, int] = {}
    if plan is not None and _is_resumable(plan, request):
        progress, checksums = plan.progress(location, request.placement, request.windows)
    if progress is None:
        plan = None
        _remove_unfinished(location, base)
    return CacheWriter(location, lock, request, base, plan, progress, checksums)


def _is_resumable(plan: Plan, request: Request) -> bool:
    placement = request.placement
    return (
        plan.on_revision == request.on_revision
        and plan.first == placement.skipped
        and plan.intervals == interval_names(placement.interval)
    )


def _over_base(base: FactorCache, request: Request) -> Request:
    """Return the request over the days and times of day of the cache as well."""
    unknown = sorted(set(request.rename) - set(base.instruments.tolist()))
    if unknown:
        raise ValueError(f"rename: cache {base.location} has no instrument {unknown[0]!r}")
    placement = request.placement
    before = np.sort(base.time[base.time != NO_TIME])
    if placement.shift and request.by_windows and len(np.setdiff1d(before, placement.calendar)):
        raise ValueError(
            f"cache {base.location} has bars that are no times of {request.windows.label}'s windows, and its values "
            f"are moved by {placement.shift} bars: give panel= as when it was made"
        )
    days, interval = base.days.astype(np.int64), interval_times(base.intervals)
    return replace(request, placement=placement.over(days, interval, base.time))


def _continues(base: FactorCache, request: Request) -> bool:
    """Whether there is anything to score for a cache; ValueError if it may not be changed."""
    attrs, placement, windows = request.attrs, request.placement, request.windows
    grown = base.attrs["store_digest"] != attrs["store_digest"]
    if grown and not request.append:
        raise ValueError(
            f"cache {base.location} holds the scores of other images (digest {base.attrs['store_digest']}, those of "
            f"{windows.label} have {attrs['store_digest']}): pass append=True if these are the same market's, later "
            "or revised, or give another location"
        )
    pending = base.attrs["kept"] > 0 and request.on_revision != "keep"
    return grown or pending or bool(request.rename) or placement.windows > int(base.attrs["windows"])


def check_same(name: str, request: Request, before: dict[str, Any], before_spread: bool) -> None:
    """Raise ValueError if a cache was scored in any other way than this call would score it."""
    scorer, spread, model = request.scorer, request.spread, before["model"]
    if scorer.digest is None:
        raise ValueError(
            f"cache {name} exists, and it cannot be known whether {scorer.name} is the model that it holds"
            f"{scorer.why_unknown}: name it by model_id= (the same as then), or give another location"
        )
    if model["digest"] != scorer.digest and not scorer.continues(model, before.get("scored_through")):
        hint = (
            "; if it is the same function, and only what it counts or caches differs, name it by model_id="
            if not scorer.members
            else ""
        )
        raise ValueError(
            f"cache {name} holds the scores of {model['name']} (digest {model['digest']}), not of {scorer.name} "
            f"(digest {scorer.digest}): a cache never mixes models; give another location{hint}"
        )
    for key, what in _SAME.items():
        if before.get(key) != request.attrs[key]:
            raise ValueError(
                f"cache {name} has another {what} ({before.get(key)}, not {request.attrs[key]}): give another location"
            )
    if before_spread != spread:
        has = "holds" if before_spread else "does not hold"
        raise ValueError(f"cache {name} {has} the members' spread: pass spread={not spread}")


def _remove_unfinished(location: Location, base: FactorCache | None) -> None:
    """Remove what a stopped scoring left. Of a new cache the plan goes last: it says what the rest is."""
    for key in sorted(location.list(DONE), reverse=True):
        location.delete(key)
    if base is None:
        for key in list(location.list()):
            if key.startswith(_OWN):
                location.delete(key)
    location.delete_all(BUILD, keep=LOCK)


class CacheWriter:
    """Writes days of scores, and at the end everything else of a cache."""

    def __init__(
        self,
        location: Location,
        lock: WriteLock,
        request: Request,
        base: FactorCache | None,
        plan: Plan | None,
        progress: Progress | None,
        checksums: dict[str, int],
    ) -> None:
        self.location, self.lock, self.base, self.request = location, lock, base, request
        self.placement, self.windows, self.scorer = request.placement, request.windows, request.scorer
        whole = base is not None and (bool(request.rename) or base.attrs["kept"] > 0)
        self.changes: Changes = find_changes(base, self.placement, self.windows, whole=whole)
        attrs = {**request.attrs, "skipped": self.placement.skipped}
        if base is not None:
            attrs = {**base.attrs, **{name: attrs[name] for name in _RENEWED}}
        self.attrs = attrs
        before = 0 if base is None else int(base.attrs["without_value"])
        fresh = Progress(self.placement.skipped, 0, "", dict.fromkeys(COUNTS, 0) | {"without_value": before})
        self.progress = self._recorded = fresh if progress is None else progress
        self.checksums: dict[str, int] = checksums
        self.content = self._content(plan)
        self.days = BaseDays(base, self.content)
        self.cells = Cells(self.windows, self.placement, self.content.instruments)
        self._key = str if base is None else staged
        if plan is None:
            plan = self._plan(attrs)
        plan.write(location)

    @property
    def done(self) -> int:
        """Windows that need not be scored again."""
        return self.progress.windows

    @property
    def parts(self) -> list[Part]:
        """What is left to look at."""
        return [part for part in self.changes.parts if part.last > self.done]

    def _plan(self, attrs: dict[str, Any]) -> Plan:
        content, base = self.content, self.base
        return Plan(
            base=None if base is None else base.attrs["metadata_digest"],
            attributes=attrs,
            days=content.days.tolist(),
            instruments=content.instruments,
            intervals=content.intervals,
            block=content.block,
            spread=content.spread,
            on_revision=self.request.on_revision,
            first=self.placement.skipped,
            source=Plan.source_of(self.windows),
        )

    def _content(self, plan: Plan | None) -> CacheContent:
        base, placement, windows = self.base, self.placement, self.windows
        known, block = windows.names, max(len(windows.names), 1)
        if base is not None:
            rename = self.request.rename
            known = [rename.get(name, name) for name in base.instruments.tolist()]
            block = int(base.factor.chunks[1])
            labels, label_attributes = read_labels(base)
        else:
            labels, label_attributes = panel_labels(windows.store, self.scorer.horizon)
        if plan is not None:
            known, block = plan.instruments, plan.block
        if len(set(known)) < len(known):
            raise ValueError(f"rename gives two instruments of cache {self.location.name} the same name")
        names = set(known)
        return CacheContent(
            days=placement.day,
            time=placement.time,
            instruments=[*known, *(name for name in windows.names if name not in names)],
            intervals=interval_names(placement.interval),
            spread=self.request.spread,
            block=block,
            labels=labels,
            label_attributes=label_attributes,
            source_chunks=source_chunks(windows.store),
            journal=Journal() if base is None else base.journal(whole=False),
        )

    def scored_before(self, part: Part) -> NDArray[np.uint64]:
        """Return the digests of the images that the cache has values of, for the windows of a part; 0 for none."""
        found = np.zeros(part.last - part.first, np.uint64)
        if self.base is None:
            return found
        day, row, interval = self.cells.of(np.arange(part.first, part.last))
        for k in np.unique(day).tolist():
            own = day == k
            found[own] = self.days.read(IMAGES, k)[row[own], interval[own]]
        return found

    def write(self, results: Iterable[Scored], update: Callable[[int], Any]) -> None:
        """Place scores on their days, and write each day once the last window that goes there has been scored.

        Parameters
        ----------
        results : iterable of Scored
            In order. Scores of windows that are done are passed over: a resumed scoring gives the model the same
            batches as one that was not stopped.
        update : callable
            Takes the number of new windows of each result.
        """
        placement, windows = self.placement, self.windows
        on_revision = self.request.on_revision
        buffer = DayBuffer(self.days, self.cells, self.changes.removed_from, on_revision, self.put_day)
        for scored in results:
            if len(scored.revised) and on_revision == "raise":
                assert self.base is not None
                raise revision_error(self.base, windows, scored.revised)
            if on_revision == "keep":
                buffer.kept = np.append(buffer.kept, scored.revised[scored.revised >= self.done])
            fresh = scored.window >= self.done
            if self.scorer.kind == "probability":
                _check_probabilities(scored.values[fresh & ~np.isnan(scored.values)], self.scorer.name)
            buffer.put(scored, fresh)
            # Days before that of the next window are closed.
            code = int(np.searchsorted(windows.end, scored.part.last, side="right"))
            if code < len(placement.to_day):
                self._close(buffer, int(placement.to_day[code]))
            update(scored.part.last - scored.part.first)
        self._close(buffer, len(placement.day))

    def _close(self, buffer: DayBuffer, open_day: int) -> None:
        """Write the days before `open_day` that changed, and record it."""
        checksums = buffer.write(self.progress.day, open_day)
        self.lock.check()
        code = int(np.searchsorted(self.placement.to_day, open_day))
        written = int(np.append(self.placement.skipped, self.windows.end)[code]) if code else 0
        written = max(written, self.placement.skipped)
        counts = {name: self.progress.counts[name] + buffer.counts[name] for name in COUNTS}
        closed = int(np.searchsorted(buffer.kept, written))
        counts["kept"] += closed
        buffer.kept = buffer.kept[closed:]
        buffer.reset()
        self.progress = Progress(written, open_day, self.windows.digest(written), counts)
        self.checksums |= checksums
        if checksums:
            Plan.record(self.location, self._recorded, self.progress, checksums)
            self._recorded = self.progress

    def put_day(self, name: str, day: int, values: NDArray[Any]) -> dict[str, int]:
        """Write a day of values, (instruments, intervals); return the checksums of its objects."""
        layout, checksums = self.content.values_layout(name), {}
        for group, stored in enumerate(self.content.encode_day(values)):
            key = layout.key(day, group, 0)
            checksums[key] = object_checksum(stored)
            if stored is not None:
                self.location.put(self._key(key), stored)
        return checksums

    def finish(self) -> dict[str, int]:
        """Write everything else, and make it all the cache at once; return what was counted."""
        base, content = self.base, self.content
        before = {} if base is None else base.objects.checksums
        facts = self._facts()
        counts = {name: self.progress.counts[name] for name in COUNTS}
        self._write_journal(facts, counts)
        checksums = {**before, **self.checksums}
        objects: dict[str, bytes] = {}
        layouts = content.layouts()
        axes = content.encode_axes()
        for layout in layouts:
            for key, stored in zip(layout.object_keys(), axes.get(layout.name, ()), strict=False):
                if stored is None:
                    continue
                checksums[key] = object_checksum(stored)
                if before.get(key) != checksums[key]:
                    objects[key] = stored
        table = checksum_table(layouts, checksums)
        attributes = {name: value for name, value in self.attrs.items() if name not in DIGESTS}
        metadata = content.metadata({**attributes, **facts, "complete": True}, table)
        root = json.loads(metadata.pop(ROOT))
        objects |= {key: stored for key, stored in metadata.items() if not self._is_kept(key, stored)}
        objects[CHECKSUM_KEY] = seal(table)
        self.lock.check()
        for key, stored in objects.items():
            self.location.put(self._key(key), stored)
        keys = (key for layout in layouts for key in layout.object_keys())
        values = {key for key in keys if checksums.get(key, -1) >= 0}
        whole = values | metadata.keys() | {ROOT, CHECKSUM_KEY}
        if base is None:
            self._remove_others(whole, "")
            self.location.put(ROOT, dump(root))
            self.location.delete_all(BUILD, keep=LOCK)
        else:
            written = {key for key, value in self.checksums.items() if value >= 0}
            self._remove_others({staged(key) for key in written | objects.keys()}, STAGE)
            commit(self.location, root, sorted(base.objects.object_keys() - whole))
        return counts

    def _facts(self) -> dict[str, Any]:
        """Return the attributes that tell how far the cache is scored."""
        placement, windows = self.placement, self.windows
        done = placement.windows
        code = int(np.searchsorted(windows.end, done, side="left"))
        blocks = block_digests(windows, done)
        return {
            "windows": done,
            "skipped": placement.skipped,
            "unplaced": placement.unplaced,
            "scored_through": int(windows.time[code]) if done else None,
            "scored_blocks": blocks,
            "scored_digest": windows.digest(done),
            "source_form": source_form(windows.store),
            "kept": self.progress.counts["kept"],
            "without_value": self.progress.counts["without_value"],
        }

    def _write_journal(self, facts: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """Note when the values became known, and what stood in the cells that changed."""
        journal, found = self.content.journal, dict.fromkeys(CHANGES, np.empty(0))
        if self.base is not None:
            found = self._replaced()
        known = max([self.request.known, *journal.commits["known"][-1:].tolist()])
        last_day = int(self.content.days[-1])
        commit = Commit(known, last_day, facts["windows"], counts["added"], counts["revised"],
                        counts["removed"], counts["without_value"])  # fmt: skip
        journal.add(commit, {name: values for name, values in found.items() if name != "commit"})
        if self.request.rename:
            renamed = [[len(journal) - 1, old, new] for old, new in self.request.rename.items()]
            self.attrs["renamed"] = [*self.attrs.get("renamed", []), *renamed]

    def _replaced(self) -> dict[str, NDArray[Any]]:
        """Return what stood in the cells that changed, up to the last day that the cache had, as `CHANGES`."""
        assert self.base is not None
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in CHANGES if name != "commit"}
        end = int(np.searchsorted(self.content.days, self.base.days[-1].astype(np.int64), side="right"))
        prefix = self.content.values_layout("factor").key(0, 0, 0).partition("/0/")[0]
        written = {int(key.split("/")[2]) for key in self.checksums if key.startswith(prefix)}
        for day in sorted(day for day in written if day < end):
            before = {name: self.days.read(name, day) for name in self.content.value_names}
            changed = np.zeros(before["factor"].shape, bool)
            for name, values in before.items():
                changed |= self._written(name, day).view(f"u{values.itemsize}") != values.view(
                    f"u{values.itemsize}"
                )
            row, interval = np.nonzero(changed)
            parts["time"].append(self.content.time[day, interval])
            parts["instrument"].append(row)
            parts["factor"].append(before["factor"][row, interval])
            parts["spread"].append(
                before.get("spread", np.full_like(before["factor"], np.nan))[row, interval]
            )
        return {
            name: np.concatenate([np.empty(0, CHANGES[name]), *values]).astype(CHANGES[name])
            for name, values in parts.items()
        }

    def _written(self, name: str, day: int) -> NDArray[Any]:
        """Return a day that this scoring wrote."""
        layout = self.content.values_layout(name)
        _, instruments, intervals = self.content.shape
        dtype = self.content.value_dtype(name)
        found = np.full((instruments, intervals), fill_of(dtype), dtype)
        for group in range(layout.grid[1]):
            key = layout.key(day, group, 0)
            if self.checksums.get(key, -1) < 0:
                continue
            stored = self.location.get(self._key(key))
            if stored is None or int.from_bytes(memoryview(stored)[-4:], "little") != self.checksums[key]:
                raise ValueError(f"{key} of cache {self.location.name} was changed while it was being scored")
            whole = np.frombuffer(unseal(stored), dtype).reshape(-1, intervals)
            first = group * self.content.block
            part = found[first : first + self.content.block]
            part[:] = whole[: len(part)]
        return found

    def _is_kept(self, key: str, stored: bytes) -> bool:
        """Whether the metadata of an array or a group are those that the cache has."""
        if self.base is None:
            return False
        before = dict(self.base.objects.members.get(key.removesuffix(f"/{ROOT}"), {}))
        before.pop("consolidated_metadata", None)
        return bool(before == json.loads(stored))

    def _remove_others(self, kept: set[str], prefix: str) -> None:
        """Remove what an earlier scoring, of other images, left among the objects to keep."""
        for key in list(self.location.list(prefix)):
            if key not in kept and key.startswith((STAGE, *_OWN)):
                self.location.delete(key)


def _check_probabilities(values: NDArray[np.float32], name: str) -> None:
    if len(values) and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"{name} gave scores from {values.min():.4g} to {values.max():.4g}, which are not probabilities: pass "
            "values='score' if they are only to be ranked"
        )
