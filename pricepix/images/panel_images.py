"""Images of a panel that are drawn on demand and never stored."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import horizons as checked_horizons
from pricepix._checks import whole_number_or_none
from pricepix.bars.panel import Panel
from pricepix.images.augment import Augment, Augmenter
from pricepix.images.batches import Batch, DirectReader, EpochReader
from pricepix.images.chunking import INDEX_CHUNK, default_chunk
from pricepix.images.drawing import BatchRenderer
from pricepix.images.image_set import ImageSet
from pricepix.images.lineage import lineage
from pricepix.images.shared_arrays import SharedArrays
from pricepix.render.draw import render_rows
from pricepix.render.reasons import REASONS
from pricepix.spec import ImageSpec
from pricepix.windows.index import WindowIndex, find_windows, windows_digest
from pricepix.windows.labels import ForwardReturn, ReturnRule
from pricepix.windows.schedule import Periods

if TYPE_CHECKING:
    import torch

    from pricepix.render.cuda import CudaRenderer

__all__ = ["PanelImages"]

_FIELD: Final = "field-"


class PanelImages(ImageSet):
    """The images of a panel's windows, drawn on demand: a store with nothing on disk.

    Index, forward returns and images are those of the store that ``render_universe`` makes of the same
    arguments, pixel by pixel. Memory is the panel and 12 bytes a window, and a forward return once it is
    asked for; batches of a spec with a moving average lay it beside the bars, 48 bytes a bar, in panels of up
    to 89 million bars. Training, scoring and evaluation take it in place of a store.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars: a panel, a data frame, or the path of a CSV, Parquet or Feather file.
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    horizons : sequence of int
        Horizons, in bars, of the forward returns.
    delay : int
        Bars from a window's last bar to the entry of its forward returns.
    every, start, end, mask, sample, seed, max_gap, periods
        Which windows to draw: see ``WindowIndex.from_panel``.
    price : {"auto", "close", "total_return"}
        What forward returns are computed from: see ``forward_returns``.
    delisting : {"auto", "hold", "missing"}
        The forward returns of instruments whose bars end within the horizon: see ``forward_returns``.
    threads : int, optional
        Threads to find the windows with, and to draw large reads; all by default.

    Raises
    ------
    ValueError
        If an argument cannot be used, the panel has bad bars, or no window survives.

    Notes
    -----
    A pickle is small: it names files that hold the panel and the windows, which all processes of the machine
    map; see ``pricepix.images.shared_arrays``. They live as long as the panel and this object, or their process.

    Examples
    --------
    >>> from pricepix import PanelImages, samples
    >>> images = PanelImages(samples.simulate(3, 60), "jkx20", horizons=(5,))
    >>> images.read([0, 1]).shape
    (2, 64, 60)
    """

    kind = "panel images"
    augments = True

    def __init__(
        self,
        panel: Any,
        spec: ImageSpec | str | Mapping[str, Any],
        horizons: Sequence[int] = (5, 20, 60),
        *,
        delay: int = 0,
        every: str | int = "bar",
        price: str = "auto",
        delisting: str = "auto",
        start: Any = None,
        end: Any = None,
        mask: NDArray[np.bool_] | None = None,
        sample: float | None = None,
        seed: int = 0,
        max_gap: Any = None,
        periods: Periods | Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        spec = ImageSpec.of(spec)
        threads = whole_number_or_none(threads, "threads", 1, otherwise="None for all")
        horizons = checked_horizons(horizons)
        panel = Panel.of(panel)
        rule = ReturnRule.of(panel, delay, price, delisting)
        windows = find_windows(
            panel, spec, every, start=start, end=end, mask=mask, sample=sample, seed=seed, max_gap=max_gap,
            periods=periods, threads=threads,
        )  # fmt: skip
        self._take(panel, windows, horizons, rule, threads)

    def _take(
        self,
        panel: Panel,
        windows: WindowIndex,
        horizons: tuple[int, ...],
        rule: ReturnRule,
        threads: int | None,
    ) -> None:
        self.panel: Panel = panel
        self.windows = windows
        """The windows, in the order of the images."""
        self.spec, self.horizons = windows.spec, horizons
        self._rule, self._threads = rule, threads
        self._labels: dict[int, ForwardReturn] = {}
        self._renderers: dict[torch.device, CudaRenderer] = {}
        self._shared_table: SharedArrays | None = None
        self.location = f"of {panel.n_instruments:,} instruments"

    def __reduce__(self) -> tuple[Any, ...]:
        panel, windows = self.panel, self.windows
        if "shared" not in panel._cache:
            # Kept with the panel, so that images of several specs share it once.
            panel._cache["shared"] = SharedArrays(
                {
                    **{"bars": panel.bars, "offsets": panel.offsets, "time": panel.time},
                    "instruments": panel.instruments,
                    **{_FIELD + name: values for name, values in panel.fields.items()},
                }
            )
        rest = (
            panel.tz, panel.digest, self.spec.to_dict(), dict(windows.counts), dict(windows.schedule),
            self.horizons, tuple(self._rule), self._threads,
        )  # fmt: skip
        # Made here at the latest: every process that unpickles this would make one of its own.
        self._batch_renderer  # noqa: B018
        return _restore, (panel._cache["shared"], self._shared, self._shared_table, rest)

    @cached_property
    def _shared(self) -> SharedArrays:
        return SharedArrays({"row": self.windows.row, "instrument": self.windows.instrument})

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        return self._repr()

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """What the images are made from, as in the attributes of a store."""
        found = lineage(self.panel, self.windows, self.horizons, self._rule, "drawn", self.chunk)
        return {**found, "panel_digest": self.panel.digest}

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits for what the images are made from: spec, panel, windows, horizons."""
        text = repr(
            [
                *(self.spec.digest, self.panel.digest, windows_digest(self.windows)),
                *(self.horizons, *self._rule),
            ]
        )
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def delay(self) -> int:
        """Bars between a window's last bar and the entry of its forward returns."""
        return self._rule.delay

    @property
    def tz(self) -> str | None:
        """Time zone of the panel; times are UTC where there is one, wall-clock times otherwise."""
        return self.panel.tz

    @property
    def chunk(self) -> int:
        """Images that are drawn together in a scan: 16 MB of them."""
        return default_chunk(*self.spec.shape)

    @property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the panel's instruments; ``instrument_index`` points into them."""
        return self.panel.instruments

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        whole: NDArray[Any]
        if name == "instrument_index":
            whole = self.windows.instrument
        elif name == "time":
            whole = self._time
        else:
            kind, _, number = name.rpartition("_")
            if kind not in ("ret", "exit_time") or not number.isdecimal():
                raise KeyError(
                    f"{self.kind} {self.location} have no column {name!r}: choose time, instrument_index, ret_<h> or "
                    "exit_time_<h>"
                )
            label = self._label(int(number))
            whole = label.value if kind == "ret" else label.exit_time
        part = whole[first * INDEX_CHUNK : None if last is None else last * INDEX_CHUNK]
        # The kept array itself is returned: writing to it would change the labels of every later training.
        part.flags.writeable = False
        return part

    @cached_property
    def _time(self) -> NDArray[np.int64]:
        return self.windows.time

    def _label(self, horizon: int) -> ForwardReturn:
        self._known_horizon(horizon)
        if horizon not in self._labels:
            self._labels[horizon] = self._rule.returns(self.panel, self.windows, horizon)
        return self._labels[horizon]

    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if not out.flags.c_contiguous:
            out[:] = self.read(positions)
            return
        reason = np.empty(len(positions), np.uint8)
        row = self.windows.row[positions]
        render_rows(self.panel, row, self.spec, out, reason=reason, threads=self._threads)
        self._check(positions, reason)

    def _draw(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Draw a batch in this thread, without the interpreter's lock."""
        reason = self._batch_renderer.draw(positions, out)
        if reason is not None:
            self._check(positions, reason)

    @cached_property
    def _batch_renderer(self) -> BatchRenderer:
        if self._shared_table is not None:
            return BatchRenderer(self.windows, self._shared_table["table"])
        renderer = BatchRenderer(self.windows)
        if renderer.table is not None:
            self._shared_table = SharedArrays({"table": renderer.table})
        return renderer

    def _check(self, positions: NDArray[np.int64], reason: NDArray[np.uint8]) -> None:
        if reason.any():
            bad = int(np.flatnonzero(reason)[0])
            raise ValueError(
                f"window {int(positions[bad])} of {self.kind} {self.location} can no longer be drawn "
                f"({REASONS[int(reason[bad])]}): the panel's bars were changed after the windows were found"
            )

    def _reader(
        self, selection: NDArray[np.int64] | None, *, device: str = "cpu", **options: Any
    ) -> EpochReader:
        if device == "cpu":
            return PanelReader(self, selection, **options)
        if options.pop("augment", None) is not None:
            raise ValueError(f"augmented images are drawn on the CPU: leave device={device!r} out")
        return DeviceReader(self, selection, device=device, **options)

    def renders_on(self, device: str) -> bool:
        """Whether a GPU such as ``cuda`` or ``cuda:1`` can draw: torch sees it, and so does Numba."""
        if device.partition(":")[0] != "cuda":
            return False
        try:
            # One window is drawn: the kernel is compiled at its first call, and a driver may refuse it.
            self._renderer(device).render(self.windows.row[:1])
        except Exception as error:  # of the compiler or the driver, whichever it is: the CPU can draw
            warnings.warn(f"images are drawn on the CPU: {error}", stacklevel=2)
            return False
        return True

    def _renderer(self, device: str) -> CudaRenderer:
        """The renderer on a device, where the panel stays as long as this object."""
        from pricepix.render.cuda import CudaRenderer, gpu_of

        # "cuda" is one of the numbered ones.
        gpu = gpu_of(device)
        if gpu not in self._renderers:
            self._renderers[gpu] = CudaRenderer(self.panel, self.spec, device=device)
        return self._renderers[gpu]


class AugmentedBatch(NamedTuple):
    """A batch of changed windows: images, positions of the windows drawn, and which are mirrored, bool (b,).

    Their forward returns are those of `index`; where a window is mirrored, with the other sign.
    """

    images: NDArray[np.uint8]
    index: NDArray[np.int64]  # type: ignore[assignment]
    mirrored: NDArray[np.bool_]


class PanelReader(DirectReader):
    """Batches of panel images, drawn as they are asked for.

    Parameters
    ----------
    images : PanelImages
    selection : numpy.ndarray, optional
    augment : Augment or dict, optional
        Changes windows before they are drawn; batches then are `AugmentedBatch`.
    **options
        Of `pricepix.images.batches.EpochReader`.
    """

    images: PanelImages

    def __init__(
        self,
        images: PanelImages,
        selection: NDArray[Any] | None = None,
        *,
        augment: Augment | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(images, selection, **options)
        self.augment = None if augment is None else Augment.of(augment)
        if self.augment is None:
            # Before there are workers: they then share its table.
            images._batch_renderer  # noqa: B018
        else:
            self.augment.check(images.spec)
            if self.augment.jitter_end and not self._neighbours(self.augment.jitter_end):
                raise ValueError(
                    f"jitter_end={self.augment.jitter_end} takes windows that end up to so many bars earlier, but none "
                    f"of the {len(self.positions):,} chosen windows has such a neighbour: give more bars, choose more "
                    "windows (every='bar'), or leave it out"
                )

    def _neighbours(self, bars: int) -> bool:
        """Whether any two chosen windows of an instrument end at most so many bars apart."""
        windows = self.images.windows
        # Rows of a panel go instrument by instrument.
        order = np.argsort(windows.row[self.positions])
        row, instrument = (of[self.positions[order]] for of in (windows.row, windows.instrument))
        return bool(np.any((np.diff(row) <= bars) & (np.diff(instrument) == 0)))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_augmenter", "_place")}

    @cached_property
    def _augmenter(self) -> Augmenter:
        assert self.augment is not None
        return Augmenter(self.augment, self.images.windows, self.seed, self.images._draw)

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """int64 (panel rows,): the chosen window that ends at each, -1 for none."""
        place = np.full(len(self.images.panel), -1, np.int64)
        place[self.images.windows.row[self.positions]] = self.positions
        return place

    def _made(
        self, epoch: int, index: NDArray[np.int64], images: NDArray[np.uint8]
    ) -> Batch | AugmentedBatch:
        if self.augment is None:
            self.images._draw(index, images)
            return Batch(images, index)
        windows, offsets = self.images.windows, self.images.panel.offsets
        drawn = index
        if self.augment.jitter_end:
            first = offsets[windows.instrument[index]]
            row = windows.row[index] - self._augmenter.jitter(epoch, index)
            found = self._place[np.maximum(row, first)]
            drawn = np.where((row >= first) & (found >= 0), found, index)
        mirrored = self._augmenter.draw(epoch, index, drawn, images)
        return AugmentedBatch(images, drawn, mirrored)


class DeviceReader(DirectReader):
    """Batches of panel images as tensors on a GPU, which draws them on torch's current stream.

    A batch is (images, positions), torch tensors on the device, uint8 (b, height, width) and int64 (b,). Nothing
    waits for the device, so nothing is made ahead: `prefetch` and `threads` are accepted and ignored. Other
    parameters are those of `pricepix.images.batches.EpochReader`.
    """

    images: PanelImages

    def __init__(
        self, images: PanelImages, selection: NDArray[Any] | None = None, *, device: str, **options: Any
    ) -> None:
        super().__init__(images, selection, **(options | {"prefetch": 0, "threads": 1}))
        self.device = device

    def _batches(self, epoch: int, start: int) -> Generator[Any, None, None]:
        import torch

        renderer = self.images._renderer(self.device)
        indices = list(self._indices(epoch, start))
        if not indices:
            return
        # The whole epoch's rows go to the device at once: those of a batch would each wait for it.
        index = np.concatenate(indices)
        rows = torch.from_numpy(self.images.windows.row[index]).to(renderer.device)
        places = torch.from_numpy(index).to(renderer.device)
        # Where every window has bars of its own, they are made and checked batch by batch. Otherwise the bars are on
        # the device and do not change: all windows are checked before the first is drawn, in one wait.
        own_bars = self.images.spec.rebuild is not None
        if not own_bars:
            self.images._check(index, renderer.reasons(rows).cpu().numpy())
        at = 0
        for size in map(len, indices):
            part = slice(at, at + size)
            reason = torch.empty(size, dtype=torch.uint8, device=renderer.device)
            images: Any = renderer.render(rows[part], reason=reason)
            if own_bars:
                self.images._check(index[part], reason.cpu().numpy())
            if places.is_cuda:
                # The current stream may differ from the one they were made on, which reuses their memory later.
                places.record_stream(torch.cuda.current_stream(places.device))
            yield Batch(images, places[part])  # type: ignore[arg-type]
            at += size


def _restore(
    bars: SharedArrays, index: SharedArrays, table: SharedArrays | None, rest: tuple[Any, ...]
) -> PanelImages:
    tz, digest, spec, counts, schedule, horizons, rule, threads = rest
    fields = {name.removeprefix(_FIELD): bars[name] for name in bars if name.startswith(_FIELD)}
    panel = Panel(bars["bars"], bars["offsets"], bars["instruments"], bars["time"], tz, fields)
    panel._cache.update({"digest": digest, "shared": bars})
    windows = WindowIndex(
        panel, ImageSpec.from_dict(spec), index["row"], index["instrument"], counts, schedule
    )
    images = PanelImages.__new__(PanelImages)
    images._take(panel, windows, horizons, ReturnRule(*rule), threads)
    images.__dict__["_shared"], images._shared_table = index, table
    return images
