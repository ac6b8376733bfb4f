"""How a factor's forecast decays: with the horizon of the return, and with the delay of the entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pricepix._checks import bars
from pricepix.factor.evaluation.evaluator import Evaluator
from pricepix.factor.evaluation.metrics import series_summary

__all__ = ["DECAY_HORIZONS", "decay_curve", "delay_curve"]

DECAY_HORIZONS: Final = (1, 2, 3, 5, 10, 20, 40, 60, 120)
"""Bars, unless the caller asks for others."""


def decay_curve(evaluator: Evaluator, horizons: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Return the rank IC for each of some horizons, by default `DECAY_HORIZONS` as far as the data reach."""
    e = evaluator
    delay = e.settings.delay
    longest = len(e.market.time) - 1 - int(e.position[0]) - delay
    default = sorted({*DECAY_HORIZONS, e.settings.horizon})
    curve = []
    for horizon in default if horizons is None else horizons:
        h = bars(horizon, "horizons", 1)
        if h > longest:
            if horizons is not None:
                raise ValueError(
                    f"horizons={tuple(horizons)}: {h} bars are longer than the data, {longest} bars"
                )
            continue
        ic = e.rank_ic(h, delay)
        if (~np.isnan(ic)).any():
            curve.append({"horizon": h, "rank_ic": series_summary(ic, e.overlap(h))})
    return curve


def delay_curve(evaluator: Evaluator, delays: Sequence[int]) -> list[dict[str, Any]]:
    """Return rank IC and long-short performance where the entry comes some bars later."""
    e = evaluator
    horizon = e.settings.horizon
    curve = []
    for given in delays:
        late = bars(given, "delays", 0)
        delay = e.settings.delay + late
        ic = e.rank_ic(horizon, delay)
        row: dict[str, Any] = {"bars_late": late, "rank_ic": series_summary(ic, e.overlap(horizon))}
        try:
            portfolios = e.simulate(delay=delay)
            row["long_short"] = e.long_short(portfolios, e.rebalancings_per_year(portfolios))
        except ValueError:
            row["long_short"] = None  # The data close no such period.
        curve.append(row)
    return curve
