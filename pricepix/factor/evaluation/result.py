"""What a factor is worth: statistics, portfolios and baselines of a cache on its market, in one result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.factor.cache import FactorCache
from pricepix.factor.evaluation.metrics import (
    plain,
)

__all__ = ["Evaluation"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluate`` found."""

    figures: dict[str, Any]
    """Nested dict of all figures; the keys are described in the documentation's page on evaluation."""
    series: dict[str, Any]
    """Arrays by date or bar with their times: ``rank_ic``, ``spread``, ``portfolio_equal`` and others."""
    cache: FactorCache
    """The factor that was judged."""

    def __repr__(self) -> str:
        f = self.figures
        equal = f["portfolios"]["equal"]["long_short"]["periods"]
        late = f", delay {f['delay']}" if f["delay"] else ""
        found = (
            f"Evaluation(horizon {f['horizon']}{late}, {f['data']['dates']} dates: rank IC "
            f"{f['ic']['rank']['mean']:.4f} "
            f"(t {f['ic']['rank']['newey_west_t']:.2f}), long-short Sharpe {equal['sharpe']:.2f})"
        )
        return "\n".join([found, *(f"  WARNING: {note}" for note in self.notes)])

    @property
    def notes(self) -> list[str]:
        """Sentences on what the figures must not be taken for: other bars, dates that the model has seen."""
        return list(self.figures["notes"])

    def to_dict(self) -> dict[str, Any]:
        """Return figures and series as JSON values: lists, numbers, texts and null for what is not known."""
        return plain({**self.figures, "series": self.series})

    def to_json(self, path: str | PathLike[str]) -> Path:
        """Write `to_dict` as JSON; return the path."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False))
        return Path(path)

    def table(self) -> pl.DataFrame:
        """Return returns and turnover of the main rebalancing as a table, a row a portfolio."""
        rows = []
        for weighting, book in self.figures["portfolios"].items():
            for name, found in book.items():
                if isinstance(found, dict) and "periods" in found:
                    row = {"weighting": weighting, "portfolio": name, **found["periods"]}
                    rows.append({**row, "monthly_turnover": found["monthly_turnover"]})
        return pl.DataFrame(rows)
