"""From a source of bars to the parts of a panel: read, align, check, repair.

`read_table` and `read_arrays` put the bars of a source into the rows of a panel; `check_and_repair` counts what
is wrong with them and does what the options ask for. What comes out are the arguments of `Panel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pricepix._checks import nearest
from pricepix.bars import arrays, hashing, kernels, tables, values
from pricepix.bars.adjustment import factors_from_first
from pricepix.bars.calendar import Gaps, fill_gaps, find_gaps
from pricepix.bars.columns import BAR, BOOL_FIELDS, FIELDS, PRICES
from pricepix.bars.compiling import announce_compiling
from pricepix.bars.options import ReadOptions
from pricepix.bars.progress import progress_bar
from pricepix.bars.report import BAR_KINDS, ERRORS, NOTES, BadRow, PanelReport
from pricepix.bars.times import OUT_OF_RANGE, TimeOptions, format_time
from pricepix.bars.uncompiled import interpret_small_calls
from pricepix.bars.values import locked

announce_compiling()
interpret_small_calls(kernels)
# Hashes wrap on purpose, as uint64 in either way.
interpret_small_calls(hashing, overflow="ignore")

_SHOWN = 5
_ADJUST = {None: 0, "divide": 1, "multiply": 2}


class PanelParts(NamedTuple):
    """Checked bars: the arguments of `Panel`, in its order."""

    bars: np.ndarray
    offsets: np.ndarray
    instruments: np.ndarray
    time: np.ndarray
    tz: str | None
    fields: dict[str, np.ndarray]
    report: PanelReport


class RawBars(NamedTuple):
    """Bars in the rows of a panel with the values that the source has, and what was counted while reading."""

    bars: np.ndarray
    offsets: np.ndarray
    instruments: np.ndarray
    time: np.ndarray
    tz: str | None
    fields: dict[str, np.ndarray]
    counts: np.ndarray
    """Rows of each of `BAR_KINDS`."""
    unsorted: int = 0
    """Rows that came before the row above them."""
    duplicates: int = 0
    """Rows that have the time of the row above them."""
    dropped_times: int = 0
    """Times that were left out while reading because they came twice."""
    float32: int = 0
    """Rows whose prices came as float32."""
    remarks: tuple[str, ...] = ()
    duplicate_hint: str = ""
    """What may explain duplicate times; a line of its own in errors."""


# ------------------------------------------------------------------------------------------------------ tables


def read_table(source: Any, options: ReadOptions) -> PanelParts:
    """Read a table with one row an instrument and time; see `Panel.from_table`."""
    parts = tables.read(source, options)
    rows = sum(part.rows for part in parts)
    if rows == 0:
        raise ValueError(f"{parts[0].origin} has no rows: there are no bars in it")
    names = values.prepare_values(parts, options.null_values)
    if options.adjust is not None and "adjustment_factor" not in names:
        raise ValueError(
            f"adjust={options.adjust!r} needs a column with the adjustment factor and {parts[0].origin} has none; "
            "name it: columns={'adjustment_factor': 'NAME OF THE COLUMN'}"
        )
    runs = tables.instrument_runs(parts)
    offsets = np.empty(len(runs.instruments) + 1, np.int64)
    dest = np.empty(len(runs.code), np.int64)
    kernels.run_places(runs.start, runs.code, offsets, dest)
    places = _Places(runs.start, dest)
    time, tz, unsorted, duplicates = _align(parts, places, offsets, rows, options.times)
    bars, fields, counts = _place_values(parts, names, places, rows, options)
    nameless = len(runs.instruments) == 1 and all("instrument" not in part.names for part in parts)
    hint = "the table has no instrument column, or none that was recognised: pass instrument=\n"
    raw = RawBars(
        bars,
        offsets,
        runs.instruments,
        time,
        tz,
        fields,
        counts,
        unsorted=unsorted,
        duplicates=duplicates,
        float32=rows if any(part.float32 for part in parts) else 0,
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        duplicate_hint=hint if nameless and duplicates else "",
    )
    return check_and_repair(raw, options)


class _Places:
    """The panel rows of the source's rows: by runs of rows, or row by row once times had to be sorted."""

    def __init__(self, start: np.ndarray, dest: np.ndarray) -> None:
        self.start, self.dest = start, dest
        self.rows: np.ndarray | None = None

    def expand(self, rank: np.ndarray) -> None:
        """Take account of `rank`, the row to which sorting moved each row."""
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


def _align(
    parts: list[tables.Part], places: _Places, offsets: np.ndarray, rows: int, options: TimeOptions
) -> tuple[np.ndarray, str | None, int, int]:
    """Read the times into the rows of the panel, sorted; return them with their zone, unsorted and duplicate rows."""
    time = np.empty(rows, np.int64)
    columns, tz = tables.read_times(parts, options)
    first = 0
    for column in columns:
        stop = first + len(column.ticks)
        start, dest = places.of(first, stop)
        low, high = kernels.place_time(locked(column.ticks), column.scale, start, dest, time)
        limit = np.iinfo(np.int64).max // column.scale
        if low < -limit or high > limit:
            raise ValueError(OUT_OF_RANGE)
        first = stop
    unsorted, duplicates = kernels.time_faults(time, offsets)
    if unsorted:
        rank = np.empty(rows, np.int64)
        kernels.sort_time(time, offsets, rank)
        places.expand(rank)
        duplicates = kernels.time_faults(time, offsets)[1]
    return time, tz, unsorted, duplicates


def _place_values(
    parts: list[tables.Part], names: list[str], places: _Places, rows: int, options: ReadOptions
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Read the prices, volumes and fields block by block; return bars, fields and the counts of `BAR_KINDS`."""
    bars = np.empty((rows, 5))
    fields = {n: np.zeros(rows, np.bool_) if n in BOOL_FIELDS else np.empty(rows) for n in names}
    counts = np.zeros(kernels.N_BAR_KINDS, np.int64)
    missing = locked(np.full(values.BLOCK, np.nan))
    with _progress(rows, "reading bars", options.progress) as done:
        for first, block in values.blocks(parts, names):
            n = len(block["close"])  # type: ignore[arg-type]
            start, dest = places.of(first, first + n)
            o, h, lo, c, v = (missing[:n] if block[k] is None else block[k] for k in BAR)
            kernels.place_bars(o, h, lo, c, v, start, dest, options.midpoint, bars, counts)
            for key, out in fields.items():
                column = block[key]
                if column is not None:
                    kernels.place_column(column, start, dest, out)
                elif key not in BOOL_FIELDS:
                    kernels.place_column(missing[:n], start, dest, out)
            done(n)
    return bars, fields, counts


# ------------------------------------------------------------------------------------------------------ arrays


def read_arrays(
    prices: Mapping[str, Any],
    fields: Mapping[str, Any],
    instruments: Any,
    time: Any,
    intervals: Any,
    options: ReadOptions,
) -> PanelParts:
    """Read arrays of shape (time, instrument) or (day, instrument, interval); see `Panel.from_arrays`."""
    for key in fields:
        if key not in FIELDS:
            raise TypeError(f"from_arrays: {key!r} is not a field{nearest(key, FIELDS)}; known: {FIELDS}")
    prices = {k: arrays.sliceable(k, v) for k, v in prices.items() if v is not None}
    fields = {k: arrays.sliceable(k, v) for k, v in fields.items() if v is not None}
    if options.adjust is not None and "adjustment_factor" not in fields:
        raise ValueError(f"adjust={options.adjust!r} needs adjustment_factor=")
    shape = arrays.common_shape(prices, fields)
    days, width, per_day = (*shape, 1)[:3]
    remarks: list[str] = []
    names = arrays.instrument_names(instruments, prices["open"], width)
    times, tz = arrays.bar_times(
        time, intervals, prices["open"], days, per_day, options.times, remarks, len(shape) == 3
    )
    order, unsorted, duplicates = arrays.time_order(times, options.on_bad, tz)
    if order is not None:
        times = times[order]
    times = np.ascontiguousarray(times).reshape(-1)
    bars, offsets, row_times, columns, counts = _fill_rows(prices, fields, times, order, shape, options)
    raw = RawBars(
        bars,
        offsets,
        names,
        row_times,
        tz,
        columns,
        counts,
        unsorted=unsorted,
        dropped_times=duplicates,
        float32=len(bars) if any(v.dtype == np.float32 for v in prices.values()) else 0,
        remarks=tuple(remarks),
    )
    return check_and_repair(raw, options)


def _fill_rows(
    prices: Mapping[str, Any],
    fields: Mapping[str, Any],
    times: np.ndarray,
    order: np.ndarray | None,
    shape: tuple[int, ...],
    options: ReadOptions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Read a block of instruments at a time; return bars, offsets, the rows' times, fields and counts."""
    width = shape[1]
    most = len(times) * width
    bars = np.empty((most, 5))  # Pages beyond what is filled are never touched, and given back below.
    row_times = np.empty(most, np.int64)
    out: dict[str, np.ndarray] = {
        k: np.empty(most, np.bool_ if k in BOOL_FIELDS else np.float64) for k in FIELDS if k in fields
    }
    offsets = np.zeros(width + 1, np.int64)
    counts = np.zeros(kernels.N_BAR_KINDS, np.int64)
    step = arrays.block_width(prices["open"], shape[0] * (*shape, 1)[2], width)
    with _progress(width, "reading instruments", options.progress) as done:
        for a in range(0, width, step):
            b = min(a + step, width)
            block = {k: arrays.read_block(v, a, b, order, shape, np.float64, k) for k, v in prices.items()}
            first, stop = np.empty(b - a, np.int64), np.empty(b - a, np.int64)
            o, h, lo, c = (block[p] for p in PRICES)
            has_volume = "volume" in block
            v = block["volume"] if has_volume else c
            has_return = "total_return" in fields
            returns = c
            if has_return:
                returns = arrays.read_block(
                    fields["total_return"], a, b, order, shape, np.float64, "total_return"
                )
            kernels.spans(o, h, lo, c, returns, has_return, first, stop)
            offsets[a + 1 : b + 1] = offsets[a] + np.cumsum(np.maximum(stop - first, 0))
            dest = offsets[a:b]
            kernels.fill_bars(o, h, lo, c, v, has_volume, first, stop, dest, options.midpoint, bars, counts)
            del block, o, h, lo, c, v, returns
            for j in range(b - a):
                if stop[j] > first[j]:
                    row_times[offsets[a + j] : offsets[a + j + 1]] = times[first[j] : stop[j]]
            for key, filled in out.items():
                column = arrays.read_block(fields[key], a, b, order, shape, filled.dtype, key)
                kernels.fill_column(column, first, stop, dest, filled)
            done(b - a)
    rows = int(offsets[-1])
    if rows == 0:
        raise ValueError("every price is missing: there are no bars in the arrays")
    for array in (bars, row_times, *out.values()):
        array.resize((rows, *array.shape[1:]), refcheck=False)
    return bars, offsets, row_times, out, counts


# ----------------------------------------------------------------------------------------------------- checking


def check_and_repair(raw: RawBars, options: ReadOptions) -> PanelParts:
    """Count the faults, refuse or repair them as the options say, and return the parts of the panel."""
    counts, examples, duplicates = _find_faults(raw, options)
    report = PanelReport(
        len(raw.bars),
        len(raw.instruments),
        MappingProxyType(counts),
        MappingProxyType(examples),
        on_bad=options.on_bad,
        remarks=raw.remarks,
    )
    _refuse(report, raw.duplicate_hint)
    return _repair(raw, duplicates, report, options)


def _find_faults(
    raw: RawBars, options: ReadOptions
) -> tuple[dict[str, int], dict[str, tuple[BadRow, ...]], np.ndarray]:
    """Return counts and first rows by kind, and the rows that have the time of the row above them."""
    counts: dict[str, int] = {}
    examples: dict[str, tuple[BadRow, ...]] = {}

    def found(kind: str, count: int, rows: Any) -> None:
        if count:
            counts[kind] = count
            examples[kind] = tuple(_bad_row(raw, row) for row in rows[:_SHOWN])

    duplicates = np.empty(0, np.int64)
    if raw.duplicates:
        duplicates = np.flatnonzero(raw.time[1:] == raw.time[:-1]) + 1
        duplicates = duplicates[~np.isin(duplicates, raw.offsets)]
        found("duplicate_time", raw.duplicates, duplicates)
    if raw.counts.any():
        first = np.full((kernels.N_BAR_KINDS, _SHOWN), -1, np.int64)
        kernels.first_rows(raw.bars, options.midpoint, raw.counts, first)
        for bit, kind in enumerate(BAR_KINDS):
            found(kind, int(raw.counts[bit]), first[bit][first[bit] >= 0])
    returns = raw.fields.get("total_return")
    if returns is not None:
        impossible = np.flatnonzero(_impossible(returns))
        found("impossible_return", len(impossible), impossible)
    factor = raw.fields.get("adjustment_factor")
    if factor is not None and options.adjust is not None:
        bad = np.flatnonzero(~((factor > 0.0) & (factor < np.inf)))
        bad = bad[~np.isnan(raw.bars[bad, :4]).all(axis=1)]
        found("bad_factor", len(bad), bad)
    elif factor is not None:
        unapplied = int(np.count_nonzero((factor != 1.0) & ~np.isnan(factor)))
        if unapplied:
            counts["unapplied_factor"] = unapplied
    if raw.unsorted:
        counts["unsorted_time"] = raw.unsorted
    if raw.float32:
        counts["float32_input"] = raw.float32
    return {kind: counts[kind] for kind in (*ERRORS, *NOTES) if kind in counts}, examples, duplicates


def _impossible(returns: np.ndarray) -> np.ndarray:
    return (returns < -1.0) | np.isinf(returns)


def _bad_row(raw: RawBars | PanelParts, row: int) -> BadRow:
    instrument = raw.instruments[np.searchsorted(raw.offsets, row, side="right") - 1]
    open_, high, low, close, volume = (float(value) for value in raw.bars[row])
    time = format_time(int(raw.time[row]), raw.tz)
    return BadRow(str(instrument), time, open_, high, low, close, volume)


def _refuse(report: PanelReport, hint: str) -> None:
    """Raise an error if there are faults that `on_bad` does not allow."""
    errors = report.errors
    if errors and report.on_bad == "raise":
        raise ValueError(
            f"the data holds bars that cannot be right: {', '.join(f'{n:,} {k}' for k, n in errors.items())}\n"
            f"{report.table(errors)}\n{hint}{_remedies(errors)}"
        )
    if "duplicate_time" in errors and report.on_bad == "keep":
        raise ValueError(
            "on_bad='keep' cannot keep two rows of one instrument at one time:\n"
            f"{report.table({'duplicate_time': errors['duplicate_time']})}\n"
            f"{hint}remove them, or pass on_bad='drop_bar' to keep the first of each"
        )


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
    return "To fix: correct the data, or pass\n" + "\n".join(f"  {line}" for line in lines)


def _repair(raw: RawBars, duplicates: np.ndarray, report: PanelReport, options: ReadOptions) -> PanelParts:
    """Drop what `on_bad` says, make midpoints positive, apply the factor; return the panel's parts."""
    bars, time, offsets, fields = raw.bars, raw.time, raw.offsets, raw.fields
    dropped = raw.dropped_times + len(duplicates)
    if len(duplicates):
        keep = np.ones(len(bars), np.bool_)
        keep[duplicates] = False
        bars, time = bars[keep], time[keep]
        fields = {name: column[keep] for name, column in fields.items()}
        offsets = offsets - np.searchsorted(duplicates, offsets)
    if options.anchor == "first":
        relative = factors_from_first(bars, fields["adjustment_factor"], offsets)
        fields = {**fields, "adjustment_factor": relative}
        report = replace(
            report, remarks=(*report.remarks, "prices are adjusted from each instrument's first bar on")
        )
    drop = bool(report.errors) and options.on_bad == "drop_bar"
    if drop or options.adjust is not None or "midpoint_price" in report.counts:
        factor = fields["adjustment_factor"] if options.adjust is not None else np.empty(0)
        dropped += kernels.repair(bars, options.midpoint, drop, factor, _ADJUST[options.adjust])
    if drop and "impossible_return" in report.counts:
        returns = fields["total_return"]
        returns[_impossible(returns)] = np.nan
    parts = PanelParts(bars, offsets, raw.instruments, time, raw.tz, fields, report)
    return _note_absences(parts._replace(report=replace(report, dropped=dropped)), options)


def _note_absences(parts: PanelParts, options: ReadOptions) -> PanelParts:
    """Count what repaired bars lack, name the first rows that show it, and fill holes if the options say so."""
    counts: dict[str, int] = {}
    examples: dict[str, tuple[BadRow, ...]] = {}
    if "total_return" in parts.fields:
        found = np.full(_SHOWN, -1, np.int64)
        count, before = kernels.missing_returns(
            locked(parts.bars), locked(parts.fields["total_return"]), locked(parts.offsets), found
        )
        if before:
            counts["before_first_return"] = before
        if count:
            counts["missing_return"] = count
            examples["missing_return"] = tuple(_bad_row(parts, row) for row in found[found >= 0])
    gaps = find_gaps(parts.bars, parts.time, parts.offsets, _SHOWN)
    if gaps.absent.any():
        counts["absent_bar"] = int(gaps.absent.sum())
        examples["absent_bar"] = tuple(_bad_row(parts, row) for row in gaps.after)
    if gaps.thin_rows:
        counts["thin_time"] = gaps.thin_rows
        first = gaps.calendar[gaps.thin][:_SHOWN]
        rows = np.concatenate([np.flatnonzero(parts.time == at)[:_SHOWN] for at in first])[:_SHOWN]
        examples["thin_time"] = tuple(_bad_row(parts, row) for row in rows)
    if options.gaps == "missing" and gaps.absent.any():
        parts = _filled(parts, gaps)
    report = replace(
        parts.report,
        rows=len(parts.bars),
        counts=MappingProxyType({**parts.report.counts, **counts}),
        examples=MappingProxyType({**parts.report.examples, **examples}),
    )
    return parts._replace(report=report)


def _filled(parts: PanelParts, gaps: Gaps) -> PanelParts:
    """Put a missing bar wherever one is absent."""
    offsets, time, source = fill_gaps(parts.time, parts.offsets, gaps)
    new = source < 0
    bars = parts.bars[source]
    bars[new] = np.nan
    fields = {name: column[source] for name, column in parts.fields.items()}
    for name, column in fields.items():
        column[new] = False if name in BOOL_FIELDS else np.nan
    return parts._replace(bars=bars, offsets=offsets, time=time, fields=fields)


@contextlib.contextmanager
def _progress(total: int, what: str, shown: bool) -> Iterator[Any]:

    with progress_bar(total, what, on=shown, brief=True) as bar:
        yield bar.update
