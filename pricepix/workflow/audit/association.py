"""How strongly something known at a bar goes with something that follows it, by date, and how surely."""

from __future__ import annotations

from math import erfc, log1p, sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST_DATES", "FEWEST_NAMES", "Association", "associate", "date_ranks"]

Floats = NDArray[np.float64]
FEWEST_NAMES: Final = 5
"""Instruments that a date needs to count."""
FEWEST_DATES: Final = 10
"""Dates below which nothing is said."""


class Association(NamedTuple):
    """Agreement of the cross-sections of two quantities, over dates."""

    effect: float
    """For ranks a correlation, for flags how much likelier than one half the flagged of a pair is the higher."""
    p: float
    """Chance of an effect so far from 0 if there is none. Dates count as independent, instruments do not."""
    dates: int

    def exceeds(self, effect: float, p: float) -> bool:
        """Whether it is both too large and too sure to be chance."""
        return self.dates >= FEWEST_DATES and abs(self.effect) >= effect and self.p <= p


def date_ranks(values: Floats, time: NDArray[np.int64]) -> Floats:
    """Rank values within each time, from -0.5 to 0.5; ties share their mean rank."""
    out = np.empty(len(values))
    order = np.lexsort((values, time))
    ordered, times = values[order], time[order]
    new_date = np.append(True, times[1:] != times[:-1]) if len(times) else np.zeros(0, bool)
    new_value = new_date | np.append(True, ordered[1:] != ordered[:-1]) if len(times) else new_date
    begin = np.flatnonzero(new_date)
    size = np.diff(np.append(begin, len(times)))
    first = np.repeat(begin, size)
    ties = np.flatnonzero(new_value)
    width = np.diff(np.append(ties, len(times)))
    middle = np.repeat(ties + (width - 1) / 2, width)
    out[order] = (middle - first + 0.5) / np.repeat(size, size) - 0.5
    return out


def associate(
    first: NDArray[np.bool_] | Floats, second: Floats, time: NDArray[np.int64], minus: Floats | None = None
) -> Association:
    """Measure how flags or numbers of a date go with the numbers that follow.

    Parameters
    ----------
    first : numpy.ndarray, bool or float64 (n,)
        Flags, or numbers that are ranked by date.
    second : numpy.ndarray, float64 (n,)
        Numbers that are ranked by date. Pairs in which either is NaN are left out.
    time : numpy.ndarray, int64 (n,)
    minus : numpy.ndarray, float64 (n,), optional
        Then the effect is the agreement with `second` less the agreement with this.

    Notes
    -----
    The effect is pooled over dates. Its standard error comes from the spread of the dates' own sums, so that it
    holds however instruments move together. Student's t is turned into a normal deviate by Wallace's formula.
    """
    flags = first.dtype == np.bool_
    known = ~np.isnan(second)
    if minus is not None:
        known &= ~np.isnan(minus)
    if not flags:
        known &= ~np.isnan(first)
    first, second, time = first[known], second[known], time[known]
    dates, code, size = np.unique(time, return_inverse=True, return_counts=True)
    if not len(dates):
        return Association(0.0, 1.0, 0)
    left = first.astype(np.float64)
    left = left if flags else date_ranks(left, time)
    left = left - (np.bincount(code, left) / size)[code]
    right = date_ranks(second, time)
    if minus is not None:
        right = right - date_ranks(minus[known], time)
    product = np.bincount(code, left * right)
    # For flags: rank difference = covariance / variance. For ranks: correlation, both variances being alike.
    scale = np.bincount(code, left * left)
    use = (size >= FEWEST_NAMES) & (scale > 1e-12)
    product, scale, n = product[use], scale[use], int(use.sum())
    if n < FEWEST_DATES:
        return Association(0.0, 1.0, n)
    effect = float(product.sum() / scale.sum())
    spread = float(np.std(product, ddof=1))
    if spread == 0:
        return Association(effect, 1.0 if effect == 0 else 0.0, n)
    t = float(product.mean()) / spread * sqrt(n)
    df = n - 1
    z = (8 * df + 1) / (8 * df + 3) * sqrt(df * log1p(t * t / df))
    return Association(effect, erfc(z / sqrt(2)), n)
