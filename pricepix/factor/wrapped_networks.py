"""Networks that a function wraps: those within reach of its closure, its arguments and its attributes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["wrapped_networks"]

_DEPTH: Final = 3
_ITEMS: Final = 64


def wrapped_networks(function: Any) -> list[Any]:
    """Return the networks that a function holds, members of ensembles one by one.

    Looked for in what the function closes over, in the globals that its code names, in its defaults, in a partial's
    arguments, and in the attributes of an object or of a method's object, three steps deep. A network that is
    loaded inside of the function is not found.
    """
    models = sys.modules.get("pricepix.train.models")
    if models is None:  # No network can be there without its class; torch takes seconds to import.
        return []
    found: list[Any] = []
    seen: set[int] = set()
    level = [function]
    for _ in range(_DEPTH + 1):
        following: list[Any] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, models.Ensemble):
                following.extend(value.members)
            elif isinstance(value, models.Network):
                found.append(value)
            else:
                following.extend(_within(value))
        level = following
    return found


def _within(value: Any) -> Iterator[Any]:
    """Yield what a value holds, a bounded number of things."""
    if isinstance(value, str | bytes | int | float | type(None) | type):
        return
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        yield from list(value.values())[:_ITEMS]
    elif isinstance(value, list | tuple | set):
        yield from list(value)[:_ITEMS]
    else:
        yield from _within_function(value)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            yield from list(attributes.values())[:_ITEMS]


def _within_function(value: Any) -> Iterator[Any]:
    for cell in getattr(value, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # Not assigned yet.
            continue
    yield from getattr(value, "__defaults__", None) or ()
    code, names = getattr(value, "__code__", None), getattr(value, "__globals__", {})
    if code is not None:
        yield from (names[name] for name in code.co_names if name in names)
    for name in ("__self__", "__func__", "__wrapped__"):
        if (inner := getattr(value, name, None)) is not None and not hasattr(inner, "__path__"):
            yield inner
