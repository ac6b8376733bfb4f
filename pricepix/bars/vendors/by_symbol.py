"""A table or a list of rows for each symbol: ``{symbol: frame}``, and ccxt's ``{symbol: fetch_ohlcv(symbol)}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl

from pricepix._checks import short

__all__ = ["is_by_symbol", "is_ohlcv_rows", "read_by_symbol", "read_ohlcv_rows"]

_OHLCV: Final = ("open", "high", "low", "close", "volume")
_KLINE: Final = 12
"""Values of a row of Binance's own client, of which ccxt keeps the first six."""


def is_ohlcv_rows(source: Any) -> bool:
    """Whether a source is a list of rows ``[milliseconds, open, high, low, close, volume]``, as ccxt gives them."""
    return (
        isinstance(source, list | tuple)
        and len(source) > 0
        and isinstance(source[0], list | tuple)
        and len(source[0]) in (len(_OHLCV) + 1, _KLINE)
    )


def is_by_symbol(source: Any) -> bool:
    """Whether a source maps symbols to tables or to lists of rows, where a table maps columns to values."""
    if not isinstance(source, Mapping) or not source:
        return False
    values = list(source.values())
    tables = [_is_table(v) or is_ohlcv_rows(v) for v in values]
    # A symbol without bars comes as an empty list.
    empty = [isinstance(v, list | tuple) and len(v) == 0 for v in values]
    return any(tables) and all(t or e for t, e in zip(tables, empty, strict=True))


def _is_table(value: Any) -> bool:
    return isinstance(value, pl.DataFrame) or (
        type(value).__module__.partition(".")[0] == "pandas" and type(value).__name__ == "DataFrame"
    )


def read_ohlcv_rows(rows: Sequence[Sequence[Any]], what: str) -> pl.DataFrame:
    """Return a list of rows as a table: time (UTC), open, high, low, close, volume.

    Parameters
    ----------
    rows : sequence of sequences
        Milliseconds since 1970, the four prices and the volume, as numbers or text.
    what : str
        What they are, for errors.

    Raises
    ------
    ValueError
        A row of another length, or a value that is no number; the message names the first.
    """
    width = len(rows[0])
    for k, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != width:
            raise ValueError(
                f"{what}: row {k} is {short(row)}; expected {width} values as in the first row: milliseconds since "
                "1970, open, high, low, close, volume"
            )
    columns = list(zip(*rows, strict=True))[: len(_OHLCV) + 1]
    try:
        time = pl.Series("time", [int(t) for t in columns[0]], dtype=pl.Int64)
        values = {
            name: [None if v is None else float(v) for v in column]
            for name, column in zip(_OHLCV, columns[1:], strict=True)
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}: a value is no number ({error}); expected rows of milliseconds since 1970, open, high, low, "
            "close, volume"
        ) from error
    table = pl.DataFrame(values, schema=dict.fromkeys(_OHLCV, pl.Float64))
    return table.insert_column(0, time.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"))


def read_by_symbol(source: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Return (symbol, table) pairs of a source that `is_by_symbol` knows; symbols without bars are left out.

    Tables are polars or pandas frames, as they came or made of rows.

    Raises
    ------
    ValueError
        Two keys are the same text, or a row is none.
    """
    found: dict[str, Any] = {}
    for key, value in source.items():
        symbol = str(key)
        if symbol in found:
            raise ValueError(f"two keys of the mapping are called {short(symbol)}: give each symbol one name")
        if _is_table(value):
            found[symbol] = value
        elif len(value):
            found[symbol] = read_ohlcv_rows(value, f"the rows of {short(symbol)}")
    return list(found.items())
