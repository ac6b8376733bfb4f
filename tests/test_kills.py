"""Whatever scores, trains or runs, under SIGKILL at its file operations, torn writes and full disks, for real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from drivers import drive, needs_fork, small_disk

DRIVER = "kill_driver.py"
KILLS = int(os.environ["PRICEPIX_KILLS"])
# What a kill and what follows it take, where that is more than one: these are killed less often for every push. A
# replication is killed once for every push in test_paper_replicate.py.
SECONDS = {"embed": 2, "update": 2, "replicate": 4}


@needs_fork
@pytest.mark.parametrize(
    "what",
    [
        "score",
        "score-append",
        "embed",
        "train",
        "run",
        "update",
        pytest.param("replicate", marks=pytest.mark.nightly),
    ],
)
def test_killed_at_any_operation_nothing_is_lost(what: str, tmp_path: Path) -> None:
    """PRICEPIX_KILLS says how often, drawn by PRICEPIX_KILL_SEED; a number above that of operations takes them all."""
    if "score" not in what:
        pytest.importorskip("lightning")
    if what == "replicate":
        pytest.importorskip("jinja2")
    kills = max(2, KILLS // SECONDS.get(what, 1))
    found = drive(DRIVER, what, tmp_path, "--kills", str(kills), "--seed", os.environ["PRICEPIX_KILL_SEED"])
    assert not found["failures"], found
    assert found["tried"] >= min(kills, found["operations"]) // 2


@needs_fork
def test_disk_full_while_scoring(tmp_path: Path) -> None:
    with small_disk(tmp_path, "8m"):
        told = drive(DRIVER, "full-disk-score", tmp_path)["told"]
    for message in told:
        assert "No space left on device: the scoring to cache" in message
        assert "the same call resumes from there" in message
