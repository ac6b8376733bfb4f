"""Verifying a factor cache or embeddings: every object is read and compared with what it must be."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pricepix._checks import printable
from pricepix.bars.progress import progress_bar
from pricepix.factor.cache_format import CHECKSUM_KEY
from pricepix.factor.cache_objects import CacheObjects, read_root
from pricepix.location import BUILD
from pricepix.store.chunks import unseal
from pricepix.store.format import ROOT
from pricepix.store.verify import VerifyReport

__all__ = ["verify_objects"]


def verify_objects(objects: CacheObjects, *, progress: bool = False) -> VerifyReport:
    """Check the cache, or the embeddings, of these objects; what is returned is that of ``FactorCache.verify``."""
    report = VerifyReport(objects.url, "checksums", int(objects.attrs["windows"]))
    report.problems.extend(_metadata(objects))
    chunks = [key for key, expected in objects.checksums.items() if expected >= 0]
    with progress_bar(len(chunks), "verify", "chunk", progress) as bar:
        for key in chunks:
            report.problems.extend(_chunk(objects, key))
            bar.update(1)
    report.chunks = len(chunks) + 1
    return report


def _metadata(objects: CacheObjects) -> Iterator[str]:
    kind, restore = objects.kind, f"restore it, or {objects.kind.again} again"
    root = read_root(objects.location, kind)
    if root is None or root["attributes"]["metadata_digest"] != objects.attrs["metadata_digest"]:
        yield f"{ROOT} changed since it was opened: verify it again"
        return
    if "pending" in root["attributes"]:
        yield f"a writer was stopped while it moved objects into place: open the {kind.noun} with the right to write"
    for name, member in objects.members.items():
        key = f"{name}/{ROOT}"
        own = objects.fetch(key)
        try:
            found = None if own is None else json.loads(bytes(own))
        except ValueError:
            found = None
        expected = {part: value for part, value in member.items() if part != "consolidated_metadata"}
        if found != expected:
            yield f"{key} is {'missing' if own is None else 'damaged or edited'}: {restore}"
    key = CHECKSUM_KEY
    if (stored := objects.fetch(key)) is None:
        yield f"{key} is missing: {restore}"
    else:
        try:
            same = bytes(unseal(stored)) == objects.table.tobytes()
        except (ValueError, RuntimeError):
            same = False
        if not same:
            yield f"{key} is damaged: {restore}"
    if not objects.pending:
        present = {key for key in objects.location.list() if not key.startswith(f"{BUILD}/")}
        unexpected = sorted(present - objects.object_keys())
        if unexpected:
            yield (
                f"{len(unexpected)} objects do not belong to the {kind.noun}, the first is "
                f"{printable(unexpected[0], '')}: remove them"
            )


def _chunk(objects: CacheObjects, key: str) -> Iterator[str]:
    try:
        stored = objects.chunk(key)
        assert stored is not None
        unseal(stored)
    except (ValueError, RuntimeError) as error:
        damaged = f"{key} is damaged ({error}): restore it, or {objects.kind.again} again"
        yield str(error) if key in str(error) else damaged
