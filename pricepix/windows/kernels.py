"""Compiled loops over the rows of a panel: which windows are kept, their order, forward returns."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy")

KEPT = 0
# Above the renderer's own codes, with which these share one byte a row.
TOO_SHORT, MA_WARMUP, MASKED, SAMPLED_OUT, GAP, MISSING_BARS, NO_CANDIDATE = 100, 101, 102, 103, 104, 105, 106


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


@jit
def classify_rows(
    bars: Any, time: Any, offsets: Any, scheduled: Any, time_code: Any, start: int, end: int, lookback: int,
    history: int, eligible: Any, sample: float, seeds: Any, max_gap: int, max_missing: int, reason: Any,
) -> int:  # fmt: skip
    """Write for every panel row why no window ends there, KEPT where one may; return how many may.

    Empty `scheduled` or `eligible` mean all; negative `max_gap` or `max_missing` mean no limit. Of several
    reasons the first one found is written, cheap checks first.
    """
    kept = 0
    for instrument in range(offsets.shape[0] - 1):
        first = offsets[instrument]
        gap_row = first  # the window must start here or later, for no hole to lie inside it
        missing = 0
        for row in range(first, offsets[instrument + 1]):
            if max_gap >= 0 and row > first and time[row] - time[row - 1] > max_gap:
                gap_row = row
            if max_missing >= 0:
                missing += np.isnan(bars[row, 1]) or np.isnan(bars[row, 2])
                left = row - lookback
                if left >= first:
                    missing -= np.isnan(bars[left, 1]) or np.isnan(bars[left, 2])
            if (
                time[row] < start
                or time[row] > end
                or (scheduled.shape[0] > 0 and not scheduled[time_code[row]])
            ):
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
def price_returns(
    close: Any, time: Any, offsets: Any, rows: Any, instruments: Any, horizon: int, delay: int,
    value: Any, exit_time: Any, no_time: int,
) -> None:  # fmt: skip
    """close(t + d + h) / close(t + d) - 1, NaN where either is missing or does not exist."""
    for i in range(rows.shape[0]):
        entry = rows[i] + delay
        leave = entry + horizon
        value[i] = np.nan
        exit_time[i] = no_time
        if leave < offsets[instruments[i] + 1]:
            exit_time[i] = time[leave]
            a, b = close[entry, 3], close[leave, 3]
            if a > 0.0 and b > 0.0 and not np.isinf(a) and not np.isinf(b):
                value[i] = _finite(b / a - 1.0)


@jit
def total_returns(
    total_return: Any, time: Any, offsets: Any, rows: Any, instruments: Any, horizon: int, delay: int,
    value: Any, exit_time: Any, no_time: int,
) -> None:  # fmt: skip
    """Compound the total returns of bars t + d + 1 to t + d + h.

    A missing return inside is skipped, as a return is quoted against the last price that exists; one at the
    exit or at the entry (unless that is the instrument's first bar, which never has one) makes the label NaN.

    Eight windows at a time: each product waits for the one before, so a single window would leave the CPU idle
    most of the time (a quarter of the speed at 60 bars).
    """
    level = np.empty(8)
    entries = np.empty(8, np.int64)
    places = np.empty(8, np.int64)
    filled = 0
    for i in range(rows.shape[0]):
        first = offsets[instruments[i]]
        entry = rows[i] + delay
        leave = entry + horizon
        value[i] = np.nan
        exit_time[i] = no_time
        if leave < offsets[instruments[i] + 1]:
            exit_time[i] = time[leave]
            if not np.isnan(total_return[leave]) and not (entry > first and np.isnan(total_return[entry])):
                entries[filled] = entry
                places[filled] = i
                filled += 1
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
        level[0] = 1.0
        for bar in range(1, horizon + 1):
            moved = total_return[entries[k] + bar]
            level[0] *= 1.0 if np.isnan(moved) else 1.0 + moved
        value[places[k]] = _finite(level[0] - 1.0)
