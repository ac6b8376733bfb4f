"""One writer at a time: a lock that dies with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, Final

from pricepix.location import BUILD, Folder, Location, name_file

try:
    import fcntl
except ImportError:  # Windows: leases do there what the kernel's locks do elsewhere
    fcntl = None  # type: ignore[assignment]

KEY: Final = f"{BUILD}/lock"
LEASE_SECONDS: Final = 120.0
_LONGEST_SECONDS: Final = 3600.0


# The package filelock would replace half of `_lock_file` and nothing else: it leaves the lock file behind, does not say
# who holds the lock, and has no lease for object stores.
class WriteLock:
    """The right to write a store, or another thing that messages call `noun`, as a context manager.

    In a folder this is a lock of the operating system, which it releases when the process ends, however it
    ends; it also holds between machines where the file system passes locks on (NFS 4, Lustre with flock).
    Elsewhere it is a lease: an object that is renewed every 30 seconds and expires after 120, or at once if its
    process was on this machine and is gone.

    Raises
    ------
    BlockingIOError
        On entry, if another process writes the store; the message names it.
    """

    def __init__(self, location: Location, noun: str = "store") -> None:
        self._location = location
        self._noun = noun
        self._ticket_fields = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
        }
        self._file = -1
        self._stop = threading.Event()
        self._renewed = time.monotonic()
        self.lost = False
        """Whether another process has taken the lock since."""

    def __enter__(self) -> WriteLock:
        if isinstance(self._location, Folder) and fcntl is not None:
            self._lock_file(self._location)
        else:
            self._lease()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file >= 0:
            assert isinstance(self._location, Folder)
            folder = self._location.path / BUILD
            # Unlinked while it is locked: a writer that opened it before finds that its path has another file now.
            with suppress(OSError):
                (folder / "lock").unlink()
            os.close(self._file)
            self._file = -1
            with suppress(OSError):
                folder.rmdir()
            return
        self._stop.set()
        with suppress(Exception):
            if self._holder().get("token") == self._ticket_fields["token"]:
                self._location.delete(KEY)

    def check(self) -> None:
        """Raise BlockingIOError if the lock was lost to another process."""
        # A process that was stopped, or whose machine slept, gets here before its thread has looked.
        if self._file < 0 and not self.lost and time.monotonic() - self._renewed > LEASE_SECONDS / 2:
            self._renew_once()
        if self.lost:
            again = "build again with mode='resume'" if self._noun == "store" else "call it again"
            raise BlockingIOError(
                f"the lock on {self._noun} {self._location.name} was lost: this process did not renew it for "
                f"{LEASE_SECONDS:.0f} seconds and another took it; {again} when that one is done"
            )

    def _lock_file(self, location: Folder) -> None:
        path = location.path / BUILD / "lock"
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another writer was just removing the folder
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.read(file, 4096)
                os.close(file)
                raise self._busy(_parse_ticket(holder)) from None
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(file).st_ino:
                    break
            os.close(file)
        try:
            os.ftruncate(file, 0)
            os.write(file, json.dumps(self._ticket_fields).encode())
        except OSError as error:
            os.close(file)
            name_file(error, str(path))
            raise
        self._file = file

    def _lease(self) -> None:
        if not self._location.put_new(KEY, self._ticket()):
            holder = self._holder()
            if not _is_stale(holder):
                raise self._busy(holder)
            self._location.put(KEY, self._ticket())
            if self._holder().get("token") != self._ticket_fields["token"]:
                raise self._busy(self._holder())
        self._renewed = time.monotonic()
        threading.Thread(target=self._renew, name="pricepix-lock", daemon=True).start()

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            with suppress(Exception):  # a failed renewal is tried again; expiry is what counts
                self._renew_once()
            if self.lost:
                return

    def _renew_once(self) -> None:
        if self._holder().get("token") != self._ticket_fields["token"]:
            self.lost = True
            return
        self._location.put(KEY, self._ticket())
        self._renewed = time.monotonic()

    def _ticket(self) -> bytes:
        return json.dumps({**self._ticket_fields, "expires": time.time() + LEASE_SECONDS}).encode()

    def _holder(self) -> dict[str, Any]:
        return _parse_ticket(bytes(self._location.get(KEY) or b""))

    def _busy(self, holder: dict[str, Any]) -> BlockingIOError:
        who = (
            f"process {holder['pid']} on {holder['host']} since {holder['since']}"
            if holder
            else "another process"
        )
        return BlockingIOError(
            f"{self._noun} {self._location.name} is being written by {who}: wait for it, or stop it first"
        )


def _parse_ticket(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(content)
        if isinstance(found, dict) and {"pid", "host", "since"} <= found.keys():
            return found
    return {}


def _is_stale(holder: dict[str, Any]) -> bool:
    expires = holder.get("expires", 0.0)
    # Nobody takes a lease for an hour: whoever did has a clock that was wrong, or this one was set back since.
    if not isinstance(expires, int | float) or not 0 < expires - time.time() < _LONGEST_SECONDS:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
