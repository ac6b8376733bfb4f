"""What an image is: lookback, size, style and everything else that decides a pixel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from pricepix._checks import boolean, choice, nearest_or_all, whole_number

STYLES: Final = ("jkx", "cnn_for_trading", "image_trading")
CHARTS: Final = ("bar", "pixel")
MA_WARMUPS: Final = ("drop", "omit")
SCALES: Final = ("joint", "per_field")
REBUILDS: Final = (None, "returns")

MAX_BARS: Final = 1024
# Panel bars that lookback or a moving average may reach back: over 4,000 years of days, 10 years of minutes.
MAX_REACH: Final = 1 << 20
MAX_HEIGHT: Final = 2048
JKX_HEIGHTS: Final[Mapping[int, int]] = MappingProxyType({5: 32, 20: 64, 60: 96})
_CNNFT_VOLUME_HEIGHTS: Final = (32, 64)


@dataclass(frozen=True)
class ImageSpec:
    """A frozen, hashable description of a chart image.

    Two specs that are equal draw the same pixels from the same bars; ``digest`` names the spec across
    processes and releases.

    Parameters
    ----------
    lookback : int
        Panel bars that an image shows.
    height : int, optional
        Rows of pixels. Defaults to the published size: 32, 64, 96 for 5, 20, 60 bars of the styles ``jkx``
        and ``cnn_for_trading``, and three rows a bar for ``image_trading``.
    style : {"jkx", "cnn_for_trading", "image_trading"}
        ``jkx`` follows the drawer of Jiang, Kelly and Xiu (2023); the other two reproduce earlier projects.
    chart : {"bar", "pixel"}
        ``bar`` draws stem and ticks; ``pixel`` draws the stem's two ends, single pixels for the moving
        averages and the top pixel of a volume bar. ``pixel`` belongs to style ``jkx``.
    ma : tuple of int
        Windows, in panel bars, of the moving averages of the close that are drawn; empty for none.
    ma_warmup : {"drop", "omit"}
        What happens to windows whose history is too short for every moving average: no image, or an image
        without the missing part of the line.
    volume : bool
        Draw a volume panel in the lowest fifth of the image.
    aggregate : int
        Panel bars merged into one drawn bar (open of the first, highest high, lowest low, close of the last,
        sum of the volumes). Divides ``lookback`` and every ``ma``.
    scale : {"joint", "per_field"}
        One price scale for the whole image, or one for each of open, high, low and close as ImageTrading
        did it (style ``image_trading`` only; it destroys the bars and exists to reproduce earlier work).
    rebuild : {None, "returns"}
        ``None`` draws the panel's prices as they are. ``"returns"`` rebuilds the prices of every window from
        the panel's total returns, as the authors of the paper do with CRSP data.
    max_missing : int or None
        Windows with more missing bars (no high or no low) than this have no image. ``None``: no limit.

    Raises
    ------
    ValueError
        If a field has a value that cannot be drawn; the message says which and what would be accepted.

    Examples
    --------
    >>> spec = ImageSpec.preset("jkx20")
    >>> spec.shape
    (64, 60)
    >>> spec.replace(volume=False) == spec
    False
    """

    lookback: int
    height: int = 0
    style: str = "jkx"
    chart: str = "bar"
    ma: tuple[int, ...] = ()
    ma_warmup: str = "drop"
    volume: bool = False
    aggregate: int = 1
    scale: str = "joint"
    rebuild: str | None = None
    max_missing: int | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "lookback", whole_number(self.lookback, "lookback", 1, MAX_REACH))
        put(self, "aggregate", whole_number(self.aggregate, "aggregate", 1, MAX_REACH))
        choice(self.style, "style", STYLES)
        choice(self.chart, "chart", CHARTS)
        choice(self.ma_warmup, "ma_warmup", MA_WARMUPS)
        choice(self.scale, "scale", SCALES)
        choice(self.rebuild, "rebuild", REBUILDS)
        put(self, "volume", boolean(self.volume, "volume"))
        put(self, "ma", self._checked_ma())
        if self.max_missing is not None:
            put(self, "max_missing", whole_number(self.max_missing, "max_missing", 0))
        if self.lookback % self.aggregate:
            raise ValueError(
                f"aggregate={self.aggregate} does not divide lookback={self.lookback}: "
                "choose a lookback that is a multiple of aggregate"
            )
        if self.bars > MAX_BARS:
            raise ValueError(
                f"lookback={self.lookback} with aggregate={self.aggregate} draws {self.bars} bars, more than "
                f"the {MAX_BARS} that an image can hold: shorten lookback or raise aggregate"
            )
        put(self, "height", self._checked_height())
        self._check_style()

    def _checked_ma(self) -> tuple[int, ...]:
        ma: Any = self.ma
        if isinstance(ma, (str, bytes)) or not isinstance(ma, Iterable):
            raise ValueError(f"ma={ma!r} is not a tuple of windows: give e.g. ma=(20,), or ma=() for none")
        windows = tuple(sorted(whole_number(n, "ma", 1, MAX_REACH) for n in ma))
        if len(set(windows)) != len(windows):
            raise ValueError(f"ma={windows!r} names a window twice: give each window once")
        for n in windows:
            if n % self.aggregate:
                raise ValueError(
                    f"ma window {n} is not a multiple of aggregate={self.aggregate}: averages are taken over "
                    "merged bars, so choose windows that aggregate divides"
                )
        return windows

    def _checked_height(self) -> int:
        height = whole_number(self.height, "height")
        if height == 0:
            if self.style == "image_trading":
                return 3 * self.bars
            if self.lookback not in JKX_HEIGHTS:
                known = ", ".join(f"{n} bars: {h}" for n, h in JKX_HEIGHTS.items())
                raise ValueError(
                    f"no standard height for lookback={self.lookback} (standard ones: {known}): give a height"
                )
            return JKX_HEIGHTS[self.lookback]
        lowest = 5 if self.volume else 2
        if not lowest <= height <= MAX_HEIGHT:
            with_volume = "with" if self.volume else "without"
            raise ValueError(
                f"height={height} cannot be drawn {with_volume} volume: choose {lowest} to {MAX_HEIGHT} rows"
            )
        return height

    def _check_style(self) -> None:
        if self.chart == "pixel" and self.style != "jkx":
            raise ValueError(f"chart='pixel' belongs to style 'jkx', not to {self.style!r}: use chart='bar'")
        if self.scale == "per_field":
            if self.style != "image_trading":
                raise ValueError(
                    "scale='per_field' belongs to style 'image_trading', not to "
                    f"{self.style!r}: use scale='joint'"
                )
            if self.ma or self.volume:
                raise ValueError(
                    "scale='per_field' draws neither moving averages nor volume, as its source did not: "
                    "use ma=() and volume=False, or scale='joint'"
                )
        if self.style == "cnn_for_trading" and self.volume and self.height not in _CNNFT_VOLUME_HEIGHTS:
            raise ValueError(
                "style 'cnn_for_trading' defines its volume panel only for heights 32 and 64, not for "
                f"height={self.height}: use one of them, or volume=False"
            )

    @property
    def bars(self) -> int:
        """Bars drawn in an image: ``lookback // aggregate``."""
        return self.lookback // self.aggregate

    @property
    def width(self) -> int:
        """Columns of pixels, three a drawn bar."""
        return 3 * self.bars

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return self.height, self.width

    @property
    def packed_bytes(self) -> int:
        """Bytes of an image in column bits: ``ceil(height * width / 8)``."""
        return (self.height * self.width + 7) // 8

    @property
    def history(self) -> int:
        """Panel bars needed before a window's first bar so that every moving average exists at each bar.

        With ``rebuild="returns"`` it is ``max(ma)``, the stretch from which the authors rebuild; otherwise
        ``max(ma) - aggregate``, since the average at the first drawn bar contains that bar.
        """
        if not self.ma:
            return 0
        return max(self.ma) if self.rebuild else max(self.ma) - self.aggregate

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name this spec in every process and release."""
        text = json.dumps({"pricepix.ImageSpec": 1, **self.to_dict()}, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def replace(self, **changes: Any) -> ImageSpec:
        """Return a copy with some fields changed; a field that does not exist raises ``TypeError``."""
        _known_fields(changes)
        return replace(self, **changes)

    def _repr_html_(self) -> str:
        from pricepix.bars import display

        named = [name for name, spec in self.presets().items() if spec == self]
        about = f"{self.height} rows x {self.width} columns, {self.bars} bars"
        values: dict[str, Any] = {"preset": ", ".join(named) or None, **self.to_dict()}
        values |= {"ma": ", ".join(map(str, self.ma)) or "none", "max_missing": "no limit"}
        if self.max_missing is not None:
            values["max_missing"] = self.max_missing
        values |= {"history": f"{self.history} bars before the first", "digest": display.code(self.digest)}
        parts = display.columns(display.sample_picture(self), display.facts(values), fit_first=True)
        return display.page("ImageSpec", about, parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON values; ``from_dict`` is its inverse."""
        return {**asdict(self), "ma": list(self.ma)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        """Build a spec from the dict of ``to_dict``; unknown keys raise ``TypeError`` with the nearest."""
        if not isinstance(values, Mapping):
            raise TypeError(f"an image spec is built from a dict of fields, not from {type(values).__name__}")
        _known_fields(values)
        if "lookback" not in values:
            raise ValueError(f"an image spec needs lookback; got only {sorted(values)}")
        return cls(**{**values, "ma": values.get("ma", ())})

    @classmethod
    def presets(cls) -> dict[str, ImageSpec]:
        """Return all presets by name."""
        return {name: cls(**values) for name, values in _PRESETS.items()}

    @classmethod
    def preset(cls, name: str) -> ImageSpec:
        """Return the preset called `name`.

        Raises
        ------
        ValueError
            If there is none; the message names the nearest one and lists all.
        """
        if name in _PRESETS:
            return cls(**_PRESETS[name])
        raise ValueError(f"no preset {name!r}{nearest_or_all(str(name), list(_PRESETS), cutoff=0.4)}")

    @classmethod
    def of(cls, spec: ImageSpec | str | Mapping[str, Any]) -> ImageSpec:
        """Return `spec` if it is an ImageSpec, else the preset or the dict that it names."""
        if isinstance(spec, ImageSpec):
            return spec
        if isinstance(spec, str):
            return cls.preset(spec)
        if isinstance(spec, Mapping):
            return cls.from_dict(spec)
        raise TypeError(f"spec must be an ImageSpec, a preset's name or a dict, not {type(spec).__name__}")


# cnn_for_trading averages over 20 rows whatever the lookback.
_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "jkx5": {"lookback": 5, "ma": (5,), "volume": True},
    "jkx20": {"lookback": 20, "ma": (20,), "volume": True},
    "jkx60": {"lookback": 60, "ma": (60,), "volume": True},
    "it9": {"lookback": 9, "style": "image_trading"},
    "it49": {"lookback": 49, "style": "image_trading"},
    "cnnft5": {"lookback": 5, "style": "cnn_for_trading", "ma": (20,), "volume": True},
    "cnnft20": {"lookback": 20, "style": "cnn_for_trading", "ma": (20,), "volume": True},
}


def _known_fields(values: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(ImageSpec)]
    for key in values:
        if key not in names:
            raise TypeError(f"an image spec has no field {key!r}{nearest_or_all(str(key), names)}")
