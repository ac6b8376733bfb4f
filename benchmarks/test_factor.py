"""Scoring beside the bare model's forward pass, and the parts of an evaluation.

pytest benchmarks/test_factor.py --benchmark-columns=min,median,rounds --benchmark-sort=name
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pricepix import ImageSpec, render_universe
from pricepix.factor import evaluate, score
from pricepix.factor.evaluation.holding import simulate_holding
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.portfolio import quantile_returns, quantiles


@pytest.fixture(scope="module")
def network():
    torch = pytest.importorskip("torch")
    from pricepix.train.models import PriceCNN

    torch.manual_seed(0)
    return PriceCNN("jkx5").eval()


@pytest.fixture(scope="module")
def store(panel, size, tmp_path_factory):
    """The last windows of the market, as many as a rendering benchmark has."""
    days = max(1, size.images // panel.n_instruments)
    start = int(panel.calendar[-days])
    where = tmp_path_factory.mktemp("factor") / "store.zarr"
    spec = ImageSpec.preset("jkx5")
    return render_universe(panel, spec, where, horizons=(5,), start=start, chunk=size.chunk, progress=False)


def ink(images):
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def test_forward(benchmark, network, store, per_second):
    """The limit: the network on images in memory."""
    benchmark.group = "score a store"
    per_second("images", len(store))
    images = store.read()
    benchmark.pedantic(network.predict, (images, 256), rounds=2)


def test_score(benchmark, network, store, per_second):
    benchmark.group = "score a store"
    per_second("images", len(store))
    benchmark.pedantic(lambda: score(store, network, None, progress=False), rounds=2)


def test_score_function(benchmark, store, per_second):
    """What scoring costs beside the model: a function that does next to nothing."""
    benchmark.group = "score a store"
    per_second("images", len(store))
    benchmark(lambda: score(store, ink, None, progress=False))


@pytest.fixture(scope="module")
def matrices(size):
    """Factor, forward returns and price levels, (bars, instruments)."""
    rng = np.random.default_rng(0)
    shape = (size.bars, 10 * size.instruments)
    return rng.random(shape), rng.normal(size=shape), np.exp(np.cumsum(rng.normal(0, 0.02, shape), axis=0))


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_information_coefficient(benchmark, matrices, per_second, method):
    benchmark.group = "statistics"
    per_second("pairs", matrices[0].size)
    benchmark(information_coefficient, matrices[0], matrices[1], method)


def test_quantiles(benchmark, matrices, per_second):
    benchmark.group = "statistics"
    per_second("values", matrices[0].size)
    benchmark(quantiles, matrices[0], 10)


@pytest.mark.parametrize("cohorts", [1, 5])
def test_hold(benchmark, matrices, per_second, cohorts):
    """Weekly quantile portfolios, one or five held at a time."""
    factor, _, level = matrices
    at = np.arange(0, len(factor), 5)
    benchmark.group = "portfolios"
    per_second("bars", level.size)
    benchmark(lambda: simulate_holding(factor[at], level, at, n=10, cohorts=cohorts))


# ---- an evaluation at the size of a market, against alphalens


HORIZONS = (1, 5, 10, 20)


@pytest.fixture(scope="module")
def large(size):
    """A factor and the closes of a market: 2,000 names over ten years, 4.9 million values; small where all is."""
    shape = (60, 30) if size.bars < 1000 else (2462, 2000)
    rng = np.random.default_rng(1)
    close = np.exp(np.cumsum(rng.normal(0, 0.02, shape), axis=0))
    factor = rng.random(shape)
    factor[rng.random(shape) < 0.15] = np.nan
    return factor, close


def judge(factor, close):
    """What alphalens computes of a clean factor: rank IC, returns of quantiles and of long minus short."""
    group = quantiles(factor, 10)
    found = {}
    for horizon in HORIZONS:
        forward = np.full(close.shape, np.nan)
        forward[:-horizon] = close[horizon:] / close[:-horizon] - 1.0
        by_quantile = quantile_returns(group, forward, 10)
        found[horizon] = information_coefficient(factor, forward), by_quantile
    return found


def test_judge(benchmark, large, per_second):
    benchmark.group = f"a factor by rank IC and quantiles, {len(HORIZONS)} horizons"
    per_second("values", large[0].size)
    benchmark.pedantic(judge, large, rounds=3, warmup_rounds=1)


def test_judge_alphalens(benchmark, large, per_second):
    """The same figures, on a tenth of the names where the market is large: it takes minutes on all."""
    pd = pytest.importorskip("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        performance = pytest.importorskip("alphalens.performance")
        utils = pytest.importorskip("alphalens.utils")
    factor, close = large[0][:, :200], large[1][:, :200]
    days = pd.bdate_range("2000-01-03", periods=len(factor), name="date")
    names = pd.Index([f"{k:04}" for k in range(factor.shape[1])], name="asset")
    series = pd.DataFrame(factor, days, names).stack()
    prices = pd.DataFrame(close, days, names)
    benchmark.group = f"a factor by rank IC and quantiles, {len(HORIZONS)} horizons"
    per_second("values", factor.size)

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what pandas deprecates, alphalens uses some
            clean = utils.get_clean_factor_and_forward_returns(
                series, prices, quantiles=10, periods=HORIZONS, max_loss=1.0
            )
            performance.factor_information_coefficient(clean)
            performance.mean_return_by_quantile(clean, by_date=True)

    benchmark.pedantic(run, rounds=1)


def test_evaluate(benchmark, panel, store):
    benchmark.group = "evaluate"
    cache = score(store, ink, None, progress=False)
    benchmark(
        lambda: evaluate(cache, panel, horizon=2, quantiles=2, baselines=("STR", "WSTR"), progress=False)
    )
