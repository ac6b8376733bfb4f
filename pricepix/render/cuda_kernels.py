"""Drawing on a GPU: one kernel for every spec, a block of threads an image.

Rules, constants and reason codes are those of ``rules.py``: Numba compiles the same functions of numbers for the CPU
and for the GPU, and CUDA's simulator calls the CPU's. This module divides the work among threads:

1.  A window's bars lie in a table on the device, prepared by ``window_bars.tabulate``. Each thread takes every
    `threads`-th bar, the block finds the window's extremes and with them its reason and scale.
2.  The image is drawn in shared memory, a byte a pixel, each thread its bars; threads that draw the same pixel
    write the same byte. Tall images are drawn in strips of rows that fit.
3.  The block copies it out as a flat run of 8-byte words, each thread every `threads`-th. The image lies in
    shared memory as it will lie in memory, relative to a word; where it does not begin or end with a word, its
    edges are written pixel by pixel, so that no block writes a byte of its neighbour.

Every pixel is decided in float64 by operations that are rounded one by one; ``rules.truncated_level`` says how a
product and a sum are kept from being fused.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda, float64, int64, uint8, uint16, uint32, uint64

from pricepix.render.reasons import VALID
from pricepix.render.rules import (
    CLOSE,
    CNN_FOR_TRADING,
    DOWN,
    HIGH,
    INK,
    JKX,
    LOW,
    OPEN,
    OUTSIDE,
    UP,
    VOLUME,
    WHOLE,
    DrawParams,
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

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

# How the counts of prices, volumes and odd bars share one number.
ODD, VOLUMES = 1 << 40, 1 << 20


class Plan(NamedTuple):
    """Layout of shared memory, how pixels become words, and what the call asks for."""

    averages: int
    counts_at: int
    """int64 index of the counts, behind the extremes."""
    image_at: int
    """int64 index of the strip's pixels, behind the counts."""
    strip: int
    """Rows of the image that are drawn at a time."""
    word_shift: int
    """Two to its power are the pixels in 8 bytes: 3 for bytes, 2, or 1."""
    packed: int
    """Whether the table holds the bars of the windows asked for, one window after the other."""
    dry: int
    """Whether only the reasons are asked for."""


class Scale(NamedTuple):
    """How prices and volumes become levels in this window."""

    lowest: float
    ppu: float
    base: int
    largest: float
    flat: int


class Strip(NamedTuple):
    """Rows top..end - 1 of an image, in shared memory from byte `at` on."""

    at: int
    top: int
    end: int
    width: int


# ---- numbers: the same function on CPU, GPU and in the simulator


@jit
def smaller(a: Any, b: Any) -> Any:
    """``min``, which the CUDA target that comes with Numba 0.68 does not compile; b where a is NaN."""
    return a if a < b else b


@jit
def larger(a: Any, b: Any) -> Any:
    """``max``, which it does not compile either; b where a is NaN."""
    return a if a > b else b


@jit
def number(x: float) -> int:
    """1 where x is a number, 0 where it is NaN."""
    return 0 if math.isnan(x) else 1


@jit
def ink_word(pixels: Any, word_shift: int, paper: Any, flip: Any) -> Any:
    """Eight bytes of output from 8, 4 or 2 bytes of 0 or 255: `paper`, which `flip` changes to ink."""
    mask = np.uint64(pixels)
    if word_shift == 2:
        mask = (mask | (mask << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
        mask = ((mask | (mask << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(0x0101)
    elif word_shift == 1:
        mask = ((mask & np.uint64(0xFF)) | ((mask & np.uint64(0xFF00)) << np.uint64(24))) * np.uint64(
            0x01010101
        )
    return np.uint64(paper ^ (mask & flip))


@jit
def ink_pixel(pixel: int, word_shift: int, paper: Any, flip: Any) -> Any:
    """One pixel of a word of ``ink_word``."""
    word = np.uint64(paper ^ flip) if pixel else np.uint64(paper)
    return np.uint64(word & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - (64 >> word_shift))))


# ---- a block's work on one image


@cuda.jit(device=True)
def _cell(table: Any, field: int, row: int) -> float:
    """Value of a table."""
    # An index that may be negative, as Numba sees it, costs six operations more; so indices are unsigned.
    value: float = table[np.uint64(field), np.uint64(row)]
    return value


@cuda.jit(device=True)
def _measure(
    table: Any, last: int, stride: int, params: DrawParams, plan: Plan, extremes: Any, counts: Any
) -> None:
    """Lowest and highest of each group of fields, into ``extremes[2 * group * threads]`` and ``threads`` on.

    Groups are the prices with the averages, and the volume; or each of the four prices. ``counts[0]`` packs how many
    prices, volumes and odd bars there are.
    """
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    first = last - (params.bars - 1) * stride
    groups = 4 if params.per_field else 1 + params.volume
    lowest, highest, smallest, largest = np.inf, -np.inf, np.inf, -np.inf
    found = 0
    if params.per_field:
        for field in range(4):
            lowest, highest = np.inf, -np.inf
            d = t
            while d < params.bars:
                value = _cell(table, field, first + d * stride)
                lowest, highest = smaller(value, lowest), larger(value, highest)
                found += number(value)
                d += threads
            extremes[2 * field * threads + t], extremes[(2 * field + 1) * threads + t] = lowest, highest
    else:
        d = t
        while d < params.bars:
            row = first + d * stride
            # All fields of a bar are loaded before the first is used: one wait for memory instead of one a field.
            open_, high = _cell(table, OPEN, row), _cell(table, HIGH, row)
            low, close = _cell(table, LOW, row), _cell(table, CLOSE, row)
            volume = _cell(table, VOLUME, row) if params.volume else np.nan
            for n in range(4 + params.volume, 4 + params.volume + plan.averages):
                average = _cell(table, n, row)
                lowest, highest = smaller(average, lowest), larger(average, highest)
            lowest = smaller(open_, smaller(high, smaller(low, smaller(close, lowest))))
            highest = larger(open_, larger(high, larger(low, larger(close, highest))))
            smallest, largest = smaller(volume, smallest), larger(volume, largest)
            found += number(open_) + number(high) + number(low) + number(close) + VOLUMES * number(volume)
            if params.style == CNN_FOR_TRADING and is_odd_bar(open_, high, low, close):
                found += ODD
            d += threads
        extremes[t], extremes[threads + t] = lowest, highest
        if params.volume:
            extremes[2 * threads + t], extremes[3 * threads + t] = smallest, largest
    counts[plan.counts_at + t] = found
    step = threads // 2
    while step > 0:
        cuda.syncthreads()
        if t < step:
            for group in range(groups):
                at = 2 * group * threads + t
                extremes[at] = smaller(extremes[at], extremes[at + step])
                at += threads
                extremes[at] = larger(extremes[at], extremes[at + step])
            counts[plan.counts_at + t] += counts[plan.counts_at + t + step]
        step //= 2
    cuda.syncthreads()


@cuda.jit(device=True)
def _column(image: Any, column: int, top: int, end: int, strip: Strip) -> None:
    """Ink the rows from `top` to `end` of a column, as far as they lie in the strip."""
    # In 32 bits, beyond which shared memory does not go: five operations a pixel instead of seven.
    at = np.int32(strip.at + column + (larger(top, strip.top) - strip.top) * strip.width)
    last = np.int32(strip.at + column + (smaller(end, strip.end - 1) - strip.top) * strip.width)
    while at <= last:
        image[np.uint32(at)] = INK
        at = np.int32(at + strip.width)


@cuda.jit(device=True)
def _draw_joint(
    table: Any, last: int, stride: int, params: DrawParams, plan: Plan, scale: Scale, image: Any, strip: Strip
) -> None:
    """Draw the styles jkx and image_trading."""
    bars = params.bars
    first = last - (bars - 1) * stride
    floor, lowest, ppu = params.price_height - 1 - scale.base, scale.lowest, scale.ppu
    volume_ppu = volume_scale(params.volume_height, scale.largest)
    d = cuda.threadIdx.x
    while d < bars:
        row, column = first + d * stride, 3 * d
        high, low = _cell(table, HIGH, row), _cell(table, LOW, row)
        if not (math.isnan(high) or math.isnan(low)):
            top, end = floor - price_level(high, lowest, ppu), floor - price_level(low, lowest, ppu)
            if params.pixel_chart:
                _column(image, column + 1, top, top, strip)
                _column(image, column + 1, end, end, strip)
            else:
                _column(image, column + 1, top, end, strip)
            price = _cell(table, OPEN, row)
            if not math.isnan(price):
                top = floor - price_level(price, lowest, ppu)
                _column(image, column, top, top, strip)
                if params.style == JKX:
                    _column(image, column + 1, top, top, strip)
            price = _cell(table, CLOSE, row)
            if not math.isnan(price):
                top = floor - price_level(price, lowest, ppu)
                _column(image, column + 2, top, top, strip)
        if params.volume:
            rows = volume_rows(_cell(table, VOLUME, row), volume_ppu)
            if rows > 0:
                top = params.height - rows
                _column(image, column + 1, top, top if params.pixel_chart else params.height - 1, strip)
        for n in range(4 + params.volume, 4 + params.volume + plan.averages):
            if math.isnan(_cell(table, n, row)):
                continue
            here = floor - price_level(_cell(table, n, row), lowest, ppu)
            if d == bars - 1 or params.pixel_chart:
                _column(image, column + 1, here, here, strip)
            elif not math.isnan(_cell(table, n, row + stride)):
                there = floor - price_level(_cell(table, n, row + stride), lowest, ppu)
                rise = abs(there - here)
                for c in range(4):
                    start, end = segment_offsets(rise, c)
                    if there <= here:
                        start, end = -end, -start
                    _column(image, column + 1 + c, here + start, here + end, strip)
        d += cuda.blockDim.x


@cuda.jit(device=True)
def _draw_per_field(
    table: Any, last: int, stride: int, params: DrawParams, flat: bool, up: bool, extremes: Any, image: Any,
    strip: Strip,
) -> None:  # fmt: skip
    """Draw ImageTrading's own scale."""
    bars, threads, bottom = params.bars, cuda.blockDim.x, params.height - 1
    first = last - (bars - 1) * stride
    d = cuda.threadIdx.x
    while d < bars:
        top = 0
        for field in range(4):
            if flat:
                row = bottom - limit_level(bottom, up)
            else:
                lowest, highest = extremes[2 * field * threads], extremes[(2 * field + 1) * threads]
                row = bottom - field_level(_cell(table, field, first + d * stride), lowest, highest, bottom)
            if field == HIGH:
                top = row
            elif field == LOW:
                _column(image, 3 * d + 1, top, row, strip)
            else:
                _column(image, 3 * d if field == OPEN else 3 * d + 2, row, row, strip)
        d += threads


@cuda.jit(device=True)
def _draw_cnn_for_trading(
    table: Any,
    last: int,
    stride: int,
    params: DrawParams,
    plan: Plan,
    extremes: Any,
    image: Any,
    strip: Strip,
) -> None:
    """Draw CNN-for-Trading's style."""
    bars, threads, bottom = params.bars, cuda.blockDim.x, params.height - 1
    first = last - (bars - 1) * stride
    lowest, highest = extremes[0], extremes[threads]
    span, base = truncation(params)
    d = cuda.threadIdx.x
    while d < bars:
        row, column = first + d * stride, 3 * d
        top = bottom - truncated_level(_cell(table, OPEN, row), lowest, highest, span, base)
        _column(image, column, top, top, strip)
        top = bottom - truncated_level(_cell(table, HIGH, row), lowest, highest, span, base)
        end = bottom - truncated_level(_cell(table, LOW, row), lowest, highest, span, base)
        _column(image, column + 1, top, end, strip)
        top = bottom - truncated_level(_cell(table, CLOSE, row), lowest, highest, span, base)
        _column(image, column + 2, top, top, strip)
        for n in range(4 + params.volume, 4 + params.volume + plan.averages):
            if not math.isnan(_cell(table, n, row)):
                top = bottom - truncated_level(_cell(table, n, row), lowest, highest, span, base)
                _column(image, column, top, top, strip)
                _column(image, column + 1, top, top, strip)
        if params.volume:
            smallest, largest = extremes[2 * threads], extremes[3 * threads]
            rows = truncated_volume_rows(_cell(table, VOLUME, row), smallest, largest, params.volume_height)
            _column(image, column + 1, params.height - rows, params.height - 1, strip)
        d += threads


@cuda.jit(device=True)
def _reason_and_scale(state: int, params: DrawParams, plan: Plan, extremes: Any, counts: Any) -> Any:
    """Reason code and scale of the window that was measured."""
    threads = cuda.blockDim.x
    up, down = state & UP != 0, state & DOWN != 0
    found = counts[plan.counts_at]
    prices, volumes, odd_bars = found % VOLUMES, found // VOLUMES % VOLUMES, found // ODD
    lowest, highest = extremes[0], extremes[threads]
    smallest, largest = np.nan, np.nan
    if volumes > 0:
        smallest, largest = extremes[2 * threads], extremes[3 * threads]
    ppu, base, flat = 0.0, 0, 0
    if params.style == CNN_FOR_TRADING:
        reason = cnn_for_trading_reason(prices, lowest, highest, volumes, smallest, largest, params)
        if reason == VALID:
            reason = odd_bars_reason(odd_bars, params)
    elif params.per_field:
        infinite = False
        for field in range(4):
            lowest, highest = extremes[2 * field * threads], extremes[(2 * field + 1) * threads]
            if lowest == highest:
                flat += 1
            if highest == np.inf or lowest == -np.inf:
                infinite = True
        reason = per_field_reason(prices, infinite, flat, params, up, down)
    else:
        reason, ppu, base = joint_scale(prices, lowest, highest, largest, params, up, down)
    return reason, Scale(lowest, ppu, base, largest, flat)


@cuda.jit(device=True)
def _write(
    begin: int, end: int, plan: Plan, bytes_: Any, pairs: Any, fours: Any, eights: Any, words: Any, pixels: Any,
    paper: Any, flip: Any,
) -> None:  # fmt: skip
    """Copy the strip out to the pixels `begin` to `end` of the output."""
    t, threads, shift = cuda.threadIdx.x, cuda.blockDim.x, plan.word_shift
    first, last = (begin + (1 << shift) - 1) >> shift, end >> shift
    # Pixel 0 of the output would lie here.
    origin = 8 * plan.image_at - (begin >> 3 << 3)
    if shift == 3:
        word = first + t
        while word < last:
            words[np.uint64(word)] = ink_word(eights[np.uint64(word + (origin >> 3))], shift, paper, flip)
            word += threads
    elif shift == 2:
        word = first + t
        while word < last:
            words[np.uint64(word)] = ink_word(fours[np.uint64(word + (origin >> 2))], shift, paper, flip)
            word += threads
    else:
        word = first + t
        while word < last:
            words[np.uint64(word)] = ink_word(pairs[np.uint64(word + (origin >> 1))], shift, paper, flip)
            word += threads
    head = smaller(first << shift, end)
    at = begin + t
    while at < head:
        pixels[at] = ink_pixel(bytes_[at + origin], shift, paper, flip)
        at += threads
    at = larger(last << shift, head) + t
    while at < end:
        pixels[at] = ink_pixel(bytes_[at + origin], shift, paper, flip)
        at += threads


@cuda.jit
def draw(
    table: Any, states: Any, ends: Any, params: DrawParams, plan: Plan, paper: Any, flip: Any,
    words: Any, pixels: Any, reasons: Any,
) -> None:  # fmt: skip
    """Draw the windows that end at panel rows `ends`, a block each.

    `table` float64 (fields, rows) as ``window_bars.tabulate`` writes it, or ``tabulate_rebuilt`` where `plan` says
    packed; `states` uint8 (panel rows). The output is seen twice: `words` uint64, as far as whole words go, and
    `pixels` as unsigned integers of a pixel's size. `paper` and `flip` are uint64 words of pixels.
    """
    # The same shared memory, seen as several types. The compiler takes these for different memory: a write through
    # one and a read through another need a barrier between them.
    extremes = cuda.shared.array(0, float64)
    counts = cuda.shared.array(0, int64)
    bytes_ = cuda.shared.array(0, uint8)
    pairs = cuda.shared.array(0, uint16)
    fours = cuda.shared.array(0, uint32)
    eights = cuda.shared.array(0, uint64)
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    width = params.width
    stride = 1 if plan.packed else params.aggregate
    # One image a block: a loop over images would keep in registers everything that they have in common.
    image = int64(cuda.blockIdx.x)
    if image >= ends.shape[0]:
        return
    last = ends[image]
    state = 0
    if 0 <= last < states.shape[0]:
        state = int(states[last])
    reason, scale = OUTSIDE, Scale(0.0, 0.0, 0, 0.0, 0)
    if state & WHOLE:
        if plan.packed:
            last = (image + 1) * params.bars - 1
        _measure(table, last, stride, params, plan, extremes, counts)
        reason, scale = _reason_and_scale(state, params, plan, extremes, counts)
    if t == 0:
        reasons[image] = reason
    if plan.dry:
        return
    top = 0
    while top < params.height:
        end = smaller(top + plan.strip, params.height)
        begin: Any = (image * params.height + top) * width
        strip = Strip(8 * plan.image_at + (begin & 7), top, end, width)
        word = t
        while word < ((begin & 7) + (end - top) * width + 7) >> 3:
            eights[np.uint64(plan.image_at + word)] = 0
            word += threads
        cuda.syncthreads()
        if reason == VALID:
            if params.style == CNN_FOR_TRADING:
                _draw_cnn_for_trading(table, last, stride, params, plan, extremes, bytes_, strip)
            elif params.per_field:
                flat, up = scale.flat == 4, state & UP != 0
                _draw_per_field(table, last, stride, params, flat, up, extremes, bytes_, strip)
            else:
                _draw_joint(table, last, stride, params, plan, scale, bytes_, strip)
        cuda.syncthreads()
        _write(
            begin, begin + (end - top) * width, plan, bytes_, pairs, fours, eights, words, pixels, paper, flip
        )
        # Before the next zeros.
        cuda.syncthreads()
        top += plan.strip
