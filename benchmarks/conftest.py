"""Made-up universes to measure on, and kernels compiled before the clock starts.

``PRICEPIX_BENCH=tiny`` shrinks everything, so that the tests can run each benchmark once in a few seconds.
``--results FILE`` writes what was measured, beside machine, settings and versions, as JSON that
``benchmarks/report.py`` reads.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# The plain Python renderer that everything is compared with is the tests' oracle.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from pricepix import ImageSpec, Panel, WindowIndex, render_panel, samples
from pricepix.bars import uncompiled

# A small call that comes before the measured one is to compile what that one runs.
uncompiled.patience.seconds = 0.0


class Size(NamedTuple):
    """How much is measured."""

    instruments: int
    bars: int
    images: int
    """Images of a rendering benchmark: enough that overhead vanishes, few enough for plain Python."""
    chunk: int
    buffer: int
    """Bytes of images that drawing is compared with ``fill`` on: more than the caches hold."""
    universe: tuple[int, int]
    """Instruments and bars of what ``render_universe`` is measured on."""


SIZES = {
    "tiny": Size(3, 160, 20, 16, 1 << 17, (3, 160)),
    "usual": Size(100, 2500, 2048, 4096, 300_000_000, (500, 2000)),
}


@pytest.fixture(scope="session")
def size() -> Size:
    name = os.environ.get("PRICEPIX_BENCH", "usual")
    if name not in SIZES:
        raise ValueError(f"PRICEPIX_BENCH={name!r} is not known: choose one of {', '.join(SIZES)}")
    return SIZES[name]


@pytest.fixture(scope="session")
def table(size):
    """Daily bars of a simulated market, one row an instrument and day, clean and complete."""
    return samples.simulate(
        size.instruments, size.bars, halt_rate=0, split_rate=0, delist_rate=0, list_late=0, seed=1
    )


@pytest.fixture(scope="session")
def panel(table):
    return Panel.from_table(table, progress=False)


@pytest.fixture(scope="session")
def windows(panel):
    """Function from a spec to its windows; the first call of each also warms the kernels."""
    kept = {}

    def find(spec: ImageSpec) -> WindowIndex:
        if spec not in kept:
            kept[spec] = WindowIndex.from_panel(panel, spec)
            for threads in (1, None):
                for bits in (False, True):
                    render_panel(panel, kept[spec][:300], bits=bits, threads=threads)
        return kept[spec]

    return find


@pytest.fixture
def per_second(benchmark):
    """Function that notes how many things a second the benchmark did, once it is over."""
    noted = []

    def note(what: str, number: int) -> None:
        noted.append((what, number))

    yield note
    if benchmark.stats is not None:
        for what, number in noted:
            benchmark.extra_info[f"{what} a second"] = round(number / benchmark.stats.stats.min)


class Compared:
    """Times by name, and the table of ratios that is printed of them at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.table: tuple[Any, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table whose times are known."""
        rows = []
        for what, *names, target in self.table:
            if all(name in self.seconds for name in names):
                first, *other = (self.seconds[name] for name in names)
                # Ratios are to reach the target, times to stay below it.
                value, bound = (other[0] / first, "at least") if other else (first, "at most")
                rows.append({"what": what, "value": float(f"{value:.4g}"), "bound": bound, "target": target})
        return rows

    def lines(self) -> list[str]:
        """Return the rows as text."""
        return [
            f"{row['what']:<56} {row['value']:8.2f}   {row['bound']} {row['target']:.2f}"
            for row in self.rows()
        ]


_COMPARED = Compared()


@pytest.fixture(scope="session")
def compared() -> Compared:
    return _COMPARED


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="write what was measured to this file, as JSON")


def machine() -> dict[str, Any]:
    """Return what the times depend on: the CPU, what code is compiled for, how busy it is, settings, versions."""
    import llvmlite.binding as llvm

    names = {}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    compiled_for = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("NUMBA_", "OMP_", "PRICEPIX_BENCH")) and name != "NUMBA_CACHE_DIR"
    }
    packages = ("numpy", "numba", "llvmlite", "polars", "zarr")
    return {
        "cpu": names.get("model name", "unknown"),
        "family_and_model": f"{names.get('cpu family', '?')}/{names.get('model', '?')}",
        "cores": os.cpu_count(),
        "compiled_for": compiled_for,
        "load_at_the_end": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "settings": settings,
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: version(name) for name in packages},
    }


def pytest_terminal_summary(terminalreporter):
    lines = _COMPARED.lines()
    if lines:
        terminalreporter.section("speed of rendering, ratios and targets")
        where = machine()
        terminalreporter.write_line(
            f"{where['cpu']}, {where['cores']} cores, load {where['load_at_the_end']}, "
            f"compiled for {where['compiled_for']}, Python {where['python']}, "
            + ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        )
        for line in lines:
            terminalreporter.write_line(line)
    path = terminalreporter.config.getoption("--results")
    if path is not None:
        seconds = {name: float(f"{value:.4g}") for name, value in sorted(_COMPARED.seconds.items())}
        found = {"format": 1, "machine": machine(), "table": _COMPARED.rows(), "seconds": seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
