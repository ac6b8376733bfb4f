"""Compiled loops over bars that are pushed one at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy")

FINE, NOT_LATER, HIGH_BELOW_LOW, NOT_POSITIVE, INFINITE, TWICE = 0, 1, 2, 3, 4, 5


@jit
def find_fault(code: Any, time: int, bars: Any, latest: Any, fault: Any) -> int:
    """Return the position of the first bar that cannot be pushed, -1 if all can; write what is wrong with it."""
    for i in range(code.shape[0]):
        k = code[i]
        if i > 0 and k <= code[i - 1]:
            fault[0] = TWICE
            return i
        if time <= latest[k]:
            fault[0] = NOT_LATER
            return i
        if bars[i, 1] < bars[i, 2]:
            fault[0] = HIGH_BELOW_LOW
            return i
        for j in range(4):
            if bars[i, j] <= 0.0:
                fault[0] = NOT_POSITIVE
                return i
            if np.isinf(bars[i, j]):
                fault[0] = INFINITE
                return i
        if np.isinf(bars[i, 4]) or bars[i, 4] < 0.0:
            fault[0] = INFINITE
            return i
    return -1


class NewBars(NamedTuple):
    """A bar of each of some instruments, at one time."""

    code: Any
    """int64 (n,): the instruments, ascending."""
    time: int
    bars: Any
    """float64 (n, 5)."""
    returns: Any
    up: Any
    down: Any
    """Of each field of the images' rules (n,), or empty."""


class RecentBars(NamedTuple):
    """The last bars of every instrument: as many rows each, of which the first ``size[k]`` are in use."""

    bars: Any
    """float64 (instruments x room, 5)."""
    returns: Any
    up: Any
    down: Any
    """Of each field (instruments x room,), or empty."""
    times: Any
    size: Any
    total: Any
    """int64 (instruments,): bars that were ever pushed."""
    latest: Any


class PushRules(NamedTuple):
    """Rows an instrument, those that stay when they are full, and what a window needs."""

    room: int
    kept: int
    lookback: int
    needed: int
    max_missing: int
    max_gap: int


class Completed(NamedTuple):
    """Where the windows that a push completes are written: first and last row, and the instrument."""

    first: Any
    last: Any
    which: Any


@jit
def push_bars(new: Any, recent: Any, rules: Any, completed: Any) -> int:
    """Write a bar of each instrument behind its others; return how many windows they complete.

    Takes `NewBars`, `RecentBars`, `PushRules` and `Completed`, or plain tuples of the same.
    """
    code, time, bars, returns, up, down = new
    table, table_returns, table_up, table_down, times, size, total, latest = recent
    room, kept, lookback, needed, max_missing, max_gap = rules
    first, last, which = completed
    found = 0
    for i in range(code.shape[0]):
        k = code[i]
        base = k * room
        if size[k] == room:
            shift = room - kept
            for r in range(base, base + kept):
                times[r] = times[r + shift]
                for j in range(5):
                    table[r, j] = table[r + shift, j]
                if table_returns.shape[0] > 0:
                    table_returns[r] = table_returns[r + shift]
                if table_up.shape[0] > 0:
                    table_up[r] = table_up[r + shift]
                    table_down[r] = table_down[r + shift]
            size[k] = kept
        row = base + size[k]
        for j in range(5):
            table[row, j] = bars[i, j]
        if table_returns.shape[0] > 0:
            table_returns[row] = returns[i]
        if table_up.shape[0] > 0:
            table_up[row] = up[i]
            table_down[row] = down[i]
        times[row] = time
        latest[k] = time
        size[k] += 1
        total[k] += 1
        if total[k] < needed:
            continue
        missing = 0
        whole = True
        for r in range(row - lookback + 1, row + 1):
            if max_missing >= 0 and (np.isnan(table[r, 1]) or np.isnan(table[r, 2])):
                missing += 1
            if max_gap >= 0 and r > row - lookback + 1 and times[r] - times[r - 1] > max_gap:
                whole = False
        if not whole or (max_missing >= 0 and missing > max_missing):
            continue
        first[found] = base
        last[found] = row
        which[found] = k
        found += 1
    return found
