"""What a run learns from what: images, network, targets and samples, resolved from the arguments of `fit`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, is_whole, whole_number_or_none
from pricepix._checks import horizons as checked_horizons
from pricepix.bars.panel import Panel
from pricepix.images.augment import Augment
from pricepix.images.image_set import select
from pricepix.images.rows import check_bars, store_rows
from pricepix.images.series import window_series
from pricepix.train.learning_targets import sample_weights, targets_of
from pricepix.train.maker import NetworkMaker
from pricepix.train.models import AnySpec
from pricepix.train.objective import BY_DATE, check_loss
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
    maker : NetworkMaker
        Makes networks with as many outputs as the target needs.
    horizons : tuple of int
        One, or several that the network learns together.
    targets : Targets
    balance : {"none", "weights", "undersample"}
    samples : Samples
    augment : Augment or None
    mirrored : numpy.ndarray or None
        Targets of windows that the augmentation mirrors.
    series : numpy.ndarray or None
        What a network on series takes in place of images.
    loss : str
        As `pricepix.train.objective.Objective` takes it.
    weights : None, str or numpy.ndarray
        As `pricepix.train.learning_targets.sample_weights` takes them.
    """

    images: ImageSet
    maker: NetworkMaker
    horizons: tuple[int, ...]
    targets: Targets
    balance: str
    samples: Samples
    augment: Augment | None = None
    mirrored: NDArray[Any] | None = None
    series: NDArray[np.float32] | None = None
    loss: str = "auto"
    weights: Any = None

    @classmethod
    def of(
        cls,
        images: ImageSet,
        model: Any,
        horizon: int | Sequence[int] | None,
        target: Any,
        balance: str,
        *,
        loss: str = "auto",
        weights: Any = None,
        inputs: Literal["images", "series"] | None = None,
        augment: Augment | Mapping[str, Any] | None = None,
        panel: Any = None,
        instruments: list[str] | None = None,
        mask: NDArray[Any] | None = None,
    ) -> Problem:
        """Resolve and check the arguments of `fit` of the same names."""
        horizons = _horizons(images, horizon)
        maker = NetworkMaker.of(model, images, inputs)
        spec = maker.spec
        choice(balance, "balance", ("none", "weights", "undersample"))
        panel = _panel(panel, images, spec)
        if augment is not None:
            augment = _augment(augment, images, spec)
        targets = targets_of(images, target, horizons, panel if panel is not None else images.panel)
        check_loss(loss, targets.classes, len(horizons))
        if targets.is_regression and balance != "none":
            raise ValueError(
                f"balance is {balance!r}, but target {target!r} has no classes; leave it at 'none'"
            )
        if balance == "undersample" and len(horizons) > 1:
            raise ValueError("balance='undersample' needs one class a window: give one horizon, not several")
        if augment is not None and loss in BY_DATE:
            raise ValueError(
                f"loss={loss!r} needs batches of whole dates, which are not augmented: leave augment out"
            )
        series = None
        if panel is not None:
            row = store_rows(images, panel)
            check_bars(images, panel, row)
            if spec.takes == "series":
                # Of a stack those of its longest images.
                series = window_series(panel, getattr(images.spec, "main", images.spec), row)
        chosen = np.ones(len(images), bool)
        if instruments is not None or mask is not None:
            chosen[:] = False
            chosen[select(images, instruments=instruments, mask=mask)] = True
        known = panel if panel is not None else images.panel
        # Purged by the longest: the labels of the others are known before.
        samples = Samples.from_store(images, max(horizons), targets.usable & chosen, known)
        samples = replace(samples, not_chosen=int(np.count_nonzero(targets.usable & ~chosen)))
        mirrored = None if augment is None else _mirrored(images, target, horizons, targets, augment)
        few = np.flatnonzero(samples.usable)[:2]
        maker = maker.with_outputs(
            targets.classes, len(horizons), lambda: images.read(few) if series is None else series[few]
        )
        return cls(
            images, maker, horizons, targets, balance, samples, augment, mirrored, series, loss, weights
        )  # fmt: skip

    @property
    def horizon(self) -> int | list[int]:
        """The horizon, or all of them where the network learns several, as plain values."""
        return self.horizons[0] if len(self.horizons) == 1 else list(self.horizons)

    def read(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Read what the network takes of some windows."""
        return self.images.read(index) if self.series is None else self.series[index]

    def weights_of(self, *parts: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Weights of the windows of some parts of a split, each of mean 1; None where all weigh the same."""
        found = [sample_weights(self.weights, part, self.images, self.samples.exit_time) for part in parts]
        known = [part for part in found if part is not None]
        return np.sum(known, axis=0, dtype=np.float32) if known else None

    @property
    def spec(self) -> AnySpec:
        """What the networks are."""
        return self.maker.spec

    def check_fold(self, fold: Fold) -> None:
        """Refuse a fold in which there is nothing to tell apart, or whose windows cannot be weighed or augmented."""
        self.weights_of(fold.train, fold.validation)
        if not self.targets.is_regression:
            for part, index in (("training", fold.train), ("validation", fold.validation)):
                counts = np.bincount(self.targets.values[index].ravel(), minlength=self.targets.classes)
                if np.count_nonzero(counts) < 2:
                    raise ValueError(
                        f"all {len(index)} {part} labels of split {fold.name!r} are of class "
                        f"{int(counts.argmax())}; there is nothing to tell apart. Check the returns, or choose "
                        "another target or period"
                    )
        if self.augment is not None:
            self.images.batches(mask=fold.train, augment=self.augment)

    def describe_learning(self) -> dict[str, Any]:
        """Return the loss and the weights, where they are not the usual ones."""
        found: dict[str, Any] = {} if self.loss == "auto" else {"loss": self.loss}
        if isinstance(self.weights, str):
            found["weights"] = self.weights
        elif self.weights is not None:
            given = np.ascontiguousarray(self.weights)
            found["weights"] = f"own:{hashlib.blake2b(given.tobytes(), digest_size=8).hexdigest()}"
        return found

    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem, for a run's configuration."""
        return {
            "store": {
                "digest": self.images.digest,
                "spec": self.images.spec.to_dict(),
                **({"stack": self.images.attrs["stack"]} if "stack" in self.images.attrs else {}),
                "windows": len(self.images),
                "delay": self.images.delay,
            },
            "horizon": self.horizon,
            "model": self.maker.describe(),
            "target": {
                "kind": self.targets.kind,
                "classes": self.targets.classes,
                "excluded": self.targets.excluded,
            },
            "balance": self.balance,
            **self.describe_learning(),
            "augment": None if self.augment is None else self.augment.to_dict(),
        }


def _mirrored(
    images: ImageSet, target: Any, horizons: tuple[int, ...], targets: Targets, augment: Augment
) -> NDArray[Any]:
    """Targets of windows that an augmentation turns upside down: those of returns with the other sign."""
    if not isinstance(target, str):
        if augment.invert:
            raise ValueError(
                f"augment has invert={augment.invert}, but it is not known what a target of your own is of a mirrored "
                "window: give invert=0"
            )
        return targets.values
    if target == "scaled":
        return -targets.values
    if target.startswith("barrier"):
        return 2 - targets.values
    made = [make_targets(target, -images.returns(h), images.time).values for h in horizons]
    return made[0] if len(made) == 1 else np.stack(made, axis=1)


def _horizons(images: ImageSet, horizon: int | Sequence[int] | None) -> tuple[int, ...]:
    given: Any = horizon
    if given is None or is_whole(given) or isinstance(given, str) or not isinstance(given, Iterable):
        return (_horizon(images, given),)
    several = checked_horizons(horizon)
    if not several:
        raise ValueError("horizon is empty: give one horizon or several")
    return tuple(_horizon(images, h) for h in several)


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


def _panel(panel: Any, images: ImageSet, spec: AnySpec) -> Panel | None:
    if panel is not None:
        return Panel.of(panel)
    if spec.takes != "series":
        return None
    if images.panel is None:
        raise ValueError(
            f"model {spec.name} learns from the numbers behind the images: give the store's panel"
        )
    return images.panel


def _augment(augment: Any, images: ImageSet, spec: AnySpec) -> Augment:
    augment = Augment.of(augment)
    if not images.augments:
        raise ValueError(
            f"augment changes windows before they are drawn, but {images.kind} {images.location} has its images: "
            "give PanelImages, or leave augment out"
        )
    if spec.takes == "series":
        raise ValueError(
            f"augment changes windows before they are drawn, but model {spec.name} takes no images: "
            "give a network on images, or leave augment out"
        )
    augment.check(images.spec)
    return augment
