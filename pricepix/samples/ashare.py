"""A simulated A-share market: price limits, special treatment, halts, suspensions, splits, a lunch break."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.market_cache import MarketCache, write_market_cache
from pricepix.bars.sessions import Session

_TICK: Final = 0.01
_BARS_A_YEAR: Final = 252
# Golden weeks of the Chinese market, first and last day, as (month, day): enough for holidays to occur.
_HOLIDAYS: Final = (((1, 1), (1, 1)), ((2, 10), (2, 16)), ((5, 1), (5, 3)), ((10, 1), (10, 7)))


@dataclass(frozen=True)
class SimulatedMarket:
    """What `simulate_arrays` makes: the arrays that `write_market_cache` takes, as traded."""

    days: NDArray[np.datetime64]
    instruments: NDArray[np.str_]
    open: NDArray[np.float64]
    """float64 (days, stocks, intervals); NaN where a stock is not listed, suspended or halted."""
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    """float64 (days, stocks, intervals); 0 where nothing was traded."""
    not_st: NDArray[np.bool_]
    """bool (days, stocks): False while a stock is under special treatment, and not eligible."""
    adjustment_factor: NDArray[np.float64]
    """float64 (days, stocks): rises with every split; prices times it are comparable over time."""
    up_limit: NDArray[np.float64]
    down_limit: NDArray[np.float64]


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
        As in `simulate_arrays`.

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
    return write_market_cache(folder, **vars(market), dtype=dtype, session=session)


def simulate_arrays(
    instruments: int = 300,
    days: int = 60,
    *,
    seed: int = 0,
    start: str = "2021-01-04",
    every: str = "5min",
    session: Session | str = "ashare",
    volatility: float = 0.45,
    limit: float = 0.10,
    st_limit: float = 0.05,
    st_share: float = 0.05,
    halt_rate: float = 0.002,
    suspension_rate: float = 0.003,
    split_rate: float = 0.004,
    list_late: float = 0.05,
) -> SimulatedMarket:
    """Simulate an A-share market bar by bar.

    Prices are random walks on the cent grid, clipped at the day's limits, at which they tend to stick, so
    that windows occur in which nothing moves. The limits are the adjusted close of the day before, plus and
    minus `limit`, in whole cents. Nothing in an image says anything about a later return, limits aside.

    Parameters
    ----------
    instruments, days : int
        Stocks, at most 9,999, and trading days.
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
        carried on with volume 0, as vendors do.
    suspension_rate : float
        Chance a day that a stock is suspended for 1 to 10 days.
    split_rate : float
        Chance a day of a split of 2 or 1.5 for 1.
    list_late : float
        Share of the stocks that list within the first half of the days.

    Returns
    -------
    SimulatedMarket

    Raises
    ------
    ValueError
        An argument out of range.
    """
    if not 1 <= instruments <= 9999 or days < 2:
        raise ValueError(
            f"instruments={instruments}, days={days}: give 1 to 9,999 stocks and at least 2 days"
        )
    shares = {"st_share": st_share, "halt_rate": halt_rate, "suspension_rate": suspension_rate}
    for name, share in (shares | {"split_rate": split_rate, "list_late": list_late}).items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: give a share between 0 and 1")
    if not 0 < st_limit <= limit < 1 or volatility <= 0:
        raise ValueError(
            f"limit={limit}, st_limit={st_limit}, volatility={volatility}: give limits within 0 to 1"
        )
    rng = np.random.default_rng(seed)
    calendar = _trading_days(start, days)
    per_day = len(Session.of(session).stamps(every))

    code = np.arange(instruments)
    prefix = np.where(code % 2 == 0, 600000, 1)
    names = np.array(
        [f"{p + c // 2:06d}.{'SH' if c % 2 == 0 else 'SZ'}" for p, c in zip(prefix, code, strict=True)],
        np.str_,
    )
    st = np.zeros((days, instruments), np.bool_)
    treated = rng.random(instruments) < st_share
    st[: days // 2, treated & (code % 2 == 0)] = True
    st[days // 2 :, treated & (code % 2 == 1)] = True
    listed = np.where(rng.random(instruments) < list_late, rng.integers(1, max(days // 2, 2), instruments), 0)
    suspended = np.zeros((days, instruments), np.bool_)
    begins = rng.random((days, instruments)) < suspension_rate
    length = rng.integers(1, 11, (days, instruments))
    for d in range(min(10, days)):
        suspended[d:] |= (begins & (length > d))[: days - d]
    absent = suspended | (np.arange(days)[:, None] < listed)
    # Nobody is suspended on the day of listing, so that every stock has a first price.
    absent[np.minimum(listed, days - 1), code] = False
    ratio = np.where(
        rng.random((days, instruments)) < split_rate, rng.choice([2.0, 1.5], (days, instruments)), 1.0
    )
    ratio[0] = 1.0
    ratio[absent] = 1.0
    factor = np.cumprod(ratio, axis=0)

    deviation = volatility * np.exp(rng.normal(0, 0.3, instruments)) / np.sqrt(_BARS_A_YEAR * per_day)
    width = np.where(st, st_limit, limit)
    shape = (days, instruments, per_day)
    open_, high, low, close = (np.empty(shape) for _ in range(4))
    up, down = np.empty((days, instruments)), np.empty((days, instruments))
    last = np.round(np.exp(rng.uniform(np.log(4.0), np.log(80.0), instruments)), 2)
    for d in range(days):
        base = np.maximum(np.round(last / ratio[d], 2), 4 * _TICK)
        # Half a cent goes up, as the exchanges round it.
        up[d] = np.floor(base * (1 + width[d]) * 100 + 0.5 + 1e-9) / 100
        down[d] = np.floor(base * (1 - width[d]) * 100 + 0.5 + 1e-9) / 100
        gap = rng.normal(0, 1, instruments) * deviation * np.sqrt(per_day) * 0.6
        price = _on_grid(base * np.exp(gap), down[d], up[d])
        price = np.where(absent[d], base, price)
        steps = rng.normal(0, 1, (per_day, instruments)) * deviation
        jumps = rng.random((per_day, instruments)) < 0.002
        steps[jumps] *= 25.0
        stuck = rng.random((per_day, instruments)) < 0.93
        spread = np.abs(rng.normal(0, 0.5, (2, per_day, instruments))) * deviation
        for k in range(per_day):
            held = ((price >= up[d]) | (price <= down[d])) & stuck[k]
            new = np.where(held | absent[d], price, _on_grid(price * np.exp(steps[k]), down[d], up[d]))
            open_[d, :, k] = price
            close[d, :, k] = new
            top, bottom = np.maximum(price, new), np.minimum(price, new)
            high[d, :, k] = np.where(held, top, _on_grid(top * (1 + spread[0, k]), down[d], up[d]))
            low[d, :, k] = np.where(held, bottom, _on_grid(bottom * (1 - spread[1, k]), down[d], up[d]))
            price = new
        last = np.where(absent[d], base, price)

    lot = np.exp(rng.uniform(np.log(20), np.log(5000), instruments))
    volume = np.ceil(lot[:, None] * np.exp(rng.normal(0, 0.7, shape))) * 100.0
    halted = np.zeros((days * per_day, instruments), np.bool_)
    begins = rng.random(halted.shape) < halt_rate
    length = rng.integers(1, 13, halted.shape)
    for k in range(12):
        halted[k:] |= (begins & (length > k))[: len(halted) - k]
    halt = halted.reshape(days, per_day, instruments).transpose(0, 2, 1)
    carried = halt & (code % 2 == 0)[None, :, None]
    for prices in (open_, high, low):
        prices[carried] = close[carried]
    gone = (halt & ~carried) | absent[:, :, None]
    for prices in (open_, high, low, close):
        prices[gone] = np.nan
    volume[halt | absent[:, :, None]] = 0.0
    return SimulatedMarket(
        calendar, names, open_, high, low, close, volume, ~st, np.asarray(factor, np.float64), up, down
    )


def _on_grid(
    price: NDArray[np.float64], lowest: NDArray[np.float64], highest: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.clip(np.round(price, 2), lowest, highest)


def _trading_days(start: str, days: int) -> NDArray[np.datetime64]:
    try:
        first = np.datetime64(start, "D")
    except ValueError as error:
        raise ValueError(f"start={start!r}: give a day as YYYY-MM-DD") from error
    years = range(int(str(first)[:4]), int(str(first)[:4]) + days // 200 + 2)
    closed = [
        np.arange(
            np.datetime64(f"{y}-{a[0]:02d}-{a[1]:02d}"), np.datetime64(f"{y}-{b[0]:02d}-{b[1]:02d}") + 1
        )
        for y in years
        for a, b in _HOLIDAYS
    ]
    return np.busday_offset(first, np.arange(days), roll="forward", holidays=np.concatenate(closed))
