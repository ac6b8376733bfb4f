"""What the CPU is and can do, as the system tells it."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

__all__ = ["cpu_name", "has_amx", "has_vnni"]


@functools.cache
def _told() -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
    return found


def cpu_name() -> str:
    """Return what the CPU is called, with its family and model where Linux tells them."""
    told = _told()
    parts = [told.get("model name", ""), told.get("cpu family", ""), told.get("model", "")]
    return " ".join(part for part in parts if part) or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the CPU sums products of bytes in 32 bits (VNNI or AMX)."""
    flags = _told().get("flags", "").split()
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags))


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX): elsewhere bfloat16 gains little."""
    return "amx_bf16" in _told().get("flags", "").split()
