"""Maps on threads: order, how far they run ahead, and what is left behind by an error or an early end."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pricepix.images.threads import iterate_ahead, map_ordered, map_unordered

MAPS = pytest.mark.parametrize("mapped", [map_ordered, map_unordered])


class Counted:
    """Items that note how many of them were taken."""

    def __init__(self, n: int) -> None:
        self.n, self.taken = n, 0

    def __iter__(self) -> Iterator[int]:
        for i in range(self.n):
            self.taken += 1
            yield i


def late(i: int) -> int:
    """Even numbers take longer than odd ones."""
    time.sleep(0.002 * (i % 2 == 0))
    return i * i


@MAPS
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_item_once(mapped: Callable[..., Any], workers: int) -> None:
    results = list(mapped(late, range(40), workers))
    assert (results if mapped is map_ordered else sorted(results)) == [i * i for i in range(40)]
    assert list(mapped(late, [], workers)) == []


def test_whichever_ends_first_comes_first() -> None:
    slow = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            slow.wait(10)
        return i

    results = map_unordered(work, range(5), 2)
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    slow.set()
    assert list(results) == [0]


@pytest.mark.parametrize(("workers", "ahead", "most"), [(2, None, 3), (2, 6, 6), (3, 1, 1), (0, None, 1)])
def test_items_are_taken_only_so_far_ahead(workers: int, ahead: int | None, most: int) -> None:
    items = Counted(100)
    for done, _ in enumerate(map_ordered(late, items, workers, ahead)):
        assert items.taken <= done + most
    assert items.taken == 100


@MAPS
def test_no_more_than_the_workers_run_at_once(mapped: Callable[..., Any]) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(i: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with lock:
            running -= 1

    assert len(list(mapped(work, range(50), 3))) == 50
    assert most <= 3


@MAPS
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_begins_no_further_item_and_leaves_no_thread(
    mapped: Callable[..., Any], workers: int
) -> None:
    before, begun = threading.active_count(), []

    def work(i: int) -> int:
        begun.append(i)
        if i == 5:
            raise KeyError("five")
        return i

    with pytest.raises(KeyError, match="five"):
        list(mapped(work, range(1000), workers))
    assert len(begun) < 5 + 12
    assert threading.active_count() == before


@MAPS
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_items_or_the_caller_stops_the_threads(
    mapped: Callable[..., Any], error: type[BaseException]
) -> None:
    before = threading.active_count()

    def items() -> Iterator[int]:
        yield from range(10)
        raise error("no more")

    with pytest.raises(error, match="no more"):
        list(mapped(late, items(), 2))
    assert threading.active_count() == before
    results = mapped(late, range(1000), 2)
    next(results)
    with pytest.raises(error, match="of the caller"):
        results.throw(error("of the caller"))
    assert threading.active_count() == before


@MAPS
def test_closing_cancels_what_waits_and_waits_for_what_runs(mapped: Callable[..., Any]) -> None:
    begun, ended = [], []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.01)
        ended.append(i)
        return i

    results = mapped(work, range(1000), 2, 50)
    next(results)
    results.close()
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 20


@MAPS
def test_results_are_let_go(mapped: Callable[..., Any]) -> None:
    """A result that the caller drops is gone: memory is bounded by `ahead`, not by the number of items."""
    alive: list[weakref.ref[np.ndarray]] = []
    for result in mapped(lambda i: np.zeros(1000), range(60), 2):
        alive.append(weakref.ref(result))
        del result
        # A worker may hold on to its last result for a moment.
        assert sum(one() is not None for one in alive) <= 3


class TestIterateAhead:
    def test_order_depth_and_end(self) -> None:
        made = []

        def items() -> Any:
            for i in range(30):
                made.append(i)
                yield i

        for taken, item in enumerate(iterate_ahead(items(), 3)):
            assert item == taken
            assert len(made) <= taken + 3 + 2
        assert made == list(range(30))

    def test_any_value_may_come_errors_and_none_too(self) -> None:
        values = [None, ValueError("a value"), 0]
        assert list(iterate_ahead((v for v in values), 2)) == values

    def test_errors_reach_the_caller_and_the_generator_is_closed(self) -> None:
        closed = threading.Event()

        def items() -> Any:
            try:
                yield 1
                raise KeyError("made ahead")
            finally:
                closed.set()

        before = threading.active_count()
        with pytest.raises(KeyError, match="made ahead"):
            list(iterate_ahead(items(), 2))
        assert closed.is_set()
        assert threading.active_count() == before

    def test_stopping_early_closes_the_generator(self) -> None:
        closed = threading.Event()

        def items() -> Any:
            try:
                yield from range(1000)
            finally:
                closed.set()

        ahead = iterate_ahead(items(), 2)
        assert next(ahead) == 0
        ahead.close()  # type: ignore[attr-defined]
        assert closed.is_set()
