"""Writing a store from front to back, when nobody knows yet how many windows will come."""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.build.finish import finish
from pricepix.build.target import _check_location, _state
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.location import BUILD, Location
from pricepix.store.chunks import ChunkFormat, checksum
from pricepix.store.format import ROOT, Geometry, chunk_key, columns, encode_column
from pricepix.store.lock import KEY as LOCK

CHECKPOINT: Final = f"{BUILD}/stream.npz"
# Column bits that a thread draws at a time, at most. Windows come by time, and the renderer is fast at windows
# of one instrument that follow each other: the more are drawn together, the more of these there are.
DRAW_BYTES: Final = 64 << 20
Draw = Callable[[int, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class PanelFacts:
    """What a store says of the bars it was made from, where no one panel holds them all."""

    instruments: NDArray[np.str_]
    offsets: NDArray[np.int64]
    instrument_digests: NDArray[np.uint64]
    digest: str
    fields: tuple[str, ...]
    tz: str | None

    @property
    def n_instruments(self) -> int:
        """Number of instruments."""
        return len(self.instruments)


@dataclass
class StoreWriter:
    """Writes windows in their order, a block at a time, and can go on after the last block that was finished.

    Chunks are whole whatever the blocks are: what does not fill one waits in memory for the next block.
    """

    where: Location
    form: ChunkFormat
    horizons: tuple[int, ...]
    identity: Mapping[str, Any]
    """JSON values that decide the store's bytes: another build with the same ones may go on with this one."""
    threads: int
    draw_bytes: int = DRAW_BYTES
    """Column bits that a thread draws at a time; about as much again waits to be written. At least a chunk."""
    windows: int = 0
    """Windows written so far, those that wait included."""
    blocks: int = 0
    """Blocks finished so far."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the caller wants back when a stopped build goes on: JSON values and numpy arrays."""

    def __post_init__(self) -> None:
        self._columns = columns(self.horizons)
        self._image_checks: list[int] = []
        self._column_checks: list[list[int]] = [[] for _ in self._columns]
        self._bits = np.empty((0, self.form.packed_bytes), np.uint8)
        self._values: list[NDArray[Any]] = [np.empty(0, column.dtype) for column in self._columns]
        self._shard: list[bytes] = []

    def begin(self, mode: str, attributes: Mapping[str, Any]) -> None:
        """Prepare the location, or take up a build that was stopped there, with its state.

        The caller holds the lock, and has set the state that a new build starts from.
        """
        _check_location(self.where, mode)
        state = _state(self.where)
        if mode == "resume" and state == "unfinished" and self._restored():
            return
        if state != "absent":
            self.where.delete(ROOT)
            self.where.delete_all(keep=LOCK)
        documents = Geometry(self.form, 0, 1, self.horizons).metadata({**attributes, "complete": False})
        self.where.put(CHECKPOINT, self._checkpoint())
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
        size, held = self.form.windows, len(self._bits)
        whole = (held + n) // size
        group = max(1, min(self.draw_bytes // (size * self.form.packed_bytes), -(-whole // self.threads)))
        done: deque[Future[list[bytes]]] = deque()

        def encoded(first: int) -> list[bytes]:
            last = min(first + group, whole)
            bits = draw(max(first * size - held, 0), last * size - held)
            if first == 0 and held:
                bits = np.concatenate([self._bits, bits])
            return [self.form.encode(bits[k : k + size]) for k in range(0, len(bits), size)]

        with ThreadPoolExecutor(self.threads, "pricepix-stream") as pool:
            try:
                for first in range(0, whole, group):
                    if len(done) > self.threads:
                        self._put_all(done.popleft().result())
                    done.append(pool.submit(encoded, first))
                while done:
                    self._put_all(done.popleft().result())
            finally:
                for future in done:
                    future.cancel()
        rest = draw(max(whole * size - held, 0), n) if whole * size < held + n else self._bits[:0]
        self._bits = np.concatenate([self._bits, rest]) if whole == 0 else np.array(rest)
        self._add_columns(values)
        self.windows += n

    def _put_all(self, chunks: list[bytes]) -> None:
        for stored in chunks:
            self._put(stored)

    def _put(self, stored: bytes) -> None:
        """Write the next image chunk, or shard if it is full."""
        chunk = len(self._image_checks)
        self._image_checks.append(checksum(stored))
        if not self.form.shard:
            self.where.put(chunk_key("images", chunk), stored)
            return
        self._shard.append(stored)
        if len(self._shard) * self.form.windows == self.form.shard:
            self._put_shard()

    def _put_shard(self) -> None:
        shard = (len(self._image_checks) - 1) * self.form.windows // self.form.shard
        self.where.put(chunk_key("images", shard), [*self._shard, self.form.shard_index(self._shard)])
        self._shard = []

    def _add_columns(self, values: Sequence[NDArray[Any]]) -> None:
        for i, (column, new) in enumerate(zip(self._columns, values, strict=True)):
            joined = np.concatenate([self._values[i], np.asarray(new, column.dtype)])
            while len(joined) >= INDEX_CHUNK:
                self._put_column(i, joined[:INDEX_CHUNK])
                joined = joined[INDEX_CHUNK:]
            self._values[i] = joined

    def _put_column(self, i: int, values: NDArray[Any]) -> None:
        stored = encode_column(self._columns[i], values)
        self.where.put(chunk_key(self._columns[i].name, len(self._column_checks[i])), stored)
        self._column_checks[i].append(checksum(stored))

    def end_block(self) -> None:
        """Note that a block is done: a build that is stopped later goes on after it."""
        self.blocks += 1
        self.where.put(CHECKPOINT, self._checkpoint())

    def finish(self, attributes: Mapping[str, Any], facts: PanelFacts) -> None:
        """Write what waits and what makes a store of it; the last write declares it complete."""
        if len(self._bits):
            self._put(self.form.encode(self._bits))
            self._bits = self._bits[:0]
        if self._shard:
            self._put_shard()
        for i, waiting in enumerate(self._values):
            if len(waiting):
                self._put_column(i, waiting)
        geometry = Geometry(self.form, self.windows, facts.n_instruments, self.horizons)
        slices = geometry.checksum_slices()
        checks = np.zeros(sum(count for _, count in geometry.arrays()), np.uint32)
        checks[slices["images"]] = self._image_checks
        for column, found in zip(self._columns, self._column_checks, strict=True):
            checks[slices[column.name]] = found
        finish(self.where, geometry, attributes, facts, checks)

    def _checkpoint(self) -> bytes:
        arrays = {key: value for key, value in self.state.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in self.state.items() if key not in arrays}
        head = {
            "identity": dict(self.identity),
            "windows": self.windows,
            "blocks": self.blocks,
            "state": plain,
            "shard": [len(stored) for stored in self._shard],
        }
        content = io.BytesIO()
        np.savez(
            content,
            allow_pickle=False,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            bits=self._bits,
            image_checks=np.array(self._image_checks, np.uint32),
            shard=np.frombuffer(b"".join(self._shard), np.uint8),
            **{f"values_{i}": waiting for i, waiting in enumerate(self._values)},
            **{f"checks_{i}": np.array(found, np.uint32) for i, found in enumerate(self._column_checks)},
            **{f"state_{key}": value for key, value in arrays.items()},
        )
        return content.getvalue()

    def _restored(self) -> bool:
        """Read the checkpoint of a stopped build; False if there is none."""
        content = self.where.get(CHECKPOINT)
        if content is None:
            return False
        try:
            with np.load(io.BytesIO(bytes(content)), allow_pickle=False) as found:
                loaded = {key: found[key] for key in found.files}
            head = json.loads(loaded["head"].tobytes())
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise ValueError(
                f"the checkpoint of the unfinished store {self.where.name} is damaged ({error}): build it "
                "again with mode='overwrite'"
            ) from error
        mine = json.loads(json.dumps(dict(self.identity)))
        different = [key for key in mine if head["identity"].get(key) != mine[key]]
        if different:
            listed = "; ".join(
                f"{key} is {mine[key]}, the store's {head['identity'].get(key)}" for key in different
            )
            raise ValueError(
                f"the build of store {self.where.name} can not be resumed with other data or arguments: "
                f"{listed}. Give what it was begun with, or start again with mode='overwrite'"
            )
        self.windows, self.blocks = head["windows"], head["blocks"]
        self._bits, self._image_checks = loaded["bits"], loaded["image_checks"].tolist()
        cuts = np.cumsum([0, *head["shard"]])
        whole = loaded["shard"].tobytes()
        self._shard = [whole[a:b] for a, b in itertools.pairwise(cuts)]
        for i in range(len(self._columns)):
            self._values[i] = loaded[f"values_{i}"]
            self._column_checks[i] = loaded[f"checks_{i}"].tolist()
        self.state = head["state"] | {
            key.removeprefix("state_"): value for key, value in loaded.items() if key.startswith("state_")
        }
        return True
