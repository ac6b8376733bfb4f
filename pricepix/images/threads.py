"""Maps on threads that run a bounded number of items ahead of their results."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["default_threads", "iterate_ahead", "map_ordered", "map_unordered"]

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int | None = None,
    name: str = "pricepix",
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for every item, in the order of the items.

    Parameters
    ----------
    function : callable
        Runs on worker threads.
    items : iterable
        Taken one by one in the thread that takes the results, never more than `ahead` before their results.
    workers : int
        Threads; 0 runs everything in the calling thread.
    ahead : int, optional
        Most items that are waiting, running or done and not yet taken; ``workers + 1`` by default, so that no worker
        idles while a result is in use.
    name : str
        Name of the threads, as debuggers show it.

    Notes
    -----
    After an error, of `function` or `items`, an interrupt or ``close()``, no further item is begun: those that wait
    are cancelled, those that run are waited for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    limit = workers + 1 if ahead is None else max(1, ahead)
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, name) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                del item
                if len(pending) >= limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def map_unordered(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int | None = None,
    name: str = "pricepix",
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for every item, whichever ends first.

    Parameters and errors are those of `map_ordered`; `ahead` is `workers` by default.
    """
    if workers == 0:
        yield from map(function, items)
        return
    limit = workers if ahead is None else max(1, ahead)
    pending: set[Future[R]] = set()
    with ThreadPoolExecutor(workers, name) as pool:
        try:
            for item in items:
                if len(pending) >= limit:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    while done:
                        yield done.pop().result()
                pending.add(pool.submit(function, item))
                del item
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                while done:
                    yield done.pop().result()
        finally:
            for future in pending:
                future.cancel()


def iterate_ahead(items: Generator[T, None, None], depth: int, name: str = "pricepix") -> Iterator[T]:
    """Run a generator in a thread of its own, at most `depth` items ahead; it is closed in that thread."""
    # Two plain C queues, of credits and of items, cost half of what a bounded queue.Queue does.
    credits: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    for _ in range(depth):
        credits.put(True)

    def produce() -> None:
        try:
            for item in items:
                if not credits.get():
                    return
                ready.put((item,))
                del item
            ready.put(None)
        except BaseException as error:  # handed to the thread that takes the items
            ready.put(error)
        finally:
            items.close()

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made[0]
            del made
            credits.put(True)
    finally:
        # Credits that are left let the thread make as many items before it meets the end.
        credits.put(False)
        thread.join()


def default_threads() -> int:
    """Threads that read and decode where the caller does not say: the CPUs this process may use, at most 4."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cpus)
