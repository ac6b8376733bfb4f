"""Stores at scale: building beside its parts and beside zarr-python, size, memory, appending a day.

    pytest benchmarks/test_store_scale.py --benchmark-columns=min,median,rounds --benchmark-sort=name

With ``--benchmark-timer=time.process_time`` rates are those of a core, whatever else the machine does. Ratios
are what to look at, within one run. ``extra_info`` of the JSON holds bytes an image and peaks of memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import zarr

from pricepix import Panel, WindowIndex, append, render_panel, render_universe, samples
from pricepix.images.chunking import default_chunk
from pricepix.store.chunks import ChunkFormat

LAYOUTS = ("uint8", "bits")


class Market(NamedTuple):
    """A cross-section as wide as a real one: neighbours in a store are other stocks of the same day."""

    instruments: int
    bars: int


MARKETS = {"tiny": Market(12, 60), "usual": Market(3000, 120)}
LARGE = {"tiny": Market(12, 300), "usual": Market(5000, 440)}
NAME = os.environ.get("PRICEPIX_BENCH", "usual")


def made(market: Market) -> Panel:
    return Panel.from_table(samples.simulate(*market, seed=1), adjust="multiply", progress=False)


@pytest.fixture(scope="module")
def market():
    return made(MARKETS[NAME])


@pytest.fixture(scope="module")
def warm(market, tmp_path_factory):
    """Compile everything before the clock starts."""
    for layout in LAYOUTS:
        render_universe(
            market, "jkx20", tmp_path_factory.mktemp("warm") / layout, layout=layout, progress=False
        )


def folder_bytes(path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_build(benchmark, per_second, market, warm, tmp_path, layout, workers):
    """From a panel to a finished store: windows, labels, images, checksums."""
    benchmark.group = f"build {layout}"
    target = tmp_path / "store"
    store = benchmark.pedantic(
        render_universe,
        (market, "jkx20", target),
        {"layout": layout, "mode": "overwrite", "workers": workers, "threads": workers, "progress": False},
        rounds=3,
    )
    per_second("images", len(store))
    size = folder_bytes(target) / len(store)
    benchmark.extra_info["bytes an image"] = round(size, 1)
    if NAME == "usual":
        assert size <= {"bits": 125, "uint8": 300}[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_build_draw(benchmark, per_second, market, warm, layout):
    """Only drawing, on one thread: a build cannot be faster than this."""
    windows = WindowIndex.from_panel(market, "jkx20")
    benchmark.group = f"build {layout}"
    per_second("images", len(windows))
    benchmark.pedantic(render_panel, (market, windows), {"bits": True, "threads": 1}, rounds=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_build_encode(benchmark, per_second, market, warm, layout):
    """Only compressing, on one thread."""
    form = ChunkFormat(layout, 64, 60, default_chunk(64, 60, layout))
    bits = render_panel(market, WindowIndex.from_panel(market, "jkx20")[: 4 * form.windows], bits=True)
    benchmark.group = f"build {layout}"
    per_second("images", len(bits))
    benchmark.pedantic(
        lambda: [form.encode(bits[a : a + form.windows]) for a in range(0, len(bits), form.windows)], rounds=3
    )


def test_build_zarr(benchmark, per_second, market, warm, tmp_path):
    """The drawn uint8 images assigned to a zarr array with its usual codec, as without this package."""
    images = render_panel(market, WindowIndex.from_panel(market, "jkx20")[:32768])
    benchmark.group = "build uint8"
    per_second("images", len(images))

    def assign() -> None:
        array = zarr.create_array(
            tmp_path / "plain", shape=images.shape, chunks=(512, 64, 60), dtype="uint8", overwrite=True
        )
        array[:] = images

    benchmark.pedantic(assign, rounds=3)


@pytest.fixture(scope="module")
def large():
    return made(LARGE[NAME])


def test_append_a_day(benchmark, per_second, large, warm, tmp_path):
    """One day more, to a store of two million images; the panel is in memory, its digests are not."""
    benchmark.group = "append"
    before = large.select(end=large.stamp(int(large.calendar[-2])))
    kept = tmp_path / "kept"
    old = render_universe(before, "jkx20", kept, layout="bits", progress=False)

    def setup():
        shutil.rmtree(tmp_path / "grown", ignore_errors=True)
        shutil.copytree(kept, tmp_path / "grown")
        fresh = Panel(large.bars, large.offsets, large.instruments, large.time, large.tz, large.fields)
        return (tmp_path / "grown", fresh), {"progress": False}

    store = benchmark.pedantic(append, setup=setup, rounds=3)
    benchmark.extra_info["images"] = len(store)
    assert len(store) > len(old)


PEAK = """
import json, sys
import numpy as np
import pricepix as pp
folder, store = sys.argv[1:]
load = lambda name: np.load(f"{folder}/{name}.npy")
panel = pp.Panel(load("bars"), load("offsets"), load("instruments"), load("time"))
held = panel.bars.nbytes + panel.time.nbytes + panel.time_code.nbytes
built = pp.render_universe(panel, "jkx20", store, layout="bits", workers=2, threads=2, progress=False)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
json.dump({"images": len(built), "bytes": peak - held}, sys.stdout)
"""


def test_memory(benchmark, large, tmp_path):
    """Peak memory, panel aside, of a tenth of the images and of all: flat."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("reads the peak of memory from /proc")
    benchmark.group = "memory"
    tenth = large.select(end=large.stamp(int(large.calendar[len(large.calendar) // 5])))
    found = {}
    for name, panel in (("tenth", tenth), ("all", large)):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("bars", "offsets", "instruments", "time"):
            np.save(folder / part, getattr(panel, part))

        def build(folder=folder) -> dict[str, int]:
            arguments = [sys.executable, "-c", PEAK, str(folder), str(folder / "store")]
            # By itself glibc keeps freed memory, more of it in a longer run: what is needed is to be measured.
            environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
            ran = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
            return json.loads(ran.stdout)

        found[name] = benchmark.pedantic(build, rounds=1) if name == "all" else build()
    benchmark.extra_info["peaks"] = found
    if NAME == "usual":
        assert found["all"]["bytes"] <= 1.1 * found["tenth"]["bytes"], found
