"""The plan of a build, frozen: the digests of its input, and how the work is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.build.target import check_resumable
from pricepix.location import BUILD, Location
from pricepix.store.chunks import ChunkFormat
from pricepix.store.format import Geometry
from pricepix.windows.labels import ReturnRule

KEY: Final = f"{BUILD}/plan.json"
DONE: Final = f"{BUILD}/done"
# Column bits that one worker holds at a time. Windows of a partition are drawn instrument by instrument, so
# that more of them at once are drawn faster; memory is what it costs.
PARTITION_BYTES: Final = 16 << 20


class Task(NamedTuple):
    """A piece of work: image chunks ``first`` to ``last``, or one chunk of the arrays along ``window``."""

    kind: str
    """``images`` or ``index``."""
    first: int
    last: int

    @property
    def key(self) -> str:
        """Object that says that it is done, and holds the checksums of what it wrote."""
        return f"{DONE}/{self.kind}-{self.first}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a store, and the size of its partitions, which does not."""

    panel_digest: str
    windows_digest: str
    spec_digest: str
    layout: str
    chunk: int
    shard: int
    height: int
    width: int
    windows: int
    instruments: int
    horizons: tuple[int, ...]
    delay: int
    label_price: str
    delisting: str
    partition: int
    """Image chunks a partition, a multiple of those a shard."""

    @property
    def geometry(self) -> Geometry:
        """The arrays of the store."""
        form = ChunkFormat(self.layout, self.height, self.width, self.chunk, shard=self.shard)
        return Geometry(form, self.windows, self.instruments, self.horizons)

    @property
    def rule(self) -> ReturnRule:
        """How forward returns are computed."""
        return ReturnRule(self.delay, self.label_price, self.delisting)

    def tasks(self) -> Iterator[Task]:
        """Yield all the work."""
        for i in range(self.geometry.index_chunks):
            yield Task("index", i, i + 1)
        chunks = self.geometry.form.chunks(self.windows)
        for first in range(0, chunks, self.partition):
            yield Task("images", first, min(chunks, first + self.partition))

    @property
    def task_count(self) -> int:
        """Pieces of work."""
        return sum(1 for _ in self.tasks())

    def write(self, where: Location) -> None:
        """Freeze the plan into the store."""
        where.put(KEY, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, where: Location) -> Plan | None:
        """Return the plan of an unfinished store, None if there is none."""
        content = where.get(KEY)
        if content is None:
            return None
        try:
            values = json.loads(bytes(content))
            return cls(**{**values, "horizons": tuple(values["horizons"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"the plan of the unfinished store {where.name} is damaged or from a different release ({error}): "
                "build it again with mode='overwrite'"
            ) from error

    def check_same(self, other: Plan, where: Location) -> None:
        """Refuse to resume `other`, the plan in the store, if this one would give different bytes."""
        expected, found = asdict(self), asdict(other)
        expected.pop("partition")
        check_resumable(where, expected, found)

    def done(self, where: Location) -> dict[Task, NDArray[np.uint32]]:
        """Return the finished work, with the checksums of what it wrote."""
        present = set(where.list(DONE))
        found = {}
        for task in self.tasks():
            if task.key in present:
                checks = np.frombuffer(bytes(where.get(task.key) or b""), "<u4")
                expected = len(self.geometry.columns) if task.kind == "index" else task.last - task.first
                if len(checks) == expected:
                    found[task] = checks
        return found


def partition_chunks(form: ChunkFormat, n: int, workers: int) -> int:
    """Image chunks a partition: as many as memory allows, fewer if that leaves workers idle, whole shards."""
    chunks, per_object = form.chunks(n), form.object_windows // form.windows
    size = min(PARTITION_BYTES // (form.windows * form.packed_bytes), -(-chunks // (4 * max(1, workers))))
    return max(1, size // per_object) * per_object
