"""Splits into training, validation and test: by date and purged, walking forward, or at random.

Everything works on arrays, so that a split serves a store as well as any other set of windows.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.bars.times import as_time, duration_ns, format_time
from pricepix.images.samples import Samples

__all__ = [
    "Fold",
    "RandomSplit",
    "Samples",
    "Split",
    "TimeSplit",
    "WalkForward",
    "day_of",
    "later_by",
    "overlap_share",
    "parse_length",
    "period_ends",
    "resolve_split",
]

Period = str | tuple[Any, Any]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """One training, its validation and its test: ascending positions, and what was left out and why."""

    name: str
    train: Index
    validation: Index
    test: Index
    dropped: dict[str, int] = field(default_factory=dict)
    overlap: float = 0.0
    """Share of the validation windows that share a bar of their instrument with a training window."""

    def describe(self, samples: Samples) -> dict[str, Any]:
        """Return sizes, first and last times, what was dropped, and the overlap, as plain values."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        described: dict[str, Any] = {
            "name": self.name,
            "dropped": dict(self.dropped),
            "overlap": self.overlap,
        }
        for name, index in parts.items():
            described[name] = {"images": len(index)}
            if len(index):
                times = samples.time[index]
                described[name] |= {
                    "first": format_time(int(times.min()), samples.tz),
                    "last": format_time(int(times.max()), samples.tz),
                }
        return described


class Split(Protocol):
    """Makes folds of samples."""

    def folds(self, samples: Samples) -> list[Fold]:
        """Return the folds; raise ValueError if a part of one is empty."""
        ...


@dataclass(frozen=True)
class TimeSplit:
    """Training, validation and test by date.

    Windows belong to the period that their last bar is in. A training window whose label is known only
    after the validation begins is purged, as is a training or validation window whose label reaches into
    the test; in general, one whose span from decision to exit meets the other part's.

    Parameters
    ----------
    train : str or (start, end), optional
        Both ends included; a year, month or day stands for all of it: ``"1993:2000"``,
        ``("1993-01", "2000-06-30")``. An empty end, or None, is open. Everything before the test by default.
    validation : str, (start, end) or float
        A period, or the share of the training period's windows that come last.
    test : str or (start, end), optional
    embargo : duration
        Time that must lie between a label's exit and the part it must not reach into, and between a
        part's last exit and later training windows: ``"5d"``, a timedelta, or 0.
    """

    train: Period | None = None
    validation: Period | float = 0.3
    test: Period | None = None
    embargo: Any = 0

    def folds(self, samples: Samples) -> list[Fold]:
        """Return the one fold."""
        inside, test = _train_and_test(self.train, self.test, samples)
        if isinstance(self.validation, (int, float)) and not isinstance(self.validation, bool):
            validation = inside & (samples.time >= _late(samples.time[inside], float(self.validation)))
            train = inside & ~validation
        else:
            validation = _inside(self.validation, samples)
            train = inside
        return [
            _fold("all", samples, train, validation, test, self.embargo, test_wanted=self.test is not None)
        ]


@dataclass(frozen=True)
class WalkForward:
    """Folds that walk through time: train on a stretch, test on the next, step on.

    Parameters
    ----------
    train, test : str
        Lengths such as ``"2y"``, ``"6m"``, ``"12w"``, ``"250d"`` (calendar time).
    step : str, optional
        How far a fold lies behind the one before; the length of the test by default, so that tests tile.
    expanding : bool
        Train on everything since the start rather than on the last `train`.
    validation : float
        Share of each training stretch's windows, the last ones, that validate.
    embargo : duration
        As in `TimeSplit`.
    start, end : str, optional
        First and last day used; the first and last window by default. A last test may be shorter.
    """

    train: str = "2y"
    test: str = "1y"
    step: str | None = None
    expanding: bool = False
    validation: float = 0.3
    embargo: Any = 0
    start: Any = None
    end: Any = None

    def stretches(self, first: dt.date, last: dt.date) -> Iterator[tuple[dt.date, dt.date, dt.date]]:
        """Yield the first day of each training, that of its test, and the first day after that.

        Parameters
        ----------
        first, last : date
            First and last day that is used; the last test begins on or before `last`.
        """
        train, test = parse_length("train", self.train), parse_length("test", self.test)
        step = parse_length("step", self.step) if self.step is not None else test
        for k in itertools.count():
            moved = later_by(first, step, k)
            cut = later_by(moved, train)
            if cut > last:
                return
            yield first if self.expanding else moved, cut, later_by(cut, test)

    def folds(self, samples: Samples) -> list[Fold]:
        """Return the folds in order of time."""
        if not samples.usable.any():
            raise ValueError("no window has a target, so there is nothing to split")
        times = samples.time[samples.usable]
        first = day_of(
            int(times.min()) if self.start is None else as_time(self.start, samples.tz), samples.tz
        )
        last = int(times.max()) if self.end is None else as_time(self.end, samples.tz, True)
        folds: list[Fold] = []
        for begin, cut, stop in self.stretches(first, day_of(last, samples.tz)):
            low, middle, high = (as_time(day, samples.tz) for day in (begin, cut, stop))
            in_test = (
                samples.usable & (samples.time >= middle) & (samples.time < high) & (samples.time <= last)
            )
            if middle > last or not in_test.any():
                break
            inside = samples.usable & (samples.time >= low) & (samples.time < middle)
            validation = inside & (samples.time >= _late(samples.time[inside], self.validation))
            folds.append(_fold(str(cut), samples, inside & ~validation, validation, in_test, self.embargo))
        if not folds:
            raise ValueError(
                f"no fold fits: the windows run from {format_time(int(times.min()), samples.tz)} to "
                f"{format_time(int(times.max()), samples.tz)}, less than train {self.train}; "
                "choose shorter stretches"
            )
        return folds


@dataclass(frozen=True)
class RandomSplit:
    """Training and validation at random, as in the paper, for replication only.

    Windows of neighbouring days share all but one of their bars, and their labels overlap: validation then
    sees what training saw. `Fold.overlap` is the measured share, and it is printed.

    Parameters
    ----------
    share : float
        Share of the windows that train; the rest validates.
    train : str or (start, end), optional
        Period that both are drawn from; everything before the test by default.
    test : str or (start, end), optional
        Period of the test. Labels that reach into it are purged.
    seed : int
    embargo : duration
        Before the test.
    """

    share: float = 0.7
    train: Period | None = None
    test: Period | None = None
    seed: int = 0
    embargo: Any = 0

    def folds(self, samples: Samples) -> list[Fold]:
        """Return the one fold and print its overlap."""
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; give the share that trains, between 0 and 1")
        n = len(samples.time)
        inside, test = _train_and_test(self.train, self.test, samples)
        chosen = np.flatnonzero(inside & ~test)
        shuffled = np.random.default_rng(self.seed).permutation(chosen)
        train = np.zeros(n, bool)
        train[shuffled[: round(self.share * len(chosen))]] = True
        validation = np.zeros(n, bool)
        validation[shuffled[round(self.share * len(chosen)) :]] = True
        fold = _fold(
            "random", samples, train, validation, test, self.embargo, purge_validation=False,
            test_wanted=self.test is not None,
        )  # fmt: skip
        print(
            f"random split: {fold.overlap:.1%} of the validation images share bars with a training image, "
            "so validation looks better than it is"
        )
        return [fold]


def resolve_split(
    split: Split | str,
    train: Period | None,
    validation: Any,
    test: Period | None,
    embargo: Any,
    seed: int,
) -> Split:
    """Return a split by its name and the arguments of `fit`, or the one given as an object."""
    if split == "time":
        return TimeSplit(train, validation, test, embargo)
    if split == "random":
        return RandomSplit(0.7, train, test, seed, embargo)
    if split == "walk":
        lengths = {name: value for name, value in (("train", train), ("test", test)) if value is not None}
        return WalkForward(validation=validation, embargo=embargo, **lengths)  # type: ignore[arg-type]
    if isinstance(split, str) or not hasattr(split, "folds"):
        raise ValueError(
            f"split is {split!r}; choose 'time', 'random', 'walk' or an object such as TimeSplit(...)"
        )
    if train is not None or test is not None:
        raise ValueError("train and test belong to the split's own arguments when it is given as an object")
    return split


def overlap_share(samples: Samples, train: Index, validation: Index) -> float:
    """Return the share of validation windows that share a bar of their instrument with a training window."""
    if not len(train) or not len(validation):
        return 0.0
    index = np.concatenate([train, validation])
    is_train = np.arange(len(index)) < len(train)
    order = np.lexsort((samples.time[index], samples.instrument[index]))
    index, is_train = index[order], is_train[order]
    time, start, code = samples.time[index], samples.start_time[index], samples.instrument[index]
    place = np.arange(len(index))
    before = np.maximum.accumulate(np.where(is_train, place, -1))
    after = np.minimum.accumulate(np.where(is_train, place, len(index))[::-1])[::-1]
    own = ~is_train
    earlier, later = np.maximum(before, 0), np.minimum(after, len(index) - 1)
    meets = (before >= 0) & (code[earlier] == code) & (time[earlier] >= start)
    meets |= (after < len(index)) & (code[later] == code) & (start[later] <= time)
    return float(np.mean(meets[own]))


def _fold(
    name: str,
    samples: Samples,
    train: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    test: NDArray[np.bool_],
    embargo: Any,
    *,
    purge_validation: bool = True,
    test_wanted: bool = True,
) -> Fold:
    gap = 0 if embargo in (0, None) else duration_ns(embargo)
    if (train & validation).any() or (train & test).any() or (validation & test).any():
        raise ValueError(f"the periods of split {name!r} overlap; give each window to one part only")
    guards = [test, validation] if purge_validation else [test]
    purged = embargoed = 0
    for guard in guards:
        if not guard.any():
            continue
        begin, end = int(samples.time[guard].min()), int(samples.exit_time[guard].max())
        for part in (train, validation):
            if part is guard:
                continue
            meets = part & (samples.exit_time > begin) & (samples.time < end)
            near = part & (samples.exit_time > begin - gap) & (samples.time < end + gap) & ~meets
            purged += int(meets.sum())
            embargoed += int(near.sum())
            part &= ~(meets | near)
    indices = (np.flatnonzero(train), np.flatnonzero(validation), np.flatnonzero(test))
    for label, index in zip(("training", "validation", "test"), indices, strict=True):
        if not len(index) and (label != "test" or test_wanted):
            raise ValueError(
                f"the {label} part of split {name!r} is empty: the {int(samples.usable.sum())} windows with "
                f"a target run from {_edge(samples, np.min)} to {_edge(samples, np.max)}; {purged} were "
                f"purged and {embargoed} embargoed. Choose periods that hold windows"
            )
    dropped = {
        "purged": purged,
        "embargoed": embargoed,
        "no_target": int((~samples.usable).sum()) - samples.not_chosen,
        "not_chosen": samples.not_chosen,
        "outside": int(samples.usable.sum()) - purged - embargoed - sum(map(len, indices)),
    }
    return Fold(name, *indices, dropped, overlap_share(samples, indices[0], indices[1]))


def _edge(samples: Samples, which: Any) -> str:
    times = samples.time[samples.usable]
    return format_time(int(which(times)), samples.tz) if len(times) else "nowhere"


def _train_and_test(
    train: Period | None, test: Period | None, samples: Samples
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    in_test = np.zeros(len(samples.time), bool) if test is None else _inside(test, samples)
    if train is not None:
        return _inside(train, samples), in_test
    if not in_test.any():
        return samples.usable.copy(), in_test
    return samples.usable & (samples.time < samples.time[in_test].min()), in_test


def _inside(period: Period | float, samples: Samples) -> NDArray[np.bool_]:
    start, end = period_ends(period)
    inside = samples.usable.copy()
    if start is not None:
        inside &= samples.time >= as_time(start, samples.tz)
    if end is not None:
        inside &= samples.time <= as_time(end, samples.tz, True)
    return inside


def period_ends(period: Period | float) -> tuple[Any, Any]:
    """Return the two ends of a period, None where it is open."""
    if isinstance(period, str):
        # Colons also stand in clock times, so two dots separate those.
        parts = period.split("..") if ".." in period else period.split(":")
        if len(parts) == 1:
            parts = [period, period]
        if len(parts) == 2:
            return parts[0].strip() or None, parts[1].strip() or None
    elif isinstance(period, Sequence) and len(period) == 2:
        return period[0], period[1]
    raise ValueError(f"period is {period!r}; give 'START:END' or (start, end), for example '1993:2000'")


def _late(times: Index, share: float) -> int:
    """First time of the last `share` of windows; windows of one time stay together."""
    if not 0 < share < 1:
        raise ValueError(f"validation is {share}; give a period, or a share between 0 and 1")
    if not len(times):
        return np.iinfo(np.int64).max
    ordered = np.sort(times)
    return int(ordered[min(int(len(ordered) * (1 - share)), len(ordered) - 1)])


def parse_length(name: str, text: str) -> tuple[int, str]:
    """Return the number and polars' unit of a length such as ``"6m"``."""
    found = re.fullmatch(r"(\d+)\s*([ymwd])", str(text).strip().lower())
    if not found or int(found[1]) == 0:
        raise ValueError(f"{name} is {text!r}; give a length such as '2y', '6m', '12w' or '250d'")
    return int(found[1]), "mo" if found[2] == "m" else found[2]


def day_of(ns: int, tz: str | None) -> dt.date:
    """Return the day of a time."""
    return dt.date.fromisoformat(format_time(ns, tz)[:10])


def later_by(day: dt.date, length: tuple[int, str], times: int = 1) -> dt.date:
    """Return the day a length, or several, later; the last day of a shorter month stands for days that it lacks."""
    count, unit = length
    return pl.select(pl.lit(day).dt.offset_by(f"{count * times}{unit}")).item()
