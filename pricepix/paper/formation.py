"""When portfolios are formed and sold, and what deciles of a signal earn: by the authors' definitions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.factor.evaluation.evaluator import default_rebalance
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.paper import PAPER_PER_MONTH, paper_portfolios
from pricepix.factor.evaluation.rebalancing import bars_per_year, period_ends
from pricepix.windows.schedule import PERIOD_END_SHARE, count_by_period, may_end

__all__ = ["DECILES", "Decile", "Formation", "deciles", "formation_times", "period_of"]

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

DECILES: Final = 10
_PER_YEAR: Final = {"week": 52.0, "month": 12.0, "quarter": 4.0}


def period_of(panel: Panel, horizon: int) -> str:
    """Return the week, month or quarter that a horizon stands for, else ``"horizon"``."""
    return default_rebalance(horizon, bars_per_year(panel.calendar, panel.tz))


def formation_times(panel: Panel, horizon: int) -> Positions:
    """Positions along a panel's calendar at which portfolios of a horizon are formed or sold, int64.

    The ends of weeks, months or quarters, by the rule of windows and evaluations; every `horizon` bars for other
    horizons.
    """
    period, time = period_of(panel, horizon), panel.calendar
    if period == "horizon":
        return np.arange(0, len(time), horizon, dtype=np.int64)
    thin = ~may_end(*count_by_period(panel, period), PERIOD_END_SHARE)
    return period_ends(time, panel.tz, period, thin)


@dataclass(frozen=True)
class Formation:
    """At which bars portfolios of a horizon are formed, and when each of them is sold.

    Attributes
    ----------
    period : str
        ``week``, ``month``, ``quarter`` or ``horizon``.
    decision, entry, leave : numpy.ndarray, int64 (periods,)
        Positions along the calendar.
    per_year, per_month : float
        Periods a year, by which returns are annualised, and a month, by which turnover is.
    """

    period: str
    decision: Positions
    entry: Positions
    leave: Positions
    per_year: float
    per_month: float

    @classmethod
    def of(
        cls,
        panel: Panel,
        horizon: int,
        delay: int,
        tested: Sequence[tuple[int, int]],
        start: int | None = None,
    ) -> Formation:
        """Find the formations of a horizon within periods of time.

        Parameters
        ----------
        panel : Panel
        horizon, delay : int
            Bars.
        tested : sequence of (int, int)
            First and last times, int64 nanoseconds, at which portfolios may be formed.
        start : int, optional
            Not before this time.
        """
        period, ends = period_of(panel, horizon), formation_times(panel, horizon)
        ends = ends[ends + delay < len(panel.calendar)]
        decision, following = ends[:-1], ends[1:]
        time = panel.calendar[decision]
        inside = np.zeros(len(decision), bool)
        for first, last in tested:
            inside |= (time >= first) & (time <= last)
        if start is not None:
            inside &= time >= start
        per_year = _PER_YEAR.get(period) or bars_per_year(panel.calendar, panel.tz) / horizon
        per_month = PAPER_PER_MONTH.get(period, per_year / 12.0)
        decision, leave = decision[inside], following[inside] + delay
        return cls(period, decision, decision + delay, leave, per_year, per_month)

    def __len__(self) -> int:
        return len(self.decision)

    def among(self, kept: NDArray[np.bool_]) -> Formation:
        """Return some of the formations."""
        return Formation(
            self.period,
            self.decision[kept],
            self.entry[kept],
            self.leave[kept],
            self.per_year,
            self.per_month,
        )

    def returns(self, market: Market) -> Floats:
        """Returns from entry to sale, float64 (periods, instruments).

        NaN without a bar at both, or where they lie across a total return that is missing and not to be bridged.
        """
        return self.parts(market, ())[0]

    def parts(self, market: Market, cuts: Sequence[int]) -> list[Floats]:
        """The same from entry to sale, cut into stretches at so many bars after the entry.

        An instrument counts in every stretch if it has a return over all of them.
        """
        there = (market.row[self.entry] >= 0) & (market.row[self.leave] >= 0)
        if market.breaks is not None:
            there &= market.breaks[self.leave] == market.breaks[self.entry]
        bounds = [self.entry, *(np.minimum(self.entry + cut, self.leave) for cut in cuts), self.leave]
        with np.errstate(invalid="ignore", divide="ignore"):
            there &= np.isfinite(market.level[self.leave] / market.level[self.entry])
            return [
                np.where(there, market.level[b] / market.level[a] - 1.0, np.nan)
                for a, b in itertools.pairwise(bounds)
            ]


class Decile(NamedTuple):
    """A portfolio's returns a period: mean and Sharpe ratio a year, the series itself, and the periods a year."""

    mean: float
    sharpe: float
    series: Floats
    per_year: float

    @property
    def mean_error(self) -> float:
        """Standard error of the mean a year, of periods that are independent; NaN with fewer than 2."""
        n = len(self.series)
        return float(self.series.std(ddof=1)) / float(np.sqrt(n)) * self.per_year if n > 1 else float("nan")

    @property
    def sharpe_error(self) -> float:
        """Standard error of the Sharpe ratio a year after Lo (2002), for independent periods; NaN where it is."""
        n = len(self.series)
        if n < 2 or np.isnan(self.sharpe):
            return float("nan")
        return float(np.sqrt((self.per_year + 0.5 * self.sharpe**2) / n))


def deciles(
    formation: Formation,
    signal: Floats,
    returns: Floats,
    cap: Floats | None = None,
    by_value: bool = False,
) -> tuple[list[Decile], float]:
    """Form decile portfolios of a signal and hold them to the next formation.

    Parameters
    ----------
    formation : Formation
    signal, returns : numpy.ndarray, float64 (periods, instruments)
    cap : numpy.ndarray, float64 (periods, instruments), optional
        Market caps at formation: names without one are left out of both weightings, as the authors do.
    by_value : bool
        Weigh by `cap`, else equally.

    Returns
    -------
    list of Decile
        The lowest to the highest, and the highest less the lowest: mean a year, and mean over standard deviation
        (n - 1) times the root of the periods a year, NaN with fewer than 2 periods.
    float
        Turnover a month of the last, as a share.
    """
    book = paper_portfolios(
        signal,
        returns,
        formation.decision,
        formation.entry,
        formation.leave,
        n=DECILES,
        cap=cap,
        by_value=by_value,
    )
    found = []
    for series in book.period_returns.T:
        sd = float(series.std(ddof=1)) if len(series) > 1 else float("nan")
        mean = float(series.mean()) if len(series) else float("nan")
        sharpe = mean / sd * float(np.sqrt(formation.per_year)) if sd > 0 else float("nan")
        found.append(Decile(mean * formation.per_year, sharpe, series, formation.per_year))
    turned = book.turnover[1:, -1]
    turned = turned[~np.isnan(turned)]
    return found, float(turned.mean()) * formation.per_month if len(turned) else float("nan")
