"""Loops of anyone's own: datasets for torch's DataLoader, resumed exactly; and what fit gives for all folds."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes:UserWarning"),
]


@pytest.fixture(scope="module", params=["store", "loaded", "drawn"])
def images(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    bars = pp.samples.simulate(4, 90, seed=5)
    if request.param == "drawn":
        return pp.PanelImages(bars, "jkx5", horizons=(5,))
    folder = tmp_path_factory.mktemp("stores") / "s"
    store = pp.render_universe(bars, "jkx5", folder, horizons=(5,), chunk=64, progress=False)
    return store.load() if request.param == "loaded" else store


def test_items_are_images_with_their_labels(images: Any) -> None:
    data = images.to_torch(5)
    returns = images.returns(5)
    # A window without a return is no item.
    np.testing.assert_array_equal(data.positions, np.flatnonzero(np.isfinite(returns)))
    assert len(data) < len(images)
    for i in (0, 7, -1):
        image, label = data[i]
        assert (image.shape, image.dtype, label.dtype) == ((1, 32, 15), torch.uint8, torch.int64)
        np.testing.assert_array_equal(image[0].numpy(), images.read([data.positions[i]])[0])
        assert int(label) == (returns[data.positions[i]] > 0)
    with pytest.raises(IndexError, match="there is no item"):
        data[len(data)]
    assert images.to_torch(5, target="return")[0][1].dtype == torch.float32


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_resumed_exactly(images: Any, workers: int) -> None:
    data = images.to_torch(5)
    sampler = data.sampler(seed=3)
    context = "fork" if workers else None
    loader = DataLoader(
        data, batch_size=16, sampler=sampler, num_workers=workers, multiprocessing_context=context
    )

    def epoch(number: int, done: int = 0) -> list[Any]:
        sampler.set_epoch(number, done)
        assert len(loader) == -(-(len(data) - done) // 16)
        return list(loader)

    whole = epoch(1)
    assert sum(len(labels) for _, labels in whole) == len(data)
    for one, two in zip(whole[3:], epoch(1, 3 * 16), strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert not torch.equal(whole[0][0], epoch(2)[0][0])


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_whole_batches(images: Any) -> None:
    data = images.to_torch(5, iterable=True, batch_size=25, seed=3)
    whole = list(DataLoader(data, batch_size=None))
    assert len(whole) == len(data)
    label = {
        images.read([p])[0].tobytes(): int(r > 0) for p, r in enumerate(images.returns(5)) if np.isfinite(r)
    }
    for batch, labels in whole:
        assert (batch.dtype, batch.shape[1:], labels.dtype) == (torch.uint8, (1, 32, 15), torch.int64)
        if len(label) == len(images.to_torch(5)):
            assert [label[image.numpy().tobytes()] for image in batch[:, 0]] == labels.tolist()
    data.set_epoch(0, 2)
    rest = list(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], rest, strict=True))


def test_parts_of_a_split(images: Any) -> None:
    split = train.TimeSplit(validation=0.2, test="2000-04:")
    parts = images.to_torch(5, split=split)
    (fold,) = split.folds(train.Samples.from_store(images, 5, np.isfinite(images.returns(5)), images.panel))
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(parts, name).positions, getattr(fold, name))
    assert parts.dropped == fold.dropped
    assert images.exit_time(5)[parts.train.positions].max() <= images.time[parts.validation.positions].min()
    # In order where nothing is learnt, shuffled where it is.
    batches = images.to_torch(5, split=fold, iterable=True, batch_size=8)
    given = torch.cat([labels for _, labels in batches.test])
    np.testing.assert_array_equal(given.numpy(), parts.test.labels.numpy())
    with pytest.raises(ValueError, match="the split makes 3 folds"):
        images.to_torch(5, split=train.WalkForward(train="1m", test="1m"))
    with pytest.raises(TypeError, match="split is a str; give an object such as"):
        images.to_torch(5, split="time")
    with pytest.raises(TypeError, match="to_torch takes batch_size with iterable=True alone"):
        images.to_torch(5, batch_size=3)
    with pytest.raises(ValueError, match="no forward returns over 7 bars"):
        images.to_torch(7)


def test_a_dataset_goes_to_processes_that_do_not_fork(images: Any) -> None:
    if getattr(images, "location", "") == "memory":
        pytest.skip("a store in memory stays in its process")
    data = pickle.loads(pickle.dumps(images.to_torch(5)))
    assert torch.equal(data[3][0], images.to_torch(5)[3][0])


def test_a_run_over_several_folds_is_judged_as_a_whole(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    images = pp.PanelImages(pp.samples.simulate(6, 200, seed=5), "jkx5", horizons=(5,))
    pixels = train.CNNSpec("pixels", 32, 15, (), dropout=0.0)
    run = train.fit(
        images,
        pixels,
        split="walk",
        train="2m",
        test="2w",
        out=tmp_path / "x",
        epochs=1,
        lr=1e-3,
        progress=False,
    )
    assert len(run.folds) > 7
    assert run.test["images"] == sum(fold.test["images"] for fold in run.folds) == len(run.test_index)
    np.testing.assert_array_equal(run.truth, images.returns(5)[run.test_index] > 0)
    assert run.test["accuracy"] == np.mean((run.predictions > 0.5) == run.truth)
    share = np.average([f.test["accuracy"] for f in run.folds], weights=[f.test["images"] for f in run.folds])
    assert run.test["accuracy"] == pytest.approx(share)
    assert run.test["standard_error"] < min(fold.test["standard_error"] for fold in run.folds)
    shown = repr(run)
    assert len(shown.splitlines()) <= 10
    assert len(shown) < 1500
    assert f"... {len(run.folds) - 6} more folds" in shown
    assert f"all folds: test: {len(run.test_index):,} images, accuracy" in shown
    assert len(repr(run.folds[0])) < 300
