"""What ``yfinance.download`` gives: a pandas frame whose columns have two levels, the price and the ticker."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["is_wide", "long_frame"]

_PRICES: Final = {"Open", "High", "Low", "Close"}


def _price_level(frame: Any) -> int | None:
    """Return the level of the columns that holds Open, High, Low and Close; None if not exactly one does."""
    levels = [k for k in (0, 1) if set(frame.columns.get_level_values(k)) >= _PRICES]
    return levels[0] if len(levels) == 1 else None


def is_wide(frame: Any) -> bool:
    """Whether a pandas frame has columns such as ("Close", "AAPL"), or ("AAPL", "Close") with ``group_by="ticker"``."""
    return frame.columns.nlevels == 2 and _price_level(frame) is not None


def long_frame(frame: Any) -> tuple[Any, int]:
    """Return a pandas frame with a row a ticker and time, and how many empty rows were left out.

    A frame of many tickers has a row wherever one of them has a bar: where a ticker has neither price nor volume, it
    has no row here. Prices are taken as they stand: yfinance adjusts them unless ``auto_adjust=False``.
    """
    import pandas as pd

    level = _price_level(frame)
    assert level is not None
    tickers = frame.columns.get_level_values(1 - level)
    parts, empty = [], 0
    for ticker in dict.fromkeys(tickers):
        one = frame.loc[:, tickers == ticker]
        one = one.set_axis(one.columns.get_level_values(level), axis=1).rename_axis(None, axis=1)
        kept = one.dropna(how="all")
        empty += len(one) - len(kept)
        if len(kept):
            kept = kept.rename_axis(index="time" if kept.index.name is None else kept.index.name)
            # A column of its own, whatever the index is called.
            parts.append(kept.assign(instrument=str(ticker)))
    if not parts:
        raise ValueError("the pandas DataFrame of two levels holds no bar: every value is missing")
    return pd.concat(parts), empty
