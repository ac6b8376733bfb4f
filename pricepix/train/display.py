"""The page that a notebook shows for a finished run: curves of the losses, and the test of each fold."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pricepix.bars import display

__all__ = ["run_page"]

_MOST_FIGURES = 6


def run_page(run: Any) -> str:
    """Return a page of HTML; curves are read from ``metrics.csv`` of each network, where it still is."""
    rows = [[fold.fold.name, len(fold.members), *_figures(fold.test)] for fold in run.folds]
    head = ["fold", "networks", *dict.fromkeys(name for fold in run.folds for name in fold.test)]
    for row in rows:
        row += ["no test part"] + [""] * (len(head) - len(row) - 1) if len(row) < len(head) else []
    figures: list[display.Html] = []
    for fold in run.folds:
        for member in range(len(fold.members)):
            if len(figures) < _MOST_FIGURES:
                figures.append(
                    _curves(fold.folder / f"member_{member}" / "metrics.csv", f"{fold.fold.name}, {member}")
                )
    networks = sum(len(fold.members) for fold in run.folds)
    counted = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((len(run.folds), "fold"), (networks, "network"))]
    return display.page(
        type(run).__name__,
        f"{', '.join(counted)} in {run.out}",
        display.columns(*figures),
        display.table(head, rows, words=(0,)),
        display.details(
            "Configuration", display.facts({k: v for k, v in run.config.items() if v is not None})
        ),
    )


def _figures(test: dict[str, Any]) -> list[str]:
    return [f"{value:.4f}" if isinstance(value, float) else f"{value:,}" for value in test.values()]


def _curves(path: Path, title: str) -> display.Html:
    try:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        steps = [int(row["step"]) for row in found]
        losses = {
            name: [float(row[column]) for row in found]
            for name, column in (("validation", "val_loss"), ("training", "train_loss"))
        }
    except (OSError, ValueError, KeyError, TypeError):
        return display.Html("")
    if not steps:
        return display.Html("")
    ends = f"step {steps[0]:,}", f"step {steps[-1]:,}"
    return display.curves(losses, f"Loss of fold {title}", ends)
