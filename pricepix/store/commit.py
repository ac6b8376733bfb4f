"""Changing a finished store: all of the change or none of it, whatever dies in between.

New and changed objects are written beside the store's own, below ``_build/append``, where nobody looks. One
write of the group's document, which says ``pending``, makes the change true: from then on readers prefer what
lies there. Then the objects are moved to their places, and last the document loses its mark. A process that
dies before that one write leaves the store as it was; after it, as it will be, and whoever comes next ends
the moving.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pricepix.location import BUILD, Location
from pricepix.store.format import ROOT, dump
from pricepix.store.lock import KEY as LOCK

STAGE: Final = f"{BUILD}/append"


def staged(key: str) -> str:
    """Key under which the new bytes of `key` wait."""
    return f"{STAGE}/{key}"


def commit(location: Location, root: dict[str, Any], gone: Sequence[str]) -> None:
    """Make what is staged, with this document of the group, the store; remove the objects `gone`.

    The caller holds the store's lock.
    """
    attributes = {**root["attributes"], "pending": {"delete": list(gone)}}
    location.put(ROOT, dump({**root, "attributes": attributes}))
    settle(location)


def settle(location: Location) -> None:
    """End a change that was committed, drop one that was not; the caller holds the store's lock."""
    content = location.get(ROOT)
    root = json.loads(bytes(content)) if content is not None else {}
    pending = root.get("attributes", {}).pop("pending", None)
    if pending is not None:
        for key in sorted(location.list(STAGE)):
            location.move(key, key.removeprefix(f"{STAGE}/"))
        for key in pending["delete"]:
            location.delete(key)
        location.put(ROOT, dump(root))
    location.delete_all(BUILD, keep=LOCK)
