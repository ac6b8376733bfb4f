"""What a function is: a digest of its code and of everything that it reaches, so that a cache never mixes models.

A function is its code, its defaults, what it closes over, and every global, module and object that these name, and so
on from there. Of libraries, which are installed and not written beside the function, the names stand for themselves:
a cache records their versions. What has state that cannot be read, such as an open file or a handle of a C library,
cannot be identified, and neither can code that looks things up by names made up as it runs.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np

__all__ = ["identify"]

_ATOMS: Final = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(Ellipsis),
    type(NotImplemented),
    range,
)
# They reach what no reading of code can see.
_BLIND: Final = {"eval", "exec", "globals", "locals", "__import__", "compile"}
_CLASS_NOISE: Final = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__abstractmethods__", "__annotate_func__", "__annotate__", "_abc_impl",
    "__parameters__", "__orig_bases__", "__classdictcell__", "__annotations_cache__",
    "__slotnames__",
}  # fmt: skip
_LIBRARIES: Final = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class _UnknownError(Exception):
    """What cannot be identified, in words."""


def identify(function: Any, model_id: str | None = None) -> tuple[str | None, str]:
    """Identify a function.

    Parameters
    ----------
    function : callable
    model_id : str, optional
        A name that stands for it, whatever it reaches.

    Returns
    -------
    digest : str or None
        32 hexadecimal digits; None if it cannot be identified.
    reason : str
        Why not, as the end of a sentence: ``" (it reaches ...)"``; else empty.
    """
    if model_id is not None:
        return _hash(b"id", model_id.encode()).hex(), ""
    try:
        return _Reader().read(function).hex(), ""
    except _UnknownError as error:
        return None, f" ({error})"
    except RecursionError:
        return None, " (it reaches objects that are nested too deep)"


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class _Reader:
    """Reads values into digests, each object once."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        # An object that is gone could give its id to another.
        self._alive: list[Any] = []

    def read(self, value: Any) -> bytes:
        """Return the digest of a value."""
        if isinstance(value, _ATOMS) and type(value).__module__ == "builtins":
            return _hash(type(value).__name__.encode(), repr(value).encode())
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            # A circle: how far up it closes.
            return _hash(b"circle", str(len(self._open) - self._open[key]).encode())
        self._alive.append(value)
        self._open[key] = len(self._open)
        try:
            found = _hash(*self._parts(value))
        finally:
            del self._open[key]
        self._done[key] = found
        return found

    def _parts(self, value: Any) -> Iterator[bytes]:
        if type(value) in self._containers:
            yield type(value).__name__.encode()
            yield from self._containers[type(value)](self, value)
            return
        for kind, parts in self._kinds.items():
            if isinstance(value, kind):
                yield kind.__name__.encode()
                yield from parts(self, value)
                return
        if _is_tensor(value):
            yield from _tensor(value)
        elif hasattr(value, "py_func") and type(value).__module__.partition(".")[0] == "numba":
            yield b"compiled"
            yield self.read(value.py_func)
            yield self.read(dict(value.targetoptions))
        elif hasattr(value, "__wrapped__") and callable(value) and not isinstance(value, type):
            yield b"wrapped"
            yield self.read(value.__wrapped__)
        else:
            yield from self._object(value)

    def _items(self, value: Any) -> Iterator[bytes]:
        yield from map(self.read, value)

    def _unordered(self, value: Any) -> Iterator[bytes]:
        yield from sorted(map(self.read, value))

    def _mapping(self, value: Any) -> Iterator[bytes]:
        yield from sorted(self.read(key) + self.read(item) for key, item in value.items())

    def _array(self, value: Any) -> Iterator[bytes]:
        yield f"{value.dtype.descr if value.dtype.names else value.dtype.str} {value.shape}".encode()
        if value.dtype.hasobject:
            yield from map(self.read, value.ravel().tolist())
        else:
            yield np.ascontiguousarray(value).tobytes()

    def _path(self, value: Any) -> Iterator[bytes]:
        yield str(value).encode()

    def _partial(self, value: Any) -> Iterator[bytes]:
        yield self.read(value.func)
        yield self.read(value.args)
        yield self.read(value.keywords)

    def _method(self, value: Any) -> Iterator[bytes]:
        yield self.read(value.__func__)
        yield self.read(value.__self__)

    def _builtin(self, value: Any) -> Iterator[bytes]:
        yield value.__qualname__.encode()
        owner = value.__self__
        yield (owner.__name__ if isinstance(owner, types.ModuleType) else "").encode()
        if owner is not None and not isinstance(owner, types.ModuleType):
            yield self.read(owner)

    def _decorated(self, value: Any) -> Iterator[bytes]:
        yield self.read(value.__func__)

    def _property(self, value: Any) -> Iterator[bytes]:
        yield from map(self.read, (value.fget, value.fset, value.fdel))

    def _module(self, value: Any) -> Iterator[bytes]:
        """A module that is reached as a whole: a library by its name, another with all that is in it."""
        yield value.__name__.encode()
        if not _is_library(value.__name__):
            yield from self._named(value, [name for name in vars(value) if not name.startswith("__")])

    def _named(self, module: Any, names: Any) -> Iterator[bytes]:
        for name in sorted(set(names)):
            if name in vars(module):
                yield name.encode()
                yield self.read(vars(module)[name])

    def _class(self, value: Any) -> Iterator[bytes]:
        yield self._name(value)
        if _is_library(value.__module__):
            return
        yield from map(self.read, value.__bases__)
        for name in sorted(set(vars(value)) - _CLASS_NOISE):
            member = vars(value)[name]
            if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue
            yield name.encode()
            yield self.read(member)

    def _function(self, value: types.FunctionType) -> Iterator[bytes]:
        yield self._name(value)
        attributes = {name: item for name, item in vars(value).items() if name != "__wrapped__"}
        yield self.read(attributes)
        if _is_library(value.__globals__.get("__name__") or ""):
            # A decorator of a library closes over what it decorates.
            yield from self._cells(value)
            return
        yield from self._code(value.__code__, value.__globals__)
        yield from map(self.read, (value.__defaults__, value.__kwdefaults__))
        yield from self._cells(value)

    def _cells(self, value: types.FunctionType) -> Iterator[bytes]:
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                yield b"unbound"
                continue
            yield self.read(content)

    def _code(self, code: types.CodeType, names: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what a code does, and what the names in it stand for."""
        yield code.co_code
        yield repr((code.co_names, code.co_freevars, code.co_argcount, code.co_flags)).encode()
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self._code(constant, names)
            else:
                yield self.read(constant)
        attributes = {
            str(step.argval).split(" + ")[0] for step in dis.get_instructions(code) if "ATTR" in step.opname
        } | {str(step.argval) for step in dis.get_instructions(code) if "METHOD" in step.opname}
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield from self._global(step.argval, names, attributes)
            elif step.opname == "IMPORT_NAME":
                yield from self._import(step.argval, attributes)

    def _global(self, name: str, names: Mapping[str, Any], attributes: set[str]) -> Iterator[bytes]:
        yield name.encode()
        if name in names:
            value = names[name]
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                yield value.__name__.encode()
                yield from self._named(value, attributes)
            else:
                yield self.read(value)
        elif name in _BLIND:
            raise _UnknownError(f"it calls {name}(), which may reach anything")
        else:
            yield b"builtin" if hasattr(builtins, name) else b"unbound"

    def _import(self, name: str, attributes: set[str]) -> Iterator[bytes]:
        yield name.encode()
        if not _is_library(name):
            module = sys.modules.get(name)
            if module is None:
                raise _UnknownError(f"it imports {name} as it runs, which is not imported yet")
            yield from self._named(module, attributes)

    def _object(self, value: Any) -> Iterator[bytes]:
        """Any other object, by what a copy of it would be made from."""
        kind = type(value)
        yield self._name(kind)
        if not _is_library(kind.__module__):
            yield self.read(kind)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise _UnknownError(f"it reaches a {kind.__qualname__}, whose state cannot be read") from error
        if isinstance(reduced, str):
            if not _is_library(kind.__module__):
                raise _UnknownError(f"it reaches a {kind.__qualname__}, whose state cannot be read")
            yield reduced.encode()
            return
        function, arguments, *state = reduced
        yield self.read(function)
        yield self.read(arguments)
        for part in state:
            yield self.read(list(part) if isinstance(part, Iterator) else part)

    def _name(self, value: Any) -> bytes:
        return f"{value.__module__}.{value.__qualname__}".encode()

    def _scalar(self, value: Any) -> Iterator[bytes]:
        yield f"{value.dtype.str}".encode()
        yield value.tobytes()

    _kinds: Final[dict[type, Callable[[_Reader, Any], Iterator[bytes]]]] = {
        np.ndarray: _array,
        np.generic: _scalar,
        types.FunctionType: _function,
        types.MethodType: _method,
        types.BuiltinFunctionType: _builtin,
        types.ModuleType: _module,
        functools.partial: _partial,
        type: _class,
        property: _property,
        staticmethod: _decorated,
        classmethod: _decorated,
        PurePath: _path,
    }
    # By their exact types: what derives from one has state of its own.
    _containers: Final[dict[type, Callable[[_Reader, Any], Iterator[bytes]]]] = {
        list: _items,
        tuple: _items,
        set: _unordered,
        frozenset: _unordered,
        dict: _mapping,
    }


def _is_tensor(value: Any) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def _tensor(value: Any) -> Iterator[bytes]:
    import torch

    try:
        plain = value.detach().cpu().contiguous().reshape(-1)
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield plain.view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise _UnknownError("it reaches a tensor whose values cannot be read") from error


@functools.cache
def _is_library(name: str) -> bool:
    """Whether a module is installed rather than written beside the function."""
    root = name.partition(".")[0]
    if root in ("pricepix", "builtins"):
        return True
    if root in ("", "__main__"):
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    if spec.origin in (None, "built-in", "frozen"):
        places = list(spec.submodule_search_locations or [])
        return spec.origin is not None or any(_is_below(place) for place in places)
    return _is_below(str(spec.origin))


def _is_below(place: str) -> bool:
    return any(Path(place).resolve().is_relative_to(library) for library in _LIBRARIES)
