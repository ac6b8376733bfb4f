"""The format of a store: its Zarr metadata, their digest, and the checksum of every chunk.

Zarr checks less than a store must promise. A chunk that is missing reads as fill values, two chunks that were
exchanged both have valid checksums, and nothing guards the metadata. So the checksum of every chunk of every
array is kept in the array ``checksums``, whose digest, like that of all metadata, is an attribute of the group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pricepix.images.chunking import INDEX_CHUNK
from pricepix.store.chunks import ZSTD_LEVEL, ChunkFormat, Content, numcodecs_allowed, seal, unseal
from pricepix.windows.labels import NO_TIME

ROOT: Final = "zarr.json"
"""Key of the group's metadata, which hold those of all arrays too."""
TIME_ATTRIBUTES: Final = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
CHECKSUMS: Final = "checksums"
MAX_NAMES_BYTES: Final = 1 << 30
"""The most memory that names of instruments may take: of 8 million instruments with 32 characters."""
# Attributes about the metadata themselves, left out of their digest.
_NOT_DIGESTED: Final = ("metadata_digest", "pending")


class Column(NamedTuple):
    """An array along ``window``."""

    name: str
    dtype: np.dtype[Any]
    fill: Any
    attributes: Mapping[str, Any]


def columns(horizons: Sequence[int]) -> list[Column]:
    """Return the arrays along ``window`` of a store with these horizons, in the order of their checksums."""
    found = [
        Column("instrument_index", np.dtype("<i4"), 0, {}),
        Column("time", np.dtype("<i8"), 0, TIME_ATTRIBUTES),
    ]
    for h in horizons:
        found.append(Column(f"ret_{h}", np.dtype("<f4"), np.nan, {}))
        found.append(Column(f"exit_time_{h}", np.dtype("<i8"), NO_TIME, TIME_ATTRIBUTES))
    return found


@dataclass(frozen=True)
class Geometry:
    """The arrays of a store and their numbers of chunks."""

    form: ChunkFormat
    windows: int
    instruments: int
    horizons: tuple[int, ...]

    @property
    def columns(self) -> list[Column]:
        """The arrays along ``window``."""
        return columns(self.horizons)

    @property
    def index_chunks(self) -> int:
        """Chunks of each of them."""
        return -(-self.windows // INDEX_CHUNK)

    def arrays(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the number of chunks of every array with checksums, in their order."""
        yield "images", self.form.chunks(self.windows)
        for column in self.columns:
            yield column.name, self.index_chunks
        for name in ("instruments", "instrument_rows", "instrument_digest"):
            yield name, 1

    def checksum_slices(self) -> dict[str, slice]:
        """Return where in ``checksums`` the chunks of each array stand."""
        slices, at = {}, 0
        for name, count in self.arrays():
            slices[name] = slice(at, at + count)
            at += count
        return slices

    def objects(self) -> Iterator[str]:
        """Yield the keys of all objects that a finished store consists of."""
        yield ROOT
        for name, count in self.arrays():
            yield f"{name}/{ROOT}"
            if name == "images" and self.form.shard:
                count = -(-self.windows // self.form.shard)
            for i in range(count):
                yield chunk_key(name, i)
        yield f"{CHECKSUMS}/{ROOT}"
        yield chunk_key(CHECKSUMS, 0)

    def metadata(self, attributes: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the Zarr metadata by key. The group's, ``zarr.json``, hold those of all arrays and a digest."""
        keys: dict[str, Any] = {}
        group = zarr.create_group(MemoryStore(keys), zarr_format=3, attributes=dict(attributes))
        with numcodecs_allowed():
            self.form.create_array(group, self.windows)
            codecs: Any = [ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()]
            if not self.form.compressed:
                codecs = None

            def create(
                name: str,
                shape: tuple[int, ...],
                chunk: int,
                dtype: Any,
                fill: Any,
                *dims: str,
                **attributes: Any,
            ) -> None:
                group.create_array(
                    name,
                    shape=shape,
                    chunks=(chunk, *shape[1:]),
                    dtype=dtype,
                    fill_value=fill,
                    compressors=codecs,
                    dimension_names=dims,
                    attributes=attributes,
                )

            for column in self.columns:
                create(
                    column.name,
                    (self.windows,),
                    INDEX_CHUNK,
                    column.dtype,
                    column.fill,
                    "window",
                    **column.attributes,
                )
            m = self.instruments
            create("instruments", (m,), m, str, "", "instrument")
            if self.form.compressed:
                create("instrument_rows", (m,), m, "int64", 0, "instrument")
                create("instrument_digest", (m, 2), m, "uint64", 0, "instrument", "word")
                total = sum(count for _, count in self.arrays())
                create(CHECKSUMS, (total,), total, "uint32", 0, "object")
            zarr.consolidate_metadata(group.store)
        found = {key: bytes(value.to_bytes()) for key, value in keys.items()}
        root = json.loads(found[ROOT])
        root["attributes"]["metadata_digest"] = metadata_digest(root)
        found[ROOT] = dump(root)
        return found


def chunk_key(name: str, chunk: int) -> str:
    """Key of a chunk or shard of an array, relative to the store."""
    if name == "images":
        return f"images/c/{chunk}/0/0"
    return f"{name}/c/{chunk}/0" if name == "instrument_digest" else f"{name}/c/{chunk}"


def dump(content: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return the bytes of a JSON object of the store."""
    return json.dumps(content, indent=2).encode()


def metadata_digest(root: Mapping[str, Any]) -> str:
    """32 hexadecimal digits for the group's metadata: its attributes and the metadata of all arrays."""
    attributes = {k: v for k, v in root.get("attributes", {}).items() if k not in _NOT_DIGESTED}
    text = json.dumps({**root, "attributes": attributes}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checksums_digest(checksums: NDArray[np.uint32]) -> str:
    """16 hexadecimal digits that stand for the checksums of all chunks."""
    return hashlib.blake2b(checksums.astype("<u4").tobytes(), digest_size=8).hexdigest()


def encode_column(column: Column, values: NDArray[Any], *, compressed: bool = True) -> bytes:
    """Return the stored bytes of a chunk of an array along ``window``, filled up as Zarr does."""
    raw = np.full(INDEX_CHUNK, column.fill, column.dtype)
    raw[: len(values)] = values
    return seal(raw) if compressed else raw.tobytes()


def encode_strings(names: NDArray[np.str_], *, compressed: bool = True) -> bytes:
    """Return the stored bytes of the only chunk of ``instruments``."""
    raw = bytes(VLenUTF8().encode(names.astype(object)))
    return seal(np.frombuffer(raw, np.uint8)) if compressed else raw


def max_stored_bytes(size: int) -> int:
    """Return the most bytes that `size` bytes may take when stored: zstd adds little to what does not shrink."""
    return size + size // 64 + 1024


def decode(name: str, dtype: Any, stored: Content, count: int, *, compressed: bool = True) -> NDArray[Any]:
    """Return the `count` values of a chunk of any array but ``images``; ValueError if it is damaged."""
    if name == "instruments":
        return _decode_strings(unseal(stored) if compressed else stored, count)
    size = count * np.dtype(dtype).itemsize
    raw = unseal(stored, size) if compressed else stored
    if len(raw) != size:
        raise ValueError(f"{len(raw):,} bytes, expected {size:,}")
    return np.frombuffer(raw, dtype)


def _decode_strings(raw: Content, count: int) -> NDArray[np.str_]:
    """Return the names of a chunk of ``instruments``.

    Its header says how many there are, for which the codec asks memory at once; and an array of names gives each as
    much room as the longest takes.
    """
    found = int.from_bytes(memoryview(raw)[:4], "little")
    if found != count or len(raw) < 4 + 4 * count:
        raise ValueError(f"{found:,} names in {len(raw):,} bytes, expected {count:,}")
    try:
        names = VLenUTF8().decode(raw).tolist()
    except UnicodeDecodeError as error:
        raise ValueError(f"names that are not UTF-8 ({error.reason})") from error
    size = 4 * count * max(map(len, names), default=0)
    if size > MAX_NAMES_BYTES:
        raise ValueError(f"{count:,} names take {size:,} bytes, more than {MAX_NAMES_BYTES:,} (max_bytes)")
    return np.array(names, dtype=np.str_)
