"""Builds on a dask cluster of processes: the same bytes, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import local_client
from waiting import free_port, wait_until

import pricepix as pp

distributed = pytest.importorskip(
    "distributed", reason="needs dask.distributed: pip install 'pricepix[distributed]'"
)

# Processes that are killed leave sockets and semaphores to the garbage collector, which says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
OPTIONS: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 32, "progress": False}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(20, 250, seed=5), adjust="multiply", progress=False)


@pytest.fixture(scope="module")
def local(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local") / "s"
    pp.render_universe(panel, "jkx5", folder, **OPTIONS)
    return tree(folder)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with local_client(2, processes=True, silence_logs=50) as connected:
        yield connected


def test_same_bytes_and_a_worker_killed(
    client: Any, panel: pp.Panel, local: dict[str, bytes], tmp_path: Path
) -> None:
    pp.render_universe(panel, "jkx5", tmp_path / "s", client=client, **OPTIONS)
    assert tree(tmp_path / "s") == local
    target = tmp_path / "killed"
    victim = next(iter(client.run(os.getpid).values()))
    killed = threading.Event()

    def kill() -> None:
        done = target / "_build/done"
        wait_until(lambda: done.exists() and len(list(done.iterdir())) >= 2)
        os.kill(victim, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    pp.render_universe(panel, "jkx5", target, client=client, **OPTIONS)
    killer.join(5)
    assert killed.is_set()
    assert tree(target) == local


def test_a_task_that_keeps_failing_leaves_a_store_that_goes_on(
    client: Any, panel: pp.Panel, local: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "s"
    (target / "images" / "c").mkdir(parents=True)
    (target / "_build").mkdir()
    (target / "_build" / "x").write_bytes(b"")

    def spoil() -> None:
        # A file stands where a chunk's folder must go: this partition can not be written by anyone.
        wait_until((target / "_build/plan.json").exists)
        (target / "images/c").mkdir(parents=True, exist_ok=True)
        (target / "images/c/7").write_bytes(b"")

    spoiler = threading.Thread(target=spoil, daemon=True)
    spoiler.start()
    with pytest.raises(OSError, match="mode='resume'"):
        pp.render_universe(panel, "jkx5", target, client=client, mode="overwrite", **OPTIONS)
    spoiler.join(5)
    with pytest.raises(ValueError, match="not finished"):
        pp.open_store(target)
    (target / "images/c/7").unlink()
    pp.render_universe(panel, "jkx5", target, client=client, mode="resume", **OPTIONS)
    assert tree(target) == local


def test_scheduler_lost(panel: pp.Panel, local: dict[str, bytes], tmp_path: Path) -> None:
    """The scheduler dies in the midst of a build; a new one takes the same store to its end."""
    target = tmp_path / "s"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def start(port: int) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
             "--port", str(port),
             "--no-dashboard"], **quiet,
        )  # fmt: skip
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}",
             "--nthreads", "1",
             "--no-dashboard", "--death-timeout", "30", "--local-directory", str(tmp_path)], **quiet,
        )  # fmt: skip
        return scheduler, worker

    port = free_port()
    scheduler, worker = start(port)
    try:
        client = distributed.Client(f"tcp://127.0.0.1:{port}", timeout=60)
        client.wait_for_workers(1, timeout=60)

        def kill() -> None:
            done = target / "_build/done"
            wait_until(lambda: done.exists() and len(list(done.iterdir())) >= 3)
            scheduler.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with pytest.raises(OSError, match="scheduler was stopped or restarted"):
            pp.render_universe(panel, "jkx5", target, client=client, **OPTIONS)
        killer.join(5)
        client.close(timeout=1)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()
    with pytest.raises(ValueError, match="not finished"):
        pp.open_store(target)
    pp.render_universe(panel, "jkx5", target, mode="resume", **OPTIONS)
    assert tree(target) == local


def test_stores_that_workers_can_not_reach(client: Any, panel: pp.Panel) -> None:
    with pytest.raises(ValueError, match="workers of a cluster cannot reach memory://"):
        pp.render_universe(panel, "jkx5", "memory://unreachable", client=client, **OPTIONS)
    with pytest.raises(ValueError, match="client= is for stores that are written"):
        pp.render_universe(panel, "jkx5", None, client=client, **OPTIONS)
