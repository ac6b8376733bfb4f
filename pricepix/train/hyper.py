"""Hyper-parameters of training, their published presets, and the learning-rate schedules."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pricepix._checks import choice, nearest_or_all, number, whole_number

__all__ = ["HYPER", "Hyper", "is_first_rank"]


def is_first_rank() -> bool:
    """Whether this process is the first of those that train together, or the only one.

    Lightning starts the script again for each further device, with its number in the environment.
    """
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK"))


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of the loop.

    Attributes
    ----------
    optimizer : {"adam", "adamw"}
        Adam adds `weight_decay` to the gradient, AdamW shrinks the weights.
    lr, weight_decay : float
    batch_size : int
        Over all ranks together.
    epochs : int
        The most; early stopping may end training before.
    schedule : {"constant", "cosine", "step", "exponential"}
        Cosine falls from `lr` to `min_lr` over the epochs after the warm-up, a step at a time. Step
        multiplies by `gamma` every `step_epochs` epochs, exponential every epoch.
    min_lr, gamma : float
    step_epochs : int
    warmup_epochs : float
        Epochs over which the rate first rises, a step at a time, on a line from `warmup_from` to `lr`.
    warmup_from : float
    validations : int
        Validations an epoch, evenly spaced; the last at its end.
    patience : int or None
        Validations without gain of more than `min_delta` after which training stops; None never stops.
    min_delta : float
    monitor : {"loss", "accuracy"}
        What decides on early stopping and the best checkpoint, measured on the validation part.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-5
    weight_decay: float = 0.0
    batch_size: int = 128
    epochs: int = 50
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    min_lr: float = 0.0
    gamma: float = 0.1
    step_epochs: int = 5
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    validations: int = 1
    patience: int | None = 2
    min_delta: float = 0.0
    monitor: Literal["loss", "accuracy"] = "loss"

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", ("adam", "adamw")),
            ("schedule", ("constant", "cosine", "step", "exponential")),
            ("monitor", ("loss", "accuracy")),
        ):
            choice(getattr(self, name), name, choices)
        for name in ("batch_size", "epochs", "step_epochs", "validations"):
            whole_number(getattr(self, name), name, 1)
        if self.patience is not None:
            whole_number(self.patience, "patience", 1, otherwise="None never to stop early")
        for name in ("lr", "gamma"):
            number(getattr(self, name), name, above=True)
        for name in ("weight_decay", "min_lr", "warmup_epochs", "warmup_from", "min_delta"):
            number(getattr(self, name), name)

    @classmethod
    def of(cls, hyper: Hyper | str, **changes: Any) -> Hyper:
        """Return a preset by name, or `hyper` itself, with some fields changed."""
        if isinstance(hyper, str):
            hyper = HYPER[choice(hyper, "hyper", HYPER)]
        if not isinstance(hyper, cls):
            raise TypeError(f"hyper is a {type(hyper).__name__}; give a Hyper, or one of {', '.join(HYPER)}")
        names = [f.name for f in fields(cls)]
        for name in changes:
            if name not in names:
                raise TypeError(
                    f"fit has no argument or hyper-parameter {name!r}{nearest_or_all(name, names)}"
                )
        return replace(hyper, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the optimiser's step number `step`, counted from 0.

        A function of the step, so that a resumed run needs no state for it. torch's schedulers give the same rates to
        a relative 1e-12, by multiplying the rate before; their ``LinearLR`` cannot rise from a rate of 0.
        """
        warm = round(self.warmup_epochs * steps_per_epoch)
        if step < warm:
            return self.warmup_from + (self.lr - self.warmup_from) * step / warm
        after, total = step - warm, self.epochs * steps_per_epoch - warm
        epochs = after // steps_per_epoch
        if self.schedule == "cosine":
            share = min(after / total, 1.0) if total > 0 else 1.0
            return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * share)) / 2
        if self.schedule == "step":
            return self.lr * self.gamma ** (epochs // self.step_epochs)
        if self.schedule == "exponential":
            return self.lr * self.gamma**epochs
        return self.lr


HYPER: dict[str, Hyper] = {
    # Jiang, Kelly, Xiu, section II.C, with a random 70/30 split of the training years.
    "paper": Hyper(),
    # The configuration files of CNN-for-Trading.
    "cnn_for_trading": Hyper(weight_decay=0.01, epochs=100, patience=4),
    # ImageTrading: cosine; replace schedule by "step" (a quarter of the epochs) or "exponential" (gamma .95).
    "image_trading": Hyper(
        lr=0.05,
        weight_decay=0.01,
        batch_size=256,
        epochs=20,
        schedule="cosine",
        min_lr=1e-5,
        warmup_epochs=1,
        warmup_from=0.001,
        validations=4,
        patience=5,
        min_delta=0.001,
    ),
}
