"""Any model: modules of the user, timm, foreign checkpoints: trained, resumed exactly, loaded, scored, evaluated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from torch import nn  # noqa: E402

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402
from pricepix.train.loop import Trainer  # noqa: E402

QUICK: dict[str, Any] = {
    "batch_size": 64, "epochs": 3, "lr": 3e-3, "progress": False, "checkpoint_minutes": 0.0, "patience": None
}  # fmt: skip
TEST = ("2000-05-15", None)


class Net(nn.Module):
    """A small network on images, with dropout, so that a resumed run must draw the same."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.LazyLinear(outputs)

    def forward(self, images: Any) -> Any:
        return self.head(self.drop(self.features(images)))


class Recurrent(nn.Module):
    """A user's LSTM over the bars; one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, batch_first=True)
        self.head = nn.Linear(12, 1)

    def forward(self, series: Any) -> Any:
        return self.head(self.lstm(series.transpose(1, 2))[0][:, -1])[:, 0]


def _fit(*arguments: Any, **options: Any) -> Any:
    """`fit` on one thread: such networks lose by waiting for a second."""
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
    return pp.PanelImages(bars, "jkx5", horizons=(5,))


def _scores(cache: Any, images: Any) -> Any:
    values = cache.of_windows(images)
    return values[~np.isnan(values)]


def _state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "member_0" / "last.ckpt", weights_only=True)["state_dict"]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _killed_and_resumed(
    images: Any, model: Any, whole: Path, out: Path, step: int = 9, **options: Any
) -> Any:
    """Run again, die within a step, resume: the weights are those of the run that was not disturbed."""
    original = Trainer.training_step

    def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
        if trainer.step == step:
            raise RuntimeError("killed")
        return original(trainer, inputs, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            _fit(images, model, 5, out=out, **options)
    result = _fit(images, model, 5, out=out, resume=True, **options)
    assert _same(_state(out), _state(whole))
    return result


@pytest.fixture(scope="module")
def run(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _fit(images, Net, 5, out=tmp_path_factory.mktemp("runs") / "x", test=TEST, ensemble=2)


class TestImages:
    def test_it_learns(self, run: Any) -> None:
        assert run.test["accuracy"] > 0.5 + 4 * run.test["standard_error"]

    def test_members_start_from_weights_of_their_own(self, run: Any) -> None:
        one, two = (member.module.head.weight for member in run.model.members)
        assert not torch.equal(one, two)

    def test_resumed_exactly(self, images: Any, run: Any, tmp_path: Path) -> None:
        again = _killed_and_resumed(images, Net, run.out, tmp_path / "x", test=TEST, ensemble=2)
        assert again.test == run.test

    def test_scored_and_evaluated(self, images: Any, run: Any, tmp_path: Path) -> None:
        cache = factor.score(images, run.out, tmp_path / "f", module=Net, start="2000-05-15", progress=False)
        assert cache.attrs["model"]["name"] == "2 x Net"
        found = _scores(cache, images)
        np.testing.assert_allclose(
            found[: len(run.folds[0].predictions)], run.folds[0].predictions, atol=1e-6
        )
        result = factor.evaluate(cache, images.panel, horizon=5)
        assert result.figures["ic"]["rank"]["mean"] > 0.2

    def test_what_fit_returns_scores_by_itself(self, images: Any, run: Any) -> None:
        one = factor.score(images, run, None, progress=False)
        two = factor.score(images, run.out, None, module=Net, progress=False)
        np.testing.assert_array_equal(_scores(one, images), _scores(two, images))

    def test_a_file_holds_no_code(self, run: Any) -> None:
        with pytest.raises(
            ValueError, match=r"holds the weights of .*Net, a module of your own: its code is not in"
        ):
            train.load_model(run.out)
        with pytest.raises(ValueError, match=r"the module given is another: it has 'head\.weight' of \(3, "):
            train.load_model(run.out, module=lambda: Net(3))
        with pytest.raises(ValueError, match="another: it has 'lstm"):
            train.load_model(run.out, module=Recurrent)
        with pytest.raises(TypeError, match=r"takes no arguments, such as lambda: Linear\(\.\.\.\)"):
            train.load_model(run.out, module=nn.Linear)

    def test_scoring_without_the_module_says_so(self, images: Any, run: Any) -> None:
        with pytest.raises(ValueError, match=r"score\(images, run, cache, module=Net\)"):
            factor.score(images, run.out, None, progress=False)

    def test_the_module_that_is_given_to_load_stays_as_it_is(self, run: Any) -> None:
        given = Net()
        given(torch.zeros(1, 1, 32, 15))
        before = given.head.weight.clone()
        loaded = train.load_model(run.out / "member_0" / "best.ckpt", module=given)
        assert torch.equal(given.head.weight, before)
        assert not torch.equal(loaded.module.head.weight, before)


def test_an_lstm_over_the_bars(images: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": "series", "test": TEST, "lr": 2e-2}
    run = _fit(images, Recurrent, 5, out=tmp_path / "whole", **options)
    assert run.test["accuracy"] > 0.5 + 4 * run.test["standard_error"]
    assert run.model.probabilities(np.zeros((3, 6, 5), np.float32)).shape == (3, 2)
    _killed_and_resumed(images, Recurrent, tmp_path / "whole", tmp_path / "again", **options)
    cache = factor.score(images, run.out, None, module=Recurrent, start="2000-05-15", progress=False)
    found = _scores(cache, images)
    np.testing.assert_allclose(found[: len(run.folds[0].predictions)], run.folds[0].predictions, atol=1e-6)


def test_series_are_scored_with_the_panel_that_a_store_lacks(images: Any, tmp_path: Path) -> None:
    store = pp.render_universe(images.panel, "jkx5", None, horizons=(5,), progress=False)
    run = _fit(store, "logistic", 5, out=tmp_path / "x", panel=images.panel, epochs=1)
    with pytest.raises(ValueError, match="takes the numbers behind the images: give panel="):
        factor.score(store, run.out, None, progress=False)
    cache = factor.score(store, run.out, None, panel=images.panel, progress=False)
    drawn = factor.score(images, run.out, None, progress=False)
    assert np.array_equal(_scores(cache, store), _scores(drawn, images))


def test_a_module_keeps_its_own_weights_as_the_start(images: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Net()
    module(torch.zeros(1, 1, 32, 15))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    walk: dict[str, Any] = {"split": "walk", "train": "2m", "test": "1m", "epochs": 1}
    whole = _fit(images, module, 5, out=tmp_path / "whole", **walk)
    assert _same(before, module.state_dict())
    assert len(whole.folds) > 1
    # Resumed with a module of other weights: the run goes on from those that it was started with.
    original, other = Trainer.training_step, Net()

    def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
        if whole.folds[1].folder.name in str(trainer.member.folder):
            raise RuntimeError("killed")
        return original(trainer, inputs, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            _fit(images, module, 5, out=tmp_path / "again", **walk)
    again = _fit(images, other, 5, out=tmp_path / "again", resume=True, **walk)
    for one, two in zip(whole.folds, again.folds, strict=True):
        assert _same(_state(one.folder), _state(two.folder))
    with pytest.raises(ValueError, match="ensemble is 2, but model is one Net with its own weights"):
        _fit(images, module, 5, out=tmp_path / "two", ensemble=2)


class Nan(Net):
    def forward(self, images: Any) -> Any:
        return super().forward(images) * float("nan")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Nan, {}, r"model .*Nan gives NaN or infinite outputs for images of 32x15 pixels.* before any training"),
        (lambda: Net(3), {}, r"gives 3 columns, but the target has 2 classes: its forward must give 2 columns, or 1"),
        (Net, {"target": "terciles"}, r"gives 2 columns, but the target has 3 classes"),
        (Net, {"target": "return"}, r"gives 2 columns, but the target has a number"),
        (lambda: nn.Linear(7, 2), {}, r"Linear does not take images of 32x15 pixels, float32 \(2, 1, 32, 15\)"),
        (nn.Identity, {}, r"Identity: the module's forward gives \(2, 1, 32, 15\); give a column an output"),
        (nn.Linear, {}, r"Linear\(\) does not make a module"),
        (lambda: 3, {}, r"gives a int, expected a torch.nn.Module"),
        (3, {}, r"model is a int; give the name of a preset, timm:<name>, a CNNSpec"),
        ("jkx20", {}, r"model jkx20 takes images of 64x60, those of panel images .* are 32x15: choose jkx5"),
        ("jkx5", {"inputs": "series"}, r"model jkx5 takes images: leave inputs='series' out"),
        (Net, {"inputs": "bars"}, r"inputs='bars': give 'images' or 'series'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_training(
    images: Any, tmp_path: Path, model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        _fit(images, model, 5, out=tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_any_module_scores(images: Any) -> None:
    """One trained elsewhere: pixels from 0 to 1, one score an image."""

    class Mean(nn.Module):
        def forward(self, pixels: Any) -> Any:
            return pixels.mean(dim=(1, 2, 3))

    cache = factor.score(images, Mean(), None, progress=False)
    assert cache.attrs["values"] == "score"
    expected = images.read().mean(axis=(1, 2)) / 255
    found = _scores(cache, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(4, 1)), train.ConvBlock(4)))


@pytest.fixture(scope="module")
def source(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "source"
    _fit(images, SMALL, 5, out=out, epochs=1, target="terciles")
    return out / "member_0" / "best.ckpt"


class TestTuning:
    def test_features_are_kept_and_the_last_layer_starts_anew(
        self, images: Any, source: Path, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"init": source, "freeze": "features"}
        _fit(images, SMALL, 5, out=tmp_path / "x", **options)
        before, after = train.load_model(source).state_dict(), _state(tmp_path / "x")
        for name, value in before.items():
            assert torch.equal(value, after[name]) == (not name.startswith("linear")), name
        described = (tmp_path / "x" / "config.yaml").read_text()
        assert "- linear.weight" in described
        _killed_and_resumed(images, SMALL, tmp_path / "x", tmp_path / "y", **options)
        with pytest.raises(ValueError, match="was started with another tuning: freeze was"):
            _fit(images, SMALL, 5, out=tmp_path / "x", resume=True, init=source, freeze="blocks.0")

    def test_learning_rates_by_layer(self, images: Any, source: Path, tmp_path: Path) -> None:
        rates: dict[str, Any] = {"layer_lr": {"features": 1e-6, "blocks.1": 1.0}, "optimizer": "adamw"}
        _fit(images, SMALL, 5, out=tmp_path / "x", init=source, epochs=1, **rates)
        before, after = train.load_model(source).state_dict(), _state(tmp_path / "x")
        moved = {
            name: float((before[name] - after[name]).abs().max())
            for name in ("blocks.0.0.weight", "blocks.1.0.weight")
        }
        assert 0 < moved["blocks.0.0.weight"] < 1e-6
        assert moved["blocks.1.0.weight"] > 1e-3

    def test_a_module_starts_from_a_file_of_its_own_names(self, images: Any, tmp_path: Path) -> None:
        teacher = Net(3)
        teacher(torch.zeros(1, 1, 32, 15))
        state = {f"module.{name}": value for name, value in teacher.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "t.pt")
        run = _fit(images, Net, 5, out=tmp_path / "x", init=tmp_path / "t.pt", freeze=["features"], epochs=1)
        assert torch.equal(run.model.module.features[0].weight, teacher.features[0].weight)
        assert torch.equal(run.model.module.features[1].running_mean, teacher.features[1].running_mean)
        # A checkpoint of ours goes on with the statistics that it was trained with.
        other = _fit(images, Net, 5, out=tmp_path / "y", init=run.out, mask=np.arange(500), epochs=1)
        assert torch.equal(other.model.mean, run.model.mean)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"freeze": "block"},
                "freeze='block' names no layer of small; choose 'features', or from blocks.0.0",
            ),
            ({"freeze": ["blocks", "linear"]}, "leaves small nothing to learn"),
            ({"layer_lr": {"conv": 0.1}}, "layer_lr has 'conv', which names no layer of small"),
            ({"layer_lr": {"linear": 0.0}}, "layer_lr"),
            ({"layer_lr": 0.1}, "give a factor of lr for each layer"),
            ({"init": "nowhere.pt"}, "init='nowhere.pt': there is no checkpoint"),
        ],
    )
    def test_what_cannot_be_tuned(
        self, images: Any, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            _fit(images, SMALL, 5, out=tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    def test_weights_of_another_network(self, images: Any, source: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"holds a network small .* the model is jkx5: they differ in blocks"
        ):
            _fit(images, "jkx5", 5, out=tmp_path / "x", init=source)
        torch.save(Recurrent().state_dict(), tmp_path / "r.pt")
        with pytest.raises(
            ValueError, match=r"does not hold the weights of Net: .* is missing .* only the last layer"
        ):
            _fit(images, Net, 5, out=tmp_path / "x", init=tmp_path / "r.pt")


def test_fine_tuned_from_a_foreign_checkpoint(shared: Path, tmp_path: Path) -> None:
    file = shared / "weights" / "jkx20_authors_architecture_state_dict.pt"
    if not file.is_file():
        pytest.skip(f"foreign checkpoint not found: {file}")
    bars = pp.samples.simulate(4, 100, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    images = pp.PanelImages(bars, "jkx20", horizons=(5,), every=3)
    options: dict[str, Any] = {"init": file, "freeze": "features", "epochs": 1, "batch_size": 16}
    run = _fit(images, "jkx20", 5, out=tmp_path / "x", **options)
    given = train.load_model(file)
    assert torch.equal(run.model.blocks[2][0].weight, given.blocks[2][0].weight)
    assert torch.equal(run.model.blocks[2][1].running_var, given.blocks[2][1].running_var)
    assert not torch.equal(run.model.linear.weight, given.linear.weight)
    _killed_and_resumed(images, "jkx20", run.out, tmp_path / "y", step=2, **options)
    assert len(_scores(factor.score(images, run.out, None, progress=False), images)) == len(images)
    with pytest.raises(ValueError, match=r"the model is jkx20: they differ in .*; give model='lich20'"):
        _fit(images, "jkx20", 5, out=tmp_path / "z", init=shared / "weights" / "jkx20_lich99_state_dict.pt")


class TestTimm:
    def test_a_vision_transformer(self, images: Any, tmp_path: Path) -> None:
        pytest.importorskip("timm", exc_type=ImportError)
        options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "mask": np.arange(0, len(images), 12)}
        run = _fit(images, "timm:test_vit", 5, out=tmp_path / "x", **options)
        assert run.model.spec.source == "timm:test_vit"
        _killed_and_resumed(images, "timm:test_vit", run.out, tmp_path / "y", step=2, **options)
        # timm makes it again by its name: nothing else is needed.
        loaded = train.load_model(run.out)
        np.testing.assert_array_equal(
            loaded.predict(images.read(slice(4))), run.model.predict(images.read(slice(4)))
        )
        cache = factor.score(images, run.out, None, start="2000-06-01", progress=False)
        assert cache.attrs["model"]["name"] == "test_vit"
        assert np.isfinite(factor.evaluate(cache, images.panel, horizon=5).figures["ic"]["rank"]["mean"])
        state = {name.removeprefix("model."): value for name, value in loaded.module.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        again = _fit(
            images,
            "timm:test_vit",
            5,
            out=tmp_path / "z",
            init=tmp_path / "w.pt",
            freeze="features",
            **options,
        )
        assert torch.equal(again.model.module.model.norm.weight, loaded.module.model.norm.weight)
        with pytest.raises(ValueError, match="has no model 'test_vitt'; did you mean 'test_vit"):
            _fit(images, "timm:test_vitt", 5, out=tmp_path / "n", **options)

    def test_without_timm(self, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "timm", None)
        with pytest.raises(ImportError, match=r"model 'timm:x' needs timm: pip install 'pricepix\[timm\]'"):
            _fit(images, "timm:x", 5, out=tmp_path / "x")


class TestCards:
    def test_what_a_card_says(self, images: Any, run: Any, tmp_path: Path) -> None:
        (member, _) = run.model.members
        train.save_model(member, tmp_path / "m.ckpt", card=True, results=run.test)
        text = (tmp_path / "m.ckpt.md").read_text(encoding="utf-8")
        said = member.metadata
        for part in (
            "# Model card: Net", said["store_digest"], f"Nothing before {said['seen_through']} is out of sample",
            f"| universe | 10 instruments, {len(images)} windows |", f"| horizon, in bars | {said['horizon']} |",
            f"| accuracy | {run.test['accuracy']:.4f} +- {run.test['standard_error']:.4f} |",
            f"{said['train']['first']} to {said['train']['last']}, {said['train_images']} images",
        ):  # fmt: skip
            assert part in text, part
        loaded = train.load(tmp_path / "m.ckpt", module=Net)
        assert _same(loaded.state_dict(), member.state_dict())
        assert train.load((tmp_path / "m.ckpt").as_uri(), module=Net).metadata == said

    def test_names_out_of_files_are_no_markup(self) -> None:
        network = train.PriceCNN(SMALL)
        assert "It is not known what this network has seen" in train.model_card(network)
        network.metadata = {"target": "<script>x</script>|\n# y", "seen_through": "`2000`\x1b[2J"}
        text = train.model_card(network)
        assert "<script>" not in text
        assert "\x1b" not in text
        assert "\n# y" not in text
        assert r"\|" in text

    def test_what_cannot_be_loaded(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
            train.load((tmp_path / "none.ckpt").as_uri())
        with pytest.raises(ValueError, match="results are for the card"):
            train.save_model(train.PriceCNN(SMALL), tmp_path / "x.ckpt", results={"images": 3})


def test_an_lstm_is_evaluated_and_exported(images: pp.PanelImages, tmp_path: Path) -> None:
    """Over the series behind the images, from training to a program that runs without pricepix."""
    run = _fit(images, Recurrent, 5, inputs="series", out=tmp_path / "run", test=TEST)
    cache = factor.score(images, run, None, progress=False)
    found = factor.evaluate(cache, images.panel, horizon=5)
    assert found.figures["ic"]["rank"]["mean"] > 0
    series = np.random.default_rng(0).normal(size=(9, 6, 5)).astype(np.float32)
    about = train.export_model(run, tmp_path / "lstm.pt2", check=series)
    assert about["input"]["takes"] == "series"
    assert about["input"]["dtype"] == "float32"
    assert about["output"]["is"] == "probability of a rise"
    program = torch.export.load(tmp_path / "lstm.pt2").module()
    score = program(torch.from_numpy(series))[0].detach().numpy()
    assert np.abs(score - run.model.predict(series)).max() < 1e-5


def test_a_null_market_teaches_a_network_nothing() -> None:
    """Weighted by uniqueness, under a purged split: rank ICs of five markets without a pattern, within 3 errors."""
    ics = []
    for seed in (1, 2, 3, 4, 5):
        bars = pp.samples.simulate(
            12, 130, seed=seed, delist_rate=0, split_rate=0, halt_rate=0, list_late=0, bayes_accuracy=0.5
        )
        market = pp.PanelImages(bars, "jkx5", horizons=(5,))
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
            patch.chdir(place)
            run = _fit(market, Net, 5, weights="uniqueness", test=TEST, seed=seed)
        fold = run.folds[0]
        time, returns = market.time[fold.fold.test], market.returns(5)[fold.fold.test]
        # Labels of every fifth date do not overlap.
        for moment in np.unique(time)[::5]:
            own = time == moment
            ics.append(np.corrcoef(_ranks(fold.predictions[own]), _ranks(returns[own]))[0, 1])
    error = np.std(ics, ddof=1) / np.sqrt(len(ics))
    assert len(ics) > 20
    assert abs(np.mean(ics)) < 3 * error


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)
