"""Splits of a replication: which windows train, which are tested, and in how many parts that is done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pricepix._checks import choice
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS, as_time, format_time
from pricepix.train.splits import RandomSplit, Split, TimeSplit, WalkForward, period_ends

__all__ = ["SPLITS", "Part", "parts_of", "splits_of"]

SPLITS: Final = {
    "paper": "The paper's split: train on the first part with a random 70/30 validation, test after it",
    "time": "Split by time: train on the first part, validate on its last 30%, test after it",
    "walk": "Walking forward: train on a stretch, test on the next, step on",
    "expanding": "Expanding: train on all before, test on the next stretch, step on",
}

_FIRST_TEST: Final = "2001-01-01"
"""The paper's first day of the test, where a panel holds years before and after it."""
_SHARE: Final = 0.3
"""Share of other panels that trains: about that of 1993 to 2000 in 1993 to 2019."""


@dataclass(frozen=True)
class Part:
    """One training and its test: a fold of a split."""

    name: str
    split: Split
    """Divides the windows before `first` into training and validation."""
    first: int
    """int64 nanoseconds: the first time that is tested. What is known only later does not train."""
    last: int
    begin: int
    """int64 nanoseconds: the first time that trains."""

    def describe(self) -> dict[str, Any]:
        """Return plain values that identify it."""
        shown = {"split": repr(self.split), "first": self.first, "last": self.last, "begin": self.begin}
        return {"name": self.name, **shown}


def splits_of(given: Any) -> dict[str, str | Split]:
    """Return splits by name: of one name or several, or of a mapping of names to ``pricepix.train`` splits."""
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, str):
        found = {given: given}
    elif isinstance(given, Iterable):
        found = {str(name): name for name in given}
    else:
        found = {type(given).__name__: given}
    for name, split in found.items():
        if isinstance(split, str):
            choice(split, "splits", SPLITS, "a mapping of names to RandomSplit, TimeSplit or WalkForward")
        if not name.isidentifier():
            raise ValueError(f"splits: {name!r} names a folder; give letters, digits and underscores")
    if not found:
        raise ValueError("splits is empty: give 'paper', 'time', 'walk' or 'expanding', or several of them")
    return found


def parts_of(split: str | Split, panel: Panel) -> list[Part]:
    """Return the parts of a split of a panel, in order of time.

    Raises
    ------
    ValueError
        The panel is too short for one part, or a split has no test to form portfolios in.
    """
    if isinstance(split, str):
        split = _named(split, panel)
    if isinstance(split, WalkForward):
        return _walk(split, panel)
    if not isinstance(split, RandomSplit | TimeSplit):
        raise ValueError(
            f"splits: {split!r} is a {type(split).__name__}; give a RandomSplit, TimeSplit or WalkForward"
        )
    if split.test is None:
        raise ValueError(f"splits: {split!r} has no test period to form portfolios in: give test=")
    start, end = period_ends(split.test)
    time, tz = panel.calendar, panel.tz
    first = int(time[0]) if start is None else as_time(start, tz)
    last = int(time[-1]) if end is None else as_time(end, tz, end=True)
    trained = (None, None) if split.train is None else period_ends(split.train)
    begin = int(time[0]) if trained[0] is None else as_time(trained[0], tz)
    return [Part("all", replace(split, test=None), first, last, begin)]


def _named(name: str, panel: Panel) -> Split:
    test = (_first_test(panel), None)
    if name == "paper":
        return RandomSplit(0.7, test=test)
    if name == "time":
        return TimeSplit(validation=0.3, test=test)
    time = panel.calendar
    days = int((as_time(test[0], panel.tz) - int(time[0])) // DAY_NS)
    left = int((int(time[-1]) - as_time(test[0], panel.tz)) // DAY_NS)
    step = "1y" if left >= 3 * 365 else f"{max(1, -(-left // 2))}d"
    return WalkForward(f"{max(days, 1)}d", step, expanding=name == "expanding")


def _first_test(panel: Panel) -> str:
    """The paper's first day of the test if the panel holds two years before it and after it; else after 30%."""
    time, at = panel.calendar, as_time(_FIRST_TEST, panel.tz)
    two_years = 730 * DAY_NS
    if int(time[0]) + two_years <= at <= int(time[-1]) - two_years:
        return _FIRST_TEST
    return format_time(int(time[min(len(time) - 1, int(_SHARE * len(time)))]), panel.tz)[:10]


def _walk(split: WalkForward, panel: Panel) -> list[Part]:
    """Folds as ``WalkForward`` makes them, each as a split of its own, so that they can be trained apart."""
    tz, time = panel.tz, panel.calendar
    begin = int(time[0]) if split.start is None else as_time(split.start, tz)
    final = int(time[-1]) if split.end is None else as_time(split.end, tz, end=True)
    parts = []
    for low, middle, high in split.stretches(_day(begin, tz), _day(final, tz)):
        first, last = as_time(middle, tz), min(as_time(high, tz) - 1, final)
        own = TimeSplit((low, middle - dt.timedelta(days=1)), split.validation, None, split.embargo)
        if not ((time >= first) & (time <= last)).any():
            break
        parts.append(Part(str(middle), own, first, last, as_time(low, tz)))
    if not parts:
        raise ValueError(
            f"no fold fits: the bars run from {format_time(int(time[0]), tz)} to {format_time(int(time[-1]), tz)}, "
            f"less than train={split.train!r}; choose shorter stretches"
        )
    return parts


def _day(ns: int, tz: str | None) -> dt.date:
    return dt.date.fromisoformat(format_time(int(np.int64(ns)), tz)[:10])
