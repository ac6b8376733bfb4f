"""What every task of a replication works with: the bars, the folder, how networks are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.images.panel_images import PanelImages
from pricepix.paper.cells import Cell
from pricepix.paper.formation import formation_times
from pricepix.paper.training import Training

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
    _images: dict[str, PanelImages] = field(default_factory=dict, repr=False)

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

    def images(self, cell: Cell) -> PanelImages:
        """Return the images of a cell's windows, with the forward returns that it learns.

        Raises
        ------
        ValueError
            If the panel has no window that long.
        """
        if cell.name not in self._images:
            self._images[cell.name] = PanelImages(
                self.panel,
                cell.image,
                (cell.horizon,),
                delay=self.training.delay,
                mask=self.windows_at(cell.horizon),
                threads=self.training.threads,
            )
        return self._images[cell.name]
