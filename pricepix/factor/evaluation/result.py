"""The result of an evaluation: all figures and series, as Python values, JSON or a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pricepix.factor.cache import FactorCache
from pricepix.factor.evaluation.display import evaluation_page
from pricepix.factor.evaluation.formatting import format_number, format_percent
from pricepix.location import atomic_file

__all__ = ["Evaluation", "format_number", "format_percent"]


@dataclass(frozen=True)
class Evaluation:
    """Figures and series of a factor on its market; ``evaluate`` returns one."""

    figures: dict[str, Any]
    """Nested dict of all figures; the keys are described in the documentation's page on evaluation."""
    series: dict[str, Any]
    """Arrays by date or bar with their times: ``rank_ic``, ``spread``, ``portfolio_equal`` and others."""
    cache: FactorCache
    """The factor that was evaluated."""

    def __repr__(self) -> str:
        f = self.figures
        ic = f["ic"]["rank"]
        equal = f["portfolios"]["equal"]["long_short"]["periods"]
        late = f", delay {f['delay']}" if f["delay"] else ""
        found = (
            f"Evaluation(horizon {f['horizon']}{late}, {ic['dates']} dates with returns: "
            f"rank IC {format_number(ic['mean'], 4)} (t {format_number(ic['t'], 2)}), "
            f"long-short Sharpe {format_number(equal['sharpe'], 2)})"
        )
        return "\n".join([found, *(f"  WARNING: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return evaluation_page(self)

    @property
    def notes(self) -> list[str]:
        """Sentences that qualify the figures: a different panel, dates that the model has seen, deaths, and more."""
        return list(self.figures["notes"])

    def to_dict(self) -> dict[str, Any]:
        """Return figures and series as JSON values: lists, numbers, texts, and null for what is not known."""
        return json_value({**self.figures, "series": self.series})

    def to_json(self, path: str | PathLike[str]) -> Path:
        """Write `to_dict` as JSON; return the path."""
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False))
        return Path(path)

    def table(self) -> pl.DataFrame:
        """Return the returns and turnover of the main rebalancing as a table, a row a portfolio."""
        rows = []
        for weighting, portfolios in self.figures["portfolios"].items():
            for name, found in portfolios.items():
                if isinstance(found, dict) and "periods" in found:
                    row = {"weighting": weighting, "portfolio": name, **found["periods"]}
                    rows.append({**row, "monthly_turnover": found["monthly_turnover"]})
        return pl.DataFrame(rows)


def json_value(value: Any) -> Any:
    """Return a value as JSON can hold it: arrays as lists, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
