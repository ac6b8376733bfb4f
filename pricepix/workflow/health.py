"""How a live factor does: figures of every evening, held against its history and against limits."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.factor.calendar import day_and_interval
from pricepix.factor.monitoring import (
    RECENT,
    Reference,
    compare_latest,
    factor_days,
    image_days,
    reference_scores,
)
from pricepix.location import METADATA_BYTES, Location

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache
    from pricepix.store.image_store import ImageStore
    from pricepix.workflow.config import Health as Settings

__all__ = ["VERSION", "Health", "examine", "memory_mb", "read_alarms"]

VERSION: Final = 1
"""Of ``health.json`` and of ``health_days.parquet``."""
FIGURES: Final = "health.json"
DAYS: Final = "health_days.parquet"
IC_DAYS: Final = (20, 60, 250)
"""Days whose mean rank IC is held against its history."""
_IMAGE_DAYS: Final = 250
_DAYS_BYTES: Final = 64 << 20
_SCHEMA: Final[dict[str, Any]] = {
    "day": pl.Date, "instruments": pl.Int64, "scores": pl.Int64, "images": pl.Int64, "ink": pl.Float64,
    "missing": pl.Float64, "drift": pl.Float64, "ic": pl.Float64, "turnover_low": pl.Float64,
    "turnover_high": pl.Float64, "seconds": pl.Float64, "memory_mb": pl.Float64,
}  # fmt: skip


@dataclass
class Health:
    """The state of a live factor after an evening's update."""

    figures: dict[str, Any]
    """What ``health.json`` holds."""
    days: pl.DataFrame
    """What ``health_days.parquet`` holds: a row a day."""
    alarms: list[str] = field(default_factory=list)
    """A sentence for each limit that is passed."""

    def write(self, where: Location) -> None:
        """Write the figures and the days; the figures come last."""
        content = io.BytesIO()
        self.days.write_parquet(content, metadata={"pricepix_health_version": str(VERSION)})
        where.put(DAYS, content.getvalue())
        where.put(FIGURES, (json.dumps(self.figures, indent=2) + "\n").encode())


def memory_mb() -> float | None:
    """Return the most memory that the process has held so far, in MB; None where the system does not say."""
    # Linux counts what the parent of a process held as its own in ru_maxrss, so that is asked elsewhere only.
    status = Path("/proc/self/status")
    if status.exists() and (held := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return round(int(held[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def read_alarms(where: Location, limits: Settings) -> list[str]:
    """Hold the figures of the last update against limits; none where there are no figures of this version."""
    figures = _read_figures(where)
    return find_alarms(figures, limits) if figures else []


def _read_figures(where: Location) -> dict[str, Any]:
    try:
        found = json.loads(bytes(where.get(FIGURES, METADATA_BYTES) or b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("version") == VERSION else {}


def _read_days(where: Location) -> pl.DataFrame:
    """Return the rows of earlier updates; none if there are none of this version."""
    content = where.get(DAYS, _DAYS_BYTES)
    empty = pl.DataFrame(schema=_SCHEMA)
    if content is None:
        return empty
    try:
        version = pl.read_parquet_metadata(io.BytesIO(bytes(content))).get("pricepix_health_version")
        found = pl.read_parquet(io.BytesIO(bytes(content)))
    except (pl.exceptions.PolarsError, OSError):
        return empty
    return found if version == str(VERSION) and found.schema == pl.Schema(_SCHEMA) else empty


def examine(
    where: Location,
    store: ImageStore,
    cache: FactorCache | None,
    panel: Panel,
    settings: Settings,
    *,
    changed_from: int | None = None,
    steps: Mapping[str, Mapping[str, float | None]],
) -> Health:
    """Measure a live factor after an update, and hold what is found against the limits of the configuration.

    Only days that an update can change are looked at: the latest, those whose returns became known, those from the
    first revised bar or score on, and all of them if the model changed or nothing was measured before.

    Parameters
    ----------
    where : Location
        The folder of the updates, with the figures of the evening before.
    store : ImageStore
    cache : FactorCache or None
    panel : Panel
        The bars of the evening.
    settings : Health
        The section ``update.health`` of the configuration.
    changed_from : int, optional
        Time of the oldest bar that was there before and is another now, nanoseconds. Scores are known by the cache's
        journal.
    steps : mapping
        Seconds and memory of each step of the update.

    Returns
    -------
    Health
    """
    before, known = _read_figures(where), _read_days(where)
    model = None if cache is None else cache.attrs["model"]["digest"]
    whole = not before or before.get("model") != model or not len(known)
    reference, horizon, commits = None, None, 0
    table = _bar_days(panel)
    if cache is not None:
        horizon, journal = _horizon(cache, store), cache.journal()
        commits = len(journal)
        oldest = journal.earliest(int(before.get("commits", 0)))
        changed_from = min((ns for ns in (changed_from, oldest) if ns is not None), default=None)
        reference = None if whole else _saved_reference(before)
        if reference is None:
            reference, whole = reference_scores(cache), True
        first = 0 if whole else _first_open(cache, known, horizon, changed_from)
        fresh = factor_days(cache, store, horizon, first=first, reference=reference)
        if not whole:
            fresh = pl.concat([_columns(known, fresh).filter(pl.col("day") < fresh["day"].min()), fresh])
        table = table.join(fresh, on="day", how="left")
    table = _with_images(table, store, panel, known, whole, changed_from)
    own = known.select("day", "seconds", "memory_mb")
    table = table.join(own, on="day", how="left")
    table = _with_steps(table, steps)
    for name, kind in _SCHEMA.items():
        if name not in table.columns:
            table = table.with_columns(pl.lit(None, kind).alias(name))
    table = table.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())
    # Of a weekly schedule the figures are those of the last day with images.
    daily = store.attrs["schedule"]["every"] in ("bar", "day", 1)
    seen = table if daily else table.filter(pl.col("images").is_not_null())
    figures = _figures(seen if len(seen) else table, reference, horizon, cache is not None, steps)
    alarms = find_alarms(figures, settings)
    head = {
        "version": VERSION, "pricepix": __version__, "bars_through": panel.stamp(int(panel.calendar[-1])),
        "model": model, "commits": commits, "alarms": alarms,
    }  # fmt: skip
    if reference is not None:
        saved = {
            **reference._asdict(),
            "edges": reference.edges.tolist(),
            "counts": reference.counts.tolist(),
        }
        figures["scores"]["reference"] = saved
    limits = settings.model_dump(exclude={"prometheus", "page"}, exclude_none=True)
    return Health({**head, **figures, "limits": limits}, table, alarms)


def _horizon(cache: FactorCache, store: ImageStore) -> int | None:
    wanted = cache.attrs["horizon"]
    if wanted in store.horizons:
        return int(wanted)
    return int(store.horizons[0]) if store.horizons else None


def _saved_reference(before: Mapping[str, Any]) -> Reference | None:
    """Return the reference of the evening before, if later days do not change it."""
    found = (before.get("scores") or {}).get("reference")
    if not found or not found["settled"]:
        return None
    return Reference(np.array(found["edges"]), np.array(found["counts"], np.int64), found["name"], True)


def _first_open(
    cache: FactorCache, known: pl.DataFrame, horizon: int | None, changed_from: int | None
) -> int:
    """Return the first day whose figures may not be final: returns were unknown, it changed, or it is new."""
    newest: Any = known["day"].max()
    held = int(np.searchsorted(cache.days, np.datetime64(newest, "D")))
    if changed_from is not None:
        held = min(held, int(np.searchsorted(cache.days.astype(np.int64), _day_of(changed_from, cache.tz))))
    bars = (horizon or 0) + int(cache.attrs["delay"]) + cache.shift
    # An instrument that misses bars has its returns later than the others.
    return max(0, held - 2 * -(-bars // max(len(cache.intervals), 1)) - RECENT)


def _day_of(ns: int, tz: str | None) -> int:
    return int(day_and_interval(np.array([ns]), tz)[0][0])


def _columns(known: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    return known.select(like.columns).cast(dict(like.schema))  # type: ignore[arg-type]


def _bar_days(panel: Panel) -> pl.DataFrame:
    """Return the days of the market, and how many instruments have a price on each."""
    day = day_and_interval(panel.calendar, panel.tz)[0]
    days, code = np.unique(day, return_inverse=True)
    priced = ~np.isnan(panel.bars[:, 3])
    if len(days) == len(day):
        count = np.bincount(panel.time_code[priced], minlength=len(days))
    else:
        # Rows are in the order of instrument and time, so that a day's bars of an instrument are neighbours.
        owner = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))[priced]
        own = code[panel.time_code[priced]]
        first = np.append(True, (own[1:] != own[:-1]) | (owner[1:] != owner[:-1]))[: len(own)]
        count = np.bincount(own[first], minlength=len(days))
    table = pl.DataFrame({"day": days, "instruments": count.astype(np.int64)})
    return table.with_columns(pl.col("day").cast(pl.Int32).cast(pl.Date))


def _with_images(
    table: pl.DataFrame,
    store: ImageStore,
    panel: Panel,
    known: pl.DataFrame,
    whole: bool,
    changed_from: int | None,
) -> pl.DataFrame:
    """Add what the images show: of days that are new or changed, at most 250, or of the last 250 at first."""
    count = _IMAGE_DAYS
    last: Any = known.filter(pl.col("images").is_not_null())["day"].max()
    if not whole and last is not None:
        since = int(np.datetime64(last, "D").astype(np.int64))
        if changed_from is not None:
            since = min(since, _day_of(changed_from, panel.tz))
        count = table.filter(pl.col("day").cast(pl.Int32) >= since).height
    fresh = image_days(store, panel, last=min(count, _IMAGE_DAYS))
    old = known.select(fresh.columns).filter(pl.col("images").is_not_null())
    if len(fresh):
        old = old.filter(pl.col("day") < fresh["day"].min())
    return table.join(pl.concat([old, fresh]), on="day", how="left")


def _with_steps(table: pl.DataFrame, steps: Mapping[str, Mapping[str, float | None]]) -> pl.DataFrame:
    """Note the time and the memory of this update on the newest day."""
    seconds = sum(step["seconds"] or 0.0 for step in steps.values())
    memory = max((step["memory_mb"] or 0.0 for step in steps.values()), default=0.0)
    newest = pl.col("day") == table["day"].max()
    return table.with_columns(
        pl.when(newest).then(pl.lit(seconds)).otherwise(pl.col("seconds")).alias("seconds"),
        pl.when(newest).then(pl.lit(memory or None, pl.Float64)).otherwise(pl.col("memory_mb")).alias("memory_mb"),
    )  # fmt: skip


def _figures(
    table: pl.DataFrame,
    reference: Reference | None,
    horizon: int | None,
    scored: bool,
    steps: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Any]:
    """Return today's figures, each beside what it is held against."""
    newest = table.row(-1, named=True)
    found: dict[str, Any] = {"coverage": None, "scores": {"drift": None}, "ic": [], "turnover": None}
    if scored:
        shares = (table["scores"] / table["instruments"]).drop_nulls()
        found["coverage"] = {
            "instruments": newest["instruments"],
            "scores": newest["scores"] or 0,
            "share": (newest["scores"] or 0) / newest["instruments"] if newest["instruments"] else None,
            "usual": None if len(shares) < 2 else float(shares[:-1].tail(60).median()),  # type: ignore[arg-type]
        }
        found["scores"] = {"drift": newest["drift"], "days": RECENT}
        ic = table["ic"].to_numpy()
        found["ic"] = [{"horizon": horizon, **asdict(compare_latest(ic, days))} for days in IC_DAYS]
        found["turnover"] = {
            name: {"share": newest[f"turnover_{name}"], "usual": _usual(table, f"turnover_{name}")}
            for name in ("low", "high")
        }
    found["images"] = {
        "count": newest["images"],
        "ink": {"share": newest["ink"], "usual": _usual(table, "ink")},
        "missing": {"share": newest["missing"], "usual": _usual(table, "missing")},
    }
    found["steps"] = {name: dict(step) for name, step in steps.items()}
    return found


def _usual(table: pl.DataFrame, name: str) -> float | None:
    """Return the median of the 250 days before the newest."""
    before = table[name][:-1].drop_nulls().tail(_IMAGE_DAYS)
    return None if not len(before) else float(before.median())  # type: ignore[arg-type]


def find_alarms(figures: Mapping[str, Any], limits: Settings) -> list[str]:
    """Return a sentence for each limit that is passed. What could not be measured passes none."""
    found: list[str] = []

    def hold(value: float | None, name: str, what: str, *, below: bool = False) -> None:
        limit = getattr(limits, name)
        if limit is None or value is None or math.isnan(value):
            return
        if value < limit if below else value > limit:
            side = "below" if below else "above"
            found.append(f"{what} {value:.4g}, {side} {name}={limit:g}")

    coverage, turnover, images = (figures[name] for name in ("coverage", "turnover", "images"))
    if coverage:
        hold(coverage["share"], "min_coverage",
             f"{coverage['scores']:,} of {coverage['instruments']:,} instruments have a score: the share is",
             below=True)  # fmt: skip
    hold(figures["scores"]["drift"], "max_drift",
         f"the population stability index of the scores of the last {RECENT} days is")  # fmt: skip
    for one in figures["ic"]:
        hold(one["z"], "min_ic_z",
             f"the mean rank IC of the last {one['days']} days is {one['mean'] or 0:.4f}, its distance from its "
             f"history of {one['history'] or 0:.4f} in standard deviations is", below=True)  # fmt: skip
    for name in ("low", "high") if turnover else ():
        hold(
            turnover[name]["share"],
            "max_turnover",
            f"the turnover of the {'lowest' if name == 'low' else 'highest'} tenth is",
        )
    ink, usual = images["ink"]["share"], images["ink"]["usual"]
    if ink is not None and usual:
        hold(
            abs(ink / usual - 1),
            "max_ink_change",
            f"the images have {ink:.4f} of their pixels drawn, usually {usual:.4f}: the change is",
        )
    hold(images["missing"]["share"], "max_missing", "the share of the bars in the images without a price is")
    steps = figures["steps"].values()
    hold(sum(step["seconds"] or 0.0 for step in steps), "max_seconds", "the seconds of the update are")
    memory = [step["memory_mb"] for step in steps if step["memory_mb"] is not None]
    hold(max(memory, default=None), "max_memory_mb", "the memory of the update in MB is")
    return found
