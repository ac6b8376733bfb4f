"""Our images against the golden files: every valid window identical, every invalid one refused."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import cases

from pricepix import REASONS, ImageSpec, render_windows

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
