"""`fit`: from a store to trained networks, with everything that a run decided beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pricepix._checks import whole_number, whole_number_or_none
from pricepix._version import __version__
from pricepix.bars.times import format_time
from pricepix.images.augment import Augment
from pricepix.store.image_store import open_images
from pricepix.store.pool_reader import DEFAULT_POOL_BYTES
from pricepix.store.sealed_files import read_sealed_json, write_sealed_json
from pricepix.train.checkpoints import load_model
from pricepix.train.device import Device, check_batch_size
from pricepix.train.hyper import Hyper, is_first_rank
from pricepix.train.loader import ArrayReader, Reader
from pricepix.train.loop import Interrupted, LoopOptions, Member, train_member
from pricepix.train.models import CNNSpec, PriceCNN, SeriesCNN, SeriesSpec, plain_values
from pricepix.train.problem import Problem
from pricepix.train.results import FitResult, FoldResult, Predictor
from pricepix.train.run_folder import CONFIG, DONE, SUMMARY, find_run_folder, open_run_folder
from pricepix.train.splits import Fold, Period, Split, resolve_split
from pricepix.train.targets import balanced, class_weights

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["fit"]

_STATISTICS_IMAGES = 1 << 15


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after which the run in the folder `out` can be resumed."""

    def __init__(self, saved: object, out: Path) -> None:
        self.out = str(out)
        super().__init__(
            f"training stopped and was saved in {saved}; resume it with resume=True and out={self.out!r}"
        )


def fit(
    store: ImageSet | str | os.PathLike[str],
    model: str | CNNSpec | SeriesSpec = "jkx20",
    horizon: int | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    split: Split | Literal["time", "random", "walk"] = "time",
    train: Period | None = None,
    validation: Period | float = 0.3,
    test: Period | None = None,
    embargo: Any = 0,
    target: str = "up",
    balance: Literal["none", "weights", "undersample"] = "none",
    hyper: Hyper | str = "paper",
    ensemble: int = 1,
    seed: int = 0,
    instruments: list[str] | None = None,
    mask: NDArray[Any] | None = None,
    panel: Any = None,
    augment: Augment | Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
    accelerator: str = "auto",
    devices: Any = "auto",
    precision: str = "32-true",
    channels_last: bool = False,
    compile: bool = False,
    pool_bytes: int = DEFAULT_POOL_BYTES,
    threads: int | None = None,
    checkpoint_minutes: float = 10.0,
    log_every: int = 50,
    progress: bool = True,
    **changes: Any,
) -> FitResult:
    """Train a network, or an ensemble of them, on a store.

    Parameters
    ----------
    store : ImageSet, str or path
        A store, a loaded one, or panel images, which are drawn while training.
    model : str, CNNSpec or SeriesSpec
        A preset (``jkx20``), or a spec of your own. ``cnn1d`` and ``logistic`` are the baselines on the
        numbers behind the images, of the store's lookback; they need `panel`.
    horizon : int, optional
        Horizon of the forward return to learn. By default the store's only one, or the one equal to its
        lookback.
    out : str or path, optional
        Folder of the run; ``runs/<model>_h<horizon>_<number>``, the next free number, by default. A folder
        that holds a run is never overwritten.
    split : {"time", "random", "walk"} or Split
        ``time``: `train`, `validation` and `test` by date. ``random``: 70/30 within `train`, as in the
        paper. ``walk``: `train` and `test` are lengths (``"2y"``, ``"1y"``). Or an object with ``folds``.
    train, validation, test, embargo
        As in `TimeSplit`, `RandomSplit` or `WalkForward`. Without `train`, everything before `test`.
    target : str
        ``up``, ``terciles``, ``quantiles:K``, ``return`` or ``rank``: see `make_targets`.
    balance : {"none", "weights", "undersample"}
        Classes as they are; weighted in the loss, inverse to their frequency in the training part; or as
        many training images of each as of the rarest, drawn by `seed`.
    hyper : Hyper or str
        ``paper``, ``cnn_for_trading``, ``image_trading``, or your own; `changes` replace single fields
        (``lr=1e-4, epochs=10``).
    ensemble : int
        Networks that differ only in their seed, averaged by the mean of their softmax. The paper has 5.
    seed : int
        Member i starts, shuffles and drops out by (seed, i).
    instruments, mask : optional
        Use a part of the store: see `pricepix.images.image_set.select`.
    panel : Panel or anything ``Panel.from_table`` takes, optional
        The store's panel: for baselines, and for exact first bars in the overlap of a split.
    augment : Augment or dict, optional
        Changes training windows before they are drawn, which needs panel images; never those that validate or
        test. Chances depend on (seed, member, epoch, window).
    resume : bool
        Resume the run in `out` from its last checkpoints. It must have been started with the same
        arguments; a run that was killed and resumed ends with the weights of one that was not.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: short for `accelerator` and `devices` where one device trains.
        Panel images are drawn on the GPU that trains where Numba's CUDA target is installed, else on the CPU.
    accelerator, devices, precision
        As in lightning's Fabric: ``"gpu"``, ``2``, ``"bf16-mixed"``.
    channels_last, compile : bool
        Memory format of the network, and ``torch.compile``.
    pool_bytes, threads
        Of the reader, see `BatchReader`; the order of images depends on `pool_bytes`.
    checkpoint_minutes : float
        Longest time between checkpoints to resume from.
    log_every : int
        Steps between entries of the TensorBoard log.
    progress : bool
        Show bars.
    **changes
        Fields of `Hyper`.

    Returns
    -------
    FitResult

    Raises
    ------
    FileExistsError
        If `out` holds a run and `resume` is False.
    ValueError
        If an argument does not fit the store, a part of the split is empty, all labels are of one class,
        or the loss becomes NaN.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the step in hand and its checkpoint; ``resume=True`` resumes from there.
    """
    hyper = Hyper.of(hyper, **changes)
    members = _Members(whole_number(ensemble, "ensemble", 1), whole_number(seed, "seed", 0), hyper)
    reading = _Reading(whole_number(pool_bytes, "pool_bytes", 0), whole_number_or_none(threads, "threads", 1))
    options = LoopOptions(checkpoint_minutes, log_every, progress)
    placed = Device(accelerator, devices, precision, channels_last, compile)
    if device is not None:
        placed = placed.on(device)
    problem = Problem.of(
        open_images(store), model, horizon, target, balance,
        augment=augment, panel=panel, instruments=instruments, mask=mask,
    )  # fmt: skip
    splitter = resolve_split(split, train, validation, test, embargo, members.seed)
    folds = splitter.folds(problem.samples)
    # Everything is checked before there is a folder.
    for fold in folds:
        problem.check_fold(fold)
    training = [_balanced(problem, fold.train, members.seed) for fold in folds]
    check_batch_size(hyper.batch_size, placed.ranks())
    run = _Run(problem, folds, members, reading, placed, options)
    config = run.describe(splitter)
    folder = find_run_folder(out, f"{problem.spec.name}_h{problem.horizon}", config, resume)
    result = FitResult(folder, config)
    with _naming(folder), open_run_folder(folder, config):
        for fold, (index, weights) in zip(folds, training, strict=True):
            place = folder if len(folds) == 1 else folder / f"fold_{fold.name}"
            try:
                result.folds.append(run.train_fold(fold, index, weights, place))
            except Interrupted as stopped:
                raise TrainingStopped(stopped, folder) from None
        if is_first_rank():
            summary = [{"name": f.fold.name, "members": f.members, "test": f.test} for f in result.folds]
            write_sealed_json(folder / SUMMARY, {"folds": summary})
    return result


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Let every interruption say in which folder the run can be resumed, if anything is there."""
    try:
        yield
    except TrainingStopped:
        raise
    except KeyboardInterrupt:
        if (folder / CONFIG).exists():
            raise TrainingStopped(folder, folder) from None
        raise


@dataclass(frozen=True)
class _Members:
    """How many networks are trained, from which seed, and how."""

    count: int
    seed: int
    hyper: Hyper

    def seed_of(self, i: int) -> int:
        """Seed of member `i`: its start values, its order of images and its dropout."""
        return int(np.random.SeedSequence([self.seed, i]).generate_state(1)[0])


@dataclass(frozen=True)
class _Reading:
    """How images are read, as `BatchReader` takes it."""

    pool_bytes: int
    threads: int | None

    def options(self) -> dict[str, Any]:
        threads = {} if self.threads is None else {"threads": self.threads}
        return {"pool_bytes": self.pool_bytes} | threads


@dataclass(frozen=True)
class _Run:
    """The checked arguments of `fit`: what is learnt, by which networks, and how the work is done."""

    problem: Problem
    folds: list[Fold]
    members: _Members
    reading: _Reading
    device: Device
    options: LoopOptions

    def describe(self, splitter: Split) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return plain_values(
            {
                "pricepix": __version__,
                "store_location": str(self.problem.images.location),
                **self.problem.describe(),
                "hyper": self.members.hyper.to_dict(),
                "split": {"kind": type(splitter).__name__, **getattr(splitter, "__dict__", {})},
                "folds": [fold.describe(self.problem.samples) for fold in self.folds],
                "ensemble": self.members.count,
                "seed": self.members.seed,
                "pool_bytes": self.reading.pool_bytes,
                "device": asdict(self.device),
            }
        )

    def train_fold(
        self, fold: Fold, index: NDArray[np.int64], weights: torch.Tensor | None, folder: Path
    ) -> FoldResult:
        """Train the networks of a fold that are not finished, and test them.

        `index` has the windows that train, `weights` the weights of their classes.
        """
        statistics = _statistics(self.problem, index, self.members.seed, self.reading.threads)
        reports = []
        for i in range(self.members.count):
            own = folder / f"member_{i}"
            if (own / DONE).exists():
                reports.append(read_sealed_json(own / DONE, "restore it, or remove it and resume the run"))
                continue
            seed = self.members.seed_of(i)
            network = _new_network(self.problem, seed, statistics, index)
            network.metadata = self._metadata(fold, index) | {"seed": self.members.seed, "member": i}
            mirrored = self.problem.mirrored
            member = Member(
                network,
                _FoldReaders(self, index, fold.validation, seed),
                torch.from_numpy(self.problem.targets.values),
                None if mirrored is None else torch.from_numpy(mirrored),
                weights,
                self.members.hyper,
                seed,
                own,
            )
            report = train_member(member, self.device, self.options)
            if is_first_rank():
                write_sealed_json(own / DONE, report)
            reports.append(report)
        # On every rank: what `fit` returns is the same for all, so that a script may use it anywhere.
        trained = load_model(folder)
        predictor = Predictor(trained, self.problem, self.device.own(), self.reading.threads)
        predictions = predictor.predict(fold.test)
        return FoldResult(fold, folder, reports, trained, predictor.test(fold.test, predictions), predictions)

    def _metadata(self, fold: Fold, index: NDArray[np.int64]) -> dict[str, Any]:
        """Return what a checkpoint says of its training, as plain values."""
        problem, samples = self.problem, self.problem.samples
        described, parts = problem.describe(), fold.describe(samples)
        last_exit = samples.exit_time[np.concatenate([fold.train, fold.validation])].max()
        return plain_values(
            {
                "image_spec": problem.images.spec.to_dict(),
                "horizon": problem.horizon,
                "delay": problem.images.delay,
                "target": problem.targets.kind,
                "balance": problem.balance,
                "augment": described["augment"],
                "train": parts["train"],
                "validation": parts["validation"],
                # The last exit of a label that taught or chose the weights: out of sample begins there.
                "seen_through": format_time(int(last_exit), samples.tz),
                "train_images": len(index),
                "store_digest": problem.images.digest,
                "hyper": self.members.hyper.to_dict(),
                "pricepix": __version__,
            }
        )


@dataclass(frozen=True)
class _FoldReaders:
    """Makes the readers of one member: of its training windows, shuffled by `seed`, and of its validation."""

    run: _Run
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    seed: int

    def __call__(self, part: str, rank: int, ranks: int, device: str) -> Reader:
        problem, batch_size = self.run.problem, self.run.members.hyper.batch_size
        check_batch_size(batch_size, ranks)
        training = part == "train"
        index = self.train if training else self.validation
        share: dict[str, Any] = {
            "batch_size": batch_size // ranks, "shuffle": training, "seed": self.seed, "rank": rank, "ranks": ranks,
        }  # fmt: skip
        if problem.series is not None:
            return ArrayReader(problem.series, index, **share)
        options = self.run.reading.options()
        if problem.augment is not None and training:
            options["augment"] = problem.augment
        elif problem.images.renders_on(device):
            options["device"] = device
        return problem.images.batches(mask=index, **share, **options)


def _balanced(
    problem: Problem, index: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], torch.Tensor | None]:
    """Return the windows that train, and the weights of their classes."""
    targets = problem.targets
    if problem.balance == "undersample":
        assert targets.values.dtype == np.int64
        return balanced(index, targets.values, targets.classes, seed), None  # type: ignore[arg-type]
    if problem.balance == "none":
        return index, None
    found = np.bincount(targets.values[index], minlength=targets.classes)
    if problem.augment is not None and problem.mirrored is not None:
        # The classes as the network sees them: so many windows are mirrored, and their labels with them.
        chance = problem.augment.invert
        mirrored = np.bincount(problem.mirrored[index], minlength=targets.classes)
        found = (1 - chance) * found + chance * mirrored
    return index, torch.from_numpy(class_weights(found))


def _statistics(
    problem: Problem, index: NDArray[np.int64], seed: int, threads: int | None
) -> tuple[Any, Any]:
    """Mean and standard deviation of training windows only, of some 30,000 images in random chunks."""
    if problem.series is not None:
        own = problem.series[index]
        mean, std = np.nanmean(own, axis=(0, 2)), np.nanstd(own, axis=(0, 2))
        return mean, np.where(std > 0, std, 1.0)
    chunk = index // problem.images.chunk
    order = np.random.default_rng(seed).permutation(np.unique(chunk))
    counts = np.bincount(chunk)[order]
    enough = order[: int(np.searchsorted(np.cumsum(counts), _STATISTICS_IMAGES)) + 1]
    reader = problem.images.batches(
        mask=index[np.isin(chunk, enough)], shuffle=False, batch_size=1024, threads=threads, prefetch=0
    )
    white = total = 0
    for images, _ in reader:
        white += int(np.count_nonzero(images))
        total += images.size
    mean = white / total
    return mean, float(np.sqrt(mean * (1 - mean)))


def _new_network(
    problem: Problem, seed: int, statistics: tuple[Any, Any], index: NDArray[np.int64]
) -> PriceCNN | SeriesCNN:
    spec = problem.spec
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PriceCNN(spec) if isinstance(spec, CNNSpec) else SeriesCNN(spec)
    if not (isinstance(spec, CNNSpec) and spec.raw_pixels):
        network.set_normalisation(*statistics)
    if problem.targets.is_regression:
        values = problem.targets.values[index]
        spread = float(np.std(values, dtype=np.float64))
        if not spread > 0:
            raise ValueError(f"all {len(index)} training targets are {values[0]}; there is nothing to learn")
        network.scale.fill_(spread)
    return network
