"""At which bars windows may end: every bar, every n-th, or the last of each day, week, month or quarter."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, whole_number
from pricepix.bars.panel import Panel
from pricepix.bars.times import to_series

SCHEDULES: Final = ("bar", "day", "week", "month", "quarter")

_PERIODS: Final = {"day": "1d", "week": "1w", "month": "1mo", "quarter": "1q"}


def scheduled_times(panel: Panel, every: str | int) -> NDArray[np.bool_]:
    """One flag a time of the calendar, or nothing for all of them."""
    if every == "bar":
        return np.zeros(0, np.bool_)
    calendar = panel.calendar
    if isinstance(every, str):
        choice(every, "every", SCHEDULES, "a number of bars")
        # By the clock on the wall: a zone may skip midnight, at which a zoned day would have to begin.
        wall = to_series(calendar, panel.tz).dt.replace_time_zone(None)
        period = wall.dt.truncate(_PERIODS[every])
        changes = (period.slice(1) != period.slice(0, len(period) - 1)).to_numpy()
        return np.append(changes, True)
    step = whole_number(every, "every", 1, unit="bars", otherwise=f"one of {', '.join(map(repr, SCHEDULES))}")
    return np.arange(1, len(calendar) + 1) % min(step, len(calendar) + 1) == 0
