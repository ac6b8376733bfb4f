"""Write scores into a factor cache: a new one, or one that is resumed or appended to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from pricepix.factor.cache import FORMAT, CacheLike, FactorCache, create, extend, open_group
from pricepix.factor.calendar import interval_names
from pricepix.factor.panel_check import keep_labels
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.factor.scorer import Scorer

__all__ = ["Scored", "prepare_cache", "write_scores"]

# Attributes that older caches lack, with what they were scored with.
_DEFAULTS: Final = {"precision": "32-true"}
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

Times = NDArray[np.int64]
Scored = tuple[int, NDArray[np.float32], NDArray[np.float32] | None]
"""First window, values, spread."""


def prepare_cache(
    location: CacheLike | None,
    attrs: dict[str, Any],
    placement: Placement,
    windows: StoreWindows,
    scorer: Scorer,
    *,
    spread: bool,
    append: bool,
) -> tuple[zarr.Group, int | None]:
    """Create the cache, or open and check the one that exists.

    Returns
    -------
    group : zarr.Group
    done : int or None
        How many windows it has already; None if there is nothing left to do.
    """
    intervals = interval_names(placement.interval)
    if location is None or not _exists(location):
        group = create(location, attrs, windows.names, intervals, spread)
        extend(group, placement.day, placement.time, windows.names)
        keep_labels(group, windows.store, scorer.horizon)
        group.attrs.update({"skipped": placement.skipped})
        return group, placement.skipped
    cache = FactorCache(_open_existing(location), str(location))
    _check_same(cache, attrs, intervals, spread, scorer)
    grown = cache.attrs["store_digest"] != attrs["store_digest"]
    if grown and not append:
        raise ValueError(
            f"cache {location} holds the scores of other images (digest {cache.attrs['store_digest']}, those of "
            f"{windows.label} have {attrs['store_digest']}): pass append=True if these begin with those, which is "
            "checked, or give another location"
        )
    done = int(cache.attrs["windows"])
    _check_history(cache, windows, done)
    if cache.attrs["complete"] and done >= placement.windows and not grown:
        return cache.group, None
    old_names, old_days = cache.instruments.tolist(), cache.days.astype(np.int64)
    if not np.array_equal(placement.day[: len(old_days)], old_days):
        raise ValueError(
            f"cache {location} has different days ({len(old_days)} from {cache.days[0]}) than this calendar "
            f"({len(placement.day)} from {placement.day[:1].astype('datetime64[D]')[0]}): give panel= as when it "
            "was made"
        )
    group = open_group(location, "r+")
    names = old_names + [name for name in windows.names if name not in set(old_names)]
    changed = ("store_digest", "panel_digest", "panel_shape", "store", "versions")
    group.attrs.update({"complete": False, **{name: attrs[name] for name in changed}})
    extend(group, placement.day, placement.time, names)
    return group, max(done, placement.skipped)


def _exists(location: CacheLike) -> bool:
    if isinstance(location, str | PathLike) and "://" not in str(location):
        path = Path(location)
        if path.is_file():
            raise FileExistsError(f"{path} is a file; a factor cache is a folder: give another path")
        return path.is_dir() and any(path.iterdir())
    try:
        zarr.open_group(location, mode="r", zarr_format=3)
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        return False
    return True


def _open_existing(location: CacheLike) -> zarr.Group:
    try:
        group = open_group(location)
        is_cache = group.attrs.get("format") == FORMAT
    except ValueError:
        is_cache = False
    if not is_cache:
        raise FileExistsError(f"{location} exists already and is not a factor cache: give another path")
    return group


def _check_same(
    cache: FactorCache, attrs: dict[str, Any], intervals: list[str], spread: bool, scorer: Scorer
) -> None:
    """Raise ValueError if a cache was scored in any other way than this call would score it."""
    location, model = cache.location, cache.attrs["model"]
    if scorer.digest is None:
        raise ValueError(
            f"cache {location} exists, and it cannot be known whether {scorer.name} is the model that it holds: "
            "name it by model_id= (the same as then), or give another location"
        )
    if model["digest"] != scorer.digest:
        raise ValueError(
            f"cache {location} holds the scores of {model['name']} (digest {model['digest']}), not of {scorer.name} "
            f"(digest {scorer.digest}): a cache never mixes models; give another location"
        )
    for name, what in _SAME.items():
        found = cache.attrs.get(name, _DEFAULTS.get(name))
        if found != attrs[name]:
            raise ValueError(
                f"cache {location} has another {what} ({found}, not {attrs[name]}): give another location"
            )
    if (cache.spread is not None) != spread:
        has = "holds" if cache.spread is not None else "does not hold"
        raise ValueError(f"cache {location} {has} the members' spread: pass spread={not spread}")
    if cache.intervals != intervals:
        raise ValueError(
            f"cache {location} has the times of day {', '.join(cache.intervals[:5])}, ... ({len(cache.intervals)}), "
            f"this calendar {', '.join(intervals[:5])}, ... ({len(intervals)}): score to a new location, or give "
            "panel= as when it was made"
        )


def _check_history(cache: FactorCache, windows: StoreWindows, done: int) -> None:
    """Raise ValueError unless the store's windows begin with those that a cache was scored from."""
    digest = hashlib.blake2b(digest_size=16)
    if done <= windows.count:
        windows.update(digest, 0, done)
    if done > windows.count or digest.hexdigest() != cache.attrs["scored_digest"]:
        raise ValueError(
            f"the windows of {windows.label} do not begin with those that cache {cache.location} was scored from: "
            "history was changed or removed; score to a new location"
        )


def write_scores(
    group: zarr.Group,
    placement: Placement,
    windows: StoreWindows,
    done: int,
    results: Iterable[Scored],
    scorer: Scorer,
    progress: Callable[[int], Any],
) -> None:
    """Place scores on their days, and write each day once the last window that goes there has been scored.

    Parameters
    ----------
    group : zarr.Group
    placement : Placement
    windows : StoreWindows
    done : int
        Windows that the cache has already.
    results : iterable of Scored
        The scores of the windows after these, in order.
    scorer : Scorer
        What gave them.
    progress : callable
        Takes the number of windows of each result.
    """
    names: Any = group["instrument"]
    place_of = {str(n): i for i, n in enumerate(names[:].tolist())}
    place = np.array([place_of[n] for n in windows.names], np.int64)
    arrays = [group[n] for n in ("factor", "spread") if n in group]
    digest = hashlib.blake2b(digest_size=16)
    windows.update(digest, 0, done)
    buffer = _DayBuffer(arrays)
    hashed = done
    without_value: Any = group.attrs.get("without_value")
    blank = np.empty(0, np.int64)
    for a, values, spread in results:
        missing = np.isnan(values)
        blank = np.append(blank, a + np.flatnonzero(missing))
        if scorer.kind == "probability":
            _check_probabilities(values[~missing], scorer.name)
        b = a + len(values)
        code = np.searchsorted(windows.time, windows.column("time", a, b))
        day, interval = placement.to_day[code], placement.to_interval[code]
        row = place[windows.column("instrument_index", a, b)]
        for k, found in enumerate((values, spread)[: len(arrays)]):
            buffer.put(k, day, row, interval, found)
        # Days before that of the next window are closed.
        next_code = int(np.searchsorted(windows.end, b, side="right"))
        is_last = next_code >= len(placement.to_day)
        open_day = len(placement.day) if is_last else int(placement.to_day[next_code])
        if buffer.write(open_day):
            before = int(np.searchsorted(placement.to_day, open_day))
            written = int(windows.end[before - 1])
            windows.update(digest, hashed, written)
            hashed = written
            closed = int(np.searchsorted(blank, written))
            # A cache that an older release began has no count, and gets none.
            without_value = None if without_value is None else without_value + closed
            blank = blank[closed:]
            group.attrs.update(
                {
                    "windows": written,
                    "scored_through": int(windows.time[before - 1]),
                    "scored_digest": digest.hexdigest(),
                    "without_value": without_value,
                }
            )
        progress(len(values))


def _check_probabilities(values: NDArray[np.float32], name: str) -> None:
    if len(values) and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"{name} gave scores from {values.min():.4g} to {values.max():.4g}, which are not probabilities: pass "
            "values='score' if they are only to be ranked"
        )


class _DayBuffer:
    """Days that are being filled, (day, instrument, interval) from day `first` on, for each array."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays
        self.first = 0
        self.blocks: list[NDArray[np.float32]] = []

    def put(self, k: int, day: Times, row: Times, interval: Times, values: Any) -> None:
        if len(self.blocks) <= k:
            self.first = int(day[0])
            self.blocks.append(np.empty((0, *self.arrays[k].shape[1:]), np.float32))
        need, have = int(day[-1]) + 1 - self.first, len(self.blocks[k])
        if need > have:
            # What a cache already has of these days (an appended day's earlier bars) stays.
            stored = np.asarray(self.arrays[k][self.first + have : self.first + need])
            self.blocks[k] = np.concatenate([self.blocks[k], stored])
        self.blocks[k][day - self.first, row, interval] = values

    def write(self, open_day: int) -> bool:
        """Write the days before `open_day`; return whether there were any."""
        closed = min(open_day - self.first, len(self.blocks[0]))
        if closed <= 0:
            return False
        for array, block in zip(self.arrays, self.blocks, strict=True):
            array[self.first : self.first + closed] = block[:closed]
        self.first += closed
        self.blocks = [block[closed:] for block in self.blocks]
        if not len(self.blocks[0]):
            self.blocks = []
        return True
