"""Line charts as SVG that follows the page's colours: numbers in, places of lines and labels out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chart", "accuracy_chart", "cumulative_chart", "line_chart"]

Floats = NDArray[np.float64]

WIDTH: Final = 640
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 28
_TARGET_VOLATILITY: Final = 0.10
_MOST_POINTS: Final = 400
_MOST_LABELS: Final = 10
_MOST_MARKS: Final = 40
"""Points of a line that tell their value: more would lie on top of one another."""


class Line(NamedTuple):
    """A line and its place in the order of colours."""

    name: str
    points: str
    colour: int
    dashed: bool
    marks: list[tuple[float, float, str]]
    """Places at which a pointer is told the value, and what it is told."""


class Chart(NamedTuple):
    """A chart for the template."""

    title: str
    caption: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def line_chart(
    title: str,
    caption: str,
    x_labels: Sequence[str],
    series: Mapping[str, Floats],
    unit: str = "",
    dashed: Collection[str] = (),
) -> Chart:
    """Place lines over the same points, NaN left out.

    Parameters
    ----------
    x_labels : sequence of str
        One a point; all of at most ten are shown, six of more, four where they are long.
    series : mapping of name to numpy.ndarray, float64 (points,)
    unit : str
        ``%`` for shares.
    dashed : collection of str
        Series whose lines are dashed.
    """
    values = np.concatenate([v[np.isfinite(v)] for v in series.values()] or [np.zeros(1)])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    n = len(x_labels)

    def x(i: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (i / max(n - 1, 1)), 1)

    def y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / max(high - low, 1e-12)), 1)

    lines, factor = [], 100.0 if unit == "%" else 1.0
    for colour, (name, line) in enumerate(series.items()):
        known = np.flatnonzero(np.isfinite(line))
        # More points than a screen has columns only make the page longer.
        known = known[:: max(1, len(known) // _MOST_POINTS)]
        points = " ".join(f"{x(i)},{y(float(line[i]))}" for i in known.tolist())
        told = known[
            np.unique(np.linspace(0, len(known) - 1, min(len(known), _MOST_MARKS)).round().astype(int))
        ]
        marks = [
            (x(i), y(float(line[i])), f"{name}, {x_labels[i]}: {float(line[i]) * factor:.1f}{unit}")
            for i in told.tolist()
        ]
        lines.append(Line(name, points, colour, name in dashed, marks))
    # Dates are wide: four of them fit on a phone.
    most = 4 if max(map(len, x_labels), default=0) > 4 else n if n <= _MOST_LABELS else 6
    shown = np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int)).tolist() if n else []
    return Chart(
        title, caption, lines, [(x(i), x_labels[i]) for i in shown],
        [(y(tick), f"{tick * factor:g}{unit}") for tick in ticks],
    )  # fmt: skip


def cumulative_chart(
    title: str,
    dates: Sequence[str],
    returns: Mapping[str, Floats],
    per_year: float,
    dashed: Collection[str] = (),
) -> Chart:
    """Cumulated returns, each scaled to a volatility of 10% a year over the whole test, as in the paper's figure."""
    scaled = {}
    for name, series in returns.items():
        sd = float(series.std(ddof=1)) * math.sqrt(per_year) if len(series) > 1 else 0.0
        if sd > 0:
            scaled[name] = np.cumsum(series * (_TARGET_VOLATILITY / sd))
    caption = "Highest less lowest decile, equal weights: returns added up, at a volatility of 10% a year. No costs."
    return line_chart(title, caption, dates, scaled, "%", dashed)


def accuracy_chart(
    title: str, scores: Mapping[str, Floats], returns: NDArray[np.float32], n: int = 10
) -> Chart:
    """Share of right signs by decile of the score, of each model; all windows with a return pooled."""
    known = ~np.isnan(returns)
    rose = returns[known] > 0
    series = {}
    for name, score in scores.items():
        own = score[known]
        place = np.searchsorted(np.quantile(own, np.arange(1, n) / n), own, side="left")
        count = np.bincount(place, minlength=n)
        right = np.bincount(place, (own > 0.5) == rose, minlength=n)
        series[name] = np.where(count > 0, right / np.maximum(count, 1), np.nan)
    caption = (
        "Windows sorted by the predicted probability of a rise; share of them whose predicted sign came true."
    )
    return line_chart(title, caption, [str(k) for k in range(1, n + 1)], series, "%")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(k for k in (1, 2, 5, 10) if span / (step * k) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(k * step, 10) for k in range(first, last + 1)]
