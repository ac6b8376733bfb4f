"""Calls every public function with one argument that makes no sense; run by test_fuzz_arguments.py.

    python argument_driver.py FOLDER COUNT SEED     # COUNT calls drawn at random, 0 for all

A call may return, or raise one clear error of ours. Anything else is a fault: another library's error, an error without
a message, no end within 20 seconds, a crash, or eight gigabytes.
"""

from __future__ import annotations

import datetime as dt
import inspect
import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import pricepix as pp
from pricepix import factor, samples

PACKAGE = str(Path(pp.__file__).parent)
STRANGE: dict[str, Any] = {
    "None": None, "True": True, "-1": -1, "0": 0, "10**18": 10**18, "2**70": 2**70, "1.5": 1.5, "nan": float("nan"),
    "inf": float("inf"), "empty text": "", "text": "x", "escapes": "\x1b]0;pwned\x07", "bytes": b"x", "list": [],
    "mapping": {}, "list of None": [None], "list of lists": [[1, 2], [3]], "object": object(), "no array": np.array([]),
    "numbers": np.array([1, 2]), "three axes": np.zeros((2, 2, 2)), "function": lambda *any_: None,
    "2300": "2300-01-01", "last day": dt.datetime.max, "set": {1}, "class": int,
}  # fmt: skip
Call = tuple[Callable[..., Any], dict[str, Any]]


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


@cache
def bars() -> Any:
    return samples.simulate(6, 60, seed=5, delist_rate=0, list_late=0)


@cache
def panel() -> pp.Panel:
    return pp.Panel.from_table(bars(), adjust="multiply", progress=False)


def calls(folder: Path) -> dict[str, Call]:
    """Return sound calls of the public functions, by name."""
    quiet: dict[str, Any] = {"progress": False}
    index = pp.WindowIndex.from_panel(panel(), "jkx5")
    store = pp.open_store(folder / "store")
    cache_ = factor.open_cache(folder / "cache")
    names = ("open", "high", "low", "close", "volume")
    arrays = {name: np.ascontiguousarray(panel().bars[:20, [k]]) for k, name in enumerate(names)}
    days = np.arange("2000-01-01", "2000-01-21", dtype="M8[D]")
    windows = panel().bars[:10].reshape(2, 5, 5)
    few = factor.Bootstrap(draws=20)
    return {
        "Panel.from_table": (pp.Panel.from_table, {"source": bars(), **quiet}),
        "Panel.from_arrays": (pp.Panel.from_arrays, {**arrays, "time": days, "instruments": ["A"]}),
        "ImageSpec": (pp.ImageSpec, {"lookback": 5}),
        "ImageSpec.preset": (pp.ImageSpec.preset, {"name": "jkx5"}),
        "WindowIndex.from_panel": (pp.WindowIndex.from_panel, {"panel": panel(), "spec": "jkx5"}),
        "forward_returns": (pp.forward_returns, {"panel": panel(), "windows": index, "horizon": 5}),
        "render_panel": (pp.render_panel, {"panel": panel(), "windows": index}),
        "render_windows": (pp.render_windows, {"ohlcv": windows, "spec": pp.ImageSpec(lookback=5)}),
        "render_universe": (pp.render_universe, {"panel": panel(), "spec": "jkx5", "store": None, **quiet}),
        "append": (pp.append, {"store": folder / "store", "panel": panel(), **quiet}),
        "PanelImages": (pp.PanelImages, {"panel": panel(), "spec": "jkx5", "horizons": (5,)}),
        "open_store": (pp.open_store, {"location": folder / "store"}),
        "ImageStore.batches": (store.batches, {}),
        "ImageStore.read": (store.read, {}),
        "ImageStore.locate": (store.locate, {"instrument": "S0001", "time": "2000-03-01"}),
        "ImageStore.returns": (store.returns, {"horizon": 5}),
        "ImageStore.verify": (store.verify, {}),
        "ImageStore.load": (store.load, {}),
        "Augment": (pp.Augment, {}),
        "contact_sheet": (pp.contact_sheet, {"store": store, "n": 4}),
        "enlarge": (pp.enlarge, {
            "source": store, "instrument": "S0001", "time": str(store.index["time"][0])[:10], "path": "e.png"}),
        "audit": (pp.audit, {"panel": panel(), "store": store, **quiet}),
        "score": (factor.score, {"store": store, "model": ink, "location": None, "model_id": "ink", **quiet}),
        "evaluate": (factor.evaluate, {"cache": cache_, "panel": panel(), "quantiles": 2}),
        "compare": (factor.compare, {"a": cache_, "b": cache_, "panel": panel(), "quantiles": 2, "bootstrap": few}),
        "Bootstrap": (factor.Bootstrap, {}),
        "open_cache": (factor.open_cache, {"location": folder / "cache"}),
        "FactorCache.matrix": (cache_.matrix, {}),
        "FactorCache.at": (cache_.at, {"instrument": "S0001", "time": "2000-03-01"}),
        "FactorCache.as_of": (cache_.as_of, {"when": "2010-01-01"}),
        "open_embedding": (factor.open_embedding, {"location": folder / "store"}),
        "simulate": (samples.simulate, {"instruments": 3, "bars": 30}),
        "simulate_market": (samples.simulate_market, {"folder": "market", "instruments": 3, "days": 3}),
        "bundled": (samples.bundled, {}),
    }  # fmt: skip


def grid(folder: Path) -> list[tuple[str, str, str]]:
    """Return every function, parameter and strange value."""
    found = []
    for name, (function, _) in calls(folder).items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
                parameter.POSITIONAL_ONLY,
            ):
                found += [(name, parameter.name, value) for value in STRANGE]
    return found


def judge(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Return what is wrong with the way a call ended; empty if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**arguments)
        except (ValueError, TypeError, KeyError, IndexError, OSError, ImportError, MemoryError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            message = str(error)
            # What the caller wrote may stand in a message as it was written.
            message = message.replace(str(STRANGE["escapes"]), "")
            clear = message and all(c.isprintable() or c == "\n" for c in message)
            if frames[-1].filename.startswith(PACKAGE) and clear:
                return ""
            inner = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f.filename.startswith(PACKAGE)]
            return f"{type(error).__name__}: {message[:200]!r} through {inner[-1:]}"
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            inner = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f.filename.startswith(PACKAGE)]
            return f"{type(error).__name__}: {str(error)[:200]!r} through {inner[-1:]}"
    return ""


def prepare(folder: Path) -> None:
    store = pp.render_universe(panel(), "jkx5", folder / "store", horizons=(5,), chunk=64, progress=False)
    factor.score(store, ink, folder / "cache", model_id="ink", progress=False)


def work(folder: Path) -> None:
    """Make the calls that are read, one a line, and write how each ended."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if not (folder / "scratch").exists():
        (folder / "scratch").mkdir(parents=True)
        prepare(folder)
    # Files that a strange path may make lie here.
    os.chdir(folder / "scratch")
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    sound = calls(folder)
    answers.write("ready\n")
    for line in sys.stdin:
        name, parameter, value = json.loads(line)
        function, arguments = sound[name]
        # Ends the process: what does not end may not look at signals either.
        signal.alarm(20)
        found = judge(function, {**arguments, parameter: STRANGE[value]})
        signal.alarm(0)
        answers.write(f"{json.dumps(found)}\n")


class Worker:
    """A process that makes calls; a new one once one has died of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __call__(self, *call: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        if answer := self._answer():
            return str(json.loads(answer))
        status = self._process.wait()
        self._start()
        return f"no answer (exit status {status})"


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 2:
        work(folder)
        return
    worker = Worker(folder)
    everything, count = grid(folder), int(sys.argv[2])
    if count:
        everything = random.Random(int(sys.argv[3])).sample(everything, min(count, len(everything)))
    faults = [[*one, found] for one in everything if (found := worker(*one))]
    print(json.dumps({"calls": len(everything), "faults": faults}))


if __name__ == "__main__":
    main()
