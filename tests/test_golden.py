"""Our images against the golden files: every valid window identical, every invalid one refused."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from golden_files import cases

from pricepix import REASONS, ImageSpec, Panel, open_store, render_universe, render_windows

HEIGHT = {5: 32, 20: 64, 60: 96}


def assert_we_draw(case, spec):
    assert case.valid.any()
    assert not case.valid.all()
    result = render_windows(case.ohlcv, spec, ma=case.ma, at_limit=case.at_limit)
    refused = result.reason != 0
    wrong = np.flatnonzero(refused == case.valid)
    said = [(int(i), str(case.kind[i]), REASONS[int(result.reason[i])]) for i in wrong[:5]]
    assert len(wrong) == 0, f"{case.name}: validity differs in {len(wrong)} windows, first {said}"
    differs = (result.images != case.images).any(axis=(1, 2)) & case.valid
    where = [(int(i), str(case.kind[i])) for i in np.flatnonzero(differs)[:5]]
    assert not differs.any(), f"{case.name}: {differs.sum()} images differ, first {where}"
    assert not result.images[refused].any()


@pytest.mark.parametrize("bars", [5, 20, 60])
def test_jkx(golden, bars):
    found = list(cases(f"jkx_{bars}", golden(f"jkx_{bars}")))
    assert len(found) == 4
    for case in found:
        ma = () if case.ma is None else (bars,)
        assert_we_draw(case, ImageSpec(bars, HEIGHT[bars], ma=ma, volume=case.volume))


@pytest.mark.parametrize("bars", [5, 20])
def test_cnn_for_trading(golden, bars):
    found = list(cases(f"cnnft_{bars}", golden(f"cnnft_{bars}")))
    assert len(found) == 4
    for case in found:
        ma = () if case.ma is None else (20,)
        assert_we_draw(case, ImageSpec(bars, style="cnn_for_trading", ma=ma, volume=case.volume))


@pytest.mark.parametrize("bars", [9, 49])
def test_image_trading(golden, bars):
    (case,) = cases(f"imagetrading_{bars}", golden(f"imagetrading_{bars}"))
    assert_we_draw(case, ImageSpec.preset(f"it{bars}").replace(scale="per_field"))


@pytest.mark.parametrize("bars", [5, 20, 60])
def test_presets_name_the_golden_renderings(golden, bars):
    """The presets jkx5, jkx20 and jkx60 draw the average and volume variant at the authors' sizes."""
    case = next(case for case in cases(f"jkx_{bars}", golden(f"jkx_{bars}")) if "ma_vol" in case.name)
    assert_we_draw(case, ImageSpec.preset(f"jkx{bars}"))


def test_reasons_name_what_the_authors_drawer_refuses(golden):
    file = golden("jkx_20")
    result = render_windows(file["ohlcv"], ImageSpec.preset("jkx20"), ma=file["ma"])
    reason = dict(zip(file["kind"].tolist(), (REASONS[int(code)] for code in result.reason), strict=True))
    assert reason["flat_price"] == "flat"
    assert reason["inf_high"] == reason["inf_vol"] == "infinite"
    assert reason["flat_price_ma_moves"] == reason["first_close_nan"] == "valid"


# ---- the authors' pipeline, from raw rows with returns to the images of a store


def raw_table(raw):
    """100 instruments of 2L rows as one table with CRSP's column names."""
    n, rows, _ = raw.shape
    days = np.datetime64("2001-01-01", "us") + np.arange(rows).astype("timedelta64[D]")
    names = ["OPENPRC", "ASKHI", "BIDLO", "PRC", "VOL", "RET"]
    return pl.DataFrame(raw.reshape(n * rows, 6), schema=names, orient="row").with_columns(
        permno=np.repeat(np.arange(10001, 10001 + n), rows), date=np.tile(days, n)
    )


@pytest.mark.parametrize("layout", ["uint8", "bits"])
@pytest.mark.parametrize("bars", [5, 20, 60])
def test_raw_rows_through_a_store(golden, bars, layout, tmp_path):
    file = golden(f"jkx_e2e_{bars}")
    spec = ImageSpec.preset(f"jkx{bars}").replace(rebuild="returns")
    panel = Panel.from_table(raw_table(file["raw"]), progress=False)
    assert panel.n_instruments == 100
    render_universe(panel, spec, tmp_path / "e2e.zarr", horizons=(1,), layout=layout, progress=False)
    store = open_store(tmp_path / "e2e.zarr")
    # Of 2L rows only the last ends a window that has L more before it, which the average is built from.
    assert len(store) == 100
    assert store.index["instrument"].to_list() == [str(10001 + i) for i in range(100)]
    images = store.read(slice(None))
    assert images.dtype == np.uint8
    differs = (images != file["img"]).any(axis=(1, 2))
    assert not differs.any(), f"{differs.sum()} images differ, first {np.flatnonzero(differs)[:5]}"
    # CRSP's minus before a midpoint changes nothing
    negative = file["raw"].copy()
    negative[::2, 1::3, 3] *= -1
    midpoint = Panel.from_table(raw_table(negative), negative_prices="midpoint", progress=False)
    memory = render_universe(midpoint, spec, horizons=(1,), progress=False)
    assert np.array_equal(memory.read(slice(None)), file["img"])
