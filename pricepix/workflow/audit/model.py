"""Models that know the answers: functions that remember images, networks that were trained on what they score."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.cache import FactorCache
from pricepix.factor.scorer import Scorer
from pricepix.factor.training_overlap import training_overlap
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME
from pricepix.workflow.audit.association import FEWEST_DATES, FEWEST_NAMES, associate, date_ranks
from pricepix.workflow.audit.report import Check

__all__ = ["check_memory", "check_training"]

_IMAGES: Final = 20_000
"""Images scored again, at most."""
_PIXELS: Final = 2
"""Pixels of each image that are inverted."""
_KEPT: Final = 0.5
"""Share of its rank IC that a model keeps at least on images of which so few pixels are different."""
_SKILL: Final = 0.03
"""Rank IC below which there is nothing to keep."""
_TOO_GOOD: Final = 0.5
_CHANCE: Final = 0.01


def check_memory(
    store: ImageSet,
    values: NDArray[np.float32],
    scorer: Scorer,
    rng: np.random.Generator,
    limit: int | None,
    dates: str,
) -> Check:
    """Score images again of which a few pixels are inverted: what was learnt survives, what was memorised does not.

    Parameters
    ----------
    store : ImageSet
    values : numpy.ndarray, float32 (windows,)
        The scores of its images; NaN where there is none.
    scorer : Scorer
    rng : numpy.random.Generator
        Chooses dates and pixels.
    limit : int or None
        Images to score again, about.
    dates : str
        The windows' time, for the table.
    """
    check = Check(
        "memory",
        dates,
        "a model that remembers what images look like, not their pixels, unless its rank IC is above "
        f"{_TOO_GOOD}; a model that reads a file",
    )
    scored = ~np.isnan(values)
    most = _IMAGES if limit is None else min(_IMAGES, limit)
    seen = []
    for h in store.horizons:
        returns = store.returns(h)
        index = _sample(store.time, np.flatnonzero(scored & ~np.isnan(returns)), h, most, rng)
        images = np.array(store.read(index))
        at = (
            rng.integers(0, images[0].size, (len(index), _PIXELS))
            if len(index)
            else np.empty((0, _PIXELS), int)
        )
        flat = images.reshape(len(index), -1)
        np.put_along_axis(flat, at, 255 - np.take_along_axis(flat, at, 1), 1)
        fresh, _ = scorer(images, store.time[index])
        truth, time = returns[index].astype(np.float64), store.time[index]
        first = values[index].astype(np.float64)
        # No score, or the same one for all, says nothing: the middle rank.
        again = np.where(np.isnan(fresh), np.nanmedian(fresh) if (~np.isnan(fresh)).any() else 0.0, fresh)
        before, after = associate(truth, first, time), associate(truth, again, time)
        lost = associate(truth, first, time, minus=again)
        if before.dates < FEWEST_DATES:
            continue
        ic, ic_changed = _rank_ic(first, truth, time), _rank_ic(again, truth, time)
        seen.append(
            f"rank IC over {h} bars {ic:+.2f}, and {ic_changed:+.2f} with {_PIXELS} pixels of each image inverted"
        )
        p = _CHANCE / len(store.horizons)
        forgets = lost.exceeds((1 - _KEPT) * abs(before.effect), p) and abs(after.effect) < _KEPT * abs(
            before.effect
        )
        if before.exceeds(_SKILL, p) and forgets:
            check.problems.append(f"the model's {seen[-1]}: it knows these images by heart")
        elif before.exceeds(_TOO_GOOD, p):
            check.problems.append(
                f"the model's rank IC over {h} bars is {ic:+.2f} on {before.dates} dates: too good to be foresight"
            )
    check.known = bool(seen)
    check.seen = "; ".join(seen) or f"fewer than {FEWEST_DATES} dates of {FEWEST_NAMES} scores and returns"
    return check


def _sample(
    time: NDArray[np.int64], index: NDArray[np.int64], horizon: int, images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose windows of dates whose returns do not overlap: every `horizon`-th, until there are `images`."""
    times, code, size = np.unique(time[index], return_inverse=True, return_counts=True)
    chosen = np.arange(int(rng.integers(0, min(horizon, max(len(times), 1)))), len(times), horizon)
    most = max(FEWEST_DATES, int(images / max(1.0, float(size.mean()) if len(size) else 1.0)))
    if len(chosen) > most:
        chosen = np.sort(rng.choice(chosen, most, replace=False))
    return index[np.isin(code, chosen)]


def _rank_ic(scores: NDArray[np.float64], truth: NDArray[np.float64], time: NDArray[np.int64]) -> float:
    """Pooled rank correlation within dates."""
    a, b = date_ranks(scores, time), date_ranks(truth, time)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def check_training(cache: FactorCache, calendar: NDArray[np.int64], dates: str) -> Check:
    """Look for dates of the cache that its model was trained or validated on, by what its checkpoints record."""
    check = Check(
        "training dates",
        dates,
        "what functions were fitted to, networks inside functions included; what a checkpoint does not record",
    )
    model: dict[str, Any] = cache.attrs["model"]
    time, _ = cache.matrix()
    known = time[np.isin(time, calendar)]
    overlap = training_overlap(model, known, calendar, cache.shift, cache.tz)
    if overlap.through is None:
        check.known = False
        check.seen = f"nothing is recorded of what {model['name']} was trained on"
        return check
    seen = int(overlap.seen.sum())
    stamp = str(np.datetime64(overlap.through, "ns").astype("M8[D]")) if overlap.through != NO_TIME else "?"
    if seen:
        check.problems.append(
            f"{model['name']} was trained or validated on {seen:,} of the {len(known):,} dates that it scores, and the "
            f"last return it saw ended {stamp}: score from there, or a walk-forward run"
        )
    check.seen = (
        f"{len(known):,} dates scored, none of which the model saw (the last return it saw ended {stamp})"
    )
    if not overlap.whole:
        check.seen += "; the checkpoint does not record its validation"
    return check
