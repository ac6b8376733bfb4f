"""Universes of an evaluation: every condition by hand, nothing from later bars, and what happens without names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_factor_evaluation import cache_of

import pricepix as pp
from pricepix.factor import Universe, evaluate
from pricepix.factor.evaluation.market import Market

NAMES, BARS = 8, 90


def table(later: float = 1.0) -> pl.DataFrame:
    """Eight names of known caps, prices and volumes; N7 lists at bar 30. `later` scales all after bar 60."""
    rng = np.random.default_rng(4)
    days = np.arange("2015-01-05", "2015-05-11", dtype="M8[D]")
    days = days[np.is_busday(days)][:BARS]
    parts = []
    for j in range(NAMES):
        first = 30 if j == 7 else 0
        close = (5.0 + 5.0 * j) * np.cumprod(1 + rng.normal(0, 0.01, BARS))
        close[61:] *= later
        volume = np.full(BARS, 1000.0 * (NAMES - j))
        parts.append(
            pl.DataFrame(
                {
                    "instrument": f"N{j}", "time": days, **dict.fromkeys(("open", "high", "low", "close"), close),
                    "volume": volume * later ** (np.arange(BARS) > 60),
                    "market_cap": close * (1e6 if j != 3 else np.nan),
                }
            )[first:]
        )  # fmt: skip
    return pl.concat(parts)


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(table(), progress=False)


def chosen(panel: pp.Panel, at: int, **conditions: Any) -> list[str]:
    market = Market.of(panel, panel.instruments)
    found = Universe(**conditions).select(market, np.array([at]))[0]
    return panel.instruments[found].tolist()


def test_each_condition_by_hand(panel: pp.Panel) -> None:
    close = {n: panel.bars[panel.rows_of(n), 3] for n in panel.instruments.tolist()}
    assert chosen(panel, 10) == [f"N{j}" for j in range(7)]
    assert chosen(panel, 50, min_price=20.0) == [n for n in close if close[n][50 - 30 * (n == "N7")] >= 20.0]
    # N3 has no market cap; caps grow with the number.
    assert chosen(panel, 50, top=3) == ["N5", "N6", "N7"]
    assert chosen(panel, 10, top=4) == ["N2", "N4", "N5", "N6"]
    assert chosen(panel, 48, min_age=20) == [f"N{j}" for j in range(7)]
    assert chosen(panel, 49, min_age=20) == [f"N{j}" for j in range(8)]
    traded = {
        n: np.pad(close[n] * 1000.0 * (NAMES - int(n[1])), (30 * (n == "N7"), 0))[21:41].sum() / 20
        for n in close
    }
    assert chosen(panel, 40, min_dollar_volume=60_000) == [n for n in traded if traded[n] >= 60_000]
    assert traded["N7"] == pytest.approx((close["N7"][:11] * 1000).sum() / 20)
    assert chosen(panel, 50, top=2, min_price=1.0, mask=panel.bars[:, 3] < 17.0) == ["N1", "N2"]
    assert chosen(panel, 50, mask=lambda p: p.bars[:, 3] > 1e9) == []


def test_a_universe_knows_no_later_bar(panel: pp.Panel) -> None:
    other = pp.Panel.from_table(table(later=50.0), progress=False)
    for conditions in ({"top": 3}, {"min_price": 30.0}, {"min_dollar_volume": 90_000}, {"min_age": 40}):
        for at in (20, 45, 60):
            assert chosen(panel, at, **conditions) == chosen(other, at, **conditions)
    assert chosen(panel, 70, min_price=300.0) != chosen(other, 70, min_price=300.0)


@pytest.fixture(scope="module")
def cache(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    scores = np.random.default_rng(1).random((BARS, NAMES)).astype(np.float32)
    scores[:30, 7] = np.nan
    return cache_of(panel, scores, tmp_path_factory.mktemp("c") / "f.zarr")


def judged(cache: Any, panel: pp.Panel, universe: Any = None) -> Any:
    return evaluate(
        cache, panel, 5, quantiles=2, universe=universe, convention="paper", baselines=(), delays=0, horizons=5,
        progress=False,
    )  # fmt: skip


def test_an_evaluation_keeps_to_its_universe(cache: Any, panel: pp.Panel) -> None:
    everything = judged(cache, panel)
    assert everything.figures["universe"] == "all instruments"
    inside = np.isin(panel.instruments, ["N1", "N2", "N4"])[
        np.repeat(np.arange(NAMES), np.diff(panel.offsets))
    ]
    found = judged(cache, panel, lambda p: inside)
    assert found.figures["data"]["instruments_a_date"]["max"] == 3
    assert judged(cache, panel, inside).figures["ic"] == found.figures["ic"]
    largest = judged(cache, panel, {"top": 3})
    assert largest.figures["universe"] == "the 3 largest by market cap"
    assert largest.figures["data"]["values"] == 3 * BARS


def test_dates_without_a_name_are_left_out_and_said(cache: Any, panel: pp.Panel) -> None:
    late = judged(cache, panel, Universe(min_age=41))
    assert late.figures["data"]["dates"] == BARS - 40
    assert "on 40 dates, which are left out" in late.notes[-1]
    with pytest.raises(ValueError, match="no value of the factor belongs to an instrument of the universe"):
        judged(cache, panel, {"min_price": 1e6})


def test_errors_say_what_to_give(cache: Any, panel: pp.Panel) -> None:
    with pytest.raises(TypeError, match=r"no condition 'tpo'; did you mean 'top'\?"):
        judged(cache, panel, {"tpo": 5})
    with pytest.raises(TypeError, match="universe is a str"):
        judged(cache, panel, "large")
    with pytest.raises(ValueError, match="top=0: give a whole number of at least 1"):
        Universe(top=0)
    with pytest.raises(ValueError, match=r"the mask of the universe is bool \(3,\)"):
        judged(cache, panel, np.ones(3, bool))
    bare = pp.Panel.from_table(table().drop("market_cap"), progress=False)
    with pytest.raises(ValueError, match="map a column to market_cap"):
        Universe(top=3).select(Market.of(bare, bare.instruments), np.array([5]))


def test_a_universe_is_read_from_text() -> None:
    found = Universe.parse("top=500, min_price=5,min_dollar_volume=1e6,min_age=250")
    assert found == Universe(top=500, min_price=5.0, min_dollar_volume=1e6, min_age=250)
    for text, message in {
        "": "'' is not of the form NAME=NUMBER",
        "top": "'top' is not of the form NAME=NUMBER, such as top=500",
        "tops=5": "no condition 'tops'.*top",
        "top=5,top=6": "gives top twice",
        "top=5.5": "top=5.5 is not a whole number",
        "min_price=cheap": "min_price=cheap is not a number",
        "top=0": "top=0",
        "min_price=nan": "min_price",
    }.items():
        with pytest.raises(ValueError, match=message):
            Universe.parse(text)


def test_the_command_line_hands_a_universe_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from click.testing import CliRunner

    from pricepix import cli
    from pricepix.workflow import report

    given: dict[str, Any] = {}

    def report_on(cache: Any, bars: Any, path: Any, **settings: Any) -> tuple[str, Path]:
        given.update(settings)
        return "evaluation", Path(path)

    monkeypatch.setattr(report, "report_on", report_on)
    table().write_parquet(tmp_path / "bars.parquet")
    call = ["evaluate", "cache", str(tmp_path / "bars.parquet"), "report.html", "--no-progress", "--universe"]
    done = CliRunner().invoke(cli.main, [*call, "top=3,min_price=5"])
    assert done.exit_code == 0, done.output
    assert given["universe"] == Universe(top=3, min_price=5.0)
    wrong = CliRunner().invoke(cli.main, [*call, "topp=3"])
    assert wrong.exit_code == 2
    assert "--universe" in wrong.output
    assert "no condition 'topp'" in wrong.output
