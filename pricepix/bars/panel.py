"""The OHLCV history of a universe, as one block of memory, checked on entry.

`Panel.from_table` and `Panel.from_arrays` are the two ways in; `Panel.report` says what they found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import polars as pl

from pricepix._checks import nearest, printable
from pricepix.bars import display, hashing, ingest, kernels
from pricepix.bars.calendar import calendar_of
from pricepix.bars.columns import BAR, BOOL_FIELDS, FIELDS, requested_columns
from pricepix.bars.options import ReadOptions
from pricepix.bars.report import PanelReport
from pricepix.bars.times import TimeOptions, as_time, check_zone, format_time, time_range
from pricepix.bars.values import locked


class Panel:
    """OHLCV bars of a universe of instruments, ragged, sorted by instrument and time.

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
        Findings of the checks on entry.
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
        """Wrap arrays as the attributes describe them. Shapes and types are checked, values are not."""
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
                    f"{name} must be a C-contiguous {np.dtype(dtype)} array of shape {shape}, got {array.dtype} "
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
                    f"a Panel has been read already: {', '.join(options)} cannot be applied to it any more"
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
        anchor: Literal["given", "first"] = "given",
        gaps: Literal["keep", "missing"] = "keep",
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
            Our names to the table's: ``{"close": "PRC"}``. None as a value means: do not read this one. Other
            names are found by their usual spellings in any case (open, o, OPENPRC, PX_OPEN, ...). Known:
            instrument, time, open, high, low, close, volume, total_return, adjustment_factor, market_cap,
            up_limit, down_limit, eligible. Only time and the four prices are required. A missing flag is
            False.
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
            How to treat rows with faults (see `ERRORS`). "raise": one error that counts and names them.
            "drop_bar": the bar becomes missing (its row stays, so that no window splices over it); of two
            rows at one time the first stays; of an impossible return only the return becomes missing. "keep":
            nothing is changed.
        negative_prices : {"error", "midpoint"}
            "midpoint" takes negative prices as CRSP means them: no trade, midpoint of bid and ask.
        adjust : {"divide", "multiply"}, optional
            Divide prices by the adjustment factor and multiply volume with it (CRSP's CFACPR), or the other
            way round (A-share factors). Total returns are not touched.
        anchor : {"given", "first"}
            At which bar adjusted prices are the quoted ones. "given": where the factor is 1, mostly the last bar, so
            that every later split changes all earlier prices. "first": each instrument's first bar with a price,
            so that later splits and dividends change no earlier price, volume, image or label, and stores can be
            appended to. Factors then count from the first bar in the field ``adjustment_factor``, too. The history
            must always begin at the same bar, and factors must be float64.
        gaps : {"keep", "missing"}
            How to treat holes: times between an instrument's first and last row at which it has no row, though at
            least half of the instruments then alive have a price. "keep": its bars stand side by side.
            "missing": a missing bar (no prices, no volume, no return, no flag) is put in. The report counts
            them as ``absent_bar`` in both cases.
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
            row, and the way to fix it.
        FileNotFoundError
            No file there.
        TypeError
            A source of a different kind.
        """
        if isinstance(source, Panel):
            raise TypeError("the source is a Panel already; Panel.of(x) takes panels and tables alike")
        options = ReadOptions(
            on_bad,
            negative_prices,
            adjust,
            TimeOptions(tz, time_format, time_unit),
            progress,
            columns=requested_columns(columns, instrument, time),
            name=name,
            null_values=(null_values,) if isinstance(null_values, str) else tuple(null_values),
            gaps=gaps,
            anchor=anchor,
        )
        return cls(*ingest.read_table(source, options))

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
        anchor: Literal["given", "first"] = "given",
        progress: bool = True,
        **fields: Any,
    ) -> Panel:
        """Read arrays of shape (time, instrument) or (day, instrument, interval).

        The arrays are read a block of instruments at a time, so that no more than the panel and a block are
        in memory. Bars before an instrument's first price are left out, and so are those after its last price
        or, if that comes later, its last known total return (the return of a delisting has no price); missing
        bars between stay, as NaN. So a gap has bars only once a later price ends it: pass
        ``eligible=~np.isnan(close)``, and no window ends in a gap that is known only from a later price.

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
        tz, time_format, time_unit, on_bad, negative_prices, adjust, anchor, progress
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
        options = ReadOptions(
            on_bad, negative_prices, adjust, TimeOptions(tz, time_format, time_unit), progress, anchor=anchor
        )
        prices = {"open": open, "high": high, "low": low, "close": close, "volume": volume}
        return cls(*ingest.read_arrays(prices, fields, instruments, time, intervals, options))

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

    def _repr_html_(self) -> str:
        ends = self.offsets[1:] > self.offsets[:-1]
        first, last = self.time[self.offsets[:-1][ends]], self.time[self.offsets[1:][ends] - 1]
        facts: dict[str, Any] = {"rows": len(self), "instruments": self.n_instruments}
        figure = display.Html("")
        if len(first):
            span = self.stamp(int(first.min())), self.stamp(int(last.max()))
            facts |= {"first": span[0], "last": span[1]}
            figure = display.coverage(first, last, "Instruments between their first and their last bar", span)
        facts |= {
            "time zone": self.tz or "none: wall-clock times",
            "fields": ", ".join(self.fields) or "none",
            "memory": f"{sum(a.nbytes for a in (self.bars, self.time, *self.fields.values())) / 1e6:,.1f} MB",
        }
        about = f"{len(self):,} rows of {self.n_instruments:,} instruments"
        parts = display.columns(figure, display.facts(facts))
        return display.page("Panel", about, parts, *self.report.html_parts())

    def stamp(self, ns: int) -> str:
        """Return a time of the panel as ISO text, in the zone of the panel."""
        return format_time(ns, self.tz)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that stand for the content: instruments, times, bars, fields and zone.

        The same on every machine, whatever the order of the rows in the source, the bits of its NaNs or the
        sign of its zeros. It detects changes but not forgeries. See `panel_digest`.
        """
        if "digest" not in self._cache:
            self._cache["digest"] = panel_digest(
                self.instruments, self.offsets, self.instrument_digests, self.fields, self.tz
            )
        return self._cache["digest"]

    @property
    def instrument_digests(self) -> np.ndarray:
        """128 bits for the rows of each instrument, uint64 (instruments, 2): they show which instruments changed."""
        if "instrument_digests" not in self._cache:
            out = np.empty((self.n_instruments, 2), np.uint64)
            # Hashing relies on overflow, of which numpy warns when the loops are not compiled.
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
            self._cache["calendar"] = locked(calendar_of(self.time, self.offsets))
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
            hint = nearest(str(instrument), names) or f"; there are {printable(', '.join(names[:5]), '')}" + (
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

        `time` is as in `as_time`. A date also finds the only bar of that day.

        Raises
        ------
        KeyError
            No such instrument (the message gives the nearest names), no bar at this time (it gives the nearest
            bars), or a date whose day has several bars.
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
                f"{self.stamp(times[b - 1])}: give the time of day"
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
            First and last time, both included; as in `as_time`. A date as `end` includes the whole day.

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
            low, high = time_range(start, end, self.tz)
            for k in range(len(keep)):
                times = self.time[a[k] : b[k]]
                first = np.searchsorted(times, low)
                stop = max(np.searchsorted(times, high, side="right"), first)
                a[k], b[k] = a[k] + first, a[k] + stop
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


def panel_digest(
    instruments: np.ndarray,
    offsets: np.ndarray,
    instrument_digests: np.ndarray,
    fields: Iterable[str],
    tz: str | None,
) -> str:
    """Return the digest of a panel, which need not be in memory.

    Parameters
    ----------
    instruments, offsets, instrument_digests, tz
        As in `Panel`.
    fields : iterable of str
        Names of the panel's fields, in the order of `FIELDS`.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    head = {"pricepix panel": 1, "tz": tz, "fields": list(fields), "names": instruments.tolist()}
    content = hashlib.blake2b(json.dumps(head).encode(), digest_size=16)
    content.update(offsets.astype("<i8").tobytes())
    content.update(instrument_digests.astype("<u8").tobytes())
    return content.hexdigest()


def _restore(state: tuple[Any, ...], cache: dict[str, Any]) -> Panel:
    panel = Panel(*state)
    panel._cache.update(cache)
    return panel
