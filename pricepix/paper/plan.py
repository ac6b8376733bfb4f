"""What a replication will do: its tasks, the cells that it must skip and why, and what it will take."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from pricepix.paper.cells import Cell
from pricepix.paper.context import Context
from pricepix.paper.formation import DECILES, Formation
from pricepix.paper.parts import Part, parts_of
from pricepix.paper.tasks import Task, device_of, scored_windows, teaching_windows
from pricepix.train.network_spec import CNNSpec
from pricepix.train.splits import Fold

__all__ = ["Estimate", "Plan", "make_plan"]

_MEASURED_SECONDS: Final = 0.4
"""How long each network is tried for an estimate, after its first step."""
_RECORDS: Final = 25_000
"""Bytes of a network's configuration, journal, checkpoints' own records and TensorBoard's, measured on small ones."""
_PAGES: Final = 1_200_000
"""Bytes of a split's tables and its part of the page, measured on four cells."""
_LIBRARIES: Final = 700e6
"""Memory of a process with torch, lightning, Numba and polars loaded, where the system does not tell it."""


@dataclass(frozen=True)
class Load:
    """What a task has to do: images an epoch, and images to score."""

    train: int
    validation: int
    scored: int


@dataclass(frozen=True)
class Estimate:
    """What the tasks that are left will take, from a short measurement on this machine.

    Attributes
    ----------
    hours : float
        At the most epochs; early stopping may end before.
    bytes : int
        On disk.
    memory : int
        Bytes, of one process.
    rates : dict
        Images a second that train, by network.
    """

    hours: float
    bytes: int
    memory: int
    rates: Mapping[str, float]

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.rates.items())
        return (
            f"at most {self.hours:,.2f} hours on this machine, one network after the other; {self.bytes / 1e6:,.0f} MB "
            f"on disk; {self.memory / 1e9:.2f} GB of memory (measured: images a second that train: {rates or 'none'})"
        )


@dataclass
class Plan:
    """The tasks of a replication.

    Attributes
    ----------
    tasks : list of Task
    skipped : dict of (split, cell name) to str
        Why a cell is not learned.
    parts : dict of (split, cell name) to list of Part
        The parts of the cells that are.
    loads : dict
    """

    tasks: list[Task] = field(default_factory=list)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    parts: dict[tuple[str, str], list[Part]] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)

    def add(self, other: Plan) -> None:
        """Take in the tasks of another plan."""
        self.tasks += other.tasks
        self.skipped |= other.skipped
        self.parts |= other.parts
        self.loads |= other.loads

    def missing(self, context: Context) -> list[Task]:
        """Return the tasks that are not done."""
        return [task for task in self.tasks if not task.is_done(context)]

    def estimate(self, context: Context, tasks: Sequence[Task]) -> Estimate:
        """Estimate what tasks will take, from a measurement of a second or so."""
        epochs = context.training.settings.epochs
        specs = {task.path: task.network(context) for task in tasks}
        rates: dict[str, float] = {}
        seconds = size = 0.0
        widest = 0
        for task in tasks:
            spec, load = specs[task.path], self.loads[task.path]
            if spec.name not in rates:
                rates[spec.name] = _training_rate(context, spec)
            # Going forward takes a third of a training step.
            images = epochs * (load.train + load.validation / 3) + load.scored / 3
            seconds += images / rates[spec.name]
            parameters = _parameters(spec)
            # The best weights, and the last with the optimiser's two moments; a score is 4 bytes.
            size += 16.0 * parameters + 4.0 * load.scored + _RECORDS
            if task.seed == 0:
                # The mean over seeds is a column of a table, whose other columns are instrument, time and return.
                size += (8.0 if task.model != "cnn" else 22.0) * load.scored
            widest = max(
                widest, 16 * parameters + 64 * context.training.settings.batch_size * _input_size(spec)
            )
        size += _PAGES * len({task.split for task in tasks})
        memory = _libraries_memory() + context.panel.bars.nbytes + context.panel.time.nbytes
        memory += sum(a.nbytes for a in context.panel.fields.values())
        windows = max((len(context.images(task.cell)) for task in tasks), default=0)
        # A window has its row, instrument, return and exit time; grids of bars by instruments are laid out for tables.
        memory += 24 * windows + widest + 6 * 8 * len(context.panel.calendar) * context.panel.n_instruments
        return Estimate(seconds / 3600, int(size), int(memory), rates)


def make_plan(
    context: Context,
    cells: Sequence[Cell],
    splits: Mapping[str, Any],
    models: Sequence[str],
    seeds: int,
) -> Plan:
    """Plan the tasks of cells, splits, models and seeds; cells that the panel is too short for are skipped.

    Returns
    -------
    Plan
    """
    plan = Plan()
    for cell in cells:
        if cell.image_name in context.training.stores:
            # A store that does not fit is no reason to leave a cell out.
            context.images(cell)
    for split_name, split in splits.items():
        try:
            parts = parts_of(split, context.panel)
        except ValueError as error:
            plan.skipped |= {(split_name, cell.name): str(error) for cell in cells}
            continue
        for cell in cells:
            key = (split_name, cell.name)
            try:
                loads = _loads(context, cell, parts)
            except ValueError as error:
                plan.skipped[key] = str(error).splitlines()[0]
                continue
            plan.parts[key] = parts
            for model in models:
                for part in parts:
                    for seed in range(seeds):
                        task = Task(cell, split_name, part, model, seed)
                        plan.tasks.append(task)
                        plan.loads[task.path] = loads[part.name]
    return plan


def _loads(context: Context, cell: Cell, parts: Sequence[Part]) -> dict[str, Load]:
    """Return the load of every part of a cell; ValueError, whose text is the reason, if it cannot be learned."""
    images = context.images(cell)
    formation = Formation.of(
        context.panel, cell.horizon, context.training.delay, [(part.first, part.last) for part in parts]
    )
    if len(formation) < 2:
        raise ValueError(
            f"the test holds {len(formation)} periods of {cell.horizon} bars that are over: too few for a portfolio"
        )
    decided = context.panel.calendar[formation.decision]
    at = np.searchsorted(decided, images.time)
    at[at == len(formation)] = 0
    stands = decided[at] == images.time
    names = np.bincount(at[stands], minlength=len(formation))
    if names.max(initial=0) < DECILES:
        raise ValueError(
            f"at most {int(names.max(initial=0))} instruments have an image at a formation: too few for {DECILES} "
            "portfolios"
        )
    found = {}
    for part in parts:
        fold = _fold(context, cell, part)
        found[part.name] = Load(
            len(fold.train), len(fold.validation), len(scored_windows(context, cell, part))
        )
    return found


def _fold(context: Context, cell: Cell, part: Part) -> Fold:
    """Divide the windows of a part as training will, with its checks."""
    from pricepix.train.problem import Problem

    mask = teaching_windows(context, cell, part)
    spec = Task(cell, "", part, "cnn", 0).network(context)
    problem = Problem.of(context.images(cell), spec, cell.horizon, "up", "none", mask=mask)
    with contextlib.redirect_stdout(io.StringIO()):
        (fold,) = part.split.folds(problem.samples)
    problem.check_fold(fold)
    return fold


def _libraries_memory() -> float:
    """Bytes that this process takes already; libraries are the most of it, and what else it holds stays."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return _LIBRARIES
    return max(_LIBRARIES, float(pages * os.sysconf("SC_PAGE_SIZE")))


def _parameters(spec: Any) -> int:
    from pricepix.train.models import PriceCNN, SeriesCNN

    network = PriceCNN(spec) if isinstance(spec, CNNSpec) else SeriesCNN(spec)
    return network.parameter_count


def _input_size(spec: Any) -> int:
    if isinstance(spec, CNNSpec):
        return spec.height * spec.width * (1 + sum(block.channels for block in spec.blocks[:1]))
    return spec.channels * spec.lookback


def _training_rate(context: Context, spec: Any) -> float:
    """Images a second of training steps on random inputs, without reading or drawing them."""
    import torch

    from pricepix.train.models import PriceCNN, SeriesCNN

    device, batch = device_of(context.training), context.training.settings.batch_size
    # The weights of a task come from its own seed: nothing here may move torch's generator.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if isinstance(spec, CNNSpec):
            network: Any = PriceCNN(spec)
            inputs = torch.randint(0, 2, (batch, spec.height, spec.width), dtype=torch.uint8) * 255
        else:
            network, inputs = SeriesCNN(spec), torch.rand(batch, spec.channels, spec.lookback)
        network.to(device).train()
        inputs, labels = inputs.to(device), torch.randint(0, 2, (batch,)).to(device)
        optimiser = torch.optim.Adam(network.parameters())
        began, steps = 0.0, -1
        while steps < 1 or perf_counter() - began < _MEASURED_SECONDS:
            loss = torch.nn.functional.cross_entropy(network(inputs), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if device != "cpu":
                torch.cuda.synchronize()
            steps += 1
            if steps == 0:
                began = perf_counter()
        return batch * steps / max(perf_counter() - began, math.ulp(1.0))
