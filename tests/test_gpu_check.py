"""The check of a GPU, rehearsed on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_every_part_runs_in_a_rehearsal(tmp_path: Path) -> None:
    done = run("--rehearse", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["format"], found["version"], found["rehearsal"]) == ("pricepix-gpu-check", 1, True)
    parts = found["parts"]
    assert list(parts) == ["pixels", "fill", "train", "score"]
    assert parts["pixels"] | {"seconds": 0} == {
        "windows": 9, "different": {"jkx20": 0, "jkx60": 0, "it49": 0}, "ok": True, "seconds": 0,
    }  # fmt: skip
    assert set(parts["fill"]) > {"64x60 uint8", "96x180 uint8", "147x147 uint8", "64x60 bfloat16"}
    for name in ("panel images", "store"):
        assert parts["train"][name]["images_per_second"] > 0
    assert parts["score"]["bfloat16"]["images_per_second"] > 0
    assert "fill: 64x60 uint8" in done.stdout
    assert "at least 0.97" in done.stdout


def test_a_machine_without_a_gpu_and_a_folder_without_wheels_are_told(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "x.json"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "sees no GPU; --rehearse runs the parts on a CPU" in done.stderr
    done = run("--wheels", str(tmp_path))
    assert "holds no wheels: make gpu-wheels collects them" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_wheels_are_those_of_what_is_needed_without_torch() -> None:
    """What torch alone needs is left out, what others need as well stays."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from gpu_wheels import needed
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))

    def item(name: str, *requires: str) -> dict[str, object]:
        return {"metadata": {"name": name, "version": "1.0", "requires_dist": list(requires)}}

    report = {"install": [
        item("pricepix", "numpy>=2", "torch>=2.5; extra == 'train'", "Lightning>=2; extra == 'train'"),
        item("torch", "nvidia-cudnn-cu13==9", "numpy", "sympy"),
        item("lightning", "torch", "typing_extensions", "lightning[extra]"),
        item("numpy"), item("nvidia-cudnn-cu13"), item("sympy"), item("typing-extensions"),
    ]}  # fmt: skip
    assert needed(report) == {"numpy": "1.0", "lightning": "1.0", "typing-extensions": "1.0"}
