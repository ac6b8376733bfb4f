"""Universes of survivors: too few names end before the panel does."""

from __future__ import annotations

from math import exp, lgamma, log
from typing import Final

import numpy as np

from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS
from pricepix.workflow.audit.report import Check

__all__ = ["check_survivors"]

_YEAR_NS: Final = 365.25 * DAY_NS
_SILENT: Final = 30 * DAY_NS
"""A name without a price for so long at the end of the panel has ended; halts are shorter, most of them."""
_CHANCE: Final = 0.01


def check_survivors(panel: Panel, delisting_rate: float | None, dates: str) -> Check:
    """Compare the names that end before the panel does with those of a market that loses `delisting_rate` a year.

    Ends are counted over the panel and over its first half, since a list of names that was drawn up late has none
    there.

    Parameters
    ----------
    panel : Panel
    delisting_rate : float or None
        None for a market in which nothing ends.
    dates : str
        The panel's time, for the table.
    """
    check = Check(
        "survivors",
        dates,
        "some of the ended names being left out, or names chosen by their later prices",
    )
    if delisting_rate is None:
        check.seen, check.known = "not asked for: in this market nothing ends", False
        return check
    priced = ~np.isnan(panel.bars[:, 3])
    code = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))[priced]
    time = panel.time[priced]
    if not len(time):
        check.seen, check.known = "no bar has a price", False
        return check
    named, begin = np.unique(code, return_index=True)
    born = time[begin]
    last = time[np.append(begin[1:], len(code)) - 1]
    start, stop = int(time.min()), int(time.max()) - _SILENT
    periods = {"": stop, "the first half of ": start + (stop - start) // 2}
    seen = []
    for name, until in periods.items():
        # Years first: the nanoseconds of 300 listings of a year exceed an int64.
        years = float(((np.minimum(last, until) - np.minimum(born, until)) / _YEAR_NS).sum())
        ended = int((last < until).sum())
        expected = years * delisting_rate
        chance = _at_most(ended, expected)
        if chance <= _CHANCE / len(periods):
            check.problems.append(
                f"{ended:,} of {len(named):,} names end in {name}the panel, where {expected:.1f} would at "
                f"{delisting_rate:.1%} a year: the universe may hold only those that survived"
            )
        seen.append(
            f"{ended:,} of {len(named):,} names end in {name}the panel, {expected:.1f} at the least expected"
        )
    check.seen = "; ".join(seen)
    if _at_most(0, (stop - start) / _YEAR_NS * len(named) * delisting_rate) > _CHANCE / len(periods):
        check.known = False
        check.seen += ": too few years of listing to tell"
    return check


def _at_most(n: int, mean: float) -> float:
    """Chance that a Poisson variable is `n` or less."""
    if mean <= 0:
        return 1.0
    # In logarithms: powers of a large mean exceed a float64.
    return min(1.0, sum(exp(k * log(mean) - mean - lgamma(k + 1)) for k in range(n + 1)))
