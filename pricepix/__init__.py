"""pricepix: OHLCV history in, the binary chart images of "(Re-)Imag(in)ing Price Trends" out.

Names load on first use, so that ``import pricepix`` costs nothing that is not used: torch, dask and
lightning are never imported before something needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pricepix._version import __version__

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel
    from pricepix.build.append import append
    from pricepix.build.universe import render_universe
    from pricepix.images.augment import Augment
    from pricepix.images.panel_images import PanelImages
    from pricepix.lookahead import audit
    from pricepix.preview import contact_sheet, enlarge
    from pricepix.render import REASONS, RenderResult, render_panel, render_windows
    from pricepix.spec import ImageSpec
    from pricepix.store.image_store import ImageStore, open_store
    from pricepix.windows.index import WindowIndex
    from pricepix.windows.labels import forward_returns

_HOME = {
    "Augment": "pricepix.images.augment",
    "ImageSpec": "pricepix.spec",
    "ImageStore": "pricepix.store",
    "Panel": "pricepix.bars.panel",
    "PanelImages": "pricepix.images.panel_images",
    "REASONS": "pricepix.render",
    "RenderResult": "pricepix.render",
    "WindowIndex": "pricepix.windows.index",
    "append": "pricepix.build.append",
    "audit": "pricepix.lookahead",
    "contact_sheet": "pricepix.preview",
    "enlarge": "pricepix.preview",
    "forward_returns": "pricepix.windows.labels",
    "open_store": "pricepix.store",
    "render_panel": "pricepix.render",
    "render_universe": "pricepix.build",
    "render_windows": "pricepix.render",
}
_MODULES = ("bars", "factor", "samples", "sources", "train")

__all__ = [
    "REASONS",
    "Augment",
    "ImageSpec",
    "ImageStore",
    "Panel",
    "PanelImages",
    "RenderResult",
    "WindowIndex",
    "__version__",
    "append",
    "audit",
    "bars",
    "contact_sheet",
    "enlarge",
    "factor",
    "forward_returns",
    "open_store",
    "render_panel",
    "render_universe",
    "render_windows",
    "samples",
    "sources",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"pricepix.{name}")
    else:
        raise AttributeError(f"module 'pricepix' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
