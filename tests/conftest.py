"""Fixtures for all tests: the folder of reference data, made-up bars, Hypothesis profiles."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from compiled_code import forget_stale_kernels
from hypothesis import HealthCheck, settings

# Compiling a kernel takes seconds and its speed says nothing about its pixels: no example has a deadline.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=_SLOW)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# A shell starts what it puts into the background with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Images of containers often switch bytecode off: each of the many processes that tests start would compile all of
# pricepix's modules again. It lies where Numba keeps compiled kernels.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# OpenMP's threads otherwise spin while they wait for work, on a core that the other worker's tests need: a tenth of the
# CPU time of tests that train.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How much of what is drawn at random: a few for every push, with a seed that is printed, all of it every night.
os.environ.setdefault("PRICEPIX_KILLS", "8")
os.environ.setdefault("PRICEPIX_SCENES", "300")
os.environ.setdefault("PRICEPIX_FUZZ", "20")
# Worker processes inherit the seed from the process that starts them.
os.environ.setdefault("PRICEPIX_KILL_SEED", str(random.SystemRandom().randrange(1 << 32)))


def pytest_report_header():
    chosen = " ".join(f"{name}={os.environ[name]}" for name in ("PRICEPIX_KILLS", "PRICEPIX_KILL_SEED"))
    return f"at random: {chosen} PRICEPIX_SCENES={os.environ['PRICEPIX_SCENES']}"


def pytest_configure(config):
    if "NUMBA_CACHE_DIR" not in os.environ:
        forget_stale_kernels()
    # Compiled kernels divide as IEEE 754 does, without a word. Interpreted, for coverage, NumPy speaks up.
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        kernels = r"pricepix\.(.*kernels|bars\.hashing|render\..*)"
        config.addinivalue_line("filterwarnings", f"ignore::RuntimeWarning:{kernels}")


@pytest.fixture(autouse=True, scope="session")
def small_calls_on_threads():
    """Draw on all threads that a test asks for, though a call this small is drawn sooner by one."""
    from pricepix.render import draw

    draw._THREAD_SECONDS = 1e-9


@pytest.fixture(autouse=True, scope="session")
def everything_compiled():
    """Test what large calls run: small ones would be interpreted until the kernels are compiled."""
    from pricepix.bars import uncompiled

    uncompiled.patience.seconds = 0.0


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data (golden images of other renderers, real bars); skips the test without it."""
    named = os.environ.get("PRICEPIX_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"reference data folder not found: {folder} (PRICEPIX_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def golden(shared):
    """Function from the name of a golden file to its arrays by name."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = shared / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"golden file not found: {path}")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def make_walk():
    """Function to an (n, 5) table of bars: a random walk on a cent grid, seeded.

    High and low enclose open and close, so every bar is clean; prices are whole cents, so that ties of the
    pixel grid occur as they do in real data.
    """

    def walk(n: int, seed: int = 0, start: float = 50.0, volatility: float = 0.02) -> np.ndarray:
        rng = np.random.default_rng(seed)
        close = start * np.exp(np.cumsum(rng.normal(0, volatility, n)))
        open_ = np.concatenate([[start], close[:-1]]) * np.exp(rng.normal(0, volatility / 4, n))
        high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, volatility / 2, n)))
        low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, volatility / 2, n)))
        prices = np.maximum(np.round(np.stack([open_, high, low, close], axis=1), 2), 0.01)
        volume = np.round(np.exp(rng.normal(12, 0.7, n)))
        return np.ascontiguousarray(np.column_stack([prices, volume]))

    return walk
