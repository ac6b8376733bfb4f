"""What the simulated markets share: calendars, halts, listings, splits, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BARS_A_YEAR = 252
"""Trading days, by which yearly volatilities are scaled."""
MonthDay = tuple[int, int]


def check_probabilities(**probabilities: float) -> None:
    """Raise an error that names the first argument that is not a probability."""
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: give a number from 0 to 1")


def trading_days(
    start: str, days: int, closed: Sequence[tuple[MonthDay, MonthDay]] = ()
) -> NDArray[np.datetime64]:
    """Return consecutive trading days, datetime64[D]: business days from `start` on.

    Parameters
    ----------
    start : str
        First day; moved to the next trading day.
    days : int
    closed : sequence of ((month, day), (month, day))
        First and last day of each holiday, the same every year.
    """
    try:
        first = np.datetime64(start, "D")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"start={start!r}: give a day as YYYY-MM-DD") from error
    year = int(str(first)[:4])
    holidays = [
        np.arange(np.datetime64(_date(y, begin)), np.datetime64(_date(y, end)) + np.timedelta64(1, "D"))
        for y in range(year, year + days // 200 + 2)
        for begin, end in closed
    ]
    off = np.concatenate(holidays) if holidays else np.empty(0, "datetime64[D]")
    return np.busday_offset(first, np.arange(days), roll="forward", holidays=off)


def _date(year: int, day: MonthDay) -> str:
    return f"{year}-{day[0]:02d}-{day[1]:02d}"


def spells(rng: np.random.Generator, shape: tuple[int, int], rate: float, longest: int) -> NDArray[np.bool_]:
    """Return where halts or suspensions are: one begins with chance `rate`, and lasts 1 to `longest` rows."""
    begins = rng.random(shape) < rate
    length = rng.integers(1, longest + 1, shape)
    inside = np.zeros(shape, np.bool_)
    for k in range(min(longest, shape[0])):
        inside[k:] |= (begins & (length > k))[: shape[0] - k]
    return inside


def listing_rows(
    rng: np.random.Generator, instruments: int, late: float, first: int, stop: int
) -> NDArray[np.int64]:
    """Return the row at which each instrument lists: 0, or for a share `late` a row from `first` to before `stop`."""
    return np.where(rng.random(instruments) < late, rng.integers(first, stop, instruments), 0)


def split_ratios(
    rng: np.random.Generator,
    shape: tuple[int, int],
    rate: float,
    ratios: Sequence[float],
    probabilities: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Return the ratio of the split at each row: one of `ratios` with chance `rate`, else 1."""
    return np.where(rng.random(shape) < rate, rng.choice(ratios, shape, p=probabilities), 1.0)


def log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> NDArray[np.float64]:
    """Return numbers from `low` to `high` whose logarithms are uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), n))
