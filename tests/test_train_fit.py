"""The loop: learns what is there and nothing else, resumes exactly, and says what is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402
from pricepix.store.image_store import ImageStore  # noqa: E402
from pricepix.train import run  # noqa: E402
from pricepix.train.checkpoints import write_checkpoint  # noqa: E402
from pricepix.train.device import Device  # noqa: E402
from pricepix.train.hyper import HYPER, Hyper  # noqa: E402
from pricepix.train.loop import Trainer  # noqa: E402
from pricepix.train.objective import Objective  # noqa: E402

SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(4, 1)),))
PIXELS = train.CNNSpec("pixels", 32, 15, (), dropout=0.0)
QUICK: dict[str, Any] = {"batch_size": 32, "epochs": 3, "lr": 1e-3, "progress": False}


def _fit(*arguments: Any, **options: Any) -> Any:
    """`fit` on one thread: networks this small gain nothing from a second one, and lose much by waiting for
    it when tests share the CPUs. Rendering in parallel sets the number anew, so it is set for each run.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train.fit(*arguments, **options)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table() -> Any:
    return pp.samples.simulate(10, 120, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)


@pytest.fixture(scope="module")
def store(table: Any) -> ImageStore:
    return pp.render_universe(table, "jkx5", None, horizons=(1, 5), chunk=128, progress=False)


def _weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "member_0" / "last.ckpt", weights_only=True)["state_dict"]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "member_0" / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("images_per_second", "crc32c")}
            for row in csv.DictReader(file)
        ]


RESUMED: dict[str, Any] = QUICK | {
    "horizon": 5, "validations": 2, "schedule": "cosine", "warmup_epochs": 0.5, "optimizer": "adamw",
    "weight_decay": 0.1, "seed": 3, "patience": None, "checkpoint_minutes": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    _fit(store, SMALL, out=out, **RESUMED)
    assert [int(row["step"]) for row in _rows(out)] == [11, 22, 33, 44, 55, 66]
    return out


class TestResume:
    """A run of 3 epochs of 16 steps with 2 validations each, stopped after some step and resumed."""

    def test_runs_repeat(self, store: ImageStore, undisturbed: Path, tmp_path: Path) -> None:
        _fit(store, SMALL, out=tmp_path / "again", **RESUMED)
        assert _same(_weights(tmp_path / "again"), _weights(undisturbed))
        _fit(store, SMALL, out=tmp_path / "other", **(RESUMED | {"seed": 4}))
        assert not _same(_weights(tmp_path / "other"), _weights(undisturbed))

    # Within an epoch, before and after a validation, around the end of an epoch and of training.
    @pytest.mark.parametrize("step", [3, 10, 11, 12, 21, 22, 23, 65])
    def test_killed_and_resumed(
        self, store: ImageStore, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == step:
                raise RuntimeError("killed")
            return original(trainer, inputs, target)

        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="killed"):
                _fit(store, SMALL, out=out, **RESUMED)
        state = torch.load(out / "member_0" / "last.ckpt", weights_only=True)
        # Where a validation is due the checkpoint is the one after it.
        assert state["global_step"] == step
        _fit(store, SMALL, out=out, resume=True, **RESUMED)
        assert _same(_weights(out), _weights(undisturbed))
        assert _rows(out) == _rows(undisturbed)
        best = [
            torch.load(folder / "member_0" / "best.ckpt", weights_only=True) for folder in (out, undisturbed)
        ]
        assert best[0]["global_step"] == best[1]["global_step"]
        assert _same(best[0]["state_dict"], best[1]["state_dict"])

    @pytest.mark.parametrize(
        ("step", "request_"),
        [(4, signal.SIGINT), (10, signal.SIGINT), (30, signal.SIGINT), (30, signal.SIGTERM)],
    )
    def test_interrupted_and_resumed(
        self,
        store: ImageStore,
        undisturbed: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: int,
        request_: signal.Signals,
    ) -> None:
        """Ctrl-C and SIGTERM save although no checkpoint was due for ten minutes."""
        before = signal.getsignal(request_)
        original = Trainer.training_step

        def interrupting(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == step:
                os.kill(os.getpid(), request_)
            return original(trainer, inputs, target)

        out, options = tmp_path / "run", RESUMED | {"checkpoint_minutes": 10.0}
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", interrupting)
            with pytest.raises(KeyboardInterrupt, match="resume it with resume=True"):
                _fit(store, SMALL, out=out, **options)
        assert torch.load(out / "member_0" / "last.ckpt", weights_only=True)["global_step"] == step + 1
        assert signal.getsignal(request_) == before
        _fit(store, SMALL, out=out, resume=True, **options)
        assert _same(_weights(out), _weights(undisturbed))
        assert _rows(out) == _rows(undisturbed)

    def test_killed_when_patience_had_run_out(
        self, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the last checkpoint and the note that the network is done: it is not trained further."""
        options = QUICK | {"epochs": 50, "validations": 4, "patience": 3, "min_delta": 10.0}

        def dying(*arguments: Any) -> None:
            raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(run, "write_sealed_json", dying)
            with pytest.raises(RuntimeError, match="killed"):
                _fit(store, PIXELS, 5, out=tmp_path / "x", **options)
        before = _weights(tmp_path / "x"), _rows(tmp_path / "x")
        result = _fit(store, PIXELS, 5, out=tmp_path / "x", resume=True, **options)
        assert _same(_weights(tmp_path / "x"), before[0])
        assert _rows(tmp_path / "x") == before[1]
        report = result.folds[0].members[0]
        assert (report["steps"], report["epochs"]) == (int(before[1][-1]["step"]), 1)
        assert report["val_loss"] == min(float(row["val_loss"]) for row in before[1])

    def test_a_checkpoint_of_another_version_is_not_resumed(
        self, store: ImageStore, undisturbed: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(undisturbed, tmp_path / "x")
        (tmp_path / "x" / "member_0" / "done.json").unlink()
        last = tmp_path / "x" / "member_0" / "last.ckpt"
        content = torch.load(last, weights_only=True)
        for training, version in (({"version": 4}, 4), (None, 1)):
            changed = {key: value for key, value in content.items() if key != "training"}
            write_checkpoint(changed | ({} if training is None else {"training": training}), last)
            with pytest.raises(
                ValueError, match=f"training of version {version}; this pricepix resumes version 3"
            ):
                _fit(store, SMALL, out=tmp_path / "x", resume=True, **RESUMED)

    def test_checkpoints_of_lightning_s_trainer_still_score(
        self, store: ImageStore, undisturbed: Path
    ) -> None:
        """Runs of earlier releases named their tensors and their header otherwise."""
        best = undisturbed / "member_0" / "best.ckpt"
        content = torch.load(best, weights_only=True)
        header = {name: content[name] for name in ("format", "kind", "spec", "metadata")} | {"version": 1}
        state = {f"network.{name}": value for name, value in content["state_dict"].items()}
        torch.save({"pricepix": header, "state_dict": state}, earlier := undisturbed / "earlier.ckpt")
        images = store.read(slice(20))
        np.testing.assert_array_equal(
            train.load_model(earlier).predict(images), train.load_model(best).predict(images)
        )

    def test_a_finished_run_is_left_as_it_is(self, store: ImageStore, undisturbed: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("member_0/*.ckpt")}
        result = _fit(store, SMALL, out=undisturbed, resume=True, **RESUMED)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert result.folds[0].members[0]["steps"] == 66

    def test_another_run_is_not_resumed_nor_overwritten(self, store: ImageStore, undisturbed: Path) -> None:
        with pytest.raises(
            FileExistsError, match="resume=True resumes its run, another out starts a new one"
        ):
            _fit(store, SMALL, out=undisturbed, **RESUMED)
        with pytest.raises(ValueError, match=r"was started with another hyper: lr was 0.001, is 0.5"):
            _fit(store, SMALL, out=undisturbed, resume=True, **(RESUMED | {"lr": 0.5}))
        with pytest.raises(FileNotFoundError, match="holds no run to resume"):
            _fit(store, SMALL, out=undisturbed / "none", resume=True, **RESUMED)


def test_rows_after_the_last_checkpoint_come_again(tmp_path: Path) -> None:
    """Whole, doubled or cut off, they are dropped; those that the checkpoint knows must be there."""
    from pricepix.train.journal import METRICS, Journal, _encode

    def row(step: int) -> dict[str, Any]:
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second")
        return {"step": step, "epoch": 0} | dict.fromkeys(names, 0.5)

    def resumed(left: bytes, last: int | None) -> bytes:
        (tmp_path / METRICS).write_bytes(left)
        journal = Journal(tmp_path, 50)
        journal.load_state_dict({"sums": [0, 0, 0], "last_row": last})
        journal.open(22)
        journal.close()
        return (tmp_path / METRICS).read_bytes()

    whole, two = _encode([row(11), row(22), row(33)]), _encode([row(11), row(22)])
    for left in (whole, whole[:-7], two + b"3", two + two.splitlines(keepends=True)[1], two):
        assert resumed(left, 22) == two
    for left in (b"", two[:7], whole, two):
        assert len(resumed(left, None)) in (len(_encode([])), len(two))
    for left in (b"", two[:7], two[:-3], two.replace(b"0.5", b"0.6", 1), _encode([row(11)])):
        with pytest.raises(ValueError, match=r"metrics\.csv lacks the row of step 22.* remove it to resume"):
            resumed(left, 22)
    (tmp_path / METRICS).unlink()
    journal = Journal(tmp_path, 50)
    journal.load_state_dict({"sums": [0, 0, 0], "last_row": 22})
    with pytest.warns(UserWarning, match="rows up to step 22 are lost"):
        journal.open(22)
    journal.close()


def test_a_run_killed_at_its_very_start_is_resumed(
    store: ImageStore, undisturbed: Path, tmp_path: Path
) -> None:
    """Its folder is empty, or holds a configuration that was not written to its end."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.tmp").write_text("pricepix: 0.")
    _fit(store, SMALL, out=tmp_path / "run", resume=True, **RESUMED)
    assert _same(_weights(tmp_path / "run"), _weights(undisturbed))
    assert not (tmp_path / "run" / "config.yaml.tmp").exists()
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"config\.yaml does not end in its checksum.* or start a new run"):
        _fit(store, SMALL, out=tmp_path / "run", resume=True, **RESUMED)


def test_a_real_kill(tmp_path: Path, table: Any) -> None:
    """The process dies of SIGKILL within a step; a new one resumes and ends with the same weights."""
    stored = tmp_path / "store"
    pp.render_universe(table, "jkx5", stored, horizons=(5,), chunk=128, progress=False)
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import torch
            from pricepix import train
            from pricepix.train.loop import Trainer

            torch.set_num_threads(1)
            original = Trainer.training_step

            def step(trainer, inputs, target):
                if trainer.step == 13:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(trainer, inputs, target)

            Trainer.training_step = step
            spec = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(4, 1)),))
            train.fit(sys.argv[1], spec, out=sys.argv[2], batch_size=32, epochs=2, lr=1e-3, patience=None,
                      checkpoint_minutes=0.0, progress=False)
            """
        )
    )

    died = subprocess.run([sys.executable, script, stored, tmp_path / "killed"], check=False)
    assert died.returncode == -signal.SIGKILL
    # Resumed in this process, which knows of the other only what lies on disk.
    options: dict[str, Any] = {
        "batch_size": 32, "epochs": 2, "lr": 1e-3, "patience": None, "checkpoint_minutes": 0.0, "progress": False
    }  # fmt: skip
    _fit(stored, SMALL, out=tmp_path / "killed", resume=True, **options)
    _fit(stored, SMALL, out=tmp_path / "whole", **options)
    assert _same(_weights(tmp_path / "killed"), _weights(tmp_path / "whole"))


@pytest.fixture(scope="module")
def result(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runs") / "x"
    options = QUICK | {"epochs": 2}
    return _fit(
        store,
        SMALL,
        5,
        out=out,
        test=("2000-05-15", None),
        ensemble=2,
        balance="weights",
        log_every=5,
        **options,
    )


class TestRun:
    def test_files_beside_the_run(self, result: Any) -> None:
        config = yaml.safe_load((result.out / "config.yaml").read_text())
        assert config["horizon"] == 5
        assert config["hyper"]["lr"] == 1e-3
        assert config["folds"][0]["test"]["first"] == "2000-05-15"
        for member in ("member_0", "member_1"):
            assert len(list((result.out / member / "tensorboard").iterdir())) == 1
            assert (result.out / member / "metrics.csv").exists()
        summary = json.loads((result.out / "summary.json").read_text())
        assert summary["folds"][0]["test"] == result.test

    def test_tensorboard_holds_what_it_should(self, result: Any) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(result.out / "member_0" / "tensorboard"))
        events.Reload()
        assert {"train/loss", "train/accuracy", "train/lr", "validation/loss", "validation/accuracy"} <= set(
            events.Tags()["scalars"]
        )
        assert events.Tags()["histograms"] == ["validation/p_up"]
        assert [tag.split("/image")[0] for tag in events.Tags()["images"]][:1] == ["validation"]

    def test_ensemble_and_its_test(self, result: Any, store: ImageStore) -> None:
        fold = result.folds[0].fold
        images = store.read(fold.test)
        single = [
            train.load_model(result.out / member / "best.ckpt").predict(images)
            for member in ("member_0", "member_1")
        ]
        assert not np.array_equal(*single)
        np.testing.assert_allclose(result.folds[0].predictions, np.mean(single, axis=0), atol=1e-6)
        truth = store.returns(5)[fold.test] > 0
        assert result.test["accuracy"] == np.mean((np.mean(single, axis=0) > 0.5) == truth)
        assert result.test["images"] == len(fold.test)

    def test_checkpoint_carries_statistics_of_training_rows(self, result: Any, store: ImageStore) -> None:
        model = train.load_model(result.out / "member_0" / "best.ckpt")
        lit = store.read(result.folds[0].fold.train) > 0
        assert model.mean.item() == pytest.approx(lit.mean(), rel=1e-6)
        assert model.std.item() == pytest.approx(lit.std(), rel=1e-6)
        assert model.metadata["horizon"] == 5
        assert (
            model.metadata["image_spec"] == store.spec.to_dict()
            or model.metadata["image_spec"]["lookback"] == 5
        )
        assert model.family == "pricepix"

    def test_training_keeps_the_random_state(self, store: ImageStore, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        _fit(store, SMALL, 5, out=tmp_path / "x", **(QUICK | {"epochs": 1}))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("target", ["terciles", "return", "rank"])
def test_other_targets(store: ImageStore, tmp_path: Path, target: str) -> None:
    result = _fit(
        store,
        SMALL,
        5,
        out=tmp_path / "x",
        target=target,
        test=("2000-05-15", None),
        **(QUICK | {"epochs": 1}),
    )
    assert len(result.folds[0].predictions) == result.test["images"]
    if target == "terciles":
        assert 0 < result.test["accuracy"] < 1
        assert result.model.probabilities(store.read(slice(5))).shape == (5, 3)
    else:
        # The network works in standard deviations, its predictions are in the target's units.
        spread = store.returns(5)[result.folds[0].fold.train].std() if target == "return" else 0.29
        assert result.model.scale.item() == pytest.approx(spread, rel=0.02)


# Without dropout, whose draws are those of the machine that computes.
TWO = train.CNNSpec(
    "two", 32, 15, (train.ConvBlock(4, pool=(4, 1)), train.ConvBlock(4, pool=(2, 1))), dropout=0.0
)
FAST: dict[str, Any] = QUICK | {"epochs": 1, "test": ("2000-05-15", None), "seed": 1}


@pytest.fixture(scope="module")
def plain(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _fit(store, TWO, 5, out=tmp_path_factory.mktemp("runs") / "x", **FAST)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        # Adam walks by noise where a gradient is zero, as that of a bias before batch norm.
        ({"channels_last": True}, 0.01),
        ({"precision": "bf16-mixed"}, 0.05),
        ({"precision": "bf16-mixed", "channels_last": True}, 0.05),
    ],
)
def test_options_of_speed_change_what_is_learnt_only_by_rounding(
    plain: Any,
    store: ImageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    tolerance: float,
) -> None:
    seen = []
    original = train.PriceCNN.forward

    def looking(network: Any, images: Any) -> Any:
        if network.training:
            weight = network.blocks[1][0].weight
            format_ = weight.is_contiguous(memory_format=torch.channels_last)
            dtype = torch.nn.functional.linear(torch.ones(2), torch.ones(2, 2)).dtype
            seen.append((format_, weight.dtype, dtype))
        return original(network, images)

    monkeypatch.setattr(train.PriceCNN, "forward", looking)
    result = _fit(store, TWO, 5, out=tmp_path / "x", **FAST, **options)
    low = "precision" in options
    # Weights stay in 32 bits whatever is computed in.
    expected = ("channels_last" in options, torch.float32, torch.bfloat16 if low else torch.float32)
    assert set(seen) == {expected}
    difference = np.abs(result.folds[0].predictions - plain.folds[0].predictions).max()
    assert difference < tolerance
    assert difference > 0 or not low
    assert {value.dtype for value in _weights(result.out).values()} == {torch.float32, torch.int64}
    config = yaml.safe_load((result.out / "config.yaml").read_text())
    assert options.items() <= config["device"].items()


@pytest.mark.parametrize("model", [TWO, "cnn1d"])
def test_weights_of_16_bits(store: ImageStore, table: Any, tmp_path: Path, model: Any) -> None:
    result = _fit(store, model, 5, out=tmp_path / "x", panel=table, precision="bf16-true", **FAST)
    assert torch.bfloat16 in {value.dtype for value in _weights(result.out).values()}
    assert np.isfinite(result.folds[0].predictions).all()
    assert np.isfinite(result.folds[0].members[0]["val_loss"])


@pytest.mark.skipif(
    "PRICEPIX_COMPILE" not in os.environ, reason="half a minute of compiling: set PRICEPIX_COMPILE=1"
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# Of torch's own modules, at their import.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_network_learns_the_same(plain: Any, store: ImageStore, tmp_path: Path) -> None:
    result = _fit(store, TWO, 5, out=tmp_path / "x", compile=True, **FAST)
    np.testing.assert_allclose(result.folds[0].predictions, plain.folds[0].predictions, atol=0.01)
    assert _weights(result.out).keys() == _weights(plain.out).keys()


def test_a_part_of_a_store(store: ImageStore, tmp_path: Path) -> None:
    names = ["S0001", "S0004"]
    result = _fit(store, PIXELS, 5, out=tmp_path / "x", instruments=names, **(QUICK | {"epochs": 1}))
    fold, known = result.folds[0].fold, ~np.isnan(store.returns(5))
    used = np.concatenate([fold.train, fold.validation])
    assert set(store.instruments[store.instrument_index[used]]) == set(names)
    own = np.isin(store.instruments[store.instrument_index], names)
    assert fold.dropped["no_target"] == np.count_nonzero(~known)
    assert fold.dropped["not_chosen"] == np.count_nonzero(known & ~own)
    assert len(used) == np.count_nonzero(known & own) - fold.dropped["purged"]


def test_undersampling(store: ImageStore, tmp_path: Path) -> None:
    result = _fit(store, SMALL, 5, out=tmp_path / "x", balance="undersample", **(QUICK | {"epochs": 1}))
    up = store.returns(5)[result.folds[0].fold.train] > 0
    assert result.model.metadata["train_images"] == 2 * min(up.sum(), (~up).sum()) < len(up)


def test_walk_forward_trains_each_fold(store: ImageStore, tmp_path: Path) -> None:
    result = _fit(
        store, PIXELS, 5, out=tmp_path / "x", split="walk", train="2m", test="1m", **(QUICK | {"epochs": 1})
    )
    assert [f.fold.name for f in result.folds] == ["2000-03-13", "2000-04-13", "2000-05-13"]
    assert all((f.folder / "member_0" / "best.ckpt").exists() for f in result.folds)
    assert len({f.folder for f in result.folds}) == 3
    # The last network scores the newest windows, which have no returns yet and so belong to no test.
    time, _ = pp.factor.score(store, result, None, progress=False).matrix()
    assert store.time[result.folds[-1].fold.test].max() < time[-1] == store.time[-1]


@pytest.mark.parametrize("model", ["cnn1d", "logistic"])
def test_baselines_on_series(store: ImageStore, table: Any, tmp_path: Path, model: str) -> None:
    result = _fit(store, model, 5, out=tmp_path / "x", panel=table, test=("2000-05-15", None), **QUICK)
    assert isinstance(result.model, train.SeriesCNN)
    assert result.model.spec.name == f"{model}5"
    panel = pp.Panel.from_table(table)
    fold = result.folds[0].fold
    names = store.instruments[store.instrument_index[fold.test]]
    row = np.array([panel.locate(n, int(t)) for n, t in zip(names, store.time[fold.test], strict=True)])
    series = train.window_series(panel, store.spec, row)
    np.testing.assert_allclose(result.model.predict(series), result.folds[0].predictions, atol=1e-6)


def test_series_by_hand() -> None:
    bars = np.array([[10.0, 12, 9, 11, 100], [11, 13, 10, 12, 300], [12, 14, 11, 13, 200]])
    time = np.array(["2000-01-03", "2000-01-04", "2000-01-05"], "M8[ns]")
    panel = pp.Panel.from_arrays(*bars.T[:, :, None], instruments=["A"], time=time)
    spec = pp.ImageSpec.preset("jkx5").replace(lookback=2, ma=(2,))
    series = train.window_series(panel, spec, np.array([2]))
    # Bars 1 and 2: lowest 10, highest 14; means of the closes 11.5 and 12.5; volumes 300 and 200.
    expected = [[0.25, 0.5], [0.75, 1], [0, 0.25], [0.5, 0.75], [0.375, 0.625], [1, 0]]
    np.testing.assert_allclose(series[0], expected)
    with pytest.raises(ValueError, match="begins before its instrument does"):
        train.window_series(panel, spec, np.array([0]))


class TestSchedule:
    def test_definitions(self) -> None:
        base = {"lr": 1.0, "epochs": 10}
        constant = Hyper(**base)
        assert {constant.lr_at(k, 8) for k in range(80)} == {1.0}
        step = Hyper(**base, schedule="step", gamma=0.5, step_epochs=2)
        assert [step.lr_at(k * 8 + 7, 8) for k in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
        exponential = Hyper(**base, schedule="exponential", gamma=0.95)
        # Once an epoch, not once a step.
        assert [exponential.lr_at(k, 4) for k in (0, 3, 4, 7, 8)] == pytest.approx(
            [1, 1, 0.95, 0.95, 0.95**2]
        )
        cosine = Hyper(**base, schedule="cosine", min_lr=0.1)
        assert [cosine.lr_at(k, 8) for k in (0, 40, 80)] == pytest.approx([1, 0.55, 0.1])
        assert cosine.lr_at(20, 8) == pytest.approx(0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2)

    def test_warm_up(self) -> None:
        hyper = HYPER["image_trading"]
        assert [hyper.lr_at(k, 100) for k in (0, 50, 100)] == pytest.approx([0.001, 0.0255, 0.05])
        assert hyper.lr_at(2000, 100) == pytest.approx(1e-5)
        late = Hyper(lr=1.0, epochs=4, warmup_epochs=1, schedule="exponential", gamma=0.5)
        assert [late.lr_at(k, 10) for k in (5, 10, 19, 20)] == [0.5, 1, 1, 0.5]

    @pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
    @pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 1.5])
    def test_rates_are_those_of_torch_s_schedulers(self, schedule: str, warmup_epochs: float) -> None:
        """Of theirs, which multiply the rate before by a factor each step; ours are a function of the step."""
        from torch.optim import lr_scheduler as torch_s

        per_epoch, epochs = 7, 9
        hyper = Hyper(
            lr=0.3, epochs=epochs, schedule=schedule, min_lr=0.01, gamma=0.7, step_epochs=2,  # type: ignore[arg-type]
            warmup_epochs=warmup_epochs, warmup_from=0.02,
        )  # fmt: skip
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=hyper.lr)
        warm = round(warmup_epochs * per_epoch)
        after: Any = {
            "constant": lambda: torch_s.ConstantLR(optimizer, factor=1.0),
            "cosine": lambda: torch_s.CosineAnnealingLR(
                optimizer, T_max=epochs * per_epoch - warm, eta_min=hyper.min_lr
            ),
            "step": lambda: torch_s.StepLR(optimizer, hyper.step_epochs * per_epoch, hyper.gamma),
            "exponential": lambda: torch_s.StepLR(optimizer, per_epoch, hyper.gamma),
        }[schedule]()
        if warm:
            rise = torch_s.LinearLR(optimizer, hyper.warmup_from / hyper.lr, 1.0, warm)
            after = torch_s.SequentialLR(optimizer, [rise, after], [warm])
        for step in range(epochs * per_epoch):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(hyper.lr_at(step, per_epoch), rel=1e-12)
            optimizer.step()
            after.step()

    def test_the_loop_uses_it(self, store: ImageStore, tmp_path: Path) -> None:
        options = QUICK | {"schedule": "exponential", "gamma": 0.5, "validations": 2}
        _fit(store, PIXELS, 5, out=tmp_path / "x", patience=None, **options)
        rates = [float(row["lr"]) for row in _rows(tmp_path / "x")]
        # Rates of the step that comes next: the second validation of an epoch stands before a new one.
        assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4])

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            (
                {"schedule": "linear"},
                ValueError,
                "schedule='linear' is not known: choose one of 'constant', 'cosine'",
            ),
            ({"lr": 0.0}, ValueError, "lr=0.0"),
            ({"patience": 0}, ValueError, "patience=0"),
            ({"batchsize": 3}, TypeError, r"'batchsize'; did you mean 'batch_size'\?"),
        ],
    )
    def test_bad_input(self, changes: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Hyper.of("paper", **changes)
        with pytest.raises(
            ValueError, match=r"hyper='papers' is not known \(did you mean 'paper'\?\): choose one of 'paper'"
        ):
            Hyper.of("papers")


def test_patience_counts_validations(store: ImageStore, tmp_path: Path) -> None:
    result = _fit(
        store, PIXELS, 5, out=tmp_path / "x", validations=4, patience=3, min_delta=10.0,
        **(QUICK | {"epochs": 50}),
    )  # fmt: skip
    # The first validation is always a gain; three without one follow, all within the first epoch.
    assert len(_rows(tmp_path / "x")) == 4
    assert result.folds[0].members[0]["steps"] == -(-len(result.folds[0].fold.train) // 32)


def test_validations_are_evenly_spaced_and_the_last_ends_the_epoch(store: ImageStore, tmp_path: Path) -> None:
    result = _fit(
        store, PIXELS, 5, out=tmp_path / "x", validations=4, patience=None, **(QUICK | {"epochs": 2})
    )
    steps = -(-len(result.folds[0].fold.train) // 32)
    assert steps % 4
    at = [steps // 4, steps // 2, 3 * steps // 4, steps]
    assert [int(row["step"]) for row in _rows(tmp_path / "x")] == [*at, *(steps + k for k in at)]


class TestHonesty:
    """Planted patterns are found; in random walks nothing is, unless the split leaks."""

    def test_a_planted_pattern_is_found(self, tmp_path: Path) -> None:
        table = pp.samples.simulate(40, 400, seed=0, bayes_accuracy=0.9, split_rate=0, delist_rate=0)
        store = pp.render_universe(table, "jkx5", None, horizons=(5,), layout="bits", progress=False)
        result = _fit(
            store, PIXELS, out=tmp_path / "x", test=("2001-03-01", None), epochs=3, lr=2e-3, progress=False
        )
        assert 0.8 < result.test["accuracy"] < 0.9 + 3 * result.test["standard_error"]

    @pytest.mark.parametrize("split", ["time", "random", "walk"])
    def test_nothing_is_found_in_random_walks(self, tmp_path: Path, split: str) -> None:
        # A label every 5 bars over 5 bars: labels do not overlap, so that images are independent draws.
        table = pp.samples.simulate(60, 500, seed=1, split_rate=0, delist_rate=0, halt_rate=0)
        store = pp.render_universe(table, "jkx5", None, horizons=(5,), every=5, layout="bits", progress=False)
        periods = {"train": "1y", "test": "6m"} if split == "walk" else {"test": ("2001-03-01", None)}
        result = _fit(
            store, PIXELS, out=tmp_path / "x", split=split, epochs=2, lr=1e-3, progress=False, **periods
        )
        for fold in result.folds:
            assert abs(fold.test["accuracy"] - 0.5) < 3 * fold.test["standard_error"]

    def test_the_random_split_looks_better_than_it_is(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """On walks whose labels overlap, memory of a neighbour passes for foresight."""
        table = pp.samples.simulate(6, 500, seed=2, split_rate=0, delist_rate=0, halt_rate=0, list_late=0)
        store = pp.render_universe(table, "jkx20", None, horizons=(60,), layout="bits", progress=False)
        options: dict[str, Any] = {
            "panel": table, "test": ("2001-05-01", None), "epochs": 12, "lr": 3e-3, "progress": False,
            "batch_size": 64, "patience": None,
        }  # fmt: skip
        leaky = _fit(store, "cnn1d", out=tmp_path / "random", split="random", **options)
        assert "share bars with a training image" in capsys.readouterr().out
        honest = _fit(store, "cnn1d", out=tmp_path / "time", split="time", **options)
        assert leaky.folds[0].fold.overlap > 0.99
        assert honest.folds[0].fold.overlap == 0
        # The images validate as if they were independent, far above chance ...
        seen = leaky.folds[0].members[0]["val_accuracy"]
        assert seen > 0.5 + 10 * 0.5 / len(leaky.folds[0].fold.validation) ** 0.5
        # ... and nothing of it is left out of sample. Labels over 60 bars of 6 instruments: about 28 are
        # independent in the test, and 10 in the validation by date.
        assert abs(leaky.test["accuracy"] - 0.5) < 3 * 0.5 / 28**0.5
        assert abs(honest.folds[0].members[0]["val_accuracy"] - 0.5) < 3 * 0.5 / 10**0.5
        assert seen > leaky.test["accuracy"] + 0.2


class TestBadInput:
    def test_horizon_without_returns(self, store: ImageStore) -> None:
        with pytest.raises(ValueError, match=r"no returns over 20 bars, only over 1, 5: choose one"):
            _fit(store, "jkx5", 20)

    def test_model_of_another_size(self, store: ImageStore) -> None:
        with pytest.raises(
            ValueError, match=r"jkx20 takes images of 64x60, .* are 32x15: choose jkx5 or cnnft5"
        ):
            _fit(store, "jkx20", 5)
        with pytest.raises(ValueError, match="cnn1d20 takes 20 bars"):
            _fit(store, "cnn1d20", 5)
        with pytest.raises(ValueError, match="no model 'resnet'"):
            _fit(store, "resnet", 5)
        with pytest.raises(ValueError, match="give the store's panel"):
            _fit(store, "logistic", 5)

    def test_empty_part(self, store: ImageStore, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the test part of split 'all' is empty"):
            _fit(store, "jkx5", 5, train="2000", test="2019", out=tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_labels_of_one_class(self, tmp_path: Path) -> None:
        n = 60
        close = 10 + 0.1 * np.arange(n)
        rising = np.stack([close - 0.05, close + 0.1, close - 0.1, close, np.full(n, 1e3)])
        time = np.datetime64("2000-01-01", "ns") + np.arange(n) * np.timedelta64(1, "D")
        panel = pp.Panel.from_arrays(*rising[:, :, None], instruments=["A"], time=time)
        store = pp.render_universe(panel, "jkx5", None, horizons=(5,), progress=False)
        with pytest.raises(
            ValueError, match="training labels of split 'all' are of class 1; there is nothing"
        ):
            _fit(store, "jkx5", out=tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_nan_loss(self, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Objective.__call__
        steps = iter(range(100))

        def poisoned(objective: Objective, logits: Any, target: Any) -> Any:
            losses = original(objective, logits, target)
            if logits.requires_grad and next(steps) == 40:
                return losses._replace(loss=losses.loss * float("nan"))
            return losses

        monkeypatch.setattr(Objective, "__call__", poisoned)
        options = QUICK | {"checkpoint_minutes": 0.0}
        with pytest.raises(
            ValueError, match=r"NaN or infinite at batch 18 of epoch 1 \(step 40\); the checkpoints last"
        ):
            _fit(store, SMALL, 5, out=tmp_path / "x", **options)
        state = torch.load(tmp_path / "x" / "member_0" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 40
        assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
        assert np.isfinite(train.load_model(tmp_path / "x").predict(store.read(slice(4)))).all()

    def test_other_arguments(self, store: ImageStore) -> None:
        for options, message in (
            ({"ensemble": 0}, "ensemble=0"),
            ({"balance": "smote"}, "balance='smote' is not known: choose one of 'none', 'weights'"),
            ({"split": "kfold"}, "split is 'kfold'"),
            ({"target": "down"}, "target is 'down'"),
            ({"balance": "weights", "target": "return"}, "has no classes"),
            ({"resume": True}, "give out"),
            ({"split": train.TimeSplit("2000"), "test": "2001"}, "split's own arguments"),
        ):
            with pytest.raises(ValueError, match=message):
                _fit(store, "jkx5", 5, **options)
        with pytest.raises(TypeError, match="'learning_rate'"):
            _fit(store, "jkx5", 5, learning_rate=1)
        with pytest.raises(ValueError, match=r"returns over 1, 5 bars|no returns"):
            _fit(store, "jkx5", 7)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": -1}, "seed=-1: give a whole number of at least 0"),
            ({"seed": None}, "seed=None: give a whole number"),
            ({"ensemble": 1.5}, "ensemble=1.5: give a whole number of at least 1"),
            ({"precision": "fp8"}, "precision='fp8': .*'bf16-mixed'"),
            ({"precision": "transformer-engine"}, "precision='transformer-engine'"),
            ({"accelerator": "tpux"}, "accelerator='tpux'.* cpu"),
            ({"accelerator": "cpu", "devices": 0}, "devices=0"),
            ({"accelerator": "cpu", "devices": 3}, "batch_size is 32, which 3 devices cannot share"),
            ({"device": 3}, "device is 3; give 'cpu'"),
            ({"threads": 0}, "threads=0: give a whole number of at least 1"),
            ({"log_every": 0}, "log_every=0"),
            ({"checkpoint_minutes": -1}, "checkpoint_minutes=-1: give a number of at least 0"),
            ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes=nan"),
            ({"pool_bytes": -1}, "pool_bytes=-1"),
            ({"pool_bytes": "2GB"}, "pool_bytes='2GB'"),
            ({"horizon": "5"}, "horizon='5': give a whole number of at least 1"),
            ({"target": None}, "target is None; choose 'up'"),
            ({"batch_size": 32.5}, "batch_size=32.5: give a whole number"),
            ({"epochs": 1.5}, "epochs=1.5"),
            ({"patience": 1.5}, "patience=1.5: give a whole number of at least 1, or None"),
            ({"lr": "1e-3"}, "lr='1e-3': give a number above 0"),
            ({"lr": float("inf")}, "lr=inf"),
            ({"weight_decay": -1}, "weight_decay=-1: give a number of at least 0"),
            ({"embargo": "x"}, "'x'"),
            ({"model": "logistic", "panel": "none.csv"}, r"none\.csv"),
        ],
    )
    def test_arguments_are_checked_before_there_is_a_folder(
        self, store: ImageStore, tmp_path: Path, options: Any, message: str
    ) -> None:
        given = {"model": SMALL, "horizon": 5, "out": tmp_path / "x"} | QUICK | options
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            _fit(store, **given)
        assert not (tmp_path / "x").exists()

    def test_hyper_is_a_preset_or_one_s_own(self, store: ImageStore) -> None:
        with pytest.raises(TypeError, match="hyper is a dict; give a Hyper, or one of paper"):
            _fit(store, SMALL, 5, hyper={"lr": 1.0})

    @pytest.mark.parametrize("there", [False, True])
    def test_what_fails_before_its_first_checkpoint_leaves_nothing(
        self, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
    ) -> None:
        out = tmp_path / "x"
        if there:
            out.mkdir()
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == 3:
                (out / "noted by somebody else.txt").touch()
                raise RuntimeError("out of memory")
            return original(trainer, inputs, target)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="out of memory"):
                _fit(store, SMALL, 5, out=out, split="walk", train="3m", test="1m", **QUICK)
        assert [path.name for path in out.iterdir()] == ["noted by somebody else.txt"]
        (out / "noted by somebody else.txt").unlink()
        # The corrected call, of other arguments.
        assert _fit(store, SMALL, 5, out=out, seed=1, **(QUICK | {"epochs": 1})).folds[0].members

    def test_a_resumed_run_is_kept_when_it_fails_again(
        self, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed before its first checkpoint it is resumed; what then fails leaves it as it was."""
        out = tmp_path / "x"
        _fit(store, SMALL, 5, out=out, **QUICK)
        shutil.rmtree(out / "member_0")

        def dying(*arguments: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(Trainer, "training_step", dying)
        with pytest.raises(RuntimeError, match="out of memory"):
            _fit(store, SMALL, 5, out=out, resume=True, **QUICK)
        assert (out / "config.yaml").exists()

    def test_bars_are_no_images(self, store: ImageStore, table: Any) -> None:
        for given in (table, pp.Panel.from_table(table), None):
            with pytest.raises(
                TypeError, match=r"is not a set of images: give a store, its path, or PanelImages"
            ) as no:
                _fit(given, SMALL, 5)
            assert len(str(no.value)) < 200

    def test_panel_images_are_called_so(self, table: Any) -> None:
        images = pp.PanelImages(table, "jkx5", horizons=())
        for horizon in (None, 20):
            with pytest.raises(ValueError, match=r"panel images of 10 .* with horizons=\((5|20),\)"):
                _fit(images, SMALL, horizon)
        images = pp.PanelImages(table, "jkx5", horizons=(1, 2))
        for model, horizon in (("jkx5", None), ("jkx5", 20), ("jkx20", 1), ("cnn1d20", 1)):
            with pytest.raises(ValueError, match="panel images of 10 instruments") as no:
                _fit(images, model, horizon)
            assert "store" not in str(no.value)

    @pytest.mark.parametrize("missing", ["torch", "lightning"])
    def test_missing_packages(self, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from pricepix import train; train.fit(None)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode
        assert 'pip install "pricepix[train]"' in run.stderr.splitlines()[-1]

    def test_splits_need_no_torch(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; "
            "from pricepix.train import TimeSplit, make_targets, window_series; import pricepix.images.batches"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_networks_need_no_lightning(self) -> None:
        code = (
            "import sys; sys.modules['lightning'] = None; from pricepix import train; train.PriceCNN('jkx5')"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def split_bars() -> Any:
    return pp.samples.simulate(10, 120, seed=5, delist_rate=0, split_rate=0.01, halt_rate=0, list_late=0)


@pytest.fixture(scope="module")
def panels(split_bars: Any) -> dict[str, pp.Panel]:
    """Those that the images show, and others."""
    adjusted = pp.Panel.from_table(split_bars, adjust="multiply", progress=False)
    plain = pp.Panel(adjusted.bars, adjusted.offsets, adjusted.instruments, adjusted.time, adjusted.tz)
    return {
        "own": adjusted,
        "of other fields": plain,
        "raw": pp.Panel.from_table(split_bars, progress=False),
        "begins later": pp.Panel.from_table(
            split_bars.filter(split_bars["time"] > split_bars["time"].unique().sort()[3]),
            adjust="multiply",
            progress=False,
        ),
    }


@pytest.fixture(scope="module", params=["on disk", "appended to", "in memory", "loaded", "drawn"])
def split_images(
    request: Any, split_bars: Any, panels: dict[str, pp.Panel], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    options: dict[str, Any] = {"horizons": (5,), "progress": False}
    if request.param == "drawn":
        return pp.PanelImages(panels["own"], "jkx5", horizons=(5,))
    if request.param == "in memory":
        return pp.render_universe(panels["own"], "jkx5", None, chunk=100, **options)
    folder = tmp_path_factory.mktemp("stores") / "s"
    cut = split_bars["time"].unique().sort()[100]
    earlier = pp.Panel.from_table(
        split_bars.filter(split_bars["time"] < cut), adjust="multiply", progress=False
    )
    made = pp.render_universe(earlier, "jkx5", folder, **options)
    if request.param == "on disk":
        # The panels above are longer than the one that it was made from.
        return made
    made = pp.append(made, panels["own"], progress=False)
    return made.load() if request.param == "loaded" else made


class TestTheImagesOwnPanel:
    """A baseline learns from the bars that the images show, and from no others."""

    LEARN = QUICK | {"epochs": 1, "model": "logistic", "horizon": 5}

    @pytest.mark.parametrize("which", ["own", "of other fields"])
    def test_a_panel_of_the_same_bars_is_taken(
        self, split_images: Any, panels: dict[str, pp.Panel], tmp_path: Path, which: str
    ) -> None:
        result = _fit(split_images, panel=panels[which], out=tmp_path / "x", **self.LEARN)
        assert result.folds[0].members

    def test_other_bars_are_refused(
        self, split_images: Any, panels: dict[str, pp.Panel], tmp_path: Path
    ) -> None:
        with pytest.raises(
            ValueError, match=r"the panel.* is not that of .*: it gives a different image of S\d+ at "
        ) as no:
            _fit(split_images, panel=panels["raw"], out=tmp_path / "x", **self.LEARN)
        assert "give the panel that the images were made from, read with the same arguments" in str(no.value)
        assert ("leave panel out" in str(no.value)) == isinstance(split_images, pp.PanelImages)
        if (digest := split_images.attrs.get("panel_digest")) is not None:
            assert f"(digest {panels['raw'].digest})" in str(no.value)
            assert f"({digest})" in str(no.value)
        with pytest.raises(ValueError, match="it gives a different image of"):
            _fit(split_images, panel=panels["begins later"], out=tmp_path / "x", **self.LEARN)
        # As much for a network on images, for which the panel says where windows begin.
        with pytest.raises(ValueError, match="it gives a different image of"):
            _fit(split_images, panel=panels["raw"], out=tmp_path / "x", **(self.LEARN | {"model": SMALL}))
        assert not (tmp_path / "x").exists()


def test_drawing_leaves_torch_its_number_of_threads() -> None:
    """No kernel of ours starts Numba's threads, which share OpenMP with torch; in a process of its own."""
    code = """
        import torch
        import pricepix as pp

        number = torch.get_num_threads() + 1
        torch.set_num_threads(number)
        panel = pp.Panel.from_table(pp.samples.simulate(3, 60, seed=1), adjust="multiply", progress=False)
        images = pp.PanelImages(panel, "jkx5", (5,))
        assert len(images.read(slice(32)))
        assert torch.get_num_threads() == number
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_lightning_is_one_that_these_tests_have_passed_with() -> None:
    """The oldest is 2.6.0."""
    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = {found.name: found for found in map(Requirement, project["optional-dependencies"]["train"])}
    assert "2.5.6" not in needed["lightning"].specifier
    assert "2.6.0" in needed["lightning"].specifier


@pytest.mark.parametrize("target", ["up", "terciles"])
def test_a_run_on_the_cpu_predicts_there_too(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Even where torch sees a GPU, which another process may fill; without one moving there fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    used = []
    forward = train.PriceCNN.forward

    def noted(model: Any, *arguments: Any) -> Any:
        used.append(model.mean.device.type)
        return forward(model, *arguments)

    monkeypatch.setattr(train.PriceCNN, "forward", noted)
    options = QUICK | {"epochs": 1, "test": "2000-05-15..", "target": target}
    result = _fit(store, SMALL, 5, out=tmp_path / "run", device="cpu", **options)
    assert result.test["images"] == len(result.folds[0].predictions) > 0
    assert set(used) == {"cpu"}


@pytest.mark.parametrize(
    ("accelerator", "devices", "rank", "expected"),
    [
        ("cpu", "auto", None, "cpu"),
        ("cpu", 2, "1", "cpu"),
        ("auto", "auto", None, "cuda:0"),
        ("auto", "auto", "1", "cuda:1"),
        ("gpu", [1], None, "cuda:1"),
        ("gpu", "1,", None, "cuda:1"),
        ("cuda", 2, "1", "cuda:1"),
        ("gpu", [1, 0], "1", "cuda:0"),
    ],
)
def test_a_process_predicts_on_the_device_that_it_trained_on(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, devices: Any, rank: str | None, expected: str
) -> None:
    """As on a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(Device(accelerator, devices).own()) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(Device(accelerator, devices).own()) == "cpu"


def test_store_dataset_under_torch_workers(store: ImageStore, tmp_path: Path, table: Any) -> None:
    stored = pp.render_universe(table, "jkx5", tmp_path / "s", horizons=(5,), chunk=128, progress=False)
    dataset = train.StoreDataset(stored, batch_size=32, seed=1)
    dataset.set_epoch(2)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    batches = list(loader)
    index = torch.cat([b[1] for b in batches]).numpy()
    np.testing.assert_array_equal(np.sort(index), np.arange(len(stored)))
    np.testing.assert_array_equal(torch.cat([b[0] for b in batches]).numpy(), stored.read(index))
