"""The folder of a market cache in the place of a table: in every command that reads bars, and every evening."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_update import frozen, rows

import pricepix as pp
from pricepix.bars import MarketArrays, MarketCache, Session, write_market_cache
from pricepix.bars.vendors.by_name import read_bars
from pricepix.cli import main
from pricepix.factor import open_cache, score
from pricepix.samples.ashare import simulate_arrays
from pricepix.workflow.config import Config

__all__ = ["frozen"]


@pytest.fixture(scope="module")
def market() -> MarketArrays:
    return simulate_arrays(8, 10, seed=2, split_rate=0.05)


def first_days(market: MarketArrays, days: int) -> MarketArrays:
    changes = {}
    for field in dataclasses.fields(market):
        value = getattr(market, field.name)
        if field.name != "instruments" and value is not None:
            changes[field.name] = value[:days]
    return dataclasses.replace(market, **changes)


def bars_at(folder: Path, market: MarketArrays, days: int) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    write_market_cache(folder, first_days(market, days), dtype=np.float64)
    return str(folder)


def call(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["--json", *words])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_every_command_reads_a_market_cache(market: MarketArrays, frozen: Path, tmp_path: Path) -> None:
    old, new = (bars_at(tmp_path / str(days), market, days) for days in (8, 10))
    store, cache = str(tmp_path / "s.zarr"), str(tmp_path / "f.zarr")
    adjusted = ["--adjust", "multiply"]
    call("build-store", old, store, "--preset", "jkx5", "--horizon", "1", "--layout", "bits", *adjusted)
    found = call("append", store, new, *adjusted)
    assert found["windows_added"] > 0
    panel = MarketCache(new).panel()
    fresh = pp.render_universe(panel, "jkx5", None, horizons=(1,), layout="bits", progress=False)
    assert pp.open_store(store).attrs["panel_digest"] == panel.digest
    assert np.array_equal(fresh.read(), pp.open_store(store).read())
    assert call("verify", store, "--panel", new, *adjusted)["reports"][0]["rendered"] == len(fresh)
    call("score", store, str(frozen), cache, "--panel", new, "--device", "cpu")
    assert rows(open_cache(cache).to_polars())
    report = tmp_path / "r.html"
    call("evaluate", cache, new, str(report), "--horizon", "1", "--quantiles", "2", *adjusted)
    assert report.exists()
    assert "checks" in call("audit", new, store, "--seed", "1", *adjusted)
    refused = CliRunner().invoke(main, ["append", store, new, "--time-unit", "s"])
    assert refused.exit_code == 3
    assert f"{new} is a market cache: time_unit are for tables; leave them out" in refused.output


@pytest.mark.parametrize("key", ["source", "market_cache"])
def test_evenings_on_a_market_cache(market: MarketArrays, frozen: Path, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "bars"
    values: dict[str, Any] = {
        "out": str(tmp_path / "out"), "data": {key: str(folder), "adjust": "multiply"}, "image": {"preset": "jkx5"},
        "store": {"horizons": [1], "layout": "bits"}, "train": {"frozen": str(frozen)}, "score": {"device": "cpu"},
    }  # fmt: skip
    for days in (8, 9, 10):
        bars_at(folder, market, days)
        result = pp.update(Config.from_dict(values), now=f"{str(market.days[days - 1])[:10]} 20:00")
        assert result.counts["scores_added"] == result.counts["windows_added"] > 0
    panel = read_bars(str(folder), adjust="multiply")
    fresh = pp.render_universe(
        panel, "jkx5", tmp_path / "fresh", horizons=(1,), layout="bits", progress=False
    )
    store = pp.open_store(tmp_path / "out" / "store.zarr")
    assert store.digest == fresh.digest
    found = rows(open_cache(tmp_path / "out" / "factor.zarr").to_polars())
    expected = rows(score(fresh, frozen, None, progress=False).to_polars())
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), [expected[at] for at in found], atol=1e-6)
    health = json.loads((tmp_path / "out" / "health.json").read_text())
    assert health["images"]["count"] > 0


def test_a_session_of_48_bars_is_found_by_itself(market: MarketArrays, tmp_path: Path) -> None:
    days, stocks = len(market.days), len(market.instruments)
    prices = np.full((days, stocks, 48), 10.0) + np.arange(48) / 100
    plain = MarketArrays(
        days=market.days, instruments=market.instruments, open=prices, high=prices + 0.1, low=prices - 0.1,
        close=prices, volume=np.full(prices.shape, 100.0),
    )  # fmt: skip
    session = Session((("09:30", "11:30"), ("13:00", "15:00")), "Asia/Shanghai")
    write_market_cache(tmp_path, plain, dtype=np.float64, session=session)
    cache = MarketCache(tmp_path)
    assert cache.session == session
    assert cache.stamps == session.stamps("5min")
    assert (cache.stamps[0], cache.stamps[-1]) == ("09:35", "15:00")
    assert (
        MarketCache(tmp_path, session=session).panel(adjust=False).digest == cache.panel(adjust=False).digest
    )
    with pytest.raises(ValueError, match=r"no usual length of bars gives the session .* 48 bars a day"):
        MarketCache(tmp_path, session="us")
