"""Results of a run: each fold's networks, their predictions on its test part, and how good these are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pricepix.train.display import run_page
from pricepix.train.models import Ensemble, PriceCNN, SeriesCNN
from pricepix.train.problem import Problem
from pricepix.train.splits import Fold

__all__ = ["FitResult", "FoldResult", "Predictor"]


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold.

    Attributes
    ----------
    fold : Fold
    folder : Path
        Holds ``member_<i>/best.ckpt``, ``last.ckpt``, ``metrics.csv``, ``tensorboard/``.
    members : list of dict
        Steps, epochs, and validation loss and accuracy of each member's best checkpoint.
    model : PriceCNN, SeriesCNN or Ensemble
        The best checkpoints, averaged if several.
    test : dict
        Of the model on the test part: images, loss, accuracy, its standard error (of independent images;
        overlapping labels make it larger), share of the larger class; for regressions loss and correlation.
        Empty without a test part.
    predictions : numpy.ndarray
        float32, the model's scores of ``fold.test``.
    """

    fold: Fold
    folder: Path
    members: list[dict[str, Any]]
    model: PriceCNN | SeriesCNN | Ensemble
    test: dict[str, Any]
    predictions: NDArray[np.float32]


@dataclass(frozen=True)
class FitResult:
    """A finished run: its folder, resolved configuration and folds."""

    out: Path
    config: dict[str, Any]
    folds: list[FoldResult] = field(default_factory=list)

    def _repr_html_(self) -> str:
        return run_page(self)

    @property
    def model(self) -> PriceCNN | SeriesCNN | Ensemble:
        """The model of the last fold, which is the only one except for walk-forward."""
        return self.folds[-1].model

    @property
    def test(self) -> dict[str, Any]:
        """Test metrics of the last fold."""
        return self.folds[-1].test


@dataclass(frozen=True)
class Predictor:
    """Scores windows of a problem with a trained model, on the device of this process."""

    model: PriceCNN | SeriesCNN | Ensemble
    problem: Problem
    device: torch.device
    threads: int | None = None

    def predict(self, index: NDArray[np.int64], method: str = "predict") -> NDArray[np.float32]:
        """Return the model's scores, or another of its methods, of the windows at some positions."""
        if not len(index):
            return np.empty(0, np.float32)
        self.model.to(self.device)
        score = getattr(self.model, method)
        try:
            if self.problem.series is not None:
                return np.asarray(score(self.problem.series[index]))
            reader = self.problem.images.batches(
                mask=index, shuffle=False, batch_size=1024, threads=self.threads
            )
            return np.concatenate([score(images) for images, _ in reader])
        finally:
            self.model.cpu()

    def test(self, index: NDArray[np.int64], predictions: NDArray[np.float32]) -> dict[str, Any]:
        """Return the metrics of `FoldResult.test` of the predictions of some windows."""
        n, targets = len(index), self.problem.targets
        if not n:
            return {}
        truth = targets.values[index]
        if targets.is_regression:
            known = n > 1 and np.std(predictions) > 0
            return {
                "images": n,
                "loss": float(np.mean((predictions - truth) ** 2)),
                "correlation": float(np.corrcoef(predictions, truth)[0, 1]) if known else 0.0,
            }
        if targets.classes == 2:
            p = np.stack([1 - predictions, predictions], axis=1)
        else:
            p = self.predict(index, "probabilities")
        labels = truth.astype(np.int64)
        accuracy = float(np.mean(p.argmax(1) == labels))
        chosen = np.clip(p[np.arange(n), labels].astype(np.float64), 1e-12, 1)
        return {
            "images": n,
            "loss": float(-np.mean(np.log(chosen))),
            "accuracy": accuracy,
            "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / n)),
            "larger_class": float(np.bincount(labels, minlength=targets.classes).max() / n),
        }
