"""A slow drawer written from the pixel specification alone: numpy for numbers, Pillow for lines.

It imports nothing of pricepix, so that the two can be compared. Clarity before speed: one window at a time,
and one pixel at a time where that reads better. While it is drawn a picture has row 0 at the BOTTOM, as the
specification counts levels from there; what is handed out has row 0 at the top.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

WHITE = 255


# ---- panel arithmetic


def rebuild_returns(rows: np.ndarray, lookback: int, k: int = 1) -> np.ndarray:
    """Bars (n // k, 5) rebuilt from raw rows (n, 6): open, high, low, close, volume, return.

    The window is the last `lookback` rows, what stands before it is the history of the moving averages. Every
    k rebuilt bars are merged into one; at last the close of the window's first bar is scaled to 1. The sign
    of a price or volume means nothing (CRSP marks bid/ask midpoints by a minus).
    """
    bars = np.full((len(rows), 5), np.nan)
    level = 1.0  # the last level that was not missing
    for i, (open_, high, low, close, volume, ret) in enumerate(rows):
        bars[i, 4] = abs(volume) if volume != 0.0 else np.nan
        if i == 0:  # the level starts at 1; a return into the first row means nothing
            bars[0, :4] = abs(open_) / abs(close), abs(high) / abs(close), abs(low) / abs(close), 1.0
            continue
        bars[i, 3] = (1.0 + ret) * level
        bars[i, 0] = bars[i, 3] / abs(close) * abs(open_)
        bars[i, 1] = bars[i, 3] / abs(close) * abs(high)
        bars[i, 2] = bars[i, 3] / abs(close) * abs(low)
        if not math.isnan(bars[i, 3]):
            level = bars[i, 3]
    if k > 1:
        bars = aggregate(bars, k)
    bars[:, :4] *= 1.0 / bars[len(bars) - lookback // k, 3]
    return bars


def aggregate(bars: np.ndarray, k: int) -> np.ndarray:
    """Merge every k bars into one, counted back from the last; an incomplete first group is left out.

    Open of the first bar and close of the last as they are; highest high, lowest low and sum of the volumes
    over those that are there.
    """
    bars = np.asarray(bars, dtype=float)
    merged = []
    for end in range(len(bars), k - 1, -k):
        group = bars[end - k : end]

        def over(values, how):
            kept = [v for v in values if not math.isnan(v)]
            return how(kept) if kept else np.nan

        total = over(group[:, 4], _ordered_sum)
        merged.append([group[0, 0], over(group[:, 1], max), over(group[:, 2], min), group[-1, 3], total])
    return np.array(merged[::-1], dtype=float).reshape(-1, 5)


def _ordered_sum(values) -> float:
    total = 0.0
    for v in values:
        total += float(v)
    return total


def moving_average(close: np.ndarray, n: int, min_count: int | None = None) -> np.ndarray:
    """Mean of the last n closes at each bar, summed oldest first.

    Missing unless all n are there; with `min_count` the mean of those that are there, if they are at least so
    many (cnn_for_trading: 1).
    """
    out = np.full(len(close), np.nan)
    for i in range(len(close)):
        if min_count is None:
            if i >= n - 1:
                out[i] = _ordered_sum(close[i - n + 1 : i + 1]) / n  # a missing close makes the sum missing
        else:
            kept = [c for c in close[max(0, i - n + 1) : i + 1] if not math.isnan(c)]
            if len(kept) >= min_count:
                out[i] = _ordered_sum(kept) / len(kept)
    return out


def moving_average_rebuilt(close: np.ndarray, n: int) -> np.ndarray:
    """Moving average of rebuilt closes, as the authors' pipeline computes it.

    One running sum over all rows given: each close is added and, n rows later, taken away again, with Kahan's
    correction kept apart for the two. This is pandas' rolling sum; divided by n. Missing unless n closes in a
    row are there.
    """
    out = np.full(len(close), np.nan)
    total = added_too_much = removed_too_much = 0.0
    count, run, previous = 0, 0, math.nan
    for i in range(len(close)):
        if i >= n and not math.isnan(close[i - n]):
            step = -close[i - n] - removed_too_much
            new = total + step
            removed_too_much = new - total - step
            total = new
            count -= 1
        if not math.isnan(close[i]):
            step = close[i] - added_too_much
            new = total + step
            added_too_much = new - total - step
            total = new
            count += 1
            run = run + 1 if close[i] == previous else 1
            previous = close[i]
        if count == n:
            # n equal closes: their sum exactly, however the running sum has drifted
            out[i] = (previous * n if run >= n else total) / n
    return close.astype(float) if n == 1 else out


# ---- drawing


def draw(
    ohlcv,
    ma=None,
    *,
    style: str = "jkx",
    height: int,
    chart: str = "bar",
    volume: bool = False,
    scale: str = "joint",
    at_limit=None,
):
    """Image (H, 3L) uint8, row 0 at the top, and reason "valid"; or None and the reason there is no image.

    ohlcv (L, 5): open, high, low, close, volume. ma (L,) or (L, n): the averages to draw. at_limit (2, L)
    bool: bars at their up limit, bars at their down limit (image_trading only).
    """
    ohlcv = np.abs(np.asarray(ohlcv, dtype=np.float64))  # the sign of a price or volume means nothing
    prices, volumes = ohlcv[:, :4], ohlcv[:, 4]
    bars = len(ohlcv)
    ma = np.empty((bars, 0)) if ma is None else np.abs(np.asarray(ma, dtype=np.float64)).reshape(bars, -1)

    if style == "cnn_for_trading":
        return _draw_cnn_for_trading(prices, volumes, ma, height, chart, volume)
    assert style in ("jkx", "image_trading")

    # -- is there an image at all?
    if np.isnan(prices).all():
        return None, "no_price"
    if np.isinf(prices).any() or np.isinf(ma).any() or (volume and np.isinf(volumes).any()):
        return None, "infinite"

    vh = height // 5 if volume else 0
    ph = height - vh - 1 if volume else height

    # -- levels: a whole number 0..ph-1 for every value that exists
    if scale == "joint":
        values = np.concatenate([prices.ravel(), ma.ravel()])
        low, high = np.nanmin(values), np.nanmax(values)
        level = _limit_level(at_limit, ph) if style == "image_trading" else None
        with np.errstate(over="ignore", divide="ignore"):
            per_unit = (ph - 1.0) / (high - low)
        if np.isfinite(per_unit):  # it is not for max == min, nor for a range whose reciprocal overflows

            def to_level(p, field):
                return int(np.rint((p - low) * per_unit))  # half to even

        elif level is None:
            return None, "flat"
        else:

            def to_level(p, field):
                return level
    else:
        assert scale == "per_field"
        assert style == "image_trading"
        assert ma.shape[1] == 0
        if np.isnan(prices).any():
            return None, "missing_price"
        lows, highs = prices.min(axis=0), prices.max(axis=0)
        flat = lows == highs
        level = _limit_level(at_limit, ph)
        if flat.all() and level is None:
            return None, "flat"
        if flat.any() and not flat.all():
            return None, "flat_field"

        def to_level(p, field):
            if flat.all():
                return level
            return int((p - lows[field]) / (highs[field] - lows[field]) * (ph - 1))  # truncated

    # -- price panel, row 0 at the bottom
    canvas = Image.new("L", (3 * bars, ph), 0)
    pixel = canvas.load()
    pen = ImageDraw.Draw(canvas)

    for line in ma.T:
        there = ~np.isnan(line)
        if chart == "bar":
            for d in range(bars - 1):
                if there[d] and there[d + 1]:
                    ends = [3 * d + 1, to_level(line[d], None), 3 * d + 4, to_level(line[d + 1], None)]
                    pen.line(ends, fill=WHITE, width=1)
            if there[bars - 1]:
                pixel[3 * bars - 2, to_level(line[bars - 1], None)] = WHITE
        else:
            for d in range(bars):
                if there[d]:
                    pixel[3 * d + 1, to_level(line[d], None)] = WHITE

    for d, (open_, high_, low_, close) in enumerate(prices):
        if math.isnan(high_) or math.isnan(low_):
            continue
        top, bottom = to_level(high_, 1), to_level(low_, 2)
        if chart == "bar":
            for y in range(bottom, top + 1):
                pixel[3 * d + 1, y] = WHITE
        else:
            pixel[3 * d + 1, bottom] = WHITE
            pixel[3 * d + 1, top] = WHITE
        if not math.isnan(open_):
            y = to_level(open_, 0)
            pixel[3 * d, y] = WHITE
            if style == "jkx":
                pixel[3 * d + 1, y] = WHITE
        if not math.isnan(close):
            pixel[3 * d + 2, to_level(close, 3)] = WHITE

    picture = np.zeros((height, 3 * bars), dtype=np.uint8)
    picture[height - ph :] = np.asarray(canvas)

    # -- volume panel: vh rows at the bottom, then one blank row
    if volume and not np.isnan(volumes).all():
        vmax = np.nanmax(volumes)
        with np.errstate(over="ignore", divide="ignore"):
            per_volume = vh / vmax
        if vmax > 0 and np.isfinite(per_volume):
            for d, v in enumerate(volumes):
                if math.isnan(v) or v == 0:
                    continue
                tall = max(1, int(np.rint(v * per_volume)))
                bottom = 0 if chart == "bar" else tall - 1
                picture[bottom:tall, 3 * d + 1] = WHITE
    return picture[::-1].copy(), "valid"


def _limit_level(at_limit, ph):
    """Level of everything in a flat window: 3/4 of the range if any bar is at its up limit, else 1/4 if any
    bar is at its down limit, truncated; else None."""
    if at_limit is None:
        return None
    up, down = np.asarray(at_limit, dtype=bool)
    if up.any():
        return int(0.75 * (ph - 1))
    if down.any():
        return int(0.25 * (ph - 1))
    return None


def _draw_cnn_for_trading(prices, volumes, ma, height, chart, volume):
    assert chart == "bar"
    bars = len(prices)
    if np.isnan(prices).all():
        return None, "no_price"
    drawn = np.concatenate([prices.ravel(), ma[~np.isnan(ma)]])
    if np.isinf(drawn).any():
        return None, "infinite"
    if np.isnan(drawn).any():
        return None, "missing_price"
    if volume and np.isnan(volumes).any():
        return None, "constant_volume"
    if volume and np.isinf(volumes).any():
        return None, "infinite"
    if volume and volumes.min() == volumes.max():
        return None, "constant_volume"
    low, high = drawn.min(), drawn.max()
    if low == high:
        return None, "flat"
    # the peer's test for a bar without trades; it also hits bars whose open is their mean
    with np.errstate(divide="ignore", invalid="ignore"):
        fours = [(o + h + lo + c) / o == 4.0 for o, h, lo, c in prices]
    if sum(fours) > bars // 5:
        return None, "skipped_flat_bars"

    def to_level(p):
        x = (p - low) / (high - low)
        if not volume:
            return int(x * (height - 1))
        vh = height // 5
        ph = height - vh - 1
        return int(x * (ph - 1) + (vh + 1))

    picture = np.zeros((height, 3 * bars), dtype=np.uint8)
    for d, (open_, high_, low_, close) in enumerate(prices):
        picture[to_level(open_), 3 * d] = WHITE
        picture[to_level(low_) : to_level(high_) + 1, 3 * d + 1] = WHITE  # nothing if high < low
        picture[to_level(close), 3 * d + 2] = WHITE
        for value in ma[d]:
            if not math.isnan(value):
                picture[to_level(value), 3 * d : 3 * d + 2] = WHITE
        if volume:
            share = (volumes[d] - volumes.min()) / (volumes.max() - volumes.min())
            picture[0 : int(share * (height // 5 - 1)), 3 * d + 1] = WHITE
    return picture[::-1].copy(), "valid"
