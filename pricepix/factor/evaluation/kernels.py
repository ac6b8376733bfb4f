"""Compiled loops of an evaluation: sorting the instruments of every date, rank correlations, forward returns.

Nothing here checks its arguments. Matrices are C-contiguous (dates, instruments); a call works on the rows from
`first` to below `last`, writes only those, and releases the interpreter's lock, so that
`row_blocks.on_threads` can divide them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "DIES",
    "ENDS",
    "KNOWN",
    "LONGER",
    "OwnBars",
    "average_ranks",
    "forward_spans",
    "lay_out",
    "mann_whitney",
    "rank_correlations",
    "sort_rows",
    "trend_values",
    "upper_triangle",
]

_jit = njit(cache=True, nogil=True, error_model="numpy")

# Bits of the state of a forward return: the instrument has enough bars of its own; its rows end first, before those
# of the market do; its values at both ends are known; it spans more bars of the market than the horizon.
ENDS, DIES, KNOWN, LONGER = 1, 2, 4, 8

# The ratio of two levels carries an error of 1e-16 a bar between them.
_ROUNDING: Final = 1e-12

# Fewer values are sorted by insertion: clearing and adding up the counters of the digits takes longer.
_FEW: Final = 48
_DIGITS: Final = 8
_ALL_BUT_SIGN: Final = 2**63 - 1
_SIGN: Final = -(2**63)


@_jit
def sort_rows(first, last, values, order, count):
    """Sort the places of what is not NaN in each row by its value, ties by place; `count` says how many there are."""
    n = values.shape[1]
    bits = values.view(np.int64)
    keys, moved = np.empty(n, np.int64), np.empty(n, np.int64)
    place, moved_place = np.empty(n, np.int32), np.empty(n, np.int32)
    digits = np.empty((_DIGITS, 256), np.int64)
    for row in range(first, last):
        m = 0
        for j in range(n):
            value = values[row, j]
            if not np.isnan(value):
                # Signed whole numbers in the order of the floats; the two zeros are one.
                key = np.int64(0) if value == 0.0 else bits[row, j]
                keys[m] = key ^ ((key >> 63) & _ALL_BUT_SIGN)
                place[m] = j
                m += 1
        count[row] = m
        if m <= _FEW:
            for i in range(1, m):
                key, own = keys[i], place[i]
                k = i
                while k > 0 and keys[k - 1] > key:
                    keys[k], place[k] = keys[k - 1], place[k - 1]
                    k -= 1
                keys[k], place[k] = key, own
            for i in range(m):
                order[row, i] = place[i]
            continue
        digits[:] = 0
        for i in range(m):
            key = keys[i] ^ _SIGN
            keys[i] = key
            for d in range(_DIGITS):
                digits[d, (key >> (8 * d)) & 255] += 1
        for d in range(_DIGITS):
            # Scores are float32: three of their digits are all zero.
            if digits[d, (keys[0] >> (8 * d)) & 255] == m:
                continue
            before = 0
            for k in range(256):
                here = digits[d, k]
                digits[d, k] = before
                before += here
            for i in range(m):
                k = (keys[i] >> (8 * d)) & 255
                to = digits[d, k]
                digits[d, k] = to + 1
                moved[to], moved_place[to] = keys[i], place[i]
            keys, moved = moved, keys
            place, moved_place = moved_place, place
        for i in range(m):
            order[row, i] = place[i]


@_jit
def average_ranks(first, last, values, order, count, ranks):
    """Rank sorted rows from 1 up; ties share the mean of their ranks, NaN stays NaN."""
    for row in range(first, last):
        ranks[row] = np.nan
        a = 0
        while a < count[row]:
            value = values[row, order[row, a]]
            b = a + 1
            while b < count[row] and values[row, order[row, b]] == value:
                b += 1
            for i in range(a, b):
                ranks[row, order[row, i]] = 0.5 * (a + b - 1) + 1.0
            a = b


@_jit
def rank_correlations(first, last, x, x_order, x_count, y, y_order, y_count, minimum, out):
    """Correlate the ranks of two sorted matrices in each row, over what is known in both; ties share their mean.

    Twice the distance of a rank from the mean rank is a whole number, so that all sums are exact below 2^53, which
    takes more than 200,000 instruments: the result does not depend on the order of summation.
    """
    n = x.shape[1]
    member = np.empty(n, np.int32)
    distance = np.empty(n)
    for row in range(first, last):
        out[row] = np.nan
        m = 0
        for i in range(x_count[row]):
            j = x_order[row, i]
            member[m] = j
            m += 0 if np.isnan(y[row, j]) else 1
        if m < minimum:
            continue
        xx = 0.0
        a = 0
        while a < m:
            value = x[row, member[a]]
            b = a + 1
            while b < m and x[row, member[b]] == value:
                b += 1
            own = float(a + b - m)
            for i in range(a, b):
                distance[member[i]] = own
            xx += own * own * (b - a)
            a = b
        m = 0
        for i in range(y_count[row]):
            j = y_order[row, i]
            member[m] = j
            m += 0 if np.isnan(x[row, j]) else 1
        xy = yy = 0.0
        a = 0
        while a < m:
            value = y[row, member[a]]
            total = distance[member[a]]
            b = a + 1
            while b < m and y[row, member[b]] == value:
                total += distance[member[b]]
                b += 1
            own = float(a + b - m)
            xy += own * total
            yy += own * own * (b - a)
            a = b
        # One side constant: no rank lies off the mean.
        if xx > 0.0 and yy > 0.0:
            out[row] = min(1.0, max(-1.0, xy / np.sqrt(xx * yy)))


@_jit
def mann_whitney(first, last, score, order, count, returns, out):
    """Return in each row the chance that a random rise is scored above a random fall, ties counting half."""
    for row in range(first, last):
        # Twice the number of falls below each rise, where a tie counts once.
        below = twice = rises = 0
        a = 0
        while a < count[row]:
            value = score[row, order[row, a]]
            b, up, down = a, 0, 0
            while b < count[row] and score[row, order[row, b]] == value:
                change = returns[row, order[row, b]]
                up += 1 if change > 0.0 else 0
                down += 1 if change <= 0.0 else 0
                b += 1
            twice += up * (2 * below + down)
            below += down
            rises += up
            a = b
        out[row] = 0.5 * twice / (float(rises) * below) if rises and below else np.nan


class OwnBars(NamedTuple):
    """Where the bars of each instrument lie in a market's calendar."""

    row: NDArray[np.int64]
    """int64 (bars, instruments): the panel row at each bar of the calendar, -1 without one."""
    time_code: NDArray[np.int32]
    """int32 (rows,): the bar of each panel row."""
    known: NDArray[np.bool_]
    """bool (rows,): whether the value there is known."""
    end: NDArray[np.int64]
    """int64 (instruments,): the row after each instrument's last."""
    ended: NDArray[np.bool_]
    """bool (instruments,): whether the market outlives it."""


@_jit
def forward_spans(
    first,
    last,
    position,
    bars,
    level,
    breaks,
    horizon,
    delay,
    hold,
    value,
    state,
):
    """Return forward returns and their state, over `horizon` of each instrument's own bars.

    `bars` are `OwnBars`. `level` and `breaks`, which may be empty, are by bar and instrument. With `hold`, an
    instrument whose rows end first has the return to its last level.
    """
    row, time_code, known, end, ended = bars
    final = row.shape[0] - 1
    for t in range(first, last):
        at = position[t]
        for j in range(row.shape[1]):
            value[t, j] = np.nan
            state[t, j] = 0
            enter = row[at, j] + delay
            if row[at, j] < 0 or enter >= end[j]:
                continue
            leave = enter + horizon
            bar = time_code[enter]
            ends = leave < end[j]
            dies = not ends and ended[j] and bar + horizon <= final
            if not ends:
                leave = end[j] - 1
            exit_ = time_code[leave]
            both = known[enter] and known[leave]
            found = (ENDS if ends else 0) | (DIES if dies else 0) | (KNOWN if both else 0)
            if ends and both and exit_ - bar > horizon:
                found |= LONGER
            state[t, j] = found
            if not both or not (ends or (hold and dies)):
                continue
            if breaks.shape[0] and breaks[exit_, j] != breaks[bar, j]:
                continue
            change = level[exit_, j] / level[bar, j] - 1.0
            if np.isfinite(change):
                # A move and its reversal compound to 1 but for rounding, which is not a rise.
                value[t, j] = 0.0 if abs(change) < _ROUNDING else change


@_jit
def trend_values(first, last, at, level, total, prices, lags, used, slope, out):
    """Return in each row the averages over price that are `used` there, times their slopes; NaN where one is missing.

    `total` holds the sums of the levels before each bar, `prices` how many of them are known.
    """
    for row in range(first, last):
        t = at[row]
        any_used = False
        for k in range(len(lags)):
            any_used |= used[row, k]
        for j in range(level.shape[1]):
            value = 0.0 if any_used else np.nan
            for k in range(len(lags)):
                if used[row, k]:
                    lag = lags[k]
                    if prices[t, j] < lag:
                        value = np.nan
                        break
                    value += (total[t + 1, j] - total[t + 1 - lag, j]) / lag / level[t, j] * slope[row, k]
            out[row, j] = value


@_jit
def upper_triangle(block, out):
    """Write the triangle R of the QR decomposition of a block (rows, columns), by Householder; the block is lost.

    LAPACK's threads wait for each other some dozen times in so small a block, which on a busy machine takes longer
    than the arithmetic.
    """
    rows, columns = block.shape
    shares = np.empty(columns)
    for k in range(columns):
        square = 0.0
        for i in range(k, rows):
            square += block[i, k] * block[i, k]
        length = np.sqrt(square)
        for j in range(columns):
            out[k, j] = 0.0
        if length > 0.0:
            pivot = block[k, k]
            diagonal = -length if pivot > 0.0 else length
            block[k, k] = pivot - diagonal
            scale = 1.0 / (length * (length + abs(pivot)))
            shares[:] = 0.0
            for i in range(k, rows):
                for j in range(k + 1, columns):
                    shares[j] += block[i, k] * block[i, j]
            for i in range(k, rows):
                for j in range(k + 1, columns):
                    block[i, j] -= scale * block[i, k] * shares[j]
            out[k, k] = diagonal
        for j in range(k + 1, columns):
            out[k, j] = block[k, j]


@_jit
def lay_out(first, last, column, row, out):
    """Lay a column of the panel on the grid of its rows; NaN where there is none."""
    for t in range(first, last):
        for j in range(row.shape[1]):
            out[t, j] = column[row[t, j]] if row[t, j] >= 0 else np.nan
