"""Compiled loops over bars: placing rows, checking and repairing bars, merging calendars, finding rows.

Nothing here checks its arguments. Every function releases the interpreter's lock and allocates next to
nothing. Arrays that are only read come in as read-only C-contiguous arrays, so that each function is compiled
once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# Kinds of findings about a bar, one bit a kind. The names and the order are those of pricepix.bars.report.BAR_KINDS.
HIGH_BELOW_LOW = 1
NONPOSITIVE_PRICE = 2
INFINITE_PRICE = 4
INFINITE_VOLUME = 8
NEGATIVE_VOLUME = 16
MISSING_BAR = 32
PARTIAL_BAR = 64
MIDPOINT_PRICE = 128
OUTSIDE_RANGE = 256
N_BAR_KINDS = 9
BAR_ERRORS = HIGH_BELOW_LOW | NONPOSITIVE_PRICE | INFINITE_PRICE | INFINITE_VOLUME | NEGATIVE_VOLUME

# Eight instruments side by side fill the cache lines of a (time, instrument) array of float64.
_TILE = 8


@njit(cache=True, nogil=True)
def first_at_least(ascending, value):
    """Return the place of the first number that is not below `value`; ``np.searchsorted`` takes a second to compile."""
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def bar_kinds(open_, high, low, close, volume, midpoint):
    """Return the bits of all findings about one bar; 0 for an ordinary one."""
    # Ordinary bars, nearly all, return here.
    if (
        low > 0.0
        and low <= open_
        and low <= close
        and open_ <= high
        and close <= high
        and high < np.inf
        and not (volume < 0.0)
        and volume != np.inf
    ):
        return 0
    kinds = 0
    if midpoint:
        if open_ < 0.0 or high < 0.0 or low < 0.0 or close < 0.0:
            kinds |= MIDPOINT_PRICE
        open_, high, low, close = abs(open_), abs(high), abs(low), abs(close)
    missing = 0
    for price in (open_, high, low, close):
        if np.isnan(price):
            missing += 1
        elif np.isinf(price):
            kinds |= INFINITE_PRICE
        elif price <= 0.0:
            kinds |= NONPOSITIVE_PRICE
    if missing == 4:
        kinds |= MISSING_BAR
    elif missing > 0:
        kinds |= PARTIAL_BAR
    if high < low:
        kinds |= HIGH_BELOW_LOW
    elif open_ < low or open_ > high or close < low or close > high:
        kinds |= OUTSIDE_RANGE
    if np.isinf(volume):
        kinds |= INFINITE_VOLUME
    elif volume < 0.0:
        kinds |= NEGATIVE_VOLUME
    return kinds


@njit(cache=True, nogil=True)
def _count(kinds, counts):
    for bit in range(N_BAR_KINDS):
        if kinds >> bit & 1:
            counts[bit] += 1


@njit(cache=True, nogil=True)
def place_bars(open_, high, low, close, volume, start, dest, midpoint, bars, counts):
    """Write a block of rows into the panel, segment by segment, and count what is wrong with them.

    Segment s is rows start[s]:start[s+1] of the block and goes to rows dest[s] and following of `bars`.
    """
    for s in range(dest.size):
        at = dest[s]
        for r in range(start[s], start[s + 1]):
            kinds = bar_kinds(open_[r], high[r], low[r], close[r], volume[r], midpoint)
            if kinds:
                _count(kinds, counts)
            bars[at, 0] = open_[r]
            bars[at, 1] = high[r]
            bars[at, 2] = low[r]
            bars[at, 3] = close[r]
            bars[at, 4] = volume[r]
            at += 1


@njit(cache=True, nogil=True)
def place_column(values, start, dest, out):
    """Write one column of a block of rows into `out`, segment by segment as `place_bars` does."""
    for s in range(dest.size):
        at = dest[s]
        for r in range(start[s], start[s + 1]):
            out[at] = values[r]
            at += 1


@njit(cache=True, nogil=True)
def place_time(ticks, scale, start, dest, out):
    """Write times into `out`, `scale` nanoseconds a tick; return the smallest and the largest tick."""
    smallest = ticks[0]
    largest = ticks[0]
    for s in range(dest.size):
        at = dest[s]
        for r in range(start[s], start[s + 1]):
            tick = ticks[r]
            smallest = min(smallest, tick)
            largest = max(largest, tick)
            out[at] = tick * scale
            at += 1
    return smallest, largest


@njit(cache=True, nogil=True)
def time_faults(time, offsets):
    """Return how many rows come before, and how many with, the row above them of their instrument."""
    before = 0
    same = 0
    for i in range(offsets.size - 1):
        for r in range(offsets[i] + 1, offsets[i + 1]):
            if time[r] <= time[r - 1]:
                if time[r] == time[r - 1]:
                    same += 1
                else:
                    before += 1
    return before, same


@njit(cache=True, nogil=True)
def sort_time(time, offsets, rank):
    """Sort the times of each instrument in place and stably; rank[r] becomes the row to which row r moved."""
    for i in range(offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        ascending = True
        for r in range(a, b):
            rank[r] = r
            if r > a and time[r] < time[r - 1]:
                ascending = False
        if not ascending:
            part = time[a:b].copy()
            order = np.argsort(part, kind="mergesort")
            for k in range(b - a):
                time[a + k] = part[order[k]]
                rank[a + order[k]] = a + k


@njit(cache=True, nogil=True)
def expand(start, dest, rank, out):
    """Write into out[r] the final row of input row r, given its segment's place and the `rank` of `sort_time`."""
    for s in range(dest.size):
        at = dest[s]
        for r in range(start[s], start[s + 1]):
            out[r] = rank[at]
            at += 1


@njit(cache=True, nogil=True)
def spans(open_, high, low, close, total_return, has_return, first, stop):
    """Write each instrument's first bar with a price and one past its last; arrays are (day, instrument, interval).

    After a price, a bar whose total return is known counts as well: the return of a delisting has no price.
    """
    days, width, intervals = open_.shape
    for j in range(width):
        first[j] = days * intervals
        stop[j] = 0
    for tile in range(0, width, _TILE):
        for d in range(days):
            for j in range(tile, min(tile + _TILE, width)):
                for k in range(intervals):
                    known = not (
                        np.isnan(open_[d, j, k])
                        and np.isnan(high[d, j, k])
                        and np.isnan(low[d, j, k])
                        and np.isnan(close[d, j, k])
                    )
                    t = d * intervals + k
                    if known:
                        first[j] = min(first[j], t)
                        stop[j] = t + 1
                    elif has_return and stop[j] > 0 and not np.isnan(total_return[d, j, k]):
                        stop[j] = t + 1


@njit(cache=True, nogil=True)
def fill_bars(open_, high, low, close, volume, has_volume, first, stop, dest, midpoint, bars, counts):
    """Turn a block of (day, instrument, interval) arrays into rows of the panel and count what is wrong."""
    days, width, intervals = open_.shape
    for tile in range(0, width, _TILE):
        for d in range(days):
            for j in range(tile, min(tile + _TILE, width)):
                for k in range(intervals):
                    t = d * intervals + k
                    if t < first[j] or t >= stop[j]:
                        continue
                    at = dest[j] + t - first[j]
                    v = volume[d, j, k] if has_volume else np.nan
                    o, h, lo, c = open_[d, j, k], high[d, j, k], low[d, j, k], close[d, j, k]
                    kinds = bar_kinds(o, h, lo, c, v, midpoint)
                    if kinds:
                        _count(kinds, counts)
                    bars[at, 0] = o
                    bars[at, 1] = h
                    bars[at, 2] = lo
                    bars[at, 3] = c
                    bars[at, 4] = v


@njit(cache=True, nogil=True)
def fill_column(values, first, stop, dest, out):
    """Turn a block of a (day, instrument, interval) array into rows, as `fill_bars` does."""
    days, width, intervals = values.shape
    for tile in range(0, width, _TILE):
        for d in range(days):
            for j in range(tile, min(tile + _TILE, width)):
                for k in range(intervals):
                    t = d * intervals + k
                    if t >= first[j] and t < stop[j]:
                        out[dest[j] + t - first[j]] = values[d, j, k]


@njit(cache=True, nogil=True)
def first_rows(bars, midpoint, counts, found):
    """Fill found[kind] with the first rows of each kind that was counted; stop as soon as all are there."""
    wanted = 0
    for bit in range(N_BAR_KINDS):
        wanted += min(counts[bit], found.shape[1])
    seen = np.zeros(N_BAR_KINDS, np.int64)
    for r in range(bars.shape[0]):
        if wanted == 0:
            return
        kinds = bar_kinds(bars[r, 0], bars[r, 1], bars[r, 2], bars[r, 3], bars[r, 4], midpoint)
        if kinds:
            for bit in range(N_BAR_KINDS):
                if kinds >> bit & 1 and seen[bit] < found.shape[1]:
                    found[bit, seen[bit]] = r
                    seen[bit] += 1
                    wanted -= 1


@njit(cache=True, nogil=True)
def missing_returns(bars, total_return, offsets, found):
    """Count rows with a close but no total return, each instrument's first close apart; name the first in `found`.

    Also return how many of them come before their instrument's first total return after its first close.
    """
    count = 0
    before = 0
    for i in range(offsets.size - 1):
        priced = False
        begun = False
        for r in range(offsets[i], offsets[i + 1]):
            # Returns are nearly all known once there is a price: the bars need not be read.
            if priced and not np.isnan(total_return[r]):
                begun = True
                continue
            if bars[r, 3] > 0.0 and bars[r, 3] < np.inf:
                if priced:
                    if count < found.size:
                        found[count] = r
                    count += 1
                    before += not begun
                priced = True
    return count, before


@njit(cache=True, nogil=True)
def count_alive(bars, time, offsets, calendar, change, priced):
    """Count the instruments that have a close at each time of the calendar, in `priced` (times,).

    The running sum of `change` (times + 1,) is the number of those that are alive: from first to last row.
    """
    for i in range(offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        if a == b:
            continue
        j = first_at_least(calendar, time[a])
        change[j] += 1
        for r in range(a, b):
            while calendar[j] < time[r]:
                j += 1
            priced[j] += not np.isnan(bars[r, 3])
        change[j + 1] -= 1


@njit(cache=True, nogil=True)
def absent_rows(time, offsets, calendar, before, absent, found):
    """Count the times that each instrument lacks between its rows; name the first rows after such a hole in `found`.

    `before` (times + 1,) counts the times of the calendar, before each, that are not thin: only these count.
    """
    named = 0
    for i in range(offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        if a == b:
            continue
        j = first_at_least(calendar, time[a])
        for r in range(a + 1, b):
            last = j
            while calendar[j] < time[r]:
                j += 1
            missing = before[j] - before[last + 1]
            if missing > 0:
                absent[i] += missing
                if named < found.size:
                    found[named] = r
                    named += 1


@njit(cache=True, nogil=True)
def spread_rows(time, offsets, calendar, thin, new_offsets, source, out_time):
    """Write the rows of a panel in which instruments lack no time that is not thin between their rows.

    `source` is the old row of each new one, -1 for a new one. `new_offsets` must come filled.
    """
    for i in range(offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        if a == b:
            continue
        at = new_offsets[i]
        j = first_at_least(calendar, time[a])
        for r in range(a, b):
            while calendar[j] < time[r]:
                if not thin[j]:
                    source[at] = -1
                    out_time[at] = calendar[j]
                    at += 1
                j += 1
            source[at] = r
            out_time[at] = time[r]
            at += 1
            j += 1


@njit(cache=True, nogil=True)
def repair(bars, midpoint, drop, factor, adjust):
    """Make midpoints positive and bad bars missing, and adjust prices by the factor, as asked for.

    adjust 0: not at all; 1: price / factor and volume * factor; 2: price * factor and volume / factor.
    Returns the number of bars made missing.
    """
    dropped = 0
    for r in range(bars.shape[0]):
        if drop:
            kinds = bar_kinds(bars[r, 0], bars[r, 1], bars[r, 2], bars[r, 3], bars[r, 4], midpoint)
            bad = kinds & BAR_ERRORS != 0
            if adjust != 0 and kinds & MISSING_BAR == 0 and not (factor[r] > 0.0 and factor[r] < np.inf):
                bad = True
            if bad:
                dropped += 1
                for k in range(5):
                    bars[r, k] = np.nan
                continue
        if midpoint:
            for k in range(4):
                bars[r, k] = abs(bars[r, k])
        if adjust == 1:
            for k in range(4):
                bars[r, k] /= factor[r]
            bars[r, 4] *= factor[r]
        elif adjust == 2:
            for k in range(4):
                bars[r, k] *= factor[r]
            bars[r, 4] /= factor[r]
    return dropped


# A step is the quotient of two factors, each rounded several times: a few 1e-16 of it, with room for vendors who
# multiply their factors again at every split.
_STEP_ERROR = 1e-13
# Numerator times denominator up to which a fraction near a step is what was meant: 50 to 1, 9,999 to 10,000.
_LARGEST_FRACTION = 1e8


@njit(cache=True, nogil=True)
def step_ratio(x):
    """Return a factor's step freed from rounding: quotients that stand for one ratio give one number.

    A fraction of small whole numbers, as every split is, is that fraction. Any other ratio is rounded to 9 digits;
    two quotients of one such ratio fall on different sides of a half about once in a million. Those of small
    fractions never do: two fractions p/q with p q <= 1e8 differ by at least 1e-8 of their size.
    """
    if not (x > 1e-100 and x < 1e100):
        return x
    y = x if x >= 1.0 else 1.0 / x
    # The convergents of its continued fraction: those that are nearer than all with smaller denominators.
    before, p, before_q, q = 1.0, np.floor(y), 0.0, 1.0
    rest = y - p
    while p * q <= _LARGEST_FRACTION:
        if abs(p / q - y) <= _STEP_ERROR * y:
            return p / q if x >= 1.0 else q / p
        if rest <= 0.0:
            break
        rest = 1.0 / rest
        whole = np.floor(rest)
        before, p = p, whole * p + before
        before_q, q = q, whole * q + before_q
        rest -= whole
    scale = 10.0 ** (8.0 - np.floor(np.log10(x)))
    return np.rint(x * scale) / scale


@njit(cache=True, nogil=True)
def is_factor(value):
    """Whether an adjustment factor can be applied."""
    return value > 0.0 and value < np.inf


@njit(cache=True, nogil=True)
def factors_from_first(bars, factor, offsets, out):
    """Write each row's factor relative to that of the instrument's first bar with a price and a factor."""
    for i in range(offsets.size - 1):
        last = np.nan
        level = 1.0
        for r in range(offsets[i], offsets[i + 1]):
            f = factor[r]
            if not is_factor(f):
                out[r] = np.nan
                continue
            if np.isnan(last):
                priced = False
                for k in range(4):
                    priced |= not np.isnan(bars[r, k])
                if priced:
                    last = f
            elif f != last:
                level *= step_ratio(f / last)
                last = f
            out[r] = level


@njit(cache=True, nogil=True)
def count_steps(factor, first, last):
    """Count the changes of factors (days, stocks) from each stock's first day on; `last` is the factor before."""
    count = 0
    for d in range(factor.shape[0]):
        for s in range(factor.shape[1]):
            f = factor[d, s]
            if d >= first[s] and is_factor(f):
                count += not np.isnan(last[s]) and f != last[s]
                last[s] = f
    return count


@njit(cache=True, nogil=True)
def find_steps(factor, first, last, level, day, stock, to):
    """Write the changes that `count_steps` counts: day, stock, and the factor relative to the first from then on."""
    n = 0
    for d in range(factor.shape[0]):
        for s in range(factor.shape[1]):
            f = factor[d, s]
            if d < first[s] or not is_factor(f):
                continue
            if not np.isnan(last[s]) and f != last[s]:
                level[s] *= step_ratio(f / last[s])
                day[n] = d
                stock[n] = s
                to[n] = level[s]
                n += 1
            last[s] = f


@njit(cache=True, nogil=True)
def spread_steps(day, stock, level, first_day, first_stock, factor, out):
    """Write the factors of days and stocks from those on, given all steps before their end; see `find_steps`.

    A `factor` that cannot be applied stands as it is.
    """
    days, width = out.shape
    current = np.ones(width)
    k = 0
    for d in range(days):
        while k < day.size and day[k] <= first_day + d:
            s = stock[k] - first_stock
            if s >= 0 and s < width:
                current[s] = level[k]
            k += 1
        for s in range(width):
            out[d, s] = current[s] if is_factor(factor[d, s]) else factor[d, s]


@njit(cache=True, nogil=True)
def times_outside(time, offsets, begin, calendar, out):
    """Write the times that `calendar` lacks into `out`, instrument by instrument from `begin` on.

    Stops before the first instrument that might not fit. Returns that instrument and the number of times written.
    """
    n = 0
    for i in range(begin, offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        if n + b - a > out.size:
            return i, n
        if a == b:
            continue
        j = first_at_least(calendar, time[a])
        for r in range(a, b):
            t = time[r]
            while j < calendar.size and calendar[j] < t:
                j += 1
            if j < calendar.size and calendar[j] == t:
                j += 1
            else:
                out[n] = t
                n += 1
    return offsets.size - 1, n


@njit(cache=True, nogil=True)
def time_codes(time, offsets, calendar, out):
    """Write into out[r] the position of time[r] in the calendar, which has every time."""
    for i in range(offsets.size - 1):
        a, b = offsets[i], offsets[i + 1]
        if a == b:
            continue
        j = first_at_least(calendar, time[a])
        for r in range(a, b):
            while calendar[j] < time[r]:
                j += 1
            out[r] = j


@njit(cache=True, nogil=True)
def run_places(start, code, offsets, dest):
    """Write into dest[s] the row of the panel at which run s begins, and fill `offsets` (instruments + 1).

    A counting sort: runs of one instrument follow each other in input order.
    """
    offsets[:] = 0
    for s in range(code.size):
        offsets[code[s] + 1] += start[s + 1] - start[s]
    for i in range(offsets.size - 1):
        offsets[i + 1] += offsets[i]
    free = offsets[:-1].copy()
    for s in range(code.size):
        dest[s] = free[code[s]]
        free[code[s]] += start[s + 1] - start[s]


@njit(cache=True, nogil=True)
def find_rows(panel_time: Any, offsets: Any, instrument: Any, time: Any, row: Any) -> None:
    """Write the panel row of each (instrument, time), -1 where there is none."""
    for i in range(instrument.shape[0]):
        row[i] = -1
        code = instrument[i]
        if code < 0 or code >= offsets.shape[0] - 1:
            continue
        low, high = offsets[code], offsets[code + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if panel_time[middle] < time[i]:
                low = middle + 1
            else:
                high = middle
        if low < end and panel_time[low] == time[i]:
            row[i] = low
