"""The GPU's drawing: one kernel for every spec, a block of threads an image.

Rules, constants and reason codes are those of ``kernels.py``: Numba compiles the same functions of numbers for
the CPU and for the GPU, and CUDA's simulator calls the CPU's. What is written here is who does what:

1.  A window's bars lie in a table on the device, prepared by ``kernels.tabulate``. Each thread takes every
    `threads`-th bar, the block finds the window's extremes and with them its reason and scale.
2.  Each bar becomes rows of pixels: the tick's row, the first and last row of the stem, and so on.
3.  A thread turns a bar and 32 rows into three columns of 32 bits, and lays their bytes into PLANES: a plane is 8
    rows of the image, a byte a column. Tall images do this in strips of rows that fit shared memory.
4.  The block writes the image as a flat run of 8-byte words. Four pixels of a row are four bytes of a plane,
    tested for one bit. Where an image does not begin or end with a word of memory, its edges are written pixel by
    pixel, so that nobody writes what belongs to a neighbour.

Every pixel is decided in float64 by operations that round on their own; ``kernels.truncated_level`` says what
keeps a product and a sum apart.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda, float64, int16, int64, uint8, uint32

from pricepix.render.kernels import (
    CLOSE,
    CNN_FOR_TRADING,
    HIGH,
    JKX,
    LOW,
    OPEN,
    VOLUME,
    Drawing,
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
from pricepix.render.reasons import VALID

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

OUTSIDE = 255
"""Reason code of a row that ends no window of the panel; such an image is blank."""

UP, DOWN, WHOLE = 1, 2, 4
"""Bits of a row's state: some bar of its window is at the up-limit, at the down-limit; there is a window."""

# Row of what is not drawn: below every image.
NOTHING = 1 << 14
# Rows of a bar in shared memory, `bars` apart: those of its prices, the first one of its volume, its averages.
AVERAGE = 5
# How the counts of prices, volumes and odd bars share one number.
ODD, VOLUMES = 1 << 40, 1 << 20


class Plan(NamedTuple):
    """Where things lie in shared memory, and how the pixels go into words."""

    averages: int
    counts_at: int
    """int64 index behind the extremes."""
    rows_at: int
    """int16 index of the bars' rows."""
    planes_at: int
    """Byte where the planes begin, a multiple of 4."""
    pitch: int
    """Bytes of a plane, a multiple of 4, at least 4 more than the image is wide."""
    strip: int
    """Rows of a strip, a multiple of 32; its planes are one more than it needs."""
    per_word: int
    """Pixels in 8 bytes: 8, 4 or 2."""
    row_step: int
    """Rows and columns from a thread's word to its next."""
    column_step: int
    aligned: int
    """Whether four pixels that begin a word never cross the end of a row."""
    packed: int
    """Whether the table holds the bars of the windows asked for, one window after the other."""
    dry: int
    """Whether reasons alone are asked for."""
    size: int
    """Pixels of an image."""


# ---- numbers: the same function on CPU, GPU and in the simulator


@jit
def least(a: Any, b: Any) -> Any:
    """``min``, which the CUDA target that comes with Numba 0.68 does not compile."""
    return a if a < b else b


@jit
def most(a: Any, b: Any) -> Any:
    """``max``, likewise."""
    return a if a > b else b


@jit
def span_word(top: int, end: int, base: int) -> Any:
    """Bits of the rows from `top` to `end`, of the 32 rows from `base` on, the lowest bit first."""
    first, last = most(top - base, 0), least(end - base, 31)
    if first > last:
        return np.uint32(0)
    return np.uint32(np.uint32(np.uint32(0xFFFFFFFF) >> np.uint32(31 - (last - first))) << np.uint32(first))


@jit
def segment_word(here: int, there: int, column: int, base: int) -> Any:
    """Bits of a line from row `here` to row `there` in its column 0..3."""
    start, end = segment_offsets(abs(there - here), column)
    if there <= here:
        return span_word(here - end, here - start, base)
    return span_word(here + start, here + end, base)


@jit
def cut_four(low: Any, high: Any, skip: int, bit: int) -> Any:
    """Four bytes of 0 or 1: bit `bit` of the four bytes that follow the first `skip` of two words."""
    both = np.uint64(low) | np.uint64(np.uint64(high) << np.uint64(32))
    return np.uint32(np.uint32(both >> np.uint64(8 * skip + bit)) & np.uint32(0x01010101))


@jit
def join_four(before: Any, after: Any, left: int) -> Any:
    """The first `left` bytes of `before`, then those of `after`."""
    shift = np.uint32(8 * left)
    keep = np.uint32(np.uint32(1 << shift) - np.uint32(1))
    return np.uint32(np.uint32(before & keep) | np.uint32(after << shift))


@jit
def ink_word(four: Any, next_four: Any, per_word: int, paper: Any, flip: Any) -> Any:
    """Eight bytes of pixels: `paper` where a byte is 0, and `flip` changes it to ink where it is 1."""
    bits = np.uint64(four)
    if per_word == 8:
        mask = (bits | (np.uint64(next_four) << np.uint64(32))) * np.uint64(0xFF)
    elif per_word == 4:
        bits = (bits | (bits << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
        bits = (bits | (bits << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
        mask = bits * np.uint64(0xFFFF)
    else:
        mask = ((bits & np.uint64(1)) | ((bits & np.uint64(0x100)) << np.uint64(24))) * np.uint64(0xFFFFFFFF)
    return np.uint64(paper ^ (mask & flip))


@jit
def ink_pixel(bit: int, per_word: int, paper: Any, flip: Any) -> Any:
    """One pixel of such a word."""
    word = np.uint64(paper ^ flip) if bit else np.uint64(paper)
    return np.uint64(word & np.uint64(np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 64 // per_word)))


# ---- a block's work on one image


@cuda.jit(device=True)
def _measure(
    table: Any, last: int, stride: int, drawing: Drawing, plan: Plan, extremes: Any, counts: Any
) -> None:
    """Lowest and highest of each group of fields, into ``extremes[2 * group * threads]`` and ``threads`` on.

    Groups are the prices with the averages, and the volume; or each price alone. ``counts[0]`` packs how many
    prices, volumes and odd bars there are.
    """
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    fields = 4 + drawing.volume + plan.averages
    first = last - (drawing.bars - 1) * stride
    groups = 4 if drawing.per_field else 1 + drawing.volume
    found = 0
    for group in range(groups):
        lowest, highest = np.inf, -np.inf
        for field in range(fields):
            belongs = field if drawing.per_field else int(field == VOLUME and drawing.volume == 1)
            if belongs == group:
                for d in range(t, drawing.bars, threads):
                    value = table[first + d * stride, field]
                    if not math.isnan(value):
                        if field < 4:
                            found += 1
                        elif group == 1:
                            found += VOLUMES
                        lowest, highest = least(lowest, value), most(highest, value)
        extremes[2 * group * threads + t] = lowest
        extremes[(2 * group + 1) * threads + t] = highest
    if drawing.style == CNN_FOR_TRADING:
        for d in range(t, drawing.bars, threads):
            row = first + d * stride
            if is_odd_bar(table[row, OPEN], table[row, HIGH], table[row, LOW], table[row, CLOSE]):
                found += ODD
    counts[plan.counts_at + t] = found
    step = threads // 2
    while step > 0:
        cuda.syncthreads()
        if t < step:
            for group in range(groups):
                at = 2 * group * threads + t
                extremes[at] = least(extremes[at], extremes[at + step])
                at += threads
                extremes[at] = most(extremes[at], extremes[at + step])
            counts[plan.counts_at + t] += counts[plan.counts_at + t + step]
        step //= 2
    cuda.syncthreads()


@cuda.jit(device=True)
def _place_joint(
    table: Any, last: int, stride: int, drawing: Drawing, plan: Plan, lowest: float, ppu: float, base: int,
    largest: float, rows: Any,
) -> None:  # fmt: skip
    """Rows of every bar in the styles jkx and image_trading."""
    bars = drawing.bars
    first = last - (bars - 1) * stride
    floor = drawing.price_height - 1 - base
    scale = volume_scale(drawing.volume_height, largest)
    for d in range(cuda.threadIdx.x, bars, cuda.blockDim.x):
        row, at = first + d * stride, plan.rows_at + d
        high, low = table[row, HIGH], table[row, LOW]
        open_, close = table[row, OPEN], table[row, CLOSE]
        whole = not (math.isnan(high) or math.isnan(low))
        rows[at + HIGH * bars] = floor - price_level(high, lowest, ppu) if whole else NOTHING
        rows[at + LOW * bars] = floor - price_level(low, lowest, ppu) if whole else NOTHING
        rows[at] = floor - price_level(open_, lowest, ppu) if whole and not math.isnan(open_) else NOTHING
        tick = floor - price_level(close, lowest, ppu) if whole and not math.isnan(close) else NOTHING
        rows[at + CLOSE * bars] = tick
        if drawing.volume:
            tall = volume_rows(table[row, VOLUME], scale)
            rows[at + VOLUME * bars] = drawing.height - tall if tall > 0 else NOTHING
        for n in range(plan.averages):
            average = table[row, 4 + drawing.volume + n]
            level = floor - price_level(average, lowest, ppu) if not math.isnan(average) else NOTHING
            rows[at + (AVERAGE + n) * bars] = level


@cuda.jit(device=True)
def _place_per_field(
    table: Any, last: int, stride: int, drawing: Drawing, plan: Plan, flat: bool, up: bool, extremes: Any,
    rows: Any,
) -> None:  # fmt: skip
    """Rows of every bar in ImageTrading's own scale."""
    bars, threads, bottom = drawing.bars, cuda.blockDim.x, drawing.height - 1
    first = last - (bars - 1) * stride
    for field in range(4):
        lowest, highest = extremes[2 * field * threads], extremes[(2 * field + 1) * threads]
        for d in range(cuda.threadIdx.x, bars, threads):
            if flat:
                level = limit_level(bottom, up)
            else:
                level = field_level(table[first + d * stride, field], lowest, highest, bottom)
            rows[plan.rows_at + field * bars + d] = bottom - level


@cuda.jit(device=True)
def _place_cnn_for_trading(
    table: Any, last: int, stride: int, drawing: Drawing, plan: Plan, extremes: Any, rows: Any
) -> None:
    """Rows of every bar in CNN-for-Trading's style."""
    bars, threads, bottom = drawing.bars, cuda.blockDim.x, drawing.height - 1
    first = last - (bars - 1) * stride
    lowest, highest = extremes[0], extremes[threads]
    span, base = truncation(drawing)
    for d in range(cuda.threadIdx.x, bars, threads):
        row, at = first + d * stride, plan.rows_at + d
        rows[at] = bottom - truncated_level(table[row, OPEN], lowest, highest, span, base)
        rows[at + HIGH * bars] = bottom - truncated_level(table[row, HIGH], lowest, highest, span, base)
        rows[at + LOW * bars] = bottom - truncated_level(table[row, LOW], lowest, highest, span, base)
        rows[at + CLOSE * bars] = bottom - truncated_level(table[row, CLOSE], lowest, highest, span, base)
        if drawing.volume:
            smallest, largest = extremes[2 * threads], extremes[3 * threads]
            tall = truncated_volume_rows(table[row, VOLUME], smallest, largest, drawing.volume_height)
            rows[at + VOLUME * bars] = drawing.height - tall if tall > 0 else NOTHING
        for n in range(plan.averages):
            average = table[row, 4 + drawing.volume + n]
            level = NOTHING
            if not math.isnan(average):
                level = bottom - truncated_level(average, lowest, highest, span, base)
            rows[at + (AVERAGE + n) * bars] = level


@cuda.jit(device=True)
def _judge(
    table: Any, state: int, last: int, stride: int, drawing: Drawing, plan: Plan, extremes: Any, counts: Any,
    rows: Any,
) -> int:  # fmt: skip
    """Reason code of the window that was measured, and if it is valid, the rows of its bars."""
    threads = cuda.blockDim.x
    up, down = state & UP != 0, state & DOWN != 0
    found = counts[plan.counts_at]
    prices, volumes, odd_bars = found % VOLUMES, found // VOLUMES % VOLUMES, found // ODD
    lowest, highest = extremes[0], extremes[threads]
    if drawing.style == CNN_FOR_TRADING:
        smallest, largest = np.inf, -np.inf
        if drawing.volume:
            smallest, largest = extremes[2 * threads], extremes[3 * threads]
        reason = cnn_for_trading_reason(prices, lowest, highest, volumes, smallest, largest, drawing)
        if reason == VALID:
            reason = odd_bars_reason(odd_bars, drawing)
        if reason == VALID and not plan.dry:
            _place_cnn_for_trading(table, last, stride, drawing, plan, extremes, rows)
        return reason
    if drawing.per_field:
        flat, infinite = 0, False
        for field in range(4):
            lowest, highest = extremes[2 * field * threads], extremes[(2 * field + 1) * threads]
            if lowest == highest:
                flat += 1
            if highest == np.inf or lowest == -np.inf:
                infinite = True
        reason = per_field_reason(prices, infinite, flat, drawing, up, down)
        if reason == VALID and not plan.dry:
            _place_per_field(table, last, stride, drawing, plan, flat == 4, up, extremes, rows)
        return reason
    largest = np.nan
    if drawing.volume and volumes > 0:
        largest = extremes[3 * threads]
    reason, ppu, base = joint_scale(prices, lowest, highest, largest, drawing, up, down)
    if reason == VALID and not plan.dry:
        _place_joint(table, last, stride, drawing, plan, lowest, ppu, base, largest, rows)
    return reason


@cuda.jit(device=True)
def _lay_planes(top: int, blank: bool, drawing: Drawing, plan: Plan, rows: Any, planes: Any) -> None:
    """Planes of the strip that begins at row `top`, from the rows of the bars."""
    bars = drawing.bars
    # One plane more than the strip, for words that begin in it and end behind it.
    count = plan.strip // 8 + 1
    bands = least(plan.strip // 32 + 1, (drawing.height - top + 31) // 32)
    for e in range(cuda.threadIdx.x, bars * bands, cuda.blockDim.x):
        band = e // bars
        d = e - band * bars
        base = top + 32 * band
        left, middle, right = np.uint32(0), np.uint32(0), np.uint32(0)
        if not blank:
            at = plan.rows_at + d
            left = span_word(rows[at], rows[at], base)
            right = span_word(rows[at + CLOSE * bars], rows[at + CLOSE * bars], base)
            stem, foot = rows[at + HIGH * bars], rows[at + LOW * bars]
            if drawing.pixel_chart:
                middle = span_word(stem, stem, base) | span_word(foot, foot, base)
            else:
                middle = span_word(stem, foot, base)
            if drawing.style == JKX:
                middle = middle | left
            if drawing.volume:
                tall = rows[at + VOLUME * bars]
                middle = middle | span_word(tall, tall if drawing.pixel_chart else drawing.height - 1, base)
            for n in range(plan.averages):
                at = plan.rows_at + (AVERAGE + n) * bars + d
                here = rows[at]
                if drawing.style == CNN_FOR_TRADING:
                    dash = span_word(here, here, base)
                    left, middle = left | dash, middle | dash
                    continue
                if drawing.pixel_chart or d == bars - 1:
                    middle = middle | span_word(here, here, base)
                elif here != NOTHING and rows[at + 1] != NOTHING:
                    middle = middle | segment_word(here, rows[at + 1], 0, base)
                    right = right | segment_word(here, rows[at + 1], 1, base)
                if d > 0 and not drawing.pixel_chart and here != NOTHING and rows[at - 1] != NOTHING:
                    left = left | segment_word(rows[at - 1], here, 2, base)
                    middle = middle | segment_word(rows[at - 1], here, 3, base)
        for part in range(4):
            plane = 4 * band + part
            if plane < count:
                at = plan.planes_at + plane * plan.pitch + 3 * d
                planes[at] = (left >> np.uint32(8 * part)) & np.uint32(0xFF)
                planes[at + 1] = (middle >> np.uint32(8 * part)) & np.uint32(0xFF)
                planes[at + 2] = (right >> np.uint32(8 * part)) & np.uint32(0xFF)


@cuda.jit(device=True)
def _four(planes: Any, row: int, column: int, width: int, plan: Plan) -> Any:
    """The four pixels from (row, column) of the strip on, in reading order, as bytes of 0 or 1."""
    at = plan.planes_at + (row >> 3) * plan.pitch + column
    if plan.aligned:
        return cut_four(planes[at >> 2], 0, at & 3, row & 7)
    four = cut_four(planes[at >> 2], planes[(at >> 2) + 1], at & 3, row & 7)
    left = width - column
    while left < 4:
        row += 1
        at = (plan.planes_at + (row >> 3) * plan.pitch) >> 2
        four = join_four(four, cut_four(planes[at], 0, 0, row & 7), left)
        left += width
    return four


@cuda.jit(device=True)
def _write(
    top: int, image: int, drawing: Drawing, plan: Plan, planes: Any, groups: Any, words: Any, pixels: Any,
    paper: Any, flip: Any,
) -> None:  # fmt: skip
    """Write the pixels of the strip that begins at row `top`."""
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    width, per_word = drawing.width, plan.per_word
    begin = int64(image) * plan.size
    end = begin + plan.size
    strip_begin = begin + top * width
    strip_end = begin + least(top + plan.strip, drawing.height) * width
    # Words that begin in the strip and end in the image, and the pixels before and after the image's words.
    first_whole, last_whole = (begin + per_word - 1) // per_word, end // per_word
    first = (strip_begin + per_word - 1) // per_word
    last = least((strip_end + per_word - 1) // per_word, last_whole)
    head = least(first_whole * per_word, end)
    tail = most(last_whole * per_word, head)
    pixel = int(first * per_word - strip_begin) + t * per_word
    row = pixel // width
    column = pixel - row * width
    for word in range(first + t, last, threads):
        four = _four(groups, row, column, width, plan)
        next_four = four
        if per_word == 8:
            next_row, next_column = row, column + 4
            while next_column >= width:
                next_row, next_column = next_row + 1, next_column - width
            next_four = _four(groups, next_row, next_column, width, plan)
        words[word] = ink_word(four, next_four, per_word, paper, flip)
        row, column = row + plan.row_step, column + plan.column_step
        if column >= width:
            row, column = row + 1, column - width
    for edge in range(2):
        a = begin if edge == 0 else tail
        b = head if edge == 0 else end
        for at in range(most(a, strip_begin) + t, least(b, strip_end), threads):
            pixel = int(at - strip_begin)
            row = pixel // width
            column = pixel - row * width
            bit = (planes[plan.planes_at + (row >> 3) * plan.pitch + column] >> (row & 7)) & 1
            pixels[at] = ink_pixel(bit, per_word, paper, flip)


@cuda.jit
def draw(
    table: Any, states: Any, ends: Any, drawing: Drawing, plan: Plan, paper: Any, flip: Any,
    words: Any, pixels: Any, reasons: Any,
) -> None:  # fmt: skip
    """Draw the windows that end at panel rows `ends`; a block draws every ``gridDim.x``-th of them.

    `table` float64 (rows, fields) as ``kernels.tabulate`` writes it, or ``tabulate_rebuilt`` where `plan` says
    packed; `states` uint8 (panel rows). The output is seen twice: `words` uint64, as far as whole words go, and
    `pixels` as unsigned integers of a pixel's size. `paper` and `flip` are uint64 words of pixels.
    """
    extremes = cuda.shared.array(0, float64)
    counts = cuda.shared.array(0, int64)
    rows = cuda.shared.array(0, int16)
    planes = cuda.shared.array(0, uint8)
    groups = cuda.shared.array(0, uint32)
    stride = 1 if plan.packed else drawing.aggregate
    for image in range(cuda.blockIdx.x, ends.shape[0], cuda.gridDim.x):
        last = ends[image]
        state = 0
        if 0 <= last < states.shape[0]:
            state = int(states[last])
        reason = OUTSIDE
        if state & WHOLE:
            if plan.packed:
                last = (image + 1) * drawing.bars - 1
            _measure(table, last, stride, drawing, plan, extremes, counts)
            reason = _judge(table, state, last, stride, drawing, plan, extremes, counts, rows)
        if cuda.threadIdx.x == 0:
            reasons[image] = reason
        if not plan.dry:
            for top in range(0, drawing.height, plan.strip):
                cuda.syncthreads()
                _lay_planes(top, reason != VALID, drawing, plan, rows, planes)
                cuda.syncthreads()
                _write(top, image, drawing, plan, planes, groups, words, pixels, paper, flip)
        cuda.syncthreads()
