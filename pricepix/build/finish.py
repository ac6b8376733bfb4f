"""The last objects of a store: names, checksums, and the group's metadata, which declare it complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.location import BUILD, Location
from pricepix.store.attributes import FORMAT_VERSION
from pricepix.store.chunks import seal
from pricepix.store.format import CHECKSUMS, ROOT, Geometry, checksums_digest, chunk_key, dump, encode_strings
from pricepix.store.lock import KEY as LOCK


@dataclass(frozen=True)
class PanelFacts:
    """What a store says about the bars that it was made from, whether or not one panel holds them all."""

    instruments: NDArray[np.str_]
    offsets: NDArray[np.int64]
    instrument_digests: NDArray[np.uint64]
    digest: str
    fields: tuple[str, ...]
    tz: str | None

    @classmethod
    def of(cls, panel: Panel) -> PanelFacts:
        """Return the facts about a panel."""
        digests = panel.instrument_digests
        return cls(panel.instruments, panel.offsets, digests, panel.digest, tuple(panel.fields), panel.tz)

    @property
    def n_instruments(self) -> int:
        """Number of instruments."""
        return len(self.instruments)


def store_attributes(lineage: Mapping[str, Any], shard: int = 0) -> dict[str, Any]:
    """Return the attributes of a store that is not complete yet; their order is part of its bytes."""
    first = {"format_version": FORMAT_VERSION, "created_by": lineage["created_by"], "complete": False}
    return {**first, **lineage, **({"shard": shard} if shard else {})}


def empty_checksums(geometry: Geometry) -> NDArray[np.uint32]:
    """Return room for the checksums of all chunks, in the order of ``Geometry.arrays``."""
    return np.zeros(sum(count for _, count in geometry.arrays()), np.uint32)


def last_objects(
    geometry: Geometry, attributes: Mapping[str, Any], facts: PanelFacts, checks: NDArray[np.uint32]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the objects that make chunks a store, and the group's metadata, which declare it complete."""
    stored = {
        "instruments": encode_strings(facts.instruments),
        "instrument_rows": seal(np.diff(facts.offsets).astype("<i8")),
        "instrument_digest": seal(facts.instrument_digests.astype("<u8")),
    }
    slices = geometry.checksum_slices()
    for name, content in stored.items():
        checks[slices[name]] = int.from_bytes(content[-4:], "little")
    stored[CHECKSUMS] = seal(checks.astype("<u4"))
    attributes = {
        **attributes,
        "panel_digest": facts.digest,
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
    facts: PanelFacts,
    checks: NDArray[np.uint32],
) -> None:
    """Write what is left; the last write declares the store complete."""
    objects, root = last_objects(geometry, attributes, facts, checks)
    for key, content in objects.items():
        where.put(key, content)
    where.put(ROOT, dump(root))
    where.delete_all(BUILD, keep=LOCK)
