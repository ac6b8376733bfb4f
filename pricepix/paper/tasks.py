"""One network of a replication: trained, scored, and known to be finished by what it leaves in its folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.location import atomic_file, write_json
from pricepix.paper.cells import Cell, network
from pricepix.paper.context import Context
from pricepix.paper.parts import Part
from pricepix.paper.training import Training
from pricepix.train.network_spec import CNNSpec, SeriesSpec
from pricepix.windows.labels import NO_TIME

__all__ = [
    "FORMAT_VERSION",
    "RUN",
    "Task",
    "computing_threads",
    "device_of",
    "read_done",
    "read_scores",
    "run_task",
    "score_windows",
    "scored_windows",
    "teaching_windows",
]

FORMAT_VERSION: Final = 1
_DONE, _SCORES, RUN = "done.json", "scores.npy", "run"
_BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class Task:
    """A cell, a part of a split, a model and a seed.

    Attributes
    ----------
    cell : Cell
    split : str
    part : Part
    model : str
        ``cnn``, or a control such as ``cnn1d:image``.
    seed : int
    """

    cell: Cell
    split: str
    part: Part
    model: str
    seed: int

    @property
    def name(self) -> str:
        """What the task is called where its progress is told."""
        return f"{self.cell.name} {self.split} {self.part.name} {self.model} seed {self.seed}"

    @property
    def path(self) -> str:
        """Its folder, below that of the replication."""
        model = self.model.replace(":", "-")
        return f"tasks/{self.cell.folder}/{self.split}/{self.part.name}/{model}/seed_{self.seed}"

    def network(self, context: Context) -> CNNSpec | SeriesSpec:
        """The network that it trains."""
        training = context.training
        return network(self.model, self.cell.image, training.channels, training.networks)

    def input_size(self, context: Context) -> int:
        """Numbers in an input of its network, by which networks are ordered from small to large."""
        spec = self.network(context)
        return spec.height * spec.width if isinstance(spec, CNNSpec) else spec.channels * spec.lookback

    def digest(self, context: Context) -> str:
        """32 hexadecimal digits of everything that decides its scores."""
        found = {
            "format_version": FORMAT_VERSION,
            "panel": context.panel.digest,
            "image": self.cell.image.digest,
            "horizon": self.cell.horizon,
            "part": self.part.describe(),
            "network": self.network(context).to_dict(),
            "seed": self.seed,
            "training": context.training.describe(),
        }
        text = json.dumps(found, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def is_done(self, context: Context) -> bool:
        """Whether its folder is whole.

        Raises
        ------
        ValueError
            If the folder is that of a task with other settings.
        """
        folder = context.folder / self.path
        done = read_done(folder / _DONE)
        if done is None:
            return False
        if done.get("digest") != self.digest(context):
            raise ValueError(
                f"{folder} was trained on other bars or with other settings: give the same ones, another folder, or "
                "delete it to train it again"
            )
        scores = folder / _SCORES
        return scores.is_file() and _checksum(scores) == done.get("scores")

    def scores(self, context: Context) -> NDArray[np.float32]:
        """Read its scores, float32, one a window of `scored_windows`.

        Raises
        ------
        ValueError
            If the file does not hold them.
        """
        return read_scores(
            context.folder / self.path / _SCORES, len(scored_windows(context, self.cell, self.part))
        )


def read_scores(path: Path, expected: int) -> NDArray[np.float32]:
    """Read a file of so many scores; ValueError if it does not hold them."""
    size = path.stat().st_size
    if size > 4 * expected + 4096:
        raise ValueError(
            f"{path} has {size:,} bytes, more than {expected:,} scores: delete it to score again"
        )
    found = np.load(path, allow_pickle=False)
    if found.dtype != np.float32 or found.shape != (expected,):
        raise ValueError(
            f"{path} holds {found.dtype} {found.shape}, not {expected:,} scores: delete it to score again"
        )
    return np.asarray(found)


def read_done(path: Path) -> dict[str, Any] | None:
    """Return what a finished step left, None if it is not there or cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _checksum(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def teaching_windows(context: Context, cell: Cell, part: Part) -> NDArray[np.bool_]:
    """Windows that may train or validate: those whose return is known when the test begins, bool (windows,)."""
    images = context.images(cell)
    leave = images.exit_time(cell.horizon)
    known = (leave != NO_TIME) & (leave <= part.first)
    taught = known & (images.time >= part.begin) & (images.time < part.first)
    return np.asarray(taught & context.allowed(cell))


def scored_windows(context: Context, cell: Cell, part: Part) -> NDArray[np.int64]:
    """Positions of the windows of the test, whatever happens after them, int64."""
    time = context.images(cell).time
    return np.flatnonzero((time >= part.first) & (time <= part.last) & context.allowed(cell))


def run_task(context: Context, task: Task) -> None:
    """Train a network and score its test; what an earlier attempt did is not done again.

    The folder then holds ``run/``, of ``pricepix.train.fit``; ``scores.npy``; and ``done.json``, written last. A task
    that is interrupted resumes from the last checkpoint of its run, to the same weights.
    """
    from pricepix.train import fit

    if task.is_done(context):
        return
    folder = context.folder / task.path
    folder.mkdir(parents=True, exist_ok=True)
    training, cell = context.training, task.cell
    images, spec = context.images(cell), task.network(context)
    run = folder / RUN
    with computing_threads(training.threads), contextlib.redirect_stdout(io.StringIO()):
        fit(
            images,
            spec,
            cell.horizon,
            panel=context.panel
            if isinstance(spec, SeriesSpec) and cell.image_name in training.stores
            else None,
            out=run,
            split=task.part.split,
            hyper=training.settings,
            seed=task.seed,
            mask=teaching_windows(context, cell, task.part),
            resume=(run / "config.yaml").exists(),
            device=device_of(training),
            precision=training.precision,
            threads=training.threads,
            checkpoint_minutes=training.checkpoint_minutes,
            progress=False,
        )
    scores = score_windows(context, task)
    with atomic_file(folder / _SCORES) as partial, open(partial, "wb") as file:
        np.save(file, scores, allow_pickle=False)
    done = {
        "format_version": FORMAT_VERSION,
        "digest": task.digest(context),
        "scores": _checksum(folder / _SCORES),
    }
    write_json(folder / _DONE, {**done, "task": task.name})


def score_windows(
    context: Context, task: Task, target: Context | None = None, cell: Cell | None = None
) -> NDArray[np.float32]:
    """Score windows of the time of a task's test with its network.

    By default those of its own cell; else those of another cell whose images have the same size, or of the context of
    another market.
    """
    from pricepix.images.series import window_series
    from pricepix.train import load_model

    training = context.training
    target, cell = target or context, cell or task.cell
    images, index = target.images(cell), scored_windows(target, cell, task.part)
    if not len(index):
        return np.empty(0, np.float32)
    spec = task.network(context)
    with computing_threads(training.threads):
        model: Any = load_model(context.folder / task.path / RUN)
        model.to(device_of(training))
        if isinstance(spec, SeriesSpec):
            rows = target.rows(cell)[index]
            parts = [
                model.predict(window_series(target.panel, cell.image, some, spec.scaling))
                for some in np.array_split(rows, -(-len(rows) // _BLOCK))
            ]
        else:
            reader = images.batches(mask=index, shuffle=False, batch_size=1024, threads=training.threads)
            parts = [model.predict(pixels) for pixels, _ in reader]
    return np.concatenate(parts).astype(np.float32)


def device_of(training: Training) -> str:
    """Return the device that trains and scores: the one asked for, else a GPU where there is one."""
    import torch

    return training.device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads, and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
