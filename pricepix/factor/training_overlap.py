"""Which dates of a factor its model was trained or validated on, by what its checkpoints record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import as_time

__all__ = ["TrainingOverlap", "training_overlap", "training_summary"]

Times = NDArray[np.int64]
_LIMITS: Final = np.iinfo(np.int64)


class TrainingOverlap(NamedTuple):
    """Which dates of a factor are not out of sample."""

    seen: NDArray[np.bool_]
    """bool (dates,)."""
    through: int | None
    """The last exit, or image where no exit is known, of all that the model saw; None if nothing is recorded."""
    whole: bool
    """Whether the checkpoints record what they validated on; without it more dates may have been seen."""


def training_summary(
    checkpoints: Iterable[Mapping[str, Any]],
    tz: str | None,
    first: int | None = None,
    last: int | None = None,
) -> dict[str, Any]:
    """Summarise what some checkpoints record of their training, as plain values.

    Parameters
    ----------
    checkpoints : iterable of mapping
        Metadata of networks that are averaged.
    tz : str or None
        Zone in which they are read.
    first, last : int, optional
        Time of the images that these networks score, nanoseconds; all by default.

    Returns
    -------
    dict
        ``first`` and ``last``; ``images``, the last image that trained or validated, and ``labels``, the last
        exit of their labels, both as text or None; ``bars``, from an image to its label's exit; ``whole``,
        whether all checkpoints record both, validation included.
    """
    images: list[Any] = []
    labels: list[Any] = []
    bars: list[int] = []
    whole = True
    for metadata in checkpoints:
        parts = [metadata.get(name) for name in ("train", "validation")]
        ends = [part.get("last") for part in parts if isinstance(part, Mapping)]
        images += [end for end in ends if _is_time(end, tz)]
        labels += [end for end in (metadata.get("seen_through"),) if _is_time(end, tz)]
        whole &= isinstance(parts[1], Mapping) and _is_time(metadata.get("seen_through"), tz)
        if isinstance(metadata.get("horizon"), int):
            bars.append(int(metadata["horizon"]) + int(metadata.get("delay") or 0))

    def latest(ends: list[Any]) -> str | None:
        return str(max(ends, key=lambda end: as_time(str(end), tz))) if ends else None

    return {
        "first": first,
        "last": last,
        "images": latest(images),
        "labels": latest(labels),
        "bars": max(bars, default=None),
        "whole": whole,
    }


def training_overlap(
    model: Mapping[str, Any], time: Times, calendar: Times, shift: int, tz: str | None
) -> TrainingOverlap:
    """Return which dates of a factor are not out of sample.

    A date is out of sample if it does not lie before the exit of any label that its model was trained or
    validated on, and its image is later than all of their images.

    Parameters
    ----------
    model : mapping
        What the cache records of its model.
    time : numpy.ndarray, int64 (dates,)
        Where the values stand.
    calendar : numpy.ndarray, int64 (bars,)
        The panel's; the dates are in it.
    shift : int
        Bars by which values were moved on from their images.
    tz : str or None

    Returns
    -------
    TrainingOverlap
    """
    stages: Sequence[Mapping[str, Any]] | None = model.get("seen")
    if stages is None:
        # Older caches keep the metadata of the first checkpoint.
        metadata = model.get("metadata")
        stages = [training_summary([metadata], tz)] if isinstance(metadata, Mapping) and metadata else []
    image = calendar[np.maximum(np.searchsorted(calendar, time) - shift, 0)]
    seen = np.zeros(len(time), bool)
    ends: list[int] = []
    for stage in stages:
        first = _LIMITS.min if stage["first"] is None else stage["first"]
        last = _LIMITS.max if stage["last"] is None else stage["last"]
        scored = (image >= first) & (image <= last)
        last_image = None if stage["images"] is None else as_time(stage["images"], tz)
        exits = None if stage["labels"] is None else as_time(stage["labels"], tz)
        if exits is None and last_image is not None and stage["bars"] is not None:
            # At the earliest: an instrument that misses bars leaves later.
            at = int(np.searchsorted(calendar, last_image, side="right")) - 1 + int(stage["bars"])
            exits = int(calendar[min(at, len(calendar) - 1)]) if at >= 0 else None
        if last_image is not None:
            seen |= scored & (image <= last_image)
        if exits is not None:
            seen |= scored & (time < exits)
        ends += [end for end in (last_image, exits) if end is not None]
    return TrainingOverlap(seen, max(ends, default=None), all(stage["whole"] for stage in stages))


def _is_time(value: Any, tz: str | None) -> bool:
    """Return whether a value of a checkpoint, which may come from anywhere, is a time."""
    try:
        return value is not None and as_time(str(value), tz) is not None
    except ValueError:
        return False
