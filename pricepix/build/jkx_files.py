"""The files that the authors of "(Re-)Imag(in)ing Price Trends" published: found, read and checked."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.spec import ImageSpec

SPEC: Final = ImageSpec.preset("jkx20")
IMAGE_BYTES: Final = SPEC.shape[0] * SPEC.shape[1]
HORIZONS: Final[Mapping[str, int]] = {"Ret_5d": 5, "Ret_20d": 20, "Ret_60d": 60}
"""Columns of returns, and the horizons, in trading days, under which a store holds them."""

_NAME: Final = re.compile(r"20d_month_has_vb_\[20\]_ma_(\d{4})_(images\.dat|labels_w_delay\.feather)")
_REQUIRED: Final = ("Date", "StockID", *HORIZONS)


class Year(NamedTuple):
    """The two files of a year."""

    year: int
    images: Path
    labels: Path

    @property
    def rows(self) -> int:
        """Images that the file holds."""
        return self.images.stat().st_size // IMAGE_BYTES

    def pixels(self) -> NDArray[np.uint8]:
        """Map the images, uint8 (rows, height, width)."""
        return np.memmap(self.images, np.uint8, "r", shape=(self.rows, *SPEC.shape))


def find_years(folder: str | os.PathLike[str], years: Sequence[int] | None = None) -> list[Year]:
    """Return the files of every year in a folder, in order; an error names years of which one is missing."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: it is the authors' monthly_20d, or the one around it")
    files: dict[int, dict[str, Path]] = {}
    for path in (*root.iterdir(), *(root / "monthly_20d").glob("*")):
        if match := _NAME.fullmatch(path.name):
            files.setdefault(int(match[1]), {})[match[2].partition(".")[0].partition("_")[0]] = path
    if not files:
        raise FileNotFoundError(f"{root} holds no file named like 20d_month_has_vb_[20]_ma_1993_images.dat")
    # A year without any file is missing, too.
    wanted = range(min(files), max(files) + 1) if years is None else sorted({int(year) for year in years})
    if not wanted:
        raise ValueError(
            f"years={years!r} names no year: leave it out for all, from {min(files)} to {max(files)}"
        )
    missing = [
        f"{year} ({' and '.join(kind for kind in ('images', 'labels') if kind not in files.get(year, {}))})"
        for year in wanted
        if len(files.get(year, {})) < 2
    ]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks files of {', '.join(missing)}: add them, or name the years to take by years="
        )
    return [Year(year, files[year]["images"], files[year]["labels"]) for year in wanted]


def read_labels(year: Year) -> pl.DataFrame:
    """Read the labels of a year."""
    try:
        # From memory: a path with brackets would be taken for a pattern.
        return pl.read_ipc(io.BytesIO(year.labels.read_bytes()))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(
            f"{year.labels} is not a Feather file (version 2) that can be read: {error}"
        ) from None


def check_years(found: list[Year], columns: Sequence[str]) -> NDArray[np.int64]:
    """Check sizes, columns and dates of all years before any work; return the stocks' numbers, ascending."""
    faults: list[str] = []
    stocks: set[int] = set()
    before: int | None = None
    for year in found:
        labels = read_labels(year)
        missing = [name for name in (*_REQUIRED, *columns) if name not in labels.columns]
        if missing:
            raise ValueError(
                f"{year.labels.name} has no column {', '.join(dict.fromkeys(missing))}; it has "
                f"{', '.join(labels.columns)}"
            )
        size, each = year.images.stat().st_size, IMAGE_BYTES
        if size != len(labels) * each:
            whole = f"{size // each:,}" if size % each == 0 else f"{size / each:,.2f}"
            faults.append(f"{year.year}: {whole} images, but {len(labels):,} rows of labels")
            continue
        if not len(labels):
            faults.append(f"{year.year}: no rows")
            continue
        time, number = dates(year, labels), stock_numbers(year, labels)
        wrong = pl.Series(time).cast(pl.Datetime("ns")).dt.year() != year.year
        if wrong.any():
            row = int(wrong.arg_true()[0])
            faults.append(f"{year.year}: row {row} is dated {labels['Date'][row]}")
        if before is not None and int(time.min()) <= before:
            faults.append(f"{year.year}: begins before the year before it ends")
        before = int(time.max())
        if labels.select("Date", "StockID").is_duplicated().any():
            row = int(labels.select("Date", "StockID").is_duplicated().arg_true()[0])
            faults.append(f"{year.year}: stock {number[row]} occurs twice at {labels['Date'][row]}")
        stocks.update(np.unique(number).tolist())
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ValueError(
            f"{len(faults)} of {len(found)} years cannot be imported:\n{listed}\nRepair them, or choose "
            "years= without them"
        )
    return np.array(sorted(stocks), np.int64)


def dates(year: Year, labels: pl.DataFrame) -> NDArray[np.int64]:
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


def stock_numbers(year: Year, labels: pl.DataFrame) -> NDArray[np.int64]:
    """Return the column StockID."""
    try:
        column = labels["StockID"].cast(pl.Int64)
    except pl.exceptions.PolarsError:
        column = None
    if column is None or column.null_count():
        raise ValueError(f"{year.labels.name}: the column StockID holds values other than whole numbers")
    return np.asarray(column.to_numpy(), np.int64)


def check_pixels(year: Year, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Refuse pixels other than 0 and 255; return which images are blank."""
    blank = np.empty(len(images), np.bool_)
    for a in range(0, len(images), 4096):
        block = np.asarray(images[a : a + 4096])
        odd = ((block != 0) & (block != 255)).any(axis=(1, 2))
        if odd.any():
            raise ValueError(
                f"{year.images.name}: image {a + int(np.flatnonzero(odd)[0])} holds pixels other than 0 "
                "and 255: the file is damaged or has a different format"
            )
        blank[a : a + 4096] = ~block.any(axis=(1, 2))
    return blank
