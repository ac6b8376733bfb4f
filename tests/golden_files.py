"""What the golden files ask of us: the renderings they hold, and where their maker and we differ on purpose.

They were made by running other people's renderers: the JKX authors' drawer, CNN-for-Trading, ImageTrading.
Row 0 of every image is the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One file in one variant: what goes in, what must come out."""

    name: str
    ohlcv: np.ndarray
    ma: np.ndarray | None
    volume: bool
    images: np.ndarray
    valid: np.ndarray
    kind: np.ndarray
    at_limit: np.ndarray | None = None


VARIANTS = ("ohlc", "ohlc_ma", "ohlc_vol", "ohlc_ma_vol")


def cases(name: str, file: dict[str, np.ndarray]) -> Iterator[Case]:
    """All variants of one file, with the documented exceptions applied to its images and validity."""
    if name.startswith("imagetrading"):
        undefined = file["kind"] == "nan_ohl"  # a NaN cast to an integer: whatever came out means nothing
        keep = ~undefined
        yield Case(
            name, file["ohlcv"][keep], None, False, file["img"][keep], file["valid"][keep],
            file["kind"][keep], ~file["not_at_limit"][keep],
        )  # fmt: skip
        return
    for variant in VARIANTS:
        volume = "vol" in variant
        ma = file["ma"] if "ma" in variant else None
        images, valid, keep = file[f"img_{variant}"].copy(), file[f"valid_{variant}"], np.s_[:]
        if name.startswith("jkx"):
            # The drawer insists on a first close of 1, which we do not need; it left no image to compare.
            unneeded = np.char.startswith(file["kind"], "first_close") & ~valid
            keep = ~unneeded
            if volume:
                # The drawer paints one pixel for a volume of 0, which its pipeline never hands to it.
                positive = np.nanmax(np.nan_to_num(file["ohlcv"][:, :, 4]), axis=1, keepdims=True) > 0
                window, bar = np.nonzero((file["ohlcv"][:, :, 4] == 0) & positive & valid[:, None])
                assert len(window)
                assert (images[window, -1, 3 * bar + 1] == 255).all()
                images[window, -1, 3 * bar + 1] = 0
        yield Case(
            f"{name} {variant}", file["ohlcv"][keep], None if ma is None else ma[keep], volume, images[keep],
            valid[keep], file["kind"][keep],
        )  # fmt: skip
