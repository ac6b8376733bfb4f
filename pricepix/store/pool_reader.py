"""Batches of a store's images through a pool of packed images."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.images.batches import Batch, EpochReader
from pricepix.images.buffers import BatchBuffers
from pricepix.images.threads import map_ordered
from pricepix.render import widen
from pricepix.store import kernels
from pricepix.store.objects import StoreObjects

DEFAULT_POOL_BYTES: Final = 2 << 30


class _Part(NamedTuple):
    """Images of one chunk that are wanted: rows within the chunk, and their positions in the store."""

    chunk: int
    rows: NDArray[np.int64]
    index: NDArray[np.int64]  # type: ignore[assignment]


class BatchReader(EpochReader):
    """Batches of a store's images, every chosen image once an epoch.

    Parameters
    ----------
    objects : StoreObjects
        Of the store, as it is opened.
    selection : numpy.ndarray, optional
        Positions or a mask. Chunks without any are never touched.
    pool_bytes : int
        Memory for the pool. If all chosen images fit in it at one bit a pixel, they are read once, stay
        there over the epochs, and an epoch is a full permutation. Otherwise images pass through the pool:
        each emitted one is a random one of those in it, and the next of a shuffled sequence of chunks takes
        its place. Then a pool of 0.52 of the images gives 0.9 of the mixing of a full permutation, measured
        as the mean distance in the epoch of images that are neighbours in the store (0.25 of them gives
        0.59, 0.1 gives 0.28). The default of 2 GiB holds 4.4 million images of 64x60.
    **options
        Of `EpochReader`.

    Notes
    -----
    Memory is bounded: the pool, `threads` + 2 chunks and `prefetch` + 2 batches.
    """

    def __init__(
        self,
        objects: StoreObjects,
        selection: NDArray[Any] | None = None,
        *,
        pool_bytes: int = DEFAULT_POOL_BYTES,
        **options: Any,
    ) -> None:
        super().__init__(objects, selection, **options)
        self.objects = objects
        self.pool_bytes = pool_bytes
        self._packed = objects.chunk_format.packed_bytes
        self.resident = self.shuffle and len(self.positions) * self._packed <= pool_bytes
        self._capacity = max(pool_bytes // self._packed, self.batch_size)
        self._chunk = objects.chunk_format.windows
        self._pool: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The pool is read again where the reader goes.
        return super().__getstate__() | {"_pool": None}

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if not self.shuffle:
            return self._in_order(start)
        return self._from_memory(epoch, start) if self.resident else self._through_pool(epoch, start)

    # In store order: no pool, images go from the decoded chunk straight into the batch.

    def _in_order(self, start: int) -> Generator[Batch, None, None]:
        sizes = self._sizes()
        share = self._share()
        first = share.start + sum(sizes[:start])
        positions = self.positions[first : share.start + sum(sizes)]
        buffers = BatchBuffers(self._shape)
        with _Decoder(self, self._by_chunk(positions)) as stream:
            done = 0
            for size in sizes[start:]:
                images = buffers.take(size)
                at = 0
                while at < size:
                    decoded = stream.take(size - at)
                    self._widen(decoded, None, images[at : at + len(decoded)])
                    at += len(decoded)
                yield Batch(images, positions[done : done + size])
                done += size
                del images

    # Everything in memory: an epoch is one permutation of all chosen images, cut among ranks and workers.

    def _from_memory(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        order = self._permutation(epoch)
        pool = self._loaded()
        buffers = BatchBuffers(self._shape)
        sizes = self._sizes()
        at = sum(sizes[:start])
        for size in sizes[start:]:
            which = order[at : at + size]
            images = buffers.take(size)
            self._widen(pool, which, images)
            yield Batch(images, self.positions[which])
            at += size
            del images

    def _loaded(self) -> NDArray[np.uint8]:
        if self._pool is None:
            pool = np.empty((len(self.positions), self._packed), np.uint8)
            with _Decoder(self, self._by_chunk(self.positions)) as stream:
                at = 0
                while at < len(pool):
                    decoded = stream.take(len(pool) - at)
                    pool[at : at + len(decoded)] = decoded
                    at += len(decoded)
            self._pool = pool
        return self._pool

    # More than fits: chunks in random order pass through the pool.

    def _through_pool(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        sequence = self._shuffled_chunks(epoch)
        rng = self._generator(epoch, self.part)
        sizes = self._sizes()
        total = sum(sizes)
        flow = np.concatenate([part.index for part in sequence])[:total]
        capacity = min(self._capacity, total)
        fill, arrived = capacity, capacity
        pool_index = flow[:capacity].copy()
        empty = np.empty((max(capacity, self.batch_size), 0), np.uint8)
        # What lies before the first batch moves positions only, no pixels.
        for size in sizes[:start]:
            coming = flow[arrived : arrived + size]
            emitted = np.empty(size, np.int64)
            fill = kernels.exchange(empty, pool_index, fill, rng.random(size), empty, coming, empty, emitted)
            arrived += len(coming)
        pool = np.empty((capacity, self._packed), np.uint8)
        self._fill(pool, pool_index[:fill])
        buffers = BatchBuffers(self._shape)
        bits = np.empty((self.batch_size, self._packed), np.uint8)
        with _Decoder(self, _without(sequence, arrived, total)) as stream:
            for size in sizes[start:]:
                index = np.empty(size, np.int64)
                chance = rng.random(size)
                at = 0
                while at < size:
                    left = min(size - at, total - arrived)
                    coming = stream.take(left) if left else bits[:0]
                    count = len(coming) or size - at
                    fill = kernels.exchange(
                        pool,
                        pool_index,
                        fill,
                        chance[at : at + count],
                        coming,
                        flow[arrived : arrived + len(coming)],
                        bits[at:],
                        index[at:],
                    )
                    arrived += len(coming)
                    at += count
                images = buffers.take(size)
                self._widen(bits[:size], None, images)
                yield Batch(images, index)
                del images

    def _shuffled_chunks(self, epoch: int) -> list[_Part]:
        """This part's share of a sequence of chunks in random order."""
        parts = self._by_chunk(self.positions)
        order = self._generator(epoch).permutation(len(parts))
        share = self._share()
        cut, at = [], 0
        for i in order:
            part = parts[i]
            low, high = max(share.start - at, 0), min(share.stop - at, len(part.rows))
            if low < high:
                cut.append(_Part(part.chunk, part.rows[low:high], part.index[low:high]))
            at += len(part.rows)
        return cut

    def _fill(self, pool: NDArray[np.uint8], index: NDArray[np.int64]) -> None:
        """Read given images into the first rows of the pool."""
        order = np.argsort(index, kind="stable")
        with _Decoder(self, self._by_chunk(index[order])) as stream:
            at = 0
            while at < len(order):
                decoded = stream.take(len(order) - at)
                pool[order[at : at + len(decoded)]] = decoded
                at += len(decoded)

    def _by_chunk(self, positions: NDArray[np.int64]) -> list[_Part]:
        """Cut ascending positions at the borders of chunks."""
        chunk = positions // self._chunk
        cuts = np.flatnonzero(np.diff(chunk)) + 1
        starts = [0, *cuts.tolist(), len(positions)]
        return [
            _Part(int(chunk[a]), positions[a:b] - chunk[a] * self._chunk, positions[a:b])
            for a, b in itertools.pairwise(starts)
            if a < b
        ]

    def _decode(self, part: _Part) -> NDArray[np.uint8]:
        """Wanted images of a chunk: column bits, or pixels where the store has them and is read in order."""
        form = self.objects.chunk_format
        n = min(self._chunk, len(self.objects) - part.chunk * self._chunk)
        stored = self.objects.chunk_bytes(part.chunk)
        try:
            decode = form.decode_bits if self.shuffle or form.columns_first else form.decode
            images = decode(stored, n)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"chunk {self.objects.chunk_key(part.chunk)} of store {self.objects.url} is damaged "
                f"({error}): restore or rebuild it"
            ) from error
        return images if len(part.rows) == n else images[part.rows]

    def _widen(
        self, source: NDArray[np.uint8], which: NDArray[np.int64] | None, out: NDArray[np.uint8]
    ) -> None:
        """Make pixels of decoded images (those at `which`, or all)."""
        if source.ndim == 3:
            out[:] = source
            return
        # Mode clip spares numpy a second buffer; every position is in the pool.
        bits = source if which is None else source.take(which, 0, mode="clip")
        widen(bits, *self._shape, out)


def _without(sequence: Sequence[_Part], first: int, total: int) -> list[_Part]:
    """Images `first` to `total` - 1 of a sequence of parts."""
    rest, at = [], 0
    for part in sequence:
        low, high = max(first - at, 0), min(total - at, len(part.rows))
        if low < high:
            rest.append(_Part(part.chunk, part.rows[low:high], part.index[low:high]))
        at += len(part.rows)
    return rest


class _Decoder:
    """Decodes parts ahead in threads, in order, and hands out runs of images."""

    def __init__(self, reader: BatchReader, parts: Sequence[_Part]) -> None:
        self._decoded = map_ordered(reader._decode, parts, reader.threads, name="pricepix-decode")
        self._current: NDArray[np.uint8] | None = None
        self._at = 0

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self._decoded.close()

    def take(self, limit: int) -> NDArray[np.uint8]:
        """Return at least one and at most `limit` of the images that come next."""
        while self._current is None or self._at == len(self._current):
            # Let go of the old chunk first, so that one less is in memory.
            self._current = None
            self._current = next(self._decoded)
            self._at = 0
        run = self._current[self._at : self._at + limit]
        self._at += len(run)
        return run
