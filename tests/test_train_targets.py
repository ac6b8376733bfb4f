"""What networks learn beside up and down: several horizons, orders, scaled returns, barriers, values of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402
from pricepix.images.rows import store_rows  # noqa: E402
from pricepix.train.learning_targets import (  # noqa: E402
    average_uniqueness,
    sample_weights,
    targets_of,
    trailing_volatility,
)
from pricepix.train.loader import DateReader  # noqa: E402
from pricepix.train.loop import Trainer  # noqa: E402
from pricepix.train.objective import Labels, Objective  # noqa: E402

QUICK: dict[str, Any] = {
    "batch_size": 64, "epochs": 2, "lr": 3e-3, "progress": False, "checkpoint_minutes": 0.0, "patience": None
}  # fmt: skip
PIXELS = train.CNNSpec("pixels", 32, 15, (), dropout=0.0)
TEST = ("2000-05-15", None)


def _fit(*arguments: Any, **options: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train.fit(*arguments, **(QUICK | options))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> pp.PanelImages:
    """Bars in which the next five are told by the last five, in nine cases of ten."""
    bars = pp.samples.simulate(
        10, 120, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0, bayes_accuracy=0.9
    )
    return pp.PanelImages(bars, "jkx5", horizons=(2, 5))


@pytest.fixture(scope="module")
def store(images: Any) -> Any:
    return pp.render_universe(images.panel, "jkx5", None, horizons=(2, 5), progress=False)


class TestTargets:
    def test_scaled_returns_by_hand(self, images: Any) -> None:
        made = targets_of(images, "scaled", (5,), images.panel)
        rows, close = store_rows(images, images.panel), images.panel.bars[:, 3]
        first = images.panel.offsets[images.instrument_index]
        for i in range(0, len(images), 97):
            before = close[max(rows[i] - 20, first[i]) : rows[i] + 1]
            moves = before[1:] / before[:-1] - 1
            # A window of 5 bars at the start of an instrument has no volatility to speak of.
            if len(moves) < 10 or not np.isfinite(images.returns(5)[i]):
                assert not made.usable[i]
                continue
            expected = images.returns(5)[i] / (np.std(moves, ddof=1) * np.sqrt(5))
            assert made.values[i] == pytest.approx(expected, rel=1e-5)
        assert made.excluded["no_volatility"] > 0
        assert made.usable.sum() + sum(made.excluded.values()) == len(images)

    def test_volatility_knows_nothing_of_what_comes(self, images: Any) -> None:
        panel = images.panel
        row = int(panel.offsets[2] + 60)
        bars = panel.bars.copy()
        bars[row + 1 :] *= 3
        other = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz)
        assert trailing_volatility(panel, np.array([row])) == trailing_volatility(other, np.array([row]))

    def test_barriers_by_hand(self, images: Any) -> None:
        made = targets_of(images, "barrier:0.7", (5,), images.panel)
        rows, close = store_rows(images, images.panel), images.panel.bars[:, 3]
        width = 0.7 * trailing_volatility(images.panel, rows) * np.sqrt(5)
        assert set(made.values[made.usable]) == {0, 1, 2}
        for i in np.flatnonzero(made.usable)[::53]:
            path = close[rows[i] + 1 : rows[i] + 6] / close[rows[i]] - 1
            touches = [2 if x >= width[i] else 0 for x in path.astype(np.float32) if abs(x) >= width[i]]
            assert made.values[i] == (touches or [1])[0]
        assert not made.usable[np.isnan(images.returns(5))].any()

    def test_values_of_one_s_own(self, images: Any) -> None:
        returns = images.returns(5)
        up = np.where(np.isnan(returns), -1, returns > 0).astype(int)
        known = targets_of(images, "up", (5,), None)
        for target in (
            up,
            lambda index: np.where(index["ret_5"].is_nan(), -1, index["ret_5"] > 0).astype(int),
        ):
            made = targets_of(images, target, (5,), None)
            np.testing.assert_array_equal(made.usable, known.usable)
            np.testing.assert_array_equal(made.values[made.usable], known.values[known.usable])
        numbers = targets_of(images, returns, (5,), None)
        assert numbers.is_regression
        assert numbers.excluded["missing_target"] == np.isnan(returns).sum() > 0

    def test_a_label_whose_end_is_not_known_is_left_out(self, images: Any) -> None:
        """It could not be purged: nobody knows which test it reaches into."""
        made = targets_of(images, np.ones(len(images)), (5,), None)
        np.testing.assert_array_equal(made.usable, np.isfinite(images.returns(5)))
        assert made.excluded["no_exit"] == np.isnan(images.returns(5)).sum() > 0

    def test_windows_that_lack_one_horizon_are_left_out(self, images: Any) -> None:
        made = targets_of(images, "up", (2, 5), None)
        np.testing.assert_array_equal(
            made.usable, np.isfinite(images.returns(2)) & np.isfinite(images.returns(5))
        )
        np.testing.assert_array_equal(made.values[:, 1][made.usable], images.returns(5)[made.usable] > 0)

    @pytest.mark.parametrize(
        ("target", "horizons", "message"),
        [
            ("scaled:3", (5,), "target is 'scaled:3'; give 'scaled'"),
            ("barrier:x", (5,), "target is 'barrier:x'; give 'barrier:K'"),
            ("barrier:-1", (5,), "give 'barrier:K'"),
            ([1, 2], (5,), r"target is int64 \(2,\); give a number a window"),
            (lambda index: index["instrument"].to_numpy(), (5,), "the target function gives"),
            (lambda index: np.zeros(len(index), int), (5,), r"of the classes \[0\]: give two or more"),
            (lambda index: np.full(len(index), np.nan), (5,), "missing for every window"),
            (lambda index: np.zeros(len(index)), (2, 5), "values of your own are one target"),
        ],
    )  # fmt: skip
    def test_what_is_no_target(self, images: Any, target: Any, horizons: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            targets_of(images, target, horizons, images.panel)

    def test_a_store_alone_has_no_bars(self, store: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="target 'barrier:1' needs the bars before and after a window"):
            _fit(store, PIXELS, 5, target="barrier:1", out=tmp_path / "x")


class TestWeights:
    def test_uniqueness_by_hand(self) -> None:
        # Three labels of one instrument over bars 1-3, 2-4, 5; one of another at the same time.
        entry, leave = np.array([0, 1, 4, 0]), np.array([3, 4, 5, 3])
        found = average_uniqueness(entry, leave, np.array([0, 0, 0, 1]))
        np.testing.assert_allclose(found, [(1 + 1 / 2) / 2, (1 / 2 + 1) / 2, 1, 1])

    def test_uniqueness_of_daily_windows(self, images: Any) -> None:
        usable = np.flatnonzero(np.isfinite(images.returns(5)))
        exit_time = images.exit_time(5)
        weights = sample_weights("uniqueness", usable, images, exit_time)
        assert weights is not None
        assert weights[usable].mean() == pytest.approx(1, rel=1e-5)
        # In the middle five labels run at once; the first and last of an instrument are less crowded.
        raw = average_uniqueness(images.time[usable], exit_time[usable], images.instrument_index[usable])
        assert np.median(raw) == pytest.approx(0.2)
        one = raw[images.instrument_index[usable] == 3]
        assert one[0] == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]))

    def test_dates_weigh_the_same(self, images: Any) -> None:
        part = np.concatenate([np.arange(20), np.arange(40, 43)])
        weights = sample_weights("date", part, images, images.exit_time(5))
        assert weights is not None
        by_date = [weights[part][images.time[part] == t].sum() for t in np.unique(images.time[part])]
        np.testing.assert_allclose(by_date, by_date[0], rtol=1e-6)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ("unique", "weights='unique': give 'uniqueness', 'date', or a number a window"),
            (np.ones(3), r"weights is float64 \(3,\); give a number a window"),
            ("negative", "weights must be finite, 0 or above"),
        ],
    )
    def test_what_is_no_weight(self, images: Any, tmp_path: Path, weights: Any, message: str) -> None:
        given = -np.ones(len(images)) if isinstance(weights, str) and weights == "negative" else weights
        with pytest.raises(ValueError, match=message):
            _fit(images, PIXELS, 5, weights=given, out=tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_weights_of_one_change_nothing_and_of_0_leave_out(self, images: Any, tmp_path: Path) -> None:
        plain = _fit(images, PIXELS, 5, out=tmp_path / "a", epochs=1)
        same = _fit(images, PIXELS, 5, out=tmp_path / "b", epochs=1, weights=np.ones(len(images)))
        torch.testing.assert_close(plain.model.linear.weight, same.model.linear.weight, atol=1e-6, rtol=1e-4)
        logits, values = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
        weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.0, 3.0])
        objective = Objective(train.PriceCNN(PIXELS))
        found = objective(logits, Labels(values, weight))
        kept = torch.tensor([0, 1, 1, 3, 5, 5, 5])
        expected = objective(logits[kept], values[kept])
        assert float(found.loss / found.weight) == pytest.approx(
            float(expected.loss / expected.weight), rel=1e-6
        )


class TestOrders:
    def test_losses_by_hand(self) -> None:
        network = train.PriceCNN(PIXELS.replace(outputs=1))
        scores, values = torch.tensor([0.3, -0.2, 0.9, 0.1, 0.4]), torch.tensor([1.0, 0.0, 2.0, 5.0, 4.0])
        date = torch.tensor([7, 7, 7, 8, 9])
        found = Objective(network, loss="pairwise")(scores[:, None], Labels(values, date=date))
        pairs = [(0, 1), (2, 0), (2, 1)]
        assert float(found.weight) == 3
        by_hand = sum(np.log1p(np.exp(float(scores[j] - scores[i]))) for i, j in pairs)
        assert float(found.loss) == pytest.approx(by_hand, rel=1e-6)
        found = Objective(network, loss="listwise")(scores[:, None], Labels(values, date=date))
        one = -(values[:3].softmax(0) * scores[:3].log_softmax(0)).sum()
        assert float(found.loss) == pytest.approx(3 * float(one), rel=1e-6)
        # Windows that are alone on their date say nothing, and a batch of them costs nothing.
        for loss in ("pairwise", "listwise"):
            alone = Objective(network, loss=loss)(scores[3:, None], Labels(values[3:], date=date[3:]))
            assert float(alone.loss / alone.weight) == 0

    @pytest.mark.parametrize("weighted", [False, True])
    def test_the_pinball_loss_by_hand(self, weighted: bool) -> None:
        network = train.PriceCNN(PIXELS.replace(outputs=1))
        network.scale.fill_(2.0)
        outputs, values = torch.tensor([0.5, -1.0, 0.25]), torch.tensor([2.0, -4.0, 0.5])
        weight = torch.tensor([1.0, 3.0, 0.5]) if weighted else None
        found = Objective(network, loss="pinball:0.9")(outputs[:, None], Labels(values, weight))
        # Targets in units of their deviation are 1, -2 and .25: above by .5, below by 1, equal.
        each = [0.9 * 0.5, 0.1 * 1.0, 0.0]
        own = [1.0, 3.0, 0.5] if weighted else [1.0, 1.0, 1.0]
        assert float(found.loss) == pytest.approx(float(np.dot(each, own)), rel=1e-6)
        assert float(found.weight) == sum(own)

    @pytest.mark.parametrize("quantile", [0.1, 0.9])
    def test_a_quantile_is_learnt(self, images: Any, tmp_path: Path, quantile: float) -> None:
        options: dict[str, Any] = {
            "target": "return",
            "loss": f"pinball:{quantile}",
            "test": TEST,
            "epochs": 6,
        }
        run = _fit(images, PIXELS, 5, out=tmp_path / "x", **options)
        below = float(np.mean(run.folds[0].truth < run.folds[0].predictions))
        assert abs(below - quantile) < 0.2
        assert run.config["loss"] == f"pinball:{quantile}"

    def test_batches_hold_whole_dates(self, images: Any) -> None:
        index = np.flatnonzero(images.instrument_index != 3)
        options: dict[str, Any] = {"batch_size": 64, "shuffle": True, "seed": 3}
        reader = DateReader(images.read, images.time, index, **options)
        whole = [batch.index for batch in reader.epoch(2)]
        assert len(whole) == len(reader)
        np.testing.assert_array_equal(np.sort(np.concatenate(whole)), index)
        dates = [set(images.time[part].tolist()) for part in whole]
        assert sum(map(len, dates)) == len(set.union(*dates))
        for one, two in zip(whole[5:], reader.epoch(2, 5), strict=True):
            np.testing.assert_array_equal(one, two.index)
        shares = [DateReader(images.read, images.time, index, rank=r, ranks=2, **options) for r in (0, 1)]
        assert len(shares[0]) == len(shares[1])
        both = [batch.index for share in shares for batch in share.epoch(1)]
        np.testing.assert_array_equal(np.sort(np.concatenate(both)), index)

    @pytest.mark.parametrize(
        ("loss", "weights"), [("pairwise", None), ("listwise", "uniqueness"), ("huber", "date")]
    )
    def test_an_order_is_learnt_and_resumed(
        self, images: Any, tmp_path: Path, loss: str, weights: str | None
    ) -> None:
        options: dict[str, Any] = {"target": "rank", "loss": loss, "weights": weights, "test": TEST}
        run = _fit(images, PIXELS, 5, out=tmp_path / "x", **options)
        assert run.test["correlation"] > 3 / np.sqrt(run.test["images"])
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == 7:
                raise RuntimeError("killed")
            return original(trainer, inputs, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="killed"):
                _fit(images, PIXELS, 5, out=tmp_path / "y", **options)
        again = _fit(images, PIXELS, 5, out=tmp_path / "y", resume=True, **options)
        assert torch.equal(again.model.linear.weight, run.model.linear.weight)
        with pytest.raises(ValueError, match="was started with another loss"):
            _fit(images, PIXELS, 5, out=tmp_path / "y", resume=True, **(options | {"loss": "auto"}))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": "pairwise"}, "loss='pairwise' is of numbers, the target has 2 classes"),
            ({"loss": "mse"}, "loss='mse' is not known"),
            ({"loss": "pinball:1.5", "target": "return"}, "loss='pinball:1.5': give the quantile to learn, above 0"),
            ({"loss": "pinball:x", "target": "return"}, "loss='pinball:x': give the quantile to learn"),
            ({"loss": "pinball:0.5"}, "loss='pinball:0.5' is of numbers, the target has 2 classes"),
            ({"loss": "listwise", "target": "rank", "horizon": (2, 5)}, "give one horizon, not 2"),
            ({"loss": "listwise", "target": "rank", "augment": {"invert": 0.5}}, "batches of whole dates"),
            ({"balance": "undersample", "horizon": (2, 5)}, "needs one class a window"),
            ({"horizon": ()}, "horizon is empty"),
            ({"horizon": (2, 7)}, "no returns over 7 bars"),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together(
        self, images: Any, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            _fit(images, PIXELS, out=tmp_path / "x", **({"horizon": 5} | options))
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", ["up", "return"])
def test_several_horizons_at_once(images: Any, tmp_path: Path, target: str) -> None:
    run = _fit(images, PIXELS, (2, 5), target=target, test=TEST, weights="uniqueness", out=tmp_path / "x")
    assert run.predictions.shape == run.truth.shape == (run.test["images"], 2)
    heads = run.test["heads"]
    measure = "accuracy" if target == "up" else "correlation"
    assert run.test[measure] == pytest.approx(np.mean([head[measure] for head in heads]))
    assert heads[1][measure] > (0.65 if target == "up" else 0.3)
    assert len(repr(run).splitlines()) <= 10
    with pytest.raises(ValueError, match=r"learnt 2 horizons, 2, 5 bars: choose one of them with horizon="):
        factor.score(images, run.out, None, progress=False)
    cache = factor.score(images, run.out, None, horizon=5, progress=False)
    assert cache.attrs["horizon"] == 5
    index = run.test_index
    np.testing.assert_allclose(cache.of_windows(images)[index], run.predictions[:, 1], rtol=1e-5, atol=1e-6)
    other = factor.score(images, run.out, None, horizon=2, progress=False)
    assert other.attrs["model"]["digest"] != cache.attrs["model"]["digest"]


def test_barriers_and_a_function_train(images: Any, tmp_path: Path) -> None:
    run = _fit(images, PIXELS, 5, target="barrier:0.7", test=TEST, out=tmp_path / "b")
    assert run.test["accuracy"] > run.test["larger_class"]

    def large(index: pl.DataFrame) -> Any:
        return np.where(index["ret_5"].is_nan(), -1, index["ret_5"].abs() > 0.02).astype(int)

    _fit(images, PIXELS, 5, target=large, test=TEST, out=tmp_path / "f", epochs=1)
    again = _fit(images, PIXELS, 5, target=large, test=TEST, out=tmp_path / "f", epochs=1, resume=True)
    assert again.config["target"]["kind"].startswith("own:")
    with pytest.raises(ValueError, match="was started with another target"):
        _fit(images, PIXELS, 5, target="up", test=TEST, out=tmp_path / "f", epochs=1, resume=True)


@pytest.mark.parametrize("weights", [None, "uniqueness"])
def test_nothing_is_learnt_where_nothing_is(tmp_path: Path, weights: str | None) -> None:
    """A market of martingales under a purged split: no model is right more often than one half."""
    bars = pp.samples.simulate(60, 260, seed=11, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    images = pp.PanelImages(bars, "jkx5", horizons=(5,), every=5)
    run = _fit(images, PIXELS, 5, test="2000-07:", weights=weights, out=tmp_path / "x", epochs=3)
    # Labels do not overlap: every fifth bar, and a horizon of five.
    assert abs(run.test["accuracy"] - 0.5) < 3 * run.test["standard_error"]
