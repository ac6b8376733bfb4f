"""Blosc frames of images of 0 and 255, made of packed bits and read as packed bits.

Chunks of layout ``uint8`` are zstd over Blosc's bitshuffle, which puts the lowest bits of all bytes together, then the
next ones, and so on: of bytes that are 0 and 255 it makes eight copies of the packed bits. So the packed bits are laid
down eight times, as they come from the renderer, in the frame that Blosc would make; the bytes themselves never exist.
(zstd of the pixels without a shuffle takes 287 bytes an image and three times as long.)

The bytes of the frame are those that numcodecs makes of the pixels. Its own calls stay for what this module does not
write: chunks that do not shrink, and frames of another writer. A chunk of 4096 images of 64x60 in the order of time,
one thread:

====================  ============  =============  =====
..                    this module   numcodecs      ratio
====================  ============  =============  =====
bits to frame         8.2 ms        13.8 ms        1.7
frame to bits         2.9 ms        9.3 ms         3.2
frame to pixels       3.8 ms        13.3 ms        3.5
bytes an image        120.5         the same       1
====================  ============  =============  =====
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pricepix.store import kernels

__all__ = ["BLOCK_BYTES", "check_frame", "decode_bits", "encode_bits", "zstd_content_bytes"]

ZSTD_LEVEL: Final = 1

BLOCK_BYTES: Final = 1 << 20
"""What the bytes of a chunk are cut into for compression."""

# Blosc's header of such a chunk: format 2, zstd's format 1, not split | zstd | bitshuffle, bytes a value.
_HEAD: Final = bytes((2, 1, 0x10 | 4 << 5 | 0x04, 1))
_HEADER_BYTES: Final = 16
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# Blosc copies what is smaller than this.
_SMALLEST: Final = 128
# Every byte with its bits in reverse order: bitshuffle counts bits from the lowest.
_REVERSED: Final = np.packbits(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1
).ravel()

_local = threading.local()

# Chunks are encoded on threads of this package: Blosc's own pool would only add locks.
blosc.use_threads = False


def encode_bits(packed: NDArray[np.uint8], pixels: int) -> bytes:
    """Compress `pixels` pixels, given as packed bits, into the frame that Blosc makes of them as bytes of 0 and 255."""
    codec = Zstd(level=ZSTD_LEVEL)
    scratch, blocks = _scratch(), []
    for first, last, shuffled in _blocks(pixels):
        block = scratch[: last - first]
        if shuffled:
            planes = block.reshape(8, -1)
            kernels.translate(packed[first // 8 : last // 8], _REVERSED, planes[0])
            planes[1:] = planes[0]
        else:
            block[:] = np.unpackbits(packed[first // 8 :])[: last - first] * np.uint8(255)
        body = bytes(codec.encode(block))
        if len(body) >= len(block) or pixels < _SMALLEST:
            return _encode_pixels(packed, pixels)
        blocks.append(body)
    lengths = np.array([4 + len(block) for block in blocks], "<i4")
    head = _HEADER_BYTES + 4 * len(blocks)
    starts = head + np.cumsum(lengths, dtype="<i4") - lengths
    sizes = np.array([pixels, min(BLOCK_BYTES, pixels), head + lengths.sum()])
    parts = [_HEAD, sizes.astype("<i4").tobytes(), starts.astype("<i4").tobytes()]
    for body in blocks:
        parts += [len(body).to_bytes(4, "little"), body]
    return b"".join(parts)


def decode_bits(frame: memoryview, pixels: int) -> NDArray[np.uint8]:
    """Return the packed bits of a frame of `pixels` pixels; ValueError if it holds another number of them."""
    check_frame(frame, pixels)
    layout = list(_blocks(pixels))
    head = _HEAD + np.array([pixels, min(BLOCK_BYTES, pixels)], "<i4").tobytes()
    if bytes(frame[: len(head)]) != head:
        return _decode_pixels(frame, pixels)
    packed = np.empty((pixels + 7) // 8, np.uint8)
    starts = np.frombuffer(frame[_HEADER_BYTES : _HEADER_BYTES + 4 * len(layout)], "<i4").tolist()
    codec, scratch = Zstd(), _scratch()
    for start, (first, last, shuffled) in zip(starts, layout, strict=True):
        size = int.from_bytes(frame[start : start + 4], "little")
        block = frame[start + 4 : start + 4 + size]
        if size == last - first:
            values = np.frombuffer(block, np.uint8)
        elif (content := zstd_content_bytes(block)) == last - first:
            values = scratch[: last - first]
            codec.decode(block, values)
        else:
            raise ValueError(f"a block of {content} bytes, expected {last - first}")
        if shuffled:
            plane = values[: (last - first) // 8]
            kernels.translate(plane, _REVERSED, packed[first // 8 : last // 8])
        else:
            packed[first // 8 :] = np.packbits(values)
    return packed


def _blocks(pixels: int) -> Iterator[tuple[int, int, bool]]:
    """Yield first and last byte of each of Blosc's blocks, and whether its bits are shuffled."""
    for first in range(0, pixels, BLOCK_BYTES):
        last = min(pixels, first + BLOCK_BYTES)
        yield first, last, (last - first) % 8 == 0


def _encode_pixels(packed: NDArray[np.uint8], pixels: int) -> bytes:
    """Let Blosc itself compress the bytes: it stores what does not shrink in ways of its own."""
    values = np.unpackbits(packed)[:pixels] * np.uint8(255)
    codec = blosc.Blosc("zstd", ZSTD_LEVEL, blosc.BITSHUFFLE, blocksize=BLOCK_BYTES, typesize=1)
    return bytes(codec.encode(values))


def _decode_pixels(frame: memoryview, pixels: int) -> NDArray[np.uint8]:
    """Return the packed bits of a frame that Blosc itself, or another writer, made."""
    values = np.frombuffer(blosc.Blosc().decode(frame), np.uint8)
    if len(values) != pixels:
        raise ValueError(f"{len(values)} bytes after decompression, expected {pixels}")
    return np.packbits(values)


def _scratch() -> NDArray[np.uint8]:
    """Return the thread's buffer for one of Blosc's blocks: fresh memory would cost more than filling it."""
    scratch: NDArray[np.uint8] | None = getattr(_local, "scratch", None)
    if scratch is None:
        scratch = _local.scratch = np.empty(BLOCK_BYTES, np.uint8)
    return scratch


def zstd_content_bytes(frame: memoryview) -> int:
    """Return the bytes that a zstd frame holds, by its header (RFC 8878, 3.1.1.1); -1 if it does not say.

    Decoding into a buffer that is too long would go unnoticed, and decoding what does not say, or lies, into memory
    of its own takes as much as there is.
    """
    if bytes(frame[:4]) != _ZSTD_MAGIC or len(frame) < 6:
        return -1
    flags = frame[4]
    single_segment = flags >> 5 & 1
    at = 6 - single_segment + (0, 1, 2, 4)[flags & 3]
    width = (single_segment, 2, 4, 8)[flags >> 6]
    if not width or len(frame) < at + width:
        return -1
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def check_frame(frame: memoryview, expected: int) -> None:
    """Raise ValueError unless the header of a Blosc frame says that it holds `expected` bytes and ends here."""
    sizes = np.frombuffer(frame[4:_HEADER_BYTES], "<u4")
    if len(sizes) != 3:
        raise ValueError("a Blosc frame without a whole header")
    if sizes[0] != expected:
        raise ValueError(f"{sizes[0]:,} bytes after decompression, expected {expected:,}")
    if sizes[2] != len(frame):
        raise ValueError(f"a Blosc frame of {sizes[2]:,} bytes, of which {len(frame):,} are there")
