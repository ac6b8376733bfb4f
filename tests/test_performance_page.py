"""docs/performance.md holds what was measured, and the table of instructions notices a rise."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest

from pricepix import ImageSpec

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("these are sources without the benchmarks beside them", allow_module_level=True)


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return load("report")


@pytest.fixture(scope="module")
def instructions():
    return load("instructions")


def test_the_page_is_what_the_script_makes_of_the_results(report):
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_tables(page) == page, "run python benchmarks/report.py"
    runs = [json.loads(path.read_text()) for path in report.RESULTS.glob("*.json")]
    assert {run["machine"]["compiled_for"] == "haswell" for run in runs} == {True, False}
    for run in runs:
        assert len(run["table"]) > 20
        assert all(row["value"] > 0 for row in run["table"])


def test_another_number_makes_another_page(report, tmp_path, monkeypatch):
    page = report.PAGE.read_text(encoding="utf-8")
    for path in report.RESULTS.glob("*.json"):
        run = json.loads(path.read_text())
        run["table"][0]["value"] = 123.456
        (tmp_path / path.name).write_text(json.dumps(run))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    made = report.with_tables(page)
    assert made.count("123.46") == len(list(tmp_path.iterdir()))
    assert report.with_tables(made) == made


def test_a_page_without_its_marks_and_results_of_another_format_are_refused(report, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="lacks the lines"):
        report.with_tables("# Performance\n")
    (tmp_path / "x.json").write_text(json.dumps({"format": 2}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="results of format 2, this script reads format 1"):
        report.with_tables(report.BEGIN + report.END)


def test_every_preset_and_path_is_counted(instructions):
    found = json.loads(instructions.TABLE.read_text())["instructions_an_image"]
    assert set(found) == set(instructions.CPUS)
    for cases in found.values():
        assert set(cases) == {
            f"{preset} {path}"
            for preset in ImageSpec.presets()
            for path in ("images", "bits", "plain", "widen")
        }


@pytest.mark.parametrize(("change", "told"), [(1.02, 0), (1.05, 1), (0.9, 0)])
def test_a_rise_of_more_than_three_percent_is_told(instructions, change, told):
    kept = json.loads(instructions.TABLE.read_text())["instructions_an_image"]
    found = copy.deepcopy(kept)
    found["haswell"]["jkx20 images"] *= change
    lines = instructions.rises(found, kept)
    assert len(lines) == told
    assert all("jkx20 images on haswell" in line and "+5.0%" in line for line in lines)
    del found["haswell"]["jkx20 bits"]
    assert any("in one table only" in line for line in instructions.rises(found, kept))
