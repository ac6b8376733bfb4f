"""Networks that are not ours: any torch module, and the models of timm, as a `Network`.

A module is code, and files are data: a checkpoint holds a module's weights and a fingerprint of the module that they
belong to, never the module. Whoever loads it again hands the module over.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from pricepix._checks import nearest, optional_module, printable, short
from pricepix.train.models import CNNSpec, ModuleSpec, Network, PriceCNN

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = [
    "TIMM",
    "MakeModule",
    "ModuleNetwork",
    "TimmModule",
    "Towers",
    "as_network",
    "columns_of",
    "difference",
    "fingerprint",
    "make_module",
    "module_source",
    "probe",
    "unprobed_spec",
]

TIMM = "timm:"
_SERIES_CHANNELS = 6
_PROBES = 2

MakeModule = Callable[[], nn.Module]
"""Makes a new module: a class, or a function without arguments."""


class ModuleNetwork(Network):
    """Any torch module as a network: inputs are normalised before it, and what it gives is checked.

    Parameters
    ----------
    spec : ModuleSpec
    module : torch.nn.Module
        Its forward takes float images (n, 1, height, width), or series (n, channels, bars), normalised by the
        training rows' mean and standard deviation; what a series lacks is 0. It gives a column for each output,
        or one number an input.

    Notes
    -----
    One column for two classes is the logit of the upper one.
    """

    kind = "ModuleNetwork"

    def __init__(self, spec: ModuleSpec, module: nn.Module) -> None:
        super().__init__()
        self.spec: ModuleSpec = spec
        self._start_values()
        self.module = module
        statistics = () if spec.takes == "images" else (spec.shape[0], 1)
        self.register_buffer("mean", torch.zeros(statistics))
        self.register_buffer("std", torch.ones(statistics))

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of an image, or channels and bars of a series."""
        return self.spec.shape

    @property
    def own(self) -> nn.Module:
        """The module, by whose names its layers are known."""
        return self.module

    def split(self, inputs: Tensor) -> list[Tensor]:
        """Return what the module's forward takes: one tensor, or the images and fields of a stack."""
        x, spec = self._normalised(inputs), self.spec
        if not spec.parts:
            return [x]
        found = [x[:, :, top : top + height, left : left + width] for top, left, height, width in spec.parts]
        if spec.fields:
            found.append(inputs[:, -spec.fields :, -1].to(x.dtype) / 255)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (n, heads * outputs) of images uint8 (n, height, width), or of series float32."""
        # Not len(): an exported program takes any number.
        return self._checked(self.module(*self.split(inputs)), inputs.shape[0])

    def from_normalised(self, x: Tensor) -> Tensor:
        """Outputs of normalised images (n, 1, height, width) or series (n, channels, bars); a stack has no such."""
        if self.spec.parts:
            raise ValueError(f"{self.spec.name} takes a stack of images, and not one of them")
        return self._checked(self.module(x), x.shape[0])

    def _checked(self, found: Any, n: int) -> Tensor:
        """Return the outputs of the module as (n, heads * outputs)."""
        given = columns_of(found)
        if given.shape != (n, self.spec.columns):
            raise ValueError(
                f"{self.spec.name} gives {tuple(given.shape)} for {n} inputs, expected ({n}, {self.spec.columns})"
            )
        if self.spec.columns == self.spec.outputs * self.spec.heads:
            return given
        # The logit of the upper class beside one of 0: softmax over both is the sigmoid of one.
        return torch.stack([torch.zeros_like(given), given], dim=2).flatten(1)


def columns_of(given: Any) -> Tensor:
    """Return what a module gives as columns (n, k): a tensor, or an object with ``logits``."""
    found = getattr(given, "logits", given)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the module's forward gives a {type(found).__name__}; give a tensor with a column an output"
        )
    if found.ndim not in (1, 2):
        raise ValueError(
            f"the module's forward gives {tuple(found.shape)}; give a column an output, (n, k), or (n,)"
        )
    return found if found.ndim == 2 else found.unsqueeze(1)


class Towers(nn.Module):
    """A network for stacks: the blocks of one `PriceCNN` an image, and one linear layer over all that they find.

    Parameters
    ----------
    specs : sequence of CNNSpec or str
        Of the images of the stack, in their order, such as ``("jkx5", "jkx20", "jkx60")``.
    outputs : int
        Columns: 2 classes, or 1 number.
    fields : int
        Panel fields beside the images.
    dropout : float
        Before the linear layer.
    """

    def __init__(
        self, specs: Sequence[CNNSpec | str], outputs: int = 2, *, fields: int = 0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        networks = [PriceCNN(spec) for spec in specs]
        self.towers = nn.ModuleList(network.blocks for network in networks)
        self.dropout = nn.Dropout(dropout)
        size = sum(math.prod(network.spec.features()) for network in networks)
        self.linear = nn.Linear(size + fields, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs (n, outputs) of the images of a stack and, last, its fields."""
        found = [tower(x).flatten(1) for tower, x in zip(self.towers, inputs, strict=False)]
        given: Tensor = self.linear(self.dropout(torch.cat([*found, *inputs[len(self.towers) :]], dim=1)))
        return given


class TimmModule(nn.Module):
    """A model of timm behind chart images, which are resized and repeated to the three channels that it takes.

    Parameters
    ----------
    name : str
        As timm knows it: ``vit_tiny_patch16_224``.
    outputs : int
        Columns of its head.

    Raises
    ------
    ImportError
        Without timm; the message is the line that installs it.
    ValueError
        If timm has no such model.
    """

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        timm = optional_module("timm", "timm", f"model {short(TIMM + name)}")
        # The name may come out of a file: only what the installed timm defines, nothing that it would fetch.
        if not timm.is_model(name):
            raise ValueError(
                f"timm {timm.__version__} has no model {short(name)}{nearest(name, timm.list_models())}"
            )
        self.name = name
        self.model = timm.create_model(name, pretrained=False, num_classes=outputs)
        self.channels, *size = self.model.pretrained_cfg["input_size"]
        self.size = tuple(size)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (n, outputs) of images (n, 1, height, width)."""
        larger = functional.interpolate(
            images, self.size, mode="bilinear", align_corners=False, antialias=True
        )
        given: Tensor = self.model(larger.expand(-1, self.channels, -1, -1))
        return given


def make_module(made_by: nn.Module | MakeModule, spec: ModuleSpec) -> nn.Module:
    """Return a new module: a copy of one that is given, or what a class or function makes.

    Lazy layers get the sizes that inputs of `spec` give them.

    Raises
    ------
    TypeError
        If it makes no module, or cannot be called without arguments.
    """
    if isinstance(made_by, nn.Module):
        return _sized(copy.deepcopy(made_by).cpu(), spec)
    name = printable(getattr(made_by, "__qualname__", type(made_by).__name__), "")
    try:
        module = made_by()
    except TypeError as error:
        raise TypeError(
            f"{name}() does not make a module ({error}): give a class or function that takes no arguments, such as "
            f"lambda: {name if isinstance(made_by, type) else 'MyNet'}(...)"
        ) from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}() gives a {type(module).__name__}, expected a torch.nn.Module")
    return _sized(module, spec)


def _sized(module: nn.Module, spec: ModuleSpec) -> nn.Module:
    if any(is_lazy(value) for value in module.state_dict().values()):
        was_training = module.training
        module.eval()
        with torch.no_grad():
            blank = torch.zeros(
                (1, *spec.shape), dtype=torch.uint8 if spec.takes == "images" else torch.float32
            )
            module(*ModuleNetwork(spec, module).split(blank))
        module.train(was_training)
    return module


def module_source(module: nn.Module) -> str:
    """Return what a checkpoint calls the module: ``timm:<name>``, or its class."""
    if isinstance(module, TimmModule):
        return f"{TIMM}{module.name}"
    kind = type(module)
    return printable(f"{kind.__module__}.{kind.__qualname__}", "")[:200]


def fingerprint(module: nn.Module) -> str:
    """Return 32 hexadecimal digits of a module's class and of the names and shapes of its tensors.

    The class counts by its own name and not by the file that it lies in: a class that moves from a notebook into a
    file stays the same.
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    text = repr((type(module).__qualname__, sorted(shapes.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def difference(spec: ModuleSpec, module: nn.Module, state: Mapping[str, Any]) -> str:
    """Return how a module differs from the one that a checkpoint's tensors are of; nothing if it does not.

    `state` is that of a `ModuleNetwork`, whose own tensors stand beside those of the module.
    """
    if fingerprint(module) == spec.fingerprint:
        return ""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    inside = {name: value for name, value in state.items() if str(name).startswith("module.")}
    saved = {
        name.removeprefix("module."): tuple(getattr(value, "shape", ())) for name, value in inside.items()
    }
    for name in {**own, **saved}:
        if own.get(name) != saved.get(name):
            has, had = (
                f"{short(name)} of {which[name]}" if name in which else f"no {short(name)}"
                for which in (own, saved)
            )
            return f"it has {has}, the checkpoint {had}"
    return f"it is a {printable(type(module).__qualname__, '')}"


def input_shape(takes: str, images: ImageSet) -> tuple[int, int]:
    """Shape of one input: of an image, or of the series behind it."""
    return images.spec.shape if takes == "images" else (_SERIES_CHANNELS, images.spec.bars)


def unprobed_spec(name: str, source: str, takes: str, images: ImageSet) -> ModuleSpec:
    """Return the spec of a module of which only the inputs are known: its columns come from `probe`."""
    stack: Any = images.spec
    is_stack = takes == "images" and hasattr(stack, "parts")
    parts = tuple(tuple(part) for part in stack.parts) if is_stack else ()
    fields = len(stack.fields) if is_stack else 0
    return ModuleSpec(
        name, takes, input_shape(takes, images), 1, 1, source, "not known yet", parts=parts, fields=fields
    )  # fmt: skip


def probe(module: nn.Module, spec: ModuleSpec, inputs: NDArray[Any]) -> int:
    """Return how many columns a module gives for some inputs; it is left as it was, but for lazy layers."""
    network = ModuleNetwork(spec, module)
    source, was_training = module_source(module), module.training
    module.eval()
    takes = _takes(spec, len(inputs))
    try:
        with torch.no_grad():
            given = module(*network.split(torch.from_numpy(np.ascontiguousarray(inputs))))
    except Exception as error:  # of any kind: it is the user's code
        why = printable(str(error).strip())[:500]
        raise ValueError(
            f"model {source} does not take {takes}: its forward raises {type(error).__name__}: {why}"
        ) from error
    finally:
        module.train(was_training)
    try:
        columns = columns_of(given)
    except ValueError as error:
        raise ValueError(f"model {source}: {error}") from None
    if len(columns) != len(inputs):
        raise ValueError(
            f"model {source} gives {tuple(columns.shape)} for {takes}: the first axis must be the input, so that "
            f"there are {len(inputs)} rows"
        )
    if not bool(torch.isfinite(columns).all()):
        raise ValueError(
            f"model {source} gives NaN or infinite outputs for {takes}, before any training: check its start values, "
            "and that it divides by nothing that may be 0"
        )
    return columns.shape[1]


def _takes(spec: ModuleSpec, n: int) -> str:
    if spec.parts:
        sizes = ", ".join(f"{height}x{width}" for _, _, height, width in spec.parts)
        beside = f" and {spec.fields} fields, float32 ({n}, {spec.fields})" if spec.fields else ""
        return f"a stack of {len(spec.parts)} images of {sizes} pixels, each float32 ({n}, 1, height, width){beside}"
    if spec.takes == "images":
        return f"images of {spec.shape[0]}x{spec.shape[1]} pixels, float32 ({n}, 1, {spec.shape[0]}, {spec.shape[1]})"
    return f"series of {spec.shape[1]} bars, float32 ({n}, {spec.shape[0]}, {spec.shape[1]})"


def as_network(module: nn.Module, images: ImageSet) -> ModuleNetwork:
    """Return a module that was trained elsewhere as a network, to score images with.

    It takes pixels from 0 to 1, (n, 1, height, width). One column is a score, two or more are logits of classes.

    Parameters
    ----------
    module : torch.nn.Module
    images : ImageSet
        What it is to score.

    Raises
    ------
    ValueError
        If it does not take the images, or gives NaN.
    """
    spec = unprobed_spec(type(module).__name__[:200], module_source(module), "images", images)
    columns = probe(module, spec, images.read(slice(min(_PROBES, len(images)))))
    spec = spec.replace(outputs=columns, columns=columns, fingerprint=fingerprint(module))
    return ModuleNetwork(spec, module)
