"""Series of prices and volumes behind a chart, for networks that take numbers and not images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.spec import ImageSpec

__all__ = ["window_series"]

_BLOCK_ROWS = 1 << 16


def window_series(panel: Panel, spec: ImageSpec, row: NDArray[np.int64]) -> NDArray[np.float32]:
    """Series of windows in the scale of their image.

    Parameters
    ----------
    panel : Panel
    spec : ImageSpec
        Gives the lookback and the moving average: the longest that it draws, or else one over the lookback.
    row : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.

    Returns
    -------
    numpy.ndarray
        float32 (n, 6, lookback): open, high, low, close and moving average, scaled together so that the
        window's lowest is 0 and its highest 1, and volume, scaled in the same way by itself. NaN where a value
        is missing, or a volume is constant.

    Notes
    -----
    The scale is the authors' ``image_scale`` for their 1-D network.

    Raises
    ------
    ValueError
        If the spec merges bars or rebuilds prices, which series do not.
    """
    if spec.aggregate != 1 or spec.rebuild is not None:
        raise ValueError(
            f"spec has aggregate={spec.aggregate}, rebuild={spec.rebuild!r}; "
            "series need aggregate=1 and rebuild=None"
        )
    lookback, window = spec.lookback, max(spec.ma) if spec.ma else spec.lookback
    out = np.empty((len(row), 6, lookback), np.float32)
    if not len(row):
        return out
    first = panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1]
    if (row - first < lookback - 1).any():
        raise ValueError(
            f"a window of {lookback} bars begins before its instrument does; take rows of a WindowIndex"
        )
    reach = np.arange(-(lookback + window - 2), 1)
    for a in range(0, len(row), _BLOCK_ROWS):
        part = slice(a, a + _BLOCK_ROWS)
        rows = row[part, None] + reach
        close = panel.bars[np.maximum(rows, 0), 3]
        close[rows < first[part, None]] = np.nan
        mean = np.lib.stride_tricks.sliding_window_view(close, window, axis=1).mean(axis=-1)
        bars = panel.bars[rows[:, -lookback:]]
        prices = np.stack([bars[..., 0], bars[..., 1], bars[..., 2], bars[..., 3], mean], axis=1)
        out[part, :5] = _unit(prices, (1, 2))
        out[part, 5] = _unit(bars[..., 4], (1,))
    return out


def _unit(values: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    low = np.min(np.where(np.isfinite(values), values, np.inf), axis=axes, keepdims=True)
    high = np.max(np.where(np.isfinite(values), values, -np.inf), axis=axes, keepdims=True)
    span = high - low
    return (values - low) / np.where(span > 0, span, np.nan)
