"""Other projects' configuration files, translated once into ours, every key accounted for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped,unused-ignore]

from pricepix.workflow.config import read_mapping
from pricepix.workflow.project_files import (
    CnnForTradingFile,
    ImageTradingFile,
    Kind,
    Note,
    project_of,
)

__all__ = ["Translation", "run_file", "run_translated", "translate_config"]

_NAMES: Final = {"image_trading": "ImageTrading", "cnn_for_trading": "CNN-for-Trading"}
# What a project does whatever its configuration says, and what happens here instead.
_DIFFERENCES: Final = {
    "image_trading": [
        "bars are drawn on one price scale; there each of open, high, low and close had its own, which destroys most "
        "of them (image.scale: per_field in style image_trading brings it back)",
        "a horizon of h bars is h bars; there it was h + 1",
        "class 1 means up at both horizons; there RET_LONG's class 1 meant down",
        "a missing return trains nothing; there it was the class 0, not up or not down",
        "stocks under special treatment are masked and their bars stay; there they were cut out, so that windows and "
        "returns reached over the hole",
        "bars without a trade are missing; volume is divided by the adjustment factor, which prices are multiplied "
        "with",
        "validation is the last part of the training period, purged of overlaps; there it was drawn at random from "
        "overlapping windows",
        "the network trains on after a validation; there it stayed in evaluation mode for the rest of the epoch",
        "the learning rate falls by a cosine over the epochs; there a schedule made for epochs was stepped every "
        "batch",
        "scores stand one bar after the image's last bar, from which they may be traded; there they stood "
        "PREDICT_WIN + 1 bars later, and those of the last bars of a day on the cache's last day",
        "the scores are a Zarr array (day, stock, interval); pricepix.factor's to_image_trading writes the raw file",
    ],
    "cnn_for_trading": [
        "returns are taken within an instrument; there the last ones of each were the next one's prices",
        "a missing return trains nothing; there it was a fall",
        "validation is the last part of the training period, purged of overlaps; there it was drawn at random from "
        "overlapping windows, and the labels of its end reached into the test",
        "the classes are weighted by their frequency (train.balance); there rows were drawn again by SMOTE on the "
        "row number",
        "all instruments are scored; there the last one was left out",
        "images have row 0 at the top; the style is otherwise theirs, pixel by pixel",
        "the table is read from disk and checked; nothing is downloaded",
    ],
}


@dataclass
class Translation:
    """Another project's configuration in our words."""

    kind: Kind
    config: dict[str, Any]
    """Our configuration, as ``Config.from_dict`` takes it."""
    notes: list[Note]
    """One for every key: where its value went."""
    differences: list[str]
    """What that project does whatever its configuration says, and what happens here instead."""
    exports: dict[str, str] = field(default_factory=dict)
    """Files that are written after a run, at the places that the configuration names: ``model`` (the best
    checkpoint), ``log`` (metrics of every validation), ``factors`` (a table of the scores)."""

    def __str__(self) -> str:
        lines = [f"translated from {_NAMES[self.kind]}'s configuration:"]
        lines += [f"  {note}" for note in self.notes]
        lines += ["done differently than there:", *(f"  {text}" for text in self.differences)]
        return "\n".join(lines)

    def to_yaml(self) -> str:
        """Return our configuration, with the notes as comments above it."""
        comments = "\n".join(f"# {line}" for line in str(self).splitlines())
        return f"{comments}\n{yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)}"

    def export(self, out: str | PathLike[str]) -> list[Path]:
        """Copy what a finished run left in its folder `out` to the places named in `exports`; return them."""
        found = []
        sources: dict[str, Callable[[Path, Path], None]] = {
            "model": lambda run, to: _copy(run, "best.ckpt", to),
            "log": lambda run, to: _copy(run, "metrics.csv", to),
            "factors": _write_factors,
        }
        for name, target in self.exports.items():
            path = Path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            sources[name](Path(out), path)
            found.append(path)
        return found


def translate_config(
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
) -> Translation:
    """Translate a configuration of ImageTrading or of CNN-for-Trading into ours.

    Every key is honoured or refused by name, none is ignored: `Translation.notes` says where each value went.

    Parameters
    ----------
    source : str, path or mapping
        The YAML file, or what stands in it.
    data : str or path, optional
        The bars, instead of those that the configuration names. CNN-for-Trading's names none: its table is
        ``data/tabularDf.csv`` beside the configuration by default.
    out : str or path, optional
        Folder of everything that a run makes; by default what the configuration names, or a folder called
        after the model. Like `data` it is taken from the working directory; paths that stand in the file are
        taken from the file's folder.

    Returns
    -------
    Translation

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not YAML, not one of these configurations, a key is missing or unknown (the nearest known one is
        told), or a value cannot be honoured. One message lists all.
    """
    folder: Path | None = None
    if isinstance(source, Mapping):
        values: Mapping[str, Any] = source
    else:
        values = read_mapping(source)
        folder = Path(source).absolute().parent
    kind = project_of(values)
    if kind is None:
        raise ValueError(
            f"{source if folder else 'this'} is neither a configuration of ImageTrading (MODEL CNN49u or CNN9u, "
            "PATHS, DATASET, TRAIN, INFERENCE) nor of CNN-for-Trading (MODEL CNN5d or CNN20d, DATASET, TRAIN)"
        )
    file: Any
    if kind == "image_trading":
        file = ImageTradingFile.read(values)
        config = _image_trading(file, folder)
    else:
        file = CnnForTradingFile.read(values)
        config = _cnn_for_trading(file, folder)
    notes = file.notes(values)
    if data is not None:
        place = "market_cache" if kind == "image_trading" else "source"
        config["data"][place] = _given(data)
        notes = [
            n._replace(what="replaced by data=") if n.key == "PATHS.COMMONCACHE_DIR" else n for n in notes
        ]
    if out is not None:
        config["out"] = _given(out)
    exports = {name: _anchored(path, folder) for name, path in file.exports().items()}
    return Translation(kind, _without_none(config), notes, _DIFFERENCES[kind], exports)


def run_translated(
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    echo: Callable[[str], Any] = print,
    progress: bool = True,
) -> Translation:
    """Run a configuration of ImageTrading or CNN-for-Trading: build, train, score, evaluate, write its files.

    The translation is told, and saved as ``translated.yaml`` in the run's folder before anything is done. In a
    process that training on several devices started, ``run`` only trains, and nothing is told or written.

    Parameters
    ----------
    source, data, out
        As in `translate_config`.
    echo : callable
        Takes a line on each step.
    progress : bool
        Show progress bars.

    Returns
    -------
    Translation

    Raises
    ------
    ValueError, FileNotFoundError
        As `translate_config` and ``pricepix.workflow.pipeline.run``.
    """
    from pricepix.train.hyper import is_first_rank
    from pricepix.workflow.config import Config
    from pricepix.workflow.pipeline import run

    translation = translate_config(source, data=data, out=out)
    config = Config.from_dict(translation.config)
    if not is_first_rank():
        run(config, echo=echo, progress=progress)
        return translation
    echo(str(translation))
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "translated.yaml").write_text(translation.to_yaml(), encoding="utf-8")
    run(config, echo=echo, progress=progress)
    for path in translation.export(folder):
        echo(f"wrote     {path}")
    return translation


def run_file(
    path: str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    echo: Callable[[str], Any] = print,
    progress: bool = True,
) -> str | Path | None:
    """Run a configuration file, of ours or of another project; `data` and `out` are for the latter only.

    Returns the last thing that was made, of a configuration of ours.
    """
    from pricepix.workflow.config import load_config
    from pricepix.workflow.pipeline import run

    if project_of(read_mapping(path)) is not None:
        run_translated(path, data=data, out=out, echo=echo, progress=progress)
        return None
    if data or out:
        raise ValueError(f"--data and --out are for configurations of other projects: edit {path} instead")
    return run(load_config(path), echo=echo, progress=progress)


# ---- files to configurations


def _image_trading(file: ImageTradingFile, folder: Path | None) -> dict[str, Any]:
    days = [day.replace("-", "") for day in (file.start, file.end, file.test_start, file.test_end)]
    name = "Train_{}_{}-Infer_{}_{}".format(*days)
    network, files = file.network, file.files
    # Without names of files the cache has the project's own, with a factor.
    adjust = "multiply" if not files or "ADJ_FACTOR" in files else None
    more = {"warmup_epochs": file.warmup_epochs, "warmup_from": file.warmup_from, "patience": file.patience}
    return {
        "version": 1,
        "out": _anchored(Path(file.project) / name / (file.edition or ""), folder),
        "data": {
            "market_cache": _anchored(file.cache, folder),
            "files": files or None,
            "session": "ashare",
            "adjust": adjust,
        },
        "image": {"preset": network.preset, "ma": file.averages, "volume": file.volume},
        "store": {
            "path": _anchored(Path(file.images) / name / f"{network.preset}.zarr", folder),
            "horizons": sorted({1, file.predicted}),
            "layout": "bits",
            "workers": file.workers,
            "start": min(file.start, file.test_start),
            "end": max(file.end, file.test_end),
        },
        "train": {**_train(file, "image_trading", more), "test": f"{file.test_start}:{file.test_end}"},
        "score": {"shift": 1, "start": file.test_start, "end": file.test_end},
        "evaluate": {"horizon": file.horizon},
    }


def _cnn_for_trading(file: CnnForTradingFile, folder: Path | None) -> dict[str, Any]:
    first_day = file.start.replace("-", "")
    network = file.network
    config: dict[str, Any] = {
        "version": 1,
        "out": _anchored(Path("pricepix") / f"{file.model}_{file.label}_{first_day}", folder),
        "data": {
            "source": _anchored("data/tabularDf.csv", folder),
            "columns": {"instrument": "code", "time": "date"},
        },
        "image": {"preset": network.preset, "ma": file.averages, "volume": file.volume},
        "store": {
            "horizons": [5, 20],
            "layout": "bits",
            "workers": file.workers,
            "start": file.start,
            "end": max(file.end, file.test_end or ""),
        },
        "train": {**_train(file, "cnn_for_trading", {"patience": file.patience}), "balance": "weights"},
    }
    if file.tested:
        config["train"]["test"] = f"{file.test_start}:{file.test_end}"
        config["score"] = {"start": file.test_start, "end": file.test_end}
        config["evaluate"] = {"horizon": file.horizon}
    return config


def _train(file: ImageTradingFile | CnnForTradingFile, hyper: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What both projects say of training, and settings that only one has."""
    common = {name: getattr(file, name) for name in ("epochs", "batch_size", "lr", "weight_decay")}
    return {
        "model": file.network.model,
        "horizon": file.horizon,
        "split": "time",
        "train": f"{file.start}:{file.end}",
        "validation": file.validation,
        "sample": None if file.sample == 1.0 else file.sample,
        "hyper": hyper,
        "settings": {**common, **more},
    }


# ---- paths and files


def _given(path: str | PathLike[str]) -> str:
    """Return a path that the caller gave, which has nothing to do with the configuration's folder."""
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).absolute())


def _anchored(path: str | PathLike[str], folder: Path | None) -> str:
    """Return a path that stands in the configuration."""
    return str(Path(path) if folder is None else folder / path)


def _without_none(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return values


def _latest(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"no {name} in {folder}: run the configuration first")
    return found[-1]


def _copy(out: Path, name: str, target: Path) -> None:
    shutil.copyfile(_latest(out / "run", name), target)


def _write_factors(out: Path, target: Path) -> None:
    from pricepix.factor import open_cache

    open_cache(out / "factor.zarr").to_csv(target, guard=False)
