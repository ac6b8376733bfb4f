"""Whether the bars of an evening are whole: instruments that are absent, steps that are missing, bars still forming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import BadBarsError, optional_module, printable
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS, duration_ns, to_series

__all__ = ["Feed", "check_feed"]

_SHOWN: Final = 5
# Where so many of the times follow each other by one step, on all days of the week, the market never closes.
_REGULAR: Final = 0.9
_WEEK: Final = 7


@dataclass(frozen=True)
class Feed:
    """The bars of an evening, as they may be used, and what was found in them."""

    panel: Panel
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """``instruments_expected``, ``instruments_present``, ``bars_forming``, ``steps_missing``."""


def check_feed(
    panel: Panel,
    *,
    now: int | None = None,
    step: str | None = None,
    stamp: str = "close",
    min_share: float = 0.9,
    partial: str = "stop",
    steps: str = "missing",
    exchange: str | None = None,
) -> Feed:
    """Check that the newest bars are whole, leave out those still forming, and fill steps that are missing.

    Parameters
    ----------
    panel : Panel
    now : int, optional
        The time, nanoseconds; without it no bar is taken to be still forming.
    step : str, optional
        From one bar to the next, ``"1h"`` or ``"1d"``; found by itself where the market never closes.
    stamp : {"close", "open"}
        Whether a bar's time is its end, or its beginning, as ccxt and most crypto exchanges write it.
    min_share : float
        Share of the instruments that had a bar at the time before that must have one at the last.
    partial : {"stop", "note"}
        What happens if fewer have.
    steps : {"missing", "note"}
        What happens to times of a market that never closes at which there is no bar, of one instrument or of all: a
        missing bar is put in, or they are only counted.
    exchange : str, optional
        Name of a calendar of the package exchange_calendars, whose sessions without a bar are noted.

    Raises
    ------
    BadBarsError
        Fewer instruments than `min_share`, with ``partial="stop"``; or no bar is left.
    """
    notes: list[str] = []
    counts = dict.fromkeys(
        ("instruments_expected", "instruments_present", "bars_forming", "steps_missing"), 0
    )
    length = _step_of(panel) if step is None else duration_ns(step, "step")
    if now is not None:
        panel = _without_forming(panel, now, length, stamp, notes, counts)
    if length is not None and (step is not None or _never_closes(panel, length)):
        panel = _with_steps(panel, length, steps, notes, counts)
    _check_present(panel, min_share, partial, notes, counts)
    if exchange is not None:
        _check_sessions(panel, exchange, notes)
    return Feed(panel, notes, counts)


def _step_of(panel: Panel) -> int | None:
    """Return the most frequent distance of neighbouring times, None for less than two times."""
    if len(panel.calendar) < 2:
        return None
    length, count = np.unique(np.diff(panel.calendar), return_counts=True)
    return int(length[np.argmax(count)])


def _never_closes(panel: Panel, length: int) -> bool:
    """Whether nearly all times follow each other by one step, weekends included."""
    calendar = panel.calendar
    if len(calendar) < _WEEK or calendar[-1] - calendar[0] < _WEEK * DAY_NS:
        return False
    whole = (calendar[-1] - calendar[0]) // length + 1
    # Days since 1970, a Thursday.
    weekdays = np.unique((np.unique(calendar // DAY_NS) + 3) % _WEEK)
    return bool(len(calendar) >= _REGULAR * whole and len(weekdays) == _WEEK)


def _without_forming(
    panel: Panel, now: int, length: int | None, stamp: str, notes: list[str], counts: dict[str, int]
) -> Panel:
    """Leave out bars that end after `now`."""
    begins = stamp == "open" and length is not None
    end = panel.time + (length if begins and length is not None else 0)
    forming = end > now
    counts["bars_forming"] = int(np.count_nonzero(forming))
    if not counts["bars_forming"]:
        return panel
    if forming.all():
        raise BadBarsError(
            f"all {len(panel):,} bars end after {panel.stamp(now)}: is the clock right, and are times in the "
            "market's zone?"
        )
    first = panel.stamp(int(panel.time[forming].min()))
    notes.append(
        f"{counts['bars_forming']:,} bars from {first} on had not ended at {panel.stamp(now)} and were left out"
    )
    return select_rows(panel, ~forming)


def select_rows(panel: Panel, kept: NDArray[np.bool_]) -> Panel:
    """Return a panel with some of the rows, and the instruments that have any."""
    length = np.add.reduceat(np.append(kept, False).astype(np.int64), panel.offsets[:-1])
    length[np.diff(panel.offsets) == 0] = 0
    some = length > 0
    return Panel(
        np.ascontiguousarray(panel.bars[kept]),
        np.concatenate([[0], np.cumsum(length[some])]).astype(np.int64),
        panel.instruments[some],
        np.ascontiguousarray(panel.time[kept]),
        panel.tz,
        {name: np.ascontiguousarray(values[kept]) for name, values in panel.fields.items()},
        panel.report,
    )


def _with_steps(panel: Panel, length: int, steps: str, notes: list[str], counts: dict[str, int]) -> Panel:
    """Put a missing bar at every step between an instrument's first and last bar at which it has none."""
    first, last = panel.offsets[:-1], panel.offsets[1:] - 1
    span = (panel.time[last] - panel.time[first]) // length + 1
    absent = int(span.sum()) - len(panel)
    counts["steps_missing"] = max(absent, 0)
    if absent <= 0:
        return panel
    offsets = np.concatenate([[0], np.cumsum(span)]).astype(np.int64)
    owner = np.repeat(np.arange(panel.n_instruments), span)
    place = np.arange(offsets[-1]) - offsets[owner]
    time = panel.time[first][owner] + place * length
    row_owner = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    shift = panel.time - panel.time[first][row_owner]
    if (shift % length).any():
        odd = int(panel.time[np.flatnonzero(shift % length)[0]])
        raise BadBarsError(
            f"the bar at {panel.stamp(odd)} does not stand a whole number of steps after its instrument's first: "
            "leave step out, or read the bars with the right step"
        )
    calendar = panel.calendar
    holes = int((calendar[-1] - calendar[0]) // length) + 1 - len(calendar)
    for_all = f", at {holes:,} times for all instruments," if holes else ""
    filled = " and were put in as missing bars" if steps == "missing" else ""
    notes.append(f"{absent:,} bars are missing{for_all} of a market that never closes{filled}")
    if steps != "missing":
        return panel
    target = offsets[row_owner] + shift // length
    bars = np.full((int(offsets[-1]), panel.bars.shape[1]), np.nan)
    bars[target] = panel.bars
    fields: dict[str, NDArray[Any]] = {}
    for name, values in panel.fields.items():
        whole = np.zeros(len(bars), bool) if values.dtype == np.bool_ else np.full(len(bars), np.nan)
        whole[target] = values
        fields[name] = whole
    return Panel(bars, offsets, panel.instruments, time.astype(np.int64), panel.tz, fields, panel.report)


def _check_present(
    panel: Panel, min_share: float, partial: str, notes: list[str], counts: dict[str, int]
) -> None:
    """Hold the instruments with a price at the last time against those with one at the time before."""
    calendar = panel.calendar
    priced = ~np.isnan(panel.bars[:, 3])
    ends = panel.offsets[1:] - 1

    def present(time: int) -> NDArray[np.bool_]:
        owner = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
        found = np.zeros(panel.n_instruments, bool)
        found[owner[(panel.time == time) & priced]] = True
        return found

    now = present(int(calendar[-1]))
    before = present(int(calendar[-2])) if len(calendar) > 1 else now
    counts["instruments_expected"] = int(np.count_nonzero(before))
    counts["instruments_present"] = int(np.count_nonzero(now))
    absent = np.flatnonzero(before & ~now)
    if not len(absent):
        return
    names = printable(", ".join(panel.instruments[absent[:_SHOWN]].tolist()), "")
    more = f" and {len(absent) - _SHOWN:,} more" if len(absent) > _SHOWN else ""
    text = (
        f"{counts['instruments_present']:,} of {counts['instruments_expected']:,} instruments have a bar for "
        f"{panel.stamp(int(panel.time[ends].max()))}; {names}{more} have none"
    )
    share = int(np.count_nonzero(before & now)) / max(int(np.count_nonzero(before)), 1)
    if share < min_share and partial == "stop":
        raise BadBarsError(
            f"{text}. That is less than min_share={min_share:g}: run the update again when the feed is whole, or let "
            "it pass with partial: note"
        )
    notes.append(text)


def _check_sessions(panel: Panel, exchange: str, notes: list[str]) -> None:
    """Note sessions of an exchange between the first and the last bar that have none."""
    calendars = optional_module("exchange_calendars", "calendars", f"exchange={exchange!r}")
    days = to_series(panel.calendar, panel.tz).dt.date().unique().sort()
    found = calendars.get_calendar(exchange, start=str(days[0]), end=str(days[-1]))
    sessions = {session.date() for session in found.sessions}
    lacking = sorted(sessions - set(days.to_list()))
    if lacking:
        shown = ", ".join(map(str, lacking[-_SHOWN:]))
        notes.append(f"{len(lacking):,} sessions of {exchange} have no bar, the last of them {shown}")


def feed_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that ``check_feed`` takes."""
    names = ("step", "stamp", "min_share", "partial", "steps", "exchange")
    return {name: settings[name] for name in names if name in settings}
