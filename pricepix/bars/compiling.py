"""Says on the terminal that kernels are being compiled, which looks like a hang otherwise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from numba.core import event

__all__ = ["CompilingNotice", "announce_compiling"]

_SILENT_SECONDS: Final = 1.0
# What the kernels of a module do; others are named by their module.
_NAMES: Final = {
    "pricepix.bars.kernels": "what reads bars",
    "pricepix.bars.hashing": "the digests of bars",
    "pricepix.windows.kernels": "windows and returns",
    "pricepix.render.fast": "the renderer",
    "pricepix.render.kernels": "the plain renderer",
    "pricepix.store.kernels": "what reads and writes stores",
    "pricepix.factor.evaluation.kernels": "the statistics of factors",
}

_listening: list[CompilingNotice] = []


class CompilingNotice(event.Listener):
    """Listens to Numba; writes a line once a second has gone into compiling, and one on each kernel that took longer.

    Parameters
    ----------
    write : callable
        Takes a line.
    """

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._began: list[float] = []
        self._spent = 0.0
        self._announced = False
        self._timer: threading.Timer | None = None

    def on_start(self, event: Any) -> None:
        self._began.append(perf_counter())
        if len(self._began) == 1 and not self._announced and _module(event).startswith("pricepix."):
            # A long kernel is announced while it is compiled.
            self._timer = threading.Timer(max(0.05, _SILENT_SECONDS - self._spent), self._announce)
            self._timer.daemon = True
            self._timer.start()

    def on_end(self, event: Any) -> None:
        if not self._began:
            # Another listener refused the compilation before this one was told of it, as a look into the cache does.
            return
        seconds = perf_counter() - self._began.pop()
        if self._began:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        module = _module(event)
        if not module.startswith("pricepix."):
            return
        self._spent += seconds
        if seconds > _SILENT_SECONDS:
            self._announce()
            what = _NAMES.get(module, f"kernels of {module}")
            self._write(f"pricepix: compiled {what}, once: {seconds:.0f} s")

    def _announce(self) -> None:
        with self._lock:
            if self._announced:
                return
            self._announced = True
        self._write(
            "pricepix: compiling kernels for this CPU, once; later runs load them "
            "(`pricepix-cli warm-up` compiles all of them ahead)"
        )


def _module(event: Any) -> str:
    """Return the module of the function that is compiled; programs that use us compile functions of their own."""
    return str(event.data["dispatcher"].py_func.__module__)


def announce_compiling() -> None:
    """Have this process say so on its terminal, once; nothing is written where standard error is none."""
    if not _listening:
        _listening.append(CompilingNotice(_to_terminal))
        event.register("numba:compile", _listening[0])


def _to_terminal(line: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
