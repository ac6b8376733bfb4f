"""Reading a store in batches of 256 images, beside slicing it with zarr in the same order of chunks.

Members of a group read the same images: their times divide into ratios. Run on one core::

    taskset -c 0 pytest benchmarks/test_reader.py --benchmark-columns=min,median,rounds
"""

from __future__ import annotations

import numpy as np
import pytest

from pricepix import open_store, render_universe
from pricepix.store.chunks import numcodecs_allowed
from pricepix.store.pool_reader import BatchReader

BATCH = 256


@pytest.fixture(scope="module", params=["bits", "uint8"])
def store(request, panel, size, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / request.param
    render_universe(
        panel, "jkx20", path, horizons=(5,), layout=request.param, chunk=size.chunk, progress=False
    )
    return open_store(path)


def _read(reader, epoch):
    count = 0
    for images, _ in reader.epoch(epoch):
        count += len(images)
    return count


def _name(benchmark, per_second, store):
    benchmark.group = f"read shuffled {store.layout} 64x60"
    per_second("images", len(store))


def test_first_epoch(benchmark, per_second, store):
    """Reads and decodes everything, then gives a full permutation."""
    _name(benchmark, per_second, store)
    benchmark(lambda: _read(BatchReader(store.objects, batch_size=BATCH, threads=1, prefetch=0), 0))


def test_later_epochs(benchmark, per_second, store):
    """Gives another permutation of what is in memory, one bit a pixel."""
    reader = BatchReader(store.objects, batch_size=BATCH, threads=1, prefetch=0)
    _read(reader, 0)
    _name(benchmark, per_second, store)
    benchmark(_read, reader, 1)


def test_three_epochs(benchmark, per_second, store):
    """What a training of three epochs sees."""
    benchmark.group = f"read shuffled {store.layout} 64x60, three epochs"
    per_second("images", 3 * len(store))

    def run():
        reader = BatchReader(store.objects, batch_size=BATCH, threads=1, prefetch=0)
        return sum(_read(reader, epoch) for epoch in range(3))

    benchmark(run)


@pytest.mark.parametrize("share", [0.1, 0.52])
def test_through_a_pool(benchmark, per_second, store, share):
    """A store too large for memory: the pool holds this share of it."""
    pool = int(share * len(store) * store.spec.height * store.spec.width / 8)
    reader = BatchReader(store.objects, batch_size=BATCH, pool_bytes=pool, threads=1, prefetch=0)
    _name(benchmark, per_second, store)
    benchmark(_read, reader, 0)


def test_in_order(benchmark, per_second, store):
    reader = BatchReader(store.objects, batch_size=BATCH, shuffle=False, threads=1, prefetch=0)
    benchmark.group = f"read in order {store.layout} 64x60"
    per_second("images", len(store))
    benchmark(_read, reader, 0)


def test_zarr_slices(benchmark, per_second, store):
    """The same chunks in random order, each sliced with zarr and shuffled within."""
    chunk = store.chunk_format.windows
    order = np.random.default_rng(0).permutation(-(-len(store) // chunk))
    _name(benchmark, per_second, store)

    def run():
        count = 0
        rng = np.random.default_rng(0)
        with numcodecs_allowed():
            for c in order:
                images = store.images[c * chunk : (c + 1) * chunk]
                for part in np.array_split(rng.permutation(len(images)), max(1, len(images) // BATCH)):
                    batch = images[part]
                    count += (
                        len(batch) if batch.dtype == np.uint8 else len(batch.view(np.uint8) * np.uint8(255))
                    )
        return count

    assert benchmark(run) == len(store)
