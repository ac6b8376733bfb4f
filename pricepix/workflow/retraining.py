"""The model of an update: trained once, or again every year or quarter on what is known by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time, to_series
from pricepix.store.sealed_files import read_sealed_yaml, write_sealed_yaml
from pricepix.workflow.config import Config

if TYPE_CHECKING:
    from pricepix.store.image_store import ImageStore

__all__ = ["model_for"]

_EVERY: Final = {"yearly": "1y", "quarterly": "1q"}


def model_for(
    config: Config,
    store: ImageStore,
    panel: Panel,
    folder: Path,
    echo: Callable[[str], Any],
    progress: bool,
) -> Path:
    """Return the run that scores the newest images, trained first if it is time.

    With ``retrain: never`` that is one run, trained at the first update. Else the folder is a walk-forward run with a
    fold a year or quarter: each is trained at the first update within it, on images whose returns were known before
    it began, and scores the images of its own period. Earlier images than those of the first fold are not scored.

    Parameters
    ----------
    config : Config
        With the sections train and update. ``train.train`` is the length of the training period, such as ``"2y"``,
        all that came before by default; with ``retrain: never`` a period.
    store : ImageStore
    panel : Panel
        The bars, for models that learn from them.
    folder : Path
    echo : callable
    progress : bool
    """
    assert config.train is not None
    retrain = "never" if config.update is None else config.update.retrain
    if retrain == "never":
        out = folder / "run"
        if not (out / "summary.json").is_file():
            _fit(config, store, panel, out, {}, progress)
            echo(f"train     {out}")
        return out
    newest = int(store.time[-1])
    begin = to_series(np.array([newest]), store.tz).dt.truncate(_EVERY[retrain])
    first, name = begin.dt.strftime("%Y-%m-%d")[0], begin.dt.strftime("%Y%m")[0]
    saved = folder / "config.yaml"
    found = read_sealed_yaml(saved) if saved.is_file() else {}
    folds: list[dict[str, Any]] = found.get("folds", [])
    if any(fold["name"] == name for fold in folds):
        return folder
    before = int(begin.dt.timestamp("ns")[0])
    if not folds and not (store.time < before).any():
        # The first year or quarter has nothing before it: what is known today trains, and scores begin today.
        first = _day(newest, store.tz)
        before = as_time(first, store.tz)
        begin = to_series(np.array([before]), store.tz)
    last = _day(before - 1, store.tz)
    start = ""
    if config.train.train is not None:
        start = str(begin.dt.offset_by(f"-{config.train.train}").dt.strftime("%Y-%m-%d")[0])
    _fit(config, store, panel, folder / f"fold_{name}", {"split": "time", "train": f"{start}:{last}", "test": None},
         progress)  # fmt: skip
    if folds:
        folds[-1]["test"]["last"] = last
    test = {
        "images": int(np.count_nonzero(store.time >= before)),
        "first": first,
        "last": _day(newest, store.tz),
    }
    folds.append({"name": name, "test": test})
    write_sealed_yaml(saved, {"folds": folds})
    echo(f"train     {folder / f'fold_{name}'}: for images from {first} on")
    return folder


def _fit(
    config: Config, store: ImageStore, panel: Panel, out: Path, changes: dict[str, Any], progress: bool
) -> None:
    from pricepix.train import fit
    from pricepix.workflow.pipeline import training_arguments

    assert config.train is not None
    if (out / "summary.json").is_file():
        return
    arguments = {**training_arguments(config.train, store), **changes}
    fit(store, panel=panel, out=out, resume=out.exists(), progress=progress, **arguments)


def _day(ns: int, tz: str | None) -> str:
    return str(to_series(np.array([ns]), tz).dt.strftime("%Y-%m-%d")[0])
