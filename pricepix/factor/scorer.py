"""A model that scores images: a network, an ensemble, a walk-forward run, or any function."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, optional_module, whole_number
from pricepix.factor.calibration import rank_agreement, training_images, whole_dates
from pricepix.factor.function_identity import identify
from pricepix.factor.training_overlap import training_summary
from pricepix.factor.wrapped_networks import wrapped_networks
from pricepix.images.image_set import ImageSet
from pricepix.images.series import Scaling
from pricepix.spec import ImageSpec
from pricepix.store.sealed_files import read_sealed_yaml

__all__ = ["ENGINE_NAMES", "Scorer", "ScorerOptions"]

Floats = NDArray[np.float32]
_PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed", "int8")
ENGINE_NAMES: Final = ("torch", "openvino", "onnxruntime")
# Images a call of a function.
_BATCH: Final = 256
_LIMITS: Final = np.iinfo(np.int64)
_LOG: Final = logging.getLogger(__name__)


class ScorerOptions(TypedDict, total=False):
    """The arguments of `Scorer` that ``score`` passes on."""

    batch: int | None
    device: str | None
    precision: str
    values: str | None
    model_id: str | None
    module: Any
    horizon: int | None
    engine: str


class Stage(NamedTuple):
    """Networks, and the time of the images that they score."""

    first: int
    last: int
    """int64 nanoseconds, both included."""
    members: list[Any]


class Scorer:
    """Scores of images by one model, or by the models of a walk-forward run, each on its own test period.

    Can be pickled: a model that came from files is loaded where it is used, once.

    Parameters
    ----------
    model : path, network, ensemble or callable
        A checkpoint or the folder of a run; a network or ``Ensemble``; or a function from images, uint8
        (n, height, width), to probabilities of a rise, (n,). A walk-forward run scores every image by the
        fold that was tested at its time, those after the last test by the last fold, and none between or before.
    model_id : str, optional
        Names a function. Networks are named by their weights.
    batch : int, optional
        Images a forward pass; by default as many as fit into the cache of a CPU, at most 16, and 256 on a GPU and
        of a function.
    device : str, optional
        ``"cuda"`` where there is one, else ``"cpu"``.
    precision : {"32-true", "bf16-mixed", "16-mixed", "int8"}
        What networks compute in.
    values : {"probability", "score"}, optional
        What a function returns; probability by default. Networks record which.
    tz : str, optional
        Zone of the store, in which a run's periods are read.
    module : torch.nn.Module, class or function, optional
        The module that a checkpoint's weights are of, where it is one of the user's: see ``load_model``.
    horizon : int, optional
        Which of its horizons a network that learnt several is asked about.
    images : ImageSet, optional
        What is to be scored; a module that is not yet a network is tried on it, and ``"int8"`` rounds by it.
    engine : {"torch", "openvino", "onnxruntime"}
        What runs networks.
    """

    def __init__(
        self,
        model: Any,
        *,
        model_id: str | None = None,
        batch: int | None = None,
        device: str | None = None,
        precision: str = "32-true",
        values: str | None = None,
        tz: str | None = None,
        module: Any = None,
        horizon: int | None = None,
        images: ImageSet | None = None,
        engine: str = "torch",
    ) -> None:
        choice(values, "values", (None, "probability", "score"))
        self.precision = choice(precision, "precision", _PRECISIONS)
        self.engine = choice(engine, "engine", ENGINE_NAMES)
        _check_engine(engine, precision, device)
        batch = None if batch is None else whole_number(batch, "batch", 1, unit="images")
        # What fit returns carries the folder of the run.
        if not isinstance(model, str | PathLike) and not callable(model):
            module = getattr(model, "module", None) if module is None else module
            model = getattr(model, "out", model)
        if not isinstance(model, str | PathLike) and not callable(model):
            raise TypeError(
                f"model is a {type(model).__name__}; give a checkpoint, the folder of a run, a network, an Ensemble "
                "or a function from images to probabilities"
            )
        if module is not None and not isinstance(model, str | PathLike):
            raise ValueError("module belongs to a checkpoint or the folder of a run: leave it out")
        if _is_module(model):
            model = _as_network(model, images)
        self._module = module
        self._path = Path(model) if isinstance(model, str | PathLike) else None
        self._model: Any = None if self._path else model
        self._stages: list[Stage] | None = None
        self._tz = tz
        self._device, self._asked_batch = device, batch
        self.batch = _BATCH if batch is None else batch
        """Images a call of a function, or of a network that is asked for something else than scores."""
        self._engines: dict[int, Any] = {}
        self._rounded: dict[int, bytes] = {}
        if model_id is not None and self.members:
            raise ValueError("model_id names a function; a network is named by its weights: leave it out")
        self.head = self._head_of(horizon)
        """Which head of a network that learnt several horizons is asked; None where there is one."""
        self.why_unknown = ""
        """Why a function cannot be identified, as an end of a sentence; empty if it can."""
        if self.members:
            self.digest: str | None = self._networks_digest()
        else:
            self.digest, self.why_unknown = identify(self._model, model_id)
        """32 hexadecimal digits that identify the model; None for a function that cannot be identified."""
        self.name = self._name(model_id)
        self.kind = values or ("probability" if self.is_probability else "score")
        """What scores are: ``probability`` of a rise, or ``score``."""
        if engine != "torch":
            self._check_engine_serves(images)

    def __getstate__(self) -> dict[str, Any]:
        lazily: dict[str, Any] = {"_stages": None, "_engines": {}}
        if self._path:
            lazily["_model"] = None
        return self.__dict__ | lazily

    @property
    def stages(self) -> list[Stage]:
        """The networks by time, on their device; empty for a function."""
        if self._stages is None:
            self._stages = self._load()
        return self._stages

    @property
    def members(self) -> list[Any]:
        """The networks of the first stage; empty for a function."""
        return self.stages[0].members if self.stages else []

    def _load(self) -> list[Stage]:
        if self._path is not None:
            from pricepix.train.checkpoints import load_model

            if periods := _folds(self._path, self._tz):
                return [
                    Stage(a, b, self._place(load_model(folder, module=self._module)))
                    for a, b, folder in periods
                ]
            if self._model is None:
                self._model = load_model(self._path, module=self._module)
        if not _is_module(self._model):
            return []
        return [Stage(_LIMITS.min, _LIMITS.max, self._place(self._model))]

    def _place(self, model: Any) -> list[Any]:
        """Members of a network or ensemble, on their device."""
        from pricepix.train.models import Ensemble

        members = list(model.members) if isinstance(model, Ensemble) else [model]
        device = self._device if self.engine == "torch" else "cpu"
        if device is None:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.precision in ("32-true", "int8"):
            return [member.to(device).eval() for member in members]
        import torch

        # Lower precisions are fast only in this memory format, especially on CPUs.
        for member in members:
            member.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        return members

    @property
    def takes(self) -> str:
        """What the model takes: ``images``, or the ``series`` behind them."""
        return self.members[0].takes if self.members else "images"

    @property
    def scaling(self) -> Scaling:
        """How the series that the model takes are scaled."""
        return getattr(self.members[0].spec, "scaling", "image")

    @property
    def is_probability(self) -> bool:
        """Whether a network's output is the probability of a rise: two classes."""
        return not self.members or self.members[0].spec.outputs == 2

    @property
    def metadata(self) -> dict[str, Any]:
        """What the checkpoint records of its training."""
        found = self.members[0].metadata if self.members else {}
        return json.loads(json.dumps(found, default=str))

    @property
    def horizon(self) -> int | None:
        """Horizon that the model was trained for, or is asked about, if its checkpoint records one."""
        found = self.metadata.get("horizon")
        if isinstance(found, list) and self.head is not None:
            found = found[self.head]
        return int(found) if isinstance(found, int) else None

    def _head_of(self, horizon: int | None) -> int | None:
        """Return which head of a network answers for a horizon; None where there is one."""
        heads = self.members[0].spec.heads if self.members else 1
        found = self.metadata.get("horizon")
        if heads == 1:
            if horizon is not None and horizon != found:
                known = f"was trained over {found} bars" if self.members else "is a function"
                raise ValueError(f"horizon={horizon!r}, but the model {known}: leave horizon out")
            return None
        known_horizons = found if isinstance(found, list) else []
        if horizon not in known_horizons:
            raise ValueError(
                f"the model {self.members[0].spec.name} learnt {heads} horizons, "
                f"{', '.join(map(str, known_horizons))} bars: choose one of them with horizon="
            )
        return known_horizons.index(horizon)

    def check(self, spec: ImageSpec, images: str) -> None:
        """Raise ValueError unless the model takes images of a spec, those of what `images` names."""
        for stage in self.stages:
            self._check(stage.members[0], spec, images)

    def _check(self, network: Any, spec: ImageSpec, images: str) -> None:
        takes = network.input_shape
        if network.takes == "series" and takes[1] != spec.bars:
            raise ValueError(
                f"the model {self.name} takes series of {takes[1]} bars, windows of {images} have {spec.bars}: "
                "score images of the spec that the model was trained on"
            )
        if network.takes == "images" and takes != spec.shape:
            raise ValueError(
                f"the model {self.name} takes images of {takes[0]}x{takes[1]}, those of {images} are "
                f"{spec.shape[0]}x{spec.shape[1]} (lookback {spec.lookback}): score images of the spec that the "
                "model was trained on"
            )
        trained, stack = network.metadata.get("image_spec"), network.metadata.get("stack")
        describe = getattr(spec, "describe", None)
        here = None if describe is None else json.loads(json.dumps(describe()))
        if stack is not None or here is not None:
            if trained is not None and stack != here:
                other_kind = "single images" if stack is None else "another stack of images"
                raise ValueError(
                    f"the model {self.name} was trained on {other_kind}, not on those of {images}: score images like "
                    "those that it was trained on"
                )
            return
        if isinstance(trained, dict) and "lookback" in trained:
            other = ImageSpec.from_dict(trained)
            if other != spec:
                expected, found = other.to_dict(), spec.to_dict()
                differ = [f"{k} {expected[k]!r}, not {v!r}" for k, v in found.items() if expected[k] != v]
                raise ValueError(
                    f"the model {self.name} was trained on other images than those of {images}: "
                    f"{'; '.join(differ)}. Score images of the spec that the model was trained on"
                )

    def __call__(
        self, images: NDArray[np.uint8], time: NDArray[np.int64] | None = None
    ) -> tuple[Floats, Floats | None]:
        """Return the mean score of the members, float32 (n,), and their standard deviation (n - 1).

        `time`, int64 (n,) nanoseconds of the images' last bars, is needed only for a walk-forward run.
        """
        if not self.stages:
            return self._call_function(images), None
        if len(self.stages) == 1 and self.stages[0].first == _LIMITS.min:
            return self._predict(0, images)
        if time is None:
            raise ValueError("a walk-forward run scores images by their time: pass it")
        mean = np.full(len(images), np.nan, np.float32)
        spread = mean.copy() if len(self.members) > 1 else None
        for i, stage in enumerate(self.stages):
            own = np.flatnonzero((time >= stage.first) & (time <= stage.last))
            if len(own):
                mean[own], found = self._predict(i, images[own])
                if spread is not None and found is not None:
                    spread[own] = found
        return mean, spread

    def _engine(self, stage: int) -> Any:
        """Return what runs the networks of a stage; made at the first images."""
        if stage not in self._engines:
            members, batch = self.stages[stage].members, self._asked_batch
            if self.engine == "torch":
                from pricepix.train.engines.torch_engine import TorchEngine

                self._engines[stage] = TorchEngine(members, batch, self.precision)
            else:
                from pricepix.train.engines.exported import onnx_bytes
                from pricepix.train.engines.onnx_engines import ENGINES

                content = self._rounded.get(stage) or onnx_bytes(members)
                self._engines[stage] = ENGINES[self.engine](content, batch)
        return self._engines[stage]

    def _check_engine_serves(self, images: ImageSet | None) -> None:
        """Refuse what engines beside torch do not run, and round to 8 bits where that is asked for."""
        if not self.members:
            raise ValueError(
                f"engine={self.engine!r} runs networks, and {self.name} is a function: leave engine out"
            )
        from pricepix.train.engines.onnx_engines import ENGINES

        optional_module(self.engine, ENGINES[self.engine].extra, f"engine={self.engine!r}")
        if self.precision == "int8":
            if images is None or self.takes != "images":
                raise ValueError(
                    "precision='int8' rounds by images of the training period: score images with it"
                )
            for i in range(len(self.stages)):
                self._round(i, images)

    def _round(self, stage: int, images: ImageSet) -> None:
        """Round the networks of a stage to 8 bits, and refuse it where they then rank differently."""
        from pricepix.train.engines.exported import onnx_bytes
        from pricepix.train.engines.quantised import LEAST_AGREEMENT, quantise
        from pricepix.train.engines.torch_engine import TorchEngine

        members = self.stages[stage].members
        given = training_images(images, members[0].metadata, self.name)
        self._rounded[stage] = quantise(onnx_bytes(members), given)
        index = whole_dates(images)
        compared = images.read(index)
        exact = TorchEngine(members).predict(compared).mean(axis=0)
        found = self._engine(stage).predict(compared).mean(axis=0)
        if self.head is not None:
            exact, found = exact[:, self.head], found[:, self.head]
        agreement = rank_agreement(exact, found, images.time[index])
        _LOG.info("%s in int8: rank correlation by date with float32 %.5f", self.name, agreement)
        if not agreement >= LEAST_AGREEMENT:
            raise ValueError(
                f"precision='int8': scores of {self.name} by {self.engine} have a rank correlation by date of "
                f"{agreement:.4f} with those of float32, on {len(index):,} images of {images.kind} {images.location}, "
                f"below {LEAST_AGREEMENT}: it would be another factor. Score in float32"
            )

    def _predict(self, stage: int, images: NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
        parts = self._engine(stage).predict(images)
        if self.head is not None:
            parts = parts[:, :, self.head]
        if not np.isfinite(parts).all():
            raise ValueError(
                f"the model {self.name} gives {np.count_nonzero(~np.isfinite(parts))} scores that are not finite: its "
                "weights are damaged, or training diverged"
            )
        spread = parts.std(axis=0, ddof=1, dtype=np.float64).astype(np.float32) if len(parts) > 1 else None
        return parts.mean(axis=0, dtype=np.float64).astype(np.float32), spread

    def _call_function(self, images: NDArray[np.uint8]) -> Floats:
        out = np.empty(len(images), np.float32)
        for a in range(0, len(images), self.batch):
            part = images[a : a + self.batch]
            given = self._model(part)
            values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
            if values.shape != (len(part),) or values.dtype.kind not in "fiu":
                raise ValueError(
                    f"{self.name} returned {values.dtype} {values.shape} for {len(part)} images: it must return a "
                    f"number an image, shape ({len(part)},), the probability of a rise"
                )
            if np.isinf(values).any():
                raise ValueError(f"{self.name} returned infinite scores: return NaN where there is no score")
            out[a : a + self.batch] = values
        return out

    def _networks_digest(self) -> str:
        walk = len(self.stages) > 1 or self.stages[0].first != _LIMITS.min
        found = _digest_of(self.stages, periods=walk)
        if self.head is None:
            return found
        return hashlib.blake2b(f"head {self.head} of {found}".encode(), digest_size=16).hexdigest()

    def _name(self, model_id: str | None) -> str:
        if self.members:
            ensemble = f"{len(self.members)} x " if len(self.members) > 1 else ""
            folds = f", {len(self.stages)} folds" if len(self.stages) > 1 else ""
            return f"{ensemble}{self.members[0].spec.name}{folds}"
        return model_id or _qualified(self._model)

    def describe(self) -> dict[str, Any]:
        """Return what a cache records of the model."""
        return {
            "digest": self.digest,
            "name": self.name,
            "members": len(self.members) or 1,
            "source": str(self._path) if self._path else None,
            "metadata": self.metadata,
            "seen": self._training(),
            "stages": self._stage_digests(),
        }

    def continues(self, model: Mapping[str, Any], through: int | None) -> bool:
        """Whether this walk-forward run scores all images up to a time as a cache's model did.

        A run that is trained again every year gains a fold a year, for the images that came since.

        Parameters
        ----------
        model : mapping
            What the cache records of its model.
        through : int or None
            Time of the last image that it scored, nanoseconds.
        """
        before = model.get("stages") or []
        if not before or through is None or not self.stages:
            return False
        now = self._stage_digests()
        if len(now) < len(before) or any(stage["first"] <= through for stage in now[len(before) :]):
            return False
        return all(
            old["first"] == new["first"]
            and old["digest"] == new["digest"]
            and min(old["last"], through) == min(new["last"], through)
            for old, new in zip(before, now, strict=False)
        )

    def _stage_digests(self) -> list[dict[str, Any]]:
        """Return the period and the digest of the networks of each stage."""
        return [
            {"first": stage.first, "last": stage.last, "digest": _digest_of([stage])} for stage in self.stages
        ]

    def _training(self) -> list[dict[str, Any]]:
        """Return what the networks of each stage, or those within a function, were trained and validated on."""
        found = []
        if not self.stages and (wrapped := wrapped_networks(self._model)):
            found.append(training_summary((network.metadata for network in wrapped), self._tz))
        for stage in self.stages:
            first = None if stage.first == _LIMITS.min else stage.first
            last = None if stage.last == _LIMITS.max else stage.last
            found.append(
                training_summary((member.metadata for member in stage.members), self._tz, first, last)
            )
        return found


def _digest_of(stages: list[Stage], periods: bool = False) -> str:
    """Return the digest of networks and, with `periods`, of the periods that they score."""
    digest = hashlib.blake2b(digest_size=16)
    for stage, member in ((s, m) for s in stages for m in s.members):
        if periods:
            digest.update(repr((stage.first, stage.last)).encode())
        digest.update(json.dumps(member.spec.to_dict(), sort_keys=True).encode())
        for name, value in sorted(member.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _folds(run: Path, tz: str | None) -> list[tuple[int, int, Path]]:
    """Return the periods that a walk-forward run scores and the folders of their models; none for another path.

    These are the test periods. The last one has no end: the newest windows, whose returns are not known yet, belong
    to no test.
    """
    if not run.is_dir() or any(run.glob("member_*")) or not (run / "config.yaml").is_file():
        return []
    from pricepix.bars.times import as_time

    folds = read_sealed_yaml(run / "config.yaml").get("folds")
    found = []
    for fold in folds if isinstance(folds, list) else []:
        test = fold.get("test", {})
        if test.get("images"):
            folder = run / f"fold_{fold['name']}"
            found.append(
                (as_time(str(test["first"]), tz, False), as_time(str(test["last"]), tz, True), folder)
            )
    found.sort()
    for (_, last, folder), (first, _, other) in itertools.pairwise(found):
        if first <= last:
            raise ValueError(
                f"the test periods of {folder.name} and {other.name} of run {run} overlap: score them one by one, by "
                "the folder of the fold"
            )
    if found:
        first, _, folder = found[-1]
        found[-1] = (first, _LIMITS.max, folder)
    return found


def _check_engine(engine: str, precision: str, device: str | None) -> None:
    """Refuse what does not go together."""
    if engine == "torch" and precision == "int8":
        raise ValueError("precision='int8' is of engine='openvino' or engine='onnxruntime': give one of them")
    if engine != "torch" and precision not in ("32-true", "int8"):
        raise ValueError(f"engine={engine!r} computes in '32-true' or 'int8', not in {precision!r}")
    if engine != "torch" and device not in (None, "cpu"):
        raise ValueError(f"engine={engine!r} runs on the CPU, not on {device!r}: leave device out")


def _as_network(model: Any, images: ImageSet | None) -> Any:
    """Return a network or an ensemble as it is, any other torch module as a network that takes these images."""
    from pricepix.train.models import Ensemble, Network

    if isinstance(model, Network | Ensemble):
        return model
    if images is None:
        raise ValueError(
            f"the model is a {type(model).__name__}, of which it is not known what it takes: score images with it"
        )
    from pricepix.train.modules import as_network

    return as_network(model, images)


def _is_module(model: Any) -> bool:
    return any(base.__module__.startswith("torch.") for base in type(model).__mro__)


def _qualified(function: Callable[..., Any]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
