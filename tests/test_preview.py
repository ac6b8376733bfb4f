"""Contact sheets and enlargements: what is on the picture is what is in the store."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pricepix import ImageSpec, Panel, PanelImages, preview, render_universe, samples
from pricepix.preview import contact_sheet, enlarge

GAP = preview._GAP


@pytest.fixture(scope="module")
def panel():
    return Panel.from_table(samples.simulate(3, 90, seed=5, halt_rate=0.01), adjust="multiply")


@pytest.fixture(scope="module")
def store(panel):
    return render_universe(panel, "jkx20", horizons=(1, 20), progress=False)


def grey(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("L"))


def blown_up(image, scale):
    return np.kron(image, np.ones((scale, scale), np.uint8))


# ---- contact sheets


@pytest.mark.parametrize(
    ("name", "scale"), [("jkx5", 6), ("jkx20", 3), ("jkx60", 2), ("it9", 7), ("it49", 1)]
)
def test_every_pixel_becomes_a_square(panel, tmp_path, name, scale):
    spec = ImageSpec.preset(name).replace(ma=())
    images = render_universe(panel, spec, horizons=5, progress=False)
    path = contact_sheet(images, tmp_path / "sheet.png", n=1, seed=None)
    middle = (len(images) - 1) // 2
    height, width = (side * scale for side in spec.shape)
    shown = grey(path)[3 * GAP : 3 * GAP + height, GAP : GAP + width]
    assert np.array_equal(shown, blown_up(images.read([middle])[0], scale))


def test_all_images_are_on_the_sheet_side_by_side(store, tmp_path):
    shown = grey(contact_sheet(store, tmp_path / "sheet.png", n=5, seed=None))
    chosen = preview._spread(np.arange(len(store)), 5, None)
    found = []
    wanted = {p: blown_up(store.read([p])[0], 3) for p in chosen.tolist()}
    for y in range(shown.shape[0] - 192):
        for x in range(GAP, shown.shape[1] - 180, 180 + GAP):
            block = shown[y : y + 192, x : x + 180]
            found += [p for p, image in wanted.items() if np.array_equal(block, image)]
    # in reading order
    assert found == chosen.tolist()


@pytest.mark.parametrize("layout", ["uint8", "bits"])
def test_a_store_on_disk_gives_the_same_sheet(panel, store, tmp_path, layout):
    path = tmp_path / f"{layout}.zarr"
    on_disk = render_universe(panel, "jkx20", path, horizons=(1, 20), layout=layout, progress=False)
    kept = [grey(contact_sheet(s, tmp_path / "a.png", n=4)) for s in (store, on_disk, path, str(path))]
    # the titles name different stores, and may be wider than the images
    below = [sheet[3 * GAP :, : 2 * (180 + GAP)] for sheet in kept]
    assert all(np.array_equal(below[0], other) for other in below[1:])


def test_the_same_arguments_give_the_same_file(store, tmp_path):
    one, two, other = (
        contact_sheet(store, tmp_path / f"{name}.png", n=6, seed=seed).read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == two != other


def test_the_default_path_is_in_the_current_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert contact_sheet(store, n=1).samefile(tmp_path / "contact_sheet.png")


def test_columns(store, tmp_path):
    shapes = {
        columns: grey(contact_sheet(store, tmp_path / "a.png", n=6, columns=columns)).shape
        for columns in (1, 3, 6, 50)
    }
    row = 192 + 6 + 4 * preview._LINE + GAP
    assert [shape[0] for shape in shapes.values()] == [
        6 * row + 3 * GAP,
        2 * row + 3 * GAP,
        *[row + 3 * GAP] * 2,
    ]
    assert shapes[6] == shapes[50]
    with pytest.raises(ValueError, match="columns=0: give a whole number of images of at least 1"):
        contact_sheet(store, tmp_path / "b.png", columns=0)


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("windows", "n"), [(100, 24), (24, 24), (7, 24), (1000, 3)])
def test_one_window_out_of_each_stretch(windows, n, seed):
    positions = 10 * np.arange(windows)
    chosen = preview._spread(positions, n, seed)
    expected = min(n, windows)
    assert len(chosen) == expected
    edges = [k * windows // expected for k in range(expected + 1)]
    for k, position in enumerate(chosen):
        assert position in positions[edges[k] : edges[k + 1]]
    if seed is None and windows % expected == 0:
        assert len(set(np.diff(chosen))) == 1


def test_only_the_instruments_asked_for(store):
    names = store.index["instrument"].to_numpy()
    one = preview._windows_of(store, "S0001")
    assert np.array_equal(one, np.flatnonzero(names == "S0001"))
    two = preview._windows_of(store, ["S0002", "S0000"])
    assert np.array_equal(two, np.flatnonzero(names != "S0001"))


def test_captions(store):
    position = int(np.flatnonzero(~np.isnan(store.returns(20)))[0])
    row = store.index[position]
    last = len(store) - 1
    captions = preview._captions(store, np.array([position, last]), (1, 20))
    assert captions[0] == [
        row["instrument"].item(),
        str(row["time"].item().date()),
        " 1 " + f"{100 * row['ret_1'].item():+.2f}%".rjust(8),
        "20 " + f"{100 * row['ret_20'].item():+.2f}%".rjust(8),
    ]
    # nothing is known after the end
    assert captions[1][2:] == [" 1      n/a", "20      n/a"]
    assert preview._captions(store, np.array([position]), ())[0] == captions[0][:2]


def test_times_of_day_are_shown_where_there_are_any():
    bars = samples.simulate(1, 60, interval="30m")
    intraday = render_universe(Panel.from_table(bars, tz="America/New_York"), "jkx5", progress=False)
    assert preview._captions(intraday, np.array([0]), ())[0][1] == "2000-01-03 14:00"


def test_names_that_could_upset_the_drawing(tmp_path, recwarn):
    bars = samples.simulate(1, 40)
    names = ["$x^2$", "平安银行", "a name that is far too long to stand under a small image", "<b>&\\"]
    table = pl.concat([bars.with_columns(instrument=pl.lit(name)) for name in names])
    images = render_universe(table, "jkx5", progress=False)
    path = contact_sheet(images, tmp_path / "$a^b$.png", n=8)
    assert grey(path).shape[1] < 3000
    assert not list(recwarn)


def test_pyplot_is_left_alone(tmp_path):
    code = (
        "import sys, pricepix as pp\n"
        "store = pp.render_universe(pp.samples.simulate(2, 60), 'jkx20', progress=False)\n"
        "pp.contact_sheet(store, sys.argv[1], n=2)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    # A display that does not exist, so that anything but Agg fails.
    environment = {**os.environ, "DISPLAY": ":99", "MPLBACKEND": "TkAgg"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True, env=environment)


# ---- enlargements


def test_enlarged_image_alone(store, tmp_path):
    row = store.index[40]
    path = enlarge(store, row["instrument"].item(), row["time"].item(), tmp_path / "big.png")
    shown = grey(path)[3 * GAP : 3 * GAP + 512, GAP : GAP + 480]
    assert np.array_equal(shown, blown_up(store.read([40])[0], 8))
    again = enlarge(store.read([40])[0], row["instrument"].item(), row["time"].item(), tmp_path / "b.png")
    assert np.array_equal(grey(again)[3 * GAP : 3 * GAP + 512, GAP : GAP + 480], shown)


@pytest.mark.parametrize("name", ["jkx5", "jkx20", "it9"])
def test_plotted_bars_lie_level_with_the_image(tmp_path, name):
    table = samples.simulate(1, 60, halt_rate=0, delist_rate=0, list_late=0)
    spec = ImageSpec.preset(name).replace(ma=())
    images = render_universe(table, spec, progress=False)
    image, time = images.read([30])[0], images.index["time"][30]
    path = enlarge(images, "S0000", time, tmp_path / "big.png", panel=table)
    height, width = image.shape
    scale = min(560 // height, 900 // width)
    plot_wide = max(320, width * scale)
    price_rows = height - height // 5 - 1 if spec.volume else height
    # without the axis below, which is as dark as the bars
    plot = grey(path)[3 * GAP : 3 * GAP + price_rows * scale - 2, GAP + width * scale + 90 :]
    for bar in range(spec.bars):
        dark = np.flatnonzero(plot[:, int((bar + 0.5) / spec.bars * plot_wide)] < 60)
        stem = np.flatnonzero(image[:price_rows, 3 * bar + 1])
        assert abs(dark[0] / scale - (stem[0] + 0.5)) <= 0.7
        assert abs(dark[-1] / scale - (stem[-1] + 0.5)) <= 0.7


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec.preset("jkx60").replace(aggregate=3, lookback=60, ma=(6,)),
        ImageSpec.preset("jkx5").replace(rebuild="returns"),
        ImageSpec.preset("cnnft5"),
        ImageSpec.preset("jkx20").replace(ma_warmup="omit"),
        ImageSpec(1, height=8),
    ],
)
def test_any_spec_can_be_enlarged(panel, tmp_path, spec):
    images = render_universe(panel, spec, horizons=(), progress=False)
    for position in (0, len(images) - 1):
        row = images.index[position]
        where = (row["instrument"].item(), row["time"].item(), tmp_path / "big.png")
        assert grey(enlarge(images, *where, panel=panel)).shape[1] > grey(enlarge(images, *where)).shape[1]


def test_a_date_stands_for_the_last_window_of_the_day(tmp_path):
    table = samples.simulate(1, 60, interval="30m")
    images = render_universe(table, "jkx5", progress=False)
    day, last = (
        enlarge(images, "S0000", time, tmp_path / "a.png", panel=table).read_bytes()
        for time in ("2000-01-04", "2000-01-04 16:00")
    )
    assert day == last


# ---- errors


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "many"])
def test_n_must_be_a_number_of_images(store, tmp_path, n):
    with pytest.raises(ValueError, match="give a whole number of images of at least 1"):
        contact_sheet(store, tmp_path / "a.png", n=n)
    assert not list(tmp_path.iterdir())


def test_a_sheet_too_large_to_draw(tmp_path):
    table = samples.simulate(60, 900)
    images = render_universe(table, ImageSpec(1, height=2), horizons=(), progress=False)
    with pytest.raises(ValueError, match=r"n=\d+ images of 2x3 make a picture of .* give a smaller n"):
        contact_sheet(images, tmp_path / "a.png", n=len(images))


def test_unknown_instrument_names_the_nearest(store, tmp_path):
    with pytest.raises(KeyError, match=r"no instrument 'S001'.*did you mean 'S0001' or "):
        contact_sheet(store, tmp_path / "a.png", instrument="S001")
    with pytest.raises(ValueError, match="names no instrument"):
        contact_sheet(store, tmp_path / "a.png", instrument=[])


def test_instrument_without_a_window(tmp_path):
    short = samples.simulate(1, 30).with_columns(instrument=pl.lit("short")).head(3)
    table = pl.concat([samples.simulate(1, 60), short])
    images = render_universe(table, "jkx20", progress=False)
    with pytest.raises(KeyError, match="'short' has no window"):
        contact_sheet(images, tmp_path / "a.png", instrument="short")


def test_unknown_horizon(store, tmp_path):
    with pytest.raises(ValueError, match="no forward returns over 5 bars: there are 1, 20"):
        contact_sheet(store, tmp_path / "a.png", horizon=5)


def test_paths_that_cannot_be_written(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write a\.png to: make it first"):
        contact_sheet(store, tmp_path / "nowhere" / "a.png")
    with pytest.raises(ValueError, match=r"does not end in \.png"):
        contact_sheet(store, tmp_path / "a.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        enlarge(store, "S0000", 0, tmp_path / "folder.png")


def test_what_is_no_store(tmp_path):
    with pytest.raises(TypeError, match="must be an ImageSet, such as an ImageStore, or its path, not list"):
        contact_sheet([1, 2], tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="no store at"):
        contact_sheet(tmp_path / "none.zarr", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"float64 \(64, 60\), expected uint8"):
        enlarge(np.zeros((64, 60)), "S0000", 0, tmp_path / "a.png")


def test_a_window_that_does_not_exist(store, tmp_path):
    with pytest.raises(KeyError, match="the nearest end at"):
        enlarge(store, "S0000", "1999-01-04", tmp_path / "a.png")


def test_panel_images_bring_their_bars(panel, store, tmp_path):
    images = PanelImages(panel, "jkx20", horizons=store.horizons)
    position = len(store) // 2
    name, time = str(images.instruments[images.instrument_index[position]]), int(images.time[position])
    alone = enlarge(images, name, time, tmp_path / "a.png").read_bytes()
    assert alone == enlarge(store, name, time, tmp_path / "b.png", panel).read_bytes()
    assert alone != enlarge(store, name, time, tmp_path / "c.png").read_bytes()
    other = Panel.from_table(samples.simulate(panel.n_instruments, 90, seed=77), progress=False)
    with pytest.raises((ValueError, KeyError)):
        enlarge(images, name, time, tmp_path / "d.png", other)


def test_sheets_of_panel_images_say_so(panel, tmp_path, monkeypatch):
    titles = []
    drawn = preview.image_grid
    monkeypatch.setattr(
        preview,
        "image_grid",
        lambda images, captions, title, columns: (
            titles.append(title),
            drawn(images, captions, title, columns),
        )[1],
    )
    images = PanelImages(panel, "jkx20", horizons=(1,))
    contact_sheet(images, tmp_path / "s.png", n=4)
    assert titles[0].startswith(
        f"panel images of {panel.n_instruments} instruments: 4 of {len(images):,} images"
    )
    with pytest.raises(ValueError, match=r"^panel images of .*: no forward returns over 5 bars: there are 1"):
        contact_sheet(images, tmp_path / "s.png", horizon=5)


def test_bars_of_another_panel_are_refused(store, panel, tmp_path):
    row = store.index[40]
    where = (row["instrument"].item(), row["time"].item(), tmp_path / "a.png")
    other = Panel.from_table(samples.simulate(3, 90, seed=6, halt_rate=0, list_late=0, delist_rate=0))
    with pytest.raises(ValueError, match="was made from different bars"):
        enlarge(store, *where, panel=other)
    late = panel.select(start=row["time"].item())
    with pytest.raises(ValueError, match=r"the panel has 1 bars of .* the image shows 20"):
        enlarge(store, *where, panel=late)


def test_without_matplotlib_the_message_installs_it(store, tmp_path, monkeypatch):
    """Before any image is read."""
    monkeypatch.setattr(preview, "find_spec", lambda name: None)
    for draw in (
        lambda: preview.contact_sheet(store, tmp_path / "sheet.png"),
        lambda: preview.enlarge(store, "S0001", 0, tmp_path / "one.png"),
    ):
        with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'pricepix\[report\]'"):
            draw()
