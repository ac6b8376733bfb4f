"""Files that end in their own crc32c: the JSON and YAML of runs, and checkpoints.

A checksum within the file is written, replaced, copied and moved with it, so that no kill can part the two, and a
checkpoint that was sent elsewhere still has it. Each kind of file takes it where its other readers pass over it: JSON
as the last key, YAML as a comment, and the zip archive that torch writes as the archive's comment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, Final, NamedTuple

import google_crc32c
import yaml

from pricepix._checks import printable
from pricepix.location import (
    METADATA_BYTES,
    RUN_YAML_NODES,
    StrPath,
    atomic_file,
    opened,
    read_regular,
    read_yaml,
)

__all__ = [
    "check_archive", "checksum_text", "extend_checksum", "read_sealed_json", "read_sealed_yaml", "seal_archive",
    "write_sealed_json", "write_sealed_yaml",
]  # fmt: skip

DIGITS: Final = 8
_BLOCK_BYTES: Final = 4 << 20
_YAML_BYTES: Final = 32 << 20
# The end of a zip archive's last record, without a comment: the length of the comment follows.
_END_RECORD: Final = b"PK\x05\x06"
_END_BYTES: Final = 22


class _Seal(NamedTuple):
    """What stands before and after the digits at the end of a file."""

    before: bytes
    after: bytes

    @property
    def length(self) -> int:
        return len(self.before) + DIGITS + len(self.after)

    def digits(self, tail: bytes) -> bytes | None:
        """Return the digits in the last bytes of a file; None if this is no seal."""
        found = tail[len(self.before) : len(self.before) + DIGITS]
        return found if len(tail) == self.length and tail == self.before + found + self.after else None


_JSON: Final = _Seal(b',\n  "crc32c": "', b'"\n}\n')
_YAML: Final = _Seal(b"# crc32c ", b"\n")
_ARCHIVE: Final = _Seal(b"pricepix crc32c ", b"")


def extend_checksum(crc: int, content: bytes) -> int:
    """Return the crc32c of some bytes and of these behind them."""
    return int(google_crc32c.extend(crc, content))


def checksum_text(crc: int) -> str:
    """Return a crc32c as it is written in text: eight hexadecimal digits."""
    return f"{crc:08x}"


def write_sealed_json(path: StrPath, content: Mapping[str, Any]) -> None:
    """Write a JSON object of one key or more, with its checksum as the last key; or replace it at once."""
    body = json.dumps(content, indent=2).removesuffix("\n}").encode()
    _write_sealed(path, body, _JSON)


def read_sealed_json(path: StrPath, remedy: str = "restore it") -> dict[str, Any]:
    """Return what ``write_sealed_json`` wrote.

    Raises
    ------
    ValueError
        If it is not what was written; `remedy` ends the message.
    """
    content = _read_sealed(path, METADATA_BYTES, _JSON, remedy)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object: {remedy}")
    found.pop("crc32c", None)
    return found


def write_sealed_yaml(path: StrPath, content: Mapping[str, Any]) -> None:
    """Write plain values as YAML, with a last line of their checksum; or replace the file at once."""
    _write_sealed(path, yaml.safe_dump(dict(content), sort_keys=False).encode(), _YAML)


def read_sealed_yaml(path: StrPath, remedy: str = "restore it") -> dict[str, Any]:
    """Return what ``write_sealed_yaml`` wrote.

    Raises
    ------
    ValueError
        If it is not what was written; `remedy` ends the message.
    """
    _read_sealed(path, _YAML_BYTES, _YAML, remedy)
    found = read_yaml(path, RUN_YAML_NODES)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected settings: {remedy}")
    return found


def seal_archive(path: StrPath) -> None:
    """Put the checksum of a zip archive that has no comment behind it, as its comment."""
    with open(path, "r+b") as file:
        file.seek(-_END_BYTES, os.SEEK_END)
        if file.read(len(_END_RECORD)) != _END_RECORD:
            raise ValueError(f"{os.fspath(path)} is not a zip archive without a comment")
        file.seek(-2, os.SEEK_END)
        file.write(_ARCHIVE.length.to_bytes(2, "little") + _ARCHIVE.before)
        size = file.tell()
        crc = _file_checksum(file, size)
        file.seek(size)
        file.write(_digits(crc))


def check_archive(path: StrPath) -> bool:
    """Whether a file ends in the checksum of an archive.

    Raises
    ------
    ValueError
        If it does, and is not what was written.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _ARCHIVE.length))
        digits = _ARCHIVE.digits(file.read(_ARCHIVE.length))
        if digits is None:
            return False
        found = _digits(_file_checksum(file, size - DIGITS))
    if found != digits:
        raise _damaged(path, found, digits, "restore it")
    return True


def _file_checksum(file: BinaryIO, size: int) -> int:
    """crc32c of the first `size` bytes of an open file, or of all where it is shorter."""
    file.seek(0)
    crc = 0
    while size and (block := file.read(min(size, _BLOCK_BYTES))):
        crc, size = extend_checksum(crc, block), size - len(block)
    return crc


def _write_sealed(path: StrPath, body: bytes, seal: _Seal) -> None:
    whole = body + seal.before
    with atomic_file(path) as partial:
        partial.write_bytes(whole + _digits(extend_checksum(0, whole)) + seal.after)


def _read_sealed(path: StrPath, max_bytes: int, seal: _Seal, remedy: str) -> bytes:
    content = read_regular(path, max_bytes)
    digits = seal.digits(content[-seal.length :])
    if digits is None:
        raise ValueError(
            f"{os.fspath(path)} does not end in its checksum: it is damaged, cut off, edited, or of an early pricepix; "
            f"{remedy}"
        )
    found = _digits(extend_checksum(0, content[: len(content) - len(seal.after) - DIGITS]))
    if found != digits:
        raise _damaged(path, found, digits, remedy)
    return content


def _damaged(path: StrPath, found: bytes, expected: bytes, remedy: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} is damaged or was edited: its checksum is {found.decode()}, it says "
        f"{printable(expected.decode('latin-1'), '')}; {remedy}"
    )


def _digits(crc: int) -> bytes:
    return checksum_text(crc).encode()
