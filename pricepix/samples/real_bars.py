"""Real daily bars of a few stocks, from a package of sample data."""

from __future__ import annotations

import numpy as np
import polars as pl

_SYMBOLS = ("AAPL", "FB", "GOOG", "IBM", "MSFT")


def stocks(*, adjustment_factor: bool = False) -> pl.DataFrame:
    """Real daily bars of AAPL, FB, GOOG, IBM and MSFT, from the package ``bokeh-sampledata``.

    Parameters
    ----------
    adjustment_factor : bool
        Add the column ``adjustment_factor`` (float64): the source's adjusted close over its close.

    Returns
    -------
    polars.DataFrame
        Columns ``symbol`` (str), ``date`` (date), ``open``, ``high``, ``low``, ``close``, ``volume``
        (float64), sorted by symbol and date; 2000-03-01 to 2013-03-01 at most. Prices are as traded,
        not adjusted for splits.

    Raises
    ------
    ImportError
        If the package is not installed; the message gives the line that installs it.
    """
    try:
        from bokeh_sampledata import stocks as source
    except ImportError as error:
        raise ImportError(
            'the sample stocks need the package bokeh-sampledata: pip install "pricepix[sample]"'
        ) from error
    frames = []
    for symbol in _SYMBOLS:
        table = getattr(source, symbol)
        columns = {
            name: np.asarray(table[name], dtype=np.float64)
            for name in ("open", "high", "low", "close", "volume")
        }
        frame = pl.DataFrame(
            {"symbol": [symbol] * len(table["date"]), "date": [str(day) for day in table["date"]], **columns}
        )
        if adjustment_factor:
            factor = np.asarray(table["adj_close"], dtype=np.float64) / columns["close"]
            frame = frame.with_columns(adjustment_factor=pl.Series(factor))
        frames.append(frame)
    return pl.concat(frames).with_columns(pl.col("date").str.to_date()).sort("symbol", "date")
