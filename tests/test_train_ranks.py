"""Several processes train one network: what each reads, what they agree on, who writes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402

RANKS = 2
CONFIG = """
out: out
data: {source: bars.parquet}
image: {preset: jkx5}
store: {horizons: [5], chunk: 64}
train:
  model: jkx5
  test: 2000-05-15..
  ensemble: 2
  settings: {batch_size: 64, epochs: 2, lr: 0.001, validations: 2, patience: null}
  accelerator: cpu
  devices: 2
score: {}
evaluate: {quantiles: 3, baselines: [STR]}
"""
JOB = """
import os

import numpy as np
import torch
from pricepix.cli import main
from pricepix.train import loop

torch.set_num_threads(1)
rank = os.environ.get("LOCAL_RANK", "0")
read, member, saved = {}, 0, 0
loader, write, run = loop.make_loader, loop.write_checkpoint, loop.Trainer.run

class Noting:
    def __init__(self, reader, part):
        self.reader, self.part = reader, part

    def __len__(self):
        return len(self.reader)

    def epoch(self, number, start):
        note = read.setdefault(f"{member}/{self.part}/{len(read)}", [])
        for images, index in self.reader.epoch(number, start):
            note.append(index)
            yield images, index

def noting(fabric, member, part):
    made = loader(fabric, member, part)
    made._reader = Noting(made._reader, part)
    return made

def write_checkpoint(*arguments):
    global saved
    saved += 1
    write(*arguments)

def run_and_keep(trainer):
    global member
    report = run(trainer)
    torch.save(dict(trainer.network.named_parameters()), f"weights_{member}_{rank}.pt")
    member += 1
    return report

loop.make_loader, loop.write_checkpoint, loop.Trainer.run = noting, write_checkpoint, run_and_keep
main(["run", "config.yaml", "--no-progress"], standalone_mode=False)
arrays = {f"{name}#{k}": index for name, batches in read.items() for k, index in enumerate(batches)}
np.savez(f"read_{rank}.npz", saved=saved, **arrays)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which two processes trained each of two networks, by the command that a user gives."""
    folder = tmp_path_factory.mktemp("ranks")
    table = pp.samples.simulate(8, 110, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    table.write_parquet(folder / "bars.parquet")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "job.py").write_text(textwrap.dedent(JOB))
    done = subprocess.run(
        [sys.executable, "job.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def notes(folder: Path, rank: int) -> dict[str, Any]:
    with np.load(folder / f"read_{rank}.npz") as found:
        return {name: found[name] for name in found.files}


def test_ranks_share_every_epoch(ran: Path) -> None:
    """No image twice and none left out; as many batches for each, so that nobody waits for ever."""
    images = [model.metadata["train_images"] for model in train.load_model(ran / "out" / "run").members]
    mine, theirs = (notes(ran, rank) for rank in range(RANKS))
    assert mine.keys() == theirs.keys()
    passes: dict[tuple[str, str], list[Any]] = {}
    for name in dict.fromkeys(key.partition("#")[0] for key in mine if "#" in key):
        member, part, _ = name.split("/")
        batches = [[index for key, index in f.items() if key.startswith(f"{name}#")] for f in (mine, theirs)]
        assert len(batches[0]) == len(batches[1])
        seen = np.concatenate([index for own in batches for index in own])
        assert len(seen) == len(np.unique(seen))
        passes.setdefault((member, part), []).append(seen)
    for member in range(2):
        # Two epochs, each validated twice.
        first, second = passes[str(member), "train"]
        assert len(first) == images[member]
        assert set(first) == set(second)
        assert (first != second).any()
        validations = passes[str(member), "validation"]
        assert len(validations) == 4
        assert len({tuple(np.sort(seen)) for seen in validations}) == 1
        assert not np.isin(validations[0], first).any()


def test_ranks_end_with_the_same_weights(ran: Path) -> None:
    for member in range(2):
        one, other = (torch.load(ran / f"weights_{member}_{rank}.pt") for rank in range(RANKS))
        saved = torch.load(ran / "out" / "run" / f"member_{member}" / "last.ckpt", weights_only=True)[
            "state_dict"
        ]
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name])
            assert torch.equal(value, saved[name])
    first, second = (torch.load(ran / f"weights_{member}_0.pt") for member in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_one_rank_writes_and_continues(ran: Path) -> None:
    # Notes on a result are indented below it.
    steps = [line.split()[0] for line in (ran / "said.txt").read_text().splitlines() if line[0] != " "]
    assert steps == ["data", "build", "train", "score", "evaluate"]
    assert (ran / "out" / "report.html").exists()
    assert notes(ran, 0)["saved"] > 4
    assert notes(ran, 1)["saved"] == 0
    for member in range(2):
        folder = ran / "out" / "run" / f"member_{member}"
        assert sorted(path.name for path in folder.iterdir()) == [
            "best.ckpt", "done.json", "last.ckpt", "metrics.csv", "tensorboard",
        ]  # fmt: skip
        assert len(list((folder / "tensorboard").iterdir())) == 1
        # A header and four validations.
        assert len((folder / "metrics.csv").read_text().splitlines()) == 5
