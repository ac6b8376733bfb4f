"""Encoded chunks as the objects of a store: image chunks one by one or in shards, and chunks of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pricepix.store.chunks import ChunkFormat, Content, checksum
from pricepix.store.format import Column, chunk_key

Put = Callable[[str, Content | list[bytes]], None]
"""Writes the content of a key, or its parts one after the other."""


@dataclass
class ImageObjects:
    """Writes encoded chunks that follow each other, and keeps their checksums.

    It serves both writers of stores: ``ChunkWriter``, for the chunks of a partition, and ``StreamWriter``, for all
    chunks of a store.
    """

    form: ChunkFormat
    put: Put
    first: int = 0
    """Number of the first chunk; a shard begins with it."""
    checksums: list[int] = field(default_factory=list)
    """Those of the chunks so far."""
    waiting: list[bytes] = field(default_factory=list)
    """Chunks of the shard that is not yet full."""

    def add(self, stored: bytes) -> None:
        """Take the next chunk; write it, or the shard that it fills."""
        self.checksums.append(checksum(stored))
        if not self.form.shard:
            self.put(chunk_key("images", self._last), stored)
            return
        self.waiting.append(stored)
        if len(self.waiting) * self.form.windows == self.form.shard:
            self.flush()

    def flush(self) -> None:
        """Write the chunks that wait: the last shard of a store need not be full."""
        if self.waiting:
            shard = self._last * self.form.windows // self.form.shard
            self.put(chunk_key("images", shard), [*self.waiting, self.form.shard_index(self.waiting)])
            self.waiting = []

    @property
    def _last(self) -> int:
        return self.first + len(self.checksums) - 1


def write_column(put: Put, column: Column, chunk: int, stored: bytes) -> int:
    """Write an encoded chunk of an array along ``window``; return its checksum."""
    put(chunk_key(column.name, chunk), stored)
    return checksum(stored)
