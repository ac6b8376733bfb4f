"""Which images a network is rounded to 8 bits by, and how well it then ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import as_time
from pricepix.images.image_set import ImageSet

__all__ = ["rank_agreement", "training_images", "whole_dates"]

_CALIBRATION: Final = 512
_COMPARED: Final = 1024
_LEAST_NAMES: Final = 5


def training_images(images: ImageSet, metadata: Mapping[str, Any], name: str) -> NDArray[np.uint8]:
    """Return up to 512 images, evenly spaced, of the period that a network was trained on.

    Parameters
    ----------
    images : ImageSet
    metadata : mapping
        What the network's checkpoint says of its training.
    name : str
        What the network is called.

    Raises
    ------
    ValueError
        If the checkpoint does not say when it was trained, or the images are all of other times.
    """
    period = metadata.get("train")
    if not isinstance(period, Mapping) or "first" not in period or "last" not in period:
        raise ValueError(
            f"precision='int8' rounds by images of the training period, which the checkpoint of {name} does not "
            "record: score in float32"
        )
    first = as_time(str(period["first"]), images.tz, False)
    last = as_time(str(period["last"]), images.tz, True)
    own = np.flatnonzero((images.time >= first) & (images.time <= last))
    if not len(own):
        raise ValueError(
            f"precision='int8' rounds by images of the training period, {period['first']} to {period['last']}, and "
            f"{images.kind} {images.location} has none of it: score images that begin earlier, or in float32"
        )
    few = own[np.linspace(0, len(own) - 1, min(_CALIBRATION, len(own))).astype(np.int64)]
    return images.read(np.unique(few))


def whole_dates(images: ImageSet) -> NDArray[np.int64]:
    """Return windows of dates evenly spaced, all of each, about 1,000 in all; dates of fewer than 5 are left out."""
    times, place, count = np.unique(images.time, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(count >= _LEAST_NAMES)
    if not len(usable):
        usable = np.arange(len(times))
    wanted = max(1, min(len(usable), round(_COMPARED / count[usable].mean())))
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, wanted).astype(np.int64))]
    return np.flatnonzero(np.isin(place, chosen))


def rank_agreement(a: NDArray[Any], b: NDArray[Any], time: NDArray[np.int64]) -> float:
    """Return the mean over dates of the rank correlation of two scores; 1 where no date has two windows.

    Equal scores share the mean of their ranks.
    """
    found = []
    for moment in np.unique(time):
        own = time == moment
        if np.count_nonzero(own) > 1:
            x, y = _ranks(a[own]), _ranks(b[own])
            spread = np.std(x) * np.std(y)
            if spread > 0:
                found.append(float(np.mean((x - x.mean()) * (y - y.mean())) / spread))
            else:
                found.append(float(np.array_equal(x, y)))
    return float(np.mean(found)) if found else 1.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    mean: NDArray[np.float64] = (ends - (count - 1) / 2)[place]
    return mean
