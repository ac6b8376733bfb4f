"""Results of a run: each fold's networks, their predictions on its test part, and how good these are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pricepix._checks import printable
from pricepix.train.display import run_page
from pricepix.train.engines.torch_engine import TorchEngine
from pricepix.train.models import Ensemble, Network
from pricepix.train.modules import ModuleNetwork
from pricepix.train.problem import Problem
from pricepix.train.splits import Fold

__all__ = ["FitResult", "FoldResult", "Predictor", "format_metrics", "measure"]

_FOLDS_SHOWN = 6


@dataclass(frozen=True, repr=False)
class FoldResult:
    """The result of one fold.

    Attributes
    ----------
    fold : Fold
    folder : Path
        Holds ``member_<i>/best.ckpt``, ``last.ckpt``, ``metrics.csv``, ``tensorboard/``.
    members : list of dict
        Steps, epochs, and validation loss and accuracy of each member's best checkpoint.
    model : Network or Ensemble
        The best checkpoints, averaged if several.
    test : dict
        Of the model on the test part: images, loss, accuracy, its standard error (of independent images;
        overlapping labels make it larger), share of the larger class; for regressions loss and correlation.
        Empty without a test part.
    predictions : numpy.ndarray
        float32, the model's scores of ``fold.test``.
    truth : numpy.ndarray
        The targets of ``fold.test``.
    probabilities : numpy.ndarray or None
        float32 (n, classes) of ``fold.test``; None for a regression.
    """

    fold: Fold
    folder: Path
    members: list[dict[str, Any]]
    model: Network | Ensemble
    test: dict[str, Any]
    predictions: NDArray[np.float32]
    truth: NDArray[Any]
    probabilities: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name} {len(getattr(self.fold, name)):,}" for name in ("train", "validation", "test")
        )
        return f"FoldResult({self.fold.name}: {parts}; {format_metrics(self.test)})"


@dataclass(frozen=True, repr=False)
class FitResult:
    """A finished run: its folder, resolved configuration and folds."""

    out: Path
    config: dict[str, Any]
    folds: list[FoldResult] = field(default_factory=list)

    def _repr_html_(self) -> str:
        return run_page(self)

    @property
    def model(self) -> Network | Ensemble:
        """The model of the last fold, which is the only one except for walk-forward."""
        return self.folds[-1].model

    @property
    def module(self) -> Any:
        """The user's module within the model, which scoring from the run's folder needs; None for our own networks."""
        first = self.model.members[0] if isinstance(self.model, Ensemble) else self.model
        return first.own if isinstance(first, ModuleNetwork) else None

    @property
    def test(self) -> dict[str, Any]:
        """Test metrics, as of `FoldResult`, over the test parts of all folds together; each fold has its own."""
        return measure(self.truth, self.predictions, self.probabilities)

    def summary(self) -> dict[str, Any]:
        """Return the metrics of all folds together and of each fold and member, as plain values."""
        folds = [{"name": f.fold.name, "members": f.members, "test": f.test} for f in self.folds]
        return {"test": self.test, "folds": folds}

    @property
    def test_index(self) -> NDArray[np.int64]:
        """int64 (n,): the windows of all test parts, fold by fold. Test parts that overlap give a window twice."""
        return np.concatenate([fold.fold.test for fold in self.folds])

    @property
    def predictions(self) -> NDArray[np.float32]:
        """Scores of `test_index`, each by the model of its fold: out of sample."""
        return np.concatenate([fold.predictions for fold in self.folds])

    @property
    def truth(self) -> NDArray[Any]:
        """Targets of `test_index`."""
        return np.concatenate([fold.truth for fold in self.folds])

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """float32 (n, classes) of `test_index`; None for a regression."""
        parts = [fold.probabilities for fold in self.folds if fold.probabilities is not None]
        return np.concatenate(parts) if len(parts) == len(self.folds) else None

    def __repr__(self) -> str:
        model, config = self.config["model"], self.config
        target = f"{config['target']['kind']} over {config['horizon']} bars"
        lines = [
            f"FitResult({self.out})",
            f"  {config['ensemble']} x {model['name']} on {config['store']['windows']:,} windows, target {target}",
        ]
        few = len(self.folds) <= _FOLDS_SHOWN
        shown = self.folds if few else [*self.folds[: _FOLDS_SHOWN - 1], self.folds[-1]]
        for i, fold in enumerate(shown):
            if not few and i == len(shown) - 1:
                lines.append(f"  ... {len(self.folds) - len(shown):,} more folds")
            loss = np.mean([member["val_loss"] for member in fold.members])
            lines.append(f"  {fold.fold.name}: validation loss {loss:.4f}; test: {format_metrics(fold.test)}")
        if len(self.folds) > 1:
            lines.append(f"  all folds: test: {format_metrics(self.test)}")
        return printable("\n".join(lines))


@dataclass(frozen=True)
class Predictor:
    """Scores windows of a problem with a trained model, on the device of this process."""

    model: Network | Ensemble
    problem: Problem
    device: torch.device
    threads: int | None = None

    def predict(self, index: NDArray[np.int64], method: str = "predict") -> NDArray[np.float32]:
        """Return the model's scores, or another of its methods, of the windows at some positions."""
        if not len(index):
            return np.empty(0, np.float32)
        self.model.to(self.device)
        score = self._scorer(method)
        try:
            if self.problem.series is not None:
                return np.asarray(score(self.problem.series[index]))
            reader = self.problem.images.batches(
                mask=index, shuffle=False, batch_size=1024, threads=self.threads
            )
            return np.concatenate([score(images) for images, _ in reader])
        finally:
            self.model.cpu()

    def _scorer(self, method: str) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        """Return what scores inputs: folded networks on a CPU, the model itself elsewhere."""
        members = list(self.model.members) if isinstance(self.model, Ensemble) else [self.model]
        engine = TorchEngine(members)  # type: ignore[arg-type]
        if not engine.is_folded:
            plain: Callable[[NDArray[Any]], NDArray[np.float32]] = getattr(self.model, method)
            return plain
        each = getattr(engine, method)

        def score(inputs: NDArray[Any]) -> NDArray[np.float32]:
            return np.asarray(np.mean(each(inputs), axis=0, dtype=np.float64), np.float32)

        return score

    def result(self, fold: Fold, folder: Path, members: list[dict[str, Any]]) -> FoldResult:
        """Test the model on the test part of a fold."""
        predictions = self.predict(fold.test)
        truth = self.problem.targets.values[fold.test]
        probabilities = None
        if self.problem.targets.classes == 2:
            probabilities = np.stack([1 - predictions, predictions], axis=-1)
        elif not self.problem.targets.is_regression:
            classes = self.problem.targets.classes
            found = self.predict(fold.test, "probabilities")
            probabilities = found if len(fold.test) else np.empty((0, classes), np.float32)
        test = measure(truth, predictions, probabilities)
        return FoldResult(fold, folder, members, self.model, test, predictions, truth, probabilities)


def measure(
    truth: NDArray[Any], predictions: NDArray[np.float32], probabilities: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Return the metrics of `FoldResult.test`.

    Parameters
    ----------
    truth : numpy.ndarray
        int64 (n,) classes or float32 (n,) numbers; (n, heads) for several horizons: metrics are then the means of
        those of each, which ``heads`` has.
    predictions : numpy.ndarray, float32 (n,) or (n, heads)
    probabilities : numpy.ndarray, float32 (n, classes), or None for a regression
    """
    n = len(truth)
    if not n:
        return {}
    if truth.ndim == 2:
        heads = [
            measure(truth[:, i], predictions[:, i], None if probabilities is None else probabilities[:, i])
            for i in range(truth.shape[1])
        ]
        means = {
            name: float(np.mean([head[name] for head in heads])) for name in heads[0] if name != "images"
        }
        return {"images": n, **means, "heads": heads}
    if probabilities is None:
        known = n > 1 and np.std(predictions) > 0
        return {
            "images": n,
            "loss": float(np.mean((predictions - truth) ** 2)),
            "correlation": float(np.corrcoef(predictions, truth)[0, 1]) if known else 0.0,
        }
    labels = truth.astype(np.int64)
    accuracy = float(np.mean(probabilities.argmax(1) == labels))
    chosen = np.clip(probabilities[np.arange(n), labels].astype(np.float64), 1e-12, 1)
    return {
        "images": n,
        "loss": float(-np.mean(np.log(chosen))),
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / n)),
        "larger_class": float(np.bincount(labels, minlength=probabilities.shape[1]).max() / n),
    }


def format_metrics(test: dict[str, Any]) -> str:
    """Return the metrics of a test part in one line."""
    if not test:
        return "no test part"
    if "accuracy" not in test:
        return f"{test['images']:,} images, loss {test['loss']:.4f}, correlation {test['correlation']:.4f}"
    return (
        f"{test['images']:,} images, accuracy {test['accuracy']:.4f} +- {test['standard_error']:.4f} (larger class "
        f"{test['larger_class']:.4f}), loss {test['loss']:.4f}"
    )
