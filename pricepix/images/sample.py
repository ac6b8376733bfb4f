"""One image of a spec, drawn from simulated bars: what a spec looks like."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.columns import BAR
from pricepix.bars.panel import Panel
from pricepix.render.draw import render_rows
from pricepix.render.reasons import REASONS
from pricepix.samples.daily import simulate
from pricepix.spec import ImageSpec

__all__ = ["sample_image"]

_MOST_BARS: Final = 20_000


def sample_image(spec: ImageSpec, seed: int = 7) -> NDArray[np.uint8]:
    """Draw one window of simulated daily bars.

    Parameters
    ----------
    spec : ImageSpec
    seed : int
        Chooses the bars; the same seed gives the same image.

    Returns
    -------
    numpy.ndarray
        uint8 (height, width), 0 and 255.

    Raises
    ------
    ValueError
        The spec reaches back over more than 20,000 bars, or cannot draw these.
    """
    bars = spec.lookback + spec.history + 1
    if bars > _MOST_BARS:
        raise ValueError(f"no sample is drawn of a spec that reaches back over {bars:,} bars")
    table = simulate(
        1, max(bars, 20), seed=seed, halt_rate=0.0, split_rate=0.0, delist_rate=0.0, list_late=0.0
    )
    prices = np.ascontiguousarray(table.select(BAR).to_numpy())
    panel = Panel(
        prices,
        np.array([0, len(prices)]),
        np.array(["sample"]),
        np.arange(len(prices)) * 86_400_000_000_000,
        fields={"total_return": table["total_return"].fill_null(np.nan).to_numpy().copy()},
    )
    image = np.empty((1, *spec.shape), np.uint8)
    reason = np.zeros(1, np.uint8)
    render_rows(panel, np.array([len(prices) - 1]), spec, image, reason=reason, threads=1)
    if reason[0]:
        raise ValueError(f"the sample bars cannot be drawn: {REASONS[int(reason[0])]}")
    return image[0]
