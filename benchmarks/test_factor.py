"""Scoring beside the bare model's forward pass, and the parts of an evaluation.

pytest benchmarks/test_factor.py --benchmark-columns=min,median,rounds --benchmark-sort=name
"""

from __future__ import annotations

import numpy as np
import pytest

from pricepix import ImageSpec, render_universe
from pricepix.factor import evaluate, score
from pricepix.factor.evaluation.holding import simulate_holding
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.portfolio import quantiles


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


def test_evaluate(benchmark, panel, store):
    benchmark.group = "evaluate"
    cache = score(store, ink, None, progress=False)
    benchmark(
        lambda: evaluate(cache, panel, horizon=2, quantiles=2, baselines=("STR", "WSTR"), progress=False)
    )
