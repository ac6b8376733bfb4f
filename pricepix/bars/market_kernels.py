"""Compiled loops over market caches, and over short bars that are merged into longer ones."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@jit
def clear_no_trade(o: Any, h: Any, lo: Any, c: Any, v: Any, has_volume: bool, by_volume: bool) -> None:
    """Make bars of no trade missing: all prices 0, or with `by_volume` a volume of 0."""
    for d in range(o.shape[0]):
        for s in range(o.shape[1]):
            for k in range(o.shape[2]):
                empty = o[d, s, k] == 0.0 and h[d, s, k] == 0.0 and lo[d, s, k] == 0.0 and c[d, s, k] == 0.0
                if empty or (has_volume and by_volume and v[d, s, k] == 0.0):
                    o[d, s, k] = np.nan
                    h[d, s, k] = np.nan
                    lo[d, s, k] = np.nan
                    c[d, s, k] = np.nan
                    if has_volume:
                        v[d, s, k] = np.nan


@jit
def adjust(o: Any, h: Any, lo: Any, c: Any, v: Any, has_volume: bool, factor: Any) -> int:
    """Multiply prices by the day's factor, divide volume by it; return the first day and stock that lacks one, or -1.

    Day and stock are returned as one number, day * stocks + stock.
    """
    for d in range(o.shape[0]):
        for s in range(o.shape[1]):
            f = factor[d, s]
            good = f > 0.0 and f < np.inf
            for k in range(o.shape[2]):
                if not good:
                    if not (
                        np.isnan(o[d, s, k])
                        and np.isnan(h[d, s, k])
                        and np.isnan(lo[d, s, k])
                        and np.isnan(c[d, s, k])
                    ):
                        return d * o.shape[1] + s
                    continue
                o[d, s, k] *= f
                h[d, s, k] *= f
                lo[d, s, k] *= f
                c[d, s, k] *= f
                if has_volume:
                    v[d, s, k] /= f
    return -1


@jit
def at_limit(close: Any, limit: Any, tolerance: float, first: Any, stop: Any, dest: Any, out: Any) -> None:
    """Flag the rows whose close lies at its day's limit; a missing close does not."""
    days, width, intervals = close.shape
    for d in range(days):
        for s in range(width):
            for k in range(intervals):
                t = d * intervals + k
                if first[s] <= t < stop[s]:
                    out[dest[s] + t - first[s]] = abs(limit[d, s] - close[d, s, k]) < tolerance


@jit
def may_end(o: Any, h: Any, lo: Any, c: Any, chosen: Any, first: Any, stop: Any, dest: Any, out: Any) -> None:
    """Flag the rows at which a window may end: any price, on a (day, stock) that is chosen."""
    days, width, intervals = o.shape
    for d in range(days):
        for s in range(width):
            for k in range(intervals):
                t = d * intervals + k
                if first[s] <= t < stop[s]:
                    priced = False
                    for p in (o[d, s, k], h[d, s, k], lo[d, s, k], c[d, s, k]):
                        priced |= not np.isnan(p) and p != 0.0
                    out[dest[s] + t - first[s]] = priced and chosen[d, s]


@jit
def fill_times(stamps: Any, first: Any, stop: Any, dest: Any, out: Any) -> None:
    """Write the times of each instrument's stretch of the calendar into its rows."""
    for s in range(first.size):
        for t in range(first[s], stop[s]):
            out[dest[s] + t - first[s]] = stamps[t]


@jit
def group_rows(offsets: Any, time: Any, start: Any, group: Any, first: Any, counts: Any) -> int:
    """Number the new bars: ``group[row]`` is the bar of each row (-1: none), ``first[g]`` its first row.

    `start` is the start of each row's bar, the smallest int64 for a row outside the hours; rows of one bar
    are adjacent. ``counts[i]`` becomes the number of bars of instrument i.
    """
    n = 0
    for i in range(offsets.size - 1):
        last = np.iinfo(np.int64).min
        counts[i] = 0
        for row in range(offsets[i], offsets[i + 1]):
            if start[row] == np.iinfo(np.int64).min:
                group[row] = -1
                continue
            if start[row] != last:
                last = start[row]
                first[n] = row
                n += 1
                counts[i] += 1
            group[row] = n - 1
    return n


@jit
def merge_bars(bars: Any, group: Any, out: Any) -> None:
    """Open of the first, highest high, lowest low, close of the last, sum of the volumes; NaN is skipped."""
    out[:] = np.nan
    for row in range(group.size):
        g = group[row]
        if g < 0:
            continue
        if np.isnan(out[g, 0]):
            out[g, 0] = bars[row, 0]
        h, lo, c, v = bars[row, 1], bars[row, 2], bars[row, 3], bars[row, 4]
        if not np.isnan(h) and not h <= out[g, 1]:
            out[g, 1] = h
        if not np.isnan(lo) and not lo >= out[g, 2]:
            out[g, 2] = lo
        if not np.isnan(c):
            out[g, 3] = c
        if not np.isnan(v):
            out[g, 4] = v if np.isnan(out[g, 4]) else out[g, 4] + v


@jit
def merge_returns(values: Any, group: Any, out: Any) -> None:
    """Compound total returns; missing ones are skipped."""
    out[:] = np.nan
    for row in range(group.size):
        g = group[row]
        if g >= 0 and not np.isnan(values[row]):
            out[g] = values[row] if np.isnan(out[g]) else (1.0 + out[g]) * (1.0 + values[row]) - 1.0


@jit
def merge_last(values: Any, group: Any, out: Any) -> None:
    """Keep the last value of each bar."""
    for row in range(group.size):
        if group[row] >= 0:
            out[group[row]] = values[row]
