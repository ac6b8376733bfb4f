"""Compiled loops over the rows of a panel: which windows are kept, their order, forward returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy")

KEPT = 0
# Above the renderer's own codes, with which these share one byte a row.
TOO_SHORT, MA_WARMUP, MASKED, SAMPLED_OUT, GAP, MISSING_BARS, NO_CANDIDATE = 100, 101, 102, 103, 104, 105, 106
PERIOD_OPEN, ABSENT_AT_END = 107, 108


@jit
def _split_mix(x: Any) -> Any:
    """Hash 64 bits: a step of SplitMix64, after which neighbouring numbers are unrelated."""
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
def _uniform(x: Any) -> Any:
    """Hash 64 bits into [0, 1): a random number that depends only on them."""
    return np.float64(_split_mix(x) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@jit
def uniform_numbers(seed: Any, keys: Any, purposes: Any, out: Any) -> None:
    """Write a random number in [0, 1) for every key and purpose, which depends only on these and the seed.

    All are uint64, `seed` (1,), `keys` (n,) and `purposes` (k,); `out` is float64 (n, k).
    """
    for i in range(keys.shape[0]):
        mixed = _split_mix(keys[i] + seed[0])
        for j in range(purposes.shape[0]):
            out[i, j] = _uniform(mixed + purposes[j])


class RowRules(NamedTuple):
    """Where windows may end, besides the schedule. Negative `max_gap` or `max_missing` mean no limit."""

    start: int
    """First and last time, in nanoseconds, of a window's last bar."""
    end: int
    lookback: int
    """Bars of a window."""
    history: int
    """Bars that its instrument must have before it."""
    sample: float
    """Share of the windows to keep."""
    max_gap: int
    """Most nanoseconds between neighbouring bars of a window."""
    max_missing: int
    """Most bars of a window without a high or a low."""


@jit
def classify_rows(
    bars: Any, time: Any, offsets: Any, time_code: Any, schedule: Any, rules: RowRules,
    eligible: Any, seeds: Any, reason: Any,
) -> int:  # fmt: skip
    """Write for every panel row why no window ends there, KEPT where one may; return how many may.

    `schedule` is a `Schedule`; an empty `eligible` means all. Of several reasons the first one found is written,
    cheap checks first.
    """
    scheduled, period, last_end, open_period = schedule
    start, end, lookback, history, sample, max_gap, max_missing = rules
    periods = period.shape[0] > 0
    kept = 0
    for instrument in range(offsets.shape[0] - 1):
        first = offsets[instrument]
        gap_row = first  # the window must start here or later, for no hole to lie inside it
        missing = 0
        current = -1  # the period of the row before
        at_end = False  # whether the instrument has a row at the end of the current period
        for row in range(first, offsets[instrument + 1]):
            last_in_period = False
            if periods:
                number = period[time_code[row]]
                if number != current:
                    current = number
                    at_end = False
                at_end |= time_code[row] == last_end[number]
                last_in_period = row + 1 == offsets[instrument + 1] or period[time_code[row + 1]] != number
            if max_gap >= 0 and row > first and time[row] - time[row - 1] > max_gap:
                gap_row = row
            if max_missing >= 0:
                missing += np.isnan(bars[row, 1]) or np.isnan(bars[row, 2])
                left = row - lookback
                if left >= first:
                    missing -= np.isnan(bars[left, 1]) or np.isnan(bars[left, 2])
            if time[row] < start or time[row] > end:
                code = NO_CANDIDATE
            elif last_in_period and current == open_period:
                code = PERIOD_OPEN
            elif last_in_period and not at_end:
                code = ABSENT_AT_END
            elif scheduled.shape[0] > 0 and not scheduled[time_code[row]]:
                code = NO_CANDIDATE
            elif row - first + 1 < lookback:
                code = TOO_SHORT
            elif row - first + 1 < lookback + history:
                code = MA_WARMUP
            elif eligible.shape[0] > 0 and not eligible[row]:
                code = MASKED
            elif sample < 1.0 and _uniform(seeds[instrument] ^ np.uint64(time[row])) >= sample:
                code = SAMPLED_OUT
            elif row - lookback + 1 < gap_row:
                code = GAP
            elif max_missing >= 0 and missing > max_missing:
                code = MISSING_BARS
            else:
                code = KEPT
                kept += 1
            reason[row] = code
    return kept


@jit
def count_by_period(time_code: Any, offsets: Any, period: Any, rows: Any, instruments: Any) -> None:
    """Add up the instruments with a row at each time of `period`, and in each period; later times are left out."""
    for instrument in range(offsets.shape[0] - 1):
        current = -1
        for row in range(offsets[instrument], offsets[instrument + 1]):
            code = time_code[row]
            if code >= period.shape[0]:
                break
            rows[code] += 1
            if period[code] != current:
                current = period[code]
                instruments[current] += 1


@jit
def collect(reason: Any, rows: Any) -> None:
    """Write the rows with reason KEPT, ascending."""
    n = 0
    for row in range(reason.shape[0]):
        if reason[row] == KEPT:
            rows[n] = row
            n += 1


@jit
def order_by_time(reason: Any, offsets: Any, time_code: Any, ends: Any, rows: Any, instruments: Any) -> None:
    """Write the rows with reason KEPT ordered by (time, instrument): a counting sort.

    `ends` int64 (times + 1,) is scratch of zeros.
    """
    for row in range(reason.shape[0]):
        if reason[row] == KEPT:
            ends[time_code[row] + 1] += 1
    for code in range(ends.shape[0] - 1):
        ends[code + 1] += ends[code]
    for instrument in range(offsets.shape[0] - 1):
        for row in range(offsets[instrument], offsets[instrument + 1]):
            if reason[row] == KEPT:
                place = ends[time_code[row]]
                ends[time_code[row]] = place + 1
                rows[place] = row
                instruments[place] = instrument


@jit
def _finite(value: Any) -> Any:
    """Return a value as float32 holds it, NaN where it cannot: an infinite return is not a return."""
    rounded = np.float32(value)
    return np.float32(np.nan) if np.isinf(rounded) else rounded


@jit
def _is_price(value: Any) -> Any:
    """Whether a price can be traded at: positive and finite."""
    return value > 0.0 and not np.isinf(value)


@jit
def _cash_time(time: Any, calendar: Any, entry: int, last: int, horizon: int, no_time: int) -> Any:
    """When a position is over whose instrument's last row is `last`, `no_time` if that has not come.

    The market's `horizon`-th bar after the entry, at the earliest its first bar after the last row.
    """
    code = max(np.searchsorted(calendar, time[entry]) + horizon, np.searchsorted(calendar, time[last]) + 1)
    return calendar[code] if code < calendar.shape[0] else no_time


@jit
def price_returns(
    bars: Any, time: Any, offsets: Any, calendar: Any, rows: Any, instruments: Any, horizon: int, delay: int,
    value: Any, exit_time: Any, no_time: int,
) -> None:  # fmt: skip
    """close(t + d + h) / close(t + d) - 1, NaN where either is missing or does not exist.

    With a `calendar` (not an empty one), an instrument whose rows end before it leaves its last close in cash.
    """
    for i in range(rows.shape[0]):
        entry = rows[i] + delay
        leave = entry + horizon
        stop = offsets[instruments[i] + 1]
        value[i] = np.nan
        exit_time[i] = no_time
        if leave < stop:
            exit_time[i] = time[leave]
            a, b = bars[entry, 3], bars[leave, 3]
            if _is_price(a) and _is_price(b):
                value[i] = _finite(b / a - 1.0)
        elif calendar.shape[0] > 0 and entry < stop and time[stop - 1] < calendar[-1]:
            a, b = bars[entry, 3], bars[stop - 1, 3]
            if _is_price(a) and _is_price(b):
                exit_time[i] = _cash_time(time, calendar, entry, stop - 1, horizon, no_time)
                if exit_time[i] != no_time:
                    value[i] = _finite(b / a - 1.0)


@jit
def bridge_returns(bars: Any, total_return: Any, factor: Any, offsets: Any, out: Any) -> None:
    """Copy total returns; bridge those missing beside a known close by the ratio to the last known close.

    The ratio is divided by the returns known in between. Infinite where the adjustment factor is not the same
    at both closes (an empty `factor` means that it is), and before the instrument's first known return: whether
    it brings any is not known there. An instrument's first close has no return: it stays NaN.
    """
    for instrument in range(offsets.shape[0] - 1):
        last = -1
        begun = False  # whether a return after the first close is known
        since = 1.0  # growth since the row `last`, by the returns that are known
        for row in range(offsets[instrument], offsets[instrument + 1]):
            moved = total_return[row]
            close = bars[row, 3]
            priced = _is_price(close)
            if not np.isnan(moved):
                since *= 1.0 + moved
                begun |= last >= 0
            elif priced and last >= 0:
                moved = np.inf
                if begun and (factor.shape[0] == 0 or factor[row] == factor[last]):
                    moved = close / bars[last, 3] / since - 1.0
                    if np.isnan(moved):
                        moved = np.inf
            out[row] = moved
            if priced:
                last = row
                since = 1.0


@jit
def total_returns(
    total_return: Any, bars: Any, time: Any, offsets: Any, calendar: Any, rows: Any, instruments: Any,
    horizon: int, delay: int, value: Any, exit_time: Any, no_time: int,
) -> None:  # fmt: skip
    """Compound the total returns, as `bridge_returns` leaves them, of bars t + d + 1 to t + d + h.

    A missing return inside is skipped, as a return is quoted against the last price that exists; one at the
    exit, or at an entry without a price, makes the label NaN, and so does an infinite one, which is not known.
    With a `calendar` (not an empty one), an instrument whose rows end before it leaves its last level in cash.

    Eight windows at a time: each product waits for the one before, so a single window would leave the CPU idle
    most of the time (a quarter of the speed at 60 bars).
    """
    level = np.empty(8)
    entries = np.empty(8, np.int64)
    places = np.empty(8, np.int64)
    filled = 0
    for i in range(rows.shape[0]):
        entry = rows[i] + delay
        leave = entry + horizon
        stop = offsets[instruments[i] + 1]
        value[i] = np.nan
        exit_time[i] = no_time
        if leave < stop:
            exit_time[i] = time[leave]
            if not np.isnan(total_return[leave]) and (
                not np.isnan(total_return[entry]) or _is_price(bars[entry, 3])
            ):
                entries[filled] = entry
                places[filled] = i
                filled += 1
        elif calendar.shape[0] > 0 and entry < stop and time[stop - 1] < calendar[-1]:
            last = stop - 1
            if _is_price(bars[entry, 3]) and (not np.isnan(total_return[last]) or _is_price(bars[last, 3])):
                exit_time[i] = _cash_time(time, calendar, entry, last, horizon, no_time)
                if exit_time[i] != no_time:
                    value[i] = _finite(_compounded(total_return, entry, last) - 1.0)
        if filled == 8:
            level[:] = 1.0
            for bar in range(1, horizon + 1):
                for k in range(8):
                    moved = total_return[entries[k] + bar]
                    level[k] *= 1.0 if np.isnan(moved) else 1.0 + moved
            for k in range(8):
                value[places[k]] = _finite(level[k] - 1.0)
            filled = 0
    for k in range(filled):
        value[places[k]] = _finite(_compounded(total_return, entries[k], entries[k] + horizon) - 1.0)


@jit
def _compounded(total_return: Any, entry: int, leave: int) -> Any:
    """Growth from one row to a later one; missing returns are skipped."""
    level = 1.0
    for row in range(entry + 1, leave + 1):
        moved = total_return[row]
        level *= 1.0 if np.isnan(moved) else 1.0 + moved
    return level
