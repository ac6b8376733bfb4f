"""Compiling everything once: what a later process compiles, and what a second warm-up says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pricepix as pp
from pricepix.workflow import warm_up as module

# What a first session does: bars in, a store, its contact sheet and batches, later bars, a check.
SESSION = """
import json, sys
import polars as pl
import pricepix as pp
from pricepix.workflow.warm_up import kernel_counts

folder = sys.argv[1]
table = pp.samples.simulate(5, 300, seed=5)
earlier = table.filter(pl.col("time") < table["time"].unique().sort()[290])
for preset, layout in (("jkx5", "uint8"), ("jkx20", "bits"), ("cnnft20", "uint8"), ("jkx60", "bits")):
    store = pp.render_universe(earlier, preset, f"{folder}/{preset}", (5,), layout=layout, progress=False)
    for images, _ in store.batches(batch_size=64, shuffle=True, seed=1): pass
    store = pp.append(f"{folder}/{preset}", pp.Panel.from_table(table, progress=False), progress=False)
    assert store.verify(table, progress=False).ok
    for images, _ in pp.PanelImages(table, preset, (5,)).batches(batch_size=64): pass
from pricepix.images.live import LiveImages
live = LiveImages.from_panel("jkx20", pp.Panel.from_table(table, progress=False), limits=False)
images = live.push("2040-01-02", [[1.0, 3.0, 1.0, 2.0, 5.0]] * len(live)).images
print(json.dumps(kernel_counts()))
"""


def count_of_session(folder: Path) -> dict[str, int]:
    """Kernels that a process compiles and loads which does what a first session does."""
    environment = {**os.environ, "PYTHONPATH": str(Path(pp.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SESSION, str(folder)],
        env=environment, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
def test_a_later_process_compiles_nothing(tmp_path: Path) -> None:
    """In the cache that the tests use, which may hold everything already."""
    lines: list[str] = []
    first = pp.warm_up(echo=lines.append)
    assert first.cache is not None
    assert first.cache.is_dir()
    if first.compiled:
        assert len(lines) == len(first.steps) >= 8
        assert any("jkx60, it49" in line for line in lines)
    assert sum(step.compiled for step in first.steps) == first.compiled
    again = pp.warm_up()
    assert again.compiled == 0
    assert str(again).startswith(f"all kernels are compiled already, in {first.cache}")
    counts = count_of_session(tmp_path)
    assert counts["compiled"] == 0
    assert counts["loaded"] > 25


@pytest.mark.nightly
def test_an_empty_cache_is_filled_by_steps_that_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_steps", lambda *_: {"column bits": ()})
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: pp.warm_up([], workers=1), range(2)))
    # One that finds what it wrote gone, since the other wrote to the same index, compiles it once more.
    assert max(found.compiled for found in both) >= 2
    assert {found.cache for found in both} == {tmp_path / "cache"}
    assert list((tmp_path / "cache").rglob("*.nbc"))
    assert "kernels in " in str(max(both, key=lambda found: found.compiled))
    assert pp.warm_up([]).compiled == 0


def test_what_a_race_lost_is_compiled_by_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes go on until one compiles nothing."""
    left = {"look-up": [1, 0], "bars": [3], "check": [2, 0, 0]}
    asked: list[str] = []

    def step(name: str, scenarios: list[str]) -> module.WarmUpStep:
        asked.append(name)
        return module.WarmUpStep(name, left[name].pop(0), 0, 0.0)

    monkeypatch.setattr(module, "_run_step", step)
    monkeypatch.setattr(module, "_steps", lambda *_: {"bars": ()})
    found = pp.warm_up([])
    assert asked == ["look-up", "bars", "check", "check"]
    assert found.compiled == 5
    assert pp.warm_up([]).compiled == 0
    assert asked[4:] == ["look-up"]


def test_presets_share_what_is_compiled_for_them() -> None:
    families = module._families(pp.ImageSpec.presets())
    assert "jkx5, jkx20, it9" in families
    assert set(", ".join(families).split(", ")) == set(pp.ImageSpec.presets())
    assert list(module._steps(["jkx60"])) == [
        "bars", "plain renderer", "renderer of jkx60", "rebuilt prices", "column bits", "batches of jkx60",
        "live images", "stores", "market caches", "factors",
    ]  # fmt: skip
    some = module._steps(["jkx60", "jkx5"], ["stores", "bars"])
    assert some == {
        "bars": (),
        "renderer of jkx60": ("bars",),
        "renderer of jkx5": ("bars",),
        "stores": ("bars", "renderer of jkx60"),
    }


def test_without_a_compiler_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", 1)
    found = pp.warm_up()
    assert (found.cache, found.steps) == (None, ())
    assert "NUMBA_DISABLE_JIT" in str(found)


@pytest.mark.parametrize(
    ("presets", "workers", "message"),
    [
        (["jkx2o"], None, "did you mean 'jkx20'"),
        ("jkx20", 0, r"workers=0: give a whole number of at least 1"),
    ],
)
def test_arguments_are_checked_first(presets, workers, message) -> None:
    with pytest.raises(ValueError, match=message):
        pp.warm_up(presets, workers=workers)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"compiling the kernels of no such step failed:\n(.|\n)*KeyError"):
        module._run_step("no such step", ["no such step"])
