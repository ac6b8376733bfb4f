"""The configuration files of ImageTrading and CNN-for-Trading, key by key: a field a key, under our name for it.

The alias of a field is the project's key, its type checks the value, and its description says where the value goes,
with ``{file}`` for the file as it was read.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from pricepix.bars.market_files import KEYS

__all__ = ["CnnForTradingFile", "ImageTradingFile", "Kind", "Note", "ProjectFile", "project_of"]

Kind = Literal["image_trading", "cnn_for_trading"]
_SECTIONS: Final = ("MODEL", "PATHS", "DATA_FILES", "DATASET", "TRAIN", "TEST", "INFERENCE")
_MODES: Final = ("train", "test", "inference", "infer", "train_all", "default")


class Network(NamedTuple):
    """What the projects' model names stand for."""

    model: str
    preset: str
    bars: int


_MODELS: Final = {"CNN49u": Network("cnn49u", "it49", 49), "CNN9u": Network("cnn9u", "it9", 9)}
_DAILY_MODELS: Final = {"CNN5d": Network("cnnft5", "cnnft5", 5), "CNN20d": Network("cnnft20", "cnnft20", 20)}


class Note(NamedTuple):
    """Where the value of one key went."""

    key: str
    value: Any
    what: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.what}"


def project_of(values: Any) -> Kind | None:
    """Return which project a configuration belongs to; None if neither ImageTrading nor CNN-for-Trading."""
    if not isinstance(values, Mapping) or "MODEL" not in values:
        return None
    model = str(values["MODEL"])
    if model in _DAILY_MODELS:
        return "cnn_for_trading"
    if model in _MODELS or {"PATHS", "DATA_FILES"} & set(values):
        return "image_trading"
    return "cnn_for_trading" if {"DATASET", "TRAIN"} <= set(values) else None


# ---- types of values


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


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("give a whole number of at least 1")
    return value


def _workers(value: Any) -> int | None:
    return None if value == -1 else _count(value)


def _between(low: float, high: float = float("inf"), *, above: bool = True) -> BeforeValidator:
    def read(value: Any) -> float:
        # YAML reads 1e-5 without a point as text.
        known = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        number = float(value) if known else float("nan")
        if not ((low < number if above else low <= number) and number <= high):
            raise ValueError(f"give a number {'above' if above else 'of at least'} {low:g}, at most {high:g}")
        return number

    return BeforeValidator(read)


def _one_of(*allowed: Any) -> BeforeValidator:
    def read(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"choose one of {', '.join(map(str, allowed))}")
        return value

    return BeforeValidator(read)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("give a path or a name")
    return value


def _averages_of_mapping(value: Any) -> list[int]:
    """ImageTrading's ``{MA: {WIN: 245}}``, or nothing."""
    inner = value.get("MA") if isinstance(value, Mapping) else value
    if inner is None and (value is None or not set(value) - {"MA"}):
        return []
    if (
        not isinstance(value, Mapping)
        or set(value) != {"MA"}
        or not isinstance(inner, Mapping)
        or set(inner) != {"WIN"}
    ):
        raise ValueError("the one indicator is MA: {WIN: bars}")
    return [_count(inner["WIN"])]


def _averages_of_list(value: Any) -> list[int]:
    """CNN-for-Trading's ``[{NAME: MA}, {PARAM: 20}]``, or nothing."""
    if not value:
        return []
    if not isinstance(value, list) or len(value) % 2 or not all(isinstance(item, Mapping) for item in value):
        raise ValueError("indicators are a list of NAME and PARAM by turns")
    averages = []
    for name, parameter in zip(value[::2], value[1::2], strict=True):
        if name.get("NAME") != "MA" or set(parameter) != {"PARAM"}:
            raise ValueError("the one indicator is NAME: MA with PARAM: days")
        averages.append(_count(parameter["PARAM"]))
    return averages


Day = Annotated[str, BeforeValidator(_day)]
Count = Annotated[int, BeforeValidator(_count)]
Workers = Annotated[int | None, BeforeValidator(_workers)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, BeforeValidator(_text)]


def _key(name: str, where: str, default: Any = ...) -> Any:
    """Declare a key of a file, where its value goes, and what stands for it where it may be left out."""
    return Field(default, alias=name, description=where)


# ---- the files


class ProjectFile(BaseModel):
    """What both projects' files have."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    kind: ClassVar[Kind]
    networks: ClassVar[Mapping[str, Network]]
    unit: ClassVar[str]

    mode: Annotated[Any, _one_of(*_MODES)] = _key(
        "DATASET.MODE", "without effect: a run trains, tests and scores", None
    )
    sample: Annotated[float, _between(0, 1)] = _key(
        "DATASET.SAMPLE_RATE", "train.sample: this share trains; all are scored", 1.0
    )
    volume: Flag = _key("DATASET.SHOW_VOLUME", "image.volume", False)
    workers: Workers = _key("DATASET.PARALLEL_NUM", "store.workers, threads that draw and write", None)
    validation: Annotated[float, _between(0, 0.999)] = _key(
        "TRAIN.VALID_RATIO", "train.validation: the last part of the training period, by time"
    )
    epochs: Count = _key("TRAIN.NEPOCH", "train.settings.epochs")
    batch_size: Count = _key("TRAIN.BATCH_SIZE", "train.settings.batch_size")
    lr: Annotated[float, _between(0)] = _key("TRAIN.LEARNING_RATE", "train.settings.lr")
    weight_decay: Annotated[float, _between(0, above=False)] = _key(
        "TRAIN.WEIGHT_DECAY", "train.settings.weight_decay"
    )
    model_file: Text | None = _key("TRAIN.MODEL_SAVE_FILE", "the best checkpoint is copied there", None)
    log_file: Text | None = _key("TRAIN.LOG_SAVE_FILE", "the metrics of every validation, as CSV", None)
    factors_file: Text | None = _key(
        "INFERENCE.FACTORS_SAVE_FILE", "the scores, as CSV: instrument, time, factor", None
    )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Check nested keys; one error lists every fault."""
        flat = dict(_flat(values))
        faults = [(cls._order(key), f"{key}: {text}") for key, text in cls._contradictions(flat)]
        file = None
        try:
            file = cls.model_validate(flat)
        except ValidationError as error:
            faults += [cls._fault(item) for item in error.errors(include_url=False)]
        if file is None or faults:
            listed = "\n".join(f"  {text}" for _, text in sorted(faults, key=lambda fault: fault[0]))
            raise ValueError(f"the configuration cannot be honoured, {len(faults)} faults:\n{listed}")
        return file

    @classmethod
    def _contradictions(cls, flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield keys whose values do not agree with those of others."""
        model, lookback = flat.get("MODEL"), flat.get("DATASET.LOOKBACK_WIN")
        network = cls.networks.get(str(model))
        known = [other.bars for other in cls.networks.values()]
        if network is not None and lookback != network.bars and lookback in known:
            yield "DATASET.LOOKBACK_WIN", f"{model} sees {network.bars} {cls.unit}, not {lookback}"

    @staticmethod
    def _order(key: str, known: bool = True) -> int:
        """By section, as the projects' own files have them; unknown keys last."""
        section = key.partition(".")[0]
        return _SECTIONS.index(section) if known and section in _SECTIONS else len(_SECTIONS)

    @classmethod
    def _fault(cls, item: Any) -> tuple[int, str]:
        """Say one of pydantic's findings in a sentence, with the place of its key."""
        name = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            known = [str(field.alias) for field in cls.model_fields.values()]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return cls._order(name, False), f"{name}: no key of {cls.kind} that pricepix knows{hint}"
        text = str(item["msg"]).removeprefix("Value error, ")
        text = "missing, but required" if item["type"] == "missing" else f"{text} (got {item['input']!r})"
        return cls._order(name), f"{name}: {text}"

    def notes(self, values: Mapping[str, Any]) -> list[Note]:
        """Return for every key of the nested `values`, which this was read from, where its value went."""
        fields = {str(field.alias): field for field in type(self).model_fields.values()}
        given = sorted(_flat(values), key=lambda pair: self._order(pair[0]))
        return [Note(key, value, str(fields[key].description).format(file=self)) for key, value in given]

    @property
    def network(self) -> Network:
        """The network that `model` names."""
        return self.networks[self.model]  # type: ignore[attr-defined]

    def exports(self) -> dict[str, str]:
        """Files to write after a run."""
        named = {"model": self.model_file, "log": self.log_file, "factors": self.factors_file}
        return {name: path for name, path in named.items() if path is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as ``SECTION.KEY``; indicators, whose form differs, as a whole."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not name.endswith("INDICATORS"):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


_FILES: dict[str, Any] = {
    key: (Text | None, _key(f"DATA_FILES.{key}", f"data.files.{key}", None)) for key in KEYS
}
_MarketFiles: Any = create_model("_MarketFiles", __base__=ProjectFile, **_FILES)
_NETWORK: Final = "train.model {file.network.model}, image.preset {file.network.preset}"
_NO_EFFECT: Final = "without effect, there as here: the periods of TRAIN and INFERENCE count"


class ImageTradingFile(_MarketFiles):
    """A configuration of ImageTrading: five-minute or half-hourly bars of a market cache."""

    kind = "image_trading"
    networks = _MODELS
    unit = "bars"

    model: Annotated[Any, _one_of(*_MODELS)] = _key("MODEL", _NETWORK)
    cache: Text = _key("PATHS.COMMONCACHE_DIR", "data.market_cache")
    images: Text = _key("PATHS.IMAGE_DATA_DIR", "store.path, below it")
    project: Text = _key("PATHS.PROJECT_DIR", "out, below it")
    lookback: Annotated[Any, _one_of(9, 49)] = _key("DATASET.LOOKBACK_WIN", "image.lookback, of the preset")
    first_day: Day | None = _key("DATASET.START_DATE", _NO_EFFECT, None)
    last_day: Day | None = _key("DATASET.END_DATE", _NO_EFFECT, None)
    mode: Annotated[Any, _one_of(*_MODES)] = _key(
        "DATASET.MODE", "without effect, there as here: a run trains and scores", None
    )
    volume: Flag = _key("DATASET.SHOW_VOLUME", "image.volume (there it never was drawn)", False)
    averages: Annotated[list[int], BeforeValidator(_averages_of_mapping)] = _key(
        "DATASET.INDICATORS", "image.ma (there it was computed, and never drawn)", []
    )
    predicted: Count = _key("TRAIN.PREDICT_WIN", "store.horizons, besides 1: exactly so many bars")
    label: Annotated[Any, _one_of("RET_SHORT", "RET_LONG")] = _key(
        "TRAIN.LABEL", "train.horizon {file.horizon}, class 1 for up"
    )
    start: Day = _key("TRAIN.START_DATE", "train.train, first day")
    end: Day = _key("TRAIN.END_DATE", "train.train, last day")
    warmup_epochs: Annotated[float | None, _between(0, above=False)] = _key(
        "TRAIN.WARMUP_EPOCH", "train.settings.warmup_epochs", None
    )
    warmup_from: Annotated[float | None, _between(0)] = _key(
        "TRAIN.LR_BASE_RATE", "train.settings.warmup_from", None
    )
    patience: Count | None = _key(
        "TRAIN.EARLY_STOP_EPOCH", "train.settings.patience, in validations, four an epoch", None
    )
    edition: Text | None = _key("TRAIN.EDITION", "out, its last folder", None)
    test_start: Day = _key("INFERENCE.START_DATE", "train.test, first day; scored and evaluated from then")
    test_end: Day = _key("INFERENCE.END_DATE", "train.test and score, last day")

    @property
    def horizon(self) -> int:
        """Bars of the return that is learned."""
        return 1 if self.label == "RET_SHORT" else self.predicted

    @property
    def files(self) -> dict[str, str]:
        """Files of the market cache, where they are named."""
        return {key: name for key in KEYS if (name := getattr(self, key)) is not None}


class CnnForTradingFile(ProjectFile):
    """A configuration of CNN-for-Trading: daily bars of a table."""

    kind = "cnn_for_trading"
    networks = _DAILY_MODELS
    unit = "days"

    model: Annotated[Any, _one_of(*_DAILY_MODELS)] = _key("MODEL", _NETWORK)
    lookback: Annotated[Any, _one_of(5, 20)] = _key("DATASET.LOOKBACK_WIN", "image.lookback, of the preset")
    start: Day = _key("DATASET.START_DATE", "train.train, first day")
    end: Day = _key("DATASET.END_DATE", "train.train, last day")
    averages: Annotated[list[int], BeforeValidator(_averages_of_list)] = _key(
        "DATASET.INDICATORS", "image.ma", []
    )
    label: Annotated[Any, _one_of("RET5", "RET20")] = _key(
        "TRAIN.LABEL", "train.horizon {file.horizon}, class 1 for up"
    )
    patience: Count = _key("TRAIN.EARLY_STOP_EPOCH", "train.settings.patience, in epochs", 16)
    test_start: Day | None = _key(
        "TEST.START_DATE", "train.test, first day; scored and evaluated from then", None
    )
    test_end: Day | None = _key("TEST.END_DATE", "train.test and score, last day", None)

    @property
    def horizon(self) -> int:
        """Days of the return that is learned."""
        return int(self.label[3:])

    @property
    def tested(self) -> bool:
        """Whether there is a test period, whose images are scored."""
        return self.test_start is not None and self.test_end is not None

    @classmethod
    def _contradictions(cls, flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super()._contradictions(flat)
        tested = [f"TEST.{name}" in flat for name in ("START_DATE", "END_DATE")]
        if any(tested) != all(tested):
            yield "TEST", "give both START_DATE and END_DATE, or neither"
        if "INFERENCE.FACTORS_SAVE_FILE" in flat and not all(tested):
            yield "INFERENCE.FACTORS_SAVE_FILE", "needs TEST.START_DATE and TEST.END_DATE, the days to score"
