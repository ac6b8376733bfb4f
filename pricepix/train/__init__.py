"""Training: networks, splits, targets and the loop.

Names load on first use, so that splits and targets need no torch, and networks no lightning.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "lightning", "tensorboard"):
            raise
        raise ImportError(
            f'pricepix.train.{name} needs {error.name}: pip install "pricepix[train]"'
        ) from error
