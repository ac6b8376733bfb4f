"""The images that the authors of "(Re-)Imag(in)ing Price Trends" published, as an image store."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import choice, whole_number_or_none
from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS
from pricepix.build.stream import PanelFacts, StoreWriter
from pricepix.build.target import MODES, _check_location, _state
from pricepix.images.chunking import default_chunk
from pricepix.location import Location, StoreLike
from pricepix.spec import ImageSpec
from pricepix.store.chunks import LAYOUTS, ChunkFormat
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.store.objects import FORMAT_VERSION
from pricepix.windows.labels import NO_TIME

SPEC: Final = "jkx20"
HORIZONS: Final[Mapping[str, int]] = {"Ret_5d": 5, "Ret_20d": 20, "Ret_60d": 60}
"""Columns of returns, and the horizons, in trading days, under which they stand in a store."""
MONTH: Final = "Ret_month"
KEPT: Final = ("MarketCap", "EWMA_vol", MONTH)
"""Columns kept beside a store, in the order of its windows."""

_NAME: Final = re.compile(r"20d_month_has_vb_\[20\]_ma_(\d{4})_(images\.dat|labels_w_delay\.feather)")
_KEPT_FILES: Final = "[0-9][0-9][0-9][0-9].parquet"
_REQUIRED: Final = ("Date", "StockID", *HORIZONS)
# Days on which the New York Stock Exchange was closed from 1990 to 2025 though no rule says so.
_CLOSED: Final = (
    "1994-04-27", "2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14", "2004-06-11", "2007-01-02",
    "2012-10-29", "2012-10-30", "2018-12-05", "2025-01-09",
)  # fmt: skip


class Year(NamedTuple):
    """The two files of a year."""

    year: int
    images: Path
    labels: Path


def import_jkx(
    folder: str | os.PathLike[str],
    store: StoreLike,
    *,
    years: Sequence[int] | None = None,
    month: int | None = None,
    layout: str = "bits",
    mode: str = "create",
    chunk: int | None = None,
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ImageStore:
    """Import the authors' public images, one year at a time.

    The folder holds, for each year, ``20d_month_has_vb_[20]_ma_{year}_images.dat``, headerless uint8
    (windows, 64, 60), and ``20d_month_has_vb_[20]_ma_{year}_labels_w_delay.feather`` with a row an image:
    Date, StockID, Ret_5d, Ret_20d, Ret_60d and, where they are there, Ret_month, MarketCap (in thousands) and
    EWMA_vol (a daily variance). Images are copied as they are, row 0 on top; a return that is missing stays
    NaN.

    Parameters
    ----------
    folder : str or path
        The folder, ``monthly_20d``, or the one around it.
    store : str, path or zarr store
        Where the store goes. What stores do not hold goes into the folder ``{store}.labels`` beside one on
        disk, a Parquet file a year, in the order of the windows: see `jkx_labels`.
    years : sequence of int, optional
        Years to take; by default all from the first that is there to the last.
    month : int, optional
        Keep Ret_month, too, as the return over a horizon of so many days; 21 is the usual length of a month.
        Its exit times are the ends of the months.
    layout : {"bits", "uint8"}
    mode : {"create", "resume", "overwrite"}
        As in ``render_universe``; ``resume`` goes on after the last year that was done. A finished store is
        left as it is, if it was made from the same years and arguments.
    chunk, threads, storage_options, progress
        As in ``render_universe``.

    Returns
    -------
    ImageStore
        Windows ordered by (time, instrument), of spec ``jkx20``, without a time zone; instruments are the
        StockIDs as text, in the order of their numbers. Exit times are counted in days of the New York Stock
        Exchange.

    Raises
    ------
    FileNotFoundError
        No such files, or years of which one file is missing: all are named.
    ValueError
        A year whose images do not match its labels (both numbers are told), columns missing, a date outside
        of the year, a stock twice at one date, pixels other than 0 and 255, or a store to resume that was
        made from something else.
    FileExistsError
        The location exists and `mode` is ``create``.
    """
    choice(layout, "layout", LAYOUTS)
    choice(mode, "mode", MODES)
    threads = whole_number_or_none(threads, "threads", 1, otherwise="None for all") or os.cpu_count() or 1
    spec = ImageSpec.preset(SPEC)
    found = find_years(folder, years)
    returns = dict(HORIZONS)
    if month is not None:
        if month in HORIZONS.values() or isinstance(month, bool) or int(month) < 1:
            raise ValueError(
                f"month={month!r}: give a number of days that is none of 5, 20 and 60, such as 21"
            )
        returns[MONTH] = int(month)
    stocks = _check_years(found, spec, returns)
    chunk = whole_number_or_none(chunk, "chunk", 1, unit="windows", otherwise="None for the usual size")
    form = ChunkFormat(layout, *spec.shape, chunk or default_chunk(*spec.shape, layout))
    horizons = tuple(sorted(returns.values()))
    columns = {h: name for name, h in returns.items()}
    where = Location.of(store, storage_options)
    beside = None if where.path is None else where.path.with_name(f"{where.path.name}.labels")
    identity = {
        "jkx": [[y.year, y.images.stat().st_size, y.labels.stat().st_size] for y in found],
        "horizons": [[h, columns[h]] for h in horizons],
        "layout": layout,
        "chunk": form.windows,
    }
    writer = StoreWriter(where, form, horizons, identity, threads)
    _check_location(where, mode)
    rows = sum(year.images.stat().st_size // _bytes(spec) for year in found)
    names = {str(h): columns[h] for h in horizons}
    if mode == "resume" and _state(where) == "finished":
        there = open_store(where)
        _check_finished(
            there,
            {
                "horizons": list(horizons), "label_columns": names, "layout": layout, "chunk": form.windows,
                "candidates": rows,
            },
            [year.year for year in found],
        )  # fmt: skip
        return there
    with WriteLock(where) as lock:
        writer.state = {"blank": 0, "rows": np.zeros(len(stocks), np.int64), "digest": ""}
        writer.begin(mode, {"format_version": FORMAT_VERSION, "spec": spec.to_dict()})
        if beside is not None and writer.blocks == 0:
            # Of a store that was here before.
            for path in beside.glob(_KEPT_FILES):
                path.unlink()
        with tqdm(
            total=rows, initial=writer.windows, desc=f"import {os.path.basename(where.name)}", unit="img",
            unit_scale=True, disable=not progress,
        ) as bar:  # fmt: skip
            for year in found[writer.blocks :]:
                n = _write_year(writer, year, spec, stocks, columns, beside)
                lock.check()
                writer.end_block()
                bar.update(n)
        facts = _facts(stocks, writer.state)
        attributes: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "created_by": f"pricepix {__version__}",
            "complete": False,
            "spec": spec.to_dict(),
            "spec_digest": spec.digest,
            "panel_digest": None,
            "panel_fields": [],
            "windows": writer.windows,
            "instruments": len(stocks),
            "candidates": writer.windows + writer.state["blank"],
            "drop_counts": {"no_price": writer.state["blank"]} if writer.state["blank"] else {},
            "schedule": {
                "every": "month", "start": None, "end": None, "mask": None, "sample": None, "seed": None,
                "max_gap_ns": None,
            },
            "horizons": list(horizons),
            "label_columns": names,
            "source": "the public images of Jiang, Kelly and Xiu (2023)",
            "delay": 0,
            "label_price": "total_return",
            "layout": layout,
            "chunk": form.windows,
            "tz": None,
        }  # fmt: skip
        writer.finish(attributes, facts)
    return open_store(where)


def _check_finished(store: ImageStore, asked: Mapping[str, Any], years: Sequence[int]) -> None:
    """Refuse to take another store for the one that this import would give."""
    held = np.unique(store.time.astype("datetime64[ns]").astype("datetime64[Y]")).astype(str)
    mine = {"years": list(years), **asked}
    theirs = {**store.attrs, "years": [int(year) for year in held]}
    differences = [
        f"{name} is {value} here, {theirs.get(name)} there"
        for name, value in mine.items()
        if theirs.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"store {store.location} is finished, and was not made from this: {'; '.join(differences)}. Give "
            "another path; mode='overwrite' imports it anew"
        )


def find_years(folder: str | os.PathLike[str], years: Sequence[int] | None = None) -> list[Year]:
    """Return the files of every year in a folder, in order; years of which one file is missing are named."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: it is the authors' monthly_20d, or the one around it")
    files: dict[int, dict[str, Path]] = {}
    for path in (*root.iterdir(), *(root / "monthly_20d").glob("*")):
        if match := _NAME.fullmatch(path.name):
            files.setdefault(int(match[1]), {})[match[2].partition(".")[0].partition("_")[0]] = path
    if not files:
        raise FileNotFoundError(f"{root} holds no file of the form 20d_month_has_vb_[20]_ma_1993_images.dat")
    # A year without any file is a hole, too.
    wanted = range(min(files), max(files) + 1) if years is None else sorted({int(year) for year in years})
    lacking = [
        f"{year} ({' and '.join(kind for kind in ('images', 'labels') if kind not in files.get(year, {}))})"
        for year in wanted
        if len(files.get(year, {})) < 2
    ]
    if lacking:
        raise FileNotFoundError(
            f"{root} lacks files of {', '.join(lacking)}: add them, or name the years to take by years="
        )
    return [Year(year, files[year]["images"], files[year]["labels"]) for year in wanted]


def jkx_labels(store: ImageStore | str | os.PathLike[str]) -> pl.DataFrame:
    """Return what `import_jkx` kept beside a store: a row a window, in its order.

    Columns ``instrument``, ``time`` and those of MarketCap (in thousands), EWMA_vol (a daily variance) and
    Ret_month that the dataset has.

    Raises
    ------
    FileNotFoundError
        No store, or no labels beside it.
    ValueError
        The labels are those of another store.
    """
    opened = store if isinstance(store, ImageStore) else open_store(store)
    path = Path(opened.location)
    folder = path.with_name(f"{path.name}.labels")
    files = sorted(folder.glob(_KEPT_FILES))
    if not files:
        raise FileNotFoundError(f"no labels at {folder}: import_jkx writes them beside a store on disk")
    labels = pl.concat([pl.read_parquet(file) for file in files])
    if len(labels) != len(opened):
        raise ValueError(
            f"{folder} holds {len(labels)} rows of labels, the store beside it {len(opened)} images: they belong "
            "to another store. Import it again with mode='overwrite'"
        )
    return labels


def jkx_panel(store: ImageStore | str | os.PathLike[str]) -> Panel:
    """Return the monthly bars behind an imported store, for evaluating factors.

    Every window's date is a bar. Its total return is the Ret_month of the month before, so that the return
    over a horizon of one bar is the Ret_month of the images' dataset; it is missing where that is, where the
    next month has no image, and in the month after such a gap, whose own price is not known. Prices are the
    value of a unit invested at the first bar. `market_cap` is in money, not in thousands.

    Parameters
    ----------
    store : ImageStore, str or path
        A store that `import_jkx` made on disk.

    Returns
    -------
    Panel
        Fields total_return and, where the dataset has it, market_cap.
    """
    opened = store if isinstance(store, ImageStore) else open_store(store)
    labels = jkx_labels(opened)
    if MONTH not in labels.columns:
        raise ValueError(f"the dataset of {opened.location} has no column {MONTH}: monthly bars need it")
    calendar = labels["time"].unique().sort()
    month = pl.DataFrame({"time": calendar, "month": np.arange(len(calendar))})
    table = labels.join(month, on="time", how="left").with_row_index("order")
    code = pl.DataFrame(
        {"instrument": opened.instruments.tolist(), "code": np.arange(len(opened.instruments))}
    )
    table = table.join(code, on="instrument", how="left").sort("code", "month")
    follows = (pl.col("month") - pl.col("month").shift(1).over("code")) == 1
    table = table.with_columns(
        total_return=pl.when(follows)
        .then(pl.col(MONTH).shift(1).over("code"))
        .otherwise(None)
        .cast(pl.Float64)
    )
    table = table.with_columns(pl.col("total_return").fill_nan(None))
    level = (1 + pl.col("total_return").fill_null(0.0).clip(lower_bound=-0.999999)).cum_prod().over("code")
    table = table.with_columns(level=level)
    price = table["level"].to_numpy()
    bars = np.ascontiguousarray(np.column_stack([price, price, price, price, np.full(len(price), np.nan)]))
    counts = np.bincount(table["code"].to_numpy(), minlength=len(opened.instruments))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    fields = {"total_return": np.ascontiguousarray(table["total_return"].fill_null(np.nan).to_numpy())}
    if "MarketCap" in table.columns:
        cap = table["MarketCap"].cast(pl.Float64).fill_null(np.nan).to_numpy() * 1000.0
        fields["market_cap"] = np.ascontiguousarray(cap)
    time = np.ascontiguousarray(table["time"].cast(pl.Datetime("ns")).to_physical().to_numpy())
    return Panel(bars, offsets, opened.instruments, time, None, fields)


def _bytes(spec: ImageSpec) -> int:
    return spec.shape[0] * spec.shape[1]


def _read_labels(year: Year) -> pl.DataFrame:
    try:
        # From memory: a path with brackets would be taken for a pattern.
        return pl.read_ipc(io.BytesIO(year.labels.read_bytes()))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{year.labels} is no Feather file (version 2) that can be read: {error}") from None


def _check_years(found: list[Year], spec: ImageSpec, returns: Mapping[str, int]) -> NDArray[np.int64]:
    """Check sizes, columns and dates of all years before any work; return the stocks' numbers, ascending."""
    faults: list[str] = []
    stocks: set[int] = set()
    before: int | None = None
    for year in found:
        labels = _read_labels(year)
        lacking = [name for name in (*_REQUIRED, *returns) if name not in labels.columns]
        if lacking:
            raise ValueError(
                f"{year.labels.name} has no column {', '.join(dict.fromkeys(lacking))}; it has "
                f"{', '.join(labels.columns)}"
            )
        size, each = year.images.stat().st_size, _bytes(spec)
        if size != len(labels) * each:
            whole = f"{size // each:,}" if size % each == 0 else f"{size / each:,.2f}"
            faults.append(f"{year.year}: {whole} images, but {len(labels):,} rows of labels")
            continue
        if not len(labels):
            faults.append(f"{year.year}: no rows")
            continue
        time, number = _dates(year, labels), _numbers(year, labels)
        wrong = pl.Series(time).cast(pl.Datetime("ns")).dt.year() != year.year
        if wrong.any():
            row = int(wrong.arg_true()[0])
            faults.append(f"{year.year}: row {row} is of {labels['Date'][row]}")
        if before is not None and int(time.min()) <= before:
            faults.append(f"{year.year}: begins before the year before it ends")
        before = int(time.max())
        if labels.select("Date", "StockID").is_duplicated().any():
            row = int(labels.select("Date", "StockID").is_duplicated().arg_true()[0])
            faults.append(f"{year.year}: stock {number[row]} stands twice at {labels['Date'][row]}")
        stocks.update(np.unique(number).tolist())
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ValueError(
            f"{len(faults)} of {len(found)} years cannot be imported:\n{listed}\nMend them, or choose "
            "years= without them"
        )
    return np.array(sorted(stocks), np.int64)


def _dates(year: Year, labels: pl.DataFrame) -> NDArray[np.int64]:
    """Nanoseconds of the column Date, which may hold dates, datetimes, text or YYYYMMDD."""
    column = labels["Date"]
    try:
        if column.dtype.is_integer() or column.dtype == pl.String:
            text = column.cast(pl.String)
            column = text.str.slice(0, 10).str.replace_all("-", "").str.to_date("%Y%m%d")
        days = column.cast(pl.Datetime("ns")).dt.truncate("1d")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{year.labels.name}: the column Date cannot be read as dates ({error})") from None
    if days.null_count():
        raise ValueError(f"{year.labels.name}: row {int(days.is_null().arg_true()[0])} has no Date")
    return np.asarray(days.to_physical().to_numpy(), np.int64)


def _numbers(year: Year, labels: pl.DataFrame) -> NDArray[np.int64]:
    try:
        column = labels["StockID"].cast(pl.Int64)
    except pl.exceptions.PolarsError:
        column = None
    if column is None or column.null_count():
        raise ValueError(f"{year.labels.name}: the column StockID holds something else than whole numbers")
    return np.asarray(column.to_numpy(), np.int64)


def _write_year(
    writer: StoreWriter,
    year: Year,
    spec: ImageSpec,
    stocks: NDArray[np.int64],
    columns: Mapping[int, str],
    beside: Path | None,
) -> int:
    """Copy the images of a year in the order of the store, and its labels; return how many rows it has."""
    labels = _read_labels(year)
    time = _dates(year, labels)
    code = np.searchsorted(stocks, _numbers(year, labels)).astype(np.int32)
    images = np.memmap(year.images, np.uint8, "r", shape=(len(labels), *spec.shape))
    blank = _check_pixels(year, images)
    order = np.lexsort((code, time))
    order = order[~blank[order]]
    time, code = time[order], code[order]
    values: list[NDArray[Any]] = [code, time]
    sessions = _sessions(int(time.min()), int(time.max()) + 400 * DAY_NS)
    for h in writer.horizons:
        column = labels[columns[h]].cast(pl.Float32).to_numpy()[order]
        column = np.where(np.isfinite(column), column, np.float32(np.nan))
        values += [column, _exit_times(time, h, columns[h], sessions)]

    def draw(a: int, b: int) -> NDArray[np.uint8]:
        # One image after another in the order of the file is what a disk likes.
        wanted = order[a:b]
        ascending = np.argsort(wanted, kind="stable")
        block = np.empty((b - a, *spec.shape), np.uint8)
        block[ascending] = images[wanted[ascending]]
        return np.packbits(block.transpose(0, 2, 1).reshape(b - a, -1), axis=1)

    writer.add(len(order), draw, values)
    state = writer.state
    state["blank"] += int(blank.sum())
    state["rows"] = state["rows"] + np.bincount(code, minlength=len(stocks))
    digest = hashlib.blake2b(str(state["digest"]).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(time).tobytes() + np.ascontiguousarray(code).tobytes())
    for column in values[2:]:
        digest.update(np.ascontiguousarray(column).tobytes())
    state["digest"] = digest.hexdigest()
    if beside is not None:
        beside.mkdir(exist_ok=True)
        kept = labels.select([name for name in KEPT if name in labels.columns])[order.tolist()]
        names = pl.Series("instrument", stocks.astype(str).tolist(), dtype=pl.String).gather(code)
        stamps = pl.Series("time", time).cast(pl.Datetime("ns"))
        kept.insert_column(0, stamps).insert_column(0, names).write_parquet(beside / f"{year.year}.parquet")
    return len(labels)


def _check_pixels(year: Year, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Refuse pixels other than 0 and 255; return which images are blank."""
    blank = np.empty(len(images), np.bool_)
    for a in range(0, len(images), 4096):
        block = np.asarray(images[a : a + 4096])
        odd = ((block != 0) & (block != 255)).any(axis=(1, 2))
        if odd.any():
            raise ValueError(
                f"{year.images.name}: image {a + int(np.flatnonzero(odd)[0])} holds pixels other than 0 "
                "and 255: the file is damaged, or of another form"
            )
        blank[a : a + 4096] = ~block.any(axis=(1, 2))
    return blank


def _exit_times(
    time: NDArray[np.int64], horizon: int, column: str, sessions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """When a return is known: so many trading days later, or at the end of the next month."""
    if column == MONTH:
        month = time.astype("datetime64[ns]").astype("datetime64[M]")
        after = (month + 2).astype("datetime64[ns]").astype(np.int64)
        return sessions[np.searchsorted(sessions, after) - 1]
    place = np.searchsorted(sessions, time, side="right") - 1 + horizon
    known = place < len(sessions)
    return np.where(known, sessions[np.where(known, place, 0)], NO_TIME)


def _sessions(first: int, last: int) -> NDArray[np.int64]:
    """Days on which the New York Stock Exchange was open, int64 ns: weekdays without its holidays."""
    days = np.arange(
        np.datetime64(first, "ns").astype("datetime64[D]") - 5,
        np.datetime64(last, "ns").astype("datetime64[D]") + 1,
    )
    years = range(int(str(days[0])[:4]), int(str(days[-1])[:4]) + 2)
    closed = np.array([day for year in years for day in _holidays(year)] + list(_CLOSED), "datetime64[D]")
    return np.asarray(days[np.is_busday(days, holidays=closed)].astype("datetime64[ns]").astype(np.int64))


def _holidays(year: int) -> list[str]:
    """The exchange's holidays of a year, by its rules since 1990."""

    def weekday(month: int, which: int, day: int) -> np.datetime64:
        """The `which`-th such weekday (0: Monday) of a month; -1: the last."""
        mask = "".join("1" if k == day else "0" for k in range(7))
        first = np.datetime64(f"{year}-{month:02d}-01")
        if which > 0:
            return np.busday_offset(first, which - 1, roll="forward", weekmask=mask)
        after = (first.astype("datetime64[M]") + 1).astype("datetime64[D]")
        return np.busday_offset(after, -1, roll="forward", weekmask=mask)

    def observed(month: int, day: int) -> np.datetime64:
        date = np.datetime64(f"{year}-{month:02d}-{day:02d}")
        on = int((date.astype(np.int64) + 3) % 7)
        return date - 1 if on == 5 else date + 1 if on == 6 else date

    found = [
        weekday(2, 3, 0), _easter(year) - 2, weekday(5, -1, 0), observed(7, 4), weekday(9, 1, 0),
        weekday(11, 4, 3), observed(12, 25),
    ]  # fmt: skip
    # New Year's Day on a Saturday is not made up for.
    if observed(1, 1).astype("datetime64[Y]") == np.datetime64(str(year), "Y"):
        found.append(observed(1, 1))
    if year >= 1998:
        found.append(weekday(1, 3, 0))
    if year >= 2022:
        found.append(observed(6, 19))
    return [str(day) for day in found]


def _easter(year: int) -> np.datetime64:
    """Easter Sunday of the Gregorian calendar, by the anonymous algorithm of 1876."""
    a, b, c = year % 19, year // 100, year % 100
    d = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    e = (32 + 2 * (b % 4) + 2 * (c // 4) - d - c % 4) % 7
    m = d + e - 7 * ((a + 11 * d + 22 * e) // 451) + 114
    return np.datetime64(f"{year}-{m // 31:02d}-{m % 31 + 1:02d}")


def _facts(stocks: NDArray[np.int64], state: Mapping[str, Any]) -> PanelFacts:
    """What the store says of the bars that nobody has: its labels stand for them."""
    rows = np.asarray(state["rows"], np.int64)
    offsets = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    digests = np.zeros((len(stocks), 2), np.uint64)
    return PanelFacts(stocks.astype(np.str_), offsets, digests, str(state["digest"]), (), None)
