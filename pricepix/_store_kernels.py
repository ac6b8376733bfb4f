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
def mirror(source: Any, table: Any, out: Any) -> None:
    """Write every byte with its bits in reverse order, which `table` holds."""
    for i in range(source.shape[0]):
        out[i] = table[source[i]]
