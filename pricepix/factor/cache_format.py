"""The format of a factor cache: its arrays, their stored chunks, and the checksum of every chunk.

A cache is a Zarr v3 group, written as stores are: ``zarr.json`` comes last, holds the metadata of all arrays, and
carries a digest of them all. The array ``integrity/checksums`` has the crc32c of every chunk, or -1 where a chunk has
no value and no object, so that a chunk that was lost is told from one that never was.

The group ``scored`` says what the values were scored from: ``scored/image`` has the digest of the image behind each
value, 0 where none was scored, and ``scored/chunks`` the checksums of the store's image chunks, by which a later
scoring finds what changed. The group ``journal`` has what every scoring replaced: see ``cache_journal``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pricepix.factor.cache_journal import Journal
from pricepix.store.chunks import ZSTD_LEVEL, checksum, seal
from pricepix.store.format import ROOT, TIME_ATTRIBUTES, dump, encode_strings, metadata_digest
from pricepix.windows.labels import NO_TIME

__all__ = [
    "CHECKSUMS",
    "CHECKSUM_KEY",
    "DIGESTS",
    "FORMAT",
    "FORMAT_VERSION",
    "IMAGES",
    "SOURCE_CHUNKS",
    "ArrayLayout",
    "CacheContent",
    "array_layouts",
    "checksum_table",
    "create_array",
    "fill_of",
    "finished_metadata",
    "object_checksum",
    "table_digest",
]

FORMAT: Final = "pricepix-factor"
FORMAT_VERSION: Final = 3
IMAGES: Final = "scored/image"
"""uint64 (day, instrument, interval): the digest of the image that each value was scored from, 0 for none."""
SOURCE_CHUNKS: Final = "scored/chunks"
"""int64 (chunk,): the checksums of the store's image chunks when it was scored last; empty if it has none."""
CHECKSUMS: Final = "integrity/checksums"
CHECKSUM_KEY: Final = f"{CHECKSUMS}/c/0"
DIGESTS: Final = ("metadata_digest", "checksums_digest")
"""Attributes that follow from the others and from the objects."""
DAYS: Final = 4096
"""Days of a chunk of ``day`` and ``time``. Values have a chunk a day, so that a new day touches no other."""

_AXES: Final = ("day", "instrument", "interval")
_CALENDAR: Final = {"calendar": "proleptic_gregorian"}
_NO_OBJECT: Final = -1


class ArrayLayout(NamedTuple):
    """Name, shape and chunk shape of an array of a cache."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-n // size) for n, size in zip(self.shape, self.chunks, strict=True))

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return math.prod(self.grid)

    def key(self, *chunk: int) -> str:
        """Key of the object of a chunk."""
        return f"{self.name}/c/{'/'.join(map(str, chunk))}"

    def object_keys(self) -> Iterator[str]:
        """Keys of all chunks, in the order of their checksums."""
        for chunk in np.ndindex(*self.grid):
            yield self.key(*chunk)


def array_layouts(root: Mapping[str, Any]) -> list[ArrayLayout]:
    """Return the arrays that the metadata of a group describe, in the order of their checksums."""
    members = root["consolidated_metadata"]["metadata"]
    return [
        ArrayLayout(
            name, tuple(meta["shape"]), tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        )
        for name, meta in sorted(members.items())
        if meta["node_type"] == "array" and name != CHECKSUMS
    ]  # fmt: skip


def table_digest(table: NDArray[np.int64]) -> str:
    """16 hexadecimal digits that stand for the checksums of all chunks."""
    return hashlib.blake2b(table.astype("<i8").tobytes(), digest_size=8).hexdigest()


@dataclass
class CacheContent:
    """Everything of a cache but its values: axes, labels and attributes, from which its objects are made."""

    days: NDArray[np.int64]
    """int64 (days,): since 1970."""
    time: NDArray[np.int64]
    """int64 (days, intervals): nanoseconds, of each bar."""
    instruments: list[str]
    intervals: list[str]
    spread: bool
    """Whether the spread of an ensemble's members is kept."""
    block: int
    """Instruments of a chunk, 1 or more: as many as the cache had when it was new."""
    labels: dict[str, NDArray[Any]]
    """Forward returns by which a panel's bars are recognised; empty where there are none."""
    label_attributes: dict[str, Any]
    source_chunks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Checksums of the store's image chunks, as `SOURCE_CHUNKS`."""
    journal: Journal = field(default_factory=Journal)
    """What every scoring replaced."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Days, instruments, times of day."""
        return len(self.days), len(self.instruments), len(self.intervals)

    @property
    def value_names(self) -> tuple[str, ...]:
        """Arrays along day, instrument and interval."""
        return ("factor", "spread", IMAGES) if self.spread else ("factor", IMAGES)

    def layouts(self) -> list[ArrayLayout]:
        """Return the layout of every array with checksums, in their order."""
        days, instruments, intervals = self.shape
        found = [self.values_layout(name) for name in self.value_names] + [
            ArrayLayout("day", (days,), (DAYS,)),
            ArrayLayout("time", (days, intervals), (DAYS, intervals)),
            ArrayLayout("instrument", (instruments,), (self.block,)),
            ArrayLayout("interval", (intervals,), (intervals,)),
        ]
        for name, values in self.labels.items():
            found.append(ArrayLayout(f"labels/{name}", values.shape, (max(1, len(values)),)))
        count = len(self.source_chunks)
        found.append(ArrayLayout(SOURCE_CHUNKS, (count,), (max(1, count),)))
        found += [ArrayLayout(name, (length,), (size,)) for name, length, size in self.journal.shapes()]
        return sorted(found)

    def values_layout(self, name: str) -> ArrayLayout:
        """Layout of an array of values."""
        return ArrayLayout(name, self.shape, (1, self.block, len(self.intervals)))

    def value_dtype(self, name: str) -> np.dtype[Any]:
        """Element type of an array of values."""
        return np.dtype(np.uint64 if name == IMAGES else np.float32)

    def encode_day(self, values: NDArray[Any]) -> list[bytes | None]:
        """Return the stored chunks of a day, (instruments, intervals); None for one without a value."""
        found: list[bytes | None] = []
        fill = fill_of(values.dtype)
        for first in range(0, len(values), self.block):
            part = values[first : first + self.block]
            if (np.isnan(part) if fill else part == 0).all():
                found.append(None)
                continue
            whole = np.full((self.block, values.shape[1]), fill, values.dtype)
            whole[: len(part)] = part
            found.append(seal(whole))
        return found

    def encode_axes(self) -> dict[str, list[bytes | None]]:
        """Return the stored chunks, in order, of all arrays but those of values, by name.

        None stands for a chunk of the journal that is stored already.
        """
        names = [*self.instruments, *[""] * (-len(self.instruments) % self.block)]
        found: dict[str, list[bytes | None]] = {
            "day": [_padded(self.days[a : a + DAYS], 0) for a in range(0, len(self.days), DAYS)],
            "time": [_padded(self.time[a : a + DAYS], NO_TIME) for a in range(0, len(self.days), DAYS)],
            "instrument": [
                encode_strings(np.array(names[a : a + self.block], np.str_))
                for a in range(0, len(names), self.block)
            ],
            "interval": [encode_strings(np.array(self.intervals, np.str_))],
        }
        for name, values in self.labels.items():
            found[f"labels/{name}"] = [seal(values)] if len(values) else []
        found[SOURCE_CHUNKS] = [seal(self.source_chunks)] if len(self.source_chunks) else []
        return found | self.journal.encode()

    def metadata(self, attributes: Mapping[str, Any], table: NDArray[np.int64]) -> dict[str, bytes]:
        """Return the Zarr metadata by key; the group's, ``zarr.json``, hold those of all arrays and their digest."""
        objects: dict[str, Any] = {}
        group = zarr.create_group(MemoryStore(objects), zarr_format=3)

        def create(layout: ArrayLayout, dtype: Any, fill: Any, axes: Any, **more: Any) -> None:
            create_array(group, layout, dtype, fill, axes, **more)

        if self.labels:
            group.create_group("labels", attributes=self.label_attributes)
        group.create_group("scored")
        group.create_group("journal")
        journal = self.journal.dtypes()
        for layout in self.layouts():
            name = layout.name
            if name == IMAGES:
                create(layout, np.uint64, 0, _AXES)
            elif name in self.value_names:
                create(layout, np.float32, np.nan, _AXES, coordinates="time")
            elif name == SOURCE_CHUNKS:
                create(layout, np.int64, 0, ("chunk",))
            elif name in journal:
                dtype, fill, axis = journal[name]
                create(layout, dtype, fill, (axis,))
            elif name.startswith("labels/"):
                create(layout, self.labels[name.removeprefix("labels/")].dtype, 0, ("label",))
            elif name == "day":
                create(layout, np.int64, 0, ("day",), units="days since 1970-01-01", **_CALENDAR)
            elif name == "time":
                create(layout, np.int64, NO_TIME, ("day", "interval"), **TIME_ATTRIBUTES)
            else:
                create(layout, str, "", (name,))
        return finished_metadata(group, objects, attributes, table)


def create_array(
    group: zarr.Group, layout: ArrayLayout, dtype: Any, fill: Any, axes: Sequence[str], **attributes: Any
) -> None:
    """Create an array whose chunks are stored as ``seal`` stores them."""
    group.create_array(
        layout.name,
        shape=layout.shape,
        chunks=layout.chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        dimension_names=axes,
        attributes=attributes,
    )


def finished_metadata(
    group: zarr.Group, objects: Mapping[str, Any], attributes: Mapping[str, Any], table: NDArray[np.int64]
) -> dict[str, bytes]:
    """Return the metadata of a group by key, once all of its arrays but the checksums are created.

    Those of the group itself, ``zarr.json``, hold those of all arrays, and the digests of them and of the checksums.
    `objects` is what the group's store in memory keeps.
    """
    group.create_group("integrity")
    create_array(group, ArrayLayout(CHECKSUMS, table.shape, table.shape), np.int64, _NO_OBJECT, ("object",))
    found = {key: bytes(value.to_bytes()) for key, value in objects.items()}
    root = json.loads(found[ROOT])
    members = {key.removesuffix(f"/{ROOT}"): json.loads(text) for key, text in found.items() if key != ROOT}
    for member in members.values():
        if member["node_type"] == "group":
            member["consolidated_metadata"] = _consolidated({})
    root["consolidated_metadata"] = _consolidated(members)
    root["attributes"] = {**attributes, "checksums_digest": table_digest(table)}
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    found[ROOT] = dump(root)
    return found


def fill_of(dtype: np.dtype[Any]) -> float:
    """What a value of a day is where there is none: NaN, or 0 for digests of images."""
    return np.nan if dtype.kind == "f" else 0


def _consolidated(members: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": dict(sorted(members.items()))}


def _padded(values: NDArray[np.int64], fill: int) -> bytes:
    whole = np.full((DAYS, *values.shape[1:]), fill, np.int64)
    whole[: len(values)] = values
    return seal(whole)


def checksum_table(layouts: Sequence[ArrayLayout], known: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the checksums of all chunks, from those of the objects that there are."""
    keys = [key for layout in layouts for key in layout.object_keys()]
    return np.array([known.get(key, _NO_OBJECT) for key in keys], np.int64)


def object_checksum(stored: bytes | None) -> int:
    """Return the checksum of a stored chunk as the table has it, -1 for none."""
    return _NO_OBJECT if stored is None else checksum(stored)
