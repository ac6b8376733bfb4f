"""The objects of an image store: fetched, checked and decoded, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.threads import map_unordered
from pricepix.location import METADATA_BYTES, Folder, Location
from pricepix.render import widen
from pricepix.spec import ImageSpec
from pricepix.store import format as store_format
from pricepix.store.attributes import check_attributes, check_values
from pricepix.store.chunks import ChunkFormat, Content, check_sealed, checksum
from pricepix.store.commit import staged
from pricepix.store.format import ROOT, Column, Geometry, chunk_key

HISTORY: Final = "_appends.json"
"""Object that records which chunks appends left unchanged, for readers that were opened earlier."""

_THREADS: Final = 4


def read_root(location: Location) -> dict[str, Any]:
    """Read the metadata of a store's group; the errors are those of ``open_store``."""
    content = location.get(ROOT, METADATA_BYTES)
    if content is None:
        if isinstance(location, Folder):
            if not location.path.exists():
                raise FileNotFoundError(
                    f"no store at {location.name}: build one with pricepix.render_universe(panel, spec, "
                    f"{location.name!r})"
                )
            if not location.path.is_dir():
                raise ValueError(f"{location.name} is a file; a pricepix store is a folder (a Zarr v3 group)")
        elif location.is_empty():
            raise FileNotFoundError(
                f"no store at {location.name}: build one with pricepix.render_universe(panel, spec, "
                f"{location.name!r})"
            )
        raise ValueError(
            f"{location.name} holds no Zarr v3 group: it is not a pricepix store, its build was stopped at the "
            "very start, or its metadata is lost"
        )
    try:
        root = json.loads(bytes(content))
        if root["zarr_format"] != 3 or root["node_type"] != "group":
            raise ValueError("not a Zarr v3 group")
        if not isinstance(root.setdefault("attributes", {}), dict):
            raise ValueError("its attributes are not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{location.name}/{ROOT} is damaged or foreign ({error}): restore or rebuild the store"
        ) from error
    return dict(root)


class StoreObjects:
    """The objects of one image store: fetched as they were when it was opened, checked, and decoded.

    ``ImageStore``, the readers and ``verify`` stand on it. Everything that is read is compared with the store's
    checksums. An open store stays as it was opened: if it is appended to meanwhile, chunks that the append did not
    change can still be read, and anything else is an error that says so.
    """

    def __init__(self, location: Location, root: Mapping[str, Any]) -> None:
        self.location = location
        """Folder, bucket or zarr store that holds the objects."""
        self.url = location.name
        """Path or URL of the store, ``memory`` for one that lives in memory."""
        self.attrs: dict[str, Any] = dict(root["attributes"])
        """The group's attributes: format version, spec, digests, horizons, drop counts and lineage."""
        self.pending = self.attrs.pop("pending", None) is not None
        """Whether a committed append has not been moved into place yet; reads see it all the same."""
        self.spec = ImageSpec.from_dict(self.attrs["spec"])
        self.horizons: tuple[int, ...] = tuple(self.attrs["horizons"])
        self.chunk_format = ChunkFormat(
            str(self.attrs["layout"]),
            *self.spec.shape,
            int(self.attrs["chunk"]),
            compressed=bool(self.attrs.get("compressed", True)),
            shard=int(self.attrs.get("shard", 0)),
        )
        """How the image chunks are encoded."""
        self.geometry = Geometry(self.chunk_format, len(self), int(self.attrs["instruments"]), self.horizons)
        """Which arrays there are, and how many chunks each."""

    def __getstate__(self) -> dict[str, Any]:
        # The process that unpickles this reads again what was read here.
        cached = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {k: v for k, v in self.__dict__.items() if k not in cached or k == "checksums"}

    def __len__(self) -> int:
        return int(self.attrs["windows"])

    @property
    def checked(self) -> bool:
        """Whether chunks have checksums; those of a store in memory have not."""
        return self.chunk_format.compressed

    @cached_property
    def checksums(self) -> NDArray[np.uint32]:
        """uint32 (chunks of all arrays,): the crc32c of every chunk, ordered as ``geometry.arrays()``."""
        if not self.checked:
            return np.zeros(0, np.uint32)
        key = chunk_key(store_format.CHECKSUMS, 0)
        count = sum(chunks for _, chunks in self.geometry.arrays())
        found = self._decoded(store_format.CHECKSUMS, "<u4", count, key)
        if store_format.checksums_digest(found) != self.attrs.get("checksums_digest"):
            raise self._error(key, "its digest is not the one in the store's attributes")
        return found

    @cached_property
    def _slices(self) -> dict[str, slice]:
        return self.geometry.checksum_slices()

    def expected_checksum(self, name: str, chunk: int) -> int:
        """The crc32c that a chunk of an array must have."""
        return int(self.checksums[self._slices[name].start + chunk])

    def fetch(self, key: str, max_bytes: int | None = None) -> Content | None:
        """Read an object of the store as it was opened, None where there is none."""
        if self.pending:
            found = self.location.get(staged(key), max_bytes)
            if found is not None:
                return found
        return self.location.get(key, max_bytes)

    def _fetch_range(self, key: str, start: int | None, length: int) -> Content | None:
        if self.pending:
            found = self.location.get_range(staged(key), start, length)
            if found is not None:
                return found
        return self.location.get_range(key, start, length)

    def _error(self, key: str, why: str) -> ValueError:
        """The error for an object that is not what it should be: changed on purpose, or damaged."""
        if self.checked and self._latest_state() is not None:
            return ValueError(
                f"store {self.url} was appended to or rebuilt since it was opened, and {key} changed: "
                "open it again"
            )
        return ValueError(f"chunk {key} of store {self.url} is {why}: restore or rebuild it")

    def _chunk_error(self, chunk: int, why: str) -> ValueError:
        key = self.chunk_key(chunk)
        return self._error(f"{chunk} in shard {key}" if self.chunk_format.shard else key, why)

    def _latest_state(self) -> StoreObjects | None:
        """The store as it is now, if that is another state."""
        try:
            root = read_root(self.location)
            check_attributes(root["attributes"], self.url)
            check_values(root["attributes"], self.url)
        except (ValueError, OSError):
            return None
        if root["attributes"].get("metadata_digest") == self.attrs.get("metadata_digest"):
            return None
        return StoreObjects(self.location, root)

    def _decoded(
        self, name: str, dtype: Any, count: int, key: str, stored: Content | None = None
    ) -> NDArray[Any]:
        try:
            if stored is None:
                stored = self.fetch(key, store_format.max_stored_bytes(count * np.dtype(dtype).itemsize))
            if stored is not None:
                return store_format.decode(name, dtype, stored, count, compressed=self.checked)
        except (ValueError, RuntimeError) as error:
            raise self._error(key, f"damaged ({error})") from error
        raise self._error(key, "missing")

    def index_bytes(self, name: str, chunk: int) -> Content:
        """Read the stored bytes of a chunk of any array but ``images``, comparing its checksum."""
        key = chunk_key(name, chunk)
        # No array along ``window`` or ``instrument`` has values of more than 16 bytes, but for the names.
        count = INDEX_CHUNK if name in self._column_names else self.geometry.instruments
        size = store_format.MAX_NAMES_BYTES if name == "instruments" else 16 * count
        try:
            stored = self.fetch(key, store_format.max_stored_bytes(size))
        except ValueError as error:
            raise self._error(key, f"damaged ({error})") from error
        if stored is None:
            raise self._error(key, "missing")
        if self.checked and checksum(stored) != self.expected_checksum(name, chunk):
            raise self._error(key, "damaged (checksum mismatch: another chunk, or bytes lost)")
        return stored

    @cached_property
    def _column_names(self) -> frozenset[str]:
        return frozenset(column.name for column in self.geometry.columns)

    def _single(self, name: str, dtype: Any, words: int = 1) -> NDArray[Any]:
        count = words * self.geometry.instruments
        return self._decoded(name, dtype, count, chunk_key(name, 0), self.index_bytes(name, 0))

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        column = next(c for c in self.geometry.columns if c.name == name)
        last = self.geometry.index_chunks if last is None else last
        low, high = first * INDEX_CHUNK, min(len(self), last * INDEX_CHUNK)
        if last - first > 8:
            # Memory is asked for once the end of what is to be read is there.
            self.column_chunk(column, last - 1)
        out = self._empty(max(0, high - low), column)

        def read(chunk: int) -> None:
            values = self.column_chunk(column, chunk)
            at = chunk * INDEX_CHUNK - low
            out[at : at + len(values)] = values

        # A few chunks take less than starting threads does.
        workers = _THREADS if last - first >= 2 * _THREADS else 0
        for _ in map_unordered(read, range(first, last), workers, name="pricepix-index"):
            pass
        return out

    def _empty(self, count: int, column: Column) -> NDArray[Any]:
        try:
            return np.empty(count, column.dtype)
        except MemoryError:
            size = count * column.dtype.itemsize
            raise MemoryError(
                f"{column.name} of {count:,} windows of store {self.url} takes {size:,} bytes, more than there is: "
                "read it in parts, or on a larger machine"
            ) from None

    def column_chunk(self, column: Column, chunk: int) -> NDArray[Any]:
        """Read one chunk of an array along ``window``, without what fills it up."""
        key = chunk_key(column.name, chunk)
        values = self._decoded(
            column.name, column.dtype, INDEX_CHUNK, key, self.index_bytes(column.name, chunk)
        )
        values = values[: min(INDEX_CHUNK, len(self) - chunk * INDEX_CHUNK)]
        if column.name == "instrument_index" and len(values):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self.geometry.instruments:
                wrong = low if low < 0 else high
                raise self._error(
                    key, f"damaged (it names instrument {wrong} of {self.geometry.instruments:,})"
                )
        return values

    def read_chunk(self, chunk: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Read the images of one chunk, or those at `rows` within it, uint8 (n, height, width)."""
        form = self.chunk_format

        def pixels(stored: Content) -> NDArray[np.uint8]:
            if form.columns_first and rows is not None:
                return widen(
                    form.decode_bits(stored, self.chunk_windows(chunk))[rows], form.height, form.width
                )
            images = form.decode(stored, self.chunk_windows(chunk))
            return images if rows is None else images[rows]

        return self._decode_chunk(chunk, pixels)

    def read_chunk_bits(self, chunk: int) -> NDArray[np.uint8]:
        """Read the images of one chunk as column bits, uint8 (n, ceil(height * width / 8))."""
        form, n = self.chunk_format, self.chunk_windows(chunk)
        return self._decode_chunk(chunk, lambda stored: form.decode_bits(stored, n))

    def _decode_chunk(self, chunk: int, decode: Callable[[Content], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        stored = self.chunk_bytes(chunk)
        try:
            return decode(stored)
        except (ValueError, RuntimeError) as error:
            raise self._chunk_error(chunk, f"damaged ({error})") from error

    def chunk_key(self, chunk: int) -> str:
        """Key of the object that holds an image chunk, relative to the store."""
        return chunk_key("images", chunk * self.chunk_format.windows // self.chunk_format.object_windows)

    def chunk_bytes(self, chunk: int) -> Content:
        """Read an image chunk's stored bytes and compare its checksum; ``chunk_format`` decodes them.

        Raises
        ------
        ValueError
            If the chunk is missing, is another one, or is damaged. A missing chunk is never blank images.
        """
        key = self.chunk_key(chunk)
        try:
            if self.chunk_format.shard:
                stored = self._chunk_in_shard(chunk)
            else:
                stored = self.fetch(key, self.chunk_format.max_stored_bytes if self.checked else None)
            why = "missing" if stored is None else self._fault(chunk, stored)
        except ValueError as error:
            stored, why = None, f"damaged ({error})"
        if stored is not None and not why:
            return stored
        newer = self._latest_state() if self.checked else None
        if newer is not None and newer.shared_prefix_length(
            self
        ) >= chunk * self.chunk_format.windows + self.chunk_windows(chunk):
            return newer.chunk_bytes(chunk)
        raise self._chunk_error(chunk, why)

    def _fault(self, chunk: int, stored: Content) -> str:
        if not self.checked or checksum(stored) == self.expected_checksum("images", chunk):
            return ""
        return "damaged (checksum mismatch: another chunk, or bytes lost)"

    def _chunk_in_shard(self, chunk: int) -> Content | None:
        key = self.chunk_key(chunk)
        form = self.chunk_format
        per = form.shard // form.windows
        index = self._shard_indexes.get(chunk // per)
        if index is None:
            stored = self._fetch_range(key, None, form.shard_index_bytes)
            if stored is None:
                return None
            index = self._shard_indexes[chunk // per] = form.parse_shard_index(stored)
        start, length = (int(x) for x in index[chunk % per])
        if length >= 1 << 62:
            return None
        if length > form.max_stored_bytes or start >= 1 << 62:
            raise ValueError(f"its shard's index gives it {length:,} bytes from {start:,}")
        found = self._fetch_range(key, start, length)
        return found if found is not None and len(found) == length else None

    @cached_property
    def _shard_indexes(self) -> dict[int, NDArray[np.uint64]]:
        return {}

    @property
    def shards(self) -> int:
        """How many shards hold the images; 0 where every chunk is an object of its own."""
        return -(-len(self) // self.chunk_format.shard) if self.chunk_format.shard else 0

    def read_shard(self, shard: int) -> list[Content]:
        """Read a whole shard with one request: the stored bytes of its chunks, checked, in order.

        Its first chunk is ``shard * shard windows // chunk windows``; ``chunk_format`` decodes them.

        Raises
        ------
        ValueError
            If the store has no shards, or this one or one of its chunks is missing or damaged.
        """
        form = self.chunk_format
        if not form.shard:
            raise ValueError(f"store {self.url} has no shards: read chunks with chunk_bytes")
        per = form.shard // form.windows
        chunks = range(shard * per, min((shard + 1) * per, form.chunks(len(self))))
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} lies outside the store's {self.shards} shards")
        whole = self.fetch(self.chunk_key(chunks[0]))
        if whole is not None and len(whole) > form.shard_index_bytes:
            view = memoryview(whole)
            try:
                index = form.parse_shard_index(view[-form.shard_index_bytes :])
            except ValueError:
                index = np.zeros((0, 2), np.uint64)
            found = [view[int(a) : int(a + b)] for a, b in index[: len(chunks)].tolist()]
            if len(found) == len(chunks) and not any(map(self._fault, chunks, found)):
                for chunk, stored in zip(chunks, found, strict=True):
                    try:
                        check_sealed(stored)
                    except ValueError as error:
                        raise self._chunk_error(chunk, f"damaged ({error})") from error
                return list(found)
        # One by one, to name the chunk that is wrong, or to find them in a newer state of the store.
        self.__dict__.pop("_shard_indexes", None)
        return [self.chunk_bytes(chunk) for chunk in chunks]

    def shared_prefix_length(self, older: StoreObjects) -> int:
        """How many windows at the front are, index and images, those of an earlier state of this store."""
        try:
            entries = json.loads(
                bytes(self.location.get(staged(HISTORY)) or self.location.get(HISTORY) or b"[]")
            )
            at, kept = self.attrs["metadata_digest"], len(self)
            for entry in reversed(entries):
                if entry["after"] == at:
                    at, kept = entry["before"], min(kept, int(entry["kept"]))
                    if at == older.attrs["metadata_digest"]:
                        return kept
        except (ValueError, TypeError, KeyError, RecursionError):
            # Damaged or foreign: nothing is known to be shared.
            return 0
        return 0

    @cached_property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return self._single("instruments", "U1")

    @cached_property
    def instrument_rows(self) -> NDArray[np.int64]:
        """int64 (instruments,): panel rows of each instrument that the store was made from."""
        return self._single("instrument_rows", "<i8")

    @cached_property
    def instrument_digest(self) -> NDArray[np.uint64]:
        """uint64 (instruments, 2): the digest of those rows, as in ``Panel.instrument_digests``."""
        return self._single("instrument_digest", "<u8", 2).reshape(-1, 2)

    def chunk_windows(self, chunk: int) -> int:
        """Images of a chunk: all but the last are full."""
        size = self.chunk_format.windows
        if not 0 <= chunk * size < max(len(self), 1):
            raise IndexError(f"there is no chunk {chunk} of store {self.url}, of {len(self):,} images")
        return min(size, len(self) - chunk * size)
