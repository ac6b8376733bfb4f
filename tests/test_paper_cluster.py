"""The replication on a cluster of processes: a worker that dies, workers that cannot take part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import local_client
from waiting import free_port, wait_until

distributed = pytest.importorskip(
    "distributed", reason="needs dask.distributed: pip install 'pricepix[distributed]'"
)
torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("jinja2")

from paper_driver import TRAINING, replicate, small_panel  # noqa: E402

import pricepix as pp  # noqa: E402
from pricepix.paper import workers  # noqa: E402

# Processes that are killed leave sockets and semaphores to the garbage collector, which says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SLOW = replace(TRAINING, hyper=replace(TRAINING.settings, epochs=6, validations=4))
"""So many validations, with a checkpoint each, that a kill finds a network in the middle."""


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return small_panel()


def weights(out: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(out)): torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(out.rglob("best.ckpt"))
    }


def test_a_worker_dies_and_another_one_goes_on(panel: pp.Panel, tmp_path: Path) -> None:
    """From the last checkpoint, to the same weights as in order on one machine."""
    grid: dict[str, Any] = {
        "panel": panel,
        "splits": "time",
        "controls": (),
        "tables": ["I"],
        "training": SLOW,
    }
    expected = replicate(tmp_path / "local", **grid)
    out = tmp_path / "cluster"
    before: dict[Path, tuple[bytes, int]] = {}
    with local_client(2, processes=True, silence_logs=50) as client:
        pids = client.run(os.getpid)
        assert len(set(pids.values())) == 2

        def kill() -> None:
            # A row of measured speeds stands in the journal for each validation: no second attempt writes it alike.
            def halfway() -> list[Path]:
                found = [p for p in out.rglob("metrics.csv") if p.read_bytes().count(b"\n") >= 4]
                return [p for p in found if not (p.parents[2] / "done.json").exists()]

            wait_until(lambda: bool(halfway()), 120)
            (path, *_) = halfway()
            task = str(path.parents[2].relative_to(out))
            (address,) = (
                worker for worker, keys in client.processing().items() if any(task in k for k in keys)
            )
            os.kill(pids[address], signal.SIGKILL)
            checkpoint = torch.load(path.parent / "last.ckpt", weights_only=True)
            before[path] = path.read_bytes(), checkpoint["global_step"]

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = replicate(out, client=client, **grid)
        killer.join(5)
    ((journal, (rows, step)),) = before.items()
    kept = [row for row in rows.splitlines()[1:-1] if int(row.partition(b",")[0]) <= step]
    assert kept
    assert journal.read_bytes().splitlines()[1 : 1 + len(kept)] == kept
    assert len(list(journal.parent.glob("tensorboard/*"))) >= 2
    assert found.page.read_bytes() == expected.page.read_bytes()
    ours, theirs = weights(expected.folder), weights(out)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    for name, state in ours.items():
        assert all(torch.equal(values, theirs[name][key]) for key, values in state.items()), name


@contextmanager
def worker_of(start: str) -> Iterator[Any]:
    """A client of a scheduler whose one worker runs some Python before it starts."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"tcp://127.0.0.1:{(port := free_port())}"
    scheduler = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    options = ["worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    begin = f"import sys; {start}; sys.argv = {options!r}"
    worker = [sys.executable, "-c", f"{begin}; from distributed.cli.dask_worker import main; main()"]
    running = [subprocess.Popen([*scheduler, "--no-dashboard"], **quiet)]  # type: ignore[call-overload]
    try:
        running.append(subprocess.Popen(worker, **quiet))  # type: ignore[call-overload]
        with distributed.Client(address, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            yield client
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def test_workers_without_the_package_or_the_folder_are_named(
    panel: pp.Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: dict[str, Any] = {"panel": panel, "splits": "time", "controls": (), "tables": ["I"], "seeds": 1}
    with (
        worker_of("sys.modules['pricepix'] = None") as client,
        pytest.raises(ConnectionError, match=r"worker tcp://.* has no pricepix: install pricepix\[train\]"),
    ):
        replicate(tmp_path / "a", client=client, **grid)
    with worker_of("import pricepix") as client:
        # Nothing is written: what the worker sees is what one sees that has no such folder.
        monkeypatch.setattr(workers, "save_bars", lambda folder, panel: None)
        with pytest.raises(
            ConnectionError, match=r"worker tcp://.* cannot take part: .*must be the same on every machine"
        ):
            replicate(tmp_path / "b", client=client, **grid)
        monkeypatch.undo()
        # The same call goes on once it does.
        found = replicate(tmp_path / "b", client=client, **grid)
    assert found.page.exists()
