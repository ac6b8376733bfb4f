"""From a market cache to an image store, a stretch of days at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import fraction, is_whole
from pricepix.bars import hashing
from pricepix.bars.columns import FIELDS
from pricepix.bars.market_cache import MarketCache, NoTrade, Range
from pricepix.bars.panel import Panel, panel_digest
from pricepix.bars.progress import progress_bar
from pricepix.bars.times import as_time, duration_ns, format_time
from pricepix.build.finish import PanelFacts, store_attributes
from pricepix.build.request import BuildRequest, StoreOptions, WindowChoice
from pricepix.build.stream import DRAW_BYTES, StreamWriter
from pricepix.build.target import (
    check_finished,
    check_location,
    clear_location,
    location_state,
    with_resume_hint,
)
from pricepix.images.lineage import Lineage
from pricepix.location import Location, StoreLike
from pricepix.render.draw import render_rows
from pricepix.spec import ImageSpec
from pricepix.store.chunks import parse_size
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.windows.index import DROP_REASONS, NoCandidatesError, WindowIndex, nothing_to_draw
from pricepix.windows.labels import ReturnRule
from pricepix.windows.schedule import SCHEDULES, Periods, Schedule, number_periods, period_schedule

# Bytes a bar: of the panel while it is read, and besides of the windows and labels of a stretch.
_PANEL_BYTES: Final = 80
_WINDOW_BYTES: Final = 100
# Rises when builds that were interrupted before must not be resumed: their windows or their state are different.
_CHECKPOINT: Final = 3


@dataclass(frozen=True)
class MarketReading:
    """Which bars of a market cache to read, and how.

    Parameters
    ----------
    days, stocks, adjust, no_trade, filtered, decimals, on_bad, anchor
        As in ``MarketCache.panel``.
    """

    days: Range = None
    stocks: slice | Sequence[str] | str | None = None
    adjust: bool = True
    no_trade: NoTrade = "missing"
    filtered: bool = True
    decimals: int | None = None
    on_bad: str = "raise"
    anchor: str = "given"

    def how(self) -> dict[str, Any]:
        """Return the arguments of ``MarketCache.panel`` other than days and stocks."""
        return {
            "adjust": self.adjust,
            "anchor": self.anchor,
            "no_trade": self.no_trade,
            "decimals": self.decimals,
            "on_bad": self.on_bad,
            "filtered": self.filtered,
        }


def build_market_store(
    cache: MarketCache | str | os.PathLike[str],
    spec: ImageSpec | str | Mapping[str, Any],
    store: StoreLike,
    horizons: Sequence[int] = (1, 50),
    delay: int = 0,
    mode: str = "create",
    *,
    windows: WindowChoice = WindowChoice(),
    reading: MarketReading = MarketReading(),
    options: StoreOptions = StoreOptions(),
    memory: int | str = "1GiB",
    threads: int | None = None,
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
    spec, horizons, delay, progress
        As in ``render_universe``.
    store : str, path or zarr store
        Where to write.
    mode : {"create", "resume", "overwrite"}
        ``resume`` continues an interrupted build after the last stretch of days that was done; `memory` and
        `threads` may differ from before. A finished store is left as it is, if it was made from the same bars
        and arguments: the bars are read to tell.
    windows : WindowChoice
        Which windows to draw: all by default. `every` is ``"bar"``, ``"day"``, ``"week"``, ``"month"`` or
        ``"quarter"``.
    reading : MarketReading
        Which days and stocks to read, and how: by default all, adjusted and filtered.
    options : StoreOptions
        Layout (``bits`` by default), chunk, shard (a multiple of the chunk) and storage options.
    memory : int or str
        About how much memory to use, in bytes or as ``"1GiB"``; at least one day, its history and what
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

    Examples
    --------
    ::

        build_market_store(
            "commoncache",
            "it49",
            "it49.zarr",
            horizons=(1, 50),
            reading=MarketReading(days=("2020-01-01", None), decimals=2),
            windows=WindowChoice(every="day"),
        )
    """
    cache = cache if isinstance(cache, MarketCache) else MarketCache(cache)
    request = BuildRequest.checked(spec, horizons, delay, mode, options, threads)
    _check_schedule(windows.every)
    shard = _shard(options, request)
    # What is drawn and what waits to be written take half of it at most: days are few where they take more, and
    # the history before each stretch is read again and again.
    budget = max(0, parse_size(memory) if isinstance(memory, str) else int(memory))
    draw_bytes = min(DRAW_BYTES, budget // (4 * request.thread_count))
    budget -= 2 * request.thread_count * draw_bytes
    market = _Market.of(cache, request, reading, windows, budget)
    where = Location.of(store, options.storage_options)
    identity = market.identity(request, shard)
    form = request.form(shard)
    writer = StreamWriter(where, form, request.horizons, identity, request.thread_count, draw_bytes)
    check_location(where, mode)
    if mode == "resume" and location_state(where) == "finished":
        finished = open_store(where)
        _check_finished(finished, market, identity, progress)
        return finished
    with WriteLock(where) as lock:
        writer.state = {"counts": {}, "candidates": 0, "day": market.day.start, "lanes": market.lanes()}
        writer.start(mode, request.spec)
        day = writer.state["day"]
        with with_resume_hint(where, lambda: market.days_until(day)):
            for part in _with_progress(market.stretches(day), market.day, where, progress):
                market.write(writer, part)
                lock.check()
                # Not a number of stretches: how long they are depends on memory and threads.
                writer.state["day"] = part.stop
                writer.end_block()
                day = part.stop
        counts = market.counts(writer)
        if writer.windows == 0:
            clear_location(where)
            raise nothing_to_draw(writer.state["candidates"], counts, windows.max_gap, "filtered=False")
        facts = market.facts(writer.state["lanes"])
        made = Lineage(
            spec=request.spec,
            panel_fields=facts.fields,
            tz=facts.tz,
            windows=writer.windows,
            instruments=facts.n_instruments,
            candidates=writer.state["candidates"],
            drop_counts=counts,
            schedule=identity["schedule"],
            horizons=request.horizons,
            rule=market.rule,
            died_within_horizon={str(h): 0 for h in request.horizons},
            layout=request.layout,
            chunk=request.chunk,
        )
        writer.finish(store_attributes(made.attributes(), shard), facts)
    return open_store(where)


def _check_schedule(every: str | int) -> None:
    if every not in SCHEDULES:
        raise ValueError(
            f"every={every!r}: a market that is read in stretches of days takes one of "
            f"{', '.join(map(repr, SCHEDULES))}; a number of bars needs render_universe(cache.panel(), ...)"
        )


def _shard(options: StoreOptions, request: BuildRequest) -> int:
    """Windows a shard; 0 for no shards."""
    shard = options.shard
    if shard is None:
        return 0
    if not is_whole(shard) or int(shard) < request.chunk or int(shard) % request.chunk:
        raise ValueError(
            f"shard={shard!r} is not a multiple of the {request.chunk} windows of a chunk: give a number of "
            "windows that is one"
        )
    return int(shard)


def _check_finished(store: ImageStore, market: _Market, identity: Mapping[str, Any], progress: bool) -> None:
    advice = (
        "Give another path; pricepix.append(store, cache.panel(...)) adds later bars; mode='overwrite' builds "
        "it anew"
    )
    decisive = ("spec_digest", "layout", "chunk", "shard", "horizons", "delay", "schedule")
    check_finished(store.location, store.attrs, {name: identity[name] for name in decisive}, advice)
    # The bars come last: to tell their digest, all of them are read.
    check_finished(store.location, store.attrs, {"panel_digest": market.digest(progress)}, advice)


def _with_progress(
    stretches: Sequence[slice], day: slice, where: Location, progress: bool
) -> Iterator[slice]:
    """Yield stretches of days under a progress bar."""
    first = stretches[0].start if stretches else day.stop
    with progress_bar(
        day.stop - day.start,
        f"render {os.path.basename(where.name)}",
        "day",
        progress,
        done=first - day.start,
    ) as bar:
        for part in stretches:
            yield part
            bar.update(part.stop - part.start)


@dataclass
class _Market:
    """A market cache in stretches of days: the bars to read for each, its windows, and the digest of all bars."""

    cache: MarketCache
    day: slice
    stock: slice
    spec: ImageSpec
    ahead: int
    """Bars that labels reach ahead."""
    rule: ReturnRule
    budget: int
    reading: dict[str, Any]
    first: int | None
    """First and last time at which a window may end."""
    last: int | None
    selection: dict[str, Any]
    """Arguments of ``WindowIndex.from_panel``."""

    @classmethod
    def of(
        cls,
        cache: MarketCache,
        request: BuildRequest,
        reading: MarketReading,
        windows: WindowChoice,
        budget: int,
    ) -> _Market:
        """Return the market of a request, whose arguments are checked here."""
        how = reading.how()
        cache.check_reading(**{name: value for name, value in how.items() if name != "filtered"})
        tz = cache.session.tz
        first = None if windows.start is None else as_time(windows.start, tz)
        last = None if windows.end is None else as_time(windows.end, tz, end=True)
        if first is not None and last is not None and first > last:
            raise ValueError(f"start={windows.start!r} lies after end={windows.end!r}: swap them")
        return cls(
            cache,
            cache.day_range(reading.days),
            cache.stock_range(reading.stocks),
            request.spec,
            max(request.horizons, default=0) + request.delay,
            # A cache has prices only, which do not know what a holder of a delisted stock got.
            ReturnRule(request.delay, "close", "missing"),
            budget,
            how,
            first,
            last,
            {
                "every": windows.every,
                "sample": windows.sample,
                "seed": windows.seed,
                "max_gap": windows.max_gap,
                "periods": Periods.of(windows.periods),
                "threads": request.thread_count,
            },
        )

    def identity(self, request: BuildRequest, shard: int) -> dict[str, Any]:
        """Return what decides the bytes of the store, as JSON values."""
        return {
            "checkpoint": _CHECKPOINT,
            "files": {key: [path.name, path.stat().st_size] for key, path in self.cache.files.items()},
            "days": [str(self.cache.days[self.day.start]), str(self.cache.days[self.day.stop - 1])],
            "stocks": [self.stock.start, self.stock.stop],
            "reading": self.reading,
            "spec_digest": request.spec.digest,
            "horizons": list(request.horizons),
            "delay": request.delay,
            "layout": request.layout,
            "chunk": request.chunk,
            "shard": shard,
            "schedule": self.schedule(),
        }

    def days_until(self, day: int) -> str:
        """Say how many of all days lie before one."""
        return f"{day - self.day.start} of {self.day.stop - self.day.start} days"

    def counts(self, writer: StreamWriter) -> dict[str, int]:
        """Return how many candidate windows were dropped, by reason, in the order in which panels count them."""
        found = writer.state["counts"]
        return {name: found[name] for name in DROP_REASONS.values() if name in found}

    @property
    def lead(self) -> int:
        """Days read before a stretch, which lookback and moving averages of its first bar reach back to."""
        return -(-(self.spec.lookback - 1 + self.spec.history) // self.cache.intervals)

    @property
    def tail(self) -> int:
        """Days read after a stretch, at least the one that tells where a stock's last bar in a period is."""
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

    def write(self, writer: StreamWriter, part: slice) -> None:
        """Draw and label the windows that end in a stretch of days."""
        wide = slice(max(self.day.start, part.start - self.lead), min(self.day.stop, part.stop + self.tail))
        first, stop = self.cache.bar_range(wide, self.stock, self.reading["no_trade"])
        if not (stop > first).any():
            return
        panel = self.cache.panel(wide, self.stock, **self.reading)
        self._digest(writer.state["lanes"], panel, part, wide, first, stop)
        a, b = self._edges(part)
        if a > b:
            return
        try:
            selection = self.selection | {"every": self._schedule_in(panel)}
            windows = WindowIndex.from_panel(panel, self.spec, start=a, end=b, **selection)
        except NoCandidatesError:
            return
        state = writer.state
        state["candidates"] += windows.candidates
        for name, count in windows.counts.items():
            state["counts"][name] = state["counts"].get(name, 0) + count
        values: list[NDArray[Any]] = [windows.instrument, windows.time]
        for h in writer.horizons:
            label = self.rule.returns(panel, windows, h)
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

    def _schedule_in(self, panel: Panel) -> str | Schedule:
        """Return the schedule of all days in the panel of a stretch."""
        if self.selection["every"] == "bar":
            return "bar"
        calendar, whole = self._whole_schedule
        place = np.searchsorted(calendar, panel.calendar)
        # Ends of periods that the stretch does not reach have no place in it.
        ends = calendar[whole.last_end]
        last_end = np.searchsorted(panel.calendar, ends)
        inside = panel.calendar[np.minimum(last_end, len(panel.calendar) - 1)] == ends
        return Schedule(
            whole.end[place], whole.period[place], np.where(inside, last_end, -1), whole.open_period
        )

    @cached_property
    def _whole_schedule(self) -> tuple[NDArray[np.int64], Schedule]:
        """The calendar of all days and its schedule, from the stocks' first and last bars alone."""
        first, stop = self.cache.bar_range(self.day, self.stock, self.reading["no_trade"])
        first, stop = first[stop > first], stop[stop > first]
        stamps, tz = self.cache.times(self.day)
        stamps = np.asarray(stamps).reshape(-1)
        rows = _covering(first, stop, len(stamps))
        # Bars of the calendar before each bar of the days.
        place = np.concatenate([[0], np.cumsum(rows > 0)])
        calendar, rows = stamps[rows > 0], rows[rows > 0]
        every, periods = self.selection["every"], self.selection["periods"]
        period = number_periods(calendar, tz, every)
        instruments = _covering(period[place[first]], period[place[stop] - 1] + 1, int(period[-1]) + 1)
        return calendar, period_schedule(calendar, tz, every, period, rows, instruments, periods)

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
        with progress_bar(self.day.stop - self.day.start, "compare bars", "day", progress) as bar:
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

    def schedule(self) -> dict[str, Any]:
        """Return what a store says about the choice of its windows; refuse one that cannot be followed."""
        share, gap = self.selection["sample"], self.selection["max_gap"]
        share = 1.0 if share is None else fraction(share, "sample")
        tz = self.cache.session.tz
        return {
            "every": self.selection["every"],
            "start": format_time(self.first, tz) if self.first is not None else None,
            "end": format_time(self.last, tz) if self.last is not None else None,
            "mask": None,
            "sample": None if self.selection["sample"] is None else share,
            "seed": self.selection["seed"] if share < 1.0 else None,
            "max_gap_ns": None if gap is None else duration_ns(gap, "max_gap"),
            "periods": None if self.selection["every"] == "bar" else self.selection["periods"].to_dict(),
        }


def _covering(first: NDArray[np.integer], stop: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """How many of some ranges hold each of the first n whole numbers."""
    begin, end = (np.bincount(edge, minlength=n + 1) for edge in (first, stop))
    return np.cumsum(begin - end)[:n]
