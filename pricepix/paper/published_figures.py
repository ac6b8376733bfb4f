"""The figures that the paper printed, as far as they are known here."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import StringIO

import polars as pl

__all__ = ["lookup", "published"]


def published() -> pl.DataFrame:
    """Return the published figures that a replication is set beside.

    Returns
    -------
    polars.DataFrame
        A row a figure: ``table``, ``cell`` (empty where none is named or a row has none), ``model``,
        ``weighting``, ``row``, ``statistic``, ``value`` (Sharpe ratios a year; turnover and R2 as shares),
        ``read_from`` and ``checked``. None is checked against the article: all come from secondary transcriptions.
    """
    text = files("pricepix.paper").joinpath("published.csv").read_text(encoding="utf-8")
    return pl.read_csv(
        StringIO(text), schema_overrides={"value": pl.Float64}, infer_schema=False
    ).with_columns(pl.col("value").cast(pl.Float64), pl.col(pl.String).fill_null(""))


@cache
def _by_key() -> dict[tuple[str, ...], float]:
    names = ("table", "cell", "model", "weighting", "row", "statistic")
    return {tuple(row[name] for name in names): row["value"] for row in published().iter_rows(named=True)}


def lookup(table: str, cell: str, model: str, weighting: str, row: str, statistic: str) -> float:
    """Return a published figure, NaN where none is known."""
    return _by_key().get((table, cell, model, weighting, row, statistic), float("nan"))
