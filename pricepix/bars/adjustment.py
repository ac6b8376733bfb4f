"""Adjustment factors relative to each instrument's first bar, which later splits and dividends do not change.

A vendor that adjusts back from the last bar multiplies all earlier factors at every split. Prices are then other
numbers, and where the ratio is no power of two, roundings move some of them against each other. What never changes
is the step of a factor from one bar to the next. So a factor relative to the first bar is a product of steps, each
freed from the roundings of the two numbers that it is the quotient of (`kernels.step_ratio`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.bars import kernels
from pricepix.bars.values import locked

_BLOCK_BYTES: Final = 16 << 20


def factors_from_first(
    bars: NDArray[np.float64], factor: NDArray[np.float64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the factors of a panel's rows relative to each instrument's first bar with a price.

    Parameters
    ----------
    bars : numpy.ndarray, float64 (rows, 5)
    factor : numpy.ndarray, float64 (rows,)
        As the source gives them.
    offsets : numpy.ndarray, int64 (instruments + 1,)

    Returns
    -------
    numpy.ndarray, float64 (rows,)
        1 up to the first bar with a price and a factor that can be used; NaN where a factor cannot be used (missing,
        zero, negative or infinite).
    """
    out = np.empty(len(factor))
    kernels.factors_from_first(bars, locked(factor), offsets, out)
    return out


class FactorSteps(NamedTuple):
    """When the factors of a market's stocks change, and what they are from then on, relative to each first bar."""

    day: NDArray[np.int64]
    """int64 (steps,): position of the day, ascending."""
    stock: NDArray[np.int64]
    """int64 (steps,)"""
    level: NDArray[np.float64]
    """float64 (steps,): the factor from that day on."""

    @classmethod
    def of(cls, factor: Any, first: NDArray[np.int64]) -> FactorSteps:
        """Find the steps in an array of daily factors, reading a stretch of days at a time.

        Parameters
        ----------
        factor : array, (days, stocks)
            As the source gives them, sliceable by days.
        first : numpy.ndarray, int64 (stocks,)
            Each stock's first day with a price.
        """
        n = len(first)
        last, level = np.full(n, np.nan), np.ones(n)
        found: list[tuple[NDArray[Any], ...]] = []
        step = max(1, _BLOCK_BYTES // (8 * max(n, 1)))
        for a in range(0, factor.shape[0], step):
            block = locked(np.array(factor[a : a + step, :n], np.float64, order="C"))
            count = kernels.count_steps(block, first - a, last.copy())
            day, stock, to = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count)
            kernels.find_steps(block, first - a, last, level, day, stock, to)
            found.append((day + a, stock, to))
        return cls(*(np.concatenate([block[k] for block in found]) for k in range(3)))

    def levels(self, factor: NDArray[np.float64], day: slice, stock: slice) -> NDArray[np.float64]:
        """Return the factors of some days and stocks, float64 (days, stocks), relative to each first bar.

        `factor` are those of the source: where one cannot be used it stands as it is.
        """
        out = np.empty(factor.shape)
        stop = int(np.searchsorted(self.day, day.stop))
        days, stocks, level = (locked(column[:stop]) for column in self)
        kernels.spread_steps(days, stocks, level, day.start, stock.start, locked(factor), out)
        return out
