"""Table V: rank correlations of predictions with characteristics of the names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.paper.cells import model_title
from pricepix.paper.errors import mean_error
from pricepix.paper.results import CellResult, Signals
from pricepix.paper.tables import Figure

__all__ = ["correlation_figures"]

Floats = NDArray[np.float64]


def correlation_figures(
    results: Sequence[CellResult],
    signals: Mapping[str, Signals],
    found: Mapping[str, Mapping[str, Floats]],
    models: Sequence[str],
    differs: str,
) -> Iterator[Figure]:
    """Yield the mean over formations of the rank correlation, across names, of a prediction and a characteristic.

    Parameters
    ----------
    found : mapping of cell name to mapping of characteristic to numpy.ndarray, float64 (periods, instruments)
        At the formations of the cell's signals.
    """
    for result in results:
        shared = signals[result.cell.name]
        for model in models:
            if model not in shared.models:
                continue
            name = result.cell.name
            column = name if model == "cnn" else f"{name} {model_title(model, short=True)}"
            for row, values in found[name].items():
                by_date = information_coefficient(shared.models[model], values)
                known = by_date[~np.isnan(by_date)]
                mean = float(known.mean()) if len(known) else float("nan")
                yield Figure("", row, column, "correlation", mean, differs=differs, error=mean_error(known))
