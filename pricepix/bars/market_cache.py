"""Market caches: folders of raw arrays, as ImageTrading reads them, opened lazily and written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, nearest
from pricepix.bars import arrays
from pricepix.bars import kernels as panel_kernels
from pricepix.bars import market_kernels as kernels
from pricepix.bars.ingest import RawBars, check_and_repair
from pricepix.bars.options import ReadOptions
from pricepix.bars.panel import Panel
from pricepix.bars.sessions import Session, clock_text
from pricepix.bars.times import TimeOptions, as_time

INTRADAY: Final = ("OPEN", "HIGH", "LOW", "CLOSE", "VOLUME")
DAILY: Final = ("ASHARE_FILTER", "ADJ_FACTOR", "UP_LIMIT", "DN_LIMIT")
AXES: Final = ("TRADE_DATES", "UNIVERSE_UID")
KEYS: Final = (*INTRADAY, *DAILY, *AXES)
REQUIRED: Final = ("OPEN", "HIGH", "LOW", "CLOSE", *AXES)
#: Where ImageTrading's code looks; a star stands for the shape in the name.
STANDARD: Final[Mapping[str, str]] = {
    "OPEN": "IntervalFull/IntervalFull.open.N*",
    "HIGH": "IntervalFull/IntervalFull.high.N*",
    "LOW": "IntervalFull/IntervalFull.low.N*",
    "CLOSE": "IntervalFull/IntervalFull.close.N*",
    "VOLUME": "IntervalFull/IntervalFull.volume.N*",
    "ASHARE_FILTER": "AShareNST/AShareNST.N*",
    "ADJ_FACTOR": "ForwardAdjPrices/ForwardAdjPrices.S_DQ_ADJFACTOR.N*",
    "UP_LIMIT": "Limits/UplimPrice.N*",
    "DN_LIMIT": "Limits/DnlimPrice.N*",
    "TRADE_DATES": "_universe/dates.N*",
    "UNIVERSE_UID": "_universe/uid.N*",
}
LIMIT_TOLERANCE: Final = 1e-4
"""A close nearer to its day's limit than this is at the limit."""

_DTYPES: Final = {"I": "<i4", "L": "<i8", "c": "|b1", "d": "<f8", "f": "<f4", "i": "<u4"}
_LETTERS: Final = {np.dtype(dtype): letter for letter, dtype in _DTYPES.items()}
_TEXT: Final = re.compile(r"(?<!\d)(\d+)C$")
_MOST_STOCKS: Final = 9999
_MOST_INTERVALS: Final = 99
_BLOCK_BYTES: Final = 16 << 20
_SCAN_BYTES: Final = 32 << 20

NoTrade = Literal["missing", "keep"]
Range = slice | tuple[Any, Any] | None


class RawFile(NamedTuple):
    """What the name of a file says about it."""

    dtype: np.dtype[Any]
    stocks: int | None
    intervals: int | None


def read_name(name: str) -> RawFile:
    """Read type and shape from a file name.

    The last character names the type: ``I`` int32, ``L`` int64, ``i`` uint32, ``f`` float32, ``d`` float64,
    ``c`` bool, and ``128C`` text of 128 bytes, 32 characters of four bytes. Characters [-5:-1] are the number
    of stocks, [-8:-6] the number of intervals of intraday files.

    Examples
    --------
    >>> read_name("IntervalFull.open.N49,5184f")
    RawFile(dtype=dtype('float32'), stocks=5184, intervals=49)
    >>> read_name("AShareNST.N,5184c")
    RawFile(dtype=dtype('bool'), stocks=5184, intervals=None)
    >>> read_name("uid.N128C")
    RawFile(dtype=dtype('<U32'), stocks=None, intervals=None)
    """
    if text := _TEXT.search(name):
        size = int(text[1])
        if size == 0 or size % 4:
            raise ValueError(f"{name}: text of {size} bytes is not a whole number of 4-byte characters")
        return RawFile(np.dtype(f"<U{size // 4}"), None, None)
    letter = name[-1:]
    if letter not in _DTYPES:
        raise ValueError(
            f"{name}: the last character of a file's name is its type, one of {', '.join(_DTYPES)}, or as in "
            f"128C text; {letter!r} is none"
        )
    dtype = np.dtype(_DTYPES[letter])
    stocks = int(name[-5:-1]) if name[-5:-1].isdigit() and name[-6:-5] == "," else None
    intervals = int(name[-8:-6]) if stocks is not None and name[-8:-6].isdigit() else None
    return RawFile(dtype, stocks, intervals)


def file_name(stem: str, dtype: Any, stocks: int | None = None, intervals: int | None = None) -> str:
    """Return the name of a file of this type and shape; ``read_name`` is its inverse."""
    dtype = np.dtype(dtype)
    if dtype.kind == "U":
        return f"{stem}.N{dtype.itemsize}C"
    shape = "" if stocks is None else f"{'' if intervals is None else f'{intervals:02d}'},{stocks:04d}"
    return f"{stem}.N{shape}{_LETTERS[dtype]}"


@dataclass(frozen=True)
class MarketCalendar:
    """When a market's bars end: all of a panel that scoring asks for."""

    calendar: NDArray[np.int64]
    """int64 (times,): nanoseconds, ascending."""
    tz: str | None


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
        The market's hours; ``"ashare"`` by default. They must give as many bars a day as the files have.

    Raises
    ------
    FileNotFoundError
        The folder or a file is not there; the message names all that are missing.
    ValueError
        A file whose size does not match its name (both numbers are told), or whose shape differs from the
        others'; days that do not ascend; names that are empty or stand twice.

    Examples
    --------
    >>> cache = MarketCache("commoncache")                                     # doctest: +SKIP
    >>> panel = cache.panel(days=("2021-01-01", "2021-03-31"), stocks=slice(0, 500))     # doctest: +SKIP
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
        self.files: dict[str, Path] = _find_files(self.folder, files)
        self.days: NDArray[np.datetime64] = _read_days(self.files["TRADE_DATES"])
        """datetime64[D] (days,): the trading days."""
        self.instruments: NDArray[np.str_] = _read_names(self.files["UNIVERSE_UID"])
        """Names of the stocks."""
        self._shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        shapes: dict[str, RawFile] = {}
        for key in (*INTRADAY, *DAILY):
            if key in self.files:
                shapes[key] = self._open(key)
        self.intervals = int(shapes["OPEN"].intervals or 0)
        """Bars a day."""
        for key, shape in shapes.items():
            other = (shape.stocks, shape.intervals if key in INTRADAY else self.intervals)
            if other != (shapes["OPEN"].stocks, self.intervals):
                raise ValueError(
                    f"{self.files[key].name} says {_shape_text(shape)}, but {self.files['OPEN'].name} says "
                    f"{_shape_text(shapes['OPEN'])}: files of one cache have one shape"
                )
        if len(self.instruments) > (shapes["OPEN"].stocks or 0):
            raise ValueError(
                f"{self.files['UNIVERSE_UID'].name} names {len(self.instruments):,} stocks, but "
                f"{self.files['OPEN'].name} holds {shapes['OPEN'].stocks:,}"
            )
        self.session = Session.of(session)
        self.stamps = _bar_stamps(self.session, self.intervals)
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
            first = 0 if start is None else int(np.searchsorted(ns, as_time(_date(start), None)))
            last = None if end is None else as_time(_date(end), None, end=True)
            stop = len(ns) if last is None else int(np.searchsorted(ns, last, side="right"))
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
                raise ValueError(f"stocks={stocks!r} is no stretch of the cache's {n:,} stocks")
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

    def check_reading(self, *, adjust: bool, no_trade: str, decimals: int | None, on_bad: str) -> None:
        """Refuse arguments of `panel` that cannot be followed."""
        choice(on_bad, "on_bad", ("raise", "drop_bar", "keep"))
        choice(no_trade, "no_trade", ("missing", "keep"))
        if decimals is not None and not 0 <= decimals <= 10:
            raise ValueError(f"decimals={decimals!r}: give 0 to 10 decimals, or None for none")
        if adjust and "ADJ_FACTOR" not in self._shapes:
            raise ValueError(f"adjust=True needs ADJ_FACTOR, which {self.folder} lacks: pass adjust=False")

    def panel(
        self,
        days: Range = None,
        stocks: slice | Sequence[str] | str | None = None,
        *,
        adjust: bool = True,
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
        no_trade : {"missing", "keep"}
            What becomes of bars of volume 0, in which nothing was traded whatever prices stand there:
            ``missing`` makes them missing, volume too. A bar whose prices are 0 is missing in any case.
        filtered : bool
            No window may end at a bar that ASHARE_FILTER leaves out; bars stay whatever it says.
        decimals : int, optional
            Round prices, before they are adjusted, to so many decimals: gives prices that were stored as
            float32 back the exact value that was quoted.
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
        self.check_reading(adjust=adjust, no_trade=no_trade, decimals=decimals, on_bad=on_bad)
        day, stock = self.day_range(days), self.stock_range(stocks)
        per_day, n_days, width = self.intervals, day.stop - day.start, stock.stop - stock.start
        names = self.instruments[stock]
        stamps, zone = self.times(day)
        first, stop = self.bar_range(day, stock, no_trade)
        offsets = np.concatenate([[0], np.cumsum(stop - first)]).astype(np.int64)
        rows = int(offsets[-1])
        if rows == 0:
            raise ValueError(
                f"no stock of {names[0]} to {names[-1]} has a price on {self.days[day.start]} to "
                f"{self.days[day.stop - 1]}: there are no bars"
            )
        bars, time = np.empty((rows, 5)), np.empty(rows, np.int64)
        daily = {"up_limit": "UP_LIMIT", "down_limit": "DN_LIMIT"}
        fields = {name: np.empty(rows, np.bool_) for name, key in daily.items() if key in self._shapes}
        fields["eligible"] = np.empty(rows, np.bool_)
        counts = np.zeros(panel_kernels.N_BAR_KINDS, np.int64)
        step = max(8, _BLOCK_BYTES // (8 * n_days * per_day))
        for a in range(0, width, step):
            part = slice(stock.start + a, min(stock.start + a + step, stock.stop))
            own = slice(a, part.stop - stock.start)
            self._fill(
                day,
                part,
                first[own],
                stop[own],
                offsets[own],
                bars,
                fields,
                counts,
                adjust,
                no_trade,
                filtered,
                decimals,
            )
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
        first: NDArray[np.int64],
        stop: NDArray[np.int64],
        dest: NDArray[np.int64],
        bars: NDArray[np.float64],
        fields: dict[str, NDArray[np.bool_]],
        counts: NDArray[np.int64],
        adjust: bool,
        no_trade: NoTrade,
        filtered: bool,
        decimals: int | None,
    ) -> None:
        """Read a block of stocks into its rows."""

        def floats(key: str) -> NDArray[np.float64]:
            # A copy even where the file is float64: the kernels write into it.
            return np.array(self.array(key)[day, stock], np.float64, order="C")

        o, h, lo, c = (floats(key) for key in INTRADAY[:4])
        has_volume = "VOLUME" in self._shapes
        v = floats("VOLUME") if has_volume else c
        kernels.clear_no_trade(o, h, lo, c, v, has_volume, no_trade == "missing")
        chosen = np.ones(o.shape[:2], np.bool_)
        if filtered and "ASHARE_FILTER" in self._shapes:
            chosen = np.ascontiguousarray(self.array("ASHARE_FILTER")[day, stock] == 1)
        # Of prices as they are stored, like the spans: so a stock's last row is never without one.
        kernels.may_end(o, h, lo, c, chosen, first, stop, dest, fields["eligible"])
        if decimals is not None:
            for prices in (o, h, lo, c):
                np.round(prices, decimals, out=prices)
        for name, key in (("up_limit", "UP_LIMIT"), ("down_limit", "DN_LIMIT")):
            if name in fields:
                kernels.at_limit(c, floats(key), LIMIT_TOLERANCE, first, stop, dest, fields[name])
        if adjust:
            bad = kernels.adjust(o, h, lo, c, v, has_volume, floats("ADJ_FACTOR"))
            if bad >= 0:
                d, s = divmod(int(bad), stock.stop - stock.start)
                value = self.array("ADJ_FACTOR")[day.start + d, stock.start + s]
                raise ValueError(
                    f"{self.files['ADJ_FACTOR'].name}: the factor of {self.instruments[stock.start + s]} on "
                    f"{self.days[day.start + d]} is {value}, but there are prices: mend the file, or pass "
                    "adjust=False"
                )
        panel_kernels.fill_bars(o, h, lo, c, v, has_volume, first, stop, dest, False, bars, counts)

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


def write_market_cache(
    folder: str | os.PathLike[str],
    *,
    days: Any,
    instruments: Sequence[str],
    open: Any,
    high: Any,
    low: Any,
    close: Any,
    volume: Any = None,
    not_st: Any = None,
    adjustment_factor: Any = None,
    up_limit: Any = None,
    down_limit: Any = None,
    dtype: Any = np.float32,
    files: Mapping[str, str] | None = None,
    session: Session | str | None = "ashare",
) -> MarketCache:
    """Write a market cache of ImageTrading's layout.

    Parameters
    ----------
    folder : str or path
        Made if it does not exist. Files that are there are not overwritten.
    days : sequence of dates, (days,)
        Trading days, ascending.
    instruments : sequence of str
        Names, up to 32 characters.
    open, high, low, close, volume : array_like, (days, stocks, intervals)
    not_st : array_like, bool (days, stocks), optional
        True where windows of a stock are eligible (ASHARE_FILTER).
    adjustment_factor, up_limit, down_limit : array_like, (days, stocks), optional
        What prices are to be multiplied with, and the day's limit prices.
    dtype : numpy.dtype
        float32 or float64, of all numbers but the axes.
    files : mapping, optional
        Paths by key (OPEN, ...), without the shape that their names end in, relative to the folder; by
        default those of ImageTrading's code.
    session : Session, str or None
        As in `MarketCache`.

    Returns
    -------
    MarketCache
        The cache just written.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not match, names too long, days that do not ascend, more than 9,999 stocks or 99
        intervals, which a file name cannot hold.
    FileExistsError
        A file is there already.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype={dtype}: a market cache holds float32 or float64")
    dates = np.array([_date(day) for day in days], "datetime64[D]")
    if not len(dates) or (np.diff(dates) <= np.timedelta64(0)).any():
        raise ValueError("days must hold at least one day, and ascend without repeating")
    names = np.array([str(name) for name in instruments], np.str_)
    _check_names(names, "instruments")
    if names.dtype.itemsize > 128:
        raise ValueError(f"{max(names, key=len)!r} is longer than a market cache's 32 characters")
    prices = {"OPEN": open, "HIGH": high, "LOW": low, "CLOSE": close, "VOLUME": volume}
    facts = {
        "ASHARE_FILTER": not_st, "ADJ_FACTOR": adjustment_factor, "UP_LIMIT": up_limit, "DN_LIMIT": down_limit
    }  # fmt: skip
    blocks = {key: np.asarray(values) for key, values in (prices | facts).items() if values is not None}
    shape = blocks["OPEN"].shape
    if len(shape) != 3 or shape[:2] != (len(dates), len(names)):
        raise ValueError(
            f"open has shape {shape}, expected ({len(dates)} days, {len(names)} stocks, intervals)"
        )
    if shape[1] > _MOST_STOCKS or shape[2] > _MOST_INTERVALS:
        raise ValueError(
            f"a file name holds up to {_MOST_STOCKS:,} stocks and {_MOST_INTERVALS} intervals, got {shape}"
        )
    for key, values in blocks.items():
        expected = shape if key in INTRADAY else shape[:2]
        if values.shape != expected:
            raise ValueError(f"{key} has shape {values.shape}, expected {expected}")
    _bar_stamps(Session.of(session), shape[2])

    root = Path(folder)
    stems = {key: path.partition(".N*")[0] for key, path in STANDARD.items()} | dict(files or {})
    if unknown := sorted(set(stems) - set(KEYS)):
        raise ValueError(f"files: {unknown[0]!r} is no file of a market cache; known are {', '.join(KEYS)}")
    axes: dict[str, NDArray[Any]] = {
        "TRADE_DATES": np.char.replace(dates.astype(str), "-", "").astype(np.int32),
        "UNIVERSE_UID": names.astype("<U32"),
    }
    written: dict[str, Path] = {}
    for key, values in (blocks | axes).items():
        kind = values.dtype if key in axes else np.dtype(np.bool_) if key == "ASHARE_FILTER" else dtype
        size = (None, None) if key in axes else (shape[1], shape[2] if key in INTRADAY else None)
        written[key] = root / f"{stems[key]}{file_name('', kind, *size)}"
        if written[key].exists():
            raise FileExistsError(f"{written[key]} exists already: give another folder")
    for key, path in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (blocks | axes)[key]
        kind = read_name(path.name).dtype
        np.ascontiguousarray(values).astype(kind, copy=False).tofile(path)
    relative = {key: str(path.relative_to(root)) for key, path in written.items()}
    return MarketCache(root, relative, session=session)


@dataclass(frozen=True)
class LimitCounts:
    """Bars at their limits, and bars without a trade, of a panel."""

    bars: int
    up_limit: int
    down_limit: int
    missing: int

    @classmethod
    def of(cls, panel: Panel) -> LimitCounts:
        """Count them."""
        up, down = (
            int(panel.fields[key].sum()) if key in panel.fields else 0 for key in ("up_limit", "down_limit")
        )
        return cls(len(panel), up, down, int(np.isnan(panel.bars[:, :4]).all(axis=1).sum()))


def _find_files(folder: Path, files: Mapping[str, Any] | None) -> dict[str, Path]:
    asked: dict[str, Any] = dict(STANDARD)
    if files is not None:
        for key in files:
            if key not in KEYS:
                raise ValueError(
                    f"files: {key!r} is no file of a market cache{nearest(str(key), KEYS)}; known are "
                    f"{', '.join(KEYS)}"
                )
        asked = dict(files)
    found: dict[str, Path] = {}
    missing: list[str] = []
    for key in KEYS:
        pattern = asked.get(key)
        if pattern is None:
            if key in REQUIRED:
                missing.append(f"{key} (not named)")
            continue
        path = Path(pattern) if Path(pattern).is_absolute() else folder / pattern
        if path.is_file():
            found[key] = path
            continue
        hits = sorted(p for p in path.parent.glob(path.name) if p.is_file()) if "*" in path.name else []
        if len(hits) > 1:
            raise ValueError(
                f"{key}: {len(hits)} files fit {path}, such as {hits[0].name} and {hits[1].name}"
            )
        if hits:
            found[key] = hits[0]
        elif key in REQUIRED or files is not None:
            missing.append(f"{key} ({path})")
    if missing:
        raise FileNotFoundError(f"the market cache {folder} lacks {', '.join(missing)}")
    return found


def _read_days(path: Path) -> NDArray[np.datetime64]:
    raw = read_name(path.name)
    if raw.dtype.kind not in "iu":
        raise ValueError(f"{path.name}: trading days are whole numbers YYYYMMDD, not {raw.dtype}")
    if path.stat().st_size == 0 or path.stat().st_size % raw.dtype.itemsize:
        raise ValueError(f"{path} holds {path.stat().st_size:,} bytes, no whole number of {raw.dtype} days")
    numbers = np.fromfile(path, raw.dtype).astype(np.int64)
    year, month, day = numbers // 10000, numbers // 100 % 100, numbers % 100
    try:
        dates = np.array(
            [f"{y:04d}-{m:02d}-{d:02d}" for y, m, d in zip(year, month, day, strict=True)], "datetime64[D]"
        )
    except ValueError as error:
        raise ValueError(f"{path}: trading days are whole numbers YYYYMMDD; {error}") from None
    wrong = np.flatnonzero(np.diff(dates) <= np.timedelta64(0))
    if len(wrong):
        k = int(wrong[0])
        raise ValueError(f"{path}: trading days must ascend, but {dates[k + 1]} follows {dates[k]}")
    return dates


def _read_names(path: Path) -> NDArray[np.str_]:
    raw = read_name(path.name)
    if raw.dtype.kind != "U":
        raise ValueError(f"{path.name}: names of stocks are text, such as uid.N128C, not {raw.dtype}")
    if path.stat().st_size == 0 or path.stat().st_size % raw.dtype.itemsize:
        raise ValueError(
            f"{path} holds {path.stat().st_size:,} bytes, no whole number of names of {raw.dtype.itemsize}"
        )
    code_points = np.fromfile(path, "<u4")
    if code_points.max() > 0x10FFFF:
        raise ValueError(f"{path} does not hold UTF-32 text, as its name says: text of 4 bytes a character")
    names = np.char.strip(np.fromfile(path, raw.dtype).astype(np.str_))
    # Room for stocks to come stands empty at the end.
    filled = np.flatnonzero(names != "")
    names = names[: filled[-1] + 1] if len(filled) else names[:0]
    _check_names(names, str(path))
    return np.array(names.tolist(), np.str_)


def _check_names(names: NDArray[np.str_], where: str) -> None:
    if not len(names):
        raise ValueError(f"{where}: no stock has a name")
    if (names == "").any():
        raise ValueError(f"{where}: stock {int(np.flatnonzero(names == '')[0])} has no name")
    distinct, times = np.unique(names, return_counts=True)
    if len(distinct) < len(names):
        raise ValueError(f"{where}: {str(distinct[times > 1][0])!r} is named more than once")


def _bar_stamps(session: Session, intervals: int) -> list[str]:
    """Return the stamps of the session's bars of whichever length gives so many a day."""
    for minutes in (5, 30, 1, 2, 3, 10, 15, 20, 60, 120, 240, 1440):
        if session.periods is None and 1440 % minutes:
            continue
        starts, ends = session.edges(f"{minutes}min")
        if len(ends) == intervals:
            # Where a day ends at midnight, that is the next day's: such bars are stamped with their start.
            return [clock_text(int(at)) for at in (starts if session.periods is None else ends)]
    raise ValueError(
        f"the session {session.periods or '24h'} has no {intervals} bars a day of any usual length (5 "
        f"minutes give {len(session.stamps('5min'))}): pass the market's own session="
    )


def _date(day: Any) -> Any:
    """Dates as whole numbers YYYYMMDD, besides everything that `as_time` reads."""
    if isinstance(day, (int, np.integer)) and not isinstance(day, bool):
        day = str(int(day))
    if isinstance(day, str) and len(day) == 8 and day.isdigit():
        return f"{day[:4]}-{day[4:6]}-{day[6:]}"
    return day


def _shape_text(raw: RawFile) -> str:
    return f"{raw.stocks} stocks" + (f" and {raw.intervals} intervals" if raw.intervals else "")


def _runs(places: NDArray[np.int64], near: int = 64) -> list[tuple[int, int]]:
    """Join positions that stand near each other into stretches that are read at once."""
    cuts = np.flatnonzero(np.diff(places) > near) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, cuts)]
