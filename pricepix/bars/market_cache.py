"""Market caches: folders of raw arrays, as ImageTrading reads them, opened lazily."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, nearest
from pricepix.bars import arrays
from pricepix.bars import kernels as panel_kernels
from pricepix.bars import market_kernels as kernels
from pricepix.bars.adjustment import FactorSteps
from pricepix.bars.ingest import RawBars, check_and_repair
from pricepix.bars.market_files import (
    DAILY,
    INTRADAY,
    STANDARD,
    RawFile,
    as_date,
    find_files,
    read_days,
    read_name,
    read_names,
)
from pricepix.bars.options import ANCHORS, ReadOptions
from pricepix.bars.panel import Panel
from pricepix.bars.sessions import Session, clock_text
from pricepix.bars.times import TimeOptions, time_range

LIMIT_TOLERANCE: Final = 1e-4
"""A close nearer to its day's limit than this is at the limit."""

_BLOCK_BYTES: Final = 16 << 20
_SCAN_BYTES: Final = 32 << 20

NoTrade = Literal["missing", "keep"]
Range = slice | tuple[Any, Any] | None


@dataclass(frozen=True)
class MarketCalendar:
    """The times at which a market's bars end: all that scoring needs of a panel."""

    calendar: NDArray[np.int64]
    """int64 (times,): nanoseconds, ascending."""
    tz: str | None


class _Reading(NamedTuple):
    """How the files of a cache are read; see `MarketCache.panel`."""

    adjust: bool
    anchor: str
    no_trade: NoTrade
    filtered: bool
    decimals: int | None


class _Rows(NamedTuple):
    """The bars that become rows, stock by stock: from `first` to before `stop`, written from row `dest` on."""

    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    dest: NDArray[np.int64]


class _Columns(NamedTuple):
    """What rows are written into."""

    bars: NDArray[np.float64]
    fields: dict[str, NDArray[np.bool_]]
    counts: NDArray[np.int64]


class MarketCache:
    """A folder of raw arrays of a market: (day, stock, interval) bars and (day, stock) facts.

    Nothing but the days and the names is read before it is asked for.

    Parameters
    ----------
    folder : str or path
        The cache's folder.
    files : mapping of str to path, optional
        Which file holds what, relative to the folder: OPEN, HIGH, LOW, CLOSE, VOLUME (day, stock, interval);
        ASHARE_FILTER, ADJ_FACTOR, UP_LIMIT, DN_LIMIT (day, stock); TRADE_DATES (YYYYMMDD) and UNIVERSE_UID
        (names). A path may hold a star. By default where ImageTrading's code looks. VOLUME and the daily
        files may be absent (None).
    session : Session, str or None
        The market's hours; ``"ashare"`` by default. They must give as many bars a day as the files have, with the
        bar of the opening auction or without (49 or 48 of five minutes): its session then has no auction.

    Raises
    ------
    FileNotFoundError
        The folder or a file is not there; the message names all that are missing.
    ValueError
        A file whose size does not match its name (the message gives both numbers), or whose shape differs from
        the others'; days that do not ascend; names that are empty or not unique.

    Examples
    --------
    A quarter of 500 stocks::

        cache = MarketCache("commoncache")
        panel = cache.panel(days=("2021-01-01", "2021-03-31"), stocks=slice(0, 500))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        files: Mapping[str, str | os.PathLike[str] | None] | None = None,
        *,
        session: Session | str | None = "ashare",
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no market cache at {self.folder}: it is a folder of raw array files")
        self.files: dict[str, Path] = find_files(self.folder, files)
        self.days: NDArray[np.datetime64] = read_days(self.files["TRADE_DATES"])
        """datetime64[D] (days,): the trading days."""
        self.instruments: NDArray[np.str_] = read_names(self.files["UNIVERSE_UID"])
        """Names of the stocks."""
        self._shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        shapes: dict[str, RawFile] = {}
        for key in (*INTRADAY, *DAILY):
            if key in self.files:
                shapes[key] = self._open(key)
        self.intervals = int(shapes["OPEN"].intervals or 0)
        """Bars a day."""
        for key, shape in shapes.items():
            size = (shape.stocks, shape.intervals if key in INTRADAY else self.intervals)
            if size != (shapes["OPEN"].stocks, self.intervals):
                raise ValueError(
                    f"{self.files[key].name} says {_shape_text(shape)}, but {self.files['OPEN'].name} says "
                    f"{_shape_text(shapes['OPEN'])}: files of one cache have one shape"
                )
        if len(self.instruments) > (shapes["OPEN"].stocks or 0):
            raise ValueError(
                f"{self.files['UNIVERSE_UID'].name} names {len(self.instruments):,} stocks, but "
                f"{self.files['OPEN'].name} holds {shapes['OPEN'].stocks:,}"
            )
        self.session, stamps = _session_of(Session.of(session), self.intervals)
        self.stamps = stamps
        """Times of day of the bars."""

    def __repr__(self) -> str:
        return (
            f"MarketCache({self.folder}: {len(self.days):,} days, {len(self.instruments):,} stocks, "
            f"{self.intervals} bars a day, {self.days[0]} to {self.days[-1]})"
        )

    def _open(self, key: str) -> RawFile:
        path = self.files[key]
        raw = read_name(path.name)
        intraday = key in INTRADAY
        if raw.stocks is None or (intraday and raw.intervals is None) or raw.dtype.kind == "U":
            wanted = "N49,5184f" if intraday else "N,5184f"
            raise ValueError(
                f"{path.name}: a name of a file of {key} ends in its shape and type, such as {wanted} "
                "(intervals, stocks in four digits, type)"
            )
        shape = (len(self.days), raw.stocks, raw.intervals or 1)[: 3 if intraday else 2]
        expected, found = int(np.prod(shape)) * raw.dtype.itemsize, path.stat().st_size
        if found != expected:
            raise ValueError(
                f"{path} holds {found:,} bytes, but its name and the {len(self.days):,} trading days say "
                f"{expected:,} ({' x '.join(f'{n:,}' for n in shape)} x {raw.dtype.itemsize} bytes): it is "
                "cut off, misnamed, or of other days"
            )
        self._shapes[key] = (raw.dtype, shape)
        return raw

    def array(self, key: str) -> NDArray[Any]:
        """Return a file's array as it lies on disk, read-only and mapped into memory, not read.

        Intraday (days, stocks, intervals), daily (days, stocks). It may hold more stocks than have names.
        """
        if key not in self._shapes:
            raise KeyError(f"no array {key!r} in {self!r}; it has {', '.join(self._shapes)}")
        # Mapped anew each time: pages that were read stay in the process as long as their mapping does.
        dtype, shape = self._shapes[key]
        return np.memmap(self.files[key], dtype, "r", shape=shape)

    def day_range(self, days: Range = None) -> slice:
        """Return days as a slice of positions.

        Parameters
        ----------
        days : slice, (start, end) or None
            Positions as a slice of ints; or first and last day, both included, in any form of a date; None
            for all. Either end may be None.
        """
        if days is None:
            return slice(0, len(self.days))
        if isinstance(days, slice):
            first, stop, step = days.indices(len(self.days))
            if step != 1:
                raise ValueError(f"days={days!r}: days are read in a stretch, without steps")
        else:
            start, end = days
            ns = self.days.astype("datetime64[ns]").astype(np.int64)
            low, high = time_range(as_date(start), as_date(end), None)
            first, stop = int(np.searchsorted(ns, low)), int(np.searchsorted(ns, high, side="right"))
        if stop <= first:
            raise ValueError(
                f"days={days!r}: none of the cache's {len(self.days):,} days, {self.days[0]} to "
                f"{self.days[-1]}, lies there"
            )
        return slice(first, stop)

    def stock_range(self, stocks: slice | Sequence[str] | str | None = None) -> slice:
        """Return stocks as a slice of positions; names must stand side by side (take `Panel.select` else)."""
        n = len(self.instruments)
        if stocks is None:
            return slice(0, n)
        if isinstance(stocks, slice):
            first, stop, step = stocks.indices(n)
            if step != 1 or stop <= first:
                raise ValueError(f"stocks={stocks!r} is not a stretch of the cache's {n:,} stocks")
            return slice(first, stop)
        names = [stocks] if isinstance(stocks, str) else list(stocks)
        place = {name: i for i, name in enumerate(self.instruments.tolist())}
        for name in names:
            if name not in place:
                raise KeyError(f"no stock {name!r} in {self!r}{nearest(str(name), list(place))}")
        found = sorted(place[name] for name in names)
        if found[-1] - found[0] != len(found) - 1:
            raise ValueError(
                "these stocks do not stand side by side in the cache: read a range that holds them, and "
                "choose with Panel.select(instruments)"
            )
        return slice(found[0], found[-1] + 1)

    def spans(self, no_trade: NoTrade = "missing") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each stock's first bar with a price and one past its last, counted in bars of the cache.

        Days are read from both ends only until every stock is found. A stock that never traded has (0, 0).
        """
        if no_trade not in self._spans:
            self._spans[no_trade] = self._find_spans(no_trade)
        return self._spans[no_trade]

    @cached_property
    def _spans(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return {}

    def _find_spans(self, no_trade: NoTrade) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        n, per_day, days = len(self.instruments), self.intervals, len(self.days)
        first, stop = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        step = max(1, _SCAN_BYTES // (8 * 5 * n * per_day))
        for backward, found in ((False, first), (True, stop)):
            for k in range(-(-days // step)):
                a = k * step if not backward else max(0, days - (k + 1) * step)
                b = min(days, a + step) if not backward else days - k * step
                todo = np.flatnonzero(found <= 0 if backward else found < 0)
                if backward:
                    todo = todo[first[todo] >= 0]
                if not len(todo):
                    break
                for lo, hi in _runs(todo):
                    traded = self._traded(slice(a, b), slice(lo, hi), no_trade)
                    there = traded.any(axis=1) & (found[lo:hi] <= 0 if backward else found[lo:hi] < 0)
                    at = np.argmax(traded[:, ::-1] if backward else traded, axis=1)
                    place = b * per_day - at if backward else a * per_day + at
                    found[lo:hi][there] = place[there]
        first[first < 0] = 0
        return first, stop

    def _traded(self, days: slice, stocks: slice, no_trade: NoTrade) -> NDArray[np.bool_]:
        """Where a bar has any price, bool (stocks, bars)."""
        prices = [np.asarray(self.array(key)[days, stocks]) for key in INTRADAY[:4]]
        with np.errstate(invalid="ignore"):
            known = np.logical_or.reduce([~np.isnan(p) & (p != 0) for p in prices])
            if no_trade == "missing" and "VOLUME" in self._shapes:
                known &= np.asarray(self.array("VOLUME")[days, stocks]) != 0
        return np.ascontiguousarray(known.transpose(1, 0, 2)).reshape(known.shape[1], -1)

    def bar_range(
        self, day: slice, stock: slice, no_trade: NoTrade = "missing"
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each stock's first row and one past its last, in bars of the days `day`."""
        bars = (day.stop - day.start) * self.intervals
        first, stop = (edge[stock] - day.start * self.intervals for edge in self.spans(no_trade))
        first = np.clip(first, 0, bars)
        return first, np.maximum(np.clip(stop, 0, bars), first)

    def check_reading(
        self, *, adjust: bool, no_trade: str, decimals: int | None, on_bad: str, anchor: str = "given"
    ) -> None:
        """Raise an error for arguments of `panel` that are out of range or that the cache cannot serve."""
        choice(on_bad, "on_bad", ("raise", "drop_bar", "keep"))
        choice(no_trade, "no_trade", ("missing", "keep"))
        if decimals is not None and not 0 <= decimals <= 10:
            raise ValueError(f"decimals={decimals!r}: give 0 to 10 decimals, or None for none")
        if adjust and "ADJ_FACTOR" not in self._shapes:
            raise ValueError(f"adjust=True needs ADJ_FACTOR, which {self.folder} lacks: pass adjust=False")
        choice(anchor, "anchor", ANCHORS)
        if anchor != "given" and not adjust:
            raise ValueError(f"anchor={anchor!r} is for adjusted prices: pass adjust=True, or leave it out")

    def panel(
        self,
        days: Range = None,
        stocks: slice | Sequence[str] | str | None = None,
        *,
        adjust: bool = True,
        anchor: Literal["given", "first"] = "given",
        no_trade: NoTrade = "missing",
        filtered: bool = True,
        decimals: int | None = None,
        on_bad: Literal["raise", "drop_bar", "keep"] = "raise",
    ) -> Panel:
        """Read a stretch of days and stocks as a panel.

        A stock's rows run from its first bar with a price in the whole cache to its last, so that the panel
        of a part of the days has the rows that the panel of all days has there. Whether a halt has rows
        therefore depends on later days; which windows there are does not, as none ends without a price.

        Parameters
        ----------
        days, stocks
            What to read: see `day_range` and `stock_range`.
        adjust : bool
            Multiply prices by the day's ADJ_FACTOR and divide volume by it.
        anchor : {"given", "first"}
            At which bar adjusted prices are the quoted ones: where the factor is 1, or each stock's first bar with a
            price in the whole cache, whatever `days` are read. See ``Panel.from_table``.
        no_trade : {"missing", "keep"}
            How to treat bars of volume 0, in which nothing was traded whatever their prices: ``missing``
            makes them missing, volume too. A bar whose prices are 0 is missing in any case.
        filtered : bool
            Let no window end at a bar that ASHARE_FILTER leaves out; the bars themselves stay.
        decimals : int, optional
            Round prices to so many decimals before they are adjusted. This restores the quoted value of
            prices that were stored as float32.
        on_bad : {"raise", "drop_bar", "keep"}
            As in `Panel.from_table`.

        Returns
        -------
        Panel
            With the field eligible, false at bars without a price and at those that are filtered, and with
            up_limit and down_limit where the cache has their files. A bar is at its limit if its close as
            traded lies nearer than 1e-4 to the day's limit price.

        Raises
        ------
        ValueError
            Days or stocks that are not there, a factor that is missing, zero or infinite where there is a
            price, or bars with faults.
        """
        self.check_reading(adjust=adjust, no_trade=no_trade, decimals=decimals, on_bad=on_bad, anchor=anchor)
        day, stock = self.day_range(days), self.stock_range(stocks)
        per_day, n_days, width = self.intervals, day.stop - day.start, stock.stop - stock.start
        names = self.instruments[stock]
        stamps, zone = self.times(day)
        first, stop = self.bar_range(day, stock, no_trade)
        offsets = np.concatenate([[0], np.cumsum(stop - first)]).astype(np.int64)
        rows = int(offsets[-1])
        if rows == 0:
            raise ValueError(
                f"no stock of {str(names[0])!r} to {str(names[-1])!r} has a price on {self.days[day.start]} to "
                f"{self.days[day.stop - 1]}: there are no bars"
            )
        bars, time = np.empty((rows, 5)), np.empty(rows, np.int64)
        daily = {"up_limit": "UP_LIMIT", "down_limit": "DN_LIMIT"}
        fields = {name: np.empty(rows, np.bool_) for name, key in daily.items() if key in self._shapes}
        fields["eligible"] = np.empty(rows, np.bool_)
        counts = np.zeros(panel_kernels.N_BAR_KINDS, np.int64)
        reading = _Reading(adjust, anchor, no_trade, filtered, decimals)
        step = max(8, _BLOCK_BYTES // (8 * n_days * per_day))
        for a in range(0, width, step):
            part = slice(stock.start + a, min(stock.start + a + step, stock.stop))
            own = slice(a, part.stop - stock.start)
            block = _Rows(first[own], stop[own], offsets[own])
            self._fill(day, part, reading, block, _Columns(bars, fields, counts))
        kernels.fill_times(stamps, first, stop, offsets, time)
        narrow = any(self._shapes[key][0] == np.float32 for key in INTRADAY[:4]) and decimals is None
        remarks = tuple(
            f"{np.count_nonzero(flags):,} bars {text}"
            for flags, text in (
                (fields.get("up_limit"), "at their upper limit"),
                (fields.get("down_limit"), "at their lower limit"),
                (~fields["eligible"], "that no window may end at (masked)"),
            )
            if flags is not None
        )
        float32 = rows if narrow else 0
        raw = RawBars(bars, offsets, names, time, zone, fields, counts, float32=float32, remarks=remarks)
        return Panel(*check_and_repair(raw, ReadOptions(on_bad=on_bad)))

    def _fill(
        self,
        day: slice,
        stock: slice,
        reading: _Reading,
        rows: _Rows,
        out: _Columns,
    ) -> None:
        """Read a block of stocks into its rows."""

        def floats(key: str) -> NDArray[np.float64]:
            # A copy even where the file is float64: the kernels write into it.
            return np.array(self.array(key)[day, stock], np.float64, order="C")

        o, h, lo, c = (floats(key) for key in INTRADAY[:4])
        has_volume = "VOLUME" in self._shapes
        v = floats("VOLUME") if has_volume else c
        kernels.clear_no_trade(o, h, lo, c, v, has_volume, reading.no_trade == "missing")
        chosen = np.ones(o.shape[:2], np.bool_)
        if reading.filtered and "ASHARE_FILTER" in self._shapes:
            chosen = np.ascontiguousarray(self.array("ASHARE_FILTER")[day, stock] == 1)
        # Prices as they are stored decide, as for the spans: so a stock's last row always has one.
        kernels.may_end(o, h, lo, c, chosen, *rows, out.fields["eligible"])
        if reading.decimals is not None:
            for prices in (o, h, lo, c):
                np.round(prices, reading.decimals, out=prices)
        for name, key in (("up_limit", "UP_LIMIT"), ("down_limit", "DN_LIMIT")):
            if name in out.fields:
                kernels.at_limit(c, floats(key), LIMIT_TOLERANCE, *rows, out.fields[name])
        if reading.adjust:
            factor = floats("ADJ_FACTOR")
            if reading.anchor == "first":
                factor = self._factor_steps(reading.no_trade).levels(factor, day, stock)
            bad = kernels.adjust(o, h, lo, c, v, has_volume, factor)
            if bad >= 0:
                d, s = divmod(int(bad), stock.stop - stock.start)
                value = self.array("ADJ_FACTOR")[day.start + d, stock.start + s]
                raise ValueError(
                    f"{self.files['ADJ_FACTOR'].name}: the factor of {str(self.instruments[stock.start + s])!r} on "
                    f"{self.days[day.start + d]} is {value}, but there are prices: correct the file, or "
                    "pass adjust=False"
                )
        panel_kernels.fill_bars(o, h, lo, c, v, has_volume, *rows, False, out.bars, out.counts)

    def _factor_steps(self, no_trade: NoTrade) -> FactorSteps:
        """Return when each stock's factor changes in the whole cache, from its first bar with a price on."""
        if no_trade not in self._steps:
            first = self.spans(no_trade)[0] // self.intervals
            self._steps[no_trade] = FactorSteps.of(self.array("ADJ_FACTOR"), first)
        return self._steps[no_trade]

    @cached_property
    def _steps(self) -> dict[str, FactorSteps]:
        return {}

    def calendar(
        self,
        days: Range = None,
        stocks: slice | Sequence[str] | str | None = None,
        *,
        no_trade: NoTrade = "missing",
    ) -> MarketCalendar:
        """Return the times of the bars that `panel` has there, without reading their prices."""
        day, stock = self.day_range(days), self.stock_range(stocks)
        stamps, zone = self.times(day)
        first, stop = self.bar_range(day, stock, no_trade)
        change = np.zeros(len(stamps) + 1, np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, stop, -1)
        return MarketCalendar(stamps[np.cumsum(change)[:-1] > 0], zone)

    def times(self, day: slice) -> tuple[NDArray[np.int64], str | None]:
        """Times of all bars of some days, int64 (bars,), and their zone."""
        days = self.days[day]
        options = TimeOptions(self.session.tz)
        prices = self.array("OPEN")
        stamps, zone = arrays.bar_times(
            days, self.stamps, prices, len(days), self.intervals, options, [], True
        )
        return np.ascontiguousarray(stamps).reshape(-1), zone


def is_market_cache(source: Any) -> bool:
    """Whether a source is the folder of a market cache, where its files lie as ImageTrading's code has them."""
    if not isinstance(source, str | os.PathLike) or "://" in str(source):
        return False
    return Path(source).is_dir() and any(Path(source).glob(STANDARD["OPEN"]))


def _session_of(session: Session, intervals: int) -> tuple[Session, list[str]]:
    """Return the session, without its auction if only so it has so many bars a day, and their times of day."""
    try:
        return session, bar_stamps(session, intervals)
    except ValueError:
        if session.auction is None:
            raise
        plain = replace(session, auction=None)
        try:
            return plain, bar_stamps(plain, intervals)
        except ValueError:
            pass
        raise


def bar_stamps(session: Session, intervals: int) -> list[str]:
    """Return the times of day of the session's bars, of the length that gives so many bars a day."""
    for minutes in (5, 30, 1, 2, 3, 10, 15, 20, 60, 120, 240, 1440):
        if session.periods is None and 1440 % minutes:
            continue
        starts, ends = session.edges(f"{minutes}min")
        if len(ends) == intervals:
            # Where a day ends at midnight, that is the next day's: such bars are stamped with their start.
            return [clock_text(int(at)) for at in (starts if session.periods is None else ends)]
    raise ValueError(
        f"no usual length of bars gives the session {session.periods or '24h'} {intervals} bars a day (5 minutes "
        f"give {len(session.stamps('5min'))}): pass the market's own session="
    )


def _shape_text(raw: RawFile) -> str:
    return f"{raw.stocks} stocks" + (f" and {raw.intervals} intervals" if raw.intervals else "")


def _runs(places: NDArray[np.int64], near: int = 64) -> list[tuple[int, int]]:
    """Join positions that stand near each other into stretches that are read at once."""
    cuts = np.flatnonzero(np.diff(places) > near) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, cuts)]
