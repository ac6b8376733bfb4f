"""What scores images: a network, an ensemble, or any function, and how it is recognised again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix.spec import ImageSpec

__all__ = ["Scorer"]

Floats = NDArray[np.float32]


class Scorer:
    """Scores of images by one model.

    Can be pickled: a model that came from files is loaded where it is used, once.

    Parameters
    ----------
    model : path, network, ensemble or callable
        A checkpoint or the folder of a run; a ``PriceCNN`` or ``Ensemble``; or a function from images, uint8
        (n, height, width), to probabilities of a rise, (n,).
    model_id : str, optional
        Names a function. Networks are named by their weights.
    batch : int
        Images a forward pass.
    device : str, optional
        ``"cuda"`` where there is one, else ``"cpu"``.
    """

    def __init__(
        self, model: Any, *, model_id: str | None = None, batch: int = 256, device: str | None = None
    ) -> None:
        if isinstance(batch, bool) or not hasattr(batch, "__index__") or int(batch) < 1:
            raise ValueError(
                f"batch={batch!r}: give the images of a forward pass, a whole number of at least 1"
            )
        # What fit returns carries the folder of the run.
        if not isinstance(model, str | PathLike) and not callable(model):
            model = getattr(model, "out", model)
        if not isinstance(model, str | PathLike) and not callable(model):
            raise TypeError(
                f"model is a {type(model).__name__}; give a checkpoint, the folder of a run, a PriceCNN, "
                "an Ensemble "
                "or a function from images to probabilities"
            )
        self._path = Path(model) if isinstance(model, str | PathLike) else None
        self._model: Any = None if self._path else model
        self._members: list[Any] | None = None
        self._device, self.batch = device, int(batch)
        if model_id is not None and self.members:
            raise ValueError("model_id names a function; a network is named by its weights: leave it out")
        self.digest = self._networks_digest() if self.members else _callable_digest(self._model, model_id)
        """32 hexadecimal digits that name the model; None for a function that nothing tells from others."""
        self.name = self._name(model_id)

    def __getstate__(self) -> dict[str, Any]:
        lazily = {"_model": None, "_members": None} if self._path else {"_members": None}
        return self.__dict__ | lazily

    @property
    def members(self) -> list[Any]:
        """The networks, on their device; empty for a function."""
        if self._members is None:
            self._members = self._loaded()
        return self._members

    def _loaded(self) -> list[Any]:
        if self._path is not None and self._model is None:
            from pricepix.train.models import load_model

            self._model = load_model(self._path)
        if not _is_module(self._model):
            return []
        from pricepix.train.models import Ensemble, PriceCNN

        members = list(self._model.members) if isinstance(self._model, Ensemble) else [self._model]
        for member in members:
            if not isinstance(member, PriceCNN):
                raise ValueError(
                    f"the model is a {type(member).__name__}, which does not take images: give a PriceCNN "
                    "or an "
                    "Ensemble of them, or a function that wraps it"
                )
        device = self._device
        if device is None:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        return [member.to(device).eval() for member in members]

    @property
    def is_probability(self) -> bool:
        """Whether a network's output is the probability of a rise: two classes."""
        return not self.members or self.members[0].spec.outputs == 2

    @property
    def metadata(self) -> dict[str, Any]:
        """What the checkpoint says of its training."""
        found = self.members[0].metadata if self.members else {}
        return json.loads(json.dumps(found, default=str))

    @property
    def horizon(self) -> int | None:
        """Horizon the model was trained for, if its checkpoint says so."""
        found = self.metadata.get("horizon")
        return int(found) if isinstance(found, int) else None

    def check(self, spec: ImageSpec, location: str) -> None:
        """Raise ValueError unless the model takes the images of a store."""
        if not self.members:
            return
        takes = self.members[0].input_shape
        if takes != spec.shape:
            raise ValueError(
                f"the model {self.name} takes images of {takes[0]}x{takes[1]}, store {location} holds "
                f"{spec.shape[0]}x{spec.shape[1]} ones (lookback {spec.lookback}): score a store of the "
                "spec that the "
                "model was trained on"
            )
        trained = self.metadata.get("image_spec")
        if isinstance(trained, dict) and "lookback" in trained:
            other = ImageSpec.from_dict(trained)
            if other != spec:
                theirs, ours = other.to_dict(), spec.to_dict()
                differ = [f"{k} {theirs[k]!r}, not {ours[k]!r}" for k in ours if theirs[k] != ours[k]]
                raise ValueError(
                    f"the model {self.name} was trained on other images than store {location} holds: "
                    f"{'; '.join(differ)}. Score a store of the spec that the model was trained on"
                )

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
        """Return the mean score of the members, float32 (n,), and their standard deviation (n - 1)."""
        if not self.members:
            return self._called(images), None
        # A chunk may be read-only memory, which torch takes only under protest.
        images = np.require(images, requirements="W")
        parts = np.stack([member.predict(images, self.batch) for member in self.members])
        if not np.isfinite(parts).all():
            raise ValueError(
                f"the model {self.name} gives {np.count_nonzero(~np.isfinite(parts))} scores that are no "
                "numbers: "
                "its weights are damaged, or training diverged"
            )
        spread = parts.std(axis=0, ddof=1, dtype=np.float64).astype(np.float32) if len(parts) > 1 else None
        return parts.mean(axis=0, dtype=np.float64).astype(np.float32), spread

    def _called(self, images: NDArray[np.uint8]) -> Floats:
        out = np.empty(len(images), np.float32)
        for a in range(0, len(images), self.batch):
            part = images[a : a + self.batch]
            given = self._model(part)
            values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
            if values.shape != (len(part),) or values.dtype.kind not in "fiu":
                raise ValueError(
                    f"{self.name} returned {values.dtype} {values.shape} for {len(part)} images: it must "
                    "return a number "
                    f"an image, shape ({len(part)},), the probability of a rise"
                )
            if np.isinf(values).any():
                raise ValueError(f"{self.name} returned infinite scores: return NaN where nothing is known")
            out[a : a + self.batch] = values
        return out

    def _networks_digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for member in self.members:
            digest.update(json.dumps(member.spec.to_dict(), sort_keys=True).encode())
            for name, value in sorted(member.state_dict().items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()

    def _name(self, model_id: str | None) -> str:
        if self.members:
            several = f"{len(self.members)} x " if len(self.members) > 1 else ""
            return f"{several}{self.members[0].spec.name}"
        return model_id or _qualified(self._model)

    def describe(self) -> dict[str, Any]:
        """Return what a cache keeps of the model."""
        return {
            "digest": self.digest,
            "name": self.name,
            "members": len(self.members) or 1,
            "source": str(self._path) if self._path else None,
            "metadata": self.metadata,
        }


def _is_module(model: Any) -> bool:
    return any(base.__module__.startswith("torch.") for base in type(model).__mro__)


def _qualified(function: Callable[..., Any]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _callable_digest(function: Any, model_id: str | None) -> str | None:
    """Name a function by `model_id`, or by its code if that is all there is to it."""
    text: Any = model_id
    if model_id is None:
        code = getattr(function, "__code__", None)
        if code is None or function.__closure__ or function.__defaults__ or function.__kwdefaults__:
            return None
        text = (_qualified(function), code.co_code, [c for c in code.co_consts if not hasattr(c, "co_code")])
    return hashlib.blake2b(repr(text).encode(), digest_size=16).hexdigest()
