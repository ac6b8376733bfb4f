"""The drawing rules: scales, levels, segments, and which bars cannot be drawn, as compiled functions."""

from __future__ import annotations

import math
from typing import NamedTuple

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

parallel_jit = numba.njit(cache=True, parallel=True, error_model="numpy")

JKX, CNN_FOR_TRADING, IMAGE_TRADING = 0, 1, 2

OPEN, HIGH, LOW, CLOSE, VOLUME = 0, 1, 2, 3, 4

INK = 255

PIXELS, BITS, DRY = 0, 1, 2

# On a GPU: bits of a panel row's state (some bar of the window that ends there is at its up-limit, at its
# down-limit; there is such a window at all), and the reason code where there is none.
UP, DOWN, WHOLE = 1, 2, 4

OUTSIDE = 255


class Drawing(NamedTuple):
    """An ImageSpec in the integers that kernels take; all windows count panel bars."""

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


# ---- the rules: from prices to rows of pixels, one number at a time


@jit
def joint_scale(
    prices: int, lowest: float, highest: float, largest: float, drawing: Drawing, up: bool, down: bool
) -> tuple[int, float, int]:
    """Reason code, pixels a price unit and lowest level of a window with one price scale.

    `prices` counts the prices that are there; `lowest` and `highest` are over all of them and the averages;
    `largest` is the largest volume, NaN if there is none or none is drawn.
    """
    if prices == 0:
        return NO_PRICE, 0.0, 0
    if math.isinf(lowest) or math.isinf(highest) or math.isinf(largest):
        return INFINITE, 0.0, 0
    ppu = (drawing.price_height - 1.0) / (highest - lowest)
    # A range so small that its inverse overflows can not be drawn either.
    if highest == lowest or math.isinf(ppu):
        if drawing.style != IMAGE_TRADING or not (up or down):
            return FLAT, 0.0, 0
        return VALID, 0.0, limit_level(drawing.price_height - 1, up)
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
    tall = volume * scale
    if math.isnan(tall) or volume == 0.0:
        return 0
    rows = round(tall)
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
def per_field_reason(prices: int, infinite: bool, flat: int, drawing: Drawing, up: bool, down: bool) -> int:
    """Reason code in ImageTrading's own scale; `flat` counts the fields whose prices are all the same."""
    if infinite:
        return INFINITE
    if prices == 0:
        return NO_PRICE
    if prices < 4 * drawing.bars:
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
    drawing: Drawing,
) -> int:
    """Reason code in CNN-for-Trading's style, before its odd bars are counted; `prices`, `volumes` are counts."""
    if prices == 0:
        return NO_PRICE
    if math.isinf(lowest) or math.isinf(highest):
        return INFINITE
    if prices < 4 * drawing.bars:
        return MISSING_PRICE
    if drawing.volume:
        if volumes < drawing.bars:
            return CONSTANT_VOLUME
        if math.isinf(largest) or math.isinf(smallest):
            return INFINITE
        if smallest == largest:
            return CONSTANT_VOLUME
    return FLAT if highest == lowest else VALID


@jit
def is_odd_bar(open_: float, high: float, low: float, close: float) -> bool:
    """Whether CNN-for-Trading takes the bar for a flat one."""
    return (open_ + high + low + close) / open_ == 4.0


@jit
def odd_bars_reason(odd_bars: int, drawing: Drawing) -> int:
    """Reason code of a window that has nothing else against it."""
    return FLAT_BARS if odd_bars > drawing.bars // 5 else VALID


@jit
def truncation(drawing: Drawing) -> tuple[float, float]:
    """Levels from the lowest to the highest price in CNN-for-Trading's style, and the level of the lowest."""
    if not drawing.volume:
        return drawing.height - 1.0, 0.0
    if drawing.height == 32:
        return 24.0, 7.0
    return 50.0, 13.0


@jit
def truncated_level(price: float, lowest: float, highest: float, span: float, base: float) -> int:
    """Level of a price in CNN-for-Trading's style."""
    level = (price - lowest) / (highest - lowest) * span
    # The comparison changes no number. It stands between the product and the sum so that no compiler for a GPU
    # makes one operation of them, with one rounding less.
    return int((level if level > 0.0 else 0.0) + base)


@jit
def truncated_volume_rows(volume: float, smallest: float, largest: float, volume_height: int) -> int:
    """Height of a volume bar in CNN-for-Trading's style."""
    return int((volume - smallest) / (largest - smallest) * volume_height)
