"""What every task of a replication works with: the bars, the folder, how networks are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.images.image_set import ImageSet
from pricepix.images.panel_images import PanelImages
from pricepix.images.rows import check_bars, store_rows
from pricepix.paper.cells import Cell
from pricepix.paper.formation import formation_times
from pricepix.paper.training import Training
from pricepix.store.image_store import open_store

__all__ = ["Context"]


@dataclass
class Context:
    """Bars, folder and training, and the images of the cells, made once.

    Attributes
    ----------
    folder : Path
        Of the replication.
    panel : Panel
    training : Training
        With ``rebuild`` resolved.
    """

    folder: Path
    panel: Panel
    training: Training
    _images: dict[str, ImageSet] = field(default_factory=dict, repr=False)
    _rows: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    _allowed: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    def windows_at(self, horizon: int) -> NDArray[np.bool_] | None:
        """bool (rows,): where windows may end; None for everywhere."""
        if self.training.every == "bar":
            return None
        ends = np.zeros(len(self.panel.calendar), bool)
        ends[formation_times(self.panel, horizon)] = True
        mask = ends[self.panel.time_code]
        if "eligible" in self.panel.fields:
            # A mask takes the place of the panel's own.
            mask &= self.panel.fields["eligible"]
        return mask

    def images(self, cell: Cell) -> ImageSet:
        """Return the images of a cell's windows, with the forward returns that it learns.

        A store may have more windows than `allowed`.

        Raises
        ------
        ValueError
            If the panel has no window that long.
        """
        if cell.name not in self._images:
            drawn = PanelImages(
                self.panel,
                cell.image,
                (cell.horizon,),
                delay=self.training.delay,
                mask=self.windows_at(cell.horizon),
                threads=self.training.threads,
            )
            stored = cell.image_name in self.training.stores
            self._images[cell.name] = self._from_store(cell, drawn) if stored else drawn
        return self._images[cell.name]

    def rows(self, cell: Cell) -> NDArray[np.int64]:
        """int64 (windows,): the panel row of each image's last bar."""
        images = self.images(cell)
        return images.windows.row if isinstance(images, PanelImages) else self._rows[cell.image_name]

    def allowed(self, cell: Cell) -> NDArray[np.bool_]:
        """bool (windows,): images whose windows end where those of the cell may."""
        images = self.images(cell)
        return self._allowed.get(cell.name, np.ones(len(images), bool))

    def _from_store(self, cell: Cell, drawn: PanelImages) -> ImageSet:
        """Open the store of a cell's images, which must have all that would be drawn.

        Raises
        ------
        ValueError
            It shows other images, of other bars, lacks some, or has not the returns that the cell learns.
        """
        name, location = cell.image_name, self.training.stores[cell.image_name]
        found, horizon, delay = open_store(location), cell.horizon, self.training.delay
        if found.spec.digest != cell.image.digest:
            raise ValueError(
                f"stores[{name!r}]: {location} shows {found.spec}, and {cell.name} learns {cell.image}: render such a "
                "store, or leave it out, and its images are drawn from the panel"
            )
        remedy = f"render it with horizons=({horizon},) and delay={delay}, or leave it out"
        if horizon not in found.horizons or found.delay != delay:
            raise ValueError(
                f"stores[{name!r}]: {location} has returns over {', '.join(map(str, found.horizons))} bars, "
                f"{found.delay} bars after the image; {cell.name} needs {horizon}, {delay} after: {remedy}"
            )
        try:
            rows = store_rows(found, self.panel)
            check_bars(found, self.panel, rows)
        except KeyError as error:
            raise ValueError(f"stores[{name!r}]: {error.args[0]}") from error
        wanted = drawn.windows.row
        missing = ~np.isin(wanted, rows)
        if missing.any():
            raise ValueError(
                f"stores[{name!r}]: {location} lacks {int(missing.sum()):,} of the {len(wanted):,} images of "
                f"{cell.name}: render it from the same panel with every='bar', or leave it out"
            )
        order = np.argsort(rows)
        place = order[np.searchsorted(rows, wanted, sorter=order)]
        if not np.array_equal(found.returns(horizon)[place], drawn.returns(horizon), equal_nan=True):
            raise ValueError(
                f"stores[{name!r}]: {location} has other returns than the panel gives (of "
                f"{found.attrs['label_price']}, delisting={found.attrs['delisting']!r}): {remedy}"
            )
        self._rows[name] = rows
        self._allowed[cell.name] = np.isin(rows, wanted)
        return found
