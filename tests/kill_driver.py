# ruff: noqa: PT017 - no tests of pytest's, but what they run in processes that die
"""Kills scoring, training and pipelines at their file operations, and looks at what is left; run by test_kills.py.

A process of its own, so that it can fork a child for every kill, and whose children alone do any work: threads, such as
those of polars, do not outlive a fork. It imports what its first child imported, once, so that later children start
with torch and all else in place: importing took them up to nine tenths of their time. An audit hook counts what Python
does to files below a folder (opened to be written, made, renamed, removed), and the child dies by SIGKILL before the
chosen one. A torn write is a kill before the next one, of which the file that was being written keeps only half.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import pricepix as pp
from pricepix.factor import open_cache, score

Work = Callable[[Path], Any]
# A run by hand may stop at a time; tests take as long as they take.
DEADLINE = time.monotonic() + float(os.environ.get("PRICEPIX_KILL_SECONDS", "inf"))
_WRITING = os.O_WRONLY | os.O_RDWR


class ChildError(Exception):
    """What went wrong in a child."""


class Operations:
    """Counts what is done to files below a folder in this process, and dies before one of them."""

    def __init__(self, folder: Path, at: int, log: int) -> None:
        self.folder, self.at, self.log, self.count = f"{folder}{os.sep}", at, log, 0

    def start(self) -> None:
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (flags or 0) & _WRITING:
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fspath(path):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(self.folder):
            return
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        self.count += 1
        size = os.path.getsize(name) if event == "open" and os.path.exists(name) else 0
        os.write(self.log, f"{json.dumps([event, name, size])}\n".encode())


def run_child(work: Work, target: Path, at: int = -1) -> tuple[bool, list[list[Any]]]:
    """Do work in a child that dies before operation `at`; return whether it died, and its operations."""
    log = target.parent / f"{target.name}.log"
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            Operations(target, at, file).start()
            work(target)
            code = 0
        except BaseException as error:
            lines = traceback.format_exception(error)
            os.write(file, f"{json.dumps(['error', ''.join(lines[-3:]), 0])}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    os.close(file)
    operations = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not died and os.WEXITSTATUS(status):
        raise ChildError(operations[-1][1])
    return died, operations


def import_what_children_import(work: Work, target: Path) -> list[list[Any]]:
    """Do work in a child, import here the modules that it imported, and return its operations."""
    names = target.parent / f"{target.name}.modules"

    def work_and_tell(target: Path) -> None:
        work(target)
        names.write_text(json.dumps(list(sys.modules)))

    _, operations = run_child(work_and_tell, target)
    for name in json.loads(names.read_text()):
        # Some exist only while another is imported, or have a name of their own making.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    names.unlink()
    # Imports start none but those of allocators and BLAS, which see to it themselves that they outlive a fork.
    assert threading.active_count() == 1, f"children would be forked without {threading.enumerate()[1:]}"
    gc.freeze()  # so that children do not copy what they only walk through
    return operations


def tear(operation: list[Any]) -> None:
    """Leave of the file that was written last only half of what was written."""
    event, name, before = operation
    if event == "open" and os.path.isfile(name):
        written = os.path.getsize(name) - before if before <= os.path.getsize(name) else 0
        kept = before + written // 2 if written else os.path.getsize(name) // 2
        os.truncate(name, kept)


def tree(folder: Path, passed: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return every file below a folder, but those whose path has a part named in `passed`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(passed) for part in path.relative_to(folder).parts if passed)
    }


def difference(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    names = sorted(found.keys() ^ expected.keys())
    return names + [name for name in expected if name in found and found[name] != expected[name]]


class Kills:
    """Kills some work at its operations, resumes it, and counts what came of it."""

    def __init__(
        self, folder: Path, start: Path | None, work: Work, look: Callable[[Path], None],
        content: Callable[[Path], dict[str, bytes]] = tree,
    ) -> None:  # fmt: skip
        self.folder, self.start, self.work, self.look, self.content = folder, start, work, look, content
        whole = self.fresh("whole")
        self.operations = import_what_children_import(work, whole)
        self.expected = content(whole)
        self.failures: list[str] = []
        self.tried = 0

    def fresh(self, name: str) -> Path:
        target = self.folder / name
        if target.exists():
            shutil.rmtree(target)
        if self.start is not None:
            shutil.copytree(self.start, target)
        return target

    def one(self, at: int, torn: bool) -> None:
        target = self.fresh("killed")
        died, operations = run_child(self.work, target, at)
        what = f"{'torn' if torn else 'killed'} before operation {at}"
        if not died:
            return  # what a kill leads to may differ in its operations
        if torn:
            if not operations or operations[-1][0] != "open":
                return
            tear(operations[-1])
        self.tried += 1

        def look_and_resume(target: Path) -> None:
            self.look(target)
            self.work(target)
            self.look(target)

        try:
            run_child(look_and_resume, target)
        except ChildError as error:
            self.failures.append(f"{what}: {error}")
            return
        if names := difference(self.content(target), self.expected):
            self.failures.append(f"{what}: other bytes: {names[:3]}")

    def run(self, kills: int, rng: np.random.Generator) -> dict[str, Any]:
        """Kill at operations drawn at random, or at all of them, as long as the time is not over.

        PRICEPIX_KILL_PART, such as 2/5, leaves all but the second fifth of the drawn out: pieces of a long run.
        """
        every = [(at, False) for at in range(len(self.operations))]
        every += [(at, True) for at in range(1, len(self.operations)) if self.operations[at - 1][0] == "open"]
        part, parts = (int(n) for n in os.environ.get("PRICEPIX_KILL_PART", "1/1").split("/"))
        for k in rng.permutation(len(every))[:kills][part - 1 :: parts].tolist():
            if time.monotonic() > DEADLINE:
                break
            self.one(*every[k])
        return {
            "operations": len(self.operations),
            "tried": self.tried,
            "survived": self.tried - len(self.failures),
            "failures": self.failures[:40],
        }


# ------------------------------------------------------------------------------------------------ scoring


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def make_stores(folder: Path) -> None:
    """Two stores of hourly bars: the second has more days, half a day of which the first has, and a newcomer."""
    frame = pp.samples.simulate(4, 61, interval="1h", seed=3, split_rate=0, delist_rate=0, list_late=0)
    times = frame["time"].unique().sort()
    newcomer = pl.col("instrument") == "S0001"
    frame = frame.filter(~newcomer | (pl.col("time") > times[45]))
    for name, last in (("short", 38), ("full", len(times) - 1)):
        panel = pp.Panel.from_table(
            frame.filter(pl.col("time") <= times[last]), tz="America/New_York", progress=False
        )
        pp.render_universe(panel, "jkx5", folder / name, horizons=(1,), chunk=16, progress=False)


def scoring(store: Path, **options: Any) -> Work:
    return lambda target: score(store, ink, target, model_id="ink", progress=False, **options)


def values_of(target: Path) -> tuple[np.ndarray, np.ndarray]:
    return open_cache(target).matrix()


def kill_score(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    run_child(make_stores, folder)
    work = scoring(folder / "full")
    run_child(work, folder / "first")

    def look(target: Path) -> None:
        try:
            found = values_of(target)
        except FileNotFoundError:
            return
        except ValueError as error:
            assert "is not finished" in str(error) or "holds no Zarr v3 group" in str(error), error
            return
        for part, expected in zip(found, values_of(folder / "first"), strict=True):
            assert np.array_equal(part, expected, equal_nan=True), "a state between"

    return Kills(folder, None, work, look).run(kills, rng)


def kill_score_append(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    run_child(make_stores, folder)
    run_child(scoring(folder / "short"), folder / "old")
    shutil.copytree(folder / "old", folder / "first")
    work = scoring(folder / "full", append=True)
    run_child(work, folder / "first")

    def look(target: Path) -> None:
        time, values = values_of(target)
        before, after = values_of(folder / "old"), values_of(folder / "first")
        assert after[1].shape != before[1].shape
        expected = before if values.shape == before[1].shape else after
        assert np.array_equal(time, expected[0]), "a state between"
        assert np.array_equal(values, expected[1], equal_nan=True), "a state between"

    return Kills(folder, folder / "old", work, look).run(kills, rng)


# -------------------------------------------------------------------------------------------- embeddings


def embedding(store: Path, **options: Any) -> Work:
    def work(target: Path) -> None:
        import torch

        from pricepix import train
        from pricepix.factor import embed, embedding_format

        use_one_thread()
        # Many chunks of few windows, the last of which an append completes.
        embedding_format._CHUNK_BYTES = 1 << 11
        torch.manual_seed(0)
        spec = train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(8, 3)),))
        embed(store, train.PriceCNN(spec).eval(), target, progress=False, **options)

    return work


def embedded(target: Path) -> tuple[np.ndarray, ...]:
    from pricepix.factor import open_embedding

    found = open_embedding(target)
    return found.values[:], found.time, found.instrument_index


def kill_embed(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    """An append of embeddings: a reader sees those before or those after."""
    run_child(make_stores, folder)
    run_child(embedding(folder / "short"), folder / "old")
    shutil.copytree(folder / "old", folder / "first")
    work = embedding(folder / "full", append=True)
    run_child(work, folder / "first")

    def look(target: Path) -> None:
        found, before, after = embedded(target), embedded(folder / "old"), embedded(folder / "first")
        assert len(before[0]) < len(after[0])
        expected = before if len(found[0]) == len(before[0]) else after
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), "a state between"

    return Kills(folder, folder / "old", work, look).run(kills, rng)


# ------------------------------------------------------------------------------------------------ training


def use_one_thread() -> None:
    """Let torch compute with one thread, so that weights are the same bytes in every process.

    Numba shares OpenMP with torch and sets its number of threads when it starts its own: it does so first.
    """
    import numba
    import torch

    numba.get_num_threads()
    torch.set_num_threads(1)


def training(store: Path) -> Work:
    from pricepix import train

    spec = train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(4, 1)),))

    def work(target: Path) -> None:
        use_one_thread()
        train.fit(
            store, spec, out=target, resume=target.exists(), ensemble=2, batch_size=32, epochs=1, lr=1e-3,
            patience=None, checkpoint_minutes=0.0, log_every=1000, device="cpu", progress=False,
        )  # fmt: skip

    return work


def run_content(target: Path) -> dict[str, bytes]:
    """Return what a run holds, without times, and with the tensors of checkpoints alone."""
    import torch

    found = {}
    for name, content in tree(target, ("tensorboard",)).items():
        if name.endswith(".ckpt"):
            weights = torch.load(target / name, weights_only=True)["state_dict"]
            content = b"".join(weights[key].numpy().tobytes() for key in sorted(weights))
        elif name.endswith("metrics.csv"):
            # Images a second, and the checksum that covers them.
            content = b"\n".join(line.rsplit(b",", 2)[0] for line in content.splitlines())
        elif name.endswith(".json"):
            lines = content.splitlines()
            content = b"\n".join(
                line for line in lines if b'"seconds"' not in line and b'"crc32c"' not in line
            )
        elif name.endswith("config.yaml"):
            content = content.replace(str(target).encode(), b"run").partition(b"# crc32c")[0]
        found[name] = content
    return found


def kill_train(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    run_child(make_stores, folder)

    def look(target: Path) -> None:
        for path in target.rglob("*.json"):
            json.loads(path.read_text())

    return Kills(folder, None, training(folder / "full"), look, run_content).run(kills, rng)


# ------------------------------------------------------------------------------------------------ pipelines


def pipeline(target: Path) -> None:
    from pricepix.workflow.config import Config
    from pricepix.workflow.pipeline import run

    use_one_thread()
    config = Config.from_dict(
        {
            "out": str(target),
            "data": {"sample": "simulate", "simulate": {"instruments": 5, "bars": 80, "seed": 4}},
            "image": {"preset": "jkx5"},
            "store": {"horizons": [5], "chunk": 64},
            "train": {
                "model": "jkx5", "accelerator": "cpu",
                "settings": {"epochs": 1, "batch_size": 64, "checkpoint_minutes": 0.0},
            },
            "score": {},
        }
    )  # fmt: skip
    run(config, echo=lambda line: None, progress=False)


def pipeline_content(target: Path) -> dict[str, bytes]:
    whole = {
        name: content for name, content in tree(target).items() if name.startswith(("store", "pipeline"))
    }
    whole |= {f"run/{name}": content for name, content in run_content(target / "run").items()}
    cache = open_cache(target / "factor.zarr")
    assert cache.verify().ok
    values = cache.matrix()
    return whole | {"factor": b"".join(part.tobytes() for part in values)}


def kill_run(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    def content(target: Path) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        path = folder / "content"

        def write(_: Path) -> None:
            path.write_text(json.dumps({name: part.hex() for name, part in pipeline_content(target).items()}))

        run_child(write, folder / "none")
        found = {name: bytes.fromhex(part) for name, part in json.loads(path.read_text()).items()}
        found = {name: part.replace(str(target).encode(), b"out") for name, part in found.items()}
        return found

    return Kills(folder, None, pipeline, lambda target: None, content).run(kills, rng)


# ----------------------------------------------------------------------------------------- evenings, replications


def evening(target: Path, day: int) -> None:
    """Update the folder from its bars up to a day. Paths are relative: none of the folder stands in a file."""
    import pricepix.workflow.update
    from pricepix.workflow.config import Config

    use_one_thread()
    target.mkdir(exist_ok=True)
    os.chdir(target)
    bars = pp.samples.simulate(5, 34, seed=4, split_rate=0, delist_rate=0, list_late=0, halt_rate=0)
    days = bars["time"].unique().sort()
    if day > 30:
        # The vendor divides a history by a split, and corrects a high.
        before = (pl.col("instrument") == "S0001") & (pl.col("time") < days[30])
        bars = bars.with_columns(
            pl.when(before).then(pl.col(c) / 2).otherwise(pl.col(c)).alias(c)
            for c in ("open", "high", "low", "close")
        )
        corrected = (pl.col("instrument") == "S0002") & (pl.col("time") == days[25])
        bars = bars.with_columns(
            pl.when(corrected).then(pl.col("high") * 1.2).otherwise(pl.col("high")).alias("high")
        )
    # Beside the folder: what is fed is not the update's to write.
    table = Path(f"../bars-{os.getpid()}.parquet")
    bars.filter(pl.col("time") <= days[day]).write_parquet(table)
    config = Config.from_dict(
        {
            "out": "out",
            "data": {"source": str(table)},
            "image": {"preset": "jkx5"},
            "store": {"horizons": [1], "chunk": 64, "layout": "bits"},
            "train": {"frozen": "../net.ckpt"},
            "score": {"device": "cpu"},
            "update": {"corrected": "accept", "exports": [{"path": "out/exports/{date}.csv"}]},
        }
    )  # fmt: skip
    try:
        pricepix.workflow.update.update(config, now=f"{days[day]:%Y-%m-%d} 20:00")
    finally:
        table.unlink()


def kill_update(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    """The evening on which a history was divided and corrected; the evening before has to stand behind it."""

    def network(target: Path) -> None:
        import torch

        from pricepix import train

        torch.manual_seed(0)
        spec = train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(4, 1)),))
        train.save_model(train.PriceCNN(spec).eval(), target.parent / "net.ckpt")

    run_child(network, folder / "none")
    run_child(lambda target: evening(target, 30), folder / "before")

    # An image has five bars and the averages of five, so that windows begin with the ninth.
    sizes = (5 * (31 - 8), 5 * (32 - 8))

    def look(target: Path) -> None:
        """Whoever reads sees an evening, the one before or this one; an update leaves no half table."""
        store, cache = pp.open_store(target / "out/store.zarr"), open_cache(target / "out/factor.zarr")
        assert len(store) in sizes, len(store)
        assert cache.verify().ok
        for path in (target / "out/exports").glob("*.csv"):
            assert pl.read_csv(path).height in sizes, path

    def content(target: Path) -> dict[str, bytes]:
        out = target / "out"
        found = {name: part for name, part in tree(out).items() if not name.endswith("_appends.json")}
        # An update that goes on does not count what it finds done; and no two take as long.
        result, ledger = json.loads(found["update.json"]), json.loads(found["ledger.json"])
        kept = [result[name] for name in ("bars_through", "windows", "exports", "notes")]
        del ledger["counts"]
        health, days = json.loads(found["health.json"]), folder / "days.csv"
        del health["steps"]

        # In a child: a process with the threads of polars must not be forked.
        def write(_: Path) -> None:
            pl.read_parquet(out / "health_days.parquet").drop("seconds", "memory_mb").write_csv(days)

        run_child(write, folder / "none")
        # The page shows the figures, and how long the steps took.
        assert found["health.html"].rstrip().endswith(b"</html>")
        return found | {
            "update.json": json.dumps(kept).encode(), "ledger.json": json.dumps(ledger, sort_keys=True).encode(),
            "health.json": json.dumps(health).encode(), "health.html": b"",
            "health_days.parquet": days.read_bytes(),
        }  # fmt: skip

    return Kills(folder, folder / "before", lambda target: evening(target, 31), look, content).run(kills, rng)


def kill_replicate(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    def work(target: Path) -> None:
        from paper_driver import replicate

        use_one_thread()
        replicate(target, seeds=1, splits=["paper"], tables=["I"], controls=())

    def content(target: Path) -> dict[str, bytes]:
        return {name: part for name, part in run_content(target).items() if not name.endswith("config.yaml")}

    return Kills(folder, None, work, lambda target: None, content).run(kills, rng)


# ------------------------------------------------------------------------------------------------ full disks


def full_disk_score(folder: Path) -> dict[str, Any]:
    """Score in a file system of its own that is too small, first a new cache and then an append."""
    run_child(make_stores, folder)
    filler, told = folder / "filler", []
    for name, store, options, room in (
        ("new", "short", {}, 40_000),
        ("new", "full", {"append": True}, 30_000),
    ):
        filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))
        before = values_of(folder / name) if (folder / name).exists() else None
        try:
            scoring(folder / store, **options)(folder / name)
        except OSError as error:
            assert error.errno == 28, error
            assert str(folder / name) in str(error.filename), error
            told.append(str(error))
        else:
            raise AssertionError("the disk was not full")
        if before is not None:
            assert np.array_equal(values_of(folder / name)[1], before[1], equal_nan=True)
        filler.unlink()
        scoring(folder / store, **options)(folder / name)
        assert open_cache(folder / name).verify().ok
    for store, options in (("short", {}), ("full", {"append": True})):
        scoring(folder / store, **options)(folder / "whole")
    assert not difference(tree(folder / "new"), tree(folder / "whole"))
    return {"told": told}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    work = {
        "score": kill_score, "score-append": kill_score_append, "train": kill_train, "run": kill_run,
        "embed": kill_embed, "update": kill_update, "replicate": kill_replicate,
    }  # fmt: skip
    if given.what == "full-disk-score":
        found = full_disk_score(folder)
    else:
        found = work[given.what](folder, given.kills, np.random.default_rng(given.seed))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
