"""Where bars and images come from besides tables: market caches, one-minute bars, the authors' dataset.

Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pricepix.sources.jkx_dataset import import_jkx, jkx_labels, jkx_panel
    from pricepix.sources.market_cache import MarketCache, write_market_cache
    from pricepix.sources.market_store import build_market_store
    from pricepix.sources.resampling import resample
    from pricepix.sources.sessions import Session
    from pricepix.sources.simulate import simulate_market

_HOME = {
    "MarketCache": "market_cache",
    "Session": "sessions",
    "build_market_store": "market_store",
    "import_jkx": "jkx_dataset",
    "jkx_labels": "jkx_dataset",
    "jkx_panel": "jkx_dataset",
    "resample": "resampling",
    "simulate_market": "simulate",
    "write_market_cache": "market_cache",
}

__all__ = [
    "MarketCache",
    "Session",
    "build_market_store",
    "import_jkx",
    "jkx_labels",
    "jkx_panel",
    "resample",
    "simulate_market",
    "write_market_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pricepix.sources' has no attribute {name!r}")
    value = getattr(import_module(f"pricepix.sources.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
