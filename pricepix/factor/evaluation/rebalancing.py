"""At which bars portfolios are formed, and how many bars and periods a year has."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, whole_number
from pricepix.bars.times import to_series
from pricepix.factor.calendar import Times, day_and_interval

REBALANCES: Final = ("bar", "day", "week", "month", "quarter", "horizon")

_PERIODS: Final = {"day": "1d", "week": "1w", "month": "1mo", "quarter": "1q"}

_PER_YEAR: Final = {"week": 52.0, "month": 12.0, "quarter": 4.0}


def bars_per_year(time: Times, tz: str | None) -> float:
    """Return how many bars a calendar has a year, judging by its own spacing.

    Daily bars: 252, or 365 where Saturdays and Sundays are traded. Bars a week, a month, a quarter or a year
    apart: 52, 12, 4 or 1. Several bars a day: the days' number times the median of bars a day.

    Parameters
    ----------
    time : numpy.ndarray, int64 (bars,)
        The calendar, ascending.
    """
    day, _ = day_and_interval(time, tz)
    days, count = np.unique(day, return_counts=True)
    if len(days) < 2:
        return 252.0 * float(np.median(count)) if len(days) else 252.0
    gap = float(np.median(np.diff(days)))
    for at_least, per_year in ((300, 1.0), (80, 4.0), (20, 12.0), (5, 52.0)):
        if gap >= at_least:
            return per_year
    # 1970-01-01 was a Thursday: weekdays counted from Monday.
    weekend = float(((days + 3) % 7 >= 5).mean())
    return (365.0 if weekend > 0.2 else 252.0) * float(np.median(count))


def rebalances(
    known: Times, time: Times, tz: str | None, every: str | int, horizon: int
) -> NDArray[np.int64]:
    """Choose the bars at which portfolios are formed.

    Parameters
    ----------
    known : numpy.ndarray, int64 (dates,)
        Positions, along the calendar, of the bars at which the factor is known, ascending.
    time : numpy.ndarray, int64 (bars,)
        The calendar.
    every : {"bar", "day", "week", "month", "quarter", "horizon"} or int
        Every such bar; the last of them in each day, week (Monday to Sunday), month or quarter of the
        market's zone; or those at least `horizon`, or so many, bars apart.

    Returns
    -------
    numpy.ndarray, int64
        Some of `known`.
    """
    if every == "bar":
        return known
    if every == "horizon":
        every = horizon
    if isinstance(every, str):
        choice(every, "rebalance", REBALANCES, "a number of bars")
        period = to_series(time[known], tz).dt.truncate(_PERIODS[every]).to_physical().to_numpy()
        return known[np.append(period[1:] != period[:-1], True)] if len(known) else known
    every = whole_number(
        every, "rebalance", 1, unit="bars", otherwise=f"one of {', '.join(map(repr, REBALANCES))}"
    )
    chosen, last = [], -(2**62)
    for position in known.tolist():
        if position - last >= every:
            chosen.append(position)
            last = position
    return np.array(chosen, np.int64)


def rebalances_per_year(decision: NDArray[np.int64], every: str | int, per_year: float) -> float:
    """Return the rebalancings a year: 52, 12, 4 for weeks, months, quarters; else bars a year over bars between."""
    step = float(np.median(np.diff(decision))) if len(decision) > 1 else 1.0
    counted = per_year / step
    named = _PER_YEAR.get(every) if isinstance(every, str) else None
    # A factor that is known less often than portfolios could be formed limits them.
    return named if named is not None and counted > named / 1.5 else counted
