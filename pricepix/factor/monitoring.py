"""A factor watched day by day: coverage, rank IC, turnover of its extremes, and drift of its scores and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from pricepix._checks import whole_number
from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time, format_time
from pricepix.factor.cache import FactorCache
from pricepix.factor.calendar import day_and_interval
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.portfolio import quantile_membership_change, quantiles
from pricepix.factor.placement import StoreWindows
from pricepix.images.image_set import ImageSet
from pricepix.images.rows import panel_rows
from pricepix.windows.labels import NO_TIME

__all__ = [
    "Comparison",
    "Reference",
    "compare_latest",
    "factor_days",
    "image_days",
    "population_stability",
    "reference_scores",
]

RECENT: Final = 20
"""Days whose scores are held against the reference."""
REFERENCE_DAYS: Final = 250
"""Days of the reference where the cache holds no score of the training period."""
BINS: Final = 10
_IMAGES: Final = 512
# Bars that are laid out at once: 250 of 5,000 instruments take 10 MB a matrix of float64.
_BLOCK: Final = 250
# Bins without a score count as half a score, so that the index stays finite.
_HALF: Final = 0.5

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


class Reference(NamedTuple):
    """Scores that later ones are held against, as counts between edges."""

    edges: Floats
    """float64 (bins - 1,): a score belongs to the bin after the last edge that it is above."""
    counts: NDArray[np.int64]
    """int64 (bins,)."""
    name: str
    """What they are of, such as ``training 2001-01-02 to 2008-12-31``."""
    settled: bool
    """Whether later days will not change it."""

    def in_bins(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return how many of the known values lie in each bin."""
        x = np.asarray(values, np.float64)
        place = np.searchsorted(self.edges, x[~np.isnan(x)], side="left")
        return np.bincount(place, minlength=len(self.counts)).astype(np.int64)

    @classmethod
    def of(cls, values: ArrayLike, name: str, settled: bool = True, bins: int = BINS) -> Reference:
        """Cut values into bins of equal counts; equal values are never parted, so that bins may be fewer."""
        x = np.asarray(values, np.float64)
        x = x[~np.isnan(x)]
        bins = whole_number(bins, "bins", 2)
        shares = np.arange(1, bins) / bins
        # Edges are values, so that rounding cannot part equal ones; none is the largest: nothing lies above it.
        edges = np.unique(np.quantile(x, shares, method="inverted_cdf")) if len(x) else np.empty(0)
        edges = edges[edges < x.max()] if len(x) else edges
        empty = cls(edges, np.zeros(len(edges) + 1, np.int64), name, settled)
        return empty._replace(counts=empty.in_bins(x))


def population_stability(reference: ArrayLike, sample: ArrayLike) -> Floats:
    """Population stability index of the counts of two samples in the same bins.

    ``sum (q_k - p_k) ln(q_k / p_k)`` over the bins, with p and q the shares of the reference and of the sample
    (Siddiqi 2006, *Credit Risk Scorecards*). Below .1 is taken as no change, above .25 as another population. A bin
    without a value counts as half a value. Two samples of one population, of n and m independent values, give
    about ``(bins - 1) (1/n + 1/m)``.

    Parameters
    ----------
    reference, sample : array (..., bins)
        Counts.

    Returns
    -------
    numpy.ndarray, float64 (...)
        NaN where one of the two has no value.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(sample, np.float64)
    known = (a.sum(axis=-1) > 0) & (b.sum(axis=-1) > 0)
    p, q = (np.where(x > 0, x, _HALF) for x in (a, b))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return np.where(known, ((q - p) * np.log(q / p)).sum(axis=-1), np.nan)


@dataclass(frozen=True)
class Comparison:
    """The mean of the latest values of a series against the means of as many before."""

    days: int
    mean: float | None
    """Of the latest `days` known values; None if there are fewer."""
    history: float | None
    """Mean of all known values before."""
    deviation: float | None
    """Standard deviation (n - 1) of the means of `days` values, of all such stretches before."""
    z: float | None
    """``(mean - history) / deviation``; None with less than two stretches that do not overlap."""


def compare_latest(series: ArrayLike, days: int) -> Comparison:
    """Hold the mean of the latest values of a series against its history. NaN are left out first.

    Stretches of the history overlap, and none of them holds any of the latest values.
    """
    x = np.asarray(series, np.float64)
    x = x[~np.isnan(x)]
    if len(x) < days:
        return Comparison(days, None, None, None, None)
    mean, before = float(x[-days:].mean()), x[:-days]
    history = float(before.mean()) if len(before) else None
    if history is None or len(before) < 2 * days:
        return Comparison(days, mean, history, None, None)
    total = np.cumsum(np.append(0.0, before))
    means = (total[days:] - total[:-days]) / days
    deviation = float(means.std(ddof=1))
    return Comparison(days, mean, history, deviation, (mean - history) / deviation if deviation > 0 else None)


def reference_scores(cache: FactorCache) -> Reference | None:
    """Return the scores of the images that the model was trained on, as far as the cache holds them.

    Where it holds none, or the model does not say what it was trained on, the scores of the first 250 days, the
    latest 20 left out; None for less than 20 days.
    """
    metadata = cache.attrs["model"].get("metadata")
    parts = [metadata.get(name) for name in ("train", "validation")] if isinstance(metadata, Mapping) else []
    ends = [part for part in parts if isinstance(part, Mapping) and part.get("first") and part.get("last")]
    if ends:
        try:
            first = min(as_time(str(part["first"]), cache.tz) for part in ends)
            last = max(as_time(str(part["last"]), cache.tz, end=True) for part in ends)
        except ValueError:
            first, last = 1, 0
        values = cache.matrix(first=first, last=last)[1] if first <= last else np.empty((0, 0))
        if len(values) >= RECENT:
            name = f"training {_day_text(first, cache.tz)} to {_day_text(last, cache.tz)}"
            return Reference.of(values, name)
    days = len(cache.days) - RECENT
    if days < RECENT:
        return None
    count = min(days, REFERENCE_DAYS)
    edge = cache.time[:count]
    values = cache.matrix(last=int(edge[edge != NO_TIME].max()))[1]
    name = f"the first {count} days, {cache.days[0]} to {cache.days[count - 1]}"
    return Reference.of(values, name, days >= REFERENCE_DAYS)


def _day_text(ns: int, tz: str | None) -> str:
    return format_time(ns, tz)[:10]


def factor_days(
    cache: FactorCache,
    store: ImageSet,
    horizon: int | None,
    *,
    first: int = 0,
    reference: Reference | None = None,
) -> pl.DataFrame:
    """Return a row a day of a factor cache.

    Parameters
    ----------
    cache : FactorCache
    store : ImageSet
        The images that were scored; its forward returns are those of the rank IC.
    horizon : int or None
        Bars of the returns; None for no rank IC.
    first : int
        First day of the cache, by its place, that gets a row.
    reference : Reference, optional
        Without it there is no drift.

    Returns
    -------
    polars.DataFrame
        ``day``; ``scores``, the instruments with a value; ``ic``, the mean over the day's bars of the rank IC, null
        until three returns are known; ``turnover_low`` and ``turnover_high``, the mean share of the lowest and of the
        highest tenth that was not in it a bar before; ``drift``, the population stability index of the values of the
        last 20 days.
    """
    days = cache.days.astype(np.int64)
    windows = StoreWindows(store)
    rows: list[pl.DataFrame] = []
    begin = max(0, first - RECENT)
    counts = np.zeros((len(days) - begin, BINS if reference is None else len(reference.counts)), np.int64)
    step = max(1, _BLOCK // max(len(cache.intervals), 1))
    for a in range(begin, len(days), step):
        b = min(a + step, len(days))
        # A day before, for the turnover of the first.
        time, values = _values(cache, max(a - 1, 0), b)
        group = quantiles(values)
        columns: dict[str, Any] = {
            "turnover_low": quantile_membership_change(group, 1),
            "turnover_high": quantile_membership_change(group, BINS),
        }
        if horizon is not None:
            returns = _returns(cache, windows, time, horizon)
            columns["ic"] = information_coefficient(values, returns)
        of_bar = day_and_interval(time, cache.tz)[0]
        for day in range(a, b):
            own = of_bar == days[day]
            some = ~np.isnan(values[own]).all(axis=0) if own.any() else np.zeros(0, bool)
            row = {name: _mean(column[own]) for name, column in columns.items()}
            row |= {"scores": int(np.count_nonzero(some))}
            rows.append(pl.DataFrame({"day": [int(days[day])], **row}, schema_overrides=_SCHEMA))
            if reference is not None:
                counts[day - begin] = reference.in_bins(values[own])
    table = pl.concat(rows, how="diagonal") if rows else pl.DataFrame(schema=_SCHEMA)
    drift: Floats = np.full(len(table), np.nan)
    if reference is not None and len(counts):
        total = np.cumsum(np.vstack([np.zeros((1, counts.shape[1]), np.int64), counts]), axis=0)
        lower = np.maximum(np.arange(len(counts)) + 1 - RECENT, 0)
        drift = population_stability(reference.counts, total[1:] - total[lower])
    table = table.with_columns(pl.Series("drift", drift).fill_nan(None))
    if "ic" not in table.columns:
        table = table.with_columns(pl.lit(None, pl.Float64).alias("ic"))
    return _dated(table[first - begin :].select(*_SCHEMA))


_SCHEMA: Final[dict[str, Any]] = {
    "day": pl.Int64,
    "scores": pl.Int64,
    "ic": pl.Float64,
    "turnover_low": pl.Float64,
    "turnover_high": pl.Float64,
    "drift": pl.Float64,
}


def _dated(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("day").cast(pl.Int32).cast(pl.Date))


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _values(cache: FactorCache, first: int, last: int) -> tuple[Times, Floats]:
    """Return the bars of days `first` to before `last` and their values, (bars, instruments)."""
    block = np.asarray(cache.factor[first:last], np.float64).transpose(0, 2, 1).reshape(-1, cache.shape[1])
    time = cache.time[first:last].reshape(-1)
    known = (time != NO_TIME) & ~np.isnan(block).all(axis=1)
    return time[known], block[known]


def _returns(cache: FactorCache, windows: StoreWindows, time: Times, horizon: int) -> Floats:
    """Return the forward returns behind the values of some bars, (bars, instruments); NaN where none is known."""
    found = np.full((len(time), cache.shape[1]), np.nan)
    image = time
    if cache.shift:
        calendar = np.sort(cache.time[cache.time != NO_TIME])
        at = np.searchsorted(calendar, time) - cache.shift
        image = np.where(at >= 0, calendar[np.maximum(at, 0)], NO_TIME)
    place_of = {name: i for i, name in enumerate(cache.instruments.tolist())}
    place = np.array([place_of.get(name, -1) for name in windows.names], np.int64)
    code = np.searchsorted(windows.time, image)
    for bar in range(len(time)):
        k = int(code[bar])
        if k >= len(windows.time) or windows.time[k] != image[bar]:
            continue
        a, b = int(windows.end[k - 1]) if k else 0, int(windows.end[k])
        column = place[windows.column("instrument_index", a, b)]
        known = column >= 0
        found[bar, column[known]] = windows.column(f"ret_{horizon}", a, b)[known]
    return found


def image_days(store: ImageSet, panel: Panel, *, last: int) -> pl.DataFrame:
    """Return a row for each of the `last` newest days with images, of at most 512 images a day, evenly spread.

    Returns
    -------
    polars.DataFrame
        ``day``; ``images``, all of the day's; ``ink``, the share of their pixels that are drawn; ``missing``, the
        share of the bars that they show that have no price.
    """
    windows = StoreWindows(store)
    day = day_and_interval(windows.time, store.tz)[0]
    days = np.unique(day)[-last:] if last > 0 else np.empty(0, np.int64)
    chosen: list[Times] = []
    codes: list[NDArray[np.int32]] = []
    times: list[Times] = []
    found: dict[str, list[Any]] = {"day": days.tolist(), "images": [], "ink": [], "missing": []}
    for wanted in days.tolist():
        own = np.flatnonzero(day == wanted)
        a, b = int(windows.end[own[0] - 1]) if own[0] else 0, int(windows.end[own[-1]])
        chosen.append(np.unique(np.linspace(a, b - 1, min(_IMAGES, b - a)).round().astype(np.int64)))
        codes.append(windows.column("instrument_index", a, b)[chosen[-1] - a])
        times.append(windows.column("time", a, b)[chosen[-1] - a])
        images = store.read(chosen[-1])
        found["images"].append(b - a)
        found["ink"].append(float(np.count_nonzero(images) / images.size))
    if len(days):
        row = panel_rows(panel, store.instruments, np.concatenate(codes), np.concatenate(times))
        # Of a stack those of its longest images.
        lookback = getattr(store.spec, "main", store.spec).lookback
        for part in np.split(row, np.cumsum([len(positions) for positions in chosen])[:-1]):
            part = part[part >= 0]
            begin = panel.offsets[np.searchsorted(panel.offsets, part, side="right") - 1]
            shown = np.maximum(part[:, None] - np.arange(lookback), begin[:, None])
            absent = np.isnan(panel.bars[shown, 3])
            found["missing"].append(float(absent.mean()) if absent.size else 0.0)
    schema = {"day": pl.Int64, "images": pl.Int64, "ink": pl.Float64, "missing": pl.Float64}
    return _dated(pl.DataFrame(found, schema=schema))
