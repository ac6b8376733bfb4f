"""Image stores: reading a Zarr group of chart images, their index and their forward returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from pricepix.images.image_set import ImageSet
from pricepix.location import Location, StoreLike
from pricepix.store.attributes import check_attributes, check_digest, check_values
from pricepix.store.chunks import ChunkFormat, Content, numcodecs_allowed
from pricepix.store.commit import finish_pending
from pricepix.store.format import ROOT
from pricepix.store.loaded_images import LoadedImages, load
from pricepix.store.lock import WriteLock
from pricepix.store.objects import StoreObjects, read_root
from pricepix.store.packed_view import PACKED_VIEW, packed_view
from pricepix.store.pool_reader import BatchReader
from pricepix.store.verify import VerifyReport, verify


class ImageStore(ImageSet):
    """Chart images with their index and forward returns, read lazily from a Zarr v3 group.

    Windows are ordered by (time, instrument) and counted from 0; ``len(store)`` is their number. Open one
    with ``open_store``.

    Everything that is read is compared with the store's checksums: a chunk that is missing, damaged or in
    another's place is an error that names it. An open store stays as it was opened: if it is appended to meanwhile,
    images that the append did not change can still be read, and anything else is an error that says so.
    """

    def __init__(self, objects: StoreObjects) -> None:
        self.objects = objects
        """The store's objects: chunks, checksums and columns, one at a time."""
        self.location = objects.url
        """Path or URL of the store, ``memory`` for one that lives in memory."""
        self.spec = objects.spec
        self.horizons: tuple[int, ...] = objects.horizons
        """Horizons, in bars, of the forward returns in this store."""

    def __getstate__(self) -> dict[str, Any]:
        # The process that unpickles the store reads again what this one has read.
        kinds = {name: value for kind in type(self).__mro__ for name, value in vars(kind).items()}
        cached = {name for name, value in kinds.items() if isinstance(value, cached_property)}
        return {k: v for k, v in self.__dict__.items() if k not in cached}

    def __len__(self) -> int:
        return len(self.objects)

    def __repr__(self) -> str:
        return self._repr(f"layout {self.layout}")

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes: format version, spec, digests, horizons, drop counts and lineage."""
        return self.objects.attrs

    @cached_property
    def images(self) -> zarr.Array[Any]:
        """The zarr array ``images`` (n, height, width): uint8 0/255, or bool in layout ``bits``.

        Reads through it are zarr-python's own: a missing chunk is blank there. ``read`` checks more and is
        faster.
        """
        if self.objects.pending:
            raise ValueError(
                f"an append to store {self.location} was stopped while it moved chunks into place: run "
                "pricepix.append(store, panel) to complete it; store.read works meanwhile"
            )
        with numcodecs_allowed():
            array = zarr.open_group(self.objects.location.zarr_store(), mode="r", zarr_format=3)["images"]
        assert isinstance(array, zarr.Array)
        return array

    @property
    def layout(self) -> str:
        """``uint8`` or ``bits``."""
        return str(self.attrs["layout"])

    @property
    def chunk(self) -> int:
        """Images a chunk."""
        return self.objects.chunk_format.windows

    @property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return self.objects.instruments

    @property
    def chunk_format(self) -> ChunkFormat:
        """How the image chunks are encoded."""
        return self.objects.chunk_format

    def write_packed_view(self) -> str:
        """Let readers that lack the codec ``packbits`` read a store of layout ``bits``, in place.

        Writes one small file, the metadata of a second Zarr array over the same chunks: uint8, with codecs of the Zarr
        v3 core only, whose rows are the packed bits of a chunk. Appends keep it up to date. No chunk is read or
        written.

        Returns
        -------
        str
            Where the array is: ``<store>/images/c``.

        Raises
        ------
        ValueError
            If the store has another layout, which every reader of Zarr reads, or lives in memory.
        BlockingIOError
            If another process writes the store.
        """
        where = self.objects.location
        content = packed_view(self.chunk_format, len(self))
        with WriteLock(where) as lock:
            if open_store(where).attrs["metadata_digest"] != self.attrs["metadata_digest"]:
                raise ValueError(f"store {self.location} has changed since it was opened: open it again")
            lock.check()
            where.put(PACKED_VIEW, content)
        return f"{self.location}/{PACKED_VIEW.removesuffix('/' + ROOT)}"

    @property
    def shards(self) -> int:
        """How many shards hold the images; 0 where every chunk is an object of its own."""
        return self.objects.shards

    def read_shard(self, shard: int) -> list[Content]:
        """Read the stored bytes of a shard's chunks, checked, in order; see ``StoreObjects.read_shard``."""
        return self.objects.read_shard(shard)

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        return self.objects.column(name, first, last)

    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        chunk_of = positions // self.chunk
        order = np.argsort(chunk_of, kind="stable")
        cuts = np.flatnonzero(np.diff(chunk_of[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                chunk = int(chunk_of[places[0]])
                out[places] = self.read_chunk(chunk, positions[places] - chunk * self.chunk)

    def read_chunk(self, chunk: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Read the images of one chunk, or those at `rows` within it, uint8 (n, height, width)."""
        return self.objects.read_chunk(chunk, rows)

    def _reader(self, selection: NDArray[np.int64] | None, **options: Any) -> BatchReader:
        return BatchReader(self.objects, selection, **options)

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
        return load(self.objects, packed, threads)

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
            ``metadata``: metadata, counts, and that every object is there. ``checksums``: every chunk of every
            array is read, compared with its checksum and decoded; the index is in order. ``render``: images and
            forward returns are made again from `panel` and compared. By default ``render`` with a panel and
            ``checksums`` without.
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
        return verify(self.objects, panel, sample, seed, depth=depth, workers=workers, progress=progress)


def open_images(source: ImageSet | StoreLike) -> ImageSet:
    """Return `source` if it is a set of images, else the store at that location."""
    if isinstance(source, ImageSet):
        return source
    if not isinstance(source, str | os.PathLike | Store | Location):
        # A panel or a table, most likely, whose text would fill the screen.
        raise TypeError(
            f"a {type(source).__name__} is not a set of images: give a store, its path, or PanelImages(panel, spec), "
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
    return _open(Location.of(location, storage_options), finish=True)


def _open(location: Location, *, finish: bool) -> ImageStore:
    root = read_root(location)
    check_attributes(root["attributes"], location.name)
    check_digest(root, location.name)
    check_values(root["attributes"], location.name)
    if "pending" in root["attributes"] and finish:
        # An append was killed while it moved chunks into place. Our readers know where they are, but plain zarr
        # readers do not, so whoever may write finishes the move.
        try:
            with WriteLock(location):
                finish_pending(location)
            root = read_root(location)
        except OSError:
            pass
    store = ImageStore(StoreObjects(location, root))
    try:
        _ = store.objects.checksums
    except ValueError:
        # An append may have ended between the two reads.
        again = read_root(location)
        if again == root:
            raise
        return _open(location, finish=False)
    return store
