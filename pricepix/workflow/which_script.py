"""Which published renderer can have drawn some images: the rules of each, held against the pixels alone.

Every rule here is one of ``docs/pixels.md`` that can be seen without the bars: where ticks, stems, averages and volumes
may have ink, and what a scale must touch. An image that breaks one was drawn by something else. Different renderers may
agree on an image, so that several can be left.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import short, whole_number
from pricepix.spec import ImageSpec

__all__ = ["Candidate", "WhichScript", "which_script"]

_MOST_PIXELS: Final = 1 << 22
_CNNFT: Final = {32: (5, 7), 64: (11, 13)}
"""Rows of the volume, and of the lowest price level, of style cnn_for_trading by the height."""
_BESIDE: Final = "an open or close is not level with its stem"


class Candidate(NamedTuple):
    """A renderer with its options, and how many of the images can be its own."""

    style: str
    drawn: str
    """What is drawn besides bars."""
    fits: int
    broken: str
    """The rule that the first image which does not fit breaks."""


@dataclass(frozen=True)
class WhichScript:
    """Which renderers can have drawn the images. Print it."""

    images: int
    """How many were looked at."""
    height: int
    width: int
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def possible(self) -> list[Candidate]:
        """Those that can have drawn every image; with an average only where none without it can."""
        found = [candidate for candidate in self.candidates if candidate.fits == self.images]
        plain = {(one.style, one.drawn) for one in found if "average" not in one.drawn}
        without = {"average": "bars alone", "average and volume": "volume"}
        return [one for one in found if (one.style, without.get(one.drawn, "")) not in plain]

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON values."""
        return {
            "images": self.images, "height": self.height, "width": self.width,
            "possible": [{"style": one.style, "drawn": one.drawn} for one in self.possible],
            "candidates": [one._asdict() for one in self.candidates],
        }  # fmt: skip

    def __str__(self) -> str:
        head = f"{self.images:,} images of {self.height}x{self.width}, {self.width // 3} bars"
        lines = [head, "", f"{'renderer':<42}{'fits':>14}  the first that does not"]
        for one in self.candidates:
            name = f"{one.style}: {one.drawn}"
            lines.append(f"{name:<42}{f'{one.fits:,} of {self.images:,}':>14}  {one.broken}".rstrip())
        if not self.possible:
            lines += ["", "none of them drew all of these images"]
        else:
            alike = [name for name, spec in ImageSpec.presets().items() if self._is_like(spec)]
            presets = f" (presets of this size: {', '.join(alike)})" if alike else ""
            lines += ["", f"possible: {'; '.join(f'{p.style}: {p.drawn}' for p in self.possible)}{presets}"]
        return "\n".join(lines)

    def _is_like(self, spec: ImageSpec) -> bool:
        styles = {one.style.partition(" ")[0] for one in self.possible}
        return spec.shape == (self.height, self.width) and spec.style in styles


def which_script(source: str | os.PathLike[str] | NDArray[Any], n: int = 500) -> WhichScript:
    """Say which published renderer can have drawn some images.

    Parameters
    ----------
    source : path of an .npy file, or numpy.ndarray (n, height, width) or (height, width)
        Images of two values, the smaller of which is the background: 0 and 255, 0 and 1, or bool.
    n : int
        Images to look at, evenly spread over those that there are.

    Returns
    -------
    WhichScript

    Raises
    ------
    ValueError
        No such array, more than two values, or a width that is not three columns a bar.
    """
    whole_number(n, "n", 1, unit="images")
    where, images = _opened(source)
    if images.ndim == 2:
        images = images[None]
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    elif images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 or 0 in images.shape or images.dtype.kind not in "buif":
        raise ValueError(
            f"{where}: {images.dtype} {images.shape}; expected images (n, height, width) of two values"
        )
    height, width = images.shape[1:]
    if width % 3 or height < 2 or height * width > _MOST_PIXELS:
        raise ValueError(
            f"{where}: images of {height}x{width}; expected three columns a bar and two rows or more"
        )
    places = np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).astype(np.int64))
    shown = np.asarray(images[places])
    values = np.unique(shown)
    if len(values) > 2:
        raise ValueError(
            f"{where}: images hold {len(values):,} values, such as {short(values[:3].tolist())}; charts of these "
            "renderers hold two. Were they resized, or blurred by a lossy format?"
        )
    ink = shown == values[-1] if len(values) == 2 else np.zeros(shown.shape, bool)
    # Level 0 is the lowest row, as in the rules.
    found = [_judge(name, drawn, rule, ink[:, ::-1]) for name, drawn, rule in _rules(height, width // 3)]
    return WhichScript(len(shown), height, width, found)


def _opened(source: Any) -> tuple[str, NDArray[Any]]:
    if isinstance(source, np.ndarray):
        return "the array", source
    path = Path(source)
    if path.suffix.lower() != ".npy":
        raise ValueError(f"{path}: expected an .npy file, as numpy.save writes it")
    try:
        return str(path), np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file of numbers: {error}") from error


Rule = Callable[[NDArray[np.bool_]], str]
"""Takes ink (height, width) from the lowest row up; returns the rule that is broken, or nothing."""


def _judge(style: str, drawn: str, rule: Rule, images: NDArray[np.bool_]) -> Candidate:
    broken = [rule(image) for image in images]
    first = next((text for text in broken if text), "")
    return Candidate(style, drawn, broken.count(""), first)


def _rules(height: int, bars: int) -> list[tuple[str, str, Rule]]:
    """Return the renderers that can draw images of this size, each with its rule."""
    found: list[tuple[str, str, Rule]] = []
    for volume in (False, True):
        if volume and height < 5:
            continue
        for average in (False, True):
            drawn = _drawn(average, volume)
            found.append(("jkx", drawn, functools.partial(_jkx, average=average, volume=volume)))
            if not volume or height in _CNNFT:
                found.append(
                    (
                        "cnn_for_trading",
                        drawn,
                        functools.partial(_cnn_for_trading, average=average, volume=volume),
                    )
                )
    if height == 3 * bars:
        found.append(("image_trading", _drawn(False, False), _image_trading))
        found.append(("image_trading scale per_field", _drawn(False, False), _per_field))
    return sorted(found, key=lambda rule: rule[0] != "jkx")


def _drawn(average: bool, volume: bool) -> str:
    more = [name for name, on in (("average", average), ("volume", volume)) if on]
    return " and ".join(more) if more else "bars alone"


def _masks(prices: NDArray[np.bool_]) -> list[int]:
    """Return the ink of every column as the bits of a number, the lowest row first."""
    packed = np.packbits(prices, axis=0, bitorder="little")
    return [int.from_bytes(column.tobytes(), "little") for column in packed.T]


def _is_run(mask: int) -> bool:
    """Whether ink stands without a hole; nothing is a run, too."""
    return mask & (mask + (mask & -mask)) == 0


def _volume_broken(image: NDArray[np.bool_], rows: int) -> str:
    """Rules of a volume area of `rows` rows whose tallest bar fills it."""
    area = image[:rows]
    if area[:, 0::3].any() or area[:, 2::3].any():
        return "the volume area has ink beside the middle columns"
    middle = area[:, 1::3]
    tall = middle.sum(axis=0)
    if not np.array_equal(np.arange(rows)[:, None] < tall, middle):
        return "a volume bar does not stand on the lowest row"
    return "" if not tall.any() or tall.max() == rows else "the largest volume does not fill its area"


def _scale_broken(prices: NDArray[np.bool_]) -> str:
    return (
        "" if prices[0].any() and prices[-1].any() else "the price area has no ink in its first or last row"
    )


def _jkx(image: NDArray[np.bool_], average: bool, volume: bool) -> str:
    prices = image
    if volume:
        rows = len(image) // 5
        if image[rows].any():
            return "the row above the volume is not blank"
        if broken := _volume_broken(image, rows):
            return broken
        prices = image[rows + 1 :]
    # Missing highs may hold the scale without ink, but not in every image of real bars.
    if broken := _scale_broken(prices):
        return broken
    masks = _masks(prices)
    if average:
        return "" if _has_line(masks) else "no average fits: pixels beside ticks and stems form no line"
    return _bars_broken(masks)


def _bars_broken(masks: list[int]) -> str:
    """Say what no bar without an average beside it can have; empty if nothing."""
    for d in range(len(masks) // 3):
        left, stem, right = masks[3 * d : 3 * d + 3]
        if left.bit_count() > 1 or right.bit_count() > 1:
            return "a tick has more than one pixel"
        if (left | right) & ~stem:
            return _BESIDE
        if not _is_run(stem):
            return "a stem has a hole"
    return ""


def _has_line(masks: list[int]) -> bool:
    """Whether one line through the middle of bars explains all ink beside ticks and stems.

    Bar by bar, the levels at which the line may stand are kept: those from which a segment of the line leads to the
    next bar through ink, and leaves no more than one pixel, the tick, in each column between.
    """
    bars = len(masks) // 3
    if masks[0].bit_count() > 1 or masks[0] & ~masks[1]:
        return False
    levels: set[int] = set()
    free = True  # Whether there may be no average at this bar.
    for d in range(bars - 1):
        stem, right, left, following = masks[3 * d + 1 : 3 * d + 5]
        # A line begins at any level where none was needed before.
        begins = set(_levels(stem)) if free else set()
        reached: set[int] = set()
        for y0 in levels | begins:
            for y1 in _levels(following):
                a, b, c, e = _columns(y0, y1)
                inside = not (a & ~stem or b & ~right or c & ~left or e & ~following)
                # Ticks may lie under the line.
                if inside and _are_ticks(right & ~b, stem) and _are_ticks(left & ~c, following):
                    reached.add(y1)
        # It ends where a close is missing; what it drew here may stand apart from the stem.
        ticks = _are_ticks(right, stem) and _are_ticks(left, following)
        free = ticks and (bool(levels) or (free and _is_run(stem)))
        levels = reached
        if not levels and not free:
            return False
    return _are_ticks(masks[-1], masks[-2])


def _are_ticks(mask: int, stem: int) -> bool:
    """Whether a column holds one pixel at most, level with its stem."""
    return mask.bit_count() <= 1 and not mask & ~stem


def _levels(mask: int) -> list[int]:
    return [y for y in range(mask.bit_length()) if mask >> y & 1]


@functools.cache
def _columns(y0: int, y1: int) -> tuple[int, int, int, int]:
    """Return the ink of the line's four columns from level `y0` at a bar to `y1` at the next, as bits."""
    a, up = abs(y1 - y0), y1 >= y0
    masks = []
    for c in range(4):
        if a < 3:
            first = last = (2 * a * c + 3) // 6
        else:
            first = 0 if c == 0 else -(-(2 * c - 1) * a // 6)
            last = a if c == 3 else -(-(2 * c + 1) * a // 6) - 1
        low = y0 + first if up else y0 - last
        masks.append(((1 << (last - first + 1)) - 1) << low)
    return masks[0], masks[1], masks[2], masks[3]


def _cnn_for_trading(image: NDArray[np.bool_], average: bool, volume: bool) -> str:
    prices = image
    if volume:
        rows, lowest = _CNNFT[len(image)]
        if image[rows:lowest].any():
            return "the rows above the volume are not blank"
        if broken := _volume_broken(image, rows):
            return broken
        if image[:rows, 1::3].any(axis=0).all():
            return "the smallest volume has ink"
        prices = image[lowest:]
    if broken := _scale_broken(prices):
        return broken
    masks = _masks(prices)
    for d in range(len(masks) // 3):
        left, stem, right = masks[3 * d : 3 * d + 3]
        if right.bit_count() != 1:
            return "a close is not one pixel"
        if right & ~stem or (not average and left & ~stem):
            return _BESIDE
        if not 1 <= left.bit_count() <= 1 + average:
            return "an open is not one pixel" if not average else "beside an open there is more than a dash"
        # The dash of the average covers the stem's column, too.
        if average and not left & stem:
            return "no dash of an average reaches into the stem's column"
        if not (_is_run(stem) or (average and any(_is_run(stem & ~(1 << y)) for y in _levels(left)))):
            return "a stem has a hole"
    return ""


def _image_trading(image: NDArray[np.bool_]) -> str:
    if broken := _scale_broken(image):
        return broken
    masks = _masks(image)
    return _bars_broken(masks)


def _per_field(image: NDArray[np.bool_]) -> str:
    masks = _masks(image)
    opens, closes = masks[0::3], masks[2::3]
    if any(mask.bit_count() != 1 for mask in (*opens, *closes)):
        return "a tick is not one pixel"
    if not all(_is_run(stem) for stem in masks[1::3]):
        return "a stem has a hole"
    top = 1 << (len(image) - 1)
    if not all(1 in ticks and top in ticks for ticks in (opens, closes)):
        return "opens or closes do not span all rows"
    return ""
