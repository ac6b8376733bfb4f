"""How many windows a chunk holds."""

from __future__ import annotations

from typing import Final

# Bytes of a chunk before compression: large enough that per-chunk costs vanish, small enough to shuffle and
# to stream. In layout bits 16384 images of 64x60: a day's neighbour of an image then mostly lies in the same
# chunk, within zstd's window, which makes 110 bytes an image where 4096 make 120.
_CHUNK_BYTES: Final = {"uint8": 1 << 24, "bits": 1 << 23}

_CHUNK_WINDOWS: Final = (64, 1 << 15)


def default_chunk(height: int, width: int, layout: str = "uint8") -> int:
    """Windows a chunk, a power of two: 4096 of 64x60 in layout ``uint8`` (16 MB), 16384 in ``bits``."""
    image = height * width if layout == "uint8" else (height * width + 7) // 8
    windows = 1 << max(0, (_CHUNK_BYTES[layout] // image).bit_length() - 1)
    return min(max(windows, _CHUNK_WINDOWS[0]), _CHUNK_WINDOWS[1])


INDEX_CHUNK: Final = 1 << 18
"""Windows a chunk of the arrays along ``window``."""
