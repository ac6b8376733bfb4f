"""Run a configuration: build, train, score, evaluate, skipping what is already done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix import samples
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS, as_time
from pricepix.factor.evaluation.report import check_installed
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.location import atomic_file, write_json
from pricepix.spec import ImageSpec
from pricepix.train.hyper import is_first_rank
from pricepix.workflow.config import Config, Store, Train

if TYPE_CHECKING:
    from pricepix.store.image_store import ImageStore

__all__ = ["run"]

_RECORD: Final = "pipeline.json"


def run(config: Config, *, echo: Callable[[str], Any] = print, progress: bool = True) -> Path:
    """Execute every step of a configuration that is not done yet.

    A step is known by the digest of its settings and of what it was made from; it is skipped if what it left
    in ``config.out`` carries that digest, and goes on where it stopped if it was interrupted. Nothing is ever
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
    pathlib.Path
        The last thing made: store, run, factor cache or report.

    Raises
    ------
    ValueError
        If a step is finished with other settings, or can not be done.
    """
    # Training on several devices starts this again in a process for each of them, to take part in it alone.
    if config.train is not None and not is_first_rank():
        return _take_part(config)
    if config.evaluate is not None:
        # Not after hours of training.
        check_installed()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    record = _Record(out)

    bars = _bars(config, progress)
    echo(f"data      {bars.name}")
    store, path = _build(config, bars, echo, progress)
    model, factor = out / "run", out / "factor.zarr"
    digests, digest = {}, store.digest
    # What is refused must not replace the file that says how the rest was made.
    for step, section, product in (("train", config.train, model), ("score", config.score, factor)):
        if section is not None:
            digests[step] = digest = _digest(section.model_dump(mode="json"), digest)
            record.check(step, digest, product)
    with atomic_file(out / "config.yaml") as partial:
        partial.write_text(config.anchored(Path.cwd()).to_yaml(), encoding="utf-8")
    if config.train is None:
        return path
    digest = digests["train"]
    if record.done("train", digest, model / "summary.json"):
        echo(f"train     up to date: {model}")
    else:
        from pricepix.train import fit

        resume = record.started("train", digest, model)
        fit(store, panel=bars.of_training(), out=model, resume=resume, progress=progress,
            **_training(config.train, store))  # fmt: skip
        record.finish("train", digest)
        echo(f"train     {_trained(model)}: {model}")
    if config.score is None:
        return model

    from pricepix.factor import evaluate, open_cache, score, write_report
    from pricepix.factor.evaluation.evaluate import resolve_horizon

    digest = digests["score"]
    if record.done("score", digest, factor):
        echo(f"score     up to date: {factor}")
        cache = open_cache(factor)
    else:
        record.started("score", digest, factor)
        cache = score(
            store, model, factor, panel=bars.of_scoring(), progress=progress, **config.score.arguments()
        )
        record.finish("score", digest)
        echo(f"score     {cache!r}")
    if config.evaluate is None:
        return factor

    report = out / "report.html"
    settings: dict[str, Any] = {"horizon": _horizon(config, store), "start": _out_of_sample(config)}
    settings |= {name: value for name, value in config.evaluate.arguments().items() if value is not None}
    settings["horizon"], settings["delay"] = resolve_horizon(
        cache.attrs, settings["horizon"], settings.get("delay")
    )
    digest = _digest(settings, digest)
    if record.done("evaluate", digest, report):
        echo(f"evaluate  up to date: {report}")
    else:
        record.started("evaluate", digest, None)
        found = evaluate(cache, bars.of_evaluation(settings, store), progress=progress, **settings)
        write_report(found, report, store=store, model=model)
        record.finish("evaluate", digest)
        echo(f"evaluate  {report}: {found!r}")
    return report


def _take_part(config: Config) -> Path:
    """Train on one more device; whatever else there is to do, the first process does."""
    from pricepix.store.image_store import open_store
    from pricepix.train import fit

    assert config.train is not None
    out = Path(config.out)
    store = open_store(_store_path(config))
    # The first process made the run's folder before it started this one.
    fit(store, panel=_bars(config, progress=False).of_training(), out=out / "run", resume=True,
        progress=False, **_training(config.train, store))  # fmt: skip
    return out / "run"


class _Record:
    """Which step of a folder was begun and finished with which digest."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _RECORD
        self._steps: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._steps = json.loads(self._path.read_text())["steps"]

    def done(self, step: str, digest: str, product: Path) -> bool:
        entry = self._steps.get(step)
        return entry is not None and entry["digest"] == digest and entry["finished"] and product.exists()

    def check(self, step: str, digest: str, product: Path) -> bool:
        """Tell whether a step began before; refuse what it left if its digest was another."""
        entry = self._steps.get(step)
        begun = product.exists()
        if begun and (entry is None or entry["digest"] != digest):
            raise ValueError(
                f"{product} was made with other settings or from other data: give another `out`, or move "
                "it away"
            )
        return begun

    def started(self, step: str, digest: str, product: Path | None) -> bool:
        """Note that a step begins; tell whether it began before with the same digest."""
        begun = product is not None and self.check(step, digest, product)
        self._write(step, digest, finished=False)
        return begun

    def finish(self, step: str, digest: str) -> None:
        self._write(step, digest, finished=True)

    def _write(self, step: str, digest: str, *, finished: bool) -> None:
        self._steps[step] = {"digest": digest, "finished": finished}
        write_json(self._path, {"version": 1, "steps": self._steps})


class _Table:
    """Bars of a table or a sample: one panel serves every step."""

    def __init__(self, config: Config, progress: bool) -> None:
        data = config.data
        table: Any = data.source
        if data.sample is not None:
            table = samples.stocks() if data.sample == "stocks" else samples.simulate(**data.simulate)
        reading = data.arguments("source", "sample", "simulate")
        self._panel = Panel.from_table(table, progress=progress, **reading)
        self.name = repr(self._panel)

    def build(self, spec: ImageSpec, path: Path, store: Store, **options: Any) -> ImageStore:
        from pricepix.build.universe import render_universe

        return render_universe(self._panel, spec, path, **store.arguments("path"), **options)

    def of_training(self) -> Panel:
        return self._panel

    def of_scoring(self) -> Panel:
        return self._panel

    def of_evaluation(self, settings: dict[str, Any], store: ImageStore) -> Panel:
        return self._panel


class _MarketCache:
    """Bars of a market cache, which may be larger than memory: each step reads what it needs of them.

    The build reads a stretch of days at a time, scoring none but their times, and the evaluation the days
    that are judged with what the horizons and the baselines look at around them. Networks learn from the
    store alone; baselines on the numbers behind the images need all bars. An evaluation lays what it reads out
    on grids of bars by stocks: see the notes of ``evaluate``.
    """

    def __init__(self, config: Config) -> None:
        from pricepix.bars import MarketCache

        data = config.data
        self._cache = MarketCache(data.market_cache or "", data.files, session=data.session or "ashare")
        self._day = self._cache.day_range(data.days)
        given = data.arguments()
        self._reading: dict[str, Any] = {
            **{name: given[name] for name in ("no_trade", "filtered", "decimals") if name in given},
            "adjust": data.adjust is not None,
            "on_bad": data.on_bad,
        }
        self._learns_series = config.train is not None and config.train.model.startswith(
            ("cnn1d", "logistic")
        )
        self.name = repr(self._cache)

    def build(self, spec: ImageSpec, path: Path, store: Store, **options: Any) -> ImageStore:
        from pricepix.build import MarketReading, StoreOptions, WindowChoice, build_market_store

        given = store.arguments("path", "workers", "price")

        def taken(kind: type) -> Any:
            """Return an option object of the keys that belong to it."""
            return kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})

        return build_market_store(
            self._cache,
            spec,
            path,
            windows=taken(WindowChoice),
            reading=MarketReading(days=self._day, **self._reading),
            options=taken(StoreOptions),
            threads=1 if store.workers == 0 else store.workers,
            **given,
            **options,
        )

    def of_training(self) -> Panel | None:
        return self._cache.panel(self._day, **self._reading) if self._learns_series else None

    def of_scoring(self) -> Any:
        kind = {name: value for name, value in self._reading.items() if name == "no_trade"}
        return self._cache.calendar(self._day, **kind)

    def of_evaluation(self, settings: dict[str, Any], store: ImageStore) -> Panel:
        """The days from `start` to `end`, or to the last one with an image, and those around them."""
        from pricepix.factor.evaluation.evaluate import bars_needed

        cache, all_days = self._cache, self._day
        per_year = 252.0 * cache.intervals if cache.session.periods is not None else 365.0 * cache.intervals
        before, after = bars_needed(per_year, **settings)
        edge = -(-len(store) // INDEX_CHUNK)
        head, tail = store.column("time", 0, 1), store.column("time", edge - 1, edge)
        shown = cache.days[all_days].astype("datetime64[ns]").astype(np.int64)
        first = int(head[0]) if settings.get("start") is None else as_time(settings["start"], store.tz)
        last = int(tail[-1]) if settings.get("end") is None else as_time(settings["end"], store.tz, end=True)
        # Days are those of the market's clock, at most one off from those of the world's.
        a, b = (int(np.searchsorted(shown, moment)) for moment in (first - DAY_NS, last + DAY_NS))
        a -= -(-(before + store.spec.lookback) // cache.intervals) + 1
        b += -(-after // cache.intervals) + 1
        days = slice(all_days.start + max(a, 0), min(all_days.start + b, all_days.stop))
        return cache.panel(days, **self._reading)


def _bars(config: Config, progress: bool) -> _Table | _MarketCache:
    return _Table(config, progress) if config.data.market_cache is None else _MarketCache(config)


def _store_path(config: Config) -> Path:
    return Path(config.store.path or Path(config.out) / "store.zarr")


def _build(
    config: Config, bars: _Table | _MarketCache, echo: Callable[[str], Any], progress: bool
) -> tuple[ImageStore, Path]:
    from pricepix.store.image_store import open_store

    path = _store_path(config)
    finished = False
    if path.exists():
        try:
            open_store(path)
            finished = True
        except ValueError:
            finished = False
    # Resuming compares the plan with the one that the store was made from, and does only what is left.
    mode = "resume" if path.exists() else "create"
    store = bars.build(config.image.spec(), path, config.store, mode=mode, progress=progress)
    echo(f"build     {'up to date' if finished else repr(store)}: {path}")
    return store, path


def _training(train: Train, store: ImageStore) -> dict[str, Any]:
    """What every process that trains gives to ``fit``."""
    return {
        **train.arguments("settings", "sample"),
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


def _trained(model: Path) -> str:
    folds = json.loads((model / "summary.json").read_text())["folds"]
    tests = [fold["test"].get("accuracy") for fold in folds]
    known = [f"{accuracy:.4f}" for accuracy in tests if accuracy is not None]
    return f"test accuracy {', '.join(known)}" if known else f"{len(folds)} folds"


def _digest(settings: Any, upstream: str) -> str:
    text = json.dumps([settings, upstream], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
