"""Factor caches that are written or changed by hand, as scoring would not, with checksums that fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pricepix.factor.cache import open_cache
from pricepix.factor.cache_format import CHECKSUM_KEY, DIGESTS, CacheContent, checksum_table, object_checksum
from pricepix.factor.panel_check import read_labels
from pricepix.location import Folder
from pricepix.store.chunks import seal
from pricepix.store.format import ROOT, dump, metadata_digest


def write_cache(where: Path, attrs: dict, content: CacheContent, values: np.ndarray) -> None:
    """Write a cache of values (day, instrument, interval), or replace one."""
    folder = Folder(Path(where))
    folder.delete_all()
    objects: dict[str, bytes] = {}
    layouts, axes = content.layouts(), content.encode_axes()
    for layout in layouts:
        objects |= zip(layout.object_keys(), axes.get(layout.name, ()), strict=False)
    for day, block in enumerate(np.asarray(values, np.float32)):
        for group, stored in enumerate(content.encode_day(block)):
            if stored is not None:
                objects[content.values_layout("factor").key(day, group, 0)] = stored
    table = checksum_table(layouts, {key: object_checksum(stored) for key, stored in objects.items()})
    objects |= content.metadata(attrs, table) | {CHECKSUM_KEY: seal(table)}
    for key, stored in objects.items():
        folder.put(key, stored)
    folder.delete_all("_build")


def change_values(where: Path, values: np.ndarray, labels: bool = True) -> None:
    """Write other values into a cache, and leave its labels out if they are not wanted."""
    cache = open_cache(where)
    found, attributes = read_labels(cache) if labels else ({}, {})
    content = CacheContent(
        cache.days.astype(np.int64), cache.time, cache.instruments.tolist(), cache.intervals, False,
        cache.factor.chunks[1], found, attributes,
    )  # fmt: skip
    attrs = {name: value for name, value in cache.attrs.items() if name not in DIGESTS}
    write_cache(where, attrs, content, values)


def change_attributes(where: Path, changes: dict, removed: tuple[str, ...] = ()) -> None:
    """Change attributes of a cache, and its digest with them."""
    path = Path(where) / ROOT
    root = json.loads(path.read_text())
    attributes = {name: value for name, value in root["attributes"].items() if name not in removed}
    root["attributes"] = {**attributes, **changes}
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    path.write_bytes(dump(root))
