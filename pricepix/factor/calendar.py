"""A market's calendar: its days and its times of day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import DAY_NS, format_times, to_series

__all__ = ["Calendar", "day_and_interval", "interval_names", "interval_times", "list_times"]

Times = NDArray[np.int64]


class Calendar(Protocol):
    """The times of a market's bars: of a panel, or of a market cache that has not been read."""

    @property
    def calendar(self) -> Times:
        """Distinct times, int64 nanoseconds, ascending."""
        ...

    @property
    def tz(self) -> str | None:
        """Zone of the market."""
        ...


def day_and_interval(time: Times, tz: str | None) -> tuple[Times, Times]:
    """Split times into the market's days (int64, since 1970) and times of day (int64, nanoseconds)."""
    if tz is None:
        wall = np.asarray(time, np.int64)
    else:
        wall = to_series(time, tz).dt.replace_time_zone(None).to_physical().to_numpy()
    day = np.floor_divide(wall, DAY_NS)
    return day, wall - day * DAY_NS


def interval_names(interval: Times) -> list[str]:
    """Write times of day as HH:MM, with seconds and fractions where any of them needs it."""
    names = []
    seconds = bool((interval % 60_000_000_000).any())
    fraction = bool((interval % 1_000_000_000).any())
    for ns in interval.tolist():
        s, rest = divmod(ns, 1_000_000_000)
        text = f"{s // 3600:02d}:{s // 60 % 60:02d}"
        text += f":{s % 60:02d}" if seconds or fraction else ""
        names.append(text + (f".{rest:09d}" if fraction else ""))
    return names


def interval_times(names: Sequence[str]) -> Times:
    """Read times of day as `interval_names` writes them, nanoseconds."""
    found = []
    for name in names:
        clock, _, fraction = name.partition(".")
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
        found.append(seconds * 1_000_000_000 + int(fraction or 0))
    return np.array(found, np.int64)


def list_times(time: Times, tz: str | None, limit: int = 5) -> str:
    """Write the first few of some times for a message, and how many more there are."""
    shown = ", ".join(format_times(time[:limit], tz, "%Y-%m-%d %H:%M:%S%.f"))
    return shown + (f" and {len(time) - limit:,} more" if len(time) > limit else "")
