"""What a build is asked for: options that belong together as objects, and one check of what all builds share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pricepix._checks import bars, choice, whole_number_or_none
from pricepix._checks import horizons as checked_horizons
from pricepix.images.chunking import default_chunk
from pricepix.spec import ImageSpec
from pricepix.store.chunks import LAYOUTS, MAX_CHUNK_BYTES, ChunkFormat
from pricepix.windows.schedule import Periods

MODES: Final = ("create", "resume", "overwrite")


@dataclass(frozen=True)
class StoreOptions:
    """How a store is laid out, and how its location is opened.

    Parameters
    ----------
    layout : {"bits", "uint8"}
        One bit a pixel before compression, or one byte: see ``render_universe``.
    chunk : int, optional
        Windows a chunk; by default what makes 8 MB before compression in layout ``bits``, 16 MB in ``uint8``.
    shard : int or str, optional
        Windows an object of several chunks; ``render_universe`` also takes a size such as ``"256MB"``.
    storage_options : mapping, optional
        For a URL: keys, region, endpoint, as ``obstore.store.from_url`` takes them.
    """

    layout: str = "bits"
    chunk: int | None = None
    shard: int | str | None = None
    storage_options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class WindowChoice:
    """Which windows of the bars become images.

    Parameters
    ----------
    every, start, end, sample, seed, max_gap, periods
        As in ``WindowIndex.from_panel``.
    """

    every: str | int = "bar"
    start: Any = None
    end: Any = None
    sample: float | None = None
    seed: int = 0
    max_gap: Any = None
    periods: Periods | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BuildRequest:
    """What every build is asked for, checked by ``BuildRequest.checked``."""

    spec: ImageSpec
    horizons: tuple[int, ...]
    delay: int
    layout: str
    chunk: int
    """Windows a chunk."""
    mode: str
    threads: int | None
    """None for all."""

    @classmethod
    def checked(
        cls,
        spec: ImageSpec | str | Mapping[str, Any],
        horizons: Sequence[int],
        delay: int,
        mode: str,
        options: StoreOptions,
        threads: int | None,
    ) -> BuildRequest:
        """Check arguments before any work, and resolve those that were left out.

        Raises
        ------
        ValueError
            If one of them cannot be used.
        """
        spec = ImageSpec.of(spec)
        choice(options.layout, "layout", LAYOUTS)
        choice(mode, "mode", MODES)
        threads = whole_number_or_none(threads, "threads", 1, otherwise="None for all")
        chunk = whole_number_or_none(
            options.chunk, "chunk", 1, unit="windows", otherwise="None for the usual size"
        )
        height, width = spec.shape
        if chunk is not None and chunk * height * width > MAX_CHUNK_BYTES:
            raise ValueError(
                f"chunk={chunk} images of {height}x{width} are {chunk * height * width / 1e9:.1f} GB of pixels, "
                f"more than the codec takes at once: give at most {MAX_CHUNK_BYTES // (height * width)}"
            )
        return cls(
            spec=spec,
            horizons=checked_horizons(horizons),
            delay=bars(delay, "delay", 0),
            layout=options.layout,
            chunk=chunk or default_chunk(height, width, options.layout),
            mode=mode,
            threads=threads,
        )

    @property
    def thread_count(self) -> int:
        """Threads to use: as many as were asked for, or all."""
        return self.threads or os.cpu_count() or 1

    def form(self, shard: int = 0) -> ChunkFormat:
        """Return the form of the store's image chunks, with so many windows a shard."""
        return ChunkFormat(self.layout, *self.spec.shape, self.chunk, shard=shard)
