"""Feeding: images a second of the bare model on one batch in memory, beside the whole loop on a store."""

from __future__ import annotations

import csv

import pytest

torch = pytest.importorskip("torch")

from pricepix import open_store, render_universe, train  # noqa: E402

BATCH = 64


@pytest.fixture(scope="module")
def store(panel, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "s"
    render_universe(panel, "jkx5", path, horizons=(5,), layout="bits", progress=False)
    return open_store(path)


@pytest.fixture(scope="module")
def steps(size):
    return 20 if size.images > 100 else 4


def test_bare_model(benchmark, per_second, store, steps):
    """Forward, backward and Adam, the same batch each time."""
    network = train.PriceCNN("jkx5")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    images, target = torch.from_numpy(store.read(slice(BATCH))), torch.zeros(BATCH, dtype=torch.int64)
    benchmark.group = "feed jkx5"
    per_second("images", steps * BATCH)

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), target).backward()
            optimizer.step()

    benchmark.pedantic(run, rounds=2, warmup_rounds=1)


def test_loop(benchmark, store, steps, tmp_path):
    """The loop between its first steps and its validation: reader, logging and checks included."""
    benchmark.group = "feed jkx5"
    chosen = range(min(len(store), int(steps * BATCH / 0.7) + 20 * store.spec.lookback))
    runs = iter(range(100))

    def run():
        out = tmp_path / str(next(runs))
        train.fit(
            store, "jkx5", out=out, mask=list(chosen), batch_size=BATCH, epochs=1, log_every=steps // 2,
            progress=False,
        )  # fmt: skip
        with (out / "member_0" / "metrics.csv").open(newline="") as file:
            return float(next(csv.DictReader(file))["images_per_second"])

    rate = benchmark.pedantic(run, rounds=1)
    assert rate > 0
    benchmark.extra_info["images a second between logs"] = round(rate)
