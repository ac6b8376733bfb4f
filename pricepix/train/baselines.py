"""The numbers behind a chart, for the baselines that a referee asks for: 1-D network, logistic regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.render.draw import render_rows
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    from pricepix.images import ImageSet

__all__ = ["check_bars", "store_rows", "window_series"]

_AT_ONCE = 1 << 16


def window_series(panel: Panel, spec: ImageSpec, row: NDArray[np.int64]) -> NDArray[np.float32]:
    """Series of windows in the scale of their image.

    Parameters
    ----------
    panel : Panel
    spec : ImageSpec
        Gives the lookback and the moving average: the longest that it draws, or else one over the lookback.
    row : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.

    Returns
    -------
    numpy.ndarray
        float32 (n, 6, lookback): open, high, low, close and moving average, scaled together so that the
        window's lowest is 0 and its highest 1, and volume, scaled so alone. NaN where a value is missing,
        or a volume is constant.

    Notes
    -----
    The scale is the authors' ``image_scale`` for their 1-D network.

    Raises
    ------
    ValueError
        If the spec merges bars or rebuilds prices, which series do not.
    """
    if spec.aggregate != 1 or spec.rebuild is not None:
        raise ValueError(
            f"spec has aggregate={spec.aggregate}, rebuild={spec.rebuild!r}; "
            "series need aggregate=1 and rebuild=None"
        )
    lookback, window = spec.lookback, max(spec.ma) if spec.ma else spec.lookback
    out = np.empty((len(row), 6, lookback), np.float32)
    if not len(row):
        return out
    first = panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1]
    if (row - first < lookback - 1).any():
        raise ValueError(
            f"a window of {lookback} bars begins before its instrument does; take rows of a WindowIndex"
        )
    reach = np.arange(-(lookback + window - 2), 1)
    for a in range(0, len(row), _AT_ONCE):
        part = slice(a, a + _AT_ONCE)
        rows = row[part, None] + reach
        close = panel.bars[np.maximum(rows, 0), 3]
        close[rows < first[part, None]] = np.nan
        mean = np.lib.stride_tricks.sliding_window_view(close, window, axis=1).mean(axis=-1)
        bars = panel.bars[rows[:, -lookback:]]
        prices = np.stack([bars[..., 0], bars[..., 1], bars[..., 2], bars[..., 3], mean], axis=1)
        out[part, :5] = _unit(prices, (1, 2))
        out[part, 5] = _unit(bars[..., 4], (1,))
    return out


def _unit(values: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    low = np.min(np.where(np.isfinite(values), values, np.inf), axis=axes, keepdims=True)
    high = np.max(np.where(np.isfinite(values), values, -np.inf), axis=axes, keepdims=True)
    span = high - low
    return (values - low) / np.where(span > 0, span, np.nan)


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
