"""Tables of bars from files and data frames: open them, find their columns, instruments and times."""

from __future__ import annotations

import csv
import fnmatch
import glob
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pricepix._checks import printable, short
from pricepix.bars import vendor_files
from pricepix.bars.columns import BAR, BOOL_FIELDS, FLOAT_FIELDS, resolve_columns
from pricepix.bars.expansion import check_expansion
from pricepix.bars.options import ReadOptions
from pricepix.bars.remote import seconds_allowed, within
from pricepix.bars.times import TimeOptions, Times, is_zone, mixed_zones, read_column
from pricepix.bars.vendors import binance, by_symbol, polygon, qlib, yfinance
from pricepix.location import Location, check_regular

SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".feather": "ipc", ".arrow": "ipc", ".ipc": "ipc", ".zip": "zip",
}  # fmt: skip
ACCEPTED = (
    "a pandas, polars or pyarrow table, a DuckDB relation, anything with __arrow_c_stream__, a mapping of columns, "
    "a frame for each symbol, ccxt's rows, or the path of CSV, Parquet or Feather files (one path, a glob, a folder or "
    "a list of paths)"
)
_PATH = "__pricepix_path__"
_MAX_HEADER = 1 << 20
"""The most characters of a header: a compressed file of 4 MB may hold a line of 4 GB."""
_DAMAGED = (
    pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error,
)  # fmt: skip


@dataclass
class Part:
    """Rows that share one origin and one set of columns.

    `names` maps our names to the table's. `columns` holds the columns by our names, in memory; or `scan` reads
    them, in order, as often as needed.
    """

    origin: str
    names: dict[str, str]
    columns: dict[str, Any] = field(default_factory=dict)
    scan: pl.LazyFrame | None = None
    literal: str | None = None
    stems: bool = False
    rows: int = 0
    remarks: list[str] = field(default_factory=list)
    float32: list[str] = field(default_factory=list)
    seconds: float | None = None
    """How long a pass over `scan` may take, where a server is read."""


# ------------------------------------------------------------------------------------------------- sources


def read(source: Any, options: ReadOptions) -> list[Part]:
    """Open a source of any accepted kind."""
    if isinstance(source, str | Path):
        if "://" not in str(source) and qlib.is_folder(source):
            return [_read_frame(qlib.read_folder(source), options, f"the Qlib folder {source}")]
        return _read_files(_expand(source), options)
    if by_symbol.is_ohlcv_rows(source):
        what = f"the {type(source).__name__} of rows"
        return [_read_frame(by_symbol.read_ohlcv_rows(source, what), options, what)]
    if by_symbol.is_by_symbol(source):
        # A table that names its instruments itself keeps them.
        return [
            _read_any_frame(table, replace(options, name=symbol), f"the table of {short(symbol)}")
            for symbol, table in by_symbol.read_by_symbol(source)
        ]
    if polygon.is_answer(source):
        return [
            _read_frame(polygon.read_answer(source), options, f"the answer for {short(source['ticker'])}")
        ]
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("the list of paths is empty: there is nothing to read")
        unexpected = [s for s in source if not isinstance(s, str | Path)]
        if unexpected:
            raise TypeError(
                f"a list must hold only paths, got {type(unexpected[0]).__name__} in it; expected {ACCEPTED}"
            )
        return _read_files([p for s in source for p in _expand(s)], options)
    root = type(source).__module__.partition(".")[0]
    if root == "pandas":
        return [_read_pandas(source, options)]
    origin = f"the {root} {type(source).__name__}"
    if isinstance(source, pl.LazyFrame):
        schema = source.collect_schema()
        names, _ = resolve_columns(schema.names(), options.columns, origin)
        frame = source.select(list(dict.fromkeys(names.values()))).collect()
        # Columns that were not selected may still be look-alikes, which remarks mention.
        return [_read_frame(frame, options, origin, schema.names())]
    if isinstance(source, pl.DataFrame):
        return [_read_frame(source, options, origin)]
    if (
        isinstance(source, Mapping)
        or hasattr(source, "__arrow_c_stream__")
        or hasattr(source, "__arrow_c_array__")
    ):
        try:
            frame = pl.DataFrame(source)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{origin} cannot be read as a table: {error}") from error
        return [_read_frame(frame, options, origin)]
    raise TypeError(
        f"cannot read bars from {type(source).__module__}.{type(source).__name__}; expected {ACCEPTED}"
    )


def scan_table(source: Any) -> tuple[pl.LazyFrame, str]:
    """Return a table of any accepted kind with all its columns, and what to call it; text files as text.

    Files must have the same columns in the same order.
    """
    if isinstance(source, str | Path | list | tuple):
        paths = [p for s in ([source] if isinstance(source, str | Path) else source) for p in _expand(s)]
        if not paths:
            raise ValueError("the list of paths is empty: there is nothing to read")
        _check_files(paths)
        origin = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
        headers = {(_kind(path), *_header(path)) for path in paths}
        if len(headers) > 1:
            raise ValueError(
                f"{origin}: the files differ in format or columns; give those of one shape at a time"
            )
        ((kind, separator, _),) = headers
        if kind == "csv":
            return pl.scan_csv(paths, separator=separator, infer_schema=False, glob=False), origin
        scan = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
        return scan(paths, glob=False, **_hive(paths)), origin
    root = type(source).__module__.partition(".")[0]
    origin = f"the {root} {type(source).__name__}"
    if isinstance(source, pl.LazyFrame | pl.DataFrame):
        return source.lazy(), origin
    if root == "pandas":
        source = {str(name): pandas_column(source[name], str(name), origin, []) for name in source.columns}
    try:
        return pl.DataFrame(source).lazy(), origin
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{origin} cannot be read as a table: {error}; expected {ACCEPTED}") from error


def _read_any_frame(frame: Any, options: ReadOptions, origin: str) -> Part:
    if isinstance(frame, pl.DataFrame):
        return _read_frame(frame, options, origin)
    return _read_pandas(frame, options, origin)


def _read_frame(
    frame: pl.DataFrame, options: ReadOptions, origin: str, found: Sequence[str] | None = None
) -> Part:
    names, remarks = resolve_columns(found or frame.columns, options.columns, origin)
    part = Part(origin, names, rows=frame.height, remarks=remarks, literal=options.name or "0")
    part.columns = {name: frame.get_column(column) for name, column in names.items()}
    return part


def _read_pandas(source: Any, options: ReadOptions, origin: str = "the pandas DataFrame") -> Part:
    import pandas as pd

    if not isinstance(source, pd.DataFrame):
        raise TypeError(f"cannot read bars from a pandas {type(source).__name__}; expected {ACCEPTED}")
    if yfinance.is_wide(source):
        long, empty = yfinance.long_frame(source)
        part = _read_pandas(long, options, origin)
        if empty:
            part.remarks.append(f"{empty:,} rows of {origin} without any value of their ticker were left out")
        return part
    if source.columns.nlevels > 1:
        raise ValueError(
            f"{origin} has {source.columns.nlevels} levels of columns, such as {source.columns[0]!r}; bring it "
            "to one row an instrument and time first, for example with frame.stack(level=...).reset_index()"
        )
    index = source.index
    if index.nlevels > 1 or index.name is not None or isinstance(index, pd.DatetimeIndex):
        if isinstance(index, pd.DatetimeIndex) and index.name is None:
            index = index.rename("datetime")
        taken = set(map(str, source.columns))
        levels = {str(n): index.get_level_values(k) for k, n in enumerate(index.names) if str(n) not in taken}
    else:
        levels = {}
    found = [*levels, *map(str, source.columns)]
    if len(set(found)) < len(found):
        duplicate = next(c for c in found if found.count(c) > 1)
        raise ValueError(f"{origin} has more than one column named {duplicate!r}")
    names, remarks = resolve_columns(found, options.columns, origin)
    part = Part(origin, names, rows=len(source), remarks=remarks, literal=options.name or "0")
    originals = {str(c): c for c in source.columns}
    for name, column in names.items():
        values = levels[column].to_series() if column in levels else source[originals[column]]
        part.columns[name] = pandas_column(values, column, origin, part.remarks)
    return part


def pandas_column(values: Any, name: str, origin: str, remarks: list[str]) -> Any:
    """Return a numpy array without a copy where pandas holds one, a polars Series otherwise."""
    import pandas as pd

    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "fiubM":
        return values.to_numpy()
    if isinstance(dtype, pd.DatetimeTZDtype):
        zone = str(dtype.tz)
        if not is_zone(zone):
            remarks.append(
                f"column {name!r} is in {zone}, which is not a zone of the tz database: read as UTC"
            )
            wall = values.dt.tz_localize(None)
            if not wall.hasnans and (wall.dt.normalize() == wall).mean() > 0.5:
                # Perhaps dates, which only the offset can tell: text keeps it.
                return pl.Series(name, values.astype(str).to_numpy(object), dtype=pl.String)
            zone = "UTC"
        ticks = values.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        unit = "ms" if dtype.unit == "s" else dtype.unit
        return (
            pl.Series(name, ticks.astype(f"M8[{unit}]"))
            .dt.replace_time_zone("UTC")
            .dt.convert_time_zone(zone)
        )
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        zones = {str(getattr(v, "tzinfo", None)) for v in values if hasattr(v, "tzinfo")}
        if len(zones) > 1:
            raise mixed_zones([(None if z == "None" else z, f"column {name!r}") for z in sorted(zones)])
    try:
        return pl.from_pandas(values.reset_index(drop=True))
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        # A column of Python objects of several types: as text, so that the offending one can be named.
        return pl.Series(name, [None if pd.isna(v) else str(v) for v in values], dtype=pl.String)


def _expand(source: str | Path) -> list[str]:
    """Return the files that a path, a glob, a folder or a URL stands for."""
    text = str(source)
    if "://" in text:
        if text.endswith("/"):
            base = text.rstrip("/")
            return _folder(text, (f"{base}/{key}" for key in Location.of(base).list()))
        # A question mark in a URL begins a query.
        if "*" not in text:
            return [text]
        base = text[: text.index("*")].rpartition("/")[0]
        files = sorted(f"{base}/{key}" for key in Location.of(base).list())
        files = [file for file in files if fnmatch.fnmatchcase(file, text)]
        if not files:
            raise FileNotFoundError(f"{text}: no object matches")
        return files
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, (str(p) for p in path.rglob("*") if p.is_file()))
    if path.exists():
        return [str(path)]
    if any(c in text for c in "*?["):
        files = sorted(glob.glob(str(path), recursive=True))
        if not files:
            raise FileNotFoundError(f"{text}: no file matches")
        return files
    raise FileNotFoundError(f"{text}: no such file or folder")


def _folder(name: str, paths: Iterable[str]) -> list[str]:
    """Return the tables among the files of a folder."""
    files = sorted(p for p in paths if _kind(p) and not Path(p).name.startswith((".", "_")))
    if not files:
        raise FileNotFoundError(f"{name}: the folder holds no {', '.join(SUFFIXES)} file")
    kinds = sorted({str(_kind(f)) for f in files})
    if len(kinds) > 1:
        raise ValueError(f"{name}: the folder holds files of several kinds ({', '.join(kinds)}); give a glob")
    return files


def _kind(path: str) -> str | None:
    name = path.partition("?")[0].lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return SUFFIXES.get(Path(name).suffix)


def _check_files(paths: list[str]) -> None:
    """Raise an error for what is no table's file, or is not there."""
    for path in paths:
        if _kind(path) is None:
            raise ValueError(
                f"{path}: cannot tell its format; expected one of {', '.join(SUFFIXES)} (CSV also as .gz)"
            )
        if "://" not in path:
            check_regular(path)
        elif _kind(path) == "zip":
            raise ValueError(f"{path}: zips are read from this machine alone: download it first")
    # One that is large is unpacked twice, the first time to see how large it becomes.
    packed = [path for path in paths if "://" not in path and path.lower().endswith((".gz", ".zst"))]
    with ThreadPoolExecutor(thread_name_prefix="pricepix-unpack") as pool:
        list(pool.map(check_expansion, packed))


def _read_files(paths: list[str], options: ReadOptions) -> list[Part]:
    _check_files(paths)
    groups: dict[tuple, list[str]] = {}
    for path in paths:
        key = (_kind(path), *within(seconds_allowed([path]), path, partial(_header, path)))
        # Files stay in the order given: of two rows at one time the first is kept.
        groups.setdefault(key, []).append(path)
    parts = []
    for (kind, separator, schema), group in groups.items():
        origin = group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more files"
        # Whoever names columns, or what times count, means those of the file.
        plain = bool(options.columns) or options.times.time_unit is not None
        vendor = None if plain or kind != "csv" else vendor_files.reader_of([n for n, _ in schema])
        with reworded(origin):
            seconds = seconds_allowed(group)
            if kind == "zip" or vendor is not None:
                parts += within(
                    seconds, origin, partial(_read_vendor, group, vendor, separator, origin, options)
                )
                continue
            read = partial(_read_group, kind, separator, dict(schema), group, origin, options)
            part = within(seconds, origin, read)
            part.seconds = seconds
            parts.append(part)
    return parts


def _read_vendor(
    paths: list[str], vendor: vendor_files.Reader | None, separator: str, origin: str, options: ReadOptions
) -> list[Part]:
    """Read files of one vendor; those whose times have one unit become one part."""
    frames: dict[tuple, list[pl.DataFrame]] = {}
    for path in paths:
        frame = (
            vendor_files.read_zip(path) if vendor is None else vendor_files.read_csv(path, vendor, separator)
        )
        frames.setdefault(tuple(frame.schema.items()), []).append(frame)
    return [_read_frame(pl.concat(alike), options, origin) for alike in frames.values()]


@contextmanager
def reworded(origin: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn what Polars raises for a damaged file, its panics included, into a ValueError of one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        why = short_text(error)
        if isinstance(error, pl.exceptions.PanicException):
            why = f"it is damaged ({why})"
        raise ValueError(f"{origin}: {what}: {why}") from error


def short_text(error: BaseException) -> str:
    """Return the first line of an error of another library."""
    return printable(str(error).strip().partition("\n")[0])[:300]


def _hive(paths: Sequence[str]) -> dict[str, Any]:
    """Return the arguments for reading folders such as symbol=000001/: their names are columns, kept as text."""
    named = (part.partition("=") for path in paths for part in Path(path).parent.parts)
    keys = {key for key, equals, _ in named if key and equals}
    return {"hive_partitioning": bool(keys), "hive_schema": dict.fromkeys(sorted(keys), pl.String) or None}


def _header(path: str) -> tuple[str, tuple]:
    """Return the separator and the (name, dtype) pairs of a file, reading no row."""
    kind = _kind(path)
    if kind == "zip":
        return "", ()
    try:
        if kind == "parquet":
            return "", tuple(pl.scan_parquet(path, **_hive([path])).collect_schema().items())
        if kind == "ipc":
            return "", tuple(pl.scan_ipc(path, **_hive([path])).collect_schema().items())
        if "://" in path or path.lower().endswith(".zst"):
            names = pl.scan_csv(path, infer_schema=False).collect_schema().names()
            return ",", tuple((n, pl.String()) for n in names)
        opener = gzip.open if path.lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            line = file.readline(_MAX_HEADER + 1)
    except _DAMAGED as error:
        raise ValueError(f"{path}: not a readable {kind} file: {short_text(error)}") from error
    except OSError as error:
        if "://" not in path:
            if error.filename is not None:
                raise
            # Polars' own, without the name of the file.
            raise ValueError(f"{path}: not a readable {kind} file: {short_text(error)}") from error
        # The message of an object store has several lines, of XML for instance.
        raise type(error)(f"{path}: cannot be read: {short_text(error)}") from error
    if len(line) > _MAX_HEADER:
        raise ValueError(
            f"{path}: its first line has more than {_MAX_HEADER:,} characters (max_bytes): it is not the header of a "
            "table"
        )
    if not line.strip():
        raise ValueError(f"{path}: the file is empty; expected a header line and rows")
    separator = max(",;\t|", key=line.count)
    try:
        names = next(csv.reader([line], delimiter=separator))
    except csv.Error as error:
        raise ValueError(f"{path}: its first line is not the header of a table: {error}") from error
    if binance.is_headless(names):
        return "", tuple((n, pl.String()) for n in binance.NAMES)
    if len(set(names)) < len(names):
        duplicate = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"{path}: more than one column is named {duplicate!r}")
    return separator, tuple((n, pl.String()) for n in names)


def _read_group(
    kind: str, separator: str, schema: dict[str, Any], paths: list[str], origin: str, options: ReadOptions
) -> Part:
    names, remarks = resolve_columns(list(schema), options.columns, origin)
    wanted = list(dict.fromkeys(names.values()))
    stems = "instrument" not in names and options.name is None
    extra: dict[str, Any] = {"include_file_paths": _PATH} if stems else {}
    part = Part(origin, names, remarks=remarks, literal=options.name, stems=stems)
    take = [*wanted, _PATH] if stems else wanted
    if kind == "csv":
        numbers = [t for name, t in names.items() if name in BAR or name in FLOAT_FIELDS]
        text = {n: pl.String for n in schema}
        # A CSV is parsed once: numbers straight to float64, all else as text (codes keep leading zeros).
        try:
            typed = {**text, **dict.fromkeys(numbers, pl.Float64)}
            frame = pl.scan_csv(paths, separator=separator, schema_overrides=typed, glob=False, **extra)
            frame_ = frame.select(take).collect()
        except pl.exceptions.ComputeError:
            # Something is not a number: read it again as text, to name it or recognise it as missing.
            frame = pl.scan_csv(paths, separator=separator, schema_overrides=text, glob=False, **extra)
            frame_ = frame.select(take).collect()
        columns = frame_
    else:
        scan = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
        lazy = scan(paths, glob=False, **_hive(paths), **extra).select(take)
        streamable = all(
            schema[t].is_numeric() for name, t in names.items() if name in BAR or name in FLOAT_FIELDS
        )
        streamable &= all(schema[t] == pl.Boolean for name, t in names.items() if name in BOOL_FIELDS)
        if streamable and hasattr(lazy, "collect_batches"):
            keys = [names[k] for k in ("instrument", "time") if k in names] + ([_PATH] if stems else [])
            columns = lazy.select(keys).collect()
            part.scan = lazy
            part.float32 = [t for name, t in names.items() if name in BAR and schema[t] == pl.Float32]
        else:
            columns = lazy.collect()
    part.rows = columns.height
    part.columns = {name: columns.get_column(t) for name, t in names.items() if t in columns.columns}
    if stems:
        part.columns["instrument"] = columns.get_column(_PATH)
    return part


# ---------------------------------------------------------------------------------------------- instruments


@dataclass
class Runs:
    """Stretches of rows of one instrument: rows start[s]:start[s+1] belong to instruments[code[s]]."""

    start: np.ndarray
    code: np.ndarray
    instruments: np.ndarray


def instrument_runs(parts: list[Part]) -> Runs:
    """Cut the rows into runs of equal instruments; number these in ascending order of their names."""
    starts: list[np.ndarray] = []
    labels: list[pl.Series] = []
    row = 0
    for part in parts:
        key = part.columns.pop("instrument", None)
        if part.rows == 0:
            continue
        if key is None:
            starts.append(np.array([row]))
            labels.append(pl.Series([part.literal], dtype=pl.String))
        else:
            start, label = _runs(key, part)
            starts.append(start + row)
            labels.append(label)
        row += part.rows
    label = pl.concat(labels)
    distinct = label.unique().sort()
    code = label.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)
    start = np.concatenate([*starts, [row]], dtype=np.int64)
    return Runs(start, code, distinct.to_numpy().astype(np.str_))


def _runs(key: Any, part: Part) -> tuple[np.ndarray, pl.Series]:
    column = part.names.get("instrument", "")
    series = key if isinstance(key, pl.Series) else pl.Series(column, key)
    if series.dtype.is_float():
        whole = series.is_finite() & (series == series.round(0))
        if (missing := (series.is_null() | series.is_nan())).any():
            series = series.set(missing, None)
        elif not whole.all():
            at = int((~whole).arg_true()[0])
            raise ValueError(
                f"instrument column {column!r} of {part.origin} holds {series[at]!r} in row {at}: expected "
                "names or whole numbers"
            )
        series = series.cast(pl.Int64)
    if series.null_count():
        at = int(series.is_null().arg_true()[0])
        raise ValueError(
            f"instrument column {column!r} of {part.origin} is missing in {series.null_count()} rows, "
            f"the first is row {at} (counting from 0): fill or drop them"
        )
    names = (pl.String, pl.Categorical, pl.Enum)
    if not (series.dtype in names or series.dtype.is_integer()):
        raise ValueError(
            f"instrument column {column!r} of {part.origin} is of type {series.dtype}: expected text, "
            "categories or whole numbers"
        )
    # The physical codes of categories compare faster than their text.
    test = series if series.dtype == pl.String else series.to_physical()
    change = (test.slice(1) != test.slice(0, len(test) - 1)).arg_true().to_numpy().astype(np.int64) + 1
    start = np.concatenate([[0], change])
    label = series.gather(start).cast(pl.String)
    if part.stems:
        distinct = label.unique()
        label = label.replace_strict(distinct, [_stem(p) for p in distinct], return_dtype=pl.String)
    return start, label


def _stem(path: str) -> str:
    name = path.replace("\\", "/").rpartition("/")[2]
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    return name.rpartition(".")[0] or name


def read_times(parts: list[Part], options: TimeOptions) -> tuple[list[Times], str | None]:
    """Read the time column of every part; they must share one zone, which is returned."""
    out = []
    zones: dict[str | None, str] = {}
    for part in parts:
        if part.rows == 0:
            part.columns.pop("time")
            continue
        times = read_column(
            part.columns.pop("time"), f"time column {part.names['time']!r} of {part.origin}", options
        )
        zones.setdefault(times.tz, part.origin)
        out.append(times)
    if len(zones) > 1:
        raise mixed_zones(list(zones.items()))
    tz = next(iter(zones))
    return out, (options.tz or tz) if tz is not None else None
