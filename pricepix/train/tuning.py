"""Fine-tuning: weights to start from, layers that do not learn, and learning rates by layer."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pricepix._checks import number, optional_module, printable, short
from pricepix.location import check_regular
from pricepix.train.checkpoints import load_model, read_checkpoint
from pricepix.train.models import Ensemble, Network
from pricepix.train.modules import ModuleNetwork

__all__ = ["Tuning"]

_log = logging.getLogger("pricepix.train")

# Fields of a spec in which the network to start from may differ: none of them is a shape before the last layer.
_STATISTICS = ("mean", "std", "scale")
_FREE = ("name", "dropout", "outputs", "heads", "conv_bias", "linear_bias")


@dataclass(frozen=True)
class Tuning:
    """How a network's training begins, and which of its layers learn how fast.

    Attributes
    ----------
    init : Path or None
        Checkpoint whose weights it starts from.
    digest : str
        32 hexadecimal digits of that file.
    freeze : tuple of str
        Layers that keep their weights, by the beginning of their name.
    layer_lr : dict
        Factors of the learning rate, by the beginning of a layer's name; the longest name that fits counts.
    """

    init: Path | None = None
    digest: str = ""
    freeze: tuple[str, ...] = ()
    layer_lr: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        init: str | os.PathLike[str] | None,
        freeze: str | Sequence[str] | None,
        layer_lr: Mapping[str, float] | None,
    ) -> Tuning:
        """Check the arguments of `fit` of the same names."""
        layers = (freeze,) if isinstance(freeze, str) else tuple(freeze or ())
        if not all(isinstance(layer, str) and layer for layer in layers):
            raise ValueError(f"freeze={short(freeze)}: give 'features', or beginnings of names of layers")
        if layer_lr is not None and not isinstance(layer_lr, Mapping):
            raise ValueError(
                f"layer_lr={short(layer_lr)}: give a factor of lr for each layer, such as {{'features': 0.1}}"
            )
        factors = {
            str(name): number(value, f"layer_lr[{str(name)!r}]", above=True)
            for name, value in (layer_lr or {}).items()
        }
        if init is None:
            return cls(freeze=layers, layer_lr=factors)
        path = Path(init)
        if path.is_dir():
            path = path / "best.ckpt" if (path / "best.ckpt").exists() else path / "member_0" / "best.ckpt"
        if not path.is_file():
            raise FileNotFoundError(f"init={str(init)!r}: there is no checkpoint {path}")
        check_regular(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return cls(path, digest, layers, factors)

    def describe(self) -> dict[str, Any] | None:
        """Return what identifies it, as plain values; None where a network starts by itself and learns as a whole."""
        if self == Tuning():
            return None
        return {
            "init": None if self.init is None else {"file": self.init.name, "digest": self.digest},
            "freeze": list(self.freeze),
            "layer_lr": dict(self.layer_lr),
        }

    def apply(self, network: Network) -> list[str]:
        """Give a new network its weights and freeze its layers; return the tensors that `init` has no weights for.

        These are at most those of the last layer, where it has another shape.

        Raises
        ------
        ValueError
            If the checkpoint is of another network, or a name is that of no layer.
        """
        fresh: list[str] = []
        if self.init is not None:
            if isinstance(network, ModuleNetwork):
                state, statistics = _state_for_module(self.init, network)
            else:
                state, statistics = _state_of_ours(self.init, network)
            fresh = _load(self.init, network, state)
            for name, value in statistics.items():
                getattr(network, name).copy_(value)
            if fresh:
                _log.info("%s: %s start anew", self.init, ", ".join(fresh))
        if self.freeze:
            network.freeze(self.freeze)
        self.groups(network, 1.0)
        return fresh

    def groups(self, network: Network, lr: float) -> list[dict[str, Any]]:
        """Return the parameters that learn, in groups of one learning rate each, as torch's optimisers take them."""
        place: dict[str, str] = {}
        for prefix in sorted(self.layer_lr, key=len):
            found = network.named_by(prefix)
            if not found:
                names = [name for name, _ in network.own.named_parameters()]
                raise ValueError(
                    f"layer_lr has {prefix!r}, which names no layer of {network.spec.name}; it has parameters such as "
                    f"{', '.join(map(short, names[:4]))}"
                )
            # Within the features, a layer that is named by itself keeps its own factor.
            place |= {name: prefix for name in found if prefix != "features" or name not in place}
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in network.own.named_parameters():
            if parameter.requires_grad:
                prefix = place.get(name, "")
                factor = self.layer_lr.get(prefix, 1.0)
                groups.setdefault(prefix, {"params": [], "lr": lr * factor})["params"].append(parameter)
        return list(groups.values())


def _state_of_ours(path: Path, network: Network) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Weights for a network of ours, from a checkpoint of ours or of another project, and its statistics."""
    found = load_model(path)
    assert not isinstance(found, Ensemble)
    ours, theirs = network.spec.to_dict(), found.spec.to_dict()
    differ = sorted(k for k in {*ours, *theirs} if k not in _FREE and ours.get(k) != theirs.get(k))
    if differ or type(found) is not type(network):
        raise ValueError(
            f"init={str(path)!r} holds a network {found.spec.name} ({found.family}), the model is "
            f"{network.spec.name}: they differ in {', '.join(differ) or 'kind'}; give model={found.spec.name!r}, or "
            "another file"
        )
    state = {n: v for n, v in found.state_dict().items() if n not in _STATISTICS}
    # A foreign file does not know what its images were normalised with: our training rows tell.
    statistics = {"mean": found.mean, "std": found.std} if found.family == "pricepix" else {}
    return state, statistics


def _state_for_module(path: Path, network: ModuleNetwork) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Weights for any module, by its own names, and the statistics that a checkpoint of ours has beside them."""
    if path.suffix == ".safetensors":
        content = optional_module("safetensors.torch", "timm", f"init={str(path)!r}").load_file(path)
    else:
        content = read_checkpoint(path)
    state: Any = content
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            state = content[key]
            break
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    own = network.own.state_dict()
    ways = [
        tensors,
        {name.removeprefix("module."): value for name, value in tensors.items()},
        {name.removeprefix("_orig_mod."): value for name, value in tensors.items()},
        # Files of timm name the layers of the model that ours wraps.
        {f"model.{name}": value for name, value in tensors.items()},
    ]
    best = max(ways, key=lambda way: len(way.keys() & own.keys()))
    header = content.get("pricepix", content)
    is_ours = isinstance(header, Mapping) and header.get("kind") == ModuleNetwork.kind
    if not is_ours:
        return best, {}
    statistics: dict[str, Tensor] = {name: tensors[name] for name in ("mean", "std") if name in tensors}
    for name, value in statistics.items():
        if value.shape != getattr(network, name).shape:
            raise ValueError(
                f"init={str(path)!r}: {name} is {tuple(value.shape)}, for other inputs than ours"
            )
    kept = {name for name in best if f"module.{name}" in tensors}
    return {name: value for name, value in best.items() if name in kept}, statistics


def _load(path: Path, network: Network, state: Mapping[str, Tensor]) -> list[str]:
    """Load tensors into a network; return those of its head that have another shape, and stay as they are."""
    module, head, name = network.own, network.head, network.spec.name
    # Our own networks have their statistics among their layers.
    ignored = _STATISTICS if module is network else ()
    own = {key: value for key, value in module.state_dict().items() if key not in ignored}
    differs = {key for key, value in own.items() if key in state and state[key].shape != value.shape}
    fresh = {key for key in differs if key.startswith(f"{head}.")}
    wrong = [f"{short(key)} is missing" for key in own if key not in state]
    wrong += [
        f"{short(key)} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in sorted(differs - fresh)
    ]
    wrong += [f"{short(key)} is not part of the model" for key in sorted(set(state) - set(own))]
    if wrong:
        raise ValueError(
            f"init={str(path)!r} does not hold the weights of {printable(name)}: {wrong[0]} ({len(wrong)} of "
            f"{len(own)} tensors differ); only the last layer, {short(head)}, may have another shape"
        )
    with torch.no_grad():
        for key, value in own.items():
            if key not in fresh:
                value.copy_(state[key])
    return sorted(fresh)
