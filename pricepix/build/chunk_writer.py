"""Drawing, labelling, encoding and writing the chunks of a store, in any order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.build.chunk_objects import ImageObjects, write_column
from pricepix.build.plan import PARTITION_BYTES, Task
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.threads import map_unordered
from pricepix.location import Location
from pricepix.render.draw import render_rows
from pricepix.render.memory import memory_for
from pricepix.render.reasons import REASONS
from pricepix.store.chunks import Content
from pricepix.store.format import Geometry, encode_column
from pricepix.windows.index import WindowIndex
from pricepix.windows.labels import ReturnRule

# Objects that wait to be written, a worker: a disk needs no more to be busy, and more of them would scatter over
# memory that the next chunk's compression wants in one piece; a far bucket takes its time.
_WRITES_AHEAD: Final = {"folder": 1, "elsewhere": 8}
_LABELS_AT_ONCE: Final = 1 << 15


def _same(key: str) -> str:
    return key


@dataclass
class ChunkWriter:
    """Writes chunks of a store whose windows are all known, in any order and from any number of threads.

    The bytes depend only on the panel and the windows.
    """

    where: Location
    geometry: Geometry
    windows: WindowIndex
    rule: ReturnRule
    base: int = 0
    """Position in the store of the first of `windows`; nothing before it can be drawn."""
    key: Callable[[str], str] = _same
    """Where an object of the store is written."""
    writers: Executor | None = None
    """Threads that write while the next chunk is drawn."""
    _local: threading.local = field(default_factory=threading.local)

    def write_images(self, first: int, last: int) -> NDArray[np.uint32]:
        """Draw and write the image chunks `first` to `last`, whole shards; return their checksums."""
        form = self.geometry.form
        # A shard may be larger than what is drawn at once.
        at_once = max(1, PARTITION_BYTES // (form.windows * form.packed_bytes))
        writes: deque[Future[None]] = deque()
        objects = ImageObjects(form, lambda key, content: self._write(key, content, writes), first)
        try:
            for start in range(first, last, at_once):
                for bits in self._drawn(start, min(last, start + at_once)):
                    objects.add(form.encode(bits))
            objects.flush()
            while writes:
                writes.popleft().result()
        finally:
            for future in writes:
                future.cancel()
        return np.array(objects.checksums, np.uint32)

    def _drawn(self, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
        """Draw the chunks `first` to `last` and yield the column bits of each."""
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
                f"window {a + bad} cannot be drawn from this panel ({REASONS[int(reason[bad])]}): it is not "
                "the panel that the windows were found in"
            )
        for i in range(last - first):
            yield bits[i * form.windows : (i + 1) * form.windows]

    def _write(self, key: str, content: Content | list[bytes], writes: deque[Future[None]]) -> None:
        if self.writers is None:
            self._put(key, content)
            return
        ahead = _WRITES_AHEAD["elsewhere" if self.where.path is None else "folder"]
        while len(writes) >= ahead:
            writes.popleft().result()
        writes.append(self.writers.submit(self._put, key, content))

    def _put(self, key: str, content: Content | list[bytes]) -> None:
        self.where.put(self.key(key), content)

    def encoded_index(self, chunk: int) -> list[bytes]:
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
                label = self.rule.returns(some.panel, some, h)
                value[i : i + len(some)] = label.value
                exit_time[i : i + len(some)] = label.exit_time
            stored += [encode_column(next(columns), v, compressed=compressed) for v in (value, exit_time)]
        return stored

    def write_index(self, chunk: int) -> NDArray[np.uint32]:
        """Write one chunk of every array along ``window``; return their checksums."""
        encoded = zip(self.geometry.columns, self.encoded_index(chunk), strict=True)
        checks = [write_column(self._put, column, chunk, stored) for column, stored in encoded]
        return np.array(checks, np.uint32)


def run_task(writer: ChunkWriter, task: Task) -> Task:
    """Do one piece of work and record that it is done."""
    is_index = task.kind == "index"
    checks = writer.write_index(task.first) if is_index else writer.write_images(task.first, task.last)
    writer.where.put(task.key, checks.astype("<u4").tobytes())
    return task


def run_local(writer: ChunkWriter, tasks: Sequence[Task], workers: int) -> Iterator[Task]:
    """Do work on threads of this process, or in the calling thread if `workers` is 0; yield what is done."""
    if workers == 0:
        for task in tasks:
            yield run_task(writer, task)
        return
    with ThreadPoolExecutor(workers, "pricepix-write") as writers:
        writer.writers = writers
        try:
            yield from map_unordered(lambda task: run_task(writer, task), tasks, workers)
        finally:
            writer.writers = None
