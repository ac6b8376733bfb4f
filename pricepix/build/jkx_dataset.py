"""The images that the authors of "(Re-)Imag(in)ing Price Trends" published, as an image store."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import optional_module, whole_number
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.build.finish import PanelFacts, store_attributes
from pricepix.build.jkx_files import (
    HORIZONS,
    SPEC,
    Year,
    check_pixels,
    check_years,
    dates,
    find_years,
    read_labels,
    stock_numbers,
)
from pricepix.build.request import BuildRequest, StoreOptions
from pricepix.build.stream import StreamWriter
from pricepix.build.target import check_finished, check_location, location_state, with_resume_hint
from pricepix.images.lineage import Lineage
from pricepix.location import Location, StoreLike
from pricepix.store.image_store import ImageStore, open_store
from pricepix.store.lock import WriteLock
from pricepix.windows.labels import NO_TIME, ReturnRule

MONTH: Final = "Ret_month"
KEPT: Final = ("MarketCap", "EWMA_vol", MONTH)
"""Columns kept beside a store, in the order of its windows."""
_KEPT_FILES: Final = "[0-9][0-9][0-9][0-9].parquet"
_SCHEDULE: Final = {
    "every": "month",
    "start": None,
    "end": None,
    "mask": None,
    "sample": None,
    "seed": None,
    "max_gap_ns": None,
    "periods": None,
}


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
    Date, StockID, Ret_5d, Ret_20d, Ret_60d and, if present, Ret_month, MarketCap (in thousands) and EWMA_vol (a
    daily variance). Images are copied as they are, row 0 on top; a missing return stays NaN.

    Parameters
    ----------
    folder : str or path
        The folder, ``monthly_20d``, or the one around it.
    store : str, path or zarr store
        Where to write. What a store does not hold goes into the folder ``{store}.labels`` beside a store on
        disk, a Parquet file a year, in the order of the windows: see `jkx_labels`.
    years : sequence of int, optional
        Years to import; by default all from the first to the last that is there.
    month : int, optional
        Also keep Ret_month, as the return over a horizon of this many days; 21 is the usual length of a month.
        Its exit times are the ends of the months.
    layout : {"bits", "uint8"}
    mode : {"create", "resume", "overwrite"}
        As in ``render_universe``; ``resume`` continues after the last year that was done. A finished store is
        left as it is, if it was made from the same years and arguments.
    chunk, threads, storage_options, progress
        As in ``render_universe``.

    Returns
    -------
    ImageStore
        Windows ordered by (time, instrument), of spec ``jkx20``, without a time zone; instruments are the
        StockIDs as text, in the order of their numbers. Exit times are counted in days of the New York Stock
        Exchange, as the package exchange_calendars (extra ``calendars``) lists them.

    Raises
    ------
    FileNotFoundError
        No such files, or years of which one file is missing: all are named.
    ValueError
        The images of a year do not match its labels (the error gives both numbers), columns are missing, a
        date lies outside its year, a stock occurs twice at one date, pixels are neither 0 nor 255, or the store
        to resume was made from something else.
    FileExistsError
        The location exists and `mode` is ``create``.
    ImportError
        exchange_calendars is not installed.
    """
    columns = _return_columns(month)
    options = StoreOptions(layout, chunk, None, storage_options)
    request = BuildRequest.checked(SPEC, tuple(columns), 0, mode, options, threads)
    source = _Source.of(find_years(folder, years), columns)
    where = Location.of(store, storage_options)
    identity = source.identity(request)
    writer = StreamWriter(where, request.form(), request.horizons, identity, request.thread_count)
    check_location(where, mode)
    if mode == "resume" and location_state(where) == "finished":
        finished = open_store(where)
        _check_finished(finished, source, request)
        return finished
    with WriteLock(where) as lock:
        writer.state = {"blank": 0, "rows": np.zeros(len(source.stocks), np.int64), "digest": ""}
        writer.start(mode, SPEC)
        with with_resume_hint(where, lambda: f"{writer.blocks} of {len(source.years)} years"):
            _write_years(writer, source, lock, progress)
        _finish(writer, source, request)
    return open_store(where)


def _return_columns(month: int | None) -> dict[int, str]:
    """Return the column of returns for each horizon, ascending."""
    columns = {h: name for name, h in HORIZONS.items()}
    if month is not None:
        days = whole_number(month, "month", 1, unit="days")
        if days in columns:
            raise ValueError(f"month={month!r}: give a number of days other than 5, 20 and 60, such as 21")
        columns[days] = MONTH
    return dict(sorted(columns.items()))


@dataclass(frozen=True)
class _Source:
    """The files to import, checked, and what their labels need."""

    years: list[Year]
    stocks: NDArray[np.int64]
    """Numbers of all stocks, ascending."""
    columns: Mapping[int, str]
    """Column of returns for each horizon."""
    sessions: NDArray[np.int64]
    """Trading days of New York, from before the first year to after the last return is known."""

    @classmethod
    def of(cls, years: list[Year], columns: Mapping[int, str]) -> _Source:
        """Check the files of some years."""
        sessions = _sessions(years[0].year, years[-1].year)
        return cls(years, check_years(years, tuple(columns.values())), columns, sessions)

    @property
    def rows(self) -> int:
        """Images of all years, blank ones included."""
        return sum(year.rows for year in self.years)

    @property
    def label_columns(self) -> dict[str, str]:
        """Column of returns for each horizon, as a store names it."""
        return {str(h): name for h, name in self.columns.items()}

    def identity(self, request: BuildRequest) -> dict[str, Any]:
        """Return what decides the bytes of the store, as JSON values."""
        return {
            "jkx": [[y.year, y.images.stat().st_size, y.labels.stat().st_size] for y in self.years],
            "horizons": [[h, name] for h, name in self.columns.items()],
            "layout": request.layout,
            "chunk": request.chunk,
        }


def _check_finished(store: ImageStore, source: _Source, request: BuildRequest) -> None:
    years = np.unique(store.time.astype("datetime64[ns]").astype("datetime64[Y]")).astype(str)
    expected = {
        "years": [year.year for year in source.years],
        "horizons": list(request.horizons),
        "label_columns": source.label_columns,
        "layout": request.layout,
        "chunk": request.chunk,
        "candidates": source.rows,
    }
    found = {**store.attrs, "years": [int(year) for year in years]}
    advice = "Give another path; mode='overwrite' imports it anew"
    check_finished(store.location, found, expected, advice)


def _labels_folder(where: Path) -> Path:
    """Folder beside a store for what stores do not hold."""
    return where.with_name(f"{where.name}.labels")


def _write_years(writer: StreamWriter, source: _Source, lock: WriteLock, progress: bool) -> None:
    """Write the years that are not in the store yet, and their labels beside it."""
    where = writer.where
    kept = None if where.path is None else _labels_folder(where.path)
    if kept is not None and writer.blocks == 0:
        # Labels of a store that was here before.
        for path in kept.glob(_KEPT_FILES):
            path.unlink()
    with progress_bar(
        source.rows, f"import {os.path.basename(where.name)}", "img", progress, done=writer.windows
    ) as bar:
        for year in source.years[writer.blocks :]:
            _write_year(writer, year, source, kept)
            lock.check()
            writer.end_block()
            bar.update(year.rows)


def _write_year(writer: StreamWriter, year: Year, source: _Source, kept: Path | None) -> None:
    """Copy the images of a year in the order of the store, and its labels."""
    labels = read_labels(year)
    time = dates(year, labels)
    code = np.searchsorted(source.stocks, stock_numbers(year, labels)).astype(np.int32)
    images = year.pixels()
    blank = check_pixels(year, images)
    order = np.lexsort((code, time))
    order = order[~blank[order]]
    time, code = time[order], code[order]
    values: list[NDArray[Any]] = [code, time]
    for h in writer.horizons:
        column = labels[source.columns[h]].cast(pl.Float32).to_numpy()[order]
        column = np.where(np.isfinite(column), column, np.float32(np.nan))
        values += [column, _exit_times(time, h, source.columns[h], source.sessions)]

    def draw(a: int, b: int) -> NDArray[np.uint8]:
        # One image after another in the order of the file is what a disk likes.
        wanted = order[a:b]
        ascending = np.argsort(wanted, kind="stable")
        block = np.empty((b - a, *SPEC.shape), np.uint8)
        block[ascending] = images[wanted[ascending]]
        return np.packbits(block.transpose(0, 2, 1).reshape(b - a, -1), axis=1)

    writer.add(len(order), draw, values)
    state = writer.state
    state["blank"] += int(blank.sum())
    state["rows"] = state["rows"] + np.bincount(code, minlength=len(source.stocks))
    digest = hashlib.blake2b(str(state["digest"]).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(time).tobytes() + np.ascontiguousarray(code).tobytes())
    for column in values[2:]:
        digest.update(np.ascontiguousarray(column).tobytes())
    state["digest"] = digest.hexdigest()
    if kept is not None:
        _keep_labels(kept / f"{year.year}.parquet", labels[order.tolist()], time, source.stocks[code])


def _keep_labels(
    path: Path, labels: pl.DataFrame, time: NDArray[np.int64], stocks: NDArray[np.int64]
) -> None:
    """Write the columns that stores do not hold, in the order of the windows."""
    path.parent.mkdir(exist_ok=True)
    found = labels.select([name for name in KEPT if name in labels.columns])
    names = pl.Series("instrument", stocks.astype(str).tolist(), dtype=pl.String)
    times = pl.Series("time", time).cast(pl.Datetime("ns"))
    found.insert_column(0, times).insert_column(0, names).write_parquet(path)


def _finish(writer: StreamWriter, source: _Source, request: BuildRequest) -> None:
    facts, blank = _facts(source.stocks, writer.state), writer.state["blank"]
    made = Lineage(
        spec=SPEC,
        panel_fields=facts.fields,
        tz=facts.tz,
        windows=writer.windows,
        instruments=facts.n_instruments,
        candidates=writer.windows + blank,
        drop_counts={"no_price": blank} if blank else {},
        schedule=_SCHEDULE,
        horizons=request.horizons,
        rule=ReturnRule(0, "total_return", "missing"),
        layout=request.layout,
        chunk=request.chunk,
        label_source={
            "label_columns": source.label_columns,
            "source": "the public images of Jiang, Kelly and Xiu (2023)",
        },
    )
    writer.finish(store_attributes(made.attributes()), facts)


def _exit_times(
    time: NDArray[np.int64], horizon: int, column: str, sessions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """When a return is known: so many trading days later, or at the end of the next month."""
    if column == MONTH:
        month = time.astype("datetime64[ns]").astype("datetime64[M]")
        after = (month + np.timedelta64(2, "M")).astype("datetime64[ns]").astype(np.int64)
        return sessions[np.searchsorted(sessions, after) - 1]
    place = np.searchsorted(sessions, time, side="right") - 1 + horizon
    known = place < len(sessions)
    return np.where(known, sessions[np.where(known, place, 0)], NO_TIME)


def _sessions(first: int, last: int) -> NDArray[np.int64]:
    """Days on which the New York Stock Exchange was open, int64 ns, for the returns of some years."""
    calendars = optional_module("exchange_calendars", "calendars", "import_jkx")
    # The session before the first date counts, and the longest return ends months after the last one.
    start, end = f"{first - 1}-12-15", f"{last + 2}-03-01"
    # That package's use of deprecated parts of pandas is between the two.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sessions = calendars.get_calendar("XNYS", start=start, end=end).sessions
    return np.asarray(sessions.to_numpy().astype("datetime64[ns]").astype(np.int64))


def _facts(stocks: NDArray[np.int64], state: Mapping[str, Any]) -> PanelFacts:
    """What the store says about bars that the data set does not have: the labels stand for them."""
    rows = np.asarray(state["rows"], np.int64)
    offsets = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    digests = np.zeros((len(stocks), 2), np.uint64)
    return PanelFacts(stocks.astype(np.str_), offsets, digests, str(state["digest"]), (), None)


def jkx_labels(store: ImageStore | str | os.PathLike[str]) -> pl.DataFrame:
    """Return what `import_jkx` kept beside a store: a row a window, in the store's order.

    Columns ``instrument``, ``time`` and those of MarketCap (in thousands), EWMA_vol (a daily variance) and
    Ret_month that the dataset has.

    Raises
    ------
    FileNotFoundError
        No store, or no labels beside it.
    ValueError
        The labels belong to a different store.
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
            "to a different store. Import it again with mode='overwrite'"
        )
    return labels


def jkx_panel(store: ImageStore | str | os.PathLike[str]) -> Panel:
    """Return the monthly bars behind an imported store, for evaluating factors.

    Every window's date is a bar. Its total return is the Ret_month of the month before, so that the return
    over a horizon of one bar is the Ret_month of the images' data set. Where the next month has no image, as
    that of a stock that died has none, Ret_month is the return of a bar without prices in that month. Prices
    are the value of one unit invested at the first bar; where a return is not known they begin a new scale,
    which `adjustment_factor` numbers, so that nothing is computed across it. `market_cap` is in units of money,
    not in thousands.

    Parameters
    ----------
    store : ImageStore, str or path
        A store that `import_jkx` made on disk.

    Returns
    -------
    Panel
        Fields total_return, adjustment_factor and, where the dataset has it, market_cap.
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
    table = table.with_columns(pl.col(MONTH).cast(pl.Float64).fill_nan(None), image=pl.lit(True))
    known = table.with_columns(after=pl.col("month").shift(-1).over("code")).filter(
        pl.col(MONTH).is_not_null()
        & (pl.col("month") + 1 < len(calendar))
        & (pl.col("after").fill_null(-1) != pl.col("month") + 1)
    )
    # What came of these is known, though the month after has no image.
    ends = known.select("code", month=pl.col("month") + 1, total_return=MONTH, image=pl.lit(False))
    ends = ends.join(month, on="month", how="left")
    follows = (pl.col("month") - pl.col("month").shift(1).over("code")) == 1
    before = pl.col(MONTH).shift(1).over("code")
    table = table.with_columns(total_return=pl.when(follows).then(before))
    table = pl.concat([table, ends], how="diagonal_relaxed").sort("code", "month")
    step = 1 + pl.col("total_return").fill_null(0.0).clip(lower_bound=-0.999999)
    scale = pl.col("total_return").is_null().cum_sum().over("code").cast(pl.Float64)
    table = table.with_columns(level=step.cum_prod().over("code"), scale=scale)
    price = table.select(pl.when("image").then("level").otherwise(np.nan).alias("price"))["price"].to_numpy()
    bars = np.ascontiguousarray(np.column_stack([price, price, price, price, np.full(len(price), np.nan)]))
    counts = np.bincount(table["code"].to_numpy(), minlength=len(opened.instruments))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    fields = {
        "total_return": np.ascontiguousarray(table["total_return"].fill_null(np.nan).to_numpy()),
        "adjustment_factor": np.ascontiguousarray(table["scale"].to_numpy()),
    }
    if "MarketCap" in table.columns:
        cap = table["MarketCap"].cast(pl.Float64).fill_null(np.nan).to_numpy() * 1000.0
        fields["market_cap"] = np.ascontiguousarray(cap)
    time = np.ascontiguousarray(table["time"].cast(pl.Datetime("ns")).to_physical().to_numpy())
    return Panel(bars, offsets, opened.instruments, time, None, fields)
