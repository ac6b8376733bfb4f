"""Where the networks of a cell look: Grad-CAM of every convolution on some images, as pictures in the page."""

from __future__ import annotations

import base64
import struct
import zlib
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import format_times
from pricepix.paper.context import Context
from pricepix.paper.plan import Plan
from pricepix.paper.results import CellResult
from pricepix.paper.tasks import RUN, Task, computing_threads

__all__ = ["HeatMaps", "heat_maps", "png"]

_IMAGES: Final = 3
"""Images of each kind: those of the highest and of the lowest scores."""


class HeatMaps(NamedTuple):
    """The maps of a cell, for the template."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[str]]]
    """What an image is, and its pictures: PNG as base64."""
    width: int
    height: int
    """Size at which pictures are shown."""


def heat_maps(context: Context, plan: Plan, result: CellResult) -> HeatMaps | None:
    """Map what raises the probability of a rise, in images of the highest and of the lowest scores of a cell.

    Of the first seed's network that scored each image, after Selvaraju et al. (2017). None without captum, and for
    networks without convolutions.
    """
    if find_spec("captum") is None or not len(result.window):
        return None
    from pricepix.factor.evaluation.attribution import grad_cam
    from pricepix.train import load_model

    images, score = context.images(result.cell), result.scores["cnn"]
    order = np.argsort(score, kind="stable")
    chosen = dict.fromkeys([*order[::-1][:_IMAGES].tolist(), *order[:_IMAGES].tolist()])
    stamps = format_times(result.time[list(chosen)], context.panel.tz)
    code = np.searchsorted(context.panel.offsets, result.row[list(chosen)], side="right") - 1
    rows: list[tuple[str, list[str]]] = []
    heads: list[str] = []
    models: dict[str, Any] = {}
    for place, stamp, instrument in zip(
        chosen, stamps, context.panel.instruments[code].tolist(), strict=True
    ):
        part = next(p for p in result.parts if p.first <= result.time[place] <= p.last)
        if part.name not in models:
            task = Task(result.cell, result.split, part, "cnn", 0)
            models[part.name] = load_model(context.folder / task.path / RUN)
        network = models[part.name]
        if not len(getattr(network, "blocks", ())):
            return None
        image = np.asarray(images.read(np.array([result.window[place]])))
        # What threads add up in another order would be another page.
        with computing_threads(context.training.threads):
            maps = grad_cam(network, image, layers="all")
        heads = ["image", *(f"layer {name}" for name in maps)]
        pictures = [
            png(image[0]),
            *(png(np.rint(255 * found[0]).astype(np.uint8)) for found in maps.values()),
        ]
        rows.append((f"{instrument}, {stamp}, score {score[place]:.3f}", pictures))
    height, width = result.cell.image.shape
    scale = 96 / height
    return HeatMaps(f"Grad-CAM by layer, {result.cell.name}", heads, rows, round(width * scale), 96)


def png(pixels: NDArray[np.uint8]) -> str:
    """Return a grey picture, uint8 (height, width), as PNG in base64: the same bytes from the same pixels."""
    height, width = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    whole = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + whole).decode("ascii")
