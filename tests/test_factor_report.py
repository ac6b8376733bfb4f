"""The report: one file without a network, names that stay text, pictures, attribution maps."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix.factor import evaluate, score, write_report
from pricepix.factor.evaluation.beside import side_by_side
from pricepix.factor.evaluation.headline import headline

HOSTILE = "<script>alert(1)</script>"


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def panel():
    frame = pp.samples.simulate(9, 90, seed=2, split_rate=0, delist_rate=0, list_late=0)
    renamed = pl.col("instrument").replace({"S0001": HOSTILE, "S0002": "$A_{1$ & co"})
    return pp.Panel.from_table(frame.with_columns(renamed), progress=False)


@pytest.fixture(scope="module")
def store(panel):
    return pp.render_universe(panel, "jkx5", None, horizons=(5,), progress=False)


@pytest.fixture(scope="module")
def written(panel, store, tmp_path_factory):
    cache = score(store, ink, None, model_id=HOSTILE, progress=False)
    found = evaluate(
        cache, panel, horizon=5, quantiles=3, columns={HOSTILE: np.ones(len(panel))}, progress=False
    )
    path = tmp_path_factory.mktemp("report") / "factor.html"
    return pp.factor.write_report(found, path, store=store, title=f"Report of {HOSTILE}", sheet=10)


def test_the_file_stands_alone(written):
    page = written.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    images = [attrs["src"] for tag, attrs in tags.found if tag == "img"]
    assert len(images) >= 9
    for source in images:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",", 1)[1])[:8] == b"\x89PNG\r\n\x1a\n"
    assert not {"link", "script", "iframe"} & {tag for tag, _ in tags.found}
    assert not re.search(r"https?://", page)
    figures = {p.name for p in (written.parent / "factor_figures").iterdir()}
    assert {"quantiles.png", "long_short.png", "ic.png", "calibration.png", "turnover.png", "highest.png",
            "lowest.png"} <= figures  # fmt: skip


def test_names_out_of_the_data_stay_text(written):
    page = written.read_text(encoding="utf-8")
    assert HOSTILE not in page
    tags = Tags()
    tags.feed(page)
    assert any(HOSTILE in text for text in tags.text)


def test_the_json_beside_it_is_the_evaluation(written):
    found = json.loads(written.with_suffix(".json").read_text())
    assert found["lineage"]["model"]["name"] == HOSTILE
    assert HOSTILE in found["baselines"]


def test_several_factors_stand_side_by_side(panel, store, tmp_path):
    """Each has the headline figures of its own report, and a curve on one chart."""
    settings = {"horizon": 5, "quantiles": 3, "progress": False}
    found = evaluate(score(store, ink, None, progress=False), panel, **settings)
    other = evaluate(score(store, lambda images: 1 - ink(images), None, progress=False), panel, **settings)
    path = write_report(found, tmp_path / "both.html", beside={HOSTILE: other, "again": found})
    page = path.read_text(encoding="utf-8")
    assert HOSTILE not in page
    tags = Tags()
    tags.feed(page)
    text = " ".join(" ".join(tags.text).split())
    assert f"this factor {HOSTILE} again" in text
    assert (tmp_path / "both_figures" / "side_by_side.png").exists()
    found_rows = dict(side_by_side("a", found, {"b": other}).rows)
    for tile in headline(found.figures):
        assert found_rows[tile.name][0] == f"{tile.value} {tile.range}".strip()
    for tile in headline(other.figures):
        assert found_rows[tile.name][1] == f"{tile.value} {tile.range}".strip()
    late = evaluate(other.cache, panel, **(settings | {"delay": 1}))
    with pytest.raises(
        ValueError, match=r"beside\['late'\] was evaluated with delay=1, 'this factor' with 0"
    ):
        write_report(found, tmp_path / "late.html", beside={"late": late})
    with pytest.raises(ValueError, match="is the name of the factor itself"):
        side_by_side("a", found, {"a": other})
    with pytest.raises(TypeError, match="is a dict: give evaluations"):
        side_by_side("a", found, {"b": other.figures})


def test_the_same_evaluation_gives_the_same_bytes(written, panel, store, tmp_path):
    cache = score(store, ink, None, model_id=HOSTILE, progress=False)
    found = evaluate(
        cache, panel, horizon=5, quantiles=3, columns={HOSTILE: np.ones(len(panel))}, progress=False
    )
    again = pp.factor.write_report(
        found, tmp_path / "factor.html", store=store, title=f"Report of {HOSTILE}", sheet=10
    )
    assert again.read_bytes() == written.read_bytes()


def test_attribution_maps_of_a_network(panel, store, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")
    from pricepix.factor.evaluation.attribution import grad_cam
    from pricepix.train.models import PriceCNN

    torch.manual_seed(0)
    network = PriceCNN("jkx5")
    network.metadata = {"train": {"images": 10, "last": str(store.index["time"][100])}, "horizon": 5}
    images = store.read(slice(0, 5))
    maps = grad_cam(network, images)
    assert set(maps) == {"first", "last"}
    for heat in maps.values():
        assert heat.shape == images.shape
        assert heat.min() >= 0
        assert heat.max() <= 1
    # The last map against its definition: channels weighted by the mean gradient of the upper logit.
    kept = {}
    hook = network.blocks[-1][0].register_forward_hook(lambda m, i, o: kept.update(out=o))
    network.eval()
    logits = network(torch.from_numpy(images.copy()))
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept["out"])
    cam = torch.relu((gradient.mean(dim=(2, 3), keepdim=True) * kept["out"]).sum(dim=1, keepdim=True))
    cam = torch.nn.functional.interpolate(cam, images.shape[1:], mode="bilinear")[:, 0].detach().numpy()
    top = cam.max(axis=(1, 2), keepdims=True)
    assert maps["last"] == pytest.approx(np.where(top > 0, cam / np.maximum(top, 1e-30), 0), abs=1e-5)

    cache = score(store, network, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, baselines=(), progress=False)
    path = write_report(found, tmp_path / "r.html", store=store, model=network, per_quantile=4, sheet=6)
    assert (tmp_path / "r_figures" / "attribution_by_quantile.png").stat().st_size > 1000
    # The model saw these dates in training, and the report says so.
    assert found.figures["data"]["dates_seen"] > 0
    assert "dates are not out of sample: the model has seen" in path.read_text()
    with pytest.raises(ValueError, match="is not the one of the cache"):
        write_report(found, tmp_path / "x.html", store=store, model=PriceCNN("jkx5"))


def test_a_network_with_its_lowest_row_first_is_mapped_the_right_way_up():
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")
    from pricepix.factor.evaluation.attribution import grad_cam
    from pricepix.train.models import PRESETS, PriceCNN

    torch.manual_seed(1)
    upright = PriceCNN(PRESETS["cnnft5"].replace(first_row="top"))
    turned = PriceCNN(PRESETS["cnnft5"])
    turned.load_state_dict(upright.state_dict())
    images = (np.random.default_rng(0).random((3, 32, 15)) < 0.2).astype(np.uint8) * 255
    for name, heat in grad_cam(turned, images).items():
        assert np.allclose(heat, grad_cam(upright, images[:, ::-1].copy())[name][:, ::-1], atol=1e-6)


def test_pictures_need_their_own_store(panel, store, tmp_path):
    cache = score(store, ink, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, baselines=(), progress=False)
    other = pp.render_universe(panel, "jkx5", None, horizons=(5,), every="week", progress=False)
    with pytest.raises(ValueError, match=r"scored from images of digest \w+, not from store memory"):
        pp.factor.write_report(found, tmp_path / "r.html", store=other)
    with pytest.raises(ValueError, match="pass store= with model="):
        pp.factor.write_report(found, tmp_path / "r.html", model="somewhere")


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_what_reports_need_is_named_before_any_work(panel, store, tmp_path, monkeypatch, name):
    cache = score(store, ink, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, baselines=(), progress=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'reports need {name}: pip install "pricepix\[report\]"'):
        write_report(found, tmp_path / "r.html", store=store)
    assert not list(tmp_path.iterdir())


def test_a_run_names_what_its_report_needs_before_it_begins(tmp_path, monkeypatch):
    from pricepix.workflow.config import Config
    from pricepix.workflow.pipeline import run

    sections = {"data": {"sample": "simulate"}, "image": {"preset": "jkx5"}}
    steps = {"train": {"test": "2000-06:"}, "score": {}, "evaluate": {}}
    config = Config.from_dict({"out": str(tmp_path / "out"), **sections, **steps})
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'reports need jinja2: pip install "pricepix\[report\]"'):
        run(config, progress=False)
    assert not (tmp_path / "out").exists()


def test_maps_name_their_extra(store, monkeypatch):
    pytest.importorskip("torch")
    from pricepix.factor.evaluation.attribution import grad_cam
    from pricepix.train.models import PriceCNN

    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r'captum: pip install "pricepix\[attribution\]"'):
        grad_cam(PriceCNN("jkx5"), store.read(slice(0, 1)))


def test_names_in_any_script(tmp_path):
    """The font of the pictures lacks these letters; the page does not."""
    frame = pp.samples.simulate(6, 60, seed=2, split_rate=0, delist_rate=0, list_late=0)
    frame = frame.with_columns(instrument=pl.lit("\u8d35\u5dde\u8305\u53f0 ") + pl.col("instrument"))
    panel = pp.Panel.from_table(frame, progress=False)
    images = pp.PanelImages(panel, "jkx5", horizons=(5,))
    cache = score(images, ink, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, baselines=(), progress=False)
    assert write_report(found, tmp_path / "r.html", store=images).is_file()


def test_sheets_show_every_pixel_and_the_scores(panel, store, tmp_path):
    from PIL import Image

    cache = score(store, ink, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, baselines=(), progress=False)
    write_report(found, tmp_path / "r.html", store=store, sheet=3)
    drawn = np.asarray(Image.open(tmp_path / "r_figures" / "highest.png").convert("L"))
    values = cache.of_windows(store)
    best = store.read([int(np.argsort(values, kind="stable")[::-1][0])])[0]
    height, width = best.shape
    assert np.array_equal(drawn[18 : 18 + 6 * height : 6, 18 : 18 + 6 * width : 6], best)
    assert drawn.shape[1] <= 990


# ---- what is read first


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # Powers of ten have nothing between 1 and 2.
        (0.68, 1.17, {0.7, 0.8, 0.9, 1.0, 1.1}),
        (0.95, 1.02, {0.96, 0.98, 1.0, 1.02}),
        (0.2, 90.0, {0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0}),
    ],
)
def test_log_axes_have_ticks_on_both_sides_of_one(low, high, expected):
    from pricepix.factor.evaluation.figures import log_ticks

    ticks = log_ticks(low, high)
    assert expected <= {round(float(t), 6) for t in ticks}
    assert (ticks >= low).all()
    assert (ticks <= high * (1 + 1e-9)).all()


def test_a_loss_of_more_than_everything_is_drawn_on_a_plain_axis():
    pytest.importorskip("matplotlib")
    from pricepix.factor.evaluation import figures

    for worth, scale in (([1.0, 1.1, 0.9], "log"), ([1.0, 0.2, -0.3], "linear")):
        _, axes = figures._new(figures.WIDE)
        axes[0].plot(worth)
        axes[0].axhline(1.0)
        figures._write_log_axis(axes[0])
        assert axes[0].get_yscale() == scale


def test_charts_have_a_picture_for_phones(written):
    page = written.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    sources = [attrs for tag, attrs in tags.found if tag == "source"]
    assert len(sources) == 7
    assert {attrs["media"] for attrs in sources} == {"(max-width: 640px)"}
    assert all(attrs["srcset"].startswith("data:image/png;base64,") for attrs in sources)
    assert (written.parent / "factor_figures" / "ic_narrow.png").is_file()
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_first_table_says_what_was_left_out(written):
    page = written.read_text(encoding="utf-8")
    assert (
        page.index("What was left out, and why") < page.index("<table>") < page.index("Quantile portfolios")
    )
    assert "values without a return" in page


def test_words_follow_the_figures(panel, store):
    from pricepix.factor.evaluation.headline import headline
    from pricepix.factor.evaluation.words import in_words, left_out

    cache = score(store, ink, None, progress=False)
    found = evaluate(cache, panel, horizon=5, quantiles=3, progress=False)
    f = found.figures
    text = in_words(f)
    assert f"mean rank correlation of {f['ic']['rank']['mean']:.4f}" in text
    assert "after costs of 0.10% a side" in text
    assert "Whether the model has seen any of these dates is not known." in text
    rows = {row.what: row.number for row in left_out(f)}
    assert rows["values without a return"] == f["data"]["values"] - f["data"]["values_with_return"]
    assert all(rows.values())
    tiles = {tile.name: tile for tile in headline(f)}
    net = f["portfolios"]["equal"]["long_short"]["net"]["0.001"]["periods"]
    assert tiles["long-short mean a year, after 0.10% a side"].value == f"{100 * net['annual_mean']:.1f}%"
    # Without costs, without a p-value and with a skill of its own.
    bare = evaluate(cache, panel, horizon=5, quantiles=3, costs=0.0, baselines=(), progress=False).figures
    assert "before costs" in in_words(bare)
    bare["ic"]["rank"] |= {"p_value": float("nan"), "t": float("nan")}
    assert "too few independent dates" in in_words(bare)
    assert headline(bare)[0].range == ""
    bare["ic"]["rank"]["p_value"] = 0.001
    assert "once in 1,000 times" in in_words(bare)


def test_the_range_of_a_sharpe_ratio_is_that_of_lo():
    from pricepix.factor.evaluation.headline import _sharpe_range

    # Without autocorrelation t is sharpe * sqrt(n / periods a year): then Lo's standard error comes out.
    n, per_year, sharpe = 120, 12, 1.2
    t = sharpe * np.sqrt(n / per_year)
    lo = np.sqrt(per_year) * np.sqrt((1 + (sharpe / np.sqrt(per_year)) ** 2 / 2) / n)
    assert _sharpe_range({"sharpe": sharpe, "t": t, "periods": n}) == f"± {2 * lo:.2f}"
