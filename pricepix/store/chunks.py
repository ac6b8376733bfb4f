"""How images lie in a store: chunk geometry, the two layouts, shards, and chunks to bytes and back.

Chunks are encoded and decoded here rather than through zarr-python, which packs and unpacks bits
several times slower; the bytes are those of its codec pipeline for the same array.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import blosc as numcodecs_blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from pricepix.render import bits as render_bits
from pricepix.render import widen
from pricepix.store import kernels
from pricepix.store.blosc import (
    BLOCK_BYTES,
    ZSTD_LEVEL,
    check_frame,
    decode_bits,
    encode_bits,
    zstd_content_bytes,
)

LAYOUTS: Final = ("uint8", "bits")
_EMPTY: Final = np.uint64(2**64 - 1)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?")
_UNITS: Final = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Content = bytes | bytearray | memoryview

MAX_CHUNK_BYTES: Final = (1 << 31) - 17
"""What Blosc takes at once, and so the most pixels that a chunk may hold."""

# Names and checksums compress less than 10 to 1.
_SMALL: Final = 1 << 20
_MAX_RATIO: Final = 200

_local = threading.local()
# Twice by the same thread: who makes a store makes its arrays.
_filters = [threading.RLock()]
if hasattr(os, "register_at_fork"):
    # A thread may hold it that a fork does not have.
    os.register_at_fork(after_in_child=lambda: _filters.__setitem__(0, threading.RLock()))


def parse_size(value: str) -> int:
    """Return the bytes of ``"256MB"``, ``"1GiB"`` and the like."""
    match = _SIZE.fullmatch(value.strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"{value!r} is not a size: give a number with a unit, such as '256MB' or '1GiB'")
    return size


@contextmanager
def numcodecs_allowed() -> Iterator[None]:
    """Silence zarr's warning that ``numcodecs.packbits`` is outside the Zarr v3 core, as our format says.

    One thread at a time: filters are the process's, and of two that change them, the first to leave takes away the
    filter of the other.
    """
    with _filters[0], warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3", category=UserWarning
        )
        warnings.filterwarnings(
            "ignore", message="Consolidated metadata is currently not part", category=UserWarning
        )
        yield


def seal(raw: NDArray[Any]) -> bytes:
    """Compress bytes with zstd and put their crc32c behind."""
    return with_checksum(bytes(Zstd(level=ZSTD_LEVEL).encode(raw)))


def unseal(stored: Content, expected: int | None = None) -> bytes:
    """Check the crc32c and decompress what ``seal`` made; ValueError if it is damaged.

    The frame's header must say that it holds `expected` bytes, or where their number is not known, no more than
    honest data of its size can: 130 kB of zstd may claim 4 GB.
    """
    body = check_sealed(stored)
    size = zstd_content_bytes(body)
    limit = max(_SMALL, _MAX_RATIO * len(body))
    if expected is None and not 0 <= size <= limit:
        raise ValueError(
            f"{size:,} bytes after decompression, more than the {limit:,} that {len(body):,} bytes may hold (max_bytes)"
            if size >= 0
            else "a zstd frame that does not say how much it holds"
        )
    if expected is not None and size != expected:
        raise ValueError(f"{max(size, 0):,} bytes after decompression, expected {expected:,}")
    return bytes(Zstd().decode(body))


def checksum(stored: Content) -> int:
    """Return the crc32c that a stored chunk carries in its last four bytes, -1 if it has not even those."""
    return int.from_bytes(memoryview(stored)[-4:], "little") if len(stored) >= 4 else -1


def with_checksum(body: bytes) -> bytes:
    """Return stored bytes: these, and their crc32c behind them."""
    return body + google_crc32c.value(body).to_bytes(4, "little")


def check_sealed(stored: Content) -> memoryview:
    """Return what comes before the crc32c at the end; ValueError if it has another one."""
    body = memoryview(stored)[:-4]
    if len(stored) < 5 or google_crc32c.value(bytes(body)) != checksum(stored):
        raise ValueError("checksum mismatch")
    return body


@dataclass(frozen=True)
class ChunkFormat:
    """The form of an image chunk in a store.

    Compressed chunks of both layouts hold columns of pixels. Those of layout ``uint8`` are made of packed bits without
    the pixels themselves; see ``pricepix.store.blosc``.

    Parameters
    ----------
    layout : {"uint8", "bits"}
    height, width : int
    windows : int
        Images a chunk. The last chunk of an array is filled up with blank images, as Zarr does.
    compressed : bool
        In-memory stores keep their chunks raw, so that they are the rendered array itself.
    shard : int
        Images a shard, a multiple of `windows`; 0 for one object a chunk.
    """

    layout: str
    height: int
    width: int
    windows: int
    compressed: bool = True
    shard: int = 0

    @property
    def packed_bytes(self) -> int:
        """Bytes of one image in column bits."""
        return (self.height * self.width + 7) // 8

    @property
    def raw_bytes(self) -> int:
        """Bytes of a chunk before compression."""
        pixels = self.windows * self.height * self.width
        return 1 + (pixels + 7) // 8 if self.layout == "bits" else pixels

    @property
    def max_stored_bytes(self) -> int:
        """The most bytes that a chunk may take when it is stored: a frame that does not compress, and its checksum."""
        return self.raw_bytes + self.raw_bytes // 64 + 1024

    @property
    def object_windows(self) -> int:
        """Images an object of the store: of a shard, or of a chunk where there are no shards."""
        return self.shard or self.windows

    @property
    def typesize(self) -> int:
        """Bytes a pixel column where columns are whole bytes, else 1.

        Shuffling by it brings the first bytes of all columns together, then the second ones, and so on. That
        compresses 64x60 images to 120 bytes where unshuffled columns take 155, and is 1.5 times faster.
        """
        return self.height // 8 if self.height % 8 == 0 and self.height // 8 <= 16 else 1

    def chunks(self, n: int) -> int:
        """Chunks that `n` windows take."""
        return -(-n // self.windows)

    def create_array(self, group: Any, n: int) -> Any:
        """Create the zarr array ``images`` of `n` windows in `group`."""
        from zarr.codecs import TransposeCodec

        with numcodecs_allowed():
            filters: list[Any] | None = None
            if self.layout == "uint8" and self.compressed:
                filters = [TransposeCodec(order=(0, 2, 1))]
            if self.layout == "bits":
                from zarr.codecs.numcodecs import PackBits

                filters = [TransposeCodec(order=(0, 2, 1)), PackBits()]
            return group.create_array(
                "images",
                shape=(n, self.height, self.width),
                chunks=(self.windows, self.height, self.width),
                shards=(self.shard, self.height, self.width) if self.shard else None,
                dtype="bool" if self.layout == "bits" else "uint8",
                filters=filters,
                compressors=self.byte_codecs() if self.compressed else None,
                fill_value=False if self.layout == "bits" else 0,
                dimension_names=("window", "y", "x"),
            )

    def byte_codecs(self) -> list[Any]:
        """Return zarr's codecs from the bytes of a compressed chunk to what is stored."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        compressor: Any = BloscCodec(
            cname="zstd", clevel=ZSTD_LEVEL, shuffle="bitshuffle", typesize=1, blocksize=BLOCK_BYTES
        )
        if self.layout == "bits":
            compressor = BloscCodec(
                cname="zstd",
                clevel=ZSTD_LEVEL,
                shuffle="shuffle" if self.typesize > 1 else "noshuffle",
                typesize=self.typesize,
                blocksize=self.raw_bytes,
            )
        return [compressor, Crc32cCodec()]

    @property
    def columns_first(self) -> bool:
        """Whether chunks hold columns of pixels, so that ``decode_bits`` costs less than ``decode``."""
        return self.layout == "bits" or self.compressed

    def encode(self, bits: NDArray[np.uint8]) -> bytes:
        """Return the stored bytes of a chunk, given at most ``windows`` images as column bits."""
        if self.layout == "bits":
            raw = self.pack(bits)
            if not self.compressed:
                return raw.tobytes()
            shuffle = numcodecs_blosc.SHUFFLE if self.typesize > 1 else numcodecs_blosc.NOSHUFFLE
            codec = numcodecs_blosc.Blosc(
                "zstd", ZSTD_LEVEL, shuffle, blocksize=self.raw_bytes, typesize=self.typesize
            )
            return with_checksum(bytes(codec.encode(raw)))
        if self.compressed:
            return with_checksum(encode_bits(self.pack(bits)[1:], self.raw_bytes))
        pixels = np.zeros((self.windows, self.height, self.width), np.uint8)
        widen(bits, self.height, self.width, pixels[: len(bits)])
        return pixels.tobytes()

    def decode(self, stored: Content, n: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the first `n` images of a chunk as uint8 (n, height, width)."""
        if self.columns_first:
            return widen(self.decode_bits(stored, n), self.height, self.width, out)
        pixels = self._decompressed(stored).reshape(self.windows, self.height, self.width)[:n]
        if out is None:
            return pixels
        out[:] = pixels
        return out

    def decode_bits(self, stored: Content, n: int) -> NDArray[np.uint8]:
        """Return the first `n` images of a chunk as column bits (n, packed_bytes)."""
        if not self.columns_first:
            return _column_bits(self.decode(stored, n))
        pixels = self.height * self.width
        if self.layout == "uint8":
            raw = decode_bits(check_sealed(stored), self.raw_bytes)
        else:
            raw = self._decompressed(stored)[1:]
        if pixels % 8 == 0:
            return raw.reshape(self.windows, self.packed_bytes)[:n]
        bits = np.empty((n, self.packed_bytes), np.uint8)
        render_bits.split_bits(raw, pixels, bits)
        return bits

    def pack(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay images end to end, bit by bit, behind the byte in which PackBits counts its padding.

        The thread's next call writes over what is returned.
        """
        pixels = self.height * self.width
        total = self.windows * pixels
        # Fresh memory costs a page fault every 4 kB, more than filling it: a thread keeps its buffers.
        raw: NDArray[np.uint8] | None = getattr(_local, "raw", None)
        if raw is None or len(raw) != 1 + (total + 7) // 8:
            raw = _local.raw = np.empty(1 + (total + 7) // 8, np.uint8)
        raw[0] = -total % 8
        if pixels % 8 == 0:
            raw[1 : 1 + bits.size] = bits.reshape(-1)
            raw[1 + bits.size :] = 0
        else:
            raw[1:] = 0
            render_bits.join_bits(bits, pixels, raw[1:])
        return raw

    def _decompressed(self, stored: Content) -> NDArray[np.uint8]:
        if self.compressed:
            body = check_sealed(stored)
            check_frame(body, self.raw_bytes)
            stored = numcodecs_blosc.Blosc().decode(body)
        raw = np.frombuffer(stored, np.uint8)
        if len(raw) != self.raw_bytes:
            raise ValueError(f"{len(raw)} bytes after decompression, expected {self.raw_bytes}")
        return raw

    def decode_foreign(self, stored: Content) -> NDArray[np.uint8]:
        """Return the raw bytes of a compressed chunk as any reader of Zarr sees them, by no short cut."""
        return self._decompressed(stored)

    @property
    def shard_index_bytes(self) -> int:
        """Bytes of the index at the end of a shard: offset and length of every chunk, and a crc32c."""
        return 16 * (self.shard // self.windows) + 4

    def shard_index(self, chunks: Sequence[Content]) -> bytes:
        """Return the index of a shard that holds these chunks, from its first one on."""
        index = np.full((self.shard // self.windows, 2), _EMPTY, "<u8")
        lengths = np.array([len(chunk) for chunk in chunks], np.uint64)
        index[: len(chunks), 0] = np.cumsum(lengths) - lengths
        index[: len(chunks), 1] = lengths
        return with_checksum(index.tobytes())

    def parse_shard_index(self, stored: Content) -> NDArray[np.uint64]:
        """Return offset and length of each chunk of a shard, uint64 (chunks, 2), 2**64 - 1 for none."""
        if len(stored) != self.shard_index_bytes:
            raise ValueError(f"an index of {len(stored)} bytes, expected {self.shard_index_bytes}")
        return np.frombuffer(check_sealed(stored), "<u8").reshape(-1, 2)


def _column_bits(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack images of 0 and 255, uint8 (n, height, width), as column bits (n, ceil(height * width / 8))."""
    n, height, width = images.shape
    if height % 8:
        return np.packbits(images.transpose(0, 2, 1).reshape(n, -1), axis=1)
    bits = np.empty((n, height * width // 8), np.uint8)
    kernels.pack_columns(images, bits)
    return bits
