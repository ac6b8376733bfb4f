"""Image stores: reading a Zarr group of chart images, their index and their forward returns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from pricepix.images import chunking
from pricepix.images.image_set import ImageSet
from pricepix.location import Location, StoreLike
from pricepix.render import widen
from pricepix.spec import ImageSpec
from pricepix.store import format as document
from pricepix.store.chunks import ChunkFormat, Content, check_sealed, checksum, numcodecs_allowed
from pricepix.store.commit import settle, staged
from pricepix.store.format import Column, Geometry, chunk_key
from pricepix.store.lock import WriteLock
from pricepix.store.objects import _THREADS, HISTORY, check_attributes, check_digest, read_root

if TYPE_CHECKING:
    from pricepix.store.loaded_images import LoadedImages
    from pricepix.store.pool_reader import BatchReader
    from pricepix.store.verify import VerifyReport
"""Object in which appends tell readers of earlier states what they left alone."""


class ImageStore(ImageSet):
    """Chart images with their index and forward returns, read lazily from a Zarr v3 group.

    Windows are ordered by (time, instrument) and counted from 0; ``len(store)`` is their number. Open one
    with ``open_store``.

    Everything that is read is compared with the store's checksums: a chunk that is missing, damaged or in
    another's place is an error that names it. What is open stays as it was opened: if the store is appended
    to meanwhile, images that the append left alone can still be read, and anything else is an error that says
    so.
    """

    def __init__(self, where: Location, root: Mapping[str, Any]) -> None:
        self.where = where
        """The store's objects."""
        self.location = where.name
        """Path or URL of the store, ``memory`` for one that lives in memory."""
        self._attrs: dict[str, Any] = dict(root["attributes"])
        self.pending = self._attrs.pop("pending", None) is not None
        """Whether a committed append has not been moved into place yet; reads see it all the same."""
        self.spec = ImageSpec.from_dict(self.attrs["spec"])
        self.horizons: tuple[int, ...] = tuple(self.attrs["horizons"])
        """Horizons, in bars, of the forward returns in this store."""
        self.chunk_format = ChunkFormat(
            self.layout,
            *self.spec.shape,
            int(self.attrs["chunk"]),
            compressed=bool(self.attrs.get("compressed", True)),
            shard=int(self.attrs.get("shard", 0)),
        )
        """How the image chunks are encoded."""
        self.geometry = Geometry(self.chunk_format, len(self), int(self.attrs["instruments"]), self.horizons)
        """Which arrays there are, and how many chunks each."""

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again where the store goes.
        kinds = {name: value for kind in type(self).__mro__ for name, value in vars(kind).items()}
        cached = {name for name, value in kinds.items() if isinstance(value, cached_property)}
        return {k: v for k, v in self.__dict__.items() if k not in cached or k == "checksums"}

    def __len__(self) -> int:
        return int(self.attrs["windows"])

    def __repr__(self) -> str:
        return self._repr(f"layout {self.layout}")

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes: format version, spec, digests, horizons, drop counts and lineage."""
        return self._attrs

    @cached_property
    def images(self) -> zarr.Array[Any]:
        """The zarr array ``images`` (n, height, width): uint8 0/255, or bool in layout ``bits``.

        Reads through it are zarr-python's own: a missing chunk is blank there. ``read`` checks more and is
        faster.
        """
        if self.pending:
            raise ValueError(
                f"an append to store {self.location} was stopped while it moved chunks into place: run "
                "pricepix.append(store, panel) to end it; store.read works meanwhile"
            )
        with numcodecs_allowed():
            array = zarr.open_group(self.where.zarr_store(), mode="r", zarr_format=3)["images"]
        assert isinstance(array, zarr.Array)
        return array

    @property
    def layout(self) -> str:
        """``uint8`` or ``bits``."""
        return str(self.attrs["layout"])

    @property
    def chunk(self) -> int:
        """Images a chunk."""
        return self.chunk_format.windows

    @cached_property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return self._whole("instruments", None)

    @cached_property
    def instrument_rows(self) -> NDArray[np.int64]:
        """int64 (instruments,): panel rows of each instrument that the store was made from."""
        return self._whole("instrument_rows", "<i8")

    @cached_property
    def instrument_digest(self) -> NDArray[np.uint64]:
        """uint64 (instruments, 2): the digest of those rows, as in ``Panel.instrument_digests``."""
        return self._whole("instrument_digest", "<u8").reshape(-1, 2)

    # ------------------------------------------------------------------------------------------- objects

    @property
    def checked(self) -> bool:
        """Whether chunks have checksums; those of a store in memory have not."""
        return self.chunk_format.compressed

    @cached_property
    def checksums(self) -> NDArray[np.uint32]:
        """uint32 (chunks of all arrays,): the crc32c of every chunk, ordered as ``geometry.arrays()``."""
        if not self.checked:
            return np.zeros(0, np.uint32)
        key = chunk_key(document.CHECKSUMS, 0)
        found = self._decoded(document.CHECKSUMS, "<u4", key, self.fetch(key))
        if document.checksums_digest(found) != self.attrs["checksums_digest"]:
            raise self._wrong(key, "its digest is not the one in the store's attributes")
        return found

    @cached_property
    def _slices(self) -> dict[str, slice]:
        return self.geometry.checksum_slices()

    def expected_checksum(self, name: str, chunk: int) -> int:
        """The crc32c that a chunk of an array must have."""
        return int(self.checksums[self._slices[name].start + chunk])

    def fetch(self, key: str) -> Content | None:
        """Read an object of the store as it was opened, None where there is none."""
        if self.pending:
            found = self.where.get(staged(key))
            if found is not None:
                return found
        return self.where.get(key)

    def _fetch_range(self, key: str, start: int | None, length: int) -> Content | None:
        if self.pending:
            found = self.where.get_range(staged(key), start, length)
            if found is not None:
                return found
        return self.where.get_range(key, start, length)

    def _wrong(self, key: str, why: str) -> ValueError:
        """The error for an object that is not what it should be: changed on purpose, or damaged."""
        if self.checked and self._newer() is not None:
            return ValueError(
                f"store {self.location} was appended to or rebuilt since it was opened, and {key} changed: "
                "open it again"
            )
        return ValueError(f"chunk {key} of store {self.location} is {why}: restore or rebuild it")

    def _wrong_chunk(self, chunk: int, why: str) -> ValueError:
        key = self.chunk_key(chunk)
        return self._wrong(f"{chunk} in shard {key}" if self.chunk_format.shard else key, why)

    def _newer(self) -> ImageStore | None:
        """The store as it is now, if that is another state."""
        try:
            root = read_root(self.where)
            check_attributes(root["attributes"], self.location)
        except (ValueError, OSError):
            return None
        if root["attributes"].get("metadata_digest") == self.attrs.get("metadata_digest"):
            return None
        return ImageStore(self.where, root)

    def _decoded(self, name: str, dtype: Any, key: str, stored: Content | None) -> NDArray[Any]:
        if stored is None:
            raise self._wrong(key, "missing")
        try:
            return document.decode(name, dtype, stored, compressed=self.checked)
        except (ValueError, RuntimeError) as error:
            raise self._wrong(key, f"damaged ({error})") from error

    def index_bytes(self, name: str, chunk: int) -> Content:
        """Read the stored bytes of a chunk of any array but ``images``, comparing its checksum."""
        key = chunk_key(name, chunk)
        stored = self.fetch(key)
        if stored is None:
            raise self._wrong(key, "missing")
        if self.checked and checksum(stored) != self.expected_checksum(name, chunk):
            raise self._wrong(key, "damaged (checksum mismatch: another chunk, or bytes lost)")
        return stored

    def _whole(self, name: str, dtype: Any) -> NDArray[Any]:
        return self._decoded(name, dtype, chunk_key(name, 0), self.index_bytes(name, 0))

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        column = next(c for c in self.geometry.columns if c.name == name)
        last = self.geometry.index_chunks if last is None else last
        low, high = first * chunking.INDEX_CHUNK, min(len(self), last * chunking.INDEX_CHUNK)
        out = np.empty(max(0, high - low), column.dtype)

        def read(chunk: int) -> None:
            values = self.column_chunk(column, chunk)
            at = chunk * chunking.INDEX_CHUNK - low
            out[at : at + len(values)] = values

        if last - first < 2 * _THREADS:
            for chunk in range(first, last):
                read(chunk)
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(read, range(first, last)))
        return out

    def column_chunk(self, column: Column, chunk: int) -> NDArray[Any]:
        """Read one chunk of an array along ``window``, without what fills it up."""
        values = self._decoded(
            column.name, column.dtype, chunk_key(column.name, chunk), self.index_bytes(column.name, chunk)
        )
        if len(values) != chunking.INDEX_CHUNK:
            raise self._wrong(chunk_key(column.name, chunk), f"damaged ({len(values)} values)")
        return values[: min(chunking.INDEX_CHUNK, len(self) - chunk * chunking.INDEX_CHUNK)]

    # -------------------------------------------------------------------------------------------- images

    def _read(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        chunk_of = positions // self.chunk_format.windows
        order = np.argsort(chunk_of, kind="stable")
        cuts = np.flatnonzero(np.diff(chunk_of[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                chunk = int(chunk_of[places[0]])
                out[places] = self.read_chunk(chunk, positions[places] - chunk * self.chunk_format.windows)

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

        def bits(stored: Content) -> NDArray[np.uint8]:
            if form.columns_first:
                return form.decode_bits(stored, n)
            return np.packbits(form.decode(stored, n).transpose(0, 2, 1).reshape(n, -1), axis=1)

        return self._decode_chunk(chunk, bits)

    def _decode_chunk(self, chunk: int, decode: Callable[[Content], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        stored = self.chunk_bytes(chunk)
        try:
            return decode(stored)
        except (ValueError, RuntimeError) as error:
            raise self._wrong_chunk(chunk, f"damaged ({error})") from error

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
            stored = self._chunk_in_shard(chunk) if self.chunk_format.shard else self.fetch(key)
            why = "missing" if stored is None else self._fault(chunk, stored)
        except ValueError as error:
            stored, why = None, f"damaged ({error})"
        if stored is not None and not why:
            return stored
        newer = self._newer() if self.checked else None
        if newer is not None and newer.kept_since(
            self
        ) >= chunk * self.chunk_format.windows + self.chunk_windows(chunk):
            return newer.chunk_bytes(chunk)
        raise self._wrong_chunk(chunk, why)

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
            raise ValueError(f"store {self.location} has no shards: read chunks with chunk_bytes")
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
                        raise self._wrong_chunk(chunk, f"damaged ({error})") from error
                return list(found)
        # One by one, to name the chunk that is wrong, or to find them in a newer state of the store.
        self.__dict__.pop("_shard_indexes", None)
        return [self.chunk_bytes(chunk) for chunk in chunks]

    def kept_since(self, older: ImageStore) -> int:
        """How many windows at the front are, index and images, those of an earlier state of this store."""
        try:
            entries = json.loads(bytes(self.where.get(staged(HISTORY)) or self.where.get(HISTORY) or b"[]"))
        except ValueError:
            return 0
        at, kept = self.attrs["metadata_digest"], len(self)
        for entry in reversed(entries):
            if entry["after"] == at:
                at, kept = entry["before"], min(kept, int(entry["kept"]))
                if at == older.attrs["metadata_digest"]:
                    return kept
        return 0

    def _reader(self, selection: NDArray[np.int64] | None, **options: Any) -> BatchReader:
        from pricepix.store.pool_reader import BatchReader

        return BatchReader(self, selection, **options)

    def load(self, packed: bool = True, threads: int | None = None) -> LoadedImages:
        """Read all images into memory, each chunk compared with its checksum.

        What is returned serves wherever the store does, any image at the same cost. Packed, memory is
        ``len(self) * ceil(height * width / 8)`` bytes: 9.6 GB for 20 million images of 64x60.

        Parameters
        ----------
        packed : bool
            Keep a bit a pixel, which becomes a byte when a batch is made; or a byte.
        threads : int, optional
            Threads that read and decode; the CPUs this process may use, at most 4, by default.

        Returns
        -------
        LoadedImages

        Raises
        ------
        ValueError
            If a chunk is missing or damaged; the message names it.
        """
        from pricepix.store.loaded_images import load

        return load(self, packed, threads)

    def verify(
        self,
        panel: Any = None,
        sample: int | None = None,
        seed: int = 0,
        *,
        depth: str | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> VerifyReport:
        """Check that the store is whole and, given the panel, that its images and labels are right.

        Parameters
        ----------
        panel : Panel or anything ``Panel.from_table`` takes, optional
            The bars that the store was made from. Their digest must be the store's.
        sample : int or None
            Windows to draw again, chosen at random; all by default.
        seed : int
            Chooses them.
        depth : {"metadata", "checksums", "render"}, optional
            How much to look at: documents, counts and that every object is there; every chunk against its
            checksum; or images and forward returns made again from `panel` and compared. By default
            ``render`` with a panel and ``checksums`` without.
        workers : int, optional
            Threads; all cores by default.
        progress : bool
            Show a progress bar.

        Returns
        -------
        VerifyReport
            Its ``problems`` say what is wrong with the store; there are none for a sound one.

        Raises
        ------
        ValueError
            If `depth` is none of these, or ``render`` lacks a panel.
        """
        from pricepix.store.verify import verify

        return verify(self, panel, sample, seed, depth=depth, workers=workers, progress=progress)


def open_images(source: ImageSet | StoreLike) -> ImageSet:
    """Return `source` if it is a set of images, else the store that lies there."""
    if isinstance(source, ImageSet):
        return source
    if not isinstance(source, str | os.PathLike | Store | Location):
        # A panel or a table, most likely, whose text would fill the screen.
        raise TypeError(
            f"a {type(source).__name__} is no set of images: give a store, its path, or PanelImages(panel, spec), "
            "which draws images of a panel or table as they are asked for"
        )
    return open_store(source)


def open_store(
    location: StoreLike | Location, storage_options: Mapping[str, Any] | None = None
) -> ImageStore:
    """Open a finished image store.

    Parameters
    ----------
    location : str, path or zarr store
        Folder or URL of the store, or any Zarr v3 store object.
    storage_options : mapping, optional
        For a URL: keys, region, endpoint, as ``obstore.store.from_url`` takes them.

    Returns
    -------
    ImageStore

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If what is there is not a finished pricepix store of a format that this release reads, or its metadata
        were edited.
    """
    return _open(Location.of(location, storage_options), try_settle=True)


def _open(where: Location, *, try_settle: bool) -> ImageStore:
    root = read_root(where)
    check_attributes(root["attributes"], where.name)
    check_digest(root, where.name)
    if "pending" in root["attributes"] and try_settle:
        # An append was killed while it moved chunks into place. Readers can do without, but plain zarr
        # readers can not, so whoever may write ends it.
        try:
            with WriteLock(where):
                settle(where)
            root = read_root(where)
        except OSError:
            pass
    store = ImageStore(where, root)
    try:
        _ = store.checksums
    except ValueError:
        # Between the two reads an append may have come to its end.
        again = read_root(where)
        if again == root:
            raise
        return _open(where, try_settle=False)
    return store
