"""Readers of images in batches, in order or shuffled, as fast as memory allows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import whole_number
from pricepix.images.buffers import BatchBuffers
from pricepix.images.threads import default_threads, iterate_ahead, map_ordered
from pricepix.spec import ImageSpec

__all__ = ["Batch", "DirectReader", "EpochReader"]


class Sized(Protocol):
    """The part of an image set that every reader needs: how many images there are, and their spec."""

    spec: ImageSpec

    def __len__(self) -> int: ...


class Readable(Sized, Protocol):
    """Images that can be read in any order at the same cost."""

    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None: ...


class Batch(NamedTuple):
    """Images (b, height, width) uint8 of 0 and 255, and their positions in the set, int64 (b,)."""

    images: NDArray[np.uint8]
    index: NDArray[np.int64]  # type: ignore[assignment]


def selection_mask(mask: NDArray[Any], n: int) -> NDArray[np.bool_]:
    given = np.asarray(mask)
    if given.dtype == np.bool_:
        if given.shape != (n,):
            raise ValueError(f"the mask has shape {given.shape}; the store has {n} windows, so give ({n},)")
        return given
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"the selection is {given.dtype} {given.shape}; give booleans or positions in one dimension"
        )
    if given.size and (given.min() < 0 or given.max() >= n):
        raise ValueError(f"positions run from {given.min()} to {given.max()}; the store has {n} windows")
    chosen = np.zeros(n, bool)
    chosen[given.astype(np.int64)] = True
    if np.count_nonzero(chosen) != given.size:
        raise ValueError("the selection names a window twice; give every position once")
    return chosen


class EpochReader(ABC):
    """Batches of images, every chosen image once an epoch.

    Parameters
    ----------
    images : ImageSet
    selection : numpy.ndarray, optional
        Positions, int (m,), or a mask, bool (n,): the images to read. All by default. `select` finds
        positions by time and instrument.
    batch_size : int
    shuffle : bool
        In order, or shuffled anew each epoch.
    seed : int
        The order depends on (`seed`, epoch, `rank`, `worker`), for `BatchReader` on `pool_bytes` too, and on
        nothing else: not on threads, time or machine.
    rank, ranks : int
        This process among those that share an epoch. Every image goes to one of them, and all of them get the
        same number of batches.
    worker, workers : int
        The same within a rank, for data-loading worker processes.
    drop_last : bool
        Leave out the images that fill no whole batch (at most a batch a part), rather than give a short one.
    threads : int, optional
        Threads that read and decode chunks, or draw. By default the CPUs this process may use, at most 4.
    prefetch : int
        Batches made ahead in a thread of their own; 0 makes each when it is asked for.

    Notes
    -----
    Iterating gives the epoch set by ``set_epoch`` (0 at first) and leaves it set; `epoch` gives any epoch,
    from any batch on, without making what lies before. Nothing runs between epochs, so a reader may be forked
    or pickled.

    The memory of a batch is used again once nothing refers to it: neither its array, nor a view or tensor over it.
    """

    def __init__(
        self,
        images: Sized,
        selection: NDArray[Any] | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        worker: int = 0,
        workers: int = 1,
        drop_last: bool = False,
        threads: int | None = None,
        prefetch: int = 2,
    ) -> None:
        batch_size, seed = whole_number(batch_size, "batch_size", 1), whole_number(seed, "seed", 0)
        prefetch = whole_number(prefetch, "prefetch", 0)
        if threads is not None:
            threads = whole_number(threads, "threads", 1)
        for name, which, of in (("rank", rank, ranks), ("worker", worker, workers)):
            whole_number(which, name, 0, whole_number(of, f"{name}s", 1) - 1)
        n = len(images)
        self._whole = selection is None
        self.positions = np.arange(n) if selection is None else np.flatnonzero(selection_mask(selection, n))
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.part, self.parts = rank * workers + worker, ranks * workers
        self.threads = default_threads() if threads is None else threads
        self.prefetch = prefetch
        if len(self.positions) < self.parts:
            raise ValueError(
                f"{len(self.positions)} images are chosen for {self.parts} ranks and workers; "
                "choose at least one for each"
            )
        if ranks > 1 and self.batch_size == 1 and len(self.positions) % self.parts and not drop_last:
            raise ValueError(
                f"{len(self.positions)} images in batches of 1 are not as many batches for each of {ranks} ranks: give "
                "batch_size=2 or more, or drop_last=True"
            )
        self._shape = images.spec.shape
        self._epoch = 0

    def __getstate__(self) -> dict[str, Any]:
        # Positions of all images are counted again: workers get 8 bytes less an image.
        return self.__dict__ | ({"positions": len(self.positions)} if self._whole else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._whole:
            self.positions = np.arange(state["positions"])

    def __len__(self) -> int:
        """Batches an epoch, the same for every rank and worker."""
        n = len(self.positions)
        if self.drop_last:
            return (n // self.parts) // self.batch_size
        return math.ceil(math.ceil(n / self.parts) / self.batch_size)

    @property
    def images_per_epoch(self) -> int:
        """Images that this rank and worker gives in an epoch."""
        return sum(self._sizes())

    def _share(self) -> slice:
        n = len(self.positions)
        return slice(n * self.part // self.parts, n * (self.part + 1) // self.parts)

    def _sizes(self) -> list[int]:
        share = self._share()
        n, batches = share.stop - share.start, len(self)
        if self.drop_last:
            return [self.batch_size] * batches
        sizes = [self.batch_size] * (batches - 1) + [n - self.batch_size * (batches - 1)]
        if batches > 1 and sizes[-1] == 0:
            # Another rank has one image, and so one batch, more: give the last batch one of the one before.
            if self.batch_size == 1:
                return sizes[:-1]
            sizes[-2:] = [self.batch_size - 1, 1]
        return sizes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iterating gives."""
        self._epoch = int(epoch)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(self._epoch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from batch `start` on."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}; the epoch has {len(self)} batches")
        batches = self._batches(epoch, start)
        return iterate_ahead(batches, self.prefetch, "pricepix-batches") if self.prefetch else batches

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Make the batches of an epoch from `start` on, in this thread."""

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """This part's share of one permutation of all chosen images: which of `positions`, in which order."""
        return self._generator(epoch).permutation(len(self.positions))[self._share()]

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))


class DirectReader(EpochReader):
    """Batches of images that can be read in any order at the same cost: those in memory, or drawn on demand.

    An epoch is a full permutation, the one that a `BatchReader` gives whose pool holds all images. Parameters
    are those of `EpochReader`; `pool_bytes` is accepted and ignored.
    """

    def __init__(
        self,
        images: Readable,
        selection: NDArray[Any] | None = None,
        *,
        pool_bytes: int | None = None,
        threads: int | None = 1,
        **options: Any,
    ) -> None:
        super().__init__(images, selection, threads=threads, **options)
        self.images = images

    def _indices(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of each batch from `start` on."""
        order = self.positions[self._permutation(epoch) if self.shuffle else self._share()]
        sizes = self._sizes()
        at = sum(sizes[:start])
        for size in sizes[start:]:
            yield order[at : at + size]
            at += size

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        buffers = BatchBuffers(self._shape)
        if self.threads == 1:
            for index in self._indices(epoch, start):
                yield self._made(epoch, index, buffers.take(len(index)))
            return
        # Buffers are taken in the thread that takes the batches, so that only one thread handles them.
        lent = ((index, buffers.take(len(index))) for index in self._indices(epoch, start))
        yield from map_ordered(
            lambda batch: self._made(epoch, *batch), lent, self.threads, name="pricepix-batch"
        )

    def _made(self, epoch: int, index: NDArray[np.int64], images: NDArray[np.uint8]) -> Any:
        self.images.read_into(index, images)
        return Batch(images, index)
