"""What every update measures of itself: against figures computed by hand, and the alarms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from test_update import Live, bars_of, changed, frozen, until

import pricepix as pp
from pricepix.cli import main
from pricepix.factor import open_cache, score
from pricepix.factor.monitoring import (
    Reference,
    compare_latest,
    factor_days,
    image_days,
    population_stability,
    reference_scores,
)
from pricepix.workflow.config import Health as Settings
from pricepix.workflow.health import Health, find_alarms
from pricepix.workflow.health_page import health_page, prometheus_text

__all__ = ["frozen"]


# --------------------------------------------------------------------------------------------- figures


def test_the_stability_index_is_that_of_the_book() -> None:
    # Shares .5 .3 .2 against .25 .25 .5: (-.25) ln(.5) + (-.05) ln(.25/.3) + .3 ln 2.5.
    by_hand = -0.25 * math.log(0.25 / 0.5) - 0.05 * math.log(0.25 / 0.3) + 0.3 * math.log(0.5 / 0.2)
    assert population_stability([50, 30, 20], [25, 25, 50]) == pytest.approx(by_hand)
    assert population_stability([50, 30, 20], [5, 3, 2]) == pytest.approx(0)
    # A bin without a value counts as half a value of its sample, which then has 10.5.
    p, q = np.array([50, 30, 20]) / 100, np.array([0.5, 6, 4]) / 10.5
    assert population_stability([50, 30, 20], [0, 6, 4]) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert np.isnan(population_stability([1, 1], [0, 0]))
    several = population_stability([50, 30, 20], [[25, 25, 50], [0, 0, 0]])
    assert several[0] == pytest.approx(by_hand)
    assert np.isnan(several[1])
    # What chance gives: (bins - 1) (1/n + 1/m).
    rng = np.random.default_rng(0)
    reference = Reference.of(rng.normal(size=20_000), "x")
    found = [
        population_stability(reference.counts, reference.in_bins(rng.normal(size=500))) for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / 20_000 + 1 / 500), rel=0.1)
    assert population_stability(reference.counts, reference.in_bins(rng.normal(1, 1, 500))) > 0.5


def test_a_reference_never_parts_equal_scores() -> None:
    reference = Reference.of([0.0] * 60 + [1.0] * 30 + [2.0] * 10, "x", bins=10)
    assert reference.edges.tolist() == [0.0, 1.0]
    assert reference.counts.tolist() == [60, 30, 10]
    assert reference.in_bins([-5, 0, 0.5, 1, 1.5, 9, np.nan]).tolist() == [2, 2, 2]
    assert Reference.of(np.arange(1000), "x").counts.tolist() == [100] * 10
    constant = Reference.of([3.0] * 5, "x")
    assert constant.counts.tolist() == [5]


def test_the_latest_days_are_held_against_those_before() -> None:
    series = [np.nan, 1, 2, 3, 4, 5, 6, 10, np.nan, 12]
    found = compare_latest(series, 2)
    # Latest 10 and 12; before 1 to 6, whose means of two are 1.5 to 5.5.
    assert (found.mean, found.history) == (11.0, 3.5)
    assert found.deviation == pytest.approx(np.std([1.5, 2.5, 3.5, 4.5, 5.5], ddof=1))
    assert found.z == pytest.approx((11 - 3.5) / np.std([1.5, 2.5, 3.5, 4.5, 5.5], ddof=1))
    assert compare_latest(series, 9).mean is None
    few = compare_latest([1, 2, 3, 4, 5], 2)
    assert few.history == 2.0
    assert few.z is None
    assert compare_latest([1.0] * 10, 2).z is None  # never varied


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pp.ImageStore, Any]:
    frame = bars_of(24, 60, seed=4, halt_rate=0.05)
    folder = tmp_path_factory.mktemp("scored")
    store = pp.render_universe(
        frame, "jkx5", folder / "s", horizons=(2,), layout="bits", chunk=64, progress=False
    )
    rng = np.random.default_rng(1)

    def model(images: np.ndarray) -> np.ndarray:
        # Of the image, and coarse, so that there are ties.
        return np.round(rng.permutation(len(images)) / len(images), 2)

    panel = pp.Panel.from_table(frame, progress=False)
    cache = score(store, model, folder / "f", model_id="x", panel=panel, progress=False)
    return frame, store, cache


def test_days_of_a_factor_equal_a_table_by_hand(scored: tuple[pl.DataFrame, pp.ImageStore, Any]) -> None:
    from scipy.stats import spearmanr

    _, store, cache = scored
    reference = reference_scores(cache)
    assert reference is not None
    assert not reference.settled
    found = factor_days(cache, store, 2, reference=reference)
    assert found["day"].to_list() == cache.days.tolist()
    table = cache.to_polars().join(
        store.index.select("instrument", "time", "ret_2"), on=["instrument", "time"], how="left"
    )
    by_day = {key[0].date(): part for key, part in table.group_by("time")}
    before: set[str] = set()
    for row in found.iter_rows(named=True):
        part = by_day.get(row["day"])
        if part is None:
            assert row["scores"] == 0
            assert row["ic"] is None
            continue
        assert row["scores"] == len(part)
        known = part.filter(pl.col("ret_2").is_not_nan())
        if len(known) < 3:
            assert row["ic"] is None
        else:
            assert row["ic"] == pytest.approx(spearmanr(known["factor"], known["ret_2"])[0])
        top = part.filter(pl.col("factor") > np.quantile(part["factor"], 0.9))
        names = set(top["instrument"])
        if before and names:
            assert row["turnover_high"] == pytest.approx(len(names - before) / len(names))
        before = names
    days = [day for day in found["day"] if day in by_day]
    last = pl.concat([by_day[day] for day in days[-20:]])["factor"]
    expected = population_stability(reference.counts, reference.in_bins(last.to_numpy()))
    assert found["drift"][-1] == pytest.approx(float(expected))
    # A part of the days is the end of all.
    assert factor_days(cache, store, 2, first=40, reference=reference).equals(found[40:])


def test_days_of_images_equal_those_read_one_by_one(scored: tuple[pl.DataFrame, pp.ImageStore, Any]) -> None:
    frame, store, _ = scored
    panel = pp.Panel.from_table(frame, progress=False)
    found = image_days(store, panel, last=3)
    assert len(found) == 3
    for row in found.iter_rows(named=True):
        time = int(np.datetime64(row["day"], "ns").astype(np.int64))
        own = np.flatnonzero(store.time == time)
        assert row["images"] == len(own)
        assert row["ink"] == pytest.approx((store.read(own) > 0).mean())
        shown = [panel.rows_of(str(store.instruments[code])) for code in store.instrument_index[own]]
        absent = []
        for rows in shown:
            end = int(np.searchsorted(panel.time[rows], time)) + rows.start
            absent.append(np.isnan(panel.bars[end - 4 : end + 1, 3]))
        assert row["missing"] == pytest.approx(np.mean(absent))
    assert found["missing"].max() > 0


def test_the_training_period_is_the_reference(scored: tuple[pl.DataFrame, pp.ImageStore, Any]) -> None:
    _, _, cache = scored
    days = [str(day) for day in cache.days]
    attrs = dict(cache.attrs["model"])
    cache.attrs["model"] = {**attrs, "metadata": {
        "train": {"first": days[5], "last": days[20]}, "validation": {"first": days[21], "last": days[34]},
    }}  # fmt: skip
    found = reference_scores(cache)
    assert found is not None
    assert found.name == f"training {days[5]} to {days[34]}"
    assert found.settled
    inside = cache.matrix(first=int(cache.time[5, 0]), last=int(cache.time[34, 0]))[1]
    assert found.counts.sum() == np.count_nonzero(~np.isnan(inside))
    cache.attrs["model"] = attrs


# --------------------------------------------------------------------------------------------- evenings


def read(live: Live) -> tuple[dict[str, Any], pl.DataFrame]:
    out = live.folder / "out"
    return json.loads((out / "health.json").read_text()), pl.read_parquet(out / "health_days.parquet")


def test_evenings_one_by_one_measure_what_one_measures_at_once(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(12, 80), Live(tmp_path / "a", frozen, corrected="accept")
    for day in (60, 61, 62, 63):
        live.evening(until(frame, day))
    wrong = changed(until(frame, 64), "S0003", 40, "high", 1.25)
    live.evening(wrong)
    once = Live(tmp_path / "b", frozen)
    once.evening(wrong)
    (a, by_evening), (b, at_once) = read(live), read(once)
    same = [name for name in by_evening.columns if name not in ("seconds", "memory_mb")]
    assert by_evening.select(same).equals(at_once.select(same))
    for name in ("coverage", "scores", "ic", "turnover", "images"):
        assert a[name] == b[name]
    assert by_evening["seconds"].null_count() == len(by_evening) - 5
    assert a["version"] == 1
    assert a["steps"].keys() == {"read", "check", "images", "scores", "export"}
    assert a["coverage"]["share"] == 1.0
    meta = pl.read_parquet_metadata(tmp_path / "a" / "out" / "health_days.parquet")
    assert meta["pricepix_health_version"] == "1"
    saved = json.loads((tmp_path / "a" / "out" / "update.json").read_text())
    assert saved["version"] == 1


def test_alarms_reach_the_note_the_exit_code_and_the_next_run(frozen: Path, tmp_path: Path) -> None:
    import yaml

    frame = bars_of(10)
    prom = tmp_path / "pricepix.prom"
    live = Live(tmp_path, frozen, partial="note", health={"min_coverage": 0.95, "prometheus": str(prom)})
    live.feed(until(frame, 20))
    config = tmp_path / "live.yaml"
    config.write_text(yaml.safe_dump(live.values))
    call: Callable[..., Any] = CliRunner().invoke
    now = f"{frame['time'].max():%Y-%m-%d} 20:00"
    assert call(main, ["update", str(config), "--now", now]).exit_code == 0
    # A new listing has a bar and no image yet.
    day = until(frame, 21)
    listed = day.filter((pl.col("instrument") == "S0001") & (pl.col("time") == day["time"].max()))
    live.feed(pl.concat([day, listed.with_columns(pl.lit("S0099").alias("instrument"))]))
    for _ in range(2):
        # Again: nothing new, and the same exit code.
        done = call(main, ["update", str(config), "--now", now])
        assert done.exit_code == 8, done.output
        assert (
            "ALARM     10 of 11 instruments have a score: the share is 0.9091, below min_coverage=0.95"
            in done.output
        )
    assert "nothing new" in done.output
    found = json.loads(call(main, ["--json", "update", str(config), "--now", now]).stdout)
    assert len(found["alarms"]) == 1
    # A limit that was too narrow is widened: the same evening is within it.
    live.values["update"]["health"]["min_coverage"] = 0.9
    config.write_text(yaml.safe_dump(live.values))
    assert call(main, ["update", str(config), "--now", now]).exit_code == 0
    lines = prom.read_text().splitlines()
    name = str(tmp_path / "out")
    assert f'pricepix_coverage_ratio{{factor="{name}"}} 0.9090909091' in lines
    assert f'pricepix_alarms{{factor="{name}"}} 1' in lines
    assert sum(line.startswith("# TYPE pricepix_step_seconds gauge") for line in lines) == 1
    assert any(line.startswith(f'pricepix_step_seconds{{factor="{name}",step="read"}} ') for line in lines)
    assert not list(tmp_path.glob("*.tmp"))
    # The page needs nothing else.
    page = (tmp_path / "out" / "health.html").read_text()
    assert "below min_coverage" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def figures_of(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "coverage": {"instruments": 10, "scores": 8, "share": 0.8, "usual": 1.0}, "scores": {"drift": 0.3},
        "ic": [{"horizon": 5, "days": 20, "mean": -0.02, "history": 0.03, "deviation": 0.01, "z": -5.0}],
        "turnover": {"low": {"share": 0.9, "usual": 0.2}, "high": {"share": 0.1, "usual": 0.2}},
        "images": {"count": 8, "ink": {"share": 0.06, "usual": 0.1}, "missing": {"share": 0.2, "usual": 0.0}},
        "steps": {"read": {"seconds": 3.0, "memory_mb": 400.0}, "scores": {"seconds": 2.0, "memory_mb": None}},
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    ("limit", "value", "passed", "text"),
    [
        (
            "min_coverage",
            0.9,
            0.7,
            "8 of 10 instruments have a score: the share is 0.8, below min_coverage=0.9",
        ),
        ("max_drift", 0.25, 0.5, "last 20 days is 0.3, above max_drift=0.25"),
        ("min_ic_z", -3, -6, "last 20 days is -0.0200, its distance from its history of 0.0300 in standard"),
        ("max_turnover", 0.8, 0.95, "the turnover of the lowest tenth is 0.9, above max_turnover=0.8"),
        ("max_ink_change", 0.3, 0.5, "drawn, usually 0.1000: the change is 0.4, above max_ink_change=0.3"),
        ("max_missing", 0.1, 0.3, "without a price is 0.2, above max_missing=0.1"),
        ("max_seconds", 4, 6, "the seconds of the update are 5, above max_seconds=4"),
        ("max_memory_mb", 300, 500, "the memory of the update in MB is 400, above max_memory_mb=300"),
    ],
)
def test_each_limit(limit: str, value: float, passed: float, text: str) -> None:
    (alarm,) = find_alarms(figures_of(), Settings(**{limit: value}))
    assert text in alarm
    assert find_alarms(figures_of(), Settings(**{limit: passed})) == []
    assert find_alarms(figures_of(), Settings()) == []


def test_what_was_not_measured_is_no_alarm_and_names_are_escaped() -> None:
    limits = Settings(
        min_coverage=1, max_drift=0.1, min_ic_z=0, max_turnover=0, max_ink_change=0.1, max_missing=0
    )
    empty = {"share": None, "usual": None}
    none = figures_of(
        coverage=None, scores={"drift": None}, ic=[], turnover=None,
        images={"count": None, "ink": empty, "missing": empty}, steps={},
    )  # fmt: skip
    assert find_alarms(none, limits) == []
    head = {
        "version": 1,
        "pricepix": pp.__version__,
        "bars_through": "2024-03-08",
        "model": None,
        "limits": {},
    }
    days = pl.DataFrame(
        {"day": [], "instruments": [], "scores": [], "images": [], "ink": [], "missing": [], "drift": [], "ic": [],
         "turnover_low": [], "turnover_high": [], "seconds": []},
        schema_overrides={"day": pl.Date},
    )  # fmt: skip
    health = Health(head | none, days, ["<b>1</b> is above x=0"])
    page = health_page(health, '<script>"x"')
    assert "<script" not in page
    assert "<b>1</b> is" not in page
    assert '{factor="a\\\\b\\"c"} 1' in prometheus_text(health, 'a\\b"c', 1.0)


def test_an_evening_without_scores_is_measured(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(6), Live(tmp_path, frozen)
    for name in ("train", "score"):
        del live.values[name]
    live.values["update"] = {}
    live.evening(until(frame, 20))
    live.evening(until(frame, 21))
    found, days = read(live)
    assert found["coverage"] is None
    assert found["images"]["count"] == 6
    assert days["images"].tail(2).to_list() == [6, 6]
    assert not live.folder.joinpath("out", "factor.zarr").exists()
    with pytest.raises(FileNotFoundError):
        open_cache(live.folder / "out" / "factor.zarr")
