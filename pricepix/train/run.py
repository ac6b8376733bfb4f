"""`fit`: from a store to trained networks, with everything that a run decided beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pricepix._checks import number, whole_number, whole_number_or_none
from pricepix._version import __version__
from pricepix.bars.times import format_time
from pricepix.images.augment import Augment
from pricepix.images.image_set import select
from pricepix.images.rows import check_bars, store_rows
from pricepix.store.image_store import open_images
from pricepix.store.pool_reader import DEFAULT_POOL_BYTES
from pricepix.train.checkpoints import load_model
from pricepix.train.hyper import Hyper, is_first_rank
from pricepix.train.loader import ArrayReader, Reader
from pricepix.train.models import PRESETS, SERIES_PRESETS, CNNSpec, Ensemble, PriceCNN, SeriesCNN, SeriesSpec
from pricepix.train.series import window_series
from pricepix.train.splits import Fold, Period, RandomSplit, Samples, Split, TimeSplit, WalkForward
from pricepix.train.targets import Targets, balanced, class_weights, make_targets

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["FitResult", "FoldResult", "fit"]

CONFIG, SUMMARY, DONE = "config.yaml", "summary.json", "done.json"
_STATISTICS_IMAGES = 1 << 15
# Of a resolved configuration, what may differ when a run goes on: where it runs, not what it learns.
_FREE = ("device", "pricepix", "store_location")


@dataclass(frozen=True)
class FoldResult:
    """What became of one fold.

    Attributes
    ----------
    fold : Fold
    folder : Path
        Holds ``member_<i>/best.ckpt``, ``last.ckpt``, ``metrics.csv``, ``tensorboard/``.
    members : list of dict
        Steps, epochs, and validation loss and accuracy of each member's best checkpoint.
    model : PriceCNN, SeriesCNN or Ensemble
        The best checkpoints, averaged if several.
    test : dict
        Of the model on the test part: images, loss, accuracy, its standard error (of independent images;
        overlapping labels make it larger), share of the larger class; for regressions loss and correlation.
        Empty without a test part.
    predictions : numpy.ndarray
        float32, the model's scores of ``fold.test``.
    """

    fold: Fold
    folder: Path
    members: list[dict[str, Any]]
    model: PriceCNN | SeriesCNN | Ensemble
    test: dict[str, Any]
    predictions: NDArray[np.float32]


@dataclass(frozen=True)
class FitResult:
    """A finished run: its folder, resolved configuration and folds."""

    out: Path
    config: dict[str, Any]
    folds: list[FoldResult] = field(default_factory=list)

    @property
    def model(self) -> PriceCNN | SeriesCNN | Ensemble:
        """The model of the last fold, which is the only one but for walk-forward."""
        return self.folds[-1].model

    @property
    def test(self) -> dict[str, Any]:
        """Test metrics of the last fold."""
        return self.folds[-1].test


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
        A preset (``jkx20``), or a spec of one's own. ``cnn1d`` and ``logistic`` are the baselines on the
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
        ``paper``, ``cnn_for_trading``, ``image_trading``, or one's own; `changes` replace single ones
        (``lr=1e-4, epochs=10``).
    ensemble : int
        Networks that differ in their seed alone, averaged by the mean of their softmax. The paper has 5.
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
        Go on with the run in `out` from its last checkpoints. It must have been started with the same
        arguments; what was killed and goes on ends with the weights of a run that was not.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: short for `accelerator` and `devices` where one device trains.
        Panel images are drawn on the GPU that trains where Numba's CUDA target is installed, else on the CPU.
    accelerator, devices, precision
        As in lightning's Trainer: ``"gpu"``, ``2``, ``"bf16-mixed"``.
    channels_last, compile : bool
        Memory format of the network, and ``torch.compile``.
    pool_bytes, threads
        Of the reader, see `BatchReader`; the order of images depends on `pool_bytes`.
    checkpoint_minutes : float
        Longest time between checkpoints to go on from.
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
        On Ctrl-C, after the step in hand and its checkpoint; ``resume=True`` goes on from there.
    """
    from pricepix.bars.panel import Panel as PanelType
    from pricepix.train.loop import Device, Interrupted, train_member

    settings = Hyper.of(hyper, **changes)
    ensemble, seed = whole_number(ensemble, "ensemble", 1), whole_number(seed, "seed", 0)
    log_every, pool_bytes = whole_number(log_every, "log_every", 1), whole_number(pool_bytes, "pool_bytes", 0)
    threads = whole_number_or_none(threads, "threads", 1)
    checkpoint_minutes = number(checkpoint_minutes, "checkpoint_minutes")
    store = open_images(store)
    horizon = _horizon(store, horizon)
    spec = _model(model, store)
    if balance not in ("none", "weights", "undersample"):
        raise ValueError(f"balance is {balance!r}; choose 'none', 'weights' or 'undersample'")
    if panel is not None:
        panel = PanelType.of(panel)
    elif isinstance(spec, SeriesSpec) and (panel := store.panel) is None:
        raise ValueError(
            f"model {spec.name} learns from the numbers behind the images: give the store's panel"
        )

    if augment is not None:
        augment = Augment.of(augment)
        if not store.augments or isinstance(spec, SeriesSpec):
            raise ValueError(
                f"augment changes windows before they are drawn, but {store.kind} {store.location} has its images "
                f"and model {spec.name} takes {'images' if isinstance(spec, CNNSpec) else 'none'}: give PanelImages "
                "and a network on images, or leave augment out"
            )
        augment.check(store.spec)
    targets = make_targets(target, store.returns(horizon), store.time)
    if targets.is_regression and balance != "none":
        raise ValueError(f"balance is {balance!r}, but target {target!r} has no classes; leave it at 'none'")
    spec = spec.replace(outputs=targets.classes)
    chosen = np.ones(len(store), bool)
    if instruments is not None or mask is not None:
        chosen[:] = False
        chosen[select(store, instruments=instruments, mask=mask)] = True
    series = None
    if panel is not None:
        row = store_rows(store, panel)
        check_bars(store, panel, row)
        if isinstance(spec, SeriesSpec):
            series = window_series(panel, store.spec, row)
    known = panel if panel is not None else store.panel
    samples = Samples.from_store(store, horizon, targets.usable & chosen, known)
    samples = replace(samples, not_chosen=int(np.count_nonzero(targets.usable & ~chosen)))
    splitter = _splitter(split, train, validation, test, embargo, seed)
    folds = splitter.folds(samples)
    for fold in folds:
        _check_classes(fold, targets, settings)
        if augment is not None:
            # Refuses here, before there is a folder, what can not happen to these windows.
            store.batches(mask=fold.train, augment=augment)

    if device is not None:
        accelerator, devices = _one_device(device, accelerator, devices)
    machine = Device(accelerator, devices, precision, channels_last, compile)
    _check_shared(settings.batch_size, machine.ranks())
    config = _plain(
        {
            "pricepix": __version__,
            "store_location": str(store.location),
            "store": {
                "digest": store.digest,
                "spec": store.spec.to_dict(),
                "windows": len(store),
                "delay": store.delay,
            },
            "horizon": horizon,
            "model": {"kind": "PriceCNN" if isinstance(spec, CNNSpec) else "SeriesCNN"} | spec.to_dict(),
            "hyper": settings.to_dict(),
            "target": {"kind": target, "classes": targets.classes, "excluded": targets.excluded},
            "balance": balance,
            "augment": None if augment is None else augment.to_dict(),
            "split": {"kind": type(splitter).__name__, **getattr(splitter, "__dict__", {})},
            "folds": [fold.describe(samples) for fold in folds],
            "ensemble": ensemble,
            "seed": seed,
            "pool_bytes": pool_bytes,
            "device": asdict(machine),
        }
    )
    mirrored = None
    if augment is not None:
        mirrored = torch.from_numpy(make_targets(target, -store.returns(horizon), store.time).values)
    chances = (mirrored.numpy(), augment.invert) if mirrored is not None and augment is not None else None
    parts = [_balanced(fold.train, targets, balance, seed, chances) for fold in folds]
    folder = _folder(out, spec.name, horizon, config, resume)
    result = FitResult(folder, config)
    with _begun(folder, config):
        for fold, described, (train_index, weights) in zip(folds, config["folds"], parts, strict=True):
            place = folder if len(folds) == 1 else folder / f"fold_{fold.name}"
            statistics = _statistics(store, series, train_index, seed, threads)
            metadata = {
                "image_spec": store.spec.to_dict(),
                "horizon": horizon,
                "delay": store.delay,
                "target": target,
                "balance": balance,
                "augment": config["augment"],
                "train": described["train"],
                "validation": described["validation"],
                # The last exit of a label that taught or chose the weights: out of sample begins there.
                "seen_through": format_time(
                    int(samples.exit_time[np.concatenate([fold.train, fold.validation])].max()), samples.tz
                ),
                "train_images": len(train_index),
                "store_digest": store.digest,
                "hyper": settings.to_dict(),
                "pricepix": __version__,
            }
            members = []
            for i in range(ensemble):
                own = place / f"member_{i}"
                if (own / DONE).exists():
                    members.append(json.loads((own / DONE).read_text()))
                    continue
                member_seed = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
                network = _new_network(spec, member_seed, statistics, targets, train_index)
                network.metadata = _plain(metadata | {"seed": seed, "member": i})

                def reader_of(
                    part: str, rank: int, ranks: int, where: str, member_seed: int = member_seed
                ) -> Reader:
                    index = train_index if part == "train" else fold.validation  # noqa: B023
                    _check_shared(settings.batch_size, ranks)
                    size = settings.batch_size // ranks
                    shuffle = part == "train"
                    if series is not None:
                        return ArrayReader(
                            series,
                            index,
                            batch_size=size,
                            shuffle=shuffle,
                            seed=member_seed,
                            rank=rank,
                            ranks=ranks,
                        )
                    options: dict[str, Any] = {"pool_bytes": pool_bytes}
                    if threads is not None:
                        options["threads"] = threads
                    if augment is not None and part == "train":
                        options["augment"] = augment
                    elif store.renders_on(where):
                        options["device"] = where
                    return store.batches(
                        mask=index, batch_size=size, shuffle=shuffle, seed=member_seed, rank=rank, ranks=ranks,
                        **options,
                    )  # fmt: skip

                try:
                    report = train_member(
                        network, reader_of, torch.from_numpy(targets.values), settings, machine, own,
                        seed=member_seed, class_weights=weights, checkpoint_minutes=checkpoint_minutes,
                        log_every=log_every, progress=progress, mirrored=mirrored,
                    )  # fmt: skip
                except Interrupted:
                    raise KeyboardInterrupt(
                        f"training stopped and was saved in {own}; go on with resume=True and out={str(folder)!r}"
                    ) from None
                if is_first_rank():
                    _write_json(own / DONE, report)
                members.append(report)
            trained = load_model(place)
            # On every rank: what `fit` returns is the same for all, so that a script may use it anywhere.
            where = machine.own()
            predictions = _predict(trained, store, series, fold.test, threads, where)
            metrics = _evaluate(trained, predictions, store, series, fold.test, targets, threads, where)
            result.folds.append(FoldResult(fold, place, members, trained, metrics, predictions))
        if is_first_rank():
            _write_json(
                folder / SUMMARY,
                {
                    "folds": [
                        {"name": f.fold.name, "members": f.members, "test": f.test} for f in result.folds
                    ]
                },
            )
    return result


def _balanced(
    index: NDArray[np.int64],
    targets: Targets,
    balance: str,
    seed: int,
    mirrored: tuple[NDArray[Any], float] | None,
) -> tuple[NDArray[np.int64], torch.Tensor | None]:
    """The windows that train, and the weights of their classes; `mirrored` has targets and their chance."""
    if balance == "undersample":
        assert targets.values.dtype == np.int64
        index = balanced(index, targets.values, targets.classes, seed)  # type: ignore[arg-type]
    if balance != "weights":
        return index, None
    found = np.bincount(targets.values[index], minlength=targets.classes)
    if mirrored is not None:
        # The classes as the network sees them: so many windows are mirrored, and their labels with them.
        values, chance = mirrored
        found = (1 - chance) * found + chance * np.bincount(values[index], minlength=targets.classes)
    return index, torch.from_numpy(class_weights(found))


def _check_shared(batch_size: int, devices: int) -> None:
    """Refuse a batch that devices cannot share."""
    if batch_size % devices:
        raise ValueError(
            f"batch_size is {batch_size}, which {devices} devices cannot share evenly; give a multiple of {devices}"
        )


def _one_device(device: str, accelerator: str, devices: Any) -> tuple[str, Any]:
    """Return lightning's accelerator and devices for one device."""
    kind, _, place = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (place and not place.isdigit()) or (kind == "cpu" and place):
        raise ValueError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:1'")
    if (accelerator, devices) != ("auto", "auto"):
        raise ValueError(
            f"device is {device!r} and accelerator, devices are {accelerator!r}, {devices!r}; give one or the other"
        )
    if kind == "cpu":
        return "cpu", 1
    if not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch {torch.__version__} sees no GPU; give 'cpu'")
    return "gpu", [int(place)] if place else 1


def _horizon(store: ImageSet, horizon: int | None) -> int:
    known, lookback = store.horizons, store.spec.lookback
    horizon = whole_number_or_none(horizon, "horizon", 1)
    if not known:
        wanted = lookback if horizon is None else horizon
        raise ValueError(
            f"{store.kind} {store.location} with no returns to learn from: make the images again, with "
            f"horizons=({wanted},)"
        )
    if horizon is None:
        if len(known) == 1 or lookback in known:
            return known[0] if len(known) == 1 else lookback
        raise ValueError(
            f"{store.kind} {store.location} with returns over {', '.join(map(str, known))} bars: choose one with "
            "horizon="
        )
    if horizon not in known:
        raise ValueError(
            f"{store.kind} {store.location} with no returns over {horizon} bars, only over "
            f"{', '.join(map(str, known))}: choose one of these, or make the images again, with "
            f"horizons=(..., {horizon})"
        )
    return horizon


def _model(model: str | CNNSpec | SeriesSpec, store: ImageSet) -> CNNSpec | SeriesSpec:
    spec: CNNSpec | SeriesSpec
    lookback, shape = store.spec.lookback, store.spec.shape
    if isinstance(model, str):
        name = f"{model}{lookback}" if model in ("cnn1d", "logistic") else model
        if name in PRESETS:
            spec = PRESETS[name]
        elif name in SERIES_PRESETS:
            spec = SERIES_PRESETS[name]
        elif model == "logistic":
            spec = SERIES_PRESETS["logistic5"].replace(name=name, lookback=lookback)
        else:
            raise ValueError(
                f"there is no model {model!r}; choose one of {', '.join([*PRESETS, *SERIES_PRESETS])}"
            )
    elif isinstance(model, CNNSpec | SeriesSpec):
        spec = model
    else:
        raise TypeError(
            f"model is a {type(model).__name__}; give the name of a preset, a CNNSpec or a SeriesSpec"
        )
    if isinstance(spec, CNNSpec) and (spec.height, spec.width) != shape:
        fitting = [name for name, preset in PRESETS.items() if (preset.height, preset.width) == shape]
        raise ValueError(
            f"model {spec.name} takes images of {spec.height}x{spec.width}, those of {store.kind} {store.location} "
            f"are {shape[0]}x{shape[1]}: choose {' or '.join(fitting) or 'a CNNSpec of that size'}"
        )
    if isinstance(spec, SeriesSpec) and spec.lookback != lookback:
        raise ValueError(
            f"model {spec.name} takes {spec.lookback} bars, windows of {store.kind} {store.location} have "
            f"{lookback}: choose model 'logistic' or one of that lookback"
        )
    return spec


def _splitter(
    split: Any, train: Period | None, validation: Any, test: Period | None, embargo: Any, seed: int
) -> Split:
    if split == "time":
        return TimeSplit(train, validation, test, embargo)
    if split == "random":
        return RandomSplit(0.7, train, test, seed, embargo)
    if split == "walk":
        lengths = {name: value for name, value in (("train", train), ("test", test)) if value is not None}
        return WalkForward(validation=validation, embargo=embargo, **lengths)  # type: ignore[arg-type]
    if isinstance(split, str) or not hasattr(split, "folds"):
        raise ValueError(
            f"split is {split!r}; choose 'time', 'random', 'walk' or an object such as TimeSplit(...)"
        )
    if train is not None or test is not None:
        raise ValueError("train and test belong to the split's own arguments when it is given as an object")
    return split


def _check_classes(fold: Fold, targets: Targets, settings: Hyper) -> None:
    if targets.is_regression:
        return
    for part, index in (("training", fold.train), ("validation", fold.validation)):
        counts = np.bincount(targets.values[index], minlength=targets.classes)
        if np.count_nonzero(counts) < 2:
            raise ValueError(
                f"all {len(index)} {part} labels of split {fold.name!r} are of class {int(counts.argmax())}; "
                "there is nothing to tell apart. Check the returns, or choose another target or period"
            )


def _folder(out: Any, name: str, horizon: int, config: dict[str, Any], resume: bool) -> Path:
    if out is None:
        if resume:
            raise ValueError("resume=True goes on with the run in a folder: give out")
        number = 0
        while (Path("runs") / f"{name}_h{horizon}_{number}").exists():
            number += 1
        # The first rank makes the folder, and starts the others after that.
        folder = Path("runs") / f"{name}_h{horizon}_{number if is_first_rank() else number - 1}"
    else:
        folder = Path(out)
    saved = folder / CONFIG
    if resume or (saved.exists() and not is_first_rank()):
        if not saved.exists():
            raise FileNotFoundError(f"{folder} holds no run to resume ({CONFIG} is missing)")
        before = yaml.safe_load(saved.read_text())
        for key, value in config.items():
            if key not in _FREE and before.get(key) != value:
                raise ValueError(
                    f"{folder} was started with another {key}: {_difference(before.get(key), value)}. "
                    "Resume with the same arguments, or start a new run"
                )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; resume=True goes on with its run, "
            "another out starts a new one"
        )
    return folder


@contextmanager
def _begun(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Make the folder of a run, and take it back if the run fails before its first checkpoint.

    What is left would hold nothing to go on from, and be in the way of the next run.
    """
    saved = folder / CONFIG
    if saved.exists():
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    saved.write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        yield
    except BaseException:
        if next(folder.rglob("*.ckpt"), None) is None:
            for own in (*folder.glob("member_*"), *folder.glob("fold_*")):
                shutil.rmtree(own, ignore_errors=True)
            saved.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    folder.rmdir()
        raise


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if before.get(key) != now[key]:
                return f"{key} was {before.get(key)!r}, is {now[key]!r}"
    return f"was {before!r}, is {now!r}"


def _statistics(
    store: ImageSet,
    series: NDArray[np.float32] | None,
    index: NDArray[np.int64],
    seed: int,
    threads: int | None,
) -> tuple[Any, Any]:
    """Mean and standard deviation over training rows alone, of some 30,000 images in random chunks."""
    if series is not None:
        own = series[index]
        mean, std = np.nanmean(own, axis=(0, 2)), np.nanstd(own, axis=(0, 2))
        return mean, np.where(std > 0, std, 1.0)
    chunk = index // store.chunk
    order = np.random.default_rng(seed).permutation(np.unique(chunk))
    counts = np.bincount(chunk)[order]
    enough = order[: int(np.searchsorted(np.cumsum(counts), _STATISTICS_IMAGES)) + 1]
    reader = store.batches(
        mask=index[np.isin(chunk, enough)], shuffle=False, batch_size=1024, threads=threads, prefetch=0
    )
    lit = total = 0
    for images, _ in reader:
        lit += int(np.count_nonzero(images))
        total += images.size
    mean = lit / total
    return mean, float(np.sqrt(mean * (1 - mean)))


def _new_network(
    spec: CNNSpec | SeriesSpec,
    seed: int,
    statistics: tuple[Any, Any],
    targets: Targets,
    index: NDArray[np.int64],
) -> PriceCNN | SeriesCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PriceCNN(spec) if isinstance(spec, CNNSpec) else SeriesCNN(spec)
    if not (isinstance(spec, CNNSpec) and spec.raw_pixels):
        network.set_normalisation(*statistics)
    if targets.is_regression:
        spread = float(np.std(targets.values[index], dtype=np.float64))
        if not spread > 0:
            raise ValueError(
                f"all {len(index)} training targets are {targets.values[index[0]]}; there is nothing to learn"
            )
        network.scale.fill_(spread)
    return network


def _predict(
    model: PriceCNN | SeriesCNN | Ensemble,
    store: ImageSet,
    series: NDArray[np.float32] | None,
    index: NDArray[np.int64],
    threads: int | None,
    device: torch.device,
    method: str = "predict",
) -> NDArray[np.float32]:
    if not len(index):
        return np.empty(0, np.float32)
    model.to(device)
    score = getattr(model, method)
    try:
        if series is not None:
            return np.asarray(score(series[index]))
        reader = store.batches(mask=index, shuffle=False, batch_size=1024, threads=threads)
        return np.concatenate([score(images) for images, _ in reader])
    finally:
        model.cpu()


def _evaluate(
    model: PriceCNN | SeriesCNN | Ensemble,
    predictions: NDArray[np.float32],
    store: ImageSet,
    series: NDArray[np.float32] | None,
    index: NDArray[np.int64],
    targets: Targets,
    threads: int | None,
    device: torch.device,
) -> dict[str, Any]:
    n = len(index)
    if not n:
        return {}
    truth = targets.values[index]
    if targets.is_regression:
        correlation = (
            float(np.corrcoef(predictions, truth)[0, 1]) if n > 1 and np.std(predictions) > 0 else 0.0
        )
        return {"images": n, "loss": float(np.mean((predictions - truth) ** 2)), "correlation": correlation}
    if targets.classes == 2:
        p = np.stack([1 - predictions, predictions], axis=1)
    else:
        p = _predict(model, store, series, index, threads, device, "probabilities")
    accuracy = float(np.mean(p.argmax(1) == truth))
    chosen = np.clip(p[np.arange(n), truth.astype(np.int64)].astype(np.float64), 1e-12, 1)
    counts = np.bincount(truth.astype(np.int64), minlength=targets.classes)
    return {
        "images": n,
        "loss": float(-np.mean(np.log(chosen))),
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / n)),
        "larger_class": float(counts.max() / n),
    }


def _plain(value: Any) -> Any:
    """Values that YAML and a checkpoint keep as they are."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _write_json(path: Path, content: Any) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(_plain(content), indent=2) + "\n")
    os.replace(fresh, path)
