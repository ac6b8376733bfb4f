"""What a network is: the specs of `PriceCNN` and `SeriesCNN`, checked, and every published architecture as one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np

from pricepix._checks import boolean, choice, printable, short, whole_number
from pricepix.images.series import SCALINGS, Scaling

__all__ = [
    "PRESETS",
    "SERIES_PRESETS",
    "AnySpec",
    "CNNSpec",
    "ConvBlock",
    "ModuleSpec",
    "SeriesBlock",
    "SeriesSpec",
    "cnn1d",
    "logistic",
    "plain_values",
    "scaling_of",
]

Pair = tuple[int, int]

# Bounds of what a checkpoint may ask for: beyond every image, and every network on one, by orders of magnitude.
_MAX_SIDE = 1 << 14
_MAX_BLOCKS = 256
_MAX_CHANNELS = 1 << 16
_MAX_FEATURES = 1 << 28


_BLOCK_SIDES = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1, "pool": 1}
"""The smallest value of each size of a block."""


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, batch norm, activation, max-pool. Pairs are (rows, columns).

    A `pool` of (1, 1) does not pool; its stride is its size. `pool_ceil` rounds the pooled size up.
    """

    channels: int
    kernel: Pair = (5, 3)
    stride: Pair = (1, 1)
    padding: Pair = (2, 1)
    dilation: Pair = (1, 1)
    pool: Pair = (2, 1)
    pool_ceil: bool = False

    def __post_init__(self) -> None:
        whole_number(self.channels, "channels", 1, _MAX_CHANNELS)
        for name, minimum in _BLOCK_SIDES.items():
            pair = getattr(self, name)
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"{name}={short(pair)}: give a pair of whole numbers, of rows and columns")
            for side in pair:
                whole_number(side, name, minimum, _MAX_SIDE)
        boolean(self.pool_ceil, "pool_ceil")


@dataclass(frozen=True)
class CNNSpec:
    """Every parameter of a `PriceCNN`.

    Attributes
    ----------
    name : str
        Name of the preset, or any name.
    height, width : int
        Size of the images in pixels.
    blocks : tuple of ConvBlock
        An empty tuple makes the network a logistic regression on pixels.
    activation : {"leaky_relu", "relu"}
    negative_slope : float
        Slope of the leaky activation below 0.
    dropout : float
        Chance that a feature is dropped before the linear layer.
    outputs : int
        2 or more classes, or 1 for regression.
    heads : int
        How many answers of so many outputs it gives: one a horizon.
    conv_bias, linear_bias : float or None
        Value the biases start with; None leaves torch's own start. Weights start Xavier uniform.
    raw_pixels : bool
        The network takes pixels as 0 and 255 where its source does, not scaled to mean 0.
    first_row : {"top", "bottom"}
        Row that comes first in the network's own input. Images always arrive with row 0 at the top, as
        pricepix makes them; a network from a source that has the lowest price first turns them over.
    """

    takes: ClassVar[str] = "images"

    name: str
    height: int
    width: int
    blocks: tuple[ConvBlock, ...]
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    negative_slope: float = 0.01
    dropout: float = 0.5
    outputs: int = 2
    conv_bias: float | None = None
    linear_bias: float | None = 0.01
    raw_pixels: bool = False
    first_row: Literal["top", "bottom"] = "top"
    heads: int = 1

    def __post_init__(self) -> None:
        _check_shared(self)
        for name in ("height", "width"):
            whole_number(getattr(self, name), f"{self.name}: {name}", 1, _MAX_SIDE, unit="pixels")
        boolean(self.raw_pixels, f"{self.name}: raw_pixels")
        choice(self.activation, f"{self.name}: activation", ("leaky_relu", "relu"))
        choice(self.first_row, f"{self.name}: first_row", ("top", "bottom"))
        self.features()

    def features(self) -> tuple[int, int, int]:
        """Channels, rows and columns that reach the linear layer."""
        size, channels = (self.height, self.width), 1
        for i, block in enumerate(self.blocks):
            size = tuple(  # type: ignore[assignment]
                _pooled(
                    (n + 2 * block.padding[k] - block.dilation[k] * (block.kernel[k] - 1) - 1)
                    // block.stride[k]
                    + 1,
                    block.pool[k],
                    block.pool_ceil,
                )
                for k, n in enumerate(size)
            )
            channels = block.channels
            if min(size) < 1:
                raise ValueError(
                    f"{self.name}: block {i} leaves {size[0]}x{size[1]} of an image of "
                    f"{self.height}x{self.width}; use fewer blocks, more padding or larger images"
                )
            _check_features(self.name, i, channels * size[0] * size[1])
        return channels, *size

    def replace(self, **changes: Any) -> CNNSpec:
        """Return the spec with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return _described(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CNNSpec:
        """Rebuild from `to_dict`."""
        _known(cls, values, ("name", "height", "width", "blocks"))
        blocks = []
        for block in values["blocks"]:
            _known(ConvBlock, block, ("channels",))
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}
            blocks.append(ConvBlock(**plain))
        return cls(**{**values, "blocks": tuple(blocks)})


@dataclass(frozen=True)
class SeriesBlock:
    """1-D convolution, batch norm, leaky ReLU, max-pool."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    pool: int = 2
    pool_ceil: bool = True

    def __post_init__(self) -> None:
        whole_number(self.channels, "channels", 1, _MAX_CHANNELS)
        for name, minimum in _BLOCK_SIDES.items():
            whole_number(getattr(self, name), name, minimum, _MAX_SIDE)
        boolean(self.pool_ceil, "pool_ceil")


@dataclass(frozen=True)
class SeriesSpec:
    """Every parameter of a `SeriesCNN`. Without blocks it is a logistic regression.

    Attributes
    ----------
    name : str
    lookback : int
        Bars of a window, merged ones counted once: ``ImageSpec.bars``.
    blocks : tuple of SeriesBlock
    channels : int
        Series of a window: open, high, low, close, moving average, volume.
    negative_slope, dropout, outputs, conv_bias, linear_bias, heads
        As in `CNNSpec`.
    scaling : {"image", "return", "volatility"}
        How series are scaled: see ``window_series``.
    """

    takes: ClassVar[str] = "series"

    name: str
    lookback: int
    blocks: tuple[SeriesBlock, ...]
    channels: int = 6
    negative_slope: float = 0.01
    dropout: float = 0.5
    outputs: int = 2
    conv_bias: float | None = None
    linear_bias: float | None = 0.01
    heads: int = 1
    scaling: Scaling = "image"

    def __post_init__(self) -> None:
        _check_shared(self)
        choice(self.scaling, f"{self.name}: scaling", SCALINGS)
        whole_number(self.lookback, f"{self.name}: lookback", 1, _MAX_SIDE, unit="bars")
        whole_number(self.channels, f"{self.name}: channels", 1, _MAX_CHANNELS)
        self.features()

    def features(self) -> tuple[int, int]:
        """Channels and length that reach the linear layer."""
        size, channels = self.lookback, self.channels
        for i, block in enumerate(self.blocks):
            size = (size + 2 * block.padding - block.dilation * (block.kernel - 1) - 1) // block.stride + 1
            size = _pooled(size, block.pool, block.pool_ceil)
            channels = block.channels
            if size < 1:
                raise ValueError(
                    f"{self.name}: block {i} leaves nothing of {self.lookback} bars; use fewer blocks"
                )
            _check_features(self.name, i, channels * size)
        return channels, size

    def replace(self, **changes: Any) -> SeriesSpec:
        """Return the spec with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return _described(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SeriesSpec:
        """Rebuild from `to_dict`."""
        _known(cls, values, ("name", "lookback", "blocks"))
        blocks = []
        for block in values["blocks"]:
            _known(SeriesBlock, block, ("channels",))
            blocks.append(SeriesBlock(**block))
        return cls(**{**values, "blocks": tuple(blocks)})


@dataclass(frozen=True)
class ModuleSpec:
    """What is known of a network that is not ours: what it takes and gives, and by what it is recognised.

    Attributes
    ----------
    name : str
        Name of its class, or of the timm model.
    takes : {"images", "series"}
    shape : (int, int)
        Height and width of an image, or channels and bars of a series.
    outputs : int
        2 or more classes, or 1 for a number.
    columns : int
        Columns that the module itself gives: `outputs` for each head, or one for two classes, the logit of the
        upper one.
    source : str
        ``timm:<name>`` for a model of timm, which is made again by its name; else the class, which is not.
    fingerprint : str
        32 hexadecimal digits of the class's name and of the names and shapes of its tensors.
    heads : int
        As in `CNNSpec`.
    parts : tuple of (top, left, height, width)
        Images that its forward takes one by one, in pixels of the canvas of a stack; empty for one image.
    fields : int
        Rows at the foot of the canvas, whose level it takes as a last argument, 0 to 1.
    """

    name: str
    takes: str
    shape: Pair
    outputs: int
    columns: int
    source: str
    fingerprint: str
    heads: int = 1
    parts: tuple[tuple[int, int, int, int], ...] = ()
    fields: int = 0

    def __post_init__(self) -> None:
        for field in ("name", "source", "fingerprint"):
            _check_text(getattr(self, field), field)
        choice(self.takes, f"{self.name}: takes", ("images", "series"))
        if not isinstance(self.shape, Sequence) or len(self.shape) != 2:
            raise ValueError(f"{self.name}: shape={short(self.shape)}: give two whole numbers")
        for side in self.shape:
            whole_number(side, f"{self.name}: shape", 1, _MAX_SIDE)
        for field in ("outputs", "columns", "heads"):
            whole_number(getattr(self, field), f"{self.name}: {field}", 1, _MAX_CHANNELS)
        whole_number(self.fields, f"{self.name}: fields", 0, _MAX_SIDE)
        if not isinstance(self.parts, tuple) or len(self.parts) > _MAX_BLOCKS:
            raise ValueError(f"{self.name}: parts={short(self.parts)}: give places of images")
        for part in self.parts:
            if not isinstance(part, tuple) or len(part) != 4:
                raise ValueError(f"{self.name}: part {short(part)}: give top, left, height and width")
            for side, least in zip(part, (0, 0, 1, 1), strict=True):
                whole_number(side, f"{self.name}: part", least, _MAX_SIDE)
        each = self.columns / self.heads
        if each != self.outputs and (each, self.outputs) != (1, 2):
            raise ValueError(
                f"{self.name}: {self.columns} columns do not give {self.outputs} outputs for {self.heads} heads"
            )

    def replace(self, **changes: Any) -> ModuleSpec:
        """Return the spec with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return plain_values(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModuleSpec:
        """Rebuild from `to_dict`."""
        _known(cls, values, ("name", "takes", "shape", "outputs", "columns", "source", "fingerprint"))
        shape, parts = values["shape"], values.get("parts", ())
        plain: dict[str, Any] = {**values, "shape": tuple(shape) if isinstance(shape, list) else shape}
        if isinstance(parts, list):
            plain["parts"] = tuple(tuple(part) if isinstance(part, list) else part for part in parts)
        return cls(**plain)


AnySpec = CNNSpec | SeriesSpec | ModuleSpec


def _pooled(size: int, pool: int, ceil: bool) -> int:
    # torch drops a last window that would start beyond the input; with stride = size none does.
    return -(-size // pool) if ceil else size // pool


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON keeps: lists for tuples, plain numbers for numpy's, and text for anything else."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    return json.loads(json.dumps(values, default=plain))


def _described(spec: CNNSpec | SeriesSpec) -> dict[str, Any]:
    """Return the fields of a spec as plain values, without `heads` where there is one."""
    values = plain_values(asdict(spec))
    if spec.heads == 1:
        del values["heads"]
    return values


def _known(cls: type, values: Mapping[str, Any], required: Sequence[str]) -> None:
    """Raise ValueError unless `values` are fields of a spec or block, with those that have no default."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is built from a dict of fields, not from {short(values)}")
    names = {f.name for f in fields(cls)}
    if unknown := sorted(printable(str(name)[:60], "") for name in set(values) - names):
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown[:5])}; it has {', '.join(sorted(names))}"
        )
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{cls.__name__} needs the fields {', '.join(missing)}")
    blocks = values.get("blocks", ())
    if not isinstance(blocks, Sequence) or isinstance(blocks, str) or len(blocks) > _MAX_BLOCKS:
        raise ValueError(f"blocks={short(blocks)} are not a list of at most {_MAX_BLOCKS} blocks")


def _check_shared(spec: CNNSpec | SeriesSpec) -> None:
    """Check the fields that both kinds of spec have."""
    _check_text(spec.name, "name")
    if not isinstance(spec.outputs, int) or not 1 <= spec.outputs <= _MAX_CHANNELS:
        raise ValueError(
            f"{spec.name}: outputs is {short(spec.outputs)}; give 1 for regression or 2 or more classes, at most "
            f"{_MAX_CHANNELS:,}"
        )
    whole_number(spec.heads, f"{spec.name}: heads", 1, _MAX_CHANNELS)
    if not _is_finite(spec.dropout) or not 0 <= spec.dropout < 1:
        raise ValueError(
            f"{spec.name}: dropout is {short(spec.dropout)}; give a chance of at least 0 and below 1"
        )
    for name, value in (
        ("negative_slope", spec.negative_slope),
        ("conv_bias", spec.conv_bias or 0.0),
        ("linear_bias", spec.linear_bias or 0.0),
    ):
        if not _is_finite(value):
            raise ValueError(f"{spec.name}: {name} is {short(value)}; give a finite number")
    if len(spec.blocks) > _MAX_BLOCKS:
        raise ValueError(f"{spec.name}: {len(spec.blocks):,} blocks; give at most {_MAX_BLOCKS}")


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str) or printable(value, "") != value or not value or len(value) > 200:
        raise ValueError(f"{name}={short(value)}: give a short text of printable characters")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _check_features(name: str, block: int, features: int) -> None:
    if features > _MAX_FEATURES:
        raise ValueError(
            f"{name}: block {block} makes {features:,} values of one input, more than {_MAX_FEATURES:,}; use smaller "
            "inputs, less padding or fewer channels"
        )


def _jkx(lookback: int, height: int, channels: Sequence[int], stride: Pair, dilation: Pair) -> CNNSpec:
    blocks = [ConvBlock(c, pool_ceil=True) for c in channels]
    blocks[0] = replace(blocks[0], stride=stride, dilation=dilation)
    return CNNSpec(f"jkx{lookback}", height, 3 * lookback, tuple(blocks))


def _image_trading(bars: int) -> CNNSpec:
    return CNNSpec(
        f"cnn{bars}u",
        3 * bars,
        3 * bars,
        (ConvBlock(64, pool=(2, 2), pool_ceil=True), ConvBlock(128, pool=(2, 2))),
        activation="relu",
        conv_bias=0.01,
        raw_pixels=True,
    )


_CNNFT: dict[str, Any] = {"activation": "relu", "conv_bias": 0.01, "raw_pixels": True, "first_row": "bottom"}

PRESETS: dict[str, CNNSpec] = {
    spec.name: spec
    for spec in (
        # Jiang, Kelly, Xiu, "(Re-)Imag(in)ing Price Trends", as the authors' code has it: linear bias .01.
        _jkx(5, 32, (64, 128), (1, 1), (1, 1)),
        _jkx(20, 64, (64, 128, 256), (3, 1), (2, 1)),
        _jkx(60, 96, (64, 128, 256, 512), (3, 1), (3, 1)),
        # ImageTrading and CNN-for-Trading: Xavier weights, every bias .01, pixels as they are.
        _image_trading(49),
        _image_trading(9),
        CNNSpec("cnnft5", 32, 15, (ConvBlock(64), ConvBlock(128)), **_CNNFT),
        CNNSpec(
            "cnnft20",
            64,
            60,
            (
                ConvBlock(64, stride=(3, 1), padding=(3, 1), dilation=(2, 1)),
                ConvBlock(128, padding=(3, 1)),
                ConvBlock(256),
            ),
            **_CNNFT,
        ),
        CNNSpec(
            "lich20",
            64,
            60,
            tuple(ConvBlock(c, stride=(3, 1), padding=(12, 1), dilation=(2, 1)) for c in (64, 128, 256)),
            conv_bias=0.01,
            raw_pixels=True,
        ),
    )
}


def cnn1d(bars: int, **changes: Any) -> SeriesSpec:
    """Return the 1-D network of windows of so many bars: the authors' of 5, 20 and 60, and others in their way.

    A block more for each time that bars outgrow 4, 16 and 48, with twice the channels of the one before.
    """
    depth = 1 + (bars >= 16) + (bars >= 48)
    blocks = tuple(SeriesBlock(64 << i) for i in range(depth))
    return SeriesSpec(f"cnn1d{bars}", bars, blocks, **changes)


def logistic(bars: int, **changes: Any) -> SeriesSpec:
    """Return the logistic regression on windows of so many bars."""
    return SeriesSpec(f"logistic{bars}", bars, (), dropout=0.0, linear_bias=0.0, **changes)


def scaling_of(spec: AnySpec) -> Scaling:
    """Return how the series that a network takes are scaled: as in the image, unless its spec says otherwise."""
    return spec.scaling if isinstance(spec, SeriesSpec) else "image"


SERIES_PRESETS: dict[str, SeriesSpec] = {
    spec.name: spec for bars in (5, 20, 60) for spec in (cnn1d(bars), logistic(bars))
}
