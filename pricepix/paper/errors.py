"""Standard errors of means over dates that need not be independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.metrics import mean_test

__all__ = ["mean_error", "share_error"]


def mean_error(series: NDArray[np.float64], overlap: int = 1) -> float:
    """Standard error of the mean of an autocorrelated series: that of ``pricepix.factor``'s t.

    Parameters
    ----------
    series : numpy.ndarray, float64 (n,)
        Without NaN.
    overlap : int
        Steps that a value spans.

    Returns
    -------
    float
        NaN with fewer than ten times `overlap` values, or without any variation.
    """
    if not len(series):
        return float("nan")
    # The projections behind the t do not see the mean: with a mean of 1 it is 1 over the error.
    return 1.0 / mean_test(series - series.mean() + 1.0, overlap).t


def share_error(hit: NDArray[np.bool_], time: NDArray[np.int64], overlap: int) -> float:
    """Standard error of a share over all pairs, whose hits go together at a date and over `overlap` dates.

    Parameters
    ----------
    hit : numpy.ndarray, bool (n,)
    time : numpy.ndarray, int64 (n,)
        The date of each.
    overlap : int
        Dates that a return spans.

    Returns
    -------
    float
        That of the mean over dates of what each adds to the share: hits less the share of its pairs, times the number
        of dates, over all pairs.
    """
    if not len(hit):
        return float("nan")
    _, which = np.unique(time, return_inverse=True)
    count = np.bincount(which)
    surplus = np.bincount(which, hit) - hit.mean() * count
    return mean_error(surplus * len(count) / len(hit), overlap)
