"""The audit of a panel, a store and a cache: every check in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import whole_number
from pricepix.bars.panel import Panel
from pricepix.factor.cache import FactorCache, open_cache
from pricepix.factor.function_identity import identify
from pricepix.factor.scorer import ENGINE_NAMES, Scorer
from pricepix.images.image_set import ImageSet
from pricepix.images.rows import store_rows
from pricepix.store.image_store import open_images
from pricepix.workflow.audit.flags import check_flags
from pricepix.workflow.audit.labels import check_labels
from pricepix.workflow.audit.model import check_memory, check_training
from pricepix.workflow.audit.placement import check_placement
from pricepix.workflow.audit.redraw import Redraw, Scores
from pricepix.workflow.audit.report import Audit, Check
from pricepix.workflow.audit.survivors import check_survivors
from pricepix.workflow.audit.table_fields import check_fields

__all__ = ["audit"]

_DATES: Final = 4


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
    delisting_rate: float | None = 0.02,
    progress: bool = True,
) -> Audit:
    """Look for anything in a panel, its images, labels and scores that knows what came later.

    At several dates, the last one included, all later bars (prices, volumes, total returns, caps, flags) are
    replaced by garbage; windows up to the date are found, drawn, labelled and scored again by the same code, and must
    be the same. Then all later rows are removed, and the windows that end at the date must still be there. Labels are
    also computed by other code, values of the cache looked up by the panel's calendar. What the table itself may
    know is tested by date against the returns that follow: masks and flags, volume, total returns, market caps; so is
    whether names end as often as in a market, whether the model remembers images, and whether it scores the dates of
    its training. The tests pass a market without leaks 99 times of 100 or more.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars that the store was made from.
    store : ImageSet, str or path
        A store, a loaded one, or panel images.
    cache : FactorCache, str or path, optional
        Without it, the panel, its images and labels are audited.
    date : str, date, datetime or int, or a list of them, optional
        Last times that stay as they are; by default the quarters of the times of the windows, and the last.
    model : as for ``score``, optional
        What scored the cache; by default the checkpoint or run that the cache records.
    mask : numpy.ndarray, bool (rows,), optional
        The mask that the store was built with, if it was.
    limit : int or None
        Windows to draw again: the last ones before each date and runs from earlier on, chosen by `seed`. ``None``
        for all.
    tolerance : float
        Largest difference of a score that counts as the same: the order of additions in a convolution depends
        on the batch.
    seed : int
    delisting_rate : float or None
        Share of names that end each year, at the least, in a market of which no name is left out. Most stock
        markets lose more; give less for one that hardly delists, ``None`` where nothing ends, as in currencies.
    progress : bool

    Returns
    -------
    Audit
        Printed, a table: check, dates, result, what it cannot see. ``ok`` says whether it passed, ``problems`` what
        was found.

    Raises
    ------
    ValueError
        Panel, store, cache and model do not belong together, no window stands at or before a date, or
        `delisting_rate` is not a share.
    """
    if delisting_rate is not None and not 0 <= delisting_rate < 1:
        raise ValueError(
            f"delisting_rate={delisting_rate!r}: give the share of names that end each year, at least 0 and below 1, "
            "or None where nothing ends"
        )
    panel = Panel.of(panel)
    store = open_images(store)
    if cache is not None and not isinstance(cache, FactorCache):
        cache = open_cache(cache)
    _check_lineage(panel, store, cache, mask)
    scores = None
    if cache is not None:
        scores = Scores(_scorer(cache, model, store), cache.of_windows(store), tolerance)
    dates = _dates(panel, store, cache, scores, date)
    row = store_rows(store, panel)
    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    redraw = Redraw(store, panel, mask, scores, rng)
    redraw.replace_after(dates, limit, progress)
    found = Audit(
        [panel.stamp(day) for day in dates],
        redraw.windows,
        redraw.labels,
        redraw.scored,
        changed_after=redraw.changed_after,
    )
    found.checks += _redraw_checks(redraw, found.dates, panel, redraw.remove_after(dates, row))
    windows_time = f"{panel.stamp(store.time[0])} to {panel.stamp(store.time[-1])}"
    found.checks.append(check_labels(store, panel, row, windows_time))
    if cache is not None and scores is not None:
        placed, found.placed = check_placement(cache, store, panel, dates[-1], f"up to {found.date}")
        found.checks += [
            placed,
            check_memory(store, scores.values, scores.scorer, rng, limit, windows_time),
            check_training(cache, panel.calendar, windows_time),
        ]
    panel_time = f"{panel.stamp(panel.calendar[0])} to {panel.stamp(panel.calendar[-1])}"
    found.checks += [
        check_flags(panel, mask, store.horizons, panel_time),
        check_fields(panel, panel_time),
        check_survivors(panel, delisting_rate, panel_time),
    ]
    return found


def _check_lineage(
    panel: Panel, store: ImageSet, cache: FactorCache | None, mask: NDArray[np.bool_] | None
) -> None:
    """Refuse what does not belong together."""
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


def _scorer(cache: FactorCache, model: Any, store: ImageSet) -> Scorer:
    recorded = cache.attrs["model"]
    if model is None and not recorded.get("source"):
        raise ValueError(
            f"cache {cache.location} does not say where its model {recorded['name']} is: pass model=, what scored it"
        )
    precision = cache.attrs.get("precision", "32-true")
    # A function that was scored under a model_id is known by that alone.
    named = model is not None and recorded["digest"] == identify(None, recorded["name"])[0]
    scorer = Scorer(
        recorded["source"] if model is None else model,
        precision=precision,
        # A cache holds the versions of what scored it; torch is among them whatever engine ran.
        engine=next((name for name in ENGINE_NAMES[1:] if name in cache.attrs["versions"]), "torch"),
        images=store if precision == "int8" else None,
        tz=cache.tz,
        model_id=recorded["name"] if named else None,
    )
    if scorer.digest is not None and recorded["digest"] is not None and scorer.digest != recorded["digest"]:
        raise ValueError(
            f"the model {scorer.name} (digest {scorer.digest}) is not the one of the cache ({recorded['digest']}): "
            "pass what scored it"
        )
    return scorer


def _dates(
    panel: Panel, store: ImageSet, cache: FactorCache | None, scores: Scores | None, date: Any
) -> list[int]:
    """Return the last times that stay, ascending, checked to have windows, and scores if there are any."""
    time = store.time
    times = np.unique(time)
    if cache is not None and scores is not None and cache.attrs.get("start") is not None:
        # A cache that was scored from a day on is looked at where it has scores.
        scored = np.unique(time[~np.isnan(scores.values)])
        times = scored if len(scored) else times
    if date is None:
        dates = {int(times[(len(times) - 1) * k // _DATES]) for k in range(1, _DATES + 1)}
    else:
        given = date if isinstance(date, Sequence) and not isinstance(date, str) else [date]
        dates = {panel.as_time(day, end=True) for day in given}
    ordered = sorted(dates)
    if not ordered:
        raise ValueError("date is empty: give at least one, or None")
    first = ordered[0]
    before = int(np.searchsorted(time, first, side="right"))
    if before == 0:
        raise ValueError(
            f"no window of {store.kind} {store.location} stands at or before {panel.stamp(first)}: the first stands at "
            f"{panel.stamp(time[0])}; give a later date"
        )
    if cache is not None and scores is not None and np.isnan(scores.values[:before]).all():
        raise ValueError(
            f"cache {cache.location} holds no score of an image up to {panel.stamp(first)}: give a later date"
        )
    return ordered


def _redraw_checks(redraw: Redraw, dates: list[str], panel: Panel, removed: list[int]) -> list[Check]:
    """Return what was found by making windows again."""
    shown = ", ".join(dates)
    missed = len(redraw.store) - redraw.windows
    unseen = (
        f"the {missed:,} windows that were not drawn again"
        if missed
        else "leaks that later bars do not change"
    )
    checks = [
        Check(
            "images",
            shown,
            unseen,
            f"{redraw.windows:,} images stay the same when all later bars are replaced, which changes "
            f"{redraw.changed_after:,} later ones",
            redraw.wrong_windows,
        ),
        Check(
            "windows",
            f"{len(removed)} dates, {panel.stamp(removed[0])} to {panel.stamp(removed[-1])}",
            "windows of other dates; rows that the table has only because trading resumed",
            f"{redraw.truncated:,} windows stay the same when all later rows are removed",
            redraw.wrong_truncated,
        ),
        Check(
            "realised labels",
            shown,
            "labels that are wrong in the same way each time: see labels",
            f"{redraw.labels:,} returns realised by then stay the same when all later bars are replaced",
            redraw.wrong_labels,
            known=redraw.labels > 0,
        ),
    ]
    if redraw.scores is not None:
        checks.append(
            Check(
                "scores",
                shown,
                f"changes below {redraw.scores.tolerance:g}; " + unseen,
                f"{redraw.scored:,} values of the cache are the scores of the images drawn again",
                redraw.wrong_scores,
                known=redraw.scored > 0,
            )
        )
    return checks
