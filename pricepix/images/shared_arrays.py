"""Arrays that the processes of a machine share: laid down in one file, mapped by all who unpickle them.

A file and not POSIX shared memory: containers give that a few megabytes, it does not exist under one name
everywhere, and Python's own tracker of it deletes what a process of another family still needs. A file serves
every way of starting processes (spawn, forkserver, a launcher of ranks), and its pages stand in memory once.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedArrays"]

_PREFIX: Final = "pricepix-shared-"
_UNLOCKED: Final = "pricepix-new-"
_ALIGNMENT: Final = 4096
_Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]


class SharedArrays:
    """Named arrays, of which a pickle holds only where they lie.

    The first pickle writes them to a file in the folder for temporary files (``TMPDIR`` chooses it), later
    ones write nothing. Whoever unpickles one maps that file, read-only. It is removed when the object goes, and
    with its process; of a process that was killed, by the next that shares anything. Forked processes share
    memory anyway.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)
        self._path: str | None = None
        self._layout: _Layout = ()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    @property
    def path(self) -> str | None:
        """The file, None before anything was pickled."""
        return self._path

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if self._path is None:
                self._publish()
        return _attached, (self._path, self._layout)

    def _publish(self) -> None:
        _sweep()
        layout, at = [], 0
        for name, array in self._arrays.items():
            layout.append((name, array.dtype.str, array.shape, at))
            at += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        # Open for as long as the file is needed: the lock on it says that somebody lives who needs it. It gets
        # the name that `_sweep` looks for once it is locked.
        descriptor, unlocked = tempfile.mkstemp(prefix=_UNLOCKED)
        path = os.path.join(os.path.dirname(unlocked), _PREFIX + os.path.basename(unlocked)[len(_UNLOCKED) :])
        file = os.fdopen(descriptor, "wb")
        try:
            _hold(descriptor)
            os.rename(unlocked, path)
            for (_, _, _, start), array in zip(layout, self._arrays.values(), strict=True):
                file.seek(start)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.truncate(max(at, 1))
            file.flush()
        except BaseException:
            for name in (unlocked, path):
                _remove(file, name, os.getpid())
            raise
        self._layout, self._path = tuple(layout), path
        weakref.finalize(self, _remove, file, path, os.getpid())


def _attached(path: str, layout: _Layout) -> SharedArrays:
    try:
        whole = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the shared arrays in {path} are gone: the process that pickled them has ended, or what it pickled "
            "was deleted there. Keep it until its workers have started; a pickle is no way to keep images on disk"
        ) from None
    arrays = {}
    for name, dtype, shape, start in layout:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        arrays[name] = np.asarray(whole[start : start + size]).view(kind).reshape(shape)
    shared = SharedArrays(arrays)
    shared._path, shared._layout = path, layout
    return shared


def _hold(descriptor: int) -> None:
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            raise OSError(
                f"the folder for temporary files, {tempfile.gettempdir()}, has no file locks ({error}), which sharing "
                "arrays with other processes needs: name another in TMPDIR"
            ) from error


def _remove(file: Any, path: str, owner: int) -> None:
    """Delete the file, unless this is a forked child of the process it belongs to."""
    if os.getpid() == owner:
        # On a full disk closing fails too: there is something left to write.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(path)


def _sweep() -> None:
    """Delete files of processes that were killed: nobody holds a lock on them."""
    try:
        import fcntl
    except ImportError:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
