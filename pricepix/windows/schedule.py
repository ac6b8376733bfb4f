"""At which bars windows may end: every bar, every n-th, or the last of each day, week, month or quarter."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, fraction, optional_module, whole_number
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS, as_time, to_series
from pricepix.windows import kernels

SCHEDULES: Final = ("bar", "day", "week", "month", "quarter")

PERIODS: Final = SCHEDULES[1:]

PERIOD_END_SHARE: Final = 0.5
"""Of the instruments with a row in a period, the share that must have one at its end, by default."""

_LENGTHS: Final = {"day": "1d", "week": "1w", "month": "1mo", "quarter": "1q"}

# Weekdays are read off a calendar of two weeks or more; in a shorter one Monday to Friday are expected too.
_SHORT_CALENDAR: Final = 10
_MONDAY_TO_FRIDAY: Final = (0, 1, 2, 3, 4)
# The longest period, and the longest holidays of an exchange after it.
_DAYS_AHEAD: Final = 120


@dataclass(frozen=True)
class Periods:
    """How the ends of days, weeks, months and quarters are found in a panel.

    Parameters
    ----------
    share : float
        A period ends at its last time at which at least this share of the instruments with a row in the period
        have one; if there is no such time, at the last of those at which most have one. So a stray row of one
        instrument does not move the end of all.
    exchange : str, optional
        Name of a calendar of the package exchange_calendars (``"XNYS"``), which tells when the last period is
        over. Without it, the panel's own weekdays tell: those on which it has at least half as many dates as on
        its most frequent one. A holiday at the end of a period then delays its end until the next one begins.
    complete : bool
        Whether the panel's last period is over whatever the calendar says, as in a data set that is finished.
    asof : str, date, datetime or int, optional
        The time up to which the panel holds all bars that there were, in its zone; a date means the end of that
        day. Days from the last bar on that are over by then had none, so that a period is over whose remaining
        days they were, such as a week before Good Friday. A time before the last bar says nothing.

    Notes
    -----
    The last period is over if a later date begins the next one: once the panel's last date is the period's last
    trading day, and its time of day is not earlier than that at which the panel's days usually end. Where
    each period has one time, as weekly bars have for weeks, that is its end.
    """

    share: float = PERIOD_END_SHARE
    exchange: str | None = None
    complete: bool = False
    asof: str | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", fraction(self.share, "share"))
        if not isinstance(self.complete, bool | np.bool_):
            raise TypeError(f"complete={self.complete!r}: give True or False")
        if self.exchange is not None and not isinstance(self.exchange, str):
            raise TypeError(f"exchange={self.exchange!r}: give the name of a calendar, such as 'XNYS'")
        if isinstance(self.asof, bool | np.bool_):
            raise TypeError(f"asof={self.asof!r}: give the time up to which all bars are there")
        if self.asof is not None:
            # As stores keep it.
            kept = int(self.asof) if hasattr(self.asof, "__index__") else str(self.asof)
            object.__setattr__(self, "asof", kept)

    @classmethod
    def of(cls, periods: Periods | Mapping[str, Any] | None) -> Periods:
        """Return periods as they are, or from a mapping of their parameters; None gives the defaults."""
        if isinstance(periods, cls):
            return periods
        try:
            return cls(**(periods or {}))  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(
                f"periods={periods!r}: give Periods(share=..., exchange=..., complete=..., asof=...), or a mapping of "
                f"these ({error})"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        return asdict(self)


class Schedule(NamedTuple):
    """The times of a calendar at which windows may end; kernels take it whole."""

    end: NDArray[np.bool_]
    """bool (times,): whether windows may end at a time; empty if they may at all."""
    period: NDArray[np.int32]
    """int32 (times,): the number of each time's period, ascending; empty if the schedule has no periods."""
    last_end: NDArray[np.int64]
    """int64 (periods,): position in the calendar of each period's end."""
    open_period: int = -1
    """Number of the last period if it is not known to be over: no window ends in it. Else -1."""


def find_schedule(
    panel: Panel, every: str | int, periods: Periods = Periods(), *, times: int | None = None
) -> Schedule:
    """Return the times of a panel's calendar at which windows may end.

    Parameters
    ----------
    panel : Panel
    every : {"bar", "day", "week", "month", "quarter"} or int
        See ``WindowIndex.from_panel``.
    periods : Periods
    times : int, optional
        Only the first times of the calendar, as if the panel ended there; all by default.
    """
    n = len(panel.calendar) if times is None else times
    nothing = np.zeros(0, np.int32), np.zeros(0, np.int64)
    if every == "bar":
        return Schedule(np.zeros(0, np.bool_), *nothing)
    if not isinstance(every, str):
        step = whole_number(
            every, "every", 1, unit="bars", otherwise=f"one of {', '.join(map(repr, SCHEDULES))}"
        )
        return Schedule(np.arange(1, n + 1) % min(step, n + 1) == 0, *nothing)
    choice(every, "every", SCHEDULES, "a number of bars")
    return period_schedule(
        panel.calendar[:n], panel.tz, every, *count_by_period(panel, every, times=n), periods
    )


def count_by_period(
    panel: Panel, every: str, *, times: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the periods of a panel's times, and its instruments with a row at each time and in each period.

    Of the first `times` of the calendar, or of all: the first three arguments of `may_end`.
    """
    calendar = panel.calendar[:times]
    period = number_periods(calendar, panel.tz, every)
    rows = np.zeros(len(calendar), np.int64)
    instruments = np.zeros(int(period[-1]) + 1 if len(period) else 0, np.int64)
    kernels.count_by_period(panel.time_code, panel.offsets, period, rows, instruments)
    return period, rows, instruments


def period_schedule(
    calendar: NDArray[np.int64],
    tz: str | None,
    every: str,
    period: NDArray[np.int32],
    rows: NDArray[np.int64],
    instruments: NDArray[np.int64],
    periods: Periods,
) -> Schedule:
    """Return the ends of a calendar's periods.

    Parameters
    ----------
    calendar, tz
        Times, ascending, and their zone.
    every : {"day", "week", "month", "quarter"}
    period : numpy.ndarray, int32 (times,)
        Of `number_periods`.
    rows : numpy.ndarray, int64 (times,)
        Instruments with a row at each time.
    instruments : numpy.ndarray, int64 (periods,)
        Instruments with a row in each period.
    periods : Periods
    """
    last_end = last_times(period, may_end(period, rows, instruments, periods.share))
    end = np.zeros(len(calendar), np.bool_)
    end[last_end] = True
    open_period = -1
    shared = rows >= periods.share * instruments[period]
    if len(calendar) and not last_period_is_over(calendar, tz, every, periods, shared):
        open_period = int(period[-1])
        end[last_end[-1]] = False
    return Schedule(end, period, last_end, open_period)


def number_periods(calendar: NDArray[np.int64], tz: str | None, every: str) -> NDArray[np.int32]:
    """Return the number of the day, week, month or quarter in which each time lies, ascending from 0."""
    # By the clock on the wall: a zone may skip midnight, at which a zoned day would have to begin.
    start = to_series(calendar, tz).dt.replace_time_zone(None).dt.truncate(_LENGTHS[every])
    changes = (start.slice(1) != start.slice(0, max(len(start) - 1, 0))).to_numpy()
    return np.concatenate([[0], np.cumsum(changes)]).astype(np.int32)[: len(calendar)]


def may_end(
    period: NDArray[np.int32], rows: NDArray[np.int64], instruments: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Return the times at which enough instruments have a row for a period to end there, bool (times,).

    The one rule for windows and for portfolios. It looks at no row after the period, so that an end that has been
    found stays.

    Parameters
    ----------
    period : numpy.ndarray, int32 (times,)
        Of `number_periods`.
    rows : numpy.ndarray, int64 (times,)
        Instruments with a row at each time.
    instruments : numpy.ndarray, int64 (periods,)
        Instruments with a row in each period.
    share : float
        Of a period's instruments, how many must have a row. In a period in which they never do, it may end where
        most have one.
    """
    if not len(period):
        return np.zeros(0, np.bool_)
    starts = np.flatnonzero(np.diff(period, prepend=-1))
    shared = rows >= share * instruments[period]
    most = np.maximum.reduceat(rows, starts)[period]
    any_shared = np.logical_or.reduceat(shared, starts)[period]
    return np.asarray(np.where(any_shared, shared, rows == most))


def last_times(period: NDArray[np.int32], candidate: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the position of the last time of each period that is a `candidate`, int64 (periods,)."""
    if not len(period):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.diff(period, prepend=-1))
    return np.maximum.reduceat(np.where(candidate, np.arange(len(period)), -1), starts)


def last_period_is_over(
    calendar: NDArray[np.int64], tz: str | None, every: str, periods: Periods, shared: NDArray[np.bool_]
) -> bool:
    """Return whether the period of a calendar's last time is known to be over; see `Periods`.

    `shared`, bool (times,), tells at which times enough instruments have a row: only these show on which
    weekdays a market trades.
    """
    period = number_periods(calendar, tz, every)
    if periods.complete or (period[-1] >= 2 and len(period) == period[-1] + 1):
        return True
    wall = _wall_clock(calendar, tz)
    day = wall // DAY_NS
    today = int(day[-1])
    # Days before this one are known in full.
    known = today
    if periods.asof is not None:
        asof = as_time(periods.asof, tz, end=True)
        known = max(today, int(_wall_clock(np.array([asof + 1]), tz)[0] // DAY_NS))
    ahead = np.arange(known, known + _DAYS_AHEAD)
    ahead = ahead[_same_period(ahead, today, every)]
    if every == "day":
        pass
    elif periods.exchange is not None:
        ahead = np.intersect1d(ahead, _sessions(periods.exchange, today))
    else:
        ahead = ahead[np.isin((ahead + 3) % 7, _weekdays(day[shared]))]
    if not len(ahead) or ahead[-1] != today:
        return not len(ahead)
    # The period's last trading day is the one of the last bar: is that day over?
    ends = np.append(day[1:] != day[:-1], True)
    clock, count = np.unique((wall % DAY_NS)[ends], return_counts=True)
    return bool(wall[-1] % DAY_NS >= clock[count.argmax()])


def _wall_clock(time: NDArray[np.int64], tz: str | None) -> NDArray[np.int64]:
    """Return times by the clock on the wall, in nanoseconds since 1970."""
    return np.asarray(to_series(time, tz).dt.replace_time_zone(None).to_physical().to_numpy())


def _same_period(days: NDArray[np.int64], today: int, every: str) -> NDArray[np.bool_]:
    """Whether days, counted from 1970, lie in the period of `today`."""
    start = to_series(np.append(days, today) * DAY_NS, None).dt.truncate(_LENGTHS[every])
    return np.asarray((start == start[-1]).to_numpy()[:-1])


def _weekdays(day: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weekdays, 0 for Monday, on which a market trades, by its days counted from 1970 (a Thursday)."""
    days = np.unique(day)
    count = np.bincount((days + 3) % 7, minlength=7)
    own = np.flatnonzero(2 * count >= max(int(count.max()), 1))
    return np.union1d(own, _MONDAY_TO_FRIDAY) if len(days) < _SHORT_CALENDAR else own


@functools.lru_cache(maxsize=8)
def _sessions(exchange: str, today: int) -> NDArray[np.int64]:
    """Days from one on at which an exchange is open, counted from 1970."""
    calendars = optional_module("exchange_calendars", "calendars", "exchange=")
    first, last = (str(np.datetime64(today + n, "D")) for n in (-_DAYS_AHEAD, _DAYS_AHEAD))
    # That package's use of deprecated parts of pandas is between the two.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sessions = calendars.get_calendar(exchange, start=first, end=last).sessions
        except (calendars.errors.InvalidCalendarName, ValueError) as error:
            raise ValueError(
                f"exchange={exchange!r}: the package exchange_calendars has no such calendar from {first} to "
                f"{last} ({error}); give another name, such as 'XNYS', or leave it out"
            ) from error
    return np.asarray(sessions.to_numpy().astype("datetime64[D]").astype(np.int64))
