"""What images were made from: the attributes that a set of images carries."""

from __future__ import annotations

from typing import Any

from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.windows.index import WindowIndex


def lineage(
    panel: Panel,
    windows: WindowIndex,
    horizons: tuple[int, ...],
    delay: int,
    price: str,
    layout: str,
    chunk: int,
) -> dict[str, Any]:
    """Return the attributes of a set of images: what it was made from, and how."""
    return {
        "created_by": f"pricepix {__version__}",
        "spec": windows.spec.to_dict(),
        "spec_digest": windows.spec.digest,
        "panel_digest": None,
        "panel_fields": list(panel.fields),
        "windows": len(windows),
        "instruments": panel.n_instruments,
        "candidates": windows.candidates,
        "drop_counts": dict(windows.counts),
        "schedule": dict(windows.schedule),
        "horizons": list(horizons),
        "delay": delay,
        "label_price": price,
        "layout": layout,
        "chunk": chunk,
        "tz": panel.tz,
    }
