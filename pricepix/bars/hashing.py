"""Digests of bars, computed by compiled loops: of whole instruments, or of a panel that is read in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

jit = njit(cache=True, nogil=True)

_NAN_BITS = np.uint64(0x7FF8000000000000)
_INF_BITS = np.uint64(0x7FF0000000000000)
_SIGN_OFF = np.uint64(0x7FFFFFFFFFFFFFFF)
_MINUS_ZERO = np.uint64(0x8000000000000000)
# The odd multipliers of xxHash64.
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_U0 = np.uint64(0)
_U29 = np.uint64(29)
_U31 = np.uint64(31)
_U32 = np.uint64(32)
_U33 = np.uint64(33)
#: What the six lanes of an instrument's digest start from.
START = (_P1, _P2, _P3, _P4, _P5, _P1 ^ _P3)


@jit
def _canonical(bits):
    # Every NaN is the same missing value and -0.0 is 0.0, whatever their bits.
    if bits & _SIGN_OFF > _INF_BITS:
        return _NAN_BITS
    if bits == _MINUS_ZERO:
        return _U0
    return bits


@jit
def _round(acc, value):
    # One round of xxHash64: every step is invertible, so inputs that differ in one value never collide.
    acc += value * _P2
    acc = (acc << _U31) | (acc >> _U33)
    return acc * _P1


@jit
def _avalanche(x):
    x ^= x >> _U33
    x *= _P2
    x ^= x >> _U29
    x *= _P3
    x ^= x >> _U32
    return x


@jit
def hash_bars(bars, time, offsets, out):
    """Write 128 bits of each instrument's times and bars into out (instruments, 2); inputs are viewed as uint64.

    Six lanes, one a column, keep six multiplications in flight: the loop runs as fast as memory is read, several
    times faster than a cryptographic hash. Collision resistance against an adversary is not needed.
    """
    for i in range(offsets.size - 1):
        a0, a1, a2, a3, a4, a5 = _P1, _P2, _P3, _P4, _P5, _P1 ^ _P3
        for r in range(offsets[i], offsets[i + 1]):
            a0 = _round(a0, _canonical(bars[r, 0]))
            a1 = _round(a1, _canonical(bars[r, 1]))
            a2 = _round(a2, _canonical(bars[r, 2]))
            a3 = _round(a3, _canonical(bars[r, 3]))
            a4 = _round(a4, _canonical(bars[r, 4]))
            a5 = _round(a5, time[r])
        x, y = _P4, _P5
        for lane in (a0, a1, a2, a3, a4, a5):
            x = _round(x, lane)
            y = _round(y ^ x, _avalanche(lane))
        out[i, 0] = _avalanche(x)
        out[i, 1] = _avalanche(y)


@jit
def hash_column(values, offsets, salt, out):
    """Mix one per-row field (float64 viewed as uint64, or bool viewed as uint8) into out (instruments, 2)."""
    for i in range(offsets.size - 1):
        acc = salt
        for r in range(offsets[i], offsets[i + 1]):
            acc = _round(acc, _canonical(np.uint64(values[r])))
        x = _round(out[i, 0], acc)
        y = _round(out[i, 1] ^ x, _avalanche(acc))
        out[i, 0] = _avalanche(x)
        out[i, 1] = _avalanche(y)


@jit
def hash_rows(bars: Any, time: Any, first: Any, last: Any, acc: Any) -> None:
    """Take rows first[i] to last[i] of each instrument into its lanes: `hash_bars` in pieces."""
    for i in range(first.size):
        for r in range(first[i], last[i]):
            for lane in range(5):
                acc[i, lane] = _round(acc[i, lane], _canonical(bars[r, lane]))
            acc[i, 5] = _round(acc[i, 5], time[r])


@jit
def hash_field(values: Any, first: Any, last: Any, acc: Any) -> None:
    """Take a per-row field into its lane: `hash_column` in pieces."""
    for i in range(first.size):
        for r in range(first[i], last[i]):
            acc[i] = _round(acc[i], _canonical(np.uint64(values[r])))


@jit
def hash_end(acc: Any, out: Any) -> None:
    """Write 128 bits of each instrument's lanes, those of the bars first, into out (instruments, 2)."""
    for i in range(acc.shape[0]):
        x, y = _P4, _P5
        for lane in range(6):
            x = _round(x, acc[i, lane])
            y = _round(y ^ x, _avalanche(acc[i, lane]))
        x, y = _avalanche(x), _avalanche(y)
        for lane in range(6, acc.shape[1]):
            u = _round(x, acc[i, lane])
            y = _avalanche(_round(y ^ u, _avalanche(acc[i, lane])))
            x = _avalanche(u)
        out[i, 0] = x
        out[i, 1] = y
