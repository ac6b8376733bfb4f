"""The bulk readers: images in batches, in order or shuffled, as fast as memory allows.

Chunks of a store are read directly and decoded off the interpreter's lock. Shuffled images wait in a pool, one bit a
pixel, and become uint8 only when a batch is made.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix import _reader_kernels as kernels
from pricepix._checks import whole_number
from pricepix.images.image_set import select
from pricepix.render import widen
from pricepix.render.memory import HUGE_PAGE

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet
    from pricepix.store import ImageStore

__all__ = ["Batch", "BatchReader", "DirectReader", "EpochReader", "select"]

DEFAULT_POOL_BYTES: Final = 2 << 30
_EIGHT_PIXELS: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * np.uint8(255)
_TABLE: Final = np.ascontiguousarray(_EIGHT_PIXELS).view(np.uint64).ravel()


class Batch(NamedTuple):
    """Images (b, height, width) uint8 of 0 and 255, and their positions in the set, int64 (b,)."""

    images: NDArray[np.uint8]
    index: NDArray[np.int64]  # type: ignore[assignment]


class _Part(NamedTuple):
    """Images of one chunk that are wanted: rows within the chunk, and their positions in the store."""

    chunk: int
    rows: NDArray[np.int64]
    index: NDArray[np.int64]  # type: ignore[assignment]


def _as_mask(mask: NDArray[Any], n: int) -> NDArray[np.bool_]:
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
        This process among those that share an epoch. Every image goes to one of them; all of them get the
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

    A batch's array is used again once nobody holds it or a view of it.
    """

    def __init__(
        self,
        images: ImageSet,
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
        self.positions = np.arange(n) if selection is None else np.flatnonzero(_as_mask(selection, n))
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.part, self.parts = rank * workers + worker, ranks * workers
        self.threads = usual_threads() if threads is None else threads
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
        return _ahead(batches, self.prefetch) if self.prefetch else batches

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Make the batches of an epoch from `start` on, in this thread."""

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """This part's share of one permutation of all chosen images: which of `positions`, in which order."""
        return self._generator(epoch).permutation(len(self.positions))[self._share()]

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))


class DirectReader(EpochReader):
    """Batches of images of which any costs the same: held in memory, or drawn when they are asked for.

    An epoch is a full permutation, the one that a `BatchReader` gives whose pool holds all images. Parameters
    are those of `EpochReader`; `pool_bytes` is taken and not needed.
    """

    def __init__(
        self,
        images: ImageSet,
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

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        buffers = _Buffers(self._shape)
        if self.threads == 1:
            for index in self._indices(epoch, start):
                yield self._made(epoch, index, buffers.take(len(index)))
            return
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="pricepix-batch") as pool:
            try:
                for index in self._indices(epoch, start):
                    ahead.append(pool.submit(self._made, epoch, index, buffers.take(len(index))))
                    if len(ahead) > self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _made(self, epoch: int, index: NDArray[np.int64], images: NDArray[np.uint8]) -> Any:
        self.images._read(index, images)
        return Batch(images, index)


class BatchReader(EpochReader):
    """Batches of a store's images, every chosen image once an epoch.

    Parameters
    ----------
    store : ImageStore
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
        store: ImageStore,
        selection: NDArray[Any] | None = None,
        *,
        pool_bytes: int = DEFAULT_POOL_BYTES,
        **options: Any,
    ) -> None:
        super().__init__(store, selection, **options)
        self.store = store
        self.pool_bytes = pool_bytes
        height, width = self._shape
        self._pixels = height * width
        self._packed = (self._pixels + 7) // 8
        self._columns_first = store.chunk_format.columns_first
        self.resident = self.shuffle and len(self.positions) * self._packed <= pool_bytes
        self._capacity = max(pool_bytes // self._packed, self.batch_size)
        self._chunk = store.chunk_format.windows
        self._pool: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The pool is read again where the reader goes.
        return super().__getstate__() | {"_pool": None}

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        if not self.shuffle:
            return self._in_order(start)
        return self._from_memory(epoch, start) if self.resident else self._through_pool(epoch, start)

    # In store order: no pool, images go from the decoded chunk straight into the batch.

    def _in_order(self, start: int) -> Iterator[Batch]:
        sizes = self._sizes()
        share = self._share()
        first = share.start + sum(sizes[:start])
        positions = self.positions[first : share.start + sum(sizes)]
        buffers = _Buffers(self._shape)
        with _Decoder(self, self._by_chunk(positions)) as stream:
            done = 0
            for size in sizes[start:]:
                images = buffers.take(size)
                at = 0
                while at < size:
                    decoded = stream.next(size - at)
                    self._widen(decoded, None, images[at : at + len(decoded)])
                    at += len(decoded)
                yield Batch(images, positions[done : done + size])
                done += size
                del images

    # Everything in memory: an epoch is one permutation of all chosen images, cut among ranks and workers.

    def _from_memory(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._permutation(epoch)
        pool = self._loaded()
        buffers = _Buffers(self._shape)
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
                    decoded = stream.next(len(pool) - at)
                    pool[at : at + len(decoded)] = decoded
                    at += len(decoded)
            self._pool = pool
        return self._pool

    # More than fits: chunks in random order pass through the pool.

    def _through_pool(self, epoch: int, start: int) -> Iterator[Batch]:
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
            gone = np.empty(size, np.int64)
            fill = kernels.exchange(empty, pool_index, fill, rng.random(size), empty, coming, empty, gone)
            arrived += len(coming)
        pool = np.empty((capacity, self._packed), np.uint8)
        self._fill(pool, pool_index[:fill])
        buffers = _Buffers(self._shape)
        bits = np.empty((self.batch_size, self._packed), np.uint8)
        with _Decoder(self, _without(sequence, arrived, total)) as stream:
            for size in sizes[start:]:
                index = np.empty(size, np.int64)
                chance = rng.random(size)
                at = 0
                while at < size:
                    left = min(size - at, total - arrived)
                    coming = stream.next(left) if left else bits[:0]
                    many = len(coming) or size - at
                    fill = kernels.exchange(
                        pool,
                        pool_index,
                        fill,
                        chance[at : at + many],
                        coming,
                        flow[arrived : arrived + len(coming)],
                        bits[at:],
                        index[at:],
                    )
                    arrived += len(coming)
                    at += many
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
                decoded = stream.next(len(order) - at)
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
        """Wanted images of a chunk: packed, or as pixels where a uint8 store is read in order."""
        form = self.store.chunk_format
        n = min(self._chunk, len(self.store) - part.chunk * self._chunk)
        stored = self.store.chunk_bytes(part.chunk)
        try:
            if self._columns_first:
                bits = form.decode_bits(stored, n)
                return bits if len(part.rows) == n else bits[part.rows]
            pixels = form.decode(stored, n)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"chunk {self.store.chunk_key(part.chunk)} of store {self.store.location} is damaged "
                f"({error}): restore or rebuild it"
            ) from error
        if not self.shuffle:
            return pixels if len(part.rows) == n else pixels[part.rows]
        packed = np.empty((len(part.rows), self._packed), np.uint8)
        flat = pixels.reshape(n, self._pixels)
        if self._pixels % 8 == 0:
            kernels.pack_words(flat.view(np.uint64), part.rows, packed)
        else:
            kernels.pack_pixels(flat, part.rows, packed)
        return packed

    def _widen(
        self, source: NDArray[np.uint8], which: NDArray[np.int64] | None, out: NDArray[np.uint8]
    ) -> None:
        """Make pixels of decoded images (those at `which`, or all)."""
        if source.ndim == 3:
            out[:] = source
            return
        height, width = self._shape
        if self._columns_first:
            # Mode clip spares numpy a second buffer; every position is in the pool.
            bits = source if which is None else source.take(which, 0, mode="clip")
            widen(bits, height, width, out)
        else:
            chosen = np.arange(len(source)) if which is None else which
            flat = out.reshape(len(out), self._pixels)
            if self._pixels % 8 == 0:
                kernels.unpack_words(source, chosen, _TABLE, flat.view(np.uint64))
            else:
                kernels.unpack_pixels(source, chosen, flat)


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
        self._decode = reader._decode
        self._threads = reader.threads
        self._todo = deque(parts)
        self._current: NDArray[np.uint8] | None = None
        self._at = 0

    def __enter__(self) -> _Decoder:
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="pricepix-decode")
        self._ahead: deque[Future[NDArray[np.uint8]]] = deque()
        return self

    def __exit__(self, *error: object) -> None:
        self._todo.clear()
        for future in self._ahead:
            future.cancel()
        self._executor.shutdown(wait=True)

    def next(self, most: int) -> NDArray[np.uint8]:
        """Return at least one and at most `most` of the images that come next."""
        while self._current is None or self._at == len(self._current):
            while self._todo and len(self._ahead) < self._threads + 1:
                self._ahead.append(self._executor.submit(self._decode, self._todo.popleft()))
            self._current = self._ahead.popleft().result()
            self._at = 0
        run = self._current[self._at : self._at + most]
        self._at += len(run)
        return run


class _Buffers:
    """Arrays for batches, used again once nobody else holds them.

    Fresh memory costs a page fault every 4 kB, which at full speed is as dear as filling it. Memory that begins
    where a huge page does, and is large enough for numpy to ask for such pages, is filled a tenth faster still.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._held: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        for length, memory, batch in self._held:
            # Four references: the list's, the loop's, the argument's, and that of the view which is kept. Another
            # view, or a tensor over it, holds one more.
            if length == size and sys.getrefcount(memory) == 4:
                return batch[:]
        count = size * self._shape[0] * self._shape[1]
        # numpy asks for huge pages from 4 MB on.
        room = max(count + HUGE_PAGE, 2 * HUGE_PAGE) if count >= HUGE_PAGE // 8 else count
        fresh = np.empty(room, np.uint8)
        start = -fresh.ctypes.data % HUGE_PAGE if room > count else 0
        whole = fresh[start : start + count].reshape(size, *self._shape)
        if len(self._held) >= 8:
            self._held.pop(0)
        self._held.append((size, fresh, whole))
        return whole[:]


def _ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Make batches in a thread, at most `depth` ahead."""
    # Two plain C queues, of credits and of batches, cost half of what a bounded queue.Queue does.
    credits: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    for _ in range(depth):
        credits.put(True)

    def work() -> None:
        try:
            for batch in batches:
                if not credits.get():
                    return
                ready.put(batch)
                del batch
            ready.put(None)
        except BaseException as error:  # handed to the thread that asks for batches
            ready.put(error)
        finally:
            batches.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=work, name="pricepix-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            del item
            credits.put(True)
    finally:
        # Whatever credits are left let the thread make as many batches before it meets the end.
        credits.put(False)
        thread.join()


def usual_threads() -> int:
    """Threads that read and decode where nothing else is said: the CPUs this process may use, at most 4."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cpus)
