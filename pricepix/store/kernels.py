"""Compiled loops of stores: finding panel rows again, bits of chunks."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True)


@jit
def first_blank(images: Any) -> int:
    """Return the first row of uint64 (n, words) that is all zero, -1 if there is none."""
    for i in range(images.shape[0]):
        blank = True
        for j in range(images.shape[1]):
            if images[i, j] != np.uint64(0):
                blank = False
                break
        if blank:
            return i
    return -1


@jit
def translate(source: Any, table: Any, out: Any) -> None:
    """Write what `table` holds for every byte: a third of the time of ``table[source]`` in numpy."""
    for i in range(source.shape[0]):
        out[i] = table[source[i]]


# Gathers the top bit of eight bytes, the first byte's as the most significant.
_GATHER = np.uint64(0x8040201008040201)

_TOP = np.uint64(0x0101010101010101)

_SEVEN = np.uint64(7)

_BYTE = np.uint64(56)


@jit
def pack_words(words: Any, which: Any, packed: Any) -> None:
    """Pack images of 8k pixels, given as uint64 (n, k), row by row, most significant bit first."""
    for i in range(which.shape[0]):
        source, target = words[which[i]], packed[i]
        for k in range(source.shape[0]):
            target[k] = np.uint8((((source[k] >> _SEVEN) & _TOP) * _GATHER) >> _BYTE)


@jit
def pack_pixels(pixels: Any, which: Any, packed: Any) -> None:
    """Pack images of any size, given as uint8 (n, pixels); the last byte is filled up with zeros."""
    count = pixels.shape[1]
    for i in range(which.shape[0]):
        source, target = pixels[which[i]], packed[i]
        for k in range(target.shape[0]):
            byte = 0
            for b in range(min(8, count - 8 * k)):
                byte |= (source[8 * k + b] >> 7) << (7 - b)
            target[k] = np.uint8(byte)


@jit
def unpack_words(packed: Any, which: Any, table: Any, words: Any) -> None:
    """Inverse of ``pack_words`` for chosen images; `table` holds the eight pixels of each byte."""
    for i in range(which.shape[0]):
        source, target = packed[which[i]], words[i]
        for k in range(target.shape[0]):
            target[k] = table[source[k]]


@jit
def unpack_pixels(packed: Any, which: Any, pixels: Any) -> None:
    """Inverse of ``pack_pixels`` for chosen images."""
    for i in range(which.shape[0]):
        source, target = packed[which[i]], pixels[i]
        for j in range(target.shape[0]):
            target[j] = 255 if source[j >> 3] & np.uint8(128 >> (j & 7)) else 0


@jit
def _copy(source: Any, target: Any) -> None:
    # Eight times faster than `target[:] = source`, which first looks whether the two overlap.
    for k in range(target.shape[0]):
        target[k] = source[k]


@jit
def exchange(
    pool: Any, pool_index: Any, fill: int, chance: Any,
    incoming: Any, incoming_index: Any, out: Any, out_index: Any,
) -> int:  # fmt: skip
    """Emit one image of the pool for each number in `chance`, and put the next incoming one in its place.

    When nothing comes in any more the last image of the pool takes the place. Returns how many are left.
    """
    arriving = incoming_index.shape[0]
    for i in range(chance.shape[0]):
        j = min(int(chance[i] * fill), fill - 1)
        _copy(pool[j], out[i])
        out_index[i] = pool_index[j]
        if i < arriving:
            _copy(incoming[i], pool[j])
            pool_index[j] = incoming_index[i]
        else:
            fill -= 1
            _copy(pool[fill], pool[j])
            pool_index[j] = pool_index[fill]
    return fill
