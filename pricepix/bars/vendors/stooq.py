"""Stooq's bulk files: ``<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,...``. Its single downloads are plain tables."""

from __future__ import annotations

from typing import Final

import polars as pl

from pricepix.bars.vendors.numbers import as_float

__all__ = ["COLUMNS", "read_bulk"]

COLUMNS: Final = {"<TICKER>", "<PER>", "<DATE>", "<TIME>", "<OPEN>", "<CLOSE>"}
_DAYS: Final = {"D", "W", "M"}


def read_bulk(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Return the rows as bars: dates of daily, weekly and monthly bars, wall-clock times of others."""
    periods = set(table["<PER>"].unique().to_list())
    dates, clock = table["<DATE>"].cast(pl.String), table["<TIME>"].cast(pl.String)
    if len(periods) > 1:
        raise ValueError(
            f"{origin}: bars of several lengths ({', '.join(sorted(map(str, periods)))}) in one file: give those of one"
        )
    try:
        if periods <= _DAYS:
            times = dates.str.to_date("%Y%m%d")
        else:
            times = (dates + clock.str.zfill(6)).str.to_datetime("%Y%m%d%H%M%S", time_unit="ns")
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{origin}: <DATE> and <TIME> are not of the form 20240131 and 153000: {error}"
        ) from error
    columns = {"open": "<OPEN>", "high": "<HIGH>", "low": "<LOW>", "close": "<CLOSE>", "volume": "<VOL>"}
    values = {
        ours: as_float(table[theirs], origin) for ours, theirs in columns.items() if theirs in table.columns
    }
    return pl.DataFrame({"instrument": table["<TICKER>"], "time": times, **values})
