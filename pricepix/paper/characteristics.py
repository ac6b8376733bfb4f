"""Characteristics of names at formation, from their bars alone: what an image could be said to stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.rebalancing import bars_per_year
from pricepix.factor.evaluation.signals import BASELINES, Positions
from pricepix.factor.evaluation.universe import average_dollar_volume

__all__ = ["CHARACTERISTICS", "bid_ask_spread", "characteristics"]

Floats = NDArray[np.float64]

_HALF: Final = 0.5
"""Share of a stretch's bars that must be known."""


class Bars:
    """A market's bars as grids, and stretches of them before a date.

    Grids are float64 (bars, instruments), NaN where there is no bar or no number.
    """

    def __init__(self, market: Market) -> None:
        self.market = market
        self.per_year = bars_per_year(market.time, market.panel.tz)
        self.month = max(2, round(self.per_year / 12))
        self.year = max(2, round(self.per_year))
        self._grids: dict[str, Floats] = {}
        self.regressed: tuple[Floats, Floats] | None = None
        """Beta and price delay at the dates asked for, once both are known."""

    def grid(self, name: str) -> Floats:
        """Return high, low, close, volume, or the return of each bar."""
        if name not in self._grids:
            market = self.market
            there = market.row >= 0
            if name == "return":
                step = np.full(market.level.shape, np.nan)
                with np.errstate(invalid="ignore", divide="ignore"):
                    step[1:] = market.level[1:] / market.level[:-1] - 1.0
                known = there & ~np.isnan(market.panel.bars[np.where(there, market.row, 0), 3])
                self._grids[name] = np.where(known, step, np.nan)
            else:
                column = ("open", "high", "low", "close", "volume").index(name)
                self._grids[name] = np.where(
                    there, market.panel.bars[np.where(there, market.row, 0), column], np.nan
                )
        return self._grids[name]

    def keep(self, name: str, values: Floats) -> None:
        """Add a grid."""
        self._grids[name] = values

    def before(self, name: str, at: Positions, bars: int, of: Callable[[Floats], Floats]) -> Floats:
        """Return a statistic of the last `bars` bars at each date; NaN where less than half of them are known.

        `of` takes (bars, instruments), with NaN, to (instruments,).
        """
        values = self.grid(name)
        out = np.full((len(at), values.shape[1]), np.nan)
        for k, t in enumerate(at.tolist()):
            if t + 1 >= bars:
                part = values[t + 1 - bars : t + 1]
                enough = np.count_nonzero(~np.isnan(part), axis=0) >= _HALF * bars
                out[k, enough] = of(part[:, enough])
        return out


def _volatility(bars: Bars, at: Positions) -> Floats:
    """Standard deviation of a month's returns a bar."""
    return bars.before("return", at, bars.month, lambda r: np.nanstd(r, axis=0, ddof=1))


def _high_52(bars: Bars, at: Positions) -> Floats:
    """The value over its highest in a year, after George and Hwang (2004)."""
    level = bars.market.level
    out = np.full((len(at), level.shape[1]), np.nan)
    for k, t in enumerate(at.tolist()):
        if t + 1 >= bars.year:
            part = level[t + 1 - bars.year : t + 1]
            known = ~np.isnan(part[0])
            out[k, known] = part[-1, known] / part[:, known].max(axis=0)
    return out


def _dollar_volume(bars: Bars, at: Positions) -> Floats:
    """Logarithm of the mean of close times volume over a month."""
    traded = average_dollar_volume(bars.market, at, bars.month)
    return np.log(np.where(traded > 0, traded, np.nan))


def _zero_trade(bars: Bars, at: Positions) -> Floats:
    """Share of a month's bars at which nothing was traded; a bar without a known volume does not count."""
    return bars.before(
        "volume", at, bars.month, lambda v: np.nanmean(np.where(np.isnan(v), np.nan, v == 0), axis=0)
    )


def _illiquidity(bars: Bars, at: Positions) -> Floats:
    """Amihud (2002): mean over a month of |return| over dollar volume, a million times; of bars with trades."""
    step, traded = np.abs(bars.grid("return")), bars.grid("close") * bars.grid("volume")
    with np.errstate(invalid="ignore", divide="ignore"):
        illiquidity = np.where(traded > 0, step / traded, np.nan) * 1e6
    bars.keep("illiquidity", illiquidity)
    return bars.before("illiquidity", at, bars.month, lambda x: np.nanmean(x, axis=0))


def _size(bars: Bars, at: Positions) -> Floats | None:
    """Logarithm of the market cap; None where the panel has none."""
    cap = bars.market.cap_at(at)
    return None if cap is None else np.log(np.where(cap > 0, cap, np.nan))


def _market_return(bars: Bars) -> Floats:
    """Equally weighted mean return of each bar over all names, (bars,)."""
    step = bars.grid("return")
    count = np.count_nonzero(~np.isnan(step), axis=1)
    total = np.nansum(step, axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _beta(bars: Bars, at: Positions) -> Floats:
    """Slope of a year's returns on those of the market of the panel."""
    return _regressions(bars, at)[0]


def _delay(bars: Bars, at: Positions) -> Floats:
    """Price delay of Hou and Moskowitz (2005): 1 - R2 without over R2 with the market's last four returns."""
    return _regressions(bars, at)[1]


def _regressions(bars: Bars, at: Positions) -> tuple[Floats, Floats]:
    """Beta and price delay of each name at each date, over a year; a bar without a return does not count."""
    if bars.regressed is not None:
        return bars.regressed
    step, market = bars.grid("return"), _market_return(bars)
    beta, delay = np.full((2, len(at), step.shape[1]), np.nan)
    lags = 4
    for k, t in enumerate(at.tolist()):
        if t + 1 < bars.year + lags + 1:
            continue
        rows = np.arange(t + 1 - bars.year, t + 1)
        x = np.column_stack([np.ones(len(rows)), *(market[rows - lag] for lag in range(lags + 1))])
        known = ~np.isnan(x).any(axis=1)[:, None] & ~np.isnan(step[rows])
        count = known.sum(axis=0)
        enough = count >= max(_HALF * bars.year, lags + 3)
        # Names that miss the same bars, mostly none, are regressed together.
        for pattern in np.unique(known[:, enough], axis=1).T:
            own = np.flatnonzero(enough & (known == pattern[:, None]).all(axis=0))
            y, design = step[np.ix_(rows[pattern], own)], x[pattern]
            slopes = [np.linalg.lstsq(design[:, :m], y, rcond=None)[0] for m in (2, lags + 2)]
            left = [
                ((y - design[:, :m] @ b) ** 2).sum(axis=0) for m, b in zip((2, lags + 2), slopes, strict=True)
            ]
            total = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
            beta[k, own] = slopes[0][1]
            explained = (total > 0) & (left[1] < total)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = (1.0 - left[0] / total) / (1.0 - left[1] / total)
            delay[k, own] = np.where(explained, 1.0 - ratio, np.nan)
    bars.regressed = beta, delay
    return beta, delay


def bid_ask_spread(high: Floats, low: Floats, close: Floats) -> Floats:
    """Bid-ask spread from highs and lows of each two bars in a row, of Corwin and Schultz (2012).

    Parameters
    ----------
    high, low, close : numpy.ndarray, float64 (bars, instruments)

    Returns
    -------
    numpy.ndarray, float64 (bars, instruments)
        The spread as a share of the price, at the later of the two bars; 0 where the estimate is negative, and moved
        for gaps overnight, both as the authors propose. NaN at the first bar and where a number is missing.
    """
    out = np.full(high.shape, np.nan)
    if len(high) < 2:
        return out
    # A close above the next high, or below its low, is a gap: both of the next are moved by it.
    up, down = np.maximum(close[:-1] - high[1:], 0.0), np.maximum(low[1:] - close[:-1], 0.0)
    shift = up - down
    h, low_ = high[1:] + shift, low[1:] + shift
    with np.errstate(invalid="ignore", divide="ignore"):
        one = np.log(high[:-1] / low[:-1]) ** 2 + np.log(h / low_) ** 2
        two = np.log(np.maximum(high[:-1], h) / np.minimum(low[:-1], low_)) ** 2
        root = 3.0 - 2.0 * np.sqrt(2.0)
        alpha = (np.sqrt(2.0 * one) - np.sqrt(one)) / root - np.sqrt(two / root)
        spread = 2.0 * (np.exp(alpha) - 1.0) / (1.0 + np.exp(alpha))
    out[1:] = np.where(np.isnan(spread), np.nan, np.maximum(spread, 0.0))
    return out


def _bid_ask(bars: Bars, at: Positions) -> Floats:
    """Mean of a month's spreads."""
    bars.keep("spread", bid_ask_spread(bars.grid("high"), bars.grid("low"), bars.grid("close")))
    return bars.before("spread", at, bars.month, lambda x: np.nanmean(x, axis=0))


def _baseline(name: str) -> Callable[[Bars, Positions], Floats]:
    """One of the evaluation's own signals."""
    return lambda bars, at: BASELINES[name](bars.market, at, bars.per_year)


CHARACTERISTICS: Final[dict[str, Callable[[Bars, Positions], Floats | None]]] = {
    **{name: _baseline(name) for name in ("MOM", "STR", "WSTR", "TREND")},
    "Volatility": _volatility,
    "52-week high": _high_52,
    "Dollar volume": _dollar_volume,
    "Zero-trade days": _zero_trade,
    "Amihud illiquidity": _illiquidity,
    "Size": _size,
    "Beta": _beta,
    "Price delay": _delay,
    "Bid-ask spread": _bid_ask,
}
"""Functions of bars and positions, by name; None where the panel lacks what one needs."""


def characteristics(market: Market, at: Positions) -> dict[str, Floats]:
    """Return all characteristics that a market's bars give, float64 (positions, instruments) each.

    All are known at the close of the date. Windows are months and years of bars; a name needs half of them.
    """
    bars = Bars(market)
    found = {name: of(bars, at) for name, of in CHARACTERISTICS.items()}
    return {name: values for name, values in found.items() if values is not None}
