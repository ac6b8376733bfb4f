"""Instructions an image, for every preset and path: they do not depend on what else the machine does.

    python benchmarks/instructions.py            # count, and fail where one rose by more than 3%
    python benchmarks/instructions.py --write    # count, and keep the table

Valgrind counts what each kernel executes, compiled for a kind of CPU that it knows, ``haswell`` (AVX2): it does not
know AVX-512. Two calls that differ in the number of windows give the instructions of one, without those of the call.
Needs valgrind; compiles first, in a folder of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
MOST_RISE = 0.03
CPUS = ("haswell",)
# For trying the script itself out: one preset, one CPU, nothing written or compared.
TINY = os.environ.get("PRICEPIX_BENCH") == "tiny"
FEW, MANY = 256, 1280
# Valgrind sees the CPU that it emulates, of which the code must not use more.
COUNT = "--tool=callgrind --instr-atstart=no --smc-check=all-non-file --callgrind-out-file={}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the table instead of comparing with it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child == "count")
        return 0
    if shutil.which("valgrind") is None:
        print("bench-check needs valgrind: apt-get install valgrind", file=sys.stderr)
        return 2
    if not (given.write or TINY or TABLE.exists()):
        print(f"there is no {TABLE.name} to compare with: make it with --write", file=sys.stderr)
        return 2
    if TINY:
        print(count(CPUS[0]))
        return 0
    found = {"compiled_by": compilers(), "instructions_an_image": {cpu: count(cpu) for cpu in CPUS}}
    if given.write:
        TABLE.write_text(json.dumps(found, indent=1) + "\n")
        print(as_text(found["instructions_an_image"]))
        return 0
    kept = json.loads(TABLE.read_text())
    print(as_text(found["instructions_an_image"], kept["instructions_an_image"]))
    risen = rises(found["instructions_an_image"], kept["instructions_an_image"])
    for line in risen:
        print(line, file=sys.stderr)
    if risen and found["compiled_by"] != kept["compiled_by"]:
        was, now = kept["compiled_by"], found["compiled_by"]
        print(
            f"the table was made with {was}, these with {now}: compare on the same releases", file=sys.stderr
        )
    return 1 if risen else 0


def rises(found: dict[str, dict[str, float]], kept: dict[str, dict[str, float]]) -> list[str]:
    """Return a sentence on each number that rose by more than `MOST_RISE`, or that one of the two tables lacks."""
    lines = []
    for cpu in CPUS:
        for case in sorted({*found[cpu], *kept[cpu]}):
            if case not in found[cpu] or case not in kept[cpu]:
                lines.append(
                    f"{case} on {cpu} is in one table only: `python {TABLE.with_suffix('.py').name} --write`"
                )
            elif found[cpu][case] > kept[cpu][case] * (1 + MOST_RISE):
                was, now = kept[cpu][case], found[cpu][case]
                lines.append(
                    f"{case} on {cpu}: {now:,.0f} instructions an image, {now / was - 1:+.1%} on {was:,.0f}"
                )
    return lines


def as_text(found: dict[str, dict[str, float]], kept: dict[str, dict[str, float]] | None = None) -> str:
    """Lay the numbers out as a table, a row a case, with their change where others are given."""
    lines = [f"{'instructions an image':<24}" + "".join(f"{cpu:>22}" for cpu in CPUS)]
    for case in found[CPUS[0]]:
        line = f"{case:<24}"
        for cpu in CPUS:
            was = None if kept is None else kept[cpu].get(case)
            change = "" if was is None else f" ({found[cpu][case] / was - 1:+.1%})"
            line += f"{f'{found[cpu][case]:,.0f}{change}':>22}"
        lines.append(line)
    return "\n".join(lines)


def compilers() -> dict[str, str]:
    """Return the releases that decide what is compiled."""
    import llvmlite
    import numba

    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__}


def count(cpu: str) -> dict[str, float]:
    """Return the instructions an image of every case, compiled for a kind of CPU."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": folder,
            "NUMBA_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(root),
            "PYTHONHASHSEED": "0",
        }
        own = [sys.executable, str(Path(__file__).resolve()), "--child"]
        subprocess.run([*own, "compile"], env=environment, check=True, stdout=subprocess.PIPE)
        out = Path(folder) / "counted"
        valgrind = ["valgrind", *COUNT.format(out).split()]
        done = subprocess.run(
            [*valgrind, *own, "count"], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"counting for {cpu} failed:\n{done.stderr[-3000:]}")
        names = json.loads(done.stdout.splitlines()[-1])
        parts = sorted(out.parent.glob("counted.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.search(r"^(?:summary|totals): (\d+)", part.read_text(), re.M)[1]) for part in parts]
    # One number for few windows and one for many of each case, in the order in which they were drawn.
    assert len(totals) >= 2 * len(names), (len(totals), len(names), done.stderr[-500:])
    return {
        name: round((totals[2 * k + 1] - totals[2 * k]) / (MANY - FEW), 1) for k, name in enumerate(names)
    }


def child(counting: bool) -> None:
    """Draw every case with few and with many windows; have valgrind dump what each call took."""
    from pricepix import ImageSpec, Panel, WindowIndex, render_panel, samples
    from pricepix.bars import uncompiled
    from pricepix.render import fast, widen

    uncompiled.patience.seconds = 0.0

    table = samples.simulate(2, 1200, halt_rate=0, split_rate=0, delist_rate=0, list_late=0, seed=1)
    panel = Panel.from_table(table, progress=False)
    mark = marker() if counting else lambda start: None

    def counted(draw):
        # Once before: loading and tables are not counted.
        draw(2 * FEW)
        for n in (FEW, MANY):
            mark(True)
            draw(n)
            mark(False)

    names = []
    supports = fast.supports
    for preset in ("jkx5",) if TINY else sorted(ImageSpec.presets()):
        spec = ImageSpec.preset(preset)
        windows = WindowIndex.from_panel(panel, spec)
        windows = windows[windows.row.argsort()]
        for path in ("images", "bits", "plain"):
            fast.supports = supports if path != "plain" else (lambda spec: False)
            bits = path == "bits"
            kept = [render_panel(panel, windows[:n], bits=bits, threads=1) for n in (FEW, 2 * FEW, MANY)]
            out = {len(images): images for images in kept}
            counted(
                lambda n, w=windows, o=out, b=bits: render_panel(panel, w[:n], out=o[n], bits=b, threads=1)
            )
            names.append(f"{preset} {path}")
        fast.supports = supports
        bits = render_panel(panel, windows[:MANY], bits=True, threads=1)
        out = {n: widen(bits[:n], *spec.shape) for n in (FEW, 2 * FEW, MANY)}
        counted(lambda n, b=bits, o=out, s=spec: widen(b[:n], *s.shape, o[n]))
        names.append(f"{preset} widen")
    print(json.dumps(names))


def marker():
    """Return a function that starts counting, or stops it and has the count written."""
    # Valgrind's way to be called on x86-64: rotations that change nothing, with the address of a request in rax.
    code = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
    first = (ord("C") << 24) + (ord("T") << 16)
    dump, zero, start, stop = ((ctypes.c_uint64 * 6)(first + k) for k in (0, 1, 4, 5))

    def mark(begin: bool) -> None:
        # Stopping forgets what was counted.
        for request in (zero, start) if begin else (dump, stop):
            call(ctypes.addressof(request))

    mark.memory = memory  # lives as long as the function
    return mark


if __name__ == "__main__":
    sys.exit(main())
