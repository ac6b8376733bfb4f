"""Stores in the hands of others: every reader of Zarr that is installed sees the pixels that ours sees.

``pip install --group readers`` brings zarrs and tensorstore, ``pip install rasterio`` GDAL. For zarrita.js run
``npm install zarrita @zarrita/storage`` in a folder and name it in ``PRICEPIX_ZARRITA``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pricepix as pp

# Whole bytes a column; images of 27x27 start inside a byte; chunks within shards.
SHAPES = {"jkx20": {}, "it9": {}, "jkx5": {"shard": 128}}


@pytest.fixture(scope="module")
def bars() -> Any:
    return pp.samples.simulate(4, 130, seed=1, delist_rate=0)


@pytest.fixture(
    scope="module",
    params=[(layout, preset) for layout in ("uint8", "bits") for preset in SHAPES],
    ids="-".join,
)
def store(request: Any, bars: Any, tmp_path_factory: Any) -> pp.ImageStore:
    layout, preset = request.param
    path = tmp_path_factory.mktemp("stores") / "store.zarr"
    options = {"layout": layout, "chunk": 64, "progress": False, **SHAPES[preset]}
    made = pp.render_universe(bars, preset, path, horizons=(5,), **options)
    assert len(made) % 64, "the last chunk is not full"
    if layout == "bits":
        made.write_packed_view()
    return pp.open_store(path)


def pixels(found: Any) -> Any:
    """Return what a reader makes of ``images`` as we give it: bool is 0 and 1 there."""
    found = np.asarray(found)
    return found * np.uint8(255) if found.dtype == bool else found


def unpacked(rows: Any, store: pp.ImageStore) -> Any:
    """Return the images in rows of the packed view, as the documentation of the format says."""
    height, width = store.spec.shape
    bits = np.unpackbits(np.asarray(rows)[:, 0, 1:], axis=1)[:, : store.chunk * height * width]
    return bits.reshape(-1, width, height).transpose(0, 2, 1)[: len(store)] * np.uint8(255)


def quiet_zarr(store: pp.ImageStore) -> Any:
    with warnings.catch_warnings():
        # numcodecs.packbits is outside of the core of Zarr v3; zarrs says so, too.
        warnings.simplefilter("ignore")
        return zarr.open_group(store.location, mode="r")["images"][:]


def test_zarr(store: pp.ImageStore) -> None:
    np.testing.assert_array_equal(pixels(quiet_zarr(store)), store.read())


def test_zarr_fused(store: pp.ImageStore) -> None:
    from zarr.core import codec_pipeline

    if not hasattr(codec_pipeline, "FusedCodecPipeline"):
        pytest.skip(f"zarr-python {zarr.__version__} has no fused pipeline")
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
        np.testing.assert_array_equal(pixels(quiet_zarr(store)), store.read())


def test_zarrs(store: pp.ImageStore) -> None:
    pytest.importorskip("zarrs", reason="zarrs is not installed: pip install --group readers")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        np.testing.assert_array_equal(pixels(quiet_zarr(store)), store.read())


def test_xarray_with_dask(store: pp.ImageStore) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("dask.array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = xarray.open_zarr(store.location, chunks={})
        assert dataset.images.chunks is not None
        np.testing.assert_array_equal(pixels(dataset.images.values), store.read())
    np.testing.assert_array_equal(dataset.time.values, store.time.astype("M8[ns]"))
    np.testing.assert_array_equal(dataset.ret_5.values, store.returns(5))


def read_tensorstore(path: str) -> Any:
    tensorstore = pytest.importorskip("tensorstore", reason="no tensorstore: pip install --group readers")
    source = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open(source, open=True, read=True).result().read().result()


def test_tensorstore(store: pp.ImageStore) -> None:
    if store.layout == "bits":
        with pytest.raises(ValueError, match=r"numcodecs\.packbits"):
            read_tensorstore(f"{store.location}/images")
        found = unpacked(read_tensorstore(f"{store.location}/images/c"), store)
    else:
        found = read_tensorstore(f"{store.location}/images")
    np.testing.assert_array_equal(found, store.read())
    np.testing.assert_array_equal(read_tensorstore(f"{store.location}/ret_5"), store.returns(5))
    np.testing.assert_array_equal(read_tensorstore(f"{store.location}/time"), store.time)


def test_gdal(store: pp.ImageStore) -> None:
    rasterio = pytest.importorskip("rasterio", reason="GDAL is not installed: pip install rasterio")
    name = f'"{store.location}/images/c"' if store.layout == "bits" else f'"{store.location}":/images'
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # images are not georeferenced
        try:
            with rasterio.open(f"ZARR:{name}") as opened:
                found = opened.read()
        except rasterio.errors.RasterioIOError as error:
            # 3.10 to 3.12 lack crc32c and sharding.
            if "Unsupported codec" in str(error) and "packbits" not in str(error):
                pytest.skip(f"GDAL {rasterio.__gdal_version__}: {error}")
            raise
    np.testing.assert_array_equal(unpacked(found, store) if store.layout == "bits" else found, store.read())


ZARRITA = """
import * as zarr from "zarrita";
import { FileSystemStore } from "@zarrita/storage";
import { writeFileSync } from "node:fs";
const [path, name, out] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(path));
const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
const found = await zarr.get(array);
writeFileSync(out, found.data);
console.log(JSON.stringify({ shape: found.shape, stride: found.stride }));
"""


def test_zarrita(store: pp.ImageStore, tmp_path: Path) -> None:
    folder = os.environ.get("PRICEPIX_ZARRITA")
    if folder is None or shutil.which("node") is None:
        pytest.skip("PRICEPIX_ZARRITA names no folder with zarrita in its node_modules, or there is no node")
    name = "images/c" if store.layout == "bits" else "images"
    done = subprocess.run(
        ["node", "--input-type=module", "-", store.location, name, str(tmp_path / "out")],
        input=ZARRITA, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    raw = np.fromfile(tmp_path / "out", np.uint8)
    found = np.lib.stride_tricks.as_strided(raw, told["shape"], told["stride"])
    np.testing.assert_array_equal(unpacked(found, store) if store.layout == "bits" else found, store.read())


def test_the_packed_view_is_the_chunks_themselves(store: pp.ImageStore) -> None:
    """Not a byte more than a small file; any reader of the core of Zarr v3; our own reader and verify do not mind."""
    if store.layout == "uint8":
        with pytest.raises(ValueError, match="layout 'uint8' of this store needs no packed view"):
            store.write_packed_view()
        return
    path = Path(store.location, "images", "c")
    found = json.loads((path / "zarr.json").read_text())
    named = [codec["name"] for codec in found["codecs"]]
    inner = (
        found["codecs"][0]["configuration"]["codecs"] if named == ["sharding_indexed"] else found["codecs"]
    )
    assert [codec["name"] for codec in inner] == ["bytes", "blosc", "crc32c"]
    assert [entry.name for entry in path.iterdir() if entry.is_file()] == ["zarr.json"]
    np.testing.assert_array_equal(unpacked(zarr.open_array(path, mode="r")[:], store), store.read())
    assert store.verify().ok


def test_appends_keep_the_packed_view(bars: Any, tmp_path: Path) -> None:
    panel = pp.Panel.of(bars)
    until = panel.stamp(int(panel.calendar[-9]))
    path = tmp_path / "store.zarr"
    options = {"horizons": (5,), "layout": "bits", "chunk": 64, "progress": False}
    pp.render_universe(panel.select(end=until), "jkx5", path, **options).write_packed_view()
    store = pp.append(path, panel, progress=False)
    np.testing.assert_array_equal(
        unpacked(zarr.open_array(path / "images" / "c", mode="r")[:], store), store.read()
    )
    assert store.verify(panel).ok
    # A store without the view gets none.
    plain = tmp_path / "plain.zarr"
    pp.render_universe(panel.select(end=until), "jkx5", plain, **options)
    pp.append(plain, panel, progress=False)
    assert not (plain / "images" / "c" / "zarr.json").exists()


def test_a_packed_view_of_something_else_is_found(bars: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    store = pp.render_universe(bars, "jkx5", path, horizons=(5,), layout="bits", chunk=64, progress=False)
    store.write_packed_view()
    file = path / "images" / "c" / "zarr.json"
    file.write_text(file.read_text().replace("crc32c", "crc32d"))
    found = store.verify()
    assert "images/c/zarr.json does not describe the chunks of this store" in str(found)
    store.write_packed_view()
    assert store.verify().ok


def test_stores_in_memory_have_no_packed_view(bars: Any) -> None:
    store = pp.render_universe(bars, "jkx5", horizons=(5,), layout="bits", progress=False)
    with pytest.raises(ValueError, match="lives in memory"):
        store.write_packed_view()
