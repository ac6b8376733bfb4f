"""What a machine brings for pricepix: versions, CPU, compiled kernels, disk, GPU, and optional parts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pricepix._version import __version__
from pricepix.workflow.warm_up import cache_folder

__all__ = ["Doctor", "Finding", "doctor"]

_NEEDED: Final = ("numpy", "numba", "polars", "zarr", "numcodecs", "pydantic", "pillow")
#: Modules by the extra of pricepix that brings them, and what they are for.
_OPTIONAL: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "train": (("torch", "lightning", "tensorboard"), "training and scoring with networks"),
    "report": (("jinja2", "matplotlib"), "reports, contact sheets, enlarged images"),
    "attribution": (("captum",), "where a network looks"),
    "dask": (("dask",), "lazy arrays of images"),
    "xarray": (("xarray",), "stores and caches as datasets"),
    "distributed": (("distributed",), "builds on a cluster"),
    "cloud": (("obstore",), "stores in S3, GCS and Azure"),
    "calendars": (("exchange_calendars",), "exchange= in schedules"),
    "sample": (("bokeh_sampledata",), "samples.stocks(): real bars of five stocks"),
    "cuda": (("numba_cuda",), "drawing on a GPU"),
}
_FEATURES: Final = ("avx512f", "avx512bw", "avx512vl", "avx2", "bmi2", "neon", "sve")
_DISK_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    """``versions``, ``cpu``, ``kernels``, ``disk``, ``gpu`` or ``optional parts``."""
    name: str
    value: str
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""


@dataclass(frozen=True)
class Doctor:
    """All that was looked at. Print it."""

    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return value and advice by part and name, as JSON values."""
        found: dict[str, dict[str, Any]] = {}
        for one in self.findings:
            entry = {"value": one.value, "advice": one.advice} if one.advice else {"value": one.value}
            found.setdefault(one.part, {})[one.name] = entry
        return found

    def __str__(self) -> str:
        width = max((len(one.name) for one in self.findings), default=0)
        lines: list[str] = []
        part = None
        for one in self.findings:
            if one.part != part:
                lines += [*([""] if lines else []), one.part]
                part = one.part
            lines.append(f"  {one.name:<{width}}  {one.value}")
            if one.advice:
                lines.append(f"  {'':<{width}}  -> {one.advice}")
        return "\n".join(lines)


def doctor(folder: str | os.PathLike[str] | None = None) -> Doctor:
    """Look at this machine. Nothing is compiled; 64 MB are written to `folder` and removed.

    Parameters
    ----------
    folder : path, optional
        Where stores will lie: the disk that is measured. The current folder by default.

    Returns
    -------
    Doctor

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    where = Path.cwd() if folder is None else Path(folder)
    if not where.is_dir():
        raise FileNotFoundError(f"no folder {where} to measure the disk of: make it first")
    found = [*_versions(), *_cpu(), *_kernels(), *_disk(where), *_gpu(), *_optional()]
    return Doctor(found)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    found = [Finding("versions", "pricepix", __version__), Finding("versions", "python", python)]
    for name in _NEEDED:
        version = _version(name)
        found.append(
            Finding("versions", name, version or "missing", "" if version else f"pip install {name}")
        )
    return [*found, Finding("versions", "system", platform.platform())]


def _cpu() -> list[Finding]:
    import numba
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    known = [name for name in _FEATURES if features.get(name)]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = os.cpu_count() or usable
    threads = numba.get_num_threads()
    few = "NUMBA_NUM_THREADS is set below them: unset it to draw with all" if threads < usable else ""
    wide = any(name in known for name in ("avx512f", "avx2", "neon", "sve"))
    slow = "" if wide else "the vector renderer is slower on this CPU"
    return [
        Finding("cpu", "model", _cpu_name()),
        Finding("cpu", "compiled for", binding.get_host_cpu_name()),
        Finding("cpu", "features", ", ".join(known) or "none of those that matter", slow),
        Finding("cpu", "cores", f"{usable} usable of {total}"),
        Finding("cpu", "threads", f"{threads} that kernels may use", few),
        Finding("cpu", "memory", _memory()),
    ]


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        available = os.sysconf("SC_AVPHYS_PAGES") * size
    except (AttributeError, ValueError, OSError):
        return "not known"
    return f"{pages * size / 1e9:,.1f} GB, {available / 1e9:,.1f} GB free"


def _kernels() -> list[Finding]:
    folder = cache_folder()
    if folder is None:
        off = "NUMBA_DISABLE_JIT is set: everything runs a hundred times slower; unset it"
        return [Finding("kernels", "compiler", "off", off)]
    # Beside the sources every package has a folder of its own.
    root = folder.parent.parent if folder.name == "__pycache__" else folder
    files = [p for p in root.rglob("*.nbc") if p.is_file()] if root.is_dir() else []
    size = sum(p.stat().st_size for p in files)
    cold = "" if files else "run `pricepix-cli warm-up` once, and later processes start without compiling"
    writable = os.access(folder if folder.is_dir() else folder.parent, os.W_OK)
    locked = "" if writable else "set NUMBA_CACHE_DIR to a folder that can be written"
    return [
        Finding("kernels", "kept in", str(folder), locked),
        Finding("kernels", "compiled", f"{len(files):,} kernels, {size / 1e6:,.1f} MB", cold),
    ]


def _disk(folder: Path) -> list[Finding]:
    usage = shutil.disk_usage(folder)
    found = [
        Finding("disk", "folder", str(folder.absolute())),
        Finding("disk", "free", f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB"),
    ]
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = perf_counter()
            for _ in range(_DISK_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = _DISK_BYTES / (perf_counter() - began)
    except OSError as error:
        return [
            *found,
            Finding("disk", "writing", f"not possible: {error.strerror}", "choose another folder"),
        ]
    slow = "builds may wait for this disk" if written < 50e6 else ""
    return [*found, Finding("disk", "writing", f"{written / 1e6:,.0f} MB/s, flushed", slow)]


def _gpu() -> list[Finding]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return [Finding("gpu", "nvidia", "none found: images are drawn, and networks trained, on the CPU")]
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.TimeoutExpired):
        names = []
    if not names:
        return [Finding("gpu", "nvidia", "nvidia-smi names none", "look at the driver")]
    found = [Finding("gpu", f"nvidia {k}", name) for k, name in enumerate(names)]
    built = _version("torch") or ""
    if built.endswith("+cpu"):
        found.append(Finding("gpu", "torch", built, "this build has no CUDA: install the one of pytorch.org"))
    return found


def _optional() -> list[Finding]:
    found = []
    for extra, (modules, purpose) in _OPTIONAL.items():
        missing = [name for name in modules if find_spec(name) is None]
        install = f"pip install 'pricepix[{extra}]'" if missing else ""
        state = f"missing: {', '.join(missing)}" if missing else "installed"
        found.append(Finding("optional parts", extra, f"{purpose}: {state}", install))
    return found
