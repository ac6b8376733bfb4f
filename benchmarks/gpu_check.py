"""What a GPU does with pricepix, in one go of at most five minutes: ``make gpu-check``.

Pixels against the CPU's, rates against a fill of the same memory, training and scoring of jkx20, and memory, into one
JSON file and one table. A part that fails is written down with its error, and the others go on. It needs torch, Numba
with its CUDA target and what pricepix needs; on a machine without a network, ``--wheels FOLDER`` takes from a folder
what is not there (``make gpu-wheels`` collects it).

``--rehearse`` runs the same parts on a CPU, drawing in CUDA's simulator, in the smallest sizes: its figures say
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
"""Of the JSON file."""

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("jkx20", "jkx60", "it49")
TARGETS = {
    "fill 64x60": 0.5, "fill 96x180": 0.6, "fill 147x147": 0.6, "panel images": 0.97, "store": 0.95,
}  # fmt: skip


class Size(NamedTuple):
    """How much is measured."""

    names: int
    bars: int
    exact: int
    """Windows whose pixels are compared, of each preset."""
    fill_bytes: int
    batch: int
    steps: int
    scored: int
    repeats: int


FULL = Size(400, 1500, 20_000, 1 << 30, 1024, 60, 65_536, 5)
TINY = Size(4, 130, 3, 1 << 14, 8, 2, 24, 1)


class Check:
    """The device, the panel, and what was found so far."""

    def __init__(self, device: str, size: Size, seconds: float) -> None:
        import torch

        import pricepix as pp

        self.torch, self.pp, self.device, self.size = torch, pp, device, size
        self.on_gpu, self.ends = device.startswith("cuda"), time.monotonic() + seconds
        bars = pp.samples.simulate(size.names, size.bars, seed=1, split_rate=0, delist_rate=0, list_late=0)
        self.panel = pp.Panel.from_table(bars, progress=False)
        self.found: dict[str, Any] = {}

    def sync(self) -> None:
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the shortest time of a call, after one that is not counted."""
        work()
        self.sync()
        best = float("inf")
        for _ in range(self.size.repeats):
            start = time.perf_counter()
            work()
            self.sync()
            best = min(best, time.perf_counter() - start)
        return best

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a part, unless the time is over; keep its figures, its seconds, its peak memory or its error."""
        if time.monotonic() > self.ends:
            self.found[name] = {"skipped": "no time was left"}
            return
        started = time.monotonic()
        if self.on_gpu:
            self.torch.cuda.reset_peak_memory_stats()
        try:
            found = work()
        except Exception as error:  # of any kind: the other parts go on
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        found["seconds"] = round(time.monotonic() - started, 2)
        if self.on_gpu:
            found["peak_bytes"] = int(self.torch.cuda.max_memory_allocated())
            self.torch.cuda.empty_cache()
        self.found[name] = found

    # ------------------------------------------------------------------------------------------- parts

    def pixels(self) -> dict[str, Any]:
        """Compare images of random windows with the CPU's, byte by byte; the CPU is held to the golden images."""
        import numpy as np

        from pricepix.render.cuda import CudaRenderer

        different, count = {}, 0
        for preset in PRESETS:
            windows = self.pp.WindowIndex.from_panel(self.panel, preset)
            chosen = np.random.default_rng(0).permutation(len(windows))[: self.size.exact]
            own = windows[np.sort(chosen)]
            expected = self.pp.render_panel(self.panel, own)
            found = CudaRenderer(self.panel, preset).render(own.row).cpu().numpy()
            different[preset] = int(np.count_nonzero((found != expected).any(axis=(1, 2))))
            count += len(own)
        return {"windows": count, "different": different, "ok": not any(different.values())}

    def fill(self) -> dict[str, Any]:
        """Draw into memory that is several times a GPU's cache, beside a fill of it."""
        import numpy as np

        from pricepix.render.cuda import CudaRenderer

        rates: dict[str, Any] = {}
        for preset in PRESETS:
            spec = self.pp.ImageSpec.preset(preset)
            renderer = CudaRenderer(self.panel, spec)
            windows = self.pp.WindowIndex.from_panel(self.panel, spec)
            for dtype in ("uint8", "bfloat16"):
                kind = getattr(self.torch, dtype)
                n = max(2, self.size.fill_bytes // (spec.height * spec.width * kind.itemsize))
                rows = self.torch.from_numpy(np.random.default_rng(0).choice(windows.row, n)).to(
                    renderer.device
                )
                shape = (n, *spec.shape) if dtype == "uint8" else (n, 1, *spec.shape)
                out = self.torch.empty(shape, dtype=kind, device=renderer.device)
                draw = partial(renderer.render, rows, dtype=kind, out=out)
                drawn = self.seconds(draw)
                filled = self.seconds(lambda o=out: o.fill_(1))
                rates[f"{spec.height}x{spec.width} {dtype}"] = {
                    "images_per_second": n / drawn,
                    "bytes_per_second": out.numel() * out.element_size() / drawn,
                    "share_of_fill": filled / drawn,
                }
                del out, rows
        return rates

    def train(self) -> dict[str, Any]:
        """Train jkx20 in bfloat16 on one batch that stays, on panel images, and on a store."""
        import numpy as np

        from pricepix import train

        torch, size = self.torch, self.size
        images = self.pp.PanelImages(self.panel, "jkx20", (20,))
        network = train.PriceCNN("jkx20").to(self.device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)

        def step(batch: Any, target: Any) -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.partition(":")[0], torch.bfloat16):
                given = network(batch)
            torch.nn.functional.cross_entropy(given.float(), target).backward()
            optimizer.step()

        labels = torch.zeros(len(images), dtype=torch.int64)
        labels[torch.from_numpy(np.nan_to_num(images.returns(20)) > 0)] = 1
        labels = labels.to(self.device)
        resident = torch.from_numpy(images.read(slice(size.batch))).to(self.device)

        def feed(source: Any, **options: Any) -> float:
            """Images a second over the steps after the first two, which start threads and compile kernels."""
            reader = source.batches(batch_size=size.batch, seed=0, **options)
            done, start = -2, 0.0
            while True:
                for batch, positions in reader:
                    given = torch.as_tensor(batch).to(self.device, non_blocking=True)
                    step(given, labels[torch.as_tensor(positions).to(self.device)])
                    done += 1
                    if done == 0:
                        self.sync()
                        start = time.perf_counter()
                    if done == size.steps:
                        self.sync()
                        return size.steps * size.batch / (time.perf_counter() - start)

        fixed = labels[: size.batch]
        still = (
            size.batch * size.steps / self.seconds(lambda: [step(resident, fixed) for _ in range(size.steps)])
        )
        drawn = feed(images, **({"device": self.device} if images.renders_on(self.device) else {}))
        with tempfile.TemporaryDirectory() as folder:
            store = self.pp.render_universe(
                self.panel, "jkx20", Path(folder) / "s", horizons=(20,), layout="bits", progress=False
            )
            stored = feed(store)
        return {
            "resident batch": {"images_per_second": still},
            "panel images": {"images_per_second": drawn, "share": drawn / still},
            "store": {"images_per_second": stored, "share": stored / still},
        }

    def score(self) -> dict[str, Any]:
        """Score resident images with jkx20: float32, bfloat16, as a CUDA graph, compiled."""
        from pricepix import train

        torch, size = self.torch, self.size
        images = self.pp.PanelImages(self.panel, "jkx20", ())
        batch = torch.from_numpy(images.read(slice(size.batch))).to(self.device)
        network = train.PriceCNN("jkx20").to(self.device).to(memory_format=torch.channels_last).eval()
        rounds = max(1, size.scored // len(batch))

        def forward() -> Any:
            with torch.inference_mode():
                return network.scores(network(batch))

        def rough() -> Any:
            with torch.autocast(self.device.partition(":")[0], torch.bfloat16):
                return forward()

        def rate(work: Callable[[], Any]) -> float:
            return rounds * len(batch) / self.seconds(lambda: [work() for _ in range(rounds)])

        found = {
            "float32": {"images_per_second": rate(forward)},
            "bfloat16": {"images_per_second": rate(rough)},
        }
        if self.on_gpu:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                rough()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                rough()
            found["bfloat16, CUDA graph"] = {"images_per_second": rate(graph.replay)}
            compiled = torch.compile(network)

            def fused() -> Any:
                with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                    return compiled(batch)

            found["bfloat16, torch.compile"] = {"images_per_second": rate(fused)}
        return found

    def run(self) -> dict[str, Any]:
        for name in ("pixels", "fill", "train", "score"):
            self.part(name, getattr(self, name))
        return {
            "format": "pricepix-gpu-check",
            "version": VERSION,
            "pricepix": self.pp.__version__,
            "device": self.torch.cuda.get_device_name() if self.on_gpu else "CPU, a rehearsal",
            "rehearsal": not self.on_gpu,
            "torch": self.torch.__version__,
            "cuda": self.torch.version.cuda,
            "python": platform.python_version(),
            "targets": TARGETS,
            "parts": self.found,
        }


def table(report: dict[str, Any]) -> str:
    """Return the figures as a table of text."""
    lines = [f"{report['device']}, torch {report['torch']}, CUDA {report['cuda']}"]
    for part, figures in report["parts"].items():
        if "error" in figures or "skipped" in figures:
            lines.append(f"{part:<36} {figures.get('error') or figures['skipped']}")
            continue
        for what, values in figures.items():
            if isinstance(values, dict) and "images_per_second" in values:
                share = values.get("share_of_fill", values.get("share"))
                own = "" if share is None else f"{share:7.2f}"
                target = TARGETS.get(what) or (
                    TARGETS.get(f"fill {what.split()[0]}") if "uint8" in what else None
                )
                aim = "" if target is None else f"   at least {target:.2f}"
                lines.append(
                    f"{part + ': ' + what:<36} {values['images_per_second']:14,.0f} images/s {own}{aim}"
                )
            elif what in ("ok", "windows", "different"):
                lines.append(f"{part + ': ' + what:<36} {values}")
        peak = f", {figures['peak_bytes'] / 1e9:.2f} GB at most" if "peak_bytes" in figures else ""
        lines.append(f"{part:<36} {figures['seconds']:.1f} s{peak}")
    return "\n".join(lines)


def install(wheels: Path) -> None:
    """Take the packages of a folder that are not there, and start again with them."""
    place = ROOT / "build" / "gpu-site"
    own = sorted(str(path) for path in wheels.glob("*.whl"))
    if not own:
        raise SystemExit(
            f"{wheels} holds no wheels: make gpu-wheels collects them, on a machine with a network"
        )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--target", str(place), *own], check=True)
    # What the machine has comes first: its torch and its NumPy belong together.
    code = "import sys, runpy; sys.path += [sys.argv[1], sys.argv[2]]; sys.argv = sys.argv[3:]; " \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    rest = [argument for argument in sys.argv[1:] if argument not in ("--wheels", str(wheels))]
    os.execv(sys.executable, [sys.executable, "-c", code, str(ROOT), str(place), __file__, *rest])


def main() -> int:
    """Run the check; the exit status is 0 if every part ran and all pixels agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="The JSON file.")
    parser.add_argument("--wheels", type=Path, help="Folder of wheels to take missing packages from.")
    parser.add_argument("--seconds", type=float, default=240, help="No part begins after so many.")
    parser.add_argument("--rehearse", action="store_true", help="Run on a CPU, in the smallest sizes.")
    given = parser.parse_args()
    if given.wheels is not None:
        install(given.wheels)
    if given.rehearse:
        # Numba reads it when it is imported.
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    sys.path.append(str(ROOT))
    import torch

    if not given.rehearse and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU; --rehearse runs the parts on a CPU")
    check = Check("cpu" if given.rehearse else "cuda", TINY if given.rehearse else FULL, given.seconds)
    report = check.run()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    parts = report["parts"].values()
    return int(any("error" in part or part.get("ok") is False for part in parts))


if __name__ == "__main__":
    sys.exit(main())
