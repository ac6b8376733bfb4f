"""Embeddings: what a network has found in each image before it decides, kept, and the images most alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import zarr
from numpy.typing import NDArray

from pricepix._checks import choice, nearest, optional_module, short, whole_number
from pricepix._version import __version__
from pricepix.bars.progress import progress_bar
from pricepix.bars.times import as_time, format_time, to_series
from pricepix.factor.calendar import Calendar
from pricepix.factor.scorer import Scorer
from pricepix.factor.scoring import chunk_reader
from pricepix.images.image_set import ImageSet
from pricepix.images.threads import map_ordered
from pricepix.store.image_store import open_images

if TYPE_CHECKING:
    import xarray

__all__ = ["EMBEDDING_VERSION", "Embedding", "embed", "open_embedding", "similar"]

FORMAT: Final = "pricepix-embedding"
EMBEDDING_VERSION: Final = 1
_CHUNK_BYTES: Final = 4 << 20
_BLOCK: Final = 1 << 14


@dataclass(frozen=True)
class Embedding:
    """The embeddings of a set of images; `embed` writes them, `open_embedding` opens them.

    A Zarr v3 group of ``embedding``, float32 (window, feature), ``time``, int64 nanoseconds, and ``instrument_index``,
    int32, which points into the attribute ``instruments``. Only the first ``windows`` of them, an attribute that is
    written last, are finished.

    Attributes
    ----------
    group : zarr.Group
    """

    group: zarr.Group

    @property
    def attrs(self) -> dict[str, Any]:
        """Format, model, images and versions."""
        return dict(self.group.attrs)

    def __len__(self) -> int:
        return int(self.group.attrs["windows"])  # type: ignore[arg-type]

    def __repr__(self) -> str:
        model = self.attrs["model"]
        return f"Embedding({len(self):,} windows, {self.values.shape[1]} features of {short(model['name'])})"

    @property
    def values(self) -> zarr.Array[Any]:
        """The array of embeddings, float32 (windows or more, features), read as it is sliced."""
        found = self.group["embedding"]
        assert isinstance(found, zarr.Array)
        return found

    def _column(self, name: str) -> NDArray[Any]:
        return np.asarray(self.group[name][: len(self)])  # type: ignore[index]

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the last bar of each window."""
        return self._column("time")

    @cached_property
    def instrument_index(self) -> NDArray[np.int32]:
        """int32 (n,): places in `instruments`."""
        return self._column("instrument_index")

    @property
    def instruments(self) -> list[str]:
        """Names of the instruments."""
        return [str(name) for name in self.attrs["instruments"]]

    @property
    def tz(self) -> str | None:
        """Time zone of the images."""
        return self.attrs["tz"]

    def to_xarray(self) -> xarray.Dataset:
        """Return all as an ``xarray.Dataset``, with times decoded and instrument names."""
        xr = optional_module("xarray", "xarray", "to_xarray")
        names = np.array(self.instruments, object)[self.instrument_index]
        return xr.Dataset(
            {"embedding": (("window", "feature"), self.values[: len(self)])},
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
        Where the embeddings go. What an interrupted call had begun is continued.
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
        If the model is no single network or takes other images, or the location holds the embeddings of another model
        or of other images, or of fewer, without `append`.
    FileExistsError
        If it holds something else.
    """
    images = open_images(images)
    scorer = Scorer(model, tz=images.tz, images=images, module=module, batch=batch, device=device)
    if len(scorer.members) != 1 or len(scorer.stages) != 1:
        raise ValueError(
            f"embed takes one network, {scorer.name} is {'a function' if not scorer.members else 'several'}: give a "
            "checkpoint such as member_0/best.ckpt"
        )
    scorer.check(images.spec, f"{images.kind} {images.location}")
    read = chunk_reader(images, scorer, panel, None)
    group, done = _opened(images, scorer, location, append)
    network = scorer.members[0]
    parts = [
        (chunk, max(done, chunk * images.chunk), min(len(images), (chunk + 1) * images.chunk))
        for chunk in range(done // images.chunk, -(-len(images) // images.chunk))
        if min(len(images), (chunk + 1) * images.chunk) > done
    ]
    with progress_bar(len(images), "embed", "img", progress, done=done) as bar:
        for (chunk, a, b), inputs in zip(
            parts, map_ordered(lambda part: read(part[0]), parts, 1, 2, "pricepix-embed"), strict=True
        ):
            found = network.embed(inputs[a - chunk * images.chunk : b - chunk * images.chunk], scorer.batch)
            if not np.isfinite(found).all():
                raise ValueError(
                    f"the model {scorer.name} gives NaN or infinite activations: its weights are damaged"
                )
            _write(group, images, a, b, found)
            bar.update(b - a)
    return Embedding(group)


def _opened(images: ImageSet, scorer: Scorer, location: Any, append: bool) -> tuple[zarr.Group, int]:
    """Return the group to write to, new or begun, and how many of its windows are done."""
    where = str(location) if isinstance(location, Path) else location
    about: dict[str, Any] = {
        "format": FORMAT,
        "format_version": EMBEDDING_VERSION,
        "model": {"name": scorer.name, "digest": scorer.digest},
        "spec_digest": images.spec.digest,
        "tz": images.tz,
    }
    try:
        group = zarr.open_group(where, mode="r+")
    except FileNotFoundError:
        group = zarr.open_group(where, mode="w-", zarr_format=3)
        own = {
            "instruments": [str(name) for name in images.instruments],
            "created_by": f"pricepix {__version__}",
        }
        group.attrs.update({**about, **own, "windows": 0, "wanted": len(images)})
        return group, 0
    found = dict(group.attrs)
    if found.get("format") != FORMAT:
        raise FileExistsError(f"{location} holds something else than embeddings: give another location")
    for name, value in about.items():
        if found.get(name) != value:
            raise ValueError(
                f"{location} holds embeddings of another {name}: {short(found.get(name))}, not {short(value)}; give "
                "another location"
            )
    done, before = int(found["windows"]), len(images)  # type: ignore[arg-type]
    known = Embedding(group)
    names = np.array(known.instruments, object)
    same = done <= before and np.array_equal(known.time if done else [], images.time[:done] if done else [])
    if same and done:
        own_names = images.instruments.astype(object)[images.instrument_index[:done]]
        same = bool((names[known.instrument_index] == own_names).all())
    if not same:
        raise ValueError(f"{location} holds embeddings of other windows than the first of {images.location}")
    if found["wanted"] != before:
        if not append:
            raise ValueError(
                f"{location} holds the embeddings of {found['wanted']:,} windows, the images are {before:,}: "
                "append=True adds the rest"
            )
        new = [str(name) for name in images.instruments if str(name) not in set(known.instruments)]
        group.attrs.update({"wanted": before, "instruments": [*known.instruments, *new]})
    return group, done


def _write(group: zarr.Group, images: ImageSet, a: int, b: int, found: NDArray[np.float32]) -> None:
    """Write windows a to b, and then that they are there."""
    place = {str(name): i for i, name in enumerate(group.attrs["instruments"])}  # type: ignore[arg-type]
    code = np.array([place[str(name)] for name in images.instruments], np.int32)
    columns: dict[str, NDArray[Any]] = {
        "embedding": found,
        "time": images.time[a:b],
        "instrument_index": code[images.instrument_index[a:b]],
    }
    for name, values in columns.items():
        if name not in group:
            width = values.shape[1:]
            rows = max(1, _CHUNK_BYTES // max(1, 4 * int(np.prod(width)))) if width else 1 << 16
            group.create_array(
                name, shape=(0, *width), chunks=(rows, *width), dtype=values.dtype,
                dimension_names=("window", "feature")[: values.ndim],
            )  # fmt: skip
        array: Any = group[name]
        if array.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"the model gives {values.shape[1:]} features, the embeddings have {array.shape[1:]}"
            )
        array.resize((b, *values.shape[1:]))
        array[a:b] = values
    group.attrs["windows"] = b


def open_embedding(location: Any) -> Embedding:
    """Open the embeddings that `embed` wrote.

    Raises
    ------
    ValueError
        If it holds something else, or is of another version.
    """
    group = zarr.open_group(str(location) if isinstance(location, Path) else location, mode="r")
    if group.attrs.get("format") != FORMAT:
        raise ValueError(f"{location} holds no embeddings of pricepix")
    version = group.attrs.get("format_version")
    if version != EMBEDDING_VERSION:
        raise ValueError(
            f"{location} is of format version {short(version)}; this pricepix reads version {EMBEDDING_VERSION}"
        )
    return Embedding(group)


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
