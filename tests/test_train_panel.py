"""Panel images and loaded stores in place of a store: training, scoring, evaluation, pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402
from pricepix.images.image_set import ImageSet  # noqa: E402
from pricepix.train.loader import ArrayReader, Loader, _pinned  # noqa: E402
from pricepix.train.loop import Trainer, make_loader  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(4, 1)),))
QUICK: dict[str, Any] = {
    "horizon": 5, "batch_size": 32, "epochs": 2, "validations": 2, "lr": 1e-3, "seed": 3, "patience": None,
    "checkpoint_minutes": 0.0, "progress": False,
}  # fmt: skip


def _fit(*arguments: Any, **options: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train.fit(*arguments, **options)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    table = pp.samples.simulate(10, 120, seed=5, delist_rate=0, split_rate=0, halt_rate=0.01, list_late=0)
    return pp.Panel.from_table(table, progress=False)


@pytest.fixture(scope="module")
def store(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> pp.ImageStore:
    path = tmp_path_factory.mktemp("stores") / "s"
    return pp.render_universe(panel, "jkx5", path, horizons=(1, 5), progress=False)


@pytest.fixture(scope="module", params=["panel", "packed", "pixels"])
def images(request: Any, panel: pp.Panel, store: pp.ImageStore) -> ImageSet:
    if request.param == "panel":
        return pp.PanelImages(panel, "jkx5", horizons=(1, 5))
    return store.load(packed=request.param == "packed")


@pytest.fixture(scope="module")
def of_store(store: pp.ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _fit(store, SMALL, out=tmp_path_factory.mktemp("runs") / "store", test="2000-05", **QUICK)


def _weights(out: Path, name: str = "last.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "member_0" / name, weights_only=True)["state_dict"]
    return found


def _same(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestTraining:
    def test_gives_the_weights_that_the_store_gives(
        self, images: ImageSet, of_store: Any, tmp_path: Path
    ) -> None:
        ours = _fit(images, SMALL, out=tmp_path / "run", test="2000-05", **QUICK, device="cpu")
        assert _same(tmp_path / "run", of_store.out)
        assert ours.test == of_store.test
        np.testing.assert_array_equal(ours.folds[0].predictions, of_store.folds[0].predictions)
        assert ours.config["store"]["digest"] == images.digest

    def test_killed_and_resumed(
        self, images: ImageSet, of_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == 13:
                raise RuntimeError("killed")
            return original(trainer, inputs, target)

        options = QUICK | {"out": tmp_path / "run", "test": "2000-05"}
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="killed"):
                _fit(images, SMALL, **options)
        assert torch.load(tmp_path / "run" / "member_0" / "last.ckpt", weights_only=True)["global_step"] == 13
        _fit(images, SMALL, **options, resume=True)
        assert _same(tmp_path / "run", of_store.out)

    def test_other_images_do_not_resume_a_run(self, panel: pp.Panel, tmp_path: Path) -> None:
        _fit(pp.PanelImages(panel, "jkx5", horizons=(1, 5)), SMALL, out=tmp_path / "run", **QUICK)
        other = pp.PanelImages(panel, "jkx5", horizons=(1, 5), start="2000-01-20")
        with pytest.raises(ValueError, match="was started with another store: digest was"):
            _fit(other, SMALL, out=tmp_path / "run", **QUICK, resume=True)

    def test_a_loaded_store_resumes_where_the_store_stopped(
        self, store: pp.ImageStore, of_store: Any
    ) -> None:
        again = _fit(store.load(), SMALL, out=of_store.out, test="2000-05", resume=True, **QUICK)
        assert again.test == of_store.test

    def test_a_baseline_finds_the_numbers_by_itself(self, panel: pp.Panel, tmp_path: Path) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        assert _fit(images, "logistic", out=tmp_path / "run", **QUICK).folds[0].members

    @pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:1", ""])
    def test_devices_that_are_none(self, panel: pp.Panel, device: str) -> None:
        with pytest.raises(ValueError, match="give 'cpu', 'cuda' or 'cuda:1'"):
            _fit(pp.PanelImages(panel, "jkx5"), SMALL, device=device, **QUICK)

    def test_a_device_is_named_once(self, panel: pp.Panel) -> None:
        with pytest.raises(ValueError, match="give one or the other"):
            _fit(pp.PanelImages(panel, "jkx5"), SMALL, device="cpu", accelerator="cpu", **QUICK)
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="sees no GPU"):
                _fit(pp.PanelImages(panel, "jkx5"), SMALL, device="cuda", **QUICK)

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
    def test_loader_workers_share_an_epoch(self, images: ImageSet, method: str) -> None:
        dataset = train.StoreDataset(images, batch_size=50, seed=2)
        dataset.set_epoch(1)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=method
        )
        whole = images.read()
        seen = []
        for pixels, index in loader:
            np.testing.assert_array_equal(pixels.numpy(), whole[index.numpy()])
            seen.append(index.numpy())
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(images)))


class TestAfterwards:
    def test_scores_and_evaluation(
        self, images: ImageSet, store: pp.ImageStore, panel: pp.Panel, of_store: Any, tmp_path: Path
    ) -> None:
        theirs = factor.score(store, of_store.model, None, progress=False)
        ours = factor.score(images, of_store.model, tmp_path / "factor.zarr", progress=False)
        np.testing.assert_array_equal(np.asarray(ours.factor[:]), np.asarray(theirs.factor[:]))
        # Asked again, there is nothing left to do.
        factor.score(images, of_store.model, tmp_path / "factor.zarr", progress=False)
        options: dict[str, Any] = {"horizon": 5, "baselines": (), "quantiles": 3, "progress": False}
        judged = factor.evaluate(ours, panel, **options)
        expected = factor.evaluate(theirs, panel, **options)
        assert judged.figures["ic"] == expected.figures["ic"]
        page = pp.factor.write_report(judged, tmp_path / "report.html", store=images)
        assert page.stat().st_size > 10_000

    def test_workers_elsewhere_need_a_store(self, images: ImageSet, of_store: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="which lives in this process"):
            factor.score(
                images, of_store.model, tmp_path / "f.zarr", client=types.SimpleNamespace(scatter=None)
            )

    def test_pictures(self, images: ImageSet, panel: pp.Panel, tmp_path: Path) -> None:
        assert pp.contact_sheet(images, tmp_path / "sheet.png", n=6).stat().st_size > 1000
        name, time = images.index["instrument"][7], images.index["time"][7]
        assert pp.enlarge(images, name, time, tmp_path / "one.png", panel=panel).exists()

    def test_attribution(self, images: ImageSet, of_store: Any) -> None:
        pytest.importorskip("captum")
        from pricepix.factor.evaluation.attribution import grad_cam

        maps = grad_cam(of_store.model, images.read(slice(4)))
        assert maps["last"].shape == (4, 32, 15)


def _in_the_simulator(code: str, folder: Path) -> str:
    """What code prints in CUDA's simulator, which must be chosen before Numba is imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_device_draws_the_same_batches(tmp_path: Path) -> None:
    code = """
        import numpy as np, torch
        import pricepix as pp
        from pricepix.train.loader import Loader
        table = pp.samples.simulate(3, 30, seed=1, delist_rate=0, list_late=0)
        images = pp.PanelImages(pp.Panel.from_table(table, progress=False), "jkx5", horizons=(5,))
        assert images.renders_on("cuda") and not images.renders_on("cpu")
        assert images._renderer("cuda") is images._renderer("cuda:0")
        options = dict(mask=np.arange(20), batch_size=6, seed=2)
        ours = images.batches(**options, device="cuda", threads=2)
        for one, other in zip(ours.epoch(1, 1), images.batches(**options).epoch(1, 1), strict=True):
            assert isinstance(one[0], torch.Tensor) and one[0].dtype == torch.uint8
            assert np.array_equal(one[0].numpy(), other.images) and np.array_equal(one[1].numpy(), other.index)
        targets = torch.arange(len(images))
        given = list(Loader(ours, targets).epoch(3))
        assert [len(batch[1]) for batch in given] == [6, 6, 6, 2]
        assert sorted(torch.cat([batch[1] for batch in given]).tolist()) == list(range(20))
        print("same")
    """
    assert _in_the_simulator(code, tmp_path) == "same"


def test_a_device_draws_no_window_whose_bars_have_changed(tmp_path: Path) -> None:
    """The error is the CPU reader's; it comes before a batch with such a window, and at most once."""
    code = """
        import numpy as np
        import pricepix as pp
        table = pp.samples.simulate(1, 30, seed=1, delist_rate=0, list_late=0)
        panel = pp.Panel.from_table(table, adjust="multiply", progress=False)
        for rebuild in (None, "returns"):
            spec = pp.ImageSpec.preset("jkx5").replace(rebuild=rebuild)
            bars = panel.bars.copy()
            fields = {name: values.copy() for name, values in panel.fields.items()}
            mine = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, None, fields)
            images = pp.PanelImages(mine, spec, horizons=())
            for values in (bars, *fields.values()):
                values.flags.writeable = True
                values[images.windows.row[9] - 4 :] = np.nan
            options = dict(mask=np.arange(12), batch_size=4, shuffle=False)
            for device in ("cuda", "cpu"):
                given = 0
                try:
                    for batch in images.batches(**options, device=device):
                        given += 1
                except ValueError as error:
                    print(given, error)
            # The first window is as it was, and whoever stops there hears of nothing else.
            batches = images.batches(mask=np.arange(2), batch_size=1, shuffle=False, device="cuda").epoch()
            try:
                for batch in batches:
                    raise KeyError("one's own")
            except KeyError:
                batches.close()
    """
    plain, of_cpu, rebuilt, rebuilt_of_cpu = _in_the_simulator(code, tmp_path).splitlines()
    for line in (of_cpu, rebuilt_of_cpu):
        assert "of panel images of 1 instruments can no longer be drawn (" in line
    assert plain == "0 " + of_cpu.partition(" ")[2]
    # After a first batch with all its windows.
    assert rebuilt == rebuilt_of_cpu
    assert rebuilt[0] != "0"


def test_a_run_draws_on_its_device_what_is_not_augmented(panel: pp.Panel, tmp_path: Path) -> None:
    """Augmented batches come from the CPU, wherever the network is; those that validate from its device."""
    code = """
        import pricepix as pp
        from pricepix import train
        made = []
        class OnDevice(pp.PanelImages):
            # The trainer has the CPU, for which the simulator stands in.
            def renders_on(self, device):
                return super().renders_on("cuda")
            def _reader(self, selection, **options):
                if "device" in options:
                    options["device"] = "cuda"
                reader = super()._reader(selection, **options)
                made.append((type(reader).__name__, getattr(reader, "augment", None)))
                return reader
        table = pp.samples.simulate(3, 40, seed=1, delist_rate=0, list_late=0)
        panel = pp.Panel.from_table(table, progress=False)
        network = train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(8, 2)),))
        augment = pp.Augment(invert=0.5)
        for change in (augment, None):
            figures = []
            for kind in (pp.PanelImages, OnDevice):
                result = train.fit(
                    kind(panel, "jkx5", horizons=(5,)), network, out=f"{kind.__name__}-{change is None}",
                    augment=change, epochs=1, validations=1, batch_size=16, progress=False,
                )
                figures.append(result.folds[0].members[0]["val_loss"])
            assert figures[0] == figures[1]
            print(*(f"{name} {changed is not None}" for name, changed in made), sep=", ")
            made.clear()
    """
    # What fit looks at before there is a folder; the statistics; training; validation.
    augmented, plain = _in_the_simulator(code, tmp_path).splitlines()
    assert augmented == "PanelReader True, PanelReader False, PanelReader True, DeviceReader False"
    assert plain == "PanelReader False, DeviceReader False, DeviceReader False"


class TestPinned:
    """Batches on their way to a GPU; only where there is one can memory be pinned, so that a copy stands in for it."""

    @staticmethod
    def _loader(**options: Any) -> list[Any]:
        reader = ArrayReader(np.arange(60.0).reshape(20, 3), np.arange(20), batch_size=8, shuffle=True)
        return list(Loader(reader, torch.arange(20), **options).epoch())

    def test_batches_are_copied_to_pinned_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pinned: list[Any] = []

        def pin(tensor: Any) -> Any:
            pinned.append(tensor.clone())
            return pinned[-1]

        plain = self._loader()
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        given = self._loader(pinned=True)
        assert len(given) == 3
        assert [id(part) for batch in given for part in batch[:2]] == [id(part) for part in pinned]
        for ours, theirs in zip(given, plain, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])

    def test_what_a_device_made_stays_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("it is on a device"))
        made = torch.empty(3, device="meta")
        assert _pinned(made) is made

    def test_for_a_cpu_nothing_is_pinned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("there is no GPU"))
        assert len(self._loader()) == 3

    @pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda:1", True)])
    def test_the_device_that_trains_decides(self, device: str, pinned: bool) -> None:
        asked = []

        def make_reader(part: str, rank: int, ranks: int, where: str) -> Any:
            asked.append(where)
            return ArrayReader(np.zeros((4, 1)), np.arange(4), batch_size=2, shuffle=False)

        fabric = types.SimpleNamespace(device=torch.device(device), global_rank=0, world_size=1)
        member = types.SimpleNamespace(
            make_reader=make_reader, targets=torch.arange(4), mirrored=None, weights=None, dates=None
        )
        for part in ("train", "validation"):
            loader = make_loader(fabric, member, part)  # type: ignore[arg-type]
            assert (loader._ready is _pinned) is pinned
        assert asked == [device, device]
