"""Splitters for any table of (entry, exit): held against a comparison of every pair of samples."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricepix.train.purged import CombinatorialPurgedSplit, PurgedSplit, PurgedWalkForward, Spans
from pricepix.windows.labels import NO_TIME


def _overlaps(spans: Any, one: Any, other: Any, gap: int = 0) -> Any:
    """Whether a sample's span shares time with any of the others' spans, pair by pair."""
    entry, leave = spans.entry, spans.exit
    return np.array(
        [any(entry[i] < leave[j] + gap and entry[j] - gap < leave[i] for j in other) for i in one], bool
    )


@st.composite
def tables(draw: Any) -> tuple[Any, Any]:
    n = draw(st.integers(12, 40))
    entry = np.array(draw(st.lists(st.integers(0, 40), min_size=n, max_size=n)), np.int64)
    length = np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), np.int64)
    unknown = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))) & (np.arange(n) % 3 == 0)
    return entry, np.where(unknown, NO_TIME, entry + length)


@given(tables(), st.integers(0, 4), st.sampled_from(["k", "combinatorial", "walk", "expanding"]))
def test_nothing_overlaps_and_nothing_else_is_left_out(spans: Any, gap: int, kind: str) -> None:
    table = Spans(spans)
    make: Any = {
        "k": lambda: PurgedSplit(spans, 3, embargo=gap),
        "combinatorial": lambda: CombinatorialPurgedSplit(spans, 4, 2, embargo=gap),
        "walk": lambda: PurgedWalkForward(spans, 12, 6, embargo=gap),
        "expanding": lambda: PurgedWalkForward(spans, 12, 6, expanding=True, embargo=gap),
    }
    try:
        splitter = make[kind]()
        parts = list(splitter.split())
    except ValueError as error:
        if not re.search("nothing to train on|no split fits|take fewer blocks", str(error)):
            raise
        return
    assert len(parts) == splitter.get_n_splits() > 0
    everyone = np.flatnonzero(table.known)
    for train, test in parts:
        assert len(train) > 0 < len(test)
        assert not np.intersect1d(train, test).size
        assert table.known[np.concatenate([train, test])].all()
        assert not _overlaps(table, train, test, gap).any()
        # What could have trained and does not overlaps the test.
        left = np.setdiff1d(everyone, np.concatenate([train, test]))
        if kind in ("walk", "expanding"):
            first = table.entry[everyone].min()
            cut = first + 12 + (table.entry[test].min() - first - 12) // 6 * 6
            assert (table.entry[train] < cut).all()
            left = left[table.entry[left] < cut]
            if kind == "walk":
                assert (table.entry[train] >= cut - 12).all()
                left = left[table.entry[left] >= cut - 12]
        assert _overlaps(table, left, test, gap).all()
    if kind == "k":
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in parts])), everyone)


def test_every_block_of_every_history_is_tested_once() -> None:
    entry = np.arange(60)
    splitter = CombinatorialPurgedSplit((entry, entry + 3), 6, 2)
    parts, block, paths = list(splitter.split()), splitter.blocks(), splitter.paths()
    assert (len(parts), paths.shape) == (15, (5, 6))
    for history in paths:
        tested = [parts[number][1][block[parts[number][1]] == b] for b, number in enumerate(history)]
        np.testing.assert_array_equal(np.concatenate(tested), entry)
    for column in paths.T:
        assert len(set(column)) == 5


def test_the_times_of_a_market() -> None:
    days = np.arange("2000-01-03", "2004-01-01", dtype="datetime64[D]")
    table = pl.DataFrame({"entry": np.repeat(days, 3), "exit": np.repeat(days + 7, 3)})
    splitter = PurgedWalkForward(table, "2y", "6m", embargo="5d")
    parts = list(splitter.split())
    entry = np.repeat(days, 3)
    assert [str(entry[test].min()) for _, test in parts] == [
        "2002-01-03",
        "2002-07-03",
        "2003-01-03",
        "2003-07-03",
    ]
    for train, test in parts:
        assert entry[train].max() + 7 + 5 == entry[test].min()
        assert entry[train].min() >= entry[test].min() - 731
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    frame["exit"] = frame["exit"].astype("datetime64[ns]").where(frame.index != 5, pandas.NaT)
    again = list(PurgedWalkForward(frame, "2y", "6m", embargo="5d").split())
    np.testing.assert_array_equal(again[0][0], np.setdiff1d(parts[0][0], [5]))


def test_within_scikit_learn() -> None:
    """Labels that overlap tell a nearest neighbour the answer, unless they are purged."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    selection = pytest.importorskip("sklearn.model_selection")
    n, horizon = 900, 30
    steps = np.random.default_rng(3).normal(size=n + horizon)
    walk = np.cumsum(steps)
    label = (walk[horizon:] > walk[:n]).astype(int)
    X, entry = np.arange(n)[:, None].astype(float), np.arange(n)
    knn = neighbors.KNeighborsClassifier(1)
    leaky = selection.cross_val_score(knn, X, label, cv=selection.KFold(5, shuffle=True, random_state=0))
    splitter = PurgedSplit((entry, entry + horizon), 5)
    honest = selection.cross_val_score(knn, X, label, cv=splitter)
    assert leaky.mean() > 0.9
    assert honest.mean() < 0.7
    assert len(honest) == splitter.get_n_splits(X, label)
    grid = selection.GridSearchCV(knn, {"n_neighbors": [1, 3]}, cv=splitter).fit(X, label)
    assert grid.best_params_["n_neighbors"] in (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PurgedSplit({"entry": [1, 2]}), "spans is a dict without entry and exit: give a table"),
        (lambda: PurgedSplit(([1, 2], [3])), r"entry is numbers \(2,\) and exit numbers \(1,\)"),
        (lambda: PurgedSplit(([5, 2], [3, 4])), "sample 0 leaves before it enters"),
        (lambda: PurgedSplit(([0.5, 2], [3, 4])), "entry is float64: give times, dates, or whole numbers"),
        (lambda: PurgedSplit((["x"], ["y"])), "entry holds .* give times or whole numbers"),
        (lambda: PurgedSplit(([1, 2], [NO_TIME] * 2)), "no sample has an exit"),
        (lambda: PurgedSplit(([NO_TIME, 2], [2, 3])), "1 samples have no entry"),
        (lambda: PurgedSplit(([1, 2], [3, 4]), embargo="5d"), "embargo='5d': give a whole number of bars"),
        (lambda: PurgedSplit(([1, 2], [3, 4]), 1), "n_splits=1: give a whole number of at least 2"),
        (lambda: list(PurgedSplit(([1, 2], [3, 4]), 3).split()), "the samples enter at 2 times: take fewer blocks"),
        (lambda: list(PurgedSplit(([1, 2], [9, 9]), 2).split()), "split 0 has nothing to train on: all 1 samples"),
        (lambda: list(PurgedSplit(([1, 2], [3, 4]), 2).split(np.zeros(3))), "X has 3 rows, the spans are of 2"),
        (lambda: PurgedWalkForward(([1, 2], [3, 4]), 9, 5), "no split fits"),
        (lambda: PurgedWalkForward(([1, 2], [3, 4]), "2y", 5), "train='2y': give a whole number of bars"),
        (lambda: CombinatorialPurgedSplit(([1, 2], [3, 4]), 3, 3), "n_test=3: give a whole number from 1 to 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_split(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_neither_torch_nor_images_are_needed() -> None:
    code = (
        "import sys; from pricepix.train import PurgedSplit, CombinatorialPurgedSplit, PurgedWalkForward\n"
        "list(PurgedSplit((range(9), range(2, 11)), 3).split())\n"
        "assert not {'torch', 'sklearn', 'pandas', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
