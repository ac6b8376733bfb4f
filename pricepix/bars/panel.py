"""The OHLCV history of a universe, as one block of memory, checked on entry.

`Panel.from_table` and `Panel.from_arrays` are the two ways in. What they found on the way stands in
`Panel.report`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from pricepix._checks import choice, nearest
from pricepix.bars import arrays, hashing, kernels, tables
from pricepix.bars.columns import BAR, BOOL_FIELDS, FLOAT_FIELDS, PRICES, requested_columns
from pricepix.bars.report import BAR_KINDS, ERRORS, NOTES, BadRow, PanelReport
from pricepix.bars.tables import locked
from pricepix.bars.times import TimeOptions, as_time, check_zone, stamp

FIELDS = (*FLOAT_FIELDS, *BOOL_FIELDS)
_SHOWN = 5
_DAY = 86_400_000_000_000
_BLOCK_BYTES = 16 << 20
_ADJUST = {None: 0, "divide": 1, "multiply": 2}


class Panel:
    """OHLCV bars of many instruments, ragged, sorted by instrument and time.

    Make one with `from_table` or `from_arrays`. A panel cannot be changed: its arrays are read-only.

    Attributes
    ----------
    bars : ndarray, float64, (rows, 5)
        Open, high, low, close, volume; missing is NaN.
    offsets : ndarray, int64, (instruments + 1,)
        Rows ``offsets[i]:offsets[i + 1]`` belong to instrument i.
    instruments : ndarray of str, (instruments,)
        Names; ascending when the panel came from a table, in the given order when from arrays.
    time : ndarray, int64, (rows,)
        Nanoseconds since 1970: UTC when `tz` is set, wall clock when it is None. Strictly ascending in an
        instrument.
    tz : str or None
        Zone of the market.
    fields : mapping of str to ndarray, (rows,)
        Any of total_return, adjustment_factor, market_cap (float64), up_limit, down_limit, eligible (bool).
    report : PanelReport
        What the checks on entry found.
    """

    __slots__ = ("_cache", "bars", "fields", "instruments", "offsets", "report", "time", "tz")
    bars: np.ndarray
    offsets: np.ndarray
    instruments: np.ndarray
    time: np.ndarray
    tz: str | None
    fields: Mapping[str, np.ndarray]
    report: PanelReport
    _cache: dict[str, Any]

    def __init__(
        self,
        bars: np.ndarray,
        offsets: np.ndarray,
        instruments: np.ndarray,
        time: np.ndarray,
        tz: str | None = None,
        fields: Mapping[str, np.ndarray] | None = None,
        report: PanelReport | None = None,
    ) -> None:
        """Wrap arrays that are what the attributes say. Shapes and types are checked, values not."""
        fields = dict(fields or {})
        n, m = len(bars), len(instruments)
        expected = [
            ("bars", bars, np.float64, (n, 5)),
            ("offsets", offsets, np.int64, (m + 1,)),
            ("time", time, np.int64, (n,)),
            *((k, v, np.bool_ if k in BOOL_FIELDS else np.float64, (n,)) for k, v in fields.items()),
        ]
        for name, array, dtype, shape in expected:
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be a C-contiguous {np.dtype(dtype)} array of shape {shape}, got "
                    f"{array.dtype} "
                    f"{array.shape}; Panel.from_table and Panel.from_arrays take anything else"
                )
        if unknown := set(fields) - set(FIELDS):
            raise ValueError(f"unknown fields {sorted(unknown)}; a panel can carry {', '.join(FIELDS)}")
        if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets must ascend from 0 to the number of rows, {n}")
        put = object.__setattr__
        put(self, "bars", locked(bars))
        put(self, "offsets", locked(offsets))
        put(self, "instruments", locked(np.asarray(instruments, dtype=np.str_)))
        put(self, "time", locked(time))
        put(self, "tz", check_zone(tz))
        put(self, "fields", MappingProxyType({k: locked(fields[k]) for k in FIELDS if k in fields}))
        put(self, "report", report or PanelReport(n, m))
        put(self, "_cache", {})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a panel cannot be changed: tried to set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a panel cannot be changed: tried to delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {k: v for k, v in self._cache.items() if k == "digest"}
        state = (
            self.bars,
            self.offsets,
            self.instruments,
            self.time,
            self.tz,
            dict(self.fields),
            self.report,
        )
        return _restore, (state, kept)

    # ------------------------------------------------------------------------------------------- ways in

    @classmethod
    def of(cls, source: Any, **options: Any) -> Panel:
        """Return `source` if it is a panel, else `Panel.from_table(source, **options)`."""
        if isinstance(source, Panel):
            if options:
                raise TypeError(
                    f"a Panel is already read; {', '.join(options)} can no longer be applied to it"
                )
            return source
        return cls.from_table(source, **options)

    @classmethod
    def from_table(
        cls,
        source: Any,
        columns: Mapping[str, str | None] | None = None,
        instrument: str | None = None,
        time: str | None = None,
        *,
        name: str | None = None,
        tz: str | None = None,
        time_format: str | None = None,
        time_unit: Literal["s", "ms", "us", "ns"] | None = None,
        null_values: Sequence[str] = (),
        on_bad: Literal["raise", "drop_bar", "keep"] = "raise",
        negative_prices: Literal["error", "midpoint"] = "error",
        adjust: Literal["multiply", "divide"] | None = None,
        progress: bool = True,
    ) -> Panel:
        """Read a table with one row an instrument and time.

        Parameters
        ----------
        source
            A pandas or polars DataFrame, a polars LazyFrame, a pyarrow Table or RecordBatchReader, a DuckDB
            relation, anything with ``__arrow_c_stream__``, a mapping of columns; or CSV, Parquet or Feather
            files: a path, a glob, a folder (searched in depth), a list of these. The index of a pandas frame
            is used if it is named, has several levels or holds times.
        columns : mapping, optional
            Our names to the table's: ``{"close": "PRC"}``. None as a value means: do not read this one. Names
            not given are found by their usual spellings, whatever their case (open, o, OPENPRC, PX_OPEN,
            ...). Known: instrument, time, open, high, low, close, volume, total_return, adjustment_factor,
            market_cap, up_limit, down_limit, eligible. Only time and the four prices are required. A missing
            flag is False.
        instrument, time : str, optional
            Short for ``columns={"instrument": ..., "time": ...}``.
        name : str, optional
            Name of the instrument of a table that has no instrument column. By default each file is one
            instrument named by its stem (``AAPL.csv``: AAPL), and a table in memory is one instrument named
            "0".
        tz : str, optional
            Zone of the market. Times without a zone are then wall-clock times of it. Times with a zone keep
            their instants; bars that all come at 00:00 of one zone and would not lie at 00:00 of this one are
            refused, for they are dates. Without it, times with a zone keep theirs and times without stay
            wall-clock times.
        time_format : str, optional
            How times in text are written, in chrono's notation (``"%d/%m/%Y %H:%M"``). By default ISO 8601,
            YYYYMMDD, YYYYMMDDhhmm and YYYYMMDDhhmmss, also as integers.
        time_unit : {"s", "ms", "us", "ns"}, optional
            For integer times that count since 1970 UTC.
        null_values : sequence of str
            Text that marks a missing number, besides the usual.
        on_bad : {"raise", "drop_bar", "keep"}
            What becomes of rows with faults (see `ERRORS`). "raise": one error that counts and names them.
            "drop_bar": the bar becomes missing (its row stays, so that no window splices over it); of two
            rows at one time the first stays; an impossible return alone becomes missing. "keep": nothing is
            touched.
        negative_prices : {"error", "midpoint"}
            "midpoint" takes negative prices as CRSP means them: no trade, midpoint of bid and ask.
        adjust : {"divide", "multiply"}, optional
            Divide prices by the adjustment factor and multiply volume with it (CRSP's CFACPR), or the other
            way round (A-share factors). Total returns are not touched.
        progress : bool
            Show a progress bar if it takes longer than a second.

        Returns
        -------
        Panel

        Raises
        ------
        ValueError
            Columns missing or ambiguous, no rows, times or numbers that cannot be read, mixed time zones, dates
            that the zone would move, or bars with faults. The message names the column, the first value and its
            row, and the way to mend it.
        FileNotFoundError
            No file there.
        TypeError
            A source of another kind.
        """
        _check_choices(on_bad, negative_prices, adjust)
        choice(time_unit, "time_unit", (None, "s", "ms", "us", "ns"))
        if isinstance(source, Panel):
            raise TypeError("the source is a Panel already; Panel.of(x) takes panels and tables alike")
        options = tables.ReadOptions(
            requested_columns(columns, instrument, time),
            name=name,
            times=TimeOptions(check_zone(tz), time_format, time_unit),
            null_values=(null_values,) if isinstance(null_values, str) else tuple(null_values),
        )
        parts = tables.read(source, options)
        rows = sum(part.rows for part in parts)
        if rows == 0:
            raise ValueError(f"{parts[0].origin} has no rows: there are no bars in it")
        names = tables.prepare_values(parts, options)
        if adjust is not None and "adjustment_factor" not in names:
            raise ValueError(
                f"adjust={adjust!r} needs a column with the adjustment factor and {parts[0].origin} has "
                "none; name it: "
                "columns={'adjustment_factor': 'NAME OF THE COLUMN'}"
            )

        runs = tables.instrument_runs(parts)
        offsets = np.empty(len(runs.instruments) + 1, np.int64)
        dest = np.empty(len(runs.code), np.int64)
        kernels.run_places(runs.start, runs.code, offsets, dest)
        places = _Places(runs.start, dest)

        stamps = np.empty(rows, np.int64)
        first = 0
        times, zone = tables.read_times(parts, options)
        for part in times:
            at = first + len(part.ticks)
            start, dest = places.of(first, at)
            low, high = kernels.place_time(locked(part.ticks), part.scale, start, dest, stamps)
            limit = np.iinfo(np.int64).max // part.scale
            if low < -limit or high > limit:
                raise ValueError(
                    "times must lie between the years 1678 and 2262: nanoseconds cannot hold others"
                )
            first = at
        del times
        unsorted, duplicates = kernels.time_faults(stamps, offsets)
        if unsorted:
            rank = np.empty(rows, np.int64)
            kernels.sort_time(stamps, offsets, rank)
            places.expand(rank)
            duplicates = kernels.time_faults(stamps, offsets)[1]

        bars = np.empty((rows, 5))
        fields = {n: np.zeros(rows, np.bool_) if n in BOOL_FIELDS else np.empty(rows) for n in names}
        counts = np.zeros(kernels.N_BAR_KINDS, np.int64)
        nothing = locked(np.full(tables.BLOCK, np.nan))
        midpoint = negative_prices == "midpoint"
        with _bar(rows, "reading bars", progress) as done:
            for first, block in tables.blocks(parts, names):
                n = len(block["close"])  # type: ignore[arg-type]
                start, dest = places.of(first, first + n)
                o, h, lo, c, v = (nothing[:n] if block[k] is None else block[k] for k in BAR)
                kernels.place_bars(o, h, lo, c, v, start, dest, midpoint, bars, counts)
                for key, out in fields.items():
                    column = block[key]
                    if column is not None:
                        kernels.place_column(column, start, dest, out)
                    elif key not in BOOL_FIELDS:
                        kernels.place_column(nothing[:n], start, dest, out)
                done(n)
        one_unnamed = len(runs.instruments) == 1 and all("instrument" not in p.names for p in parts)
        hint = "the table has no instrument column, or none that was recognised: pass instrument=\n"
        return _finish(
            _Raw(bars, offsets, runs.instruments, stamps, zone, fields, counts, unsorted, duplicates),
            on_bad=on_bad,
            midpoint=midpoint,
            adjust=adjust,
            float32=rows if any(part.float32 for part in parts) else 0,
            remarks=tuple(dict.fromkeys(r for part in parts for r in part.remarks)),
            hint=hint if one_unnamed and duplicates else "",
        )

    @classmethod
    def from_arrays(
        cls,
        open: Any,
        high: Any,
        low: Any,
        close: Any,
        volume: Any = None,
        *,
        instruments: Any = None,
        time: Any = None,
        intervals: Any = None,
        tz: str | None = None,
        time_format: str | None = None,
        time_unit: Literal["s", "ms", "us", "ns"] | None = None,
        on_bad: Literal["raise", "drop_bar", "keep"] = "raise",
        negative_prices: Literal["error", "midpoint"] = "error",
        adjust: Literal["multiply", "divide"] | None = None,
        progress: bool = True,
        **fields: Any,
    ) -> Panel:
        """Read arrays of shape (time, instrument) or (day, instrument, interval).

        The arrays are read a block of instruments at a time, so that no more than the panel and a block are
        in memory. Bars before an instrument's first and after its last price are left out; missing bars
        between stay, as NaN. So a gap has bars only once a later price ends it: pass
        ``eligible=~np.isnan(close)``, and no window ends in a gap that a later price alone tells of.

        Parameters
        ----------
        open, high, low, close : array
            numpy arrays, memmaps, zarr arrays, xarray DataArrays, anything that has a shape and can be
            sliced. Missing is NaN. float32 is widened (and noted: it changes pixels).
        volume : array, optional
            NaN throughout when absent.
        instruments : sequence, optional
            Names along the second axis. By default the coordinate of an xarray DataArray, else "0", "1", ...
        time : array, optional
            Times along the first axis in any form that `from_table` reads; for three axes stamps (day,
            interval), or days together with `intervals`. By default the coordinate of a DataArray, else bars
            are numbered by days since 1970 (and intervals by minutes), which the report notes.
        intervals : sequence, optional
            Times of day along the third axis: "09:35", `datetime.time`, `datetime.timedelta` or timedelta64.
        tz, time_format, time_unit, on_bad, negative_prices, adjust, progress
            As in `from_table`.
        **fields : array
            total_return, adjustment_factor, market_cap, up_limit, down_limit, eligible, of the shape of the
            prices or, for three axes, (day, instrument): one value for all intervals of the day.

        Returns
        -------
        Panel
            Instruments stand in the given order; one without any price has no rows.

        Raises
        ------
        ValueError, TypeError
            Shapes that do not match, times that cannot be read, or bars with faults.
        """
        _check_choices(on_bad, negative_prices, adjust)
        choice(time_unit, "time_unit", (None, "s", "ms", "us", "ns"))
        for key in fields:
            if key not in FIELDS:
                raise TypeError(f"from_arrays: {key!r} is no field{nearest(key, FIELDS)}; known: {FIELDS}")
        fields = {k: v for k, v in fields.items() if v is not None}
        if adjust is not None and "adjustment_factor" not in fields:
            raise ValueError(f"adjust={adjust!r} needs adjustment_factor=")
        prices = {"open": open, "high": high, "low": low, "close": close}
        if volume is not None:
            prices["volume"] = volume
        prices = {k: arrays.sliceable(k, v) for k, v in prices.items()}
        extra = {k: arrays.sliceable(k, v) for k, v in fields.items()}
        shape = tuple(prices["open"].shape)
        if len(shape) not in (2, 3):
            raise ValueError(
                f"open has {len(shape)} axes; expected (time, instrument) or (day, instrument, interval), "
                f"got {shape}"
            )
        for key, array in prices.items():
            if tuple(array.shape) != shape:
                raise ValueError(
                    f"{key} has shape {tuple(array.shape)}, but open has {shape}: they must be the same"
                )
        for key, array in extra.items():
            if tuple(array.shape) not in (shape, shape[:2]):
                also = f" or {shape[:2]}" if len(shape) == 3 else ""
                raise ValueError(f"{key} has shape {tuple(array.shape)}; expected {shape}{also}")
        days, width, per_day = (*shape, 1)[:3]
        if 0 in shape:
            raise ValueError(f"the arrays have shape {shape}: there are no bars in them")

        remarks: list[str] = []
        names = arrays.instrument_names(instruments, prices["open"], width)
        read = TimeOptions(check_zone(tz), time_format, time_unit)
        stamps, zone = arrays.bar_times(
            time, intervals, prices["open"], days, per_day, read, remarks, len(shape) == 3
        )
        order, unsorted, duplicates = arrays.time_order(stamps, on_bad, zone)
        if order is not None:
            stamps = stamps[order]
        stamps = np.ascontiguousarray(stamps).reshape(-1)

        most = len(stamps) * width
        bars = np.empty((most, 5))  # Pages beyond what is filled are never touched, and given back below.
        stamped = np.empty(most, np.int64)
        out = {k: np.empty(most, np.bool_ if k in BOOL_FIELDS else np.float64) for k in FIELDS if k in extra}
        offsets = np.zeros(width + 1, np.int64)
        counts = np.zeros(kernels.N_BAR_KINDS, np.int64)
        midpoint = negative_prices == "midpoint"
        step = arrays.block_width(prices["open"], days * per_day, width)
        with _bar(width, "reading instruments", progress) as done:
            for a in range(0, width, step):
                b = min(a + step, width)
                block = {
                    k: arrays.read_block(v, a, b, order, shape, np.float64, k) for k, v in prices.items()
                }
                first, stop = np.empty(b - a, np.int64), np.empty(b - a, np.int64)
                o, h, lo, c = (block[p] for p in PRICES)
                has_volume = "volume" in block
                v = block["volume"] if has_volume else c
                kernels.spans(o, h, lo, c, first, stop)
                offsets[a + 1 : b + 1] = offsets[a] + np.cumsum(np.maximum(stop - first, 0))
                dest = offsets[a:b]
                kernels.fill_bars(o, h, lo, c, v, has_volume, first, stop, dest, midpoint, bars, counts)
                del block, o, h, lo, c, v
                for j in range(b - a):
                    if stop[j] > first[j]:
                        stamped[offsets[a + j] : offsets[a + j + 1]] = stamps[first[j] : stop[j]]
                for key, filled in out.items():
                    values = arrays.read_block(extra[key], a, b, order, shape, filled.dtype, key)
                    kernels.fill_column(values, first, stop, dest, filled)
                done(b - a)
        rows = int(offsets[-1])
        if rows == 0:
            raise ValueError("every price is missing: there are no bars in the arrays")
        for array in (bars, stamped, *out.values()):
            array.resize((rows, *array.shape[1:]), refcheck=False)
        narrow = any(v.dtype == np.float32 for v in prices.values())
        return _finish(
            _Raw(bars, offsets, names, stamped, zone, out, counts, unsorted, 0),
            on_bad=on_bad,
            midpoint=midpoint,
            adjust=adjust,
            float32=rows if narrow else 0,
            remarks=tuple(remarks),
            dropped_times=duplicates,
        )

    # --------------------------------------------------------------------------------------------- looking

    def __len__(self) -> int:
        return len(self.bars)

    @property
    def n_instruments(self) -> int:
        """Number of instruments."""
        return len(self.instruments)

    def __repr__(self) -> str:
        fields = f", fields {', '.join(self.fields)}" if self.fields else ""
        if not len(self):
            return f"Panel(0 rows of {self.n_instruments} instruments{fields})"
        span = f"{self.stamp(int(self.time.min()))} to {self.stamp(int(self.time.max()))}"
        return (
            f"Panel({len(self):,} rows of {self.n_instruments:,} instruments, {span}, "
            f"{self.tz or 'no time zone'}{fields})"
        )

    def stamp(self, ns: int) -> str:
        """Return a time of the panel as ISO text, in the zone of the panel."""
        return stamp(ns, self.tz)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that stand for the content: instruments, times, bars, fields and zone.

        The same on every machine, whatever the order of the rows in the source, the bits of its NaNs or the
        sign of its zeros. It finds changes; it is no protection against forgery.
        """
        if "digest" not in self._cache:
            head = {
                "pricepix panel": 1,
                "tz": self.tz,
                "fields": list(self.fields),
                "names": self.instruments.tolist(),
            }
            whole = hashlib.blake2b(json.dumps(head).encode(), digest_size=16)
            whole.update(self.offsets.astype("<i8").tobytes())
            whole.update(self.instrument_digests.astype("<u8").tobytes())
            self._cache["digest"] = whole.hexdigest()
        return self._cache["digest"]

    @property
    def instrument_digests(self) -> np.ndarray:
        """128 bits for the rows of each instrument, uint64 (instruments, 2): they tell which changed."""
        if "instrument_digests" not in self._cache:
            out = np.empty((self.n_instruments, 2), np.uint64)
            # Without compilation numpy warns of the overflow that hashing lives on.
            with np.errstate(over="ignore"):
                hashing.hash_bars(self.bars.view(np.uint64), self.time.view(np.uint64), self.offsets, out)
                for name, values in self.fields.items():
                    bits = values.view(np.uint8 if values.dtype == np.bool_ else np.uint64)
                    hashing.hash_column(bits, self.offsets, np.uint64(FIELDS.index(name) + 1), out)
            self._cache["instrument_digests"] = locked(out)
        return self._cache["instrument_digests"]

    @property
    def calendar(self) -> np.ndarray:
        """All times at which any instrument has a row, ascending, int64 ns."""
        if "calendar" not in self._cache:
            self._cache["calendar"] = locked(_calendar(self.time, self.offsets))
        return self._cache["calendar"]

    @property
    def time_code(self) -> np.ndarray:
        """Position of each row's time in `calendar`, int32 (rows,)."""
        if "time_code" not in self._cache:
            out = np.empty(len(self), np.int32)
            kernels.time_codes(self.time, self.offsets, self.calendar, out)
            self._cache["time_code"] = locked(out)
        return self._cache["time_code"]

    def index_of(self, instrument: str) -> int:
        """Return the position of an instrument; KeyError with the nearest names if there is none."""
        if "index" not in self._cache:
            self._cache["index"] = {n: i for i, n in enumerate(self.instruments.tolist())}
        try:
            return self._cache["index"][str(instrument)]
        except KeyError:
            names = self.instruments.tolist()
            hint = nearest(str(instrument), names) or f"; there are {', '.join(names[:5])}" + (
                f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            )
            raise KeyError(f"no instrument {str(instrument)!r} in the panel{hint}") from None

    def rows_of(self, instrument: str) -> slice:
        """Return the rows of an instrument; KeyError with the nearest names if there is none."""
        i = self.index_of(instrument)
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def as_time(self, value: Any, *, end: bool = False) -> int:
        """Return a point in time as ns of this panel.

        Parameters
        ----------
        value : str, datetime, date, numpy.datetime64 or int
            Text in ISO form. Without a zone, wall-clock time of the panel. An int is taken as it is.
        end : bool
            If only a date is given (``"2020-03-16"``, a date, a datetime64 of days), return the last
            nanosecond of that day, month (``"2020-03"``) or year.

        Raises
        ------
        ValueError, TypeError
            Not a time, or one with a zone for a panel that has none.
        """
        return as_time(value, self.tz, end)

    def locate(self, instrument: str, time: Any) -> int:
        """Return the row of an instrument at a time.

        `time` is as in `as_time`. A date alone also finds the one bar of that day.

        Raises
        ------
        KeyError
            No such instrument (the nearest names are told), no bar at this time (the nearest bars are told),
            or a date alone when the day has several bars.
        """
        rows = self.rows_of(instrument)
        times = self.time[rows]
        ns, last = self.as_time(time), self.as_time(time, end=True)
        a = int(np.searchsorted(times, ns))
        if a < len(times) and times[a] == ns:
            return rows.start + a
        b = int(np.searchsorted(times, last, side="right"))
        if b - a == 1:
            return rows.start + a
        if b - a > 1:
            raise KeyError(
                f"{instrument} has {b - a} bars on {time}, from {self.stamp(times[a])} to "
                f"{self.stamp(times[b - 1])}: "
                "give the time of day"
            )
        near = " and ".join(self.stamp(int(t)) for t in times[max(a - 1, 0) : a + 1])
        raise KeyError(
            f"{instrument} has no bar at {time}; " + (f"nearest are {near}" if near else "it has no bars")
        )

    def select(
        self, instruments: Sequence[str] | str | None = None, start: Any = None, end: Any = None
    ) -> Panel:
        """Return the panel of some instruments and a stretch of time.

        Parameters
        ----------
        instruments : sequence of str, optional
            Names to keep; they stay in the order of the panel.
        start, end : time, optional
            First and last time, both included; as in `as_time`. A date alone as `end` includes the whole day.

        Returns
        -------
        Panel
            Instruments left without a row are left out. The report is that of the whole panel.

        Raises
        ------
        KeyError
            Unknown instrument.
        ValueError
            Nothing is left.
        """
        if instruments is None:
            keep = np.arange(self.n_instruments)
        else:
            wanted = [instruments] if isinstance(instruments, str) else instruments
            keep = np.unique(np.array([self.index_of(n) for n in wanted], dtype=np.int64))
        a, b = self.offsets[keep].copy(), self.offsets[keep + 1].copy()
        if start is not None or end is not None:
            low = -(2**63) if start is None else self.as_time(start)
            high = 2**63 - 1 if end is None else self.as_time(end, end=True)
            for k in range(len(keep)):
                times = self.time[a[k] : b[k]]
                a[k], b[k] = (
                    a[k] + np.searchsorted(times, low),
                    a[k] + max(np.searchsorted(times, high, side="right"), np.searchsorted(times, low)),
                )
            full = b > a
            keep, a, b = keep[full], a[full], b[full]
        if not len(keep) or not (b > a).any():
            raise ValueError(f"nothing is left of {self!r} by select(start={start!r}, end={end!r})")
        if len(keep) == self.n_instruments and int((b - a).sum()) == len(self):
            return self
        offsets = np.concatenate([[0], np.cumsum(b - a)]).astype(np.int64)
        if (a[1:] == b[:-1]).all():
            rows: Any = slice(int(a[0]), int(b[-1]))
        else:
            rows = np.repeat(a - offsets[:-1], b - a) + np.arange(offsets[-1])
        fields = {k: v[rows] for k, v in self.fields.items()}
        return Panel(
            self.bars[rows], offsets, self.instruments[keep], self.time[rows], self.tz, fields, self.report
        )

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame: instrument, time, open, high, low, close, volume and the fields."""
        lengths = np.diff(self.offsets)
        names = pl.Series("instrument", self.instruments.tolist(), dtype=pl.String)
        time = pl.Series("time", self.time).cast(pl.Datetime("ns"))
        if self.tz is not None:
            time = time.dt.replace_time_zone("UTC").dt.convert_time_zone(self.tz)
        columns = [names.gather(np.repeat(np.arange(self.n_instruments, dtype=np.uint32), lengths)), time]
        columns += [pl.Series(n, np.ascontiguousarray(self.bars[:, k])) for k, n in enumerate(BAR)]
        columns += [pl.Series(n, v) for n, v in self.fields.items()]
        return pl.DataFrame(columns)


# ----------------------------------------------------------------------------------------------- inside


class _Places:
    """Where the rows of the source go: by runs of rows, or row by row once times had to be sorted."""

    def __init__(self, start: np.ndarray, dest: np.ndarray) -> None:
        self.start, self.dest = start, dest
        self.rows: np.ndarray | None = None

    def expand(self, rank: np.ndarray) -> None:
        self.rows = np.empty(len(rank), np.int64)
        kernels.expand(self.start, self.dest, rank, self.rows)

    def of(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments of rows a:b, counted from a, and the rows of the panel to which they go."""
        if self.rows is not None:
            return np.arange(b - a + 1), self.rows[a:b]
        first = int(np.searchsorted(self.start, a, side="right")) - 1
        last = int(np.searchsorted(self.start, b, side="left"))
        start = np.clip(self.start[first : last + 1], a, b) - a
        dest = self.dest[first:last].copy()
        dest[0] += a - self.start[first]
        return start, dest


class _Raw(NamedTuple):
    """A panel as it came, with what was counted on the way."""

    bars: np.ndarray
    offsets: np.ndarray
    instruments: np.ndarray
    time: np.ndarray
    tz: str | None
    fields: dict[str, np.ndarray]
    counts: np.ndarray
    unsorted: int
    duplicates: int


def _finish(
    raw: _Raw,
    *,
    on_bad: str,
    midpoint: bool,
    adjust: str | None,
    float32: int,
    remarks: tuple[str, ...],
    hint: str = "",
    dropped_times: int = 0,
) -> Panel:
    """Judge what was counted, mend what is to be mended, and make the panel."""
    bars, offsets, names, time, tz, fields, counted, unsorted, duplicates = raw

    def rows_named(rows: Any) -> tuple[BadRow, ...]:
        return tuple(
            BadRow(
                str(names[np.searchsorted(offsets, r, side="right") - 1]),
                stamp(int(time[r]), tz),
                *(float(x) for x in bars[r]),
            )
            for r in rows
        )

    counts: dict[str, int] = {}
    examples: dict[str, tuple[BadRow, ...]] = {}
    twice = np.empty(0, np.int64)
    if duplicates:
        same = np.flatnonzero(time[1:] == time[:-1]) + 1
        twice = same[~np.isin(same, offsets)]
        counts["duplicate_time"] = duplicates
        examples["duplicate_time"] = rows_named(twice[:_SHOWN])
    if counted.any():
        found = np.full((kernels.N_BAR_KINDS, _SHOWN), -1, np.int64)
        kernels.first_rows(bars, midpoint, counted, found)
        for bit, kind in enumerate(BAR_KINDS):
            if counted[bit]:
                counts[kind] = int(counted[bit])
                examples[kind] = rows_named(r for r in found[bit] if r >= 0)
    returns = fields.get("total_return")
    wild = np.empty(0, np.int64)
    if returns is not None:
        wild = np.flatnonzero((returns < -1.0) | np.isinf(returns))
        if len(wild):
            counts["impossible_return"] = len(wild)
            examples["impossible_return"] = rows_named(wild[:_SHOWN])
    factor = fields.get("adjustment_factor")
    if factor is not None and adjust is not None:
        bad = np.flatnonzero(~((factor > 0.0) & (factor < np.inf)))
        bad = bad[~np.isnan(bars[bad, :4]).all(axis=1)]
        if len(bad):
            counts["bad_factor"] = len(bad)
            examples["bad_factor"] = rows_named(bad[:_SHOWN])
    elif factor is not None:
        other = int(np.count_nonzero((factor != 1.0) & ~np.isnan(factor)))
        if other:
            counts["unapplied_factor"] = other
    if unsorted:
        counts["unsorted_time"] = unsorted
    if float32:
        counts["float32_input"] = float32
    counts = {k: counts[k] for k in (*ERRORS, *NOTES) if k in counts}

    report = PanelReport(
        len(bars), len(names), MappingProxyType(counts), MappingProxyType(examples), 0, on_bad, remarks
    )
    errors = report.errors
    if errors and on_bad == "raise":
        raise ValueError(
            "the data holds bars that cannot be right: "
            f"{', '.join(f'{n:,} {k}' for k, n in errors.items())}\n"
            f"{report.table(errors)}\n{hint}{_remedies(errors)}"
        )
    if duplicates and on_bad == "keep":
        raise ValueError(
            "on_bad='keep' cannot keep two rows of one instrument at one time:\n"
            f"{report.table({'duplicate_time': duplicates})}\n{hint}remove them, or pass on_bad='drop_bar' "
            "to keep the "
            "first of each"
        )

    dropped = dropped_times
    if len(twice):
        keep = np.ones(len(bars), np.bool_)
        keep[twice] = False
        bars, time = bars[keep], time[keep]
        fields = {k: v[keep] for k, v in fields.items()}
        offsets = offsets - np.searchsorted(twice, offsets)
        factor, returns = fields.get("adjustment_factor"), fields.get("total_return")
        dropped += len(twice)
    drop = bool(errors) and on_bad == "drop_bar"
    if drop or adjust is not None or "midpoint_price" in counts:
        by = factor if adjust is not None else np.empty(0)
        dropped += kernels.mend(bars, midpoint, drop, by, _ADJUST[adjust])
    if drop and returns is not None and len(wild):
        returns[(returns < -1.0) | np.isinf(returns)] = np.nan
    report = PanelReport(len(bars), len(names), report.counts, report.examples, dropped, on_bad, remarks)
    return Panel(bars, offsets, names, time, tz, fields, report)


def _remedies(errors: Mapping[str, int]) -> str:
    lines = []
    if "nonpositive_price" in errors:
        lines.append("negative_prices='midpoint' takes negative prices as CRSP's midpoints")
    lines.append(
        "on_bad='drop_bar' makes these bars missing (rows stay; of two rows at one time the first is kept) "
        "and counts them"
    )
    if "duplicate_time" not in errors:
        lines.append("on_bad='keep' takes the values as they are")
    return "To mend: correct the data, or pass\n" + "\n".join(f"  {line}" for line in lines)


def _restore(state: tuple[Any, ...], cache: dict[str, Any]) -> Panel:
    panel = Panel(*state)
    panel._cache.update(cache)
    return panel


def _check_choices(on_bad: str, negative_prices: str, adjust: str | None) -> None:
    choice(on_bad, "on_bad", ("raise", "drop_bar", "keep"))
    choice(negative_prices, "negative_prices", ("error", "midpoint"))
    choice(adjust, "adjust", (None, "divide", "multiply"))


@contextlib.contextmanager
def _bar(total: int, what: str, progress: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, disable=not progress, delay=1.0, leave=False, unit_scale=True) as bar:
        yield bar.update


def _calendar(time: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    # Nearly all instruments share one calendar, so the longest one holds nearly all times. Only the others
    # are collected and sorted: 25 million rows take 0.1 s, where numpy.unique takes 2.
    lengths = np.diff(offsets)
    if not lengths.sum():
        return np.empty(0, np.int64)
    longest = int(lengths.argmax())
    calendar = time[offsets[longest] : offsets[longest + 1]].copy()
    others = np.empty(max(1 << 16, int(lengths.max())), np.int64)
    i = 0
    while i < len(lengths):
        i, n = kernels.times_outside(time, offsets, i, calendar, others)
        if n:
            calendar = np.union1d(calendar, others[:n])
            others = np.empty(max(len(others), len(calendar)), np.int64)
    return calendar
