"""The days of a cache that is being written: what it had of them, what comes new, and what goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.cache import FactorCache
from pricepix.factor.cache_changes import Part, image_digests, removal_error
from pricepix.factor.cache_format import IMAGES, CacheContent, fill_of
from pricepix.factor.calendar import interval_times
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.factor.scorer import Scorer

__all__ = ["COUNTS", "BaseDays", "Cells", "DayBuffer", "Scored", "score_part"]

COUNTS: Final = ("added", "revised", "removed", "kept", "without_value")
"""What a scoring counts: values, values whose image changed and that were kept all the same, windows without one."""

# Arrays of days that are kept in memory.
_DAYS_READ: Final = 512

Times = NDArray[np.int64]


class Scored(NamedTuple):
    """The scores of some windows of a part."""

    part: Part
    window: Times
    """int64 (n,): windows that were scored, ascending."""
    images: NDArray[np.uint64]
    """uint64 (n,): digests of their images."""
    values: NDArray[np.float32]
    spread: NDArray[np.float32] | None
    revised: Times
    """int64: windows of the part that were scored before, with another image."""


def score_part(
    scorer: Scorer,
    part: Part,
    block: NDArray[Any],
    time: Times,
    before: NDArray[np.uint64],
    keep: bool,
    binary: bool = True,
) -> Scored:
    """Score the windows of a part that are new or revised.

    Parameters
    ----------
    scorer : Scorer
    part : Part
    block : numpy.ndarray, uint8 (n, height, width)
        Images of the part, or the series of bars behind them, float32.
    time : numpy.ndarray, int64 (n,)
        Of their last bars.
    before : numpy.ndarray, uint64 (n,)
        Digests of the images that the cache has values of, 0 for none.
    keep : bool
        Leave values whose image changed as they are.
    binary : bool
        Pixels are black or white, without levels between.
    """
    digests = image_digests(block, binary)
    revised = (before != digests) & (before != 0)
    wanted = np.flatnonzero(before == 0 if keep else before != digests)
    whole = len(wanted) == len(block)
    if len(wanted):
        values, spread = scorer(block if whole else block[wanted], time[wanted])
    else:
        values, spread = np.empty(0, np.float32), None
    return Scored(
        part, part.first + wanted, digests[wanted], values, spread, part.first + np.flatnonzero(revised)
    )


class Cells:
    """Where the values of windows go in a cache that is being written."""

    def __init__(self, windows: StoreWindows, placement: Placement, instruments: list[str]) -> None:
        self.windows, self.placement = windows, placement
        place_of = {name: i for i, name in enumerate(instruments)}
        self.place = np.array([place_of[name] for name in windows.names], np.int64)
        """int64 (instruments of the store,): their places along the cache's axis."""

    def of(self, window: Times) -> tuple[Times, Times, Times]:
        """Return day, instrument and interval of windows, which ascend."""
        if not len(window):
            return window, window, window
        first, last = int(window[0]), int(window[-1]) + 1
        time = self.windows.column("time", first, last)[window - first]
        code = np.searchsorted(self.windows.time, time)
        row = self.place[self.windows.column("instrument_index", first, last)[window - first]]
        return self.placement.to_day[code], row, self.placement.to_interval[code]


class BaseDays:
    """The days of a cache that is being changed, along the axes that it is to have."""

    def __init__(self, base: FactorCache | None, content: CacheContent) -> None:
        self.base, self.content = base, content
        days = np.empty(0, np.int64) if base is None else base.days.astype(np.int64)
        at = np.searchsorted(days, content.days)
        known = at < len(days)
        known[known] &= days[at[known]] == content.days[known]
        self.index = np.where(known, at, -1)
        """int64 (days,): where the cache has each day, -1 for nowhere."""
        intervals = [] if base is None else base.intervals
        self.column = np.searchsorted(interval_times(content.intervals), interval_times(intervals))
        place = np.arange(len(at))
        elsewhere = (self.index != place) | (intervals != content.intervals)
        self.moved = elsewhere & ((place < len(days)) | (self.index >= 0))
        """bool (days,): those whose objects stand elsewhere from now on, and those that come in their places."""
        self._read: dict[tuple[str, int], NDArray[Any]] = {}

    def read(self, name: str, day: int) -> NDArray[Any]:
        """Return what the cache has of a day, (instruments, intervals), nothing for a day that it has not."""
        found = self._read.get((name, day))
        if found is None:
            _, instruments, intervals = self.content.shape
            dtype = self.content.value_dtype(name)
            found = np.full((instruments, intervals), fill_of(dtype), dtype)
            if self.base is not None and self.index[day] >= 0:
                old: Any = np.asarray(self.base.values(name)[int(self.index[day])])
                found[: len(old), self.column] = old
            if len(self._read) >= _DAYS_READ:
                self._read.clear()
            self._read[name, day] = found
        return found


class DayBuffer:
    """Days that are being filled, (instrument, interval) for each array of values."""

    def __init__(
        self,
        days: BaseDays,
        cells: Cells,
        removed_from: int,
        on_revision: str,
        put_day: Callable[[str, int, NDArray[Any]], dict[str, int]],
    ) -> None:
        self.days, self.cells, self.content = days, cells, days.content
        self.removed_from, self.on_revision, self.put_day = removed_from, on_revision, put_day
        self.blocks: dict[int, dict[str, NDArray[Any]]] = {}
        self.kept = np.empty(0, np.int64)
        """Windows whose values are kept though their images changed."""
        self.reset()

    def reset(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)

    def put(self, scored: Scored, fresh: NDArray[np.bool_]) -> None:
        day, row, interval = self.cells.of(scored.window[fresh])
        given = {"factor": scored.values, "spread": scored.spread, IMAGES: scored.images}
        for k in np.unique(day).tolist():
            own = day == k
            for name, values in self._block(k).items():
                part = given[name]
                if part is not None:
                    values[row[own], interval[own]] = part[fresh][own]

    def _block(self, day: int) -> dict[str, NDArray[Any]]:
        """Return the values of a day that may be changed; they begin as what the cache has."""
        if day not in self.blocks:
            names = self.content.value_names
            self.blocks[day] = {name: self.days.read(name, day).copy() for name in names}
        return self.blocks[day]

    def write(self, first: int, open_day: int) -> dict[str, int]:
        """Write the days from `first` to before `open_day` that changed; return the checksums of their objects."""
        checksums: dict[str, int] = {}
        for day in range(first, open_day):
            if day >= self.removed_from and self.days.index[day] >= 0:
                self._remove(day)
            if self.days.moved[day]:
                self._block(day)
            if day in self.blocks:
                self._count(day)
                for name, values in self.blocks.pop(day).items():
                    checksums |= self.put_day(name, day, values)
        return checksums

    def _remove(self, day: int) -> None:
        """Take out the values whose windows the store has no more."""
        placement = self.cells.placement
        gone = self.days.read(IMAGES, day) != 0
        window = np.arange(*placement.windows_of_day(self.cells.windows, day))
        _, row, interval = self.cells.of(window)
        gone[row, interval] = False
        gone &= placement.in_scope(placement.time[day])
        count = int(np.count_nonzero(gone))
        if not count:
            return
        if self.on_revision == "raise":
            assert self.days.base is not None
            raise removal_error(self.days.base, count, int(placement.day[day]))
        if self.on_revision == "keep":
            self.counts["kept"] += count
            return
        for values in self._block(day).values():
            values[gone] = fill_of(values.dtype)

    def _count(self, day: int) -> None:
        block, days = self.blocks[day], self.days
        before, after = days.read(IMAGES, day), block[IMAGES]
        self.counts["added"] += int(np.count_nonzero((before == 0) & (after != 0)))
        self.counts["removed"] += int(np.count_nonzero((before != 0) & (after == 0)))
        self.counts["revised"] += int(np.count_nonzero((before != 0) & (after != 0) & (before != after)))
        was = np.isnan(days.read("factor", day)) & (before != 0)
        now = np.isnan(block["factor"]) & (after != 0)
        self.counts["without_value"] += int(np.count_nonzero(now)) - int(np.count_nonzero(was))
