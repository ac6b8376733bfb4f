"""How near drawing comes to ``ndarray.fill(255)`` on the same memory, and what stands around it.

A group is a row of the table that is printed at the end: each ratio beside its target. Buffers are warm and
larger than the caches; windows are consecutive, of a simulated market on a cent grid, unless told otherwise.

    pytest benchmarks/test_render_speed.py --benchmark-only
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import NamedTuple

import numba
import numpy as np
import polars as pl
import pytest

from pricepix import ImageSpec, Panel, WindowIndex, render_panel, render_universe, samples
from pricepix.images.drawing import BatchRenderer
from pricepix.render import fast, widen
from pricepix.render.memory import memory_for
from pricepix.render.simd import fence, load_b, store_nontemporal

PRESETS = ("jkx20", "jkx60", "it49", "jkx5")
OUTSIDE = {
    "per_field": ImageSpec(49, style="image_trading", scale="per_field"),
    "pixel chart": ImageSpec.preset("jkx20").replace(chart="pixel"),
    "two averages": ImageSpec.preset("jkx20").replace(ma=(5, 20)),
}
BATCH = 256
BATCHES = 100
HORIZONS = (5, 20, 60)


class Row(NamedTuple):
    """A line of the table: how many times faster `fast` is than `slow`, each by its name in ``seconds``."""

    what: str
    fast: str
    slow: str
    target: float


class Limit(NamedTuple):
    """A line of the table in seconds."""

    what: str
    name: str
    target: float


TABLE = (
    *(
        Row(f"{name} images, of fill", f"{name} images", f"{name} fill", target)
        for name, target in zip(PRESETS, (0.85, 0.88, 0.88, 0.45), strict=True)
    ),
    # The limit: a compiled loop of nothing but stores past the caches, over the same buffer.
    *(
        Row(f"{name} images{how}, of bare streamed stores", f"{name} images{how}", f"{name} streamed", target)
        for name, target in zip(PRESETS, (0.8, 0.8, 0.8, 0.4), strict=True)
        for how in ("", " by time", " by time, 16 bytes off")
    ),
    *(
        Row(f"{name} images to fresh memory, of its first touch", f"{name} fresh", f"{name} touched", 0.8)
        for name in ("jkx20", "it49")
    ),
    Row("jkx20 column bits, of fill's images", "jkx20 bits", "jkx20 fill", 1.8),
    Row("column bits to images 64x60, of fill", "jkx20 widen", "jkx20 fill", 0.85),
    Row("jkx20 random batches of 256, of consecutive", "jkx20 random", "jkx20 images", 0.5),
    Row("jkx5 random batches of 256, of consecutive", "jkx5 random", "jkx5 images", 0.5),
    *(Row(f"{n} over the plain kernel", f"{n} images", f"{n} plain", 4.0) for n in PRESETS),
    *(Row(f"{n} over the plain kernel", f"{n} few", f"{n} plain", 4.0) for n in ("it9", "cnnft5", "cnnft20")),
    # The same code but for the dispatch: what differs from 1 is the measuring.
    *(Row(f"{n}, of the plain kernel", f"{n} images", f"{n} plain", 1.0) for n in OUTSIDE),
    Row("jkx20 images, two threads over one", "jkx20 images two", "jkx20 images", 1.8),
    Row("jkx20 column bits, two threads over one", "jkx20 bits two", "jkx20 bits", 1.8),
    *(
        Row(
            f"render_universe in memory, {n}, of its kernel",
            f"universe {n}",
            f"universe kernel {n}",
            1 / 1.35,
        )
        for n in ("uint8", "bits")
    ),
    Row("Panel.from_table of Parquet, of polars' sort", "ingest", "ingest polars", 0.5),
    Limit("first image of a process, nothing compiled, s", "first image cold", 4.0),
    Limit("first store of three stocks, nothing compiled, s", "first store cold", 8.0),
    Limit("first image of a process, compiled before, s", "first image warm", 0.6),
)


@pytest.fixture(scope="module", autouse=True)
def table_of_ratios(request, compared):
    compared.table = TABLE


@pytest.fixture(scope="module")
def market(size):
    """Enough bars for a buffer of images of the smallest preset."""
    bars = 2500 if size.buffer > 1 << 24 else size.bars
    least = size.buffer // np.prod(ImageSpec.preset("jkx5").shape)
    table = samples.simulate(
        int(least // (bars - 10)) + 2, bars, halt_rate=0, split_rate=0, delist_rate=0, list_late=0, seed=1
    )
    return Panel.from_table(table, progress=False)


@pytest.fixture(scope="module")
def memory(size):
    """The one warm buffer that all images are written to."""
    return np.full(size.buffer, 1, np.uint8)


@pytest.fixture(scope="module")
def scene(market, memory):
    """Function from a spec to its consecutive windows, instrument by instrument, and memory for their images."""
    kept = {}

    def find(spec, most=1 << 62):
        if spec not in kept:
            found = WindowIndex.from_panel(market, spec)
            kept[spec] = found[np.argsort(found.row)]
        n = min(len(memory) // (spec.height * spec.width), len(kept[spec]), most)
        return kept[spec][:n], memory[: n * spec.height * spec.width].reshape(n, *spec.shape)

    return find


@pytest.fixture
def measure(benchmark, compared):
    """Function that measures a call under a name, for a row of the table; `things` is what it makes."""

    def run(group, name, things, function, *args, rounds=7, warmup=2, **options):
        benchmark.group = group
        benchmark.pedantic(function, args, options, rounds=rounds, warmup_rounds=warmup)
        if benchmark.stats is not None:
            best = benchmark.stats.stats.min
            compared.seconds[name] = best / things
            benchmark.extra_info["a second"] = round(things / best)

    return run


# ---- images against fill


@pytest.mark.parametrize("preset", PRESETS)
def test_fill(measure, scene, preset):
    _, out = scene(ImageSpec.preset(preset))
    measure(f"speed {preset}", f"{preset} fill", len(out), out.fill, 255)


@pytest.mark.parametrize("preset", PRESETS)
def test_images(measure, market, scene, preset):
    windows, out = scene(ImageSpec.preset(preset))
    measure(
        f"speed {preset}", f"{preset} images", len(out), render_panel, market, windows, out=out, threads=1
    )


@numba.njit(nogil=True)
def stream(out, first):
    """Write over `out` from byte `first` on, a multiple of 32 in memory, past the caches."""
    vector = load_b(out, first)
    for i in range(first, out.shape[0] - 31, 32):
        store_nontemporal(out, i, vector)
    fence()


@pytest.mark.parametrize("preset", PRESETS)
def test_streamed_stores(measure, scene, preset):
    _, out = scene(ImageSpec.preset(preset))
    flat = out.reshape(-1)
    measure(f"speed {preset}", f"{preset} streamed", len(out), stream, flat, -flat.ctypes.data % 32)


@pytest.mark.parametrize("off", [0, 16])
@pytest.mark.parametrize("preset", PRESETS)
def test_images_in_order_of_time(measure, market, memory, preset, off):
    """As stores hold them: the images of an instrument lie far apart. Memory that begins `off` bytes past a line."""
    spec = ImageSpec.preset(preset)
    skip = -memory.ctypes.data % 64 + off
    n = (len(memory) - skip) // (spec.height * spec.width)
    windows = WindowIndex.from_panel(market, spec)[:n]
    out = memory[skip : skip + len(windows) * spec.height * spec.width].reshape(-1, *spec.shape)
    name = f"{preset} images by time" + (", 16 bytes off" if off else "")
    measure(f"speed {preset}", name, len(out), render_panel, market, windows, out=out, threads=1)


@pytest.mark.parametrize(("preset", "threads"), [*((preset, 1) for preset in PRESETS), ("jkx20", 2)])
def test_bits(measure, market, scene, preset, threads):
    """Straight to column bits, which is a seventh of the memory traffic of the images."""
    windows, _ = scene(ImageSpec.preset(preset))
    bits = np.ones((len(windows), windows.spec.packed_bytes), np.uint8)
    name = f"{preset} bits" if threads == 1 else f"{preset} bits two"
    measure(
        f"speed {preset}",
        name,
        len(bits),
        render_panel,
        market,
        windows,
        out=bits,
        bits=True,
        threads=threads,
    )


# ---- fresh memory


@pytest.mark.parametrize("preset", ["jkx20", "it49"])
def test_fresh_memory(measure, market, scene, preset):
    """Memory that the call asks for, as large as the buffer of the others."""
    windows, _ = scene(ImageSpec.preset(preset))
    measure(f"speed {preset}", f"{preset} fresh", len(windows), render_panel, market, windows)


@pytest.mark.parametrize("preset", ["jkx20", "it49"])
def test_first_touch(measure, scene, preset):
    """The same memory, of which a byte a page is written: what the system takes to hand it out."""
    _, out = scene(ImageSpec.preset(preset))

    def touch():
        memory_for(out.shape).reshape(-1)[::4096] = 1

    measure(f"speed {preset}", f"{preset} touched", len(out), touch)


def test_images_of_two_threads(measure, market, scene):
    windows, out = scene(ImageSpec.preset("jkx20"))
    measure("speed jkx20", "jkx20 images two", len(out), render_panel, market, windows, out=out, threads=2)


def test_widen(measure, market, scene):
    windows, out = scene(ImageSpec.preset("jkx20"))
    bits = render_panel(market, windows, bits=True)
    measure("speed jkx20", "jkx20 widen", len(out), widen, bits, *windows.spec.shape, out)


@pytest.mark.parametrize("preset", ["jkx20", "jkx5"])
def test_random_batches(measure, scene, preset):
    """Batches of windows from anywhere in the panel, as training on the fly asks for them."""
    spec = ImageSpec.preset(preset)
    windows, out = scene(spec)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, len(windows), BATCH) for _ in range(BATCHES)]
    out = out[:BATCH] if len(out) >= BATCH else np.ones((BATCH, *spec.shape), np.uint8)
    drawer = BatchRenderer(windows)

    def draw():
        for which in batches:
            drawer.draw(which, out)

    measure(f"speed {preset}", f"{preset} random", BATCH * BATCHES, draw)


# ---- against the plain kernel, and specs that it draws


@pytest.mark.parametrize("preset", [*PRESETS, "it9", "cnnft5", "cnnft20"])
def test_plain(measure, market, scene, preset, monkeypatch):
    windows, out = scene(ImageSpec.preset(preset), 10_000)
    monkeypatch.setattr(fast, "supports", lambda spec: False)
    measure(
        f"speed {preset}", f"{preset} plain", len(out), render_panel, market, windows, out=out, threads=1,
        rounds=3, warmup=1,
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["it9", "cnnft5", "cnnft20"])
def test_few_images(measure, market, scene, preset):
    windows, out = scene(ImageSpec.preset(preset), 50_000)
    measure(f"speed {preset}", f"{preset} few", len(out), render_panel, market, windows, out=out, threads=1)


@pytest.mark.parametrize("path", ["images", "plain"])
@pytest.mark.parametrize("spec", list(OUTSIDE))
def test_outside_the_fast_path(measure, market, scene, monkeypatch, spec, path):
    windows, out = scene(OUTSIDE[spec], 10_000)
    if path == "plain":
        monkeypatch.setattr(fast, "supports", lambda spec: False)
    measure(
        f"speed {spec}", f"{spec} {path}", len(out), render_panel, market, windows, out=out, threads=1,
        rounds=3, warmup=1,
    )  # fmt: skip


# ---- around the kernel


@pytest.fixture(scope="module")
def universe(size):
    return samples.simulate(
        *size.universe, halt_rate=0, split_rate=0, delist_rate=0, list_late=0, seed=2
    ).drop("adjustment_factor")


@pytest.mark.parametrize("layout", ["uint8", "bits"])
def test_universe(measure, universe, layout):
    """From a data frame to a store in memory with index and labels, on one thread."""
    measure(
        f"speed universe {layout}", f"universe {layout}", universe.height, render_universe, universe, "jkx20", None,
        horizons=HORIZONS, layout=layout, threads=1, progress=False, rounds=4, warmup=1,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["uint8", "bits"])
def test_universe_kernel(measure, universe, layout):
    """Only its images, in the same order and also to fresh memory."""
    panel = Panel.from_table(universe, progress=False)
    windows = WindowIndex.from_panel(panel, "jkx20")
    measure(
        f"speed universe {layout}", f"universe kernel {layout}", universe.height, render_panel, panel, windows,
        bits=layout == "bits", threads=1, rounds=4, warmup=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def parquet(universe, tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "bars.parquet"
    universe.write_parquet(path)
    return path


def test_ingest(measure, parquet, universe):
    measure("speed ingest", "ingest", universe.height, Panel.from_table, parquet, progress=False, rounds=3)


def test_ingest_polars(measure, parquet, universe):
    def read():
        return pl.read_parquet(parquet).sort("instrument", "time")

    measure("speed ingest", "ingest polars", universe.height, read, rounds=3)


# ---- the first image of a process

FIRST = """
import numpy as np
from pricepix import render_windows

close = 5000 + np.cumsum(np.random.default_rng(0).integers(-9, 10, (1, 20)), axis=1)
bars = np.stack([close, close + 3, close - 3, close, close], axis=2) / 100
render_windows(bars, "jkx20", ma=bars[:, :, 3])
"""


STORE = """
from pricepix import render_universe, samples

render_universe(samples.simulate(3, 400, seed=1, split_rate=0), "jkx20", None, (5, 20), progress=False)
"""


def _start(code, environment):
    """Run code in a new process."""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **environment})


@pytest.fixture
def cold(tmp_path):
    """Function that runs code in a process that finds nothing compiled."""
    folders = itertools.count()

    def start(code):
        _start(code, {"NUMBA_CACHE_DIR": str(tmp_path / str(next(folders)))})

    return start


@pytest.mark.parametrize("what", ["image", "store"])
def test_first_cold(measure, cold, what):
    """Imports included."""
    code = {"image": FIRST, "store": STORE}[what]
    measure("speed first image", f"first {what} cold", 1, cold, code, rounds=3, warmup=1)


def test_first_image_warm(measure):
    compile_first = "from pricepix.bars import uncompiled\nuncompiled.patience.seconds = 0\n"
    _start(compile_first + FIRST, {})
    measure("speed first image", "first image warm", 1, _start, FIRST, {}, rounds=3, warmup=1)
