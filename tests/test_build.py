"""render_universe: what it refuses before any work, what it never deletes, bytes that depend on naught."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from zarr.storage import MemoryStore

from pricepix import ImageSpec, Panel, WindowIndex, open_store, render_panel, render_universe
from pricepix.store.chunks import ChunkFormat

LAYOUTS = ("uint8", "bits")
SPEC = ImageSpec(4, 16, ma=(4,), volume=True)
ODD = ImageSpec(3, 13)
both = pytest.mark.parametrize("layout", LAYOUTS)


def table_of(make_walk, lengths, start=dt.date(2020, 1, 1)):
    tables = []
    for seed, (name, n) in enumerate(lengths.items()):
        days = pl.date_range(start, start + dt.timedelta(days=n - 1), eager=True)
        frame = pl.DataFrame(
            make_walk(n, seed), schema=["open", "high", "low", "close", "volume"], orient="row"
        )
        tables.append(frame.with_columns(instrument=pl.lit(name), time=days))
    return pl.concat(tables)


@pytest.fixture(scope="module")
def table(make_walk):
    return table_of(make_walk, {"A": 150, "B": 140, "C": 3, "D": 90})


@pytest.fixture(scope="module")
def panel(table):
    return Panel.from_table(table, progress=False)


@pytest.fixture
def build(panel, tmp_path):
    """render_universe on the panel of this module, into a new folder unless told otherwise, without a bar."""

    def call(store="us.zarr", spec=SPEC, source=panel, **how):
        where = tmp_path / store if isinstance(store, str) else store
        return render_universe(
            source, spec, where, **{"horizons": (1, 5), "chunk": 32, "progress": False, **how}
        )

    return call


def tree(path, images_only=False):
    """Digest of every file of a folder by relative name."""
    path = Path(path)
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and (not images_only or file.is_relative_to(path / "images" / "c"))
    }


# ---- the bytes of a store


@both
@pytest.mark.parametrize("spec", [SPEC, ODD], ids=["even", "odd"])
def test_bytes_do_not_depend_on_threads_or_workers(build, layout, spec):
    stores = [
        build(f"{i}.zarr", spec, layout=layout, **how)
        for i, how in enumerate([{"threads": 1}, {"threads": 2}, {"threads": 3}, {"workers": 0}, {}])
    ]
    first = tree(stores[0].location)
    assert any(name.startswith("images/c/") for name in first)
    assert all(tree(store.location) == first for store in stores[1:])


@both
def test_bytes_do_not_depend_on_how_the_work_is_cut(build, layout, monkeypatch):
    from pricepix.build import plan

    whole = build("whole.zarr", layout=layout, threads=1)
    sizes = {"one chunk": 1, "three chunks": 3 * 32 * SPEC.packed_bytes, "everything": 1 << 40}
    for name, size in sizes.items():
        monkeypatch.setattr(plan, "PARTITION_BYTES", size)
        for workers in (0, 2):
            cut = build(f"{name}-{workers}.zarr", layout=layout, workers=workers)
            assert tree(cut.location) == tree(whole.location)


@both
def test_building_twice_gives_the_same_bytes(build, table, layout):
    """And nothing of the machine, the clock or the user gets in, nor the order of the table's rows."""
    one = build("one.zarr", layout=layout)
    two = build(
        "two.zarr",
        source=Panel.from_table(table.sample(fraction=1, shuffle=True, seed=3), progress=False),
        layout=layout,
    )
    assert tree(one.location) == tree(two.location)
    text = b"".join(file.read_bytes() for file in Path(one.location).rglob("*.json"))
    for word in (str(Path(one.location).parent), os.uname().nodename, str(dt.date.today())):
        assert word.encode() not in text


def test_chunks_move_no_image(build):
    stores = [build(f"{chunk}.zarr", chunk=chunk, layout="bits") for chunk in (1, 7, 64, 10_000)]
    assert [store.images.chunks[0] for store in stores] == [1, 7, 64, 10_000]
    first = stores[0].read()
    assert all(np.array_equal(store.read(), first) for store in stores[1:])
    assert all(store.index.equals(stores[0].index) for store in stores[1:])


@pytest.mark.parametrize(
    "spec", [SPEC, ODD, ImageSpec(9, style="image_trading")], ids=["even", "odd", "27x27"]
)
def test_layouts_and_places_hold_the_same_images(build, panel, spec):
    index = WindowIndex.from_panel(panel, spec)
    images = render_panel(panel, index)
    for place in ("f.zarr", None, MemoryStore()):
        for layout in LAYOUTS:
            where = f"{layout}-{place}" if isinstance(place, str) else place
            store = build(where, spec, layout=layout, mode="overwrite")
            assert np.array_equal(store.read(), images)
            assert np.array_equal(store.time, index.time)
            assert np.array_equal(store.instrument_index, index.instrument)


@both
def test_a_store_is_complete_and_says_where_it_came_from(build, panel, layout):
    store = build(layout=layout, delay=2, every="week", sample=0.9, seed=4, start="2020-01-10")
    attrs = store.attrs
    index = WindowIndex.from_panel(panel, SPEC, "week", sample=0.9, seed=4, start="2020-01-10")
    assert attrs["format_version"] == 1
    assert attrs["complete"] is True
    assert attrs["spec"] == SPEC.to_dict()
    assert attrs["spec_digest"] == SPEC.digest
    assert attrs["panel_digest"] == panel.digest
    assert (attrs["horizons"], attrs["delay"], attrs["layout"]) == ([1, 5], 2, layout)
    assert attrs["drop_counts"] == index.counts
    assert attrs["windows"] + sum(attrs["drop_counts"].values()) == attrs["candidates"] == index.candidates
    assert attrs["schedule"] == index.schedule
    assert attrs["label_price"] == "close"
    assert attrs["created_by"].startswith("pricepix ")
    assert len(store) == len(index)
    assert np.array_equal(store.time, index.time)


def test_nothing_but_the_store_is_left(build, tmp_path):
    store = build()
    assert os.listdir(tmp_path) == ["us.zarr"]
    top = {entry.name for entry in Path(store.location).iterdir()}
    arrays = {
        "images",
        "instruments",
        "instrument_index",
        "time",
        "ret_1",
        "ret_5",
        "exit_time_1",
        "exit_time_5",
    }
    assert arrays | {"zarr.json"} <= top
    assert not [name for name in tree(store.location) if "tmp" in name or name.endswith("lock")]


def test_horizons(build):
    assert build(None, horizons=()).horizons == ()
    assert build(None, horizons=7).horizons == (7,)
    assert build(None, horizons=[20, 5]).horizons == (5, 20)
    assert build(None, horizons=np.array([3, 1])).horizons == (1, 3)
    far = build(None, horizons=(10_000,))
    assert np.isnan(far.returns(10_000)).all()


def test_numpy_values_reach_the_attributes(build):
    store = build(
        every=np.int64(3), sample=np.float32(0.5), seed=np.int64(1), delay=np.int8(1), chunk=np.int64(8)
    )
    assert store.attrs["schedule"]["every"] == 3
    assert open_store(store.location).attrs == store.attrs


# ---- what goes in


def test_source_may_be_anything_a_panel_is_made_of(build, panel, table, tmp_path):
    table.write_parquet(tmp_path / "bars.parquet")
    table.write_csv(tmp_path / "bars.csv")
    first = build("p.zarr")
    sources = {
        "frame": table,
        "pandas": table.to_pandas(),
        "file": tmp_path / "bars.parquet",
        "csv": str(tmp_path / "bars.csv"),
    }
    for name, source in sources.items():
        assert tree(build(f"{name}.zarr", source=source).location) == tree(first.location)


def test_spec_may_be_a_name_or_a_dict(build):
    assert build(None, "jkx5").spec == ImageSpec.preset("jkx5")
    assert build(None, SPEC.to_dict()).spec == SPEC


# ---- bad input: one clear error, before anything is written


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"spec": "jkx21"}, ValueError, r"no preset 'jkx21'; did you mean 'jkx20'\? Choose from jkx5, jkx20"),
        ({"spec": 20}, TypeError, "spec must be an ImageSpec, a preset's name or a dict, not int"),
        (
            {"layout": "bit"},
            ValueError,
            r"layout='bit' is not known \(did you mean 'bits'\?\): choose one of 'uint8', 'bits'",
        ),
        ({"mode": "append"}, ValueError, "mode='append' is not known: choose one of 'create', .*'overwrite'"),
        (
            {"horizons": (0,)},
            ValueError,
            "horizon=0: give a whole number of bars from",
        ),
        ({"horizons": (5, -1)}, ValueError, "horizon=-1: give a whole number of bars from"),
        ({"horizons": (5.5,)}, ValueError, "horizon=5.5: give a whole number of bars from"),
        ({"horizons": (True,)}, ValueError, "horizon=True: give a whole number of bars from"),
        (
            {"horizons": (5, 20, 5)},
            ValueError,
            r"horizons=\(5, 5, 20\) names a horizon twice: give each once",
        ),
        ({"horizons": "20"}, ValueError, "horizons='20' is not a sequence of horizons: give e.g."),
        ({"horizons": None}, ValueError, "horizons=None is not a sequence of horizons"),
        ({"delay": -1}, ValueError, "delay=-1: give a whole number of bars from"),
        ({"delay": -1, "horizons": ()}, ValueError, "delay=-1: give a whole number of bars from"),
        ({"delay": 0.5}, ValueError, "delay=0.5: give a whole number of bars from"),
        ({"threads": 0}, ValueError, "threads=0: give a whole number of at least 1, or None for all"),
        ({"threads": 1.5}, ValueError, "threads=1.5: give a whole number of at least 1"),
        ({"threads": "2"}, ValueError, "threads='2': give a whole number of at least 1"),
        ({"chunk": 0}, ValueError, "chunk=0: give a whole number of windows of at least 1"),
        ({"chunk": True}, ValueError, "chunk=True: give a whole number of windows"),
        ({"chunk": "32"}, ValueError, "chunk='32': give a whole number of windows"),
        ({"chunk": 10**9}, ValueError, r"chunk=1000000000 images of .* GB of pixels, .*: give at most \d+"),
        ({"price": "adjusted"}, ValueError, "price='adjusted' is not known: choose one of 'auto', 'close'"),
        ({"price": "total_return"}, ValueError, "needs total returns, which the panel does not have"),
        (
            {"every": "fortnight"},
            ValueError,
            "every='fortnight' is not known: choose one of 'bar', .*'quarter', or a number of bars",
        ),
        ({"start": "2031-01-01"}, ValueError, "no bar lies between start='2031-01-01'"),
        ({"sample": 2}, ValueError, "sample=2: give a number above 0 and at most 1"),
        ({"max_gap": "soon"}, ValueError, "'soon' is not a duration"),
        ({"mask": np.ones(3, bool)}, ValueError, r"mask is bool \(3,\), expected bool \(383,\)"),
        (
            {"spec": SPEC.replace(rebuild="returns", ma=())},
            ValueError,
            "rebuild='returns' needs total returns",
        ),
        ({"source": pl.DataFrame({"open": []})}, ValueError, "time"),
        ({"source": "nowhere.parquet"}, FileNotFoundError, "nowhere.parquet"),
        ({"source": 7}, TypeError, "7|int"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refuses_and_writes_nothing(build, tmp_path, how, error, message):
    for mode in ("create", "overwrite"):
        with pytest.raises(error, match=message):
            build(**{"mode": mode, **how})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("store", ["us.zarr", None])
def test_nothing_to_draw_says_why(build, panel, tmp_path, store):
    nothing = np.zeros(len(panel), bool)
    with pytest.raises(
        ValueError, match=r"none of the 383 candidate windows can be drawn \(dropped: .*masked 362\)"
    ):
        build(store, mask=nothing)
    with pytest.raises(
        ValueError, match=r"none of the 383 candidate windows .*too_short 383\): choose a shorter"
    ):
        build(store, ImageSpec(200, 64))
    with pytest.raises(ValueError, match=r"none of .*ma_warmup 371.*ma_warmup='omit'"):
        build(store, SPEC.replace(ma=(1000,)))
    for gap, told in ((10, r"10 \(nanoseconds: '10d' is ten days\)"), ("1h", "'1h'")):
        with pytest.raises(
            ValueError,
            match=rf"gap 362\): choose a longer max_gap than {told}, a shorter lookback or ma_warmup='omit'$",
        ):
            build(store, max_gap=gap)
    assert os.listdir(tmp_path) == []


def test_bars_with_faults_are_told_before_anything_is_written(build, table, tmp_path):
    spoiled = table.with_columns(
        pl.when(pl.int_range(pl.len()) == 5).then(-1.0).otherwise("close").alias("close")
    )
    with pytest.raises(ValueError, match="close"):
        build(source=spoiled)
    assert os.listdir(tmp_path) == []


# ---- places


def test_a_store_that_exists_is_left_as_it_is(build):
    store = build()
    before = tree(store.location)
    with pytest.raises(
        FileExistsError, match=r"us\.zarr exists already: give another path, or mode='overwrite' to rep"
    ):
        build(spec=ODD)
    assert tree(store.location) == before


def test_a_store_that_exists_is_told_before_the_bars_are_read(build):
    build()
    with pytest.raises(FileExistsError):
        build(source="a file that is not read")


def test_overwrite_replaces_a_store_and_leaves_nothing_of_it(build):
    build(horizons=(1, 2, 3, 4), chunk=8)
    replaced = build(spec=ODD, mode="overwrite", layout="bits")
    fresh = build("fresh.zarr", spec=ODD, layout="bits")
    assert tree(replaced.location) == tree(fresh.location)


def test_overwrite_begins_where_nothing_is(build):
    assert tree(build(mode="overwrite").location) == tree(build("other.zarr").location)


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_an_empty_folder_is_taken(build, tmp_path, mode):
    (tmp_path / "us.zarr").mkdir()
    assert len(build(mode=mode)) > 0


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_folders_of_others_are_never_deleted(build, tmp_path, mode):
    """A thesis, somebody's Zarr group, a store whose document is lost: none is ours to remove."""
    thesis = tmp_path / "thesis"
    (thesis / "chapters").mkdir(parents=True)
    (thesis / "chapters" / "1.tex").write_text("years of work")
    zarr.create_group(tmp_path / "theirs.zarr", zarr_format=3, attributes={"title": "theirs"})
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    for name in ("thesis", "theirs.zarr", "old.zarr", "broken"):
        before = tree(tmp_path / name)
        with pytest.raises(
            FileExistsError, match=r"(not empty and )?not a pricepix store.*give another path"
        ):
            build(name, mode=mode)
        assert tree(tmp_path / name) == before


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_a_file_is_never_replaced(build, tmp_path, mode):
    (tmp_path / "us.zarr").write_text("mine")
    with pytest.raises(FileExistsError, match=r"us\.zarr is a file; a store is a folder: give another path"):
        build(mode=mode)
    with pytest.raises(
        NotADirectoryError, match=r"us\.zarr is a file, so .*below\.zarr cannot be made below it"
    ):
        build("us.zarr/below.zarr", mode=mode)
    assert (tmp_path / "us.zarr").read_text() == "mine"


def test_folders_above_are_made(build):
    assert len(build("a/b/c.zarr")) > 0


# Root may write anywhere, so a child gives up its rights first; what is imported is compiled before that.
UNPRIVILEGED = """
import os, sys
from pricepix import ImageSpec, Panel, render_universe
import numpy as np
close = np.cumsum(np.random.default_rng(0).normal(0, 1, (50, 1)), axis=0) + 100
days = np.datetime64("2020-01-01") + np.arange(50)
panel = Panel.from_arrays(close, close + 1, close - 1, close, time=days, instruments=["A"], progress=False)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    render_universe(panel, ImageSpec(4, 16), sys.argv[1], progress=False)
except PermissionError as error:
    print(f"PermissionError: {error}")
else:
    print("written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_a_place_that_is_not_writable():
    # not in tmp_path, whose parents a process without rights may not even look into
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name) / "closed"
        closed.mkdir()
        Path(name).chmod(0o755)
        closed.chmod(0o555)
        arguments = [sys.executable, "-c", UNPRIVILEGED, str(closed / "deep" / "us.zarr")]
        out = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert out.returncode == 0, out.stderr
        assert out.stdout.startswith("PermissionError: "), out.stdout
        assert "closed is not writable: give another path, or change its permissions" in out.stdout
        assert os.listdir(closed) == []


def test_a_place_that_is_none(build):
    with pytest.raises(TypeError, match="7 is not a location"):
        build(7)


# ---- interruption


class _StoppedError(Exception):
    """Stands for whatever ends a build half way: a signal, a full disk, a fault in a thread."""


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, _StoppedError])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_build_that_is_stopped_is_never_taken_for_a_store(
    build, panel, monkeypatch, layout, error, workers
):
    whole = build("whole.zarr", layout=layout)
    encode, calls = ChunkFormat.encode, []

    def fails(self, bits):
        calls.append(1)
        if len(calls) > 4:
            raise error("stopped")
        return encode(self, bits)

    monkeypatch.setattr(ChunkFormat, "encode", fails)
    with pytest.raises(error):
        build(layout=layout, workers=workers)
    monkeypatch.undo()
    path = Path(whole.location).parent / "us.zarr"
    assert tree(path)  # something was there already
    with pytest.raises(ValueError, match=r"is not finished|its build was stopped"):
        open_store(path)
    with pytest.raises(FileExistsError, match=r"holds an unfinished build: .*mode='overwrite' starts again"):
        build(layout=layout)
    kept = shutil.copytree(path, path.with_name("copy.zarr"))
    again = build("us.zarr", layout=layout, mode="overwrite")
    assert tree(again.location) == tree(whole.location)
    resumed = build(kept.name, layout=layout, mode="resume")
    assert tree(resumed.location) == tree(whole.location)


def test_plain_zarr_sees_that_a_stopped_build_is_not_complete(build, monkeypatch, tmp_path):
    """Whoever reads the folder without us finds no finished store either."""

    def fails(self, bits):
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkFormat, "encode", fails)
    with pytest.raises(KeyboardInterrupt):
        build()
    try:
        group = zarr.open_group(tmp_path / "us.zarr", mode="r", zarr_format=3)
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        return  # no group at all
    assert not group.attrs["complete"]


# ---- verify


@both
@pytest.mark.parametrize("place", ["us.zarr", None])
def test_verify_of_a_sound_store(build, panel, table, layout, place):
    store = build(place, layout=layout)
    for report in (
        store.verify(),
        store.verify(panel),
        store.verify(table),
        store.verify(panel, sample=None),
    ):
        assert report["problems"] == []
        assert report["windows"] == len(store)
    assert store.verify(panel, sample=None)["rendered"] == len(store)
    assert store.verify(panel, sample=10)["rendered"] == 10
    assert store.verify()["rendered"] == 0


def reseal(store, chunk, images):
    """Put other images into a chunk, with a checksum that is right for them."""
    bits = np.packbits(images.transpose(0, 2, 1).reshape(len(images), -1) > 0, axis=1)
    path = Path(store.location) / store.objects.chunk_key(chunk)
    path.write_bytes(store.chunk_format.encode(bits))


@both
def test_verify_finds_a_pixel_that_changed(build, panel, layout):
    store = build(layout=layout)
    images = store.read(slice(32, 64))
    images[3, 5, 5] ^= 255
    reseal(store, 1, images)
    problems = open_store(store.location).verify(panel, sample=None)["problems"]
    assert problems
    assert "images/c/1/0/0" in problems[0] or "image 35 differs" in problems[0]


def test_verify_finds_images_in_another_order(build, panel):
    store = build(layout="bits")
    images = store.read(slice(0, 32))
    reseal(store, 0, images[::-1])
    assert open_store(store.location).verify(panel, sample=None)["problems"]


@pytest.mark.parametrize("array", ["ret_1", "time", "instrument_index", "exit_time_5"])
def test_verify_finds_an_index_that_changed(build, panel, array):
    """Changed by zarr itself, so that every chunk is sound in itself."""
    store = build()
    other = zarr.open_group(store.location, mode="r+")[array]
    values = other[:]
    at = [3, 4]
    elsewhere = 60 + np.flatnonzero(values[60:] != values[3])[:2]
    values[at] = values[elsewhere]
    other[:] = values
    problems = open_store(store.location).verify(panel, sample=None)["problems"]
    assert any(array in problem for problem in problems) or any("order" in problem for problem in problems)


def test_verify_finds_other_bars(build, panel, table):
    store = build()
    changed = table.with_columns(
        pl.when(pl.int_range(pl.len()) == 40).then(pl.col("high") + 1).otherwise("high").alias("high")
    )
    other = Panel.from_table(changed, progress=False)
    problems = store.verify(other)["problems"]
    assert any(panel.digest in problem and other.digest in problem for problem in problems)


def test_verify_finds_what_does_not_belong(build):
    store = build()
    (Path(store.location) / "images" / "c" / "999").mkdir()
    (Path(store.location) / "images" / "c" / "999" / "x").write_text("strange")
    assert any("999" in problem for problem in store.verify()["problems"])


def test_verify_knows_that_bars_without_a_range_draw_nothing(build, table):
    """Closes alone, as thin markets quote them: images exist, and are blank. That is no fault."""
    thin = table.with_columns(high=None, low=None, open=None).cast(
        dict.fromkeys(("high", "low", "open"), pl.Float64)
    )
    panel = Panel.from_table(thin, progress=False)
    store = build(spec=ImageSpec(4, 16), source=panel)
    assert not store.read().any()
    report = store.verify(panel, sample=None)
    assert report.ok
    assert "is blank, as where bars have only closes" in report.notes[0]
    assert report.notes[0] in str(report)
