"""A second description of the image chunks of layout ``bits``, for readers that lack the codec ``packbits``.

The Zarr array ``images/c`` has no chunks of its own. Its chunk keys, ``<chunk>/0/0``, lead to the objects of
``images``, and its codecs are those of the core of Zarr v3: what it reads are the packed bits, uint8, one row a chunk.
"""

from __future__ import annotations

import json
from typing import Any, Final

import zarr
from zarr.storage import MemoryStore

from pricepix.store.chunks import ChunkFormat
from pricepix.store.format import ROOT, dump

__all__ = ["PACKED_VIEW", "packed_view"]

PACKED_VIEW: Final = f"images/c/{ROOT}"
"""Key of the description."""


def packed_view(form: ChunkFormat, windows: int) -> bytes:
    """Return the metadata of the array ``images/c``: uint8 (chunks, 1, bytes of a chunk).

    Byte 0 of a row counts the bits that pad its end. After it come the chunk's images, each ``height * width`` bits,
    the most significant bit of a byte first, column by column and each column from the top.
    """
    if form.layout != "bits":
        raise ValueError(
            f"layout {form.layout!r} of this store needs no packed view: every reader of Zarr reads it as it is"
        )
    if not form.compressed:
        raise ValueError("a store that lives in memory has no packed view: build one on disk")
    keys: dict[str, Any] = {}
    chunk = (1, 1, form.raw_bytes)
    # zarr-python puts the codecs together as it does for `images`: the same, without those before the bytes.
    zarr.create_array(
        MemoryStore(keys),
        shape=(form.chunks(windows), *chunk[1:]),
        chunks=chunk,
        shards=(form.shard // form.windows, *chunk[1:]) if form.shard else None,
        dtype="uint8",
        compressors=form.byte_codecs(),
        fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        dimension_names=("chunk", "one", "byte"),
        attributes={"windows": windows, "chunk": form.windows, "height": form.height, "width": form.width},
    )
    return dump(json.loads(keys[ROOT].to_bytes()))
