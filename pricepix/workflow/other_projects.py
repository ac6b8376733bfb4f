"""Other projects' configuration files, translated once into ours, every key accounted for."""

from __future__ import annotations

import datetime
import difflib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import yaml  # type: ignore[import-untyped,unused-ignore]

from pricepix.bars.market_cache import KEYS

KINDS: Final = ("image_trading", "cnn_for_trading", "jkx")
Kind = Literal["image_trading", "cnn_for_trading"]

_MODELS: Final = {"CNN49u": ("cnn49u", "it49", 49), "CNN9u": ("cnn9u", "it9", 9)}
_DAILY_MODELS: Final = {"CNN5d": ("cnnft5", "cnnft5", 5), "CNN20d": ("cnnft20", "cnnft20", 20)}
_MODES: Final = ("train", "test", "inference", "infer", "train_all", "default")


class Note(NamedTuple):
    """What became of one key of a foreign configuration."""

    key: str
    value: Any
    what: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.what}"


@dataclass
class Translation:
    """A foreign configuration in our words."""

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
        name = {"image_trading": "ImageTrading", "cnn_for_trading": "CNN-for-Trading"}[self.kind]
        lines = [f"translated from {name}'s configuration:"]
        lines += [f"  {note}" for note in self.notes]
        lines += ["done otherwise than there:", *(f"  {text}" for text in self.differences)]
        return "\n".join(lines)

    def to_yaml(self) -> str:
        """Return our configuration, with the notes as comments above it."""
        comments = "\n".join(f"# {line}" for line in str(self).splitlines())
        return f"{comments}\n{yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)}"

    def export(self, out: str | PathLike[str]) -> list[Path]:
        """Copy what a finished run left in its folder `out` to the places named in `exports`; return them."""
        found = []
        sources: dict[str, Callable[[Path, Path], None]] = {
            "model": lambda run, to: _copy(_only(run / "run", "best.ckpt"), to),
            "log": lambda run, to: _copy(_only(run / "run", "metrics.csv"), to),
            "factors": _write_factors,
        }
        for name, target in self.exports.items():
            path = Path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            sources[name](Path(out), path)
            found.append(path)
        return found


def foreign_kind(values: Any) -> Kind | None:
    """Tell whose configuration this is; None if it is neither ImageTrading's nor CNN-for-Trading's."""
    if not isinstance(values, Mapping) or "MODEL" not in values:
        return None
    if values["MODEL"] in _DAILY_MODELS:
        return "cnn_for_trading"
    if values["MODEL"] in _MODELS or {"PATHS", "DATA_FILES"} & set(values):
        return "image_trading"
    return "cnn_for_trading" if {"DATASET", "TRAIN"} <= set(values) else None


def translate_config(
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
) -> Translation:
    """Translate a configuration of ImageTrading or of CNN-for-Trading into ours.

    Every key is honoured or refused by name, none is ignored: `Translation.notes` says of each what became of
    it.

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
        values: Any = source
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no configuration at {path}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        folder = path.absolute().parent
    kind = foreign_kind(values)
    if kind is None:
        raise ValueError(
            f"{source if folder else 'this'} is neither a configuration of ImageTrading (MODEL CNN49u or "
            "CNN9u, PATHS, "
            "DATASET, TRAIN, INFERENCE) nor of CNN-for-Trading (MODEL CNN5d or CNN20d, DATASET, TRAIN)"
        )
    keys = _Keys(values)
    translate = _image_trading if kind == "image_trading" else _cnn_for_trading
    translation = translate(keys, folder, data, out)
    keys.finish(kind)
    return translation


def run_foreign(
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
) -> None:
    """Run a configuration file, of ours or of another project; `data` and `out` are for the latter only."""
    from pricepix.workflow.config import load_config, read_yaml
    from pricepix.workflow.pipeline import run

    if foreign_kind(read_yaml(path)) is not None:
        run_foreign(path, data=data, out=out, echo=echo, progress=progress)
        return
    if data or out:
        raise ValueError(f"--data and --out are for configurations of other projects: edit {path} instead")
    run(load_config(path), echo=echo, progress=progress)


class _Keys:
    """Takes the keys of nested mappings one by one, and knows which were never taken."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left: dict[str, Any] = {}
        self._known: list[str] = []
        self.faults: list[str] = []
        self.notes: list[Note] = []
        self._flatten("", values)

    def _flatten(self, prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            # The indicators differ in form, so they are taken as a whole.
            if isinstance(value, Mapping) and not name.endswith("INDICATORS"):
                self._flatten(f"{name}.", value)
            else:
                self._left[name] = value

    def take(
        self, name: str, read: Callable[[Any], Any], what: str | Callable[[Any], str], default: Any = ...
    ) -> Any:
        """Take a key, check its value, and note what becomes of it; `default` if it need not be there."""
        self._known.append(name)
        if name not in self._left:
            if default is ...:
                self.faults.append(f"{name}: missing, but required")
                return None
            return default
        value = self._left.pop(name)
        try:
            found = read(value)
        except (ValueError, TypeError) as error:
            self.faults.append(f"{name}: {error} (got {value!r})")
            return None
        self.notes.append(Note(name, value, what if isinstance(what, str) else what(found)))
        return found

    def finish(self, kind: str) -> None:
        """Refuse keys that nobody took, and everything else that was wrong."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.faults.append(f"{name}: no key of {kind} that pricepix knows{hint}")
        if self.faults:
            listed = "\n".join(f"  {fault}" for fault in self.faults)
            raise ValueError(f"the configuration cannot be honoured, {len(self.faults)} faults:\n{listed}")


# ----------------------------------------------------------------------------------------------- values


def _day(value: Any) -> str:
    found = re.fullmatch(r"([0-9]{4})(-?)([0-9]{2})\2([0-9]{2})", str(value))
    if found is None:
        raise ValueError("a day is written YYYYMMDD")
    text = f"{found[1]}-{found[3]}-{found[4]}"
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"a day is written YYYYMMDD, and there is no day {text}") from None
    return text


def _whole(lowest: int = 1) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"give a whole number of at least {lowest}")
        return value

    return read


def _number(low: float, high: float = float("inf"), *, above: bool = True) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        # YAML reads 1e-5 without a point as text.
        found = float(value) if not isinstance(value, bool) else float("nan")
        if not ((low < found if above else low <= found) and found <= high):
            raise ValueError(f"give a number {'above' if above else 'of at least'} {low:g}, at most {high:g}")
        return found

    return read


def _one(*allowed: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"choose one of {', '.join(map(str, allowed))}")
        return value

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("give a path or a name")
    return value


def _workers(value: Any) -> int | None:
    if value == -1:
        return None
    return _whole()(value)


def _averages_of_mapping(value: Any) -> list[int]:
    """ImageTrading's ``{MA: {WIN: 245}}``, or nothing."""
    if value is None:
        return []
    if not isinstance(value, Mapping) or set(value) - {"MA"}:
        raise ValueError("the one indicator is MA: {WIN: bars}")
    inner = value.get("MA")
    if inner is None:
        return []
    if not isinstance(inner, Mapping) or set(inner) != {"WIN"}:
        raise ValueError("the one indicator is MA: {WIN: bars}")
    return [_whole()(inner["WIN"])]


def _averages_of_list(value: Any) -> list[int]:
    """CNN-for-Trading's ``[{NAME: MA}, {PARAM: 20}]``, or nothing."""
    if not value:
        return []
    pairs = [dict(item) for item in value] if isinstance(value, list) else []
    if not pairs or len(pairs) % 2:
        raise ValueError("indicators are a list of NAME and PARAM by turns")
    found = []
    for name, parameter in zip(pairs[::2], pairs[1::2], strict=True):
        if name.get("NAME") != "MA" or set(parameter) != {"PARAM"}:
            raise ValueError("the one indicator is NAME: MA with PARAM: days")
        found.append(_whole()(parameter["PARAM"]))
    return found


# ------------------------------------------------------------------------------------------ ImageTrading


def _image_trading(
    keys: _Keys, folder: Path | None, data: str | PathLike[str] | None, out: str | PathLike[str] | None
) -> Translation:
    model = keys.take(
        "MODEL", _one(*_MODELS), lambda v: f"train.model {_MODELS[v][0]}, image.preset {_MODELS[v][1]}"
    )
    network, preset, bars = _MODELS.get(model, ("", "", 0))
    cache = keys.take(
        "PATHS.COMMONCACHE_DIR", _text, "data.market_cache" if data is None else "replaced by data="
    )
    images = keys.take("PATHS.IMAGE_DATA_DIR", _text, "store.path, below it")
    project = keys.take("PATHS.PROJECT_DIR", _text, "out, below it")
    files = {}
    for key in KEYS:
        name = keys.take(f"DATA_FILES.{key}", _text, f"data.files.{key}", default=None)
        if name is not None:
            files[key] = name
    factor_there = not files or "ADJ_FACTOR" in files

    lookback = keys.take("DATASET.LOOKBACK_WIN", _one(9, 49), "image.lookback, of the preset")
    if None not in (model, lookback) and lookback != bars:
        keys.faults.append(f"DATASET.LOOKBACK_WIN: {model} sees {bars} bars, not {lookback}")
    without = "without effect, there as here: the periods of TRAIN and INFERENCE count"
    for name in ("START_DATE", "END_DATE"):
        keys.take(f"DATASET.{name}", _day, without, default=None)
    keys.take(
        "DATASET.MODE", _one(*_MODES), "without effect, there as here: a run trains and scores", default=None
    )
    sample = keys.take(
        "DATASET.SAMPLE_RATE", _number(0, 1), "train.sample: this share trains; all are scored", default=1.0
    )
    volume = keys.take("DATASET.SHOW_VOLUME", _flag, "image.volume (there it never was drawn)", default=False)
    workers = keys.take(
        "DATASET.PARALLEL_NUM", _workers, "store.workers, threads that draw and write", default=None
    )
    averages = keys.take(
        "DATASET.INDICATORS",
        _averages_of_mapping,
        "image.ma (there it was computed, and never drawn)",
        default=[],
    )
    horizon = keys.take("TRAIN.PREDICT_WIN", _whole(), "store.horizons, besides 1: exactly so many bars")
    label = keys.take(
        "TRAIN.LABEL", _one("RET_SHORT", "RET_LONG"),
        lambda v: f"train.horizon {1 if v == 'RET_SHORT' else horizon}, class 1 for up",
    )  # fmt: skip
    start = keys.take("TRAIN.START_DATE", _day, "train.train, first day")
    end = keys.take("TRAIN.END_DATE", _day, "train.train, last day")
    test_start = keys.take("INFERENCE.START_DATE", _day, "train.test, first day; scored and judged from then")
    test_end = keys.take("INFERENCE.END_DATE", _day, "train.test and score, last day")
    settings, share = _settings(keys)
    warm = keys.take(
        "TRAIN.WARMUP_EPOCH", _number(0, above=False), "train.settings.warmup_epochs", default=None
    )
    base = keys.take("TRAIN.LR_BASE_RATE", _number(0), "train.settings.warmup_from", default=None)
    patience = keys.take(
        "TRAIN.EARLY_STOP_EPOCH",
        _whole(),
        "train.settings.patience, in validations, four an epoch",
        default=None,
    )
    more = {"warmup_epochs": warm, "warmup_from": base, "patience": patience}
    settings |= {name: value for name, value in more.items() if value is not None}
    edition = keys.take("TRAIN.EDITION", _text, "out, its last folder", default=None)
    exports = _exports(keys)

    periods = None not in (start, end, test_start, test_end)
    a, b, c, d = (day.replace("-", "") if periods else "" for day in (start, end, test_start, test_end))
    name = f"Train_{a}_{b}-Infer_{c}_{d}" if periods else ""
    target = _anchored(Path(project or "") / name / (edition or ""), folder)
    store = {
        "path": str(_anchored(images, folder) / name / f"{preset}.zarr") if images else None,
        "horizons": sorted({1, horizon}) if horizon else [1],
        "layout": "bits",
        "workers": workers,
        **({"start": min(start, test_start), "end": max(end, test_end)} if periods else {}),
    }
    config = {
        "version": 1,
        "out": str(target) if out is None else _given(out),
        "data": {
            "market_cache": str(_anchored(cache or "", folder)) if data is None else _given(data),
            **({"files": files} if files else {}),
            "session": "ashare",
            **({"adjust": "multiply"} if factor_there else {}),
        },
        "image": {"preset": preset, "ma": averages, "volume": volume},
        "store": store,
        "train": {
            "model": network,
            "horizon": 1 if label == "RET_SHORT" else horizon,
            "split": "time",
            "train": f"{start}:{end}",
            "validation": share,
            "test": f"{test_start}:{test_end}",
            "sample": None if sample == 1.0 else sample,
            "hyper": "image_trading",
            "settings": settings,
        },
        "score": {"shift": 1, "start": test_start, "end": test_end},
        "evaluate": {"horizon": 1 if label == "RET_SHORT" else horizon},
    }
    differences = [
        "bars are drawn on one price scale; there each of open, high, low and close had its own, which "
        "destroys "
        "most of them (image.scale: per_field in style image_trading brings it back)",
        "a horizon of h bars is h bars; there it was h + 1",
        "class 1 means up at both horizons; there RET_LONG's class 1 meant down",
        "a missing return trains nothing; there it was the class 0, not up or not down",
        "stocks under special treatment are masked and their bars stay; there they were cut out, so that "
        "windows and "
        "returns reached over the hole",
        "bars without a trade are missing; volume is divided by the adjustment factor, which prices are "
        "multiplied "
        "with",
        "validation is the last part of the training period, purged of overlaps; there it was drawn at "
        "random from "
        "overlapping windows",
        "the network trains on after a validation; there it stayed in evaluation mode for the rest of the "
        "epoch",
        "the learning rate falls by a cosine over the epochs; there a schedule made for epochs was stepped "
        "every batch",
        "scores stand one bar after the image's last bar, from which they may be traded; there they stood "
        "PREDICT_WIN + 1 bars later, and those of the last bars of a day on the cache's last day",
        "the scores are a Zarr array (day, stock, interval); pricepix.factor's to_image_trading writes the "
        "raw file",
    ]
    return Translation(
        "image_trading", _without_none(config), keys.notes, differences, _placed(exports, folder)
    )


def _settings(keys: _Keys) -> tuple[dict[str, Any], float]:
    """Keys that both projects have."""
    share = keys.take(
        "TRAIN.VALID_RATIO",
        _number(0, 0.999),
        "train.validation: the last part of the training period, by time",
    )
    found = {
        "epochs": keys.take("TRAIN.NEPOCH", _whole(), "train.settings.epochs"),
        "batch_size": keys.take("TRAIN.BATCH_SIZE", _whole(), "train.settings.batch_size"),
        "lr": keys.take("TRAIN.LEARNING_RATE", _number(0), "train.settings.lr"),
        "weight_decay": keys.take(
            "TRAIN.WEIGHT_DECAY", _number(0, above=False), "train.settings.weight_decay"
        ),
    }
    return found, share


def _exports(keys: _Keys) -> dict[str, str]:
    named = {
        "model": keys.take(
            "TRAIN.MODEL_SAVE_FILE", _text, "the best checkpoint is copied there", default=None
        ),
        "log": keys.take(
            "TRAIN.LOG_SAVE_FILE", _text, "the metrics of every validation, as CSV", default=None
        ),
        "factors": keys.take(
            "INFERENCE.FACTORS_SAVE_FILE", _text, "the scores, as CSV: instrument, time, factor", default=None
        ),
    }
    return {name: path for name, path in named.items() if path is not None}


# --------------------------------------------------------------------------------------- CNN-for-Trading


def _cnn_for_trading(
    keys: _Keys, folder: Path | None, data: str | PathLike[str] | None, out: str | PathLike[str] | None
) -> Translation:
    model = keys.take(
        "MODEL",
        _one(*_DAILY_MODELS),
        lambda v: f"train.model {_DAILY_MODELS[v][0]}, image.preset {_DAILY_MODELS[v][1]}",
    )
    network, preset, bars = _DAILY_MODELS.get(model, ("", "", 0))
    lookback = keys.take("DATASET.LOOKBACK_WIN", _one(5, 20), "image.lookback, of the preset")
    if None not in (model, lookback) and lookback != bars:
        keys.faults.append(f"DATASET.LOOKBACK_WIN: {model} sees {bars} days, not {lookback}")
    start = keys.take("DATASET.START_DATE", _day, "train.train, first day")
    end = keys.take("DATASET.END_DATE", _day, "train.train, last day")
    keys.take("DATASET.MODE", _one(*_MODES), "without effect: a run trains, tests and scores", default=None)
    averages = keys.take("DATASET.INDICATORS", _averages_of_list, "image.ma", default=[])
    volume = keys.take("DATASET.SHOW_VOLUME", _flag, "image.volume", default=False)
    sample = keys.take(
        "DATASET.SAMPLE_RATE", _number(0, 1), "train.sample: this share trains; all are scored", default=1.0
    )
    workers = keys.take(
        "DATASET.PARALLEL_NUM", _workers, "store.workers, threads that draw and write", default=None
    )
    label = keys.take(
        "TRAIN.LABEL", _one("RET5", "RET20"), lambda v: f"train.horizon {v[3:]}, class 1 for up"
    )
    settings, share = _settings(keys)
    settings["patience"] = keys.take(
        "TRAIN.EARLY_STOP_EPOCH", _whole(), "train.settings.patience, in epochs", default=16
    )
    test_start = keys.take(
        "TEST.START_DATE", _day, "train.test, first day; scored and judged from then", None
    )
    test_end = keys.take("TEST.END_DATE", _day, "train.test and score, last day", default=None)
    if (test_start is None) != (test_end is None):
        keys.faults.append("TEST: give both START_DATE and END_DATE, or neither")
    exports = _exports(keys)
    tested = test_start is not None and test_end is not None
    if "factors" in exports and not tested:
        keys.faults.append(
            "INFERENCE.FACTORS_SAVE_FILE: needs TEST.START_DATE and TEST.END_DATE, the days to score"
        )
    horizon = int(label[3:]) if label else 0
    begin = (start or "").replace("-", "")
    target = _anchored(Path("pricepix") / f"{model}_{label}_{begin}", folder)
    config = {
        "version": 1,
        "out": str(target) if out is None else _given(out),
        "data": {
            "source": str(_anchored("data/tabularDf.csv", folder)) if data is None else _given(data),
            "columns": {"instrument": "code", "time": "date"},
        },
        "image": {"preset": preset, "ma": averages, "volume": volume},
        "store": {
            "horizons": [5, 20],
            "layout": "bits",
            "workers": workers,
            "start": start,
            "end": max(end or "", test_end or "") or None,
        },
        "train": {
            "model": network,
            "horizon": horizon,
            "split": "time",
            "train": f"{start}:{end}",
            "validation": share,
            "test": f"{test_start}:{test_end}" if tested else None,
            "sample": None if sample == 1.0 else sample,
            "balance": "weights",
            "hyper": "cnn_for_trading",
            "settings": settings,
        },
        **(
            {"score": {"start": test_start, "end": test_end}, "evaluate": {"horizon": horizon}}
            if tested
            else {}
        ),
    }
    differences = [
        "returns are taken within an instrument; there the last ones of each were the next one's prices",
        "a missing return trains nothing; there it was a fall",
        "validation is the last part of the training period, purged of overlaps; there it was drawn at "
        "random from "
        "overlapping windows, and the labels of its end reached into the test",
        "the classes are weighted by their frequency (train.balance); there rows were drawn again by SMOTE "
        "on the row "
        "number",
        "all instruments are scored; there the last one was left out",
        "images have row 0 at the top; the style is otherwise theirs, pixel by pixel",
        "the table is read from disk and checked; nothing is downloaded",
    ]
    return Translation(
        "cnn_for_trading", _without_none(config), keys.notes, differences, _placed(exports, folder)
    )


# -------------------------------------------------------------------------------------------------- both


def _given(path: str | PathLike[str]) -> str:
    """A path that the caller gave, who knows nothing of the configuration's folder."""
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).absolute())


def _anchored(path: str | PathLike[str], folder: Path | None) -> Path:
    """A path that stands in the configuration."""
    return Path(path) if folder is None else folder / path


def _placed(exports: dict[str, str], folder: Path | None) -> dict[str, str]:
    return {name: str(_anchored(path, folder)) for name, path in exports.items()}


def _without_none(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return values


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"no {name} in {folder}: run the configuration first")
    return found[-1]


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_factors(out: Path, target: Path) -> None:
    from pricepix.factor import open_cache

    open_cache(out / "factor.zarr").to_csv(target)


# ----------------------------------------------------------------------------------------- configurations

_TEMPLATES: Final = {
    "image_trading": """\
# Five-minute bars of A-shares, images of 49 bars, as ImageTrading; for the keys of its own file see
# docs/coming-from.md. Run with: pricepix-cli run {name}
version: 1
out: ashare49                 # everything that is made goes here
data:
  market_cache: commoncache   # COMMONCACHE_DIR: folder of the raw array files
  session: ashare             # 09:30 to 11:30, 13:00 to 15:00, with the opening auction: 49 bars a day
  adjust: multiply            # prices times ADJ_FACTOR, volume divided by it
  decimals: 2                 # prices stored as float32, back to the cent
  # files:                    # where the files lie if not where ImageTrading's code has them
  #   OPEN: IntervalFull/IntervalFull.open.N49,5184f
  # days: ['2016-12-01', '2023-12-31']   # read these days alone
image:
  preset: it49                # it9 for half-hours; joint price scale
  ma: [245]                   # INDICATORS.MA.WIN; five days. [] for none
  volume: false               # SHOW_VOLUME
  max_missing: 9              # windows with more bars without a trade have no image
store:
  horizons: [1, 50]           # RET_SHORT, and RET_LONG of PREDICT_WIN bars
  layout: bits
  start: '2017-01-01'
  end: '2023-06-30'
  # memory: 1GiB              # the build reads and draws a stretch of days at a time in about so much
train:
  model: cnn49u               # cnn9u for it9
  horizon: 50                 # LABEL RET_LONG
  train: 2017-01-01:2020-12-31
  validation: 0.06            # VALID_RATIO, the last part by time
  test: 2021-01-01:2023-06-30 # INFERENCE
  sample: 0.2                 # SAMPLE_RATE: of the images that train, validate and test; all are scored
  hyper: image_trading        # learning rate 0.05, cosine, one epoch of warm-up, batches of 256, 20 epochs
  settings:
    lr: 0.05
    epochs: 20
  # precision: bf16-mixed     # five times as fast on a CPU with AMX, together with
  # channels_last: true
score:
  shift: 1                    # scores stand at the bar after the image's last, from which they may be traded
  start: '2021-01-01'         # INFERENCE
  end: '2023-06-30'
  # precision: bf16-mixed
evaluate:
  horizon: 50
""",
    "cnn_for_trading": """\
# Daily bars, images in the style of CNN-for-Trading. Run with: pricepix-cli run {name}
version: 1
out: I20R20
data:
  source: data/tabularDf.csv  # code, date, open, high, low, close, volume
  columns: {{instrument: code, time: date}}
image:
  preset: cnnft20             # cnnft5; jkx20 draws as the paper's authors did
  ma: [20]                    # INDICATORS
  volume: true                # SHOW_VOLUME
store:
  horizons: [5, 20]           # RET5, RET20
  layout: bits
  start: '2009-12-31'
  end: '2012-12-31'
train:
  model: cnnft20
  horizon: 20                 # LABEL RET20
  train: 2009-12-31:2011-12-31
  validation: 0.3             # VALID_RATIO, the last part by time
  test: 2011-12-31:2012-12-31 # TEST
  sample: 0.1                 # SAMPLE_RATE: of the images that train, validate and test; all are scored
  balance: weights
  hyper: cnn_for_trading      # Adam, learning rate 1e-5, weight decay 0.01, patience of 4 epochs
score:
  start: '2011-12-31'
  end: '2012-12-31'
evaluate:
  horizon: 20
""",
    "jkx": """\
# Daily bars of US stocks, images, networks and splits of "(Re-)Imag(in)ing Price Trends" (I20/R20).
# For the images that the authors published: pricepix-cli import-jkx. Run with: pricepix-cli run {name}
version: 1
out: jkx20
data:
  source: crsp_daily.parquet  # CRSP's names are known: PERMNO, date, OPENPRC, ASKHI, BIDLO, PRC, VOL, RET
  negative_prices: midpoint   # CRSP marks days without a trade by a negative price
  on_bad: drop_bar            # bars that cannot be right become missing, and are counted
image:
  preset: jkx20               # jkx5, jkx60; with moving average and volume
  rebuild: returns            # prices rebuilt from total returns, as the authors do
store:
  horizons: [5, 20, 60]
  every: month                # images at the last day of each month
  layout: bits
train:
  model: jkx20
  horizon: 20
  split: random               # 70/30 within the training years, as in the paper; time keeps the order
  train: 1993:2000
  test: 2001:2019
  hyper: paper                # Adam, learning rate 1e-5, batches of 128, patience of 2
  ensemble: 5
score: {{}}
evaluate:
  horizon: 20
""",
}


def init_config(like: str, path: str | PathLike[str] | None = None) -> str:
    """Return a commented configuration of ours that does what another project did.

    Parameters
    ----------
    like : {"image_trading", "cnn_for_trading", "jkx"}
    path : str or path, optional
        Write it there, too; a file that exists is not overwritten.

    Raises
    ------
    ValueError
        Another project.
    FileExistsError
        There is a file at `path`.
    """
    if like not in _TEMPLATES:
        near = difflib.get_close_matches(str(like), KINDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"like={like!r}: {hint}Choose one of {', '.join(map(repr, KINDS))}")
    text = _TEMPLATES[like].format(name="config.yaml" if path is None else Path(path).name)
    if path is not None:
        if Path(path).exists():
            raise FileExistsError(f"{path} exists already: give another path")
        Path(path).write_text(text, encoding="utf-8")
    return text
