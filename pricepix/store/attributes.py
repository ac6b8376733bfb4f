"""The attributes of a store's group: which there must be, and what each may hold.

They decide how much memory reading asks for, and anybody may have written them. So they are checked before any of
them is used; sizes that depend on other files are checked where those are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pricepix._checks import boolean, choice, horizons, short, whole_number
from pricepix.bars.times import check_zone
from pricepix.spec import ImageSpec
from pricepix.store import format as store_format
from pricepix.store.chunks import LAYOUTS, MAX_CHUNK_BYTES, ChunkFormat
from pricepix.store.format import ROOT

__all__ = ["FORMAT_VERSION", "check_attributes", "check_digest", "check_values"]

FORMAT_VERSION: Final = 1

_REQUIRED: Final = (
    "spec", "spec_digest", "panel_digest", "horizons", "delay", "layout", "chunk", "windows", "instruments",
    "drop_counts",
)  # fmt: skip
_TEXTS: Final = (
    "spec_digest",
    "panel_digest",
    "metadata_digest",
    "checksums_digest",
    "label_price",
    "created_by",
)
# Images of 64x60 take 30 PB then; positions in 64 bits stay exact.
_MAX_WINDOWS: Final = 1 << 48
_MAX_INSTRUMENTS: Final = 1 << 31
_MAX_HORIZONS: Final = 1024


def check_attributes(attrs: Mapping[str, Any], url: str) -> None:
    """Refuse a group that is not a finished store of this format."""
    version = attrs.get("format_version")
    if version is None or "spec" not in attrs:
        raise ValueError(
            f"{url} is a Zarr group, but not a pricepix store: it has no format_version and spec"
        )
    if version != FORMAT_VERSION:
        raise ValueError(
            f"store {url} has format version {short(version)}, this release reads version {FORMAT_VERSION}: "
            "see CHANGELOG.md for how to recover, or rebuild it"
        )
    if not attrs.get("complete"):
        raise ValueError(
            f"store {url} is not finished: its build was stopped, or still runs; build it again with "
            "mode='resume' to continue where it stopped, or with mode='overwrite'"
        )
    missing = [name for name in _REQUIRED if name not in attrs]
    if missing:
        raise ValueError(
            f"store {url} lacks the attributes {', '.join(missing)}: it is truncated; rebuild it"
        )


def check_digest(root: Mapping[str, Any], url: str) -> None:
    """Refuse metadata that were edited or damaged."""
    attrs = root["attributes"]
    if not attrs.get("compressed", True):
        return
    found = store_format.metadata_digest(root)
    if found != attrs.get("metadata_digest"):
        raise ValueError(
            f"the metadata of store {url} were edited or damaged: their digest is {found}, the store "
            f"says {short(attrs.get('metadata_digest'))}; restore {ROOT} or rebuild the store"
        )


def check_values(attrs: Mapping[str, Any], url: str) -> None:
    """Refuse attributes that cannot be those of a store, whatever their digest says."""
    try:
        _check_values(attrs)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the attributes of store {url} cannot be right: {error}; restore or rebuild it"
        ) from None


def _check_values(attrs: Mapping[str, Any]) -> None:
    spec = ImageSpec.from_dict(attrs["spec"])
    if not isinstance(attrs["horizons"], list) or len(attrs["horizons"]) > _MAX_HORIZONS:
        raise ValueError(
            f"horizons={short(attrs['horizons'])} is not a list of at most {_MAX_HORIZONS:,} numbers of bars"
        )
    if list(horizons(attrs["horizons"])) != attrs["horizons"]:
        raise ValueError(f"horizons={short(attrs['horizons'])} do not ascend")
    whole_number(attrs["windows"], "windows", 0, _MAX_WINDOWS)
    whole_number(attrs["instruments"], "instruments", 0, _MAX_INSTRUMENTS)
    whole_number(attrs["delay"], "delay", 0, _MAX_WINDOWS)
    choice(attrs["layout"], "layout", LAYOUTS)
    compressed = boolean(attrs.get("compressed", True), "compressed")
    chunk = whole_number(attrs["chunk"], "chunk", 1, _MAX_WINDOWS)
    form = ChunkFormat(attrs["layout"], *spec.shape, chunk, compressed)
    if compressed and form.raw_bytes > MAX_CHUNK_BYTES:
        raise ValueError(
            f"chunk={chunk:,} images of {spec.height}x{spec.width} take {form.raw_bytes:,} bytes, more than the "
            f"{MAX_CHUNK_BYTES:,} that a chunk can hold"
        )
    shard = whole_number(attrs.get("shard", 0), "shard", 0, _MAX_WINDOWS)
    if shard % chunk:
        raise ValueError(f"shard={shard:,} is not a multiple of chunk={chunk:,}")
    check_zone(attrs.get("tz"))
    for name in ("drop_counts", "died_within_horizon"):
        counts = attrs.get(name, {})
        if not isinstance(counts, Mapping):
            raise ValueError(f"{name}={short(counts)} is not an object of counts")
        for reason, count in counts.items():
            whole_number(count, f"{name}[{short(reason)}]", 0, _MAX_WINDOWS)
    choice(attrs.get("delisting", "missing"), "delisting", ("hold", "missing"))
    for name in _TEXTS:
        if not isinstance(attrs.get(name), str | None):
            raise ValueError(f"{name}={short(attrs[name])} is not text")
