"""All plain compiled code: the drawing rules, prepare one window, draw one window, and two drivers over many.

The rules are small functions of numbers. ``cuda.py`` compiles them for the GPU as well, where ``math.isnan`` and
``round`` exist in every release of Numba, and their NumPy namesakes, ``min`` and ``max`` do not.

Nothing here checks its input or allocates per image; what a kernel needs comes in as arrays and scalars.
Rows of an image count from the top, price levels `y` from the bottom of the price area.

Products and sums stand exactly in the order of the pixel specification, in float64 and without fastmath:
real prices lie on a tick grid, so exact ties are common and one rounding more or less moves a pixel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pricepix.render.bits import pack_image
from pricepix.render.reasons import (
    VALID,
)
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
    Drawing,
    cnn_for_trading_reason,
    field_level,
    is_odd_bar,
    jit,
    joint_scale,
    limit_level,
    odd_bars_reason,
    parallel_jit,
    per_field_reason,
    price_level,
    segment_offsets,
    truncated_level,
    truncated_volume_rows,
    truncation,
    volume_rows,
    volume_scale,
)

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
def _draw_volume(bars: Any, drawing: Drawing, largest: float, image: Any) -> None:
    """Volume panel of the styles jkx and image_trading."""
    scale = volume_scale(drawing.volume_height, largest)
    if np.isnan(scale):
        return
    for d in range(drawing.bars):
        tall = volume_rows(bars[VOLUME, d], scale)
        top = drawing.height - tall
        if drawing.pixel_chart:
            if tall > 0:
                image[top, 3 * d + 1] = INK
        else:
            for row in range(top, drawing.height):
                image[row, 3 * d + 1] = INK


@jit
def _draw_joint(bars: Any, ma: Any, drawing: Drawing, up: bool, down: bool, dry: bool, image: Any) -> int:
    """Styles jkx and image_trading with one price scale."""
    count = drawing.bars
    lowest, highest, prices = _extremes(bars, ma, count)
    largest = _largest_volume(bars, count) if drawing.volume else np.nan
    reason, ppu, base = joint_scale(prices, lowest, highest, largest, drawing, up, down)
    if reason != VALID or dry:
        return reason
    bottom = drawing.price_height - 1
    floor = bottom - base
    open_columns = 2 if drawing.style == JKX else 1
    for d in range(count):
        high, low = bars[HIGH, d], bars[LOW, d]
        if np.isnan(high) or np.isnan(low):
            continue
        y_high = price_level(high, lowest, ppu)
        y_low = price_level(low, lowest, ppu)
        if drawing.pixel_chart:
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
            if d == count - 1 or drawing.pixel_chart:
                image[floor - y0, 3 * d + 1] = INK
            elif not np.isnan(ma[k, d + 1]):
                y1 = price_level(ma[k, d + 1], lowest, ppu)
                draw_segment(image, 3 * d + 1, y0, y1, floor)
    if drawing.volume:
        _draw_volume(bars, drawing, largest, image)
    return VALID


@jit
def _draw_per_field(bars: Any, drawing: Drawing, up: bool, down: bool, dry: bool, image: Any) -> int:
    """ImageTrading's own scale: open, high, low and close each by their own range, truncated."""
    count = drawing.bars
    bottom = drawing.height - 1
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
    reason = per_field_reason(prices, infinite, flat, drawing, up, down)
    if reason != VALID or dry:
        return reason
    if flat == 4:
        level = limit_level(bottom, up)
        for column in range(drawing.width):
            image[bottom - level, column] = INK
        return VALID
    # Levels replace the prices, which nothing needs any more.
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
def _draw_cnn_for_trading(bars: Any, ma: Any, drawing: Drawing, dry: bool, image: Any) -> int:
    """CNN-for-Trading's picture: truncated levels, the average as a dash of two pixels."""
    count = drawing.bars
    bottom = drawing.height - 1
    lowest, highest, prices = _extremes(bars, ma, count)
    smallest, largest = np.inf, -np.inf
    volumes = 0
    if drawing.volume:
        for d in range(count):
            v = bars[VOLUME, d]
            if not np.isnan(v):
                volumes += 1
                smallest = min(smallest, v)
                largest = max(largest, v)
    reason = cnn_for_trading_reason(prices, lowest, highest, volumes, smallest, largest, drawing)
    if reason != VALID:
        return reason
    odd_bars = 0
    for d in range(count):
        odd_bars += is_odd_bar(bars[OPEN, d], bars[HIGH, d], bars[LOW, d], bars[CLOSE, d])
    reason = odd_bars_reason(odd_bars, drawing)
    if reason != VALID or dry:
        return reason
    span, base = truncation(drawing)
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
        if drawing.volume:
            tall = truncated_volume_rows(bars[VOLUME, d], smallest, largest, drawing.volume_height)
            for row in range(drawing.height - tall, drawing.height):
                image[row, 3 * d + 1] = INK
    return VALID


@jit
def draw_window(bars: Any, ma: Any, drawing: Drawing, up: bool, down: bool, dry: bool, image: Any) -> int:
    """Draw one window.

    `bars` float64 (5, bars) in the order of the panel's columns, `ma` float64 (n, bars), both scratch that may
    be overwritten; `up`, `down`: some bar of the window sits at its limit; `image` uint8 (height, width).
    Returns the reason code; an invalid window leaves the image blank. A `dry` run finds the reason alone and
    does not touch the image.
    """
    if not dry:
        image[:, :] = 0
    if drawing.style == CNN_FOR_TRADING:
        return _draw_cnn_for_trading(bars, ma, drawing, dry, image)
    if drawing.per_field:
        return _draw_per_field(bars, drawing, up, down, dry, image)
    return _draw_joint(bars, ma, drawing, up, down, dry, image)


@jit
def moving_average(close: Any, lowest: int, window: int, step: int, partial: int, out: Any) -> None:
    """Average of every `step`-th of the last `window` closes, oldest added first, for the last rows of `close`.

    `out` holds the averages of the last ``len(out)`` rows. Rows before `lowest` belong to nobody: an average
    that needs them is NaN, and so is one over a missing close. With `partial` (CNN-for-Trading's rolling mean
    with a minimum of one) it is the mean of the closes that exist.
    """
    terms = window // step
    shift = close.shape[0] - out.shape[0]
    for i in range(out.shape[0]):
        newest = shift + i
        total = 0.0
        found = 0
        for j in range(terms - 1, -1, -1):
            row = newest - j * step
            if row >= lowest and not (partial and np.isnan(close[row])):
                total += close[row]
                found += 1
        if found == terms or (partial and found > 0):
            out[i] = total / found
        else:
            out[i] = np.nan


@jit
def _rolling_mean_compensated(close: Any, count: int, terms: int, out: Any) -> None:
    """Mean of the last `terms` closes by adding and removing with Kahan's compensation, as pandas rolls.

    The authors' images hang on these very roundings. Missing closes are left out; fewer than `terms` give NaN.
    """
    total = 0.0
    lost_adding = 0.0
    lost_removing = 0.0
    found = 0
    same = 0
    previous = np.nan
    for i in range(count):
        if i >= terms and not np.isnan(close[i - terms]):
            found -= 1
            y = -close[i - terms] - lost_removing
            t = total + y
            lost_removing = t - total - y
            total = t
        value = close[i]
        if not np.isnan(value):
            found += 1
            y = value - lost_adding
            t = total + y
            lost_adding = t - total - y
            total = t
            same = same + 1 if value == previous else 1
            previous = value
        if found >= terms:
            out[i] = (previous * terms if same >= terms else total) / terms
        else:
            out[i] = np.nan


@jit
def _rebuild_from_returns(panel: Any, total_return: Any, first: int, last: int, prices: Any) -> None:
    """Rebuild the prices of rows first..last from total returns into `prices` (5, rows), scaled to 1 at row 0."""
    level = 1.0
    for i in range(last - first + 1):
        row = first + i
        close = abs(panel[row, CLOSE])
        prices[VOLUME, i] = abs(panel[row, VOLUME])
        if i == 0:
            # One division here where the later rows divide and multiply: the authors' roundings, again.
            for field in range(3):
                prices[field, 0] = abs(panel[row, field]) / close
            prices[CLOSE, 0] = 1.0
            continue
        moved = (1.0 + total_return[row]) * level
        if not np.isnan(moved):
            level = moved
        scale = moved / close
        for field in range(3):
            prices[field, i] = abs(panel[row, field]) * scale
        prices[CLOSE, i] = moved


@jit
def _merged_bar(prices: Any, start: int, k: int) -> tuple[float, float, float, float, float]:
    """Merge the bars start..start + k - 1 into one.

    Open of the first and close of the last as they are; highest high, lowest low and the sum of the volumes
    over the bars that have them.
    """
    high, low, volume = np.nan, np.nan, np.nan
    for i in range(start, start + k):
        if not np.isnan(prices[HIGH, i]) and not prices[HIGH, i] <= high:
            high = prices[HIGH, i]
        if not np.isnan(prices[LOW, i]) and not prices[LOW, i] >= low:
            low = prices[LOW, i]
        if not np.isnan(prices[VOLUME, i]):
            volume = prices[VOLUME, i] if np.isnan(volume) else volume + prices[VOLUME, i]
    return prices[OPEN, start], high, low, prices[CLOSE, start + k - 1], volume


@jit
def _merge(prices: Any, count: int, k: int) -> None:
    """Merge every `k` of the first ``count * k`` bars into one, in place."""
    for d in range(count):
        open_, high, low, close, volume = _merged_bar(prices, d * k, k)
        prices[OPEN, d] = open_
        prices[HIGH, d] = high
        prices[LOW, d] = low
        prices[CLOSE, d] = close
        prices[VOLUME, d] = volume


@jit
def _prepare_rebuilt(
    panel: Any, total_return: Any, first: int, last: int, windows: Any, drawing: Drawing,
    scratch: Any, prices: Any, ma: Any,
) -> None:  # fmt: skip
    """Bars and averages of the window that ends at row `last`, from total returns."""
    k = drawing.aggregate
    start = last - drawing.lookback + 1
    has_history = start - drawing.history >= first
    begin = start - drawing.history if has_history else start
    _rebuild_from_returns(panel, total_return, begin, last, scratch)
    rows = last - begin + 1
    if k > 1:
        rows //= k
        _merge(scratch, rows, k)
    skip = rows - drawing.bars
    unit = 1.0 / scratch[CLOSE, skip]
    for field in range(4):
        for i in range(rows):
            scratch[field, i] *= unit
    for n in range(windows.shape[0]):
        if has_history:
            _rolling_mean_compensated(scratch[CLOSE], rows, windows[n] // k, scratch[5])
            ma[n, :] = scratch[5, skip:rows]
        else:
            ma[n, :] = np.nan
    for field in range(5):
        prices[field, :] = scratch[field, skip:rows]


@jit
def _any_flag(flags: Any, start: int, stop: int) -> bool:
    found = False
    for i in range(start, min(stop, flags.shape[0])):
        found |= flags[i]
    return found


@jit
def render_task(
    panel: Any, total_return: Any, up: Any, down: Any, given_ma: Any, windows: Any, drawing: Drawing,
    first: int, rows: Any, dest: Any, out: Any, mode: int, reason: Any,
) -> None:  # fmt: skip
    """Draw the windows of one instrument that end at the ascending panel rows `rows` into ``out[dest]``.

    `first` is the instrument's first row. `given_ma` (rows, n) replaces the averages of the panel's closes
    where it is not empty. `out` is uint8 (n, height, width) in mode PIXELS, (n, packed bytes, 1) in mode BITS
    and not touched in mode DRY, which finds the reasons alone.
    """
    k = drawing.aggregate
    n_ma = windows.shape[0]
    begin = rows[0] - drawing.lookback + 1
    end = rows[-1] + 1
    stretch = np.empty((n_ma, end - begin))
    if given_ma.shape[0] > 0:
        for n in range(n_ma):
            for i in range(end - begin):
                stretch[n, i] = abs(given_ma[begin + i, n])
    elif not drawing.rebuild and n_ma > 0:
        lead = min(begin - first, drawing.history)
        close = np.empty(lead + end - begin)
        for i in range(close.shape[0]):
            close[i] = abs(panel[begin - lead + i, CLOSE])
        for n in range(n_ma):
            moving_average(close, 0, windows[n], k, drawing.partial_ma, stretch[n])
    scratch = np.empty((6, drawing.lookback + drawing.history))
    prices = np.empty((5, drawing.bars))
    ma = np.empty((n_ma, drawing.bars))
    image = np.empty((drawing.height, drawing.width), np.uint8)
    for w in range(rows.shape[0]):
        last = rows[w]
        start = last - drawing.lookback + 1
        if drawing.rebuild:
            _prepare_rebuilt(panel, total_return, first, last, windows, drawing, scratch, prices, ma)
        else:
            for i in range(drawing.lookback):
                for field in range(5):
                    scratch[field, i] = abs(panel[start + i, field])
            if k > 1:
                _merge(scratch, drawing.bars, k)
            for field in range(5):
                prices[field, :] = scratch[field, : drawing.bars]
            for n in range(n_ma):
                for d in range(drawing.bars):
                    ma[n, d] = stretch[n, start - begin + d * k + k - 1]
        at_up = _any_flag(up, start, last + 1)
        at_down = _any_flag(down, start, last + 1)
        if mode == PIXELS:
            reason[dest[w]] = draw_window(prices, ma, drawing, at_up, at_down, False, out[dest[w]])
        else:
            reason[dest[w]] = draw_window(prices, ma, drawing, at_up, at_down, mode == DRY, image)
            if mode == BITS:
                pack_image(image, out[dest[w], :, 0])


@jit
def tabulate(panel: Any, offsets: Any, given_ma: Any, windows: Any, drawing: Drawing, table: Any) -> None:
    """Write what a window draws of each panel row, whatever the window: for renderers that keep it.

    ``table[:, row]`` is open, high, low and close of the drawn bar that ends at `row`, its volume if the spec
    draws any, and the moving averages; the window that ends at `row` draws every ``aggregate``-th row up to it.
    Not for rebuilt prices, which depend on the window.
    """
    k = drawing.aggregate
    for instrument in range(offsets.shape[0] - 1):
        first, count = offsets[instrument], offsets[instrument + 1] - offsets[instrument]
        prices = np.empty((5, count))
        averages = np.empty(count)
        for i in range(count):
            for field in range(5):
                prices[field, i] = abs(panel[first + i, field])
        for i in range(count):
            if i < k - 1:
                table[:, first + i] = np.nan
                continue
            open_, high, low, close, volume = _merged_bar(prices, i - k + 1, k)
            table[OPEN, first + i] = open_
            table[HIGH, first + i] = high
            table[LOW, first + i] = low
            table[CLOSE, first + i] = close
            if drawing.volume:
                table[VOLUME, first + i] = volume
        for n in range(windows.shape[0]):
            if given_ma.shape[0] > 0:
                for i in range(count):
                    averages[i] = abs(given_ma[first + i, n])
            else:
                moving_average(prices[CLOSE], 0, windows[n], k, drawing.partial_ma, averages)
            for i in range(count):
                table[4 + drawing.volume + n, first + i] = averages[i]


@jit
def tabulate_rebuilt(
    panel: Any, total_return: Any, first: Any, rows: Any, windows: Any, drawing: Drawing, table: Any
) -> None:
    """Write the columns of ``tabulate``, one a drawn bar, of the windows that end at panel rows `rows`.

    ``first[i]`` is the first row of window i's instrument. Prices are rebuilt from total returns.
    """
    scratch = np.empty((6, drawing.lookback + drawing.history))
    prices = np.empty((5, drawing.bars))
    ma = np.empty((windows.shape[0], drawing.bars))
    for w in range(rows.shape[0]):
        _prepare_rebuilt(panel, total_return, first[w], rows[w], windows, drawing, scratch, prices, ma)
        for d in range(drawing.bars):
            row = w * drawing.bars + d
            for field in range(4 + drawing.volume):
                table[field, row] = prices[field, d]
            for n in range(windows.shape[0]):
                table[4 + drawing.volume + n, row] = ma[n, d]


@jit
def sort_rows(row: Any, lowest: int, place: Any, dest: Any, ascending: Any) -> int:
    """Sort windows by panel row by laying their positions out along the panel; return how many were found.

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
def plan_tasks(row: Any, first: Any, lookback: int, most: int, starts: Any) -> int:
    """Cut windows, ascending by panel row, into tasks of one instrument each; return their number.

    Task t covers windows starts[t]..starts[t + 1] - 1. A task ends after `most` windows, at the instrument's
    end, and where the next window shares no bar with this one, since then nothing is gained by going on.
    """
    n = row.shape[0]
    tasks = 0
    for i in range(n):
        if (
            i == 0
            or first[i] != first[i - 1]
            or i - starts[tasks - 1] >= most
            or row[i] - row[i - 1] >= lookback
        ):
            starts[tasks] = i
            tasks += 1
    starts[tasks] = n
    return tasks


@jit
def render_serial(
    panel: Any, total_return: Any, up: Any, down: Any, given_ma: Any, windows: Any, drawing: Drawing,
    starts: Any, first: Any, row: Any, dest: Any, out: Any, mode: int, reason: Any,
) -> None:  # fmt: skip
    """Run the tasks one after the other without the interpreter's lock: for worker threads and dask tasks."""
    for t in range(starts.shape[0] - 1):
        a, b = starts[t], starts[t + 1]
        render_task(
            panel, total_return, up, down, given_ma, windows, drawing,
            first[a], row[a:b], dest[a:b], out, mode, reason,
        )  # fmt: skip


@parallel_jit
def render_parallel(
    panel: Any, total_return: Any, up: Any, down: Any, given_ma: Any, windows: Any, drawing: Drawing,
    starts: Any, first: Any, row: Any, dest: Any, out: Any, mode: int, reason: Any,
) -> None:  # fmt: skip
    """Run the tasks on Numba's threads: for one big call from one thread at a time."""
    for t in numba.prange(starts.shape[0] - 1):
        a, b = starts[t], starts[t + 1]
        render_task(
            panel, total_return, up, down, given_ma, windows, drawing,
            first[a], row[a:b], dest[a:b], out, mode, reason,
        )  # fmt: skip
