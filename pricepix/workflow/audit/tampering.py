"""Panels whose bars after a date are replaced by garbage, or removed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.columns import BOOL_FIELDS
from pricepix.bars.panel import Panel

__all__ = ["Tampered", "removed_after", "replaced_after"]

Mask = NDArray[np.bool_] | None
Tampered = tuple[Panel, Mask]
"""A panel, and the mask of its rows if there is one."""


def replaced_after(panel: Panel, last: int, mask: Mask, rng: np.random.Generator) -> Tampered:
    """Replace all bars after `last` by garbage; times stay, since a calendar is known ahead."""
    late = np.flatnonzero(panel.time > last)
    n = len(late)
    bars = np.array(panel.bars)
    prices = np.sort(np.exp(rng.normal(3.0, 2.0, (n, 4))), axis=1)
    # Lowest and highest are low and high; the two between are open and close, in either order.
    middle = rng.permuted(prices[:, 1:3], axis=1)
    garbage = np.column_stack(
        [middle[:, 0], prices[:, 3], prices[:, 0], middle[:, 1], rng.exponential(1e6, n)]
    )
    garbage[rng.random(n) < 0.05] = np.nan
    bars[late] = garbage
    fields = {}
    for name, values in panel.fields.items():
        new = np.array(values)
        new[late] = rng.random(n) < 0.5 if name in BOOL_FIELDS else rng.exponential(1.0, n)
        fields[name] = new
    changed = Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, fields, panel.report)
    if mask is None:
        return changed, None
    flags = np.array(mask)
    flags[late] = rng.random(n) < 0.5
    return changed, flags


def removed_after(panel: Panel, last: int, mask: Mask) -> Tampered:
    """Remove all rows after `last`, as if the table had been read that day. All names stay."""
    keep = panel.time <= last
    offsets = np.append(0, np.cumsum(keep))[panel.offsets].astype(np.int64)
    fields = {name: values[keep] for name, values in panel.fields.items()}
    cut = Panel(panel.bars[keep], offsets, panel.instruments, panel.time[keep], panel.tz, fields)
    return cut, None if mask is None else mask[keep]
