"""One bit a pixel: images packed, unpacked, joined and split."""

from __future__ import annotations

from typing import Any

import numpy as np

from pricepix.render.rules import INK, jit


@jit
def pack_image(image: Any, packed: Any) -> None:
    """One bit a pixel, columns first, most significant bit first; the last byte is filled up with zeros."""
    height, width = image.shape
    packed[:] = 0
    for column in range(width):
        for row in range(height):
            if image[row, column]:
                bit = column * height + row
                packed[bit >> 3] |= np.uint8(128 >> (bit & 7))


@jit
def unpack_image(packed: Any, image: Any) -> None:
    """Inverse of ``pack_image``: 0 and 255, rows first."""
    height, width = image.shape
    for column in range(width):
        for row in range(height):
            bit = column * height + row
            image[row, column] = INK if packed[bit >> 3] & np.uint8(128 >> (bit & 7)) else 0


@jit
def unpack_images(packed: Any, images: Any) -> None:
    """``unpack_image`` over many."""
    for n in range(packed.shape[0]):
        unpack_image(packed[n], images[n])


@jit
def join_bits(images: Any, pixels: int, stream: Any) -> None:
    """Lay images of `pixels` bits, each starting a byte of its own, end to end in `stream` (zeros before)."""
    for n in range(images.shape[0]):
        start = n * pixels
        shift = start & 7
        byte = start >> 3
        for i in range(images.shape[1]):
            value = images[n, i]
            stream[byte + i] |= value >> shift
            # The last byte's bits may all have fitted, and the stream may end here.
            if shift and byte + i + 1 < stream.shape[0]:
                stream[byte + i + 1] |= np.uint8(value << (8 - shift))


@jit
def split_bits(stream: Any, pixels: int, images: Any) -> None:
    """Inverse of ``join_bits``; the bits behind an image's last pixel are zeros."""
    tail = images.shape[1] * 8 - pixels
    for n in range(images.shape[0]):
        start = n * pixels
        shift = start & 7
        byte = start >> 3
        for i in range(images.shape[1]):
            value = np.uint8(stream[byte + i] << shift) if byte + i < stream.shape[0] else np.uint8(0)
            if shift and byte + i + 1 < stream.shape[0]:
                value |= stream[byte + i + 1] >> np.uint8(8 - shift)
            images[n, i] = value
        images[n, images.shape[1] - 1] &= np.uint8((0xFF << tail) & 0xFF)
