"""Networks that score what they did not learn on: images of longer stretches, merged into as many bars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pricepix.location import atomic_file, write_json
from pricepix.paper.cells import Cell
from pricepix.paper.context import Context
from pricepix.paper.formation import deciles
from pricepix.paper.plan import Plan
from pricepix.paper.results import CellResult, Signals
from pricepix.paper.tables import Figure
from pricepix.paper.tasks import FORMAT_VERSION, Task, read_done, read_scores, score_windows, scored_windows
from pricepix.spec import ImageSpec

__all__ = ["DIRECT", "SCALES", "merged_cell", "time_scale_figures", "with_direct_scores"]

Floats = NDArray[np.float64]

SCALES: Final = {"XI": (20, 20), "XII": (60, 60)}
"""Lookback and horizon of each table whose images are merged into five bars, as a network of I5/R5 takes them."""

SOURCE: Final = "I5/R5"
DIRECT: Final = "direct"
_BARS, _HEIGHT = 5, 32


def merged_cell(lookback: int, horizon: int) -> Cell:
    """Return the cell of images of `lookback` bars, merged into five: ``I20x4/R20``."""
    k = lookback // _BARS
    image = ImageSpec(lookback, _HEIGHT, ma=(lookback,), volume=True, aggregate=k)
    return Cell(image, horizon, f"I{lookback}x{k}/R{horizon}")


def with_direct_scores(context: Context, plan: Plan, result: CellResult, seeds: int) -> CellResult:
    """Add to a merged cell's scores those of the networks of I5/R5, which never saw such images.

    Each part is scored by the networks that were tested on the same time, so that none has learned from it. Scores are
    kept beside the networks. A split whose parts the source does not share gets none.
    """
    sources = {part.name: part for part in plan.parts.get((result.split, SOURCE), [])}
    source = Cell.of(SOURCE).rebuilt(result.cell.image.rebuild)
    if any(part.name not in sources or sources[part.name] != part for part in result.parts):
        return result
    means = []
    for part in result.parts:
        total = np.zeros(len(scored_windows(context, result.cell, part)))
        for seed in range(seeds):
            total += _direct(context, Task(source, result.split, part, "cnn", seed), result.cell)
        means.append(total / seeds)
    return replace(result, scores={**result.scores, DIRECT: np.concatenate(means)})


def _direct(context: Context, task: Task, cell: Cell) -> NDArray[np.float32]:
    """Scores of a cell's windows by a network that learned another one."""
    folder = context.folder / task.path
    name = f"scores_{cell.folder}"
    path, mark = folder / f"{name}.npy", folder / f"{name}.json"
    identity = {"format_version": FORMAT_VERSION, "source": task.digest(context), "image": cell.image.digest}
    identity |= {"horizon": cell.horizon}
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
    count = len(scored_windows(context, cell, task.part))
    done = read_done(mark)
    if done is not None and done.get("digest") == digest and path.is_file():
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        if content == done.get("scores"):
            return read_scores(path, count)
    scores = score_windows(context, task, cell)
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.save(file, scores, allow_pickle=False)
    checksum = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    write_json(mark, {"digest": digest, "scores": checksum})
    return scores


def time_scale_figures(
    merged: CellResult,
    signals: Signals,
    home: tuple[str, Signals] | None,
    differs: str,
) -> Iterator[Figure]:
    """Yield what highest less lowest earns by the network of I5/R5, by one retrained, and by the cell's own images.

    Parameters
    ----------
    merged : CellResult
        Of the merged images, with direct scores.
    signals : Signals
        Of the same.
    home : (str, Signals), optional
        Name and signals of the cell whose images are not merged.
    """
    rows: list[tuple[str, Signals, Floats]] = []
    for model, title in ((DIRECT, f"Network of {SOURCE}, as it is"), ("cnn", "Trained on the merged images")):
        if model in signals.models:
            rows.append((title, signals, signals.models[model]))
    if home is not None and "cnn" in home[1].models:
        rows.append((f"Trained on images of {home[0]}", home[1], home[1].models["cnn"]))
    for row, shared, signal in rows:
        for weighting in ("Equal weight", "Value weight") if shared.cap is not None else ("Equal weight",):
            found, turnover = deciles(
                shared.formation, signal, shared.returns, shared.cap, weighting == "Value weight"
            )
            yield Figure("", row, weighting, "mean", found[-1].mean, differs=differs)
            yield Figure("", row, weighting, "sharpe", found[-1].sharpe, differs=differs)
            if weighting == "Equal weight":
                yield Figure(
                    "",
                    f"Turnover, {row[0].lower()}{row[1:]}",
                    weighting,
                    "turnover",
                    turnover,
                    differs=differs,
                )


def scales_of(tables: Sequence[str]) -> Mapping[str, Cell]:
    """Return the merged cells that some tables need, by the table's number."""
    return {number: merged_cell(*scale) for number, scale in SCALES.items() if number in tables}
