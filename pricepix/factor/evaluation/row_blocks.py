"""Kernels over the rows of matrices, on all threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.values import locked
from pricepix.images.threads import default_threads, map_unordered

__all__ = ["frozen", "on_threads"]

# Steps of a kernel, about a millisecond, below which another block is not worth the hand-over to a thread.
_CELLS_A_BLOCK: Final = 1 << 19


def frozen(array: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a contiguous array that cannot be written through: one type for the compiler, whoever owns it."""
    return locked(np.ascontiguousarray(array, dtype))


def on_threads(kernel: Callable[..., None], rows: int, cells: int, *arguments: Any) -> None:
    """Run a kernel on blocks of rows, of which each takes about `cells` steps, on all threads."""
    size = max(1, _CELLS_A_BLOCK // max(1, cells))
    blocks = [(a, min(a + size, rows)) for a in range(0, rows, size)]
    threads = default_threads() if len(blocks) > 1 else 0
    for _ in map_unordered(lambda block: kernel(*block, *arguments), blocks, threads, 4 * threads):
        pass
