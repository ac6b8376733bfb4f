"""What is wrong in a run or a checkpoint is found by verify and by whatever reads it, which name the file."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402
from pricepix.cli import main  # noqa: E402
from pricepix.factor import score  # noqa: E402
from pricepix.store.sealed_files import (  # noqa: E402
    check_archive,
    read_sealed_json,
    read_sealed_yaml,
    write_sealed_json,
)
from pricepix.train.checkpoints import load_model, read_checkpoint, save_model  # noqa: E402
from pricepix.train.journal import read_rows  # noqa: E402
from pricepix.train.loop import Trainer  # noqa: E402

FLIPS = int(os.environ["PRICEPIX_FUZZ"])
OPTIONS: dict[str, Any] = {
    "horizon": 5, "ensemble": 2, "batch_size": 32, "epochs": 1, "lr": 1e-3, "patience": None, "device": "cpu",
    "progress": False,
}  # fmt: skip
SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(2, pool=(4, 1)),))


@pytest.fixture(scope="module")
def store() -> Any:
    bars = pp.samples.simulate(6, 70, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    return pp.render_universe(bars, "jkx5", None, horizons=(1, 5), chunk=128, progress=False)


def fit(store: Any, out: Path, **options: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train.fit(store, SMALL, out=out, **(OPTIONS | options))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(store: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    fit(store, out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


MORE: dict[str, Any] = {"checkpoint_minutes": 0.0, "validations": 2}


@pytest.fixture(scope="module")
def stopped_once(store: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in its second network, after the first validation."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    original = Trainer._save_last

    def stopping(trainer: Trainer) -> None:
        original(trainer)
        if trainer.member.folder.name == "member_1" and trainer._validations.best_step is not None:
            raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save_last", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            fit(store, out, **MORE)
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


# Of every kind of file: its path, and the function that reads it.
FILES: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_sealed_yaml,
    "summary.json": read_sealed_json,
    "member_0/done.json": read_sealed_json,
    "member_0/best.ckpt": load_model,
    "member_1/last.ckpt": read_checkpoint,
    "member_1/metrics.csv": read_rows,
    "member_0/tensorboard/*": lambda path: None,
}


def the_file(run: Path, name: str) -> Path:
    (found,) = run.glob(name)
    return found


def flip(path: Path, content: bytes, bit: int) -> None:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def chosen_bits(content: bytes) -> list[int]:
    """First, middle and last byte, and others drawn at random."""
    rng, size = random.Random(len(content)), 8 * len(content)
    return [0, 7, size // 2, size - 8, size - 1, *(rng.randrange(size) for _ in range(FLIPS // 2))]


def test_a_sound_run_and_a_sound_checkpoint(run: Path) -> None:
    report = train.verify_run(run)
    assert (report.problems, report.notes) == ([], [])
    assert report.files == sum(path.is_file() for path in run.rglob("*"))
    assert str(report) == f"{run} (files): {report.files} files read; sound"
    assert train.verify_run(run / "member_0" / "best.ckpt").files == 1


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_and_the_file_named(run: Path, name: str) -> None:
    path = the_file(run, name)
    content = path.read_bytes()
    for bit in chosen_bits(content):
        flip(path, content, bit)
        if (read := FILES[name]) is read_rows:
            assert read_rows(path)[1] is not None, bit
        elif "tensorboard" not in name:
            with pytest.raises(ValueError, match=path.name):
                read(path)
        problems = train.verify_run(run).problems
        assert problems, bit
        assert all(str(path) in problem for problem in problems), (bit, problems)
    path.write_bytes(content)
    assert train.verify_run(run).ok


@pytest.mark.parametrize("name", FILES)
def test_torn_missing_and_swapped_files(run: Path, name: str) -> None:
    path = the_file(run, name)
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        report = train.verify_run(run)
        if not (size == 0 and "tensorboard" in name):
            assert any(str(path) in problem for problem in report.problems), size
    path.unlink()
    report = train.verify_run(run)
    # Without its summary a run is one that was stopped; nothing needs last.ckpt of a finished network, or its events.
    said = (
        report.notes
        if path.name in ("summary.json", "last.ckpt") or "tensorboard" in name
        else report.problems
    )
    assert len(said) == 1
    assert path.name in said[0] or "not finished" in said[0] or "no events" in said[0]
    if name == "member_0/best.ckpt":
        shutil.copyfile(run / "member_1/best.ckpt", path)
        assert train.verify_run(run).problems == [f"{path} is that of member 1: restore it"]
    if name == "member_1/metrics.csv":
        lines = content.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]))
        (problem,) = train.verify_run(run).problems
        assert "metrics.csv: it has no row of step" in problem


def test_a_whole_network_is_missing(store: Any, run: Path, tmp_path: Path) -> None:
    """An ensemble of fewer networks is another model: nothing scores with it."""
    shutil.rmtree(run / "member_1")
    (first, *_) = train.verify_run(run).problems
    assert str(run / "member_1" / "done.json") in first
    for use in (load_model, lambda path: score(store, path, tmp_path / "factor", progress=False)):
        with pytest.raises(FileNotFoundError, match=r"member_1/best\.ckpt is missing, one of the networks"):
            use(run)
    assert not (tmp_path / "factor").exists()


@pytest.mark.parametrize(
    "name", ["config.yaml", "member_0/done.json", "member_1/last.ckpt", "member_1/metrics.csv"]
)
def test_a_damaged_file_stops_a_resume(store: Any, stopped: Path, name: str) -> None:
    path = stopped / name
    content = path.read_bytes()
    flip(path, content, 4 * len(content))
    before = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=path.name):
        fit(store, stopped, resume=True, **MORE)
    assert {file: file.read_bytes() for file in before} == before


def test_a_run_that_is_not_finished_is_sound(store: Any, stopped: Path) -> None:
    report = train.verify_run(stopped)
    assert report.ok
    assert report.notes == ["the run is not finished: 1 networks are; resume=True finishes it"]
    # A record that a kill cut off is no damage, and a later process writes a file of its own.
    (events,) = (stopped / "member_1" / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-3])
    assert train.verify_run(stopped).ok
    fit(store, stopped, resume=True, **MORE)
    report = train.verify_run(stopped)
    assert report.ok
    assert report.notes == [f"{events} is cut off within its last record, as a kill leaves it"]


def test_a_checkpoint_elsewhere_keeps_its_checksum(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(run / "member_0" / "best.ckpt", tmp_path / "sent.pt"))
    model = load_model(copied)
    save_model(model, again := tmp_path / "again.pt")
    assert check_archive(again)
    assert np.array_equal(
        torch.load(again, weights_only=True)["state_dict"]["linear.weight"],
        torch.load(copied, weights_only=True)["state_dict"]["linear.weight"],
    )


def test_files_with_checksums_round_trip(tmp_path: Path) -> None:
    content = {"a": {"crc32c": "x"}, "b": [], "crc": 'crc32c": "'}
    write_sealed_json(tmp_path / "a.json", content)
    assert read_sealed_json(tmp_path / "a.json") == content
    held = (tmp_path / "a.json").read_bytes()
    (tmp_path / "a.json").write_bytes(held[:-9] + b"\x1b\0" + held[-7:])
    with pytest.raises(ValueError, match=r"it says .*\\x1b\\x00"):
        read_sealed_json(tmp_path / "a.json")


def test_the_command_says_what_it_found(run: Path, tmp_path: Path) -> None:
    def verify(path: Path) -> tuple[int, str]:
        found = CliRunner().invoke(main, ["verify", str(path), "--no-progress"])
        return found.exit_code, found.output

    assert verify(run)[1].startswith(f"run {run} (files): ")
    best = run / "member_0" / "best.ckpt"
    assert verify(best) == (0, f"checkpoint {best} (files): 1 files read; sound\n")
    flip(best, best.read_bytes(), 4000)
    code, said = verify(best)
    assert code == 1
    assert f"{best} is damaged" in said
    code, said = verify(run)
    assert code == 1
    assert f"{best} is damaged" in said
    assert verify(tmp_path / "none")[0] == 1
