"""The plain kernels: draw a window pixel by pixel, and two drivers over many windows.

They draw every spec, and what they draw is the definition that ``fast.py`` and the GPU must reproduce. Which pixel a
price becomes is decided in ``rules.py``; which prices a window has, in ``window_bars.py``.

Nothing here checks its input or allocates per image; what a kernel needs comes in as arrays and scalars. Rows of an
image count from the top, price levels `y` from the bottom of the price area.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pricepix.render.bits import pack_image
from pricepix.render.reasons import VALID
from pricepix.render.rules import (
    BITS,
    CLOSE,
    CNN_FOR_TRADING,
    DRY,
    HIGH,
    INK,
    JKX,
    LOW,
    OPEN,
    PIXELS,
    VOLUME,
    DrawParams,
    PanelArrays,
    WindowRows,
    cnn_for_trading_reason,
    field_level,
    is_odd_bar,
    jit,
    joint_scale,
    limit_level,
    odd_bars_reason,
    per_field_reason,
    price_level,
    segment_offsets,
    truncated_level,
    truncated_volume_rows,
    truncation,
    volume_rows,
    volume_scale,
)
from pricepix.render.window_bars import merge, moving_average, prepare_rebuilt

# ---- one window, pixel by pixel


@jit
def draw_segment(image: Any, column: int, y0: int, y1: int, bottom: int) -> None:
    """Draw the line from (column, y0) to (column + 3, y1); level 0 lies in row `bottom`."""
    rise = abs(y1 - y0)
    sign = 1 if y1 >= y0 else -1
    for c in range(4):
        start, end = segment_offsets(rise, c)
        for offset in range(start, end + 1):
            image[bottom - (y0 + sign * offset), column + c] = INK


@jit
def _extremes(bars: Any, ma: Any, count: int) -> tuple[float, float, int]:
    """Lowest and highest price of the window, averages included, and how many prices there are."""
    lowest, highest = np.inf, -np.inf
    prices = 0
    for field in range(4):
        for d in range(count):
            p = bars[field, d]
            if not np.isnan(p):
                prices += 1
                lowest = min(lowest, p)
                highest = max(highest, p)
    for k in range(ma.shape[0]):
        for d in range(count):
            p = ma[k, d]
            if not np.isnan(p):
                lowest = min(lowest, p)
                highest = max(highest, p)
    return lowest, highest, prices


@jit
def _largest_volume(bars: Any, count: int) -> float:
    """Largest volume that is not missing; NaN if all are."""
    largest = np.nan
    for d in range(count):
        v = bars[VOLUME, d]
        if not np.isnan(v) and not v <= largest:
            largest = v
    return largest


@jit
def _draw_volume(bars: Any, params: DrawParams, largest: float, image: Any) -> None:
    """Volume panel of the styles jkx and image_trading."""
    scale = volume_scale(params.volume_height, largest)
    if np.isnan(scale):
        return
    for d in range(params.bars):
        rows = volume_rows(bars[VOLUME, d], scale)
        top = params.height - rows
        if params.pixel_chart:
            if rows > 0:
                image[top, 3 * d + 1] = INK
        else:
            for row in range(top, params.height):
                image[row, 3 * d + 1] = INK


@jit
def _draw_joint(bars: Any, ma: Any, params: DrawParams, up: bool, down: bool, dry: bool, image: Any) -> int:
    """Styles jkx and image_trading with one price scale."""
    count = params.bars
    lowest, highest, prices = _extremes(bars, ma, count)
    largest = _largest_volume(bars, count) if params.volume else np.nan
    reason, ppu, base = joint_scale(prices, lowest, highest, largest, params, up, down)
    if reason != VALID or dry:
        return reason
    bottom = params.price_height - 1
    floor = bottom - base
    open_columns = 2 if params.style == JKX else 1
    for d in range(count):
        high, low = bars[HIGH, d], bars[LOW, d]
        if np.isnan(high) or np.isnan(low):
            continue
        y_high = price_level(high, lowest, ppu)
        y_low = price_level(low, lowest, ppu)
        if params.pixel_chart:
            image[floor - y_high, 3 * d + 1] = INK
            image[floor - y_low, 3 * d + 1] = INK
        else:
            for y in range(y_low, y_high + 1):
                image[floor - y, 3 * d + 1] = INK
        price = bars[OPEN, d]
        if not np.isnan(price):
            row = floor - price_level(price, lowest, ppu)
            for column in range(3 * d, 3 * d + open_columns):
                image[row, column] = INK
        price = bars[CLOSE, d]
        if not np.isnan(price):
            image[floor - price_level(price, lowest, ppu), 3 * d + 2] = INK
    for k in range(ma.shape[0]):
        for d in range(count):
            if np.isnan(ma[k, d]):
                continue
            y0 = price_level(ma[k, d], lowest, ppu)
            if d == count - 1 or params.pixel_chart:
                image[floor - y0, 3 * d + 1] = INK
            elif not np.isnan(ma[k, d + 1]):
                y1 = price_level(ma[k, d + 1], lowest, ppu)
                draw_segment(image, 3 * d + 1, y0, y1, floor)
    if params.volume:
        _draw_volume(bars, params, largest, image)
    return VALID


@jit
def _draw_per_field(bars: Any, params: DrawParams, up: bool, down: bool, dry: bool, image: Any) -> int:
    """ImageTrading's own scale: open, high, low and close each by their own range, truncated."""
    count = params.bars
    bottom = params.height - 1
    prices = 0
    flat = 0
    infinite = False
    for field in range(4):
        lowest, highest = np.inf, -np.inf
        for d in range(count):
            p = bars[field, d]
            if not np.isnan(p):
                prices += 1
                infinite |= np.isinf(p)
                lowest = min(lowest, p)
                highest = max(highest, p)
        flat += highest == lowest
    reason = per_field_reason(prices, infinite, flat, params, up, down)
    if reason != VALID or dry:
        return reason
    if flat == 4:
        level = limit_level(bottom, up)
        for column in range(params.width):
            image[bottom - level, column] = INK
        return VALID
    # Levels replace the prices, which are not needed after this.
    for field in range(4):
        lowest, highest = np.inf, -np.inf
        for d in range(count):
            lowest = min(lowest, bars[field, d])
            highest = max(highest, bars[field, d])
        for d in range(count):
            bars[field, d] = field_level(bars[field, d], lowest, highest, bottom)
    for d in range(count):
        image[bottom - int(bars[OPEN, d]), 3 * d] = INK
        for y in range(int(bars[LOW, d]), int(bars[HIGH, d]) + 1):
            image[bottom - y, 3 * d + 1] = INK
        image[bottom - int(bars[CLOSE, d]), 3 * d + 2] = INK
    return VALID


@jit
def _draw_cnn_for_trading(bars: Any, ma: Any, params: DrawParams, dry: bool, image: Any) -> int:
    """CNN-for-Trading's picture: truncated levels, the average as a dash of two pixels."""
    count = params.bars
    bottom = params.height - 1
    lowest, highest, prices = _extremes(bars, ma, count)
    smallest, largest = np.inf, -np.inf
    volumes = 0
    if params.volume:
        for d in range(count):
            v = bars[VOLUME, d]
            if not np.isnan(v):
                volumes += 1
                smallest = min(smallest, v)
                largest = max(largest, v)
    reason = cnn_for_trading_reason(prices, lowest, highest, volumes, smallest, largest, params)
    if reason != VALID:
        return reason
    odd_bars = 0
    for d in range(count):
        odd_bars += is_odd_bar(bars[OPEN, d], bars[HIGH, d], bars[LOW, d], bars[CLOSE, d])
    reason = odd_bars_reason(odd_bars, params)
    if reason != VALID or dry:
        return reason
    span, base = truncation(params)
    for d in range(count):
        image[bottom - truncated_level(bars[OPEN, d], lowest, highest, span, base), 3 * d] = INK
        y_low = truncated_level(bars[LOW, d], lowest, highest, span, base)
        y_high = truncated_level(bars[HIGH, d], lowest, highest, span, base)
        for y in range(y_low, y_high + 1):
            image[bottom - y, 3 * d + 1] = INK
        image[bottom - truncated_level(bars[CLOSE, d], lowest, highest, span, base), 3 * d + 2] = INK
        for k in range(ma.shape[0]):
            if not np.isnan(ma[k, d]):
                row = bottom - truncated_level(ma[k, d], lowest, highest, span, base)
                image[row, 3 * d] = INK
                image[row, 3 * d + 1] = INK
        if params.volume:
            rows = truncated_volume_rows(bars[VOLUME, d], smallest, largest, params.volume_height)
            for row in range(params.height - rows, params.height):
                image[row, 3 * d + 1] = INK
    return VALID


@jit
def draw_window(bars: Any, ma: Any, params: DrawParams, up: bool, down: bool, dry: bool, image: Any) -> int:
    """Draw one window.

    `bars` float64 (5, bars) in the order of the panel's columns, `ma` float64 (n, bars), both scratch that may
    be overwritten; `up`, `down`: some bar of the window sits at its limit; `image` uint8 (height, width).
    Returns the reason code; an invalid window leaves the image blank. A `dry` run finds only the reason and
    does not touch the image.
    """
    if not dry:
        image[:, :] = 0
    if params.style == CNN_FOR_TRADING:
        return _draw_cnn_for_trading(bars, ma, params, dry, image)
    if params.per_field:
        return _draw_per_field(bars, params, up, down, dry, image)
    return _draw_joint(bars, ma, params, up, down, dry, image)


@jit
def _any_flag(flags: Any, start: int, stop: int) -> bool:
    found = False
    for i in range(start, min(stop, flags.shape[0])):
        found |= flags[i]
    return found


@jit
def render_task(
    arrays: PanelArrays, windows: Any, params: DrawParams, first: int, rows: Any, dest: Any, out: Any, mode: int,
    reason: Any,
) -> None:  # fmt: skip
    """Draw the windows of one instrument that end at the ascending panel rows `rows` into ``out[dest]``.

    `first` is the instrument's first row, `windows` int64 those of the moving averages. `out` is uint8
    (n, height, width) in mode PIXELS, (n, packed bytes, 1) in mode BITS and not touched in mode DRY, which finds
    only the reasons.
    """
    panel, total_return, given_ma = arrays.bars, arrays.total_return, arrays.averages
    k = params.aggregate
    n_ma = windows.shape[0]
    begin = rows[0] - params.lookback + 1
    end = rows[-1] + 1
    averages = np.empty((n_ma, end - begin))
    if given_ma.shape[0] > 0:
        for n in range(n_ma):
            for i in range(end - begin):
                averages[n, i] = abs(given_ma[begin + i, n])
    elif not params.rebuild and n_ma > 0:
        lead = min(begin - first, params.history)
        close = np.empty(lead + end - begin)
        for i in range(close.shape[0]):
            close[i] = abs(panel[begin - lead + i, CLOSE])
        for n in range(n_ma):
            moving_average(close, 0, windows[n], k, params.partial_ma, averages[n])
    scratch = np.empty((6, params.lookback + params.history))
    prices = np.empty((5, params.bars))
    ma = np.empty((n_ma, params.bars))
    image = np.empty((params.height, params.width), np.uint8)
    for w in range(rows.shape[0]):
        last = rows[w]
        start = last - params.lookback + 1
        if params.rebuild:
            prepare_rebuilt(panel, total_return, first, last, windows, params, scratch, prices, ma)
        else:
            for i in range(params.lookback):
                for field in range(5):
                    scratch[field, i] = abs(panel[start + i, field])
            if k > 1:
                merge(scratch, params.bars, k)
            for field in range(5):
                prices[field, :] = scratch[field, : params.bars]
            for n in range(n_ma):
                for d in range(params.bars):
                    ma[n, d] = averages[n, start - begin + d * k + k - 1]
        at_up = _any_flag(arrays.up, start, last + 1)
        at_down = _any_flag(arrays.down, start, last + 1)
        if mode == PIXELS:
            reason[dest[w]] = draw_window(prices, ma, params, at_up, at_down, False, out[dest[w]])
        else:
            reason[dest[w]] = draw_window(prices, ma, params, at_up, at_down, mode == DRY, image)
            if mode == BITS:
                pack_image(image, out[dest[w], :, 0])


@jit
def sort_rows(row: Any, lowest: int, place: Any, dest: Any, ascending: Any) -> int:
    """Sort windows by panel row by writing their positions along the panel; return how many were found.

    `place` int32 covers rows from `lowest` on. Windows that end at the same row hide each other, so a count
    below the number of windows means that some do. An index of 2 million windows sorts in a tenth of
    ``numpy.argsort``'s time.
    """
    place[:] = -1
    for i in range(row.shape[0]):
        place[row[i] - lowest] = i
    found = 0
    for offset in range(place.shape[0]):
        if place[offset] >= 0:
            dest[found] = place[offset]
            ascending[found] = lowest + offset
            found += 1
    return found


@jit
def first_rows(row: Any, offsets: Any, first: Any) -> int:
    """Write the first row of the instrument of each window, ascending by row; return the shortest history."""
    instrument = 0
    shortest = offsets[-1]
    for i in range(row.shape[0]):
        while offsets[instrument + 1] <= row[i]:
            instrument += 1
        first[i] = offsets[instrument]
        shortest = min(shortest, row[i] - first[i] + 1)
    return shortest


@jit
def plan_tasks(row: Any, first: Any, lookback: int, limit: int, starts: Any) -> int:
    """Cut windows, ascending by panel row, into tasks of one instrument each; return their number.

    Task t covers windows starts[t]..starts[t + 1] - 1. A task ends after `limit` windows, at the instrument's
    end, and where the next window shares no bar with this one, since a longer task would then gain nothing.
    """
    n = row.shape[0]
    tasks = 0
    for i in range(n):
        if (
            i == 0
            or first[i] != first[i - 1]
            or i - starts[tasks - 1] >= limit
            or row[i] - row[i - 1] >= lookback
        ):
            starts[tasks] = i
            tasks += 1
    starts[tasks] = n
    return tasks


@jit
def render_serial(
    arrays: PanelArrays, windows: Any, params: DrawParams, starts: Any, rows: WindowRows, out: Any, mode: int,
    reason: Any,
) -> None:  # fmt: skip
    """Run the tasks one after the other without the interpreter's lock: for worker threads and dask tasks."""
    for t in range(starts.shape[0] - 1):
        a, b = starts[t], starts[t + 1]
        render_task(arrays, windows, params, rows.first[a], rows.last[a:b], rows.dest[a:b], out, mode, reason)
