"""The objects of a factor cache: fetched as they were when it was opened, and checked."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import FsspecStore, MemoryStore

from pricepix._checks import short
from pricepix.factor.cache_attributes import check_metadata
from pricepix.factor.cache_format import (
    CHECKSUM_KEY,
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    ArrayLayout,
    array_layouts,
    table_digest,
)
from pricepix.location import BUILD, METADATA_BYTES, Folder, Location, StoreLike, ZarrObjects
from pricepix.store.blosc import zstd_content_bytes
from pricepix.store.chunks import Content, check_sealed, unseal
from pricepix.store.commit import finish_pending, staged
from pricepix.store.format import MAX_NAMES_BYTES, ROOT, decode, metadata_digest
from pricepix.store.lock import WriteLock

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer, BufferPrototype

__all__ = ["CACHE", "DONE", "PLAN", "CacheObjects", "Kind", "cache_location", "read_root"]

PLAN: Final = f"{BUILD}/scoring.json"
"""What a scoring that is under way, or was stopped, is of."""
MAX_CHUNKS: Final = 1 << 20
"""The most chunks of a cache: 4,000 years of days. Each takes 200 bytes of memory when the cache is opened."""
DONE: Final = f"{BUILD}/done"
"""Folder of an object for every stretch of days that it has written; its name has the windows and days done."""

_REQUIRED: Final = ("store_digest", "model", "spec", "spec_digest", "shift", "windows")
# Schemes that `Location` knows; zarr opens all others, through fsspec.
_SCHEMES: Final = ("file", "memory", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")


def cache_location(location: StoreLike | Location | None) -> Location:
    """Return the location of a cache: a path, a URL, a Zarr store, or None for a new one in memory."""
    if location is None:
        return ZarrObjects(MemoryStore(), "memory")
    if isinstance(location, str) and "://" in location and location.partition("://")[0] not in _SCHEMES:
        return ZarrObjects(FsspecStore.from_url(location), location)
    return Location.of(location)


class Kind(NamedTuple):
    """What tells a group whose objects have checksums from another kind of them."""

    noun: str
    """What messages call it."""
    expected: str
    """What a location that holds something else is not: ``a factor cache``."""
    format: str
    version: int
    required: tuple[str, ...]
    """Attributes that there must be."""
    plan: str
    """Key of what says that one is being made."""
    again: str
    """The verb for making one, and the function of `pricepix.factor` that does."""
    check_metadata: Callable[[Mapping[str, Any], str], dict[str, int | None]]
    """Checks the metadata of a group, and returns the bytes of a value of each array."""
    may_miss: tuple[str, ...] = ()
    """Arrays whose chunks may be left out, where they have no value."""


CACHE: Final = Kind(
    "cache", "a factor cache", FORMAT, FORMAT_VERSION, _REQUIRED, PLAN, "score", check_metadata,
    ("factor", "spread", IMAGES),
)  # fmt: skip


def read_root(location: Location, kind: Kind = CACHE) -> dict[str, Any] | None:
    """Read the metadata of a cache's group, or of another kind's; None where there is none.

    Raises
    ------
    ValueError
        If it is something else, of another version, damaged, or edited.
    """
    content = location.get(ROOT, METADATA_BYTES)
    if content is None:
        return None
    name = location.name
    try:
        root = json.loads(bytes(content))
        if not isinstance(root, dict) or root.get("zarr_format") != 3 or root.get("node_type") != "group":
            raise ValueError("it does not describe a Zarr v3 group")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name}/{ROOT} is damaged or foreign ({error}): restore it, or {kind.again} again"
        ) from error
    attrs = root.get("attributes")
    attrs = attrs if isinstance(attrs, dict) else {}
    if attrs.get("format") != kind.format:
        hint = "an image store: open it with open_store" if "horizons" in attrs else "something else"
        raise ValueError(f"{name} is a Zarr group, but not {kind.expected}: it is {hint}")
    if attrs.get("format_version") != kind.version:
        raise ValueError(
            f"{kind.noun} {name} has format version {short(attrs.get('format_version'))}, this release reads version "
            f"{kind.version}: {kind.again} to a new location, or remove this one and {kind.again} again"
        )
    if (found := metadata_digest(root)) != attrs.get("metadata_digest"):
        raise ValueError(
            f"the metadata of {kind.noun} {name} were edited or damaged: their digest is {found}, {ROOT} says "
            f"{short(attrs.get('metadata_digest'))}; restore {ROOT}, or remove the {kind.noun} and {kind.again} again"
        )
    if missing := [key for key in kind.required if key not in attrs]:
        raise ValueError(f"{kind.noun} {name} lacks the attributes {', '.join(missing)}: {kind.again} again")
    return root


class CacheObjects:
    """The objects of one factor cache, or of another kind of group with checksums, as they were when it was opened.

    Everything that is read is compared with the checksums. If the cache is appended to meanwhile, what the append did
    not change can still be read, and anything else is an error that says so.
    """

    def __init__(self, location: Location, root: Mapping[str, Any], kind: Kind = CACHE) -> None:
        self.location, self.kind = location, kind
        self.url = location.name
        self.root = {**root, "attributes": dict(root["attributes"])}
        self.attrs: dict[str, Any] = self.root["attributes"]
        self.pending = self.attrs.pop("pending", None) is not None
        """Whether a committed append has not been moved into place yet; reads see it all the same."""
        self._item_bytes = kind.check_metadata(root, self.url)
        self.members: dict[str, Any] = root["consolidated_metadata"]["metadata"]
        self.layouts: list[ArrayLayout] = array_layouts(root)
        self.table = self._read_table()
        keys = (key for layout in self.layouts for key in layout.object_keys())
        self.checksums: dict[str, int] = dict(zip(keys, self.table.tolist(), strict=True))
        """crc32c by key of every chunk; -1 for a chunk without a value, which has no object."""
        self._layout_of = {layout.name: layout for layout in self.layouts}

    @classmethod
    def open(cls, location: Location, kind: Kind = CACHE, *, finish: bool = True) -> CacheObjects:
        """Open the cache at a location; the errors are those of ``open_cache``.

        An append that was killed while it moved its objects into place is finished by whoever may write.
        """
        root = read_root(location, kind)
        if root is None:
            raise _absence(location, kind)
        if finish and "pending" in root["attributes"]:
            try:
                with WriteLock(location, kind.noun):
                    finish_pending(location)
                return cls.open(location, kind, finish=False)
            except OSError:
                pass
        try:
            return cls(location, root, kind)
        except ValueError:
            # An append may have ended between the two reads.
            if read_root(location, kind) == root:
                raise
            return cls.open(location, kind, finish=False)

    def layout(self, name: str) -> ArrayLayout:
        """Return the shape and the chunks of an array."""
        return self._layout_of[name]

    def object_keys(self) -> set[str]:
        """Keys of all objects that the cache consists of."""
        present = {key for key, value in self.checksums.items() if value >= 0}
        return present | {ROOT, CHECKSUM_KEY} | {f"{name}/{ROOT}" for name in self.members}

    def fetch(self, key: str, max_bytes: int | None = None) -> Content | None:
        """Read an object of the cache as it was opened, None where there is none."""
        if self.pending:
            found = self.location.get(staged(key), max_bytes)
            if found is not None:
                return found
        return self.location.get(key, max_bytes)

    def chunk(self, key: str) -> Content | None:
        """Read the stored bytes of a chunk, None for one without a value.

        Raises
        ------
        ValueError
            If it is missing, damaged, or another one. A missing chunk is never NaN.
        """
        expected = self.checksums[key]
        name = key.rpartition("/c/")[0]
        size, values = self._item_bytes[name], math.prod(self._layout_of[name].chunks)
        if expected < 0:
            if name not in self.kind.may_miss:
                raise self.error(key, "missing: only chunks of values may be left out")
            return None
        # What does not shrink takes a little more.
        limit = MAX_NAMES_BYTES if size is None else METADATA_BYTES + size * values
        stored = self._checked(key, self.fetch(key, limit), expected)
        try:
            # Before Zarr asks for the memory that the chunk's shape, or its header, says.
            if size is None:
                decode("instruments", None, stored, values)
            elif (found := zstd_content_bytes(memoryview(stored)[:-4])) != size * values:
                raise ValueError(f"{max(found, 0):,} bytes after decompression, expected {size * values:,}")
        except (ValueError, RuntimeError) as error:
            raise self.error(key, f"damaged ({error})") from error
        return stored

    def check_array(self, name: str) -> None:
        """Raise ValueError if an object of an array is missing, damaged, or holds less than its shape says."""
        for key in self._layout_of[name].object_keys():
            self.chunk(key)

    def _checked(self, key: str, stored: Content | None, expected: int | None = None) -> Content:
        if stored is None:
            raise self.error(key, "missing")
        try:
            check_sealed(stored)
        except ValueError as error:
            raise self.error(key, f"damaged ({error})") from error
        if expected is not None and int.from_bytes(memoryview(stored)[-4:], "little") != expected:
            raise self.error(key, "not the one that was written (checksum mismatch)")
        return stored

    def error(self, key: str, why: str) -> ValueError:
        """Return the error for an object that is not what it should be: changed on purpose, or damaged."""
        try:
            now = read_root(self.location, self.kind)
        except (ValueError, OSError):
            now = None
        if now is not None and now["attributes"]["metadata_digest"] != self.attrs["metadata_digest"]:
            return ValueError(
                f"{self.kind.noun} {self.url} was appended to since it was opened, and {key} changed: open it again"
            )
        return ValueError(
            f"{key} of {self.kind.noun} {self.url} is {why}: restore it, or {self.kind.again} to a new location"
        )

    def _read_table(self) -> NDArray[np.int64]:
        key = CHECKSUM_KEY
        count = sum(layout.chunk_count for layout in self.layouts)
        if count > MAX_CHUNKS:
            raise ValueError(
                f"{ROOT} of {self.kind.noun} {self.url} describes {count:,} chunks, more than the {MAX_CHUNKS:,} that "
                f"are read: restore it, or {self.kind.again} to several locations"
            )
        stored = self._checked(key, self.fetch(key, METADATA_BYTES + 9 * count))
        try:
            table = np.frombuffer(unseal(stored, 8 * count), "<i8")
        except (ValueError, RuntimeError) as error:
            raise self.error(key, f"damaged ({error})") from error
        if table_digest(table) != self.attrs["checksums_digest"] or len(table) != count:
            raise self.error(key, f"not the one that {ROOT} names")
        return table

    def group(self) -> zarr.Group:
        """Return the cache as a Zarr group whose chunks are checked as they are read."""
        try:
            return zarr.open_group(_CheckedStore(self), mode="r", zarr_format=3)
        # Zarr has errors of many kinds for metadata that it cannot read.
        except Exception as error:
            raise ValueError(
                f"the metadata of {self.kind.noun} {self.url} cannot be right: Zarr finds no group in {ROOT} "
                f"({short(error)}); restore it, or {self.kind.again} again"
            ) from error


class _CheckedStore(Store):
    """A read-only Zarr store that hands out the checked objects of a cache, and nothing else."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, objects: CacheObjects) -> None:
        super().__init__(read_only=True)
        self.objects = objects

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _CheckedStore)
            and self.objects.url == other.objects.url
            and self.objects.attrs == other.objects.attrs
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.objects.url

    def _read(self, key: str) -> Content | None:
        objects = self.objects
        if key == ROOT:
            return json.dumps(objects.root).encode()
        if key in objects.checksums:
            return objects.chunk(key)
        if key == CHECKSUM_KEY:
            return objects._checked(key, objects.fetch(key))
        found = objects.members.get(key.removesuffix(f"/{ROOT}"))
        return json.dumps(found).encode() if found is not None and key.endswith(ROOT) else None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        # A thread, since a location may wait on the loop that runs this.
        found = await asyncio.to_thread(self._read, key)
        if found is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            found = memoryview(found)[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            found = memoryview(found)[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):
            found = memoryview(found)[max(0, len(found) - byte_range.suffix) :]
        return prototype.buffer.from_bytes(bytes(found))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.objects.object_keys()

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        for key in sorted(self.objects.object_keys()):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted(self.objects.object_keys()):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        top = f"{prefix.rstrip('/')}/" if prefix else ""
        names = {
            key[len(top) :].partition("/")[0] for key in self.objects.object_keys() if key.startswith(top)
        }
        for name in sorted(names):
            yield name


def _absence(location: Location, kind: Kind) -> Exception:
    """Return the error for a location without a group's metadata."""
    name = location.name
    path = location.path if isinstance(location, Folder) else None
    if path is not None and path.exists() and not path.is_dir():
        return ValueError(f"{name} is a file; {kind.expected} is a folder (a Zarr v3 group)")
    if location.get(kind.plan) is not None:
        windows = max((int(Path(key).name.partition("-")[0]) for key in location.list(DONE)), default=0)
        done = f" ({windows:,} windows are scored)" if kind is CACHE else ""
        return ValueError(
            f"{kind.noun} {name} is not finished{done}: call pricepix.factor.{kind.again} with the same images and "
            "model again, which resumes it"
        )
    if (path is not None and not path.exists()) or (path is None and location.is_empty()):
        return FileNotFoundError(
            f"no {kind.expected.partition(' ')[2]} at {name}: make one with pricepix.factor.{kind.again}(images, "
            f"model, {name!r})"
        )
    return ValueError(f"{name} holds no Zarr v3 group: it is not {kind.expected}")
