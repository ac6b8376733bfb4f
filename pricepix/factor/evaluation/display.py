"""The page that a notebook shows for an evaluation: headline figures, two curves, and what qualifies them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pricepix.bars import display
from pricepix.factor.evaluation.headline import headline

__all__ = ["evaluation_page"]


def evaluation_page(evaluation: Any) -> str:
    """Return a page of HTML."""
    f = evaluation.figures
    book = evaluation.series["portfolio_equal"]
    worth = np.cumprod(1.0 + np.nan_to_num(book["bar_returns"][:, -1]))
    ic = np.asarray(evaluation.series["rank_ic"], np.float64)
    known = ~np.isnan(ic)
    total = np.cumsum(ic[known])
    time = np.asarray(evaluation.series["time"])[known]
    tiles = {tile.name: f"{tile.value} {tile.range}".strip() for tile in headline(f)}
    facts: dict[str, Any] = {
        "horizon": f"{f['horizon']} bars",
        "delay": f["delay"],
        "rebalanced by": f["rebalance"],
        "quantiles": f["quantiles"],
        **{name: f["data"][name] for name in ("first", "last", "dates", "instruments")},
    }
    figures = [
        display.curves(
            {"worth": worth},
            "Worth of 1, long-short, before costs",
            _ends(book["time"]),
            write="{:.3g}".format,
            zero=1.0,
        ),
        display.curves({"sum": total}, "Sum of the rank IC over dates", _ends(time), zero=0.0),
    ]
    about = f"horizon {f['horizon']}, {f['ic']['rank']['dates']:,} dates with returns"
    return display.page(
        "Evaluation",
        about,
        display.notes(evaluation.notes),
        display.tiles(tiles),
        display.columns(*figures),
        display.details("What was evaluated", display.facts(facts)),
    )


def _ends(times: Any) -> tuple[str, str]:
    return (str(times[0])[:10], str(times[-1])[:10]) if len(times) else ("", "")
