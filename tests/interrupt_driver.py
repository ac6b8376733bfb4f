"""Presses Ctrl-C in the middle of long commands, and runs the command that they name then; run by test_faults.py.

The signal comes at a file operation, reading or writing, which an audit hook counts in a fork: that is at every stage
of a command, and at the same place each time. What the named command leaves must be what an undisturbed one does.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from kill_driver import difference, run_content, tree

import pricepix as pp
from pricepix.cli import main as command
from pricepix.factor import open_cache

signal.signal(signal.SIGINT, signal.default_int_handler)
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


def call(words: list[str], folder: Path, at: int = -1) -> tuple[int, str, int]:
    """Run a command in a fork that gets SIGINT at operation `at`; return exit code, what it said, and operations."""
    said = folder / "said"
    child = os.fork()
    if child == 0:
        code = 1
        file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        try:
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.chdir(folder)
            with suppress(ImportError):
                import torch

                torch.set_num_threads(1)
            count = [0]

            def see(event: str, arguments: tuple[Any, ...]) -> None:
                path = arguments[0] if event in EVENTS else None
                if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(
                    f"{folder}{os.sep}"
                ):
                    if count[0] == at:
                        os.kill(os.getpid(), signal.SIGINT)
                    count[0] += 1

            sys.addaudithook(see)
            try:
                command(words, prog_name="pricepix-cli")
            except SystemExit as ended:
                code = int(ended.code or 0)
            sys.stdout.flush()
            print(f"\n{count[0]}", flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = said.read_text()
    said.unlink()
    return os.waitstatus_to_exitcode(status), text, int(text.split()[-1]) if text.split()[-1].isdigit() else 0


def content(path: Path) -> Any:
    """Return what a command made, without times."""
    if path.suffix == ".html":
        return {"report": b"there"} if path.exists() else {}
    if path.name == "run":
        return run_content(path)
    if path.name == "out":
        cache = open_cache(path / "factor.zarr")
        return run_content(path / "run") | {"factor": b"".join(part.tobytes() for part in cache.matrix())}
    return {name: held for name, held in tree(path).items() if name not in ("_appends.json", "_build/lock")}


def commands(folder: Path) -> dict[str, tuple[list[str], str, str | None]]:
    """Return words, product, and what the product starts from, of each command."""
    config = folder / "config.yaml"
    config.write_text(
        "out: out\n"
        "data: {sample: simulate, simulate: {instruments: 5, bars: 80, seed: 4}}\n"
        "image: {preset: jkx5}\nstore: {horizons: [5], chunk: 64}\n"
        "train: {model: jkx5, accelerator: cpu, settings: {epochs: 1, batch_size: 64, checkpoint_minutes: 0.0}}\n"
        "score: {}\n"
    )
    quiet = "--no-progress"
    return {
        "build-store": (
            ["build-store", "bars.parquet", "made", "--preset", "jkx5", "--horizon", "5", "--chunk", "32", quiet],
            "made", None,
        ),
        "append": (["append", "made", "bars.parquet", quiet], "made", "short"),
        "score": (["score", "store", "net.ckpt", "factor", quiet], "factor", None),
        "evaluate": (["evaluate", "scored", "bars.parquet", "made.html", "--quantiles", "2", quiet], "made.html", None),
        "verify": (["verify", "store", quiet], "", None),
        "train": (
            ["train", "store", "--model", "jkx5", "--set", "epochs=1", "--set", "batch_size=64", "--device", "cpu",
             "--set", "checkpoint_minutes=0", "--out", "run", quiet],
            "run", None,
        ),
        "run": (["run", "config.yaml", quiet], "out", None),
    }  # fmt: skip


def prepare(folder: Path, network: bool) -> None:
    """Make what the commands start from, in a fork: threads do not outlive one. A network needs torch."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    code = 1
    try:
        bars = pp.samples.simulate(6, 90, seed=4, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
        bars.write_parquet(folder / "bars.parquet")
        times = bars["time"].unique().sort()
        early = bars.filter(bars["time"] <= times[60])
        for name, frame in (("store", bars), ("short", early)):
            panel = pp.Panel.from_table(frame, progress=False)
            pp.render_universe(panel, "jkx5", folder / name, horizons=(5,), chunk=32, progress=False)
        if network:
            from pricepix.factor import score
            from pricepix.train import PriceCNN, save_model

            save_model(PriceCNN("jkx5"), folder / "net.ckpt")
            score(folder / "store", folder / "net.ckpt", folder / "scored", progress=False)
        code = 0
    finally:
        os._exit(code)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def interrupt(folder: Path, name: str, times: int, rng: np.random.Generator) -> dict[str, Any]:
    words, product, start = commands(folder)[name]
    made = folder / product if product else None

    def fresh() -> None:
        if made is not None:
            remove(made)
            if start is not None:
                shutil.copytree(folder / start, made)

    def product_of() -> Any:
        return {} if made is None else content(made)

    fresh()
    code, said, operations = call(words, folder)
    assert code == 0, said
    expected = product_of()
    failures, tried = [], 0
    for at in rng.permutation(operations)[:times].tolist():
        fresh()
        code, said, _ = call(words, folder, at)
        tried += 1
        lines = [line for line in said.splitlines() if line.startswith("resume with: ")]
        if code != 130 or len(lines) != 1:
            failures.append(f"{at}: exit code {code}: {said[-500:]}")
            continue
        again = shlex.split(lines[0].removeprefix("resume with: pricepix-cli "))
        code, said, _ = call(again, folder)
        if code != 0:
            failures.append(f"{at}: {shlex.join(again)}: exit code {code}: {said[-500:]}")
        elif names := difference(product_of(), expected):
            failures.append(f"{at}: {shlex.join(again)}: other bytes: {names[:3]}")
    return {
        "operations": operations,
        "tried": tried,
        "survived": tried - len(failures),
        "failures": failures[:20],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="+")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, network=not set(given.what) <= {"build-store", "append", "verify"})
    rng = np.random.default_rng(given.seed)
    print(json.dumps({name: interrupt(folder, name, given.times, rng) for name in given.what}))


if __name__ == "__main__":
    main()
