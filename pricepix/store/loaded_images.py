"""A whole store in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import whole_number
from pricepix.images.batches import DirectReader, EpochReader
from pricepix.images.image_set import ImageSet
from pricepix.images.shared_arrays import SharedArrays
from pricepix.images.threads import default_threads, map_unordered
from pricepix.render import widen
from pricepix.render.memory import memory_for
from pricepix.store.objects import StoreObjects

__all__ = ["LoadedImages", "load"]

_BITS, _PIXELS = "bits", "pixels"


class LoadedImages(ImageSet):
    """The images of a store in memory, with its index and forward returns. Made by ``ImageStore.load``.

    Its digest is the store's: a training or scoring that began with one can be resumed with the other. A pickle names
    a file of the images, which all processes of the machine map; see ``pricepix.images.shared_arrays``.
    """

    kind = "loaded store"

    def __init__(self, objects: StoreObjects, images: SharedArrays) -> None:
        self.objects = objects
        """The store that the images were read from; index and forward returns are read from it."""
        self._images = images
        self.spec, self.horizons, self.location = objects.spec, objects.horizons, objects.url

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadedImages, (self.objects, self._images)

    def __len__(self) -> int:
        return len(self.objects)

    def __repr__(self) -> str:
        return self._repr(f"{self.nbytes / 1e6:,.1f} MB in memory")

    @property
    def packed(self) -> bool:
        """Whether a pixel is a bit, not a byte."""
        return _BITS in set(self._images)

    @property
    def nbytes(self) -> int:
        """Bytes of the images in memory: packed ``len(self) * ceil(height * width / 8)``."""
        return self._array.nbytes

    @property
    def _array(self) -> NDArray[np.uint8]:
        return self._images[_BITS if self.packed else _PIXELS]

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The store's attributes."""
        return self.objects.attrs

    @property
    def chunk(self) -> int:
        """Images a chunk of the store."""
        return self.objects.chunk_format.windows

    @property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return self.objects.instruments

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        return self.objects.column(name, first, last)

    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if self.packed:
            # Mode clip spares numpy a second buffer; every position is inside.
            widen(self._array.take(positions, 0, mode="clip"), *self.spec.shape, out)
        elif out.flags.c_contiguous:
            self._array.take(positions, 0, out, "clip")
        else:
            out[:] = self._array[positions]

    def _reader(self, selection: NDArray[np.int64] | None, **options: Any) -> EpochReader:
        return DirectReader(self, selection, **options)


def load(objects: StoreObjects, packed: bool, threads: int | None) -> LoadedImages:
    """Read a whole store into memory; see ``ImageStore.load``."""
    shape = (len(objects), objects.spec.packed_bytes) if packed else (len(objects), *objects.spec.shape)
    images = memory_for(shape)

    def read(chunk: int) -> None:
        a = chunk * objects.chunk_format.windows
        images[a : a + objects.chunk_windows(chunk)] = (
            objects.read_chunk_bits(chunk) if packed else objects.read_chunk(chunk)
        )

    chunks = range(objects.chunk_format.chunks(len(objects)))
    workers = default_threads() if threads is None else whole_number(threads, "threads", 1)
    for _ in map_unordered(read, chunks, workers, name="pricepix-load"):
        pass
    return LoadedImages(objects, SharedArrays({_BITS if packed else _PIXELS: images}))
