"""The panel rows of windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import printable
from pricepix.bars.kernels import find_rows
from pricepix.bars.panel import Panel
from pricepix.render.draw import render_rows
from pricepix.spec import ImageSpec


class Windows(Protocol):
    """The part of an image set that tells which windows it has, and what they look like."""

    kind: str
    location: str
    spec: ImageSpec
    panel: Panel | None

    def __len__(self) -> int: ...
    def read(self, selection: Any = ...) -> NDArray[np.uint8]: ...
    @property
    def attrs(self) -> Mapping[str, Any]: ...
    @property
    def chunk(self) -> int: ...
    @property
    def instruments(self) -> NDArray[np.str_]: ...
    @property
    def instrument_index(self) -> NDArray[np.int32]: ...
    @property
    def time(self) -> NDArray[np.int64]: ...


def panel_rows(
    panel: Panel, instruments: NDArray[np.str_], code: NDArray[np.int32], time: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Find windows of a store or a factor cache in a panel, by instrument name and time.

    Parameters
    ----------
    panel : Panel
    instruments : numpy.ndarray of str
        Names that `code` points into.
    code, time : numpy.ndarray, (n,)
        Instrument and time of each window's last bar.

    Returns
    -------
    numpy.ndarray, int64 (n,)
        The panel row of that bar, -1 where the panel has none.
    """
    place = {name: i for i, name in enumerate(panel.instruments.tolist())}
    here = np.array([place.get(name, -1) for name in instruments.tolist()], np.int32)
    row = np.empty(len(time), np.int64)
    find_rows(panel.time, panel.offsets, here[code], time, row)
    return row


def store_rows(store: Windows, panel: Panel) -> NDArray[np.int64]:
    """Panel rows of a store's windows, by instrument name and time; KeyError where the panel lacks one."""
    row = panel_rows(panel, store.instruments, store.instrument_index, store.time)
    if len(row) and row.min() < 0:
        name = str(store.instruments[store.instrument_index[row.argmin()]])
        known = name in panel.instruments
        lack = f"lacks bars of {name!r} that are" if known else f"has no instrument {name!r}, which is"
        raise KeyError(f"the panel {lack} shown in {store.kind} {store.location}: {_remedy(store)}")
    return row


def check_bars(store: Windows, panel: Panel, row: NDArray[np.int64]) -> None:
    """Refuse a panel whose bars are not those that the images show.

    The panel that the images were made from is known by its digest. Any other panel, which may hold later bars or
    different fields, must draw the same images; so must any panel of a store in memory, which keeps no digest.

    Parameters
    ----------
    store : ImageSet
    panel : Panel
    row : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.

    Raises
    ------
    ValueError
        If an image differs; the message names the first.
    """
    # Imported images come without bars: their digest is that of their labels.
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
            here, there = ("", "") if made_from is None else (f" (digest {panel.digest})", f" ({made_from})")
            name = printable(str(store.instruments[store.instrument_index[at]]), "")
            raise ValueError(
                f"the panel{here} is not that of {store.kind} {store.location}{there}: it gives a different image of "
                f"{name} at {panel.stamp(int(store.time[at]))}; "
                f"{_remedy(store)}"
            )


def _remedy(store: Windows) -> str:
    """What to do about a panel that does not fit."""
    by_itself = "" if store.panel is None else ", or leave panel out"
    return f"give the panel that the images were made from, read with the same arguments{by_itself}"
