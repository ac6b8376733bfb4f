"""Feeding: from the bulk reader to tensors, from any batch of any epoch on."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pricepix.images.batches import Batch
from pricepix.images.threads import iterate_ahead
from pricepix.images.torch_data import ImageBatches, as_tensor
from pricepix.train.objective import Labels

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["ArrayReader", "Loader", "Reader", "StoreDataset"]


class Reader(Protocol):
    """What a loader reads from: a `pricepix.images.batches.EpochReader` or an `ArrayReader`."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Iterate over (inputs, positions) from batch `start` on."""
        ...


def _share(n: int, shuffle: bool, seed: tuple[int, int], rank: int, ranks: int) -> NDArray[np.int64]:
    """Return which of `n` things a rank takes in an epoch, in its order."""
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(n) if shuffle else np.arange(n)
    return order[n * rank // ranks : n * (rank + 1) // ranks]


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
        own = _share(len(self.positions), self.shuffle, (self.seed, epoch), self.rank, self.ranks)
        # As many batches for every rank: a rank with one sample less makes its batches a little smaller.
        for part in np.array_split(own, len(self))[start:]:
            index = self.positions[part]
            yield Batch(self.array[index], index)


class DateReader:
    """Batches of whole dates, for losses over the windows of a date.

    An epoch is a permutation of the dates, cut into as many batches as would be of `batch_size` windows.

    Parameters
    ----------
    read : callable
        From positions to inputs.
    time : numpy.ndarray, int64
        Of all windows.
    selection : numpy.ndarray, int64
    batch_size, shuffle, seed, rank, ranks
        As in `pricepix.images.batches.EpochReader`; batches are of about that size.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], NDArray[Any]],
        time: NDArray[np.int64],
        selection: NDArray[np.int64],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        order = selection[np.argsort(time[selection], kind="stable")]
        self._dates = np.split(order, np.flatnonzero(np.diff(time[order])) + 1)
        self._batches = min(math.ceil(len(order) / ranks / batch_size), len(self._dates) // ranks)
        if not self._batches:
            raise ValueError(
                f"{len(self._dates)} dates are chosen for {ranks} devices: batches hold whole dates, so choose more "
                "dates or fewer devices"
            )
        self._read, self._shuffle, self._seed = read, shuffle, seed
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        return self._batches

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over (inputs, positions) from batch `start` on."""
        own = _share(len(self._dates), self._shuffle, (self._seed, epoch), self._rank, self._ranks)
        return iterate_ahead(self._made(np.array_split(own, self._batches)[start:]), 2, "pricepix-batches")

    def _made(self, parts: list[NDArray[np.int64]]) -> Generator[Batch, None, None]:
        for part in parts:
            index = np.sort(np.concatenate([self._dates[i] for i in part]))
            yield Batch(self._read(index), index)


class Loader:
    """The batches of a reader as tensors, with their targets.

    Parameters
    ----------
    reader : Reader
    targets : Tensor
        Targets of all windows.
    mirrored : Tensor, optional
        Targets of windows whose prices an augmentation mirrors.
    weights, dates : Tensor, optional
        Weights of all windows, float32, and their dates, int64: targets then come as `Labels`.
    pinned : bool
        Whether to copy batches to pinned memory, from which a GPU fetches them while it works; from other memory
        the copy waits until the GPU is done with what came before.
    """

    def __init__(
        self,
        reader: Reader,
        targets: Tensor,
        mirrored: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        dates: Tensor | None = None,
        pinned: bool = False,
    ) -> None:
        self._reader, self._targets, self._mirrored = reader, targets, mirrored
        self._weights, self._dates, self._pins = weights, dates, pinned
        self._ready = _pinned if pinned else as_tensor

    def __len__(self) -> int:
        return len(self._reader)

    def epoch(self, epoch: int = 0, start: int = 0) -> Generator[tuple[Tensor, Tensor | Labels]]:
        """Iterate over the inputs and targets of an epoch, from batch `start` on."""
        for inputs, positions, *flags in self._reader.epoch(epoch, start):
            index = as_tensor(positions)
            if index.device != self._targets.device:
                # Of a reader that draws on a device: looked up there, nothing waits.
                self._targets = self._targets.to(index.device)
            target = self._targets[index]
            if flags:
                assert self._mirrored is not None
                flag = as_tensor(flags[0])
                target = torch.where(
                    flag if target.ndim == 1 else flag[:, None], self._mirrored[index], target
                )
            if self._weights is None and self._dates is None:
                yield self._ready(inputs), self._ready(target)
            else:
                place = index.cpu()
                labels = Labels(
                    target, *(None if x is None else x[place] for x in (self._weights, self._dates))
                )
                yield self._ready(inputs), labels.pin_memory() if self._pins else labels
            del inputs


def _pinned(values: NDArray[Any] | Tensor) -> Tensor:
    """A copy in pinned memory, which torch uses again only when what was queued to read it is done."""
    tensor = as_tensor(values)
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class StoreDataset(ImageBatches):
    """Images as a torch dataset of whole batches: images uint8 (b, height, width) and positions int64 (b,).

    With an augmentation a batch has a third part, bool (b,): which windows are mirrored.

    For loops of your own, with ``DataLoader(dataset, batch_size=None, num_workers=...)``. Call
    ``set_epoch`` before each epoch. ``len``, of the loader as of the dataset, is the number of batches of an epoch;
    in a worker, of its own. ``ImageSet.to_torch`` gives labels in place of positions.

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
        super().__init__(store.batches(mask=selection, **options))
