"""Locations of stores: a folder, a bucket, or any zarr store, as one small set of object operations.

zarr-python costs about 0.2 ms an object and hides whether a write is atomic, so what must be fast or survive a kill
goes through this module. So do files of others: only regular ones are opened, and no more is read than was asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml
import zarr
from zarr.abc.store import Store
from zarr.buffer import cpu, default_buffer_prototype

# Private, for want of a public one: it waits for a coroutine on zarr's own event loop. The connections of a store
# of fsspec belong to the loop that opened them, and `ImageStore.images` reads the same store on that of zarr.
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pricepix._checks import printable, short

BUILD: Final = "_build"
"""Folder inside a store for objects that exist only while it is written."""

StoreLike = str | os.PathLike[str] | Store
StrPath = str | os.PathLike[str]
Content = bytes | bytearray | memoryview

METADATA_BYTES: Final = 8 << 20
"""The most that an object of metadata may take. JSON of this size can take 200 MB of memory; ours has some 30 kB."""

# obstore waits 30 s for an answer and asks again for 3 minutes; a server that never answers is given up after 30 s.
_CLIENT_LIMITS: Final = {"timeout": "15s", "connect_timeout": "5s"}
_RETRY_LIMITS: Final = {"max_retries": 5, "retry_timeout": timedelta(seconds=25)}
_CLIENT_PREFIX: Final = {
    "s3": "AWS_",
    "s3a": "AWS_",
    "gs": "GOOGLE_",
    "az": "AZURE_",
    "abfs": "AZURE_",
    "abfss": "AZURE_",
}
_CLIENT_OPTIONS: Final = (
    "allow_http", "allow_invalid_certificates", "proxy_url", "proxy_excludes", "proxy_ca_certificate", "user_agent",
    "pool_idle_timeout", "timeout", "connect_timeout",
)  # fmt: skip

# Of those that not every system has: not to wait for a pipe's writer, not to be inherited, no translated line ends.
_OPEN_FLAGS: Final = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))

_MEMORY: dict[str, MemoryStore] = {}
# Names of half-written files: no two machines, processes (forked ones too) or threads share one.
_PROCESS: Final = uuid.uuid4().hex[:12]
_serial = itertools.count()


class Location:
    """Objects by key below one place. Every ``put`` is atomic: a key holds all old or all new bytes."""

    name: str
    """Path or URL, as messages show it."""
    path: Path | None = None
    """The folder, where it is one."""

    @staticmethod
    def of(where: StoreLike | Location, storage_options: Mapping[str, Any] | None = None) -> Location:
        """Return the location of a path, a URL or a Zarr store.

        Parameters
        ----------
        where : str, path, zarr store or Location
            ``file://`` and ``memory://`` need nothing more; ``s3://``, ``gs://``, ``az://`` and ``https://``
            go through obstore, which the extra ``cloud`` installs.
        storage_options : mapping, optional
            Given to ``obstore.store.from_url``: keys, region, endpoint, ``client_options``. By default those
            of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...).

        Raises
        ------
        ImportError
            If obstore is needed and not installed.
        TypeError, ValueError
            If this is not a location, or options are given for one that takes none.
        """
        if isinstance(where, Location):
            return where
        if isinstance(where, Store):
            root = getattr(where, "root", None)
            found: Location = Folder(root) if isinstance(root, Path) else ZarrObjects(where)
        elif isinstance(where, (str, os.PathLike)):
            text = os.fspath(where)
            scheme = text.partition("://")[0].lower() if "://" in text else ""
            if scheme == "":
                found = Folder(Path(text))
            elif scheme == "file":
                found = Folder(Path(url2pathname(urlsplit(text).path)))
            elif scheme == "memory":
                found = ZarrObjects(_MEMORY.setdefault(text.rstrip("/"), MemoryStore()), text)
            else:
                return Bucket(text, storage_options)
        else:
            raise TypeError(f"{where!r} is not a location: give a path, a URL or a zarr store")
        if storage_options:
            raise ValueError(
                f"storage_options are for URLs such as s3://bucket/name, not for {found.name}: leave them out"
            )
        return found

    def get(self, key: str, max_bytes: int | None = None) -> Content | None:
        """Return an object's bytes, None where there is none; ValueError if it has more than `max_bytes`."""
        raise NotImplementedError

    def get_range(self, key: str, start: int | None, length: int) -> Content | None:
        """Return `length` bytes from `start`, or the last `length` where `start` is None; None: no object."""
        raise NotImplementedError

    def put(self, key: str, content: Content | Sequence[Content]) -> None:
        """Write an object, or replace it, at once."""
        raise NotImplementedError

    def put_new(self, key: str, content: bytes) -> bool:
        """Write an object where there is none; False where there is."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        raise NotImplementedError

    def delete_all(self, prefix: str = "", *, keep: str = "") -> None:
        """Remove all objects whose key starts with the folder `prefix`, except the one named `keep`."""
        for key in list(self.list(prefix)):
            if key != keep:
                self.delete(key)

    def move(self, source: str, target: str) -> None:
        """Give an object another key. Where that is a copy, the source goes last."""
        content = self.get(source)
        if content is not None:
            self.put(target, content)
            self.delete(source)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of all objects in the folder `prefix`, in any order."""
        raise NotImplementedError

    def is_empty(self) -> bool:
        """Whether there is no object at all."""
        return next(self.list(), None) is None

    def zarr_store(self, *, read_only: bool = True) -> Store:
        """Return the location as a zarr store."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Folder(Location):
    """A folder of a file system. Objects are written beside and renamed into place."""

    def __init__(self, path: Path) -> None:
        self.path: Path = Path(path)
        self.name = str(path)

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        file_name = os.path.join(self.name, key)
        try:
            with opened(file_name) as file:
                if max_bytes is not None:
                    check_size(os.fstat(file.fileno()).st_size, max_bytes, file_name)
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get_range(self, key: str, start: int | None, length: int) -> bytes | None:
        try:
            with opened(os.path.join(self.name, key)) as file:
                size = os.fstat(file.fileno()).st_size
                first = max(0, size - length) if start is None else min(start, size)
                return os.pread(file.fileno(), min(length, size - first), first)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, content: Content | Sequence[Content]) -> None:
        target = os.path.join(self.name, key)
        scratch = os.path.join(self.name, BUILD, "tmp", f"{_PROCESS}-{os.getpid()}-{next(_serial)}")
        try:
            try:
                self._write(scratch, content)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(scratch), exist_ok=True)
                self._write(scratch, content)
            try:
                os.replace(scratch, target)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.replace(scratch, target)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(scratch)
            name_file(error, target)
            raise

    @staticmethod
    def _write(file_name: str, content: Content | Sequence[Content]) -> None:
        with open(file_name, "wb") as file:
            file.writelines([content] if isinstance(content, (bytes, bytearray, memoryview)) else content)

    def put_new(self, key: str, content: bytes) -> bool:
        target = self.path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        # Metadata name what an interrupted append deletes, and whoever wrote them may name any file.
        if os.path.isabs(key) or ".." in Path(key).parts:
            raise ValueError(f"{key!r} lies outside {self.name}: only objects of a location can be deleted")
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.name, key))

    def delete_all(self, prefix: str = "", *, keep: str = "") -> None:
        top = self.path / prefix if prefix else self.path
        kept = self.path / keep if keep else None
        if not top.is_dir():
            return
        for entry in top.iterdir():
            if entry == kept:
                continue
            if kept is not None and entry in kept.parents:
                self.delete_all(str(entry.relative_to(self.path)), keep=keep)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        if prefix and kept is None:
            top.rmdir()

    def move(self, source: str, target: str) -> None:
        old, new = os.path.join(self.name, source), os.path.join(self.name, target)
        if os.path.exists(old):
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.replace(old, new)

    def list(self, prefix: str = "") -> Iterator[str]:
        top = os.path.join(self.name, prefix) if prefix else self.name
        for folder, _, files in os.walk(top):
            relative = os.path.relpath(folder, self.name)
            for file in files:
                yield file if relative == "." else f"{relative}/{file}".replace(os.sep, "/")

    def is_empty(self) -> bool:
        return not self.path.exists() or next(self.path.iterdir(), None) is None

    def zarr_store(self, *, read_only: bool = True) -> Store:
        return zarr.storage.LocalStore(self.path, read_only=read_only)


class Bucket(Location):
    """A prefix of an object store, through obstore."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.name = url.rstrip("/")
        self._options = dict(options or {})
        self._connect()

    def _connect(self) -> None:
        try:
            import obstore
        except ImportError as error:
            raise ImportError(
                f"{self.name} is an object store, which needs obstore: pip install 'pricepix[cloud]'"
            ) from error
        self._api = obstore
        try:
            self._objects = obstore.store.from_url(self.name, **_with_timeouts(self.name, self._options))
        except Exception as error:
            raise ValueError(f"{self.name} cannot be opened with the options given: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    @contextmanager
    def _reworded(self) -> Iterator[None]:
        """Turn the errors of obstore, which have pages of detail, into those of files."""
        try:
            yield
        except OSError:
            raise
        except (
            self._api.exceptions.PermissionDeniedError,
            self._api.exceptions.UnauthenticatedError,
        ) as error:
            raise PermissionError(f"{self.name} refuses access: {_first_line(error)}") from error
        except self._api.exceptions.BaseError as error:
            if "BadScheme" in str(error):
                prefix = _CLIENT_PREFIX.get(self.name.partition("://")[0].lower(), "")
                raise OSError(
                    f"{self.name} has an endpoint of plain http, which nothing protects and is therefore refused: "
                    f"where that is meant, set {prefix}ALLOW_HTTP=true in the environment, or pass "
                    "storage_options={'client_options': {'allow_http': True}, ...}"
                ) from error
            raise OSError(f"{self.name} cannot be reached or used: {_first_line(error)}") from error

    def get(self, key: str, max_bytes: int | None = None) -> Content | None:
        try:
            with self._reworded():
                found = self._api.get(self._objects, key)
                if max_bytes is not None:
                    check_size(found.meta["size"], max_bytes, f"{self.name}/{key}")
                return memoryview(found.bytes())
        except FileNotFoundError:
            return None

    def get_range(self, key: str, start: int | None, length: int) -> Content | None:
        try:
            with self._reworded():
                if start is None:
                    found = self._api.get(self._objects, key, options={"range": {"suffix": length}})
                    return memoryview(found.bytes())
                return memoryview(self._api.get_range(self._objects, key, start=start, length=length))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None where there is none."""
        try:
            with self._reworded():
                return int(self._api.head(self._objects, key)["size"])
        except FileNotFoundError:
            return None

    def put(self, key: str, content: Content | Sequence[Content]) -> None:
        whole = content if isinstance(content, (bytes, bytearray, memoryview)) else b"".join(content)
        with self._reworded():
            self._api.put(self._objects, key, bytes(whole))

    def put_new(self, key: str, content: bytes) -> bool:
        try:
            with self._reworded():
                self._api.put(self._objects, key, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if isinstance(error.__cause__, self._api.exceptions.AlreadyExistsError):
                return False
            raise
        return True

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), self._reworded():
            self._api.delete(self._objects, key)

    def delete_all(self, prefix: str = "", *, keep: str = "") -> None:
        keys = [key for key in self.list(prefix) if key != keep]
        with self._reworded():
            for first in range(0, len(keys), 1000):
                self._api.delete(self._objects, keys[first : first + 1000])

    def list(self, prefix: str = "") -> Iterator[str]:
        with self._reworded():
            for page in self._api.list(self._objects, prefix=prefix or None):
                for entry in page:
                    yield str(entry["path"])

    def zarr_store(self, *, read_only: bool = True) -> Store:
        return zarr.storage.ObjectStore(self._objects, read_only=read_only)


def _with_timeouts(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an object store with the time limits that they leave open."""
    own = options.get("client_options")
    prefix = _CLIENT_PREFIX.get(url.partition("://")[0].lower())
    # obstore forgets the client's settings of the environment, such as AWS_ALLOW_HTTP, once any are given.
    set_outside = {
        name: value for name in _CLIENT_OPTIONS if prefix and (value := os.environ.get(prefix + name.upper()))
    }
    client = {**_CLIENT_LIMITS, **set_outside, **(own if isinstance(own, Mapping) else {})}
    return {**options, "client_options": client, "retry_config": options.get("retry_config") or _RETRY_LIMITS}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class ZarrObjects(Location):
    """Any store of zarr: in memory, of fsspec, or a user's own class."""

    def __init__(self, store: Store, name: str | None = None) -> None:
        self._store = store
        self.name = name or str(store)

    def get(self, key: str, max_bytes: int | None = None) -> Content | None:
        found = sync(self._store.get(key, default_buffer_prototype()))
        if found is None:
            return None
        if max_bytes is not None:
            check_size(len(found), max_bytes, f"{self.name}/{key}")
        return memoryview(found.as_numpy_array())  # type: ignore[arg-type]

    def get_range(self, key: str, start: int | None, length: int) -> Content | None:
        whole = self.get(key)
        if whole is None:
            return None
        first = max(0, len(whole) - length) if start is None else start
        return memoryview(whole)[first : first + length]

    def put(self, key: str, content: Content | Sequence[Content]) -> None:
        whole = content if isinstance(content, (bytes, bytearray, memoryview)) else b"".join(content)
        sync(self._store.set(key, cpu.Buffer.from_bytes(bytes(whole))))

    def put_new(self, key: str, content: bytes) -> bool:
        if self.get(key) is not None:
            return False
        sync(self._store.set_if_not_exists(key, cpu.Buffer.from_bytes(content)))
        found = self.get(key)
        return found is not None and bytes(found) == content

    def delete(self, key: str) -> None:
        with suppress(KeyError, FileNotFoundError):
            sync(self._store.delete(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        async def keys() -> list[str]:
            return [key async for key in self._store.list_prefix(f"{prefix}/" if prefix else "")]

        yield from sync(keys())

    def zarr_store(self, *, read_only: bool = True) -> Store:
        return self._store.with_read_only(read_only) if self._store.read_only != read_only else self._store


def open_regular(path: StrPath) -> int:
    """Open a file for reading and return its descriptor; ValueError if it is a pipe, a device or a folder.

    To open a named pipe that nobody writes to waits for ever, and ``/dev/zero`` never ends.
    """
    descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(path, mode)
    return descriptor


@contextmanager
def opened(path: StrPath) -> Iterator[FileIO]:
    """Open a regular file for reading; errors name it, which those of a read do not."""
    try:
        with FileIO(open_regular(path)) as file:
            yield file
    except OSError as error:
        name_file(error, os.fspath(path))
        raise


def check_regular(path: StrPath) -> None:
    """Raise ValueError if a path that exists is not a regular file, for readers that open it themselves."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise _not_regular(path, mode)


def _not_regular(path: StrPath, mode: int) -> ValueError:
    kinds = {
        stat.S_ISDIR: "folder", stat.S_ISFIFO: "named pipe", stat.S_ISCHR: "device", stat.S_ISBLK: "device",
    }  # fmt: skip
    kind = next((name for test, name in kinds.items() if test(mode)), "socket")
    return ValueError(f"{os.fspath(path)} is a {kind}, not a regular file: only regular files are read")


def check_size(size: int, max_bytes: int, name: str) -> None:
    """Raise ValueError if something that is to be read takes more than `max_bytes`."""
    if size > max_bytes:
        raise ValueError(
            f"{name} has {size:,} bytes, more than the {max_bytes:,} that may be read (max_bytes): "
            "it is damaged, or not what its name says"
        )


def read_regular(path: StrPath, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; ValueError for anything else."""
    with opened(path) as file:
        check_size(os.fstat(file.fileno()).st_size, max_bytes, os.fspath(path))
        return file.readall()


YAML_NODES: Final = 5_000
"""The most values that a YAML file may hold once its aliases are expanded: our longest template has 60."""
RUN_YAML_NODES: Final = 100_000
"""The same for the resolved configuration of a run, which may list the instruments that it is trained on."""
_YAML_DEPTH: Final = 50
_YAML_BYTES: Final = 200
"""Bytes a value, on average."""


def read_yaml(path: StrPath, max_nodes: int = YAML_NODES) -> Any:
    """Return the plain values of a YAML file; every YAML file is read here.

    Raises
    ------
    ValueError
        If it is not a regular file, not UTF-8, not YAML of plain values, nested more than 50 deep, or has more than
        `max_nodes` values once its aliases are expanded. Ten lines of aliases to lists of aliases make ten billion.
    """
    content = read_regular(path, _YAML_BYTES * max_nodes)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not YAML: it holds bytes, not text, as files of bars do; give the configuration that names them"
        ) from None
    try:
        _check_nodes(text, max_nodes)
        loader = _YAML_LOADER(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        why = str(error)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        # The constructors of PyYAML make dates and numbers, and let everything through that fails there.
        why = str(error) or type(error).__name__
    raise ValueError(f"{path} is not YAML: {printable(' '.join(why.split()))[:500]}")


# libyaml's parser is ten times as fast; both make plain values only.
_YAML_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_nodes(text: str, max_nodes: int) -> None:
    """Raise ValueError if a document is too deep or too large, from its events: they cost no more than its text."""
    total = 0
    sizes: dict[str, int] = {}
    # The anchor of each collection that is open, and the values in it so far.
    opened: list[list[Any]] = []
    for event in yaml.parse(text, _YAML_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append([event.anchor, 1])
            if len(opened) > _YAML_DEPTH:
                raise ValueError(f"it is nested more than {_YAML_DEPTH} deep")
            continue
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias {short(event.anchor)} stands before, or within, what it names")
            anchor, size = None, sizes[event.anchor]
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        total = size
        if opened:
            opened[-1][1] += size
            total = max(entry[1] for entry in opened)
        if total > max_nodes:
            raise ValueError(
                f"it has more than {max_nodes:,} values once its aliases are expanded (max_nodes)"
            )


@contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """Yield a path to write a file to, which replaces `path` at once when the block ends.

    A kill in the middle, or an error in the block, leaves the file that was there.
    """
    partial = Path(f"{os.fspath(path)}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        name_file(error, os.fspath(path))
        raise


def name_file(error: BaseException, path: str) -> None:
    """Make an error say which file it is about: those of reads and writes, as on a full disk, name none."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = path


def write_json(path: StrPath, content: Any) -> None:
    """Write a JSON file, or replace it at once."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
