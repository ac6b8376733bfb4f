"""A simulated A-share market: price limits, special treatment, halts, suspensions, splits, a lunch break."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.market_cache import MarketCache
from pricepix.bars.market_files import MOST_STOCKS
from pricepix.bars.market_writer import MarketArrays, write_market_cache
from pricepix.bars.sessions import Session
from pricepix.samples.simulator import (
    BARS_A_YEAR,
    check_probabilities,
    listing_rows,
    log_uniform,
    spells,
    split_ratios,
    trading_days,
)

_TICK: Final = 0.01
_LONGEST_HALT: Final = 12
_LONGEST_SUSPENSION: Final = 10
# Two centuries: nanoseconds can hold no more days after the start.
_MOST_DAYS = 50_000
# Golden weeks of the Chinese market, first and last day, as (month, day): enough for holidays to occur.
_HOLIDAYS: Final = (((1, 1), (1, 1)), ((2, 10), (2, 16)), ((5, 1), (5, 3)), ((10, 1), (10, 7)))


@dataclass(frozen=True, kw_only=True)
class AshareOptions:
    """How an A-share market behaves.

    Parameters
    ----------
    seed : int
        Seed of the one generator that everything is drawn from.
    start : str
        First day; weekends and the golden weeks are skipped.
    every : str
        Length of a bar.
    session : Session or str
        The market's hours.
    volatility : float
        Median yearly volatility.
    limit, st_limit : float
        Daily price limits of stocks, and of those under special treatment.
    st_share : float
        Share of the stocks that are under special treatment for half of the days.
    halt_rate : float
        Chance a bar that a halt of 1 to 12 bars begins: no trade, prices missing or, in every other stock,
        repeated with volume 0, as vendors do.
    suspension_rate : float
        Chance a day that a stock is suspended for 1 to 10 days.
    split_rate : float
        Chance a day of a split of 2 or 1.5 for 1.
    list_late : float
        Share of the stocks that list within the first half of the days.

    Raises
    ------
    ValueError
        An option out of range.
    """

    seed: int = 0
    start: str = "2021-01-04"
    every: str = "5min"
    session: Session | str = "ashare"
    volatility: float = 0.45
    limit: float = 0.10
    st_limit: float = 0.05
    st_share: float = 0.05
    halt_rate: float = 0.002
    suspension_rate: float = 0.003
    split_rate: float = 0.004
    list_late: float = 0.05

    def __post_init__(self) -> None:
        check_probabilities(
            st_share=self.st_share,
            halt_rate=self.halt_rate,
            suspension_rate=self.suspension_rate,
            split_rate=self.split_rate,
            list_late=self.list_late,
        )
        if not 0 < self.st_limit <= self.limit < 1 or self.volatility <= 0:
            raise ValueError(
                f"limit={self.limit}, st_limit={self.st_limit}, volatility={self.volatility}: give limits between "
                "0 and 1, st_limit at most limit, and a volatility above 0"
            )


def simulate_market(
    folder: str | os.PathLike[str],
    instruments: int = 300,
    days: int = 60,
    *,
    dtype: Any = np.float32,
    **options: Any,
) -> MarketCache:
    """Simulate an A-share market and write it as a market cache.

    Parameters
    ----------
    folder : str or path
        Where the cache goes.
    instruments, days : int
        Stocks and trading days.
    dtype : numpy.dtype
        float32, as ImageTrading's caches have it, or float64.
    **options
        Of `AshareOptions`: seed, start, every, session, volatility, limit, st_limit, st_share, halt_rate,
        suspension_rate, split_rate, list_late.

    Returns
    -------
    MarketCache

    Raises
    ------
    ValueError
        An argument out of range.
    FileExistsError
        The folder holds a cache already.
    """
    market = simulate_arrays(instruments, days, **options)
    session = options.get("session", "ashare")
    return write_market_cache(folder, market, dtype=dtype, session=session)


def simulate_arrays(instruments: int = 300, days: int = 60, **options: Any) -> MarketArrays:
    """Simulate an A-share market bar by bar.

    Prices are random walks on the cent grid, clipped at the day's limits, at which they tend to stick, so
    that windows occur in which nothing moves. The limits are the adjusted close of the day before, plus and
    minus the limit, in whole cents. Nothing in an image says anything about a later return, limits aside.

    This market has no `drift` to choose, unlike ``samples.simulate``: limits that cut a day's moves make the mean of
    a return depend on how near they are. Steps have median 0, so that volatile stocks earn about half their
    variance a year. Test with it what a market's rules do to data; test what a portfolio earns on ``simulate``.

    Parameters
    ----------
    instruments, days : int
        Stocks, at most 9,999, and trading days, at least 2.
    **options
        Of `AshareOptions`: seed, start, every, session, volatility, limit, st_limit, st_share, halt_rate,
        suspension_rate, split_rate, list_late.

    Returns
    -------
    MarketArrays

    Raises
    ------
    ValueError
        An argument out of range.
    """
    if not 1 <= instruments <= MOST_STOCKS or not 2 <= days <= _MOST_DAYS:
        raise ValueError(
            f"instruments={instruments}, days={days}: give 1 to {MOST_STOCKS:,} stocks and 2 to {_MOST_DAYS:,} days"
        )
    market = AshareOptions(**options)
    rng = np.random.default_rng(market.seed)
    calendar = trading_days(market.start, days, _HOLIDAYS)
    per_day = len(Session.of(market.session).stamps(market.every))
    treated = _special_treatment(rng, days, instruments, market.st_share)
    absent = _absent(rng, days, instruments, market)
    ratio = split_ratios(rng, absent.shape, market.split_rate, (2.0, 1.5))
    ratio[0] = 1.0
    ratio[absent] = 1.0

    deviation = market.volatility * np.exp(rng.normal(0, 0.3, instruments)) / np.sqrt(BARS_A_YEAR * per_day)
    width = np.where(treated, market.st_limit, market.limit)
    open_, high, low, close = (np.empty((days, instruments, per_day)) for _ in range(4))
    up, down = np.empty((days, instruments)), np.empty((days, instruments))
    last = np.round(log_uniform(rng, 4.0, 80.0, instruments), 2)
    for d in range(days):
        base = np.maximum(np.round(last / ratio[d], 2), 4 * _TICK)
        # Half a cent goes up, as the exchanges round it.
        up[d] = np.floor(base * (1 + width[d]) * 100 + 0.5 + 1e-9) / 100
        down[d] = np.floor(base * (1 - width[d]) * 100 + 0.5 + 1e-9) / 100
        day = _quotes(rng, base, (down[d], up[d]), deviation, absent[d], per_day)
        open_[d], high[d], low[d], close[d] = day
        last = np.where(absent[d], base, close[d, :, -1])

    lot = log_uniform(rng, 20, 5000, instruments)
    volume = np.ceil(lot[:, None] * np.exp(rng.normal(0, 0.7, close.shape))) * 100.0
    halted = spells(rng, (days * per_day, instruments), market.halt_rate, _LONGEST_HALT)
    halted = halted.reshape(days, per_day, instruments).transpose(0, 2, 1)
    carried = halted & (np.arange(instruments) % 2 == 0)[None, :, None]
    for prices in (open_, high, low):
        prices[carried] = close[carried]
    missing = (halted & ~carried) | absent[:, :, None]
    for prices in (open_, high, low, close):
        prices[missing] = np.nan
    volume[halted | absent[:, :, None]] = 0.0
    factor: NDArray[np.float64] = np.cumprod(ratio, axis=0, dtype=np.float64)
    names = _names(instruments)
    return MarketArrays(calendar, names, open_, high, low, close, volume, ~treated, factor, up, down)


def _names(instruments: int) -> NDArray[np.str_]:
    """Codes of Shanghai and Shenzhen in turn."""
    code = range(instruments)
    return np.array(
        [f"{600000 + c // 2}.SH" if c % 2 == 0 else f"{1 + c // 2:06d}.SZ" for c in code], np.str_
    )


def _special_treatment(
    rng: np.random.Generator, days: int, instruments: int, share: float
) -> NDArray[np.bool_]:
    """Which stocks are under special treatment on which days: in the first half, or in the second."""
    even = np.arange(instruments) % 2 == 0
    treated = np.zeros((days, instruments), np.bool_)
    chosen = rng.random(instruments) < share
    treated[: days // 2, chosen & even] = True
    treated[days // 2 :, chosen & ~even] = True
    return treated


def _absent(
    rng: np.random.Generator, days: int, instruments: int, options: AshareOptions
) -> NDArray[np.bool_]:
    """Which stocks are not listed yet, or suspended, on which days."""
    listed = listing_rows(rng, instruments, options.list_late, 1, max(days // 2, 2))
    suspended = spells(rng, (days, instruments), options.suspension_rate, _LONGEST_SUSPENSION)
    absent = suspended | (np.arange(days)[:, None] < listed)
    # Nobody is suspended on the day of listing, so that every stock has a first price.
    absent[np.minimum(listed, days - 1), np.arange(instruments)] = False
    return absent


def _quotes(
    rng: np.random.Generator,
    base: NDArray[np.float64],
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
    deviation: NDArray[np.float64],
    absent: NDArray[np.bool_],
    per_day: int,
) -> NDArray[np.float64]:
    """Open, high, low and close of a day's bars, float64 (4, stocks, intervals)."""
    down, up = limits
    instruments = len(base)
    quotes = np.empty((4, instruments, per_day))
    gap = rng.normal(0, 1, instruments) * deviation * np.sqrt(per_day) * 0.6
    price = np.where(absent, base, _on_grid(base * np.exp(gap), down, up))
    steps = rng.normal(0, 1, (per_day, instruments)) * deviation
    jumps = rng.random((per_day, instruments)) < 0.002
    steps[jumps] *= 25.0
    sticks = rng.random((per_day, instruments)) < 0.93
    spread = np.abs(rng.normal(0, 0.5, (2, per_day, instruments))) * deviation
    for k in range(per_day):
        stuck = ((price >= up) | (price <= down)) & sticks[k]
        new = np.where(stuck | absent, price, _on_grid(price * np.exp(steps[k]), down, up))
        top, bottom = np.maximum(price, new), np.minimum(price, new)
        quotes[0, :, k] = price
        quotes[1, :, k] = np.where(stuck, top, _on_grid(top * (1 + spread[0, k]), down, up))
        quotes[2, :, k] = np.where(stuck, bottom, _on_grid(bottom * (1 - spread[1, k]), down, up))
        quotes[3, :, k] = new
        price = new
    return quotes


def _on_grid(
    price: NDArray[np.float64], lowest: NDArray[np.float64], highest: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.clip(np.round(price, 2), lowest, highest)
