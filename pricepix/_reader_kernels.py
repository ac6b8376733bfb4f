"""Compiled code of the bulk reader: bits to and from pixels, and the shuffling pool."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pricepix.render.kernels import jit

# Gathers the top bit of eight bytes, the first byte's as the most significant.
_GATHER = np.uint64(0x8040201008040201)
_TOP = np.uint64(0x0101010101010101)
_SEVEN = np.uint64(7)
_BYTE = np.uint64(56)


@jit
def pack_words(words: Any, which: Any, packed: Any) -> None:
    """Pack images of 8k pixels, given as uint64 (n, k), row by row, most significant bit first."""
    for i in range(which.shape[0]):
        source, target = words[which[i]], packed[i]
        for k in range(source.shape[0]):
            target[k] = np.uint8((((source[k] >> _SEVEN) & _TOP) * _GATHER) >> _BYTE)


@jit
def pack_pixels(pixels: Any, which: Any, packed: Any) -> None:
    """Pack images of any size, given as uint8 (n, pixels); the last byte is filled up with zeros."""
    count = pixels.shape[1]
    for i in range(which.shape[0]):
        source, target = pixels[which[i]], packed[i]
        for k in range(target.shape[0]):
            byte = 0
            for b in range(min(8, count - 8 * k)):
                byte |= (source[8 * k + b] >> 7) << (7 - b)
            target[k] = np.uint8(byte)


@jit
def unpack_words(packed: Any, which: Any, table: Any, words: Any) -> None:
    """Inverse of ``pack_words`` for chosen images; `table` holds the eight pixels of each byte."""
    for i in range(which.shape[0]):
        source, target = packed[which[i]], words[i]
        for k in range(target.shape[0]):
            target[k] = table[source[k]]


@jit
def unpack_pixels(packed: Any, which: Any, pixels: Any) -> None:
    """Inverse of ``pack_pixels`` for chosen images."""
    for i in range(which.shape[0]):
        source, target = packed[which[i]], pixels[i]
        for j in range(target.shape[0]):
            target[j] = 255 if source[j >> 3] & np.uint8(128 >> (j & 7)) else 0


def _light(lanes: int) -> Any:
    @intrinsic
    def light(typing_context: Any, source: Any, at: Any, mask: Any, target: Any, to: Any) -> Any:
        """Write 255 for each of `lanes` bytes that has a bit of the mask, else 0; aligned or not."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), lanes)

            def place(array: int, index: int) -> Any:
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                return builder.bitcast(builder.gep(data, [arguments[index]]), vector.as_pointer())

            read = builder.load(place(0, 1), align=1)
            undefined = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(undefined, arguments[2], ir.Constant(ir.IntType(32), 0))
            lane_zero = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            masks = builder.shuffle_vector(first, undefined, lane_zero)
            lit = builder.icmp_unsigned("==", builder.and_(read, masks), masks)
            builder.store(builder.sext(lit, vector), place(3, 4), align=1)
            return context.get_dummy_value()

        return types.void(source, types.intp, types.uint8, target, types.intp), generate

    return light


_light_32, _light_8 = _light(32), _light(8)


@jit
def unpack_columns(
    packed: Any, which: Any, height: int, width: int, planes: Any, pixels: Any
) -> None:  # fmt: skip
    """Column bits of chosen images to pixels, rows first, into the flat array `pixels`.

    For heights that are multiples of 8 and widths of at least 8. First the bytes are put in order of rows:
    plane b holds each column's byte b, that is rows 8b to 8b + 7. A bit of a plane then is a row, and is
    written 32 or 8 pixels at a time; the last piece of a row is moved left to end with it. `planes` is
    scratch of a byte a pixel of height / 8 rows.
    """
    bytes_a_column = height // 8
    step = 32 if width >= 32 else 8
    pieces = (width + step - 1) // step
    for i in range(which.shape[0]):
        source = packed[which[i]]
        for column in range(width):
            for b in range(bytes_a_column):
                planes[b * width + column] = source[column * bytes_a_column + b]
        to = i * height * width
        for b in range(bytes_a_column):
            for r in range(8):
                mask = np.uint8(128 >> r)
                for piece in range(pieces):
                    column = min(step * piece, width - step)
                    if step == 32:
                        _light_32(planes, b * width + column, mask, pixels, to + column)
                    else:
                        _light_8(planes, b * width + column, mask, pixels, to + column)
                to += width


@jit
def take_rows(source: Any, which: Any, target: Any) -> None:
    """Copy chosen rows, without the interpreter's lock."""
    for i in range(which.shape[0]):
        target[i] = source[which[i]]


@jit
def exchange(
    pool: Any, pool_index: Any, fill: int, chance: Any,
    incoming: Any, incoming_index: Any, out: Any, out_index: Any,
) -> int:  # fmt: skip
    """Emit one image of the pool for each number in `chance`, and put the next incoming one in its place.

    When nothing comes in any more the last image of the pool takes the place. Returns how many are left.
    """
    arriving = incoming_index.shape[0]
    for i in range(chance.shape[0]):
        j = min(int(chance[i] * fill), fill - 1)
        out[i] = pool[j]
        out_index[i] = pool_index[j]
        if i < arriving:
            pool[j] = incoming[i]
            pool_index[j] = incoming_index[i]
        else:
            fill -= 1
            pool[j] = pool[fill]
            pool_index[j] = pool_index[fill]
    return fill
