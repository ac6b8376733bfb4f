"""Verifying whatever lies at a location: an image store or a factor cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pricepix.factor.cache import is_factor_cache, open_cache
from pricepix.store.image_store import open_store

__all__ = ["verify_location"]


def verify_location(
    location: str, read_bars: Callable[[], Any] | None, progress: bool, **options: Any
) -> tuple[str, Any]:
    """Verify a store or a cache; return what it is and its report.

    Parameters
    ----------
    location : str
    read_bars : callable, optional
        Reads the bars that a store was made from; called only for a store.
    progress : bool
        Show a progress bar.
    **options
        Of ``ImageStore.verify``; a cache takes none of them.
    """
    if not is_factor_cache(location):
        bars = None if read_bars is None else read_bars()
        return "image store", open_store(location).verify(bars, progress=progress, **options)
    if read_bars or options["depth"] not in (None, "checksums") or options["sample"] is not None:
        raise ValueError(f"{location} is a factor cache: leave --panel, --depth and --sample out")
    return "factor cache", open_cache(location).verify(progress=progress)
