"""Splitters for anyone's cross-validation: purged of overlapping labels, in scikit-learn's interface.

They need a table of when each sample's label begins and ends, and neither images, torch nor scikit-learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import short, whole_number
from pricepix.bars.times import as_time, duration_ns
from pricepix.train.splits import day_of, later_by, parse_length
from pricepix.windows.labels import NO_TIME

__all__ = ["CombinatorialPurgedSplit", "PurgedSplit", "PurgedWalkForward", "Spans"]

Index = NDArray[np.int64]


class Spans:
    """When the labels of samples begin and end: int64, nanoseconds since 1970 or numbers of bars.

    Parameters
    ----------
    spans : table, mapping or (entry, exit)
        A polars or pandas data frame, or a mapping, with columns ``entry`` and ``exit``; or the two as a pair.
        Times, dates, or whole numbers; an exit of None, NaT or the smallest int64 is not known yet.

    Attributes
    ----------
    entry, exit : numpy.ndarray, int64 (n,)
    known : numpy.ndarray, bool (n,)
        Samples whose label is known: the others are in no part.
    are_times : bool
    """

    def __init__(self, spans: Any) -> None:
        try:
            pair = (spans["entry"], spans["exit"]) if not isinstance(spans, tuple | list) else tuple(spans)
            entry, leave = pair
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"spans is a {type(spans).__name__} without entry and exit: give a table with these columns, or the "
                "pair (entry, exit)"
            ) from error
        self.entry, self.are_times = _whole(entry, "entry")
        self.exit, are_times = _whole(leave, "exit")
        if self.entry.shape != self.exit.shape or self.entry.ndim != 1 or are_times != self.are_times:
            columns = ((self.entry, self.are_times), (self.exit, are_times))
            kinds = [f"{'times' if times else 'numbers'} {column.shape}" for column, times in columns]
            raise ValueError(
                f"entry is {kinds[0]} and exit {kinds[1]}: give two columns of one length and kind"
            )
        if (self.entry == NO_TIME).any():
            raise ValueError(
                f"{int((self.entry == NO_TIME).sum())} samples have no entry: every sample has one"
            )
        self.known = self.exit != NO_TIME
        backwards = np.flatnonzero(self.known & (self.exit < self.entry))
        if len(backwards):
            raise ValueError(f"sample {backwards[0]} leaves before it enters ({len(backwards)} such samples)")

    def __len__(self) -> int:
        return len(self.entry)

    def gap(self, embargo: Any) -> int:
        """Return an embargo in the units of the spans."""
        if embargo is None or (not isinstance(embargo, str) and embargo == 0):
            return 0
        if self.are_times:
            return duration_ns(embargo)
        return whole_number(embargo, "embargo", 0, unit="bars")


class _Splitter:
    """What all splitters share: which samples may train beside a test part."""

    def __init__(self, spans: Any, embargo: Any) -> None:
        self.spans = spans if isinstance(spans, Spans) else Spans(spans)
        self.embargo = embargo
        self._gap = self.spans.gap(embargo)
        if not self.spans.known.any():
            raise ValueError("no sample has an exit, so there is nothing to split")

    def _parts(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Yield which samples may train, before purging, and which test."""
        raise NotImplementedError

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits."""
        return sum(1 for _ in self._parts())

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[tuple[Index, Index]]:
        """Yield the ascending positions of each training and test part.

        Parameters
        ----------
        X, y : optional
            Data with as many rows as the spans; only counted.
        groups : optional
            Ignored.

        Raises
        ------
        ValueError
            If `X` has another length, or purging leaves no sample to train.
        """
        for name, data in (("X", X), ("y", y)):
            n = None if data is None else data.shape[0] if hasattr(data, "shape") else len(data)
            if n is not None and n != len(self.spans):
                raise ValueError(f"{name} has {n} rows, the spans are of {len(self.spans)} samples")
        for number, (may_train, test) in enumerate(self._parts()):
            may_train &= ~test
            train = may_train & ~self._meets(test)
            if not train.any():
                raise ValueError(
                    f"split {number} has nothing to train on: all {int(may_train.sum())} samples overlap its test "
                    "part; take fewer splits or a shorter embargo"
                )
            yield np.flatnonzero(train), np.flatnonzero(test)

    def _meets(self, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which samples' spans share time with the span of a test sample, widened by the embargo on both sides."""
        spans, gap = self.spans, self._gap
        order = np.lexsort((spans.exit[test], spans.entry[test]))
        begin, end = spans.entry[test][order] - gap, spans.exit[test][order] + gap
        reach = np.maximum.accumulate(end)
        # Spans that only touch stay apart: a sample may lie exactly between them.
        first = np.append(True, begin[1:] >= reach[:-1])
        begin, end = begin[first], reach[np.append(first[1:], True)]
        at = np.searchsorted(end, spans.entry, side="right")
        found = at < len(end)
        meets = found & (begin[np.minimum(at, len(end) - 1)] < spans.exit)
        return meets & spans.known

    def _blocks(self, count: int, name: str) -> NDArray[np.int64]:
        """Block of each sample by its entry, from 0; -1 without an exit. Equal entries stay together."""
        spans = self.spans
        times, sizes = np.unique(spans.entry[spans.known], return_counts=True)
        if len(times) < count:
            raise ValueError(
                f"{name}={count}, but the samples enter at {len(times)} times: take fewer blocks"
            )
        # By the middle of each time's samples; at least one time a block.
        middle = np.cumsum(sizes) - sizes / 2
        block = np.minimum((middle * count / sizes.sum()).astype(np.int64), count - 1)
        places = np.arange(len(times))
        block = np.clip(block, count - (len(times) - places), np.minimum(places, count - 1))
        # A time with many samples must not skip a block: each is at most one above the one before.
        block = places + np.minimum.accumulate(block - places)
        found = np.full(len(spans), -1, np.int64)
        found[spans.known] = block[np.searchsorted(times, spans.entry[spans.known])]
        return found

    def __repr__(self) -> str:
        options = [f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k != "spans"]
        return f"{type(self).__name__}({', '.join([f'{len(self.spans):,} samples', *options])})"


class PurgedSplit(_Splitter):
    """K folds in order of time, each tested once; training samples whose label overlaps the test are left out.

    Parameters
    ----------
    spans : table, mapping, (entry, exit) or Spans
        When each sample's label begins and ends: see `Spans`.
    n_splits : int
    embargo : duration or int
        Time (``"5d"``, a timedelta) or bars that must lie between a test label and a training label, on both
        sides.

    Notes
    -----
    Two labels overlap if each begins before the other ends; one that begins when the other ends does not. Training
    on what came after the test is honest about overlap, not about time: `PurgedWalkForward` trains on the past alone.
    After Lopez de Prado, "Advances in Financial Machine Learning" (2018), chapter 7.

    Examples
    --------
    >>> import numpy as np
    >>> entry = np.arange(10)
    >>> for train, test in PurgedSplit((entry, entry + 2), n_splits=2).split():
    ...     print(train, test)
    [6 7 8 9] [0 1 2 3 4]
    [0 1 2 3] [5 6 7 8 9]
    """

    def __init__(self, spans: Any, n_splits: int = 5, *, embargo: Any = 0) -> None:
        super().__init__(spans, embargo)
        self.n_splits = whole_number(n_splits, "n_splits", 2)

    def _parts(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        block = self._blocks(self.n_splits, "n_splits")
        for k in range(self.n_splits):
            yield block >= 0, block == k


class CombinatorialPurgedSplit(_Splitter):
    """Every choice of some of the blocks of time as the test, the others train, purged.

    Parameters
    ----------
    spans : table, mapping, (entry, exit) or Spans
        When each sample's label begins and ends: see `Spans`.
    n_blocks : int
        Blocks that the time is cut into.
    n_test : int
        Blocks that test at a time.
    embargo : duration or int
        As in `PurgedSplit`.

    Notes
    -----
    The ``n_blocks choose n_test`` splits test each block ``n_splits * n_test / n_blocks`` times, so that as many whole
    histories can be put together out of sample: `paths`. After Lopez de Prado (2018), chapter 12.
    """

    def __init__(self, spans: Any, n_blocks: int = 6, n_test: int = 2, *, embargo: Any = 0) -> None:
        super().__init__(spans, embargo)
        self.n_blocks = whole_number(n_blocks, "n_blocks", 2)
        self.n_test = whole_number(n_test, "n_test", 1, self.n_blocks - 1)

    def _chosen(self) -> list[tuple[int, ...]]:
        return list(itertools.combinations(range(self.n_blocks), self.n_test))

    def _parts(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        block = self._blocks(self.n_blocks, "n_blocks")
        for chosen in self._chosen():
            yield block >= 0, np.isin(block, chosen)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits."""
        return math.comb(self.n_blocks, self.n_test)

    def paths(self) -> Index:
        """Return which split tests which block in each whole history, int64 (paths, blocks)."""
        by_block: list[list[int]] = [[] for _ in range(self.n_blocks)]
        for number, chosen in enumerate(self._chosen()):
            for block in chosen:
                by_block[block].append(number)
        return np.array(by_block, np.int64).T

    def blocks(self) -> Index:
        """Return the block of each sample, int64 (n,); -1 where the label is not known."""
        return self._blocks(self.n_blocks, "n_blocks")


class PurgedWalkForward(_Splitter):
    """Train on a stretch of the past, test on the next, step on; labels that reach into the test are left out.

    Parameters
    ----------
    spans : table, mapping, (entry, exit) or Spans
        When each sample's label begins and ends: see `Spans`.
    train, test : str or int
        Lengths such as ``"2y"``, ``"6m"``, ``"12w"``, ``"250d"``; bars where spans are numbers.
    step : str or int, optional
        How far a test lies behind the one before; the length of the test by default, so that tests tile.
    expanding : bool
        Train on everything before the test rather than on the last `train`.
    embargo : duration or int
        As in `PurgedSplit`.
    """

    def __init__(
        self,
        spans: Any,
        train: Any = "2y",
        test: Any = "1y",
        *,
        step: Any = None,
        expanding: bool = False,
        embargo: Any = 0,
    ) -> None:
        super().__init__(spans, embargo)
        self.train, self.test, self.step, self.expanding = train, test, step, expanding
        for name, value in (("train", train), ("test", test), ("step", step)):
            if not self.spans.are_times and value is not None:
                whole_number(value, name, 1, unit="bars")
        if not any(True for _ in self._parts()):
            raise ValueError(
                f"no split fits: the samples enter over less than train={train!r}; choose shorter stretches"
            )

    def _edges(self, number: int) -> tuple[int, int, int]:
        """First entry that trains, first that tests, and first that comes after the test."""
        spans, step = self.spans, self.test if self.step is None else self.step
        first = int(spans.entry[spans.known].min())
        if not spans.are_times:
            begin = first + number * step
            return begin, begin + self.train, begin + self.train + self.test
        day = later_by(day_of(first, None), parse_length("step", step), number)
        cut = later_by(day, parse_length("train", self.train))
        stop = later_by(cut, parse_length("test", self.test))
        low, middle, high = (as_time(d, None) for d in (day, cut, stop))
        return low, middle, high

    def _parts(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        spans = self.spans
        last = int(spans.entry[spans.known].max())
        for number in itertools.count():
            low, middle, high = self._edges(number)
            if middle > last:
                return
            test = spans.known & (spans.entry >= middle) & (spans.entry < high)
            may_train = spans.known & (spans.entry < middle)
            if not self.expanding:
                may_train &= spans.entry >= low
            # A stretch without samples, such as a closed market, is no split.
            if test.any() and may_train.any():
                yield may_train, test


def _whole(values: Any, name: str) -> tuple[Index, bool]:
    """Return a column as int64 and whether it holds times; a missing value is `NO_TIME`."""
    found = np.asarray(values)
    if found.dtype.kind in "OU":
        try:
            found = np.asarray(values, "datetime64[ns]")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{name} holds {short(found[:1].tolist())}: give times or whole numbers"
            ) from error
    if found.dtype.kind == "M":
        return found.astype("datetime64[ns]").astype(np.int64), True
    if found.dtype.kind not in "iu":
        raise ValueError(f"{name} is {found.dtype}: give times, dates, or whole numbers of bars")
    return found.astype(np.int64), False
