"""Arrays that processes share: each in a file of numpy's own format, mapped by all who read it.

Files and not POSIX shared memory: containers give that a few megabytes, it does not exist under one name everywhere,
and Python's own tracker of it deletes what a process of another family still needs. Files serve every way of starting
processes (spawn, forkserver, a launcher of ranks), and their pages are in memory once.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.location import Folder, Location

__all__ = ["SharedArrays", "load_array", "save_array"]

_PREFIX: Final = "pricepix-shared-"
_UNLOCKED: Final = "pricepix-new-"
_LEASE: Final = "lease"


def save_array(location: Location, key: str, array: NDArray[Any]) -> None:
    """Write an array as the object `key`, in numpy's format (``.npy``)."""
    if isinstance(location, Folder):
        path = location.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array, allow_pickle=False)
    else:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        location.put(key, buffer.getvalue())


def load_array(location: Location, key: str) -> NDArray[Any]:
    """Return an array that `save_array` wrote: mapped read-only in a folder, else read; FileNotFoundError for none."""
    if isinstance(location, Folder):
        mapped: NDArray[Any] = np.load(location.path / key, mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped)
    content = location.get(key)
    if content is None:
        raise FileNotFoundError(f"{location.name} holds no {key}")
    found: NDArray[Any] = np.load(io.BytesIO(bytes(content)), allow_pickle=False)
    return found


class SharedArrays:
    """Named arrays whose pickle holds only the path of a folder with their files.

    The first pickle writes the arrays to a folder below that for temporary files (``TMPDIR`` chooses it), later ones
    write nothing. A process that unpickles one maps the files, read-only. The folder is removed with the object, and
    with its process; that of a process that was killed, by the next one that shares anything. Forked processes share
    memory anyway.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        The names become file names.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)
        self._path: str | None = None
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    @property
    def path(self) -> str | None:
        """The folder, None before anything was pickled."""
        return self._path

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if self._path is None:
                self._publish()
        return _attach, (self._path, tuple(self._arrays))

    def _publish(self) -> None:
        _sweep()
        unlocked = tempfile.mkdtemp(prefix=_UNLOCKED)
        path = os.path.join(os.path.dirname(unlocked), _PREFIX + os.path.basename(unlocked)[len(_UNLOCKED) :])
        # Open for as long as the files are needed: the lock on it says that their process lives. The folder gets the
        # name that `_sweep` looks for once it is locked.
        lease = open(os.path.join(unlocked, _LEASE), "wb")  # noqa: SIM115
        try:
            _lock_shared(lease.fileno())
            os.rename(unlocked, path)
            for name, array in self._arrays.items():
                save_array(Folder(Path(path)), f"{name}.npy", array)
        except BaseException:
            for folder in (unlocked, path):
                _remove(lease, folder, os.getpid())
            raise
        self._path = path
        weakref.finalize(self, _remove, lease, path, os.getpid())


def _attach(path: str, names: Iterable[str]) -> SharedArrays:
    try:
        shared = SharedArrays({name: load_array(Folder(Path(path)), f"{name}.npy") for name in names})
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the shared arrays in {path} are gone: the process that pickled them has ended, or what it pickled was "
            "deleted there. Keep it until its workers have started, and keep images on disk in a store, not in a pickle"
        ) from None
    shared._path = path
    return shared


def _lock_shared(descriptor: int) -> None:
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            raise OSError(
                f"the folder for temporary files, {tempfile.gettempdir()}, has no file locks ({error}), which sharing "
                "arrays with other processes needs: name another in TMPDIR"
            ) from error


def _remove(lease: Any, path: str, owner: int) -> None:
    """Delete the folder, unless this is a forked child of the process it belongs to."""
    if os.getpid() == owner:
        with suppress(OSError):
            lease.close()
        shutil.rmtree(path, ignore_errors=True)


def _sweep() -> None:
    """Delete folders of processes that were killed: no process holds a lock on them."""
    try:
        import fcntl
    except ImportError:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (path / _LEASE).open("rb") as lease:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
