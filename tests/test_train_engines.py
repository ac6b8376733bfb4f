"""Networks folded for a CPU, and engines beside torch: the same scores, faster."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402
from pricepix.factor.calibration import rank_agreement, training_images  # noqa: E402
from pricepix.train.engines.exported import onnx_bytes, weights_digest  # noqa: E402
from pricepix.train.engines.folded import FusedConv, cache_batch, fold_network  # noqa: E402
from pricepix.train.engines.onnx_engines import ENGINES  # noqa: E402
from pricepix.train.engines.torch_engine import TorchEngine  # noqa: E402
from pricepix.train.modules import ModuleNetwork, Towers, fingerprint  # noqa: E402

FOREIGN = (
    "jkx20_lich99_state_dict.pt",
    "jkx20_authors_architecture_state_dict.pt",
    "cnnft_I5R20_OHLC_16-18.tar",
)


def images_of(network: Any, n: int, seed: int = 0) -> np.ndarray:
    """Images of which a tenth is white, as charts are."""
    return (np.random.default_rng(seed).random((n, *network.input_shape)) < 0.1).astype(np.uint8) * 255


def trained(spec: Any, seed: int = 1) -> Any:
    """A network with the running statistics of some images, and scales and shifts that are not 1 and 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = train.PriceCNN(spec)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
                module.momentum = None
        with torch.no_grad():
            network.train()(torch.from_numpy(images_of(network, 4, seed=7)))
    return network.eval()


def module_network(module: nn.Module, shape: tuple[int, int], columns: int = 2, **changes: Any) -> Any:
    spec = train.ModuleSpec(
        type(module).__name__, "images", shape, 2, columns, "tests.module", fingerprint(module), **changes
    )
    return ModuleNetwork(spec, module).eval()


def in_shared(shared: Path, *parts: str) -> Path:
    path = shared.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"not found: {path}")
    return path


# ------------------------------------------------------------------------------------------ the same scores


@pytest.mark.parametrize("preset", [name for name in train.PRESETS if name != "jkx60"])
def test_folded_presets_score_what_the_plain_forward_does(preset: str) -> None:
    """Within 2e-6 of the exact scores, and of the plain float32 forward but for the latter's own rounding."""
    network = trained(preset)
    engine = TorchEngine([network])
    assert engine.is_folded
    images = images_of(network, 6)
    found, plain = engine.predict(images)[0], network.predict(images)
    exact = copy.deepcopy(network).double()
    with torch.inference_mode():
        truth = exact.scores(exact(torch.from_numpy(images)).double()).numpy()
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.01
    assert np.abs(found - truth).max() < 2e-6
    assert np.abs(found - plain).max() < 2e-6 + np.abs(plain - truth).max()


@pytest.mark.parametrize("name", FOREIGN)
def test_folded_foreign_checkpoints_score_what_the_plain_forward_does(name: str, shared: Path) -> None:
    network = train.load_model(in_shared(shared, "weights", name))
    engine = TorchEngine([network])
    images = images_of(network, 8)
    assert engine.is_folded
    assert np.abs(engine.predict(images)[0] - network.predict(images)).max() < 2e-6


class Residual(nn.Module):
    """Not a sequence: a convolution is used twice, another one's output goes two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + nn.functional.relu(self.other(self.again(x)))
        x = self.drop(self.again(x).mean(dim=(2, 3)))
        given: torch.Tensor = self.last(x)
        return given


class Branching(nn.Module):
    """torch.fx cannot follow it: its path depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d((2, 1), ceil_mode=True)
        )
        self.last = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).mean(dim=(2, 3))
        if float(x.sum()) > 1e9:
            x = -x
        given: torch.Tensor = self.last(x)
        return given


@pytest.mark.parametrize(("module", "columns"), [(Residual, 2), (Branching, 1)])
def test_modules_of_ones_own_are_folded_as_far_as_they_can_be_followed(module: Any, columns: int) -> None:
    torch.manual_seed(0)
    network = module_network(module(), (33, 15), columns)
    with torch.no_grad():
        network.train()(torch.from_numpy(images_of(network, 32, seed=3)))
    network.eval()
    folded = fold_network(network)
    assert folded is not None
    assert any(isinstance(part, FusedConv) for part in folded.modules())
    assert not any(isinstance(part, FusedConv) for part in network.modules())
    images = images_of(network, 21)
    assert np.abs(TorchEngine([network]).predict(images)[0] - network.predict(images)).max() < 2e-6


def test_towers_over_a_stack_are_folded() -> None:
    torch.manual_seed(0)
    module = Towers(("jkx5", "cnn9u"))
    network = module_network(module, (59, 27), parts=((0, 0, 32, 15), (32, 0, 27, 27)))
    engine = TorchEngine([network])
    assert engine.is_folded
    images = images_of(network, 18)
    assert np.abs(engine.predict(images)[0] - network.predict(images)).max() < 2e-6


@pytest.mark.parametrize("what", ["hook", "double", "series", "no convolution", "wrong copy"])
def test_what_cannot_be_folded_scores_as_it_is(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = train.PriceCNN("jkx5").eval()
    if what == "hook":
        network.blocks[0].register_forward_hook(lambda *_: None)
    elif what == "double":
        network.double()
    elif what == "series":
        network = train.SeriesCNN("cnn1d5").eval()
    elif what == "no convolution":
        network = module_network(nn.Sequential(nn.Flatten(), nn.Linear(32 * 15, 2)), (32, 15))
    else:
        from pricepix.train.engines import folded

        monkeypatch.setattr(folded, "_activation", lambda *_: ("none", 0.0))
    engine = TorchEngine([network])
    inputs: Any = images_of(network, 5)
    if what == "series":
        inputs = np.random.default_rng(0).random((5, *network.input_shape), np.float32)
    expected = network.predict(inputs)
    if what == "wrong copy":
        # An activation that was forgotten is still there, unfused.
        assert engine.is_folded
        assert np.abs(engine.predict(inputs)[0] - expected).max() < 2e-6
    else:
        assert not engine.is_folded
        assert np.array_equal(engine.predict(inputs)[0], expected)


def test_a_copy_that_scores_differently_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from pricepix.train.engines import folded

    monkeypatch.setattr(folded, "_with_norm", lambda conv, norm: conv)
    assert fold_network(trained("jkx5")) is None


def test_folding_leaves_the_network_and_the_generator_alone() -> None:
    network = train.PriceCNN("jkx5")
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    assert fold_network(network) is not None
    assert cache_batch(network) == 16
    assert network.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.requires_grad for value in network.parameters())


# --------------------------------------------------------------------------------- batches, threads, memory


def test_a_score_depends_neither_on_its_neighbours_nor_on_threads() -> None:
    network = trained("jkx5")
    images = images_of(network, 50)
    engine = TorchEngine([network])
    whole = engine.predict(images)[0]
    pieces = [engine.predict(images[a:b])[0] for a, b in ((0, 3), (3, 4), (4, 37), (37, 50))]
    assert np.array_equal(np.concatenate(pieces), whole)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert np.array_equal(engine.predict(images)[0], whole)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_members_are_scored_on_one_batch() -> None:
    members = [trained("jkx5", seed) for seed in (1, 2, 3)]
    images = images_of(members[0], 20)
    found = TorchEngine(members).predict(images)
    assert found.shape == (3, 20)
    for own, member in zip(found, members, strict=True):
        assert np.abs(own - member.predict(images)).max() < 2e-6
    probabilities = TorchEngine(members).probabilities(images)
    assert np.abs(probabilities[..., 1] - found).max() < 1e-6


def test_several_heads_and_read_only_images() -> None:
    network = trained(train.PRESETS["jkx5"].replace(heads=2))
    images = images_of(network, 19)
    images.setflags(write=False)
    found = TorchEngine([network]).predict(images)
    assert found.shape == (1, 19, 2)
    assert np.abs(found[0] - network.predict(images.copy())).max() < 2e-6
    assert TorchEngine([network]).predict(images[:0]).shape == (1, 0, 2)


@pytest.mark.parametrize(("preset", "batch"), [("jkx5", 16), ("jkx20", 16), ("jkx60", 16), ("cnn49u", 4)])
def test_batches_fit_into_the_cache(preset: str, batch: int) -> None:
    assert cache_batch(train.PriceCNN(preset)) == batch


@pytest.mark.serial
def test_batches_after_the_first_take_no_new_memory() -> None:
    """Counted by the pages that the system hands out: a batch of jkx5 has 3 MB of activations, 750 pages."""
    network = trained("jkx5")
    engine, images = TorchEngine([network]), images_of(network, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for _ in range(3):
            engine.predict(images)
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            engine.predict(images)
        # 40 batches.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first < 40 * 75
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------- engines and exported files


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed: pip install 'pricepix[{'openvino' if name == 'openvino' else 'onnx'}]'"
            )


@pytest.fixture(scope="module")
def images() -> pp.PanelImages:
    bars = pp.samples.simulate(12, 80, seed=2, split_rate=0, delist_rate=0, list_late=0)
    return pp.PanelImages(pp.Panel.from_table(bars, progress=False), "jkx5", (5,))


@pytest.fixture(scope="module")
def network(images: pp.PanelImages) -> Any:
    """A network that says when it was trained: on the first half of the images."""
    found = trained("jkx5")
    first, last = (str(np.datetime64(int(t), "ns"))[:10] for t in images.time[[0, len(images) // 2]])
    found.metadata = {
        "train": {"first": first, "last": last},
        "horizon": 5, "target": "up", "delay": 1, "image_spec": images.spec.to_dict(),
        "seen_through": "2001-01-01",
    }  # fmt: skip
    return found


def run_without_pricepix(code: str, folder: Path) -> np.ndarray:
    """Run a program in an empty folder, from which it cannot import pricepix; it writes found.npy."""
    code = (
        f"import sys\nsys.path[:] = [p for p in sys.path if 'pricepix' not in p]\n{textwrap.dedent(code)}\n"
    )
    code += "assert not any(name.startswith('pricepix') for name in sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(folder / "found.npy")


def test_onnx_runtime_opens_an_export_without_pricepix(
    images: pp.PanelImages, network: Any, tmp_path: Path
) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    members = train.Ensemble([network, trained("jkx5", 5)])
    members.members[1].metadata = network.metadata
    about = train.export_model(members, tmp_path / "model.onnx", check=images)
    assert about["largest_difference"] < 1e-5
    pixels = images.read(slice(37))
    np.save(tmp_path / "images.npy", pixels)
    found = run_without_pricepix(
        """
        import json, numpy as np, onnxruntime
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map["pricepix"])
        json.dump(about, open("about.json", "w"))
        assert session.get_inputs()[0].type == "tensor(uint8)"
        np.save("found.npy", session.run(["score"], {about["input"]["name"]: np.load("images.npy")})[0])
        """,
        tmp_path,
    )
    expected = members.predict(pixels)
    assert np.abs(found - expected).max() < 1e-5
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(expected, kind="stable"))
    said = json.loads((tmp_path / "about.json").read_text())
    assert said["version"] == 1
    assert said["members"] == 2
    assert said["input"]["shape"] == ["n", 32, 15]
    assert said["input"]["rows"] == "row 0 is the top of the image"
    assert said["input"]["spec"] == json.loads(json.dumps(images.spec.to_dict()))
    assert said["label"] == {"target": "up", "horizon": 5, "delay": 1}
    assert said["digest"] == about["digest"] == weights_digest(list(members.members))
    assert said["digest"] != weights_digest([network])
    assert not list(tmp_path.glob("*.tmp"))


def test_torch_opens_an_export_without_pricepix(images: pp.PanelImages, network: Any, tmp_path: Path) -> None:
    about = train.export_model(network, tmp_path / "model.pt2", check=images)
    pixels = images.read(slice(20))
    np.save(tmp_path / "images.npy", pixels)
    found = run_without_pricepix(
        """
        import json, numpy as np, torch
        extra = {"pricepix.json": ""}
        program = torch.export.load("model.pt2", extra_files=extra)
        json.dump(json.loads(extra["pricepix.json"]), open("about.json", "w"))
        np.save("found.npy", program.module()(torch.from_numpy(np.load("images.npy")))[0].detach().numpy())
        """,
        tmp_path,
    )
    assert np.abs(found - network.predict(pixels)).max() < 1e-5
    assert json.loads((tmp_path / "about.json").read_text())["digest"] == about["digest"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_score_and_rank_as_torch_does(images: pp.PanelImages, network: Any, engine: str) -> None:
    needs("onnx", "onnxscript", engine)
    other = trained("jkx5", 5)
    other.metadata = network.metadata
    both = train.Ensemble([network, other])
    plain = pp.factor.score(images, both, None, spread=True, progress=False)
    found = pp.factor.score(images, both, None, spread=True, engine=engine, progress=False)
    a, b = np.asarray(plain.factor[:]), np.asarray(found.factor[:])
    assert np.array_equal(np.isnan(a), np.isnan(b))
    assert np.nanmax(np.abs(a - b)) < 1e-5
    assert np.nanmax(np.abs(np.asarray(plain.spread[:]) - np.asarray(found.spread[:]))) < 1e-5
    for x, y in zip(a[..., 0], b[..., 0], strict=True):
        assert np.array_equal(np.argsort(x[~np.isnan(x)]), np.argsort(y[~np.isnan(y)]))
    assert engine in found.attrs["versions"]
    assert found.attrs["model"]["digest"] == plain.attrs["model"]["digest"]


@pytest.mark.nightly
def test_a_foreign_network_ranks_real_bars_alike_through_all_engines(shared: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime", "openvino")
    bars = pl.read_parquet(in_shared(shared, "data", "lean_daily.parquet"))
    bars = bars.filter(pl.col("date") >= bars["date"].unique().sort()[-90])
    images = pp.PanelImages(pp.Panel.from_table(bars, progress=False), "jkx20", ())
    network = train.load_model(in_shared(shared, "weights", FOREIGN[0]))
    start = str(np.datetime64(int(np.unique(images.time)[-12]), "ns"))[:10]
    found = {
        engine: np.asarray(
            pp.factor.score(images, network, None, start=start, engine=engine, progress=False).factor[:]
        )[..., 0]
        for engine in ("torch", *ENGINES)
    }
    plain = network.predict(images.read(np.flatnonzero(images.time >= np.unique(images.time)[-12])))
    assert np.abs(np.sort(plain) - np.sort(found["torch"][~np.isnan(found["torch"])])).max() < 2e-6
    for engine in ENGINES:
        assert np.nanmax(np.abs(found[engine] - found["torch"])) < 1e-5
        for a, b in zip(found["torch"], found[engine], strict=True):
            known = ~np.isnan(a)
            assert np.array_equal(np.argsort(a[known]), np.argsort(b[known]))


def test_an_engine_takes_several_horizons_and_no_images(network: Any) -> None:
    needs("onnx", "onnxscript", "onnxruntime", "openvino")
    heads = trained(train.PRESETS["jkx5"].replace(heads=2))
    content = onnx_bytes([heads])
    pixels = images_of(heads, 35)
    for kind in ENGINES.values():
        engine = kind(content)
        assert np.abs(engine.predict(pixels)[0] - heads.predict(pixels)).max() < 1e-5
        assert engine.predict(pixels[:0]).shape == (1, 0, 2)


@pytest.mark.parametrize("engine", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.nightly)])
def test_eight_bits_rank_alike_or_are_refused(images: pp.PanelImages, network: Any, engine: str) -> None:
    """A network whose scores lie far apart ranks alike; one that tells near-equal images apart does not."""
    needs("onnx", "onnxscript", "onnxruntime", engine)
    exact = pp.factor.score(images, network, None, progress=False)
    try:
        found = pp.factor.score(images, network, None, engine=engine, precision="int8", progress=False)
    except ValueError as error:
        assert "rank correlation by date of 0.9" in str(error)  # noqa: PT017
        agreement = float(re.search(r"by date of (0\.\d+)", str(error))[1])  # type: ignore[index]
        assert 0.5 < agreement < 0.999
        return
    assert found.attrs["precision"] == "int8"
    a, b = np.asarray(exact.factor[:])[..., 0], np.asarray(found.factor[:])[..., 0]
    known = ~np.isnan(a)
    assert 0 < np.nanmax(np.abs(a - b)) < 0.1
    time = np.repeat(np.arange(len(a)), a.shape[1]).reshape(a.shape)
    assert rank_agreement(a[known], b[known], time[known]) >= 0.998


@pytest.mark.parametrize("precision", ["32-true", "int8"])
def test_an_audit_scores_with_the_engine_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, images: pp.PanelImages, network: Any, precision: str
) -> None:
    needs("onnx", "onnxscript", "onnxruntime", "openvino")
    # Whether these ranks agree is another test's question.
    monkeypatch.setattr("pricepix.train.engines.quantised.LEAST_AGREEMENT", 0.0)
    options = {"engine": "openvino", "precision": precision, "progress": False}
    cache = pp.factor.score(images, network, None, **options)
    found = pp.audit(images.panel, images, cache, model=network, date="2000-03-31", progress=False)
    results = {check.name: check.result for check in found.checks}
    assert found.scores > 0
    assert results["scores"] == results["memory"] == "ok"


def test_eight_bits_are_calibrated_on_the_training_period_only(images: pp.PanelImages, network: Any) -> None:
    given = training_images(images, network.metadata, "x")
    half = images.time[len(images) // 2]
    allowed = images.read(np.flatnonzero(images.time <= half))
    later = images.read(np.flatnonzero(images.time > half))
    known = {image.tobytes() for image in allowed}
    assert len(given) == min(512, len(allowed))
    assert all(image.tobytes() in known for image in given)
    assert any(image.tobytes() not in known for image in later)
    with pytest.raises(ValueError, match="which the checkpoint of x does not record: score in float32"):
        training_images(images, {}, "x")
    old = {"train": {"first": "1990-01-01", "last": "1990-12-31"}}
    with pytest.raises(
        ValueError, match=r"training period, 1990-01-01 to 1990-12-31, and panel images .* has none of it"
    ):
        training_images(images, old, "x")


def test_agreement_of_ranks_is_the_mean_of_spearmans_over_dates() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    time, a = np.repeat(np.arange(6), 10), rng.integers(0, 8, 60).astype(np.float32)
    b = a + rng.normal(0, 2, 60)
    each = [stats.spearmanr(a[time == t], b[time == t]).statistic for t in range(6)]
    assert rank_agreement(a, b, time) == pytest.approx(np.mean(each), abs=1e-12)
    assert rank_agreement(a, a, time) == pytest.approx(1)
    assert rank_agreement(a[:10] * 0, b[:10], time[:10]) == 0
    assert rank_agreement(a[:1], b[:1], time[:1]) == 1


def ink(pixels: np.ndarray) -> np.ndarray:
    return (pixels > 0).mean(axis=(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ink, "engine": "onnxruntime"}, "runs networks, and .*ink is a function: leave engine out"),
        ({"precision": "int8"}, "precision='int8' is of engine='openvino' or engine='onnxruntime': give one of them"),
        ({"engine": "openvino", "precision": "bf16-mixed"}, "computes in '32-true' or 'int8', not in 'bf16-mixed'"),
        ({"engine": "openvino", "device": "cuda"}, "runs on the CPU, not on 'cuda': leave device out"),
        ({"engine": "tensorrt"}, "engine='tensorrt' is not known: choose one of 'torch', 'openvino', 'onnxruntime'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    images: pp.PanelImages, network: Any, options: dict[str, Any], message: str
) -> None:
    options = {"model": network, **options}
    with pytest.raises(ValueError, match=message):
        pp.factor.score(images, options.pop("model"), None, progress=False, **options)


@pytest.mark.parametrize(("engine", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_an_engine_that_is_not_installed_is_told_with_the_line_that_installs_it(
    images: pp.PanelImages, network: Any, engine: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    line = re.escape(f"engine='{engine}' needs {engine}: pip install 'pricepix[{extra}]'")
    with pytest.raises(ImportError, match=line):
        pp.factor.score(images, network, None, engine=engine, progress=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=re.escape("needs onnx: pip install 'pricepix[onnx]'")):
        train.export_model(network, "x.onnx")
    assert not Path("x.onnx").exists()


def test_what_cannot_be_exported_is_refused(images: pp.PanelImages, network: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"model is the function ink, which has no weights to export: give a checkpoint"
    ):
        train.export_model(ink, tmp_path / "m.pt2")
    with pytest.raises(ValueError, match=r"its name must end in \.onnx or \.pt2"):
        train.export_model(network, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"horizon=20, but the model was trained over 5 bars: leave it out"):
        train.export_model(network, tmp_path / "m.pt2", horizon=20)
    with pytest.raises(ValueError, match="check has images of 32x15, the model takes 27x27"):
        train.export_model(train.PriceCNN("cnn9u"), tmp_path / "m.pt2", check=images)
    with pytest.raises(ValueError, match=r"Branching cannot be written .*: torch cannot follow its forward"):
        train.export_model(module_network(Branching(), (33, 15), 1), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_model(images: pp.PanelImages, network: Any, tmp_path: Path) -> None:
    from pricepix.cli import main

    store = pp.render_universe(images.panel, "jkx5", tmp_path / "s", horizons=(5,), progress=False)
    train.save_model(network, tmp_path / "m.ckpt")
    runner = CliRunner()
    arguments = ["export", str(tmp_path / "m.ckpt"), str(tmp_path / "m.pt2")]
    done = runner.invoke(main, [*arguments, "--check", str(store.location)])
    assert done.exit_code == 0, done.output
    assert "1 x jkx5, probability of a rise; differs by at most" in done.output
    assert (tmp_path / "m.pt2").stat().st_size > 100_000
    told = json.loads(runner.invoke(main, ["--json", *arguments]).stdout)
    assert (told["out"], told["model"], told["members"]) == (arguments[2], "jkx5", 1)
    assert 0 <= told["largest_difference"] < 1e-5
    assert "--last: of a factor cache" in runner.invoke(main, [*arguments, "--last", "3"]).output
    wrong = runner.invoke(main, ["export", str(tmp_path / "c"), str(tmp_path / "c.csv"), "--check", "x"])
    assert "--check and --horizon are of a model" in wrong.output
