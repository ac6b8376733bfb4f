"""The explorer's answers over HTTP, against the images, bars and scores they speak of; who may ask, and how it ends."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from kill_driver import tree
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import pricepix as pp
from pricepix import factor
from pricepix.cli import main
from pricepix.explore import explore
from pricepix.explore.site import _FILES
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "pricepix" / "explore" / "page"
HOSTILE = ('<img src=x onerror="alert(1)">', "=cmd|' /C calc'!A0", "+1 \u202e evil")
HORIZONS = (5, 20)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def get(explorer: Any, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """Ask the server; `path` is below the token unless it begins with a slash."""
    parts = urllib.parse.urlsplit(explorer.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        target = path if path.startswith("/") else parts.path + path
        connection.putrequest(method, target, skip_host=bool(headers and "Host" in headers))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        found = connection.getresponse()
        return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
    finally:
        connection.close()


def ask(explorer: Any, name: str, code: int = 200, **parameters: Any) -> Any:
    named = {key.rstrip("_"): str(value) for key, value in parameters.items()}
    found = get(explorer, f"api/{name}?{urllib.parse.urlencode(named)}")
    assert found.status == code, found.body
    assert found.headers["content-type"].startswith("application/json")
    return found.json


def refused(explorer: Any, name: str, code: int = 400, **parameters: Any) -> str:
    return str(ask(explorer, name, code, **parameters)["error"])


def pixels(image: dict[str, Any]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(image["bits"]), np.uint8))
    shape = image["height"], image["width"]
    return 255 * bits[: shape[0] * shape[1]].reshape(shape)


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    table = pp.samples.simulate(7, 110, seed=5, delist_rate=0.002, list_late=0.3, halt_rate=0.01)
    names = table["instrument"].unique().sort().to_list()
    return table.with_columns(pl.col("instrument").replace(dict(zip(names, HOSTILE, strict=False))))


@pytest.fixture(scope="module")
def panel(bars: pl.DataFrame) -> pp.Panel:
    return pp.Panel.from_table(bars, progress=False)


@pytest.fixture(scope="module")
def store(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> pp.ImageStore:
    path = tmp_path_factory.mktemp("explore") / "s.zarr"
    return pp.render_universe(
        panel, "jkx20", path, horizons=HORIZONS, delay=1, chunk=64, layout="bits", progress=False
    )


def darkness(images: np.ndarray) -> np.ndarray:
    """Scores that differ from image to image, on both sides of one half."""
    left, right = (part.mean(axis=(1, 2)) for part in np.array_split(images / 255, 2, axis=2))
    return np.clip(0.5 + 9 * (right - left), 0, 1)


@pytest.fixture(scope="module")
def cache(store: pp.ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("explore") / "f.zarr"
    return factor.score(store, darkness, path, model_id="darkness", progress=False)


@pytest.fixture(scope="module")
def opened(store: pp.ImageStore, panel: pp.Panel, cache: Any) -> Any:
    with explore(store.location, factor=cache.location, panel=panel) as explorer:
        yield explorer


# ---- windows


def test_it_says_what_it_shows(opened: Any, store: pp.ImageStore) -> None:
    about = ask(opened, "about")
    assert about["images"] == len(store)
    assert about["instruments"] == len(store.instruments)
    assert (about["preset"], about["height"], about["width"]) == ("jkx20", 64, 60)
    assert about["horizons"] == list(HORIZONS)
    assert about["factor"] == "darkness"
    assert about["probability"] is True
    assert about["model"] is None
    assert about["notes"] == [] == opened.notes


def test_a_window_is_shown_as_it_is_stored(opened: Any, store: pp.ImageStore, cache: Any) -> None:
    values = cache.of_windows(store)
    for position in (0, len(store) // 2, len(store) - 1):
        name, time = store.index["instrument"][position], str(store.index["time"][position])[:10]
        found = ask(opened, "window", instrument=name, time=time)
        assert (found["position"], found["instrument"], found["time"]) == (position, name, time)
        np.testing.assert_array_equal(pixels(found["image"]), store.read([position])[0])
        for told, horizon in zip(found["returns"], HORIZONS, strict=True):
            value = store.returns(horizon)[position]
            if np.isnan(value):
                assert told["value"] is None
                assert told["class"] is None
            else:
                assert told["value"] == pytest.approx(float(value), rel=1e-6)
                assert told["class"] == ("up" if value > 0 else "down")
            exits = store.index[f"exit_time_{horizon}"][position]
            assert told["exit"] == (None if exits is None else str(exits)[:10])
        (score,) = found["scores"]
        assert score["value"] == pytest.approx(float(values[position]), abs=1e-7)


def test_bars_around_a_window_are_those_of_the_panel(
    opened: Any, store: pp.ImageStore, panel: pp.Panel
) -> None:
    position = len(store) // 2
    name, time = str(store.index["instrument"][position]), str(store.index["time"][position])[:10]
    found = ask(opened, "window", instrument=name, time=time, span=60)["bars"]
    assert found["note"] == ""
    rows, row = panel.rows_of(name), panel.locate(name, time)
    first = row - found["last"]
    assert rows.start <= first
    assert found["last"] - found["first"] == 19
    own = slice(first, first + len(found["time"]))
    assert own.stop <= rows.stop
    assert found["time"] == [panel.stamp(int(t)) for t in panel.time[own]]
    for k, field in enumerate(("open", "high", "low", "close", "volume")):
        told = np.array([np.nan if v is None else v for v in found[field]])
        np.testing.assert_allclose(told, panel.bars[own, k], rtol=1e-6)
    closes = panel.bars[rows, 3]
    for i, value in enumerate(found["averages"]["20"]):
        last = first + i - rows.start + 1
        expected = closes[last - 20 : last].mean() if last >= 20 else np.nan
        assert value == (None if np.isnan(expected) else pytest.approx(expected, rel=1e-6))
    for horizon in HORIZONS:
        at, ns = found["exits"][str(horizon)], store.exit_time(horizon)[position]
        if at is None:
            assert panel.time[own.stop - 1] < ns
        else:
            assert panel.time[first + at] == ns
    assert found["exits"]["5"] is not None


def test_neighbours_lead_through_all_windows_of_an_instrument_and_all_instruments(
    opened: Any, store: pp.ImageStore
) -> None:
    name = str(store.index["instrument"][0])
    own = [str(t)[:10] for t in store.index.filter(pl.col("instrument") == name)["time"]]
    seen, time = [], own[0]
    while time is not None:
        found = ask(opened, "window", instrument=name, time=time)
        assert found["left"] == (seen[-1] if seen else None)
        assert (found["number"], found["count"]) == (len(seen) + 1, len(own))
        seen.append(found["time"])
        time = found["right"]
    assert seen == own
    found, names = ask(opened, "window"), []
    assert found["position"] == len(store) - 1
    while found["up"] is not None:
        found = ask(opened, "window", instrument=found["up"], time=found["time"])
    while True:
        names.append(found["instrument"])
        if found["down"] is None:
            break
        below = ask(opened, "window", instrument=found["down"], time=found["time"])
        assert below["up"] == found["instrument"]
        found = below
    assert names == sorted(set(store.index["instrument"]), key=str.casefold)


def test_a_time_between_windows_finds_the_one_before_and_says_so(opened: Any, store: pp.ImageStore) -> None:
    name = str(store.index["instrument"][0])
    own = [str(t)[:10] for t in store.index.filter(pl.col("instrument") == name)["time"]]
    late = ask(opened, "window", instrument=name, time="2100-01-01")
    assert (late["time"], late["asked"]) == (own[-1], "2100-01-01")
    early = ask(opened, "window", instrument=name, time="1900")
    assert (early["time"], early["asked"]) == (own[0], "1900")
    assert ask(opened, "window", instrument=name, time=own[3])["asked"] is None


def test_intraday_windows_are_named_to_the_minute() -> None:
    """At midnight too, where a date would stand for the whole day; and twice the same hour, where clocks go back."""
    time = pl.datetime_range(
        pl.datetime(2023, 11, 4, 12), pl.datetime(2023, 11, 6), "30m", eager=True, time_zone="UTC"
    )
    close = 100 + np.cumsum(np.random.default_rng(1).normal(size=len(time)))
    table = pl.DataFrame(
        {"time": time, "open": close, "high": close + 1, "low": close - 1, "close": close, "volume": 5.0}
    )
    panel = pp.Panel.from_table(table, tz="America/New_York", name="X", progress=False)
    images = pp.PanelImages(panel, "jkx5", horizons=(1,))
    with images.explore() as explorer:
        seen, at = [], "1900"
        while at is not None:
            found = ask(explorer, "window", instrument="X", time=at)
            seen.append(found["position"])
            at = found["right"]
        assert seen == list(range(len(images)))
        assert ask(explorer, "window", instrument="X", time="2023-11-05 00:00")["time"] == "2023-11-05 00:00"


def test_instruments_are_searched_on_the_server(opened: Any, store: pp.ImageStore) -> None:
    every = ask(opened, "instruments")
    counts = dict(store.index["instrument"].value_counts().iter_rows())
    assert {entry["instrument"]: entry["windows"] for entry in every["found"]} == counts
    assert ask(opened, "instruments", q="cMd")["found"][0]["instrument"] == HOSTILE[1]
    assert ask(opened, "instruments", q="s0", limit=2)["total"] == sum(
        name.startswith("S0") for name in counts
    )
    assert len(ask(opened, "instruments", q="s0", limit=2)["found"]) == 2
    assert ask(opened, "instruments", q="nothing") == {"total": 0, "found": []}


# ---- sheets


def whole_sheet(explorer: Any, **parameters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while True:
        found = ask(explorer, "sheet", size=200, page=len(rows) // 200, **parameters)
        rows += found["rows"]
        if len(rows) >= found["listed"]:
            return rows


def test_sheets_are_sorted(opened: Any, store: pp.ImageStore, cache: Any) -> None:
    scores, returns = cache.of_windows(store), store.returns(5)
    error = np.where(np.isnan(returns), np.nan, np.abs(scores - (returns > 0)))
    expected = {
        "score": -scores,
        "lowest_score": scores,
        "return": -returns,
        "lowest_return": returns,
        "error": -error,
    }
    for order, key in expected.items():
        rows = whole_sheet(opened, order=order, horizon=5)
        known = np.flatnonzero(~np.isnan(key))
        assert [row["position"] for row in rows] == known[np.argsort(key[known], kind="stable")].tolist(), (
            order
        )
        assert len(known) < len(store) or order in ("score", "lowest_score")
    for row in rows[:3]:
        np.testing.assert_array_equal(pixels(row["image"]), store.read([row["position"]])[0])
        assert row["error"] == pytest.approx(float(error[row["position"]]), rel=1e-6)
        assert row["return"] == pytest.approx(float(returns[row["position"]]), rel=1e-6)
    assert "left out" in ask(opened, "sheet", order="return", horizon=20)["note"]
    assert [row["position"] for row in whole_sheet(opened)] == list(range(len(store)))


def test_sheets_are_filtered(opened: Any, store: pp.ImageStore, cache: Any) -> None:
    scores, returns = cache.of_windows(store), store.returns(20)
    index = store.index.with_row_index("at").with_columns(
        score=pl.Series(scores), ret=pl.Series(returns).fill_nan(None)
    )
    day, month = str(index["time"][len(index) // 3])[:10], str(index["time"][-1])[:7]
    names = index["instrument"].unique().sort().to_list()
    sure = pl.max_horizontal("score", 1 - pl.col("score")) >= 0.7
    since = pl.col("time") >= pl.lit(day).str.to_datetime()
    cases = [
        ({"from_": day}, since),
        ({"to": month}, pl.lit(True)),
        ({"from_": day, "to": day}, pl.col("time").dt.date() == pl.lit(day).str.to_date()),
        ({"instruments": names[-1]}, pl.col("instrument") == names[-1]),
        ({"instruments": "s0*"}, pl.col("instrument").str.starts_with("S0")),
        ({"class_": "up"}, pl.col("ret") > 0),
        ({"class_": "down"}, pl.col("ret") <= 0),
        ({"class_": "unknown"}, pl.col("ret").is_null()),
        ({"confidence": 0.7}, sure),
        ({"confidence": 0.7, "class_": "up", "from_": day}, sure & (pl.col("ret") > 0) & since),
    ]
    for given, kept in cases:
        rows = whole_sheet(opened, horizon=20, **given)
        assert [row["position"] for row in rows] == index.filter(kept)["at"].to_list(), given
        assert rows, given


def test_a_random_sheet_is_that_of_its_seed(opened: Any, store: pp.ImageStore) -> None:
    first, second = (whole_sheet(opened, order="random", seed=seed) for seed in (1, 2))
    assert first == whole_sheet(opened, order="random", seed=1)
    at = [row["position"] for row in first]
    assert sorted(at) == list(range(len(store)))
    assert at != [row["position"] for row in second]


def test_similar_windows_are_earlier_ones_of_other_instruments(opened: Any, store: pp.ImageStore) -> None:
    position = len(store) - 5
    name, ns = str(store.index["instrument"][position]), store.time[position]
    given = {"instrument": name, "time": str(store.index["time"][position])[:10]}
    rows = whole_sheet(opened, order="similar", **given)
    ink = store.read() > 0
    both, either = (ink & ink[position]).sum(axis=(1, 2)), (ink | ink[position]).sum(axis=(1, 2))
    share = both / either
    others = (store.time < ns) & (store.index["instrument"] != name).to_numpy()
    assert sorted(row["position"] for row in rows) == np.flatnonzero(others).tolist()
    told = [row["similar"] for row in rows]
    assert told == sorted(told, reverse=True)
    np.testing.assert_allclose(told, share[[row["position"] for row in rows]], rtol=1e-6)


def test_of_many_images_whole_chunks_are_compared(
    store: pp.ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pricepix.explore import sheets

    monkeypatch.setattr(sheets, "MOST_COMPARED", 100)
    with explore(store) as explorer:
        last = {"instrument": store.instruments[store.instrument_index[-1]], "time": "2100"}
        found = ask(explorer, "sheet", order="similar", size=200, **last)
        others = (store.time < store.time.max()) & (store.instrument_index != store.instrument_index[-1])
    chunks = {row["position"] // 64 for row in found["rows"]}
    assert 0 < found["listed"] < np.count_nonzero(others)
    # All of a chunk that may be compared, or nothing of it.
    assert found["listed"] == np.count_nonzero(others & np.isin(np.arange(len(store)) // 64, list(chunks)))
    assert "chunks spread evenly" in found["note"]


def test_only_the_top_of_a_long_order_is_listed(
    store: pp.ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pricepix.explore import sheets

    monkeypatch.setattr(sheets, "MOST_SORTED", 50)
    returns = store.returns(5)
    best = np.argsort(np.where(np.isnan(returns), np.inf, -returns), kind="stable")[:50]
    with explore(store) as explorer:
        found = ask(explorer, "sheet", order="return", horizon=5, size=200)
        assert [row["position"] for row in found["rows"]] == best.tolist()
        assert (found["listed"], found["total"]) == (50, np.count_nonzero(~np.isnan(returns)))


def test_similar_by_embeddings(store: pp.ImageStore, panel: pp.Panel, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pricepix import train

    torch.manual_seed(1)
    network = train.PriceCNN(train.CNNSpec("small", 64, 60, (train.ConvBlock(4, pool=(8, 3)),))).eval()
    made = factor.embed(store, network, tmp_path / "e.zarr", progress=False)
    position = len(store) - 9
    name, time = str(store.index["instrument"][position]), str(store.index["time"][position])[:10]
    expected = factor.similar(made, name, time, k=12, others_only=True)
    with explore(store, embedding=tmp_path / "e.zarr") as explorer:
        found = ask(explorer, "sheet", order="similar", instrument=name, time=time, size=12)
    assert [row["instrument"] for row in found["rows"]] == expected["instrument"].to_list()
    assert [row["time"] for row in found["rows"]] == [str(t)[:10] for t in expected["time"]]
    np.testing.assert_allclose([row["similar"] for row in found["rows"]], expected["similarity"], rtol=1e-6)
    with pytest.raises(ValueError, match="images of another spec"):
        pp.PanelImages(panel, "jkx5").explore(embedding=made)


# ---- what does not fit together


def test_scores_of_other_images_are_told(
    panel: pp.Panel, store: pp.ImageStore, cache: Any, tmp_path: Path
) -> None:
    other = pp.PanelImages(panel, store.spec.replace(volume=False), HORIZONS)
    with other.explore(factor=cache) as explorer:
        assert ask(explorer, "about")["notes"] == explorer.notes
        assert any("another spec: volume True, here False" in note for note in explorer.notes)
    weekly = pp.render_universe(panel, "jkx20", horizons=HORIZONS, every="week", progress=False)
    scores = factor.score(weekly, darkness, tmp_path / "w.zarr", model_id="d", progress=False)
    with explore(store, factor=scores) as explorer:
        assert any("other windows" in note for note in explorer.notes)
        scored = {(name, time) for name, time in weekly.index.select("instrument", "time").iter_rows()}
        for position in (0, 40, 41, 42, 43, 44, 45):
            name, time = (store.index[column][position] for column in ("instrument", "time"))
            found = ask(explorer, "window", instrument=name, time=str(time)[:10])["scores"][0]["value"]
            # Not the score of another day that lies near it.
            assert (found is not None) == ((name, time) in scored)
        rows = whole_sheet(explorer, order="score")
        assert len(rows) == len(weekly)


def test_panel_images_and_their_store_share_a_cache(panel: pp.Panel, cache: Any) -> None:
    images = pp.PanelImages(panel, "jkx20", HORIZONS, delay=1)
    with images.explore(factor=cache) as explorer:
        assert explorer.notes == []
        assert ask(explorer, "about")["bars"] is True
        np.testing.assert_array_equal(
            pixels(ask(explorer, "window")["image"]), images.read([ask(explorer, "window")["position"]])[0]
        )


def test_shifted_scores_are_found_at_their_window(
    store: pp.ImageStore, panel: pp.Panel, tmp_path: Path
) -> None:
    shifted = factor.score(
        store, darkness, tmp_path / "f.zarr", model_id="d", shift=2, panel=panel, progress=False
    )
    values = shifted.of_windows(store)
    with explore(store, factor=shifted) as explorer:
        for position in (0, 100, len(store) - 1):
            name, time = (store.index[column][position] for column in ("instrument", "time"))
            told = ask(explorer, "window", instrument=name, time=str(time)[:10])["scores"][0]["value"]
            assert told == (None if np.isnan(values[position]) else pytest.approx(float(values[position])))


def test_bars_that_draw_another_image_are_told(store: pp.ImageStore, bars: pl.DataFrame) -> None:
    name = str(store.index["instrument"][0])
    third = pl.int_range(pl.len()) % 3 == 0
    raised = bars.with_columns(pl.when(third).then(pl.col("high") * 1.05).otherwise("high").alias("high"))
    moved = pp.Panel.from_table(raised, progress=False)
    with explore(store, panel=moved) as explorer:
        assert "another image" in ask(explorer, "window", instrument=name)["bars"]["note"]
    fewer = pp.Panel.from_table(bars.filter(pl.col("instrument") != name), progress=False)
    with explore(store, panel=fewer) as explorer:
        found = ask(explorer, "window", instrument=name)["bars"]
        assert found["time"] == []
        assert "no instrument" in found["note"]
    with explore(store) as explorer:
        assert ask(explorer, "window")["bars"] is None
        assert "panel=" in refused(explorer, "redraw", 404)
        assert "factor=" in refused(explorer, "sheet", order="score")
        assert "model=" in refused(explorer, "explain", 404)


def test_bars_of_a_market_cache(tmp_path: Path) -> None:
    cache = pp.samples.simulate_market(tmp_path / "cache", 8, 14, seed=4, start="2021-01-20")
    built = pp.build.build_market_store(cache, "it9", tmp_path / "m.zarr", progress=False)
    whole = cache.panel()
    with explore(built, panel=tmp_path / "cache") as explorer:
        for position in (0, len(built) // 2, len(built) - 1):
            name, ns = str(built.index["instrument"][position]), int(built.time[position])
            found = ask(explorer, "window", instrument=name, time=str(built.index["time"][position])[:16])
            assert found["position"] == position
            assert found["bars"]["note"] == ""
            close = found["bars"]["close"][found["bars"]["last"]]
            row = int(np.searchsorted(whole.time[whole.rows_of(name)], ns)) + whole.rows_of(name).start
            assert close == pytest.approx(whole.bars[row, 3], rel=1e-6)


# ---- other specs, explanations, files


def test_a_window_is_drawn_by_another_spec(opened: Any, store: pp.ImageStore, panel: pp.Panel) -> None:
    position = len(store) // 2
    name, time = str(store.index["instrument"][position]), str(store.index["time"][position])[:10]
    place = {"instrument": name, "time": time}
    own = ask(opened, "redraw", **place)
    assert own["changed"] == {}
    assert own["code"] == 'ImageSpec.preset("jkx20")'
    np.testing.assert_array_equal(pixels(own["image"]), store.read([position])[0])
    found = ask(opened, "redraw", **place, lookback=12, height=40, ma="3,6", volume=0, chart="pixel")
    spec = pp.ImageSpec(12, 40, chart="pixel", ma=(3, 6))
    assert eval(found["code"], {"ImageSpec": pp.ImageSpec}) == spec
    np.testing.assert_array_equal(pixels(found["image"]), pp.PanelImages(panel, spec, ()).image(name, time))
    assert "aggregate=3" in refused(opened, "redraw", **place, aggregate=3)
    assert "needs more" in refused(opened, "redraw", **place, lookback=1000, height=64, ma="none")
    assert "too large" in refused(opened, "redraw", **place, lookback=1000, height=2000, ma="none")
    assert "style='jxk'" in refused(opened, "redraw", **place, style="jxk")
    assert "give numbers of bars" in refused(opened, "redraw", **place, ma="a,b")


def test_a_window_is_explained_as_factor_explain_does(
    store: pp.ImageStore, panel: pp.Panel, bars: pl.DataFrame
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")
    from pricepix import train

    torch.manual_seed(1)
    network = train.PriceCNN(train.CNNSpec("small", 64, 60, (train.ConvBlock(4, pool=(4, 2)),), dropout=0.0))
    network.set_normalisation(0.1, 0.3).eval()
    position = len(store) // 2
    name, time = str(store.index["instrument"][position]), str(store.index["time"][position])[:10]
    expected = factor.explain(network, store, name, time, panel=panel)
    with explore(store, panel=panel, model=network) as explorer:
        assert ask(explorer, "about")["model"] == "small"
        found = ask(explorer, "explain", instrument=name, time=time)
        (score,) = ask(explorer, "window", instrument=name, time=time)["scores"]
    assert score["value"] == pytest.approx(expected.score, abs=1e-6)
    assert found["score"] == pytest.approx(expected.score, abs=1e-6)
    np.testing.assert_allclose(found["occlusion"], expected.bars["occlusion"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["gradients"], expected.bars["gradients"], rtol=1e-4, atol=1e-6)
    cam = np.frombuffer(base64.b64decode(found["maps"]["cam"]), np.int8).reshape(64, 60)
    np.testing.assert_allclose(cam / 127, expected.grad_cam, atol=0.01)
    other = pp.Panel.from_table(
        bars.with_columns(pl.col("volume") * (1 + pl.int_range(pl.len()) % 5)), progress=False
    )
    with explore(store, panel=other, model=network) as explorer:
        assert "not explained" in refused(explorer, "explain", instrument=name, time=time)
    with pytest.raises(ValueError, match="takes images of 64x60"):
        pp.PanelImages(panel, "jkx5").explore(model=network)
    with pytest.raises(ValueError, match="give model="):
        explore(store, horizon=5)


def test_files_hold_what_is_shown(opened: Any, store: pp.ImageStore, panel: pp.Panel) -> None:
    name, time = HOSTILE[1], str(store.index.filter(pl.col("instrument") == HOSTILE[1])["time"][0])[:10]
    place = urllib.parse.urlencode({"instrument": name, "time": time})
    picture = get(opened, f"api/image.png?{place}&zoom=3")
    assert picture.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(picture.body)).convert("L"))
    np.testing.assert_array_equal(shown, np.kron(store.image(name, time), np.ones((3, 3), np.uint8)))
    table = list(csv.DictReader(io.StringIO(get(opened, f"api/bars.csv?{place}").body.decode())))
    row = panel.locate(name, time)
    assert [float(line["close"]) for line in table] == panel.bars[row - 19 : row + 1, 3].tolist()
    # A spreadsheet would run the name as a formula.
    assert {line["instrument"] for line in table} == {f"'{name}"}
    sheet = get(opened, "api/sheet.csv?order=error&horizon=5")
    lines = list(csv.DictReader(io.StringIO(sheet.body.decode())))
    assert sheet.headers["content-disposition"] == 'attachment; filename="sheet-error.csv"'
    rows = whole_sheet(opened, order="error", horizon=5)
    assert [(line["instrument"].removeprefix("'"), line["time"]) for line in lines] == [
        (row["instrument"], row["time"]) for row in rows
    ]
    assert set(lines[0]) == {"instrument", "time", "ret_5", "ret_20", "score", "error"}
    assert all(line["ret_20"] != "NaN" for line in lines)


# ---- who may ask, and for what


def test_bad_parameters_are_named(opened: Any) -> None:
    name = HOSTILE[0]
    assert "'heigth' here; did you mean 'height'?" in refused(opened, "redraw", heigth=40)
    assert "is not a time" in refused(opened, "window", instrument=name, time="yesterday")
    assert "no instrument 'NOBODY'" in refused(opened, "window", 404, instrument="NOBODY")
    assert "span" in refused(opened, "window", span="wide")
    assert "from 40 to 1,000" in refused(opened, "window", span=10**9)
    assert "order='best'" in refused(opened, "sheet", order="best")
    assert "forward returns over 5, 20" in refused(opened, "sheet", horizon=7)
    assert "no instrument 'S9*'" in refused(opened, "sheet", 404, instruments="S9*")
    assert "confidence" in refused(opened, "sheet", confidence="nan")
    assert "page" in refused(opened, "sheet", page=-1)
    assert "is not a time" in refused(opened, "sheet", from_="03/2020")
    assert "characters" in refused(opened, "instruments", q="x" * 3000)
    assert "given twice" in get(opened, "api/window?time=2020&time=2021").json["error"]
    assert get(opened, "api/nothing").json == {"error": "there is nothing at this address"}
    # What is not printable is written as an escape.
    assert "\\x1b" in refused(opened, "window", 404, instrument="\x1b[2J")


def test_only_who_knows_the_token_on_this_machine_is_answered(opened: Any) -> None:
    path = urllib.parse.urlsplit(opened.url).path
    token = path.strip("/")
    assert len(token) >= 32
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for attempt in (
        "/",
        "/api/about",
        f"/{wrong}/api/about",
        f"/{token[:-1]}/",
        f"//{token}/api/about",
        "/%ff/",
    ):
        found = get(opened, attempt)
        assert found.status == 403, attempt
        assert token not in found.body.decode()
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:80",
        "",
        "localhost.evil",
        "169.254.1.1",
        "[::2]:80",
    ):
        assert get(opened, "api/about", headers={"Host": host}).status == 403, host
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert get(opened, "api/about", headers={"Host": host}).status == 200, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(opened, "api/about", method).status == 405
    # The socket is that of this machine alone.
    assert opened._socket.getsockname()[0] == "127.0.0.1"


def test_the_page_runs_our_files_alone(opened: Any) -> None:
    assert {path.name for path in PAGE.iterdir()} == _FILES.keys()
    for name, kind in _FILES.items():
        found = get(opened, name)
        assert (found.status, found.headers["content-type"]) == (200, kind)
        assert found.body == (PAGE / name).read_bytes()
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
    for found in (get(opened, "api/about"), get(opened, "/")):
        assert not [name for name in found.headers if name.startswith("access-control")]
        assert found.headers["cache-control"] == "no-store"
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert get(opened, "").body == page.encode()
    assert set(re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)) == {""}
    assert not re.search(r"\son\w+=|\sstyle=|https?://", page)
    for script in PAGE.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|https?://", script.read_text()
        )


def test_nothing_is_written_into_a_store(store: pp.ImageStore, panel: pp.Panel, cache: Any) -> None:
    folders = [Path(store.location), Path(cache.location)]
    before = [tree(folder) for folder in folders]
    touched = [max(p.stat().st_mtime_ns for p in folder.rglob("*")) for folder in folders]
    with explore(store.location, factor=cache.location, panel=panel) as explorer:
        for order in ("time", "random", "score", "error", "similar"):
            ask(explorer, "sheet", order=order, horizon=5)
        ask(explorer, "redraw", lookback=5, height=32, ma="none")
    assert [tree(folder) for folder in folders] == before
    assert [max(p.stat().st_mtime_ns for p in folder.rglob("*")) for folder in folders] == touched


def test_damage_is_told_and_does_not_end_it(panel: pp.Panel, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    pp.render_universe(panel, "jkx20", path, horizons=(5,), chunk=64, progress=False)
    (path / "images" / "c" / "0" / "0" / "0").write_bytes(b"damaged")
    with explore(path) as explorer:
        assert "checksum" in refused(explorer, "sheet")
        assert ask(explorer, "about")["images"] > 0
        assert "position" in ask(explorer, "window")
    with pytest.raises(FileNotFoundError, match="no store at"):
        explore(tmp_path / "nothing.zarr")


# ---- many images


class Many(ImageSet):
    """Seventeen million windows: an index as large as that of a store, images that are drawn from their position."""

    kind, location, tz, delay = "store", "many", None, 0
    chunk, spec, horizons = 4096, pp.ImageSpec(2, 8), (5,)
    attrs: Any = {}  # noqa: RUF012
    digest = "many"

    def __init__(self, days: int = 3400, instruments: int = 5000) -> None:
        self.read_positions: list[int] = []
        self._shape = days, instruments
        self._instruments = np.array([f"N{i:04d}" for i in range(instruments)])
        # Every third instrument has no window on odd days.
        missing = np.arange(instruments) % 3 == 0
        even, odd = np.arange(instruments), np.flatnonzero(~missing)
        self._codes = np.concatenate([odd if day % 2 else even for day in range(days)]).astype(np.int32)
        sizes = [len(odd) if day % 2 else len(even) for day in range(days)]
        self._time = np.repeat(np.arange(days, dtype=np.int64) * 86_400_000_000_000, sizes)

    def __len__(self) -> int:
        return len(self._time)

    @property
    def instruments(self) -> Any:
        return self._instruments

    def column(self, name: str, first: int = 0, last: int | None = None) -> Any:
        own = slice(first * INDEX_CHUNK, None if last is None else last * INDEX_CHUNK)
        if name == "time":
            return self._time[own]
        if name == "instrument_index":
            return self._codes[own]
        if name == "exit_time_5":
            return self._time[own] + 5 * 86_400_000_000_000
        positions = np.arange(len(self))[own]
        return ((positions * 2_654_435_761 % 2**32) / 2**32 - 0.5).astype(np.float32)

    def read_into(self, positions: Any, out: Any) -> None:
        self.read_positions += positions.tolist()
        bits = (positions[:, None] >> np.arange(48)) & 1
        out[:] = (255 * bits).astype(np.uint8).reshape(len(positions), 8, 6)

    def _reader(self, selection: Any, **options: Any) -> Any:
        raise NotImplementedError


def test_of_millions_of_windows_only_those_shown_are_read() -> None:
    many = Many()
    days, instruments = many._shape
    assert len(many) > 14_000_000
    with many.explore() as explorer:
        start = ask(explorer, "window")
        assert start["position"] == len(many) - 1
        name = "N1234"
        found = ask(explorer, "window", instrument=name, time="1975-06-01")
        for _ in range(20):
            day = (np.datetime64(found["time"]) - np.datetime64("1970-01-01")).astype(int)
            assert many._time[found["position"]] == day * 86_400_000_000_000
            assert many._codes[found["position"]] == 1234
            assert pixels(found["image"]).ravel().tolist() == [
                255 * (found["position"] >> k & 1) for k in range(48)
            ]
            found = ask(explorer, "window", instrument=name, time=found["right"])
        sparse = ask(explorer, "window", instrument="N0003")
        assert sparse["count"] == days // 2
        assert np.datetime64(sparse["time"]) - np.datetime64(sparse["left"]) == np.timedelta64(2, "D")
        body = get(explorer, "api/sheet?order=random&from=1975&to=1976&size=36").body
        assert len(body) < 20_000
        assert len(get(explorer, "api/instruments?q=n").body) < 2_000
        assert ask(explorer, "instruments", q="n")["total"] == instruments
        assert len(get(explorer, "api/about").body) < 5_000
    assert len(many.read_positions) == 1 + 21 + 1 + 36


# ---- how it begins and ends


def test_an_explorer_shows_itself_and_closes(store: pp.ImageStore) -> None:
    explorer = store.explore()
    assert explorer.url in repr(explorer)
    page = explorer._repr_html_()
    assert page.startswith("<iframe")
    assert f'src="{explorer.url}"' in page
    assert "<script" not in page
    assert get(explorer, "api/about").status == 200
    port = urllib.parse.urlsplit(explorer.url).port
    with pytest.raises(OSError, match=rf"port={port} of 127.0.0.1 cannot be used"):
        store.explore(port=port)
    explorer.close()
    explorer.close()
    assert "closed" in repr(explorer)
    assert "<iframe" not in explorer._repr_html_()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with store.explore(port=port) as again:
        assert again.url != explorer.url
    with pytest.raises(ValueError, match="port=70000"):
        store.explore(port=70000)


def test_a_browser_is_led_there_by_a_file_that_nobody_else_can_read(
    store: pp.ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", asked.append)
    with store.explore(browser=True) as explorer:
        (address,) = asked
        # All users see what a browser was called with.
        assert urllib.parse.urlsplit(explorer.url).path.strip("/") not in address
        door = Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path))
        assert f"url={explorer.url}" in door.read_text()
        if os.name != "nt":
            assert door.stat().st_mode & 0o077 == 0
    assert not door.exists()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_the_command_serves_until_ctrl_c(store: pp.ImageStore, bars: pl.DataFrame, tmp_path: Path) -> None:
    bars.write_parquet(tmp_path / "bars.parquet")
    words = ["explore", store.location, "--panel", str(tmp_path / "bars.parquet"), "--no-browser"]
    code = f"import sys; from pricepix.cli import main; main({words!r}, prog_name='pricepix-cli')"
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", url)

        class Opened:
            pass

        Opened.url = url  # type: ignore[attr-defined]
        assert ask(Opened, "about")["bars"] is True
        assert ask(Opened, "window")["bars"]["note"] == ""
        child.send_signal(signal.SIGINT)
        rest, said = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, said
    assert rest == ""
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said


def test_the_command_refuses_clearly(store: pp.ImageStore, tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["explore", str(tmp_path / "none.zarr"), "--no-browser"])
    assert (found.exit_code, "no store at" in found.output) == (1, True)
    found = CliRunner().invoke(main, ["explore", store.location, "--tz", "UTC", "--no-browser"])
    assert found.exit_code == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = CliRunner().invoke(main, ["explore", store.location, "--port", str(port), "--no-browser"])
    assert found.exit_code == 1
    assert f"--port {port} of 127.0.0.1 cannot be used" in found.output


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_extra_it_names_it(
    store: pp.ImageStore, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"^explore needs {package}: pip install 'pricepix\[explore\]'$"):
        store.explore()
