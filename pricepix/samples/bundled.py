"""A sample table of bars that comes with the package: nothing to install, nothing to download."""

from __future__ import annotations

import importlib.resources
import io
from typing import Final

import polars as pl

__all__ = ["bundled"]

_FILE: Final = "bundled.parquet"


def bundled() -> pl.DataFrame:
    """Return daily bars of twelve made-up stocks over three years, which come with the package.

    They are simulated by ``simulate``, a random walk with halts, splits and a listing that ends, so that nothing in any
    image says anything about any later return. They are part of pricepix and under its licence (BSD 3-Clause); no
    vendor's data are in them.

    Returns
    -------
    polars.DataFrame
        Columns ``symbol`` (str), ``date`` (date), ``open``, ``high``, ``low``, ``close``, ``volume``,
        ``adjustment_factor`` (``adjust="multiply"``), ``total_return`` (float64), sorted by symbol and date. Prices are
        as traded, not adjusted for splits.

    Examples
    --------
    >>> from pricepix import Panel, samples
    >>> Panel.from_table(samples.bundled(), adjust="multiply", progress=False).n_instruments
    12
    """
    content = importlib.resources.files("pricepix.samples").joinpath(_FILE).read_bytes()
    return pl.read_parquet(io.BytesIO(content))
