"""What the metadata of a factor cache may say: they decide how much memory reading asks for.

Anybody may have written them, with a digest that fits. So they are checked before any of them is used; what depends on
other objects, such as how many names there really are, is checked where those are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pricepix._checks import choice, short, whole_number, whole_number_or_none
from pricepix.bars.times import check_zone
from pricepix.factor.cache_format import CHECKSUMS, DAYS
from pricepix.spec import ImageSpec
from pricepix.store.format import ROOT

__all__ = ["ArrayForm", "array_forms", "check_metadata", "check_texts"]

# The size of a value; names have none of their own.
_ITEM_BYTES: Final = {
    "float32": 4,
    "float64": 8,
    "int32": 4,
    "int64": 8,
    "uint32": 4,
    "uint64": 8,
    "string": None,
}
_TYPES: Final = {
    "factor": "float32",
    "spread": "float32",
    "day": "int64",
    "time": "int64",
    "instrument": "string",
    "interval": "string",
}
_REQUIRED: Final = ("factor", "day", "time", "instrument", "interval")
_MOST: Final = 1 << 31
_TEXTS: Final = (
    "store_digest",
    "spec_digest",
    "panel_digest",
    "metadata_digest",
    "checksums_digest",
    "store",
    "values",
)


def check_metadata(root: Mapping[str, Any], name: str) -> dict[str, int | None]:
    """Return the bytes of a value of each array, None for names.

    Raises
    ------
    ValueError
        If attributes or arrays of the cache `name` cannot be those of one, whatever their digest says.
    """
    try:
        _check_attributes(root["attributes"])
        return _check_arrays(root["consolidated_metadata"]["metadata"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"the metadata of cache {name} cannot be right: {why[:500]}; restore {ROOT}, or score again"
        ) from None


def _check_attributes(attrs: Mapping[str, Any]) -> None:
    ImageSpec.from_dict(attrs["spec"])
    whole_number(attrs["windows"], "windows", 0, 1 << 48)
    whole_number(attrs.get("skipped", 0), "skipped", 0, 1 << 48)
    for key in ("without_value", "unplaced"):
        whole_number_or_none(attrs.get(key), key, 0)
    # A cache of another hand may say that values are known before their image: the audit names it.
    whole_number(attrs["shift"], "shift", -_MOST, _MOST)
    check_zone(attrs.get("tz"))
    check_texts(attrs, _TEXTS)


class ArrayForm(NamedTuple):
    """What metadata say of an array."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int | None:
        """Bytes of a value, None for names."""
        return _ITEM_BYTES[self.dtype]


def array_forms(
    members: Mapping[str, Any], types: Mapping[str, str], required: Sequence[str]
) -> dict[str, ArrayForm]:
    """Return the forms of all arrays that the metadata of a group describe, but that of its checksums.

    Parameters
    ----------
    members : mapping
        Metadata by name.
    types : mapping
        The types of some arrays, by name.
    required : sequence of str
        Arrays that there must be.

    Raises
    ------
    ValueError, TypeError, KeyError, AttributeError, IndexError
        If metadata cannot be those of an array of ours.
    """
    arrays = {
        name: meta for name, meta in members.items() if meta["node_type"] == "array" and name != CHECKSUMS
    }
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"there is no array {missing[0]!r}")
    found = {}
    for name, meta in arrays.items():
        shape = _sizes(meta["shape"], f"the shape of {name}", 0)
        chunks = _sizes(meta["chunk_grid"]["configuration"]["chunk_shape"], f"the chunks of {name}", 1)
        dtype = choice(
            meta["data_type"], f"the type of {name}", (types[name],) if name in types else _ITEM_BYTES
        )
        if len(shape) != len(chunks):
            raise ValueError(f"{name} has {len(shape)} dimensions, its chunks have {len(chunks)}")
        codecs = [codec["name"] for codec in meta["codecs"]]
        expected = ["vlen-utf8" if dtype == "string" else "bytes", "zstd", "crc32c"]
        if codecs != expected:
            raise ValueError(f"{name} is stored by {short(codecs)}, expected {', '.join(expected)}")
        found[name] = ArrayForm(shape, chunks, dtype)
    return found


def check_texts(attrs: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError if an attribute is there and not text, or the model is not one."""
    model = attrs["model"]
    if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
        raise ValueError(f"model={short(model)} does not describe a model")
    for key in names:
        if not isinstance(attrs.get(key), str | None):
            raise ValueError(f"{key}={short(attrs[key])} is not text")


def _check_arrays(members: Mapping[str, Any]) -> dict[str, int | None]:
    forms = array_forms(members, _TYPES, _REQUIRED)
    days, instruments, intervals = (forms[name].shape for name in ("day", "instrument", "interval"))
    (block,) = forms["instrument"].chunks
    many = forms["interval"].chunks
    wanted = {
        "day": (days, (DAYS,)),
        "interval": (intervals, (max(1, *intervals),) if len(intervals) == 1 else intervals),
        "time": (days + intervals, (DAYS, *many)),
        "factor": (days + instruments + intervals, (1, block, *many)),
    }
    if "spread" in forms:
        wanted["spread"] = wanted["factor"]
    for name, (shape, chunk) in wanted.items():
        if forms[name].shape != shape or forms[name].chunks != chunk:
            raise ValueError(
                f"{name} has the shape {short(forms[name].shape)} in chunks of {short(forms[name].chunks)}, where the "
                f"axes have {short(shape)} in {short(chunk)}"
            )
    return {name: form.item_bytes for name, form in forms.items()}


def _sizes(value: Any, what: str, minimum: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 3:
        raise ValueError(f"{what} is {short(value)}, expected up to three whole numbers")
    return tuple(whole_number(n, what, minimum, _MOST) for n in value)
