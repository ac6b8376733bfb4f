"""Networks that score what they did not learn on: longer stretches merged into as many bars, other markets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

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

__all__ = [
    "DIRECT",
    "SCALES",
    "market_figures",
    "merged_cell",
    "scales_of",
    "time_scale_figures",
    "with_direct_scores",
]

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


def with_direct_scores(
    home: Context, plan: Plan, source: Cell, seeds: int, target: Context, result: CellResult
) -> CellResult:
    """Add to a cell's scores those of networks that learned other images, or on another market.

    Each window is scored by the networks whose own test holds its time, so that none has learned from that time;
    windows of other times have no direct score. Scores are kept beside the networks.

    Parameters
    ----------
    home : Context
        Where the networks were trained.
    plan : Plan
        What was.
    source : Cell
        What they learned.
    seeds : int
    target : Context
        Whose windows are scored: the same, or that of another market.
    result : CellResult
        Of the windows to score.
    """
    whole = np.full(len(target.images(result.cell)), np.nan)
    for part in plan.parts.get((result.split, source.name), []):
        index = scored_windows(target, result.cell, part)
        total = np.zeros(len(index))
        for seed in range(seeds):
            task = Task(source, result.split, part, "cnn", seed)
            total += _direct(home, task, target, result.cell)
        whole[index] = total / seeds
    scores = whole[result.window]
    return result if np.isnan(scores).all() else replace(result, scores={**result.scores, DIRECT: scores})


def _direct(home: Context, task: Task, target: Context, cell: Cell) -> NDArray[np.float32]:
    """Scores of a cell's windows by a network that learned another one; those of an earlier call if they are whole."""
    folder = home.folder / task.path
    name = f"scores_{cell.folder}" if target is home else f"scores_{target.folder.name}_{cell.folder}"
    path, mark = folder / f"{name}.npy", folder / f"{name}.json"
    identity = {
        "format_version": FORMAT_VERSION,
        "source": task.digest(home),
        "panel": target.panel.digest,
        "image": cell.image.digest,
        "horizon": cell.horizon,
    }
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
    done = read_done(mark)
    if done is not None and done.get("digest") == digest and path.is_file():
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        if content == done.get("scores"):
            return read_scores(path, len(scored_windows(target, cell, task.part)))
    scores = score_windows(home, task, target, cell)
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.save(file, scores, allow_pickle=False)
    checksum = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    write_json(mark, {"digest": digest, "scores": checksum})
    return scores


def market_figures(
    results: Sequence[CellResult], signals: Mapping[str, Signals], lookup: Any, differs: str
) -> Iterator[Figure]:
    """Yield Table X: what networks of another market earn here, and those trained here, on the same windows."""
    for weighting, panel in (("equal", "Equal weight"), ("value", "Value weight")):
        means: dict[str, list[float]] = {}
        for result in results:
            shared = signals[result.cell.name]
            if weighting == "value" and shared.cap is None:
                continue
            for model, row in ((DIRECT, "Direct"), ("cnn", "Local")):
                found, _ = deciles(
                    shared.formation, shared.models[model], shared.returns, shared.cap, weighting == "value"
                )
                spread = found[-1]
                yield Figure(
                    panel,
                    row,
                    result.cell.name,
                    "sharpe",
                    spread.sharpe,
                    differs=differs,
                    error=spread.sharpe_error,
                )
                means.setdefault(row, []).append(found[-1].sharpe)
        for row, values in means.items():
            known = lookup("X", "", row.lower(), weighting, "mean", "sharpe")
            yield Figure(panel, row, "Mean", "sharpe", float(np.mean(values)), known, differs)


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
            spread = found[-1]
            for statistic, value, error in (
                ("mean", spread.mean, spread.mean_error), ("sharpe", spread.sharpe, spread.sharpe_error)
            ):  # fmt: skip
                yield Figure("", row, weighting, statistic, value, differs=differs, error=error)
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
