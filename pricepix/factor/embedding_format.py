"""The format of embeddings: their arrays, what their metadata may say, and their stored chunks.

Embeddings are a Zarr v3 group with the checksums of a factor cache (see ``cache_format``): ``embedding``, float32
(window, feature); ``time``, int64 nanoseconds, and ``instrument_index``, int32, along ``window``; and ``instrument``,
the names that it points into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from pricepix._checks import short, whole_number
from pricepix.bars.times import check_zone
from pricepix.factor.cache_attributes import array_forms, check_texts
from pricepix.factor.cache_format import ArrayLayout, create_array, finished_metadata
from pricepix.factor.cache_objects import Kind
from pricepix.location import BUILD
from pricepix.store.chunks import seal
from pricepix.store.format import ROOT, TIME_ATTRIBUTES, encode_strings
from pricepix.windows.labels import NO_TIME

__all__ = [
    "EMBEDDING",
    "EMBEDDING_VERSION",
    "encode_names",
    "encode_rows",
    "layouts",
    "metadata",
    "rows_of_chunk",
]

FORMAT: Final = "pricepix-embedding"
EMBEDDING_VERSION: Final = 2
_CHUNK_BYTES: Final = 4 << 20
_MOST_BYTES: Final = 64 << 20
_WINDOWS: Final = 1 << 16
"""Windows of a chunk of ``time`` and ``instrument_index``."""
_NAMES: Final = 1 << 12
_TYPES: Final = {"embedding": "float32", "time": "int64", "instrument_index": "int32", "instrument": "string"}
_FILLS: Final = {"embedding": np.nan, "time": NO_TIME, "instrument_index": -1}
_TEXTS: Final = ("metadata_digest", "checksums_digest", "spec_digest", "images", "created_by")


def rows_of_chunk(features: int) -> int:
    """Windows of a chunk of new embeddings."""
    return max(1, _CHUNK_BYTES // max(1, 4 * features))


def layouts(windows: int, features: int, rows: int, instruments: int) -> dict[str, ArrayLayout]:
    """Return the layouts of all arrays by name, in the order of their checksums; a chunk has so many rows."""
    shapes = {
        "embedding": ((windows, features), (rows, features)),
        "instrument": ((instruments,), (_NAMES,)),
        "instrument_index": ((windows,), (_WINDOWS,)),
        "time": ((windows,), (_WINDOWS,)),
    }
    return {name: ArrayLayout(name, shape, chunks) for name, (shape, chunks) in shapes.items()}


def encode_rows(layout: ArrayLayout, values: NDArray[Any]) -> bytes:
    """Return the stored chunk of these rows, filled up where they are fewer than it has."""
    whole = np.full(layout.chunks, _FILLS[layout.name], values.dtype)
    whole[: len(values)] = values
    return seal(whole)


def encode_names(layout: ArrayLayout, names: list[str]) -> list[bytes]:
    """Return the stored chunks of all names."""
    (size,) = layout.chunks
    padded = [*names, *[""] * (-len(names) % size)]
    return [encode_strings(np.array(padded[a : a + size], np.str_)) for a in range(0, len(padded), size)]


def metadata(
    arrays: Mapping[str, ArrayLayout], attributes: Mapping[str, Any], table: NDArray[np.int64]
) -> dict[str, bytes]:
    """Return the Zarr metadata by key."""
    objects: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(objects), zarr_format=3)
    create_array(group, arrays["embedding"], np.float32, np.nan, ("window", "feature"))
    create_array(group, arrays["time"], np.int64, NO_TIME, ("window",), **TIME_ATTRIBUTES)
    create_array(group, arrays["instrument_index"], np.int32, -1, ("window",))
    create_array(group, arrays["instrument"], str, "", ("instrument",))
    return finished_metadata(group, objects, attributes, table)


def _check_metadata(root: Mapping[str, Any], name: str) -> dict[str, int | None]:
    """Return the bytes of a value of each array; ValueError if these cannot be the metadata of embeddings."""
    try:
        attrs = root["attributes"]
        windows = whole_number(attrs["windows"], "windows", 0, 1 << 48)
        check_zone(attrs.get("tz"))
        check_texts(attrs, _TEXTS)
        forms = array_forms(root["consolidated_metadata"]["metadata"], _TYPES, tuple(_TYPES))
        if forms.keys() != _TYPES.keys():
            raise ValueError(f"there are arrays that are not of embeddings: {short(sorted(forms))}")
        (_, features), (instruments,) = forms["embedding"].shape, forms["instrument"].shape
        rows = forms["embedding"].chunks[0]
        if 4 * rows * features > _MOST_BYTES:
            raise ValueError(
                f"a chunk of {rows:,} x {features:,} takes more than {_MOST_BYTES:,} bytes (max_bytes)"
            )
        for layout in layouts(windows, features, rows, instruments).values():
            form = forms[layout.name]
            if form.shape != layout.shape or form.chunks != layout.chunks:
                raise ValueError(
                    f"{layout.name} has the shape {short(form.shape)} in chunks of {short(form.chunks)}, expected "
                    f"{short(layout.shape)} in {short(layout.chunks)}"
                )
        return {array: form.item_bytes for array, form in forms.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"the metadata of embedding {name} cannot be right: {why[:500]}; restore {ROOT}, or embed again"
        ) from None


EMBEDDING: Final = Kind(
    "embedding", "an embedding", FORMAT, EMBEDDING_VERSION, ("model", "spec_digest", "windows"),
    f"{BUILD}/embedding.json", "embed", _check_metadata,
)  # fmt: skip
