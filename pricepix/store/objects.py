"""The objects of an image store: fetched, checked and decoded, one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pricepix.location import Folder, Location
from pricepix.store import format as document
from pricepix.store.format import ROOT

FORMAT_VERSION: Final = 1

HISTORY: Final = "_appends.json"

_REQUIRED: Final = (
    *(
        "spec",
        "spec_digest",
        "panel_digest",
        "horizons",
        "delay",
        "layout",
        "chunk",
        "windows",
        "instruments",
    ),
    "drop_counts",
)

_THREADS: Final = 4


def read_root(where: Location) -> dict[str, Any]:
    """Read the group's document of a store; the errors are those of ``open_store``."""
    content = where.get(ROOT)
    if content is None:
        if isinstance(where, Folder):
            if not where.path.exists():
                raise FileNotFoundError(
                    f"no store at {where.name}: build one with pricepix.render_universe(panel, spec, "
                    f"{where.name!r})"
                )
            if not where.path.is_dir():
                raise ValueError(f"{where.name} is a file; a pricepix store is a folder (a Zarr v3 group)")
        elif where.is_empty():
            raise FileNotFoundError(
                f"no store at {where.name}: build one with pricepix.render_universe(panel, spec, "
                f"{where.name!r})"
            )
        raise ValueError(
            f"{where.name} holds no Zarr v3 group: it is not a pricepix store, its build was stopped at the "
            "very start, or its metadata is lost"
        )
    try:
        root = json.loads(bytes(content))
        if root["zarr_format"] != 3 or root["node_type"] != "group":
            raise ValueError("not a Zarr v3 group")
        root.setdefault("attributes", {})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where.name}/{ROOT} is damaged or foreign ({error}): restore or rebuild the store"
        ) from error
    return dict(root)


def check_attributes(attrs: Mapping[str, Any], location: str) -> None:
    """Refuse a group that is no finished store of this format."""
    version = attrs.get("format_version")
    if version is None or "spec" not in attrs:
        raise ValueError(
            f"{location} is a Zarr group, but not a pricepix store: it has no format_version and spec"
        )
    if version != FORMAT_VERSION:
        raise ValueError(
            f"store {location} has format version {version}, this release reads version {FORMAT_VERSION}: "
            "see CHANGELOG.md for how to recover, or rebuild it"
        )
    if not attrs.get("complete"):
        raise ValueError(
            f"store {location} is not finished: its build was stopped, or still runs; build it again with "
            "mode='resume' to go on where it stopped, or with mode='overwrite'"
        )
    missing = [name for name in _REQUIRED if name not in attrs]
    if missing:
        raise ValueError(
            f"store {location} lacks the attributes {', '.join(missing)}: it is truncated; rebuild it"
        )


def check_digest(root: Mapping[str, Any], location: str) -> None:
    """Refuse metadata that were edited."""
    attrs = root["attributes"]
    if not attrs.get("compressed", True):
        return
    found = document.metadata_digest(root)
    if found != attrs.get("metadata_digest"):
        raise ValueError(
            f"the metadata of store {location} were edited or damaged: their digest is {found}, the store "
            f"says {attrs.get('metadata_digest')}; restore {ROOT} or rebuild the store"
        )
