"""The same bytes from code compiled for another CPU: the oldest of this architecture, without AVX or the like.

The whole of the exactness tests runs on it with

    NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= NUMBA_CACHE_DIR=/tmp/generic pytest tests/test_fast_path.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pricepix

pytestmark = pytest.mark.nightly

# One specialisation of the fast path, which compiles in some seconds: images of one band of rows.
SCRIPT = """
import hashlib
import numpy as np
from pricepix import ImageSpec, render_windows
from pricepix.render import widen

def digests():
    rng = np.random.default_rng(3)
    found = []
    for spec in [ImageSpec.preset(name) for name in ("jkx5", "jkx20", "it9")] + [ImageSpec(11, 43, ma=(3,))]:
        close = 2000 + np.cumsum(rng.integers(-20, 21, (400, spec.lookback)), axis=1)
        high, low = close + rng.integers(0, 30, close.shape), close - rng.integers(0, 30, close.shape)
        volume = rng.integers(0, 9, close.shape) * 10_000
        bars = np.stack([low, high, low, close, volume], axis=2) / 100
        bars[rng.random(bars.shape) < 0.003] = np.nan
        ma = bars[:, :, 3] + rng.integers(-9, 10, close.shape) / 16 if spec.ma else None
        images, reason = render_windows(bars, spec, ma=ma)
        bits = np.packbits(images.transpose(0, 2, 1).reshape(len(images), -1) > 0, axis=1)
        assert np.array_equal(widen(bits, *spec.shape), images)
        found.append(hashlib.sha256(images.tobytes() + reason.tobytes()).hexdigest())
    return found
"""


def test_generic_cpu_draws_the_same_bytes(tmp_path):
    namespace = {}
    exec(SCRIPT, namespace)
    target = "import numba.core.registry as r; print(r.cpu_target.target_context.codegen().magic_tuple()[1:])"
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(pricepix.__file__).parents[1]),
    }
    environment.pop("NUMBA_DISABLE_JIT", None)
    done = subprocess.run(
        [sys.executable, "-c", f"{SCRIPT}\n{target}\nprint(*digests())"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    compiled_for, digests = done.stdout.splitlines()
    assert compiled_for == "('generic', '')"
    assert digests.split() == namespace["digests"]()
