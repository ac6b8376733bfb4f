"""Run a configuration: build, train, score, evaluate, skipping what is already done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix.config import Config, Train
from pricepix.moments import as_time
from pricepix.panel import Panel

__all__ = ["run"]

_RECORD = "pipeline.json"


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
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    record = _Record(out)

    panel = _panel(config, progress)
    echo(f"data      {panel!r}")
    store, path = _build(config, panel, out, echo, progress)
    if config.train is None:
        return path
    model = out / "run"
    digest = _digest(config.train.model_dump(mode="json"), store.digest)
    if record.done("train", digest, model / "summary.json"):
        echo(f"train     up to date: {model}")
    else:
        from pricepix.train import fit

        train = config.train
        fit(store, **train.arguments("settings", "sample"), **train.settings, panel=panel, out=model,
            mask=_sampled(store, train),
            resume=record.started("train", digest, model), progress=progress)  # fmt: skip
        record.finish("train", digest)
        echo(f"train     {_trained(model)}: {model}")
    if config.score is None:
        return model

    from pricepix.factor import evaluate, open_cache, score

    factor = out / "factor.zarr"
    digest = _digest(config.score.model_dump(mode="json"), digest)
    if record.done("score", digest, factor):
        echo(f"score     up to date: {factor}")
        cache = open_cache(factor)
    else:
        record.started("score", digest, factor)
        cache = score(store, model, factor, panel=panel, progress=progress, **config.score.arguments())
        record.finish("score", digest)
        echo(f"score     {cache!r}")
    if config.evaluate is None:
        return factor

    report = out / "report.html"
    settings: dict[str, Any] = {"horizon": _horizon(config, store), "start": _out_of_sample(config)}
    settings |= {name: value for name, value in config.evaluate.arguments().items() if value is not None}
    digest = _digest(settings, digest)
    if record.done("evaluate", digest, report):
        echo(f"evaluate  up to date: {report}")
    else:
        record.started("evaluate", digest, None)
        found = evaluate(cache, panel, progress=progress, **settings)
        found.report(report, store=store, model=model)
        record.finish("evaluate", digest)
        echo(f"evaluate  {found!r}: {report}")
    return report


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

    def started(self, step: str, digest: str, product: Path | None) -> bool:
        """Note that a step begins; tell whether it began before with the same digest."""
        entry = self._steps.get(step)
        begun = product is not None and product.exists()
        if begun and (entry is None or entry["digest"] != digest):
            raise ValueError(
                f"{product} was made with other settings or from other data: give another `out`, or move "
                "it away"
            )
        self._write(step, digest, finished=False)
        return begun

    def finish(self, step: str, digest: str) -> None:
        self._write(step, digest, finished=True)

    def _write(self, step: str, digest: str, *, finished: bool) -> None:
        self._steps[step] = {"digest": digest, "finished": finished}
        partial = self._path.with_suffix(".tmp")
        partial.write_text(json.dumps({"version": 1, "steps": self._steps}, indent=1))
        partial.replace(self._path)


def _panel(config: Config, progress: bool) -> Panel:
    data = config.data
    if data.market_cache is not None:
        from pricepix.sources import MarketCache

        cache = MarketCache(data.market_cache, data.files, session=data.session or "ashare")
        reading = data.arguments("market_cache", "files", "session", "adjust", "on_bad")
        return cache.panel(**reading, adjust=data.adjust is not None, on_bad=data.on_bad)
    table: Any = data.source
    if data.sample is not None:
        from pricepix import samples

        table = samples.stocks() if data.sample == "stocks" else samples.simulate(**data.simulate)
    return Panel.from_table(table, progress=progress, **data.arguments("source", "sample", "simulate"))


def _build(
    config: Config, panel: Panel, out: Path, echo: Callable[[str], Any], progress: bool
) -> tuple[Any, Path]:
    from pricepix.build import render_universe
    from pricepix.store import open_store

    path = Path(config.store.path or out / "store.zarr")
    finished = False
    if path.exists():
        try:
            open_store(path)
            finished = True
        except ValueError:
            finished = False
    # Resuming compares the plan with the one that the store was made from, and does only what is left.
    store = render_universe(
        panel, config.image.spec(), path, mode="resume" if path.exists() else "create", progress=progress,
        **config.store.arguments("path"),
    )  # fmt: skip
    echo(f"build     {'up to date' if finished else repr(store)}: {path}")
    return store, path


def _sampled(store: Any, train: Train) -> NDArray[np.bool_] | None:
    """A share of the windows before the test, and all of the test's; None for all of both."""
    if train.sample is None:
        return None
    mask = np.random.default_rng(train.seed).random(len(store)) < train.sample
    if train.split != "walk" and train.test is not None:
        begin = train.test.partition(":")[0]
        if begin:
            mask |= store.time >= as_time(begin, store.tz)
    return np.asarray(mask)


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
    return config.train.test.partition(":")[0] or None


def _trained(model: Path) -> str:
    folds = json.loads((model / "summary.json").read_text())["folds"]
    tests = [fold["test"].get("accuracy") for fold in folds]
    known = [f"{accuracy:.4f}" for accuracy in tests if accuracy is not None]
    return f"test accuracy {', '.join(known)}" if known else f"{len(folds)} folds"


def _digest(settings: Any, upstream: str) -> str:
    text = json.dumps([settings, upstream], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
