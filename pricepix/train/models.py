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
    CNNSpec,
    ConvBlock,
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
    "Network",
    "PriceCNN",
    "SeriesBlock",
    "SeriesCNN",
    "SeriesSpec",
    "plain_values",
]

T = TypeVar("T")


class Network(nn.Module):
    """Base of `PriceCNN` and `SeriesCNN`: start values, normalising statistics, prediction."""

    kind: ClassVar[str]
    spec: CNNSpec | SeriesSpec
    mean: Tensor
    std: Tensor
    scale: Tensor
    family: str
    metadata: dict[str, Any]

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                bias = self.spec.linear_bias if isinstance(module, nn.Linear) else self.spec.conv_bias
                if bias is not None and module.bias is not None:
                    nn.init.constant_(module.bias, bias)

    def _check_input(self, inputs: Tensor) -> None:
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, int]:
        """Shape of one input."""
        raise NotImplementedError

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
        in the target's units.
        """
        return self._in_batches(inputs, batch_size, self.scores)

    @torch.inference_mode()
    def probabilities(self, inputs: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Class probabilities, float32 (n, classes)."""
        if self.spec.outputs == 1:
            raise ValueError(f"{self.spec.name} is a regression: it has no class probabilities; use predict")
        return self._in_batches(inputs, batch_size, lambda outputs: outputs.float().softmax(1))

    def scores(self, outputs: Tensor) -> Tensor:
        """Scores, as `predict` gives them, of the network's own outputs (n, outputs)."""
        if self.spec.outputs == 1:
            return outputs.float()[:, 0] * self.scale
        classes = torch.linspace(0, 1, self.spec.outputs, device=outputs.device)
        # Not a matrix product: under autocast that would be rounded.
        return (outputs.float().softmax(1) * classes).sum(1)

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
            return final(torch.empty((0, self.spec.outputs))).numpy()
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
        self.family = "new"
        self.metadata = {}
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
        self.linear = nn.Linear(math.prod(spec.features()), spec.outputs)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1 / 255 if spec.raw_pixels else 1.0))
        # Standard deviation of a regression's training targets: the network works in units of it.
        self.register_buffer("scale", torch.tensor(1.0))
        self._start()

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.spec.height, self.spec.width

    def _check_input(self, inputs: Tensor) -> None:
        if inputs.dtype != torch.uint8:
            raise TypeError(
                f"images are {inputs.dtype}; give uint8 pixels of 0 and 255, the network scales them"
            )
        if inputs.ndim != 3 or tuple(inputs.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images are {tuple(inputs.shape)}; {self.spec.name} takes "
                f"(n, {self.spec.height}, {self.spec.width})"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, outputs) of images (n, height, width) uint8, row 0 at the top, on any device."""
        self._check_input(images)
        scale = 1.0 / (255.0 * self.std)
        x = images.to(scale.dtype) * scale - self.mean / self.std
        if self.spec.first_row == "bottom":
            x = x.flip(1)
        x = self.blocks(x.unsqueeze(1))
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
        self.family = "new"
        self.metadata = {}
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
        self.linear = nn.Linear(math.prod(spec.features()), spec.outputs)
        self.register_buffer("mean", torch.zeros(spec.channels, 1))
        self.register_buffer("std", torch.ones(spec.channels, 1))
        # Standard deviation of a regression's training targets: the network works in units of it.
        self.register_buffer("scale", torch.tensor(1.0))
        self._start()

    @property
    def input_shape(self) -> tuple[int, int]:
        """Channels and bars of a window."""
        return self.spec.channels, self.spec.lookback

    def _check_input(self, inputs: Tensor) -> None:
        if not inputs.is_floating_point():
            raise TypeError(f"series are {inputs.dtype}; give float32, as window_series makes them")
        if inputs.ndim != 3 or tuple(inputs.shape[1:]) != self.input_shape:
            raise ValueError(
                f"series are {tuple(inputs.shape)}; {self.spec.name} takes "
                f"(n, {self.spec.channels}, {self.spec.lookback})"
            )

    def forward(self, series: Tensor) -> Tensor:
        """Logits (n, outputs) of series (n, channels, lookback) float32."""
        self._check_input(series)
        x = torch.nan_to_num((series - self.mean) / self.std, nan=0.0, posinf=0.0, neginf=0.0)
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
        shapes = {(m.kind, m.input_shape, m.spec.outputs) for m in members}
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


def _preset(name: str, presets: Mapping[str, T]) -> T:
    if name not in presets:
        raise ValueError(f"there is no model {name!r}{nearest_or_all(name, list(presets))}")
    return presets[name]
