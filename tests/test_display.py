"""What notebooks show: valid HTML without a script, escaped, small; and one line where there is only text."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix import factor, samples
from pricepix.bars import display
from pricepix.workflow.audit.report import Audit, Check

HOSTILE = "<script>alert('x')</script>\x1b]0;t\x07\"&"
VOID = {"img", "br", "hr", "path", "rect", "meta"}


class Page(HTMLParser):
    """Parses a page strictly: every tag is closed in turn, attributes are known, nothing is fetched or run."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words, self.images = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href"):
                assert value.startswith("data:image/png;base64,")
                self.images.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def parsed(thing):
    html = thing._repr_html_()
    assert len(html.encode()) < 60_000
    page = Page(html)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?:", html)
    assert html.startswith('<div class="pricepix">')
    return page


@pytest.fixture(scope="module")
def panel():
    bars = samples.simulate(12, 160, seed=3, delist_rate=0.001)
    return pp.Panel.from_table(bars, progress=False, adjust="divide")


@pytest.fixture(scope="module")
def store(panel):
    return pp.render_universe(panel, "jkx5", None, horizons=(5,), progress=False)


@pytest.fixture(scope="module")
def cache(store):
    return factor.score(store, lambda images: images[:, :, 13].mean(axis=1) / 255.0, None, progress=False)


def one_line(thing):
    text = repr(thing)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("name", pp.ImageSpec.presets())
def test_a_spec_shows_a_sample_and_its_fields(name):
    spec = pp.ImageSpec.preset(name)
    page = parsed(spec)
    assert len(page.images) == 1
    assert name in page.text
    assert spec.digest in page.text


def test_the_sample_of_a_spec_is_an_image_of_it():
    from pricepix.images.sample import sample_image

    spec = pp.ImageSpec.preset("jkx60")
    image = sample_image(spec)
    assert image.shape == spec.shape
    assert set(np.unique(image)) == {0, 255}
    np.testing.assert_array_equal(image, sample_image(spec))
    assert sample_image(spec.replace(rebuild="returns")).any()


def test_a_spec_too_long_to_draw_says_so():
    assert "reaches back over" in parsed(pp.ImageSpec(30_000, height=64, aggregate=100)).text


def test_large_images_are_shown_smaller():
    page = parsed(pp.ImageSpec(1000, height=2000))
    assert len(page.images) == 1
    assert "1:16" in page.text


def test_a_panel_shows_coverage_and_findings(panel):
    page = parsed(panel)
    assert "svg" in page.tags
    for kind, count in panel.report.notes.items():
        assert kind in page.text
        assert f"{count:,}" in page.text
    assert one_line(panel.report).startswith("PanelReport(")


def test_findings_are_named_in_the_page_of_a_report():
    table = pl.DataFrame(
        {
            "time": ["2020-01-01", "2020-01-02"],
            "open": [1.0, 2.0],
            "high": [1.0, 1.0],
            "low": [1.0, 2.0],
            "close": [1.0, 1.0],
        }
    )
    report = pp.Panel.from_table(table, on_bad="drop_bar", progress=False).report
    assert "high_below_low" in parsed(report).text
    assert "high_below_low 1" in one_line(report)
    assert "1 dropped" in one_line(report)


def test_windows_show_where_candidates_went(panel):
    windows = pp.WindowIndex.from_panel(panel, "jkx20", "week", sample=0.5)
    page = parsed(windows)
    for reason, count in windows.counts.items():
        assert f"- {reason}" in page.text
        assert f"{count:,} (" in page.text
    assert f"{len(windows):,} (" in page.text


@pytest.mark.parametrize("kind", ["store", "drawn", "loaded"])
def test_images_show_thumbnails_axes_and_lineage(panel, store, kind):
    images = {
        "store": lambda: store,
        "drawn": lambda: pp.PanelImages(panel, "jkx5", horizons=(5,)),
        "loaded": store.load,
    }[kind]()
    page = parsed(images)
    assert len(page.images) == 8
    assert "ret_5" in page.text
    # A store in memory does not take the time to digest its panel.
    assert images.attrs["spec_digest"] in page.text
    assert kind != "drawn" or panel.digest in page.text
    assert f"window {len(images):,}" in page.text


def test_thumbnails_come_from_three_chunks_of_a_large_store():
    from pricepix.images.display import _places

    for n, chunk in ((0, 10), (1, 10), (8, 10), (9, 10), (29, 10), (31, 10), (17_000_001, 4096)):
        places = _places(n, chunk)
        assert min(n, 7) <= len(places) <= min(n, 8)
        assert len(set(places)) == len(places)
        assert all(0 <= p < n for p in places)
        assert n <= 3 * chunk or len({p // chunk for p in places.tolist()}) == 3


def test_a_damaged_store_is_shown_with_its_fault(panel, tmp_path):
    pp.render_universe(panel, "jkx5", tmp_path / "s", horizons=(5,), progress=False)
    for path in (tmp_path / "s" / "images" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged" * 40)
    page = parsed(pp.open_store(tmp_path / "s"))
    assert not page.images
    assert "images/c" in page.text


def test_a_cache_shows_coverage_and_distribution(cache):
    page = parsed(cache)
    assert page.tags.count("svg") == 2
    assert "ranked only" in page.text or "probabilities" in page.text


def test_of_a_large_cache_some_days_are_read(cache, monkeypatch):
    from pricepix.factor import display as pages

    monkeypatch.setattr(pages, "_MOST_VALUES", 500)
    assert f"41 of {cache.shape[0]}" in parsed(cache).text


def test_an_evaluation_shows_tiles_and_two_figures(cache, panel):
    found = factor.evaluate(cache, panel, horizon=5, quantiles=3, progress=False)
    page = parsed(found)
    assert page.tags.count("svg") == 2
    assert "after 0.10% a side" in page.text
    assert "±" in page.text
    for note in found.notes:
        assert note[:80] in page.text


def test_reports_of_verify_and_audit_are_a_line_and_a_page(store):
    report = store.verify()
    assert "sound" in parsed(report).text
    assert one_line(report).endswith("; sound)")
    report.problems += ["chunk <1> is bad", "another"]
    assert "chunk <1> is bad" in parsed(report).text
    assert "2 problems" in one_line(report)
    audit = Audit(["2020-01-01"], 10, checks=[Check("labels", "all", "nothing", problems=[HOSTILE])])
    assert "LEAK" in parsed(audit).text
    assert "1 of 1 checks found a leak" in one_line(audit)
    assert str(audit).startswith("audit: 1 of 1 checks found a leak\n")


def test_a_run_shows_its_curves(tmp_path):
    from pricepix.train.display import run_page

    folder = tmp_path / HOSTILE[:8].replace("<", "_")
    for k in range(2):
        own = folder / f"member_{k}"
        own.mkdir(parents=True)
        own.joinpath("metrics.csv").write_text(
            "step,epoch,train_loss,train_accuracy,val_loss,val_accuracy,lr,images_per_second\n"
            "10,0,0.7,0.5,0.71,0.5,1e-3,10\n20,1,nan,0.5,0.69,0.5,1e-3,10\n30,2,0.5,0.5,0.68,0.5,1e-3,10\n"
        )
    fold = SimpleNamespace(
        fold=SimpleNamespace(name=HOSTILE),
        folder=folder,
        members=[{}, {}, {}],
        test={"accuracy": 0.51234, "images": 10},
    )
    empty = SimpleNamespace(fold=SimpleNamespace(name="b"), folder=folder / "none", members=[{}], test={})
    run = SimpleNamespace(folds=[fold, empty], out=tmp_path, config={"name": HOSTILE, "lr": None})
    page = parsed(SimpleNamespace(_repr_html_=lambda: run_page(run)))
    assert page.tags.count("svg") == 2
    assert "0.5123" in page.text
    assert "no test part" in page.text


# ---- names out of files


def test_hostile_names_are_text(tmp_path):
    bars = samples.simulate(2, 60, seed=1, list_late=0, delist_rate=0)
    names = {"S0000": HOSTILE, "S0001": "N" * 5000}
    bars = bars.with_columns(pl.col("instrument").replace(names))
    panel = pp.Panel.from_table(bars, progress=False, adjust="divide")
    images = pp.render_universe(panel, "jkx5", None, horizons=(5,), progress=False)
    scored = factor.score(images, lambda x: x.mean(axis=(1, 2)) / 255, None, progress=False)
    scored.attrs["model"]["name"] = HOSTILE
    report = images.verify()
    report.problems.append(HOSTILE * 500)
    damaged = replace(panel.report, remarks=(HOSTILE,) * 3000)
    for thing in (panel, damaged, images, scored, report):
        page = parsed(thing)
        assert "\x1b" not in page.text
    assert "<script>" in parsed(damaged).text


def test_a_page_never_exceeds_its_size():
    parts = [display.notes(["é" * 500] * 24) for _ in range(40)]
    html = display.page("X", HOSTILE, *parts)
    assert len(html.encode()) <= display.MOST_BYTES
    assert re.search(r"\d+ more, too large", Page(html).text)


def test_figures_survive_what_is_not_a_number():
    nan = float("nan")
    for values in ([], [nan, nan], [1.0], [1.0, 1.0], [nan, 1.0, nan, 2.0], [float("inf"), 1.0, 2.0]):
        drawn = display.curves({"a": values, "b": values[::-1]}, "c", ("x", "y"), zero=0.0)
        assert "nan" not in drawn
        assert "inf" not in drawn
        Page(drawn)
        Page(display.histogram(np.array(values), "h"))
    Page(display.bars({"a": 0}))
    Page(display.coverage(np.array([1, 5]), np.array([5, 9]), "c", ("x", "y")))


def test_coverage_counts_stretches_that_hold_a_moment():
    drawn = display.coverage(np.array([0, 0, 60]), np.array([119, 30, 90]), "c", ("x", "y"))
    assert ">2<" in drawn
    assert ">0<" in drawn


# ---- pictures


def test_a_contact_sheet_is_a_path_that_a_notebook_shows(store, panel, tmp_path):
    pytest.importorskip("matplotlib")
    sheet = pp.contact_sheet(store, tmp_path / "sheet.png", n=4)
    assert isinstance(sheet, Path)
    assert sheet == tmp_path / "sheet.png"
    assert sheet._repr_png_() == (tmp_path / "sheet.png").read_bytes()
    assert sheet._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(sheet)) == sheet
    assert sheet.with_suffix(".txt").name == "sheet.txt"
    assert sheet.parent._repr_png_() is None if hasattr(sheet.parent, "_repr_png_") else True
    large = pp.enlarge(
        store, str(store.instruments[0]), store.time[store.instrument_index == 0][0], tmp_path / "one.png"
    )
    assert large._repr_png_().startswith(b"\x89PNG")
    large.unlink()
    assert large._repr_png_() is None
