"""What a run learns from what: images, network, targets and samples, resolved from the arguments of `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, nearest_or_all, whole_number_or_none
from pricepix.bars.panel import Panel
from pricepix.images.augment import Augment
from pricepix.images.image_set import select
from pricepix.images.rows import check_bars, store_rows
from pricepix.train.network_spec import PRESETS, SERIES_PRESETS, CNNSpec, SeriesSpec, cnn1d, logistic
from pricepix.train.series import window_series
from pricepix.train.splits import Fold, Samples
from pricepix.train.targets import Targets, make_targets

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Images, the network that learns from them, what it learns, and the samples to split.

    Attributes
    ----------
    images : ImageSet
    spec : CNNSpec or SeriesSpec
        With as many outputs as the target needs.
    horizon : int
    targets : Targets
    balance : {"none", "weights", "undersample"}
    samples : Samples
    augment : Augment or None
    mirrored : numpy.ndarray or None
        Targets of windows that the augmentation mirrors.
    series : numpy.ndarray or None
        What a network on series takes in place of images.
    """

    images: ImageSet
    spec: CNNSpec | SeriesSpec
    horizon: int
    targets: Targets
    balance: str
    samples: Samples
    augment: Augment | None = None
    mirrored: NDArray[Any] | None = None
    series: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        images: ImageSet,
        model: str | CNNSpec | SeriesSpec,
        horizon: int | None,
        target: str,
        balance: str,
        *,
        augment: Augment | Mapping[str, Any] | None = None,
        panel: Any = None,
        instruments: list[str] | None = None,
        mask: NDArray[Any] | None = None,
    ) -> Problem:
        """Resolve and check the arguments of `fit` of the same names."""
        horizon = _horizon(images, horizon)
        spec = _model(model, images)
        choice(balance, "balance", ("none", "weights", "undersample"))
        panel = _panel(panel, images, spec)
        if augment is not None:
            augment = _augment(augment, images, spec)
        returns = images.returns(horizon)
        targets = make_targets(target, returns, images.time)
        if targets.is_regression and balance != "none":
            raise ValueError(
                f"balance is {balance!r}, but target {target!r} has no classes; leave it at 'none'"
            )
        series = None
        if panel is not None:
            row = store_rows(images, panel)
            check_bars(images, panel, row)
            if isinstance(spec, SeriesSpec):
                series = window_series(panel, images.spec, row, spec.scaling)
        chosen = np.ones(len(images), bool)
        if instruments is not None or mask is not None:
            chosen[:] = False
            chosen[select(images, instruments=instruments, mask=mask)] = True
        known = panel if panel is not None else images.panel
        samples = Samples.from_store(images, horizon, targets.usable & chosen, known)
        samples = replace(samples, not_chosen=int(np.count_nonzero(targets.usable & ~chosen)))
        mirrored = None if augment is None else make_targets(target, -returns, images.time).values
        return cls(
            images, spec.replace(outputs=targets.classes), horizon, targets, balance, samples, augment,
            mirrored, series,
        )  # fmt: skip

    def check_fold(self, fold: Fold) -> None:
        """Refuse a fold in which there is nothing to tell apart, or whose windows cannot be augmented."""
        if not self.targets.is_regression:
            for part, index in (("training", fold.train), ("validation", fold.validation)):
                counts = np.bincount(self.targets.values[index], minlength=self.targets.classes)
                if np.count_nonzero(counts) < 2:
                    raise ValueError(
                        f"all {len(index)} {part} labels of split {fold.name!r} are of class "
                        f"{int(counts.argmax())}; there is nothing to tell apart. Check the returns, or choose "
                        "another target or period"
                    )
        if self.augment is not None:
            self.images.batches(mask=fold.train, augment=self.augment)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem, for a run's configuration."""
        kind = "PriceCNN" if isinstance(self.spec, CNNSpec) else "SeriesCNN"
        return {
            "store": {
                "digest": self.images.digest,
                "spec": self.images.spec.to_dict(),
                "windows": len(self.images),
                "delay": self.images.delay,
            },
            "horizon": self.horizon,
            "model": {"kind": kind} | self.spec.to_dict(),
            "target": {
                "kind": self.targets.kind,
                "classes": self.targets.classes,
                "excluded": self.targets.excluded,
            },
            "balance": self.balance,
            "augment": None if self.augment is None else self.augment.to_dict(),
        }


def _horizon(images: ImageSet, horizon: int | None) -> int:
    known, lookback = images.horizons, images.spec.lookback
    horizon = whole_number_or_none(horizon, "horizon", 1)
    if not known:
        wanted = lookback if horizon is None else horizon
        raise ValueError(
            f"{images.kind} {images.location} with no returns to learn from: make the images again, with "
            f"horizons=({wanted},)"
        )
    if horizon is None:
        if len(known) == 1 or lookback in known:
            return known[0] if len(known) == 1 else lookback
        raise ValueError(
            f"{images.kind} {images.location} with returns over {', '.join(map(str, known))} bars: choose one with "
            "horizon="
        )
    if horizon not in known:
        raise ValueError(
            f"{images.kind} {images.location} with no returns over {horizon} bars, only over "
            f"{', '.join(map(str, known))}: choose one of these, or make the images again, with "
            f"horizons=(..., {horizon})"
        )
    return horizon


def _model(model: str | CNNSpec | SeriesSpec, images: ImageSet) -> CNNSpec | SeriesSpec:
    bars, shape = images.spec.bars, images.spec.shape
    spec = _named(model, bars) if isinstance(model, str) else model
    if not isinstance(spec, CNNSpec | SeriesSpec):
        raise TypeError(
            f"model is a {type(model).__name__}; give the name of a preset, a CNNSpec or a SeriesSpec"
        )
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
    return spec


def _named(model: str, bars: int) -> CNNSpec | SeriesSpec:
    if model in ("cnn1d", "logistic"):
        return cnn1d(bars) if model == "cnn1d" else logistic(bars)
    if model in PRESETS:
        return PRESETS[model]
    if model in SERIES_PRESETS:
        return SERIES_PRESETS[model]
    raise ValueError(f"there is no model {model!r}{nearest_or_all(model, [*PRESETS, *SERIES_PRESETS])}")


def _panel(panel: Any, images: ImageSet, spec: CNNSpec | SeriesSpec) -> Panel | None:
    if panel is not None:
        return Panel.of(panel)
    if not isinstance(spec, SeriesSpec):
        return None
    if images.panel is None:
        raise ValueError(
            f"model {spec.name} learns from the numbers behind the images: give the store's panel"
        )
    return images.panel


def _augment(augment: Any, images: ImageSet, spec: CNNSpec | SeriesSpec) -> Augment:
    augment = Augment.of(augment)
    if not images.augments:
        raise ValueError(
            f"augment changes windows before they are drawn, but {images.kind} {images.location} has its images: "
            "give PanelImages, or leave augment out"
        )
    if isinstance(spec, SeriesSpec):
        raise ValueError(
            f"augment changes windows before they are drawn, but model {spec.name} takes no images: "
            "give a network on images, or leave augment out"
        )
    augment.check(images.spec)
    return augment
