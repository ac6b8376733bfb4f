"""Drawing while reading: random batches of 256 against consecutive windows, stores and a model's own rate.

Members of a group make the same images: their times divide into ratios. Run on one core::

    taskset -c 0 pytest benchmarks/test_panel_images.py --benchmark-columns=min,median,rounds

``python benchmarks/test_panel_images.py`` prints the ratios themselves, each from the fewest CPU seconds of many
short turns taken in rotation, which a busy machine disturbs least.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pricepix import Panel, PanelImages, open_store, render_universe, samples
from pricepix.render.draw import render_rows

BATCH = 256


@pytest.fixture(scope="module")
def images(panel):
    return PanelImages(panel, "jkx20", horizons=(5,))


@pytest.fixture(scope="module")
def store(panel, size, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "bits"
    render_universe(panel, "jkx20", path, horizons=(5,), layout="bits", chunk=size.chunk, progress=False)
    return open_store(path)


def read(reader: Any, epoch: int = 1) -> int:
    return sum(len(batch.index) for batch in reader.epoch(epoch))


GROUP = "batches of 256, 64x60"


def test_consecutive(benchmark, per_second, images, panel):
    """The kernel at its best: neighbouring windows share what they have in common, in one call."""
    rows = np.sort(images.windows.row)[: 1 << 15]
    out, reason = np.empty((len(rows), 64, 60), np.uint8), np.empty(len(rows), np.uint8)
    benchmark.group = GROUP
    per_second("images", len(rows))
    benchmark(render_rows, panel, rows, images.spec, out, reason=reason, threads=1)
    assert not reason.any()


def test_random(benchmark, per_second, images):
    """Panel images, shuffled."""
    reader = images.batches(batch_size=BATCH, prefetch=0)
    benchmark.group = GROUP
    per_second("images", len(images))
    assert benchmark(read, reader) == len(images)


@pytest.mark.parametrize("packed", [True, False])
def test_loaded(benchmark, per_second, store, packed):
    """A store in memory, shuffled."""
    reader = store.load(packed=packed).batches(batch_size=BATCH, prefetch=0)
    benchmark.group = GROUP
    per_second("images", len(store))
    assert benchmark(read, reader) == len(store)


def test_store(benchmark, per_second, store):
    """A store on disk, its chunks shuffled, through a pool of a tenth."""
    pool = len(store) * store.spec.packed_bytes // 10
    reader = store.batches(batch_size=BATCH, pool_bytes=pool, threads=1, prefetch=0)
    benchmark.group = GROUP
    per_second("images", len(store))
    assert benchmark(read, reader) == len(store)


# ------------------------------------------------------------------------------------- ratios, in rotation


def rotate(turns: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images a CPU second of each: the cheapest of its turns, which follow each other."""
    best = dict.fromkeys(turns, float("inf"))
    for _ in range(rounds):
        for name, turn in turns.items():
            # Once to fill the caches that the turn before has emptied.
            turn()
            began = time.process_time()
            count = turn()
            best[name] = min(best[name], (time.process_time() - began) / count)
    return {name: 1 / seconds for name, seconds in best.items()}


def some_of(reader: Any, batches: int) -> Callable[[], int]:
    """A turn: the next few batches of an endless row of epochs."""

    def endless() -> Iterator[Any]:
        epoch = 1
        while True:
            yield from reader.epoch(epoch)
            epoch += 1

    stream = endless()
    return lambda: sum(len(next(stream).index) for _ in range(batches))


def drawing(images: PanelImages, folder: Path, rounds: int) -> None:
    panel = images.panel
    store = render_universe(panel, images.spec, folder / "bits", horizons=(5,), layout="bits", progress=False)
    rows = np.sort(images.windows.row)[: 1 << 14]
    out, reason = np.empty((len(rows), *images.spec.shape), np.uint8), np.empty(len(rows), np.uint8)

    def consecutive() -> int:
        render_rows(panel, rows, images.spec, out, reason=reason, threads=1)
        return len(rows)

    pool = len(store) * store.spec.packed_bytes // 10
    options: dict[str, Any] = {"batch_size": BATCH, "prefetch": 0, "threads": 1}
    rates = rotate(
        {
            "consecutive windows": consecutive,
            "panel images, random": some_of(images.batches(**options), 8),
            "loaded, packed, random": some_of(store.load().batches(**options), 8),
        },
        rounds,
    )
    # Its thread decodes beyond the end of a turn, so that whole epochs are measured, alone.
    reader = store.batches(**options, pool_bytes=pool)
    rates |= rotate({"bits store, chunks shuffled": lambda: read(reader)}, max(1, rounds // 20))
    for name, rate in rates.items():
        print(f"{name:32}{rate / 1e6:8.2f} million images a second")
    ours = rates["panel images, random"]
    print(f"random against consecutive: {ours / rates['consecutive windows']:.2f}")
    print(f"random against the store: {ours / rates['bits store, chunks shuffled']:.2f}")


def training(images: PanelImages, rounds: int, batch: int = 64, steps: int = 2) -> None:
    """One network fed by a batch that lies there and by panel images, in turn: forward, backward and Adam."""
    import torch

    from pricepix import train

    network = train.PriceCNN("jkx20")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    target = torch.zeros(batch, dtype=torch.int64)
    resident = torch.from_numpy(images.read(slice(batch)))
    reader = images.batches(batch_size=batch, drop_last=True)
    stream = (b for epoch in range(1000) for b in reader.epoch(epoch))

    def step(inputs: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), target).backward()
        optimizer.step()

    def bare() -> int:
        for _ in range(steps):
            step(resident)
        return batch * steps

    def fed() -> int:
        for _ in range(steps):
            step(torch.from_numpy(next(stream).images))
        return batch * steps

    rates = rotate({"one resident batch": bare, "drawn on the fly": fed}, rounds)
    for name, rate in rates.items():
        print(f"jkx20 training, {name:20}{rate:8.1f} images a second")
    print(f"on the fly against resident: {rates['drawn on the fly'] / rates['one resident batch']:.3f}")


def main(instruments: int = 100, bars: int = 2500, rounds: int = 60) -> None:
    table = samples.simulate(instruments, bars, halt_rate=0, split_rate=0, delist_rate=0, list_late=0, seed=1)
    images = PanelImages(Panel.from_table(table, progress=False), "jkx20", horizons=(5,))
    with tempfile.TemporaryDirectory() as folder:
        drawing(images, Path(folder), rounds)
    training(images, max(1, rounds // 10))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
