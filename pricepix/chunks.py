"""How images lie in a store: chunk geometry, the two layouts, and chunks to bytes and back.

Chunks are encoded and decoded here rather than through zarr-python, which packs and unpacks bits several
times slower; the bytes are exactly what its codec pipeline for the same array writes and reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pricepix.render import kernels, widen

LAYOUTS: Final = ("uint8", "bits")
ZSTD_LEVEL: Final = 1
# About 16 MB of pixels: large enough that per-chunk costs vanish, small enough to shuffle and to stream.
_CHUNK_PIXELS: Final = 1 << 24
_CHUNK_WINDOWS: Final = (64, 1 << 15)


def default_chunk(height: int, width: int) -> int:
    """Windows a chunk: the power of two that makes about 16 MB of pixels, 4096 for 64x60."""
    windows = 1 << max(0, (_CHUNK_PIXELS // (height * width)).bit_length() - 1)
    return min(max(windows, _CHUNK_WINDOWS[0]), _CHUNK_WINDOWS[1])


@contextmanager
def numcodecs_allowed() -> Iterator[None]:
    """Silence zarr's warning that ``numcodecs.packbits`` is outside its v3 core; our format states it."""
    with warnings.catch_warnings():
        for message in ("Numcodecs codecs are not in", "Consolidated metadata is currently not part"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield


@dataclass(frozen=True)
class ChunkFormat:
    """The form of an image chunk in a store.

    Parameters
    ----------
    layout : {"uint8", "bits"}
    height, width : int
    windows : int
        Images a chunk. The last chunk of an array is filled up with blank images, as Zarr does.
    compressed : bool
        In-memory stores keep their chunks raw, so that they are the rendered array itself.
    """

    layout: str
    height: int
    width: int
    windows: int
    compressed: bool = True

    @property
    def packed_bytes(self) -> int:
        """Bytes of one image in column bits."""
        return (self.height * self.width + 7) // 8

    def create_array(self, group: Any, n: int) -> Any:
        """Create the zarr array ``images`` of `n` windows in `group`."""
        from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec

        with numcodecs_allowed():
            filters: list[Any] | None = None
            if self.layout == "bits":
                from zarr.codecs.numcodecs import PackBits

                filters = [TransposeCodec(order=(0, 2, 1)), PackBits()]
            return group.create_array(
                "images",
                shape=(n, self.height, self.width),
                chunks=(self.windows, self.height, self.width),
                dtype="bool" if self.layout == "bits" else "uint8",
                filters=filters,
                compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()] if self.compressed else None,
                fill_value=False if self.layout == "bits" else 0,
                dimension_names=("window", "y", "x"),
            )

    def encode(self, bits: NDArray[np.uint8]) -> bytes:
        """Return the stored bytes of a chunk, given at most ``windows`` images as column bits."""
        if self.layout == "bits":
            raw = self._pack(bits)
        else:
            raw = np.zeros((self.windows, self.height, self.width), np.uint8)
            widen(bits, self.height, self.width, raw[: len(bits)])
        return self._seal(raw)

    def decode(
        self, stored: bytes | memoryview, n: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return the first `n` images of a chunk as uint8 (n, height, width)."""
        if self.layout == "bits":
            return widen(self.decode_bits(stored, n), self.height, self.width, out)
        pixels = self._open(stored, self.windows * self.height * self.width)
        pixels = pixels.reshape(self.windows, self.height, self.width)[:n]
        if out is None:
            return pixels
        out[:] = pixels
        return out

    def decode_bits(self, stored: bytes | memoryview, n: int) -> NDArray[np.uint8]:
        """Return the first `n` images of a chunk of layout ``bits`` as column bits (n, packed_bytes)."""
        pixels = self.height * self.width
        raw = self._open(stored, 1 + (self.windows * pixels + 7) // 8)[1:]
        if pixels % 8 == 0:
            return raw.reshape(self.windows, self.packed_bytes)[:n]
        bits = np.empty((n, self.packed_bytes), np.uint8)
        kernels.split_bits(raw, pixels, bits)
        return bits

    def _pack(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay images end to end, bit by bit, behind the byte in which PackBits counts its padding."""
        pixels = self.height * self.width
        total = self.windows * pixels
        raw = np.zeros(1 + (total + 7) // 8, np.uint8)
        raw[0] = -total % 8
        if pixels % 8 == 0:
            raw[1 : 1 + bits.size] = bits.reshape(-1)
        else:
            kernels.join_bits(bits, pixels, raw[1:])
        return raw

    def _seal(self, raw: NDArray[np.uint8]) -> bytes:
        if not self.compressed:
            return raw.tobytes()
        compressed = bytes(Zstd(level=ZSTD_LEVEL).encode(raw))
        return compressed + google_crc32c.value(compressed).to_bytes(4, "little")

    def _open(self, stored: bytes | memoryview, expected: int) -> NDArray[np.uint8]:
        if self.compressed:
            body = memoryview(stored)[:-4]
            checksum = int.from_bytes(memoryview(stored)[-4:], "little")
            if len(stored) < 5 or google_crc32c.value(bytes(body)) != checksum:
                raise ValueError("checksum mismatch")
            stored = Zstd().decode(body)
        raw = np.frombuffer(stored, np.uint8)
        if len(raw) != expected:
            raise ValueError(f"{len(raw)} bytes after decompression, expected {expected}")
        return raw
