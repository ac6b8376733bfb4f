"""Every benchmark runs, once and on little: one that no longer runs is found here, not when it is needed."""

from __future__ import annotations

import os
import re
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
    assert int(re.search(r"(\d+) passed", out.stdout)[1]) >= 60
    skipped = [line for line in out.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("torch sees no GPU" in line for line in skipped), skipped
