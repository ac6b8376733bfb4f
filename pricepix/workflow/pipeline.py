"""Run a configuration: build, train, score, evaluate, skipping what is already done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.bars.times import period_ends, time_range
from pricepix.factor.evaluation.report import check_installed
from pricepix.location import Location, atomic_file
from pricepix.store.image_store import open_store
from pricepix.store.sealed_files import read_sealed_json
from pricepix.train.hyper import is_first_rank
from pricepix.workflow.config import Config, Train, join_path
from pricepix.workflow.record import Record, digest_of
from pricepix.workflow.source import Source, TableSource, source_of

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache
    from pricepix.store.image_store import ImageStore

__all__ = ["is_there", "run", "store_path", "training_arguments"]


def run(config: Config, *, echo: Callable[[str], Any] = print, progress: bool = True) -> str | Path:
    """Execute every step of a configuration that is not done yet.

    A step is known by the digest of its settings and of what it was made from; it is skipped if what it left
    in ``config.out`` carries that digest, and resumes where it stopped if it was interrupted. Nothing is ever
    deleted: a finished step with other settings is an error that names the folder.

    Parameters
    ----------
    config : Config
    echo : callable
        Takes a line on each step.
    progress : bool
        Show progress bars.

    Returns
    -------
    str or pathlib.Path
        The last thing made: store, run, factor cache or report.

    Raises
    ------
    ValueError
        If a step is finished with other settings, or cannot be done.
    """
    # Training on several devices starts this again in a process for each of them, which only takes part in it.
    if config.train is not None and not is_first_rank():
        return _take_part(config)
    if "://" in config.out:
        raise ValueError(
            f"out: {config.out} is an object store: networks are trained into a folder; give a folder as out, and the "
            "URL as store.path for the images"
        )
    if config.evaluate is not None:
        # Not after hours of training.
        check_installed()
    source = source_of(config, progress)
    if isinstance(source, TableSource):
        check_periods(config, source.panel)
    steps = _Steps(config, source, echo, progress)
    path = steps.build()
    steps.check()
    with atomic_file(steps.out / "config.yaml") as partial:
        partial.write_text(config.anchored(Path.cwd()).to_yaml(), encoding="utf-8")
    if config.train is None:
        return path
    steps.train(config.train)
    if config.score is None:
        return steps.model
    cache = steps.score()
    return steps.factor if config.evaluate is None else steps.evaluate(cache)


def check_periods(config: Config, panel: Panel) -> None:
    """Hold the periods and the horizon of a configuration against the bars, before anything is drawn.

    Raises
    ------
    ValueError
        A period without a bar, a horizon without returns, or a universe of the largest without market caps.
    """
    universe = None if config.evaluate is None else config.evaluate.universe
    if universe is not None and universe.top is not None and "market_cap" not in panel.fields:
        raise ValueError(
            f"evaluate.universe.top: the {universe.top} largest need market caps, and the bars have none: map a column "
            "to market_cap in data.columns, or choose by min_dollar_volume"
        )
    periods: dict[str, Any] = {}
    train = config.train
    if train is not None and train.frozen is None:
        if train.horizon is not None and train.horizon not in config.store.horizons:
            listed = ", ".join(map(str, config.store.horizons))
            raise ValueError(
                f"train.horizon: the store is to have no returns over {train.horizon} bars, only over {listed}: add "
                "it to store.horizons"
            )
        if train.split == "time":
            periods |= {f"train.{name}": getattr(train, name) for name in ("train", "validation", "test")}
    for name in ("store", "score", "evaluate"):
        section: Any = getattr(config, name)
        if section is not None and (section.start or section.end):
            periods[f"{name}.start and {name}.end"] = (section.start, section.end)
    for name, period in periods.items():
        if period is None or isinstance(period, float) or (isinstance(period, str) and _is_number(period)):
            continue
        first, last = time_range(*period_ends(period), panel.tz)
        if not ((panel.calendar >= first) & (panel.calendar <= last)).any():
            shown = " to ".join(str(end) for end in period) if isinstance(period, tuple) else period
            raise ValueError(
                f"{name}: no bar lies in {shown}; the bars run from {panel.stamp(int(panel.calendar[0]))} to "
                f"{panel.stamp(int(panel.calendar[-1]))}"
            )


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _take_part(config: Config) -> Path:
    """Train on one more device; everything else is for the first process."""
    from pricepix.train import fit

    assert config.train is not None
    out = Path(config.out)
    store = open_store(store_path(config))
    # The first process made the run's folder before it started this one.
    fit(store, panel=source_of(config, progress=False).training_panel(), out=out / "run", resume=True,
        progress=False, **training_arguments(config.train, store))  # fmt: skip
    return out / "run"


@dataclass
class _Steps:
    """The steps of one run, each of which is skipped if its product is there."""

    config: Config
    source: Source
    echo: Callable[[str], Any]
    progress: bool
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = Path(self.config.out)
        frozen = self.config.train.frozen if self.config.train is not None else None
        self.model = Path(frozen) if frozen else self.out / "run"
        self.factor = self.out / "factor.zarr"
        self.out.mkdir(parents=True, exist_ok=True)
        self.record = Record(self.out)
        self.echo(f"data      {self.source.name}")

    def build(self) -> str | Path:
        """Build the store, and return where it is."""
        path = store_path(self.config)
        # Resuming compares the plan with the one that the store was made from, and does only what is left.
        begun = is_there(path)
        finished, mode = False, "resume" if begun else "create"
        if begun:
            try:
                open_store(path)
                finished = True
            except ValueError:
                finished = False
        spec, settings = self.config.image.spec(), self.config.store
        self.store: ImageStore = self.source.build(spec, path, settings, mode=mode, progress=self.progress)
        self.echo(f"build     {'up to date' if finished else repr(self.store)}: {path}")
        return path

    def check(self) -> None:
        """Refuse, before any work, products of other settings."""
        digest = self.store.digest
        steps = (("train", self.config.train, self.model), ("score", self.config.score, self.factor))
        for step, section, product in steps:
            if section is not None:
                self.digests[step] = digest = digest_of(section.model_dump(mode="json"), digest)
                if step != "train" or not self.is_frozen:
                    self.record.check(step, digest, product)

    @property
    def is_frozen(self) -> bool:
        """Whether the model is one that is there already."""
        return self.config.train is not None and self.config.train.frozen is not None

    def train(self, settings: Train) -> None:
        """Train the networks."""
        if self.is_frozen:
            if not self.model.exists():
                raise FileNotFoundError(f"train.frozen: there is no run and no checkpoint at {self.model}")
            self.echo(f"train     frozen: {self.model}")
            return
        digest, model = self.digests["train"], self.model
        if self.record.done("train", digest, model / "summary.json"):
            self.echo(f"train     up to date: {model}")
            return
        from pricepix.train import fit

        resume = self.record.started("train", digest, model)
        fit(self.store, panel=self.source.training_panel(), out=model, resume=resume, progress=self.progress,
            **training_arguments(settings, self.store))  # fmt: skip
        self.record.finish("train", digest)
        self.echo(f"train     {_test_accuracy(model)}: {model}")

    def score(self) -> FactorCache:
        """Score the store, and return the factor cache."""
        from pricepix.factor import open_cache, score

        assert self.config.score is not None
        digest, factor = self.digests["score"], self.factor
        if self.record.done("score", digest, factor):
            self.echo(f"score     up to date: {factor}")
            return open_cache(factor)
        self.record.started("score", digest, factor)
        cache = score(
            self.store, self.model, factor, panel=self.source.scoring_panel(), progress=self.progress,
            **self.config.score.arguments(),
        )  # fmt: skip
        self.record.finish("score", digest)
        self.echo(f"score     {cache!r}")
        return cache

    def evaluate(self, cache: FactorCache) -> Path:
        """Evaluate the factor, and return the report."""
        from pricepix.factor.evaluation.evaluate import resolve_horizon
        from pricepix.workflow.report import report_on

        assert self.config.evaluate is not None
        report = self.out / "report.html"
        settings: dict[str, Any] = {
            "horizon": None if self.is_frozen else _horizon(self.config, self.store),
            "start": _out_of_sample(self.config), **self.config.evaluate.arguments(),
        }  # fmt: skip
        settings["horizon"], settings["delay"] = resolve_horizon(
            cache.attrs, settings["horizon"], settings.get("delay")
        )
        digest = digest_of(settings, self.digests["score"])
        if self.record.done("evaluate", digest, report):
            self.echo(f"evaluate  up to date: {report}")
            return report
        self.record.started("evaluate", digest, None)
        bars = self.source.evaluation_panel(settings, self.store)
        found, _ = report_on(
            cache, bars, report, store=self.store, model=self.model, progress=self.progress, **settings
        )
        self.record.finish("evaluate", digest)
        self.echo(f"evaluate  {report}: {found!r}")
        return report


def store_path(config: Config) -> str | Path:
    """Return where the store of a configuration lies: a path, or a URL."""
    store = config.store
    if store.images and not store.path:
        # What the images are made from, and nothing of what a run does with them.
        data = config.data.model_dump(mode="json")
        made = store.model_dump(mode="json", exclude={"path", "images", "workers", "memory"})
        return join_path(store.images, f"{digest_of([data, made], config.image.spec().digest)[:16]}.zarr")
    if store.path:
        return store.path if "://" in store.path else Path(store.path)
    return join_path(config.out, "store.zarr")


def is_there(place: str | Path) -> bool:
    """Whether there is anything at a path or a URL."""
    return place.exists() if isinstance(place, Path) else not Location.of(place).is_empty()


def training_arguments(train: Train, store: ImageStore) -> dict[str, Any]:
    """Return the arguments of ``fit`` that are the same in every process that trains."""
    return {
        **train.arguments("settings", "sample", "frozen"),
        **train.settings,
        "mask": _sampled(store, train),
    }


def _sampled(store: ImageStore, train: Train) -> NDArray[np.bool_] | None:
    """A share of the windows; None for all."""
    if train.sample is None:
        return None
    return np.asarray(np.random.default_rng(train.seed).random(len(store)) < train.sample)


def _horizon(config: Config, store: Any) -> int:
    """The horizon that the network learned."""
    assert config.train is not None
    if config.train.horizon is not None:
        return config.train.horizon
    return store.horizons[0] if len(store.horizons) == 1 else store.spec.lookback


def _out_of_sample(config: Config) -> str | None:
    """First day of the test period: what a network was trained on says nothing about it."""
    assert config.train is not None
    if config.train.split == "walk" or config.train.test is None:
        return None
    from pricepix.train.splits import period_ends

    start = period_ends(config.train.test)[0]
    return None if start is None else str(start)


def _test_accuracy(model: Path) -> str:
    folds = read_sealed_json(model / "summary.json")["folds"]
    tests = [fold["test"].get("accuracy") for fold in folds]
    known = [f"{accuracy:.4f}" for accuracy in tests if accuracy is not None]
    return f"test accuracy {', '.join(known)}" if known else f"{len(folds)} folds"
