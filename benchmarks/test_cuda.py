"""Rendering on a GPU, beside a fill of the same memory; skipped where torch sees no GPU.

Members of a group write the same bytes to the same memory: the ratio of a row's time to that of `fill` is the
inverse of its share of the device's write rate. Every window stands at a random row. Run::

    pytest benchmarks/test_cuda.py --benchmark-columns=min,median,rounds

and say which GPU it was. With ``PRICEPIX_BENCH=tiny`` the sizes are a check that it runs, and no measurement.
"""

from __future__ import annotations

import numpy as np
import pytest

from pricepix import ImageSpec, Panel
from pricepix.render.cuda import CudaRenderer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

# Several times what a GPU's cache holds, so that the memory is measured.
BYTES = {"tiny": 1 << 20, "usual": 4 << 30}
# 64x60, 96x180, 147x147, and two that end rows at odd addresses.
PRESETS = ("jkx20", "jkx60", "it49", "jkx5", "it9")
DTYPES = ("uint8", "bfloat16", "float32")


class Job:
    """Windows at random rows of a panel, and memory for their images."""

    def __init__(self, panel: Panel, preset: str, dtype: str, memory: int) -> None:
        spec = ImageSpec.preset(preset)
        self.dtype = getattr(torch, dtype)
        pixels = spec.height * spec.width
        n = max(8, memory // (pixels * self.dtype.itemsize))
        self.renderer = CudaRenderer(panel, spec)
        ends = np.concatenate(
            [
                np.arange(a + spec.lookback - 1, b)
                for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True)
            ]
        )
        rows = np.random.default_rng(0).choice(ends, n)
        self.rows = torch.from_numpy(rows).to(self.renderer.device)
        shape = (n, *spec.shape) if dtype == "uint8" else (n, 1, *spec.shape)
        self.out = torch.empty(shape, dtype=self.dtype, device=self.renderer.device)

    def render(self) -> None:
        self.renderer.render(self.rows, dtype=self.dtype, out=self.out)
        torch.cuda.synchronize()

    def fill(self) -> None:
        self.out.fill_(1)
        torch.cuda.synchronize()


@pytest.fixture(scope="module", params=[(p, d) for p in PRESETS for d in DTYPES], ids="-".join)
def job(request, panel, size):
    preset, dtype = request.param
    made = Job(panel, preset, dtype, BYTES["tiny" if size.images < 100 else "usual"])
    made.render()
    yield made
    del made
    torch.cuda.empty_cache()


def _group(benchmark, job):
    height, width = job.renderer.spec.shape
    benchmark.group = f"{height}x{width} {job.dtype}, {len(job.rows)} images"
    benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    benchmark.extra_info["bytes"] = job.out.numel() * job.out.element_size()


def test_fill(benchmark, job):
    _group(benchmark, job)
    benchmark(job.fill)


def test_render(benchmark, job):
    _group(benchmark, job)
    benchmark(job.render)


@pytest.mark.parametrize("rows", ["host", "device"])
def test_batch_of_256(benchmark, panel, rows):
    """What a training step waits for if nothing hides it: the call, and the kernel."""
    made = Job(panel, "jkx20", "bfloat16", 256 * 64 * 60 * 2)
    ends = made.rows if rows == "device" else made.rows.cpu().numpy()

    def render():
        made.renderer.render(ends, dtype=made.dtype, mean=0.1, std=0.3)
        torch.cuda.synchronize()

    render()
    benchmark.group = "256 images 64x60 bfloat16"
    benchmark(render)


def test_batch_of_256_on_the_cpu(benchmark, panel):
    """The same images from the CPU's kernel, copied to the device as bytes."""
    from pricepix.render.draw import render_rows

    made = Job(panel, "jkx20", "bfloat16", 256 * 64 * 60 * 2)
    rows = made.rows.cpu().numpy()
    images, reason = np.empty((len(rows), 64, 60), np.uint8), np.empty(len(rows), np.uint8)

    def render():
        render_rows(panel, rows, made.renderer.spec, images, reason=reason)
        torch.from_numpy(images).to(made.renderer.device)
        torch.cuda.synchronize()

    render()
    benchmark.group = "256 images 64x60 bfloat16"
    benchmark(render)
