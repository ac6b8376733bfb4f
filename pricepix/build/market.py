"""From a market cache to an image store, a stretch of days at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import bars, choice, fraction, whole_number_or_none
from pricepix._checks import horizons as checked_horizons
from pricepix._version import __version__
from pricepix.bars import hashing
from pricepix.bars.columns import FIELDS
from pricepix.bars.market_cache import MarketCache, NoTrade, Range
from pricepix.bars.panel import Panel, panel_digest
from pricepix.bars.times import as_time, duration_ns, format_time
from pricepix.build.stream import DRAW_BYTES, PanelFacts, StoreWriter
from pricepix.build.target import MODES, _check_location, _state
from pricepix.images.chunking import default_chunk
from pricepix.location import Location, StoreLike
from pricepix.render.draw import render_rows
from pricepix.spec import ImageSpec
from pricepix.store.chunks import LAYOUTS, ChunkFormat, parse_size
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import KEY as LOCK
from pricepix.store.lock import WriteLock
from pricepix.store.objects import FORMAT_VERSION
from pricepix.windows.index import DROP_REASONS, WindowIndex, nothing_to_draw
from pricepix.windows.labels import forward_returns
from pricepix.windows.schedule import SCHEDULES, scheduled_times

# Bytes a bar: of the panel while it is read, and besides of the windows and labels of a stretch.
_PANEL_BYTES: Final = 80
_WINDOW_BYTES: Final = 100
# Rises when a build that was stopped before must not be gone on with: its windows or its state are others.
_CHECKPOINT: Final = 2


def build_market_store(
    cache: MarketCache | str | os.PathLike[str],
    spec: ImageSpec | str | Mapping[str, Any],
    store: StoreLike,
    horizons: Sequence[int] = (1, 50),
    delay: int = 0,
    every: str = "bar",
    layout: str = "bits",
    mode: str = "create",
    *,
    days: Range = None,
    stocks: slice | Sequence[str] | str | None = None,
    adjust: bool = True,
    no_trade: NoTrade = "missing",
    filtered: bool = True,
    decimals: int | None = None,
    on_bad: str = "raise",
    start: Any = None,
    end: Any = None,
    sample: float | None = None,
    seed: int = 0,
    max_gap: Any = None,
    chunk: int | None = None,
    shard: int | None = None,
    memory: int | str = "1GiB",
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ImageStore:
    """Draw every window of a market cache into a store, without ever holding the market in memory.

    Days are read in stretches, each with the history that lookback and moving averages need before it and the
    bars that the longest horizon needs after it. The store is, byte for byte, the one that
    ``render_universe`` makes of ``cache.panel(days, stocks)``; it can be appended to and verified with that
    panel.

    Parameters
    ----------
    cache : MarketCache, str or path
    spec, horizons, delay, every, layout, start, end, sample, seed, max_gap, chunk, storage_options, progress
        As in ``render_universe``; `every` is ``"bar"``, ``"day"``, ``"week"``, ``"month"`` or ``"quarter"``.
    store : str, path or zarr store
        Where to write.
    mode : {"create", "resume", "overwrite"}
        ``resume`` goes on with a build that was stopped, after the last stretch of days that was done;
        `memory` and `threads` may be others than before. A finished store is left as it is, if it was made
        from the same bars and arguments: the bars are read to tell.
    days, stocks, adjust, no_trade, filtered, decimals, on_bad
        What to read, and how: see `MarketCache.panel`.
    shard : int, optional
        Windows a shard, a multiple of `chunk`.
    memory : int or str
        About how much memory to use, in bytes or as ``"1GiB"``. At least one day, its history and what
        follows. Up to half of it, 128 MiB a thread, is for drawing; the rest decides how many days are read at
        a time.
    threads : int, optional
        Threads to draw and compress with; all by default.

    Returns
    -------
    ImageStore

    Raises
    ------
    ValueError
        An argument that cannot be used, bars with faults, no window that survives, or a store to resume
        that was made from something else.
    FileExistsError
        The location exists and `mode` is ``create``, or it holds something else.
    """
    cache = cache if isinstance(cache, MarketCache) else MarketCache(cache)
    spec = ImageSpec.of(spec)
    choice(layout, "layout", LAYOUTS)
    choice(mode, "mode", MODES)
    if every not in SCHEDULES:
        raise ValueError(
            f"every={every!r}: a market that is read in stretches of days takes one of "
            f"{', '.join(map(repr, SCHEDULES))}; a number of bars needs render_universe(cache.panel(), ...)"
        )
    threads = whole_number_or_none(threads, "threads", 1, otherwise="None for all") or os.cpu_count() or 1
    chunk = whole_number_or_none(chunk, "chunk", 1, unit="windows", otherwise="None for the usual size")
    chunk = chunk or default_chunk(*spec.shape, layout)
    if shard is not None and (not isinstance(shard, int) or shard < chunk or shard % chunk):
        raise ValueError(
            f"shard={shard!r} is no multiple of the {chunk} windows of a chunk: give such a number"
        )
    horizons, delay = checked_horizons(horizons), bars(delay, "delay", 0)
    budget = max(0, parse_size(memory) if isinstance(memory, str) else int(memory))
    # What is drawn and what waits to be written take half of it at most: days are few where they take more, and
    # the history before each stretch is read again and again.
    draw_bytes = min(DRAW_BYTES, budget // (4 * threads))
    budget -= 2 * threads * draw_bytes
    reading: dict[str, Any] = {"adjust": adjust, "no_trade": no_trade, "decimals": decimals, "on_bad": on_bad}
    cache.check_reading(**reading)
    reading["filtered"] = filtered
    day, stock = cache.day_range(days), cache.stock_range(stocks)
    tz = cache.session.tz
    first = None if start is None else as_time(start, tz)
    last = None if end is None else as_time(end, tz, end=True)
    if first is not None and last is not None and first > last:
        raise ValueError(f"start={start!r} lies after end={end!r}: swap them")
    selection = {"every": every, "sample": sample, "seed": seed, "max_gap": max_gap, "threads": threads}
    ahead = max(horizons, default=0) + delay
    market = _Market(cache, day, stock, spec, ahead, budget, reading, first, last, selection)
    schedule = market.schedule(start is not None, end is not None)
    where = Location.of(store, storage_options)
    identity = {
        "checkpoint": _CHECKPOINT,
        "files": {key: [path.name, path.stat().st_size] for key, path in cache.files.items()},
        "days": [str(cache.days[day.start]), str(cache.days[day.stop - 1])],
        "stocks": [stock.start, stock.stop],
        "reading": reading,
        "spec_digest": spec.digest,
        "horizons": list(horizons),
        "delay": delay,
        "layout": layout,
        "chunk": chunk,
        "shard": shard or 0,
        "schedule": schedule,
    }
    form = ChunkFormat(layout, *spec.shape, chunk, shard=shard or 0)
    writer = StoreWriter(where, form, horizons, identity, threads, draw_bytes)
    _check_location(where, mode)
    if mode == "resume" and _state(where) == "finished":
        there = open_store(where)
        _check_finished(
            there,
            {
                "spec_digest": spec.digest, "layout": layout, "chunk": chunk, "shard": shard or 0,
                "horizons": list(horizons), "delay": delay, "schedule": schedule,
            },
            market,
            progress,
        )  # fmt: skip
        return there
    with WriteLock(where) as lock:
        writer.state = {"counts": {}, "candidates": 0, "day": day.start, "lanes": market.lanes()}
        writer.begin(mode, {"format_version": FORMAT_VERSION, "spec": spec.to_dict()})
        begin = writer.state["day"]
        with tqdm(
            total=day.stop - day.start, initial=begin - day.start,
            desc=f"render {os.path.basename(where.name)}", unit="day", disable=not progress,
        ) as bar:  # fmt: skip
            for part in market.stretches(begin):
                market.write(writer, part, delay)
                lock.check()
                # Not a number of stretches: how long they are depends on memory and threads.
                writer.state["day"] = part.stop
                writer.end_block()
                bar.update(part.stop - part.start)
        counts = {
            name: writer.state["counts"][name]
            for name in DROP_REASONS.values()
            if name in writer.state["counts"]
        }
        if writer.windows == 0:
            where.delete_all(keep=LOCK)
            raise nothing_to_draw(writer.state["candidates"], counts, max_gap, "filtered=False")
        facts = market.facts(writer.state["lanes"])
        attributes: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "created_by": f"pricepix {__version__}",
            "complete": False,
            "spec": spec.to_dict(),
            "spec_digest": spec.digest,
            "panel_digest": None,
            "panel_fields": list(facts.fields),
            "windows": writer.windows,
            "instruments": facts.n_instruments,
            "candidates": writer.state["candidates"],
            "drop_counts": counts,
            "schedule": schedule,
            "horizons": list(horizons),
            "delay": delay,
            "label_price": "close",
            "layout": layout,
            "chunk": chunk,
            "tz": facts.tz,
        }
        if shard:
            attributes["shard"] = shard
        writer.finish(attributes, facts)
    return open_store(where)


def _check_finished(store: ImageStore, asked: Mapping[str, Any], market: _Market, progress: bool) -> None:
    """Refuse to take another store for the one that this build would give."""
    attrs = store.attrs
    differences = [
        f"{name} is {mine} here, {theirs} there"
        for name, mine in asked.items()
        if (theirs := attrs.get(name, 0 if name == "shard" else None)) != mine
    ]
    if not differences:
        digest = market.digest(progress)
        if digest != attrs["panel_digest"]:
            differences = [f"the bars have the digest {digest} here, {attrs['panel_digest']} there"]
    if differences:
        raise ValueError(
            f"store {store.location} is finished, and was not made from this: {'; '.join(differences)}. Give "
            "another path; pricepix.append(store, cache.panel(...)) adds later bars; mode='overwrite' builds "
            "it anew"
        )


@dataclass
class _Market:
    """A cache in stretches of days: what is read for each, which windows end in it, what its digest is."""

    cache: MarketCache
    day: slice
    stock: slice
    spec: ImageSpec
    ahead: int
    """Bars that labels reach ahead."""
    budget: int
    reading: dict[str, Any]
    first: int | None
    """First and last time at which a window may end."""
    last: int | None
    selection: dict[str, Any]

    @property
    def lead(self) -> int:
        """Days read before a stretch, which lookback and moving averages of its first bar reach back to."""
        return -(-(self.spec.lookback - 1 + self.spec.history) // self.cache.intervals)

    @property
    def tail(self) -> int:
        """Days read after a stretch, at least the one that tells whether a week or month is over."""
        return max(1, -(-self.ahead // self.cache.intervals))

    @property
    def step(self) -> int:
        """Days a stretch."""
        bars = (self.stock.stop - self.stock.start) * self.cache.intervals
        beside = bars * _PANEL_BYTES * (self.lead + self.tail)
        return max(1, (self.budget - beside) // (bars * (_PANEL_BYTES + _WINDOW_BYTES)))

    def stretches(self, begin: int | None = None) -> list[slice]:
        """Return the days of each stretch, from the first day on or from another one."""
        days = range(self.day.start if begin is None else begin, self.day.stop, self.step)
        return [slice(a, min(self.day.stop, a + self.step)) for a in days]

    def write(self, writer: StoreWriter, part: slice, delay: int) -> None:
        """Draw and label the windows that end in a stretch of days."""
        wide = slice(max(self.day.start, part.start - self.lead), min(self.day.stop, part.stop + self.tail))
        first, stop = self.cache.bar_range(wide, self.stock, self.reading["no_trade"])
        if not (stop > first).any():
            return
        panel = self.cache.panel(wide, self.stock, **self.reading)
        self._digest(writer.state["lanes"], panel, part, wide, first, stop)
        a, b = self._edges(part)
        if a > b or not self._scheduled(panel, a, b):
            return
        windows = WindowIndex.from_panel(panel, self.spec, start=a, end=b, **self.selection)
        state = writer.state
        state["candidates"] += windows.candidates
        for name, count in windows.counts.items():
            state["counts"][name] = state["counts"].get(name, 0) + count
        values: list[NDArray[Any]] = [windows.instrument, windows.time]
        for h in writer.horizons:
            label = forward_returns(panel, windows, h, delay)
            values += [label.value, label.exit_time]

        def draw(first: int, last: int) -> NDArray[np.uint8]:
            bits = np.empty((last - first, writer.form.packed_bytes), np.uint8)
            reason = np.empty(last - first, np.uint8)
            row = windows.row[first:last]
            render_rows(panel, row, self.spec, bits, bits=True, reason=reason, threads=1)
            return bits

        writer.add(len(windows), draw, values)

    def _edges(self, part: slice) -> tuple[int, int]:
        """First and last time of a stretch at which a window may end."""
        stamps, _ = self.cache.times(part)
        a, b = int(stamps[0]), int(stamps[-1])
        return max(a, a if self.first is None else self.first), min(b, b if self.last is None else self.last)

    def _scheduled(self, panel: Panel, a: int, b: int) -> bool:
        """Whether any time of the schedule lies between two times."""
        calendar = panel.calendar
        inside = (calendar >= a) & (calendar <= b)
        scheduled = scheduled_times(panel, self.selection["every"])
        return bool((inside & scheduled).any() if len(scheduled) else inside.any())

    def lanes(self) -> NDArray[np.uint64]:
        """What the digest of each stock starts from."""
        names = self._fields()
        start = [*hashing.START, *(np.uint64(FIELDS.index(name) + 1) for name in names)]
        return np.tile(np.array(start, np.uint64), (self.stock.stop - self.stock.start, 1))

    def _fields(self) -> tuple[str, ...]:
        held = {"up_limit": "UP_LIMIT", "down_limit": "DN_LIMIT"}
        return tuple(name for name in FIELDS if name == "eligible" or held.get(name) in self.cache.files)

    def _digest(
        self,
        lanes: NDArray[np.uint64],
        panel: Panel,
        part: slice,
        wide: slice,
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
    ) -> None:
        """Take the rows of a stretch into the digests of the stocks, as if all days were one panel."""
        per_day = self.cache.intervals
        a, b = (part.start - wide.start) * per_day, (part.stop - wide.start) * per_day
        low = panel.offsets[:-1] + np.clip(a, first, stop) - first
        high = panel.offsets[:-1] + np.clip(b, first, stop) - first
        # Without compilation numpy warns of the overflow that hashing lives on.
        with np.errstate(over="ignore"):
            hashing.hash_rows(panel.bars.view(np.uint64), panel.time.view(np.uint64), low, high, lanes)
            for k, name in enumerate(panel.fields):
                hashing.hash_field(panel.fields[name].view(np.uint8), low, high, lanes[:, 6 + k])

    def digest(self, progress: bool) -> str:
        """Digest of the whole panel, by reading it a stretch at a time."""
        lanes, kind = self.lanes(), self.reading["no_trade"]
        with tqdm(
            total=self.day.stop - self.day.start, desc="compare bars", unit="day", disable=not progress
        ) as bar:
            for part in self.stretches():
                first, stop = self.cache.bar_range(part, self.stock, kind)
                if (stop > first).any():
                    panel = self.cache.panel(part, self.stock, **self.reading)
                    self._digest(lanes, panel, part, part, first, stop)
                bar.update(part.stop - part.start)
        return self.facts(lanes).digest

    def facts(self, lanes: NDArray[np.uint64]) -> PanelFacts:
        """Return what the store says of the whole panel."""
        digests = np.empty((len(lanes), 2), np.uint64)
        with np.errstate(over="ignore"):
            hashing.hash_end(lanes, digests)
        first, stop = self.cache.bar_range(self.day, self.stock, self.reading["no_trade"])
        offsets = np.concatenate([[0], np.cumsum(stop - first)]).astype(np.int64)
        names = np.asarray(self.cache.instruments[self.stock], np.str_)
        fields, tz = self._fields(), self.cache.session.tz
        digest = panel_digest(names, offsets, digests, fields, tz)
        return PanelFacts(names, offsets, digests, digest, fields, tz)

    def schedule(self, starts: bool, ends: bool) -> dict[str, Any]:
        """Return what a store says of the choice of its windows; refuses one that cannot be followed."""
        share, gap = self.selection["sample"], self.selection["max_gap"]
        share = 1.0 if share is None else fraction(share, "sample")
        tz = self.cache.session.tz
        return {
            "every": self.selection["every"],
            "start": format_time(self.first, tz) if starts and self.first is not None else None,
            "end": format_time(self.last, tz) if ends and self.last is not None else None,
            "mask": None,
            "sample": None if self.selection["sample"] is None else share,
            "seed": self.selection["seed"] if share < 1.0 else None,
            "max_gap_ns": None if gap is None else duration_ns(gap, "max_gap"),
        }
