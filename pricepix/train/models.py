"""Networks: one configurable `PriceCNN`, every published architecture a preset of it, and `SeriesCNN`.

Only torch is imported here, so that scoring needs no more than torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from pricepix._checks import nearest_or_all
from pricepix.train.network_spec import (
    PRESETS,
    SERIES_PRESETS,
    AnySpec,
    CNNSpec,
    ConvBlock,
    ModuleSpec,
    SeriesBlock,
    SeriesSpec,
    plain_values,
)

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError('pricepix.train needs torch: pip install "pricepix[train]"') from error

__all__ = [
    "PRESETS",
    "SERIES_PRESETS",
    "CNNSpec",
    "ConvBlock",
    "Ensemble",
    "ModuleSpec",
    "Network",
    "PriceCNN",
    "SeriesBlock",
    "SeriesCNN",
    "SeriesSpec",
    "plain_values",
]

T = TypeVar("T")


class Network(nn.Module):
    """Base of every network: normalising statistics, prediction, layers that do not learn.

    `PriceCNN` and `SeriesCNN` are ours; `pricepix.train.modules.ModuleNetwork` is anybody's module.
    """

    kind: ClassVar[str]
    spec: AnySpec
    mean: Tensor
    std: Tensor
    scale: Tensor
    family: str
    metadata: dict[str, Any]

    _frozen: tuple[str, ...] = ()

    def _start_values(self) -> None:
        self.family, self.metadata = "new", {}
        # Standard deviation of a regression's training targets: the network works in units of it.
        heads = self.spec.heads
        self.register_buffer("scale", torch.ones(heads) if heads > 1 else torch.tensor(1.0))

    def _start(self, spec: CNNSpec | SeriesSpec) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                bias = spec.linear_bias if isinstance(module, nn.Linear) else spec.conv_bias
                if bias is not None and module.bias is not None:
                    nn.init.constant_(module.bias, bias)

    def _check_input(self, inputs: Tensor) -> None:
        if self.takes == "images":
            check_images(inputs, self.spec.name, self.input_shape)
        else:
            check_series(inputs, self.spec.name, self.input_shape)

    def _normalised(self, inputs: Tensor) -> Tensor:
        """Images (n, 1, height, width) or series (n, channels, bars), checked and normalised, as floats."""
        self._check_input(inputs)
        if self.takes == "images":
            scale = 1.0 / (255.0 * self.std)
            return (inputs.to(scale.dtype) * scale - self.mean / self.std).unsqueeze(1)
        return torch.nan_to_num((inputs - self.mean) / self.std, nan=0.0, posinf=0.0, neginf=0.0)

    def from_normalised(self, x: Tensor) -> Tensor:
        """Outputs of inputs that are normalised already: what gradients with respect to pixels need."""
        raise NotImplementedError

    @property
    def takes(self) -> str:
        """What it takes: ``images``, or the ``series`` of `pricepix.train.window_series`."""
        return self.spec.takes

    @property
    def input_shape(self) -> tuple[int, int]:
        """Shape of one input: height and width of an image, or channels and bars of a series."""
        raise NotImplementedError

    @property
    def own(self) -> nn.Module:
        """The module whose names a user knows: the network, or the module that it wraps."""
        return self

    @property
    def head(self) -> str:
        """Name, within `own`, of the layer that gives the outputs: the last one that has parameters."""
        names = [name for name, _ in self.own.named_parameters()]
        return names[-1].rpartition(".")[0] if names else ""

    def freeze(self, prefixes: Sequence[str]) -> None:
        """Keep the parameters of `own` whose names begin with some prefixes, and their running statistics.

        Parameters
        ----------
        prefixes : sequence of str
            Names of layers (``blocks.0``); ``features`` is every layer but `head`.

        Raises
        ------
        ValueError
            If a prefix names nothing, or nothing is left to learn.
        """
        names = [name for name, _ in self.own.named_parameters()]
        frozen: set[str] = set()
        for prefix in prefixes:
            found = self.named_by(prefix)
            if not found:
                raise ValueError(
                    f"freeze={prefix!r} names no layer of {self.spec.name}; choose 'features', or from "
                    f"{', '.join(_layers(names))}"
                )
            frozen |= found
        if frozen >= set(names):
            raise ValueError(f"freeze={list(prefixes)} leaves {self.spec.name} nothing to learn")
        for name, parameter in self.own.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self._frozen = tuple(sorted(frozen))
        self.train(self.training)

    def named_by(self, prefix: str) -> set[str]:
        """Return the names of the parameters of `own` within a layer; ``features`` is all but `head`."""
        names = {name for name, _ in self.own.named_parameters()}
        if prefix == "features" and not any(_within(name, prefix) for name in names):
            head = self.head
            return {name for name in names if not _within(name, head)}
        return {name for name in names if _within(name, prefix)}

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation; layers that are frozen as a whole stay in evaluation."""
        super().train(mode)
        if mode and self._frozen:
            frozen = set(self._frozen)
            for place, module in self.own.named_modules():
                own = {f"{place}.{name}" if place else name for name, _ in module.named_parameters()}
                if own and own <= frozen:
                    module.eval()
        return self

    def set_normalisation(self, mean: Any, std: Any) -> Self:
        """Set the mean and standard deviation that inputs are normalised by.

        Statistics belong to the training rows; they are saved with the weights and so reach scoring.
        """
        mean = torch.as_tensor(mean, dtype=torch.float32).reshape(self.mean.shape)
        std = torch.as_tensor(std, dtype=torch.float32).reshape(self.std.shape)
        if not bool(torch.isfinite(mean).all()) or not bool((torch.isfinite(std) & (std > 0)).all()):
            raise ValueError(
                f"mean is {mean.tolist()} and standard deviation {std.tolist()}; "
                "they must be finite, the latter positive"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Score inputs, as float32 (n,), in evaluation mode and on the network's own device.

        Two classes: the probability of the upper one. More classes: the expected class divided by the
        highest, which is 0 if the lowest is certain and 1 if the highest is. One output: its value,
        in the target's units. Of a network with several heads, float32 (n, heads).
        """
        return self._in_batches(inputs, batch_size, self.scores)

    @torch.inference_mode()
    def probabilities(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Class probabilities, float32 (n, classes), or (n, heads, classes) where there are several heads."""
        if self.spec.outputs == 1:
            raise ValueError(f"{self.spec.name} is a regression: it has no class probabilities; use predict")
        return self._in_batches(inputs, batch_size, lambda outputs: self.by_head(outputs.float()).softmax(-1))

    @torch.inference_mode()
    def embed(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Return what reaches the last layer, `head`, float32 (n, features): what was found, before it decides."""
        layer, seen = self.own.get_submodule(self.head), []
        if not self.head:
            raise ValueError(
                f"{self.spec.name} has no layer with parameters: there is nothing before the last one"
            )
        hook = layer.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].float().flatten(1).cpu())
        )
        try:
            self._in_batches(inputs, batch_size, lambda outputs: outputs)
        finally:
            hook.remove()
        found = torch.cat(seen).numpy() if seen else np.empty((0, 0), np.float32)
        if len(found) != len(inputs):
            raise ValueError(
                f"{self.spec.name}: its last layer, {self.head}, sees {len(found)} rows for {len(inputs)} inputs: "
                "there is no activation an input"
            )
        return found

    def by_head(self, outputs: Tensor) -> Tensor:
        """Return outputs (n, heads * outputs) as (n, heads, outputs), as they are where there is one head."""
        spec = self.spec
        return outputs if spec.heads == 1 else outputs.unflatten(1, (spec.heads, spec.outputs))

    def scores(self, outputs: Tensor) -> Tensor:
        """Scores, as `predict` gives them, of the network's own outputs (n, heads * outputs)."""
        outputs = self.by_head(outputs.float())
        if self.spec.outputs == 1:
            return outputs[..., 0] * self.scale
        classes = torch.linspace(0, 1, self.spec.outputs, device=outputs.device)
        # Not a matrix product: under autocast that would be rounded.
        return (outputs.softmax(-1) * classes).sum(-1)

    def _in_batches(self, inputs: np.ndarray | Tensor, batch_size: int, final: Any) -> np.ndarray:
        was_training = self.training
        device = self.mean.device
        self.eval()
        try:
            tensor = torch.from_numpy(inputs) if isinstance(inputs, np.ndarray) else inputs
            parts = [
                final(self(tensor[i : i + batch_size].to(device))).cpu()
                for i in range(0, len(tensor), batch_size)
            ]
        finally:
            self.train(was_training)
        if not parts:
            self._check_input(tensor)
            return final(torch.empty((0, self.spec.outputs * self.spec.heads))).numpy()
        return torch.cat(parts).numpy()

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


class PriceCNN(Network):
    """Convolutional network over chart images.

    Parameters
    ----------
    spec : CNNSpec or str
        Every parameter, or the name of a preset: ``jkx5``, ``jkx20``, ``jkx60``, ``cnn49u``, ``cnn9u``,
        ``cnnft5``, ``cnnft20``, ``lich20``.

    Attributes
    ----------
    mean, std : Tensor
        Normalising statistics in units of 0 to 1 (buffers, saved with the weights): the network sees
        ``(pixel / 255 - mean) / std``. A network that takes raw pixels has mean 0 and std 1/255.
    family : str
        Where the weights come from: ``"new"``, ``"pricepix"``, or the foreign family recognised.
    metadata : dict
        What the checkpoint says of its training: image spec, horizon, target, split.
    """

    kind = "PriceCNN"

    def __init__(self, spec: CNNSpec | str) -> None:
        super().__init__()
        spec = _preset(spec, PRESETS) if isinstance(spec, str) else spec
        self.spec: CNNSpec = spec
        self._start_values()
        layers: list[nn.Module] = []
        channels = 1
        for block in spec.blocks:
            layer: list[nn.Module] = [
                nn.Conv2d(
                    channels, block.channels, block.kernel, block.stride, block.padding, block.dilation
                ),
                nn.BatchNorm2d(block.channels),
                nn.LeakyReLU(spec.negative_slope) if spec.activation == "leaky_relu" else nn.ReLU(),
            ]
            if block.pool != (1, 1):
                layer.append(nn.MaxPool2d(block.pool, ceil_mode=block.pool_ceil))
            layers.append(nn.Sequential(*layer))
            channels = block.channels
        self.blocks = nn.Sequential(*layers)
        self.dropout = nn.Dropout(spec.dropout)
        self.linear = nn.Linear(math.prod(spec.features()), spec.outputs * spec.heads)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1 / 255 if spec.raw_pixels else 1.0))
        self._start(spec)

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.spec.height, self.spec.width

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, outputs) of images (n, height, width) uint8, row 0 at the top, on any device."""
        return self.from_normalised(self._normalised(images))

    def from_normalised(self, x: Tensor) -> Tensor:
        """Outputs of normalised images (n, 1, height, width)."""
        if self.spec.first_row == "bottom":
            x = x.flip(2)
        x = self.blocks(x)
        return self.linear(self.dropout(x.flatten(1)))


class SeriesCNN(Network):
    """The authors' 1-D network over the numbers behind a chart, or a logistic regression on them.

    Parameters
    ----------
    spec : SeriesSpec or str
        Every parameter, or a preset: ``cnn1d5``, ``cnn1d20``, ``cnn1d60``, ``logistic5``, ``logistic20``,
        ``logistic60``.

    Notes
    -----
    Inputs are float32 (n, 6, lookback): open, high, low, close, moving average and volume, scaled
    by `pricepix.train.series.window_series`. They are normalised by a mean and standard deviation a
    channel; what is missing then becomes 0, as in the authors' code.
    """

    kind = "SeriesCNN"

    def __init__(self, spec: SeriesSpec | str) -> None:
        super().__init__()
        spec = _preset(spec, SERIES_PRESETS) if isinstance(spec, str) else spec
        self.spec: SeriesSpec = spec
        self._start_values()
        layers: list[nn.Module] = []
        channels = spec.channels
        for block in spec.blocks:
            layers.append(
                nn.Sequential(
                    nn.Conv1d(
                        channels, block.channels, block.kernel, block.stride, block.padding, block.dilation
                    ),
                    nn.BatchNorm1d(block.channels),
                    nn.LeakyReLU(spec.negative_slope),
                    nn.MaxPool1d(block.pool, ceil_mode=block.pool_ceil),
                )
            )
            channels = block.channels
        self.blocks = nn.Sequential(*layers)
        self.dropout = nn.Dropout(spec.dropout)
        self.linear = nn.Linear(math.prod(spec.features()), spec.outputs * spec.heads)
        self.register_buffer("mean", torch.zeros(spec.channels, 1))
        self.register_buffer("std", torch.ones(spec.channels, 1))
        self._start(spec)

    @property
    def input_shape(self) -> tuple[int, int]:
        """Channels and bars of a window."""
        return self.spec.channels, self.spec.lookback

    def forward(self, series: Tensor) -> Tensor:
        """Logits (n, outputs) of series (n, channels, lookback) float32."""
        return self.from_normalised(self._normalised(series))

    def from_normalised(self, x: Tensor) -> Tensor:
        """Outputs of normalised series (n, channels, lookback)."""
        return self.linear(self.dropout(self.blocks(x).flatten(1)))


class Ensemble(nn.Module):
    """Networks of one architecture and training, differing in seed; averaged by the mean of their softmax.

    Parameters
    ----------
    members : sequence of PriceCNN or SeriesCNN
        At least one, all of one input shape and number of outputs.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        shapes = {(m.kind, m.input_shape, m.spec.outputs, m.spec.heads) for m in members}
        if len(shapes) > 1:
            raise ValueError(
                f"members differ in kind, input or outputs: {sorted(shapes)}; "
                "an ensemble needs one architecture"
            )
        self.members = nn.ModuleList(members)
        self.spec = members[0].spec
        self.metadata = dict(members[0].metadata)
        self.family = members[0].family

    @property
    def input_shape(self) -> tuple[int, int]:
        """Shape of one input."""
        first = self.members[0]
        assert isinstance(first, Network)
        return first.input_shape

    def _each(self, method: str, inputs: np.ndarray | Tensor, batch_size: int) -> np.ndarray:
        parts = [getattr(member, method)(inputs, batch_size) for member in self.members]
        return np.asarray(np.mean(np.stack(parts), axis=0, dtype=np.float64), dtype=np.float32)

    def predict(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Mean over the members of their `predict`, float32 (n,)."""
        return self._each("predict", inputs, batch_size)

    def probabilities(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Mean over the members of their class probabilities, float32 (n, classes)."""
        return self._each("probabilities", inputs, batch_size)


def check_images(inputs: Tensor, name: str, shape: tuple[int, int]) -> None:
    """Refuse what is no batch of images of a shape, for the network of a name."""
    if inputs.dtype != torch.uint8:
        raise TypeError(f"images are {inputs.dtype}; give uint8 pixels of 0 and 255, the network scales them")
    if inputs.ndim != 3 or tuple(inputs.shape[1:]) != shape:
        raise ValueError(f"images are {tuple(inputs.shape)}; {name} takes (n, {shape[0]}, {shape[1]})")


def check_series(inputs: Tensor, name: str, shape: tuple[int, int]) -> None:
    """Refuse what is no batch of series of a shape, for the network of a name."""
    if not inputs.is_floating_point():
        raise TypeError(f"series are {inputs.dtype}; give float32, as window_series makes them")
    if inputs.ndim != 3 or tuple(inputs.shape[1:]) != shape:
        raise ValueError(f"series are {tuple(inputs.shape)}; {name} takes (n, {shape[0]}, {shape[1]})")


def _within(name: str, layer: str) -> bool:
    """Whether a parameter of some name lies within a layer, or is that parameter."""
    return name == layer or name.startswith(f"{layer}.")


def _layers(names: Sequence[str], most: int = 12) -> list[str]:
    """Return the first layers that hold parameters of some names."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return layers[:most] + (["..."] if len(layers) > most else [])


def _preset(name: str, presets: Mapping[str, T]) -> T:
    if name not in presets:
        raise ValueError(f"there is no model {name!r}{nearest_or_all(name, list(presets))}")
    return presets[name]
