"""The panel rows of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.render.draw import render_rows

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet


def store_rows(store: ImageSet, panel: Panel) -> NDArray[np.int64]:
    """Panel rows of a store's windows, by instrument name and time; KeyError where the panel lacks one."""
    row = np.empty(len(store), np.int64)
    names = {str(name): i for i, name in enumerate(panel.instruments)}
    order = np.argsort(store.instrument_index, kind="stable")
    cuts = np.searchsorted(store.instrument_index[order], np.arange(len(store.instruments) + 1))
    for code, name in enumerate(store.instruments):
        own = order[cuts[code] : cuts[code + 1]]
        if not len(own):
            continue
        if str(name) not in names:
            raise KeyError(
                f"the panel has no instrument {str(name)!r}, which is shown in {store.kind} {store.location}: "
                f"{_remedy(store)}"
            )
        a, b = panel.offsets[names[str(name)] :][:2]
        at = np.searchsorted(panel.time[a:b], store.time[own])
        if (at >= b - a).any() or (panel.time[a + np.minimum(at, b - a - 1)] != store.time[own]).any():
            raise KeyError(
                f"the panel lacks bars of {str(name)!r} that are shown in {store.kind} {store.location}: "
                f"{_remedy(store)}"
            )
        row[own] = a + at
    return row


def check_bars(store: ImageSet, panel: Panel, row: NDArray[np.int64]) -> None:
    """Refuse a panel whose bars are not those that the images show.

    The panel that the images were made from is known by its digest. Any other, which may hold later bars or other
    fields, must draw the same images; so must any panel of a store in memory, which keeps no digest.

    Parameters
    ----------
    store : ImageSet
    panel : Panel
    row : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.

    Raises
    ------
    ValueError
        If an image is another; the message names the first.
    """
    # Nobody has the bars of images that were imported: the digest is that of their labels.
    if panel is store.panel or "source" in store.attrs:
        return
    made_from = store.attrs.get("panel_digest")
    if made_from is not None and panel.digest == made_from:
        return
    begin = panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1]
    whole = row - begin >= store.spec.lookback - 1
    for first in range(0, len(store), store.chunk):
        part = np.arange(first, min(first + store.chunk, len(store)))
        wrong = ~whole[part]
        known = part[~wrong]
        drawn = np.empty((len(known), *store.spec.shape), np.uint8)
        reason = np.empty(len(known), np.uint8)
        render_rows(panel, row[known], store.spec, drawn, reason=reason)
        wrong[~wrong] = (reason != 0) | (drawn != store.read(known)).any(axis=(1, 2))
        if wrong.any():
            at = int(part[wrong][0])
            mine, theirs = ("", "") if made_from is None else (f" (digest {panel.digest})", f" ({made_from})")
            raise ValueError(
                f"the panel{mine} is not that of {store.kind} {store.location}{theirs}: it gives another image of "
                f"{store.instruments[store.instrument_index[at]]} at {panel.stamp(int(store.time[at]))}; "
                f"{_remedy(store)}"
            )


def _remedy(store: ImageSet) -> str:
    """How to come by the right panel."""
    by_itself = "" if store.panel is None else ", or leave panel out"
    return f"give the panel that the images were made from, read with the same arguments{by_itself}"
