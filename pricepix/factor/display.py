"""The page that a notebook shows for a factor cache: how many values stand on each day, and how they are spread."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars import display

__all__ = ["cache_page"]

_MOST_VALUES: Final = 5_000_000
_MOST_DAYS: Final = 60


def cache_page(cache: Any) -> str:
    """Return a page of HTML. Of a large cache some days are read; what is damaged is said, not raised."""
    days, instruments, intervals = cache.shape
    model, attrs = cache.attrs["model"], cache.attrs
    facts: dict[str, Any] = {
        "location": cache.location,
        "values": f"(day {days:,}, instrument {instruments:,}, interval {intervals:,}), float32",
    }
    if days:
        facts |= {"first day": cache.days[0], "last day": cache.days[-1]}
    if intervals > 1:
        facts["times of day"] = f"{cache.intervals[0]} to {cache.intervals[-1]}"
    facts |= {
        "time zone": cache.tz,
        "model": model["name"],
        "scores are": "probabilities of a rise" if cache.is_probability else "scores, to be ranked only",
        "horizon": attrs.get("horizon"),
        "shift": f"{cache.shift} bars after the image's close",
        "windows": attrs.get("windows"),
        "without a value": attrs.get("without_value"),
        "spread of an ensemble": "kept" if cache.spread is not None else None,
        "model digest": display.code(model["digest"]) if model.get("digest") else None,
        "store digest": display.code(attrs["store_digest"]),
    }
    about = f"{days:,} days, {instruments:,} instruments, {intervals} a day, scored by {model['name']}"
    try:
        figures = _figures(cache)
    except (ValueError, OSError) as error:
        figures = [display.notes([error])]
    return display.page("FactorCache", about, display.columns("".join(figures), display.facts(facts)))


def _figures(cache: Any) -> list[display.Html]:
    days, instruments, intervals = cache.shape
    if not days * instruments * intervals:
        return []
    shown, values = _some_days(cache)
    known = (~np.isnan(values)).sum(axis=(1, 2))
    part = "" if len(shown) == days else f", {len(shown)} of {days:,} days"
    ends = str(cache.days[shown[0]]), str(cache.days[shown[-1]])
    caption = f"Known values by day, of {instruments * intervals:,}{part}"
    return [
        display.curves({"known": known}, caption, ends, write=lambda v: f"{v:,.0f}", zero=0.0),
        display.histogram(values.ravel(), f"Values{part}"),
    ]


def _some_days(cache: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    days, instruments, intervals = cache.shape
    a_day = max(1, instruments * intervals)
    if days * a_day <= _MOST_VALUES:
        return np.arange(days), np.asarray(cache.factor[:])
    many = max(1, min(_MOST_DAYS, days, _MOST_VALUES // a_day))
    shown = np.unique(np.linspace(0, days - 1, many).astype(np.int64))
    return shown, np.stack([np.asarray(cache.factor[int(day)]) for day in shown])
