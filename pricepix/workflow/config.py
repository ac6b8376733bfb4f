"""The configuration of a whole run, from bars to report: one file, checked before any work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pricepix._checks import printable, short
from pricepix.location import read_yaml
from pricepix.spec import ImageSpec

__all__ = ["Config", "join_path", "load_config"]


class Section(BaseModel):
    """A part of the configuration; its keys are the keyword arguments of the function that it drives."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    def arguments(self, *without: str) -> dict[str, Any]:
        """Return the keys that were given, as keyword arguments; null is the same as not given."""
        given = self.model_fields_set.difference(without)
        return {name: value for name in sorted(given) if (value := getattr(self, name)) is not None}


class Data(Section):
    """Where the bars come from: a table, a market cache, or a sample of the package.

    See ``Panel.from_table``, ``pricepix.bars.MarketCache`` and ``pricepix.samples``. With `vendor` the table is one of
    CRSP, Compustat or CSMAR, read by ``read_crsp`` and the like with `vendor_options`. For a market cache
    `adjust` is ``multiply`` or null, and the keys files, session, days, no_trade, filtered and decimals are
    those of ``MarketCache`` and its method ``panel``.
    """

    source: str | list[str] | None = None
    vendor: Literal["crsp", "compustat", "csmar"] | None = None
    vendor_options: dict[str, Any] = Field(default_factory=dict)
    market_cache: str | None = None
    files: dict[str, str | None] | None = None
    session: str | None = None
    days: tuple[str | None, str | None] | None = None
    no_trade: Literal["missing", "keep"] | None = None
    filtered: bool | None = None
    decimals: int | None = None
    sample: Literal["stocks", "simulate"] | None = None
    simulate: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str | None] | None = None
    instrument: str | None = None
    time: str | None = None
    name: str | None = None
    tz: str | None = None
    time_format: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    null_values: list[str] = Field(default_factory=list)
    on_bad: Literal["raise", "drop_bar", "keep"] = "raise"
    negative_prices: Literal["error", "midpoint"] = "error"
    adjust: Literal["multiply", "divide"] | None = None
    anchor: Literal["given", "first"] = "given"
    gaps: Literal["keep", "missing"] = "keep"

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.source, self.market_cache, self.sample).count(None) != 2:
            raise ValueError(
                "give either source (a file, glob or folder), or market_cache (a folder), or sample (stocks "
                "or simulate)"
            )
        changed = {name for name, value in self.arguments().items() if value != _default(type(self), name)}
        if self.vendor is not None and self.source is None:
            raise ValueError("vendor says how a table is read: give source, too")
        if self.vendor_options and self.vendor is None:
            raise ValueError("vendor_options belong to vendor: crsp, compustat or csmar")
        own = {"files", "session", "days", "no_trade", "filtered", "decimals"} & changed
        if own and self.market_cache is None:
            raise ValueError(f"{', '.join(sorted(own))} belong to market_cache")
        if self.market_cache is not None:
            shared = {"market_cache", "adjust", "anchor", "on_bad", *own}
            # A saved file spells out the defaults of everything.
            if other := sorted(changed - shared - {"simulate", "vendor_options"}):
                raise ValueError(f"{', '.join(other)} are for tables, not for a market_cache")
            if self.adjust == "divide":
                raise ValueError("prices of a market_cache are multiplied by their factor: adjust: multiply")
        if self.simulate and self.sample != "simulate":
            raise ValueError("the key simulate belongs to sample: simulate")
        return self

    def default(self, name: str) -> Any:
        """Return what a key is if it is not given."""
        return _default(type(self), name)


class Image(Section):
    """What an image is: a preset and what differs from it. See ``ImageSpec``."""

    preset: str | None = None
    lookback: int | None = None
    height: int | None = None
    style: str | None = None
    chart: str | None = None
    ma: list[int] | None = None
    ma_warmup: str | None = None
    volume: bool | None = None
    aggregate: int | None = None
    scale: str | None = None
    rebuild: str | None = None
    max_missing: int | None = None

    @model_validator(mode="after")
    def _drawable(self) -> Image:
        self.spec()
        return self

    def spec(self) -> ImageSpec:
        """Return the image spec."""
        changes = self.arguments("preset")
        if self.preset is None:
            return ImageSpec.from_dict(changes)
        return ImageSpec.preset(self.preset).replace(**changes)


class Store(Section):
    """The image store. See ``render_universe``; `path` is where it goes, by default into the folder `out`.

    `images` is a folder that runs share: the store goes into a subfolder of it that is named by what the images are
    made from, whatever a run then trains on, so that a run with other periods finds the images of the one before.

    The store of a market cache is built a stretch of days at a time, in about `memory`, and has the horizons
    1 and 50 and the layout ``bits`` by default; see ``pricepix.build.build_market_store``.
    """

    path: str | None = None
    images: str | None = None
    horizons: list[int] = Field(default_factory=lambda: [5, 20, 60])
    delay: int = 0
    every: str | int = "bar"
    start: str | None = None
    end: str | None = None
    sample: float | None = None
    seed: int = 0
    max_gap: str | None = None
    periods: dict[str, Any] | None = None
    price: Literal["auto", "close", "total_return"] = "auto"
    delisting: Literal["auto", "hold", "missing"] = "auto"
    layout: Literal["uint8", "bits"] = "uint8"
    chunk: int | None = None
    shard: int | str | None = None
    workers: int | None = None
    memory: int | str | None = None


class Train(Section):
    """The networks. See ``pricepix.train.fit``; `settings` changes single hyper-parameters.

    `sample` is the share of the images that train, validate and test, drawn by `seed`; all are scored. `frozen` is a
    checkpoint, or the folder of a run, that is used as it is: nothing is trained.
    """

    frozen: str | None = None
    model: str = "jkx20"
    sample: float | None = Field(default=None, gt=0, le=1)
    horizon: int | None = None
    split: Literal["time", "random", "walk"] = "time"
    train: str | None = None
    validation: str | float = 0.3
    test: str | None = None
    embargo: str | int = 0
    target: str = "up"
    loss: str = "auto"
    weights: Literal["uniqueness", "date"] | None = None
    init: str | None = None
    freeze: str | list[str] | None = None
    layer_lr: dict[str, float] | None = None
    balance: Literal["none", "weights", "undersample"] = "none"
    hyper: str = "paper"
    settings: dict[str, Any] = Field(default_factory=dict)
    ensemble: int = 1
    seed: int = 0
    accelerator: str = "auto"
    devices: str | int = "auto"
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False
    fast: bool = False


class Score(Section):
    """The factor cache. See ``pricepix.factor.score``."""

    shift: int = 0
    spread: bool = False
    batch: int | None = None
    device: str | None = None
    precision: str = "32-true"
    engine: Literal["torch", "openvino", "onnxruntime"] = "torch"
    start: str | None = None
    end: str | None = None


class UniverseConditions(Section):
    """Which names portfolios may hold. See ``pricepix.factor.Universe``."""

    top: int | None = Field(default=None, ge=1)
    min_price: float | None = Field(default=None, allow_inf_nan=False)
    min_dollar_volume: float | None = Field(default=None, allow_inf_nan=False)
    min_age: int | None = Field(default=None, ge=1)


class Evaluate(Section):
    """Evaluation and report. See ``pricepix.factor.evaluate``."""

    horizon: int | None = None
    delay: int | None = None
    quantiles: int = 10
    rebalance: str | int | None = None
    costs: list[float] | None = None
    untradable: str = "exclude"
    max_wait: int = 5
    price: Literal["auto", "close", "total_return"] = "auto"
    delisting: Literal["auto", "hold", "missing"] = "auto"
    convention: Literal["pricepix", "paper"] = "pricepix"
    period_end_share: float = 0.5
    delays: list[int] | None = None
    horizons: list[int] | None = None
    baselines: list[str] | None = None
    periods_per_year: float | None = None
    universe: UniverseConditions | None = None
    start: str | None = None
    end: str | None = None

    def arguments(self, *without: str) -> dict[str, Any]:
        """Return the keys that were given, as keyword arguments."""
        found = super().arguments(*without)
        if self.universe is not None and "universe" in found:
            found["universe"] = self.universe.arguments()
        return found


class Export(Section):
    """A file that every update writes anew. See ``pricepix.factor.export``.

    ``{date}`` in `path` is the day of the newest bar; `last` is the number of newest times that are written, all by
    default.
    """

    path: str
    format: Literal["parquet", "csv", "qlib", "alphalens", "image_trading"] | None = None
    last: int | None = Field(default=None, ge=1)
    partition: bool = False


class Health(Section):
    """What every update measures of itself, and the limits that make an alarm. See ``pricepix.workflow.health``.

    Without a limit a figure is measured all the same. `prometheus` is a file for the text that Prometheus' node
    exporter collects, its name ends in ``.prom``; `page` writes ``health.html``.
    """

    min_coverage: float | None = Field(default=None, ge=0, le=1)
    max_drift: float | None = Field(default=None, gt=0)
    max_ink_change: float | None = Field(default=None, gt=0)
    max_missing: float | None = Field(default=None, ge=0, le=1)
    min_ic_z: float | None = None
    max_turnover: float | None = Field(default=None, ge=0, le=1)
    max_seconds: float | None = Field(default=None, gt=0)
    max_memory_mb: float | None = Field(default=None, gt=0)
    prometheus: str | None = None
    page: bool = True


class Update(Section):
    """What an evening's update does. See ``pricepix.update``.

    For each class of a revised history: ``accept`` takes the feed's bars, ``keep`` goes on with the bars of the last
    update, ``stop`` is an error that names them. The keys from `step` to `exchange` are those of the check of a feed.
    """

    step: str | None = None
    stamp: Literal["close", "open"] = "close"
    min_share: float = Field(default=0.9, ge=0, le=1)
    partial: Literal["stop", "note"] = "stop"
    steps: Literal["missing", "note"] = "missing"
    exchange: str | None = None
    rescaled: Literal["accept", "keep", "stop"] = "accept"
    corrected: Literal["accept", "keep", "stop"] = "stop"
    withdrawn: Literal["accept", "keep", "stop"] = "stop"
    late: Literal["accept", "keep", "stop"] = "accept"
    renamed: Literal["accept", "keep", "stop"] = "stop"
    removed: Literal["accept", "keep", "stop"] = "keep"
    rename: dict[str, str] = Field(default_factory=dict)
    retrain: Literal["never", "yearly", "quarterly"] = "never"
    exports: list[Export] = Field(default_factory=list)
    health: Health | None = Field(default_factory=Health)


_SHOWN: Final = 30
"""Faults of a configuration that are told at once."""
# What ``build_market_store`` takes by itself, where it differs from ``render_universe``.
_MARKET_STORE: Final[Mapping[str, Any]] = {"horizons": [1, 50], "layout": "bits"}


class Config(Section):
    """A whole run. It ends with the last section that is there: store, train, score or evaluate."""

    version: Literal[1] = 1
    out: str
    data: Data
    image: Image
    store: Store = Field(default_factory=Store)
    train: Train | None = None
    score: Score | None = None
    evaluate: Evaluate | None = None
    update: Update | None = None

    @model_validator(mode="after")
    def _of_the_source(self) -> Config:
        store = self.store
        if self.data.market_cache is None:
            if store.memory is not None:
                raise ValueError(
                    "store.memory is for a market_cache, which is read a stretch of days at a time"
                )
            return self
        if store.price == "total_return":
            raise ValueError("store.price: a market_cache has no total returns; leave it out")
        if store.delisting == "hold":
            raise ValueError(
                "store.delisting: a market_cache does not know what a holder of a delisted stock got; leave it out"
            )
        if not isinstance(store.every, str) or isinstance(store.shard, str):
            raise ValueError(
                "a market_cache is read a stretch of days at a time: give store.every as bar, day, week, month "
                "or quarter, and store.shard as a number of windows"
            )
        # Said here once, so that what is saved is what is built.
        left_out = {
            name: value for name, value in _MARKET_STORE.items() if name not in store.model_fields_set
        }
        object.__setattr__(self, "store", store.model_copy(update=left_out))
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Config:
        if self.score is not None and self.train is None:
            raise ValueError("score needs a trained model: add the section train, or train: {frozen: RUN}")
        retrains = self.update is not None and self.update.retrain != "never"
        if retrains and (self.train is None or self.train.frozen):
            raise ValueError("update.retrain trains by the section train, which must not be frozen")
        if self.evaluate is not None and self.score is None:
            raise ValueError("evaluate needs a factor: add the section score (it may be empty: score: {})")
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Check a configuration given as nested dicts.

        Raises
        ------
        ValueError
            One message that lists every fault, with the nearest known key for unknown ones.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False)
            faults = "\n".join(f"  {_fault(cls, item)}" for item in found[:_SHOWN])
            if len(found) > _SHOWN:
                faults += f"\n  and {len(found) - _SHOWN:,} more"
            raise ValueError(f"the configuration has {error.error_count()} faults:\n{faults}") from None

    def anchored(self, folder: str | PathLike[str]) -> Config:
        """Return the configuration with its relative paths taken from a folder."""

        def anchored(name: str) -> str:
            return name if "://" in name else str(Path(folder) / name)

        source, cache = self.data.source, self.data.market_cache
        if isinstance(source, list):
            source = [anchored(name) for name in source]
        elif source is not None:
            source = anchored(source)
        changed: dict[str, Any] = {"source": source}
        if cache:
            changed["market_cache"] = anchored(cache)
        if isinstance(delistings := self.data.vendor_options.get("delistings"), str):
            changed["vendor_options"] = {**self.data.vendor_options, "delistings": anchored(delistings)}
        data = self.data.model_copy(update=changed)
        given = {name: getattr(self.store, name) for name in ("path", "images")}
        store = self.store.model_copy(
            update={name: anchored(value) for name, value in given.items() if value}
        )
        changes: dict[str, Any] = {"out": anchored(self.out), "data": data, "store": store}
        if self.train is not None and self.train.frozen:
            changes["train"] = self.train.model_copy(update={"frozen": anchored(self.train.frozen)})
        if self.update is not None:
            exports = [one.model_copy(update={"path": anchored(one.path)}) for one in self.update.exports]
            health = self.update.health
            if health is not None and health.prometheus:
                health = health.model_copy(update={"prometheus": anchored(health.prometheus)})
            changes["update"] = self.update.model_copy(update={"exports": exports, "health": health})
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """Return the configuration with its defaults spelled out."""
        values = self.model_dump(mode="json", exclude_none=True)
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def load_config(path: str | PathLike[str]) -> Config:
    """Read and check a YAML configuration.

    Paths in it are taken from the folder of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, or not a configuration.
    """
    path = Path(path)
    values = read_mapping(path)
    try:
        config = Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config.anchored(path.absolute().parent)


def join_path(folder: str | PathLike[str], name: str) -> str | Path:
    """Return what lies below a folder or a URL: a path, or a URL."""
    text = fspath(folder)
    return f"{text.rstrip('/')}/{name}" if "://" in text else Path(text) / name


def read_mapping(path: str | PathLike[str]) -> Mapping[str, Any]:
    """Read a YAML file of keys; the errors are those of ``load_config``."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no configuration at {path}")
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected the keys out, data, image, ...")
    return values


def _default(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].get_default(call_default_factory=True)


def _fault(model: type[BaseModel], item: Any) -> str:
    """Say one of pydantic's findings in a sentence."""
    place = printable(".".join(str(part)[:100] for part in item["loc"]), "") or "the whole"
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{place}: no such key; {hint}The keys here are {', '.join(known)}"
    if item["type"] == "missing":
        return f"{place}: missing, but required"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(item["input"], Mapping | BaseModel) else f" (got {short(item['input'])})"
    return f"{place}: {message}{given}"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        annotation: Any = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
