"""Compiled code is kept between processes: started at once, started later, and installed where nobody may write."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_code import forget_stale_kernels

import pricepix

pytestmark = pytest.mark.nightly

# Prints where the package lies, how many kernels came from the cache and were compiled, and a digest of images.
# Widening compiles in a second or two where drawing takes five: a kernel of the fast path and a plain one.
SCRIPT = """
import hashlib
import numpy as np
import pricepix
from pricepix.bars import uncompiled
from pricepix.render import fast, widen
from pricepix.render.bits import unpack_images

uncompiled.patience.seconds = 0
bits = np.arange(480, dtype=np.uint8)[None]
images = widen(bits, 64, 60).tobytes() + widen(bits[:, :1], 2, 3).tobytes()
stats = [kernel.stats for kernel in (fast.widen, unpack_images)]
hits, misses = (sum(sum(getattr(s, name).values()) for s in stats) for name in ("cache_hits", "cache_misses"))
print(pricepix.__file__, hits, misses, hashlib.sha256(images).hexdigest())
"""


def start(folder: Path, prefix: list[str] | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start a process in a folder that compiles or loads two kernels and runs them."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT")}
    return subprocess.Popen(
        [*(prefix or []), sys.executable, "-c", SCRIPT],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[str, int, int, str]:
    """Package file, cache hits, cache misses and digest that a process printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    file, hits, misses, digest = out.split()
    return file, int(hits), int(misses), digest


def files(folder: Path) -> dict[Path, int]:
    """Files in a folder and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_processes_started_at_once_share_one_empty_cache(tmp_path):
    cache = tmp_path / "cache"
    environment = {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(pricepix.__file__).parents[1])}
    at_once = [outcome(p) for p in [start(tmp_path, **environment) for _ in range(3)]]
    assert len({digest for *_, digest in at_once}) == 1
    kept = files(cache)
    assert kept
    assert not [path for path in kept if ".tmp." in path.name]
    _, hits, misses, digest = outcome(start(tmp_path, **environment))
    assert (hits, misses) == (2, 0)
    assert digest == at_once[0][3]
    assert files(cache) == kept


def unprivileged() -> list[str]:
    """Command prefix under which the permissions of files hold: root needs to give up its right to ignore them."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root writes everywhere, and there is no setpriv to prevent it")
    return [setpriv, "--inh-caps=-all", "--bounding-set=-dac_override"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no permissions of this kind on Windows")
def test_read_only_install_keeps_compiled_code_in_the_users_cache(tmp_path):
    prefix = unprivileged()
    site, home = tmp_path / "site", tmp_path / "home"
    shutil.copytree(
        Path(pricepix.__file__).parent, site / "pricepix", ignore=shutil.ignore_patterns("__pycache__")
    )
    home.mkdir()
    folders = [site, *(path for path in site.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        probe = subprocess.run([*prefix, "touch", str(site / "probe")], capture_output=True, check=False)
        assert probe.returncode != 0, "the folder is not read-only after all"
        installed = files(site)
        environment = {"PYTHONPATH": str(site), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        file, hits, misses, digest = outcome(start(tmp_path, prefix, **environment))
        assert Path(file).parent == site / "pricepix"
        assert (hits, misses) == (0, 2)
        kept = files(home)
        assert [path for path in kept if path.suffix == ".nbc"]
        assert outcome(start(tmp_path, prefix, **environment))[1:] == (2, 0, digest)
        assert files(home) == kept
        assert files(site) == installed
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def test_kernels_compiled_from_other_sources_are_forgotten(tmp_path):
    """Numba alone would run them: it looks at the file of a function, not at the files that it calls into."""
    package = tmp_path / "edited"
    package.mkdir()
    kernel = "import numba\n\n@numba.njit(cache=True)\ndef {}():\n    return {}\n"
    (package / "__init__.py").write_text("")
    (package / "outer.py").write_text("from edited.inner import inner\n" + kernel.format("outer", "inner()"))

    def edit(value):
        (package / "inner.py").write_text(kernel.format("inner", value))

    def run():
        code = "from edited.outer import outer; print(outer())"
        environment = {
            k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT")
        }
        # Python takes bytecode for that of a source of the same size and second, which an edit here has.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    edit(1)
    forget_stale_kernels(package)
    assert run() == 1
    forget_stale_kernels(package)
    assert [path for path in files(package) if path.suffix == ".nbc"], "the same sources: nothing to forget"
    edit(2)
    assert run() == 1, "Numba notices by itself now: forget_stale_kernels is not needed any more"
    forget_stale_kernels(package)
    assert run() == 2
