"""Scoring, training and pipelines under SIGKILL at their file operations, torn writes and full disks, for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
KILLS = os.environ["PRICEPIX_KILLS"]


def drive(what: str, folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), what, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children: needs os.fork")


@needs_fork
@pytest.mark.parametrize("what", ["score", "score-append", "train", "run"])
def test_killed_at_any_operation_nothing_is_lost(what: str, tmp_path: Path) -> None:
    """PRICEPIX_KILLS says how often, drawn by PRICEPIX_KILL_SEED; a number above that of operations takes them all."""
    if what in ("train", "run"):
        pytest.importorskip("lightning")
    found = drive(what, tmp_path, "--kills", KILLS, "--seed", os.environ["PRICEPIX_KILL_SEED"])
    assert not found["failures"], found
    assert found["tried"] >= min(int(KILLS), found["operations"]) // 2


@needs_fork
def test_disk_full_while_scoring(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        told = drive("full-disk-score", tmp_path)["told"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    for message in told:
        assert "No space left on device: the scoring to cache" in message
        assert "the same call resumes from there" in message
