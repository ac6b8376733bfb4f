"""The replication as a whole: planned, run, killed, resumed, spread over workers, rendered."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("jinja2")

from clusters import local_client  # noqa: E402
from paper_driver import TRAINING, replicate, small_panel  # noqa: E402

import pricepix as pp  # noqa: E402
from pricepix.paper.cells import Cell, cells_of, network  # noqa: E402
from pricepix.paper.parts import parts_of, splits_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return small_panel()


@pytest.fixture(scope="module")
def made(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A replication that nothing interrupted, and what it said."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("paper") / "out"
    return replicate(out, panel=panel, echo=lines.append), lines


def weights(out: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(out)): torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(out.rglob("best.ckpt"))
    }


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(
        all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a.values(), b.values(), strict=True)
    )


def test_the_plan_is_told_before_anything_runs(made: Any) -> None:
    lines = made[1]
    assert lines[0] == "plan: 8 networks, 0 of them done"
    assert lines[1].startswith("estimate: at most 0.0")
    assert all(unit in lines[1] for unit in ("hours", "MB on disk", "GB of memory", "small", "cnn1d5"))
    assert lines[2].startswith("1 of 8: I5/R5 paper all cnn seed 0")
    assert lines[-1] == f"wrote {made[0].page}"


def test_estimates_are_near_what_it_took(tmp_path: Path) -> None:
    """Bytes on disk and memory, of a process that does nothing else."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    code = (
        "import pathlib, sys, paper_driver; paper_driver.replicate(pathlib.Path(sys.argv[1]), echo=print);"
        "from pricepix.workflow.health import memory_mb; print(int(1e6 * memory_mb()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], env=environment, capture_output=True, check=True
    )
    lines = done.stdout.decode().splitlines()
    said = re.search(r"([\d,.]+) hours.*; ([\d,]+) MB on disk; ([\d.]+) GB of memory", lines[1])
    assert said is not None
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size / 3 < 1e6 * float(said[2].replace(",", "")) < 3 * size + 1e6
    assert int(lines[-1]) / 2 < 1e9 * float(said[3]) < 2 * int(lines[-1])


def test_what_is_done_is_not_done_again(made: Any, panel: pp.Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = made
    before = found.page.read_bytes()
    monkeypatch.setattr(pp.train, "fit", None)
    lines: list[str] = []
    again = replicate(found.folder, panel=panel, echo=lines.append)
    assert lines == ["plan: 8 networks, 8 of them done", f"wrote {again.page}"]
    assert again.page.read_bytes() == before


def test_seeds_are_averaged(made: Any, panel: pp.Panel) -> None:
    found, _ = made
    tasks = found.folder / "tasks" / "I5_R5" / "time" / "all" / "cnn"
    each = [np.load(tasks / f"seed_{k}" / "scores.npy").astype(np.float64) for k in range(2)]
    scores = found.scores("I5/R5", "time")
    np.testing.assert_allclose(scores["cnn"].to_numpy(), np.mean(each, axis=0), atol=1e-12)
    # Every window of the test has a score, those whose return is not known yet as well.
    assert scores["ret_5"].is_nan().any()
    assert scores["time"].max() == panel.to_polars()["time"].max()


def test_more_seeds_keep_what_there_is(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    found, _ = made
    lines: list[str] = []
    copied = tmp_path / "out"
    subprocess.run(["cp", "-r", str(found.folder), str(copied)], check=True)
    more = replicate(
        copied, panel=panel, splits="time", seeds=3, controls=(), tables=["I"], echo=lines.append
    )
    assert lines[0] == "plan: 3 networks, 2 of them done"
    assert [table.number for table in more.tables] == ["I"]


def test_a_damaged_score_is_made_again(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    found, _ = made
    copied = tmp_path / "out"
    subprocess.run(["cp", "-r", str(found.folder), str(copied)], check=True)
    scores = copied / "tasks/I5_R5/time/all/cnn/seed_1/scores.npy"
    content = bytearray(scores.read_bytes())
    content[-1] ^= 1
    scores.write_bytes(bytes(content))
    lines: list[str] = []
    again = replicate(copied, panel=panel, echo=lines.append)
    assert lines[0] == "plan: 8 networks, 7 of them done"
    assert again.page.read_bytes() == found.page.read_bytes()


def kill_at_random(out: Path, kills: int, rng: random.Random) -> int:
    """Start a replication again and again, killing it at random moments; return how often it was killed.

    A moment is counted from the next network or the one after, so that it comes before the end on any machine.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "paper_driver.py"), str(out)]
    killed = 0

    def done() -> int:
        return len(list((out / "tasks").rglob("done.json")))

    while killed < kills:
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        # Loading torch takes seconds in which nothing happens that a kill could hurt.
        waited = time.monotonic()
        while running.poll() is None and not (out / "replication.json").exists():
            assert time.monotonic() - waited < 120
            time.sleep(0.02)
        trained = done() + rng.randrange(2)
        while running.poll() is None and done() < trained:
            time.sleep(0.01)
        try:
            _, errors = running.communicate(timeout=rng.uniform(0.0, 0.5))
            assert running.returncode == 0, errors.decode()
            return killed
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.communicate()
            killed += 1
    return killed


def test_a_killed_replication_ends_in_the_same_page(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    found, _ = made
    assert kill_at_random(tmp_path / "out", 1, random.Random(int(os.environ["PRICEPIX_KILL_SEED"]))) == 1
    again = replicate(tmp_path / "out", panel=panel)
    assert again.page.read_bytes() == found.page.read_bytes()
    assert same_weights(again.folder, found.folder)
    for name in ("table_I_paper.csv", "table_IX_time.tex"):
        assert (again.folder / "tables" / name).read_bytes() == (found.folder / "tables" / name).read_bytes()


@pytest.mark.nightly
def test_ten_kills_end_in_the_same_page(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    found, _ = made
    kill_at_random(tmp_path / "out", 10, random.Random(int(os.environ["PRICEPIX_KILL_SEED"])))
    again = replicate(tmp_path / "out", panel=panel)
    assert again.page.read_bytes() == found.page.read_bytes()
    assert same_weights(again.folder, found.folder)


def test_workers_give_the_same(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    found, _ = made
    with local_client(protocol="inproc://") as client:
        again = replicate(tmp_path / "out", panel=panel, client=client)
    assert again.page.read_bytes() == found.page.read_bytes()
    assert same_weights(again.folder, found.folder)


def test_workers_that_cannot_take_part_are_named(panel: pp.Panel, tmp_path: Path) -> None:
    from pricepix.paper.workers import _check_workers

    class Client:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def run(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            return self.answer

    for answer, message in (
        ({}, "the cluster has no workers"),
        (
            {"tcp://w": ModuleNotFoundError("no pricepix", name="pricepix")},
            "worker tcp://w has no pricepix: install",
        ),
        ({"tcp://w": "0.0.1"}, "worker tcp://w has pricepix 0.0.1"),
        ({"tcp://w": FileNotFoundError("finds no bars")}, "worker tcp://w cannot take part: finds no bars"),
    ):
        with pytest.raises(ConnectionError, match=message):
            _check_workers(Client(answer), tmp_path, panel.digest)  # type: ignore[arg-type]
    from pricepix.paper.bars_folder import open_bars, save_bars

    with pytest.raises(FileNotFoundError, match="must be the same on every machine"):
        open_bars(tmp_path / "bars", panel.digest)
    save_bars(tmp_path / "bars", panel)
    opened = open_bars(tmp_path / "bars", panel.digest)
    assert opened.digest == panel.digest
    with pytest.raises(ValueError, match="start the replication again"):
        open_bars(tmp_path / "bars", "0" * 32)


class Text(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "link", "img", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "link", "img", "polyline"):
            assert self.open.pop() == tag


def test_the_page_stands_alone(made: Any) -> None:
    page = made[0].page.read_text()
    found = Text(page)
    assert found.open == []
    # Links stay on the page, and lead somewhere; pictures are in it.
    links = [link for link in found.links if not link.startswith("data:image/png;base64,")]
    assert links
    assert all(link.startswith("#") and f'id="{link[1:]}"' in page for link in links)
    assert "http" not in page
    for text in (
        "Table I. One-week decile portfolios",
        "prefers-color-scheme: dark",
        "polyline",
        "not checked",
    ):
        assert text in page or text in page.replace("none of which was checked", "not checked"), text
    assert found.tags.count("table") >= 8


def test_pictures_of_where_networks_look_are_theirs(made: Any, panel: pp.Panel) -> None:
    """Grad-CAM of each convolution, of the images with the highest and the lowest scores of the CNN."""
    pytest.importorskip("captum")
    import base64
    import io

    from PIL import Image

    from pricepix.factor.evaluation.attribution import grad_cam

    page = made[0].page.read_text()
    assert page.count("Grad-CAM by layer, I5/R5</summary>") == 2
    own = page[page.index("Grad-CAM by layer") :]
    own = own[: own.index("</details>")]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))))
        for found in re.findall(r"base64,([^\"]+)", own)
    ]
    assert [picture.shape for picture in pictures] == [(32, 15)] * 12
    scores = made[0].scores("I5/R5", "paper")
    best = int(np.argsort(scores["cnn"].to_numpy(), kind="stable")[-1])
    images = pp.PanelImages(panel, pp.ImageSpec.preset("jkx5").replace(rebuild="returns"), (5,))
    image = images.read(np.array([len(images) - len(scores) + best]))
    np.testing.assert_array_equal(pictures[0], image[0])
    network = pp.train.load_model(made[0].folder / "tasks/I5_R5/paper/all/cnn/seed_0/run")
    heat = grad_cam(network, image, layers="all")
    assert list(heat) == ["1"]
    np.testing.assert_allclose(pictures[1] / 255, heat["1"][0], atol=1 / 255)
    assert scores["instrument"][best] in own


def test_a_cell_too_long_is_skipped_and_said(panel: pp.Panel, tmp_path: Path) -> None:
    lines: list[str] = []
    found = replicate(
        tmp_path / "out", panel=panel, cells=["I5/R5", "I120/R60", "I5/R120"], seeds=1, splits="time", controls=(),
        tables=["I"], echo=lines.append,
    )  # fmt: skip
    assert set(found.skipped) == {("time", "I120/R60"), ("time", "I5/R120")}
    reason = found.skipped["time", "I5/R120"]
    assert f"skipped I5/R120, split time: {reason}" in lines
    assert f"<b>I5/R120, split time</b>: {reason}" in found.page.read_text()


def test_without_caps_there_are_no_value_weights(panel: pp.Panel, tmp_path: Path) -> None:
    fields = {k: v for k, v in panel.fields.items() if k != "market_cap"}
    bare = pp.Panel(panel.bars, panel.offsets, panel.instruments, panel.time, panel.tz, fields)
    found = replicate(tmp_path / "out", panel=bare, seeds=1, splits="time", controls=())
    assert {figure.panel for figure in found.table("I").figures} == {"Equal weight"}
    assert "no market caps: value weights and the largest names are left out" in found.page.read_text()
    with pytest.raises(KeyError, match="there is no table 'IV'"):
        found.table("IV")
    with pytest.raises(ValueError, match="needs market caps"):
        replicate(tmp_path / "other", panel=bare, universe={"top": 10})
    assert not (tmp_path / "other").exists()


def test_a_universe_that_is_empty_at_times_is_said(made: Any, panel: pp.Panel) -> None:
    found = replicate(made[0].folder, panel=panel, universe={"min_age": 150}, tables=["I"])
    notes = found.table("I", "time").notes
    assert any("formations have no scored name in the universe and are left out" in note for note in notes)
    table = found.table("I")
    differs = [table.differences[letter] for letter in table.figures[0].differs]
    assert any("universe: at least 150 bars old" in text for text in differs)


def test_folders_of_others_are_refused(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds no replication"):
        replicate(tmp_path, panel=panel)
    with pytest.raises(ValueError, match="a replication on other bars"):
        replicate(made[0].folder, panel=small_panel(190))
    from dataclasses import replace

    with pytest.raises(ValueError, match="another training: delay was 0, is 1"):
        replicate(made[0].folder, panel=panel, training=replace(TRAINING, delay=1))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "replication.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="written in format 99"):
        replicate(tmp_path / "old", panel=panel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": ["I5R5"]}, "cell 'I5R5': give the lookback and the horizon like 'I20/R5'"),
        ({"cells": ["I5/R5", "I5/R5"]}, "each once"),
        ({"seeds": 0}, "seeds=0"),
        ({"splits": "random"}, "splits='random' is not known"),
        ({"tables": ["0"]}, "tables='0' is not known"),
        ({"controls": "mlp"}, "there is no control 'mlp'"),
        ({"cells": ["I5/R300"]}, "no cell can be learned"),
        ({"splits": {"mine": pp.train.TimeSplit()}}, "has no test period"),
    ],
)
def test_errors_come_before_any_work(panel: pp.Panel, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replicate(tmp_path / "out", panel=panel, **change)
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_said_before_any_work(
    panel: pp.Panel, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    found = replicate(made[0].folder, panel=panel, splits="time", tables=["I", "VI", "VIII"])
    assert [table.number for table in found.tables] == ["I"]
    assert "statsmodels is not installed: Tables VI to VIII are left out" in found.page.read_text()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"paper.html needs jinja2: pip install 'pricepix\[paper\]'"):
        replicate(tmp_path / "out", panel=panel)
    assert not (tmp_path / "out").exists()


def test_cells_and_their_networks() -> None:
    assert [cell.name for cell in cells_of("jkx")][:4] == ["I5/R5", "I20/R5", "I60/R5", "I5/R20"]
    for name in ("jkx5", "jkx20", "jkx60"):
        image = pp.ImageSpec.preset(name)
        assert Cell.of(f"I{image.lookback}/R5").image == image
        assert network("cnn", image, 1.0) == pp.train.PRESETS[name]
        assert network("cnn1d:image", image, 1.0) == pp.train.SERIES_PRESETS[f"cnn1d{image.lookback}"]
    assert network("cnn", Cell.of("it49/R50").image, 1.0) == pp.train.PRESETS["cnn49u"]
    week = Cell.of("I7/R7")
    assert (week.image.shape, network("cnn", week.image, 0.5).blocks[1].channels) == ((32, 21), 64)
    assert pp.train.PriceCNN(network("cnn", Cell.of("I30/R20").image, 1.0)).parameter_count > 0


def test_splits_cover_the_test_once() -> None:
    days = np.arange("1993-01-04", "2020-01-01", dtype="M8[D]")
    days = days[np.is_busday(days)]
    price = np.full((len(days), 1), 10.0)
    crsp = pp.Panel.from_arrays(*[price] * 4, instruments=["A"], time=days.astype("M8[ns]"), progress=False)
    (paper,) = parts_of("paper", crsp)
    assert np.datetime64(paper.first, "ns") == np.datetime64("2001-01-01")
    assert isinstance(paper.split, pp.train.RandomSplit)
    for name in ("walk", "expanding"):
        parts = parts_of(name, crsp)
        assert len(parts) == 19
        assert all(a.last < b.first for a, b in itertools.pairwise(parts))
        assert parts[-1].last == crsp.calendar[-1] or parts[-1].last >= crsp.calendar[-1]
        assert (len({part.begin for part in parts}) == 1) == (name == "expanding")
    assert list(splits_of(["paper", "time"])) == ["paper", "time"]


def test_images_come_from_a_store(made: Any, panel: pp.Panel, tmp_path: Path) -> None:
    """A store of other windows besides: the same weights, and the same page, as drawn images."""
    from dataclasses import replace

    spec = pp.ImageSpec.preset("jkx5").replace(rebuild="returns")
    store = tmp_path / "jkx5.zarr"
    pp.render_universe(panel, spec, store, horizons=(1, 5), progress=False)
    stored = replace(TRAINING, stores={"I5": store})
    found = replicate(tmp_path / "out", panel=panel, training=stored, splits="paper")
    for path in sorted((found.folder / "tasks").rglob("scores.npy")):
        drawn_scores = made[0].folder / path.relative_to(found.folder)
        assert path.read_bytes() == drawn_scores.read_bytes()
    period: dict[str, Any] = {
        "panel": panel, "splits": "time", "seeds": 1, "tables": ["I"],
        "training": replace(TRAINING, every="period"),
    }  # fmt: skip
    drawn = replicate(tmp_path / "drawn", **period)
    read = replicate(tmp_path / "read", **(period | {"training": replace(stored, every="period")}))
    assert read.page.read_bytes() == drawn.page.read_bytes()
    assert same_weights(read.folder, drawn.folder)
    pp.render_universe(panel, "jkx5", tmp_path / "other.zarr", horizons=(5,), progress=False)
    pp.render_universe(panel, spec, tmp_path / "late.zarr", horizons=(20,), progress=False)
    pp.render_universe(small_panel(seed=9), spec, tmp_path / "bars.zarr", horizons=(5,), progress=False)
    bars: dict[str, Any] = {"horizons": (5,), "progress": False}
    pp.render_universe(panel, spec, tmp_path / "weekly.zarr", every="week", **bars)
    pp.render_universe(panel, spec, tmp_path / "prices.zarr", price="close", **bars)
    for name, message in (
        ("weekly", r"weekly.zarr lacks [\d,]+ of the [\d,]+ images of I5/R5"),
        ("prices", r"prices.zarr has other returns than the panel gives \(of close, delisting="),
        ("other", r"stores\['I5'\]: .*other.zarr shows .*, and I5/R5 learns"),
        ("late", r"late.zarr has returns over 20 bars, 0 bars after the image; I5/R5 needs 5, 0 after"),
        ("bars", "panel"),
    ):
        wrong = replace(TRAINING, stores={"I5": tmp_path / f"{name}.zarr"})
        with pytest.raises(ValueError, match=message):
            replicate(tmp_path / name, panel=panel, training=wrong)
    with pytest.raises(TypeError, match="give the paths of image stores"):
        replace(TRAINING, stores={"I5": pp.open_store(store)})
    with pytest.raises(ValueError, match="stores names 'I7'"):
        replicate(tmp_path / "none", panel=panel, training=replace(TRAINING, stores={"I7": store}))


def test_characteristics_of_the_user_are_in_the_table(made: Any, panel: pp.Panel) -> None:
    pytest.importorskip("statsmodels")
    own = pp.paper.Tables(("V", "VI"), {"Alphabet": np.repeat(np.arange(14.0), np.diff(panel.offsets))})
    found = replicate(made[0].folder, panel=panel, splits="time", tables=own)
    table = found.table("V")
    assert np.isfinite(table.value("", "Alphabet", "I5/R5", "correlation"))
    assert any("Given with the call: Alphabet" in note for note in table.notes)
    assert np.isfinite(found.table("VI").value("", "Alphabet", "I5/R5", "coefficient"))
    with pytest.raises(ValueError, match="has shape"):
        replicate(made[0].folder, panel=panel, tables=pp.paper.Tables(("V",), {"Short": np.zeros(3)}))


def test_networks_move_to_longer_images(panel: pp.Panel, tmp_path: Path) -> None:
    """Table XI: scores of the networks of I5/R5 on merged images, by the networks themselves."""
    from pricepix.paper.transfer import merged_cell

    late: dict[str, Any] = {
        "splits": {"late": pp.train.TimeSplit(test=("2000-07-01", None))}, "tables": ["XI"], "controls": (), "seeds": 1,
    }  # fmt: skip
    found = replicate(tmp_path / "out", panel=panel, **late)
    assert {figure.row for figure in found.table("XI").figures if figure.statistic == "sharpe"} == {
        "Network of I5/R5, as it is", "Trained on the merged images",
    }  # fmt: skip
    cell = merged_cell(20, 20)
    assert (cell.name, cell.image.shape, cell.image.bars) == ("I20x4/R20", (32, 15), 5)
    task = tmp_path / "out/tasks/I5_R5/late/all/cnn/seed_0"
    images = pp.PanelImages(panel, cell.image.replace(rebuild="returns"), (20,))
    scores = np.load(task / "scores_I20x4_R20.npy")
    index = np.arange(len(images))[-50:]
    network = pp.train.load_model(task / "run")
    np.testing.assert_allclose(network.predict(images.read(index)), scores[-50:], atol=1e-6)
    before = found.page.read_bytes()
    (task / "scores_I20x4_R20.npy").write_bytes(b"")
    assert replicate(tmp_path / "out", panel=panel, **late).page.read_bytes() == before


def test_networks_move_to_another_market(made: Any, panel: pp.Panel) -> None:
    """Table X: the other market's windows scored by the networks of this one, and by its own."""
    other = small_panel(180, seed=9)
    settings: dict[str, Any] = {
        "splits": "time",
        "tables": ["X"],
        "controls": (),
        "transfer": {"there": other},
    }
    lines: list[str] = []
    found = replicate(made[0].folder, panel=panel, echo=lines.append, **settings)
    assert "transfer to there, plan: 2 networks, 0 of them done" in lines
    table = found.table("X")
    assert [figure.row for figure in table.figures if figure.column == "Mean"] == ["Direct", "Local"] * 2
    assert [c.published for c in table.comparisons()] == ["3.60", "2.30"]
    task = made[0].folder / "tasks/I5_R5/time/all/cnn/seed_1"
    scores = np.load(task / "scores_there_I5_R5.npy")
    images = pp.PanelImages(other, pp.ImageSpec.preset("jkx5").replace(rebuild="returns"), (5,))
    index = np.arange(len(images))[-40:]
    network = pp.train.load_model(task / "run")
    np.testing.assert_allclose(network.predict(images.read(index)), scores[-40:], atol=1e-6)
    before = found.page.read_bytes()
    again = replicate(made[0].folder, panel=panel, echo=lines.append, **settings)
    assert "transfer to there, plan: 2 networks, 2 of them done" in lines
    assert again.page.read_bytes() == before
    bare = pp.Panel(other.bars, other.offsets, other.instruments, other.time, other.tz)
    with pytest.raises(
        ValueError, match="has no total returns, and the networks learn images rebuilt from them"
    ):
        replicate(made[0].folder, panel=panel, **(settings | {"transfer": {"bare": bare}}))


def independent_error(table: Any, cell: str) -> float:
    """Standard error of an accuracy of 1/2, were the windows independent."""
    return float(np.sqrt(0.25 / table.value("Elsewhere", "Windows", cell, "count")))


@pytest.mark.nightly
def test_the_demo_finds_what_was_planted_and_nothing_elsewhere(tmp_path: Path) -> None:
    found = pp.paper.demo(tmp_path / "out", echo=lambda line: None)
    for split in ("paper", "time"):
        table = found.table("", split)
        for cell in ("I5/R5", "I20/R5"):
            error = independent_error(table, cell)
            planted = table.value("Where the pattern was planted", "CNN", cell, "accuracy")
            assert 0.5 + 6 * error < planted < 0.70 + 3 * error
        for cell in ("I5/R5", "I20/R5", "I5/R20", "I20/R20"):
            error = independent_error(table, cell)
            # Labels of 20 bars overlap: so many fewer are independent.
            wide = np.sqrt(int(cell.rpartition("R")[2]) / 5)
            for model in ("CNN", "1-D CNN, image scale"):
                elsewhere = table.value("Elsewhere", model, cell, "accuracy")
                assert abs(elsewhere - 0.5) < 4 * wide * error
    assert ("paper", "I60/R250") in found.skipped
