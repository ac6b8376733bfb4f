"""What the validations of a training have shown: the best one, and whether patience has run out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pricepix.train.hyper import Hyper

__all__ = ["Validations"]


@dataclass
class Validations:
    """The best validation so far, and how many have come since the last gain.

    The best checkpoint follows any improvement, patience counts from gains of more than ``min_delta``. Attributes are
    plain values, which a checkpoint keeps.

    Attributes
    ----------
    best_step : int or None
        Step of the best validation; None before the first.
    best_metrics : dict
        Its ``val_loss`` and ``val_accuracy``.
    best_value : float
        What is monitored, there: the loss, or the accuracy with a minus. Lower is better.
    reference : float
        Value at the last gain.
    without_gain : int
        Validations since then.
    stopped : bool
        Whether training ends here.
    """

    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    best_value: float = math.inf
    reference: float = math.inf
    without_gain: int = 0
    stopped: bool = False

    def add(self, step: int, metrics: dict[str, float], hyper: Hyper) -> bool:
        """Take in a validation; return whether it is the best so far."""
        value = metrics["val_loss"] if hyper.monitor == "loss" else -metrics["val_accuracy"]
        improved = self.best_step is None or value < self.best_value
        if improved:
            self.best_step, self.best_metrics = step, dict(metrics)
            self.best_value = math.inf if math.isnan(value) else value
        if hyper.patience is not None:
            self._count(value, hyper.patience, hyper.min_delta)
        return improved

    def _count(self, value: float, patience: int, min_delta: float) -> None:
        if not math.isfinite(value):
            self.stopped = True
        elif value + min_delta < self.reference:
            self.reference, self.without_gain = value, 0
        else:
            self.without_gain += 1
            self.stopped = self.without_gain >= patience
