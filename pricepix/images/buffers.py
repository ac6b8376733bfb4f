"""Memory for batches, used again once nothing refers to the batch that it held."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pricepix.render.memory import HUGE_PAGE

__all__ = ["BatchBuffers"]

_MOST_KEPT = 8


@dataclass(eq=False, slots=True)
class _Loan:
    """Memory for `images` images, and the array through which it was last lent."""

    images: int
    memory: memoryview
    borrower: Callable[[], NDArray[np.uint8] | None] = lambda: None


class BatchBuffers:
    """Arrays for batches, whose memory is used again once nothing refers to them.

    Fresh memory costs a page fault every 4 kB, which at full speed takes as long as filling it. Memory that begins
    where a huge page does, and is large enough for numpy to ask for such pages, is filled a tenth faster still.

    Every batch is lent through an array of its own over a memoryview. numpy shortens a chain of views only as far as
    an array whose base is not an array, so whatever is made of the batch without a copy (a view of a view, a tensor,
    a memoryview) keeps the lent array alive, and its weak reference tells when the last of them is gone. No reference
    is counted, so this holds on any interpreter. It costs a microsecond a batch, of 70 for 256 images of 64x60. A
    ring of buffers with ``release()`` would save that, but a batch that nobody releases would then never be reused,
    and one released too early would be overwritten.

    Parameters
    ----------
    shape : (int, int)
        Height and width of an image.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._loans: list[_Loan] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return an array for `size` images, uint8 (size, height, width), with anything in it."""
        # In the same order each time: the first free memory was used last, and may still be in the caches.
        for loan in self._loans:
            if loan.images == size and loan.borrower() is None:
                break
        else:
            if len(self._loans) >= _MOST_KEPT:
                del self._loans[0]
            loan = _Loan(size, self._allocate(size))
            self._loans.append(loan)
        lent = np.frombuffer(loan.memory, np.uint8)
        loan.borrower = weakref.ref(lent)
        return lent.reshape(size, *self._shape)

    def _allocate(self, size: int) -> memoryview:
        count = size * self._shape[0] * self._shape[1]
        # numpy asks for huge pages from 4 MB on.
        room = max(count + HUGE_PAGE, 2 * HUGE_PAGE) if count >= HUGE_PAGE // 8 else count
        fresh = np.empty(room, np.uint8)
        start = -fresh.ctypes.data % HUGE_PAGE if room > count else 0
        return fresh[start : start + count].data
