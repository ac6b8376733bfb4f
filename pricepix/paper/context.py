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
            if cell.image_name in self.training.stores:
                self._images[cell.name] = self._from_store(cell)
                return self._images[cell.name]
            self._images[cell.name] = PanelImages(
                self.panel,
                cell.image,
                (cell.horizon,),
                delay=self.training.delay,
                mask=self.windows_at(cell.horizon),
                threads=self.training.threads,
            )
        return self._images[cell.name]

    def rows(self, cell: Cell) -> NDArray[np.int64]:
        """int64 (windows,): the panel row of each image's last bar."""
        if cell.image_name not in self.training.stores:
            images = self.images(cell)
            assert isinstance(images, PanelImages)
            return images.windows.row
        if cell.image_name not in self._rows:
            self._rows[cell.image_name] = store_rows(self.images(cell), self.panel)
        return self._rows[cell.image_name]

    def allowed(self, cell: Cell) -> NDArray[np.bool_]:
        """bool (windows,): images whose windows end where those of the cell may."""
        mask = self.windows_at(cell.horizon) if cell.image_name in self.training.stores else None
        return np.ones(len(self.images(cell)), bool) if mask is None else mask[self.rows(cell)]

    def _from_store(self, cell: Cell) -> ImageSet:
        """Open the store of a cell's images.

        Raises
        ------
        ValueError
            It shows other images, of other bars, or has not the returns that the cell learns.
        """
        name, location = cell.image_name, self.training.stores[cell.image_name]
        found = open_store(location)
        if found.spec.digest != cell.image.digest:
            raise ValueError(
                f"stores[{name!r}]: {location} shows {found.spec}, and {cell.name} learns {cell.image}: render such a "
                "store, or leave it out, and its images are drawn from the panel"
            )
        if cell.horizon not in found.horizons or found.delay != self.training.delay:
            raise ValueError(
                f"stores[{name!r}]: {location} has returns over {', '.join(map(str, found.horizons))} bars, "
                f"{found.delay} bars after the image; {cell.name} needs {cell.horizon}, {self.training.delay} after: "
                f"render it with horizons=({cell.horizon},) and delay={self.training.delay}, or leave it out"
            )
        try:
            check_bars(found, self.panel, store_rows(found, self.panel))
        except KeyError as error:
            raise ValueError(f"stores[{name!r}]: {error.args[0]}") from error
        return found
