"""Where a build writes: whether it may, what is there already, and whether that can be resumed or returned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pricepix.location import BUILD, Location
from pricepix.store.format import ROOT
from pricepix.store.lock import KEY as LOCK


def check_location(where: Location, mode: str) -> None:
    """Refuse a location that cannot be written to, or must not be, before any work is done."""
    path = where.path
    if path is not None:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; a store is a folder: give another path")
        parent = path.absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(
                f"{parent} is a file, so {path} cannot be made below it: give another path"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{parent} is not writable: give another path, or change its permissions")
    state = location_state(where)
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
            f"{where.name} holds an unfinished build: mode='resume' continues it, mode='overwrite' starts again"
        )


def location_state(where: Location) -> str:
    """Return ``absent`` (or empty), ``finished``, ``unfinished`` or ``foreign``."""
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
    """Keys except the lock's: all of a folder's first level, elsewhere as few as tell what is there."""
    if where.path is not None:
        if where.path.exists():
            for entry in where.path.iterdir():
                if entry.name != BUILD or any(inside.name != "lock" for inside in entry.iterdir()):
                    yield entry.name
        return
    if any(key != LOCK for key in where.list(BUILD)):
        yield BUILD
    yield from (key for key in where.list() if not key.startswith(BUILD))


def clear_location(where: Location) -> None:
    """Remove the store or the unfinished build at a location; the caller holds the lock."""
    # The group's document goes first: without it nothing is taken for a store.
    where.delete(ROOT)
    where.delete_all(keep=LOCK)


# What stores mean by attributes that they do not name.
_UNNAMED: Final = {"shard": 0, "delisting": "missing"}


def check_finished(name: str, found: Mapping[str, Any], expected: Mapping[str, Any], advice: str) -> None:
    """Refuse to return a finished store that this call would have built differently.

    Parameters
    ----------
    name : str
        Path or URL of the store.
    found : mapping
        Its attributes.
    expected : mapping
        Those that decide its bytes, as this call would write them.
    advice : str
        What to do about a difference.
    """
    differences = [
        f"{key} is {value} here, {there} there"
        for key, value in expected.items()
        if (there := found.get(key, _UNNAMED.get(key))) != value
    ]
    if differences:
        raise ValueError(
            f"store {name} is finished, and was not made from this: {'; '.join(differences)}. {advice}"
        )


def check_resumable(where: Location, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse to resume an unfinished build whose bytes this call would not continue.

    Both mappings hold what decides the bytes of a store: `expected` for this call, `found` for the build.
    """
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        listed = "; ".join(f"{key} is {expected[key]}, the store's {found.get(key)}" for key in different)
        raise ValueError(
            f"the build of store {where.name} cannot be resumed with different data or arguments: {listed}. "
            "Give what it was started with, or start again with mode='overwrite'"
        )


@contextmanager
def with_resume_hint(where: Location, done: Callable[[], str]) -> Iterator[None]:
    """Say in every error, and in an interruption, how much is done and how to resume."""
    try:
        yield
    except BaseException as error:
        try:
            advice = (
                f"the build of store {where.name} stopped with {done()} done; the same call with mode='resume' "
                "continues from there"
            )
        except Exception:
            raise error from None
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, f"{error.strerror}: {advice}", error.filename) from error
        error.add_note(advice)
        raise
