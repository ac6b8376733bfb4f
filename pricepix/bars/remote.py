"""Tables that a server holds: whether it answers, and how long to wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from pricepix.location import Bucket, Location

__all__ = ["seconds_allowed", "within"]

T = TypeVar("T")

PATIENCE: Final = {"seconds": 60.0, "bytes_per_second": 100_000.0}
"""How long Polars, which has no time limit of its own, may take to read objects: so long, and at this rate at least."""


def seconds_allowed(paths: Iterable[str]) -> float | None:
    """Ask for the size of objects, and return how long reading all of them may take; None for local files.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such object, or the server does not answer.
    """
    total, remote = 0, False
    for path in paths:
        if "://" not in path or path.startswith("file://"):
            continue
        base, _, name = path.partition("?")[0].rpartition("/")
        where = Location.of(base)
        size = where.size(name) if isinstance(where, Bucket) else 0
        if size is None:
            raise FileNotFoundError(f"{path}: there is no such object")
        total, remote = total + size, True
    return PATIENCE["seconds"] + total / PATIENCE["bytes_per_second"] if remote else None


def within(seconds: float | None, origin: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; TimeoutError if it takes longer, in which case a thread is left that waits on."""
    if seconds is None:
        return call()
    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="pricepix-remote", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(
            f"{origin}: the server stopped answering, or gives less than "
            f"{PATIENCE['bytes_per_second'] / 1000:,.0f} kB a second: given up after {seconds:.0f} s; try again, or "
            "copy the files first"
        )
    result: T = found[0]
    return result
