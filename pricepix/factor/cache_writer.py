"""Write scores into a factor cache: a new one, or one that is resumed or appended to.

Days of a new cache are written in place, where nobody looks before ``zarr.json`` is there, which comes last. Those of
an append are written beside the cache, and become it by one write (``pricepix.store.commit``). Either way, what is
done is recorded below ``_build`` stretch by stretch, from which a stopped scoring resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.cache import FactorCache
from pricepix.factor.cache_format import (
    CHECKSUM_KEY,
    DIGESTS,
    FORMAT,
    CacheContent,
    checksum_table,
    object_checksum,
)
from pricepix.factor.cache_objects import DONE, PLAN, CacheObjects, read_root
from pricepix.factor.calendar import interval_names
from pricepix.factor.panel_check import panel_labels, read_labels
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.factor.scorer import Scorer
from pricepix.location import BUILD, Folder, Location
from pricepix.store.chunks import seal
from pricepix.store.commit import STAGE, commit, finish_pending, staged
from pricepix.store.format import ROOT, dump
from pricepix.store.lock import KEY as LOCK
from pricepix.store.lock import WriteLock

__all__ = ["CacheWriter", "Request", "Scored", "check_location", "prepare_cache"]

# An image store whose build has only begun is not ours.
_STORE_PLAN: Final = f"{BUILD}/plan.json"
# Folders of a cache's own objects. Whatever else somebody puts beside them stays.
_OWN: Final = tuple(
    f"{name}/"
    for name in ("factor", "spread", "day", "time", "instrument", "interval", "labels", "integrity")
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
_RENEWED: Final = ("store_digest", "panel_digest", "panel_shape", "store", "versions")

# Attributes that tell how far a cache is scored.
_FACTS: Final = ("windows", "scored_through", "scored_digest", "without_value")

Times = NDArray[np.int64]
Scored = tuple[int, NDArray[np.float32], NDArray[np.float32] | None]
"""First window, values, spread."""


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

    @property
    def intervals(self) -> list[str]:
        """Times of day."""
        return interval_names(self.placement.interval)


def prepare_cache(location: Location, lock: WriteLock, request: Request) -> CacheWriter | None:
    """Return what writes the cache, from where an earlier call stopped; None if nothing is left to do.

    The caller holds the lock. What a killed writer left behind is finished, resumed or removed.
    """
    root = read_root(location)
    if root is not None and "pending" in root["attributes"]:
        finish_pending(location)
    base = None if root is None else FactorCache(CacheObjects.open(location, finish=False))
    placement, windows = request.placement, request.windows
    if base is not None:
        _check_same(location.name, request, base.attrs, base.intervals, base.spread is not None)
        if not _continues(base, request):
            location.delete_all(BUILD, keep=LOCK)
            return None
    plan = _Plan.read(location, base)
    if plan is not None and base is None:
        _check_same(location.name, request, plan.attributes, plan.intervals, plan.spread)
        if not np.array_equal(placement.day[: len(plan.days)], plan.days):
            raise _other_days(location.name, np.array(plan.days), placement)
    if plan is None or not plan.fits(placement, windows):
        plan = None
        _remove_unfinished(location, base)
    return CacheWriter(location, lock, request, base, plan)


def _continues(base: FactorCache, request: Request) -> bool:
    """Whether there is anything to add to a cache; ValueError if the images do not continue those of the cache."""
    attrs, placement, windows = request.attrs, request.placement, request.windows
    grown = base.attrs["store_digest"] != attrs["store_digest"]
    if grown and not request.append:
        raise ValueError(
            f"cache {base.location} holds the scores of other images (digest {base.attrs['store_digest']}, those of "
            f"{windows.label} have {attrs['store_digest']}): pass append=True if these begin with those, which is "
            "checked, or give another location"
        )
    done = int(base.attrs["windows"])
    if windows.digest(done) != base.attrs["scored_digest"]:
        raise ValueError(
            f"the windows of {windows.label} do not begin with those that cache {base.location} was scored from: "
            "history was changed or removed; score to a new location"
        )
    if done >= placement.windows and not grown:
        return False
    days = base.days.astype(np.int64)
    if not np.array_equal(placement.day[: len(days)], days):
        raise _other_days(base.location, days, placement)
    return True


def _other_days(name: str, days: Times, placement: Placement) -> ValueError:
    first, other = (str(day[:1].astype("datetime64[D]")[0]) for day in (days, placement.day))
    return ValueError(
        f"cache {name} has different days ({len(days)} from {first}) than this calendar ({len(placement.day)} from "
        f"{other}): give panel= as when it was made"
    )


def _check_same(
    name: str, request: Request, before: dict[str, Any], before_intervals: list[str], before_spread: bool
) -> None:
    """Raise ValueError if a cache was scored in any other way than this call would score it."""
    scorer, spread, intervals, model = request.scorer, request.spread, request.intervals, before["model"]
    if scorer.digest is None:
        raise ValueError(
            f"cache {name} exists, and it cannot be known whether {scorer.name} is the model that it holds: "
            "name it by model_id= (the same as then), or give another location"
        )
    if model["digest"] != scorer.digest:
        raise ValueError(
            f"cache {name} holds the scores of {model['name']} (digest {model['digest']}), not of {scorer.name} "
            f"(digest {scorer.digest}): a cache never mixes models; give another location"
        )
    for key, what in _SAME.items():
        if before.get(key) != request.attrs[key]:
            raise ValueError(
                f"cache {name} has another {what} ({before.get(key)}, not {request.attrs[key]}): give another location"
            )
    if before_spread != spread:
        has = "holds" if before_spread else "does not hold"
        raise ValueError(f"cache {name} {has} the members' spread: pass spread={not spread}")
    if before_intervals != intervals:
        raise ValueError(
            f"cache {name} has the times of day {', '.join(before_intervals[:5])}, ... ({len(before_intervals)}), "
            f"this calendar {', '.join(intervals[:5])}, ... ({len(intervals)}): score to a new location, or give "
            "panel= as when it was made"
        )


@dataclass(frozen=True)
class _Plan:
    """What a scoring that was stopped is of, and how far it came."""

    after: int
    """Windows before the first that it scores."""
    attributes: dict[str, Any]
    days: list[int]
    instruments: list[str]
    intervals: list[str]
    block: int
    spread: bool
    facts: dict[str, Any]
    """The attributes named in `_FACTS`, as they stand after the days done."""
    checksums: dict[str, int]
    """Of the values of these days."""

    @staticmethod
    def read(location: Location, base: FactorCache | None) -> _Plan | None:
        """Read the plan of a stopped scoring; None if there is none of this state of the cache with days done."""
        content = location.get(PLAN)
        if content is None:
            return None
        plan = json.loads(bytes(content))
        if plan.pop("base") != (None if base is None else base.attrs["metadata_digest"]):
            return None
        facts: dict[str, Any] = {}
        checksums: dict[str, int] = {}
        after = plan["after"]
        for key in sorted(location.list(DONE)):
            done = json.loads(bytes(location.get(key) or b"{}"))
            if done.get("after") != after:
                break
            facts, after = done["facts"], done["facts"]["windows"]
            checksums |= done["checksums"]
        return _Plan(**plan, facts=facts, checksums=checksums) if facts else None

    def fits(self, placement: Placement, windows: StoreWindows) -> bool:
        """Whether the images still begin with those that are scored, on the same days."""
        days = np.array_equal(placement.day[: len(self.days)], self.days)
        return days and windows.digest(self.facts["windows"]) == self.facts["scored_digest"]


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
        plan: _Plan | None,
    ) -> None:
        self.location, self.lock, self.base = location, lock, base
        self.placement, self.windows, self.scorer = request.placement, request.windows, request.scorer
        attrs = {**request.attrs, "skipped": request.placement.skipped}
        if base is not None:
            attrs = {**base.attrs, **{name: attrs[name] for name in _RENEWED}}
        self.attrs = attrs
        self.first = max(int(attrs["windows"]), self.placement.skipped) if plan is None else plan.after
        """Window at which a scoring that is not stopped begins."""
        self.done = self.first if plan is None else int(plan.facts["windows"])
        """Windows that need not be scored again."""
        self.facts = {name: attrs[name] for name in _FACTS} if plan is None else plan.facts
        self.checksums: dict[str, int] = {} if plan is None else plan.checksums
        self.content = self._content(plan, request.spread)
        place_of = {name: i for i, name in enumerate(self.content.instruments)}
        self.place = np.array([place_of[name] for name in self.windows.names], np.int64)
        """int64 (instruments of the store,): their places along the cache's axis."""
        self._key = str if base is None else staged
        self._put_plan()

    def _content(self, plan: _Plan | None, spread: bool) -> CacheContent:
        base, placement, windows = self.base, self.placement, self.windows
        time = placement.time
        known, block = windows.names, max(len(windows.names), 1)
        if base is not None:
            known, block = base.instruments.tolist(), int(base.factor.chunks[1])
            # The cache's last day may have gained bars since.
            time = time.copy()
            kept = max(0, base.shape[0] - 1)
            time[:kept] = base.time[:kept]
            labels, label_attributes = read_labels(base)
        else:
            labels, label_attributes = panel_labels(windows.store, self.scorer.horizon)
        if plan is not None:
            known, block = plan.instruments, plan.block
        names = set(known)
        return CacheContent(
            days=placement.day,
            time=time,
            instruments=[*known, *(name for name in windows.names if name not in names)],
            intervals=interval_names(placement.interval),
            spread=spread,
            block=block,
            labels=labels,
            label_attributes=label_attributes,
        )

    def _put_plan(self) -> None:
        content, base = self.content, self.base
        plan = {
            "base": None if base is None else base.attrs["metadata_digest"],
            "after": self.first,
            "attributes": self.attrs,
            "days": content.days.tolist(),
            "instruments": content.instruments,
            "intervals": content.intervals,
            "block": content.block,
            "spread": content.spread,
        }
        self.location.put(PLAN, dump(plan))

    def stored_days(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        """Return what the cache has of days `first` to below `last`, NaN where it has nothing."""
        _, instruments, intervals = self.content.shape
        found = np.full((last - first, instruments, intervals), np.nan, np.float32)
        if self.base is not None and first < self.base.shape[0]:
            array = self.base.factor if name == "factor" else self.base.spread
            assert array is not None
            old = np.asarray(array[first:last])
            found[: len(old), : old.shape[1]] = old
        return found

    def put_day(self, name: str, day: int, values: NDArray[np.float32]) -> dict[str, int]:
        """Write a day of values, (instruments, intervals); return the checksums of its objects."""
        layout, checksums = self.content.values_layout(name), {}
        for group, stored in enumerate(self.content.encode_day(values)):
            key = layout.key(day, group, 0)
            checksums[key] = object_checksum(stored)
            if stored is not None:
                self.location.put(self._key(key), stored)
        return checksums

    def write(self, results: Iterable[Scored], update: Callable[[int], Any]) -> None:
        """Place scores on their days, and write each day once the last window that goes there has been scored.

        Parameters
        ----------
        results : iterable of Scored
            Scores in order. Those of windows that are done are passed over: a resumed scoring gives the model the
            same batches as one that was not stopped.
        update : callable
            Takes the number of new windows of each result.
        """
        placement, windows = self.placement, self.windows
        buffer = _DayBuffer(self)
        blank = np.empty(0, np.int64)
        for first, values, spread in results:
            passed = min(max(self.done - first, 0), len(values))
            a, b = first + passed, first + len(values)
            if a == b:
                continue
            values, spread = values[passed:], None if spread is None else spread[passed:]
            missing = np.isnan(values)
            blank = np.append(blank, a + np.flatnonzero(missing))
            if self.scorer.kind == "probability":
                _check_probabilities(values[~missing], self.scorer.name)
            code = np.searchsorted(windows.time, windows.column("time", a, b))
            row = self.place[windows.column("instrument_index", a, b)]
            buffer.put(placement.to_day[code], row, placement.to_interval[code], (values, spread))
            # Days before that of the next window are closed.
            next_code = int(np.searchsorted(windows.end, b, side="right"))
            is_last = next_code >= len(placement.to_day)
            open_day = len(placement.day) if is_last else int(placement.to_day[next_code])
            checksums = buffer.write(open_day)
            if checksums:
                last = int(np.searchsorted(placement.to_day, open_day)) - 1
                written = int(windows.end[last])
                closed = int(np.searchsorted(blank, written))
                self._record(written, int(windows.time[last]), closed, checksums)
                blank = blank[closed:]
            update(len(values))

    def _record(self, written: int, through: int, blank: int, checksums: dict[str, int]) -> None:
        """Record that windows up to `written` are done, `blank` more of them without a value."""
        self.lock.check()
        before, self.done = self.done, written
        self.checksums |= checksums
        self.facts = {
            "windows": written,
            "scored_through": through,
            "scored_digest": self.windows.digest(written),
            "without_value": self.facts["without_value"] + blank,
        }
        record = {"after": before, "facts": self.facts, "checksums": checksums}
        self.location.put(f"{DONE}/{written:015d}", dump(record))

    def finish(self) -> None:
        """Write everything else, and make it all the cache at once."""
        base, content = self.base, self.content
        before = {} if base is None else base.objects.checksums
        checksums = {**before, **self.checksums}
        objects: dict[str, bytes] = {}
        layouts = content.layouts()
        axes = content.encode_axes()
        for layout in layouts:
            for key, stored in zip(layout.object_keys(), axes.get(layout.name, ()), strict=False):
                checksums[key] = object_checksum(stored)
                if before.get(key) != checksums[key]:
                    objects[key] = stored
        table = checksum_table(layouts, checksums)
        attributes = {name: value for name, value in self.attrs.items() if name not in DIGESTS}
        metadata = content.metadata(
            {**attributes, **self.facts, "unplaced": self.placement.unplaced, "complete": True}, table
        )
        root = json.loads(metadata.pop(ROOT))
        objects |= {key: stored for key, stored in metadata.items() if not self._is_kept(key, stored)}
        objects[CHECKSUM_KEY] = seal(table)
        self.lock.check()
        for key, stored in objects.items():
            self.location.put(self._key(key), stored)
        values = {key for key, value in checksums.items() if value >= 0}
        whole = values | metadata.keys() | {ROOT, CHECKSUM_KEY}
        if base is None:
            self._remove_others(whole, "")
            self.location.put(ROOT, dump(root))
            self.location.delete_all(BUILD, keep=LOCK)
        else:
            written = {key for key, value in self.checksums.items() if value >= 0}
            self._remove_others({staged(key) for key in written | objects.keys()}, STAGE)
            commit(self.location, root, sorted(base.objects.object_keys() - whole))

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


class _DayBuffer:
    """Days that are being filled, (day, instrument, interval) from day `first` on, for each array of values."""

    def __init__(self, writer: CacheWriter) -> None:
        self.writer = writer
        self.first = 0
        self.blocks: dict[str, NDArray[np.float32]] = {}

    def put(self, day: Times, row: Times, interval: Times, values: Iterable[Any]) -> None:
        if not self.blocks:
            self.first = int(day[0])
        for name, own in zip(self.writer.content.value_names, values, strict=False):
            block = self.blocks.get(name)
            end, needed = self.first + (0 if block is None else len(block)), int(day[-1]) + 1
            if block is None or needed > end:
                # What a cache already has of these days (an appended day's earlier bars) stays.
                stored = self.writer.stored_days(name, end, needed)
                block = self.blocks[name] = stored if block is None else np.concatenate([block, stored])
            block[day - self.first, row, interval] = own

    def write(self, open_day: int) -> dict[str, int]:
        """Write the days before `open_day`; return the checksums of their objects, none if there are no days."""
        checksums: dict[str, int] = {}
        closed = min(open_day - self.first, len(self.blocks["factor"]))
        if closed <= 0:
            return checksums
        for name, block in self.blocks.items():
            for i in range(closed):
                checksums |= self.writer.put_day(name, self.first + i, block[i])
        self.first += closed
        self.blocks = {name: block[closed:] for name, block in self.blocks.items()}
        if not len(self.blocks["factor"]):
            self.blocks = {}
        return checksums
