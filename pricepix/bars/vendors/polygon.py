"""Polygon's aggregates (Massive since 2025): flat files with ``window_start``, and answers of its REST interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from pricepix.bars.vendors.numbers import as_float, utc_times

__all__ = ["COLUMNS", "is_answer", "read_answer", "read_flat_file"]

COLUMNS: Final = {"ticker", "window_start", "transactions"}
"""Columns by which a flat file is known."""
_SHORT: Final = {"t": "time", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}


def read_flat_file(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Return the rows of a flat file: ``window_start`` counts nanoseconds since 1970 UTC, the start of the bar."""
    prices = {name: as_float(table[name], origin) for name in ("open", "high", "low", "close", "volume")}
    times = utc_times(table["window_start"], "ns", origin)
    return pl.DataFrame({"instrument": table["ticker"], "time": times, **prices})


def is_answer(source: Any) -> bool:
    """Whether a mapping is an answer of ``/v2/aggs/ticker``: a ticker and a list of results."""
    return isinstance(source, Mapping) and "ticker" in source and isinstance(source.get("results"), list)


def read_answer(source: Mapping[str, Any]) -> pl.DataFrame:
    """Return the results of an answer: ``t`` counts milliseconds since 1970 UTC, the start of the bar."""
    ticker, results = str(source["ticker"]), source["results"]
    if not results:
        raise ValueError(f"the answer for {ticker!r} holds no results")
    for k, row in enumerate(results):
        if not isinstance(row, Mapping) or not set(_SHORT) <= set(row):
            raise ValueError(
                f"the answer for {ticker!r}: result {k} lacks one of {', '.join(_SHORT)}; expected aggregates"
            )
    columns = {
        ours: pl.Series(ours, [row[theirs] for row in results], strict=False)
        for theirs, ours in _SHORT.items()
    }
    times = utc_times(columns.pop("time"), "ms", f"the answer for {ticker!r}")
    prices = {name: as_float(values, f"the answer for {ticker!r}") for name, values in columns.items()}
    return pl.DataFrame({"instrument": [ticker] * len(results), "time": times, **prices})
