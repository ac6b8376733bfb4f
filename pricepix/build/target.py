"""Where a build writes: whether it may, and what is there already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Final

from pricepix.location import BUILD, Location
from pricepix.store.format import ROOT
from pricepix.store.lock import KEY as LOCK

MODES: Final = ("create", "resume", "overwrite")


def _check_location(where: Location, mode: str) -> None:
    """Refuse what can not be written to, or must not be, before any work is done."""
    path = where.path
    if path is not None:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; a store is a folder: give another path")
        parent = path.absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(
                f"{parent} is a file, so {path} can not be made below it: give another path"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{parent} is not writable: give another path, or change its permissions")
    state = _state(where)
    if state == "foreign":
        raise FileExistsError(
            f"{where.name} is not empty and not a pricepix store, so mode={mode!r} will not touch it: give "
            "another path"
        )
    if mode == "create" and state == "finished":
        raise FileExistsError(
            f"{where.name} exists already: give another path, or mode='overwrite' to replace it"
        )
    if mode == "create" and state == "unfinished":
        raise FileExistsError(
            f"{where.name} holds an unfinished build: mode='resume' goes on with it, mode='overwrite' starts "
            "again"
        )


def _state(where: Location) -> str:
    """``absent`` (or empty), ``finished``, ``unfinished`` or ``foreign``."""
    content = where.get(ROOT)
    if content is not None:
        try:
            attributes = json.loads(bytes(content))["attributes"]
            if "format_version" in attributes and "spec" in attributes:
                return "finished" if attributes.get("complete") else "unfinished"
        except (ValueError, KeyError, TypeError):
            pass
        return "unfinished" if where.get(f"{BUILD}/plan.json") is not None else "foreign"
    found = {key.partition("/")[0] for key in _first_keys(where)}
    if not found:
        return "absent"
    # A build that was killed before its group's metadata were there, or while it removed the store before it.
    return "unfinished" if BUILD in found else "foreign"


def _first_keys(where: Location) -> Iterator[str]:
    """Keys but the lock's: all of a folder's first level, of other places as few as tell what they are."""
    if where.path is not None:
        if where.path.exists():
            for entry in where.path.iterdir():
                if entry.name != BUILD or any(inside.name != "lock" for inside in entry.iterdir()):
                    yield entry.name
        return
    if any(key != LOCK for key in where.list(BUILD)):
        yield BUILD
    yield from (key for key in where.list() if not key.startswith(BUILD))
