"""Feeding: from the bulk reader to tensors, from any batch of any epoch on."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pricepix.images.batches import Batch

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["ArrayReader", "Loader", "Reader", "StoreDataset"]


class Reader(Protocol):
    """What a loader reads from: a `pricepix.images.batches.EpochReader` or an `ArrayReader`."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Iterate over (inputs, positions) from batch `start` on."""
        ...


class ArrayReader:
    """The reader's interface over an array in memory: for series, of which an epoch is a permutation."""

    def __init__(
        self,
        array: NDArray[Any],
        selection: NDArray[np.int64],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.array, self.positions = array, selection
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.positions) / self.ranks) / self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over (inputs, positions) from batch `start` on."""
        n = len(self.positions)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        own = order[n * self.rank // self.ranks : n * (self.rank + 1) // self.ranks]
        # As many batches for every rank: a rank with one sample less makes its batches a little smaller.
        for part in np.array_split(own, len(self))[start:]:
            index = self.positions[part]
            yield Batch(self.array[index], index)


class Loader:
    """The batches of a reader as tensors, with their targets.

    Parameters
    ----------
    reader : Reader
    targets : Tensor
        Targets of all windows.
    mirrored : Tensor, optional
        Targets of windows whose prices an augmentation mirrors.
    pinned : bool
        Whether to copy batches to pinned memory, from which a GPU fetches them while it works; from other memory
        the copy waits until the GPU is done with what came before.
    """

    def __init__(
        self, reader: Reader, targets: Tensor, mirrored: Tensor | None = None, *, pinned: bool = False
    ) -> None:
        self._reader, self._targets, self._mirrored = reader, targets, mirrored
        self._ready = _pinned if pinned else _as_tensor

    def __len__(self) -> int:
        return len(self._reader)

    def epoch(self, epoch: int = 0, start: int = 0) -> Generator[tuple[Tensor, Tensor]]:
        """Iterate over the inputs and targets of an epoch, from batch `start` on."""
        for inputs, positions, *flags in self._reader.epoch(epoch, start):
            index = _as_tensor(positions)
            if index.device != self._targets.device:
                # Of a reader that draws on a device: looked up there, nothing waits.
                self._targets = self._targets.to(index.device)
            target = self._targets[index]
            if flags:
                assert self._mirrored is not None
                target = torch.where(_as_tensor(flags[0]), self._mirrored[index], target)
            yield self._ready(inputs), self._ready(target)
            del inputs


def _as_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def _pinned(values: NDArray[Any] | Tensor) -> Tensor:
    """A copy in pinned memory, which torch uses again only when what was queued to read it is done."""
    tensor = _as_tensor(values)
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class StoreDataset(IterableDataset[tuple[Tensor, ...]]):
    """Images as a torch dataset of whole batches: images uint8 (b, height, width) and positions int64 (b,).

    With an augmentation a batch has a third part, bool (b,): which windows are mirrored.

    For loops of your own, with ``DataLoader(dataset, batch_size=None, num_workers=...)``. Call
    ``set_epoch`` before each epoch. ``len``, of the loader as of the dataset, is the number of batches of an epoch;
    in a worker, of its own.

    Parameters
    ----------
    store : ImageSet
        A store, a loaded one or panel images.
    selection : numpy.ndarray, optional
    **options
        As in `pricepix.images.batches.EpochReader`, but `worker` and `workers`, which come from torch.

    Notes
    -----
    The batches of an epoch are those of ``store.batches(mask=selection, **options)``, however many workers there
    are: each makes a stretch of them, and the loader takes from all in turn. To begin a stretch in the middle of an
    epoch a worker fills its pool, and where that does not hold all chosen images of a store (`pool_bytes`), it reads
    much of what comes before: read such a store in one process.
    """

    def __init__(self, store: ImageSet, selection: NDArray[Any] | None = None, **options: Any) -> None:
        self._reader = store.batches(mask=selection, **options)
        # Shared, so that workers which outlive an epoch hear of the next.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and its first batch.

        Parameters
        ----------
        epoch : int
        start : int
            Batches to skip: those that a loop had taken when it was stopped. The rest is what it would have
            taken, as long as the loader has as many workers as it had.

        Raises
        ------
        ValueError
            If the epoch has fewer batches.
        """
        if not 0 <= start <= len(self._reader):
            raise ValueError(f"start is {start}; the epoch has {len(self._reader)} batches")
        self._position[0], self._position[1] = epoch, start

    def _stretch(self) -> tuple[int, int, int]:
        """The batches of this process: the first, one past the last, and how many of them are skipped."""
        start, batches = int(self._position[1]), len(self._reader)
        info = get_worker_info()
        if info is None:
            return 0, batches, start
        # The loader asks worker 0 first, wherever the epoch begins: it stands in for the one whose turn it is.
        place = (info.id + start) % info.num_workers
        each, more = divmod(batches, info.num_workers)
        first = place * each + min(place, more)
        return first, first + each + (place < more), -((place - start) // info.num_workers)

    def __len__(self) -> int:
        first, stop, _ = self._stretch()
        return stop - first

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        first, stop, given = self._stretch()
        first += given
        batches = self._reader.epoch(int(self._position[0]), first)
        try:
            for batch in islice(batches, stop - first):
                yield tuple(_as_tensor(part) for part in (batch[0], batch[1], *batch[2:]))
        finally:
            batches.close()  # type: ignore[attr-defined]
