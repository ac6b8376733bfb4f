"""Every benchmark runs, once and on little: one that no longer runs is found here, not when it is needed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_benchmarks_run():
    pytest.importorskip("pytest_benchmark")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "-q",
        "--benchmark-disable",
        "-p",
        "no:cacheprovider",
    ]
    out = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PRICEPIX_BENCH": "tiny"},
    )
    assert out.returncode == 0, out.stdout + out.stderr
    skipped = [line for line in out.stdout.splitlines() if line.startswith("SKIPPED")]
    expected = ["torch sees no GPU"]
    if importlib.util.find_spec("torch") is None:
        expected.append("could not import 'torch'")
    assert all(any(reason in line for reason in expected) for line in skipped), skipped
