# ruff: noqa: PT017, PT018 - no tests of pytest's, but what they run in processes that die
"""Kills builds and appends of stores for real, and looks at what is left; run by test_scale_faults.py.

A process of its own, so that it can fork a child for every kill: the child does the work and dies by SIGKILL
at a given write, before it, halfway through it, or just after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import pricepix as pp
from pricepix.build import chunk_writer
from pricepix.build.append import append
from pricepix.location import Folder
from pricepix.store.image_store import _open

PHASES = ("before", "half", "unnamed", "after")
BUILD = {"spec": "jkx5", "horizons": (1, 5), "layout": "bits", "chunk": 32, "workers": 2, "progress": False}
WORKERS = 2


def bars() -> pl.DataFrame:
    return pp.samples.simulate(12, 160, seed=5)


def panel(last: int | None = None) -> pp.Panel:
    frame = bars()
    if last is not None:
        times = frame["time"].unique().sort()
        frame = frame.filter(pl.col("time") <= times[last])
    return pp.Panel.from_table(frame, adjust="multiply", progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a store, but the note that appends leave for readers."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "_appends.json"
    }


def assert_same(folder: Path, expected: dict[str, bytes]) -> None:
    found = tree(folder)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, different


class Writes:
    """Counts the writes and renames of a folder, and dies at one of them."""

    def __init__(self, at: int = -1, phase: str = "") -> None:
        self.at, self.phase, self.count = at, phase, 0
        self.lock = threading.Lock()
        self.names: list[str] = []

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def __enter__(self) -> Writes:
        self.put, self.move, self.write = Folder.put, Folder.move, Folder._write
        chosen = threading.local()

        def counted(operation: Callable[..., None]) -> Callable[..., None]:
            def run(folder: Folder, key: str, content: Any) -> None:
                with self.lock:
                    number, self.count = self.count, self.count + 1
                    self.names.append(key)
                chosen.now = number == self.at
                if chosen.now and self.phase == "before":
                    self.die()
                operation(folder, key, content)
                if chosen.now:
                    self.die()

            return run

        def write(name: str, content: Any) -> None:
            if getattr(chosen, "now", False) and self.phase == "half":
                whole = content if isinstance(content, bytes) else b"".join(content)
                Path(name).write_bytes(whole[: len(whole) // 2])
                self.die()
            self.write(name, content)
            if getattr(chosen, "now", False) and self.phase == "unnamed":
                self.die()

        Folder.put, Folder.move = counted(self.put), counted(self.move)  # type: ignore[method-assign]
        Folder._write = staticmethod(write)  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        Folder.put, Folder.move = self.put, self.move  # type: ignore[method-assign]
        Folder._write = staticmethod(self.write)  # type: ignore[method-assign]


def killed(work: Callable[[], Any], at: int, phase: str) -> bool:
    """Do work in a child that dies at a write; return whether it did, rather than come to its end."""
    child = os.fork()
    if child == 0:
        try:
            with Writes(at, phase):
                work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def count_drawn(work: Callable[[], Any]) -> int:
    """Return how many image chunks work draws."""
    drawn = []
    original = chunk_writer.ChunkWriter.write_images

    def images(self: Any, first: int, last: int) -> Any:
        drawn.append(last - first)
        return original(self, first, last)

    chunk_writer.ChunkWriter.write_images = images  # type: ignore[method-assign]
    try:
        work()
    finally:
        chunk_writer.ChunkWriter.write_images = original  # type: ignore[method-assign]
    return sum(drawn)


def kill_builds(folder: Path, kills: int, rng: np.random.Generator, *, finalise: bool) -> dict[str, Any]:
    bars_ = panel()
    with Writes() as writes:
        pp.render_universe(bars_, store=folder / "whole", **BUILD)
    expected = tree(folder / "whole")
    whole = pp.open_store(folder / "whole")
    chunks = whole.chunk_format.chunks(len(whole))
    last_work = max(i for i, name in enumerate(writes.names) if name.startswith("_build/done/"))
    partition = json.loads(_plan_of(folder, bars_))["partition"]
    lost, states = [], {"nothing": 0, "unfinished": 0, "finished": 0}
    for k in range(kills):
        target = folder / f"killed{k}"
        low, high = (last_work + 1, writes.count) if finalise else (0, writes.count)
        at, phase = int(rng.integers(low, high)), PHASES[int(rng.integers(len(PHASES)))]
        if finalise and k == 0:
            at, phase = writes.count - 1, "after"  # complete, and not yet tidied up
        assert killed(lambda t=target: pp.render_universe(bars_, store=t, **BUILD), at, phase), (at, phase)
        # What is there is the whole store, or says that it is not.
        try:
            found = pp.open_store(target)
            assert np.array_equal(found.read(), pp.open_store(folder / "whole").read())
            states["finished"] += 1
        except FileNotFoundError:
            states["nothing"] += 1
        except ValueError as error:
            assert "not finished" in str(error) or "stopped at the very" in str(error), error
            states["unfinished"] += 1
        done = [p.name for p in target.glob("_build/done/images-*")]
        complete = sum(min(partition, chunks - int(name.partition("-")[2])) for name in done)
        present = len(list(target.glob("images/c/*/0/0")))
        if (target / "_build/plan.json").exists():
            assert present - complete <= WORKERS * partition, (present, complete)
            lost.append(present - complete)
        drawn = count_drawn(
            lambda t=target: pp.render_universe(bars_, store=t, **{**BUILD, "mode": "resume"})
        )
        if (target / "zarr.json").exists() and complete:
            assert drawn <= chunks - complete, (drawn, chunks, complete)
        assert_same(target, expected)
        shutil.rmtree(target)
    return {"kills": kills, "writes": writes.count, "most chunks lost": max(lost, default=0), **states}


def _plan_of(folder: Path, bars_: pp.Panel) -> str:
    target = folder / "planned"

    class StopBuildError(Exception):
        pass

    original = chunk_writer.ChunkWriter.write_images

    def images(self: Any, first: int, last: int) -> Any:
        raise StopBuildError

    chunk_writer.ChunkWriter.write_images = images  # type: ignore[method-assign]
    try:
        pp.render_universe(bars_, store=target, **BUILD)
    except StopBuildError:
        pass
    finally:
        chunk_writer.ChunkWriter.write_images = original  # type: ignore[method-assign]
    return (target / "_build/plan.json").read_text()


def kill_appends(folder: Path, kills: int, rng: np.random.Generator, *, rebuild: bool) -> dict[str, Any]:
    old_bars, new_bars = panel(120), panel()
    more: dict[str, Any] = {}
    if rebuild:
        changed = new_bars.bars.copy()
        changed[new_bars.offsets[3] : new_bars.offsets[4], :4] *= 2
        new_bars = pp.Panel(
            changed, new_bars.offsets, new_bars.instruments, new_bars.time, new_bars.tz, new_bars.fields
        )
        more["on_revision"] = "rebuild"
    pp.render_universe(old_bars, store=folder / "before", **BUILD)
    pp.render_universe(new_bars, store=folder / "after", **BUILD)
    before, after = pp.open_store(folder / "before"), pp.open_store(folder / "after")
    images = {before.attrs["panel_digest"]: before.read(), after.attrs["panel_digest"]: after.read()}
    index = {before.attrs["panel_digest"]: before.index, after.attrs["panel_digest"]: after.index}
    expected_before, expected_after = tree(folder / "before"), tree(folder / "after")
    shutil.copytree(folder / "before", folder / "trial")
    with Writes() as writes:
        append(folder / "trial", new_bars, workers=WORKERS, progress=False, **more)
    assert_same(folder / "trial", expected_after)
    states = {"before": 0, "after": 0}
    for k in range(kills):
        target = folder / f"killed{k}"
        shutil.copytree(folder / "before", target)
        early = pp.open_store(target)
        at, phase = int(rng.integers(writes.count)), PHASES[int(rng.integers(len(PHASES)))]
        assert killed(
            lambda t=target: append(t, new_bars, workers=WORKERS, progress=False, **more), at, phase
        ), (at, phase)
        # A reader that can not write sees one state or the other, whole.
        found = _open(Folder(target), finish=False)
        digest = found.attrs["panel_digest"]
        assert np.array_equal(found.read(), images[digest])
        assert found.index.equals(index[digest])
        assert found.verify(depth="checksums").problems in ([], PENDING)
        states["before" if digest == before.attrs["panel_digest"] else "after"] += 1
        # One that had it open reads what it had, or is told.
        try:
            assert np.array_equal(early.read(), images[before.attrs["panel_digest"]])
        except ValueError as error:
            assert rebuild and "since it was opened" in str(error), error
        # Whoever opens it with the right to write ends what was begun.
        begun = found.objects.pending
        pp.open_store(target)
        if begun:
            assert_same(target, expected_after)
        elif digest == after.attrs["panel_digest"]:
            # Killed after the last write of the store: what the dead process held is left, its next writer takes it.
            left = {name: content for name, content in tree(target).items() if name != "_build/lock"}
            assert left == expected_after
        else:
            left = {name: content for name, content in tree(target).items() if not name.startswith("_build/")}
            assert left == expected_before
        append(target, new_bars, workers=WORKERS, progress=False, **more)
        assert_same(target, expected_after)
        shutil.rmtree(target)
    return {"kills": kills, "writes": writes.count, **states}


PENDING = [
    "an append was stopped while it moved chunks into place: run pricepix.append(store, panel) to complete it"
]


def full_disk(folder: Path) -> dict[str, Any]:
    """Build in a folder that is too small; `folder` is a file system of its own."""
    bars_ = panel()
    filler = folder / "filler"
    free = shutil.disk_usage(folder).free
    filler.write_bytes(bytes(max(0, free - 150_000)))
    target = folder / "store"
    try:
        pp.render_universe(bars_, store=target, **BUILD)
    except OSError as error:
        assert error.errno == 28, error
        assert "mode='resume'" in str(error), error
        told = str(error)
    else:
        raise AssertionError("the disk was not full")
    try:
        pp.open_store(target)
    except ValueError as error:
        assert "not finished" in str(error) or "stopped at the very" in str(error), error
    else:
        raise AssertionError("taken for finished")
    filler.unlink()
    pp.render_universe(bars_, store=target, **{**BUILD, "mode": "resume"})
    whole = pp.render_universe(bars_, store=folder / "whole", **BUILD)
    assert_same(target, tree(folder / "whole"))
    before = tree(target)
    # The same for an append: the store stays what it was.
    grown = pp.render_universe(panel(120), store=folder / "grown", **BUILD)
    images = grown.read()
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - 20_000)))
    try:
        append(folder / "grown", bars_, progress=False)
    except OSError as error:
        assert error.errno == 28, error
    else:
        raise AssertionError("the disk was not full")
    assert np.array_equal(pp.open_store(folder / "grown").read(), images)
    filler.unlink()
    append(folder / "grown", bars_, progress=False)
    assert_same(folder / "grown", before)
    return {"told": told, "windows": len(whole)}


def lost_permission(folder: Path) -> dict[str, Any]:
    """Build as an ordinary user whose folder becomes read-only on the way."""
    bars_ = panel()
    target = folder / "store"
    if os.getuid() == 0:
        os.chmod(folder, 0o777)
        os.setuid(65534)
    original = chunk_writer.ChunkWriter.write_images
    calls = []

    def images(self: Any, first: int, last: int) -> Any:
        calls.append(first)
        if len(calls) == 4:
            os.chmod(target / "images" / "c", 0o555)
        return original(self, first, last)

    chunk_writer.ChunkWriter.write_images = images  # type: ignore[method-assign]
    try:
        pp.render_universe(bars_, store=target, **BUILD)
    except PermissionError as error:
        told = str(error)
        assert "mode='resume'" in told, told
    else:
        raise AssertionError("nothing was refused")
    finally:
        chunk_writer.ChunkWriter.write_images = original  # type: ignore[method-assign]
        os.chmod(target / "images" / "c", 0o755)
    pp.render_universe(bars_, store=target, **{**BUILD, "mode": "resume"})
    pp.render_universe(bars_, store=folder / "whole", **BUILD)
    assert_same(target, tree(folder / "whole"))
    return {"told": told}


def interrupted(folder: Path) -> dict[str, Any]:
    """Press Ctrl-C in the middle of a build."""
    bars_ = panel()
    target = folder / "store"
    original = chunk_writer.ChunkWriter.write_images
    calls = []

    def images(self: Any, first: int, last: int) -> Any:
        calls.append(first)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, first, last)

    chunk_writer.ChunkWriter.write_images = images  # type: ignore[method-assign]
    try:
        pp.render_universe(bars_, store=target, **BUILD)
    except KeyboardInterrupt as error:
        notes = error.__notes__
        assert "mode='resume'" in notes[0], notes
    else:
        raise AssertionError("the interruption was swallowed")
    finally:
        chunk_writer.ChunkWriter.write_images = original  # type: ignore[method-assign]
    done = len(list(target.glob("_build/done/images-*")))
    assert done >= 2
    assert not (target / "_build/lock").exists()
    drawn = count_drawn(lambda: pp.render_universe(bars_, store=target, **{**BUILD, "mode": "resume"}))
    pp.render_universe(bars_, store=folder / "whole", **BUILD)
    assert_same(target, tree(folder / "whole"))
    return {"partitions done": done, "chunks drawn after": drawn}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    do: dict[str, Callable[[], dict[str, Any]]] = {
        "build": lambda: kill_builds(given.folder, given.kills, rng, finalise=False),
        "finalise": lambda: kill_builds(given.folder, given.kills, rng, finalise=True),
        "append": lambda: kill_appends(given.folder, given.kills, rng, rebuild=False),
        "rebuild": lambda: kill_appends(given.folder, given.kills, rng, rebuild=True),
        "full-disk": lambda: full_disk(given.folder),
        "permission": lambda: lost_permission(given.folder),
        "interrupt": lambda: interrupted(given.folder),
    }
    json.dump(do[given.what](), sys.stdout)


if __name__ == "__main__":
    main()
