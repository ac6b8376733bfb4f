"""`fit`: from a store to trained networks, with everything that a run decided beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from pricepix.train.checkpoints import load_model, read_checkpoint, write_checkpoint
from pricepix.train.device import Device, check_batch_size
from pricepix.train.fast import fastest
from pricepix.train.hyper import Hyper, is_first_rank
from pricepix.train.loader import ArrayReader, DateReader, Reader
from pricepix.train.loop import Interrupted, LoopOptions, Member, train_member
from pricepix.train.maker import Model, NetworkMaker
from pricepix.train.models import CNNSpec, Network, plain_values
from pricepix.train.objective import BY_DATE
from pricepix.train.problem import Problem
from pricepix.train.results import FitResult, FoldResult, Predictor
from pricepix.train.run_folder import (
    CONFIG,
    DONE,
    START,
    SUMMARY,
    find_run_folder,
    open_run_folder,
    started_with,
)
from pricepix.train.splits import Fold, Period, Split, resolve_split
from pricepix.train.targets import balanced, class_weights
from pricepix.train.tuning import Tuning

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
    model: Model = "jkx20",
    horizon: int | Sequence[int] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    split: Split | Literal["time", "random", "walk"] = "time",
    train: Period | None = None,
    validation: Period | float = 0.3,
    test: Period | None = None,
    embargo: Any = 0,
    target: Any = "up",
    loss: str = "auto",
    weights: Any = None,
    balance: Literal["none", "weights", "undersample"] = "none",
    hyper: Hyper | str = "paper",
    ensemble: int = 1,
    seed: int = 0,
    inputs: Literal["images", "series"] | None = None,
    init: str | os.PathLike[str] | None = None,
    freeze: str | Sequence[str] | None = None,
    layer_lr: Mapping[str, float] | None = None,
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
    fast: bool = False,
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
    model : str, CNNSpec, SeriesSpec, torch.nn.Module, class or function
        A preset (``jkx20``), or a spec of your own. ``cnn1d`` and ``logistic`` are the baselines on the
        numbers behind the images, of the store's lookback; they need `panel`. ``timm:<name>`` is a model of timm
        with random weights. Any module trains too: its forward takes normalised images, float32
        (n, 1, height, width), and gives a column for each class, or one number. Give its class, or a function
        without arguments that makes one: each member then draws start values of its own by the seed. A module that
        is already made starts every fold from the weights that it has, which are kept in the run's folder, and
        is one member alone; it is not changed.
    horizon : int or sequence of int, optional
        Horizon of the forward return to learn. By default the store's only one, or the one equal to its
        lookback. Several are learnt together, by one network with a head for each; windows are purged by the
        longest, and those that lack one of the returns are left out.
    out : str or path, optional
        Folder of the run; ``runs/<model>_h<horizon>_<number>``, the next free number, by default. A folder
        that holds a run is never overwritten.
    split : {"time", "random", "walk"} or Split
        ``time``: `train`, `validation` and `test` by date. ``random``: 70/30 within `train`, as in the
        paper. ``walk``: `train` and `test` are lengths (``"2y"``, ``"1y"``). Or an object with ``folds``.
    train, validation, test, embargo
        As in `TimeSplit`, `RandomSplit` or `WalkForward`. Without `train`, everything before `test`.
    target : str, array_like (n,) or callable
        ``up``, ``terciles``, ``quantiles:K``, ``return`` or ``rank``: see `make_targets`. ``scaled`` is the return in
        volatilities of the 20 bars before, ``barrier:K`` which of K volatilities over the horizon the return reaches
        first, down or up, or neither (three classes); both need `panel`. Or values of your own, one a window: whole
        numbers are classes from 0 on (-1: none), floats are numbers (NaN: none); or a function from ``store.index`` to
        them. `horizon` then says by which exit windows are purged.
    loss : {"auto", "huber", "pairwise", "listwise", "pinball:Q"}
        ``auto`` is cross-entropy, or the squared error of numbers; ``"pinball:0.9"`` learns the quantile .9 of numbers.
        ``pairwise`` and ``listwise`` learn the order within a date, in batches of whole dates: see
        `pricepix.train.objective.Objective`.
    weights : {"uniqueness", "date"} or array_like (n,), optional
        Weights of samples in the loss: the average uniqueness of their label among the overlapping ones of the
        instrument; the same for every date; or your own.
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
    inputs : {"images", "series"}, optional
        What a module takes: images by default, or the bars behind them, float32 (n, 6, lookback) as `window_series`
        makes them, which need `panel`.
    init : str or path, optional
        Checkpoint to start from: of pricepix, of a project whose layers `load_model` recognises, or any file of
        tensors with the module's own names (``.safetensors`` too). It must hold all weights; only the last layer may
        have another shape, and then starts anew. Images are normalised as the checkpoint says, or, where it does not
        say, by the training rows.
    freeze : str or sequence of str, optional
        Layers that do not learn, by the beginning of their names (``blocks.0``), or ``"features"``: all but the
        last, unless the module has a layer of that name. Running statistics of layers that are frozen as a whole
        stay, too.
    layer_lr : dict, optional
        Factors of the learning rate by the beginning of a layer's name: ``{"features": 0.1}``.
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
    fast : bool
        On a CPU choose the memory format, and bfloat16 where AMX is, by timing a few steps of the network, which is
        remembered for the machine, and said in the log. Other ways round differently: what a seed gives then depends on
        the machine. A run that is resumed goes on as it was started.
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
    tuning = Tuning.of(init, freeze, layer_lr)
    members = _Members(whole_number(ensemble, "ensemble", 1), whole_number(seed, "seed", 0), hyper)
    reading = _Reading(whole_number(pool_bytes, "pool_bytes", 0), whole_number_or_none(threads, "threads", 1))
    options = LoopOptions(checkpoint_minutes, log_every, progress)
    placed = Device(accelerator, devices, precision, channels_last, compile)
    if device is not None:
        placed = placed.on(device)
    problem = Problem.of(
        open_images(store), model, horizon, target, balance, inputs=inputs, loss=loss, weights=weights,
        augment=augment, panel=panel, instruments=instruments, mask=mask,
    )  # fmt: skip
    _check_members(problem.maker, members)
    # What does not fit is told before anything is trained.
    fresh = tuning.apply(problem.maker.make(members.seed_of(0)))
    splitter = resolve_split(split, train, validation, test, embargo, members.seed)
    folds = splitter.folds(problem.samples)
    # Everything is checked before there is a folder.
    for fold in folds:
        problem.check_fold(fold)
    training = [_balanced(problem, fold.train, members.seed) for fold in folds]
    check_batch_size(hyper.batch_size, placed.ranks())
    if fast:
        started = started_with(out) if resume else None
        placed = fastest(placed, problem.maker.make(members.seed_of(0)), hyper.batch_size, started)
    run = _Run(problem, folds, members, reading, placed, options, tuning)
    config = run.describe(splitter, fresh)
    name = f"{problem.spec.name}_h{'_'.join(map(str, problem.horizons))}"
    folder = find_run_folder(out, name, config, resume)
    result = FitResult(folder, config)
    with _naming(folder), open_run_folder(folder, config):
        run = _starting_as_kept(folder, run)
        for fold, (index, of_classes) in zip(folds, training, strict=True):
            place = folder if len(folds) == 1 else folder / f"fold_{fold.name}"
            try:
                result.folds.append(run.train_fold(fold, index, of_classes, place))
            except Interrupted as stopped:
                raise TrainingStopped(stopped, folder) from None
        if is_first_rank():
            write_sealed_json(folder / SUMMARY, result.summary())
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
    tuning: Tuning

    def describe(self, splitter: Split, fresh: list[str]) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return plain_values(
            {
                "pricepix": __version__,
                "store_location": str(self.problem.images.location),
                **self.problem.describe(),
                **self._described_tuning(fresh),
                "hyper": self.members.hyper.to_dict(),
                "split": {"kind": type(splitter).__name__, **getattr(splitter, "__dict__", {})},
                "folds": [fold.describe(self.problem.samples) for fold in self.folds],
                "ensemble": self.members.count,
                "seed": self.members.seed,
                "pool_bytes": self.reading.pool_bytes,
                "device": asdict(self.device),
            }
        )

    def _described_tuning(self, fresh: list[str] | None = None) -> dict[str, Any]:
        """Return how training begins, or nothing where networks start by themselves."""
        tuning = self.tuning.describe()
        if tuning is None:
            return {}
        return {"tuning": tuning if not fresh else {**tuning, "starts_anew": fresh}}

    def train_fold(
        self, fold: Fold, index: NDArray[np.int64], weights: torch.Tensor | None, folder: Path
    ) -> FoldResult:
        """Train the networks of a fold that are not finished, and test them.

        `index` has the windows that train, `weights` the weights of their classes.
        """
        statistics = _statistics(self.problem, index, self.members.seed, self.reading.threads)
        sample = self.problem.weights_of(index, fold.validation)
        reports = []
        for i in range(self.members.count):
            own = folder / f"member_{i}"
            if (own / DONE).exists():
                reports.append(read_sealed_json(own / DONE, "restore it, or remove it and resume the run"))
                continue
            seed = self.members.seed_of(i)
            network = _new_network(self.problem, seed, statistics, index)
            self.tuning.apply(network)
            network.metadata = self._metadata(fold, index) | {"seed": self.members.seed, "member": i}
            mirrored, loss = self.problem.mirrored, self.problem.loss
            member = Member(
                network,
                _FoldReaders(self, index, fold.validation, seed),
                torch.from_numpy(self.problem.targets.values),
                None if mirrored is None else torch.from_numpy(mirrored),
                weights,
                self.members.hyper,
                seed,
                own,
                self.tuning,
                loss,
                None if sample is None else torch.from_numpy(sample),
                torch.from_numpy(self.problem.samples.time.copy()) if loss in BY_DATE else None,
            )
            report = train_member(member, self.device, self.options)
            if is_first_rank():
                write_sealed_json(own / DONE, report)
            reports.append(report)
        # On every rank: what `fit` returns is the same for all, so that a script may use it anywhere.
        trained = load_model(folder, module=self.problem.maker.module_to_load)
        predictor = Predictor(trained, self.problem, self.device.own(), self.reading.threads)
        return predictor.result(fold, folder, reports)

    def _metadata(self, fold: Fold, index: NDArray[np.int64]) -> dict[str, Any]:
        """Return what a checkpoint says of its training, as plain values."""
        problem, samples = self.problem, self.problem.samples
        described, parts = problem.describe(), fold.describe(samples)
        last_exit = samples.exit_time[np.concatenate([fold.train, fold.validation])].max()
        return plain_values(
            {
                "image_spec": problem.images.spec.to_dict(),
                **({"stack": problem.images.attrs["stack"]} if "stack" in problem.images.attrs else {}),
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
                "universe": {
                    "instruments": len(np.unique(samples.instrument[fold.train])),
                    "windows": len(problem.images),
                },
                **problem.describe_learning(),
                "store_digest": problem.images.digest,
                "hyper": self.members.hyper.to_dict(),
                "pricepix": __version__,
                **self._described_tuning(),
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
        if problem.loss in BY_DATE:
            return DateReader(problem.read, problem.samples.time, index, **share)
        if problem.series is not None:
            return ArrayReader(problem.series, index, **share)
        options = self.run.reading.options()
        if problem.augment is not None and training:
            options["augment"] = problem.augment
        elif problem.images.renders_on(device):
            options["device"] = device
        return problem.images.batches(mask=index, **share, **options)


def _check_members(maker: NetworkMaker, members: _Members) -> None:
    if members.count > 1 and maker.starts_from_its_own_weights:
        raise ValueError(
            f"ensemble is {members.count}, but model is one {maker.spec.name} with its own weights, which all members "
            f"would start from: give what makes one, such as model={maker.spec.name} or model=lambda: "
            f"{maker.spec.name}(...), so that each draws start values of its own"
        )


def _starting_as_kept(folder: Path, run: _Run) -> _Run:
    """Keep the weights that a module starts from in the run's folder, or take those that it was started with.

    Folds that a resumed run has yet to begin start from there, whatever weights the module has now.
    """
    place, maker = folder / START, run.problem.maker
    if not maker.starts_from_its_own_weights:
        return run
    if place.exists():
        maker = maker.starting_from(read_checkpoint(place))
        return replace(run, problem=replace(run.problem, maker=maker))
    if is_first_rank():
        write_checkpoint(maker.make(0).own.state_dict(), place)
    return run


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
    found = np.bincount(targets.values[index].ravel(), minlength=targets.classes)
    if problem.augment is not None and problem.mirrored is not None:
        # The classes as the network sees them: so many windows are mirrored, and their labels with them.
        chance = problem.augment.invert
        mirrored = np.bincount(problem.mirrored[index].ravel(), minlength=targets.classes)
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
) -> Network:
    spec = problem.spec
    network = problem.maker.make(seed)
    if not (isinstance(spec, CNNSpec) and spec.raw_pixels):
        network.set_normalisation(*statistics)
    if problem.targets.is_regression:
        values = problem.targets.values[index]
        spread = np.std(values, axis=0, dtype=np.float64)
        if not (spread > 0).all():
            raise ValueError(f"all {len(index)} training targets are {values[0]}; there is nothing to learn")
        network.scale.copy_(torch.as_tensor(spread))
    return network
