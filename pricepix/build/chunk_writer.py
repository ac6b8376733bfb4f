"""Drawing, labelling, encoding and writing the chunks of a store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pricepix.build.plan import PARTITION_BYTES, Task
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.location import Location
from pricepix.render.draw import render_rows
from pricepix.render.memory import memory_for
from pricepix.render.reasons import REASONS
from pricepix.store.chunks import Content, checksum
from pricepix.store.format import Geometry, chunk_key, encode_column
from pricepix.windows.index import WindowIndex
from pricepix.windows.labels import forward_returns

# Objects that wait to be written, a worker: a disk needs no more to be busy, and more of them would scatter over
# memory that the next chunk's compression wants in one piece; a far bucket takes its time.
_WRITES_AHEAD: Final = {"folder": 1, "elsewhere": 8}
_LABELS_AT_ONCE: Final = 1 << 15


def _same(key: str) -> str:
    return key


@dataclass
class Painter:
    """Writes chunks of a store, in any order and from any number of threads.

    Its bytes depend on the panel and the windows alone.
    """

    where: Location
    geometry: Geometry
    windows: WindowIndex
    delay: int
    label_price: str
    base: int = 0
    """Position in the store of the first of `windows`; nothing before it can be drawn."""
    key: Callable[[str], str] = _same
    """Where an object of the store is written."""
    writers: Executor | None = None
    """Threads that write while the next chunk is drawn."""
    _local: threading.local = field(default_factory=threading.local)

    def images(self, first: int, last: int) -> NDArray[np.uint32]:
        """Draw and write the image chunks `first` to `last`, whole shards; return their checksums."""
        form = self.geometry.form
        per_object = form.object_windows // form.windows
        # A shard may be larger than what is drawn at once.
        at_once = max(1, PARTITION_BYTES // (form.windows * form.packed_bytes))
        checks: list[int] = []
        shard: list[bytes] = []
        writes: deque[Future[None]] = deque()
        try:
            for chunk, bits in (
                (chunk, bits)
                for begin in range(first, last, at_once)
                for chunk, bits in self._drawn(begin, min(last, begin + at_once))
            ):
                stored = form.encode(bits)
                checks.append(checksum(stored))
                if not form.shard:
                    self._write(chunk_key("images", chunk), stored, writes)
                    continue
                shard.append(stored)
                if (chunk + 1) % per_object == 0 or chunk + 1 == form.chunks(self.geometry.windows):
                    self._write(
                        chunk_key("images", chunk // per_object), [*shard, form.shard_index(shard)], writes
                    )
                    shard = []
            while writes:
                writes.popleft().result()
        finally:
            for future in writes:
                future.cancel()
        return np.array(checks, np.uint32)

    def _drawn(self, first: int, last: int) -> list[tuple[int, NDArray[np.uint8]]]:
        form = self.geometry.form
        a, b = first * form.windows, min(self.geometry.windows, last * form.windows)
        # Fresh memory costs a page fault every 4 kB, so a thread keeps its buffer.
        size = (b - a) * form.packed_bytes
        kept: NDArray[np.uint8] | None = getattr(self._local, "bits", None)
        if kept is None or kept.size < size:
            kept = self._local.bits = memory_for((size,))
        bits = kept[:size].reshape(b - a, form.packed_bytes)
        reason = np.empty(b - a, np.uint8)
        windows = self.windows
        row = windows.row[a - self.base : b - self.base]
        render_rows(windows.panel, row, windows.spec, bits, bits=True, reason=reason, threads=1)
        if reason.any():
            bad = int(np.flatnonzero(reason)[0])
            raise ValueError(
                f"window {a + bad} can not be drawn from this panel ({REASONS[int(reason[bad])]}): it is not "
                "the panel that the windows were found in"
            )
        return [(first + i, bits[i * form.windows : (i + 1) * form.windows]) for i in range(last - first)]

    def _write(self, key: str, content: Content | list[bytes], writes: deque[Future[None]]) -> None:
        if self.writers is None:
            self.where.put(self.key(key), content)
            return
        ahead = _WRITES_AHEAD["elsewhere" if self.where.path is None else "folder"]
        while len(writes) >= ahead:
            writes.popleft().result()
        writes.append(self.writers.submit(self.where.put, self.key(key), content))

    def index(self, chunk: int) -> list[bytes]:
        """Return the stored bytes of a chunk of every array along ``window``, in the order of ``columns``."""
        a = chunk * INDEX_CHUNK
        part = self.windows[a - self.base : min(self.geometry.windows, a + INDEX_CHUNK) - self.base]
        compressed = self.geometry.form.compressed
        columns = iter(self.geometry.columns)
        first = (part.instrument, part.time)
        stored = [encode_column(next(columns), v, compressed=compressed) for v in first]
        for h in self.geometry.horizons:
            value, exit_time = np.empty(len(part), np.float32), np.empty(len(part), np.int64)
            # Labels carry more than is kept: of a whole chunk at once they would be most of a worker's memory.
            for i in range(0, len(part), _LABELS_AT_ONCE):
                some = part[i : i + _LABELS_AT_ONCE]
                label = forward_returns(some.panel, some, h, self.delay, self.label_price)
                value[i : i + len(some)] = label.value
                exit_time[i : i + len(some)] = label.exit_time
            stored += [encode_column(next(columns), v, compressed=compressed) for v in (value, exit_time)]
        return stored

    def write_index(self, chunk: int) -> NDArray[np.uint32]:
        """Write one chunk of every array along ``window``; return their checksums."""
        stored = self.index(chunk)
        for column, content in zip(self.geometry.columns, stored, strict=True):
            self.where.put(self.key(chunk_key(column.name, chunk)), content)
        return np.array([checksum(content) for content in stored], np.uint32)


T = TypeVar("T")

R = TypeVar("R")


def perform(painter: Painter, task: Task) -> Task:
    """Do one piece of work and note that it is done."""
    checks = (
        painter.write_index(task.first) if task.kind == "index" else painter.images(task.first, task.last)
    )
    painter.where.put(task.key, checks.astype("<u4").tobytes())
    return task


def run_here(painter: Painter, tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Do work on threads of this process, or in the calling one for no `workers`; yield what is done."""
    if workers == 0:
        for task in tasks:
            yield perform(painter, task)
        return
    with ThreadPoolExecutor(workers, "pricepix-write") as writers:
        painter.writers = writers
        try:
            yield from in_threads(lambda task: perform(painter, task), tasks, workers)
        finally:
            painter.writers = None


def in_threads(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Yield ``work(item)`` as they end, at most `workers` at a time; after an error no more are begun."""
    with ThreadPoolExecutor(workers, "pricepix-draw") as pool:
        pending: set[Future[R]] = set()
        try:
            for item in items:
                if len(pending) >= workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                pending.add(pool.submit(work, item))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in pending:
                future.cancel()
