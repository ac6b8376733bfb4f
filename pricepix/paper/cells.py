"""Cells of the grid: an image and a horizon, ``I20/R5``, and the networks that learn on such images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from pricepix._checks import bars
from pricepix.spec import ImageSpec
from pricepix.train.network_spec import PRESETS, CNNSpec, SeriesSpec, cnn1d, logistic

__all__ = ["GRIDS", "MODELS", "Cell", "cells_of", "check_model", "model_title", "network"]

GRIDS: Final[dict[str, tuple[str, ...]]] = {
    "jkx": tuple(f"I{n}/R{h}" for h in (5, 20, 60) for n in (5, 20, 60)),
    "week": ("I5/R5", "I20/R5", "I60/R5"),
}
"""Grids by name: the nine cells of the paper, and those of its weekly table."""

SCALED: Final = {"image": "image scale", "return": "cumulative return scale", "volatility": "devolatilised"}

MODELS: Final = ("cnn", *(f"{kind}:{scaling}" for kind in ("cnn1d", "logistic") for scaling in SCALED))
"""What a cell can be learned by: the network on images, and the controls on the numbers behind them."""

_NAME: Final = re.compile(r"(?P<image>I(?P<lookback>[1-9]\d*)|[a-z]\w*)/R(?P<horizon>[1-9]\d*)")


@dataclass(frozen=True)
class Cell:
    """An image and a horizon.

    Attributes
    ----------
    image : ImageSpec
    horizon : int
        Bars of the return that is learned.
    name : str
        ``I20/R5`` for images of 20 bars and returns over 5.
    """

    image: ImageSpec
    horizon: int
    name: str

    def __post_init__(self) -> None:
        bars(self.horizon, "horizon", 1)
        if not re.fullmatch(r"[\w.-]+/R\d+", self.name):
            raise ValueError(
                f"name={self.name!r}: give letters and digits, a slash and the horizon, like 'I20/R5'"
            )

    @classmethod
    def of(cls, given: Cell | str) -> Cell:
        """Return a cell, or the one of a name: ``I7/R7``, or a preset's like ``it49/R50``.

        Images of other lookbacks than 5, 20 and 60 have the height of the next of these three, a moving average over
        the lookback, and volume, as theirs.
        """
        if isinstance(given, Cell):
            return given
        found = _NAME.fullmatch(given) if isinstance(given, str) else None
        if found is None:
            raise ValueError(
                f"cell {given!r}: give the lookback and the horizon like 'I20/R5', a preset and a horizon like "
                "'it49/R50', or a Cell"
            )
        horizon = int(found["horizon"])
        if found["lookback"] is None:
            return cls(ImageSpec.preset(found["image"]), horizon, given)
        lookback = int(found["lookback"])
        height = 32 if lookback < 13 else 64 if lookback < 40 else 96
        return cls(ImageSpec(lookback, height, ma=(lookback,), volume=True), horizon, given)

    @property
    def image_name(self) -> str:
        """The part of the name that says what is drawn: ``I20``."""
        return self.name.partition("/")[0]

    @property
    def folder(self) -> str:
        """The name as a folder's: ``I20_R5``."""
        return self.name.replace("/", "_")

    def rebuilt(self, rebuild: str | None) -> Cell:
        """Return the cell with prices rebuilt from total returns, or as they are."""
        return replace(self, image=self.image.replace(rebuild=rebuild))


def cells_of(given: str | Cell | Iterable[str | Cell]) -> tuple[Cell, ...]:
    """Return the cells of a grid by its name, of one cell, or of several; each may be there once."""
    if isinstance(given, str):
        given = GRIDS.get(given, (given,))
    elif isinstance(given, Cell):
        given = (given,)
    cells = tuple(Cell.of(one) for one in given)
    names = [cell.folder for cell in cells]
    if not cells or len(set(names)) != len(names):
        raise ValueError(f"cells={[cell.name for cell in cells]}: give one or more, each once")
    return cells


def check_model(name: str) -> str:
    """Return a model's full name: ``cnn1d`` is short for ``cnn1d:image``."""
    full = f"{name}:image" if name in ("cnn1d", "logistic") else name
    if full not in MODELS:
        raise ValueError(
            f"there is no control {name!r}: choose from cnn1d, logistic, {', '.join(MODELS[1:])}"
        )
    return full


def model_title(name: str, short: bool = False) -> str:
    """Return what tables call a model; in short, the image's own scale goes without saying."""
    kind, _, scaling = name.partition(":")
    if kind == "cnn":
        return "CNN"
    title = "1-D CNN" if kind == "cnn1d" else "Logistic"
    return title if short and scaling == "image" else f"{title}, {SCALED[scaling]}"


def network(model: str, image: ImageSpec, channels: float, networks: Any = None) -> CNNSpec | SeriesSpec:
    """Return the network of a model for an image.

    Parameters
    ----------
    model : str
        One of `MODELS`.
    image : ImageSpec
    channels : float
        Share of the authors' channels that convolutions have.
    networks : mapping of (height, width) to CNNSpec, optional
        Networks to take for images in place of the authors'.
    """
    kind, _, scaling = model.partition(":")
    if kind == "cnn1d":
        spec = cnn1d(image.bars, scaling=scaling)
        blocks = tuple(replace(b, channels=max(1, round(b.channels * channels))) for b in spec.blocks)
        return spec.replace(blocks=blocks)
    if kind == "logistic":
        return logistic(image.bars, scaling=scaling)
    if networks and image.shape in networks:
        return networks[image.shape]
    fitting = [preset for preset in PRESETS.values() if (preset.height, preset.width) == image.shape]
    if fitting and image.style != "jkx":
        cnn = fitting[-1]
    else:
        depth = 5 if image.height <= 32 else 20 if image.height <= 64 else 60
        cnn = PRESETS[f"jkx{depth}"]
        if (cnn.height, cnn.width) != image.shape:
            cnn = cnn.replace(name=f"jkx{image.bars}", height=image.height, width=image.width)
    scaled = tuple(replace(b, channels=max(1, round(b.channels * channels))) for b in cnn.blocks)
    return cnn.replace(blocks=scaled)
