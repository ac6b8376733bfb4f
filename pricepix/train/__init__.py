"""Training: networks, splits, targets and the loop.

Names load on first use, so that splits and targets need no torch, and networks no lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pricepix.train.baselines import window_series
    from pricepix.train.config import HYPER, Hyper
    from pricepix.train.data import StoreDataset
    from pricepix.train.models import (
        PRESETS,
        SERIES_PRESETS,
        CNNSpec,
        ConvBlock,
        Ensemble,
        PriceCNN,
        SeriesCNN,
        SeriesSpec,
        load_model,
        save_model,
    )
    from pricepix.train.run import FitResult, FoldResult, fit
    from pricepix.train.splits import Fold, RandomSplit, Samples, TimeSplit, WalkForward, overlap_share
    from pricepix.train.targets import Targets, make_targets

_HOME = {
    "CNNSpec": "models",
    "ConvBlock": "models",
    "Ensemble": "models",
    "FitResult": "run",
    "Fold": "splits",
    "FoldResult": "run",
    "HYPER": "config",
    "Hyper": "config",
    "PRESETS": "models",
    "PriceCNN": "models",
    "RandomSplit": "splits",
    "SERIES_PRESETS": "models",
    "Samples": "splits",
    "SeriesCNN": "models",
    "SeriesSpec": "models",
    "StoreDataset": "data",
    "Targets": "targets",
    "TimeSplit": "splits",
    "WalkForward": "splits",
    "fit": "run",
    "load_model": "models",
    "make_targets": "targets",
    "overlap_share": "splits",
    "save_model": "models",
    "window_series": "baselines",
}

__all__ = [
    "HYPER",
    "PRESETS",
    "SERIES_PRESETS",
    "CNNSpec",
    "ConvBlock",
    "Ensemble",
    "FitResult",
    "Fold",
    "FoldResult",
    "Hyper",
    "PriceCNN",
    "RandomSplit",
    "Samples",
    "SeriesCNN",
    "SeriesSpec",
    "StoreDataset",
    "Targets",
    "TimeSplit",
    "WalkForward",
    "fit",
    "load_model",
    "make_targets",
    "overlap_share",
    "save_model",
    "window_series",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pricepix.train' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"pricepix.train.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "lightning", "tensorboard"):
            raise
        raise ImportError(
            f'pricepix.train.{name} needs {error.name}: pip install "pricepix[train]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
