"""Networks: sizes, foreign checkpoints against recorded outputs, saving, and bad input."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pricepix.train.checkpoints import load_model, save_model, write_checkpoint  # noqa: E402
from pricepix.train.models import (  # noqa: E402
    PRESETS,
    SERIES_PRESETS,
    CNNSpec,
    ConvBlock,
    Ensemble,
    PriceCNN,
    SeriesCNN,
    SeriesSpec,
)

# name: height, width, features into the linear layer, parameters
TABLE = {
    "jkx5": (32, 15, 15_360, 155_138),
    "jkx20": (64, 60, 46_080, 708_866),
    "jkx60": (96, 180, 184_320, 2_952_962),
    "cnn49u": (147, 147, 128 * 37 * 37, 474_882),
    "cnn9u": (27, 27, 128 * 7 * 7, 136_962),
    "cnnft5": (32, 15, 15_360, 155_138),
    "cnnft20": (64, 60, 46_080, 708_866),
    "lich20": (64, 60, 46_080, 708_866),
}
SERIES_TABLE = {
    "cnn1d5": 1_730,
    "cnn1d20": 27_586,
    "cnn1d60": 129_474,
    "logistic5": 62,
    "logistic20": 242,
    "logistic60": 722,
}


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_of_every_preset(name: str) -> None:
    height, width, features, parameters = TABLE[name]
    model = PriceCNN(name)
    assert model.input_shape == (height, width)
    assert model.linear.in_features == features
    assert model.parameter_count == parameters
    assert model.eval()(torch.zeros((2, height, width), dtype=torch.uint8)).shape == (2, 2)


@pytest.mark.parametrize("name", SERIES_PRESETS)
def test_sizes_of_the_baselines(name: str) -> None:
    model = SeriesCNN(name)
    assert model.parameter_count == SERIES_TABLE[name]
    assert model(torch.randn(3, *model.input_shape)).shape == (3, 2)


@pytest.mark.parametrize("name", [*PRESETS, *SERIES_PRESETS])
def test_start_values(name: str) -> None:
    model = PriceCNN(name) if name in PRESETS else SeriesCNN(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear):
            out, fan_in = module.weight.shape[0], module.weight[0].numel()
            receptive = module.weight[0, 0].numel() if module.weight.ndim > 2 else 1
            bound = (6 / (fan_in + out * receptive)) ** 0.5
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert torch.all(model.linear.bias == (0.0 if name.startswith("logistic") else 0.01))
    if name.startswith(("cnnft", "lich", "cnn49u", "cnn9u")):
        assert torch.all(model.blocks[0][0].bias == 0.01)


@pytest.mark.parametrize(
    ("file", "images", "variant", "key", "name", "family", "options"),
    [
        ("cnnft_I5R20_OHLC_16-18.tar", "cnnft_5", "img_ohlc", "cnnft5", "cnnft5", "cnn_for_trading", {}),
        ("jkx20_lich99_state_dict.pt", "jkx_20", "img_ohlc_ma_vol", "lich99_jkx20", "lich20", "lich99", {}),
        (
            "jkx20_authors_architecture_state_dict.pt",
            "jkx_20",
            "img_ohlc_ma_vol",
            "jkx20",
            "jkx20",
            "jkx (the authors' code)",
            {"mean_std": (0.17, 0.37)},
        ),
    ],
)
def test_foreign_checkpoints_give_their_recorded_outputs(
    shared: Path, file: str, images: str, variant: str, key: str, name: str, family: str, options: dict
) -> None:
    recorded = np.load(shared / "golden" / "model_outputs.npz", allow_pickle=False)
    if options:
        np.testing.assert_array_equal(recorded["jkx20_mean_std"], options["mean_std"])
    picture = np.load(shared / "golden" / f"{images}.npz", allow_pickle=False)[variant][
        recorded[f"{key}_index"]
    ]
    model = load_model(shared / "weights" / file, **options)
    assert (model.spec.name, model.family) == (name, family)
    np.testing.assert_allclose(model.predict(picture), recorded[f"{key}_p_up"], atol=1e-5, rtol=0)


def test_one_architecture_does_not_pass_for_another(shared: Path) -> None:
    """Equal parameter counts hide different networks: the recorded outputs tell them apart."""
    recorded = np.load(shared / "golden" / "model_outputs.npz", allow_pickle=False)
    picture = np.load(shared / "golden" / "jkx_20.npz", allow_pickle=False)["img_ohlc_ma_vol"][
        recorded["jkx20_index"]
    ]
    right = load_model(shared / "weights" / "jkx20_authors_architecture_state_dict.pt", mean_std=(0.17, 0.37))
    wrong = PriceCNN("lich20")
    wrong.load_state_dict(right.state_dict())
    assert right.parameter_count == wrong.parameter_count
    assert np.abs(wrong.eval().predict(picture) - recorded["jkx20_p_up"]).max() > 1e-3


@pytest.mark.parametrize("name", ["jkx5", "cnnft5", "cnn1d5"])
def test_saving_keeps_everything(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = PriceCNN(name) if name in PRESETS else SeriesCNN(name)
    model.set_normalisation(0.1, 0.3) if name in PRESETS else model.set_normalisation(
        np.arange(6), np.arange(1, 7)
    )
    model.metadata = {"horizon": 5, "image_spec": {"lookback": 5}}
    save_model(model, tmp_path / "m.ckpt")
    again = load_model(tmp_path / "m.ckpt")
    assert again.spec == model.spec
    assert again.metadata == model.metadata
    assert again.family == "pricepix"
    shape = (4, *model.input_shape)
    rng = np.random.default_rng(0)
    inputs = (
        rng.integers(0, 2, shape, dtype=np.uint8) * 255
        if name in PRESETS
        else rng.random(shape, dtype=np.float32)
    )
    np.testing.assert_array_equal(again.predict(inputs), model.predict(inputs))


def test_spec_survives_a_dict() -> None:
    for spec in PRESETS.values():
        assert CNNSpec.from_dict(spec.to_dict()) == spec
    for series in SERIES_PRESETS.values():
        assert SeriesSpec.from_dict(series.to_dict()) == series
    with pytest.raises(ValueError, match="CNNSpec has no field colour"):
        CNNSpec.from_dict(PRESETS["jkx5"].to_dict() | {"colour": 1})


def test_normalisation_is_of_the_unit_scale() -> None:
    model = PriceCNN(CNNSpec("pixels", 2, 3, (), dropout=0.0)).set_normalisation(0.25, 0.5)
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(6)[:2])
        model.linear.bias.zero_()
    out = model(torch.tensor([[[0, 255, 0], [0, 0, 0]]], dtype=torch.uint8))
    np.testing.assert_allclose(out.detach().numpy(), [[(0 - 0.25) / 0.5, (1 - 0.25) / 0.5]], rtol=1e-6)


def test_a_network_that_counts_rows_from_below_turns_images_over() -> None:
    spec = PRESETS["jkx5"]
    torch.manual_seed(1)
    top = PriceCNN(spec).eval()
    bottom = PriceCNN(spec.replace(first_row="bottom")).eval()
    bottom.load_state_dict(top.state_dict())
    images = (np.random.default_rng(0).random((5, 32, 15)) < 0.2).astype(np.uint8) * 255
    np.testing.assert_array_equal(bottom.predict(images), top.predict(images[:, ::-1].copy()))


def test_predict_covers_classes_and_regression() -> None:
    images = (np.random.default_rng(0).random((7, 32, 15)) < 0.2).astype(np.uint8) * 255
    three = PriceCNN(PRESETS["jkx5"].replace(outputs=3))
    p = three.probabilities(images, batch_size=3)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(three.predict(images), p @ [0, 0.5, 1], rtol=1e-5)
    one = PriceCNN(PRESETS["jkx5"].replace(outputs=1))
    assert one.predict(images).shape == (7,)
    with pytest.raises(ValueError, match="regression"):
        one.probabilities(images)
    assert one.predict(images[:0]).shape == (0,)


def test_ensemble_is_the_mean_of_the_softmax(tmp_path: Path) -> None:
    images = (np.random.default_rng(0).random((5, 32, 15)) < 0.2).astype(np.uint8) * 255
    members = []
    for i in range(3):
        torch.manual_seed(i)
        members.append(PriceCNN("jkx5").eval())
        (tmp_path / f"member_{i}").mkdir()
        save_model(members[-1], tmp_path / f"member_{i}" / "best.ckpt")
    expected = np.mean(
        [torch.softmax(m(torch.from_numpy(images)), 1)[:, 1].detach().numpy() for m in members], axis=0
    )
    np.testing.assert_allclose(Ensemble(members).predict(images), expected, atol=1e-6)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Ensemble)
    np.testing.assert_allclose(loaded.predict(images), expected, atol=1e-6)
    with pytest.raises(ValueError, match="one architecture"):
        Ensemble([PriceCNN("jkx5"), PriceCNN("jkx20")])


class TestBadInput:
    def test_images(self) -> None:
        model = PriceCNN("jkx5")
        with pytest.raises(TypeError, match="give uint8"):
            model(torch.zeros(1, 32, 15))
        with pytest.raises(ValueError, match=r"\(1, 64, 60\); jkx5 takes \(n, 32, 15\)"):
            model(torch.zeros((1, 64, 60), dtype=torch.uint8))

    def test_unknown_preset(self) -> None:
        with pytest.raises(
            ValueError, match=r"no model 'jkx7'; did you mean 'jkx5'\? Choose from jkx5, jkx20"
        ):
            PriceCNN("jkx7")

    def test_blocks_that_leave_nothing(self) -> None:
        with pytest.raises(ValueError, match="block 2 leaves"):
            CNNSpec("deep", 4, 4, tuple(ConvBlock(2, padding=(0, 0), kernel=(1, 1)) for _ in range(4)))

    def test_statistics(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            PriceCNN("jkx5").set_normalisation(0.2, 0.0)

    def test_checkpoints(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            load_model(tmp_path / "none.pt")
        (tmp_path / "text.pt").write_text("hello")
        with pytest.raises(ValueError, match="not a checkpoint"):
            load_model(tmp_path / "text.pt")
        torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"another architecture: its 1 tensors \(encoder.weight"):
            load_model(tmp_path / "other.pt")
        with pytest.raises(FileNotFoundError, match="holds no member"):
            load_model(tmp_path)

    def test_a_checkpoint_runs_no_code(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple:
                return (Path(tmp_path / "ran").touch, ())

        torch.save({"x": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
            load_model(tmp_path / "evil.pt")
        assert not (tmp_path / "ran").exists()

    def test_version_of_the_format(self, tmp_path: Path) -> None:
        save_model(PriceCNN("jkx5"), tmp_path / "m.pt")
        content = torch.load(tmp_path / "m.pt", weights_only=True)
        write_checkpoint(content | {"version": 99}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match="format version 99; this pricepix reads versions 1 and 2"):
            load_model(tmp_path / "m.pt")
        # Checkpoints of version 1 have no checksum; one of version 2 that lacks it was changed.
        torch.save(content, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt does not end in its checksum"):
            load_model(tmp_path / "m.pt")
        torch.save(content | {"version": 1}, tmp_path / "m.pt")
        load_model(tmp_path / "m.pt")

    def test_weights_of_another_size(self, tmp_path: Path) -> None:
        torch.save(
            {"fc.weight": torch.zeros(2, 7), "conv_layers.0.0.weight": torch.zeros(64, 1, 5, 3)},
            tmp_path / "x.pt",
        )
        with pytest.raises(ValueError, match="1 blocks that end in 7 features are none of its networks"):
            load_model(tmp_path / "x.pt")
