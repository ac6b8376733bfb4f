"""Scoring on a CPU: FLOPs an image, images a second plain and folded, beside a matrix product on the same core.

    python benchmarks/test_scoring.py            one core, the table of docs/factor.md
    python benchmarks/test_scoring.py CHECKPOINT every engine that is installed, all cores

All ways take turns within a round and the best round of each counts, so that other work on the machine meets all alike;
on one core the time that counts is that of the thread, from which the system has taken what others ran in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from pricepix import train  # noqa: E402
from pricepix.train.engines.torch_engine import TorchEngine  # noqa: E402

PRESETS = {"jkx5": 256, "jkx20": 64, "jkx60": 16, "cnn49u": 16}
"""Images of a round: some tenths of a second."""
SIDE = 1024


def flops(network: Any) -> int:
    """Return the floating-point operations of an image: two a weight of each convolution's output and each product."""
    found = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal found
        found += 2 * output[0].numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        network(torch.from_numpy(images_of(network, 1)))
    for handle in handles:
        handle.remove()
    return found


def images_of(network: Any, n: int) -> np.ndarray:
    return (np.random.default_rng(0).random((n, *network.input_shape)) < 0.1).astype(np.uint8) * 255


def race(
    ways: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the shortest time of each way, all taking turns after a round that is not counted."""
    best = dict.fromkeys(ways, float("inf"))
    for i in range(rounds + 1):
        for name, work in ways.items():
            start = clock()
            work()
            if i:
                best[name] = min(best[name], clock() - start)
    return best


def measure(preset: str, count: int, rounds: int = 8, plain: int = 256) -> dict[str, float]:
    """Return the figures of a preset on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network: Any = train.PriceCNN(preset).eval()
        engine, images = TorchEngine([network]), images_of(network, count)
        a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
        ways = {"torch.mm": lambda: torch.mm(a, b, out=out), "folded": lambda: engine.predict(images)}
        seconds = race(ways, rounds, time.thread_time)
        # In batches of 256, as networks scored before they were folded: one round of each takes long enough.
        many = images_of(network, plain)
        seconds |= race({"plain": lambda: network.predict(many, 256)}, 1, time.thread_time)
    finally:
        torch.set_num_threads(before)
    operations = flops(network)
    product = 2 * SIDE**3 / seconds["torch.mm"]
    return {
        "MFLOP an image": operations / 1e6,
        "plain": plain / seconds["plain"],
        "folded": count / seconds["folded"],
        "share": operations * count / seconds["folded"] / product,
        "share of plain": operations * plain / seconds["plain"] / product,
        "GFLOP/s of torch.mm": product / 1e9,
    }


def engines(path: str, count: int = 512, rounds: int = 5) -> None:
    """Print the images a second of a checkpoint through every engine that is installed, on all cores."""
    from pricepix.train.engines.exported import onnx_bytes
    from pricepix.train.engines.onnx_engines import ENGINES
    from pricepix.train.engines.quantised import quantise

    network = train.load_model(path)
    images = images_of(network, count)
    engine = TorchEngine([network])  # type: ignore[list-item]
    ways: dict[str, Callable[[], Any]] = {
        "torch, plain, batches of 256": lambda: network.predict(images, 256)[None],
        "torch, folded": lambda: engine.predict(images),
    }
    content = onnx_bytes([network])  # type: ignore[list-item]
    for name, kind in ENGINES.items():
        if kind.is_installed():
            for label, model in ((name, content), (f"{name}, int8", quantise(content, images[:256]))):
                ways[label] = partial(kind(model).predict, images)
    expected = ways["torch, plain, batches of 256"]()[0]
    for name, best in race(ways, rounds).items():
        found = ways[name]()[0]
        print(f"{name:<30} {count / best:8,.0f} images/s, differs by {np.abs(found - expected).max():.1e}")


@pytest.mark.parametrize("preset", list(PRESETS))
def test_scoring(benchmark, size, preset):
    tiny = size.images < 100
    found = measure(preset, 5, 1, 5) if tiny else measure(preset, PRESETS[preset])
    benchmark.group = "scoring on one core"
    benchmark.extra_info.update(found)
    network: Any = train.PriceCNN(preset).eval()
    engine, images = TorchEngine([network]), images_of(network, 5)
    benchmark(engine.predict, images)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        engines(sys.argv[1])
    else:
        print(f"{'':<8} {'MFLOP':>7} {'plain':>8} {'folded':>8} {'share':>6}  of torch.mm of {SIDE}")
        for name, number in PRESETS.items():
            row = measure(name, number, plain=64 if number < 64 else 256)
            print(
                f"{name:<8} {row['MFLOP an image']:7,.0f} {row['plain']:6,.0f}/s {row['folded']:6,.0f}/s "
                f"{row['share']:6.2f}  ({row['share of plain']:.2f} plain, {row['GFLOP/s of torch.mm']:.0f} GFLOP/s)"
            )
