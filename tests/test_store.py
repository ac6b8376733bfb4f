"""Image stores as they are read: by zarr, dask, xarray and ours, by position and name; damaged, foreign."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import shutil
import warnings

import numpy as np
import polars as pl
import pytest
import zarr
from zarr.storage import MemoryStore

from pricepix import (
    ImageSpec,
    Panel,
    WindowIndex,
    forward_returns,
    open_store,
    render_panel,
    render_universe,
    samples,
)

LAYOUTS = ("uint8", "bits")
SPECS = {
    "even": ImageSpec(4, 16, ma=(4,), volume=True),
    "odd": ImageSpec(3, 13),
}  # 13 x 9 pixels: no whole bytes
CHUNK = 32
PLACES = ("memory", "folder", "zarr store")


@pytest.fixture(scope="module")
def panel(make_walk):
    """Four stocks of different lengths; the names would mislead a careless sort or a careless page."""
    names = ["<b>A&B</b>", "B", "b", "Ünï"]
    start = dt.date(2020, 2, 3)
    tables = []
    for seed, (name, n) in enumerate(zip(names, [80, 70, 60, 5], strict=True)):
        days = pl.date_range(start, start + dt.timedelta(days=n - 1), eager=True)
        frame = pl.DataFrame(
            make_walk(n, seed), schema=["open", "high", "low", "close", "volume"], orient="row"
        )
        tables.append(frame.with_columns(instrument=pl.lit(name), time=days))
    return Panel.from_table(pl.concat(tables), progress=False)


@pytest.fixture(scope="module")
def expected(panel):
    """By spec name: the index and all images, drawn without a store."""
    found = {}
    for name, spec in SPECS.items():
        index = WindowIndex.from_panel(panel, spec)
        found[name] = index, render_panel(panel, index)
    return found


@pytest.fixture(scope="module")
def stores(panel, tmp_path_factory):
    """Function from place, layout and spec to a built store; each is built once."""
    kept = {}

    def build(place, layout, spec="even"):
        key = place, layout, spec
        if key not in kept:
            where = {
                "memory": None,
                "folder": tmp_path_factory.mktemp("stores") / f"{layout}-{spec}.zarr",
                "zarr store": MemoryStore(),
            }[place]
            kept[key] = render_universe(
                panel,
                SPECS[spec],
                where,
                horizons=(1, 5),
                delay=1,
                layout=layout,
                chunk=CHUNK,
                progress=False,
            )
        return kept[key]

    return build


@pytest.fixture
def folder(stores, tmp_path):
    """Function to a copy of a finished store on disk that a test may spoil."""

    def copy(layout="uint8", spec="even"):
        path = tmp_path / f"{layout}.zarr"
        shutil.copytree(stores("folder", layout, spec).location, path)
        return path

    return copy


everywhere = pytest.mark.parametrize("place", PLACES)
both = pytest.mark.parametrize("layout", LAYOUTS)
all_sizes = pytest.mark.parametrize("spec", SPECS)


# ---- what a store holds, by whatever reads it


@everywhere
@both
@all_sizes
def test_images_are_those_of_the_panel(stores, expected, place, layout, spec):
    store = stores(place, layout, spec)
    index, images = expected[spec]
    assert len(store) == len(index) == store.images.shape[0]
    read = store.read()
    assert read.dtype == np.uint8
    assert np.array_equal(read, images)
    array = store.images
    assert isinstance(array, zarr.Array)
    assert array.dtype == (np.bool_ if layout == "bits" else np.uint8)
    assert array.chunks == (CHUNK, *SPECS[spec].shape)
    assert np.array_equal(array[:] if layout == "uint8" else array[:].astype(np.uint8) * 255, images)
    assert np.array_equal(array[7], images[7] > 0 if layout == "bits" else images[7])


@everywhere
@both
@all_sizes
def test_dask_reads_the_same(stores, expected, place, layout, spec):
    lazy = stores(place, layout, spec).to_dask()
    images = expected[spec][1]
    assert lazy.dtype == np.uint8
    assert lazy.shape == images.shape
    assert lazy.chunks[0][0] == CHUNK
    assert np.array_equal(lazy.compute(scheduler="threads"), images)
    assert np.array_equal(lazy[30:40, 2:].compute(), images[30:40, 2:])
    assert np.array_equal(lazy[5].compute(), images[5])


@both
def test_dask_graph_travels_to_other_processes(stores, expected, layout):
    lazy = pickle.loads(pickle.dumps(stores("folder", layout).to_dask()[::7]))
    assert np.array_equal(lazy.compute(scheduler="sync"), expected["even"][1][::7])


@everywhere
@both
@all_sizes
def test_xarray_reads_the_same(stores, expected, place, layout, spec):
    import xarray as xr

    store = stores(place, layout, spec)
    index, images = expected[spec]
    dataset = store.to_xarray()
    assert isinstance(dataset, xr.Dataset)
    assert dataset["images"].dims == ("window", "y", "x")
    assert np.array_equal(dataset["images"].values, images)
    assert dataset["time"].values.astype("datetime64[ns]").view(np.int64).tolist() == index.time.tolist()
    assert dataset["instrument"].values.tolist() == index.to_polars()["instrument"].to_list()
    assert np.array_equal(dataset["ret_5"].values, store.returns(5), equal_nan=True)
    assert np.array_equal(dataset["images"][3:9].values, images[3:9])
    assert np.isnat(dataset["exit_time_5"].values[-1])


@both
@all_sizes
def test_others_open_the_folder_as_it_is(stores, expected, layout, spec):
    """zarr, dask and xarray.open_zarr, told nothing; of bits they warn: packbits is outside Zarr's core."""
    import dask.array as da
    import xarray as xr

    path = stores("folder", layout, spec).location
    index, images = expected[spec]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if layout == "bits":
            warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3", UserWarning)
        group = zarr.open_group(path, mode="r")
        assert group.metadata.zarr_format == 3
        assert np.array_equal(group["images"][:] > 0, images > 0)
        assert np.array_equal(da.from_zarr(path, component="images").compute() > 0, images > 0)
        dataset = xr.open_zarr(path)
        assert dataset["images"].sizes == {"window": len(index), "y": images.shape[1], "x": images.shape[2]}
        assert dataset["instruments"].dims == ("instrument",)
        assert dataset["images"].dtype == (np.uint8 if layout == "uint8" else np.bool_)
        assert np.array_equal(dataset["images"].values > 0, images > 0)
        assert dataset["time"].values.astype("datetime64[ns]").view(np.int64).tolist() == index.time.tolist()
        names = dataset["instruments"].values[dataset["instrument_index"].values]
        assert names.tolist() == index.to_polars()["instrument"].to_list()
        label = forward_returns(index.panel, index, 5, 1)
        assert np.array_equal(dataset["ret_5"].values, label.value, equal_nan=True)
        exits = dataset["exit_time_5"].values.astype("datetime64[ns]").view(np.int64)
        assert exits.tolist() == label.exit_time.tolist()


@everywhere
@both
def test_layouts_and_places_hold_the_same(stores, place, layout):
    store, plain = stores(place, layout), stores("folder", "uint8")
    assert store.index.equals(plain.index)
    assert store.instruments.tolist() == plain.instruments.tolist()
    assert (store.spec, store.horizons, store.delay, store.tz) == (SPECS["even"], (1, 5), 1, None)
    assert store.layout == layout


# ---- the index


@everywhere
def test_index_is_a_frame_with_a_row_a_window(stores, panel, expected, place):
    store = stores(place, "bits")
    index, _ = expected["even"]
    frame = store.index
    assert frame.columns == ["instrument", "time", "ret_1", "ret_5", "exit_time_1", "exit_time_5"]
    assert frame["instrument"].dtype == pl.String
    assert frame["time"].dtype == pl.Datetime("ns")
    assert frame.select("instrument", "time").equals(index.to_polars().select("instrument", "time"))
    for h in (1, 5):
        label = forward_returns(panel, index, h, 1)
        assert frame[f"ret_{h}"].dtype == pl.Float32
        assert np.array_equal(frame[f"ret_{h}"].to_numpy(), label.value, equal_nan=True)
        assert np.array_equal(store.returns(h), label.value, equal_nan=True)
        assert np.array_equal(store.exit_time(h), label.exit_time)
        # what is unknown is NaN with no exit, never a number
        unknown = np.isnan(label.value)
        assert (
            unknown.sum() == frame[f"exit_time_{h}"].null_count() == sum(min(h + 1, n) for n in (74, 64, 54))
        )
    assert np.array_equal(panel.instruments[store.instrument_index], frame["instrument"].to_numpy())
    assert store.time.dtype == np.int64
    assert store.instrument_index.dtype == np.int32


def test_index_shows_times_in_the_zone_of_the_market(make_walk):
    instants = pl.datetime_range(
        dt.datetime(2021, 3, 8, 14), dt.datetime(2021, 3, 18), "1h", eager=True, time_zone="UTC"
    )
    times = instants.dt.convert_time_zone("America/New_York")
    frame = pl.DataFrame(
        make_walk(len(times)), schema=["open", "high", "low", "close", "volume"], orient="row"
    )
    panel = Panel.from_table(frame.with_columns(time=times), progress=False)
    store = render_universe(panel, SPECS["odd"], horizons=(2,), progress=False)
    assert store.tz == "America/New_York"
    assert store.index["time"].dtype == pl.Datetime("ns", "America/New_York")
    assert store.index["time"].to_list() == times[2:].to_list()
    assert store.index["time"][0].hour == 11  # 16:00 UTC in winter
    assert store.index["exit_time_2"].dtype == pl.Datetime("ns", "America/New_York")
    day = store.image("0", "2021-03-15 09:00")
    assert np.array_equal(day, store.image("0", dt.datetime(2021, 3, 15, 13, tzinfo=dt.UTC)))


def test_unknown_horizon_says_which_there_are(stores):
    store = stores("memory", "bits")
    for read in (store.returns, store.exit_time):
        with pytest.raises(
            ValueError, match=r"no forward returns over 7 bars, only over 1, 5: .*\.\.\., 7\)"
        ):
            read(7)


def test_repr_says_what_it_is(stores):
    assert "images 16x12, 4 instruments, horizons (1, 5), layout bits" in repr(stores("memory", "bits"))


# ---- reading by selection


@everywhere
@both
@all_sizes
def test_read_by_every_kind_of_selection(stores, expected, place, layout, spec):
    store = stores(place, layout, spec)
    images = expected[spec][1]
    n = len(images)
    rng = np.random.default_rng(0)
    for selection in (
        slice(None), slice(5, 90, 7), slice(None, None, -1), slice(40, 10, -3), slice(n, None),
        slice(-5, None), [0], [n - 1, 0, 5, 5], [-1, -n], [], np.array([], np.int64), rng.integers(-n, n, 50),
        np.arange(CHUNK - 1, CHUNK + 2), np.uint8([3, 1]), rng.random(n) < 0.2, np.zeros(n, bool), (1, 2),
        range(3, 30, 9),
    ):  # fmt: skip
        wanted = list(selection) if isinstance(selection, (tuple, range)) else selection
        read = store.read(selection)
        assert np.array_equal(read, images[np.asarray(wanted, int) if isinstance(wanted, list) else wanted])
        assert read.dtype == np.uint8
        assert read.flags.writeable
        out = np.full_like(read, 9)
        assert store.read(selection, out) is out
        assert np.array_equal(out, read)
    assert np.array_equal(store.read(7), images[[7]])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([10**6], "positions 1000000 to 1000000 lie outside the store's"),
        ([0, -(10**6)], "positions -1000000 to 0 lie outside"),
        (np.ones(3, bool), r"a mask over this store has shape \(\d+,\), not \(3,\)"),
        (["A"], "select windows by position, slice or mask, not by"),
        ("A", "select windows by position, slice or mask"),
        (1.0, "not by float64"),
        (None, "not by object"),
    ],
)
def test_selection_that_is_none(stores, selection, message):
    with pytest.raises(IndexError, match=message):
        stores("memory", "uint8").read(selection)


def test_selection_of_two_dimensions(stores):
    with pytest.raises(IndexError, match="position"):
        stores("memory", "uint8").read(np.zeros((2, 2), int))


def test_out_that_does_not_fit(stores):
    store = stores("memory", "uint8")
    for out in (np.empty((2, 16, 12)), np.empty((3, 16, 12), np.uint8), np.empty((2, 12, 16), np.uint8)):
        with pytest.raises(ValueError, match=r"out is .* expected uint8 \(2, 16, 12\)"):
            store.read([0, 1], out)


# ---- reading by name


@both
def test_image_of_an_instrument_and_time(stores, expected, layout):
    store = stores("folder", layout)
    index, images = expected["even"]
    frame = index.to_polars()
    for i in (0, 3, 50, len(index) - 1):
        name, time = frame["instrument"][i], frame["time"][i]
        for spelled in (str(time.date()), time, time.date(), np.datetime64(time, "ns"), int(index.time[i])):
            assert store.locate(name, spelled) == i
            assert np.array_equal(store.image(name, spelled), images[i])


def test_names_that_are_not_there(stores):
    store = stores("memory", "uint8")
    with pytest.raises(
        KeyError, match=r"no instrument '<b>A&B' in store memory; did you mean '<b>A&B</b>'\?"
    ):
        store.locate("<b>A&B", "2020-03-01")
    with pytest.raises(KeyError, match=r"no instrument 'ZZZ' in store memory"):
        store.image("ZZZ", "2020-03-01")
    with pytest.raises(
        KeyError, match=r"instrument 'Ünï' has no window in store memory: see its drop counts"
    ):
        store.locate("Ünï", "2020-02-05")


def test_times_that_are_not_there(stores):
    store = stores("memory", "uint8")
    with pytest.raises(
        KeyError,
        match=r"no window of 'B' ends at '2020-02-05': the nearest end at 2020-02-09.* and 2020-02-1",
    ):
        store.locate("B", "2020-02-05")
    with pytest.raises(ValueError, match=r"'last monday' is not a time; expected ISO form"):
        store.locate("B", "last monday")


def test_date_of_a_day_with_many_windows_is_never_a_guess(make_walk):
    times = pl.datetime_range(dt.datetime(2021, 3, 8, 9), dt.datetime(2021, 3, 9, 16), "1h", eager=True)
    frame = pl.DataFrame(
        make_walk(len(times)), schema=["open", "high", "low", "close", "volume"], orient="row"
    )
    store = render_universe(frame.with_columns(time=times), SPECS["odd"], horizons=(), progress=False)
    position = store.locate("0", "2021-03-09")
    assert store.index["time"][position] == dt.datetime(2021, 3, 9, 16)  # the day's last
    assert store.index["time"][store.locate("0", "2021-03-09 11:00")] == dt.datetime(2021, 3, 9, 11)


# ---- what open_store refuses


def test_nothing_there(tmp_path):
    path = tmp_path / "us20.zarr"
    with pytest.raises(
        FileNotFoundError, match=r"no store at .*us20\.zarr: build one with pricepix\.render_universe"
    ):
        open_store(path)
    with pytest.raises(FileNotFoundError, match="no store at"):
        open_store(str(path))


def test_a_file(tmp_path):
    path = tmp_path / "us20.zarr"
    path.write_text("not a store")
    with pytest.raises(
        ValueError, match=r"us20\.zarr is a file; a pricepix store is a folder \(a Zarr v3 group\)"
    ):
        open_store(path)


def test_something_that_is_no_place():
    with pytest.raises(TypeError, match="7 is not a location: give a path, a URL or a zarr store"):
        open_store(7)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no Zarr v3 group: it is not a pricepix store"):
        open_store(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no Zarr v3 group"):
        open_store(tmp_path)


def test_a_foreign_group(tmp_path):
    zarr.create_group(tmp_path / "g.zarr", zarr_format=3, attributes={"title": "somebody's"})
    with pytest.raises(
        ValueError, match=r"is a Zarr group, but not a pricepix store: it has no format_version and spec"
    ):
        open_store(tmp_path / "g.zarr")


def test_an_array_is_no_group(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(3,), dtype="u1", zarr_format=3)
    with pytest.raises(ValueError, match="group"):
        open_store(tmp_path / "a.zarr")


def test_a_group_of_zarr_2(tmp_path):
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2, attributes={"format_version": 1, "spec": {}})
    with pytest.raises(ValueError, match="holds no Zarr v3 group"):
        open_store(tmp_path / "old.zarr")


def edit(path, change):
    """Change the group's document, as an editor or another release would."""
    root = json.loads((path / "zarr.json").read_text())
    change(root["attributes"])
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("version", [0, 2, "1", 1.5])
def test_another_format_version(folder, version):
    path = folder()
    edit(path, lambda attributes: attributes.update(format_version=version))
    with pytest.raises(
        ValueError, match=rf"format version {version!r}, this release reads version 1: see CHANGELOG"
    ):
        open_store(path)


def test_an_unfinished_build(folder):
    path = folder()
    edit(path, lambda attributes: attributes.update(complete=False))
    with pytest.raises(
        ValueError, match=r"is not finished: its build was stopped, or still runs.*mode='overwrite'"
    ):
        open_store(path)


@pytest.mark.parametrize("gone", ["spec_digest", "horizons", "delay", "layout", "windows", "drop_counts"])
def test_attributes_that_are_gone(folder, gone):
    path = folder()
    edit(path, lambda attributes: attributes.pop(gone))
    with pytest.raises(ValueError, match=rf"lacks the attributes {gone}: it is truncated; rebuild it"):
        open_store(path)


@pytest.mark.parametrize(
    "change",
    [
        {"windows": 10},
        {"horizons": [1]},
        {"layout": "bits"},
        {"spec": {"lookback": 5}},
        {"spec": {"lookbak": 5}},
        {"spec": 7},
        {"horizons": 7},
        {"windows": "many"},
        {"delay": 0},
        {"drop_counts": {}},
    ],
    ids=str,
)
def test_attributes_that_were_edited(folder, change):
    path = folder()
    edit(path, lambda attributes: attributes.update(change))
    with pytest.raises(ValueError, match=r"edited or damaged: their digest is .* or rebuild the store"):
        open_store(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_document(folder, kept):
    path = folder()
    text = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(text[: int(kept * len(text))])
    with pytest.raises(
        ValueError, match=r"zarr\.json is damaged or foreign .*: restore or rebuild the store"
    ):
        open_store(path)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"zarr_format": 3}'])
def test_a_document_of_something_else(tmp_path, content):
    (tmp_path / "zarr.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"zarr\.json is damaged or foreign"):
        open_store(tmp_path)


# ---- damage is an error where it is read, and named; never blank images or silent numbers


def chunk_file(path, array, chunk=0):
    (found,) = (
        (p for p in (path / array / "c" / str(chunk)).rglob("*") if p.is_file())
        if array == "images"
        else (path / array / "c" / str(chunk),)
    )
    return found


@both
def test_a_missing_chunk_is_an_error_not_blank(folder, layout):
    path = folder(layout)
    chunk_file(path, "images", 2).unlink()
    store = open_store(path)
    store.read(slice(0, 2 * CHUNK))  # the others are as they were
    for read in (lambda: store.read([2 * CHUNK]), store.read, lambda: store.to_dask().compute()):
        with pytest.raises(
            ValueError, match=r"chunk images/c/2/0/0 of store .* is missing: restore or rebuild it"
        ):
            read()
    assert any("images/c/2/0/0" in problem for problem in store.verify()["problems"])


@both
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "swap"])
def test_a_damaged_chunk_is_named(folder, layout, how):
    path = folder(layout)
    file = chunk_file(path, "images", 1)
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
    elif how == "cut":
        del content[-7:]
    elif how == "empty":
        content.clear()
    else:
        content = chunk_file(path, "images", 0).read_bytes()  # sound, but another's
    file.write_bytes(bytes(content))
    store = open_store(path)
    assert store.read([0]).any()
    with pytest.raises(ValueError, match=r"chunk images/c/1/0/0 of store .* is damaged"):
        store.read([CHUNK])
    assert any("images/c/1/0/0" in problem for problem in store.verify()["problems"])


@pytest.mark.parametrize(
    "array", ["instrument_index", "time", "ret_1", "ret_5", "exit_time_1", "instruments"]
)
@pytest.mark.parametrize("how", ["gone", "flip"])
def test_a_damaged_index_is_named(folder, array, how):
    path = folder()
    file = chunk_file(path, array)
    if how == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(bytes(content))
    store = open_store(path)
    with pytest.raises(ValueError, match=rf"{array}/c/0 of store .* is (missing|damaged)"):
        _ = store.index
    assert any(f"{array}/c/0" in problem for problem in store.verify()["problems"])


def test_an_array_that_is_gone(folder):
    path = folder()
    shutil.rmtree(path / "ret_5")
    store = open_store(path)
    with pytest.raises(ValueError, match=r"ret_5/c/0 of store .* is missing"):
        store.returns(5)
    assert store.verify()["problems"]


@both
def test_truncated_shape_is_found_by_verify(folder, layout):
    path = folder(layout)
    document = path / "images" / "zarr.json"
    content = json.loads(document.read_text())
    content["shape"][0] -= 1
    document.write_text(json.dumps(content))
    assert any("images" in problem for problem in open_store(path).verify()["problems"])


def test_a_store_travels_between_processes(stores, expected):
    store = stores("folder", "bits")
    _ = store.index
    copy = pickle.loads(pickle.dumps(store))
    assert copy.location == store.location
    assert np.array_equal(copy.read([3, 50]), expected["even"][1][[3, 50]])


def test_digests_of_what_was_stored(stores, panel):
    store = stores("folder", "uint8")
    assert store.attrs["panel_digest"] == panel.digest
    assert store.attrs["spec_digest"] == SPECS["even"].digest
    assert store.digest == open_store(store.location).digest != stores("folder", "uint8", "odd").digest
    assert json.loads(json.dumps(store.attrs)) == store.attrs


def test_batches_cover_the_windows_that_were_asked_for():
    store = render_universe(samples.simulate(4, 60, seed=1), "jkx5", progress=False)
    name = str(store.instruments[1])
    seen = {
        int(position)
        for _, positions in store.batches(batch_size=8, instruments=[name])
        for position in positions
    }
    assert seen == set(np.flatnonzero(store.instrument_index == 1).tolist())
    images, positions = next(iter(store.batches(batch_size=16, seed=3)))
    assert np.array_equal(images, store.read(positions))
