"""Augmentations that make sense on charts: windows are changed and drawn again, images are never warped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import bars, nearest_or_all
from pricepix.render.draw import panel_arrays, run
from pricepix.render.rules import PIXELS, WindowRows
from pricepix.spec import ImageSpec
from pricepix.windows import kernels as window_kernels

if TYPE_CHECKING:
    from pricepix.windows.index import WindowIndex

__all__ = ["Augment", "Augmenter"]

_JITTER, _INVERT, _MA, _DROP, _VOLUME = 1, 2, 3, 1 << 32, 2 << 32


@dataclass(frozen=True)
class Augment:
    """What may happen to a training window before it is drawn. Nothing does by default.

    Every choice depends only on (seed, epoch, window): not on batches, threads or workers. A window that cannot be
    drawn once it is changed (the bars left are flat, say) is drawn unchanged.

    Parameters
    ----------
    jitter_end : int
        Draw in place of a window the one that ends 0 to so many bars earlier, each as likely, with its own
        label. Only windows of the same selection are taken: none of another part of a split, none without a
        label; where there is no such window, the window itself. An epoch then gives some windows twice and
        others not at all.
    rescale_volume : (float, float), optional
        Multiply the volume of every bar by a factor of its own from this range, uniform in its logarithm. (One
        factor for a whole window would change nothing: the largest volume is as high as its panel.)
    invert : float
        Chance that prices are mirrored: ``p`` becomes ``c - p``, with `c` the highest price plus the lowest of the
        window and the history of its averages, and highs and lows change places. Averages are mirrored with the
        closes. The image is drawn upside down, its volume panel not; where levels are truncated and not rounded
        (style ``cnn_for_trading``, scale ``per_field``), mirrored prices lie a row beside that. The return changes
        its sign, and the target becomes what it is of that.
    drop_bars : float
        Chance of each bar to lose its open, high, low and volume, so that nothing of it is drawn. Its close still
        counts in averages and in the price scale. A window that would be left without any bar keeps all. Not for
        style ``cnn_for_trading`` and scale ``per_field``, which draw no window with a missing price.
    ma : float
        Chance that moving averages are drawn. An image without them is that of the spec with ``ma=()``, whose
        price scale may be another.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    jitter_end: int = 0
    rescale_volume: tuple[float, float] | None = None
    invert: float = 0.0
    drop_bars: float = 0.0
    ma: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "jitter_end", bars(self.jitter_end, "jitter_end", 0))
        for name in ("invert", "drop_bars", "ma"):
            value = getattr(self, name)
            if isinstance(value, (bool, str)) or not _is_probability(value):
                raise ValueError(f"{name}={value!r} is not a probability: give a number from 0 to 1")
            object.__setattr__(self, name, float(value))
        if self.drop_bars == 1.0:
            raise ValueError("drop_bars=1.0 would leave no bar of any window: give less")
        if self.rescale_volume is not None:
            try:
                low, high = (float(x) for x in self.rescale_volume)
            except (TypeError, ValueError):
                low = high = math.nan
            if not 0 < low <= high < math.inf:
                raise ValueError(
                    f"rescale_volume={self.rescale_volume!r} is not a range of factors: give (low, high), "
                    "0 < low <= high, such as (0.8, 1.25)"
                )
            object.__setattr__(self, "rescale_volume", (low, high))

    @classmethod
    def of(cls, augment: Augment | Mapping[str, Any]) -> Augment:
        """Return `augment`, or that of a dict such as ``to_dict`` gives; unknown keys raise ``TypeError``."""
        if isinstance(augment, Augment):
            return augment
        if not isinstance(augment, Mapping):
            raise TypeError(f"augment is a {type(augment).__name__}; give an Augment or a dict of its fields")
        names = [f.name for f in fields(cls)]
        for key in augment:
            if key not in names:
                raise TypeError(f"there is no augmentation {key!r}{nearest_or_all(str(key), names)}")
        return cls(**augment)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON values; ``of`` is its inverse."""
        found = asdict(self)
        return found | {"rescale_volume": list(self.rescale_volume) if self.rescale_volume else None}

    def check(self, spec: ImageSpec) -> None:
        """Refuse what a spec cannot show."""
        if self.rescale_volume is not None and not spec.volume:
            raise ValueError(
                "rescale_volume changes volumes, but the spec draws none: leave it out, or volume=True"
            )
        if self.ma < 1 and not spec.ma:
            raise ValueError(f"ma={self.ma} leaves averages out, but the spec draws none: leave it out")
        if self.drop_bars and (spec.style == "cnn_for_trading" or spec.scale == "per_field"):
            kind = f"style={spec.style!r}" if spec.style == "cnn_for_trading" else f"scale={spec.scale!r}"
            raise ValueError(
                f"drop_bars={self.drop_bars} leaves bars without prices, but {kind} draws no window with a missing "
                "price: leave it out"
            )
        if self.invert and spec.rebuild is not None:
            raise ValueError(
                f"invert={self.invert} mirrors prices, but rebuild={spec.rebuild!r} makes them from returns: leave "
                "one of the two out"
            )


def _is_probability(value: Any) -> bool:
    try:
        return bool(0 <= float(value) <= 1)
    except TypeError:
        return False


class Augmenter:
    """Draws windows of a panel changed by an `Augment`.

    Parameters
    ----------
    augment : Augment
    windows : WindowIndex
    seed : int
    plain : callable
        Draws the windows at given positions, as they are, into an array; and raises if it cannot.
    """

    def __init__(
        self,
        augment: Augment,
        windows: WindowIndex,
        seed: int,
        plain: Callable[[NDArray[np.int64], NDArray[np.uint8]], None],
    ) -> None:
        augment.check(windows.spec)
        self.augment, self._windows, self._seed = augment, windows, seed
        self._panel, self._spec = windows.panel, windows.spec
        self._bare = self._spec.replace(ma=()) if self._spec.ma else self._spec
        self._plain = plain

    def jitter(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return by how many bars each window would end earlier, int64 (n,)."""
        steps = self.augment.jitter_end + 1
        return (self._chance(epoch, position, _JITTER) * steps).astype(np.int64)

    def draw(
        self,
        epoch: int,
        position: NDArray[np.int64],
        which: NDArray[np.int64],
        out: NDArray[np.uint8],
    ) -> NDArray[np.bool_]:
        """Draw windows into `out`; return which are mirrored, bool (n,).

        Parameters
        ----------
        epoch : int
        position : numpy.ndarray, int64 (n,)
            Names the windows' chances.
        which : numpy.ndarray, int64 (n,)
            Positions of the windows to draw.
        out : numpy.ndarray, uint8 (n, height, width)
        """
        n, spec = len(which), self._spec
        row = self._windows.row[which]
        first = self._panel.offsets[self._windows.instrument[which]]
        reach = spec.lookback + spec.history
        rows = row[:, None] + np.arange(1 - reach, 1)
        known = rows >= first[:, None]
        # What stands in place of rows before the instrument's first is never looked at.
        rows = np.where(known, rows, row[:, None])
        bars = self._panel.bars[rows]
        mirrored = self._chance(epoch, position, _INVERT) < self.augment.invert
        bars[mirrored] = mirror(bars[mirrored])
        self._change(epoch, position, bars[:, reach - spec.lookback :])
        arrays = panel_arrays(self._panel, spec)
        total_return, up, down = arrays.total_return, arrays.up, arrays.down
        if len(total_return):
            total_return = total_return[rows].reshape(-1)
        if len(up) or len(down):
            # At its upper limit upside down is at its lower one.
            none = np.zeros(rows.size, np.bool_)
            up, down = (flags[rows].reshape(-1) if len(flags) else none for flags in (up, down))
            flip = np.repeat(mirrored, reach)
            up, down = np.where(flip, down, up), np.where(flip, up, down)
        arrays = arrays._replace(bars=bars.reshape(-1, 5), total_return=total_return, up=up, down=down)
        last = np.arange(1, n + 1) * reach - 1
        begin = last - known.sum(axis=1) + 1
        reason = np.empty(n, np.uint8)
        bare = self._chance(epoch, position, _MA) >= self.augment.ma
        for drawn, mask in ((spec, ~bare), (self._bare, bare)):
            chosen = np.flatnonzero(mask)
            run(arrays, drawn, WindowRows(begin[chosen], last[chosen], chosen), out, PIXELS, reason, 1)
        failed = np.flatnonzero(reason)
        if len(failed):
            plain = np.empty((len(failed), *spec.shape), np.uint8)
            self._plain(which[failed], plain)
            out[failed] = plain
            mirrored[failed] = False
        return mirrored

    def _change(self, epoch: int, position: NDArray[np.int64], bars: NDArray[np.float64]) -> None:
        """Drop bars and rescale volumes of windows (n, lookback, 5)."""
        bar = np.arange(bars.shape[1])
        if self.augment.rescale_volume is not None:
            low, high = self.augment.rescale_volume
            share = self._chance(epoch, position, _VOLUME + bar)
            bars[..., 4] *= low * (high / low) ** share
        if self.augment.drop_bars:
            dropped = self._chance(epoch, position, _DROP + bar) < self.augment.drop_bars
            dropped &= ~(dropped | np.isnan(bars[..., 1:3]).any(axis=2)).all(axis=1, keepdims=True)
            for field in (0, 1, 2, 4):
                bars[..., field][dropped] = np.nan

    def _chance(self, epoch: int, position: NDArray[np.int64], purpose: Any) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), a function only of seed, epoch, window and purpose.

        float64 (n,), or (n, k) for an array of k purposes.
        """
        seed = np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)
        purposes = np.atleast_1d(np.asarray(purpose, np.uint64))
        out = np.empty((len(position), len(purposes)))
        window_kernels.uniform_numbers(seed, position.astype(np.uint64), purposes, out)
        return out if np.ndim(purpose) else out[:, 0]


def mirror(bars: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mirror the prices of windows (n, rows, 5) between their highest and lowest; volumes stay, NaN stays NaN."""
    prices = np.abs(bars[..., :4])
    # fmax and fmin pass over NaN.
    both = np.fmax.reduce(prices, axis=(1, 2)) + np.fmin.reduce(prices, axis=(1, 2))
    out = bars.copy()
    out[..., :4] = both[:, None, None] - prices[..., [0, 2, 1, 3]]
    return out
