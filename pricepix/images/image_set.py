"""A set of chart images with their index and forward returns, wherever the images come from."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import nearest, nearest_or_all, of_kind, optional_module, printable
from pricepix.bars.times import as_time, period_ends, time_range, to_series
from pricepix.images.batches import EpochReader, selection_mask
from pricepix.images.display import image_set_page
from pricepix.images.explorers import open_explorer
from pricepix.render.memory import memory_for
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    import dask.array
    import xarray

    from pricepix.bars.panel import Panel

__all__ = ["ImageSet"]


class ImageSet(ABC):
    """Chart images, counted from 0 in the order of (time, instrument), with their index and forward returns.

    What training, scoring, evaluation and previews take. An ``ImageStore`` reads its images, ``LoadedImages``
    holds them in memory, ``PanelImages`` draws them when they are asked for.
    """

    location: str
    """Path or URL of a store, or a description of where the images come from."""
    spec: ImageSpec
    """What the images show."""
    horizons: tuple[int, ...]
    """Horizons, in bars, of the forward returns."""
    panel: Panel | None = None
    """The bars, where they are at hand."""
    augments: bool = False
    """Whether ``batches(augment=...)`` can change windows before they are drawn."""
    kind: str = "store"
    """The kind of images, as messages name it."""

    @property
    @abstractmethod
    def attrs(self) -> Mapping[str, Any]:
        """What the images were made from: spec, digests, horizons, schedule, drop counts."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Images that are best read together: what `read_chunk` gives and scoring takes at a time."""

    @property
    @abstractmethod
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""

    @abstractmethod
    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read an array along ``window``, or a stretch of it.

        Parameters
        ----------
        name : str
            ``time``, ``instrument_index``, ``ret_<h>`` or ``exit_time_<h>``.
        first, last : int, optional
            Chunks of ``INDEX_CHUNK`` windows: from `first` until before `last`; all by default.

        Returns
        -------
        numpy.ndarray
            One value a window.
        """

    @abstractmethod
    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Write the images at these positions into `out`, uint8 (n, height, width).

        Parameters
        ----------
        positions : numpy.ndarray, int64 (n,)
            From 0 to ``len(self) - 1``; nothing is checked.
        out : numpy.ndarray, uint8 (n, height, width)
        """

    @abstractmethod
    def _reader(self, selection: NDArray[np.int64] | None, **options: Any) -> EpochReader:
        """Return the reader of batches that suits these images."""

    def _repr(self, *more: str) -> str:
        height, width = self.spec.shape
        parts = [
            f"{len(self):,} images {height}x{width}", f"{len(self.instruments):,} instruments",
            f"horizons {self.horizons}", *more,
        ]  # fmt: skip
        return printable(f"{type(self).__name__}({self.location}: {', '.join(parts)})", "")

    def _repr_html_(self) -> str:
        return image_set_page(self)

    @property
    def delay(self) -> int:
        """Bars between a window's last bar and the entry of its forward returns."""
        return int(self.attrs["delay"])

    @property
    def tz(self) -> str | None:
        """Time zone of the panel; times are UTC where there is one, wall-clock times otherwise."""
        return self.attrs.get("tz")

    @cached_property
    def instrument_index(self) -> NDArray[np.int32]:
        """int32 (n,): the instrument of each window."""
        return self.column("instrument_index")

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: the time of each window's last bar."""
        return self.column("time")

    def returns(self, horizon: int) -> NDArray[np.float32]:
        """float32 (n,): the forward return over `horizon` bars, NaN where it is not known."""
        return self.column(f"ret_{self._known_horizon(horizon)}")

    def exit_time(self, horizon: int) -> NDArray[np.int64]:
        """int64 (n,) nanoseconds: when that return is realised; the smallest int64 where it never is."""
        return self.column(f"exit_time_{self._known_horizon(horizon)}")

    def _known_horizon(self, horizon: int) -> int:
        if horizon not in self.horizons:
            raise ValueError(
                f"{self.kind} {self.location} has no forward returns over {horizon!r} bars, only over "
                f"{', '.join(map(str, self.horizons)) or 'no horizon'}: choose one of these, or make it again "
                f"with horizons=(..., {horizon!r})"
            )
        return horizon

    @cached_property
    def index(self) -> pl.DataFrame:
        """One row a window: instrument, time, and ret_<h> and exit_time_<h> for every horizon h."""
        columns: dict[str, Any] = {
            "instrument": pl.Series(self.instruments.astype(object), dtype=pl.String).gather(
                self.instrument_index
            ),
            "time": to_series(self.time, self.tz),
        }
        for h in self.horizons:
            columns[f"ret_{h}"] = self.returns(h)
        for h in self.horizons:
            columns[f"exit_time_{h}"] = to_series(self.exit_time(h), self.tz)
        return pl.DataFrame(columns)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits for what the images were made from: spec, panel, windows, horizons, layout."""
        names = (
            "spec_digest", "panel_digest", "horizons", "delay", "label_price", "delisting", "schedule", "layout",
            "windows",
        )  # fmt: skip
        text = repr([(name, self.attrs.get(name)) for name in names])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def read(self, selection: Any = slice(None), out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read images as uint8 0/255.

        Parameters
        ----------
        selection : int positions, slice or boolean mask
            Which windows, in which order.
        out : numpy.ndarray, uint8 (n, height, width), optional
            Where to write; allocated when not given.

        Returns
        -------
        numpy.ndarray
            uint8 (n, height, width).

        Raises
        ------
        IndexError
            If a position lies outside.
        ValueError
            If a chunk of a store is missing or damaged; the message names it.
        """
        wanted = self._positions(selection)
        shape = (len(wanted), *self.spec.shape)
        if out is None:
            out = memory_for(shape)
        elif (
            of_kind(out, "out", np.ndarray, f"a uint8 array of shape {shape}").shape != shape
            or out.dtype != np.uint8
        ):
            raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
        self.read_into(wanted, out)
        return out

    def chunk_windows(self, chunk: int) -> int:
        """Images of a chunk: all but the last are full."""
        if not 0 <= chunk * self.chunk < max(len(self), 1):
            raise IndexError(
                f"there is no chunk {chunk} of {self.kind} {self.location}, of {len(self):,} images"
            )
        return min(self.chunk, len(self) - chunk * self.chunk)

    def read_chunk(self, chunk: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Read the images of one chunk, or those at `rows` within it, uint8 (n, height, width)."""
        within = np.arange(self.chunk_windows(chunk)) if rows is None else rows
        return self.read(chunk * self.chunk + within)

    def _positions(self, selection: Any) -> NDArray[np.int64]:
        n = len(self)
        if isinstance(selection, slice):
            return np.arange(*selection.indices(n), dtype=np.int64)
        wanted = np.atleast_1d(np.asarray(selection))
        if wanted.ndim != 1:
            raise IndexError(
                f"select windows by positions in a row, slice or mask, not by shape {wanted.shape}"
            )
        if wanted.dtype == np.bool_:
            if wanted.shape != (n,):
                raise IndexError(f"a mask over this {self.kind} has shape ({n},), not {wanted.shape}")
            return np.flatnonzero(wanted)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise IndexError(f"select windows by position, slice or mask, not by {wanted.dtype}")
        wanted = wanted.astype(np.int64)
        if wanted.size and (wanted.min() < -n or wanted.max() >= n):
            raise IndexError(
                f"positions {wanted.min()} to {wanted.max()} lie outside the {self.kind}'s {n} windows"
            )
        return np.where(wanted < 0, wanted + n, wanted)

    def locate(self, instrument: str, time: Any) -> int:
        """Return the position of the window of `instrument` that ends at `time`.

        Raises
        ------
        KeyError
            If there is none; the message names the nearest instrument, or the nearest times.
        """
        found = np.flatnonzero(self.instruments == str(instrument))
        if not len(found):
            others = f"; it has {len(self.instruments)} others"
            hint = nearest(str(instrument), self.instruments.tolist()) or others
            raise KeyError(f"no instrument {instrument!r} in {self.kind} {self.location}{hint}")
        code = int(found[0])
        earliest, latest = as_time(time, self.tz, False), as_time(time, self.tz, True)
        a, b = np.searchsorted(self.time, [earliest, latest + 1])
        hits = a + np.flatnonzero(self.instrument_index[a:b] == code)
        if len(hits):
            # A date means the last window of that day.
            return int(hits[-1])
        own = np.flatnonzero(self.instrument_index == code)
        if not len(own):
            raise KeyError(
                f"instrument {instrument!r} has no window in {self.kind} {self.location}: see its drop counts"
            )
        around = own[np.argsort(np.abs(self.time[own] - earliest), kind="stable")[:2]]
        times = " and ".join(str(t) for t in to_series(np.sort(self.time[around]), self.tz))
        raise KeyError(f"no window of {instrument!r} ends at {time!r}: the nearest end at {times}")

    def image(self, instrument: str, time: Any) -> NDArray[np.uint8]:
        """Return the image (height, width) of the window of `instrument` that ends at `time`."""
        return self.read([self.locate(instrument, time)])[0]

    def batches(
        self,
        *,
        time: Any = None,
        instruments: Sequence[str] | None = None,
        mask: NDArray[Any] | None = None,
        **options: Any,
    ) -> EpochReader:
        """Return a bulk reader: batches of (images uint8 0/255, positions), shuffled or in order.

        Parameters
        ----------
        time, instruments, mask
            Which windows to read: see ``pricepix.images.image_set.select``. All by default; chunks of a store that
            hold none of them are not read.
        **options
            Of ``pricepix.images.batches.EpochReader``: batch_size, shuffle, seed, rank, worker, drop_last, threads,
            prefetch; and pool_bytes, which a store's own reader needs and others ignore.

        Returns
        -------
        pricepix.images.batches.EpochReader

        Raises
        ------
        ValueError
            If an argument cannot be used, or no window is left.
        TypeError
            If there is no such argument; the message names the nearest.
        """
        known = [n for n in inspect.signature(EpochReader).parameters if n not in ("images", "selection")]
        known += ["pool_bytes", "augment", "device"]
        if unknown := [n for n in options if n not in known]:
            every = ["time", "instruments", "mask", *known]
            raise TypeError(f"batches has no argument {unknown[0]!r}{nearest_or_all(unknown[0], every)}")
        if not self.augments:
            # Only images that are drawn can be changed first, or be drawn on another device.
            for name in ("augment", "device"):
                if (value := options.pop(name, None)) not in (None, "cpu"):
                    raise ValueError(
                        f"{name}={value!r} is for images that are drawn when they are asked for, and {self.kind} "
                        f"{self.location} has its images: take PanelImages, or leave {name} out"
                    )
        chosen = None
        if time is not None or instruments is not None or mask is not None:
            chosen = select(self, time=time, instruments=instruments, mask=mask)
        return self._reader(chosen, **options)

    def renders_on(self, device: str) -> bool:
        """Whether ``batches(device=...)`` can give tensors that are made on a device such as ``cuda``."""
        return False

    def explore(
        self,
        *,
        factor: Any = None,
        model: Any = None,
        panel: Any = None,
        embedding: Any = None,
        horizon: int | None = None,
        port: int = 0,
        browser: bool = False,
    ) -> Any:
        """Open a local page to look through these images; see ``pricepix.explore.explore``.

        Parameters
        ----------
        factor : FactorCache, str or path, optional
            Scores of the images.
        model : path, network or ensemble, optional
            Scores single windows, and says what speaks for them.
        panel : Panel, MarketCache, or anything ``Panel.from_table`` takes, optional
            The bars; by default those that the images have.
        embedding : Embedding, str or path, optional
            What "similar" means; by default the share of ink in the same place.
        horizon : int, optional
            Which horizon a model that learnt several is asked about.
        port : int
            Of 127.0.0.1; 0 for any that is free.
        browser : bool
            Open the page in the browser of this machine.

        Returns
        -------
        pricepix.explore.Explorer
            Its ``url`` is the address, ``close`` ends it; a notebook shows it.

        Raises
        ------
        ImportError
            Without the extra ``explore``; the message is the line that installs it.
        """
        return open_explorer(
            self, factor=factor, model=model, panel=panel, embedding=embedding, horizon=horizon, port=port,
            browser=browser,
        )  # fmt: skip

    def to_torch(
        self,
        horizon: int,
        *,
        target: str = "up",
        split: Any = None,
        iterable: bool = False,
        **options: Any,
    ) -> Any:
        """Return the images with their labels as datasets for torch's ``DataLoader``, for loops of your own.

        Parameters
        ----------
        horizon : int
            Horizon of the forward return that labels are made from. Windows without one are left out.
        target : str
            What labels are: ``up`` and the others of ``pricepix.train.make_targets``.
        split : object, optional
            Such as ``pricepix.train.TimeSplit``, or one fold of a split.
        iterable : bool
            Give whole batches, read in bulk as ``batches`` does, which is faster for stores, and not single images.
        **options
            Of ``batches``, such as batch_size, seed and drop_last, where `iterable` is True.

        Returns
        -------
        LabelledImages, LabelledBatches or TorchParts
            Of `pricepix.images.torch_data`: a dataset; with a split three of them, ``train``, ``validation`` and
            ``test``. Images are uint8 (1, height, width) of 0 and 255, labels int64 classes or float32 numbers.

        Raises
        ------
        ImportError
            Without torch; the message is the line that installs it.
        ValueError
            If the images have no such horizon, or a part of the split is empty.
        """
        optional_module("torch", "train", "to_torch")
        from pricepix.images.torch_data import torch_data

        return torch_data(self, horizon, target, split, iterable, options)

    def to_dask(self) -> dask.array.Array:
        """Return the images as a lazy dask array, uint8 (n, height, width) of 0 and 255, a block a chunk."""
        da = optional_module("dask.array", "dask", "to_dask")
        n, size = len(self), self.chunk
        height, width = self.spec.shape
        windows = tuple(min(size, n - first) for first in range(0, n, size)) or (0,)
        if n == 0:
            return da.zeros((0, height, width), dtype=np.uint8)
        name = f"pricepix-{self.digest}"
        graph = {(name, i, 0, 0): (self.read_chunk, i) for i in range(len(windows))}
        return da.Array(graph, name, chunks=(windows, (height,), (width,)), dtype=np.uint8)

    def to_xarray(self) -> xarray.Dataset:
        """Return all as a lazy ``xarray.Dataset`` with uint8 images, decoded times, instrument names.

        Its attributes are those of the images, as files can hold them: what is neither text nor number is JSON,
        what is None is left out. ``to_netcdf`` needs netCDF4, of h5netcdf for instance: older files hold no
        unsigned bytes.
        """
        xr = optional_module("xarray", "xarray", "to_xarray")
        utc_or_local = {"time_zone": self.tz} if self.tz else {}
        variables: dict[str, Any] = {
            "images": (("window", "y", "x"), self.to_dask()),
            **{f"ret_{h}": ("window", self.returns(h)) for h in self.horizons},
            **{f"exit_time_{h}": ("window", self.exit_time(h).view("datetime64[ns]")) for h in self.horizons},
        }
        coordinates = {
            "time": ("window", self.time.view("datetime64[ns]"), utc_or_local),
            # Objects: Zarr has no format for text of a fixed width.
            "instrument": ("window", self.instruments.astype(object)[self.instrument_index]),
        }
        attrs = {name: _netcdf_attribute(value) for name, value in self.attrs.items() if value is not None}
        return xr.Dataset(variables, coordinates, attrs)


def _netcdf_attribute(value: Any) -> Any:
    """Return text and numbers as they are, all else as JSON: files hold nothing else."""
    storable = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return value if storable else json.dumps(value)


def select(
    store: ImageSet,
    *,
    time: tuple[Any, Any] | None = None,
    instruments: Sequence[str] | None = None,
    mask: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Return the ascending positions of the windows that meet every condition given.

    Parameters
    ----------
    store : ImageSet
    time : (start, end), optional
        First and last time of the windows' last bars, both included, or None for an open end. A day, month
        or year stands for all of it; times without a zone are read in the panel's.
    instruments : sequence of str, optional
    mask : numpy.ndarray, bool (n,) or integer positions, optional

    Raises
    ------
    KeyError
        If an instrument is not in the store.
    ValueError
        If a time is not one, or the mask has the wrong length.
    """
    n = len(store)
    chosen = np.ones(n, bool)
    if time is not None:
        first, last = time_range(*_pair(time), store.tz)
        chosen &= (store.time >= first) & (store.time <= last)
    if instruments is not None:
        wanted = [instruments] if isinstance(instruments, str) else [str(name) for name in instruments]
        known = {str(name): i for i, name in enumerate(store.instruments)}
        if unknown := [name for name in wanted if name not in known]:
            raise KeyError(
                f"no instrument {unknown[0]!r} in {store.kind} {store.location}, which has {len(known)} others"
            )
        codes = np.zeros(len(known), bool)
        codes[[known[name] for name in wanted]] = True
        chosen &= codes[store.instrument_index]
    if mask is not None:
        chosen &= selection_mask(mask, n)
    return np.flatnonzero(chosen)


def _pair(time: Any) -> tuple[Any, Any]:
    """Return the two ends of a period that was given as a pair; the error for another form shows the pair to give."""
    pair: tuple[Any, Any] = ("2000-03", "2000-04-15")
    if isinstance(time, slice):
        pair = (time.start, time.stop)
    elif isinstance(time, str):
        pair = period_ends(time)
    elif not isinstance(time, bytes):
        try:
            start, end = time
            return start, end
        except (TypeError, ValueError):
            pass
    raise ValueError(
        f"time is {time!r}; give the first and the last time as a pair, time={pair!r}, None for an open end: a day, "
        "month or year stands for all of it"
    )
