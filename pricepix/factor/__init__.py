"""From a trained model to a factor: score a store, keep the scores in a cache, evaluate them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache, open_cache
    from pricepix.factor.evaluation import Evaluation, evaluate
    from pricepix.factor.origin import OtherBarsWarning
    from pricepix.factor.report import write_report
    from pricepix.factor.scoring import score

_HOME = {
    "Evaluation": "pricepix.factor.evaluation",
    "FactorCache": "pricepix.factor.cache",
    "OtherBarsWarning": "pricepix.factor.origin",
    "evaluate": "pricepix.factor.evaluation",
    "open_cache": "pricepix.factor.cache",
    "score": "pricepix.factor.scoring",
    "write_report": "pricepix.factor.report",
}

__all__ = ["Evaluation", "FactorCache", "OtherBarsWarning", "evaluate", "open_cache", "score", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pricepix.factor' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
