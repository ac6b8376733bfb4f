"""Trading hours: which bars a day of a market has."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import DAY_NS, MINUTE_NS, check_zone, duration_ns

_NAMED: Final = ("ashare", "us", "24h")


@dataclass(frozen=True)
class Session:
    """The trading hours of a market, in its wall-clock time.

    Parameters
    ----------
    periods : tuple of (str, str)
        Opening and closing times of each trading period of a day, ``"09:30"``, in order; a lunch break lies
        between two. None for a market that never closes, whose days run from midnight to midnight.
    tz : str, optional
        Zone of that clock.
    auction : str, optional
        When the opening auction of the first period starts. Trades from then to the open have a bar of their
        own, stamped with the open.

    Examples
    --------
    >>> stamps = Session.of("ashare").stamps("5min")
    >>> len(stamps), stamps[0], stamps[24], stamps[25], stamps[-1]
    (49, '09:30', '11:30', '13:05', '15:00')
    >>> Session.of("ashare").stamps("30min")
    ['09:30', '10:00', '10:30', '11:00', '11:30', '13:30', '14:00', '14:30', '15:00']
    """

    periods: tuple[tuple[str, str], ...] | None
    tz: str | None = None
    auction: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "tz", check_zone(self.tz))
        if self.periods is None:
            if self.auction is not None:
                raise ValueError(
                    f"auction={self.auction!r}: a market that never closes has no opening auction"
                )
            return
        periods = tuple(tuple(period) for period in self.periods)
        if not periods or any(len(period) != 2 for period in periods):
            raise ValueError(
                f"periods={self.periods!r}: give (open, close) pairs such as (('09:30', '16:00'),)"
            )
        put(self, "periods", periods)
        edges = [clock(edge) for period in periods for edge in period]
        if any(b <= a for a, b in itertools.pairwise(edges)):
            raise ValueError(
                f"periods={self.periods!r}: opening and closing times must ascend through the day; a session "
                "over midnight needs tz to be a zone in which it does not"
            )
        if self.auction is not None and clock(self.auction) >= edges[0]:
            raise ValueError(f"auction={self.auction!r} must start before the open, {periods[0][0]!r}")

    @classmethod
    def of(cls, session: Session | str | Sequence[Any] | None) -> Session:
        """Return a session by name, by its periods, or as it is.

        Parameters
        ----------
        session : Session, str, sequence of (str, str) or None
            ``"ashare"`` (09:30 to 11:30 and 13:00 to 15:00 with the opening auction, Asia/Shanghai), ``"us"``
            (09:30 to 16:00, America/New_York), ``"24h"`` or None; any other name is looked up in the package
            exchange_calendars (``"XHKG"``), for its present regular hours.

        Raises
        ------
        ValueError
            Unknown name.
        ImportError
            The name is not one of these and exchange_calendars is not installed.
        """
        if isinstance(session, Session):
            return session
        if session is None or session == "24h":
            return cls(None)
        if session == "ashare":
            return cls((("09:30", "11:30"), ("13:00", "15:00")), "Asia/Shanghai", "09:15")
        if session == "us":
            return cls((("09:30", "16:00"),), "America/New_York")
        if isinstance(session, str):
            return cls._of_exchange(session)
        return cls(tuple((period[0], period[1]) for period in session))

    @classmethod
    def _of_exchange(cls, name: str) -> Session:
        try:
            import exchange_calendars as calendars  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise ImportError(
                f"session {name!r} is none of {', '.join(_NAMED)}; names of exchanges need the package "
                "exchange_calendars: pip install exchange_calendars"
            ) from error
        try:
            # What that package does with deprecated parts of pandas is between the two.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                calendar = calendars.get_calendar(name)
        except calendars.errors.InvalidCalendarName:
            raise ValueError(
                f"session {name!r} is neither one of {', '.join(_NAMED)} nor a calendar of "
                "exchange_calendars (such as 'XNYS', 'XHKG', 'XSHG')"
            ) from None
        opens, closes = calendar.open_times[-1][1], calendar.close_times[-1][1]
        start, end = opens.strftime("%H:%M"), closes.strftime("%H:%M")
        tz = str(calendar.tz.key)
        if (start, end) in (("00:00", "00:00"), ("00:00", "23:59")):
            return cls(None, tz)
        if calendar.break_start_times:
            lunch = (calendar.break_start_times[-1][1], calendar.break_end_times[-1][1])
            a, b = (edge.strftime("%H:%M") for edge in lunch)
            return cls(((start, a), (b, end)), tz)
        return cls(((start, end),), tz)

    def edges(self, every: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return start and end of each bar of a day, int64 nanoseconds after midnight.

        Bars are counted from each period's open; the last of a period ends with it, however short. The
        auction's bar comes first and ends at the open.
        """
        step = duration_ns(every)
        if step <= 0 or step > DAY_NS or (self.periods is None and DAY_NS % step):
            raise ValueError(
                f"every={every!r}: a bar must be longer than nothing, at most a day, and where the market "
                "never closes a whole fraction of a day, such as '5min', '4h' or '1d'"
            )
        starts: list[int] = []
        ends: list[int] = []
        if self.periods is None:
            starts = list(range(0, DAY_NS, step))
            ends = [a + step for a in starts]
        elif step == DAY_NS:
            # Daily bars hold the auction and the hours on both sides of lunch.
            return np.array([clock(self.auction or self.periods[0][0])]), np.array(
                [clock(self.periods[-1][1])]
            )
        else:
            if self.auction is not None:
                starts.append(clock(self.auction))
                ends.append(clock(self.periods[0][0]))
            for period in self.periods:
                first, last = clock(period[0]), clock(period[1])
                starts += range(first, last, step)
                ends += [min(a + step, last) for a in range(first, last, step)]
        return np.array(starts, np.int64), np.array(ends, np.int64)

    def stamps(self, every: Any) -> list[str]:
        """Return the times of day at which the bars of a day end, ``"09:35"``."""
        return [clock_text(int(end)) for end in self.edges(every)[1]]


def clock(text: Any) -> int:
    """Return a time of day, ``"09:30"`` or ``"24:00"``, as nanoseconds after midnight."""
    parts = str(text).split(":")
    if len(parts) in (2, 3) and all(part.isdigit() and len(part) <= 2 for part in parts):
        hour, minute, second = (int(part) for part in (*parts, "0")[:3])
        if (hour < 24 and minute < 60 and second < 60) or (hour, minute, second) == (24, 0, 0):
            return (hour * 60 + minute) * MINUTE_NS + second * 1_000_000_000
    raise ValueError(f"{text!r} is not a time of day: give one such as '09:30'")


def clock_text(ns: int) -> str:
    """Return nanoseconds after midnight as ``HH:MM``, with seconds where there are any."""
    seconds = ns // 1_000_000_000
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"
    return text + (f":{seconds % 60:02d}" if seconds % 60 else "")
