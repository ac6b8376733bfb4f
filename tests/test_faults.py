"""Disks that are full, broken or read-only, limits, other processes, Ctrl-C: for real, on all that writes or reads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zarr
from drivers import drive, needs_fork, small_disk

from pricepix.location import ZarrObjects
from pricepix.store import lock as locks
from pricepix.store.lock import KEY, WriteLock

KILLS = int(os.environ["PRICEPIX_KILLS"])
WORKS = ["build", "append", "score", "score append", "train"]


# ------------------------------------------------------------------------------------------- disks and limits


@pytest.mark.nightly
@needs_fork
@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_disks_that_take_nothing(fault: str, tmp_path: Path) -> None:
    """Every writer says so once, and names the file; when the disk takes again, all ends in the same bytes."""
    pytest.importorskip("lightning")
    with small_disk(tmp_path, "24m"):
        found = drive("fault_driver.py", fault, str(tmp_path))
    assert list(found["told"]) == WORKS
    reason = {"read-only": r"Read-only file system|is not writable", "full": "No space left on device"}[fault]
    for told in found["told"].values():
        assert re.search(reason, told)
        assert str(tmp_path) in told
    assert found["wrong"] == []


@pytest.mark.nightly
@needs_fork
def test_24_file_descriptors_are_enough(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    assert drive("fault_driver.py", "descriptors", str(tmp_path)) == {"done": WORKS, "wrong": []}


@pytest.mark.nightly
@needs_fork
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc/self/mem is what gives EIO here")
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    found = drive("fault_driver.py", "broken", str(tmp_path))
    for name, told in found["told"].items():
        assert "Input/output error" in told
        assert name in told


@pytest.mark.nightly
@needs_fork
def test_permission_lost_in_the_middle_of_anything(tmp_path: Path) -> None:
    """Each writer says which file it may not write; allowed again, all ends in the same bytes."""
    pytest.importorskip("lightning")
    # Another user must be able to come here.
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp") or not os.access(folder, os.W_OK):
            break
        folder.chmod(folder.stat().st_mode | 0o711)
    found = drive("fault_driver.py", "permission", tmp_path)
    assert list(found["told"]) == WORKS
    assert all("Permission denied" in told or "is not writable" in told for told in found["told"].values())
    assert found["wrong"] == []


@pytest.mark.nightly
@needs_fork
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="/proc/self/statm tells the memory of a process"
)
def test_hardly_any_memory(tmp_path: Path) -> None:
    """``ulimit -v``: the work is done, or an error says that it is not, and all ends in the same bytes."""
    pytest.importorskip("lightning")
    found = drive("fault_driver.py", "memory", tmp_path)
    assert list(found["told"]) == WORKS
    assert all(said[-1] == "done" for said in found["told"].values()), found["told"]
    assert found["wrong"] == []


# --------------------------------------------------------------------------------------------- two processes


@pytest.mark.nightly
@needs_fork
def test_two_appenders_a_reader_and_a_training(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    found = drive("fault_driver.py", "appenders", str(tmp_path))
    assert "BlockingIOError" in found["told"]
    assert "is being written by process" in found["told"]
    assert found["wrong"] == []


@needs_fork
def test_two_scorers_and_a_reader(tmp_path: Path) -> None:
    found = drive("fault_driver.py", "scored-twice", str(tmp_path))
    assert "BlockingIOError" in found["told"]
    assert "is being written by process" in found["told"]


def leased(folder: Path) -> ZarrObjects:
    """The same files as a location without locks of the system, as buckets are."""
    return ZarrObjects(zarr.storage.LocalStore(folder), str(folder))


def ticket(**changes: Any) -> bytes:
    known = {
        "pid": 1,
        "host": "elsewhere",
        "since": "2020-01-01 00:00:00",
        "token": "x",
        "expires": time.time() + 60,
    }
    return json.dumps(known | changes).encode()


def test_a_lease_of_another_host_holds_until_it_expires(tmp_path: Path) -> None:
    place = leased(tmp_path)
    place.put(KEY, ticket())
    with pytest.raises(BlockingIOError, match="is being written by process 1 on elsewhere"), WriteLock(place):
        pass
    place.put(KEY, ticket(expires=time.time() - 1))
    with WriteLock(place) as lock:
        lock.check()
    assert place.get(KEY) is None


@pytest.mark.parametrize(
    "expires", [time.time() + 1e6, "tomorrow", None, float("nan")], ids=["days", "text", "none", "nan"]
)
def test_a_lease_that_ends_in_days_is_of_a_clock_that_was_wrong(tmp_path: Path, expires: Any) -> None:
    """A clock that is set back must not lock a store for as long as it was wrong."""
    place = leased(tmp_path)
    place.put(KEY, ticket(expires=expires))
    with WriteLock(place):
        pass


def test_a_lease_of_a_dead_process_of_this_host(tmp_path: Path) -> None:
    import socket

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place = leased(tmp_path)
    place.put(KEY, ticket(pid=dead.pid, host=socket.gethostname()))
    with WriteLock(place):
        pass


HOLDER = """
import sys, zarr
from pathlib import Path
from pricepix.location import ZarrObjects
from pricepix.store import lock as locks
locks.LEASE_SECONDS = 0.5
with locks.WriteLock(ZarrObjects(zarr.storage.LocalStore(Path(sys.argv[1])), "there")) as lock:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lock.check()
        print("still held", flush=True)
    except BlockingIOError as error:
        print(error, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_stopped_for_longer_than_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped, and wakes up when another holds the lock, learns it before it writes."""
    from waiting import wait_until

    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.5)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        place = leased(tmp_path)
        wait_until(lambda: json.loads(bytes(place.get(KEY) or b"{}"))["expires"] < time.time())
        with WriteLock(place) as lock:
            holder.stdin.write("\n")
            holder.stdin.flush()
            holder.send_signal(signal.SIGCONT)
            said = holder.stdout.readline()
            assert "was lost: this process did not renew it" in said
            holder.wait()
            lock.check()
            assert place.get(KEY) is not None, "the one that lost the lock took it away"
    finally:
        holder.kill()
        holder.communicate()


# -------------------------------------------------------------------------------------------------- Ctrl-C

COMMANDS = ["build-store", "append", "score", "evaluate", "verify", "train", "run"]


@pytest.mark.nightly
@needs_fork
def test_ctrl_c_at_any_stage_of_any_command(tmp_path: Path) -> None:
    """Exit code 130; the command that is named then resumes, and ends in what an undisturbed one leaves."""
    pytest.importorskip("lightning")
    arguments = ["--folder", str(tmp_path), "--seed", os.environ["PRICEPIX_KILL_SEED"]]
    found = drive("interrupt_driver.py", *COMMANDS, *arguments, "--times", str(KILLS))
    assert list(found) == COMMANDS
    for name, result in found.items():
        assert not result["failures"], (name, result)
        assert result["operations"] > 3


@needs_fork
def test_ctrl_c_while_a_store_is_built(tmp_path: Path) -> None:
    """The same, of the command that needs no torch."""
    arguments = ["--folder", str(tmp_path), "--seed", os.environ["PRICEPIX_KILL_SEED"], "--times", "2"]
    found = drive("interrupt_driver.py", "build-store", *arguments)
    assert not found["build-store"]["failures"], found
