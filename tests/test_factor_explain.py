"""Why one window has its score: figures that add up, bars that are drawn anew and not masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402

SMALL = train.CNNSpec("small", 64, 60, (train.ConvBlock(4, pool=(4, 2)), train.ConvBlock(4)), dropout=0.0)


@pytest.fixture(scope="module")
def bars() -> Any:
    return pp.samples.simulate(3, 90, seed=5, delist_rate=0, list_late=0, halt_rate=0, split_rate=0)


@pytest.fixture(scope="module")
def images(bars: Any) -> pp.PanelImages:
    return pp.PanelImages(bars, "jkx20", horizons=(5,))


def _network(seed: int) -> Any:
    torch.manual_seed(seed)
    network = train.PriceCNN(SMALL).set_normalisation(0.1, 0.3).eval()
    # Far from one half, so that there is something to explain.
    torch.nn.init.normal_(network.linear.weight, std=0.05)
    return network


def test_a_bar_is_left_out_and_the_rest_is_drawn_anew(bars: Any, images: Any) -> None:
    """Against a market in which that bar is missing, from the table on."""
    network = _network(1)
    name, time = images.index["instrument"][50], images.index["time"][50]
    found = factor.explain(network, images, name, time)
    assert found.score == pytest.approx(float(network.predict(images.read([50]))[0]), abs=1e-6)
    np.testing.assert_array_equal(found.image, images.read([50])[0])
    own = bars.filter((pl.col("instrument") == name) & (pl.col("time") <= time))
    assert found.bars["close"].to_list() == own["close"].tail(20).to_list()
    for bar in (0, 7, 19):
        row = len(own) - 20 + bar
        gone = pl.int_range(pl.len()) == row
        table = own.with_columns(
            *(
                pl.when(gone).then(None).otherwise(pl.col(c)).alias(c)
                for c in ("open", "high", "low", "close")
            ),
            volume=pl.when(gone).then(0.0).otherwise(pl.col("volume")),
        )
        other = pp.PanelImages(table, "jkx20", horizons=())
        try:
            image = other.image(name, time)
        except KeyError:
            assert np.isnan(found.bars["occlusion"][bar])
            continue
        expected = found.score - float(network.predict(image[None])[0])
        assert found.bars["occlusion"][bar] == pytest.approx(expected, abs=1e-6)
    assert found.bars["occlusion"].is_finite().sum() >= 18


@pytest.mark.parametrize("members", [1, 2])
def test_gradients_add_up(images: Any, members: int) -> None:
    networks = [_network(seed) for seed in range(members)]
    model = networks[0] if members == 1 else train.Ensemble(networks)
    found = factor.explain(model, images, images.index["instrument"][50], images.index["time"][50], steps=512)
    whole = found.score - found.empty_score
    assert abs(whole) > 0.01
    assert found.integrated_gradients.sum() == pytest.approx(whole, abs=0.02 * abs(whole) + 1e-4)
    assert found.bars["gradients"].sum() == pytest.approx(whole, abs=0.02 * abs(whole) + 1e-4)
    # A pixel that is not drawn is the same in the empty image.
    assert not found.integrated_gradients[found.image == 0].any()
    assert found.grad_cam is not None
    assert found.grad_cam.shape == found.image.shape


def test_a_module_a_merged_spec_and_a_figure(bars: Any) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    weekly = pp.ImageSpec.preset("jkx20").replace(lookback=25, aggregate=5, ma=(25,))
    images = pp.PanelImages(bars, weekly, horizons=(5,))
    mine = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(weekly.shape)), 2))
    found = factor.explain(mine, images, images.index["instrument"][9], images.index["time"][9])
    assert found.grad_cam is None
    assert len(found.bars) == 25
    assert found.bars["gradients"].n_unique() <= 5
    assert (found.bars["occlusion"][0:5] == found.bars["occlusion"][0]).all()
    assert isinstance(found.figure(), figures.Figure)
    assert "Explanation(" in repr(found)


def test_what_cannot_be_explained(bars: Any, images: Any) -> None:
    name, time = images.index["instrument"][50], images.index["time"][50]
    with pytest.raises(ValueError, match="explain takes networks on single images"):
        factor.explain(lambda pixels: pixels.mean(axis=(1, 2)), images, name, time)
    store = pp.render_universe(bars, "jkx20", None, horizons=(5,), progress=False)
    with pytest.raises(ValueError, match="explain needs the bars of store memory: give panel="):
        factor.explain(_network(1), store, name, time)
    found = factor.explain(_network(1), store, name, time, panel=images.panel)
    assert found.score == pytest.approx(factor.explain(_network(1), images, name, time).score)
    with pytest.raises(KeyError, match="no window of"):
        factor.explain(_network(1), images, name, "1999-01-01")
    with pytest.raises(ValueError, match="steps=0"):
        factor.explain(_network(1), images, name, time, steps=0)
