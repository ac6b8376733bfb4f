"""Images and what they are to teach as datasets of plain torch, for loops of anyone's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from pricepix._checks import whole_number
from pricepix.images.batches import EpochReader
from pricepix.images.samples import Samples
from pricepix.windows.targets import make_targets

__all__ = ["EpochSampler", "ImageBatches", "LabelledBatches", "LabelledImages", "TorchParts", "torch_data"]


class Images(Protocol):
    """The part of an image set that datasets need."""

    def __len__(self) -> int: ...
    def read(self, selection: Any = ..., out: Any = ...) -> NDArray[np.uint8]: ...
    def batches(self, **options: Any) -> EpochReader: ...


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with their labels, for ``DataLoader(dataset, batch_size=..., sampler=dataset.sampler(seed))``.

    ``dataset[i]`` is the i-th of the chosen windows: the image, uint8 (1, height, width) of 0 and 255, and its
    label, int64 for a class and float32 for a number. A loader's batch is read at once.

    Attributes
    ----------
    positions : numpy.ndarray
        int64 (n,): which windows of the set these are. Windows without a label are not among them.
    labels : Tensor
        int64 or float32 (n,).
    """

    def __init__(self, images: Images, positions: NDArray[np.int64], labels: NDArray[Any]) -> None:
        self.images, self.positions = images, positions
        self.labels = torch.from_numpy(np.ascontiguousarray(labels))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the items at some places; loaders call it with those of a whole batch."""
        places = np.asarray(indices, np.int64)
        n = len(self)
        if len(places) and (places.min() < -n or places.max() >= n):
            raise IndexError(f"there is no item {int(places.max())} of a dataset of {n:,} images")
        images = torch.from_numpy(self.images.read(self.positions[places]))
        return list(zip(images.unsqueeze(1), self.labels[places], strict=True))

    def sampler(self, seed: int = 0) -> EpochSampler:
        """Return a sampler that shuffles by (seed, epoch) and begins anywhere in an epoch."""
        return EpochSampler(len(self), seed)


class EpochSampler(Sampler[int]):
    """A shuffled order of places, which depends on the seed and the epoch alone.

    Parameters
    ----------
    size : int
        Items of the dataset.
    seed : int

    Notes
    -----
    A loop that stopped after `done` items of an epoch goes on with ``set_epoch(epoch, done)``: the rest comes in the
    order in which it would have come, however many workers there are.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seed = size, whole_number(seed, "seed", 0)
        self._epoch = self._done = 0

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and how many of its items are skipped."""
        self._epoch = whole_number(epoch, "epoch", 0)
        self._done = whole_number(done, "done", 0, self._size, unit="items")

    def __len__(self) -> int:
        return self._size - self._done

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng(np.random.SeedSequence([self._seed, self._epoch])).permutation(
            self._size
        )
        return iter(order[self._done :].tolist())


class ImageBatches(IterableDataset[tuple[Tensor, ...]]):
    """The whole batches of a bulk reader as a torch dataset, from any batch of any epoch on, for any workers.

    Parameters
    ----------
    reader : EpochReader
    """

    def __init__(self, reader: EpochReader) -> None:
        self._reader = reader
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
                yield tuple(as_tensor(part) for part in (batch[0], batch[1], *batch[2:]))
        finally:
            batches.close()  # type: ignore[attr-defined]


class LabelledBatches(ImageBatches):
    """Whole batches of images, uint8 (b, 1, height, width), and their labels, for ``DataLoader(batch_size=None)``.

    Parameters
    ----------
    reader : EpochReader
    labels : numpy.ndarray
        Of all windows of the set, (n,).
    """

    def __init__(self, reader: EpochReader, labels: NDArray[Any]) -> None:
        super().__init__(reader)
        self._labels = torch.from_numpy(np.ascontiguousarray(labels))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for images, index in super().__iter__():
            yield images.unsqueeze(1), self._labels[index]


@dataclass(frozen=True)
class TorchParts:
    """The datasets of a split.

    Attributes
    ----------
    train, validation, test : LabelledImages or LabelledBatches
    dropped : dict
        Windows in none of them by reason: purged, embargoed, without a label, outside all periods.
    """

    train: Any
    validation: Any
    test: Any
    dropped: dict[str, int]


def torch_data(
    images: Any, horizon: int, target: str, split: Any, iterable: bool, options: dict[str, Any]
) -> LabelledImages | LabelledBatches | TorchParts:
    """Make the datasets of ``ImageSet.to_torch``."""
    targets = make_targets(target, images.returns(horizon), images.time)
    if options and not iterable:
        raise TypeError(
            f"to_torch takes {', '.join(options)} with iterable=True alone: else batches are the DataLoader's"
        )

    def dataset(index: NDArray[np.int64], shuffle: bool) -> LabelledImages | LabelledBatches:
        if not iterable:
            return LabelledImages(images, index, targets.values[index])
        reader = images.batches(mask=index, **({"shuffle": shuffle} | options))
        return LabelledBatches(reader, targets.values)

    if split is None:
        return dataset(np.flatnonzero(targets.usable), True)
    if hasattr(split, "folds"):
        folds = split.folds(Samples.from_store(images, horizon, targets.usable, images.panel))
        if len(folds) != 1:
            raise ValueError(
                f"the split makes {len(folds)} folds ({folds[0].name} to {folds[-1].name}): give one of them, such as "
                "split.folds(samples)[0]"
            )
        split = folds[0]
    if not all(hasattr(split, part) for part in ("train", "validation", "test")):
        raise TypeError(
            f"split is a {type(split).__name__}; give an object such as train.TimeSplit(test='2001:'), or one of its "
            "folds"
        )
    return TorchParts(
        dataset(split.train, True), dataset(split.validation, False),
        dataset(split.test, False) if len(split.test) else None, dict(split.dropped),
    )  # fmt: skip


def as_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """Return a tensor over an array, or the tensor."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values)
