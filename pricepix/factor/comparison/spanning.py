"""Regressions of a portfolio's returns on others': what is left is its alpha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.factor.evaluation.metrics import newey_west_lags

__all__ = ["factor_returns", "span"]

Floats = NDArray[np.float64]


def span(returns: Floats, others: Floats, names: Sequence[str], per_year: float) -> dict[str, Any]:
    """Regress returns on those of other portfolios, with errors of Newey and West (1987).

    Parameters
    ----------
    returns : numpy.ndarray, float64 (n,)
    others : numpy.ndarray, float64 (n, k)
        Rows with NaN are left out.
    names : sequence of str
        Of the k others.
    per_year : float
        Periods a year.

    Returns
    -------
    dict
        ``alpha`` a year, its ``t``, ``betas`` and their ``t_betas`` by name, ``r2``, ``periods``, ``lags``: Bartlett
        weights over floor(4 (n / 100)^(2/9)) lags, no small-sample correction. NaN with fewer than ten periods more
        than coefficients, or where others are collinear.
    """
    known = ~np.isnan(returns) & ~np.isnan(others).any(axis=1)
    y, x = returns[known], np.column_stack([np.ones(int(known.sum())), others[known]])
    n, k = x.shape
    nan = float("nan")
    found: dict[str, Any] = {
        "alpha": nan, "t": nan, "betas": dict.fromkeys(names, nan), "t_betas": dict.fromkeys(names, nan), "r2": nan,
        "periods": n, "lags": newey_west_lags(n),
    }  # fmt: skip
    if n < k + 10 or np.linalg.matrix_rank(x) < k:
        return found
    inverse = np.linalg.inv(x.T @ x)
    slopes = inverse @ (x.T @ y)
    residual = y - x @ slopes
    moments = x * residual[:, None]
    middle = moments.T @ moments
    for lag in range(1, found["lags"] + 1):
        part = moments[lag:].T @ moments[:-lag]
        middle += (1.0 - lag / (found["lags"] + 1.0)) * (part + part.T)
    error = np.sqrt(np.diag(inverse @ middle @ inverse))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = slopes / error
    spread = float(((y - y.mean()) ** 2).sum())
    return found | {
        "alpha": float(slopes[0] * per_year),
        "t": float(t[0]),
        "betas": dict(zip(names, slopes[1:].tolist(), strict=True)),
        "t_betas": dict(zip(names, t[1:].tolist(), strict=True)),
        "r2": 1.0 - float(residual @ residual) / spread if spread > 0 else nan,
    }


def factor_returns(
    given: Any, panel: Panel, entry: NDArray[np.int64], leave: NDArray[np.int64]
) -> tuple[list[str], Floats]:
    """Compound a table of factor returns a bar from the entry of each period to its sale.

    Parameters
    ----------
    given : table
        Column ``time`` and one a factor: simple returns of the bar that ends then, as shares (0.01 for 1%).
    panel : Panel
    entry, leave : numpy.ndarray, int64 (n,)
        Positions along the panel's calendar.

    Returns
    -------
    names : list of str
    values : numpy.ndarray, float64 (n, factors)
        NaN for periods with a bar whose return is not in the table.
    """
    try:
        table = given if isinstance(given, pl.DataFrame) else pl.from_dataframe(given)
    except TypeError:
        raise TypeError(f"returns is a {type(given).__name__}; give a table with a column time") from None
    names = [name for name in table.columns if name != "time"]
    if "time" not in table.columns or not names:
        raise ValueError(
            f"returns has the columns {', '.join(table.columns)}: give time and one column a factor, such as mkt"
        )
    calendar = panel.to_polars().select("time").unique().sort("time")
    if table["time"].n_unique() != len(table):
        raise ValueError("returns has a time twice: give one row a bar")
    own = table.select(pl.col("time").cast(calendar.schema["time"]), pl.col(names).cast(pl.Float64))
    joined = calendar.join(own, on="time", how="left", maintain_order="left")
    steps = joined.select(names).fill_null(float("nan")).to_numpy()
    largest = float(np.nanmax(np.abs(steps), initial=0.0)) if np.isfinite(steps).any() else 0.0
    if np.isnan(steps).all():
        raise ValueError("returns has no time of the panel's calendar: give the returns of its bars")
    if largest > 1.0:
        raise ValueError(
            f"returns holds {largest:g}, more than a whole in one bar: give shares, 0.01 for 1%, not percentages"
        )
    values = np.full((len(entry), len(names)), np.nan)
    for k, (a, b) in enumerate(zip(entry.tolist(), leave.tolist(), strict=True)):
        values[k] = np.prod(1.0 + steps[a + 1 : b + 1], axis=0) - 1.0
    return names, values


def chosen_columns(models: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, list[int]]:
    """Return the columns of each named model; KeyError for one that is not there."""
    found = {}
    for model, wanted in models.items():
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise KeyError(
                f"models[{model!r}] names {unknown[0]!r}, which returns has not: it has {', '.join(names)}"
            )
        found[model] = [list(names).index(name) for name in wanted]
    return found
