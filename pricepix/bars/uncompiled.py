"""Calls before anything is compiled: the kernels as Python runs them, for the first small calls of a process.

Compiling a renderer takes 4 to 15 s, once for a CPU; the same functions, interpreted, draw an image in about a
millisecond. So where a kernel is neither compiled nor in the cache, a process first does up to ``patience`` seconds'
worth of work without it. The results are the same: float64 is float64 either way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import FunctionType, ModuleType
from typing import Any, Final

import numpy as np
from numba.core import event

__all__ = ["Patience", "call", "interpret_small_calls", "is_compiled", "patience", "run_interpreted"]

# What a loop needs for a number of its arrays, with room; and the longest call of a kernel that is not announced as
# larger: compiling one takes a quarter of a second.
_NUMBER_SECONDS: Final = 2e-6
_SMALL_SECONDS: Final = 0.1


class Patience:
    """Seconds that this process may still spend on what compiled code would do at once.

    Parameters
    ----------
    seconds : float
        Less than compiling takes, so that a process which computes much loses little. 0 always compiles.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def allows(self, seconds: float) -> bool:
        """Whether a call that takes so long is still allowed."""
        return seconds <= self.seconds

    def spend(self, seconds: float) -> None:
        """Note that a call took so long."""
        self.seconds -= seconds


patience = Patience(3.0)


class _NotCompiledError(BaseException):
    """Ends a call that would compile; no handler of errors takes it for one."""


class _Refusal(event.Listener):
    """Ends the first compilation that this thread begins; those of other threads go on."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def on_start(self, event: Any) -> None:
        if threading.get_ident() == self._thread:
            raise _NotCompiledError

    def on_end(self, event: Any) -> None:
        pass


def is_compiled(kernel: Any, *nothing_to_do: Any) -> bool:
    """Whether a kernel is compiled for arguments of these types, or in the cache, from which it is then loaded.

    The kernel is called with the arguments, which should give it nothing to do.
    """
    if not hasattr(kernel, "py_func"):
        return True
    try:
        with event.install_listener("numba:compile", _Refusal()):
            kernel(*nothing_to_do)
    except _NotCompiledError:
        return False
    return True


def call(kernel: Any, seconds: float, *args: Any, instead: Callable[..., Any] | None = None) -> Any:
    """Call a kernel that Python runs in about `seconds`: interpreted where it is not compiled and there is patience.

    `instead` is a function that does the same, called in place of the interpreted kernel.
    """
    if getattr(kernel, "signatures", True) or not patience.allows(seconds):
        return kernel(*args)
    try:
        with event.install_listener("numba:compile", _Refusal()):
            return kernel(*args)
    except _NotCompiledError:
        patience.spend(seconds)
    if instead is not None:
        return instead(*args)
    done, result = run_interpreted(kernel, *args)
    return result if done else kernel(*args)


def interpret_small_calls(module: ModuleType, overflow: Any = "raise") -> None:
    """Have the kernels of a module interpreted in small calls, while there is patience, where they are not compiled.

    Sizes are those of the arrays that a kernel is given, so its loops should run over these, a few times at most.
    `overflow` is NumPy's way with numbers that grow too large: a whole number wraps in compiled code, and may wrap
    at another size in NumPy, so that it raises, and the call is compiled after all.
    """
    for kernel in vars(module).values():
        # Numba asks a dispatcher for this method when it meets arguments of new types, and calls what it returns.
        compile_for_args = getattr(kernel, "_compile_for_args", None)
        if compile_for_args is not None and kernel.py_func.__module__ == module.__name__:
            kernel._compile_for_args = partial(_choose, kernel, compile_for_args, overflow)


def _choose(
    kernel: Any, compile_for_args: Callable[..., Any], overflow: Any, *args: Any
) -> Callable[..., Any]:
    """Return what a dispatcher calls: the compiled function, or what runs it as Python does."""
    arrays = list(_arrays_in(args))
    seconds = _NUMBER_SECONDS * sum(array.size for array in arrays)
    if seconds > _SMALL_SECONDS or not patience.allows(seconds):
        return compile_for_args(*args)
    try:
        with event.install_listener("numba:compile", _Refusal()):
            return compile_for_args(*args)
    except _NotCompiledError:
        patience.spend(seconds)

    def interpreted(*args: Any) -> Any:
        before = [(array, array.copy()) for array in arrays if array.flags.writeable]
        done, result = run_interpreted(kernel, *args, overflow=overflow)
        if done:
            return result
        for array, content in before:
            array[...] = content
        return compile_for_args(*args)(*args)

    return interpreted


def _arrays_in(values: Iterable[Any]) -> Iterator[np.ndarray]:
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, tuple):
            yield from _arrays_in(value)


def run_interpreted(kernel: Any, *args: Any, overflow: Any = "ignore") -> tuple[bool, Any]:
    """Run a kernel as Python does; return whether it came through, and its result.

    It does not where compiled code leaves undefined what Python refuses, such as the whole number of a NaN: what it
    wrote is then for the compiled kernel to write again.
    """
    try:
        # Compiled code divides by zero without a word.
        with np.errstate(all="ignore", over=overflow):
            return True, _interpreted(kernel)(*args)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return False, None


@lru_cache(maxsize=64)
def _interpreted(kernel: Any) -> Callable[..., Any]:
    """Return the Python function of a kernel, calling those of the kernels that it calls."""
    done: dict[Any, FunctionType] = {}

    def plain(kernel: Any) -> FunctionType:
        function = kernel.py_func
        if function not in done:
            names = dict(function.__globals__)
            done[function] = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
            for name in function.__code__.co_names:
                if hasattr(names.get(name), "py_func"):
                    names[name] = plain(names[name])
        return done[function]

    return plain(kernel)
