"""The health of a live factor as a page that needs nothing else, and as text for Prometheus."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl

from pricepix.bars import display
from pricepix.workflow.health import Health

__all__ = ["health_page", "prometheus_text"]

_SHOWN: Final = 750
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1rem auto; max-width: 62rem; padding: 0 1rem; background: Canvas; color: CanvasText; }}
.pricepix {{ max-width: none !important; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def health_page(health: Health, name: str) -> str:
    """Return the page on the health of a live factor.

    Parameters
    ----------
    health : Health
    name : str
        What the page calls the factor, such as its folder.
    """
    f, days = health.figures, health.days.tail(_SHOWN)
    ends = (days["day"].min(), days["day"].max()) if len(days) else ("", "")
    alarms = display.notes(health.alarms) if health.alarms else display.notes(["All within the limits."])
    if not f["limits"]:
        alarms = display.notes(["No limits are set: see the section update.health of the configuration."])
    parts = [
        alarms,
        display.tiles(_tiles(f)),
        _rank_ic(f, days, ends),
        display.columns(_scores(f, days, ends), _images(f, days, ends)),
        _steps(f, days),
        display.facts(
            {"model": f["model"], "limits": _listed(f["limits"]) or "none", "pricepix": f["pricepix"]}
        ),
    ]
    body = display.page(f"Health of {name}", f"bars through {f['bars_through']}", *parts)
    return _PAGE.format(title=display.text(f"Health of {name}"), body=body)


def _tiles(f: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if f["coverage"]:
        c = f["coverage"]
        found[f"of {c['instruments']:,} instruments scored (usually {_percent(c['usual'])})"] = _percent(
            c["share"]
        )
        found["drift of the scores (stability index)"] = _number(f["scores"]["drift"])
        latest = f["ic"][0]
        found[f"mean rank IC of the last {latest['days']} days"] = _number(latest["mean"])
        turnover = f["turnover"]
        found["turnover of the highest tenth"] = _percent(turnover["high"]["share"])
    found["of the pixels drawn"] = _percent(f["images"]["ink"]["share"])
    found["seconds"] = f"{sum(step['seconds'] or 0 for step in f['steps'].values()):.1f}"
    return found


def _rank_ic(f: Mapping[str, Any], days: pl.DataFrame, ends: tuple[Any, Any]) -> str:
    if not f["ic"]:
        return ""
    rows = [
        [
            f"last {one['days']} days", _number(one["mean"]), _number(one["history"]), _number(one["deviation"]),
            _number(one["z"], 2),
        ]
        for one in f["ic"]
    ]  # fmt: skip
    rolling = {
        f"{n} days": days["ic"].rolling_mean(n, min_samples=n).fill_null(math.nan).to_list() for n in (20, 60)
    }
    horizon = f["ic"][0]["horizon"]
    return display.columns(
        display.curves(
            rolling, f"Rank IC with returns over {horizon} bars, means of the last days", ends, zero=0.0
        ),
        display.table(["rank IC", "mean", "before", "sd", "z"], rows),
    )


def _scores(f: Mapping[str, Any], days: pl.DataFrame, ends: tuple[Any, Any]) -> str:
    if not f["coverage"]:
        return ""
    reference = (f["scores"].get("reference") or {}).get("name", "none yet")
    share = (days["scores"] / days["instruments"]).fill_null(math.nan).to_list()
    return "".join(
        [
            display.curves(
                {"drift": _values(days, "drift")},
                f"Drift of the scores of 20 days, against {reference}",
                ends,
                zero=0.0,
            ),
            display.curves({"coverage": share}, "Share of the instruments with a score", ends, zero=1.0),
            display.curves(
                {name: _values(days, f"turnover_{name}") for name in ("low", "high")},
                "Turnover of the extreme tenths",
                ends,
                zero=0.0,
            ),
        ]
    )


def _images(f: Mapping[str, Any], days: pl.DataFrame, ends: tuple[Any, Any]) -> str:
    return "".join(
        [
            display.curves({"ink": _values(days, "ink")}, "Share of the pixels that are drawn", ends),
            display.curves(
                {"missing": _values(days, "missing")},
                "Share of the bars in the images without a price",
                ends,
                zero=0.0,
            ),
            display.curves({"images": _values(days, "images")}, "Images a day", ends, zero=0.0),
        ]
    )


def _steps(f: Mapping[str, Any], days: pl.DataFrame) -> str:
    timed = days.drop_nulls("seconds")
    rows = [
        [name, _number(step["seconds"], 2), "" if step["memory_mb"] is None else f"{step['memory_mb']:,.0f}"]
        for name, step in f["steps"].items()
    ]
    return display.columns(
        display.table(["step", "seconds", "memory so far, MB"], rows),
        display.curves(
            {"seconds": _values(timed, "seconds")},
            "Seconds of each evening's update",
            (timed["day"].min(), timed["day"].max()) if len(timed) else ("", ""),
            zero=0.0,
        ),
    )


def _values(days: pl.DataFrame, name: str) -> list[float]:
    return days[name].cast(pl.Float64).fill_null(math.nan).to_list()


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _number(value: float | None, digits: int = 4) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def prometheus_text(health: Health, name: str, now: float) -> str:
    """Return the figures in Prometheus' text format, as its node exporter takes them from a ``.prom`` file.

    Parameters
    ----------
    health : Health
    name : str
        The value of the label ``factor``.
    now : float
        The time, in seconds since 1970: alert on ``time() - pricepix_updated_seconds`` to see an evening that did not
        come.
    """
    escaped = re.sub(r'(["\\])', r"\\\1", name).replace("\n", r"\n")
    lines: list[str] = []
    for metric, about, values in _metrics(health, now):
        known = [(labels, value) for labels, value in values if value is not None]
        if not known:
            continue
        lines += [f"# HELP pricepix_{metric} {about}", f"# TYPE pricepix_{metric} gauge"]
        for labels, value in known:
            pairs = "".join(f',{key}="{text}"' for key, text in labels.items())
            lines.append(f'pricepix_{metric}{{factor="{escaped}"{pairs}}} {value:.10g}')
    return "\n".join(lines) + "\n"


def _metrics(
    health: Health, now: float
) -> Iterator[tuple[str, str, list[tuple[dict[str, str], float | None]]]]:
    f = health.figures
    yield "updated_seconds", "When the last update ended, since 1970.", [({}, now)]
    yield "alarms", "Limits that are passed.", [({}, float(len(health.alarms)))]
    if f["coverage"]:
        yield "coverage_ratio", "Share of the instruments with a score.", [({}, f["coverage"]["share"])]
        yield "score_drift", "Population stability index of the scores.", [({}, f["scores"]["drift"])]
        yield "rank_ic", "Mean rank IC.", [({"days": str(o["days"])}, o["mean"]) for o in f["ic"]]
        yield (
            "rank_ic_z",
            "Mean rank IC less that of its history, in standard deviations.",
            [({"days": str(o["days"])}, o["z"]) for o in f["ic"]],
        )
        yield (
            "turnover_ratio",
            "Turnover of the extreme tenths.",
            [({"tenth": side}, f["turnover"][side]["share"]) for side in ("low", "high")],
        )
    yield "ink_ratio", "Share of the pixels that are drawn.", [({}, f["images"]["ink"]["share"])]
    yield (
        "missing_ratio",
        "Share of the bars in the images without a price.",
        [({}, f["images"]["missing"]["share"])],
    )
    steps = f["steps"].items()
    yield "step_seconds", "Time of a step.", [({"step": name}, s["seconds"]) for name, s in steps]
    memory = [s["memory_mb"] * 1e6 for _, s in steps if s["memory_mb"] is not None]
    yield "memory_bytes", "Most memory of the process.", [({}, max(memory, default=None))]
