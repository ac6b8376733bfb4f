"""Series behind images whose bars are merged or rebuilt from total returns, in every scaling, and fits on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import samples, train  # noqa: E402


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    table = samples.simulate(
        6, 160, seed=5, halt_rate=0.02, list_late=0.3, split_rate=0.002, delist_rate=0.002
    )
    return pp.Panel.from_table(table, progress=False)


def drawn(panel: pp.Panel, spec: pp.ImageSpec, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Prices and average (5, bars) and volumes (bars,) of a window, from the specification, a bar at a time."""
    first = int(panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1])
    window, k = max(spec.ma), spec.aggregate
    history = window if spec.rebuild else window - k
    begin = row - spec.lookback + 1 - history
    whole = begin >= first
    begin = begin if whole else row - spec.lookback + 1
    bars = panel.bars[begin : row + 1].copy()
    if spec.rebuild:
        level, r = 1.0, panel.fields["total_return"][begin : row + 1]
        for i in range(len(bars)):
            new = level if i == 0 else level * (1.0 + r[i])
            bars[i, :4] *= new / bars[i, 3]
            bars[i, 3] = new
            level = level if np.isnan(new) else new
    merged = []
    for i in range(0, len(bars), k):
        part = bars[i : i + k]
        known = part[:, 4][~np.isnan(part[:, 4])]
        high, low = (
            (np.nan, np.nan) if np.isnan(part[:, 1]).all() else (np.nanmax(part[:, 1]), np.nanmin(part[:, 2]))
        )
        merged.append([part[0, 0], high, low, part[-1, 3], known.sum() if len(known) else np.nan])
    table = np.array(merged)
    close, terms = table[:, 3], window // k
    mean = np.full(spec.bars, np.nan)
    for i in range(spec.bars):
        at = len(table) - spec.bars + i
        if at - terms + 1 >= 0 and whole:
            mean[i] = close[at - terms + 1 : at + 1].mean()
    shown = table[-spec.bars :]
    return np.vstack([shown[:, :4].T, mean]), shown[:, 4]


@pytest.mark.parametrize("rebuild", [None, "returns"])
@pytest.mark.parametrize(("lookback", "aggregate"), [(5, 1), (20, 4)])
@pytest.mark.parametrize("scaling", ["image", "return", "volatility"])
def test_series_are_those_of_the_drawn_bars(
    panel: pp.Panel, rebuild: Any, lookback: int, aggregate: int, scaling: Any
) -> None:
    spec = pp.ImageSpec(lookback, 32, ma=(lookback,), volume=True, aggregate=aggregate, rebuild=rebuild)
    index = pp.WindowIndex.from_panel(panel, spec)
    rows = index.row[:: max(1, len(index.row) // 60)]
    found = train.window_series(panel, spec, rows, scaling)
    assert found.shape == (len(rows), 6, spec.bars)
    for one, row in zip(found, rows.tolist(), strict=True):
        prices, volume = drawn(panel, spec, row)
        if scaling == "image":
            low, high = np.nanmin(prices), np.nanmax(prices)
            expected = (prices - low) / (high - low)
            traded = (volume - np.nanmin(volume)) / (np.nanmax(volume) - np.nanmin(volume))
        else:
            close = prices[3]
            expected = prices / close[0] - 1
            if scaling == "volatility":
                step = close[1:] / close[:-1] - 1
                step = step[~np.isnan(step)]
                expected = expected / (step.std(ddof=1) if len(step) > 1 else np.nan)
            traded = volume / np.nanmean(volume) - 1
        np.testing.assert_allclose(one, np.vstack([expected, traded]), rtol=2e-5, atol=2e-6)


def test_a_scale_of_the_whole_market_changes_nothing(panel: pp.Panel) -> None:
    bars = panel.bars.copy()
    bars[:, :4] *= 4.0
    dear = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, panel.fields)
    spec = pp.ImageSpec.preset("jkx5").replace(rebuild="returns")
    rows = pp.WindowIndex.from_panel(panel, spec).row
    for scaling in ("image", "return", "volatility"):
        both = (train.window_series(p, spec, rows, scaling) for p in (panel, dear))
        np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["cnn1d", "logistic"])
def test_controls_train_where_images_train(panel: pp.Panel, tmp_path: Path, model: str) -> None:
    spec = pp.ImageSpec(20, 32, ma=(20,), volume=True, aggregate=4, rebuild="returns")
    images = pp.PanelImages(panel, spec, horizons=(5,))
    found = train.fit(
        images, model, 5, out=tmp_path / "run", test=("2000-06-15", None), epochs=1, lr=1e-3, progress=False
    )
    assert found.model.spec.lookback == 5
    assert found.test["images"] == len(found.folds[0].predictions) > 0
    assert np.isfinite(found.folds[0].predictions).all()


def test_a_scaling_is_saved_with_the_network(panel: pp.Panel, tmp_path: Path) -> None:
    images = pp.PanelImages(panel, "jkx5", horizons=(5,))
    spec = train.SERIES_PRESETS["logistic5"].replace(scaling="volatility")
    found = train.fit(
        images, spec, 5, out=tmp_path / "run", test=("2000-06-15", None), epochs=1, lr=1e-3, progress=False
    )
    assert train.load_model(tmp_path / "run").spec.scaling == "volatility"
    rows = images.windows.row[found.folds[0].fold.test]
    series = train.window_series(panel, images.spec, rows, "volatility")
    np.testing.assert_allclose(found.model.predict(series), found.folds[0].predictions, atol=1e-6)


def test_unknown_scalings_are_refused(panel: pp.Panel) -> None:
    with pytest.raises(ValueError, match="scaling='log' is not known"):
        train.window_series(panel, pp.ImageSpec.preset("jkx5"), np.array([50]), "log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logistic5: scaling='log' is not known"):
        train.SERIES_PRESETS["logistic5"].replace(scaling="log")


def test_prices_are_rebuilt_from_returns_that_are_there() -> None:
    bars = np.arange(1.0, 31.0)
    time = np.arange("2000-01-03", "2000-02-02", dtype="M8[D]").astype("M8[ns]")
    panel = pp.Panel.from_arrays(
        *(x[:, None] for x in (bars, bars + 1, bars - 0.5, bars, bars)), instruments=["A"], time=time
    )
    with pytest.raises(ValueError, match="needs total returns"):
        train.window_series(panel, pp.ImageSpec.preset("jkx5").replace(rebuild="returns"), np.array([20]))
