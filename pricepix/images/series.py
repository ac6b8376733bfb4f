"""Series of prices and volumes behind a chart, for the baselines: 1-D network and logistic regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice
from pricepix.bars.panel import Panel
from pricepix.render.draw import draw_params, panel_arrays
from pricepix.render.window_bars import tabulate, tabulate_rebuilt
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SCALINGS", "Scaling", "window_series"]

Scaling = Literal["image", "return", "volatility"]
SCALINGS: tuple[Scaling, ...] = ("image", "return", "volatility")

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_BLOCK_ROWS = 1 << 16
_NO_MA = np.zeros((0, 0))


def window_series(
    panel: Panel,
    spec: ImageSpec,
    row: Rows,
    scaling: Scaling = "image",
) -> NDArray[np.float32]:
    """Series of the bars that windows draw.

    Parameters
    ----------
    panel : Panel
    spec : ImageSpec
        Gives the lookback, the bars merged into one, whether prices are rebuilt from total returns, and the moving
        average: the longest that it draws, or else one over the lookback.
    row : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.
    scaling : {"image", "return", "volatility"}
        ``"image"``: prices and moving average scaled together so that the window's lowest is 0 and its highest 1,
        and volume in the same way by itself, as the image shows them. ``"return"``: prices over the window's first
        close, less 1, and volume over its mean in the window, less 1. ``"volatility"``: those of prices divided by
        the standard deviation of the window's returns from close to close.

    Returns
    -------
    numpy.ndarray
        float32 (n, 6, spec.bars): open, high, low, close, moving average and volume. NaN where a value is missing,
        or does not vary where it must.

    Notes
    -----
    ``"image"`` is the authors' ``image_scale`` for their 1-D network. Their paper describes the other two, without
    the rule for volumes or for the volatility.

    Raises
    ------
    ValueError
        If a window begins before its instrument does, or the panel has no total returns to rebuild prices from.
    """
    choice(scaling, "scaling", SCALINGS)
    out = np.empty((len(row), 6, spec.bars), np.float32)
    if not len(row):
        return out
    first = panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1]
    if (row - first < spec.lookback - 1).any():
        raise ValueError(
            f"a window of {spec.lookback} bars begins before its instrument does; take rows of a WindowIndex"
        )
    plain = spec.aggregate == 1 and spec.rebuild is None
    a = 0
    for prices, volume in (_plain if plain else _drawn)(panel, spec, row, first):
        part = slice(a, a + len(prices))
        out[part, :5], out[part, 5] = _scaled(prices, volume, scaling)
        a = part.stop
    return out


def _plain(panel: Panel, spec: ImageSpec, row: Rows, first: Rows) -> Iterator[tuple[Floats, Floats]]:
    """Yield prices (b, 5, bars) and volumes (b, bars) of windows that draw the panel's bars as they are."""
    lookback = spec.lookback
    window = max(spec.ma) if spec.ma else lookback
    reach = np.arange(-(lookback + window - 2), 1)
    for a in range(0, len(row), _BLOCK_ROWS):
        part = slice(a, a + _BLOCK_ROWS)
        rows = row[part, None] + reach
        close = panel.bars[np.maximum(rows, 0), 3]
        close[rows < first[part, None]] = np.nan
        mean = np.lib.stride_tricks.sliding_window_view(close, window, axis=1).mean(axis=-1)
        bars = panel.bars[rows[:, -lookback:]]
        prices = np.stack([bars[..., 0], bars[..., 1], bars[..., 2], bars[..., 3], mean], axis=1)
        yield prices, bars[..., 4]


def _drawn(panel: Panel, spec: ImageSpec, row: Rows, first: Rows) -> Iterator[tuple[Floats, Floats]]:
    """Yield the same of windows whose bars are merged or rebuilt, by the rules that draw them."""
    # The rules of "jkx" hold for every style: others differ in what they draw, not in the bars.
    spec = ImageSpec(
        spec.lookback, 32, ma=(max(spec.ma) if spec.ma else spec.lookback,), ma_warmup="omit", volume=True,
        aggregate=spec.aggregate, rebuild=spec.rebuild,
    )  # fmt: skip
    params, windows, bars = draw_params(spec), np.array(spec.ma, np.int64), spec.bars
    arrays = panel_arrays(panel, spec)
    whole = np.empty((0, 0))
    if spec.rebuild is None:
        whole = np.empty((6, len(panel)))
        tabulate(panel.bars, panel.offsets, _NO_MA, windows, params, whole)
    shown = np.arange(1 - bars, 1) * spec.aggregate
    for a in range(0, len(row), _BLOCK_ROWS):
        own, begin = row[a : a + _BLOCK_ROWS], first[a : a + _BLOCK_ROWS]
        if spec.rebuild is None:
            table = whole[:, own[:, None] + shown].swapaxes(0, 1)
        else:
            flat = np.empty((6, len(own) * bars))
            tabulate_rebuilt(panel.bars, arrays.total_return, begin, own, windows, params, flat)
            table = flat.reshape(6, len(own), bars).swapaxes(0, 1)
        # The table has the volume before the moving average.
        yield table[:, [0, 1, 2, 3, 5]], table[:, 4]


def _scaled(prices: Floats, volume: Floats, scaling: str) -> tuple[Floats, Floats]:
    if scaling == "image":
        return _unit(prices, (1, 2)), _unit(volume, (1,))
    close = prices[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = prices / close[:, :1, None] - 1.0
        mean = np.where(np.isfinite(volume), volume, 0.0).sum(axis=1) / np.isfinite(volume).sum(axis=1)
        traded = volume / np.where(mean > 0, mean, np.nan)[:, None] - 1.0
        if scaling == "volatility":
            step = close[:, 1:] / close[:, :-1] - 1.0
            known = np.isfinite(step)
            count = known.sum(axis=1)
            centre = np.where(known, step, 0.0).sum(axis=1) / count
            square = np.where(known, (step - centre[:, None]) ** 2, 0.0).sum(axis=1) / (count - 1)
            sd = np.sqrt(np.where((count > 1) & (square > 0), square, np.nan))
            moved /= sd[:, None, None]
    return moved, traded


def _unit(values: Floats, axes: tuple[int, ...]) -> Floats:
    low = np.min(np.where(np.isfinite(values), values, np.inf), axis=axes, keepdims=True)
    high = np.max(np.where(np.isfinite(values), values, -np.inf), axis=axes, keepdims=True)
    span = high - low
    return (values - low) / np.where(span > 0, span, np.nan)
