"""Column bits to pixels: the vectorised path against numpy, wherever the output begins."""

import numpy as np
import pytest

from pricepix.render import widen


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (64, 60),
        (32, 15),
        (96, 180),
        (147, 147),
        (27, 27),
        (64, 3),
        (2, 45),
        (33, 6),
        (65, 63),
        (512, 6),
        (600, 6),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_widen_equals_unpacked_bits_and_touches_nothing_else(height: int, width: int, n: int) -> None:
    pixels = np.random.default_rng(height * n).random((n, height, width)) < 0.3
    bits = np.packbits(pixels.transpose(0, 2, 1).reshape(n, -1), axis=1)
    assert np.array_equal(widen(bits, height, width), pixels * np.uint8(255))
    for offset in (0, 1, 13, 31):
        room = np.full(pixels.size + 96, 7, np.uint8)
        widen(bits, height, width, room[offset : offset + pixels.size].reshape(pixels.shape))
        assert np.array_equal(
            room[offset : offset + pixels.size].reshape(pixels.shape), pixels * np.uint8(255)
        )
        assert (room[:offset] == 7).all()
        assert (room[offset + pixels.size :] == 7).all()
