"""A store under torch's DataLoader: the same batches for any number of workers, counted, from any on."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402
from pricepix.images.image_set import ImageSet  # noqa: E402

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes:UserWarning"),
]


@pytest.fixture(scope="module", params=["store", "store larger than the pool", "loaded", "drawn"])
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, dict[str, Any]]:
    table = pp.samples.simulate(4, 60, seed=5, delist_rate=0, list_late=0)
    images = pp.PanelImages(table, "jkx5", horizons=())
    if request.param == "drawn":
        return images, {}
    folder = tmp_path_factory.mktemp("stores") / "s"
    store = pp.render_universe(table, "jkx5", folder, horizons=(), chunk=32, progress=False)
    if request.param == "loaded":
        return store.load(), {}
    return store, {"pool_bytes": 60 * 50} if "pool" in request.param else {}


def _given(dataset: train.StoreDataset, workers: int) -> list[list[int]]:
    """Positions of the batches that a loader gives, which warns of more than it announced."""
    context = "fork" if workers else None
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    assert len(loader) == len(dataset)
    return [index.tolist() for _, index in loader]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_do_not_depend_on_workers(source: Any, shuffle: bool) -> None:
    images, options = source
    options = {"batch_size": 25, "shuffle": shuffle, "seed": 3, "drop_last": not shuffle} | options
    expected = [batch.index.tolist() for batch in images.batches(**options).epoch(2)]
    dataset = train.StoreDataset(images, **options)
    for workers in (0, 2, 3):
        dataset.set_epoch(2)
        whole = _given(dataset, workers)
        assert sorted(whole) == sorted(expected)
        assert len(dataset) == len(expected)
        # From any batch on: what the loop that was stopped there would have had.
        for start in (1, 5, len(expected)):
            dataset.set_epoch(2, start)
            assert _given(dataset, workers) == whole[start:]


def test_more_workers_than_batches(source: Any) -> None:
    images, options = source
    dataset = train.StoreDataset(images, np.arange(40), batch_size=30, **options)
    assert sorted(itertools.chain(*_given(dataset, 3))) == list(range(40))
    dataset = train.StoreDataset(images, np.arange(20), batch_size=30, drop_last=True, **options)
    assert _given(dataset, 2) == _given(dataset, 0) == []


class _Counting(train.StoreDataset):
    """Says with each batch how many its worker counted beforehand."""

    def __iter__(self) -> Any:
        announced = torch.tensor(len(self))
        return ((announced, index) for _, index in super().__iter__())


def test_workers_count_their_own(source: Any) -> None:
    images, options = source
    dataset = _Counting(images, batch_size=25, **options)
    total = len(dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=3, multiprocessing_context="fork"
    )
    announced = [int(count) for count, _ in loader]
    # One from each worker at a time: the first three are from three.
    assert sum(announced[:3]) == len(announced) == total
    assert max(announced) - min(announced) <= 1


def test_persistent_workers_learn_of_an_epoch_that_is_resumed(source: Any) -> None:
    images, options = source
    dataset = train.StoreDataset(images, batch_size=25, seed=1, **options)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", persistent_workers=True
    )
    for epoch, start in ((0, 3), (1, 0), (1, 4)):
        dataset.set_epoch(epoch, start)
        expected = [
            batch.index.tolist() for batch in images.batches(batch_size=25, seed=1, **options).epoch(epoch)
        ]
        batches = [index.tolist() for _, index in loader]
        assert len(batches) == len(expected) - start
        assert len(loader) == len(expected)
        assert all(batch in expected for batch in batches)


def test_starts_that_are_none(source: Any) -> None:
    images, options = source
    dataset = train.StoreDataset(images, batch_size=25, **options)
    for start in (-1, len(dataset) + 1):
        with pytest.raises(ValueError, match=f"start is {start}; the epoch has {len(dataset)} batches"):
            dataset.set_epoch(0, start)


def test_a_loop_that_stops_leaves_no_thread(source: Any) -> None:
    import threading

    images, options = source
    before = threading.active_count()
    batches: Any = iter(train.StoreDataset(images, batch_size=25, **options))
    next(batches)
    batches.close()
    assert threading.active_count() == before
