"""What a build will take, before it is started: images, bytes, minutes and memory, measured on a part of it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pricepix._checks import horizons as checked_horizons
from pricepix._checks import whole_number
from pricepix.bars.market_cache import MarketCache, is_market_cache
from pricepix.bars.panel import Panel
from pricepix.build.universe import render_universe
from pricepix.images.chunking import default_chunk
from pricepix.spec import ImageSpec
from pricepix.windows.index import NoCandidatesError, WindowIndex, nothing_to_draw

__all__ = ["Estimate", "estimate", "is_market_cache"]

_MOST_SAMPLED: Final = 20_000
_STRETCH: Final = 16
_BASE_BYTES: Final = 250_000_000
"""What Python, Numba and Polars take before anything is read."""


@dataclass(frozen=True)
class Estimate:
    """What a build will take. Print it."""

    images: int
    exact: bool
    """Whether images were counted, or reckoned from a part of the instruments."""
    candidates: int
    dropped: dict[str, int]
    """Windows without an image, by reason."""
    instruments: int
    bars: int
    bytes_an_image: float
    """On disk, images alone; measured on `sampled` of them."""
    store_bytes: int
    """Of the whole store: images, index and forward returns."""
    seconds: float
    """With as many threads as a build here would have, kernels compiled."""
    memory_bytes: int
    """The most that is held at a time."""
    free_bytes: int
    """Free on the disk of the store, or of the current folder."""
    sampled: int
    threads: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.store_bytes <= self.free_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {**asdict(self), "fits": self.fits}

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        dropped = ", ".join(f"{name} {about}{count:,}" for name, count in self.dropped.items()) or "none"
        rows = {
            "bars": f"{self.bars:,} of {self.instruments:,} instruments",
            "images": f"{about}{self.images:,} of {self.candidates:,} candidate windows",
            "dropped": dropped,
            "store": f"about {_size(self.store_bytes)} ({self.bytes_an_image:,.0f} bytes an image)",
            "disk": f"{_size(self.free_bytes)} free" + ("" if self.fits else ": NOT ENOUGH"),
            "time": f"about {_span(self.seconds)} with {self.threads} threads, kernels compiled",
            "memory": f"about {_size(self.memory_bytes)}",
            "measured": f"on a store of {self.sampled:,} of the images",
        }
        return "\n".join(f"{name:>9}  {value}" for name, value in rows.items())


def estimate(
    source: Any,
    spec: ImageSpec | str | Mapping[str, Any],
    horizons: Sequence[int] = (5, 20, 60),
    every: str | int = "bar",
    layout: str = "uint8",
    *,
    store: str | os.PathLike[str] | None = None,
    adjust: bool = True,
    seed: int = 0,
    **choice: Any,
) -> Estimate:
    """Reckon what a build will take, by building a store of up to 20,000 of its images in a temporary folder.

    Parameters
    ----------
    source : Panel, anything ``Panel.from_table`` takes, MarketCache or its folder
        The bars. Of a market cache 48 stocks are read, from its front, middle and back, and counts are scaled to all.
    spec, horizons, every, layout
        As for ``render_universe``.
    store : path, optional
        Where the store is to be: its disk is asked for room. The current folder's by default.
    adjust : bool
        For a market cache: as in ``MarketCache.panel``.
    seed : int
        Chooses the images.
    **choice
        Of ``WindowIndex.from_panel``: start, end, sample, mask, max_gap, periods.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        An argument cannot be used, or no window survives.
    """
    spec = ImageSpec.of(spec)
    known = checked_horizons(horizons)
    whole_number(seed, "seed")
    panels, scale, instruments = _bars(source, adjust)
    found = [WindowIndex.from_panel(panel, spec, every, **choice) for panel in panels]
    counts: Counter[str] = Counter()
    for part in found:
        counts.update(part.counts)
    windows = max(found, key=len)
    candidates = sum(part.candidates for part in found)
    if not len(windows):
        raise nothing_to_draw(candidates, counts, choice.get("max_gap"), "another mask")
    images = round(sum(map(len, found)) * scale)
    measured, seconds, size = _build_some(windows, known, every, layout, seed, choice)
    index_bytes = 12 + 12 * len(known)
    bars = round(sum(map(len, panels)) * scale)
    panel = windows.panel
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunk_bytes = default_chunk(*spec.shape, layout) * spec.height * spec.width
    fields = sum(values.itemsize for values in panel.fields.values())
    folder = Path.cwd() if store is None else _existing(Path(store).absolute())
    return Estimate(
        images=images,
        exact=len(panels) == 1 and scale == 1.0,
        candidates=round(candidates * scale),
        dropped={name: round(count * scale) for name, count in counts.items()},
        instruments=instruments,
        bars=bars,
        bytes_an_image=size / measured,
        store_bytes=round(size / measured * images),
        seconds=seconds / measured * images,
        memory_bytes=_BASE_BYTES
        + bars * (48 + fields)
        + images * (index_bytes + 1)
        + 3 * threads * chunk_bytes,
        free_bytes=_free(folder),
        sampled=measured,
        threads=threads,
    )


def _bars(source: Any, adjust: bool) -> tuple[list[Panel], float, int]:
    """Return bars to look at, how many times as many there are, and the number of instruments."""
    cache: MarketCache | None = source if isinstance(source, MarketCache) else None
    if is_market_cache(source):
        cache = MarketCache(source)
    if cache is None:
        panel = Panel.of(source)
        return [panel], 1.0, panel.n_instruments
    n = len(cache.instruments)
    size = min(n, _STRETCH)
    # Stocks stand by their numbers, and so by board and age: from the front, the middle and the back.
    firsts = sorted({0, (n - size) // 2, n - size})
    stretches = [slice(first, first + size) for first in firsts]
    panels = [cache.panel(stocks=stretch, adjust=adjust, on_bad="drop_bar") for stretch in stretches]
    return panels, n / (size * len(panels)), n


def _build_some(
    windows: WindowIndex,
    horizons: tuple[int, ...],
    every: str | int,
    layout: str,
    seed: int,
    choice: Mapping[str, Any],
) -> tuple[int, float, int]:
    """Build a store of some of the windows; return how many, the seconds it took, and its bytes."""
    share = min(1.0, _MOST_SAMPLED / len(windows))
    given = {**choice, "sample": share * (choice.get("sample") or 1.0)}
    if given["sample"] < 1.0:
        given["seed"] = seed
    with tempfile.TemporaryDirectory(prefix="pricepix-") as folder:
        target, seconds, store = Path(folder) / "store", 0.0, None
        # The first build loads, or compiles, the kernels.
        for _ in range(2):
            began = perf_counter()
            try:
                store = render_universe(
                    windows.panel, windows.spec, target, horizons, every=every, layout=layout, mode="overwrite",
                    progress=False, **given,
                )  # fmt: skip
            except (NoCandidatesError, ValueError) as error:
                raise ValueError(f"no store can be built of a part of these windows: {error}") from error
            seconds = perf_counter() - began
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        assert store is not None
        return len(store), seconds, size


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
