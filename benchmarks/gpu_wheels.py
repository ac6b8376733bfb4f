"""Collect the wheels that ``gpu_check.py`` needs on a machine that has torch and CUDA but no network.

    python benchmarks/gpu_wheels.py build/gpu-wheels

torch, and what only torch needs, is left out: the machine has its own build. The wheels are those of this machine's
Python and system.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip")


def plain(name: str) -> str:
    """Return a project's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(report: dict[str, Any]) -> dict[str, str]:
    """Return the versions of what pricepix needs without torch, out of pip's report of what it would install."""
    found = {plain(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
    chosen: dict[str, str] = {}
    waiting = ["pricepix"]
    while waiting:
        name = waiting.pop()
        if name in chosen or name == "torch" or name not in found:
            continue
        chosen[name] = found[name]["version"]
        for line in found[name].get("requires_dist", []):
            waiting.append(plain(re.match(r"[\w.-]+", line)[0]))  # type: ignore[index]
    del chosen["pricepix"]
    return chosen


def main() -> None:
    """Fill the folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/gpu-wheels")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    own = max(folder.glob("pricepix-*.whl"), key=lambda path: path.stat().st_mtime)
    told = folder / "report.json"
    command = ["install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary", ":all:"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--report", str(told), f"{own}[train,cuda]"]
    subprocess.run([*PIP, *command], check=True)
    versions = needed(json.loads(told.read_text()))
    told.unlink()
    wanted = [f"{name}=={version}" for name, version in sorted(versions.items())]
    command = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*PIP, *command, *wanted], check=True)
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels; copy it beside a checkout, and there run")
    print(f"    make gpu-check PYTHON=python3 GPU_WHEELS={folder}")


if __name__ == "__main__":
    main()
