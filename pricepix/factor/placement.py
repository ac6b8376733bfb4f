"""Where the values of a store's windows go in a factor cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.calendar import Calendar, day_and_interval, list_times
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME

__all__ = ["Placement", "StoreWindows"]

Times = NDArray[np.int64]
_LIMITS: Final = np.iinfo(np.int64)


@dataclass
class StoreWindows:
    """Times and names of a store's windows, read in blocks: a store may have more than fit into memory."""

    store: ImageSet
    count: int = 0
    time: Times = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (times,): distinct times of windows, ascending."""
    end: Times = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (times,): one past the last window of each."""
    _blocks: dict[str, Any] = field(default_factory=dict)
    _digested: tuple[int, Any] = field(default_factory=lambda: (0, hashlib.blake2b(digest_size=16)))

    def __post_init__(self) -> None:
        self.count = len(self.store)
        times, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for a in range(0, self.count, INDEX_CHUNK):
            block = self.column("time", a, min(a + INDEX_CHUNK, self.count))
            last = np.flatnonzero(np.append(block[1:] != block[:-1], True))
            if len(times[-1]) and times[-1][-1] == block[0]:
                times[-1], ends[-1] = times[-1][:-1], ends[-1][:-1]
            times.append(block[last])
            ends.append(a + last + 1)
        self.time, self.end = np.concatenate(times), np.concatenate(ends)
        self.names = [str(name) for name in self.store.instruments]
        hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in self.names]
        self._name_hash = np.frombuffer(b"".join(hashes), np.uint64)

    @property
    def label(self) -> str:
        """What messages call the store, or the images that are none."""
        return f"{self.store.kind} {self.store.location}"

    def column(self, name: str, a: int, b: int) -> NDArray[Any]:
        """Return windows a to b of an array; the store hands out whole chunks, of which the last are kept."""
        first, last = a // INDEX_CHUNK, -(-b // INDEX_CHUNK)
        if self._blocks.get(name, (0, 0, None))[:2] != (first, last):
            self._blocks[name] = (first, last, np.asarray(self.store.column(name, first, last)))
        start = first * INDEX_CHUNK
        return np.asarray(self._blocks[name][2][a - start : b - start])

    def digest(self, count: int) -> str:
        """Return a digest of the first `count` windows, whatever the order of the names; empty if there are fewer.

        A count that is not below the last one asked for costs only the windows between.
        """
        if count > self.count:
            return ""
        start, digest = self._digested
        if count < start:
            start, digest = 0, hashlib.blake2b(digest_size=16)
        for first in range(start, count, INDEX_CHUNK):
            last = min(first + INDEX_CHUNK, count)
            name = self._name_hash[self.column("instrument_index", first, last)].view(np.int64)
            # Window by window, so that it does not matter where blocks end.
            digest.update(np.column_stack([self.column("time", first, last), name]).tobytes())
        self._digested = (count, digest)
        return str(digest.hexdigest())


@dataclass(frozen=True)
class Placement:
    """The days and times of day of a cache, and the place of every time of the store's windows."""

    day: Times
    """int64 (days,): the cache's days, since 1970."""
    interval: Times
    """int64 (intervals,): times of day, nanoseconds."""
    time: Times
    """int64 (days, intervals): the calendar's bars."""
    to_day: Times
    to_interval: Times
    """int64 (times placed,): where the values of each of the store's times go."""
    skipped: int
    """Windows before those to score."""
    windows: int
    """Windows up to the last one to score whose place the calendar reaches."""
    unplaced: int
    """Windows to score whose place the calendar does not reach yet."""
    calendar: Times
    """int64 (bars,): the calendar, in whose bars values are moved."""
    shift: int
    first: int
    last: int
    """First and last time of the images to score, nanoseconds, both included."""

    @classmethod
    def of(
        cls, windows: StoreWindows, shift: int, panel: Calendar | None, first: int | None, last: int | None
    ) -> Placement:
        """Place the windows from time `first` to `last`, each `shift` bars of the calendar after its own bar.

        Parameters
        ----------
        windows : StoreWindows
        shift : int
        panel : Calendar, optional
            By default the calendar is the windows' own times.
        first, last : int, optional
            Nanoseconds, both included; by default all windows.
        """
        store, label = windows.store, windows.label
        calendar = _calendar(windows, shift, panel)
        day, interval = day_and_interval(calendar, store.tz)
        days, day_at = np.unique(day, return_inverse=True)
        intervals, interval_at = np.unique(interval, return_inverse=True)
        time = np.full((len(days), len(intervals)), NO_TIME, np.int64)
        time[day_at, interval_at] = calendar
        if np.count_nonzero(time != NO_TIME) != len(calendar):
            raise ValueError(
                f"two bars of {label} have the same day and time of day in {store.tz}, where clocks are set back: "
                "read the panel with tz='UTC'"
            )
        first = _LIMITS.min if first is None else first
        last = _LIMITS.max if last is None else last
        a = int(np.searchsorted(windows.time, first))
        b = int(np.searchsorted(windows.time, last, side="right"))
        if a >= b:
            raise ValueError(
                f"no image of {label} lies in the time to score: its windows run from "
                f"{list_times(windows.time[:1], store.tz)} to {list_times(windows.time[-1:], store.tz)}"
            )
        target = np.searchsorted(calendar, windows.time[:b]) + shift
        target = target[target < len(calendar)]
        ends = np.append(0, windows.end)
        placed = int(ends[len(target)])
        return cls(
            day=days,
            interval=intervals,
            time=time,
            to_day=day_at[target],
            to_interval=interval_at[target],
            skipped=int(ends[min(a, len(target))]),
            windows=placed,
            unplaced=int(ends[b]) - placed,
            calendar=calendar,
            shift=shift,
            first=first,
            last=last,
        )

    def over(self, days: Times, interval: Times, time: Times) -> Placement:
        """Return the same placement over axes that have these days, times of day and bars, too.

        Parameters
        ----------
        days : numpy.ndarray, int64 (days,)
        interval : numpy.ndarray, int64 (intervals,)
        time : numpy.ndarray, int64 (days, intervals)
        """
        day, all_interval = np.union1d(days, self.day), np.union1d(interval, self.interval)
        whole = np.full((len(day), len(all_interval)), NO_TIME, np.int64)
        whole[np.ix_(np.searchsorted(day, days), np.searchsorted(all_interval, interval))] = time
        at = np.ix_(np.searchsorted(day, self.day), np.searchsorted(all_interval, self.interval))
        whole[at] = np.where(self.time == NO_TIME, whole[at], self.time)
        return replace(
            self,
            day=day,
            interval=all_interval,
            time=whole,
            to_day=np.searchsorted(day, self.day)[self.to_day],
            to_interval=np.searchsorted(all_interval, self.interval)[self.to_interval],
        )

    def windows_of_day(self, windows: StoreWindows, day: int) -> tuple[int, int]:
        """Return the first window that goes to a day, and one past the last."""
        a, b = np.searchsorted(self.to_day, [day, day + 1])
        ends = np.append(0, windows.end)
        return int(ends[a]), int(ends[b])

    def in_scope(self, time: Times) -> NDArray[np.bool_]:
        """Whether values at some bars belong to images that are to be scored, by the images' times."""
        at = np.searchsorted(self.calendar, time)
        known = at < len(self.calendar)
        known[known] &= self.calendar[at[known]] == time[known]
        image = np.array(time)
        image[known] = self.calendar[np.maximum(at[known] - self.shift, 0)]
        return (time != NO_TIME) & (image >= self.first) & (image <= self.last)


def _calendar(windows: StoreWindows, shift: int, panel: Calendar | None) -> Times:
    """Return the panel's calendar, checked to have the windows' times, or these if they are enough."""
    store, label = windows.store, windows.label
    if panel is None:
        schedule = store.attrs.get("schedule", {}).get("every", "bar")
        if shift and schedule != "bar":
            raise ValueError(
                f"shift={shift} counts bars of the market's calendar, but windows of {label} end only at every "
                f"{schedule}: give panel=, the panel that it was made from"
            )
        return windows.time
    if not (hasattr(panel, "calendar") and hasattr(panel, "tz")):
        raise TypeError(
            f"panel is a {type(panel).__name__}; give the panel that {label} was made from, or its calendar"
        )
    if panel.tz != store.tz:
        raise ValueError(
            f"the panel's zone is {panel.tz}, that of {label} is {store.tz}: give the panel that it was made from"
        )
    calendar = panel.calendar
    unknown = windows.time[~np.isin(windows.time, calendar)]
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} times of {label} are not in the panel's calendar ({list_times(unknown, store.tz)}): "
            "give the panel that it was made from"
        )
    return calendar
