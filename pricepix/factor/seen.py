"""What a model had seen when it was trained, and which dates of a factor lie within that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import as_time

__all__ = ["dates_seen", "seen_by"]

Times = NDArray[np.int64]
_EVER: Final = np.iinfo(np.int64)


def seen_by(
    checkpoints: Iterable[Mapping[str, Any]],
    tz: str | None,
    first: int | None = None,
    last: int | None = None,
) -> dict[str, Any]:
    """Sum up what some checkpoints say of their training, as plain values.

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
        whether all checkpoints say both, validation included.
    """
    images: list[Any] = []
    labels: list[Any] = []
    bars: list[int] = []
    whole = True
    for said in checkpoints:
        parts = [said.get(name) for name in ("train", "validation")]
        ends = [part.get("last") for part in parts if isinstance(part, Mapping)]
        images += [end for end in ends if _readable(end, tz)]
        labels += [end for end in (said.get("seen_through"),) if _readable(end, tz)]
        whole &= isinstance(parts[1], Mapping) and _readable(said.get("seen_through"), tz)
        if isinstance(said.get("horizon"), int):
            bars.append(int(said["horizon"]) + int(said.get("delay") or 0))

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


def dates_seen(
    model: Mapping[str, Any], time: Times, calendar: Times, shift: int, tz: str | None
) -> tuple[NDArray[np.bool_], int | None, bool]:
    """Tell which dates of a factor are not out of sample.

    A date is out of sample if it does not lie before the exit of any label that its model was trained or
    validated on, and its image is later than all of their images.

    Parameters
    ----------
    model : mapping
        What the cache keeps of its model.
    time : numpy.ndarray, int64 (dates,)
        Where the values stand.
    calendar : numpy.ndarray, int64 (bars,)
        The panel's; the dates are in it.
    shift : int
        Bars by which values were moved on from their images.
    tz : str or None

    Returns
    -------
    seen : numpy.ndarray, bool (dates,)
    through : int or None
        The last exit, or image where no exit is known, of all that the model saw; None if nothing tells.
    whole : bool
        Whether the checkpoints say what they validated on; without it more dates may have been seen.
    """
    stages: Sequence[Mapping[str, Any]] | None = model.get("seen")
    if stages is None:
        # Caches of before keep what the first checkpoint said.
        metadata = model.get("metadata")
        stages = [seen_by([metadata], tz)] if isinstance(metadata, Mapping) and metadata else []
    image = calendar[np.maximum(np.searchsorted(calendar, time) - shift, 0)]
    seen = np.zeros(len(time), bool)
    ends: list[int] = []
    for stage in stages:
        own = (image >= _or(stage["first"], _EVER.min)) & (image <= _or(stage["last"], _EVER.max))
        last = None if stage["images"] is None else as_time(stage["images"], tz)
        exits = None if stage["labels"] is None else as_time(stage["labels"], tz)
        if exits is None and last is not None and stage["bars"] is not None:
            # At the earliest: an instrument that misses bars leaves later.
            at = int(np.searchsorted(calendar, last, side="right")) - 1 + int(stage["bars"])
            exits = int(calendar[min(at, len(calendar) - 1)]) if at >= 0 else None
        if last is not None:
            seen |= own & (image <= last)
        if exits is not None:
            seen |= own & (time < exits)
        ends += [end for end in (last, exits) if end is not None]
    return seen, max(ends, default=None), all(stage["whole"] for stage in stages)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _readable(value: Any, tz: str | None) -> bool:
    """Whether a checkpoint, which may come from anywhere, gives a time."""
    try:
        return value is not None and as_time(str(value), tz) is not None
    except ValueError:
        return False
