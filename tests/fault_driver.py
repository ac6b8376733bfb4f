# ruff: noqa: PT017 - no tests of pytest's, but what they run in processes with a limit
"""Lets file systems, limits and other processes get in the way of all that writes or reads; run by test_faults.py.

A process of its own that does no work itself: each trial is a fork, in which limits can be set, the user changed and
torch used. What a trial says is printed as one JSON object.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from kill_driver import difference, import_what_children_import, ink, run_content, scoring, training, tree

import pricepix as pp
from pricepix.build.append import append
from pricepix.factor import open_cache

with suppress(ImportError):
    from pricepix import train

QUIET: dict[str, Any] = {"progress": False}
BUILD: dict[str, Any] = {"horizons": (1, 5), "chunk": 32, "workers": 2, **QUIET}


def in_fork(work: Callable[[], Any]) -> Any:
    """Do work in a fork and return what it returns; an error there is one here."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            try:
                json.dump({"found": work()}, pipe)
            except BaseException:
                json.dump({"error": traceback.format_exc()[-3000:]}, pipe)
            pipe.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["found"]


@functools.cache
def panel(last: int | None = None) -> pp.Panel:
    frame = pp.samples.simulate(6, 90, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    if last is not None:
        frame = frame.filter(frame["time"] <= frame["time"].unique().sort()[last])
    return pp.Panel.from_table(frame, adjust="multiply", **QUIET)


def build(target: Path, last: int | None = None, mode: str = "create") -> Any:
    return pp.render_universe(panel(last), "jkx5", target, mode=mode, **BUILD)


class Works:
    """Everything that writes, on what a folder holds: each does all its work, or what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.grown, self.short = folder / "store", folder / "grown", folder / "short"
        self.cache, self.longer, self.run = folder / "cache", folder / "longer", folder / "run"

    def prepare(self) -> None:
        """Make what the works start from."""
        build(self.store)
        build(self.short, 60)
        shutil.copytree(self.short, self.grown)
        scoring(self.short)(self.longer)

    def works(self) -> dict[str, tuple[Callable[[], Any], Path]]:
        """Return by name what to do, and what it makes."""
        made = self.folder / "made"
        return {
            "build": (lambda: build(made, None, "resume" if made.exists() else "create"), made),
            "append": (lambda: append(self.grown, panel(), **QUIET), self.grown),
            "score": (lambda: scoring(self.store)(self.cache), self.cache),
            "score append": (lambda: scoring(self.store, append=True)(self.longer), self.longer),
            "train": (lambda: training(self.store)(self.run), self.run),
        }


def content(path: Path) -> dict[str, bytes]:
    """Return what is at a path, without the names of folders that it was made from."""
    if path.name == "run":
        return {name: held for name, held in run_content(path).items() if name != "config.yaml"}
    if path.name in ("cache", "longer"):
        cache = open_cache(path)
        assert cache.verify().ok
        return {"values": b"".join(part.tobytes() for part in cache.matrix())}
    return {name: held for name, held in tree(path).items() if name != "_appends.json"}


def refused(work: Callable[[], Any], number: int, folder: Path) -> str:
    """Do work that must fail with this error of the system, and name a file of the folder; return what it says."""
    try:
        work()
    except OSError as error:
        # Those of ours that look before they write have no number.
        assert error.errno in (number, None), traceback.format_exc()
        assert str(folder) in str(error), traceback.format_exc()
        return str(error)
    raise AssertionError("nothing was refused")


def compare(folder: Path) -> list[str]:
    """Do everything, after a fault, and compare with what was made where there was none."""
    whole = Works(folder / "whole")
    whole.folder.mkdir()
    in_fork(whole.prepare)
    wrong = []
    for name, (work, made) in Works(folder).works().items():
        in_fork(lambda work=work: str(work()))
        same, path = whole.works()[name]
        in_fork(lambda same=same: str(same()))
        if names := in_fork(lambda one=made, other=path: difference(content(one), content(other))):
            wrong.append(f"{name}: {names[:3]}")
    return wrong


def read_only(folder: Path) -> dict[str, Any]:
    """In a file system that becomes read-only: writers say so, readers read; and all goes on when it is writable."""
    works = Works(folder)
    in_fork(works.prepare)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        told = {
            name: in_fork(lambda work=work: refused(work, errno.EROFS, folder))
            for name, (work, _) in works.works().items()
        }

        def read() -> bool:
            store, cache = pp.open_store(works.store), open_cache(works.longer)
            return bool(
                store.verify().ok and cache.verify().ok and len(store.read()) and len(cache.matrix()[0])
            )

        assert in_fork(read)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    return {"told": told, "wrong": compare(folder)}


def full(folder: Path) -> dict[str, Any]:
    """On a file system that is full: each writer says so and names a file."""
    works = Works(folder)
    in_fork(works.prepare)
    filler, told = folder / "filler", {}
    for name, (work, _) in works.works().items():
        filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - 8192)))
        told[name] = in_fork(lambda work=work: refused(work, errno.ENOSPC, folder))
        filler.unlink()
    return {"told": told, "wrong": compare(folder)}


def descriptors(folder: Path) -> dict[str, Any]:
    """With 24 file descriptors: everything works."""
    works = Works(folder)
    in_fork(works.prepare)
    done = []
    for name, (work, _) in works.works().items():

        def limited(work: Callable[[], Any] = work, name: str = name) -> str:
            # Modules that are loaded on the way open files, too.
            if name == "train":
                training(works.store)(folder / "first")
            resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
            work()
            return name

        done.append(in_fork(limited))
    return {"done": done, "wrong": compare(folder)}


def all_of(works: Works) -> None:
    """Do everything once."""
    works.prepare()
    for work, _ in works.works().values():
        work()


class LosePermission:
    """Makes every folder below one read-only at its n-th file that is opened to be written, or renamed."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.left = folder, at
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "os.rename" or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if not writes or not str(arguments[0]).startswith(f"{self.folder}{os.sep}"):
            return
        self.left -= 1
        if not self.left:
            chmod_folders(self.folder, 0o555)


def chmod_folders(folder: Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def permission(folder: Path) -> dict[str, Any]:
    """As an ordinary user who may no longer write, in the middle of each work: that is said, and it goes on later."""
    # Before the user changes, who may not read where the interpreter's own modules are.
    first = Works(folder / "first")
    first.folder.mkdir()
    import_what_children_import(lambda _: all_of(first), folder / "log")
    folder.chmod(0o777)
    if os.getuid() == 0:
        os.setuid(65534)
    works = Works(folder / "mine")
    works.folder.mkdir()
    in_fork(works.prepare)
    told = {}
    for name, (work, made) in works.works().items():

        def losing(work: Callable[[], Any] = work, made: Path = made) -> str:
            LosePermission(made, 6)
            return refused(work, errno.EACCES, made)

        try:
            told[name] = in_fork(losing)
        finally:
            chmod_folders(works.folder, 0o755)
    return {"told": told, "wrong": compare(works.folder)}


MEGABYTE = 1 << 20
LEFT = (1, 8, 64, 512)


def memory(folder: Path) -> dict[str, Any]:
    """With a limit on memory (``ulimit -v``) a little above what there is: an error or the whole work, never a part."""
    works = Works(folder)
    in_fork(works.prepare)
    told: dict[str, list[str]] = {}
    for name, (work, _) in works.works().items():
        for left in LEFT:

            def limited(work: Callable[[], Any] = work, left: int = left, name: str = name) -> str:
                # Modules and compiled code that are loaded on the way take memory, too. So do the tables of bars:
                # polars ends a process that has none left.
                panel(), panel(60)
                if name == "train":
                    training(works.store)(folder / f"first{left}")
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + left * MEGABYTE
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                signal.alarm(120)
                try:
                    work()
                except Exception as error:
                    return f"{type(error).__name__}: {error}"[:300]
                return "done"

            try:
                said = in_fork(limited)
            except (RuntimeError, ValueError) as error:
                said = f"died: {str(error)[-300:]}"
            told.setdefault(name, []).append(said)
    return {"told": told, "wrong": compare(folder)}


def broken(folder: Path) -> dict[str, Any]:
    """Where the disk gives EIO: reading /proc/self/mem at 0 does, and it is a regular file to `stat`."""
    works = Works(folder)
    in_fork(works.prepare)
    in_fork(lambda: str(training(works.store)(works.run)))

    def read_store() -> None:
        store = pp.open_store(works.store)
        store.read()
        _ = store.index

    def read_cache() -> None:
        open_cache(works.longer).matrix()

    told = {}
    cases: list[tuple[Path, Callable[[], Any]]] = [
        (works.store / "zarr.json", read_store),
        (works.store / "checksums/c/0", read_store),
        (works.store / "images/c/0/0/0", read_store),
        (works.store / "time/c/0", read_store),
        (works.longer / "zarr.json", read_cache),
        (works.longer / "integrity/checksums/c/0", read_cache),
        (next((works.longer / "factor/c").iterdir()) / "0/0", read_cache),
        (works.run / "config.yaml", lambda: train.load_model(works.run)),
        (works.run / "member_0/best.ckpt", lambda: train.load_model(works.run)),
        (works.run / "member_0/done.json", lambda: training(works.store)(works.run)),
    ]
    for path, read in cases:
        held = path.read_bytes()
        path.unlink()
        path.symlink_to("/proc/self/mem")
        told[str(path.relative_to(folder))] = in_fork(
            lambda read=read, path=path: refused(read, errno.EIO, path)
        )
        path.unlink()
        path.write_bytes(held)
    return {"told": told}


def appenders(folder: Path) -> dict[str, Any]:
    """While one process appends, another may not; readers and a training that began before read what they had."""
    works = Works(folder)
    in_fork(works.prepare)

    def trial() -> list[str]:
        from pricepix.build import append as appending
        from pricepix.train.loop import Trainer

        early, told = pp.open_store(works.grown), []
        before = early.read()
        original, commit, calls = Trainer.training_step, appending.commit, []

        def committing(*arguments: Any, **options: Any) -> Any:
            # In the middle of the first append: its objects are written and none is in its place. The second is a
            # process of its own: this one has threads of polars and torch, which a fork would wait for.
            words = [sys.executable, __file__, "append", str(folder)]
            found = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
            if found.returncode:
                told.append(found.stderr.strip().splitlines()[-1])
            return commit(*arguments, **options)

        def step(trainer: Any, inputs: Any, target: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                appending.commit = committing
                append(works.grown, panel(), **QUIET)
                appending.commit = commit
            return original(trainer, inputs, target)

        Trainer.training_step = step
        training(works.grown)(works.run)
        Trainer.training_step = original
        training(works.short)(folder / "undisturbed" / "run")
        assert np.array_equal(early.read(), before)
        assert len(pp.open_store(works.grown)) > len(early)
        assert pp.open_store(works.grown).verify().ok
        return told

    (told,) = in_fork(trial)
    names = in_fork(lambda: difference(content(works.run), content(folder / "undisturbed" / "run")))
    return {"told": told, "wrong": names}


def scored_twice(folder: Path) -> dict[str, Any]:
    """While one process scores, another may not; and a reader of the cache reads the old state."""
    works = Works(folder)
    in_fork(works.prepare)

    def trial() -> list[str]:
        from pricepix.factor import cache_writer, score

        early, told = open_cache(works.longer), []
        before, commit = early.matrix(), cache_writer.commit

        def committing(*arguments: Any) -> Any:
            try:
                in_fork(lambda: str(scoring(works.store, append=True)(works.longer)))
            except RuntimeError as error:
                told.append(str(error).strip().splitlines()[-1])
            for found, expected in zip(open_cache(works.longer).matrix(), before, strict=True):
                assert np.array_equal(found, expected, equal_nan=True)
            return commit(*arguments)

        cache_writer.commit = committing
        score(works.store, ink, works.longer, model_id="ink", append=True, **QUIET)
        assert len(open_cache(works.longer).matrix()[0]) > len(before[0])
        assert np.array_equal(early.matrix()[1], before[1], equal_nan=True)
        return told

    (told,) = in_fork(trial)
    return {"told": told}


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "append":
        append(Works(folder).grown, panel(), **QUIET)
        return
    found = {
        "read-only": read_only, "full": full, "descriptors": descriptors, "broken": broken,
        "permission": permission, "memory": memory,
        "appenders": appenders, "scored-twice": scored_twice,
    }[what](folder)  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
