"""Image stores: reading a Zarr group of chart images, their index and their forward returns."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from pricepix.chunks import ChunkFormat, numcodecs_allowed
from pricepix.render.api import render_rows
from pricepix.spec import ImageSpec
from pricepix.times import to_series

if TYPE_CHECKING:
    import dask.array
    import xarray

    from pricepix.panel import Panel

FORMAT_VERSION: Final = 1
TIME_ATTRIBUTES: Final = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
_REQUIRED: Final = ("spec", "spec_digest", "panel_digest", "horizons", "delay", "layout", "windows", "drop_counts")

StoreLike = str | PathLike[str] | zarr.abc.store.Store


class ImageStore:
    """Chart images with their index and forward returns, read lazily from a Zarr v3 group.

    Windows are ordered by (time, instrument) and counted from 0; ``len(store)`` is their number. Open one with
    ``open_store``.
    """

    def __init__(self, group: zarr.Group, location: str) -> None:
        self._group = group
        self.location = location
        """Path or URL of the store, ``memory`` for one that lives in memory."""
        self.attrs: dict[str, Any] = dict(group.attrs)
        """The group's attributes: format version, spec, digests, horizons, drop counts and lineage."""
        _check_attributes(self.attrs, location)
        self.spec = ImageSpec.from_dict(self.attrs["spec"])
        self._check_arrays()

    def _check_arrays(self) -> None:
        n = int(self.attrs["windows"])
        expected: dict[str, tuple[int, ...]] = {
            "images": (n, *self.spec.shape),
            "instrument_index": (n,),
            "time": (n,),
            **{f"ret_{h}": (n,) for h in self.horizons},
            **{f"exit_time_{h}": (n,) for h in self.horizons},
        }
        with numcodecs_allowed():
            members = dict(self._group.arrays())
        for name, shape in expected.items():
            if name not in members:
                raise ValueError(f"store {self.location} has no array {name!r}: it is truncated or foreign; rebuild it")
            if members[name].shape != shape:
                raise ValueError(
                    f"array {name!r} of store {self.location} has shape {members[name].shape}, but its attributes "
                    f"say {shape}: it is truncated; rebuild it"
                )
        if "instruments" not in members:
            raise ValueError(f"store {self.location} has no array 'instruments': it is truncated; rebuild it")
        self._arrays = members

    def __len__(self) -> int:
        return int(self.attrs["windows"])

    def __repr__(self) -> str:
        height, width = self.spec.shape
        return (
            f"ImageStore({self.location}: {len(self):,} images {height}x{width}, "
            f"{len(self.instruments):,} instruments, horizons {self.horizons}, layout {self.layout})"
        )

    @property
    def images(self) -> zarr.Array[Any]:
        """The zarr array ``images`` (n, height, width): uint8 0/255, or bool in layout ``bits``."""
        return self._arrays["images"]

    @property
    def horizons(self) -> tuple[int, ...]:
        """Horizons, in bars, of the forward returns in this store."""
        return tuple(self.attrs["horizons"])

    @property
    def delay(self) -> int:
        """Bars between a window's last bar and the entry of its forward returns."""
        return int(self.attrs["delay"])

    @property
    def layout(self) -> str:
        """``uint8`` or ``bits``."""
        return str(self.attrs["layout"])

    @property
    def tz(self) -> str | None:
        """Time zone of the panel; times are UTC where there is one, wall-clock times otherwise."""
        return self.attrs.get("tz")

    @cached_property
    def chunk_format(self) -> ChunkFormat:
        """How the image chunks are encoded."""
        return ChunkFormat(
            self.layout, *self.spec.shape, self.images.chunks[0], compressed=bool(self.attrs.get("compressed", True))
        )

    @cached_property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return np.array(self._arrays["instruments"][:].tolist(), dtype=np.str_)

    @cached_property
    def instrument_index(self) -> NDArray[np.int32]:
        """int32 (n,): the instrument of each window."""
        return np.asarray(self._arrays["instrument_index"][:])

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the time of each window's last bar."""
        return np.asarray(self._arrays["time"][:])

    def returns(self, horizon: int) -> NDArray[np.float32]:
        """float32 (n,): the forward return over `horizon` bars, NaN where it is not known."""
        return np.asarray(self._arrays[f"ret_{self._known_horizon(horizon)}"][:])

    def exit_time(self, horizon: int) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: when that return is realised; the smallest int64 where it never is."""
        return np.asarray(self._arrays[f"exit_time_{self._known_horizon(horizon)}"][:])

    def _known_horizon(self, horizon: int) -> int:
        if horizon not in self.horizons:
            raise ValueError(
                f"store {self.location} has no forward returns over {horizon!r} bars, only over "
                f"{', '.join(map(str, self.horizons)) or 'no horizon'}: choose one of these, or rebuild it with "
                f"horizons=(..., {horizon!r})"
            )
        return horizon

    @cached_property
    def index(self) -> pl.DataFrame:
        """One row a window: instrument, time, and ret_<h> and exit_time_<h> for every horizon h."""
        columns: dict[str, Any] = {
            "instrument": pl.Series(self.instruments.astype(object), dtype=pl.String).gather(self.instrument_index),
            "time": to_series(self.time, self.tz),
        }
        for h in self.horizons:
            columns[f"ret_{h}"] = self.returns(h)
        for h in self.horizons:
            columns[f"exit_time_{h}"] = to_series(self.exit_time(h), self.tz)
        return pl.DataFrame(columns)

    def read(self, selection: Any = slice(None), out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read images as uint8 0/255, whatever the layout.

        Parameters
        ----------
        selection : int positions, slice or boolean mask
            Which windows, in which order. Each chunk that holds one of them is read once.
        out : numpy.ndarray, uint8 (n, height, width), optional
            Where to write; allocated when not given.

        Returns
        -------
        numpy.ndarray
            uint8 (n, height, width), row 0 at the top.

        Raises
        ------
        IndexError
            If a position lies outside the store.
        ValueError
            If a chunk is missing or damaged; the message names it.
        """
        wanted = self._positions(selection)
        shape = (len(wanted), *self.spec.shape)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
        chunk_of = wanted // self.chunk_format.windows
        order = np.argsort(chunk_of, kind="stable")
        cuts = np.flatnonzero(np.diff(chunk_of[order])) + 1
        for places in np.split(order, cuts):
            if len(places):
                chunk = int(chunk_of[places[0]])
                out[places] = self.read_chunk(chunk)[wanted[places] - chunk * self.chunk_format.windows]
        return out

    def read_chunk(self, chunk: int) -> NDArray[np.uint8]:
        """Read the images of one chunk, uint8 (up to chunk size, height, width), checking its checksum."""
        first = chunk * self.chunk_format.windows
        n = min(self.chunk_format.windows, len(self) - first)
        try:
            return self.chunk_format.decode(self.chunk_bytes(chunk), n)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"chunk {self.chunk_key(chunk)} of store {self.location} is damaged ({error}): restore or rebuild it"
            ) from error

    def chunk_key(self, chunk: int) -> str:
        """Key of an image chunk, relative to the store."""
        return f"{self.images.path}/c/{chunk}/0/0".lstrip("/")

    def chunk_bytes(self, chunk: int) -> memoryview:
        """Read a chunk's stored bytes; a chunk that is not there is an error, not blank images."""
        stored = sync(self._group.store.get(self.chunk_key(chunk), default_buffer_prototype()))
        if stored is None:
            raise ValueError(
                f"chunk {self.chunk_key(chunk)} of store {self.location} is missing: restore or rebuild it"
            )
        return memoryview(stored.as_numpy_array())

    def _positions(self, selection: Any) -> NDArray[np.int64]:
        n = len(self)
        if isinstance(selection, slice):
            return np.arange(*selection.indices(n), dtype=np.int64)
        wanted = np.atleast_1d(np.asarray(selection))
        if wanted.dtype == np.bool_:
            if wanted.shape != (n,):
                raise IndexError(f"a mask over this store has shape ({n},), not {wanted.shape}")
            return np.flatnonzero(wanted)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise IndexError(f"select windows by position, slice or mask, not by {wanted.dtype}")
        wanted = wanted.astype(np.int64)
        if wanted.size and (wanted.min() < -n or wanted.max() >= n):
            raise IndexError(f"positions {wanted.min()} to {wanted.max()} lie outside the store's {n} windows")
        return np.where(wanted < 0, wanted + n, wanted)

    def locate(self, instrument: str, time: Any) -> int:
        """Return the position of the window of `instrument` that ends at `time`.

        Raises
        ------
        KeyError
            If there is none; the message names the nearest instrument, or the nearest times.
        """
        from pricepix.panel import _as_time

        found = np.flatnonzero(self.instruments == str(instrument))
        if not len(found):
            near = difflib.get_close_matches(str(instrument), [str(x) for x in self.instruments], n=3)
            hint = f"the nearest are {', '.join(near)}" if near else f"it has {len(self.instruments)} others"
            raise KeyError(f"no instrument {instrument!r} in store {self.location}: {hint}")
        code = int(found[0])
        earliest, latest = _as_time(time, self.tz, False), _as_time(time, self.tz, True)
        a, b = np.searchsorted(self.time, [earliest, latest + 1])
        hits = a + np.flatnonzero(self.instrument_index[a:b] == code)
        if len(hits):
            # A date stands for the day's last window, as elsewhere.
            return int(hits[-1])
        own = np.flatnonzero(self.instrument_index == code)
        if not len(own):
            raise KeyError(f"instrument {instrument!r} has no window in store {self.location}: see its drop counts")
        nearest = own[np.argsort(np.abs(self.time[own] - earliest), kind="stable")[:2]]
        times = " and ".join(str(t) for t in to_series(np.sort(self.time[nearest]), self.tz))
        raise KeyError(f"no window of {instrument!r} ends at {time!r}: the nearest end at {times}")

    def image(self, instrument: str, time: Any) -> NDArray[np.uint8]:
        """Return the image (height, width) of the window of `instrument` that ends at `time`."""
        return self.read([self.locate(instrument, time)])[0]

    def to_dask(self) -> dask.array.Array:
        """Return the images as a lazy dask array, uint8 (n, height, width) of 0 and 255, a block a chunk."""
        import dask.array as da

        n, size = len(self), self.chunk_format.windows
        height, width = self.spec.shape
        windows = tuple(min(size, n - first) for first in range(0, n, size)) or (0,)
        if n == 0:
            return da.zeros((0, height, width), dtype=np.uint8)
        name = f"pricepix-{self.digest}"
        graph = {(name, i, 0, 0): (self.read_chunk, i) for i in range(len(windows))}
        return da.Array(graph, name, chunks=(windows, (height,), (width,)), dtype=np.uint8)

    def to_xarray(self) -> xarray.Dataset:
        """Return the store as a lazy ``xarray.Dataset`` with images as uint8, decoded times and instrument names."""
        import xarray as xr

        utc_or_local = {"time_zone": self.tz} if self.tz else {}
        variables: dict[str, Any] = {
            "images": (("window", "y", "x"), self.to_dask()),
            **{f"ret_{h}": ("window", self.returns(h)) for h in self.horizons},
            **{f"exit_time_{h}": ("window", self.exit_time(h).view("datetime64[ns]")) for h in self.horizons},
        }
        coordinates = {
            "time": ("window", self.time.view("datetime64[ns]"), utc_or_local),
            "instrument": ("window", self.instruments[self.instrument_index]),
        }
        return xr.Dataset(variables, coordinates, self.attrs)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name what the store was made from: spec, panel, windows, horizons, layout."""
        names = ("spec_digest", "panel_digest", "horizons", "delay", "label_price", "schedule", "layout", "windows")
        text = repr([(name, self.attrs.get(name)) for name in names])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def verify(self, panel: Any = None, sample: int | None = 1000, seed: int = 0) -> dict[str, Any]:
        """Check that the store is whole and, given the panel, that its images are right.

        Parameters
        ----------
        panel : Panel or anything ``Panel.from_table`` takes, optional
            The bars that the store was made from. Their digest must be the store's.
        sample : int or None
            Windows to render again from the panel and compare; ``None`` for all.
        seed : int
            Chooses the sample.

        Returns
        -------
        dict
            ``windows``, ``chunks``, ``rendered`` (how many images were compared) and ``problems``, a list of
            sentences that is empty for a sound store.
        """
        problems: list[str] = []
        chunks = range(self.images.cdata_shape[0])
        for chunk in chunks:
            try:
                blank = ~self.read_chunk(chunk).any(axis=(1, 2))
            except ValueError as error:
                problems.append(str(error))
                continue
            if blank.any():
                first = chunk * self.chunk_format.windows + int(np.flatnonzero(blank)[0])
                problems.append(f"{np.count_nonzero(blank)} images of chunk {chunk} are blank, the first is {first}")
        problems += self._index_problems()
        rendered = 0
        if panel is not None and not problems:
            from pricepix.panel import Panel

            rendered = self._compare(Panel.of(panel), sample, seed, problems)
        return {"windows": len(self), "chunks": len(chunks), "rendered": rendered, "problems": problems}

    def _index_problems(self) -> Iterator[str]:
        code, time = self.instrument_index, self.time
        if len(code) and (code.min() < 0 or code.max() >= len(self.instruments)):
            yield f"instrument_index runs from {code.min()} to {code.max()}, but there are {len(self.instruments)}"
        ordered = (time[1:] > time[:-1]) | ((time[1:] == time[:-1]) & (code[1:] > code[:-1]))
        if not ordered.all():
            yield f"windows are not ordered by (time, instrument) at position {int(np.flatnonzero(~ordered)[0]) + 1}"
        if self.spec.digest != self.attrs["spec_digest"]:
            yield f"the spec's digest is {self.spec.digest}, the store says {self.attrs['spec_digest']}"
        candidates = len(self) + sum(self.attrs["drop_counts"].values())
        if self.attrs.get("candidates", candidates) != candidates:
            yield f"windows and drop counts add up to {candidates}, not to {self.attrs['candidates']} candidates"

    def _compare(self, panel: Panel, sample: int | None, seed: int, problems: list[str]) -> int:
        """Render windows again from the panel, compare images and forward returns; return how many."""
        if panel.digest != self.attrs["panel_digest"]:
            problems.append(
                f"the panel's digest is {panel.digest}, the store was made from {self.attrs['panel_digest']}: other bars"
            )
            return 0
        from pricepix.labels import forward_returns

        chosen = np.arange(len(self))
        if sample is not None and sample < len(self):
            chosen = np.sort(np.random.default_rng(seed).choice(len(self), sample, replace=False))
        size = self.chunk_format.windows
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            row = _panel_rows(panel, self.instrument_index[part], self.time[part])
            expected = np.empty((len(part), *self.spec.shape), np.uint8)
            reason = np.empty(len(part), np.uint8)
            render_rows(panel, row, self.spec, expected, reason=reason)
            wrong = (self.read(part) != expected).any(axis=(1, 2))
            for place in np.flatnonzero(wrong)[:3]:
                problems.append(f"image {part[place]} differs from the one that the panel gives")
            if np.count_nonzero(wrong) > 3:
                problems.append(f"{np.count_nonzero(wrong) - 3} more images of this part differ")
            for h in self.horizons:
                label = forward_returns(panel, row, h, self.delay, self.attrs["label_price"])
                if not np.array_equal(label.value, self.returns(h)[part], equal_nan=True):
                    problems.append(f"forward returns ret_{h} differ from those that the panel gives")
        return len(chosen)


def _panel_rows(panel: Panel, instrument: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the panel rows of (instrument, time) pairs that are known to exist."""
    row = np.empty(len(time), np.int64)
    for code in np.unique(instrument):
        mine = instrument == code
        first, last = panel.offsets[code], panel.offsets[code + 1]
        row[mine] = first + np.searchsorted(panel.time[first:last], time[mine])
    return row


def open_store(location: StoreLike) -> ImageStore:
    """Open a finished image store.

    Parameters
    ----------
    location : str, path or zarr store
        Folder or URL of the store, or any Zarr v3 store object.

    Returns
    -------
    ImageStore

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If what is there is not a finished pricepix store of a format that this release reads.
    """
    name = str(location)
    if isinstance(location, (str, PathLike)) and "://" not in name:
        path = Path(location)
        if not path.exists():
            raise FileNotFoundError(f"no store at {path}: build one with pricepix.render_universe(panel, spec, {name!r})")
        if not path.is_dir():
            raise ValueError(f"{path} is a file; a pricepix store is a folder (a Zarr v3 group)")
    try:
        with numcodecs_allowed():
            group = zarr.open_group(location, mode="r", zarr_format=3)
    except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
        raise ValueError(f"{name} holds no Zarr v3 group: it is not a pricepix store, or its metadata is lost") from error
    return ImageStore(group, name)


def _check_attributes(attrs: dict[str, Any], location: str) -> None:
    version = attrs.get("format_version")
    if version is None or "spec" not in attrs:
        raise ValueError(f"{location} is a Zarr group, but not a pricepix store: it has no format_version and spec")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"store {location} has format version {version}, this release reads version {FORMAT_VERSION}: see "
            "CHANGELOG.md for how to recover, or rebuild it"
        )
    if not attrs.get("complete"):
        raise ValueError(
            f"store {location} is not finished: its build was stopped, or still runs; build it again with "
            "mode='overwrite'"
        )
    missing = [name for name in _REQUIRED if name not in attrs]
    if missing:
        raise ValueError(f"store {location} lacks the attributes {', '.join(missing)}: it is truncated; rebuild it")
