"""What a network learns: classes or numbers made from forward returns when training starts.

`pricepix.windows.labels` computes forward returns; a store keeps them; classes are derived here and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Balance", "Targets", "balanced", "class_weights", "make_targets"]

Balance = Literal["none", "weights", "undersample"]
_KINDS = "'up', 'terciles', 'quantiles:K', 'return' or 'rank'"


@dataclass(frozen=True)
class Targets:
    """Targets of all windows of a store.

    Attributes
    ----------
    kind : str
    classes : int
        Number of classes; 1 for a regression.
    values : numpy.ndarray
        int64 (n,) classes, lowest return first, or float32 (n,). Meaningless where not usable.
    usable : numpy.ndarray
        bool (n,): False where there is no target.
    excluded : dict
        Windows without a target by reason: ``missing_return``, ``infinite_return``, ``too_few_that_day``.
    """

    kind: str
    classes: int
    values: NDArray[np.int64] | NDArray[np.float32]
    usable: NDArray[np.bool_]
    excluded: dict[str, int]

    @property
    def is_regression(self) -> bool:
        """Whether targets are numbers, not classes."""
        return self.classes == 1


def make_targets(kind: str, returns: NDArray[np.floating], time: NDArray[np.int64]) -> Targets:
    """Make targets from forward returns.

    Parameters
    ----------
    kind : str
        ``up``: class 1 where the return is above 0, else 0. ``terciles`` or ``quantiles:K``: K classes by
        the return's rank among the windows of the same time. ``return``: the return. ``rank``: its rank
        among the windows of the same time, from -0.5 to 0.5. Equal returns share their mean rank.
    returns : numpy.ndarray, float (n,)
        NaN where unknown: such a window gets no target, and is counted.
    time : numpy.ndarray, int64 (n,)
        Time of each window.

    Raises
    ------
    ValueError
        If `kind` is unknown, or no window has a target.
    """
    classes = _classes(kind)
    missing, infinite = np.isnan(returns), np.isinf(returns)
    usable = ~(missing | infinite)
    excluded = {"missing_return": int(missing.sum()), "infinite_return": int(infinite.sum())}
    values: NDArray[np.int64] | NDArray[np.float32]
    if kind == "up":
        values = (returns > 0).astype(np.int64)
    elif kind == "return":
        values = np.where(usable, returns, 0).astype(np.float32)
    else:
        # Fewer windows than classes cannot be cut into them; a lone window has no rank.
        rank, count = _ranks(returns, time, usable)
        few = usable & (count < max(classes, 2))
        usable &= ~few
        excluded["too_few_that_day"] = int(few.sum())
        if kind == "rank":
            values = np.where(usable, rank - 0.5, 0).astype(np.float32)
        else:
            values = np.minimum(np.where(usable, rank * classes, 0).astype(np.int64), classes - 1)
    if not usable.any():
        counts = ", ".join(f"{name} {count}" for name, count in excluded.items() if count)
        raise ValueError(f"no window has a target of kind {kind!r} ({counts or 'there are no windows'})")
    return Targets(kind, classes, values, usable, excluded)


def _classes(kind: str) -> int:
    if kind in ("return", "rank"):
        return 1
    if kind == "up":
        return 2
    if kind == "terciles":
        return 3
    name, _, number = str(kind).partition(":")
    if name == "quantiles" and number.isdigit() and int(number) >= 2:
        return int(number)
    raise ValueError(f"target is {kind!r}; choose {_KINDS} with K of at least 2")


def _ranks(
    returns: NDArray[np.floating], time: NDArray[np.int64], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rank within the same time, as the mean of its plotting positions (r - 0.5) / n; and n."""
    where = np.flatnonzero(usable)
    order = where[np.lexsort((returns[where], time[where]))]
    t, r = time[order], returns[order]
    place = np.arange(len(order))
    first_of_day = np.append(True, t[1:] != t[:-1])[: len(order)]
    day = np.cumsum(first_of_day) - 1
    size = np.bincount(day) if len(day) else np.empty(0, np.int64)
    within = place - place[first_of_day][day]
    first_of_tie = first_of_day | np.append(True, r[1:] != r[:-1])[: len(order)]
    tie = np.cumsum(first_of_tie) - 1
    mean_place = (np.bincount(tie, weights=within) / np.bincount(tie))[tie] if len(tie) else within
    rank, count = np.full(len(returns), np.nan), np.zeros(len(returns), np.int64)
    count[order] = size[day]
    rank[order] = (mean_place + 0.5) / size[day]
    return rank, count


def class_weights(counts: NDArray[Any]) -> NDArray[np.float32]:
    """Weights of the classes, inverse to their (expected) counts and of mean 1 over the samples."""
    if (counts == 0).any():
        raise ValueError(f"class counts are {counts.tolist()}; weights need at least one sample a class")
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)


def balanced(
    index: NDArray[np.int64], values: NDArray[np.int64], classes: int, seed: int
) -> NDArray[np.int64]:
    """Return as many positions of each class as the rarest has, drawn by `seed`, in ascending order."""
    own = values[index]
    counts = np.bincount(own, minlength=classes)
    if (counts == 0).any():
        raise ValueError(
            f"class counts are {counts.tolist()}; undersampling needs at least one sample a class"
        )
    rng = np.random.default_rng(seed)
    kept = [rng.choice(index[own == c], counts.min(), replace=False) for c in range(classes)]
    return np.sort(np.concatenate(kept))
