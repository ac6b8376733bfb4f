"""Two factors side by side: the bootstrap by hand, regressions against statsmodels, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_factor_evaluation import cache_of

import pricepix as pp
from pricepix import samples
from pricepix.factor import Bootstrap, compare, evaluate
from pricepix.factor.comparison.bootstrap import bootstrap_by_month, month_numbers
from pricepix.factor.comparison.spanning import factor_returns, span

NAMES, BARS = 30, 400


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    table = samples.simulate(NAMES, BARS, seed=2, list_late=0, delist_rate=0, halt_rate=0, split_rate=0)
    return pp.Panel.from_table(table, progress=False)


@pytest.fixture(scope="module")
def caches(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A factor that knows something of the next 5 bars, and the same with more noise; the second lacks values."""
    close = panel.bars[:, 3].reshape(NAMES, BARS).T
    ahead = np.full(close.shape, np.nan)
    ahead[:-5] = close[5:] / close[:-5] - 1
    rng = np.random.default_rng(0)
    noise, more = rng.normal(0, 0.08, (2, BARS, NAMES))
    good = np.nan_to_num(ahead) + noise
    poor = good + 2.0 * more
    poor[rng.random(poor.shape) < 0.1] = np.nan
    folder = tmp_path_factory.mktemp("c")
    return tuple(
        cache_of(panel, (1 / (1 + np.exp(-x))).astype(np.float32), folder / name)
        for name, x in (("a.zarr", good), ("b.zarr", poor))
    )  # type: ignore[return-value]


@pytest.fixture(scope="module")
def found(caches: Any, panel: pp.Panel) -> Any:
    return compare(*caches, panel, names=("good", "poor"), horizon=5, quantiles=5, bootstrap=Bootstrap(200))


def test_both_stand_on_the_same_names_and_dates(found: Any, caches: Any, panel: pp.Panel) -> None:
    """The worse one, which lacks values, is what an evaluation finds; the better one is cut to its names."""
    judged = evaluate(caches[1], panel, 5, quantiles=5, baselines=(), delays=0, horizons=5, progress=False)
    assert found.figures["ic"]["b"] == pytest.approx(judged.figures["ic"]["rank"]["mean"], abs=1e-12)
    book = judged.figures["portfolios"]["equal"]["long_short"]["periods"]
    assert found.figures["sharpe"]["b"] == pytest.approx(book["sharpe"], abs=1e-9)
    whole = evaluate(caches[0], panel, 5, quantiles=5, baselines=(), delays=0, horizons=5, progress=False)
    assert found.figures["ic"]["a"] != whole.figures["ic"]["rank"]["mean"]


def test_the_better_one_is_told(found: Any) -> None:
    for name in ("ic", "sharpe"):
        figure = found.figures[name]
        assert figure["low"] <= figure["difference"] <= figure["high"]
        assert figure["low"] > 0
        assert figure["p_value"] < 0.05
    assert found.figures["spanning"]["good"]["poor"]["t"] > 3
    assert abs(found.figures["spanning"]["poor"]["good"]["t"]) < 3
    assert 0.2 < found.figures["overlap"]["highest"] < 0.9


def test_a_factor_is_not_better_than_itself(caches: Any, panel: pp.Panel) -> None:
    same = compare(caches[0], caches[0], panel, horizon=5, quantiles=5, bootstrap=Bootstrap(50))
    assert same.figures["ic"]["difference"] == same.figures["sharpe"]["difference"] == 0
    assert same.figures["ic"]["p_value"] == 1
    assert same.figures["return_correlation"] == pytest.approx(1)
    assert same.figures["overlap"] == {"lowest": 1.0, "highest": 1.0}
    assert same.figures["rank_correlation"]["mean"] == pytest.approx(1)


def test_the_bootstrap_draws_months() -> None:
    rng = np.random.default_rng(5)
    time = np.arange("2010-01-01", "2011-01-01", dtype="M8[D]")
    month = month_numbers(time.astype("M8[ns]").astype(np.int64), None)
    assert len(np.unique(month)) == 12
    # Within a month all values are the same: what varies is which months are drawn.
    level = rng.normal(0, 1, 12)[month - month.min()]
    pairs = np.column_stack([level, np.zeros(len(level))])
    found = bootstrap_by_month(np.mean, pairs, month, Bootstrap(4000, 1))
    means = np.array([level[month == m].mean() for m in np.unique(month)])
    expected = means.std() / np.sqrt(12)
    assert found["standard_error"] == pytest.approx(expected, rel=0.06)
    assert found["standard_error"] > 4 * level.std() / np.sqrt(len(level))
    assert found == bootstrap_by_month(np.mean, pairs, month, Bootstrap(4000, 1))
    assert found != bootstrap_by_month(np.mean, pairs, month, Bootstrap(4000, 2))
    few = bootstrap_by_month(np.mean, pairs[:59], month[:59], Bootstrap(10, 0))
    assert np.isnan(few["p_value"])


def test_the_bootstrap_rejects_as_often_as_it_says() -> None:
    rng = np.random.default_rng(9)
    month = np.repeat(np.arange(24), 20)
    rejected = 0
    for trial in range(200):
        shared = rng.normal(0, 1, 24)[month]
        pairs = np.column_stack([shared + rng.normal(0, 1, 480), shared + rng.normal(0, 1, 480)])
        rejected += bootstrap_by_month(np.mean, pairs, month, Bootstrap(199, trial))["p_value"] < 0.05
    assert 2 <= rejected <= 26


def test_alphas_equal_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    x = rng.normal(0.001, 0.02, (150, 3))
    noise = rng.normal(0, 0.01, 151)
    y = 0.002 + x @ np.array([0.8, -0.3, 0.1]) + noise[1:] + 0.5 * noise[:-1]
    x[7, 1] = np.nan
    found = span(y, x, ["mkt", "smb", "hml"], 52)
    known = ~np.isnan(x).any(axis=1)
    fit = sm.OLS(y[known], sm.add_constant(x[known])).fit(
        cov_type="HAC", cov_kwds={"maxlags": found["lags"], "use_correction": False}
    )
    assert found["lags"] == 4
    assert found["periods"] == 149
    assert found["alpha"] == pytest.approx(fit.params[0] * 52, abs=1e-10)
    assert found["t"] == pytest.approx(fit.tvalues[0], abs=1e-9)
    assert list(found["betas"].values()) == pytest.approx(fit.params[1:].tolist(), abs=1e-10)
    assert list(found["t_betas"].values()) == pytest.approx(fit.tvalues[1:].tolist(), abs=1e-9)
    assert found["r2"] == pytest.approx(fit.rsquared, abs=1e-10)
    assert np.isnan(span(y[:12], x[:12], ["mkt", "smb", "hml"], 52)["alpha"])
    twice = np.column_stack([x[:, 0], x[:, 0]])
    assert np.isnan(span(y, twice, ["mkt", "again"], 52)["t"])


def test_given_factors_span(caches: Any, panel: pp.Panel) -> None:
    days = panel.to_polars()["time"].unique().sort()
    rng = np.random.default_rng(4)
    table = pl.DataFrame({"time": days, "mkt": rng.normal(0, 0.01, BARS), "mom": rng.normal(0, 0.01, BARS)})
    models = {"CAPM": ["mkt"], "all": ["mkt", "mom"]}
    found = compare(
        *caches, panel, horizon=5, quantiles=5, bootstrap=Bootstrap(20), returns=table, models=models
    )  # fmt: skip
    own = found.figures["spanning"]["a"]
    assert set(own) == {"b", "CAPM", "all"}
    assert set(own["all"]["betas"]) == {"mkt", "mom"}
    assert found.table().height == 2 + 6 + 4
    names, values = factor_returns(table, panel, np.array([0, 7]), np.array([5, 12]))
    assert names == ["mkt", "mom"]
    step = table["mkt"].to_numpy()
    assert values[:, 0] == pytest.approx([np.prod(1 + step[1:6]) - 1, np.prod(1 + step[8:13]) - 1])
    holed = table.filter(pl.col("time") != days[9])
    assert np.isnan(factor_returns(holed, panel, np.array([0, 7]), np.array([5, 12]))[1]).tolist() == [
        [False, False], [True, True],
    ]  # fmt: skip


def test_the_result_can_be_shown(found: Any, tmp_path: Path) -> None:
    assert "good less poor: rank IC" in repr(found)
    assert found.to_dict()["figures" if "figures" in found.to_dict() else "ic"]
    pytest.importorskip("matplotlib")
    assert found.figure(tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_portfolios_compare_too(caches: Any, panel: pp.Panel) -> None:
    table = pl.DataFrame({"time": panel.to_polars()["time"].unique().sort(), "mkt": np.full(BARS, 0.001)})
    found = compare(
        *caches, panel, horizon=5, quantiles=5, bootstrap=Bootstrap(20), convention="paper", rebalance="week",
        returns=table, universe={"min_age": 10},
    )  # fmt: skip
    assert found.figures["data"]["periods"] == len(found.series["time"]) == len(found.series["a"])
    assert found.figures["sharpe"]["difference"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a")}, "give two names that differ"),
        ({"models": {"CAPM": ["mkt"]}}, "models names columns of returns: give returns"),
        ({"returns": pl.DataFrame({"day": [1]})}, "give time and one column a factor"),
        ({"universe": {"min_price": 1e9}}, "no value of the same instrument"),
    ],
)
def test_errors(caches: Any, panel: pp.Panel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*caches, panel, **({"horizon": 5, "quantiles": 5, "bootstrap": Bootstrap(5)} | change))


def test_bad_bootstraps(caches: Any, panel: pp.Panel) -> None:
    for wrong in ({"draws": 0}, {"seed": -1}, {"draws": 2.5}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            Bootstrap(**wrong)
    with pytest.raises(TypeError, match=r"bootstrap=200: give factor\.Bootstrap"):
        compare(*caches, panel, bootstrap=200)


def test_returns_in_percent_are_refused(caches: Any, panel: pp.Panel) -> None:
    days = panel.to_polars()["time"].unique().sort()
    table = pl.DataFrame({"time": days, "mkt": np.linspace(-2, 2, BARS)})
    with pytest.raises(ValueError, match=r"give shares, 0\.01 for 1%"):
        compare(*caches, panel, horizon=5, quantiles=5, bootstrap=Bootstrap(5), returns=table)
    small = table.with_columns(pl.col("mkt") / 100)
    with pytest.raises(KeyError, match=r"models\['CAPM'\] names 'market'"):
        compare(*caches, panel, horizon=5, quantiles=5, returns=small, models={"CAPM": ["market"]})
