"""Stores under SIGKILL, full disks, lost permissions, Ctrl-C and two builders: done for real."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drivers import drive, needs_fork, small_disk

import pricepix as pp

DRIVER = "scale_driver.py"
KILLS = int(os.environ["PRICEPIX_KILLS"])


@needs_fork
@pytest.mark.parametrize("what", ["build", "finalise", "append", "rebuild"])
def test_killed_at_any_write_nothing_is_between(what: str, tmp_path: Path) -> None:
    """PRICEPIX_KILLS says how often; the driver compares every byte with an undisturbed store."""
    found = drive(DRIVER, what, tmp_path, "--kills", str(KILLS), "--seed", os.environ["PRICEPIX_KILL_SEED"])
    assert found["kills"] == KILLS
    if what == "finalise":
        assert found["finished"] >= 1
        assert found["most chunks lost"] == 0


@needs_fork
def test_disk_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, "4m"):
        told = drive(DRIVER, "full-disk", tmp_path)["told"]
    assert "No space left" in told
    assert "partitions done" in told


@needs_fork
def test_permission_lost_midway(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp") or not os.access(folder, os.W_OK):
            break
        folder.chmod(folder.stat().st_mode | 0o711)
    assert "Permission denied" in drive(DRIVER, "permission", tmp_path)["told"]


def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    found = drive(DRIVER, "interrupt", tmp_path)
    assert found["chunks drawn after"] > 0


SLOW_BUILD = """
import sys, time
import pricepix as pp
from pricepix.build.chunk_writer import ChunkWriter
original = ChunkWriter.write_images
def images(self, first, last):
    print("drawing", flush=True)
    time.sleep(float(sys.argv[2]))
    return original(self, first, last)
ChunkWriter.write_images = images
panel = pp.Panel.from_table(pp.samples.simulate(12, 160, seed=5), adjust="multiply", progress=False)
pp.render_universe(
    panel, "jkx5", sys.argv[1], horizons=(1, 5), layout="bits", chunk=32, workers=1, progress=False
)
"""


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(12, 160, seed=5), adjust="multiply", progress=False)


def test_two_builders_a_reader_and_a_dead_one(panel: pp.Panel, tmp_path: Path) -> None:
    """While one process builds, another may not write and sees no store; when it is killed, its lock dies."""
    target = tmp_path / "store"
    options: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 32, "progress": False}
    builder = subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(target), "60"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert builder.stdout is not None
        assert builder.stdout.readline().strip() == "drawing"
        for mode in ("resume", "overwrite"):
            with pytest.raises(BlockingIOError, match=rf"is being written by process {builder.pid} on "):
                pp.render_universe(panel, "jkx5", target, mode=mode, **options)
        with pytest.raises(FileExistsError, match="unfinished build: mode='resume'"):
            pp.render_universe(panel, "jkx5", target, **options)
        with pytest.raises(ValueError, match="is not finished"):
            pp.open_store(target)
        with pytest.raises(ValueError, match="is not finished"):
            pp.append(target, panel)
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert builder.stdout is not None
        builder.stdout.close()
    store = pp.render_universe(panel, "jkx5", target, mode="resume", **options)
    assert store.verify(panel).ok
    assert not (target / "_build").exists()


def test_killed_by_the_clock(panel: pp.Panel, tmp_path: Path) -> None:
    """SIGKILL from outside, at a moment nobody chose."""
    target = tmp_path / "store"
    builder = subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(target), "0.05"], stdout=subprocess.PIPE, text=True
    )
    assert builder.stdout is not None
    builder.stdout.readline()
    # Three more partitions are begun at most before the moment comes.
    for _ in range(random.Random(int(os.environ["PRICEPIX_KILL_SEED"])).randrange(4)):
        builder.stdout.readline()
    builder.kill()
    builder.wait()
    builder.stdout.close()
    options: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 32, "progress": False}
    store = pp.render_universe(panel, "jkx5", target, mode="resume", **options)
    assert store.verify(panel).ok
