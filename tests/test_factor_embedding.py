"""Embeddings: what a network has found before it decides, kept and appended to; neighbours in the past alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

torch = pytest.importorskip("torch")

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402
from pricepix.factor import embedding as module  # noqa: E402

SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(8, 3)),))


@pytest.fixture(scope="module")
def bars() -> Any:
    return pp.samples.simulate(4, 90, seed=5, delist_rate=0, list_late=0)


@pytest.fixture(scope="module")
def images(bars: Any) -> pp.PanelImages:
    return pp.PanelImages(bars, "jkx5", horizons=(5,))


@pytest.fixture(scope="module")
def network() -> train.PriceCNN:
    torch.manual_seed(1)
    return train.PriceCNN(SMALL).eval()


@pytest.fixture(scope="module")
def whole(images: Any, network: Any, tmp_path_factory: pytest.TempPathFactory) -> factor.Embedding:
    return factor.embed(images, network, tmp_path_factory.mktemp("emb") / "e.zarr", progress=False)


def test_they_are_what_the_last_layer_sees(images: Any, network: Any, whole: Any) -> None:
    found = torch.from_numpy(whole.values[:])
    assert found.shape == (len(images), network.linear.in_features)
    with torch.no_grad():
        scores = network.scores(network.linear(found)).numpy()
    np.testing.assert_allclose(scores, network.predict(images.read()), atol=1e-6)
    np.testing.assert_array_equal(whole.time, images.time)
    names = np.array(whole.instruments)[whole.instrument_index]
    assert names.tolist() == images.index["instrument"].to_list()
    assert f"{len(images):,} windows, {found.shape[1]} features of 'small'" in repr(whole)


def test_xarray_reads_them(images: Any, whole: Any) -> None:
    xarray = pytest.importorskip("xarray")
    found = whole.to_xarray()
    assert found.embedding.shape == whole.values.shape
    np.testing.assert_array_equal(found.time.values, images.time.view("datetime64[ns]"))
    assert found.instrument.values.tolist() == images.index["instrument"].to_list()
    group = whole.group.store_path
    opened = xarray.open_zarr(str(group).removeprefix("file://"), consolidated=False)
    assert opened.embedding.dims == ("window", "feature")


def test_appended_and_resumed(
    bars: Any, network: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that the images gain are added; a call that died goes on; the result is that of one call."""
    days = bars["time"].unique().sort()
    early = pp.PanelImages(bars.filter(bars["time"] <= days[60]), "jkx5", horizons=(5,))
    late = pp.PanelImages(bars, "jkx5", horizons=(5,))
    factor.embed(early, network, tmp_path / "e", progress=False)
    with pytest.raises(ValueError, match="append=True adds the rest"):
        factor.embed(late, network, tmp_path / "e", progress=False)
    monkeypatch.setattr(pp.PanelImages, "chunk", 32)
    original, calls = module._write, []

    def dying(group: Any, images: Any, a: int, b: int, found: Any) -> None:
        calls.append((a, b))
        if len(calls) == 2:
            group["embedding"].resize((b, found.shape[1]))
            raise OSError("killed")
        original(group, images, a, b, found)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", dying)
        with pytest.raises(OSError, match="killed"):
            factor.embed(late, network, tmp_path / "e", append=True, progress=False)
    assert len(early) < len(factor.open_embedding(tmp_path / "e")) < len(late)
    again = factor.embed(late, network, tmp_path / "e", progress=False)
    np.testing.assert_array_equal(again.time, whole.time)
    np.testing.assert_allclose(again.values[:], whole.values[:], atol=1e-6)
    before = again.values[:]
    np.testing.assert_array_equal(
        factor.embed(late, network, tmp_path / "e", progress=False).values[:], before
    )


def test_a_module_of_one_s_own(images: Any, tmp_path: Path) -> None:
    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower, self.upper = torch.nn.Linear(480, 7), torch.nn.Linear(7, 2)

        def forward(self, pixels: Any) -> Any:
            return self.upper(self.lower(pixels.flatten(1)).relu())

    mine = Mine()
    found = factor.embed(images, mine, None, progress=False)
    with torch.no_grad():
        expected = mine.lower(torch.from_numpy(images.read()).flatten(1) / 255).relu()
    np.testing.assert_allclose(found.values[:], expected.numpy(), atol=1e-5)


class TestSimilar:
    def test_by_hand(self, images: Any, whole: Any) -> None:
        name, time = images.index["instrument"][200], images.index["time"][200]
        found = factor.similar(whole, name, time, k=5)
        values = whole.values[:].astype(float)
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        earlier = np.flatnonzero(images.time < images.time[200])
        best = earlier[np.argsort(-(unit[earlier] @ unit[200]), kind="stable")[:5]]
        assert found["instrument"].to_list() == images.index["instrument"][best].to_list()
        assert found["time"].to_list() == images.index["time"][best].to_list()
        assert found["similarity"].is_sorted(descending=True)
        far = factor.similar(whole, name, time, k=3, metric="euclidean", others_only=True)
        assert name not in far["instrument"].to_list()

    def test_nothing_later_changes_an_answer(self, images: Any, whole: Any) -> None:
        """Later embeddings are turned into the query itself: the answer stays."""
        name, time = images.index["instrument"][200], images.index["time"][200]
        changed = zarr.group()
        for column in ("embedding", "time", "instrument_index"):
            changed.create_array(column, data=whole.group[column][:])
        changed.attrs.update(whole.attrs)
        later = np.flatnonzero(images.time >= images.time[200])
        later = later[later != 200]
        values = changed["embedding"][:]
        values[later] = values[200]
        changed["embedding"][:] = values
        for before in (None, "2000-03-01"):
            expected = factor.similar(whole, name, time, before=before)
            assert factor.similar(factor.Embedding(changed), name, time, before=before).equals(expected)
            assert before is None or str(expected["time"].max())[:10] < before

    def test_what_cannot_be_asked(self, images: Any, whole: Any) -> None:
        name = images.index["instrument"][0]
        with pytest.raises(ValueError, match="is later than the window, which ends at 2000-03-01"):
            factor.similar(whole, name, "2000-03-01", before="2000-03-02")
        with pytest.raises(KeyError, match="no instrument 'S00' in the embeddings"):
            factor.similar(whole, "S00", "2000-03-01")
        with pytest.raises(KeyError, match=r"no window of .* ends at '1999-03-01'"):
            factor.similar(whole, name, "1999-03-01")
        with pytest.raises(ValueError, match="metric='cos' is not known"):
            factor.similar(whole, name, "2000-03-01", metric="cos")
        assert len(factor.similar(whole, name, images.index["time"][0])) == 0


def test_what_cannot_be_embedded(images: Any, network: Any, whole: Any, tmp_path: Path) -> None:
    place = str(whole.group.store_path).removeprefix("file://")
    with pytest.raises(ValueError, match="holds embeddings of another model"):
        factor.embed(images, train.PriceCNN(SMALL), place, progress=False)
    other = pp.PanelImages(
        pp.samples.simulate(4, 90, seed=6, delist_rate=0), "jkx5", horizons=(5,), start="2000-02"
    )
    with pytest.raises(ValueError, match="holds embeddings of other windows"):
        factor.embed(other, network, place, append=True, progress=False)
    with pytest.raises(ValueError, match=r"embed takes one network, .* is several"):
        factor.embed(images, train.Ensemble([network, train.PriceCNN(SMALL)]), None, progress=False)
    with pytest.raises(ValueError, match=r"embed takes one network, .* is a function"):
        factor.embed(images, lambda pixels: pixels.mean(axis=(1, 2)), None, progress=False)
    zarr.open_group(str(tmp_path / "z"), mode="w")
    with pytest.raises(FileExistsError, match="holds something else than embeddings"):
        factor.embed(images, network, tmp_path / "z", progress=False)
    with pytest.raises(ValueError, match="holds no embeddings of pricepix"):
        factor.open_embedding(tmp_path / "z")
    group = zarr.open_group(place)
    group.attrs["format_version"] = 9
    try:
        with pytest.raises(ValueError, match="is of format version 9; this pricepix reads version 1"):
            factor.open_embedding(place)
    finally:
        group.attrs["format_version"] = 1
