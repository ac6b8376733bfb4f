"""Writing a store from front to back, when nobody knows yet how many windows will come.

There are two writers of stores, and two ways to resume. ``ChunkWriter`` knows all windows in advance: it cuts
them into partitions that any thread or machine can draw in any order, and each that is done leaves its checksums
behind. Here the number of windows is known only at the end, they come in blocks that do not end where chunks do,
and the source has a state of its own (digests of instruments, counts of dropped windows). So what a resumed
build needs is one position: a checkpoint after each block, with the windows that do not fill a chunk yet. Chunks,
shards, columns, checksums and the last objects of a store are written by the same code in both.
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import printable
from pricepix.build.chunk_objects import ImageObjects, write_column
from pricepix.build.finish import PanelFacts, empty_checksums, finish
from pricepix.build.target import check_location, check_resumable, clear_location, location_state
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.threads import map_ordered
from pricepix.location import BUILD, Location
from pricepix.spec import ImageSpec
from pricepix.store.attributes import FORMAT_VERSION
from pricepix.store.chunks import ChunkFormat
from pricepix.store.format import ROOT, Geometry, columns, encode_column

CHECKPOINT: Final = f"{BUILD}/stream.npz"
# What numpy and json raise for files that are cut off or changed.
_DAMAGED: Final = (
    ValueError, TypeError, KeyError, IndexError, OSError, EOFError, MemoryError, RecursionError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# Column bits that a thread draws at a time, at most. Windows come by time, and the renderer is fast at windows
# of one instrument that follow each other: the more are drawn together, the more of these there are.
DRAW_BYTES: Final = 64 << 20
Draw = Callable[[int, int], NDArray[np.uint8]]


@dataclass
class StreamWriter:
    """Writes windows in their order, a block at a time, and can resume after the last block that was finished.

    Chunks are full whatever the blocks are: windows that do not fill one wait in memory for the next block.
    """

    where: Location
    form: ChunkFormat
    horizons: tuple[int, ...]
    identity: Mapping[str, Any]
    """JSON values that decide the store's bytes: a build with the same ones may resume this one."""
    threads: int
    draw_bytes: int = DRAW_BYTES
    """Column bits that a thread draws at a time; about as much again waits to be written. At least a chunk."""
    windows: int = 0
    """Windows written so far, including those that wait."""
    blocks: int = 0
    """Blocks finished so far."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the caller needs back when the build is resumed: JSON values and numpy arrays."""

    def __post_init__(self) -> None:
        self._columns = columns(self.horizons)
        self._images = ImageObjects(self.form, self.where.put)
        self._column_checks: list[list[int]] = [[] for _ in self._columns]
        self._bits = np.empty((0, self.form.packed_bytes), np.uint8)
        self._values: list[NDArray[Any]] = [np.empty(0, column.dtype) for column in self._columns]

    def start(self, mode: str, spec: ImageSpec) -> None:
        """Prepare the location, or take over an interrupted build there, with its state.

        The caller holds the lock, and has set the state that a new build starts from.
        """
        check_location(self.where, mode)
        state = location_state(self.where)
        if mode == "resume" and state == "unfinished" and self._restored():
            return
        if state != "absent":
            clear_location(self.where)
        attributes = {"format_version": FORMAT_VERSION, "spec": spec.to_dict(), "complete": False}
        documents = Geometry(self.form, 0, 1, self.horizons).metadata(attributes)
        self.where.put(CHECKPOINT, self._checkpoint(0))
        self.where.put(ROOT, documents[ROOT])

    def add(self, n: int, draw: Draw, values: Sequence[NDArray[Any]]) -> None:
        """Write a block of `n` windows.

        Parameters
        ----------
        n : int
        draw : function
            Returns the column bits, uint8 (b - a, packed_bytes), of windows a to b of the block; called from
            several threads.
        values : sequence of arrays, (n,)
            The arrays along ``window``: instrument_index, time, and ret and exit_time for each horizon.
        """
        size, waiting = self.form.windows, len(self._bits)
        full = (waiting + n) // size
        group = max(1, min(self.draw_bytes // (size * self.form.packed_bytes), -(-full // self.threads)))

        def encoded(first: int) -> list[bytes]:
            last = min(first + group, full)
            bits = draw(max(first * size - waiting, 0), last * size - waiting)
            if first == 0 and waiting:
                bits = np.concatenate([self._bits, bits])
            return [self.form.encode(bits[k : k + size]) for k in range(0, len(bits), size)]

        for chunks in map_ordered(encoded, range(0, full, group), self.threads):
            for stored in chunks:
                self._images.add(stored)
        rest = draw(max(full * size - waiting, 0), n) if full * size < waiting + n else self._bits[:0]
        self._bits = np.concatenate([self._bits, rest]) if full == 0 else np.array(rest)
        self._add_columns(values)
        self.windows += n

    def _add_columns(self, values: Sequence[NDArray[Any]]) -> None:
        for i, (column, new) in enumerate(zip(self._columns, values, strict=True)):
            joined = np.concatenate([self._values[i], np.asarray(new, column.dtype)])
            while len(joined) >= INDEX_CHUNK:
                self._write_column(i, joined[:INDEX_CHUNK])
                joined = joined[INDEX_CHUNK:]
            self._values[i] = joined

    def _write_column(self, i: int, values: NDArray[Any]) -> None:
        column, checks = self._columns[i], self._column_checks[i]
        checks.append(write_column(self.where.put, column, len(checks), encode_column(column, values)))

    def end_block(self) -> None:
        """Record that a block is done: a build that is interrupted later resumes after it."""
        self.where.put(CHECKPOINT, self._checkpoint(self.blocks + 1))
        self.blocks += 1

    def finish(self, attributes: Mapping[str, Any], facts: PanelFacts) -> None:
        """Write what waits and what makes it a store; the last write declares it complete."""
        if len(self._bits):
            self._images.add(self.form.encode(self._bits))
            self._bits = self._bits[:0]
        self._images.flush()
        for i, waiting in enumerate(self._values):
            if len(waiting):
                self._write_column(i, waiting)
        geometry = Geometry(self.form, self.windows, facts.n_instruments, self.horizons)
        slices = geometry.checksum_slices()
        checks = empty_checksums(geometry)
        checks[slices["images"]] = self._images.checksums
        for column, found in zip(self._columns, self._column_checks, strict=True):
            checks[slices[column.name]] = found
        finish(self.where, geometry, attributes, facts, checks)

    def _checkpoint(self, blocks: int) -> bytes:
        arrays = {key: value for key, value in self.state.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in self.state.items() if key not in arrays}
        head = {
            "identity": dict(self.identity),
            "windows": self.windows,
            "blocks": blocks,
            "state": plain,
            "shard": [len(stored) for stored in self._images.waiting],
        }
        content = io.BytesIO()
        np.savez(
            content,
            allow_pickle=False,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            bits=self._bits,
            image_checks=np.array(self._images.checksums, np.uint32),
            shard=np.frombuffer(b"".join(self._images.waiting), np.uint8),
            **{f"values_{i}": waiting for i, waiting in enumerate(self._values)},
            **{f"checks_{i}": np.array(found, np.uint32) for i, found in enumerate(self._column_checks)},
            **{f"state_{key}": value for key, value in arrays.items()},
        )
        return content.getvalue()

    def _restored(self) -> bool:
        """Read the checkpoint of an interrupted build; False if there is none."""
        content = self.where.get(CHECKPOINT)
        if content is None:
            return False
        try:
            with np.load(io.BytesIO(bytes(content)), allow_pickle=False) as found:
                loaded = {key: found[key] for key in found.files}
            head = json.loads(loaded["head"].tobytes())
            identity = dict(head["identity"])
        except _DAMAGED as error:
            raise self._damaged(error) from error
        check_resumable(self.where, json.loads(json.dumps(dict(self.identity))), identity)
        try:
            self._take(head, loaded)
        except _DAMAGED as error:
            raise self._damaged(error) from error
        return True

    def _damaged(self, error: Exception) -> ValueError:
        why = printable(str(error))[:200]
        return ValueError(
            f"the checkpoint of the unfinished store {self.where.name} is damaged ({type(error).__name__}: {why}): "
            "build it again with mode='overwrite'"
        )

    def _take(self, head: Mapping[str, Any], loaded: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the values of a checkpoint."""
        self.windows, self.blocks = head["windows"], head["blocks"]
        self._bits = loaded["bits"]
        self._images.checksums = loaded["image_checks"].tolist()
        cuts = np.cumsum([0, *head["shard"]])
        chunks = loaded["shard"].tobytes()
        self._images.waiting = [chunks[a:b] for a, b in itertools.pairwise(cuts)]
        for i in range(len(self._columns)):
            self._values[i] = loaded[f"values_{i}"]
            self._column_checks[i] = loaded[f"checks_{i}"].tolist()
        self.state = head["state"] | {
            key.removeprefix("state_"): value for key, value in loaded.items() if key.startswith("state_")
        }
