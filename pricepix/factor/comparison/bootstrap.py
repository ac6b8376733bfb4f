"""Months drawn with replacement: how much a difference of two statistics could be chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import whole_number
from pricepix.bars.times import to_series

__all__ = ["Bootstrap", "bootstrap_by_month", "month_numbers"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """How often calendar months are drawn with replacement.

    Attributes
    ----------
    draws : int
    seed : int
        The same seed gives the same draws.
    """

    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number(self.draws, "draws", 1)
        whole_number(self.seed, "seed", 0)


def month_numbers(time: NDArray[np.int64], tz: str | None) -> NDArray[np.int64]:
    """Number of the calendar month that each time lies in, in the market's zone, int64."""
    wall = to_series(time, tz).dt.replace_time_zone(None)
    return (wall.dt.year().cast(int) * 12 + wall.dt.month().cast(int) - 1).to_numpy().astype(np.int64)


def bootstrap_by_month(
    statistic: Callable[[Floats], float], pairs: Floats, month: NDArray[np.int64], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Bootstrap the difference of a statistic of two series, month by month.

    As many calendar months as there are are drawn with replacement, each with all of its values of both series, which
    keeps what is correlated within a month, and between the two, as it is.

    Parameters
    ----------
    statistic : callable
        From float64 (n,) to a number.
    pairs : numpy.ndarray, float64 (n, 2)
        Both series, without NaN.
    month : numpy.ndarray, int64 (n,)
        As of `month_numbers`.
    bootstrap : Bootstrap

    Returns
    -------
    dict
        ``a``, ``b``, ``difference``; ``low`` and ``high``, the 2.5% and 97.5% quantiles of the drawn differences;
        ``standard_error``, their standard deviation; ``p_value``, two-sided: twice the smaller share of drawn
        differences, centred at 0, that lie as far out as the one found, at least 1 / (draws + 1); ``months``. All but
        the first three are NaN with fewer than 3 months.
    """
    a, b = (statistic(pairs[:, k]) for k in range(2))
    found: dict[str, Any] = {"a": a, "b": b, "difference": a - b}
    months, which = np.unique(month, return_inverse=True)
    nothing = dict.fromkeys(("low", "high", "standard_error", "p_value"), float("nan"))
    if len(months) < 3 or not np.isfinite(a - b):
        return found | nothing | {"months": len(months)}
    rows = [np.flatnonzero(which == k) for k in range(len(months))]
    rng = np.random.default_rng(bootstrap.seed)
    drawn = np.empty(bootstrap.draws)
    for d in range(bootstrap.draws):
        chosen = np.concatenate([rows[k] for k in rng.integers(0, len(months), len(months))])
        drawn[d] = statistic(pairs[chosen, 0]) - statistic(pairs[chosen, 1])
    drawn = drawn[np.isfinite(drawn)]
    centred = drawn - drawn.mean()
    further = min(int((centred >= a - b).sum()), int((centred <= a - b).sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return found | {
        "low": float(low),
        "high": float(high),
        "standard_error": float(drawn.std(ddof=1)),
        "p_value": float(min(1.0, 2.0 * (further + 1) / (len(drawn) + 1))),
        "months": len(months),
    }
