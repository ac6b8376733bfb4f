"""Running the drivers that kill: programs of their own, since what they do to a process a test cannot do to itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children: needs os.fork")


def drive(driver: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a driver, a file beside this one, and return its last line, which is JSON.

    Before it may stand what the work of its forks prints. The timeout of tests ends it too.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(driver)), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of some size on a folder; skips the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
