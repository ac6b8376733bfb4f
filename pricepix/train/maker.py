"""The one place that turns whatever a user calls a model into networks, with what a checkpoint says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import nn

from pricepix._checks import nearest_or_all, printable, short
from pricepix.train.models import (
    PRESETS,
    SERIES_PRESETS,
    AnySpec,
    CNNSpec,
    ModuleSpec,
    Network,
    PriceCNN,
    SeriesCNN,
    SeriesSpec,
)
from pricepix.train.modules import (
    TIMM,
    MakeModule,
    ModuleNetwork,
    TimmModule,
    fingerprint,
    make_module,
    module_source,
    probe,
    unprobed_spec,
)
from pricepix.train.network_spec import cnn1d, logistic

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["Model", "NetworkMaker"]

Model = str | AnySpec | nn.Module | MakeModule
"""What a user may give as a model: a preset's name, ``timm:<name>``, a spec, a module, or what makes one."""


@dataclass(frozen=True)
class NetworkMaker:
    """Makes the networks of a run: those of its members differ in their seed alone.

    Attributes
    ----------
    spec : CNNSpec, SeriesSpec or ModuleSpec
    module : torch.nn.Module, callable or None
        What a module is copied from, or made by; None for a network of ours.
    """

    spec: AnySpec
    module: nn.Module | MakeModule | None = None

    @classmethod
    def of(
        cls, model: Any, images: ImageSet, inputs: Literal["images", "series"] | None = None
    ) -> NetworkMaker:
        """Resolve what a user gives as `model`, for these images.

        Parameters
        ----------
        model : Model
        images : ImageSet
        inputs : {"images", "series"}, optional
            What a module takes; images by default. The others know it.

        Raises
        ------
        ValueError
            If there is no such model, or it takes other images.
        TypeError
            If `model` is nothing of these.
        """
        if inputs not in (None, "images", "series"):
            raise ValueError(f"inputs={short(inputs)}: give 'images' or 'series'")
        if isinstance(model, str) and model.startswith(TIMM):
            name = model.removeprefix(TIMM)
            # Made when it is known how many outputs it needs. A stack is one image to it: the canvas.
            named = unprobed_spec(name, model, inputs or "images", images).replace(parts=(), fields=0)
            if named.takes == "series":
                raise ValueError(f"model {short(model)} takes images: leave inputs='series' out")
            return cls(named)
        spec: Any = _named(model, images.spec.bars) if isinstance(model, str) else model
        if isinstance(spec, CNNSpec | SeriesSpec):
            if inputs not in (None, spec.takes):
                raise ValueError(f"model {spec.name} takes {spec.takes}: leave inputs={inputs!r} out")
            _check_fits(spec, images)
            return cls(spec)
        if isinstance(model, Network):
            raise TypeError(
                f"model is a {type(model).__name__} with weights: give its spec to train such a network anew, or save "
                "it and give the file as init= to go on from its weights"
            )
        if isinstance(model, nn.Module) or callable(model):
            name = printable(getattr(model, "__name__", type(model).__name__), "")[:200]
            return cls(unprobed_spec(name, name, inputs or "images", images), model)
        raise TypeError(
            f"model is a {type(model).__name__}; give the name of a preset, timm:<name>, a CNNSpec or SeriesSpec, a "
            "torch.nn.Module, or a class or function that makes one"
        )

    @property
    def starts_from_its_own_weights(self) -> bool:
        """Whether the user gave a module and not what makes one: there is one start then, and no second member."""
        return isinstance(self.module, nn.Module)

    def with_outputs(self, outputs: int, heads: int, sample: Callable[[], NDArray[Any]]) -> NetworkMaker:
        """Return the maker of networks with so many outputs for each head; a module is tried on a few inputs.

        Parameters
        ----------
        outputs, heads : int
        sample : callable
            Gives a few inputs, as the reader would.

        Raises
        ------
        ValueError
            If a module does not take the inputs, or gives other outputs or NaN.
        """
        if not isinstance(self.spec, ModuleSpec):
            return replace(self, spec=self.spec.replace(outputs=outputs, heads=heads))
        made_by: nn.Module | MakeModule | None = self.module
        if made_by is None:
            name = self.spec.name

            def made_by() -> nn.Module:
                return TimmModule(name, outputs * heads)

        with torch.random.fork_rng(devices=[]):
            module = make_module(made_by, self.spec)
            columns = probe(module, self.spec, sample())
        wanted = outputs * heads
        if columns not in (wanted, heads if outputs == 2 else wanted):
            kind = f"{outputs} classes" if outputs > 1 else "a number"
            over = f" for each of {heads} horizons" if heads > 1 else ""
            one = f", or {heads} (the logit of a rise)" if outputs == 2 else ""
            raise ValueError(
                f"model {module_source(module)} gives {columns} columns, but the target has {kind}{over}: its forward "
                f"must give {wanted} columns{one}; change its last layer, or the target"
            )
        spec = ModuleSpec(
            self.spec.name if self.module is None else type(module).__name__[:200],
            self.spec.takes, self.spec.shape, outputs, columns, module_source(module), fingerprint(module), heads,
            self.spec.parts, self.spec.fields,
        )  # fmt: skip
        return NetworkMaker(spec, made_by)

    def make(self, seed: int) -> Network:
        """Return a new network, whose start values are drawn by a seed; a given module keeps its own."""
        spec = self.spec
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if isinstance(spec, CNNSpec):
                return PriceCNN(spec)
            if isinstance(spec, SeriesSpec):
                return SeriesCNN(spec)
            assert self.module is not None
            module = make_module(self.module, spec)
        if fingerprint(module) != spec.fingerprint:
            raise ValueError(
                f"model {spec.name} makes another module each time: it must give the same layers in the same sizes"
            )
        return ModuleNetwork(spec, module)

    def starting_from(self, state: Mapping[str, Any]) -> NetworkMaker:
        """Return the maker whose module has other weights: those of its ``state_dict``."""
        module = make_module(self.module, self.spec)  # type: ignore[arg-type]
        module.load_state_dict(dict(state))
        return replace(self, module=module)

    @property
    def module_to_load(self) -> nn.Module | MakeModule | None:
        """What `load_model` needs beside a checkpoint: the user's own module."""
        if isinstance(self.spec, ModuleSpec) and not self.spec.source.startswith(TIMM):
            return self.module
        return None

    def describe(self) -> dict[str, Any]:
        """Return what identifies the network, for a run's configuration."""
        kinds = {CNNSpec: PriceCNN.kind, SeriesSpec: SeriesCNN.kind, ModuleSpec: ModuleNetwork.kind}
        return {"kind": kinds[type(self.spec)]} | self.spec.to_dict()


def _check_fits(spec: CNNSpec | SeriesSpec, images: ImageSet) -> None:
    bars, shape = images.spec.bars, images.spec.shape
    if isinstance(spec, CNNSpec) and (spec.height, spec.width) != shape:
        fitting = [name for name, preset in PRESETS.items() if (preset.height, preset.width) == shape]
        raise ValueError(
            f"model {spec.name} takes images of {spec.height}x{spec.width}, those of {images.kind} "
            f"{images.location} are {shape[0]}x{shape[1]}: choose {' or '.join(fitting) or 'a CNNSpec of that size'}"
        )
    if isinstance(spec, SeriesSpec) and spec.lookback != bars:
        raise ValueError(
            f"model {spec.name} takes {spec.lookback} bars, windows of {images.kind} {images.location} have "
            f"{bars}: choose model 'logistic' or 'cnn1d', which take any number"
        )


def _named(model: str, bars: int) -> CNNSpec | SeriesSpec:
    if model in ("cnn1d", "logistic"):
        return cnn1d(bars) if model == "cnn1d" else logistic(bars)
    if model in PRESETS:
        return PRESETS[model]
    if model in SERIES_PRESETS:
        return SERIES_PRESETS[model]
    raise ValueError(f"there is no model {model!r}{nearest_or_all(model, [*PRESETS, *SERIES_PRESETS])}")
