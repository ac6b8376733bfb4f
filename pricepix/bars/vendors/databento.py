"""Databento's OHLCV schemas as CSV: ``ts_event`` in nanoseconds or ISO form, prices in billionths or decimals."""

from __future__ import annotations

from typing import Final

import polars as pl

from pricepix.bars.vendors.numbers import as_float, as_int, utc_times

__all__ = ["COLUMNS", "read_ohlcv"]

COLUMNS: Final = {"ts_event", "rtype", "instrument_id"}
_SCALE: Final = 1e9
_UNDEFINED: Final = 2**63 - 1
"""Databento's price that is not defined."""


def read_ohlcv(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Return the rows as bars; the instrument is the column ``symbol``, or ``instrument_id`` without one.

    A file has its prices as whole numbers of 1e-9 unless it was made with ``pretty_px``: prices without a decimal
    point in the whole file are taken so. The time of a bar is its ``ts_event``, its start.
    """
    prices = {}
    texts = [table[name].cast(pl.String) for name in ("open", "high", "low", "close")]
    if not any(text.str.contains(".", literal=True).any() for text in texts):
        for text in texts:
            whole = as_int(text, origin)
            prices[text.name] = whole.set(whole == _UNDEFINED, None).cast(pl.Float64) / _SCALE
    else:
        prices = {text.name: as_float(text, origin) for text in texts}
    stamps = table["ts_event"]
    if stamps.dtype == pl.String and stamps.str.contains("-", literal=True).any():
        try:
            times = stamps.str.to_datetime(time_unit="ns", time_zone="UTC").rename("time")
        except pl.exceptions.PolarsError as error:
            raise ValueError(
                f"{origin}: column 'ts_event' holds a time that is not in ISO form: {error}"
            ) from error
    else:
        times = utc_times(stamps, "ns", origin)
    named = table["symbol"] if "symbol" in table.columns else table["instrument_id"]
    instrument = named.cast(pl.String).rename("instrument")
    volume = as_float(table["volume"], origin)
    return pl.DataFrame({"instrument": instrument, "time": times, **prices, "volume": volume})
