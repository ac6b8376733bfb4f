"""Look-ahead audit: bars after a date are replaced by garbage, and nothing up to it may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pricepix._checks import printable
from pricepix.bars.columns import BOOL_FIELDS
from pricepix.bars.panel import Panel
from pricepix.build.universe import render_universe
from pricepix.factor.cache import FactorCache, open_cache
from pricepix.factor.scorer import Scorer
from pricepix.images.image_set import ImageSet
from pricepix.images.panel_images import PanelImages
from pricepix.store.image_store import open_images
from pricepix.windows.labels import NO_TIME

__all__ = ["Audit", "audit"]


@dataclass
class Audit:
    """What an audit compared and what it found."""

    date: str
    """The date: bars after it were replaced."""
    windows: int = 0
    """Windows at or before the date that were drawn again and compared."""
    labels: int = 0
    """Forward returns, realised at or before the date, that were computed again and compared."""
    scores: int = 0
    """Scores, of images at or before the date, that were computed again and compared."""
    placed: int = 0
    """Values of the cache whose place was checked to be that of a window, moved on by the shift."""
    changed_after: int = 0
    """Images after the date that the garbage changed, of a sample; 0 would mean that nothing was tested."""
    problems: list[str] = field(default_factory=list)
    """What changed, in sentences; empty where nothing looks ahead."""

    @property
    def ok(self) -> bool:
        """Whether nothing at or before the date changed."""
        return not self.problems

    def __str__(self) -> str:
        found = (
            "nothing at or before the date changed" if self.ok else "LOOK-AHEAD: " + "; ".join(self.problems)
        )
        return (
            f"audit at {self.date}: {self.windows:,} images, {self.labels:,} realised labels, "
            f"{self.scores:,} scores and "
            f"{self.placed:,} places compared after all later bars were replaced (which changed "
            f"{self.changed_after:,} "
            f"later images): {found}"
        )


def audit(
    panel: Panel | Any,
    store: ImageSet | Any,
    cache: FactorCache | Any = None,
    *,
    date: Any = None,
    model: Any = None,
    mask: NDArray[np.bool_] | None = None,
    limit: int | None = 50_000,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Show that images, labels and scores up to a date do not depend on what came after it.

    All bars after the date (prices, volumes, total returns, caps, flags) are replaced by garbage. Windows at
    or before it are then found and drawn again by the same code, from the changed panel, and scored again.
    Their images must be the same to the pixel, the forward returns that were realised by then the same to the
    bit, and their scores those of the cache, at the bar that the cache's shift says and nowhere else.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars that the store was made from.
    store : ImageSet, str or path
        A store, a loaded one, or panel images.
    cache : FactorCache, str or path, optional
        Without it, images and labels are audited.
    date : str, date, datetime or int, optional
        Last time that stays as it is; by default the middle of the times of the windows.
    model : as for ``score``, optional
        What scored the cache; by default the checkpoint or run of which the cache tells.
    mask : numpy.ndarray, bool (rows,), optional
        The mask that the store was built with, if it was.
    limit : int or None
        Windows to draw again: the last ones before the date and runs from earlier on, chosen by `seed`.
        ``None`` for all.
    tolerance : float
        Largest difference of a score that counts as the same: the order of additions in a convolution depends
        on the batch.
    seed : int
    progress : bool

    Returns
    -------
    Audit
        ``ok`` says whether it passed, ``problems`` what changed.

    Raises
    ------
    ValueError
        Panel, store, cache and model do not belong together, or no window stands at or before the date.
    """
    panel = Panel.of(panel)
    store = open_images(store)
    if cache is not None and not isinstance(cache, FactorCache):
        cache = open_cache(cache)
    made_from = store.attrs.get("panel_digest")
    if made_from is not None and panel.digest != made_from:
        raise ValueError(
            f"{store.kind} {store.location} came from another panel (digest {made_from}) than this one (digest "
            f"{panel.digest}): pass that panel, read with the same arguments"
        )
    if cache is not None and cache.attrs["store_digest"] != store.digest:
        raise ValueError(
            f"cache {cache.location} holds the scores of images of digest {cache.attrs['store_digest']}, not those of "
            f"{store.kind} {store.location} ({store.digest}): pass what was scored"
        )
    if (store.attrs["schedule"].get("mask") is None) != (mask is None):
        raise ValueError(f"pass mask= if and only if {store.kind} {store.location} came with one")
    scorer = _scorer(cache, model) if cache is not None else None
    time = store.time
    values = cache.of_windows(store) if cache is not None else None
    times = np.unique(time)
    if cache is not None and values is not None and cache.attrs.get("start") is not None:
        # A cache that was scored from a day on is looked at where it has scores.
        times = np.unique(time[~np.isnan(values)]) if not np.isnan(values).all() else times
    last = int(times[(len(times) - 1) // 2]) if date is None else panel.as_time(date, end=True)
    before = int(np.searchsorted(time, last, side="right"))
    if before == 0:
        raise ValueError(
            f"no window of {store.kind} {store.location} stands at or before {panel.stamp(last)}: the first "
            "stands at "
            f"{panel.stamp(time[0])}; give a later date"
        )
    if cache is not None and values is not None and np.isnan(values[:before]).all():
        raise ValueError(
            f"cache {cache.location} holds no score of an image up to {panel.stamp(last)}: give a later date"
        )
    rng = np.random.default_rng(seed)
    changed, changed_mask = _with_garbage(panel, last, mask, rng)
    found = Audit(panel.stamp(last))
    with tqdm(
        total=before if limit is None else min(before, limit), desc="audit", disable=not progress
    ) as bar:
        for a, b in _runs(time, before, limit, rng):
            _compare(found, store, changed, changed_mask, a, b, last, scorer, values, tolerance)
            bar.update(b - a)
    if cache is not None and values is not None:
        _check_places(found, cache, store, values, last)
    after = min(len(store), before + 200)
    if after > before:
        later = _rebuilt(store, changed, changed_mask, int(time[before]), int(time[after - 1]))
        found.changed_after = _count_changed(store, later, before)
    return found


def _scorer(cache: FactorCache, model: Any) -> Scorer:
    held = cache.attrs["model"]
    if model is None and not held.get("source"):
        raise ValueError(
            f"cache {cache.location} does not tell where its model {held['name']} is: pass model=, what "
            "scored it"
        )
    precision = cache.attrs.get("precision", "32-true")
    scorer = Scorer(held["source"] if model is None else model, precision=precision, tz=cache.tz)
    if scorer.digest is not None and held["digest"] is not None and scorer.digest != held["digest"]:
        raise ValueError(
            f"the model {scorer.name} (digest {scorer.digest}) is not the one of the cache "
            f"({held['digest']}): pass what "
            "scored it"
        )
    return scorer


def _with_garbage(
    panel: Panel, last: int, mask: NDArray[np.bool_] | None, rng: np.random.Generator
) -> tuple[Panel, NDArray[np.bool_] | None]:
    """Replace all rows after `last`; times stay, since a calendar is known ahead."""
    late = np.flatnonzero(panel.time > last)
    n = len(late)
    bars = np.array(panel.bars)
    prices = np.sort(np.exp(rng.normal(3.0, 2.0, (n, 4))), axis=1)
    # Lowest and highest are low and high; the two between are open and close, in either order.
    middle = rng.permuted(prices[:, 1:3], axis=1)
    garbage = np.column_stack(
        [middle[:, 0], prices[:, 3], prices[:, 0], middle[:, 1], rng.exponential(1e6, n)]
    )
    garbage[rng.random(n) < 0.05] = np.nan
    bars[late] = garbage
    fields = {}
    for name, values in panel.fields.items():
        new = np.array(values)
        new[late] = rng.random(n) < 0.5 if name in BOOL_FIELDS else rng.exponential(1.0, n)
        fields[name] = new
    changed = Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, fields, panel.report)
    if mask is None:
        return changed, None
    flags = np.array(mask)
    flags[late] = rng.random(n) < 0.5
    return changed, flags


def _runs(
    time: NDArray[np.int64], before: int, limit: int | None, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Runs of windows up to the date that end and begin with whole cross-sections."""
    if limit is None or before <= limit:
        size = 1 << 16
        begins = np.arange(0, before, size)
    else:
        size = max(1, limit // 8)
        # Half of them right before the date, where a leak of few bars would show.
        recent = before - size * np.arange(1, 5)
        begins = np.concatenate([rng.integers(0, max(1, before - 5 * size), 4), recent])
        begins = np.unique(np.maximum(begins, 0))
    done = 0
    for begin in begins.tolist():
        a = max(done, int(np.searchsorted(time, time[begin], side="left")))
        b = int(np.searchsorted(time, time[min(begin + size, before) - 1], side="right"))
        if b > a:
            yield a, b
            done = b


def _rebuilt(
    store: ImageSet, panel: Panel, mask: NDArray[np.bool_] | None, first: int, last: int
) -> ImageSet | None:
    """Make the windows from `first` to `last` again, as they were made; None where not one can be drawn."""
    schedule = store.attrs["schedule"]
    chosen: dict[str, Any] = {
        "horizons": store.horizons,
        "delay": store.delay,
        "every": schedule["every"],
        "price": store.attrs["label_price"],
        "start": first,
        "end": last,
        "mask": mask,
        "sample": schedule.get("sample"),
        "seed": schedule.get("seed") or 0,
        "max_gap": schedule.get("max_gap_ns"),
    }
    try:
        if isinstance(store, PanelImages):
            return PanelImages(panel, store.spec, **chosen)
        return render_universe(panel, store.spec, None, **chosen, progress=False)
    except ValueError:
        # Garbage may leave nothing to draw after the date; before it, the comparison says what is missing.
        return None


def _compare(
    found: Audit,
    store: ImageSet,
    panel: Panel,
    mask: NDArray[np.bool_] | None,
    a: int,
    b: int,
    last: int,
    scorer: Scorer | None,
    values: NDArray[np.float32] | None,
    tolerance: float,
) -> None:
    """Build windows a to b again from the changed panel and compare."""
    again = _rebuilt(store, panel, mask, int(store.time[a]), int(store.time[b - 1]))
    part = slice(a, b)
    names = store.instruments[store.instrument_index[part]]
    same = again is not None and len(again) == b - a
    if again is None or not same:
        found.problems.append(
            f"{b - a} windows from {panel.stamp(store.time[a])} to {panel.stamp(store.time[b - 1])} became "
            f"{0 if again is None else len(again)}: which windows there are depends on later bars"
        )
        return
    if not np.array_equal(again.time, store.time[part]) or not np.array_equal(
        again.instruments[again.instrument_index], names
    ):
        found.problems.append(
            f"other windows are drawn from {panel.stamp(store.time[a])} to {panel.stamp(store.time[b - 1])}"
        )
        return
    found.windows += b - a
    images = again.read()
    differ = (images != store.read(part)).any(axis=(1, 2))
    if differ.any():
        found.problems.append(f"{_count(differ, names, store.time[part], panel)} images changed")
    for h in store.horizons:
        exits, new_exits = store.exit_time(h)[part], again.exit_time(h)
        realised = (exits != NO_TIME) & (exits <= last)
        found.labels += int(realised.sum())
        wrong = realised & (exits != new_exits)
        old, new = store.returns(h)[part], again.returns(h)
        wrong |= realised & (old != new) & ~(np.isnan(old) & np.isnan(new))
        if wrong.any():
            found.problems.append(
                f"{_count(wrong, names, store.time[part], panel)} returns over {h} bars changed"
            )
    if scorer is not None and values is not None:
        held = values[part]
        known = ~np.isnan(held)
        fresh, _ = scorer(images[known], again.time[known])
        found.scores += int(known.sum())
        wrong = np.zeros(b - a, bool)
        wrong[known] = ~(np.abs(fresh.astype(np.float64) - held[known]) <= tolerance)
        if wrong.any():
            found.problems.append(
                f"{_count(wrong, names, store.time[part], panel)} scores of the cache are not those of the "
                "images"
            )


def _check_places(
    found: Audit, cache: FactorCache, store: ImageSet, values: NDArray[np.float32], last: int
) -> None:
    """Every value of the cache up to the date, moved on by the shift, must be that of a window."""
    calendar = np.sort(cache.time[cache.time != NO_TIME])
    until = int(np.searchsorted(calendar, last, side="right")) - 1 + cache.shift
    time, matrix = cache.matrix()
    upto = time <= calendar[min(until, len(calendar) - 1)]
    held = int((~np.isnan(matrix[upto])).sum())
    expected = int((~np.isnan(values[store.time <= last])).sum())
    found.placed = held
    if held != expected:
        found.problems.append(
            f"the cache holds {held:,} values up to the date, but {expected:,} windows have one there"
        )


def _count_changed(store: ImageSet, later: ImageSet | None, first: int) -> int:
    """Images after the date that are no longer what they were, or no longer drawn."""
    if later is None:
        return 1
    n = min(len(later), len(store) - first)
    if not np.array_equal(later.time[:n], store.time[first : first + n]):
        return n
    return int((later.read(slice(0, n)) != store.read(slice(first, first + n))).any(axis=(1, 2)).sum())


def _count(wrong: NDArray[np.bool_], names: NDArray[np.str_], time: NDArray[np.int64], panel: Panel) -> str:
    first = int(np.flatnonzero(wrong)[0])
    name = printable(str(names[first]), "")
    return f"{int(wrong.sum()):,} of {len(wrong):,} (the first {name} at {panel.stamp(time[first])})"
