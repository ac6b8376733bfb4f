"""Where the values of a cache stand: none earlier than its window's bar, and none without a window."""

from __future__ import annotations

import numpy as np

from pricepix.bars.panel import Panel
from pricepix.factor.cache import FactorCache
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME
from pricepix.workflow.audit.report import Check

__all__ = ["check_placement"]


def check_placement(
    cache: FactorCache, store: ImageSet, panel: Panel, last: int, dates: str
) -> tuple[Check, int]:
    """Check that every value up to a date stands `shift` bars after a window, or later, by the panel's calendar.

    Parameters
    ----------
    cache : FactorCache
    store : ImageSet
    panel : Panel
    last : int
        Windows up to this time are looked at.
    dates : str
        For the table.

    Returns
    -------
    check : Check
    placed : int
        Values that were looked at.
    """
    check = Check("places", dates, "a trade that is made before the bar at which the cache has its value")
    if cache.shift < 0:
        check.problems.append(f"the cache's shift is {cache.shift}: values stand before their images end")
    own = np.sort(cache.time[cache.time != NO_TIME])
    if not np.isin(own, panel.calendar).all():
        check.problems.append("the cache has values at times that are not in the panel's calendar")
    until = min(int(np.searchsorted(own, last, side="right")) - 1 + cache.shift, len(own) - 1)
    _, matrix = cache.matrix(last=int(own[max(until, 0)]))
    placed = int(np.count_nonzero(~np.isnan(matrix)))
    values = cache.of_windows(store)
    scored = np.flatnonzero(~np.isnan(values) & (store.time <= last))
    if placed != len(scored):
        check.problems.append(
            f"the cache holds {placed:,} values up to the date, but {len(scored):,} windows have one there"
        )
    # By the panel's calendar, which has every bar of the market: a cache that was made without a panel knows only its
    # windows' times, and moves values on by more.
    source = np.searchsorted(panel.calendar, store.time[scored])
    at = np.searchsorted(own, store.time[scored]) + cache.shift
    stands = np.searchsorted(panel.calendar, own[np.clip(at, 0, len(own) - 1)])
    early = stands < source + max(cache.shift, 0)
    if early.any():
        check.problems.append(
            f"{int(early.sum()):,} of {len(early):,} values stand earlier than their windows end"
        )
    check.seen = f"{placed:,} values stand {cache.shift} bars after a window"
    return check, placed
