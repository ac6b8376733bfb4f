"""Draws, builds and scores from many threads and processes at once, and compares; run by test_concurrency.py.

A process of its own: what hangs or aborts must not take the tests along. What workers need is at the top of this
module, so that those that are spawned import it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import pricepix as pp
from pricepix.factor import open_cache, score
from pricepix.render import draw

draw._THREAD_SECONDS = 1e-9  # small calls are shared by threads, too


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


@cache
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(8, 120, seed=5), adjust="multiply", progress=False)


def digest(folder: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def make(number: int = 0, bars: pp.Panel | None = None) -> list[str]:
    """Draw, build, read and score in a folder of its own; return digests of all that came of it."""
    bars = panel() if bars is None else bars
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = pp.WindowIndex.from_panel(bars, "jkx5")
        images = pp.render_panel(bars, index, threads=2)
        options: dict[str, Any] = {"horizons": (1, 5), "chunk": 64, "workers": 2, "progress": False}
        store = pp.render_universe(bars, "jkx5", folder / "store", **options)
        assert np.array_equal(store.read(), images)
        batches = [batch.images for batch in store.batches(batch_size=50, shuffle=True, seed=3)]
        score(store, ink, folder / "cache", model_id="ink", progress=False)
        values = open_cache(folder / "cache").matrix()[1]
        parts = (images, np.concatenate(batches), values)
        # The cache names the folder of the store; its values do not.
        return [
            digest(folder / "store"),
            *(hashlib.blake2b(part.tobytes()).hexdigest()[:32] for part in parts),
        ]


def all_same(found: list[list[str]], expected: list[str]) -> bool:
    return len(found) > 1 and all(one == expected for one in found)


def threads(count: int) -> bool:
    """Several threads at once, of one panel."""
    expected, begin = make(), threading.Barrier(count)

    def work(number: int) -> list[str]:
        begin.wait()
        return make(number)

    with ThreadPoolExecutor(count) as pool:
        return all_same(list(pool.map(work, range(count))), expected)


def processes(method: str, count: int) -> bool:
    """Processes of a start method, made by a process that has done all of it before, with threads of its own."""
    expected, bars = make(), panel()
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context) as pool:
        found = list(pool.map(make, range(count), [bars] * count, timeout=240))
    # And in between, the parent itself.
    return all_same([*found, make()], expected)


def nested(bars: pp.Panel, scheduler: str) -> list[list[str]]:
    """A task of dask that computes tasks of its own."""
    import dask

    tasks = [dask.delayed(make)(k, bars) for k in range(2)]
    return list(dask.compute(*tasks, scheduler=scheduler, num_workers=2))


def dask_tasks(outer: str, count: int) -> bool:
    """Tasks within tasks: threads in threads, threads in processes; and arrays of dask of a store."""
    import dask

    expected, bars = make(), panel()
    tasks = [dask.delayed(nested)(bars, "threads") for _ in range(count)]
    found = dask.compute(*tasks, scheduler=outer, num_workers=2)
    store = pp.render_universe(bars, "jkx5", None, horizons=(1,), chunk=64, progress=False)
    array = store.to_dask()
    sums = dask.compute(*[dask.delayed(lambda: array.sum().compute(scheduler="threads"))() for _ in range(3)],
                        scheduler="threads")  # fmt: skip
    assert set(sums) == {int(store.read().sum(dtype=np.int64))}
    return all_same([one for part in found for one in part], expected)


def loader(method: str, count: int) -> bool:
    """Workers of a DataLoader, of a store and of panel images, against reading in this process."""
    from torch.utils.data import DataLoader

    bars = panel()
    options: dict[str, Any] = {"horizons": (5,), "chunk": 64, "progress": False}
    with tempfile.TemporaryDirectory() as name:
        store = pp.render_universe(bars, "jkx5", Path(name) / "store", **options)
        make()
        for images in (store, pp.PanelImages(bars, "jkx5", horizons=(5,))):
            data = images.to_torch(5, iterable=True, batch_size=32, seed=1)

            def samples(workers: int, context: str | None, data: Any = data) -> list[tuple[bytes, int]]:
                batches = DataLoader(
                    data, batch_size=None, num_workers=workers, multiprocessing_context=context
                )
                return sorted(
                    (pixels.tobytes(), label)
                    for batch, labels in batches
                    for pixels, label in zip(batch.numpy(), labels.tolist(), strict=True)
                )

            expected = samples(0, None)
            assert len(expected) > 100
            assert samples(count, method) == expected
    return True


def main() -> None:
    what, argument, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    work: dict[str, Callable[[], bool]] = {
        "threads": lambda: threads(count),
        "processes": lambda: processes(argument, count),
        "dask": lambda: dask_tasks(argument, count),
        "loader": lambda: loader(argument, count),
    }
    same = work[what]()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("pricepix")]
    print(json.dumps({"same": same, "left": left, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
