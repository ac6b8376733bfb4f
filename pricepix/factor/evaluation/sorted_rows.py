"""The instruments of every date in the order of their values, from which ranks and their correlations follow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pricepix.factor.evaluation.kernels import (
    average_ranks,
    mann_whitney,
    rank_correlations,
    sort_rows,
)
from pricepix.factor.evaluation.row_blocks import frozen, on_threads

__all__ = ["SortedRows"]

Floats = NDArray[np.float64]


class SortedRows(NamedTuple):
    """A matrix with its places in the order of their values; sorting takes longer than all that uses the order."""

    values: Floats
    """float64 (dates, instruments)."""
    order: NDArray[np.int32]
    """int32 (dates, instruments): the places of what is not NaN, ascending by value; what follows has no meaning."""
    known: NDArray[np.int64]
    """int64 (dates,): how many values of each date are not NaN."""

    @classmethod
    def of(cls, values: ArrayLike) -> SortedRows:
        """Sort the rows of an array (dates, instruments)."""
        x = frozen(values)
        order, known = np.empty(x.shape, np.int32), np.empty(len(x), np.int64)
        on_threads(sort_rows, len(x), 8 * x.shape[1], x, order, known)
        return cls(x, frozen(order, np.int32), frozen(known, np.int64))

    def ranks(self) -> Floats:
        """Return ranks from 1 up, float64 (dates, instruments); ties share their mean, NaN stays NaN."""
        out = np.empty(self.values.shape)
        on_threads(average_ranks, len(out), self.order.shape[1], *self, out)
        return out

    def correlations(self, other: SortedRows, minimum: int) -> Floats:
        """Correlate the ranks of each row with those of `other`, over what is known in both, float64 (dates,).

        NaN where fewer than `minimum` pairs are known, or one side is constant.
        """
        out = np.empty(len(self.values))
        on_threads(rank_correlations, len(out), 2 * self.values.shape[1], *self, *other, minimum, out)
        return out

    def auc(self, returns: ArrayLike) -> Floats:
        """Return, by date, the chance that a random rise has a larger value than a random fall, float64 (dates,).

        Ties count half; a return that is NaN is neither.
        """
        out = np.empty(len(self.values))
        on_threads(mann_whitney, len(out), self.values.shape[1], *self, frozen(returns), out)
        return out
