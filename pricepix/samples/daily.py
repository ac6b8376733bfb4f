"""A simulated market of daily or intraday bars, a pure random walk unless a pattern is planted in it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from pricepix._checks import choice, whole_number
from pricepix.samples.simulator import (
    BARS_A_YEAR,
    check_probabilities,
    listing_rows,
    log_uniform,
    spells,
    split_ratios,
    trading_days,
)

__all__ = ["simulate"]

_INTERVALS = {"1d": 0, "1m": 1, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60}
_SESSION_START = 9 * 60 + 30
_SESSION_MINUTES = 390
_LONGEST_HALT = 5
_LEVEL_DAYS = 60
_LARGEST_LEVEL = 1.5


class _Quotes(NamedTuple):
    """Prices in ticks, (bars, instruments), and the planted signal."""

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    signal: np.ndarray | None = None


def simulate(
    instruments: int = 100,
    bars: int = 1000,
    *,
    seed: int = 0,
    start: str = "2000-01-03",
    interval: Literal["1d", "1m", "5m", "10m", "15m", "30m", "1h"] = "1d",
    tick: float = 0.01,
    volatility: tuple[float, float] = (0.20, 0.50),
    price: tuple[float, float] = (10.0, 200.0),
    correlation: float = 0.0,
    overnight: float = 0.3,
    jump_rate: float = 0.004,
    halt_rate: float = 0.001,
    halts: Literal["missing", "absent"] = "missing",
    split_rate: float = 0.0003,
    delist_rate: float = 0.0001,
    list_late: float = 0.2,
    bayes_accuracy: float | None = None,
    horizon: int = 5,
    drift: Literal["mean", "median"] = "mean",
) -> pl.DataFrame:
    """Simulate a market of daily or intraday bars on a tick grid.

    By default prices are martingales that rise as often as they fall: nothing in any image says anything about
    any later return, neither its sign nor its mean. A classifier that beats one half out of sample has leaked,
    and so has a portfolio, long, short or both, whose mean return is not 0 before costs.

    A price moves by a Gaussian step of its trailing level (see Notes), which splits into an overnight gap and
    the bar's own move; high and low are the extremes of a Brownian bridge from open to close, each drawn
    from its exact marginal law, ``(o + c +- sqrt((c - o)^2 - 2 s^2 ln U)) / 2``. Volume is lognormal,
    persistent, and rises with the bar's range.

    Parameters
    ----------
    instruments : int
        Number of instruments, at least 1. Names are ``S0000``, ``S0001``, ...
    bars : int
        Length of the calendar in bars, at least 2. An instrument that lists late or is delisted has fewer.
    seed : int
        Seed of the one generator everything is drawn from.
    start : str
        First day, ISO format; moved to the next business day. Calendars have no holidays.
    interval : {"1d", "1m", "5m", "10m", "15m", "30m", "1h"}
        Length of a bar. Intraday bars fill a session of 09:30 to 16:00 and are stamped with their end.
    tick : float
        Price grid of the traded prices.
    volatility : (float, float)
        Range of the instruments' yearly volatilities (uniform).
    price : (float, float)
        Range of the first prices (log-uniform).
    correlation : float
        Share of each step's variance, 0 to below 1, that is one market-wide step.
    overnight : float
        Share of a day's variance, 0 to below 1, that comes overnight as a gap between close and open.
    jump_rate : float
        Chance that an overnight gap is a news gap, five times as large.
    halt_rate : float
        Chance a bar that a trading halt of 1 to 5 bars begins.
    halts : {"missing", "absent"}
        Halted bars have missing prices and volume 0, or their rows are absent.
    split_rate : float
        Chance a day of a split (2, 3 or 4 for 1). Prices before it are that much higher.
    delist_rate : float
        Chance a day that the instrument is delisted: its rows end.
    list_late : float
        Share of the instruments that list within the first half of the calendar instead of at its start.
    bayes_accuracy : float, optional
        Plants a pattern, and is the best accuracy at which the sign of the return over `horizon` bars can
        be known from the past: between 0.5 and 1. ``None`` plants none. See Notes.
    horizon : int
        Horizon, in bars, of the return that the planted pattern predicts.
    drift : {"mean", "median"}
        What is 0 in a market without a pattern: the mean of the simple returns, and their median up to ties and
        some thousandths; or the median of the log steps, as those of a geometric random walk, whose mean simple
        return is then half their variance: 7% a year at a volatility of .37, and more for the more volatile. A
        planted pattern takes the steps of ``"median"``.

    Returns
    -------
    polars.DataFrame
        Sorted by instrument and time. Columns ``instrument`` (str), ``time`` (date; datetime[ns] without
        zone for intraday bars), ``open``, ``high``, ``low``, ``close`` (float64, as traded), ``volume``
        (float64, shares as traded), ``adjustment_factor`` (float64; traded price times factor is the
        price adjusted for splits), ``total_return`` (float64; close over the close of the instrument's
        last traded bar, minus 1, adjusted; missing on the first bar and in halts) and, with a planted
        pattern, ``signal`` (int8, +1 or -1). Missing values are null.

    Raises
    ------
    ValueError
        If an argument is outside the range given above.

    Notes
    -----
    In a geometric walk the mean and the median of a return cannot both be 0: the difference is half the
    variance. So with ``drift="mean"`` a step is Gaussian in price, not in its logarithm: volatility times the
    trailing level, a mean of past closes with a half-life of 60 days, at most 1.5 times the price. Known before
    the step, it leaves every return symmetric around 0 over one bar, and nearly over some months. Volatility, as
    a share of the price, rises when the price falls, as that of stocks does.

    The planted pattern is the last bar's shadow: a fair coin ``s`` thrown for every bar gives it a long
    lower shadow (+1) or a long upper shadow (-1). A second coin makes ``y = s`` with chance
    `bayes_accuracy` and ``y = -s`` otherwise, and the close `horizon` bars later is drawn from the random
    walk's own step, conditioned on lying above (y = +1) or below (y = -1) today's close by a tick or more.
    That later close is the first number that depends on ``y``, and ``y`` depends on the past only through
    ``s``. So, given everything up to and including a bar, the sign of its return is ``s`` with chance
    exactly `bayes_accuracy`, at every bar, overlapping horizons or not, and no rule can do better. Adjust
    prices for splits (or set ``split_rate=0``); with a pattern halted rows are always absent, so that
    the horizon counts the same bars for everyone. What an image rounds away can only lower the accuracy.
    """
    _check(instruments, bars, interval, tick, volatility, price, bayes_accuracy, horizon)
    for name, value in (("correlation", correlation), ("overnight", overnight)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value!r}: give a share of the variance, at least 0 and below 1")
    choice(drift, "drift", ("mean", "median"))
    check_probabilities(
        jump_rate=jump_rate,
        halt_rate=halt_rate,
        split_rate=split_rate,
        delist_rate=delist_rate,
        list_late=list_late,
    )
    choice(halts, "halts", ("missing", "absent"))

    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    per_day = 1 if interval == "1d" else -(-_SESSION_MINUTES // _INTERVALS[interval])
    time, new_day = _calendar(start, bars, interval, per_day)
    shape = (bars, instruments)
    day_sd = rng.uniform(*volatility, instruments) / np.sqrt(BARS_A_YEAR)
    bar_sd = day_sd * np.sqrt((1 - overnight) / per_day)
    gap_sd = np.where(new_day[:, None], day_sd * np.sqrt(overnight), 0.0)
    listed = _listed(rng, new_day, instruments, delist_rate, list_late)
    traded = listed & ~spells(rng, shape, halt_rate, _LONGEST_HALT)
    gap = gap_sd * _steps(rng, shape, correlation)
    gap *= np.where(rng.random(shape) < jump_rate, 5.0, 1.0)
    move = bar_sd * _steps(rng, shape, correlation)
    first = log_uniform(rng, *price, instruments) / tick
    if bayes_accuracy is not None:
        quotes = _planted(rng, first, gap + move, traded, bayes_accuracy, horizon)
    elif drift == "mean":
        quotes = _martingale(rng, first, gap, move, bar_sd, _LEVEL_DAYS * per_day)
    else:
        quotes = _random_walk(rng, first, gap, move, bar_sd)
    volume = _volume(rng, (quotes.high - quotes.low) / (quotes.close * bar_sd) + 0.2, per_day)
    ratio = _split_ratio(rng, new_day, listed, split_rate)
    keep = traded if halts == "absent" or quotes.signal is not None else listed
    return _table(time, quotes, volume, ratio, traded, keep, tick)


def _table(
    time: np.ndarray,
    quotes: _Quotes,
    volume: np.ndarray,
    ratio: np.ndarray,
    traded: np.ndarray,
    keep: np.ndarray,
    tick: float,
) -> pl.DataFrame:
    """Return the rows that are kept, by instrument: prices as traded, missing where nothing was."""
    rows = keep.T

    def column(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.T)[rows]

    def price(ticks: np.ndarray) -> np.ndarray:
        return column(np.where(traded, _on_grid(ticks * ratio, tick), np.nan))

    names = np.array([f"S{i:04d}" for i in range(rows.shape[0])])
    which = np.broadcast_to(np.arange(rows.shape[0])[:, None], rows.shape)[rows]
    when = pl.Series(np.broadcast_to(time[None, :], rows.shape)[rows])
    data = {
        "instrument": pl.Series(names[which]),
        "time": when.cast(pl.Date if time.dtype == "datetime64[D]" else pl.Datetime("ns")),
        "open": price(quotes.open),
        "high": price(quotes.high),
        "low": price(quotes.low),
        "close": price(quotes.close),
        "volume": column(np.where(traded, np.rint(volume / ratio), 0.0)),
        "adjustment_factor": column(1.0 / ratio),
        "total_return": column(_returns(quotes.close, traded)),
    }
    if quotes.signal is not None:
        data["signal"] = column(quotes.signal)
    return pl.DataFrame(data).with_columns(pl.col(pl.Float64).fill_nan(None))


def _check(
    instruments: int,
    bars: int,
    interval: str,
    tick: float,
    volatility: tuple[float, float],
    price: tuple[float, float],
    bayes_accuracy: float | None,
    horizon: int,
) -> None:
    whole_number(instruments, "instruments", None, 1 << 31)
    whole_number(bars, "bars", None, 1 << 31)
    if instruments < 1 or bars < 2:
        raise ValueError(f"instruments={instruments}, bars={bars}: give at least 1 instrument and 2 bars")
    choice(interval, "interval", _INTERVALS)
    for name, (low, high) in (("volatility", volatility), ("price", price)):
        if not 0 < low <= high:
            raise ValueError(f"{name}=({low}, {high}): give a range of positive numbers, lower end first")
    if not 0 < tick <= price[0] / 10:
        raise ValueError(
            f"tick={tick}: give a positive number of at most a tenth of the lowest first price {price[0]}"
        )
    if bayes_accuracy is not None and not 0.5 <= bayes_accuracy <= 1:
        raise ValueError(
            f"bayes_accuracy={bayes_accuracy}: give a number between 0.5 and 1, or None for no pattern"
        )
    if not 1 <= horizon < bars:
        raise ValueError(f"horizon={horizon}: give at least 1 and less than bars={bars}")


def _calendar(start: str, bars: int, interval: str, per_day: int) -> tuple[np.ndarray, np.ndarray]:
    """Times of the bars (datetime64) and whether each opens a day."""
    days = trading_days(start, -(-bars // per_day))
    if interval == "1d":
        return days, np.ones(bars, bool)
    minutes = np.minimum(
        _SESSION_START + _INTERVALS[interval] * np.arange(1, per_day + 1), _SESSION_START + _SESSION_MINUTES
    )
    time = (days[:, None].astype("datetime64[m]") + minutes[None, :].astype("timedelta64[m]")).ravel()[:bars]
    return time.astype("datetime64[ns]"), np.arange(bars) % per_day == 0


def _steps(rng: np.random.Generator, shape: tuple[int, int], correlation: float) -> np.ndarray:
    own = rng.standard_normal(shape)
    if correlation == 0:
        return own
    return np.sqrt(1 - correlation) * own + np.sqrt(correlation) * rng.standard_normal((shape[0], 1))


def _martingale(
    rng: np.random.Generator,
    first: np.ndarray,
    gap: np.ndarray,
    move: np.ndarray,
    bar_sd: np.ndarray,
    half_life: float,
) -> _Quotes:
    """Quotes that say nothing about later ones, of symmetric steps whose size in ticks is known before."""
    weight = 1 - 0.5 ** (1 / half_life)
    open_, close, size = (np.empty_like(move) for _ in range(3))
    current = np.maximum(np.rint(first), 1.0)
    level = current.copy()
    for t in range(len(move)):
        scale = np.minimum(level, _LARGEST_LEVEL * current)
        # Cut at both ends alike, so that no price falls below a tick and the mean stays 0; it is never seen at work.
        room = current - 1.0
        open_[t] = current + np.clip(np.rint(gap[t] * scale), -room, room)
        close[t] = current + np.clip(np.rint((gap[t] + move[t]) * scale), -room, room)
        size[t] = scale / open_[t]
        current = close[t]
        level += weight * (current - level)
    return _Quotes(open_, *_extremes(rng, open_, close, bar_sd * size), close)


def _random_walk(
    rng: np.random.Generator, first: np.ndarray, gap: np.ndarray, move: np.ndarray, bar_sd: np.ndarray
) -> _Quotes:
    """Quotes that say nothing about later ones."""
    log_close = np.log(first) + np.cumsum(gap + move, axis=0)
    close = np.maximum(np.rint(np.exp(log_close)), 1.0)
    open_ = np.maximum(np.rint(np.exp(log_close - move)), 1.0)
    return _Quotes(open_, *_extremes(rng, open_, close, bar_sd), close)


def _planted(
    rng: np.random.Generator,
    first: np.ndarray,
    step: np.ndarray,
    traded: np.ndarray,
    accuracy: float,
    horizon: int,
) -> _Quotes:
    """Quotes whose last bar's shadow tells the sign of the return over `horizon` bars with chance `accuracy`."""
    shape = step.shape
    signal = np.where(rng.random(shape) < 0.5, 1, -1).astype(np.int8)
    sign = np.where(rng.random(shape) < accuracy, signal, -signal)
    close, previous = _planted_closes(rng, first, step, sign, traded, horizon)
    # The open lies between the closes, so that the body does not hide the shadows.
    open_ = np.maximum(np.rint(previous + (close - previous) * rng.uniform(0.0, 0.6, shape)), 1.0)
    high, low = _shadows(rng, open_, close, signal, np.log(close / previous).std(axis=0))
    return _Quotes(open_, high, low, close, signal)


def _extremes(
    rng: np.random.Generator, open_: np.ndarray, close: np.ndarray, sd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """High and low of a Brownian bridge from open to close, on the grid."""
    low_log, high_log = np.log(open_), np.log(close)
    total, square = low_log + high_log, (high_log - low_log) ** 2
    up = np.sqrt(square - 2 * sd**2 * np.log1p(-rng.random(open_.shape)))
    down = np.sqrt(square - 2 * sd**2 * np.log1p(-rng.random(open_.shape)))
    high = np.maximum(np.rint(np.exp((total + up) / 2)), np.maximum(open_, close))
    low = np.minimum(np.rint(np.exp((total - down) / 2)), np.minimum(open_, close))
    return high, np.maximum(low, 1.0)


def _planted_closes(
    rng: np.random.Generator,
    first: np.ndarray,
    step: np.ndarray,
    sign: np.ndarray,
    traded: np.ndarray,
    horizon: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Closes in ticks, and the close of the traded bar before each.

    Random-walk steps, each conditioned on its side of the close `horizon` traded bars before. A step that
    falls on the wrong side is drawn again from an exponential tail beyond the border, about as wide as
    the Gaussian tail is there.
    """
    bars, instruments = step.shape
    # Count in traded bars: each instrument's traded bars first, in order.
    slot = np.argsort(~traded, axis=0, kind="stable")
    step, sign = np.take_along_axis(step, slot, 0), np.take_along_axis(sign, slot, 0)
    packed = np.empty((bars, instruments))
    sd = np.sqrt(np.mean(step**2, axis=0))
    beyond = rng.standard_exponential((bars, instruments))
    current = np.maximum(np.rint(first), 2.0)
    before = np.empty_like(packed)
    for t in range(bars):
        before[t] = current
        proposal = np.rint(current * np.exp(step[t]))
        if t >= horizon:
            base, side = packed[t - horizon], sign[t - horizon]
            # From the step's centre to the border, in standard deviations; only the tail's width needs it.
            distance = np.maximum(np.log(base / current) * side / sd, 0.0)
            drawn = np.rint(base * np.exp(side * sd / (distance + 1.0) * beyond[t]))
            proposal = np.where((proposal - base) * side < 1, drawn, proposal)
            proposal = np.where((proposal - base) * side < 1, base + side, proposal)
            if (proposal < 1).any():
                raise ValueError(
                    "a price fell to the lowest tick, where the planted pattern cannot be kept; "
                    "raise price, or lower volatility or bars"
                )
        packed[t] = current = np.maximum(proposal, 1.0)
    close, previous = np.empty_like(packed), np.empty_like(packed)
    np.put_along_axis(close, slot, packed, 0)
    np.put_along_axis(previous, slot, before, 0)
    return close, previous


def _shadows(
    rng: np.random.Generator, open_: np.ndarray, close: np.ndarray, signal: np.ndarray, sd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """High and low with a long shadow below the body (+1) or above it (-1) and hardly one opposite."""
    top, bottom = np.maximum(open_, close), np.minimum(open_, close)
    unit = close * sd
    long_ = np.rint(unit * rng.uniform(1.0, 2.0, close.shape)) + 2
    short = np.rint(unit * rng.uniform(0.0, 0.1, close.shape))
    high = top + np.where(signal > 0, short, long_)
    low = bottom - np.where(signal > 0, long_, short)
    return high, np.maximum(low, 1.0)


def _volume(rng: np.random.Generator, spread: np.ndarray, per_day: int) -> np.ndarray:
    """Shares: a level an instrument, a persistent part, noise, and more when the bar's range is wide."""
    bars, instruments = spread.shape
    level = rng.uniform(np.log(5e4), np.log(2e7), instruments) - np.log(per_day)
    shock = rng.standard_normal((bars, instruments)) * 0.15
    persistent = np.empty_like(shock)
    state = np.zeros(instruments)
    for t in range(bars):
        state = 0.97 * state + shock[t]
        persistent[t] = state
    noise = rng.standard_normal((bars, instruments)) * 0.3
    return np.maximum(np.exp(level + persistent + noise) * np.sqrt(spread), 1.0)


def _listed(
    rng: np.random.Generator, new_day: np.ndarray, instruments: int, delist_rate: float, list_late: float
) -> np.ndarray:
    bars = len(new_day)
    first = listing_rows(rng, instruments, list_late, 0, max(bars // 2, 1))
    dies = (rng.random((bars, instruments)) < delist_rate) & new_day[:, None]
    # Every instrument must have enough bars to be drawn: nothing is delisted in the first tenth.
    dies[: max(bars // 10, 2)] = False
    last = np.where(dies.any(axis=0), dies.argmax(axis=0), bars)
    row = np.arange(bars)[:, None]
    return (row >= np.minimum(first, np.maximum(last - 2, 0))) & (row < last)


def _split_ratio(
    rng: np.random.Generator, new_day: np.ndarray, listed: np.ndarray, split_rate: float
) -> np.ndarray:
    """Traded price over adjusted price: the product of all later splits."""
    ratio = split_ratios(rng, listed.shape, split_rate, (2.0, 3.0, 4.0), (0.7, 0.2, 0.1))
    ratio[~(listed & new_day[:, None])] = 1.0
    later = np.ones(listed.shape)
    later[:-1] = np.cumprod(ratio[:0:-1], axis=0)[::-1]
    return later


def _returns(close: np.ndarray, traded: np.ndarray) -> np.ndarray:
    """Close over the close of the last traded bar, minus 1; NaN where either is missing."""
    bars = close.shape[0]
    row = np.where(traded, np.arange(bars)[:, None], -1)
    last = np.maximum.accumulate(row, axis=0)
    previous = np.vstack([np.full((1, close.shape[1]), -1), last[:-1]])
    base = np.take_along_axis(close, np.maximum(previous, 0), axis=0)
    return np.where(traded & (previous >= 0), close / base - 1.0, np.nan)


def _on_grid(ticks: np.ndarray, tick: float) -> np.ndarray:
    """Ticks to prices, as the nearest double of the decimal a feed would print."""
    per_unit = round(1 / tick)
    return ticks / per_unit if per_unit and abs(per_unit * tick - 1) < 1e-12 else ticks * tick
