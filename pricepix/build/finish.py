"""The last objects of a store: names, checksums, and the group's metadata, which declare it complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pricepix.location import BUILD, Location
from pricepix.store.chunks import seal
from pricepix.store.format import CHECKSUMS, ROOT, Geometry, checksums_digest, chunk_key, dump, encode_strings
from pricepix.store.lock import KEY as LOCK


class BarFacts(Protocol):
    """What a store says of the bars that it was made from: a panel, or the facts of one that was read in parts."""

    @property
    def instruments(self) -> NDArray[np.str_]: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def instrument_digests(self) -> NDArray[np.uint64]: ...
    @property
    def digest(self) -> str: ...


def last_objects(
    geometry: Geometry, attributes: Mapping[str, Any], panel: BarFacts, checks: NDArray[np.uint32]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the objects that make chunks a store, and the group's metadata, which declare it complete."""
    stored = {
        "instruments": encode_strings(panel.instruments),
        "instrument_rows": seal(np.diff(panel.offsets).astype("<i8")),
        "instrument_digest": seal(panel.instrument_digests.astype("<u8")),
    }
    slices = geometry.checksum_slices()
    for name, content in stored.items():
        checks[slices[name]] = int.from_bytes(content[-4:], "little")
    stored[CHECKSUMS] = seal(checks.astype("<u4"))
    attributes = {
        **attributes,
        "panel_digest": panel.digest,
        "checksums_digest": checksums_digest(checks),
        "complete": True,
    }
    documents = geometry.metadata(attributes)
    root = json.loads(documents.pop(ROOT))
    return {**documents, **{chunk_key(name, 0): content for name, content in stored.items()}}, root


def finish(
    where: Location,
    geometry: Geometry,
    attributes: Mapping[str, Any],
    panel: BarFacts,
    checks: NDArray[np.uint32],
) -> None:
    """Write what is left; the last write declares the store complete."""
    objects, root = last_objects(geometry, attributes, panel, checks)
    for key, content in objects.items():
        where.put(key, content)
    where.put(ROOT, dump(root))
    where.delete_all(BUILD, keep=LOCK)
