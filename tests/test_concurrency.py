"""Drawing, building, scoring at once, by threads, every start method, dask in dask, loaders: equal bytes, no deadlock.

Each case runs in a process of its own, under a timeout: see concurrency_driver.py. Drawing alone, in more mixtures, is
in test_render_threads.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

nightly = pytest.mark.nightly
METHODS = ["fork", "spawn", "forkserver"] if hasattr(os, "fork") else ["spawn"]
# What starts Python anew takes seconds each time; readers are tried under spawn for every push, in test_reader.py.
OFTEN = [pytest.param(name, marks=() if name == "fork" else nightly) for name in METHODS]
# Python 3.12 warns of every fork of a process with threads, and counts those of polars, of allocators and of BLAS. Ours
# have ended by then.
FORK_WARNS = sys.version_info >= (3, 12)


def run(what: str, how: str, count: int, method: str = "") -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4", "PYTHONWARNINGS": "default"}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "faulthandler",
                str(Path(__file__).with_name("concurrency_driver.py")),
                what,
                how,
                str(count),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"no end after {hung.timeout} s:\n{hung.stdout!r}\n{hung.stderr!r}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"], "other bytes than one thread makes"
    assert found["left"] == [], "threads of ours that outlive their calls"
    if not (FORK_WARNS and method == "fork"):
        assert "Warning" not in done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize("count", [4, pytest.param(24, marks=nightly)])
def test_threads(count: int) -> None:
    run("threads", "-", count)


@pytest.mark.parametrize("method", OFTEN)
@pytest.mark.parametrize("count", [2, pytest.param(12, marks=nightly)])
def test_processes(method: str, count: int) -> None:
    """The parent has drawn, built and scored before, and does so again while its children live."""
    run("processes", method, count, method)


@pytest.mark.parametrize("outer", ["threads", pytest.param("processes", marks=nightly)])
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=nightly)])
def test_dask_tasks_within_dask_tasks(outer: str, count: int) -> None:
    pytest.importorskip("dask")
    run("dask", outer, count)


# A few of them run for every push in test_train_dataset.py, test_panel_images.py and test_train_torch.py.
@nightly
@pytest.mark.parametrize("method", METHODS)
def test_the_workers_of_a_loader(method: str) -> None:
    pytest.importorskip("torch")
    run("loader", method, 2, method)
