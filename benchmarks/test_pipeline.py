"""From bars to a store, stage by stage, each beside its baseline.

Members of a group do the same work on the same data: their times divide into ratios. Rendering stands
beside a plain Python and Pillow renderer.

    pytest benchmarks --benchmark-columns=min,median,rounds --benchmark-sort=name
"""

from __future__ import annotations

import numpy as np
import oracle
import polars as pl
import pytest
import zarr

from pricepix import ImageSpec, Panel, WindowIndex, forward_returns, open_store, render_panel, render_universe
from pricepix.store.chunks import ChunkFormat, numcodecs_allowed

PRESETS = ("jkx5", "jkx20", "jkx60", "it9", "it49", "cnnft5", "cnnft20")
LAYOUTS = ("uint8", "bits")


# ---- render: windows of a few instruments next to each other in time


@pytest.fixture(params=PRESETS)
def job(request, benchmark, per_second, panel, windows, size):
    """Spec, consecutive windows of it and the warm buffer that they are drawn into."""
    spec = ImageSpec.preset(request.param)
    found = windows(spec)
    by_instrument = np.argsort(found.row, kind="stable")[: size.images]
    part = found[np.sort(by_instrument)]
    benchmark.group = f"render {request.param} {spec.height}x{spec.width}"
    per_second("images", len(part))
    return spec, part, np.zeros((len(part), *spec.shape), np.uint8)


def test_render_panel(benchmark, job, panel):
    """On one thread. How near this comes to the memory's speed is measured in test_render_speed.py."""
    _, part, out = job
    benchmark(render_panel, panel, part, out=out, threads=1)


def test_render_python(benchmark, job, panel):
    """numpy and Pillow, one image at a time, as such renderers are usually written."""
    spec, part, out = job
    close = panel.bars[:, 3]
    averages = np.full((len(panel), len(spec.ma)), np.nan)
    for i, n in enumerate(spec.ma):
        sums = np.convolve(close, np.ones(n), "valid")
        averages[n - 1 :, i] = sums / n

    def draw():
        for i, row in enumerate(part.row):
            window = slice(row - spec.lookback + 1, row + 1)
            ma = averages[window] if spec.ma else None
            image, _ = oracle.draw(
                panel.bars[window], ma, style=spec.style, height=spec.height, volume=spec.volume
            )
            if image is not None:
                out[i] = image

    benchmark.pedantic(draw, rounds=1)


# ---- ingest


@pytest.fixture(params=["frame", "shuffled frame", "parquet", "csv"])
def source(request, table, tmp_path_factory, benchmark, per_second):
    benchmark.group = f"ingest {request.param}"
    per_second("bars", table.height)
    if request.param == "frame":
        return table
    if request.param == "shuffled frame":
        return table.sample(fraction=1, shuffle=True, seed=0)
    path = tmp_path_factory.mktemp("ingest") / f"bars.{request.param}"
    (table.write_parquet if request.param == "parquet" else table.write_csv)(path)
    return path


def test_ingest_panel(benchmark, source):
    benchmark(Panel.from_table, source, progress=False)


def test_ingest_polars(benchmark, source):
    """Sorted columns as numpy arrays, nothing checked."""

    def read():
        frame = source
        if not isinstance(source, pl.DataFrame):
            frame = (
                pl.read_parquet(source)
                if source.suffix == ".parquet"
                else pl.read_csv(source, try_parse_dates=True)
            )
        frame = frame.sort(frame.columns[:2])
        return frame.select("open", "high", "low", "close", "volume").to_numpy()

    benchmark(read)


# ---- index and label


@pytest.mark.parametrize("every", ["bar", "month"])
@pytest.mark.parametrize("preset", ["jkx5", "jkx20", "jkx60"])
def test_index(benchmark, per_second, panel, windows, preset, every):
    spec = ImageSpec.preset(preset)
    windows(spec)
    benchmark.group = f"index {preset}"
    per_second("bars", len(panel))
    benchmark(WindowIndex.from_panel, panel, spec, every)


@pytest.mark.parametrize("preset", ["jkx5", "jkx20", "jkx60"])
def test_index_polars(benchmark, table, preset):
    """Bars counted and windows ordered, nothing looked at."""
    spec = ImageSpec.preset(preset)
    benchmark.group = f"index {preset}"
    instrument, time = table.columns[:2]

    def count():
        seen = pl.int_range(1, pl.len() + 1).over(instrument, order_by=time)
        return (
            table.filter(seen >= spec.lookback + spec.history).select(time, instrument).sort(time, instrument)
        )

    benchmark(count)


@pytest.mark.parametrize("horizon", [5, 60])
def test_label(benchmark, per_second, panel, windows, horizon):
    found = windows(ImageSpec.preset("jkx20"))
    forward_returns(panel, found, horizon, price="close")
    benchmark.group = f"label {horizon} bars"
    per_second("labels", len(found))
    benchmark(forward_returns, panel, found, horizon, price="close")


@pytest.mark.parametrize("horizon", [5, 60])
def test_label_polars(benchmark, table, horizon):
    benchmark.group = f"label {horizon} bars"
    instrument, time = table.columns[:2]
    ahead = pl.col("close").shift(-horizon).over(instrument, order_by=time)
    benchmark(table.select, (ahead / pl.col("close") - 1).cast(pl.Float32))


# ---- store


@pytest.fixture(scope="module")
def stores(panel, size, tmp_path_factory):
    """A store of jkx20 on disk by layout."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        layout: render_universe(
            panel, "jkx20", folder / f"{layout}.zarr", layout=layout, chunk=size.chunk, progress=False
        )
        for layout in LAYOUTS
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_write(benchmark, per_second, stores, panel, size, tmp_path, layout):
    """Index, label, draw, compress and write."""
    benchmark.group = f"store write {layout}"
    per_second("images", len(stores[layout]))
    benchmark.pedantic(
        render_universe,
        (panel, "jkx20", tmp_path / "store.zarr"),
        {"layout": layout, "mode": "overwrite", "chunk": size.chunk, "progress": False},
        rounds=3,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_write_zarr(benchmark, per_second, stores, size, tmp_path, layout):
    """The drawn images through zarr-python, with the same codecs."""
    images = stores[layout].read()
    form = ChunkFormat(layout, *images.shape[1:], size.chunk)
    benchmark.group = f"store write {layout}"
    per_second("images", len(images))
    values = images > 0 if layout == "bits" else images

    def write():
        with numcodecs_allowed():
            group = zarr.create_group(tmp_path / "plain.zarr", zarr_format=3, overwrite=True)
            form.create_array(group, len(images))[:] = values

    benchmark.pedantic(write, rounds=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_write_raw(benchmark, stores, tmp_path, layout):
    """The bytes of the drawn images, uncompressed, to one file."""
    benchmark.group = f"store write {layout}"
    images = stores[layout].read()
    if layout == "bits":
        images = np.packbits(images.reshape(len(images), -1) > 0, axis=1)
    benchmark.pedantic(images.tofile, (tmp_path / "images.bin",), rounds=3)


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_read(benchmark, per_second, stores, layout, order):
    store = open_store(stores[layout].location)
    chosen = np.arange(len(store))
    if order == "shuffled":
        np.random.default_rng(0).shuffle(chosen)
    out = np.zeros((len(store), *store.spec.shape), np.uint8)
    benchmark.group = f"store read {layout}"
    per_second("images", len(store))
    benchmark(store.read, chosen, out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_read_zarr(benchmark, per_second, stores, layout):
    """Through zarr-python, as anybody would."""
    images = stores[layout].images
    benchmark.group = f"store read {layout}"
    per_second("images", images.shape[0])
    benchmark.pedantic(lambda: images[:], rounds=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_store_read_fill(benchmark, stores, layout):
    """The limit: writing the bytes of all images."""
    out = np.zeros((len(stores[layout]), *stores[layout].spec.shape), np.uint8)
    benchmark.group = f"store read {layout}"
    benchmark(out.fill, 255)
