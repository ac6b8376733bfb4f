"""What of a store must be scored for a cache: the images that are new or revised since it was scored last.

Two images are the same if their pixels are: a model sees nothing else. The cache keeps a digest of the image behind
each value. To look at as few images as possible, it also keeps the checksums of the store's image chunks: those that
did not change are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import RevisedHistoryError, printable
from pricepix.bars.times import format_time
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache

__all__ = [
    "ON_REVISION",
    "Changes",
    "Part",
    "find_changes",
    "image_digests",
    "revision_error",
    "source_chunks",
]

ON_REVISION: Final = ("rescore", "keep", "raise")
_SHOWN: Final = 3
_ROWS: Final = 4096
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)


class Part(NamedTuple):
    """The windows of a chunk of a store that are to be looked at, from window `first` to below `last`."""

    chunk: int
    first: int
    last: int


@dataclass(frozen=True)
class Changes:
    """What a scoring must look at."""

    parts: Sequence[Part]
    """In the order of the windows."""
    removed_from: int
    """First day of the cache on which values may have lost their window; the number of days if there is none."""


def find_changes(
    base: FactorCache | None, placement: Placement, windows: StoreWindows, *, whole: bool = False
) -> Changes:
    """Find the windows that are new or may be revised.

    Parameters
    ----------
    base : FactorCache or None
        What is scored already.
    placement : Placement
        Over the days of the cache and those of the store.
    windows : StoreWindows
    whole : bool
        Look at all images, whatever the checksums say.
    """
    days = len(placement.day)
    parts = _parts(windows.store.chunk, placement.skipped, placement.windows)
    if base is None:
        return Changes(parts, days)
    if whole or _is_calendar_changed(base, placement):
        return Changes(parts, 0)
    scored = int(base.attrs["windows"])
    same = _same_windows(base.attrs, windows, scored)
    removed_from = days
    if same < scored:
        code = int(np.searchsorted(windows.end, same, side="left"))
        removed_from = int(placement.to_day[min(code, len(placement.to_day) - 1)]) if same else 0
    known, found = base.source_chunks, source_chunks(windows.store)
    if len(known) and base.attrs["source_form"] == source_form(windows.store):
        count = min(len(known), len(found))
        unchanged = np.zeros(max(len(found), 1), bool)
        unchanged[:count] = known[:count] == found[:count]
        parts = [part for part in parts if part.last > same or not unchanged[part.chunk]]
    return Changes(parts, removed_from)


def _parts(size: int, first: int, last: int) -> list[Part]:
    chunks = range(first // size, -(-last // size) if last > first else 0)
    return [Part(chunk, max(first, chunk * size), min(last, (chunk + 1) * size)) for chunk in chunks]


def _is_calendar_changed(base: FactorCache, placement: Placement) -> bool:
    """Whether values that are moved along the calendar stand elsewhere now."""
    if not placement.shift:
        return False
    before = base.time[base.time != NO_TIME]
    calendar = placement.calendar
    now = calendar[(calendar >= before.min()) & (calendar <= before.max())] if len(before) else before
    return not np.array_equal(np.sort(before), now)


def _same_windows(attrs: Mapping[str, Any], windows: StoreWindows, scored: int) -> int:
    """Return how many windows at the front are those that were scored: whole blocks, or all of them."""
    if windows.digest(scored) == attrs["scored_digest"]:
        return scored
    same = 0
    for block, digest in enumerate(attrs["scored_blocks"], 1):
        if windows.digest(block * INDEX_CHUNK) != digest:
            break
        same = block * INDEX_CHUNK
    return same


def block_digests(windows: StoreWindows, count: int) -> list[str]:
    """Return the digests of the first 1, 2, ... whole blocks of the first `count` windows."""
    return [windows.digest(end) for end in range(INDEX_CHUNK, count + 1, INDEX_CHUNK)]


def source_chunks(images: ImageSet) -> NDArray[np.int64]:
    """Return the checksums of a store's image chunks, int64; none for images that have no checksums."""
    objects: Any = getattr(images, "objects", None)
    if objects is None or not objects.checked:
        return np.empty(0, np.int64)
    return objects.checksums[objects.geometry.checksum_slices()["images"]].astype(np.int64)


def source_form(images: ImageSet) -> str:
    """Return what else two stores must agree in, for equal checksums to mean equal images."""
    names = ("layout", "chunk", "spec_digest")
    text = repr([(name, images.attrs.get(name)) for name in names])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_digests(images: NDArray[Any], binary: bool = True) -> NDArray[np.uint64]:
    """Return 64 bits that stand for the pixels of each image, never 0, whatever the layout of their store.

    They detect changes but not forgeries. A word at a time of many images: an eighth of a microsecond an image of
    64x60.

    Parameters
    ----------
    images : numpy.ndarray, uint8 (n, height, width)
        Or the series of bars behind them, float32.
    binary : bool
        Pixels are black or white: a bit each counts. Otherwise all bytes do.
    """
    n = len(images)
    binary = binary and images.dtype == np.uint8
    found = np.empty(n, np.uint64)
    for first in range(0, n, _ROWS):
        part = np.ascontiguousarray(images[first : first + _ROWS]).reshape(min(_ROWS, n - first), -1)
        packed = np.packbits(part, axis=1) if binary else part.view(np.uint8)
        whole = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
        whole[:, : packed.shape[1]] = packed
        words = np.ascontiguousarray(whole.view("<u8").T)
        mixed = np.full(len(packed), packed.shape[1], np.uint64)
        for word in words:
            mixed ^= word
            mixed *= _MULTIPLIER
            mixed ^= mixed >> _SHIFT
        found[first : first + _ROWS] = mixed
    found[found == 0] = 1
    return found


def revision_error(
    base: FactorCache, windows: StoreWindows, revised: NDArray[np.int64], what: str = "have other images"
) -> ValueError:
    """Return the error for windows that were scored before and changed, with on_revision="raise"."""
    instrument = np.concatenate([windows.column("instrument_index", k, k + 1) for k in revised[:_SHOWN]])
    time = np.concatenate([windows.column("time", k, k + 1) for k in revised[:_SHOWN]])
    shown = ", ".join(
        f"{windows.names[code]} {format_time(int(ns), windows.store.tz)}"
        for code, ns in zip(instrument.tolist(), time.tolist(), strict=True)
    )
    return _revised(base, len(revised), printable(shown, ""), what)


def removal_error(base: FactorCache, count: int, day: int) -> ValueError:
    """Return the error for values whose windows the store has no more."""
    return _revised(base, count, str(np.datetime64(day, "D")), "are no longer in the store")


def _revised(base: FactorCache, count: int, shown: str, what: str) -> ValueError:
    more = ", ..." if count > _SHOWN else ""
    return RevisedHistoryError(
        f"the history that cache {base.location} was scored from was revised: {count:,} or more windows {what} "
        f"({shown}{more}). Pass on_revision='rescore', which scores them again and keeps in the cache's journal what "
        "stood there, or 'keep', which leaves their values as they are"
    )
