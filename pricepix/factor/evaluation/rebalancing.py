"""At which bars portfolios are formed, and how many bars and periods a year has."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, whole_number
from pricepix.bars.times import DAY_NS, to_series
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
    return (365.0 if _trades_weekends(days) else 252.0) * float(np.median(count))


def rebalances(
    known: Times,
    time: Times,
    tz: str | None,
    every: str | int,
    horizon: int,
    thin: NDArray[np.bool_] | None = None,
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
        market's zone; or those at least `horizon`, or so many, bars apart. A period that is not over, because the
        factor or the calendar ends within it, has no last bar.
    thin : numpy.ndarray, bool (bars,), optional
        Bars at which too few instruments trade for a period to end: a stray row is not the end of a month.

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
        return _period_ends(known, time, tz, every, thin)
    every = whole_number(
        every, "rebalance", 1, unit="bars", otherwise=f"one of {', '.join(map(repr, REBALANCES))}"
    )
    chosen, last = [], -(2**62)
    for position in known.tolist():
        if position - last >= every:
            chosen.append(position)
            last = position
    return np.array(chosen, np.int64)


def _period_ends(
    known: Times, time: Times, tz: str | None, every: str, thin: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Return the last known bar of each period that is over."""
    full = np.ones(len(time), bool) if thin is None else ~thin
    gap = float(np.median(np.diff(known))) if len(known) > 1 else 1.0
    known = known[full[known]]
    if not len(known):
        return known
    period = to_series(time, tz).dt.truncate(_PERIODS[every]).to_physical().to_numpy()
    ends = known[np.append(period[known[1:]] != period[known[:-1]], True)]
    last = int(ends[-1])
    later = np.flatnonzero(full & (period == period[last]))[-1] - last
    # Where the factor is known once a week, a month may well continue for some days after its last value.
    cut = later > 0 and later >= gap
    open_ = period[last] == period[-1] and not _is_over(time, tz, every)
    return ends[:-1] if cut or open_ else ends


def period_ends(time: Times, tz: str | None, every: str, thin: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions of the last bar of every period of a calendar, the last one included, over or not."""
    full = np.flatnonzero(~thin)
    period = to_series(time[full], tz).dt.truncate(_PERIODS[every]).to_physical().to_numpy()
    return full[np.append(period[1:] != period[:-1], True)] if len(full) else full


def month_ends(time: Times, tz: str | None, thin: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions of the last bar of every month that a later one follows."""
    return period_ends(time, tz, "month", thin)[:-1]


def closes_month(time: Times, tz: str | None) -> NDArray[np.bool_]:
    """Return which bars close a month by the days of the week: the next trading day is in the next month.

    Of bars within the day none does, since how many follow is not known.
    """
    day, _ = day_and_interval(time, tz)
    following = day + 1
    if not _trades_weekends(np.unique(day)):
        weekday = (following + 3) % 7
        following = following + np.where(weekday >= 5, 7 - weekday, 0)
    months = [x.astype("datetime64[D]").astype("datetime64[M]") for x in (day, following)]
    single = len(np.unique(day)) == len(day)
    return np.asarray((months[0] != months[1]) & single)


def _is_over(time: Times, tz: str | None, every: str) -> bool:
    """Return whether the calendar's last period is over: its next day belongs to another one."""
    if every == "day":
        return True
    day = np.unique(day_and_interval(time, tz)[0])
    following = day[-1] + 1
    while not _trades_weekends(day) and (following + 3) % 7 >= 5:
        following += 1
    days = to_series(np.array([day[-1], following]) * DAY_NS, None).dt.truncate(_PERIODS[every])
    return bool(days[0] != days[1])


def _trades_weekends(day: NDArray[np.int64]) -> bool:
    # 1970-01-01 was a Thursday: weekdays counted from Monday.
    return float(((day + 3) % 7 >= 5).mean()) > 0.2


def rebalances_per_year(decision: NDArray[np.int64], every: str | int, per_year: float) -> float:
    """Return the rebalancings a year: 52, 12, 4 for weeks, months, quarters; else bars a year over bars between."""
    step = float(np.median(np.diff(decision))) if len(decision) > 1 else 1.0
    counted = per_year / step
    named = _PER_YEAR.get(every) if isinstance(every, str) else None
    # A factor that is known less often than portfolios could be formed limits them.
    return named if named is not None and counted > named / 1.5 else counted
