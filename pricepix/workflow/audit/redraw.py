"""Windows, images, labels and scores up to a date, made again from a panel whose later bars are replaced or removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.build.universe import render_universe
from pricepix.factor.scorer import Scorer
from pricepix.images.image_set import ImageSet
from pricepix.images.panel_images import PanelImages
from pricepix.windows.labels import NO_TIME
from pricepix.workflow.audit.tampering import Mask, Tampered, removed_after, replaced_after

__all__ = ["Redraw", "Scores", "count_wrong"]

_SAMPLE_AFTER: Final = 200
_TRUNCATIONS: Final = 12


@dataclass(frozen=True)
class Scores:
    """The scores to compare with."""

    scorer: Scorer
    values: NDArray[np.float32]
    """float32 (windows,): the cache's; NaN where it has none."""
    tolerance: float


@dataclass
class Redraw:
    """Makes windows again and compares them with those of a store."""

    store: ImageSet
    panel: Panel
    mask: Mask
    scores: Scores | None
    rng: np.random.Generator
    windows: int = 0
    labels: int = 0
    scored: int = 0
    changed_after: int = 0
    truncated: int = 0
    """Windows that were looked for again after all later rows were removed."""
    wrong_windows: list[str] = field(default_factory=list)
    wrong_labels: list[str] = field(default_factory=list)
    wrong_scores: list[str] = field(default_factory=list)
    wrong_truncated: list[str] = field(default_factory=list)

    def replace_after(self, dates: list[int], limit: int | None, progress: bool) -> None:
        """Compare the windows up to each date after all bars behind it were replaced.

        Every window is compared once, before the first date that it does not lie behind, or `limit` of them,
        half of these right before a date, where a leak of few bars shows.
        """
        time = self.store.time
        ends = [int(np.searchsorted(time, date, side="right")) for date in dates]
        total = ends[-1] if limit is None else min(ends[-1], limit)
        begin = 0
        with progress_bar(total, "audit", "img", progress) as bar:
            for date, end in zip(dates, ends, strict=True):
                share = None if limit is None else max(1, limit // len(dates))
                changed = replaced_after(self.panel, date, self.mask, self.rng)
                for a, b in _runs(time, begin, end, share, self.rng):
                    self._compare(changed, a, b, date)
                    bar.update(b - a)
                begin = end
                stop = min(len(self.store), end + _SAMPLE_AFTER)
                if stop > end:
                    later = self._again(changed, int(time[end]), int(time[stop - 1]))
                    self.changed_after += _count_changed(self.store, later, end)

    def remove_after(self, dates: list[int], row: NDArray[np.int64]) -> list[int]:
        """Compare the windows that end at a date after all rows behind it were removed.

        Some more dates are added, where they tell most: a window ends there in a missing bar, or is the last of its
        instrument. `row` is each window's panel row. Returns the dates.
        """
        time = self.store.time
        priced = np.append(~np.isnan(self.panel.bars[:, 3]), False)
        ends = np.zeros(len(self.panel) + 1, bool)
        ends[self.panel.offsets] = True
        telling = np.unique(time[~priced[row] | ~priced[row + 1] | ends[row + 1]])
        telling = telling[telling <= dates[-1]]
        others = np.unique(time[time <= dates[-1]])
        chosen = {int(others[np.searchsorted(others, date, side="right") - 1]) for date in dates}
        for times in (telling, others):
            n = min(len(times), max(0, (_TRUNCATIONS - len(chosen) + 1) // 2))
            chosen |= {int(t) for t in self.rng.choice(times, n, replace=False)}
        for date in sorted(chosen):
            cut = removed_after(self.panel, date, self.mask)
            a, b = (int(np.searchsorted(time, date, side=side)) for side in ("left", "right"))
            again = self._again(cut, date, date, every="bar")
            here = self.store.instruments[self.store.instrument_index[a:b]]
            there = again.instruments[again.instrument_index] if again is not None else here[:0]
            self.truncated += b - a
            if len(there) != len(here) or (np.sort(there) != np.sort(here)).any():
                only = sorted(set(here.tolist()) ^ set(there.tolist()))
                self.wrong_truncated.append(
                    f"{len(here)} windows end at {self.panel.stamp(date)}, but {len(there)} when the panel ends there: "
                    f"that of {only[0]} depends on whether rows follow"
                )
            elif again is not None and not np.array_equal(again.read(), self.store.read(slice(a, b))):
                self.wrong_truncated.append(
                    f"images at {self.panel.stamp(date)} change when the panel ends there"
                )
        return sorted(chosen)

    def _again(self, tampered: Tampered, first: int, last: int, every: Any = None) -> ImageSet | None:
        """Make the windows from `first` to `last` as the store was made; None where not one can be drawn."""
        store, (panel, mask) = self.store, tampered
        schedule = store.attrs["schedule"]
        chosen: dict[str, Any] = {
            "horizons": store.horizons,
            "delay": store.delay,
            "every": schedule["every"] if every is None else every,
            "price": store.attrs["label_price"],
            "delisting": store.attrs.get("delisting", "missing"),
            "start": first,
            "end": last,
            "mask": mask,
            "sample": schedule.get("sample"),
            "seed": schedule.get("seed") or 0,
            "max_gap": schedule.get("max_gap_ns"),
            "periods": schedule.get("periods"),
        }
        try:
            if isinstance(store, PanelImages):
                return PanelImages(panel, store.spec, **chosen)
            return render_universe(panel, store.spec, None, **chosen, progress=False)
        except ValueError:
            # Garbage may leave nothing to draw after a date; before it, the comparison says what is missing.
            return None

    def _compare(self, changed: Tampered, a: int, b: int, last: int) -> None:
        """Make windows a to b again from the changed panel and compare."""
        store, panel, part = self.store, self.panel, slice(a, b)
        first, until = int(store.time[a]), int(store.time[b - 1])
        again = self._again(changed, first, until)
        names = store.instruments[store.instrument_index[part]]
        period = f"from {panel.stamp(first)} to {panel.stamp(until)}"
        if again is None or len(again) != b - a:
            self.wrong_windows.append(
                f"{b - a} windows {period} became {0 if again is None else len(again)}: which windows there are "
                "depends on later bars"
            )
            return
        if not np.array_equal(again.time, store.time[part]) or not np.array_equal(
            again.instruments[again.instrument_index], names
        ):
            self.wrong_windows.append(f"different windows are drawn {period}")
            return
        self.windows += b - a
        images = again.read()
        differ = (images != store.read(part)).any(axis=(1, 2))
        if differ.any():
            self.wrong_windows.append(f"{count_wrong(differ, names, store.time[part], panel)} images changed")
        self._compare_labels(again, part, names, last)
        if self.scores is not None:
            self._compare_scores(self.scores, again, images, part, names)

    def _compare_labels(self, again: ImageSet, part: slice, names: NDArray[np.str_], last: int) -> None:
        store = self.store
        for h in store.horizons:
            exits, new_exits = store.exit_time(h)[part], again.exit_time(h)
            realised = (exits != NO_TIME) & (exits <= last)
            self.labels += int(realised.sum())
            wrong = realised & (exits != new_exits)
            old, new = store.returns(h)[part], again.returns(h)
            wrong |= realised & (old != new) & ~(np.isnan(old) & np.isnan(new))
            if wrong.any():
                found = count_wrong(wrong, names, store.time[part], self.panel)
                self.wrong_labels.append(f"{found} returns over {h} bars changed")

    def _compare_scores(
        self, scores: Scores, again: ImageSet, images: NDArray[np.uint8], part: slice, names: NDArray[np.str_]
    ) -> None:
        cached = scores.values[part]
        known = ~np.isnan(cached)
        fresh, _ = scores.scorer(images[known], again.time[known])
        self.scored += int(known.sum())
        wrong = np.zeros(len(cached), bool)
        wrong[known] = ~(np.abs(fresh.astype(np.float64) - cached[known]) <= scores.tolerance)
        if wrong.any():
            found = count_wrong(wrong, names, self.store.time[part], self.panel)
            self.wrong_scores.append(f"{found} scores of the cache are not those of the images")


def _runs(
    time: NDArray[np.int64], first: int, end: int, limit: int | None, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Runs of windows from `first` to `end` that begin and end with whole cross-sections."""
    if limit is None or end - first <= limit:
        size = 1 << 16
        begins = np.arange(first, end, size)
    else:
        size = max(1, limit // 8)
        recent = end - size * np.arange(1, 5)
        begins = np.concatenate([rng.integers(first, max(first + 1, end - 5 * size), 4), recent])
        begins = np.unique(np.maximum(begins, first))
    done = first
    for begin in begins.tolist():
        a = max(done, int(np.searchsorted(time, time[begin], side="left")))
        b = int(np.searchsorted(time, time[min(begin + size, end) - 1], side="right"))
        if b > a:
            yield a, b
            done = b


def _count_changed(store: ImageSet, later: ImageSet | None, first: int) -> int:
    """Images after the date that are no longer what they were, or no longer drawn."""
    if later is None:
        return 1
    n = min(len(later), len(store) - first)
    if not np.array_equal(later.time[:n], store.time[first : first + n]):
        return n
    return int((later.read(slice(0, n)) != store.read(slice(first, first + n))).any(axis=(1, 2)).sum())


def count_wrong(
    wrong: NDArray[np.bool_], names: NDArray[np.str_], time: NDArray[np.int64], panel: Panel
) -> str:
    """Write how many of some windows are wrong, and which is the first."""
    first = int(np.flatnonzero(wrong)[0])
    return f"{int(wrong.sum()):,} of {len(wrong):,} (the first {names[first]} at {panel.stamp(time[first])})"
