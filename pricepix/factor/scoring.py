"""From images to a factor: stream a store through a model and keep the scores in a cache."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import bars, choice
from pricepix.bars.times import as_time, stamp
from pricepix.factor.cache import (
    FORMAT,
    FORMAT_VERSION,
    CacheLike,
    FactorCache,
    create,
    extend,
    open_cache,
    open_group,
)
from pricepix.factor.calendar import Calendar, day_and_interval, interval_names, list_times
from pricepix.factor.panel_check import keep_labels, shape_digest
from pricepix.factor.scorer import Scorer
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet
from pricepix.store.image_store import ImageStore, open_images, open_store
from pricepix.windows.labels import NO_TIME

__all__ = ["score"]

# What caches were scored with that do not say it.
_BEFORE: Final = {"precision": "32-true"}
# Chunks decoded ahead of the model. One would do for speed; two ride out a slow read.
_AHEAD: Final = 2

Times = NDArray[np.int64]


def score(
    store: ImageSet | CacheLike,
    model: Any,
    location: CacheLike | None,
    *,
    shift: int = 0,
    spread: bool = False,
    batch: int = 256,
    device: str | None = None,
    precision: str = "32-true",
    start: Any = None,
    end: Any = None,
    append: bool = False,
    panel: Calendar | None = None,
    values: str | None = None,
    model_id: str | None = None,
    progress: bool = True,
    client: Any = None,
) -> FactorCache:
    """Score every image of a store and keep the scores as a factor.

    The store streams through the model chunk by chunk, decoded ahead of it; memory does not grow with the
    store. A day is written once all of its windows are scored. A run that was stopped goes on where it
    stopped when it is called again.

    Parameters
    ----------
    store : ImageSet, str or path
        A store, a loaded one, or panel images, which are drawn as they are scored.
    model : path, PriceCNN, Ensemble, result of fit, or callable
        A checkpoint or the folder of a run; a network; or a function from images, uint8 (n, height, width),
        to the probability of a rise, (n,), NaN where it knows none. An ensemble gives the mean of its
        members.
    location : str, path, zarr store or None
        Where the cache goes; ``None`` keeps it in memory.
    shift : int
        Bars by which values are moved on from the close of the image's last bar, at which they are first
        known, to the bar from which they may be traded: along the market's calendar, so that the bar after a
        day's last is the next day's first. Values whose bar the calendar does not reach yet are scored when
        it does.
    spread : bool
        Keep the standard deviation (n - 1) over the members of an ensemble beside the mean.
    batch : int
        Images a forward pass.
    device : str, optional
        ``"cuda"`` where there is one, else ``"cpu"``.
    precision : {"32-true", "bf16-mixed", "16-mixed"}
        What networks compute in, by the names that training has for them. A lower one is several times as
        fast where the hardware has it, and moves scores by some thousandths.
    start, end : str, date or datetime, optional
        First and last time of the images that are scored, both included; all by default. The others' values
        are NaN. A cache that was scored to an end can be scored on to a later one.
    append : bool
        Add the windows that the store has gained since the cache was made. Days before are not touched, apart
        from those of the last `shift` bars.
    panel : Panel or MarketCalendar, optional
        Its calendar gives the cache its days and times of day, and `shift` its bars. By default that is the
        times of the store's windows, which is enough unless `shift` is above 0 and the store skips bars.
    values : {"probability", "score"}, optional
        What a function returns; scores need not lie between 0 and 1, and are ranked but not classified.
        Probability by default; networks know.
    model_id : str, optional
        Names a function, so that a cache can tell it from others; needed to resume or append when it is not a
        plain function.
    progress : bool
        Show a progress bar.
    client : distributed.Client, optional
        Score on its workers, one model each. The store must be one that they can open: panel images, loaded
        stores and stores in memory are refused.

    Returns
    -------
    FactorCache

    Raises
    ------
    ValueError
        A model for other images; a location that holds the scores of another model, store, shift or calendar;
        or scores that are no probabilities. Before anything is scored, apart from the last.
    FileExistsError
        A location that holds something else.

    Warns
    -----
    UserWarning
        Not one image has a value. How many have none is in the cache's attribute ``without_value``.
    """
    store = open_images(store)
    # Values never move back in time.
    shift = bars(shift, "shift", 0)
    choice(values, "values", (None, "probability", "score"))
    scorer = Scorer(model, model_id=model_id, batch=batch, device=device, precision=precision, tz=store.tz)
    first = None if start is None else as_time(start, store.tz)
    last = None if end is None else as_time(end, store.tz, end=True)
    scorer.check(store.spec, _named(store))
    if spread and len(scorer.members) < 2:
        raise ValueError(f"spread=True needs an ensemble of 2 members or more; {scorer.name} is one model")
    if client is not None and (not isinstance(store, ImageStore) or store.location == "memory"):
        raise ValueError(
            f"workers cannot open {_named(store)}, which lives in this process: give a store at a location that all "
            "of them reach, or leave client out"
        )
    kind = values or ("probability" if scorer.is_probability else "score")
    windows = _Windows(store)
    plan = _Plan.of(windows, int(shift), panel, first, last)
    attrs = _attributes(store, scorer, int(shift), kind)
    attrs["start"] = None if first is None else stamp(first, store.tz)
    group, done = _prepared(location, attrs, plan, windows, spread, append, scorer)
    if done is None:
        assert location is not None
        return open_cache(location)
    results = _spread_out(client, windows, scorer) if client is not None else _ahead(windows, scorer)
    with tqdm(
        total=plan.windows - plan.skipped,
        initial=done - plan.skipped,
        desc="score",
        unit="img",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        _write(group, plan, windows, done, results, bar.update, kind, scorer.name)
    group.attrs.update({"complete": True, "unplaced": plan.unplaced})
    cache = FactorCache(
        zarr.open_group(group.store, mode="r", zarr_format=3), "memory" if location is None else str(location)
    )
    if 0 < cache.attrs["windows"] - cache.attrs["skipped"] == cache.attrs.get("without_value"):
        warnings.warn(
            f"{scorer.name} gave no value for any image of {_named(store)}: the factor in {cache.location} is "
            "empty",
            stacklevel=2,
        )
    return cache


def _named(images: ImageSet) -> str:
    """What messages call a store, or images that are none."""
    return f"{images.kind} {images.location}"


@dataclass
class _Windows:
    """Times and names of a store's windows, read in blocks: a store may have more than memory likes."""

    store: ImageSet
    count: int = 0
    time: Times = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (times,): distinct times of windows, ascending."""
    end: Times = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (times,): one past the last window of each."""
    kept: dict[str, Any] = field(default_factory=dict)

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
        names = [str(name) for name in self.store.instruments]
        self.names = names
        marks = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        self.marks = np.frombuffer(b"".join(marks), np.uint64)

    def column(self, name: str, a: int, b: int) -> NDArray[Any]:
        """Windows a to b of an array, of which the store hands out whole chunks; the last ones are kept."""
        first, last = a // INDEX_CHUNK, -(-b // INDEX_CHUNK)
        if self.kept.get(name, (0, 0, None))[:2] != (first, last):
            self.kept[name] = (first, last, np.asarray(self.store.column(name, first, last)))
        start = first * INDEX_CHUNK
        return np.asarray(self.kept[name][2][a - start : b - start])

    def update(self, digest: Any, a: int, b: int) -> None:
        """Add windows a to b to a digest that names the windows scored, whatever the order of the names."""
        for first in range(a, b, INDEX_CHUNK):
            last = min(first + INDEX_CHUNK, b)
            named = self.marks[self.column("instrument_index", first, last)].view(np.int64)
            # Window by window, so that it does not matter where blocks end.
            digest.update(np.column_stack([self.column("time", first, last), named]).tobytes())


@dataclass(frozen=True)
class _Plan:
    """Where the values of every time go."""

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
    """Windows up to the last to score, whose place the calendar reaches."""
    unplaced: int
    """Windows to score whose place the calendar does not reach yet."""

    @classmethod
    def of(
        cls, windows: _Windows, shift: int, panel: Calendar | None, first: int | None, last: int | None
    ) -> _Plan:
        store, calendar = windows.store, windows.time
        if panel is not None:
            if panel.tz != store.tz:
                raise ValueError(
                    f"the panel's zone is {panel.tz}, that of {_named(store)} is {store.tz}: give the panel that "
                    "it was made from"
                )
            calendar = panel.calendar
            strange = windows.time[~np.isin(windows.time, calendar)]
            if len(strange):
                raise ValueError(
                    f"{len(strange)} times of {_named(store)} are not in the panel's calendar "
                    f"({list_times(strange, store.tz)}): give the panel that it was made from"
                )
        elif shift and store.attrs.get("schedule", {}).get("every", "bar") != "bar":
            every = store.attrs["schedule"]["every"]
            raise ValueError(
                f"shift={shift} counts bars of the market's calendar, but windows of {_named(store)} end at every "
                f"{every} only: give panel=, the panel that it was made from"
            )
        day, interval = day_and_interval(calendar, store.tz)
        days, day_at = np.unique(day, return_inverse=True)
        intervals, interval_at = np.unique(interval, return_inverse=True)
        time = np.full((len(days), len(intervals)), NO_TIME, np.int64)
        time[day_at, interval_at] = calendar
        if np.count_nonzero(time != NO_TIME) != len(calendar):
            raise ValueError(
                f"two bars of {_named(store)} have the same day and time of day in {store.tz}, where clocks go "
                "back: read the panel with tz='UTC'"
            )
        a = 0 if first is None else int(np.searchsorted(windows.time, first))
        b = len(windows.time) if last is None else int(np.searchsorted(windows.time, last, side="right"))
        if a >= b:
            raise ValueError(
                f"no image of {_named(store)} lies in the time to score: its windows go from "
                f"{list_times(windows.time[:1], store.tz)} to {list_times(windows.time[-1:], store.tz)}"
            )
        target = np.searchsorted(calendar, windows.time[:b]) + shift
        target = target[target < len(calendar)]
        ends = np.append(0, windows.end)
        skipped, placed = int(ends[min(a, len(target))]), int(ends[len(target)])
        return cls(
            days, intervals, time, day_at[target], interval_at[target], skipped, placed, int(ends[b]) - placed
        )


def _attributes(store: ImageSet, scorer: Scorer, shift: int, kind: str) -> dict[str, Any]:
    from pricepix._version import __version__

    versions = {"pricepix": __version__, "python": platform.python_version()}
    versions |= {"numpy": np.__version__, "zarr": zarr.__version__}
    if scorer.members:
        import torch

        versions["torch"] = torch.__version__
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        "values": kind,
        "store_digest": store.digest,
        "panel_digest": store.attrs.get("panel_digest"),
        "panel_shape": shape_digest(store),
        "store": store.location,
        "spec": store.spec.to_dict(),
        "spec_digest": store.spec.digest,
        "model": scorer.describe(),
        "horizon": scorer.horizon,
        "delay": store.delay,
        "shift": shift,
        "precision": scorer.precision,
        "tz": store.tz,
        "versions": versions,
        "windows": 0,
        "scored_through": None,
        "scored_digest": hashlib.blake2b(digest_size=16).hexdigest(),
        "without_value": 0,
        "unplaced": 0,
    }


def _prepared(
    location: CacheLike | None,
    attrs: dict[str, Any],
    plan: _Plan,
    windows: _Windows,
    spread: bool,
    append: bool,
    scorer: Scorer,
) -> tuple[zarr.Group, int | None]:
    """Make the cache, or open and check the one that is there; return it with the number of windows it has.

    None in place of the number: there is nothing left to do.
    """
    intervals = interval_names(plan.interval)
    exists = _exists(location)
    if not exists:
        group = create(location, attrs, windows.names, intervals, spread)
        extend(group, plan.day, plan.time, windows.names)
        keep_labels(group, windows.store, scorer.horizon)
        group.attrs.update({"skipped": plan.skipped})
        return group, plan.skipped
    assert location is not None
    group = _group_of_ours(location)
    cache = FactorCache(group, str(location))
    _check_same(cache, attrs, intervals, spread, scorer)
    held = cache.attrs
    grown = held["store_digest"] != attrs["store_digest"]
    if grown and not append:
        raise ValueError(
            f"cache {location} holds the scores of other images (digest {held['store_digest']}, those of "
            f"{_named(windows.store)} have {attrs['store_digest']}): pass append=True if these begin with those, "
            "which is checked, or give another location"
        )
    done = int(held["windows"])
    digest = hashlib.blake2b(digest_size=16)
    if done <= windows.count:
        windows.update(digest, 0, done)
    if done > windows.count or digest.hexdigest() != held["scored_digest"]:
        raise ValueError(
            f"the windows of {_named(windows.store)} do not begin with those that cache {location} was scored "
            "from: history was changed or removed; score to a new location"
        )
    if held["complete"] and done >= plan.windows and not grown:
        return group, None
    done = max(done, plan.skipped)
    old_names, old_days = cache.instruments.tolist(), cache.days.astype(np.int64)
    if not np.array_equal(plan.day[: len(old_days)], old_days):
        raise ValueError(
            f"cache {location} has other days ({len(old_days)} from {cache.days[0]}) than this calendar "
            f"({len(plan.day)} from {plan.day[:1].astype('datetime64[D]')[0]}): give panel= as when it was "
            "made"
        )
    group = open_group(location, "r+")
    names = old_names + [name for name in windows.names if name not in set(old_names)]
    changed = ("store_digest", "panel_digest", "panel_shape", "store", "versions")
    group.attrs.update({"complete": False, **{name: attrs[name] for name in changed}})
    extend(group, plan.day, plan.time, names)
    return group, done


def _exists(location: CacheLike | None) -> bool:
    if location is None:
        return False
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


def _group_of_ours(location: CacheLike) -> zarr.Group:
    try:
        group = open_group(location)
        ours = group.attrs.get("format") == FORMAT
    except ValueError:
        ours = False
    if not ours:
        raise FileExistsError(f"{location} exists already and is not a factor cache: give another path")
    return group


def _check_same(
    cache: FactorCache, attrs: dict[str, Any], intervals: list[str], spread: bool, scorer: Scorer
) -> None:
    held, location = cache.attrs, cache.location
    if scorer.digest is None:
        raise ValueError(
            f"cache {location} exists, and nothing tells whether {scorer.name} is the model that it holds: "
            "name it "
            "by model_id= (the same as then), or give another location"
        )
    if held["model"]["digest"] != scorer.digest:
        raise ValueError(
            f"cache {location} holds the scores of {held['model']['name']} (digest "
            f"{held['model']['digest']}), not of "
            f"{scorer.name} (digest {scorer.digest}): a cache never mixes models; give another location"
        )
    named = {
        "spec_digest": "image spec",
        "shift": "shift",
        "delay": "delay",
        "tz": "zone",
        "values": "values",
        "precision": "precision",
        "start": "start",
    }
    for name, what in named.items():
        if held.get(name, _BEFORE.get(name)) != attrs[name]:
            raise ValueError(
                f"cache {location} has another {what} ({held.get(name)}, not {attrs[name]}): give another "
                "location"
            )
    if (cache.spread is not None) != spread:
        has = "holds" if cache.spread is not None else "does not hold"
        raise ValueError(f"cache {location} {has} the members' spread: pass spread={not spread}")
    if cache.intervals != intervals:
        raise ValueError(
            f"cache {location} has the times of day {', '.join(cache.intervals[:5])}, ... "
            f"({len(cache.intervals)}), this "
            f"calendar {', '.join(intervals[:5])}, ... ({len(intervals)}): score to a new location, or "
            "give panel= as "
            "when it was made"
        )


Scored = tuple[int, NDArray[np.float32], NDArray[np.float32] | None]
"""First window, values, spread."""
Results = Callable[[int, int], Iterator[Scored]]
"""From the first window to score and one past the last; nothing where none is left."""


def _ahead(windows: _Windows, scorer: Scorer) -> Results:
    """Score in this process, chunks being read and decoded in another thread."""

    def run(first: int, last: int) -> Iterator[Scored]:
        if first >= last:
            return
        store = windows.store
        size = store.chunk
        waiting: deque[Any] = deque()
        with ThreadPoolExecutor(1, "pricepix-score") as pool:
            chunks = iter(range(first // size, -(-last // size)))
            try:
                for chunk in chunks:
                    waiting.append((chunk, pool.submit(store.read_chunk, chunk)))
                    if len(waiting) > _AHEAD:
                        yield _scored(windows, scorer, waiting.popleft(), first, last)
                while waiting:
                    yield _scored(windows, scorer, waiting.popleft(), first, last)
            finally:
                for _, future in waiting:
                    future.cancel()

    return run


def _scored(windows: _Windows, scorer: Scorer, job: Any, first: int, last: int) -> Scored:
    chunk, future = job
    size = windows.store.chunk
    a, b = max(first, chunk * size), min(last, (chunk + 1) * size)
    images = future.result()[a - chunk * size : b - chunk * size]
    return (a, *scorer(images, windows.column("time", a, b)))


def _spread_out(client: Any, windows: _Windows, scorer: Scorer) -> Results:
    """Score on the workers of a dask cluster, a chunk a task, results taken in order."""

    def run(first: int, last: int) -> Iterator[Scored]:
        if first >= last:
            return
        store = windows.store
        size = store.chunk
        model = client.scatter(scorer, broadcast=True)
        most = 2 * max(1, sum(client.nthreads().values()))
        waiting: deque[Any] = deque()
        for chunk in range(first // size, -(-last // size)):
            a, b = max(first, chunk * size), min(last, (chunk + 1) * size)
            args = (model, store.location, store.digest, chunk, a, windows.column("time", a, b))
            waiting.append(client.submit(_score_chunk, *args, pure=False))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return run


def _score_chunk(
    scorer: Scorer, location: str, digest: str, chunk: int, a: int, time: NDArray[np.int64]
) -> Scored:
    """Score the windows of a chunk from window a on, which have these times, on a worker."""
    store = open_store(location)
    if store.digest != digest:
        raise ValueError(f"the worker finds another store at {location}: all workers must see the same files")
    first = a - chunk * store.chunk
    return (a, *scorer(store.read_chunk(chunk)[first : first + len(time)], time))


def _write(
    group: zarr.Group,
    plan: _Plan,
    windows: _Windows,
    done: int,
    results: Results,
    progress: Callable[[int], Any],
    kind: str,
    name: str,
) -> None:
    """Place scores on their days, and write each day when the last window that goes there has been scored."""
    listed: Any = group["instrument"]
    place_of = {str(n): i for i, n in enumerate(listed[:].tolist())}
    place = np.array([place_of[n] for n in windows.names], np.int64)
    arrays = [group[n] for n in ("factor", "spread") if n in group]
    digest = hashlib.blake2b(digest_size=16)
    windows.update(digest, 0, done)
    page = _Page(arrays)
    at = hashed = done
    counted: Any = group.attrs.get("without_value")
    blank = np.empty(0, np.int64)
    for a, values, spread in results(done, plan.windows):
        missing = np.isnan(values)
        blank = np.append(blank, a + np.flatnonzero(missing))
        known = values[~missing]
        if kind == "probability" and len(known) and (known.min() < 0 or known.max() > 1):
            raise ValueError(
                f"{name} gave scores from {known.min():.4g} to {known.max():.4g}, which are no "
                "probabilities: pass "
                "values='score' if they are to be ranked only"
            )
        b = a + len(values)
        time = windows.column("time", a, b)
        code = np.searchsorted(windows.time, time)
        day, interval = plan.to_day[code], plan.to_interval[code]
        row = place[windows.column("instrument_index", a, b)]
        for k, found in enumerate((values, spread)[: len(arrays)]):
            page.put(k, day, row, interval, found)
        # Days before that of the next window are closed.
        next_code = int(np.searchsorted(windows.end, b, side="right"))
        open_day = int(plan.to_day[next_code]) if next_code < len(plan.to_day) else len(plan.day)
        if page.write(open_day):
            before = int(np.searchsorted(plan.to_day, open_day))
            at = int(windows.end[before - 1])
            windows.update(digest, hashed, at)
            hashed = at
            # A cache that an earlier release began did not count.
            closed = int(np.searchsorted(blank, at))
            counted, blank = None if counted is None else counted + closed, blank[closed:]
            group.attrs.update(
                {
                    "windows": at,
                    "scored_through": int(windows.time[before - 1]),
                    "scored_digest": digest.hexdigest(),
                    "without_value": counted,
                }
            )
        progress(len(values))


class _Page:
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
            held = np.asarray(self.arrays[k][self.first + have : self.first + need])
            self.blocks[k] = np.concatenate([self.blocks[k], held])
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
