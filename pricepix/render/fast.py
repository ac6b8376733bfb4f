"""The fast path: bars to images at the speed of memory, for the images that the field draws.

It draws the same bytes as ``kernels.py``, which stays the definition, for the specs that ``supports`` names;
``draw.run`` chooses between the two. How it differs from drawing pixel by pixel:

1.  A pixel column is a WORD: 64 rows are 64 bits of one int64, the top row the highest bit. A stem is two
    shifts and an AND, a tick one shift, a volume bar one shift, a segment of a moving average one look-up in a
    table of words and one shift. Images of more than 64 rows are drawn in bands of 64 rows.
2.  Everything before the words is a loop over bars in float64, four bars at a time, from contiguous arrays:
    prices, moving averages, and the rolling extremes that give each window its scale (``_prepare``).
3.  A word's eight bytes lie in eight PLANES, one for every 8 rows, each a byte a column. 32 pixels of a row are
    32 bytes of a plane, tested for one bit and written as 0 or 255 (``_write``): three instructions.
4.  Rows are seldom a multiple of 32 bytes. The planes hold their row of bytes several times over, so that 32
    bytes may run over the end of a row; which bit to test then differs within the vector, and a small table holds
    it. So all stores are whole, aligned vectors, and may bypass the caches.
5.  Windows pass through these steps in a PIPELINE: while one is drawn, the planes of the one before are made
    and the image of the one before that is written. No step waits for what the step before has just stored.

What each of them gained stands beside the code, measured on one thread of a 2-core Zen 3 (AVX2), 64x60.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba
import numpy as np

from pricepix.render.reasons import CONSTANT_VOLUME, FLAT, FLAT_BARS, INFINITE, NO_PRICE, VALID
from pricepix.render.rules import CLOSE as CLOSE_COLUMN
from pricepix.render.rules import (
    CNN_FOR_TRADING,
    DRY,
    IMAGE_TRADING,
    JKX,
    PIXELS,
    PanelArrays,
    WindowRows,
    jit,
)
from pricepix.render.simd import (
    absolute,
    bits_of,
    bytes_in,
    chain,
    count_from,
    fence,
    floats_in,
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
    store_nontemporal,
    store_planes,
    store_swapped,
    store_word,
    where_above,
    where_higher,
    where_nan,
    words_in,
)
from pricepix.render.window_bars import moving_average

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pricepix.spec import ImageSpec

# Inlined before type inference: the constants of a step then stay in registers from one window to the next, and
# branches on an argument that is None vanish. Plain calls cost 90 of 1280 instructions an image.
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")

DEFERRED: Final = 255
"""Reason code, internal to the renderer, of a window that the plain kernel must draw."""

TASK_WINDOWS: Final = 256
_LINE: Final = 64
# Most memory for the lines that images share: 8 million images.
_SHARED_BYTES: Final = 1 << 29
# Outputs from this size on are stored past the caches. Through them, every line is first read from memory only to be
# replaced, which cost a third of the speed; but whoever asked for a small output will read it from the cache.
NONTEMPORAL_BYTES: Final = 32 << 20
# Windows between the prefetch of a window's bars and their use. In a shuffled batch, where no earlier window has read
# them, that saves a tenth of the time and more if the panel is larger than the caches.
_PREFETCH_WINDOWS: Final = 3
INTERLEAVED_COLUMNS: Final = 6
"""Columns of the table that ``interleave_averages`` writes."""
MAX_LOOKBACK: Final = 512
MAX_AVERAGE: Final = 512
MAX_HEIGHT: Final = 512

# x + MAGIC has no bits left for a fraction, so the sum itself rounds x to the nearest whole number, half to
# even, and its low bits are that number: rint and the conversion to an integer in one addition. It is exact for
# |x| < 2**51. Missing prices are infinite here, which makes bits far above those of any level.
MAGIC: Final = 6755399441055744.0
MAGIC_BITS: Final = 0x4338000000000000
NEVER: Final = MAGIC_BITS + 1023

# Fields of a task's float64 scratch, one value a row each. The odd distance keeps them apart in the cache.
FIELD_STRIDE: Final = 808
OPEN: Final = 0
HIGH: Final = 1 * FIELD_STRIDE
LOW: Final = 2 * FIELD_STRIDE
CLOSE: Final = 3 * FIELD_STRIDE
VOLUME: Final = 4 * FIELD_STRIDE
AVERAGE: Final = 5 * FIELD_STRIDE
LOWEST: Final = 6 * FIELD_STRIDE
HIGHEST: Final = 7 * FIELD_STRIDE
LARGEST: Final = 8 * FIELD_STRIDE
SMALLEST: Final = 9 * FIELD_STRIDE
SCALE: Final = 10 * FIELD_STRIDE
VOLUME_SCALE: Final = 11 * FIELD_STRIDE
ODD: Final = 12 * FIELD_STRIDE
REASON: Final = 13 * FIELD_STRIDE
HISTORY: Final = 14 * FIELD_STRIDE
FLOATS: Final = 16 * FIELD_STRIDE


class FastParams(NamedTuple):
    """An ImageSpec in the numbers that the fast path takes."""

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
    at_limit: int
    """Whether flat windows may be drawn, which is the plain kernel's work."""


class Tables(NamedTuple):
    """Arrays that depend only on the spec; see ``_segment_table`` and ``_byte_tables``."""

    segments: Any
    offsets: Any
    masks: Any
    last_mask: Any
    last_offset: int
    period: int
    copies: int
    jump: int


class Job(NamedTuple):
    """What the drivers draw from: their first arguments."""

    bars: Any
    """float64 (rows, 5), or (rows, 6) as ``interleave_averages`` writes it."""
    averages: Any
    """float64 (rows, 1), empty where averages come from the closes; None where they lie in `bars`."""
    params: FastParams
    banded: Any
    """True for images of more than 64 rows, else None: Numba compiles the branches on None away."""
    truncated: Any
    """True where levels are truncated instead of rounded, else None."""
    tables: Tables


class Scratch(NamedTuple):
    """Memory of one task, as addresses, and what the steps of the pipeline use of each of its slots."""

    memory: Any
    """The array that owns it all."""
    planes: Any
    edge: Any
    ints: Any
    rest: int
    """Byte of `memory` where what only one caller needs begins."""
    batch: int
    """Images that go through a step at once."""
    slots: int
    """Images whose words and planes are kept: two batches."""
    word_slot: int
    plane_slot: int


class Pattern(NamedTuple):
    """Tables of the image's bytes in compiled code: addresses instead of arrays."""

    offsets: Any
    masks: Any
    last_mask: Any
    last_offset: int
    period: int
    jump: int
    lines: Any
    marks: Any
    gathers: bool
    """Whether `lines` is used."""


class Stores(NamedTuple):
    """How images are written."""

    nontemporal: bool
    """Past the caches."""
    lines: Any
    """uint8 (images + 1, 64): the cache lines that two neighbouring images share, to be written once both are
    there; empty where each image writes its own part. Stored past the caches, a part of a line waits for the line to be
    read and merged: half the time of images that are written far from each other."""
    marks: Any
    """uint8 (images + 1, 2): whether the end of the image before is in its line, and the beginning of the one after."""


_NO_STORES = np.zeros((0, _LINE), np.uint8), np.zeros((0, 2), np.uint8)


def supports(spec: ImageSpec) -> bool:
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


def job_of(arrays: PanelArrays, spec: ImageSpec) -> Job:
    """Return what the drivers draw from; ``arrays.averages`` is None where bars and averages are interleaved."""
    params = fast_params(spec, at_limit=len(arrays.up) + len(arrays.down) > 0)
    return Job(
        bars=arrays.bars,
        averages=arrays.averages,
        params=params,
        banded=True if spec.height > 64 else None,
        truncated=True if spec.style == "cnn_for_trading" else None,
        tables=build_tables(params),
    )


def plan_tasks(windows: int) -> NDArray[np.int64]:
    """Bounds of the tasks: equally many windows each, whatever their instruments."""
    return np.append(np.arange(0, windows, TASK_WINDOWS), windows)


def uses_nontemporal_stores(out: NDArray[np.uint8]) -> bool:
    """Whether `out` is too large to stay in the caches, so that stores had better bypass them."""
    return out.nbytes >= NONTEMPORAL_BYTES


def plain_stores(out: NDArray[np.uint8]) -> Stores:
    """Return how to write any images into `out`, each on its own."""
    return Stores(uses_nontemporal_stores(out), *_NO_STORES)


def stores_for(images: NDArray[np.uint8]) -> Stores:
    """Return how to write every one of `images`, uint8 (n, height, width), in any order; `write_lines` comes after."""
    n, size = len(images), images.nbytes // max(len(images), 1)
    # Halves of lines are written on their own sooner than gathered: 86 instead of 123 ns an image of 32x15.
    apart = images.ctypes.data % 32 > 0 or size % 32 > 0
    if not (apart and uses_nontemporal_stores(images) and (n + 1) * _LINE <= _SHARED_BYTES):
        return plain_stores(images)
    return Stores(True, np.empty((n + 1, _LINE), np.uint8), np.zeros((n + 1, 2), np.uint8))


def fast_params(spec: ImageSpec, at_limit: bool) -> FastParams:
    """Translate a spec that ``supports`` accepts; `at_limit`: the panel has flags of limits."""
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
    return FastParams(
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
        at_limit=int(at_limit and spec.style == "image_trading"),
    )


@lru_cache(maxsize=64)
def build_tables(params: FastParams) -> Tables:
    """Build the tables of a spec: about a millisecond."""
    height, width = params.height, params.width
    lines = params.average > 0 and params.style != CNN_FOR_TRADING
    return Tables(
        _segment_table(params.price_height) if lines else np.zeros(4, np.int64), *_byte_tables(height, width)
    )


@lru_cache(maxsize=64)
def build_byte_tables(height: int, width: int) -> Tables:
    """Build the tables of an image size, which are all that ``widen`` needs."""
    return Tables(np.zeros(4, np.int64), *_byte_tables(height, width))


def expands_bits(height: int, width: int) -> bool:
    """Whether ``widen`` supports images of this size: a vector of 32 bytes must not span three planes."""
    return height <= MAX_HEIGHT and height * width >= 64 and width >= 4


def _segment_table(price_height: int) -> NDArray[np.int64]:
    """Words of every moving-average segment, flat (parts, keys, 4 columns): level 0 is the segment's lower end.

    Key ``rise + price_height - 1`` is the segment that rises (or falls) by `rise` levels over four columns; the
    last two keys are nothing at all, and one pixel in the first column. Part p holds levels 64p..64p + 63.
    """
    parts = (price_height + 63) // 64
    table = np.zeros((parts, 2 * price_height + 1, 4), np.int64)
    for rise in range(1 - price_height, price_height):
        climb = abs(rise)
        for c in range(4):
            if climb < 3:
                start = end = (2 * climb * c + 3) // 6
            else:
                # -(-n // 6) is the ceiling of n / 6.
                start = 0 if c == 0 else -(-(2 * c - 1) * climb // 6)
                end = climb if c == 3 else -(-(2 * c + 1) * climb // 6) - 1
            lowest = start if rise >= 0 else climb - end
            word = (1 << end + 1 - start) - 1 << lowest
            table[:, rise + price_height - 1, c] = np.frombuffer(word.to_bytes(8 * parts, "little"), "<i8")
    table[0, 2 * price_height, 0] = 1
    return table.reshape(-1)


def _byte_tables(height: int, width: int) -> tuple[Any, ...]:
    """Where in the planes each aligned vector of an image begins, and which bit each of its 32 bytes tests.

    An image begins anywhere in memory: its first ``head`` bytes lie before the first aligned vector. Vector t
    then covers the bytes from ``head + 32 * t`` on. What it needs repeats after `period` vectors, the
    smallest number that fills whole planes: 8, 16 or 32 rows.

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
def interleave_averages(bars: Any, offsets: Any, average: int, partial: int, table: Any) -> None:
    """Write open, high, low, close, volume and moving average of every row side by side.

    For windows at random rows. One of jkx20 averages 20 closes for each of its 20 bars, from 39 bars in 25 cache
    lines; in this table it reads 15 lines and averages nothing.
    """
    for instrument in range(offsets.shape[0] - 1):
        a, b = offsets[instrument], offsets[instrument + 1]
        means = np.empty(b - a)
        moving_average(np.abs(bars[a:b, CLOSE_COLUMN]), 0, average, 1, partial, means)
        table[a:b, :5] = bars[a:b]
        table[a:b, 5] = means


# Rows of bars ------------------------------------------------------------------------------------------------


@inlined
def _reason_of(f, i, params, averages_given):
    """Reason code of the window that begins at row i."""
    lookback = params.lookback
    lowest, highest, largest = f[LOWEST + i], f[HIGHEST + i], f[LARGEST + i]
    if params.style == CNN_FOR_TRADING:
        odd = f[ODD + i + lookback] - f[ODD + i]
        if odd >= 1000.0 or highest == np.inf or (params.volume and largest == np.inf):
            return DEFERRED
        if params.volume and largest == f[SMALLEST + i]:
            return CONSTANT_VOLUME
        if highest == lowest:
            return FLAT
        return FLAT_BARS if odd > lookback // 5 else VALID
    if lowest > highest or (averages_given and f[ODD + i + lookback] == f[ODD + i]):
        return NO_PRICE
    if highest == np.inf or (params.volume and largest == np.inf):
        return INFINITE
    if f[SCALE + i] == np.inf:
        return FLAT
    if params.volume and largest > 0.0 and f[VOLUME_SCALE + i] == np.inf:
        return DEFERRED
    return VALID


@jit
def _prepare_windows(
    panel: Any, total: int, averages: Any, truncated: Any, first: int, start: int, count: int, params: FastParams,
    f: Any,
) -> None:  # fmt: skip
    """Fill the scratch `f` for the windows inside panel rows start..start + count - 1 of one instrument.

    Field k of the i-th row, or of the window that begins there, is ``f[k + i]``. The loops run over whole
    vectors and up to three rows past the end, which nothing reads. This costs 16 ns an image, of which the moving
    average takes 3.
    """
    lookback, volume, average = params.lookback, params.volume, params.average
    columns = INTERLEAVED_COLUMNS if averages is None else 5
    lead = 0
    if averages is not None and average and averages.shape[0] == 0:
        lead = average - 1
        known = min(lead, start - first)
        for i in range(lead - known):
            f[HISTORY + i] = np.nan
        for i in range(lead - known, lead):
            f[HISTORY + i] = abs(panel[5 * (start - lead + i) + CLOSE_COLUMN])
    infinite, zero, minus_infinite = splat_f(np.inf), splat_f(0.0), splat_f(-np.inf)
    for i in range(0, count, 4):
        rows, at = panel, columns * (start + i)
        if start + i + 4 > total:
            # The panel ends inside these four rows.
            for k in range(columns * (total - start - i)):
                f[ODD + k] = panel[at + k]
            rows, at = f, ODD
        if averages is None:
            o, h, l, c, v, m = load_wide_bars(rows, at)
        else:
            o, h, l, c, v = load_bars(rows, at)
            store(f, HISTORY + lead + i, absolute(c))
        o, h, l, c = absolute(o), absolute(h), absolute(l), absolute(c)
        # All prices make the scale. The comparisons are such that a NaN loses against the number beside it.
        low = lower_of(o, lower_of(h, lower_of(l, lower_of(c, infinite))))
        high = higher_of(o, higher_of(h, higher_of(l, higher_of(c, minus_infinite))))
        if averages is None:
            low, high = lower_of(m, low), higher_of(m, high)
            store(f, AVERAGE + i, where_nan(m, infinite, m))
        store(f, LOWEST + i, low)
        store(f, HIGHEST + i, high)
        # A bar without high or low is not drawn at all, and the drawing treats infinite prices as missing.
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
            store(f, LARGEST + i, v)
            store(f, SMALLEST + i, v)
    averages_given = averages is not None and averages.shape[0] > 0
    if truncated is not None or averages_given:
        _count_odd_bars(panel, columns, start, count, params, f)
    if average and averages is not None:
        if averages.shape[0] > 0:
            for i in range(count):
                f[AVERAGE + i] = abs(averages[start + i, 0])
        elif truncated is None:
            _mean(f, average, count)
        else:
            _mean_of_known(f, average, count)
        for i in range(0, count, 4):
            m = load_f(f, AVERAGE + i)
            store(f, LOWEST + i, lower_of(m, load_f(f, LOWEST + i)))
            store(f, HIGHEST + i, higher_of(m, load_f(f, HIGHEST + i)))
            store(f, AVERAGE + i, where_nan(m, infinite, m))
    if count == lookback and count >= 4 and params.style != CNN_FOR_TRADING:
        # A window that shares no bar with another, as in a shuffled batch.
        _join_all(f, count, params)
    else:
        # Rolling extremes over 1, 2, 4, 8 ... rows, and once more overlapping for the rest.
        # A literal would be a type of its own, for which the step would be compiled once more.
        width: Any = np.int64(1)
        while 2 * width <= lookback:
            _roll(f, width, count - 2 * width + 1, params)
            width *= 2
        if width < lookback:
            _roll(f, lookback - width, count - lookback + 1, params)
    windows = count - lookback + 1
    if params.style == CNN_FOR_TRADING:
        for i in range(0, windows, 4):
            store(f, SCALE + i, load_f(f, HIGHEST + i) - load_f(f, LOWEST + i))
            store(f, VOLUME_SCALE + i, load_f(f, LARGEST + i) - load_f(f, SMALLEST + i))
    else:
        span, volume_span = splat_f(params.span), splat_f(np.float64(params.volume_height))
        for i in range(0, windows, 4):
            store(f, SCALE + i, span / (load_f(f, HIGHEST + i) - load_f(f, LOWEST + i)))
            store(f, VOLUME_SCALE + i, volume_span / load_f(f, LARGEST + i))
    for i in range(windows):
        f[REASON + i] = _reason_of(f, i, params, averages_given)


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
    """Means of the last `window` closes, without the missing ones."""
    zero, one = splat_f(0.0), splat_f(1.0)
    for i in range(0, count, 4):
        total, found = zero, zero
        for k in range(window):
            close = load_f(f, HISTORY + i + k)
            total = total + where_nan(close, zero, close)
            found = found + where_nan(close, zero, one)
        store(f, AVERAGE + i, total / found)


@jit
def _roll(f: Any, step: int, count: int, params: FastParams) -> None:
    """Join the extremes of each row with those of the row `step` later."""
    for i in range(0, count, 4):
        store(f, LOWEST + i, lower_of(load_f(f, LOWEST + i), load_f(f, LOWEST + i + step)))
        store(f, HIGHEST + i, higher_of(load_f(f, HIGHEST + i), load_f(f, HIGHEST + i + step)))
    if params.volume:
        for i in range(0, count, 4):
            store(f, LARGEST + i, higher_of(load_f(f, LARGEST + i), load_f(f, LARGEST + i + step)))
        if params.style == CNN_FOR_TRADING:
            for i in range(0, count, 4):
                store(f, SMALLEST + i, lower_of(load_f(f, SMALLEST + i), load_f(f, SMALLEST + i + step)))


@jit
def _join_all(f: Any, count: int, params: FastParams) -> None:
    """Join the extremes of all rows, at least four of them, into those of the first."""
    low, high, volume = load_f(f, LOWEST), load_f(f, HIGHEST), load_f(f, LARGEST)
    whole = count & -4
    for i in range(4, whole, 4):
        low = lower_of(low, load_f(f, LOWEST + i))
        high = higher_of(high, load_f(f, HIGHEST + i))
        volume = higher_of(volume, load_f(f, LARGEST + i))
    store(f, LOWEST, low)
    store(f, HIGHEST, high)
    lowest = min(f[LOWEST], f[LOWEST + 1], f[LOWEST + 2], f[LOWEST + 3])
    highest = max(f[HIGHEST], f[HIGHEST + 1], f[HIGHEST + 2], f[HIGHEST + 3])
    for i in range(whole, count):
        lowest, highest = min(lowest, f[LOWEST + i]), max(highest, f[HIGHEST + i])
    f[LOWEST], f[HIGHEST] = lowest, highest
    if params.volume:
        store(f, LARGEST, volume)
        largest = max(f[LARGEST], f[LARGEST + 1], f[LARGEST + 2], f[LARGEST + 3])
        for i in range(whole, count):
            largest = max(largest, f[LARGEST + i])
        f[LARGEST] = largest


@jit
def _count_odd_bars(panel: Any, columns: int, start: int, count: int, params: FastParams, f: Any) -> None:
    """Running count of the bars that the style counts: ``f[ODD + b] - f[ODD + a]`` of rows a..b - 1.

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
        if params.style != CNN_FOR_TRADING:
            number += not (np.isnan(o) and np.isnan(h) and np.isnan(l) and np.isnan(c))
        elif np.isnan(total) or (params.volume and np.isnan(v)):
            number += 1000.0
        else:
            number += total / o == 4.0
    f[ODD + count] = number


# Bars to words -----------------------------------------------------------------------------------------------
#
# `base` is the bit of a word in which price level 0 lies, `volume_base` that of the image's lowest row; outside
# 0..63 they lie in another band. Four words are drawn at once. `banded` is None for images of one band, and
# `truncated` is None unless levels are truncated: Numba compiles the branches on them away.


@inlined
def _levels(f, i, low, scale, params, truncated):
    """MAGIC_BITS + the levels of four prices. Subtract, then multiply (or divide), then round, all in float64."""
    if truncated is None:
        return bits_of((load_f(f, i) - low) * scale + MAGIC)
    exact = (load_f(f, i) - low) / scale * params.span + params.rise
    nearest = exact + MAGIC - MAGIC
    return bits_of(where_higher(nearest, exact, nearest - 1.0, nearest) + MAGIC)


@inlined
def _key_segments(f, o, params, base, ints, keys):
    """Key and lowest bit of every segment, four and four: ``ints[keys + 2 * d]`` and four further on.

    A pass of its own: the table's words are then in the cache when ``_draw`` asks for them. In one pass with the
    drawing, each bar waits for its own store, load and look-up (117 instead of 104 ns an image).
    """
    low, scale = splat_f(f[LOWEST + o]), splat_f(f[SCALE + o])
    rows, last = params.price_height, params.lookback - 1
    never, blank, dot = splat(NEVER), splat(4 * (2 * rows - 1)), splat(4 * (2 * rows))
    lift = splat(MAGIC_BITS - base)
    for d in range(0, last + 1, 4):
        here = _levels(f, AVERAGE + o + d, low, scale, params, None)
        there = _levels(f, AVERAGE + o + d + 1, low, scale, params, None)
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
def _segment(segments, ints, k, params, banded):
    """Four words of the segment whose key is ``ints[k]``: one look-up and one shift."""
    key, bit = ints[k], ints[k + 4]
    words = shift_up(load_i(segments, key), splat(bit))
    if banded is not None:
        rows = params.price_height
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
def _draw(f, o, params, segments, base, volume_base, banded, truncated, ints, keys, words):
    """Words of one band of the window that begins at row o, from ``ints[words]`` on, 12 columns at a time.

    Columns are stored once, in whole vectors. Adding the segments to words already stored had each load wait
    for two stores that overlap it, which is slow by itself and waits for all stores past the cache before.
    """
    low, scale = splat_f(f[LOWEST + o]), splat_f(f[SCALE + o])
    volume_low, volume_scale = splat_f(f[SMALLEST + o]), splat_f(f[VOLUME_SCALE + o])
    one, ones, zero = splat(1), splat(-1), splat(0)
    no_rows, one_row = splat_f(0.0), splat_f(1.0)
    lift, lift_high, lift_volume = (
        splat(MAGIC_BITS - base),
        splat(MAGIC_BITS - base - 1),
        splat(MAGIC_BITS - volume_base),
    )
    floor = splat(-1 << max(0, volume_base))
    before = zero
    for d in range(0, params.lookback, 4):
        y_open = _levels(f, OPEN + o + d, low, scale, params, truncated) - lift
        y_above = _levels(f, HIGH + o + d, low, scale, params, truncated) - lift_high
        y_low = _levels(f, LOW + o + d, low, scale, params, truncated) - lift
        y_close = _levels(f, CLOSE + o + d, low, scale, params, truncated) - lift
        if banded is not None:
            y_above = where_above(y_above, zero, y_above, zero)
            y_low = where_above(y_low, zero, y_low, zero)
        left = shift_up(one, y_open)
        # From the low's bit up, but not from the bit above the high's: empty where the high lies below.
        middle = shift_up(ones, y_low) & ~shift_up(ones, y_above)
        if params.style == JKX:
            middle = middle | left
        if params.volume:
            v = load_f(f, VOLUME + o + d)
            if truncated is None:
                bar = where_higher(v, no_rows, higher_of(one_row, v * volume_scale), no_rows) + MAGIC
            else:
                exact = (v - volume_low) / volume_scale * np.float64(params.volume_height)
                nearest = exact + MAGIC - MAGIC
                bar = where_higher(nearest, exact, nearest - 1.0, nearest) + MAGIC
            top = bits_of(bar) - lift_volume
            if banded is not None:
                top = where_above(top, zero, top, zero)
            middle = middle | (floor & ~shift_up(ones, top))
        if truncated is not None and params.average:
            dash = shift_up(one, _levels(f, AVERAGE + o + d, low, scale, params, truncated) - lift)
            left = left | dash
            middle = middle | dash
        a, b, c = interleave(left, middle, shift_up(one, y_close))
        if truncated is None and params.average:
            k = keys + 2 * d
            s0 = _segment(segments, ints, k, params, banded)
            s1 = _segment(segments, ints, k + 1, params, banded)
            s2 = _segment(segments, ints, k + 2, params, banded)
            s3 = _segment(segments, ints, k + 3, params, banded)
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
def _copy_bytes(source, start, target, at, count):
    """Copy `count` bytes, and not one more: another thread may write those beside them."""
    k = 0
    while k + 8 <= count:
        store_word(target, at + k, load_word(source, start + k))
        k += 8
    while k < count:
        target[at + k] = source[start + k]
        k += 1


@jit
def write_lines(stores: Stores, size: int, out: Any) -> None:
    """Write the lines that images of `size` bytes share to the flat `out`, whose images are all drawn."""
    lines, marks = pointer(stores.lines), stores.marks
    pixels, address = pointer(out), np.int64(out.ctypes.data)
    for slot in range(marks.shape[0]):
        behind, begun = marks[slot, 0], marks[slot, 1]
        if behind or begun:
            begin = slot * size
            part = (address + begin) & 63
            line = begin - part
            if behind and begun:
                store_nontemporal(pixels, line, load_b(lines, 64 * slot))
                store_nontemporal(pixels, line + 32, load_b(lines, 64 * slot + 32))
            elif behind:
                for k in range(part):
                    pixels[line + k] = lines[64 * slot + k]
            else:
                for k in range(part, 64):
                    pixels[line + k] = lines[64 * slot + k]
    fence()


@inlined
def _write(planes, at, out, address, begin, size, joins_previous, joins_next, edge, pattern, nontemporal):
    """Bytes of one image from its planes at `at` to ``out[begin]`` on; `address` is that of ``out[0]``.

    Everything between the first and the last multiple of 32 bytes are whole vectors. The ends that remain are
    joined with the neighbouring image's where that is written next (the vector waits in ``edge[96]``), gathered with
    those of other neighbours in ``pattern.lines``, and written as ordinary, unaligned vectors otherwise.
    """
    lines, marks = pattern.lines, pattern.marks
    # Bytes of the image's ends in lines that are not wholly its own, to be gathered.
    before, behind = -(address + begin) & 63, (address + begin + size) & 63
    gathers_before = pattern.gathers and before > 0 and not joins_previous
    gathers_behind = pattern.gathers and behind > 0 and not joins_next
    head = -(address + begin) & 31
    # 32 if the first of the whole vectors is the second half of a cache line, else 0.
    half = (address + begin + 31) & 32
    offsets, masks, period, jump = pattern.offsets, pattern.masks, pattern.period, pattern.jump
    vectors = (size - head) // 32
    if head > 0:
        if joins_previous:
            v = ink(load_b(planes, at + head - 32), load_b(masks, 1024 * period + 32 * head))
            v = (v & load_b(edge, head)) | load_b(edge, 96)
            if nontemporal:
                store_nontemporal(out, begin + head - 32, v)
            else:
                store(out, begin + head - 32, v)
        elif not gathers_before:
            store(out, begin, ink(load_b(planes, at), load_b(masks, 0)))
    target = begin + head
    source = at
    left = vectors
    first = 0
    rest = size - head - 32 * vectors
    if gathers_before:
        slot = begin // size
        line = 64 * slot
        v = ink(load_b(planes, at), load_b(masks, 0))
        if before >= 32:
            store(lines, line + 64 - before, v)
            t = head * period
            store(lines, line + 32, ink(load_b(planes, at + offsets[t]), load_b(masks, 32 * t)))
            first = 1
        else:
            store(edge, 128, v)
            _copy_bytes(edge, 128, lines, line + 64 - before, before)
        marks[2 * slot + 1] = 1
    if gathers_behind:
        slot = begin // size
        line = 64 * (slot + 1)
        v = ink(load_b(planes, at + pattern.last_offset), load_b(pattern.last_mask, 0))
        if behind >= 32:
            left -= 1
            t = head * period + left % period
            w = ink(load_b(planes, at + left // period * jump + offsets[t]), load_b(masks, 32 * t))
            store(lines, line, w)
            store(lines, line + behind - 32, v)
        else:
            store(edge, 128, v)
            _copy_bytes(edge, 160 - behind, lines, line, behind)
        marks[2 * slot + 2] = 1
    if nontemporal and vectors > 0 and not pattern.gathers:
        # A vector that shares its line of 64 bytes with an end goes through the cache as that does: past it, it
        # would wait for the line to be written back. That is 320 instead of 610 ns an image of 32x15.
        if head > 0 and half > 0 and not joins_previous:
            t = head * period
            store(out, target, ink(load_b(planes, at + offsets[t]), load_b(masks, 32 * t)))
            first = 1
        if rest > 0 and (half + 32 * vectors) & 63 > 0 and not joins_next:
            left -= 1
            if left >= first:
                t = head * period + left % period
                v = ink(load_b(planes, at + left // period * jump + offsets[t]), load_b(masks, 32 * t))
                store(out, target + 32 * left, v)
    while left > 0:
        n = min(left, period)
        if nontemporal:
            for t in range(first, n):
                bits = load_b(planes, source + offsets[head * period + t])
                store_nontemporal(out, target + 32 * t, ink(bits, load_b(masks, 32 * (head * period + t))))
        else:
            for t in range(n):
                bits = load_b(planes, source + offsets[head * period + t])
                store(out, target + 32 * t, ink(bits, load_b(masks, 32 * (head * period + t))))
        left -= n
        target += 32 * n
        source += jump
        first = 0
    if rest > 0:
        if joins_next:
            t = head * period + vectors % period
            source = at + vectors // period * jump
            v = ink(load_b(planes, source + offsets[t]), load_b(masks, 32 * t))
            store(edge, 96, v & load_b(edge, 64 - rest))
        elif not gathers_behind:
            store(
                out,
                begin + size - 32,
                ink(load_b(planes, at + pattern.last_offset), load_b(pattern.last_mask, 0)),
            )


@inlined
def _pack(ints, words, stride, height, width, out, begin):
    """Column bits of one image, from its words."""
    if height == 64 and width % 4 == 0:
        for c in range(0, width, 4):
            store_swapped(ints, words + c, out, begin + 8 * c)
    else:
        pending = np.uint64(0)
        filled = 0
        whole, bits = height // 64, height % 64
        for c in range(width):
            for band in range(whole):
                word = np.uint64(ints[words + band * stride + c])
                store_word(out, begin, pending | (word >> np.uint64(filled)))
                begin += 8
                # Shifting by 64 is not defined.
                pending = (word << np.uint64(63 - filled)) << np.uint64(1)
            if bits > 0:
                word = np.uint64(ints[words + whole * stride + c])
                pending |= word >> np.uint64(filled)
                filled += bits
                if filled >= 64:
                    store_word(out, begin, pending)
                    begin += 8
                    filled -= 64
                    # The bits of this word that did not fit.
                    pending = (
                        (word << np.uint64(bits - 1 - filled)) << np.uint64(1) if filled > 0 else np.uint64(0)
                    )
        while filled > 0:
            out[begin] = np.uint8(pending >> np.uint64(56))
            pending <<= np.uint64(8)
            begin += 1
            filled -= 8


# Images through the pipeline ---------------------------------------------------------------------------------


@inlined
def _allocate(height, width, word_stride, copies, extra):
    """Scratch of a task: planes, then words, then `extra` bytes."""
    size = height * width
    # Small images go through the steps in batches, about 4 kB at once: else a step is over before the stores
    # of the step before have left the CPU's store queue, and its loads wait for them.
    batch = max(1, 4096 // size)
    slots = 2 * batch
    word_slot = (height + 63) // 64 * word_stride + 32
    plane_slot = ((height + 7) // 8 * copies * width + 127) // 32 * 32
    n_ints = slots * word_slot
    n_bytes = (slots * plane_slot + 64 + 192 + 63) // 64 * 64
    # A store across two pages waits for all stores past the caches, so what is written unaligned comes first.
    memory = np.empty(n_bytes + 8 * n_ints + extra + 4096, np.uint8)
    start = -memory.ctypes.data & 4095
    planes = bytes_in(memory, start)
    start += n_bytes
    edge = bytes_in(memory, start - 192)
    for i in range(128):
        edge[i] = 255 if 32 <= i < 64 else 0
    # The keys of segments, the first of `extra`, are words too.
    ints = words_in(memory, start)
    start += 8 * n_ints
    return Scratch(memory, planes, edge, ints, start, batch, slots, word_slot, plane_slot)


@inlined
def _pattern_of(tables, stores):
    return Pattern(
        pointer(tables.offsets),
        pointer(tables.masks),
        pointer(tables.last_mask),
        tables.last_offset,
        tables.period,
        tables.jump,
        pointer(stores.lines),
        pointer(stores.marks),
        stores.lines.shape[0] > 0,
    )


@inlined
def _prefetch_window(bars, columns, first, last, reach):
    """Let the CPU fetch the bars of the window that ends at row `last`."""
    for k in range(columns * max(first, last + 1 - reach), columns * (last + 1), 8):
        prefetch(bars, k)


@inlined
def _end_of_run(first, last, i, lookback):
    """First of the windows after i that shares no bar with the one before it, or is too far from window i."""
    end = i + 1
    while (
        end < last.shape[0]
        and first[end] == first[i]
        and 0 <= last[end] - last[end - 1] < lookback
        and last[end] - last[i] < TASK_WINDOWS
    ):
        end += 1
    return end


@jit
def render_serial(
    panel: Any, averages: Any, params: FastParams, banded: Any, truncated: Any, tables: Tables, starts: Any,
    rows: WindowRows, out: Any, mode: int, stores: Stores, reason: Any,
) -> None:  # fmt: skip
    """Draw windows into the flat `out`, one task after the other; the first arguments are those of a ``Job``.

    Task t covers windows ``starts[t]`` to ``starts[t + 1] - 1``, at most TASK_WINDOWS, of any instruments and in any
    order; those that follow each other with ascending rows share the work that they have in common. This is one
    function, since what calls another compiles that once more.
    """
    lookback, height, width, copies = params.lookback, params.height, params.width, tables.copies
    size = height * width
    bands = (height + 63) // 64
    word_stride = 12 * ((lookback + 3) // 4)
    n_keys = 2 * lookback + 16
    scratch = _allocate(height, width, word_stride, copies, 8 * (n_keys + FLOATS))
    memory, planes, edge, ints = scratch.memory, scratch.planes, scratch.edge, scratch.ints
    batch, slots, word_slot, plane_slot = scratch.batch, scratch.slots, scratch.word_slot, scratch.plane_slot
    keys = slots * word_slot
    start = scratch.rest + 8 * n_keys
    f = floats_in(memory, start)
    bars, pixels, address = pointer(panel), pointer(out), np.int64(out.ctypes.data)
    segments, pattern, nontemporal = pointer(tables.segments), _pattern_of(tables, stores), stores.nontemporal
    packed = (size + 7) // 8
    base, volume_base = 64 - params.price_height, 64 - height

    columns, reach = 5, lookback
    if averages is None:
        columns = INTERLEAVED_COLUMNS
    elif params.average and averages.shape[0] == 0:
        reach += params.average - 1
    for task in range(starts.shape[0] - 1):
        a = starts[task]
        n = starts[task + 1] - a
        # Each access to an array of a tuple would count its references; see ``simd.pointer``.
        first, last, dest = rows.first[a : a + n], rows.last[a : a + n], rows.dest[a : a + n]
        run_first = run_end = 0
        joined = False
        for now in range(0, n + 2 * batch, batch):
            for i in range(now, min(now + batch, n)):
                soon = i + _PREFETCH_WINDOWS
                if soon < n and not 0 <= last[soon] - last[soon - 1] < lookback:
                    # No earlier window reads these bars, which lie anywhere in memory.
                    _prefetch_window(bars, columns, first[soon], last[soon], reach)
                if i == run_end:
                    # A run of windows that share bars shares all that is computed by bar.
                    run_first = last[i] - lookback + 1
                    run_end = _end_of_run(first, last, i, lookback)
                    count = last[run_end - 1] + 1 - run_first
                    _prepare_windows(
                        bars, panel.shape[0], averages, truncated, first[i], run_first, count, params, f
                    )
                o = last[i] - lookback + 1 - run_first
                code = np.int64(f[REASON + o])
                if code == FLAT and params.at_limit:
                    code = DEFERRED
                reason[dest[i]] = code
                if mode != DRY:
                    words = i % slots * word_slot
                    for band in range(bands):
                        if code == VALID:
                            if params.average and truncated is None:
                                _key_segments(f, o, params, base + 64 * band, ints, keys)
                            _draw(
                                f, o, params, segments, base + 64 * band, volume_base + 64 * band, banded, truncated,
                                ints, keys, words + band * word_stride,
                            )  # fmt: skip
                        else:
                            for c in range(width):
                                ints[words + band * word_stride + c] = 0
            for i in range(max(0, now - batch), min(now, n)):
                words = i % slots * word_slot
                if mode == PIXELS:
                    at = 32 + i % slots * plane_slot
                    _spread(ints, words, word_stride, height, width, planes, at, copies)
                elif mode != DRY:
                    _pack(ints, words, word_stride, height, width, pixels, dest[i] * packed)
            if mode == PIXELS:
                for i in range(max(0, now - 2 * batch), min(now - batch, n)):
                    joins = i + 1 < n and dest[i + 1] == dest[i] + 1
                    at = 32 + i % slots * plane_slot
                    begin = dest[i] * size
                    _write(
                        planes, at, pixels, address, begin, size, joined, joins, edge, pattern, nontemporal
                    )
                    joined = joins
    fence()
    # Numba frees an array after its last use, and does not know that pointers into it are uses.
    memory[0] = 0


@jit
def render_selected(
    job: Job, row: Any, instruments: Any, offsets: Any, which: Any, out: Any, stores: Stores, reason: Any
) -> int:
    """Draw windows `which` of an index (panel row, instrument) into `out`, in that order; count the undrawn."""
    n = which.shape[0]
    size = job.params.height * job.params.width
    limit = min(n, TASK_WINDOWS)
    rows = WindowRows(np.empty(limit, np.int64), np.empty(limit, np.int64), np.arange(limit))
    starts = np.zeros(2, np.int64)
    undrawn = 0
    for a in range(0, n, TASK_WINDOWS):
        count = min(n - a, TASK_WINDOWS)
        for i in range(count):
            rows.last[i] = row[which[a + i]]
            # Beside their averages bars need none before the window: a look-up less in memory far away. Windows that
            # share bars are of one instrument anyway.
            rows.first[i] = 0 if job.averages is None else offsets[instruments[which[a + i]]]
        starts[1] = count
        images, codes = out[a * size : (a + count) * size], reason[a : a + count]
        render_serial(
            job.bars, job.averages, job.params, job.banded, job.truncated, job.tables, starts, rows, images, PIXELS,
            stores, codes,
        )  # fmt: skip
        for i in range(count):
            undrawn += reason[a + i] != VALID
    return undrawn


@inlined
def _load_words(source, at, height, width, ints, words):
    """Words of one image, from its column bits; reads up to 8 bytes past their end."""
    bands = (height + 63) // 64
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


@jit
def widen(bits: Any, height: int, width: int, tables: Tables, out: Any, stores: Stores) -> None:
    """Turn column bits, uint8 (n, bytes), into images in the flat `out`: the second half of ``render_serial``."""
    n, packed = bits.shape
    size = height * width
    scratch = _allocate(height, width, width, tables.copies, packed + 16)
    memory, planes, edge, ints = scratch.memory, scratch.planes, scratch.edge, scratch.ints
    batch, slots, word_slot, plane_slot = scratch.batch, scratch.slots, scratch.word_slot, scratch.plane_slot
    # The last image's words reach past the end of the bits.
    last_bits = memory[scratch.rest : scratch.rest + packed + 16]
    last_bits[:packed] = bits[n - 1]
    source, last_source = pointer(bits), pointer(last_bits)
    pixels, address = pointer(out), np.int64(out.ctypes.data)
    pattern, nontemporal = _pattern_of(tables, stores), stores.nontemporal
    for now in range(0, n + 2 * batch, batch):
        for i in range(now, min(now + batch, n)):
            words = i % slots * word_slot
            if i < n - 1:
                _load_words(source, i * packed, height, width, ints, words)
            else:
                _load_words(last_source, 0, height, width, ints, words)
        for i in range(max(0, now - batch), min(now, n)):
            words, at = i % slots * word_slot, 32 + i % slots * plane_slot
            _spread(ints, words, width, height, width, planes, at, tables.copies)
        for i in range(max(0, now - 2 * batch), min(now - batch, n)):
            at = 32 + i % slots * plane_slot
            _write(planes, at, pixels, address, i * size, size, i > 0, i < n - 1, edge, pattern, nontemporal)
    fence()
    memory[0] = 0  # kept alive until here, as in render_serial
