"""Embeddings: what a network has found in each image before it decides, kept, and the images most alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import zarr
from numpy.typing import NDArray

from pricepix._checks import choice, nearest, optional_module, short, whole_number
from pricepix.bars.progress import progress_bar
from pricepix.bars.times import as_time, format_time, to_series
from pricepix.factor.cache import CacheLike
from pricepix.factor.cache_objects import CacheObjects, cache_location
from pricepix.factor.cache_verify import verify_objects
from pricepix.factor.calendar import Calendar
from pricepix.factor.embedding_format import EMBEDDING, EMBEDDING_VERSION
from pricepix.factor.embedding_writer import EmbeddingWriter, check_location
from pricepix.factor.scorer import Scorer
from pricepix.factor.scoring import chunk_reader
from pricepix.images.image_set import ImageSet
from pricepix.images.threads import map_ordered
from pricepix.location import METADATA_BYTES
from pricepix.store.format import ROOT
from pricepix.store.image_store import open_images
from pricepix.store.lock import WriteLock

if TYPE_CHECKING:
    import xarray

    from pricepix.store.verify import VerifyReport

__all__ = ["EMBEDDING_VERSION", "Embedding", "embed", "is_embedding", "open_embedding", "similar"]

_BLOCK: Final = 1 << 14


class Embedding:
    """The embeddings of a set of images; `embed` writes them, `open_embedding` opens them.

    A Zarr v3 group of ``embedding``, float32 (window, feature), ``time``, int64 nanoseconds, and ``instrument_index``,
    int32, which points into the names ``instrument``. Everything that is read is compared with checksums, as that of a
    `FactorCache` is: an object that is missing, damaged or in another's place is an error that names it, never NaN.
    """

    def __init__(self, objects: CacheObjects) -> None:
        self.objects = objects
        """The objects of the group, fetched and checked one at a time."""
        self.location = objects.url
        """Path or URL, ``memory`` for what lives in memory."""
        self.attrs: dict[str, Any] = objects.attrs
        """Format, model, images and versions."""
        self.group: zarr.Group = objects.group()
        """The Zarr group. What is read through it is compared with the checksums."""

    def __len__(self) -> int:
        return int(self.attrs["windows"])

    def __repr__(self) -> str:
        name = short(self.attrs["model"]["name"])
        return f"Embedding({len(self):,} windows, {self.values.shape[1]} features of {name})"

    @property
    def values(self) -> zarr.Array[Any]:
        """The array of embeddings, float32 (windows, features), read as it is sliced."""
        found = self.group["embedding"]
        assert isinstance(found, zarr.Array)
        return found

    def _column(self, name: str) -> NDArray[Any]:
        # Zarr asks for all of the memory first: the objects must hold what the shape says.
        self.objects.check_array(name)
        return np.asarray(self.group[name][:])  # type: ignore[index]

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the last bar of each window."""
        return self._column("time")

    @cached_property
    def instrument_index(self) -> NDArray[np.int32]:
        """int32 (n,): places in `instruments`."""
        found, count = self._column("instrument_index"), len(self.instruments)
        if len(found) and (found.min() < 0 or found.max() >= count):
            raise ValueError(
                f"embedding {self.location} names {count:,} instruments, its instrument_index runs from "
                f"{found.min():,} to {found.max():,}: restore it, or embed again"
            )
        return found

    @cached_property
    def instruments(self) -> list[str]:
        """Names of the instruments."""
        return [str(name) for name in self._column("instrument").tolist()]

    @property
    def tz(self) -> str | None:
        """Time zone of the images."""
        return self.attrs["tz"]

    def verify(self, *, progress: bool = False) -> VerifyReport:
        """Read every object and compare it with the checksums; ``problems`` of the report name what is wrong."""
        return verify_objects(self.objects, progress=progress)

    def to_xarray(self) -> xarray.Dataset:
        """Return all as an ``xarray.Dataset``, with times decoded and instrument names."""
        xr = optional_module("xarray", "xarray", "to_xarray")
        names = np.array(self.instruments, object)[self.instrument_index]
        return xr.Dataset(
            {"embedding": (("window", "feature"), self.values[:])},
            {"time": ("window", self.time.view("datetime64[ns]")), "instrument": ("window", names)},
            {"model": str(self.attrs["model"]["digest"])},
        )


def embed(
    images: Any,
    model: Any,
    location: Any,
    *,
    append: bool = False,
    panel: Calendar | None = None,
    module: Any = None,
    batch: int = 256,
    device: str | None = None,
    progress: bool = True,
) -> Embedding:
    """Write the activations before a network's last layer, for every image.

    Parameters
    ----------
    images : ImageSet, str or path
    model : path or network
        One network: the members of an ensemble find different things.
    location : str, path or zarr store
        Where the embeddings go; None keeps them in memory. They are there once they are whole, and what an interrupted
        call had begun is continued.
    append : bool
        Add the windows that the images have gained.
    panel : Panel, optional
        For a network that takes the numbers behind the images.
    module : torch.nn.Module, class or function, optional
        As `score` takes it.
    batch : int
        Images a forward pass.
    device : str, optional
    progress : bool

    Returns
    -------
    Embedding

    Raises
    ------
    ValueError
        If there are no images, the model is no single network or takes other images, or the location holds the
        embeddings of another model or of other windows, or, without `append`, of fewer, or of images of another digest.
    FileExistsError
        If it holds something else.
    BlockingIOError
        If another process writes there.
    """
    images = open_images(images)
    scorer = Scorer(model, tz=images.tz, images=images, module=module, batch=batch, device=device)
    if len(scorer.members) != 1 or len(scorer.stages) != 1:
        raise ValueError(
            f"embed takes one network, {scorer.name} is {'a function' if not scorer.members else 'several'}: give a "
            "checkpoint such as member_0/best.ckpt"
        )
    scorer.check(images.spec, f"{images.kind} {images.location}")
    if not len(images):
        raise ValueError(f"{images.kind} {images.location} has no images: there is nothing to embed")
    read = chunk_reader(images, scorer, panel, None)
    place = cache_location(location)
    check_location(place)
    with WriteLock(place, EMBEDDING.noun) as lock:
        about = {"name": scorer.name, "digest": scorer.digest}
        writer = EmbeddingWriter(place, lock, images, about, append=append)
        if not writer.is_done:
            with progress_bar(len(images), "embed", "img", progress, done=writer.first) as bar:
                writer.write(_activations(images, scorer, read, writer.first), bar.update)
    return open_embedding(place)


def _activations(
    images: ImageSet, scorer: Scorer, read: Callable[[int], NDArray[Any]], first: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the activations of the windows from one on, a chunk of images at a time.

    Chunks go through the network whole, so that what a batch holds does not depend on where a call was stopped.
    """
    chunks = list(range(first // images.chunk, -(-len(images) // images.chunk)))
    for chunk, inputs in zip(chunks, map_ordered(read, chunks, 1, 2, "pricepix-embed"), strict=True):
        found = scorer.members[0].embed(inputs, scorer.batch)
        if not np.isfinite(found).all():
            raise ValueError(
                f"the model {scorer.name} gives NaN or infinite activations: its weights are damaged"
            )
        yield found[max(0, first - chunk * images.chunk) :]


def open_embedding(location: Any) -> Embedding:
    """Open the embeddings that `embed` wrote.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If what is there is not a finished embedding of a format that this release reads, or is damaged.
    """
    return Embedding(CacheObjects.open(cache_location(location), EMBEDDING))


def is_embedding(location: CacheLike) -> bool:
    """Whether a location holds an embedding, of any version and in any state."""
    try:
        root = json.loads(bytes(cache_location(location).get(ROOT, METADATA_BYTES) or b"{}"))
        return bool(root["attributes"]["format"] == EMBEDDING.format)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def similar(
    embedding: Embedding | str | Path,
    instrument: str,
    time: Any,
    *,
    before: Any = None,
    k: int = 10,
    metric: str = "cosine",
    others_only: bool = False,
) -> pl.DataFrame:
    """Find the windows whose embeddings are nearest to that of one window, among earlier ones alone.

    Parameters
    ----------
    embedding : Embedding, str or path
    instrument : str
    time : str, date or datetime
        Of the window's last bar.
    before : str, date or datetime, optional
        Windows that end before this time are compared; by default the window's own time. Never later than that.
    k : int
        How many are returned.
    metric : {"cosine", "euclidean"}
    others_only : bool
        Leave out windows of the same instrument, which share bars with it.

    Returns
    -------
    polars.DataFrame
        ``instrument``, ``time`` and ``similarity`` (the cosine, or minus the distance), the nearest first.

    Raises
    ------
    KeyError
        If there is no such window.
    ValueError
        If `before` is later than the window.

    Notes
    -----
    The network may have been trained on later bars: what a cache of scores says of that holds here, too.
    """
    found = embedding if isinstance(embedding, Embedding) else open_embedding(embedding)
    k = whole_number(k, "k", 1)
    choice(metric, "metric", ("cosine", "euclidean"))
    names = found.instruments
    if str(instrument) not in names:
        raise KeyError(f"no instrument {instrument!r} in the embeddings{nearest(str(instrument), names)}")
    code = names.index(str(instrument))
    first, last = as_time(time, found.tz, False), as_time(time, found.tz, True)
    own = np.flatnonzero((found.instrument_index == code) & (found.time >= first) & (found.time <= last))
    if not len(own):
        raise KeyError(f"no window of {instrument!r} ends at {time!r} in the embeddings")
    query = int(own[-1])
    end = int(found.time[query])
    limit = end if before is None else as_time(before, found.tz, False)
    if limit > end:
        raise ValueError(
            f"before={before!r} is later than the window, which ends at {format_time(end, found.tz)}: what came "
            "after it was not known"
        )
    wanted = np.asarray(found.values[query], np.float64)
    chosen = found.time < limit
    if others_only:
        chosen &= found.instrument_index != code
    index = np.flatnonzero(chosen)
    likeness = np.concatenate(
        [_likeness(block, wanted, metric) for block in _blocks(found, index)] or [np.empty(0)]
    )
    best = np.argsort(-likeness, kind="stable")[:k]
    places = index[best]
    return pl.DataFrame(
        {
            "instrument": [names[i] for i in found.instrument_index[places]],
            "time": to_series(found.time[places], found.tz),
            "similarity": likeness[best],
        },
        schema_overrides={"instrument": pl.String, "similarity": pl.Float64},
    )


def _blocks(found: Embedding, index: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Yield the embeddings at ascending positions, a stretch of the array at a time."""
    for a in range(0, len(found), _BLOCK):
        own = index[np.searchsorted(index, a) : np.searchsorted(index, a + _BLOCK)]
        if len(own):
            yield np.asarray(found.values[a : min(a + _BLOCK, len(found))], np.float64)[own - a]


def _likeness(block: NDArray[np.float64], wanted: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    if metric == "euclidean":
        return -np.sqrt(((block - wanted) ** 2).sum(axis=1))
    length = np.sqrt((block**2).sum(axis=1)) * np.sqrt((wanted**2).sum())
    return np.divide(block @ wanted, length, out=np.zeros(len(block)), where=length > 0)
