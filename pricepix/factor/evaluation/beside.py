"""Several factors side by side in one report: headline figures in columns, long-short returns on one chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pricepix.factor.evaluation.headline import headline
from pricepix.factor.evaluation.result import Evaluation

__all__ = ["SideBySide", "side_by_side"]

_ALIKE = ("horizon", "delay", "rebalance", "quantiles", "convention")
"""What must be the same for figures to be told apart by the factors alone."""


class SideBySide(NamedTuple):
    """A table for the template: names of the columns, and rows of a name and a text for each of them."""

    names: list[str]
    rows: list[tuple[str, list[str]]]


def side_by_side(name: str, evaluation: Evaluation, others: Mapping[str, Evaluation]) -> SideBySide:
    """Set evaluations beside one another.

    Parameters
    ----------
    name : str
        What the first one is called.
    evaluation : Evaluation
    others : mapping of name to Evaluation

    Returns
    -------
    SideBySide
        A row a headline figure, with two standard errors either way where they are known, and the dates.

    Raises
    ------
    ValueError
        Two have one name, or an evaluation differs in the horizon, the delay, the rebalancing, the number of quantiles
        or the convention.
    """
    columns: dict[str, Any] = {name: evaluation.figures}
    for other, found in others.items():
        if not isinstance(found, Evaluation):
            raise TypeError(
                f"beside[{other!r}] is a {type(found).__name__}: give evaluations, of evaluate(...)"
            )
        if other in columns:
            raise ValueError(f"beside: {other!r} is the name of the factor itself: give another name")
        for key in _ALIKE:
            ours, theirs = evaluation.figures[key], found.figures[key]
            if ours != theirs:
                raise ValueError(
                    f"beside[{other!r}] was evaluated with {key}={theirs!r}, {name!r} with {ours!r}: evaluate them "
                    "alike"
                )
        columns[other] = found.figures
    tiles = {column: {tile.name: tile for tile in headline(figures)} for column, figures in columns.items()}
    rows = []
    for label in dict.fromkeys(label for found in tiles.values() for label in found):
        known = [tiles[column].get(label) for column in columns]
        rows.append(
            (label, ["-" if tile is None else f"{tile.value} {tile.range}".strip() for tile in known])
        )
    data = [figures["data"] for figures in columns.values()]
    rows.append(("dates", [f"{d['first']} to {d['last']}, {d['dates']:,}" for d in data]))
    rows.append(("values", [f"{d['values']:,}" for d in data]))
    return SideBySide(list(columns), rows)
