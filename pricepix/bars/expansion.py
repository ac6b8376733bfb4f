"""How large compressed tables become: read before anything unpacks them into memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["check_expansion"]

_WINDOW: Final = 1 << 20
"""Compressed bytes that are looked at together: a bomb anywhere in a long file fills one of them."""
_LIMIT: Final = 100 << 20
"""The most bytes that a window may become. Tables of bars shrink to a fifth, constant ones to a fiftieth."""
_ZSTD: Final = 0xFD2FB528
_SKIPPABLE: Final = 0x184D2A50


def check_expansion(path: str) -> None:
    """Raise ValueError if a compressed file expands as no table does, anywhere in it: 4 MB of gzip may hold 4 GB.

    A file that is no gzip or zstd archive passes; who reads it says so.
    """
    expand = {".gz": _gzip_windows, ".zst": _zstd_windows}.get(Path(path).suffix.lower())
    if expand is None:
        return
    with open(path, "rb") as file:
        for start, size in expand(file):
            if size > _LIMIT:
                raise ValueError(
                    f"{path}: {_WINDOW:,} bytes from byte {start:,} on expand to {size:,} or more, beyond the "
                    f"{_LIMIT:,} that those of a table may take (max_bytes): unpack it first if it is sound"
                )


def _gzip_windows(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the first byte of each window, and how many bytes it expands to: a few megabytes beyond the limit."""
    stream, start = zlib.decompressobj(31), 0
    while window := file.read(_WINDOW):
        packed, size = window, 0
        try:
            while packed and size <= _LIMIT:
                size += len(stream.decompress(packed, 4 << 20))
                packed = stream.unconsumed_tail
                if stream.eof:
                    # Another member may follow, as files that were joined have them.
                    packed = stream.unused_data.lstrip(b"\0")
                    stream = zlib.decompressobj(31)
        except zlib.error:
            return
        yield start, size
        start += len(window)


def _zstd_windows(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the same of zstd, the most that its blocks can hold by their headers (RFC 8878), unpacking nothing."""
    at = start = size = 0
    while len(head := _at(file, at, 18)) > 5:
        magic = int.from_bytes(head[:4], "little")
        if magic & ~0xF == _SKIPPABLE:
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        if magic != _ZSTD:
            return
        flags = head[4]
        single = flags >> 5 & 1
        at += 6 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        last = 0
        while not last and len(block := _at(file, at, 3)) == 3:
            header = int.from_bytes(block, "little")
            last, kind, length = header & 1, header >> 1 & 3, header >> 3
            size += 1 << 17 if kind == 2 else length
            at += 3 + (1 if kind == 1 else length)
            if at - start >= _WINDOW or size > _LIMIT:
                yield start, size
                start, size = at, 0
        at += 4 * (flags >> 2 & 1)
    yield start, size


def _at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)
