"""Changing a finished store: all of the change or none of it, whatever dies in between.

New and changed objects are written below ``_build/append``, where nobody looks. One write of the group's metadata,
with the mark ``pending``, commits the change: from then on readers prefer what lies there. Then the objects are moved
to their places, and at last the mark is removed. A process that dies before that write leaves the store as it was. If
it dies later, the change holds, and the next writer, or reader that may write, finishes the move.
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
    """Key of the new bytes of `key` until they are moved."""
    return f"{STAGE}/{key}"


def commit(location: Location, root: dict[str, Any], removed: Sequence[str]) -> None:
    """Make the staged objects, with these metadata of the group, the store's; delete the objects `removed`.

    The caller holds the store's lock.
    """
    attributes = {**root["attributes"], "pending": {"delete": list(removed)}}
    location.put(ROOT, dump({**root, "attributes": attributes}))
    finish_pending(location)


def finish_pending(location: Location) -> None:
    """Finish a change that was committed, drop one that was not; the caller holds the store's lock."""
    content = location.get(ROOT)
    root = json.loads(bytes(content)) if content is not None else {}
    pending = root.get("attributes", {}).pop("pending", None)
    if pending is not None:
        removed = pending.get("delete") if isinstance(pending, dict) else None
        if not isinstance(removed, list) or not all(isinstance(key, str) for key in removed):
            raise ValueError(
                f"{location.name}/{ROOT} says that an append is pending, but not what it removes: it is damaged; "
                "restore or rebuild the store"
            )
        for key in sorted(location.list(STAGE)):
            location.move(key, key.removeprefix(f"{STAGE}/"))
        for key in removed:
            location.delete(key)
        location.put(ROOT, dump(root))
    location.delete_all(BUILD, keep=LOCK)
