"""What is in a store, in a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pricepix._checks import printable
from pricepix.bars.times import to_series
from pricepix.store.image_store import ImageStore

__all__ = ["summary"]


def summary(store: ImageStore) -> str:
    """Return images, spec, instruments, times, drops and forward returns of a store, one a line."""
    attrs = store.attrs
    height, width = store.spec.shape
    horizons = ", ".join(map(str, store.horizons)) or "none"
    rows = {
        "store": store.location,
        "images": f"{len(store):,} of {height}x{width} (rows x columns), layout {store.layout}",
        "spec": ", ".join(f"{name}={value}" for name, value in attrs["spec"].items()),
        "instruments": f"{len(store.instruments):,}",
        "dropped": ", ".join(f"{name} {count:,}" for name, count in attrs["drop_counts"].items()) or "none",
        "horizons": f"{horizons} bars, delay {store.delay}, on {attrs.get('label_price')}",
        "delistings": _delistings(attrs),
        "created by": attrs.get("created_by"),
        "format": f"version {attrs['format_version']}",
        "spec digest": attrs["spec_digest"],
        "panel digest": attrs["panel_digest"],
    }
    if len(store):
        times = to_series(store.time[[0, -1]], store.tz)
        rows["times"] = f"{times[0]} to {times[1]}"
    for h in store.horizons:
        returns = store.returns(h)
        known = returns[~np.isnan(returns)]
        up = f"{(known > 0).mean():.1%} up" if len(known) else "none known"
        rows[f"ret_{h}"] = f"{len(known):,} known, {len(returns) - len(known):,} missing, {up}"
    # Attributes and horizons are out of a file: none may write lines of its own, or talk to the terminal.
    return "\n".join(f"{name:>13}  {printable(str(value), '')}" for name, value in rows.items())


def _delistings(attrs: Mapping[str, Any]) -> str:
    """Say what the returns are of instruments that end within a horizon."""
    if attrs.get("delisting", "missing") == "missing":
        return "returns of instruments that end within a horizon are missing"
    counts = (
        ", ".join(f"{h} bars {count:,}" for h, count in attrs.get("died_within_horizon", {}).items())
        or "none"
    )
    return f"held in cash to the horizon: {counts}"
