"""The fast path: bars to images at the speed of memory, for the images that the field draws.

It draws the same bytes as ``kernels.py``, which stays the definition, and takes the specs that ``takes`` names;
``api.run`` is the one place that chooses. How it differs from drawing pixel by pixel:

1.  A pixel column is a WORD: 64 rows are 64 bits of one int64, the top row the highest bit. A stem is two
    shifts and an AND, a tick one shift, a volume bar one shift, a segment of a moving average one look-up in a
    table of words and one shift. Images of more than 64 rows are drawn in bands of 64 rows.
2.  Everything before the words is a loop over bars in float64, four bars at a time, from contiguous arrays:
    prices, moving averages, and the rolling extremes that give each window its scale (``_prepare``).
3.  A word's eight bytes lie in eight PLANES, one for every 8 rows, each a byte a column. 32 pixels of a row are
    32 bytes of a plane, tested for one bit and written as 0 or 255 (``_write``): three instructions.
4.  Rows are seldom a multiple of 32 bytes. The planes hold their row of bytes several times over, so that 32
    bytes may run over the end of a row; which bit to test then differs within the vector, and a small table
    knows. So all stores are whole, aligned vectors, and may bypass the caches.
5.  Windows pass through these steps in a PIPELINE: while one is drawn, the planes of the one before are made
    and the image of the one before that is written. No step waits for what the step before has just stored.

What each of them gained is told beside the code; measured on one thread of a 2-core Zen 3 (AVX2), 64x60.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba
import numpy as np

from pricepix.render.kernels import moving_average
from pricepix.render.reasons import CONSTANT_VOLUME, FLAT, FLAT_BARS, INFINITE, NO_PRICE, VALID
from pricepix.render.rules import CLOSE as CLOSE_COLUMN
from pricepix.render.rules import CNN_FOR_TRADING, DRY, IMAGE_TRADING, JKX, PIXELS, jit, parallel_jit
from pricepix.render.simd import (
    absolute,
    bits_of,
    chain,
    count_from,
    fence,
    higher_of,
    ink,
    interleave,
    load_b,
    load_bars,
    load_f,
    load_i,
    load_wide_bars,
    load_word,
    lower_of,
    pointer,
    prefetch,
    shift_down,
    shift_up,
    splat,
    splat_f,
    store,
    store_planes,
    store_swapped,
    store_word,
    stream,
    where_above,
    where_higher,
    where_nan,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pricepix.spec import ImageSpec

# Inlined before type inference: the constants of a step then stay in registers from one window to the next, and
# branches on an argument that is None vanish. Plain calls cost 90 of 1280 instructions an image.
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")

DEFERRED: Final = 255
"""Reason code, internal to the renderer, of a window that the plain kernel must draw."""

TASK_WINDOWS: Final = 256
# From here on stores go past the caches. Through them, every line is first read from memory only to be replaced,
# which cost a third of the speed; but a small output is wanted in the cache by whoever asked for it.
STREAM_BYTES: Final = 32 << 20
# Windows between the fetch of a window's bars and their use. In a shuffled batch, where nothing leads up to them,
# that saves a tenth of the time and more if the panel is larger than the caches.
_AHEAD: Final = 3
LAID_OUT: Final = 6
"""Columns of what ``lay_out`` writes."""
MAX_LOOKBACK: Final = 512
MAX_AVERAGE: Final = 512
MAX_HEIGHT: Final = 512

# x + MAGIC has no bits left for a fraction, so the sum itself rounds x to the nearest whole number, half to
# even, and its low bits are that number: rint and the conversion to an integer in one addition. It is exact for
# |x| < 2**51. Missing prices are infinite here, which makes bits far above those of any level.
MAGIC: Final = 6755399441055744.0
MAGIC_BITS: Final = 0x4338000000000000
NEVER: Final = MAGIC_BITS + 1023

# Scratch of a task, in float64: one stretch of rows a field. The odd distance keeps fields apart in the cache.
ROOM: Final = 808
OPEN: Final = 0
HIGH: Final = 1 * ROOM
LOW: Final = 2 * ROOM
CLOSE: Final = 3 * ROOM
VOLUME: Final = 4 * ROOM
AVERAGE: Final = 5 * ROOM
LOWEST: Final = 6 * ROOM
HIGHEST: Final = 7 * ROOM
MOST: Final = 8 * ROOM
LEAST: Final = 9 * ROOM
SCALE: Final = 10 * ROOM
VOLUME_SCALE: Final = 11 * ROOM
ODD: Final = 12 * ROOM
REASON: Final = 13 * ROOM
HISTORY: Final = 14 * ROOM
FLOATS: Final = 16 * ROOM


class Sketch(NamedTuple):
    """What the fast path needs to know of a spec, in numbers."""

    style: int
    volume: int
    average: int
    lookback: int
    height: int
    width: int
    price_height: int
    volume_height: int
    span: float
    rise: float


class Tables(NamedTuple):
    """Arrays that depend on the spec alone."""

    segments: Any
    offsets: Any
    masks: Any
    last_mask: Any
    last_offset: int
    period: int
    copies: int
    jump: int


def takes(spec: ImageSpec) -> bool:
    """Whether the fast path draws this spec: one price scale, bars, at most one average, prices as they are."""
    return (
        spec.chart == "bar"
        and spec.scale == "joint"
        and spec.rebuild is None
        and spec.aggregate == 1
        and len(spec.ma) <= 1
        and sum(spec.ma) <= MAX_AVERAGE
        and 2 <= spec.lookback <= MAX_LOOKBACK
        and spec.height <= MAX_HEIGHT
        and spec.height * spec.width >= 64
    )


def arguments_of(
    bars: NDArray[np.float64], given: NDArray[np.float64] | None, at_limit: bool, spec: ImageSpec
) -> tuple[Any, ...]:
    """First arguments of the drivers.

    `given` are averages, float64 (rows, 1); none of them where they come from the closes; None where `bars` is
    what ``lay_out`` writes. `at_limit`: flat windows may be drawn, which is the plain kernel's work.
    """
    sketch = sketch_of(spec)
    tall = True if spec.height > 64 else None
    truncated = True if spec.style == "cnn_for_trading" else None
    return (
        bars,
        given,
        int(at_limit and sketch.style == IMAGE_TRADING),
        sketch,
        tall,
        truncated,
        tables_of(sketch),
    )


def plan_tasks(windows: int) -> NDArray[np.int64]:
    """Bounds of the tasks: equally many windows each, of whatever instruments."""
    return np.append(np.arange(0, windows, TASK_WINDOWS), windows)


def streams(out: NDArray[np.uint8]) -> bool:
    """Whether `out` is so large that nothing of it would stay in the caches anyway."""
    return out.nbytes >= STREAM_BYTES


def sketch_of(spec: ImageSpec) -> Sketch:
    """Translate a spec that ``takes`` accepts."""
    height, volume_height, price_height, span, rise = spec.height, 0, spec.height, 0.0, 0.0
    if spec.style == "cnn_for_trading":
        span = height - 1.0
        if spec.volume:
            volume_height, span, rise = {32: (5, 24.0, 7.0), 64: (11, 50.0, 13.0)}[height]
    else:
        if spec.volume:
            volume_height = height // 5
            price_height = height - volume_height - 1
        span = price_height - 1.0
    return Sketch(
        style={"jkx": JKX, "cnn_for_trading": CNN_FOR_TRADING, "image_trading": IMAGE_TRADING}[spec.style],
        volume=int(spec.volume),
        average=sum(spec.ma),
        lookback=spec.lookback,
        height=height,
        width=spec.width,
        price_height=price_height,
        volume_height=volume_height,
        span=span,
        rise=rise,
    )


@lru_cache(maxsize=64)
def tables_of(sketch: Sketch) -> Tables:
    """Build the tables of a spec: about a millisecond."""
    height, width = sketch.height, sketch.width
    lines = sketch.average > 0 and sketch.style != CNN_FOR_TRADING
    return Tables(
        _segment_table(sketch.price_height) if lines else np.zeros(4, np.int64), *_byte_tables(height, width)
    )


@lru_cache(maxsize=64)
def tables_of_size(height: int, width: int) -> Tables:
    """Build the tables that ``widen`` needs."""
    return Tables(np.zeros(4, np.int64), *_byte_tables(height, width))


def widens(height: int, width: int) -> bool:
    """Whether ``widen`` takes images of this size: a vector of 32 bytes must not span three planes."""
    return height <= MAX_HEIGHT and height * width >= 64 and width >= 4


def _segment_table(price_height: int) -> NDArray[np.int64]:
    """Words of every moving-average segment, flat (parts, keys, 4 columns): level 0 is the segment's lower end.

    Key ``rise + price_height - 1`` is the segment that rises (or falls) by `rise` levels over four columns; the
    last two keys are nothing at all, and one pixel in the first column. Part p holds levels 64p..64p + 63.
    """
    parts = (price_height + 63) // 64
    table = np.zeros((parts, 2 * price_height + 1, 4), np.int64)
    for rise in range(1 - price_height, price_height):
        way = abs(rise)
        for c in range(4):
            if way < 3:
                start = end = (2 * way * c + 3) // 6
            else:
                # -(-n // 6) is the ceiling of n / 6.
                start = 0 if c == 0 else -(-(2 * c - 1) * way // 6)
                end = way if c == 3 else -(-(2 * c + 1) * way // 6) - 1
            lowest = start if rise >= 0 else way - end
            word = (1 << end + 1 - start) - 1 << lowest
            table[:, rise + price_height - 1, c] = np.frombuffer(word.to_bytes(8 * parts, "little"), "<i8")
    table[0, 2 * price_height, 0] = 1
    return table.reshape(-1)


def _byte_tables(height: int, width: int) -> tuple[Any, ...]:
    """Where in the planes each aligned vector of an image begins, and which bit each of its 32 bytes tests.

    An image begins anywhere in memory: its first ``head`` bytes lie before the first aligned vector. Vector t
    then covers the bytes from ``head + 32 * t`` on. What it needs repeats after `period` vectors, the least
    number that fills whole planes: 8, 16 or 32 rows.

    The planes follow one another, each holding its `width` bytes `copies` times, at least 31 bytes more than
    once. A vector that ends before its plane's 8 rows do begins at its column in the first copy; the last one
    of the 8 rows begins where it runs over into the next plane at the right byte.
    """
    copies = 1 + -(-31 // width)
    rows = next(rows for rows in (8, 16, 32) if rows * width % 32 == 0)
    period = rows * width // 32

    def offset(byte: Any) -> Any:
        plane = byte // (8 * width)
        left = (plane + 1) * 8 * width - byte
        return np.where(
            left >= 32, plane * copies * width + byte % width, (plane + 1) * copies * width - left
        )

    def mask(byte: Any) -> Any:
        return (128 >> ((byte[..., None] + np.arange(32)) // width % 8)).astype(np.uint8)

    head = np.arange(32)[:, None]
    byte = head + 32 * np.arange(period)
    last = np.array(height * width - 32)
    masks = np.concatenate([mask(byte).reshape(-1), mask(head - 32).reshape(-1)])
    jump = rows // 8 * copies * width
    return offset(byte).reshape(-1), masks, mask(last), int(offset(last)), period, copies, jump


@jit
def lay_out(bars: Any, offsets: Any, average: int, partial: int, table: Any) -> None:
    """Write bars and their moving average side by side: open, high, low, close, volume, average of every row.

    For windows from anywhere. Each averages 20 bars of its own for 20 columns of pixels, and fetches 39 bars,
    which lie in 25 lines of memory; of this table it reads 15 and averages nothing.
    """
    for instrument in range(offsets.shape[0] - 1):
        a, b = offsets[instrument], offsets[instrument + 1]
        means = np.empty(b - a)
        moving_average(np.abs(bars[a:b, CLOSE_COLUMN]), 0, average, 1, partial, means)
        table[a:b, :5] = bars[a:b]
        table[a:b, 5] = means


# A stretch of bars -------------------------------------------------------------------------------------------


@inlined
def _judge(f, i, sketch, averages_given):
    """Reason code of the window that begins at row i."""
    lookback = sketch.lookback
    lowest, highest, most = f[LOWEST + i], f[HIGHEST + i], f[MOST + i]
    if sketch.style == CNN_FOR_TRADING:
        odd = f[ODD + i + lookback] - f[ODD + i]
        if odd >= 1000.0 or highest == np.inf or (sketch.volume and most == np.inf):
            return DEFERRED
        if sketch.volume and most == f[LEAST + i]:
            return CONSTANT_VOLUME
        if highest == lowest:
            return FLAT
        return FLAT_BARS if odd > lookback // 5 else VALID
    if lowest > highest or (averages_given and f[ODD + i + lookback] == f[ODD + i]):
        return NO_PRICE
    if highest == np.inf or (sketch.volume and most == np.inf):
        return INFINITE
    if f[SCALE + i] == np.inf:
        return FLAT
    if sketch.volume and most > 0.0 and f[VOLUME_SCALE + i] == np.inf:
        return DEFERRED
    return VALID


@jit
def _prepare(
    panel: Any, total: int, given: Any, first: int, start: int, count: int, sketch: Sketch, f: Any
) -> None:
    """Fill the scratch `f` for the windows inside panel rows start..start + count - 1 of one instrument.

    Field k of the i-th row, or of the window that begins there, is ``f[k + i]``. The loops run over whole
    vectors and a little past the end, where nobody looks. This costs 16 ns an image, of which the moving
    average takes 3.
    """
    lookback, volume, average = sketch.lookback, sketch.volume, sketch.average
    columns = LAID_OUT if given is None else 5
    lead = 0
    if given is not None and average and given.shape[0] == 0:
        lead = average - 1
        known = min(lead, start - first)
        for i in range(lead - known):
            f[HISTORY + i] = np.nan
        for i in range(lead - known, lead):
            f[HISTORY + i] = abs(panel[5 * (start - lead + i) + CLOSE_COLUMN])
    infinite, zero, least = splat_f(np.inf), splat_f(0.0), splat_f(-np.inf)
    for i in range(0, count, 4):
        rows, at = panel, columns * (start + i)
        if start + i + 4 > total:
            # The panel ends inside these four rows.
            for k in range(columns * (total - start - i)):
                f[ODD + k] = panel[at + k]
            rows, at = f, ODD
        if given is None:
            o, h, l, c, v, m = load_wide_bars(rows, at)
        else:
            o, h, l, c, v = load_bars(rows, at)
            store(f, HISTORY + lead + i, absolute(c))
        o, h, l, c = absolute(o), absolute(h), absolute(l), absolute(c)
        # All prices make the scale. The comparisons are such that a NaN loses against the number beside it.
        low = lower_of(o, lower_of(h, lower_of(l, lower_of(c, infinite))))
        high = higher_of(o, higher_of(h, higher_of(l, higher_of(c, least))))
        if given is None:
            low, high = lower_of(m, low), higher_of(m, high)
            store(f, AVERAGE + i, where_nan(m, infinite, m))
        store(f, LOWEST + i, low)
        store(f, HIGHEST + i, high)
        # Nothing of a bar without high or low is drawn, and infinite is what the drawing takes for missing.
        o = where_nan(h, infinite, where_nan(l, infinite, where_nan(o, infinite, o)))
        c = where_nan(h, infinite, where_nan(l, infinite, where_nan(c, infinite, c)))
        store(f, OPEN + i, o)
        store(f, HIGH + i, where_nan(l, infinite, where_nan(h, infinite, h)))
        store(f, LOW + i, where_nan(h, infinite, where_nan(l, infinite, l)))
        store(f, CLOSE + i, c)
        if volume:
            v = absolute(v)
            v = where_nan(v, zero, v)
            store(f, VOLUME + i, v)
            store(f, MOST + i, v)
            store(f, LEAST + i, v)
    averages_given = given is not None and given.shape[0] > 0
    if sketch.style == CNN_FOR_TRADING or averages_given:
        _count_odd_bars(panel, columns, start, count, sketch, f)
    if average and given is not None:
        if given.shape[0] > 0:
            for i in range(count):
                f[AVERAGE + i] = abs(given[start + i, 0])
        elif sketch.style == CNN_FOR_TRADING:
            _mean_of_known(f, average, count)
        else:
            _mean(f, average, count)
        for i in range(0, count, 4):
            m = load_f(f, AVERAGE + i)
            store(f, LOWEST + i, lower_of(m, load_f(f, LOWEST + i)))
            store(f, HIGHEST + i, higher_of(m, load_f(f, HIGHEST + i)))
            store(f, AVERAGE + i, where_nan(m, infinite, m))
    if count == lookback and count >= 4 and sketch.style != CNN_FOR_TRADING:
        # A window that shares no bar with another, as in a shuffled batch.
        _join_all(f, count, sketch)
    else:
        # Rolling extremes over 1, 2, 4, 8 ... rows, and once more overlapping for the rest.
        width = 1
        while 2 * width <= lookback:
            _roll(f, width, count - 2 * width + 1, sketch)
            width *= 2
        if width < lookback:
            _roll(f, lookback - width, count - lookback + 1, sketch)
    windows = count - lookback + 1
    if sketch.style == CNN_FOR_TRADING:
        for i in range(0, windows, 4):
            store(f, SCALE + i, load_f(f, HIGHEST + i) - load_f(f, LOWEST + i))
            store(f, VOLUME_SCALE + i, load_f(f, MOST + i) - load_f(f, LEAST + i))
    else:
        span, volume_span = splat_f(sketch.span), splat_f(np.float64(sketch.volume_height))
        for i in range(0, windows, 4):
            store(f, SCALE + i, span / (load_f(f, HIGHEST + i) - load_f(f, LOWEST + i)))
            store(f, VOLUME_SCALE + i, volume_span / load_f(f, MOST + i))
    for i in range(windows):
        f[REASON + i] = _judge(f, i, sketch, averages_given)


@jit
def _mean(f: Any, window: int, count: int) -> None:
    """Means of `window` closes, the oldest added first: 20 at a time, since each addition waits for the last."""
    n = splat_f(np.float64(window))
    for i in range(0, count, 20):
        h = HISTORY + i
        a, b, c, d = load_f(f, h), load_f(f, h + 4), load_f(f, h + 8), load_f(f, h + 12)
        e = load_f(f, h + 16)
        for k in range(1, window):
            a = a + load_f(f, h + k)
            b = b + load_f(f, h + k + 4)
            c = c + load_f(f, h + k + 8)
            d = d + load_f(f, h + k + 12)
            e = e + load_f(f, h + k + 16)
        store(f, AVERAGE + i, a / n)
        store(f, AVERAGE + i + 4, b / n)
        store(f, AVERAGE + i + 8, c / n)
        store(f, AVERAGE + i + 12, d / n)
        store(f, AVERAGE + i + 16, e / n)


@jit
def _mean_of_known(f: Any, window: int, count: int) -> None:
    """Means of those of the last `window` closes that exist."""
    zero, one = splat_f(0.0), splat_f(1.0)
    for i in range(0, count, 4):
        total, found = zero, zero
        for k in range(window):
            close = load_f(f, HISTORY + i + k)
            total = total + where_nan(close, zero, close)
            found = found + where_nan(close, zero, one)
        store(f, AVERAGE + i, total / found)


@jit
def _roll(f: Any, step: int, count: int, sketch: Sketch) -> None:
    """Join the extremes of each row with those `step` rows on."""
    for i in range(0, count, 4):
        store(f, LOWEST + i, lower_of(load_f(f, LOWEST + i), load_f(f, LOWEST + i + step)))
        store(f, HIGHEST + i, higher_of(load_f(f, HIGHEST + i), load_f(f, HIGHEST + i + step)))
    if sketch.volume:
        for i in range(0, count, 4):
            store(f, MOST + i, higher_of(load_f(f, MOST + i), load_f(f, MOST + i + step)))
        if sketch.style == CNN_FOR_TRADING:
            for i in range(0, count, 4):
                store(f, LEAST + i, lower_of(load_f(f, LEAST + i), load_f(f, LEAST + i + step)))


@jit
def _join_all(f: Any, count: int, sketch: Sketch) -> None:
    """Join the extremes of all rows, at least four of them, into those of the first."""
    low, high, most = load_f(f, LOWEST), load_f(f, HIGHEST), load_f(f, MOST)
    whole = count & -4
    for i in range(4, whole, 4):
        low = lower_of(low, load_f(f, LOWEST + i))
        high = higher_of(high, load_f(f, HIGHEST + i))
        most = higher_of(most, load_f(f, MOST + i))
    store(f, LOWEST, low)
    store(f, HIGHEST, high)
    lowest = min(f[LOWEST], f[LOWEST + 1], f[LOWEST + 2], f[LOWEST + 3])
    highest = max(f[HIGHEST], f[HIGHEST + 1], f[HIGHEST + 2], f[HIGHEST + 3])
    for i in range(whole, count):
        lowest, highest = min(lowest, f[LOWEST + i]), max(highest, f[HIGHEST + i])
    f[LOWEST], f[HIGHEST] = lowest, highest
    if sketch.volume:
        store(f, MOST, most)
        largest = max(f[MOST], f[MOST + 1], f[MOST + 2], f[MOST + 3])
        for i in range(whole, count):
            largest = max(largest, f[MOST + i])
        f[MOST] = largest


@jit
def _count_odd_bars(panel: Any, columns: int, start: int, count: int, sketch: Sketch, f: Any) -> None:
    """Running number of bars that the style cares for: ``f[ODD + b] - f[ODD + a]`` of rows a..b - 1.

    With given averages: bars that have a price at all. In CNN-for-Trading: bars whose prices add up to four
    times the open; a bar with anything missing weighs so much that its windows go to the plain kernel.
    """
    number = 0.0
    for i in range(count):
        f[ODD + i] = number
        at = columns * (start + i)
        o, h, l, c, v = (
            abs(panel[at]),
            abs(panel[at + 1]),
            abs(panel[at + 2]),
            abs(panel[at + 3]),
            panel[at + 4],
        )
        total = o + h + l + c
        if sketch.style != CNN_FOR_TRADING:
            number += not (np.isnan(o) and np.isnan(h) and np.isnan(l) and np.isnan(c))
        elif np.isnan(total) or (sketch.volume and np.isnan(v)):
            number += 1000.0
        else:
            number += total / o == 4.0
    f[ODD + count] = number


# Bars to words -----------------------------------------------------------------------------------------------
#
# `base` is the bit of a word in which price level 0 lies, `volume_base` that of the image's lowest row; outside
# 0..63 they lie in another band. Four words are drawn at once. `tall` is None for images of one band, and
# `truncated` is None unless levels are truncated: Numba compiles the branches on them away.


@inlined
def _levels(f, i, low, scale, sketch, truncated):
    """MAGIC_BITS + the levels of four prices. Subtract, then multiply (or divide), then round, all in float64."""
    if truncated is None:
        return bits_of((load_f(f, i) - low) * scale + MAGIC)
    exact = (load_f(f, i) - low) / scale * sketch.span + sketch.rise
    nearest = exact + MAGIC - MAGIC
    return bits_of(where_higher(nearest, exact, nearest - 1.0, nearest) + MAGIC)


@inlined
def _key_segments(f, o, sketch, base, ints, keys):
    """Key and lowest bit of every segment, four and four: ``ints[keys + 2 * d]`` and four further on.

    A pass of its own: the table's words are then in reach when ``_draw`` asks for them. In one pass with the
    drawing, each bar waits for its own store, load and look-up (117 instead of 104 ns an image).
    """
    low, scale = splat_f(f[LOWEST + o]), splat_f(f[SCALE + o])
    rows, last = sketch.price_height, sketch.lookback - 1
    never, blank, dot = splat(NEVER), splat(4 * (2 * rows - 1)), splat(4 * (2 * rows))
    lift = splat(MAGIC_BITS - base)
    for d in range(0, last + 1, 4):
        here = _levels(f, AVERAGE + o + d, low, scale, sketch, None)
        there = _levels(f, AVERAGE + o + d + 1, low, scale, sketch, None)
        beyond = splat(0)
        if d + 4 > last:
            # From the last bar no segment starts; its value is a dot if it exists.
            beyond = where_above(count_from(d), splat(last - 1), splat(-1), splat(0))
            there = (there & ~beyond) | (here & beyond)
        key = there - here + (rows - 1)
        key = key + key
        key = key + key
        if d + 4 > last:
            key = (key & ~beyond) | (dot & beyond)
        higher = where_above(here, there, here, there)
        lower = where_above(here, there, there, here)
        store(ints, keys + 2 * d, where_above(higher, never, blank, key))
        store(ints, keys + 2 * d + 4, lower - lift)


@inlined
def _segment(segments, ints, k, sketch, tall):
    """Four words of the segment whose key is ``ints[k]``: one look-up and one shift."""
    key, bit = ints[k], ints[k + 4]
    words = shift_up(load_i(segments, key), splat(bit))
    if tall is not None:
        rows = sketch.price_height
        words = words | shift_down(load_i(segments, key), splat(-bit))
        if abs(key - 4 * (rows - 1)) >= 4 * 64:
            # Longer than a word: rare.
            for part in range(1, (rows + 63) // 64):
                more = load_i(segments, part * 4 * (2 * rows + 1) + key)
                words = (
                    words | shift_up(more, splat(bit + 64 * part)) | shift_down(more, splat(-bit - 64 * part))
                )
    return words


@inlined
def _draw(f, o, sketch, segments, base, volume_base, tall, truncated, ints, keys, words):
    """Words of one band of the window that begins at row o, from ``ints[words]`` on, 12 columns at a time.

    Columns are stored once, in whole vectors. Adding the segments to words already stored had each load wait
    for two stores that overlap it, which is slow by itself and waits for all stores past the cache before.
    """
    low, scale = splat_f(f[LOWEST + o]), splat_f(f[SCALE + o])
    volume_low, volume_scale = splat_f(f[LEAST + o]), splat_f(f[VOLUME_SCALE + o])
    one, ones, zero = splat(1), splat(-1), splat(0)
    nothing, least = splat_f(0.0), splat_f(1.0)
    lift, lift_high, lift_volume = (
        splat(MAGIC_BITS - base),
        splat(MAGIC_BITS - base - 1),
        splat(MAGIC_BITS - volume_base),
    )
    floor = splat(-1 << max(0, volume_base))
    before = zero
    for d in range(0, sketch.lookback, 4):
        y_open = _levels(f, OPEN + o + d, low, scale, sketch, truncated) - lift
        y_above = _levels(f, HIGH + o + d, low, scale, sketch, truncated) - lift_high
        y_low = _levels(f, LOW + o + d, low, scale, sketch, truncated) - lift
        y_close = _levels(f, CLOSE + o + d, low, scale, sketch, truncated) - lift
        if tall is not None:
            y_above = where_above(y_above, zero, y_above, zero)
            y_low = where_above(y_low, zero, y_low, zero)
        left = shift_up(one, y_open)
        # From the low's bit up, but not from the bit above the high's: empty where the high lies below.
        middle = shift_up(ones, y_low) & ~shift_up(ones, y_above)
        if sketch.style == JKX:
            middle = middle | left
        if sketch.volume:
            v = load_f(f, VOLUME + o + d)
            if truncated is None:
                bar = where_higher(v, nothing, higher_of(least, v * volume_scale), nothing) + MAGIC
            else:
                exact = (v - volume_low) / volume_scale * np.float64(sketch.volume_height)
                nearest = exact + MAGIC - MAGIC
                bar = where_higher(nearest, exact, nearest - 1.0, nearest) + MAGIC
            top = bits_of(bar) - lift_volume
            if tall is not None:
                top = where_above(top, zero, top, zero)
            middle = middle | (floor & ~shift_up(ones, top))
        if truncated is not None and sketch.average:
            dash = shift_up(one, _levels(f, AVERAGE + o + d, low, scale, sketch, truncated) - lift)
            left = left | dash
            middle = middle | dash
        a, b, c = interleave(left, middle, shift_up(one, y_close))
        if truncated is None and sketch.average:
            k = keys + 2 * d
            s0 = _segment(segments, ints, k, sketch, tall)
            s1 = _segment(segments, ints, k + 1, sketch, tall)
            s2 = _segment(segments, ints, k + 2, sketch, tall)
            s3 = _segment(segments, ints, k + 3, sketch, tall)
            more_a, more_b, more_c = chain(before, s0, s1, s2, s3)
            before = s3
            a, b, c = a | more_a, b | more_b, c | more_c
        store(ints, words + 3 * d, a)
        store(ints, words + 3 * d + 4, b)
        store(ints, words + 3 * d + 8, c)


# Words to bytes ----------------------------------------------------------------------------------------------


@inlined
def _spread(ints, words, stride, height, width, planes, at, copies):
    """Planes of one image, from its words.

    Blocks of 32 columns from right to left, so that what the rightmost writes past the end of a plane's row is
    overwritten by the block that owns those bytes.
    """
    groups = (height + 7) // 8
    column = (width - 1) // 32 * 32
    while column >= 0:
        for band in range((groups + 7) // 8):
            left = min(8, groups - 8 * band)
            there = at + 8 * band * copies * width + column
            store_planes(ints, words + band * stride + column, left, planes, there, width, copies)
        column -= 32


@inlined
def _write(
    planes,
    at,
    out,
    begin,
    size,
    head,
    half,
    head_joined,
    tail_joins,
    edge,
    period,
    jump,
    offsets,
    masks,
    ending,
    ending_mask,
    streamed,
):
    """Bytes of one image from its planes at `at` to ``out[begin]`` on.

    Everything between the first and the last multiple of 32 bytes are whole vectors. The ends that remain are
    joined with the neighbouring image's where that is written next (the vector waits in ``edge[96]``), and are
    written as ordinary, unaligned vectors otherwise. `half` is 32 if the first of the whole vectors is the second
    half of a line of the cache, else 0.
    """
    vectors = (size - head) // 32
    if head > 0:
        if head_joined:
            v = ink(load_b(planes, at + head - 32), load_b(masks, 1024 * period + 32 * head))
            v = (v & load_b(edge, head)) | load_b(edge, 96)
            if streamed:
                stream(out, begin + head - 32, v)
            else:
                store(out, begin + head - 32, v)
        else:
            store(out, begin, ink(load_b(planes, at), load_b(masks, 0)))
    target = begin + head
    source = at
    left = vectors
    first = 0
    rest = size - head - 32 * vectors
    if streamed and vectors > 0:
        # A vector that shares its line of 64 bytes with an end goes through the cache as that does: past it, it
        # would wait for the line to be written back. That is 320 instead of 610 ns an image of 32x15.
        if head > 0 and half > 0 and not head_joined:
            t = head * period
            store(out, target, ink(load_b(planes, at + offsets[t]), load_b(masks, 32 * t)))
            first = 1
        if rest > 0 and (half + 32 * vectors) & 63 > 0 and not tail_joins:
            left -= 1
            if left >= first:
                t = head * period + left % period
                v = ink(load_b(planes, at + left // period * jump + offsets[t]), load_b(masks, 32 * t))
                store(out, target + 32 * left, v)
    while left > 0:
        n = min(left, period)
        if streamed:
            for t in range(first, n):
                bits = load_b(planes, source + offsets[head * period + t])
                stream(out, target + 32 * t, ink(bits, load_b(masks, 32 * (head * period + t))))
        else:
            for t in range(n):
                bits = load_b(planes, source + offsets[head * period + t])
                store(out, target + 32 * t, ink(bits, load_b(masks, 32 * (head * period + t))))
        left -= n
        target += 32 * n
        source += jump
        first = 0
    if rest > 0:
        if tail_joins:
            t = head * period + vectors % period
            source = at + vectors // period * jump
            v = ink(load_b(planes, source + offsets[t]), load_b(masks, 32 * t))
            store(edge, 96, v & load_b(edge, 64 - rest))
        else:
            store(out, begin + size - 32, ink(load_b(planes, at + ending), load_b(ending_mask, 0)))


@inlined
def _pack(ints, words, stride, height, width, out, begin):
    """Column bits of one image, from its words."""
    if height == 64 and width % 4 == 0:
        for c in range(0, width, 4):
            store_swapped(ints, words + c, out, begin + 8 * c)
    else:
        pending = np.uint64(0)
        filled = 0
        for c in range(width):
            for band in range((height + 63) // 64):
                word = np.uint64(ints[words + band * stride + c])
                bits = min(64, height - 64 * band)
                pending |= word >> np.uint64(filled)
                filled += bits
                if filled >= 64:
                    store_word(out, begin, pending)
                    begin += 8
                    filled -= 64
                    # The bits of this word that found no room; shifting by 64 is not defined.
                    pending = (
                        (word << np.uint64(bits - 1 - filled)) << np.uint64(1) if filled > 0 else np.uint64(0)
                    )
        while filled > 0:
            out[begin] = np.uint8(pending >> np.uint64(56))
            pending <<= np.uint64(8)
            begin += 1
            filled -= 8


@jit
def render_task(
    panel: Any, given: Any, at_limit: int, sketch: Sketch, tall: Any, truncated: Any, tables: Tables,
    first: Any, row: Any, dest: Any, out: Any, mode: int, streamed: bool, reason: Any,
) -> None:  # fmt: skip
    """Draw the windows that end at the panel rows `row` into image ``dest`` of the flat `out`.

    ``first[i]`` is the first row of window i's instrument. At most TASK_WINDOWS windows, of any instruments and in
    any order; those that follow each other with ascending rows share the work that they have in common.
    """
    n = row.shape[0]
    lookback, height, width = sketch.lookback, sketch.height, sketch.width
    size = height * width
    bands = (height + 63) // 64
    copies, period, jump, last_offset = tables.copies, tables.period, tables.jump, tables.last_offset
    # Small images go through the steps in batches, about 4 kB at once: else a step is over before the stores
    # of the step before have left the CPU's store queue, and its loads wait for them.
    batch = max(1, 4096 // size)
    slots = 2 * batch
    word_stride = 12 * ((lookback + 3) // 4)
    word_slot = bands * word_stride + 32
    plane_slot = ((height + 7) // 8 * copies * width + 127) // 32 * 32
    keys = slots * word_slot
    n_ints = keys + 2 * lookback + 16
    n_bytes = (slots * plane_slot + 64 + 128 + 63) // 64 * 64
    # A store across two pages waits for all stores past the caches, so what is written unaligned comes first.
    scratch = np.empty(n_bytes + 8 * (n_ints + FLOATS) + 4096, np.uint8)
    start = -scratch.ctypes.data & 4095
    planes = pointer(scratch[start : start + n_bytes - 128])
    start += n_bytes
    edge_bytes = scratch[start - 128 : start]
    edge_bytes[:] = 0
    edge_bytes[32:64] = 255
    edge = pointer(edge_bytes)
    ints = pointer(scratch[start : start + 8 * n_ints].view(np.int64))
    start += 8 * n_ints
    f = pointer(scratch[start : start + 8 * FLOATS].view(np.float64))
    bars, pixels, address = pointer(panel), pointer(out), np.int64(out.ctypes.data)
    segments, offsets, masks = pointer(tables.segments), pointer(tables.offsets), pointer(tables.masks)
    last_mask = pointer(tables.last_mask)
    packed = (size + 7) // 8
    base, volume_base = 64 - sketch.price_height, 64 - height

    columns, reach = 5, lookback
    if given is None:
        columns = LAID_OUT
    elif sketch.average and given.shape[0] == 0:
        reach += sketch.average - 1
    run_first = run_end = 0
    joined = False
    for now in range(0, n + 2 * batch, batch):
        for i in range(now, min(now + batch, n)):
            soon = i + _AHEAD
            if soon < n and not 0 <= row[soon] - row[soon - 1] < lookback:
                # Bars that nothing leads up to, as in a shuffled batch, lie anywhere in memory.
                for k in range(
                    columns * max(first[soon], row[soon] + 1 - reach), columns * (row[soon] + 1), 8
                ):
                    prefetch(bars, k)
            if i == run_end:
                run_first = row[i] - lookback + 1
                run_end += 1
                # A run of windows that share bars shares all that is computed by bar.
                while (
                    run_end < n
                    and first[run_end] == first[i]
                    and 0 <= row[run_end] - row[run_end - 1] < lookback
                    and row[run_end] - row[i] < TASK_WINDOWS
                ):
                    run_end += 1
                _prepare(
                    bars,
                    panel.shape[0],
                    given,
                    first[i],
                    run_first,
                    row[run_end - 1] + 1 - run_first,
                    sketch,
                    f,
                )
            o = row[i] - lookback + 1 - run_first
            why = np.int64(f[REASON + o])
            if why == FLAT and at_limit:
                why = DEFERRED
            reason[dest[i]] = why
            if mode != DRY:
                words = i % slots * word_slot
                for band in range(bands):
                    if why == VALID:
                        if sketch.average and truncated is None:
                            _key_segments(f, o, sketch, base + 64 * band, ints, keys)
                        _draw(
                            f, o, sketch, segments, base + 64 * band, volume_base + 64 * band, tall, truncated,
                            ints, keys, words + band * word_stride,
                        )  # fmt: skip
                    else:
                        for c in range(width):
                            ints[words + band * word_stride + c] = 0
        for i in range(max(0, now - batch), min(now, n)):
            words = i % slots * word_slot
            if mode == PIXELS:
                _spread(ints, words, word_stride, height, width, planes, 32 + i % slots * plane_slot, copies)
            elif mode != DRY:
                _pack(ints, words, word_stride, height, width, pixels, dest[i] * packed)
        if mode == PIXELS:
            for i in range(max(0, now - 2 * batch), min(now - batch, n)):
                begin = dest[i] * size
                joins = i + 1 < n and dest[i + 1] == dest[i] + 1
                _write(
                    planes, 32 + i % slots * plane_slot, pixels, begin, size, -(address + begin) & 31,
                    (address + begin + 31) & 32, joined, joins, edge, period, jump, offsets, masks, last_offset,
                    last_mask, streamed,
                )  # fmt: skip
                joined = joins
    fence()
    # Numba frees an array after its last use, and does not know that pointers into it are uses.
    scratch[0] = 0


@jit
def render_serial(
    panel: Any, given: Any, at_limit: int, sketch: Sketch, tall: Any, truncated: Any, tables: Tables,
    starts: Any, first: Any, row: Any, dest: Any, out: Any, mode: int, streamed: bool, reason: Any,
) -> None:  # fmt: skip
    """Run the tasks one after the other without the interpreter's lock: for worker threads and dask tasks."""
    for t in range(starts.shape[0] - 1):
        a, b = starts[t], starts[t + 1]
        render_task(
            panel, given, at_limit, sketch, tall, truncated, tables,
            first[a:b], row[a:b], dest[a:b], out, mode, streamed, reason,
        )  # fmt: skip


@jit
def render_some(
    panel: Any, given: Any, at_limit: int, sketch: Sketch, tall: Any, truncated: Any, tables: Tables,
    rows: Any, instruments: Any, offsets: Any, which: Any, out: Any, streamed: bool, reason: Any,
) -> int:  # fmt: skip
    """Draw windows `which` of an index (panel row, instrument) into `out`, in that order; count the undrawn."""
    n = which.shape[0]
    size = sketch.height * sketch.width
    most = min(n, TASK_WINDOWS)
    first, row, dest = np.empty(most, np.int64), np.empty(most, np.int64), np.arange(most)
    undrawn = 0
    for a in range(0, n, TASK_WINDOWS):
        count = min(n - a, TASK_WINDOWS)
        for i in range(count):
            row[i] = rows[which[a + i]]
            # Beside their averages bars need none before the window: a look-up less in memory far away. Windows that
            # share bars are of one instrument anyway.
            first[i] = 0 if given is None else offsets[instruments[which[a + i]]]
        render_task(
            panel, given, at_limit, sketch, tall, truncated, tables,
            first[:count], row[:count], dest[:count], out[a * size : (a + count) * size], PIXELS, streamed,
            reason[a : a + count],
        )  # fmt: skip
        for i in range(count):
            undrawn += reason[a + i] != VALID
    return undrawn


@parallel_jit
def render_parallel(
    panel: Any, given: Any, at_limit: int, sketch: Sketch, tall: Any, truncated: Any, tables: Tables,
    starts: Any, first: Any, row: Any, dest: Any, out: Any, mode: int, streamed: bool, reason: Any,
) -> None:  # fmt: skip
    """Run the tasks on Numba's threads: for one big call from one thread at a time."""
    for t in numba.prange(starts.shape[0] - 1):
        a, b = starts[t], starts[t + 1]
        render_task(
            panel, given, at_limit, sketch, tall, truncated, tables,
            first[a:b], row[a:b], dest[a:b], out, mode, streamed, reason,
        )  # fmt: skip


@jit
def widen(bits: Any, height: int, width: int, tables: Tables, out: Any, streamed: bool) -> None:
    """Turn column bits, uint8 (n, bytes), into images in the flat `out`: the second half of ``render_task``."""
    n, packed = bits.shape
    size = height * width
    bands = (height + 63) // 64
    copies, period, jump, last_offset = tables.copies, tables.period, tables.jump, tables.last_offset
    batch = max(1, 4096 // size)
    slots = 2 * batch
    word_slot = bands * width + 32
    plane_slot = ((height + 7) // 8 * copies * width + 127) // 32 * 32
    n_ints = slots * word_slot
    n_bytes = (slots * plane_slot + 64 + 128 + 63) // 64 * 64
    scratch = np.empty(n_bytes + 8 * n_ints + packed + 16 + 4096, np.uint8)
    start = -scratch.ctypes.data & 4095
    planes = pointer(scratch[start : start + n_bytes - 128])
    start += n_bytes
    edge_bytes = scratch[start - 128 : start]
    edge_bytes[:] = 0
    edge_bytes[32:64] = 255
    edge = pointer(edge_bytes)
    ints = pointer(scratch[start : start + 8 * n_ints].view(np.int64))
    start += 8 * n_ints
    ending = scratch[start : start + packed + 16]
    pixels, address = pointer(out), np.int64(out.ctypes.data)
    offsets, masks, last_mask = pointer(tables.offsets), pointer(tables.masks), pointer(tables.last_mask)
    source = pointer(bits)
    for now in range(0, n + 2 * batch, batch):
        for i in range(now, min(now + batch, n)):
            words = i % slots * word_slot
            at = i * packed
            if i == n - 1:
                # Words reach past the end of the bits.
                ending[:packed] = bits[i]
                source = pointer(ending)
                at = 0
            if height % 8 == 0:
                for band in range(bands):
                    for c in range(width):
                        ints[words + band * width + c] = load_word(source, at + (c * height) // 8 + 8 * band)
            else:
                for c in range(width):
                    for band in range(bands):
                        bit = c * height + 64 * band
                        byte, skip = at + (bit >> 3), np.uint64(bit & 7)
                        word = load_word(source, byte) << skip
                        word |= np.uint64(source[byte + 8]) >> (np.uint64(8) - skip)
                        ints[words + band * width + c] = word
        for i in range(max(0, now - batch), min(now, n)):
            _spread(
                ints, i % slots * word_slot, width, height, width, planes, 32 + i % slots * plane_slot, copies
            )
        for i in range(max(0, now - 2 * batch), min(now - batch, n)):
            _write(
                planes, 32 + i % slots * plane_slot, pixels, i * size, size, -(address + i * size) & 31,
                (address + i * size + 31) & 32, i > 0, i < n - 1, edge, period, jump, offsets, masks, last_offset,
                last_mask, streamed,
            )  # fmt: skip
    fence()
    scratch[0] = 0  # held until here, as in render_task
