"""From a panel to an image store: plan, render in partitions, write, finish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pricepix.chunks import LAYOUTS, ZSTD_LEVEL, ChunkFormat, default_chunk, numcodecs_allowed
from pricepix.labels import NO_TIME, ForwardReturn, forward_returns, label_price
from pricepix.panel import Panel
from pricepix.render import render_panel
from pricepix.render.api import render_rows
from pricepix.spec import ImageSpec
from pricepix.store import FORMAT_VERSION, TIME_ATTRIBUTES, ImageStore, StoreLike, open_store
from pricepix.windows import WindowIndex

MODES: Final = ("create", "overwrite")
# Column bits that one worker holds at a time: enough for consecutive windows of every instrument to meet in a
# partition (60 trading days of 5,000 stocks at 64x60), which is what the renderer is fast at.
_PARTITION_BYTES: Final = 128 << 20
_INDEX_CHUNK: Final = 1 << 18


@dataclass(frozen=True)
class Partition:
    """A run of windows that covers whole chunks: the unit of work."""

    first: int
    """Position of its first window."""
    last: int
    """One past its last window."""
    first_chunk: int
    """Number of the image chunk that its first window opens."""


def partitions(n: int, chunk: int, packed_bytes: int, at_least: int = 1) -> Iterator[Partition]:
    """Cut `n` windows into partitions of whole chunks, `at_least` so many where there are enough chunks.

    The bytes of a store do not depend on how it was cut.
    """
    chunks = -(-n // chunk)
    size = max(1, min(_PARTITION_BYTES // (chunk * packed_bytes), -(-chunks // at_least)))
    for first in range(0, chunks, size):
        yield Partition(first * chunk, min(n, (first + size) * chunk), first)


def render_universe(
    panel: Any,
    spec: ImageSpec | str | Mapping[str, Any],
    store: StoreLike | None = None,
    horizons: Sequence[int] = (5, 20, 60),
    delay: int = 0,
    every: str | int = "bar",
    layout: str = "uint8",
    mode: str = "create",
    *,
    price: str = "auto",
    start: Any = None,
    end: Any = None,
    mask: NDArray[np.bool_] | None = None,
    sample: float | None = None,
    seed: int = 0,
    max_gap: Any = None,
    chunk: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ImageStore:
    """Draw every window of a universe and keep images, index and forward returns together in a store.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars: a panel, a data frame, or the path of a CSV, Parquet or Feather file.
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    store : str, path, zarr store or None
        Where to write. ``None`` keeps the store in memory, uncompressed.
    horizons : sequence of int
        Horizons, in bars, of the forward returns to keep.
    delay : int
        Bars from a window's last bar to the entry of its forward returns.
    every, start, end, mask, sample, seed, max_gap
        Which windows to draw: see ``WindowIndex.from_panel``.
    layout : {"uint8", "bits"}
        One byte a pixel, which every Zarr reader opens as what it is, or one bit a pixel before compression:
        a third of the bytes, and faster to build and to read.
    mode : {"create", "overwrite"}
        ``create`` refuses a location that exists; ``overwrite`` replaces a pricepix store.
    price : {"auto", "close", "total_return"}
        What forward returns are computed from: see ``forward_returns``.
    chunk : int, optional
        Windows a chunk; by default what makes about 16 MB of pixels (4096 for 64x60).
    threads : int, optional
        Threads to draw, compress and write with; all by default. The bytes do not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ImageStore

    Raises
    ------
    ValueError
        If an argument can not be used, the panel has bad bars, or no window survives; before anything is
        written.
    FileExistsError
        If the location exists and `mode` is ``create``.
    """
    spec = ImageSpec.of(spec)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not known: choose one of {', '.join(map(repr, LAYOUTS))}")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is not known: choose one of {', '.join(map(repr, MODES))}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} is not a number of threads: give 1 or more, or None for all")
    horizons = _checked_horizons(horizons)
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk={chunk!r} is not a number of windows: give a whole number of at least 1")
    if store is not None:
        _check_location(store, mode)
    panel = Panel.of(panel)
    windows = WindowIndex.from_panel(
        panel, spec, every, start=start, end=end, mask=mask, sample=sample, seed=seed, max_gap=max_gap, threads=threads
    )
    if len(windows) == 0:
        dropped = ", ".join(f"{name} {count}" for name, count in windows.counts.items())
        raise ValueError(
            f"none of the {windows.candidates} candidate windows can be drawn (dropped: {dropped}): choose a shorter "
            "lookback, ma_warmup='omit', other dates or another mask"
        )
    labels = [forward_returns(panel, windows, h, delay, price) for h in horizons]
    attributes = _attributes(panel, windows, horizons, delay, price, layout)
    chunks = ChunkFormat(
        layout, *spec.shape, chunk or default_chunk(*spec.shape), compressed=store is not None
    )
    if store is None:
        return _in_memory(panel, windows, labels, attributes, chunks, threads)
    return _on_disk(panel, windows, labels, attributes, chunks, threads, store, progress)


def _checked_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    if isinstance(horizons, int) and not isinstance(horizons, bool):
        horizons = (horizons,)
    checked = tuple(sorted(int(h) for h in horizons))
    if len(set(checked)) != len(checked):
        raise ValueError(f"horizons={tuple(horizons)} names a horizon twice: give each once")
    if checked and checked[0] < 1:
        raise ValueError(f"horizons={tuple(horizons)}: a horizon is a whole number of bars, at least 1")
    return checked


def _attributes(
    panel: Panel, windows: WindowIndex, horizons: tuple[int, ...], delay: int, price: str, layout: str
) -> dict[str, Any]:
    from pricepix import __version__

    return {
        "format_version": FORMAT_VERSION,
        "created_by": f"pricepix {__version__}",
        "complete": False,
        "spec": windows.spec.to_dict(),
        "spec_digest": windows.spec.digest,
        "panel_digest": None,
        "windows": len(windows),
        "candidates": windows.candidates,
        "drop_counts": dict(windows.counts),
        "schedule": dict(windows.schedule),
        "horizons": list(horizons),
        "delay": delay,
        "label_price": label_price(panel, price),
        "layout": layout,
        "tz": panel.tz,
    }


def _check_location(store: StoreLike, mode: str) -> None:
    """Refuse what can not be written to, or must not be, before any work is done."""
    if not isinstance(store, (str, os.PathLike)) or "://" in str(store):
        return
    path = Path(store)
    if path.exists():
        if not path.is_dir():
            raise FileExistsError(f"{path} is a file; a store is a folder: give another path")
        if mode == "create":
            raise FileExistsError(f"{path} exists already: give another path, or mode='overwrite' to replace it")
        _check_replaceable(path)
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, so {path} can not be made below it: give another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{parent} is not writable: give another path, or change its permissions")


def _check_replaceable(path: Path) -> None:
    """Overwriting deletes a folder, so it must be one of ours, or empty."""
    if not any(path.iterdir()):
        return
    try:
        attrs = zarr.open_group(path, mode="r", zarr_format=3).attrs
        ours = "format_version" in attrs and "spec" in attrs
    except Exception:
        ours = False
    if not ours:
        raise FileExistsError(
            f"{path} is not empty and not a pricepix store, so mode='overwrite' will not delete it: give another path"
        )


def _write_index(group: zarr.Group, panel: Panel, windows: WindowIndex, labels: list[ForwardReturn]) -> None:
    """Write everything but the images."""
    codecs: Any = [ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()]

    def put(name: str, values: Any, fill: Any, attributes: Mapping[str, Any] | None = None) -> None:
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(min(_INDEX_CHUNK, max(1, len(values))) if name == "instruments" else _INDEX_CHUNK,),
            dtype=str if name == "instruments" else values.dtype,
            compressors=codecs,
            fill_value=fill,
            dimension_names=("instrument" if name == "instruments" else "window",),
            attributes=dict(attributes or {}),
        )
        array[:] = values

    put("instruments", panel.instruments.astype(object), "")
    put("instrument_index", windows.instrument, 0)
    put("time", windows.time, 0, TIME_ATTRIBUTES)
    for label in labels:
        put(f"ret_{label.horizon}", label.value, np.nan)
        put(f"exit_time_{label.horizon}", label.exit_time, NO_TIME, TIME_ATTRIBUTES)


def _in_memory(
    panel: Panel,
    windows: WindowIndex,
    labels: list[ForwardReturn],
    attributes: dict[str, Any],
    chunks: ChunkFormat,
    threads: int | None,
) -> ImageStore:
    """Render into one array whose slices are the chunks of a Zarr group in memory."""
    n = len(windows)
    keys: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(keys), zarr_format=3, attributes={**attributes, "compressed": False})
    count = -(-n // chunks.windows)
    chunks.create_array(group, n)
    if chunks.layout == "uint8":
        pixels = np.empty((count * chunks.windows, chunks.height, chunks.width), np.uint8)
        render_panel(panel, windows, out=pixels[:n], threads=threads)
        pixels[n:] = 0
        parts = pixels.reshape(count, -1)
    else:
        bits = render_panel(panel, windows, bits=True, threads=threads)
        parts = [
            np.frombuffer(chunks.encode(bits[a : a + chunks.windows]), np.uint8) for a in range(0, n, chunks.windows)
        ]
    for i in range(count):
        keys[f"images/c/{i}/0/0"] = cpu.Buffer.from_array_like(parts[i])
    _write_index(group, panel, windows, labels)
    # Hashing the panel costs as much as drawing it; nobody needs to recognise the bars of a store in memory.
    group.attrs["complete"] = True
    return ImageStore(group, "memory")


def _on_disk(
    panel: Panel,
    windows: WindowIndex,
    labels: list[ForwardReturn],
    attributes: dict[str, Any],
    chunks: ChunkFormat,
    threads: int | None,
    store: StoreLike,
    progress: bool,
) -> ImageStore:
    """Render, compress and write partitions on worker threads, then declare the store complete."""
    n = len(windows)
    workers = threads or os.cpu_count() or 1
    if isinstance(store, (str, os.PathLike)) and "://" not in str(store) and Path(store).exists():
        shutil.rmtree(store)
    attributes["panel_digest"] = panel.digest
    group = zarr.create_group(store, zarr_format=3, attributes=attributes, overwrite=True)
    images = chunks.create_array(group, n)
    _write_index(group, panel, windows, labels)

    def draw(part: Partition) -> int:
        bits = np.empty((part.last - part.first, chunks.packed_bytes), np.uint8)
        reason = np.empty(len(bits), np.uint8)
        row = windows.row[part.first : part.last]
        render_rows(panel, row, windows.spec, bits, bits=True, reason=reason, threads=1)
        for i in range(0, len(bits), chunks.windows):
            key = f"{images.path}/c/{part.first_chunk + i // chunks.windows}/0/0".lstrip("/")
            stored = cpu.Buffer.from_bytes(chunks.encode(bits[i : i + chunks.windows]))
            sync(group.store.set(key, stored))
        return len(bits)

    with (
        tqdm(total=n, desc=f"render {Path(str(store)).name}", unit="img", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        pending: set[Future[int]] = set()
        try:
            for part in partitions(n, chunks.windows, chunks.packed_bytes, at_least=4 * workers):
                if len(pending) >= workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
                pending.add(pool.submit(draw, part))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                bar.update(sum(future.result() for future in done))
        except BaseException:
            for future in pending:
                future.cancel()
            raise
    group.attrs["complete"] = True
    with numcodecs_allowed():
        zarr.consolidate_metadata(group.store)
    return open_store(store)
