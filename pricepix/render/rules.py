"""The drawing rules: scales, levels, line segments, and which windows cannot be drawn.

Every rule is a small compiled function of numbers. The CPU's kernels call them, and ``cuda_kernels.py`` compiles
the same functions for the GPU: there ``math.isnan`` and ``round`` exist in every release of Numba, while their
NumPy namesakes, ``min`` and ``max`` do not.

Products and sums stand exactly in the order of the pixel specification, in float64 and without fastmath: real
prices lie on a tick grid, so exact ties are common, and one rounding more or less moves a pixel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from pricepix.render.reasons import (
    CONSTANT_VOLUME,
    FLAT,
    FLAT_BARS,
    FLAT_FIELD,
    INFINITE,
    MISSING_PRICE,
    NO_PRICE,
    VALID,
)

# One alias for all kernels. The NumPy error model drops a branch at each division: 0/0 is NaN, not an exception.
jit = numba.njit(cache=True, nogil=True, error_model="numpy")

JKX, CNN_FOR_TRADING, IMAGE_TRADING = 0, 1, 2

OPEN, HIGH, LOW, CLOSE, VOLUME = 0, 1, 2, 3, 4

INK = 255

PIXELS, BITS, DRY = 0, 1, 2

# On a GPU: bits of a panel row's state (a bar of the window that ends there is at its up-limit; one is at its
# down-limit; a window ends there at all), and the reason code where no window ends.
UP, DOWN, WHOLE = 1, 2, 4

OUTSIDE = 255


class DrawParams(NamedTuple):
    """An ImageSpec in the integers that kernels take; lookback, history and averages count panel bars."""

    style: int
    pixel_chart: int
    per_field: int
    volume: int
    rebuild: int
    lookback: int
    aggregate: int
    bars: int
    height: int
    width: int
    price_height: int
    volume_height: int
    history: int
    partial_ma: int


class PanelArrays(NamedTuple):
    """What the kernels draw from: arrays with one row a panel bar, empty where the spec needs none."""

    bars: Any
    """float64 (rows, 5): open, high, low, close, volume."""
    total_return: Any
    """float64 (rows,)."""
    up: Any
    """bool (rows,): the bar is at its up-limit."""
    down: Any
    """bool (rows,): the bar is at its down-limit."""
    averages: Any
    """float64 (rows, n): moving averages that replace those of the closes."""


class WindowRows(NamedTuple):
    """Windows as int64 arrays (n,)."""

    first: Any
    """First panel row of the window's instrument."""
    last: Any
    """Panel row of the window's last bar."""
    dest: Any
    """Position of the window in the output."""


# ---- the rules: from prices to rows of pixels, one number at a time


@jit
def joint_scale(
    prices: int, lowest: float, highest: float, largest: float, params: DrawParams, up: bool, down: bool
) -> tuple[int, float, int]:
    """Reason code, pixels a price unit and lowest level of a window with one price scale.

    `prices` counts the prices that are not missing; `lowest` and `highest` are over all of them and the averages;
    `largest` is the largest volume, NaN if all are missing or none is drawn.
    """
    if prices == 0:
        return NO_PRICE, 0.0, 0
    if math.isinf(lowest) or math.isinf(highest) or math.isinf(largest):
        return INFINITE, 0.0, 0
    ppu = (params.price_height - 1.0) / (highest - lowest)
    # A range so small that its inverse overflows cannot be drawn either.
    if highest == lowest or math.isinf(ppu):
        if params.style != IMAGE_TRADING or not (up or down):
            return FLAT, 0.0, 0
        return VALID, 0.0, limit_level(params.price_height - 1, up)
    return VALID, ppu, 0


@jit
def price_level(price: float, lowest: float, ppu: float) -> int:
    """Subtract, then multiply, then round half to even."""
    return round((price - lowest) * ppu)


@jit
def limit_level(bottom: int, up: bool) -> int:
    """Level of a flat window: three quarters up the image at an up-limit, one quarter at a down-limit."""
    return (bottom * 3) // 4 if up else bottom // 4


@jit
def volume_scale(volume_height: int, largest: float) -> float:
    """Pixels a unit of volume; NaN where no volume can be drawn."""
    scale = volume_height / largest
    return np.nan if math.isinf(scale) else scale


@jit
def volume_rows(volume: float, scale: float) -> int:
    """Height of a volume bar."""
    exact = volume * scale
    if math.isnan(exact) or volume == 0.0:
        return 0
    rows = round(exact)
    # A traded volume stays visible however small it is.
    return rows if rows > 1 else 1


@jit
def segment_offsets(rise: int, column: int) -> tuple[int, int]:
    """First and last level, counted from its start, of a line in column 0..3, which climbs `rise` levels by 3.

    The closed form equals Pillow's ``ImageDraw.line(width=1)`` drawn from left to right.
    """
    if rise < 3:
        level = (2 * rise * column + 3) // 6
        return level, level
    # -(-n // 6) is the ceiling of n / 6.
    start = 0 if column == 0 else -((-(2 * column - 1) * rise) // 6)
    end = rise if column == 3 else -((-(2 * column + 1) * rise) // 6) - 1
    return start, end


@jit
def per_field_reason(prices: int, infinite: bool, flat: int, params: DrawParams, up: bool, down: bool) -> int:
    """Reason code in ImageTrading's own scale; `flat` counts the fields whose prices are all the same."""
    if infinite:
        return INFINITE
    if prices == 0:
        return NO_PRICE
    if prices < 4 * params.bars:
        return MISSING_PRICE
    if flat == 4:
        return VALID if up or down else FLAT
    return FLAT_FIELD if flat > 0 else VALID


@jit
def field_level(price: float, lowest: float, highest: float, bottom: int) -> int:
    """Level of a price in ImageTrading's own scale, truncated."""
    return int((price - lowest) / (highest - lowest) * bottom)


@jit
def cnn_for_trading_reason(
    prices: int,
    lowest: float,
    highest: float,
    volumes: int,
    smallest: float,
    largest: float,
    params: DrawParams,
) -> int:
    """Reason code in CNN-for-Trading's style, before its odd bars are counted; `prices`, `volumes` are counts."""
    if prices == 0:
        return NO_PRICE
    if math.isinf(lowest) or math.isinf(highest):
        return INFINITE
    if prices < 4 * params.bars:
        return MISSING_PRICE
    if params.volume:
        if volumes < params.bars:
            return CONSTANT_VOLUME
        if math.isinf(largest) or math.isinf(smallest):
            return INFINITE
        if smallest == largest:
            return CONSTANT_VOLUME
    return FLAT if highest == lowest else VALID


@jit
def is_odd_bar(open_: float, high: float, low: float, close: float) -> bool:
    """Whether CNN-for-Trading counts the bar as flat."""
    return (open_ + high + low + close) / open_ == 4.0


@jit
def odd_bars_reason(odd_bars: int, params: DrawParams) -> int:
    """Reason code of a window that can be drawn but for its odd bars."""
    return FLAT_BARS if odd_bars > params.bars // 5 else VALID


@jit
def truncation(params: DrawParams) -> tuple[float, float]:
    """Levels from the lowest to the highest price in CNN-for-Trading's style, and the level of the lowest."""
    if not params.volume:
        return params.height - 1.0, 0.0
    if params.height == 32:
        return 24.0, 7.0
    return 50.0, 13.0


@jit
def truncated_level(price: float, lowest: float, highest: float, span: float, base: float) -> int:
    """Level of a price in CNN-for-Trading's style."""
    level = (price - lowest) / (highest - lowest) * span
    # The comparison changes no value. It stands between the product and the sum so that a GPU compiler cannot fuse
    # them into one operation, with one rounding less.
    return int((level if level > 0.0 else 0.0) + base)


@jit
def truncated_volume_rows(volume: float, smallest: float, largest: float, volume_height: int) -> int:
    """Height of a volume bar in CNN-for-Trading's style."""
    return int((volume - smallest) / (largest - smallest) * volume_height)
