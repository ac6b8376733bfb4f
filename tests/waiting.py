"""Waiting for something to happen in another thread or process: until it has, never for a time that seems enough."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return as soon as `happened` gives True; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"still waiting after {seconds} s"
        time.sleep(0.001)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
