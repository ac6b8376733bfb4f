"""`replicate`: plan the paper's grid, run what is missing, and render its tables beside the published ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from pricepix._checks import whole_number
from pricepix.bars.panel import Panel
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.universe import Universe
from pricepix.location import Location, atomic_file, write_json
from pricepix.paper import page as pages
from pricepix.paper.cells import MODELS, Cell, cells_of, check_model
from pricepix.paper.choice_of_tables import Tables
from pricepix.paper.context import Context
from pricepix.paper.heat_maps import heat_maps
from pricepix.paper.logits import has_statsmodels
from pricepix.paper.markets import other_markets, transferred
from pricepix.paper.page import Page
from pricepix.paper.parts import splits_of
from pricepix.paper.plan import Plan, make_plan
from pricepix.paper.results import CellResult, cell_result
from pricepix.paper.sections import Request, section_of
from pricepix.paper.tables import Table
from pricepix.paper.tasks import Task
from pricepix.paper.training import Training
from pricepix.paper.transfer import SOURCE, scales_of, with_direct_scores
from pricepix.paper.truth import Truth
from pricepix.paper.workers import run_tasks
from pricepix.store.lock import WriteLock

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Replication", "replicate", "run_replication"]

FORMAT_VERSION: Final = 1
_ROOT: Final = "replication.json"
_TITLE: Final = "(Re-)Imag(in)ing Price Trends, replicated"


@dataclass(frozen=True)
class Replication:
    """A finished replication.

    Attributes
    ----------
    folder : Path
    page : Path
        ``paper.html``: every table beside the published figures, in one file.
    tables : list of Table
    skipped : dict of (split, cell name) to str
        The cells that the panel is too short for, and why.
    results : list of CellResult
    """

    folder: Path
    page: Path
    tables: list[Table]
    skipped: dict[tuple[str, str], str]
    results: list[CellResult] = field(repr=False)

    def table(self, number: str, split: str | None = None) -> Table:
        """Return a table by its number in the paper, of the first split or of the one named."""
        for table in self.tables:
            if table.number == number and split in (None, table.split):
                return table
        known = ", ".join(dict.fromkeys(table.number for table in self.tables if table.number))
        raise KeyError(
            f"there is no table {number!r}{f' of split {split!r}' if split else ''}: there are {known}"
        )

    def scores(self, cell: str, split: str | None = None) -> pl.DataFrame:
        """Return the scores of a cell: instrument, time, forward return, and a column a model."""
        for result in self.results:
            if result.cell.name == cell and split in (None, result.split):
                return pl.read_parquet(self.folder / scores_path(result))
        known = ", ".join(dict.fromkeys(result.cell.name for result in self.results))
        raise KeyError(
            f"there is no cell {cell!r}{f' of split {split!r}' if split else ''}: there are {known}"
        )


def replicate(
    panel: Panel | Any,
    out: str | os.PathLike[str],
    *,
    cells: str | Cell | Iterable[str | Cell] = "jkx",
    seeds: int = 5,
    splits: Any = "paper",
    tables: Tables | Iterable[str] | None = None,
    controls: str | Iterable[str] = ("cnn1d", "logistic"),
    universe: Any = None,
    transfer: Mapping[str, Any] | None = None,
    training: Training | None = None,
    client: Client | None = None,
    echo: Callable[[str], Any] = print,
) -> Replication:
    """Replicate the paper on a panel: train every network, form every portfolio, write every table.

    What it will take is estimated and told before anything runs. A call that was interrupted, or killed, is resumed by
    the same call: finished networks are kept, the one in hand resumes from its last checkpoint, and the result is the
    same. Later calls may ask for more cells, seeds, splits or tables in the same folder.

    Parameters
    ----------
    panel : Panel or anything ``Panel.from_table`` takes
        The bars. With ``total_return`` images are rebuilt as the authors do, and returns are total returns; with
        ``market_cap`` there are value weights.
    out : str or path
        The folder: ``paper.html``, ``tables/`` (CSV and LaTeX), ``scores/`` (Parquet), ``tasks/`` (the networks).
    cells : str, Cell or iterable of them
        ``"jkx"`` for the nine of the paper, ``"week"`` for its weekly ones, or names: ``"I20/R5"`` for images of 20
        bars and returns over 5, any other numbers, and presets (``"it49/R50"``). Cells that the panel is too short for
        are skipped, and the page says why.
    seeds : int
        Networks of each cell that are averaged.
    splits : str, iterable of str, or mapping of name to split
        ``"paper"``: the first part trains, with a random 70/30 validation, what follows is the test (2001 on, where the
        bars begin two years before). ``"time"``: the same with the last 30% as validation. ``"walk"`` and
        ``"expanding"``: a network for each year that is tested. Or splits of ``pricepix.train``, with names.
    tables : Tables or iterable of str, optional
        Numbers of the tables to write, as in the paper; by default all that the networks of `cells` fill. ``"XI"``
        and ``"XII"`` add networks on merged images. ``Tables(characteristics={...})`` adds characteristics of your own
        to Tables V to VII.
    controls : str or iterable of str
        Models that see the numbers behind the images: ``"cnn1d"``, ``"logistic"``, with a scaling after a colon
        (``"cnn1d:return"``); ``"all"``, for the whole Table IX, or ``()``. The first in the image's own scale has
        columns of its own beside the CNN's; all are in Table IX and in the accuracy by decile.
    universe : Universe, mapping, callable or array, optional
        Which instruments portfolios may hold, in every table: see ``pricepix.factor.Universe``.
    transfer : mapping of name to panel, optional
        Other markets, for Table X: each is scored by the networks of `panel`, and by networks trained on itself.
    training : Training, optional
        How networks are trained, where that is not as in the paper.
    client : distributed.Client, optional
        Networks are trained on its workers, one at a time on each of their threads. They must see the folder.
    echo : callable
        Takes a line on what is planned and done.

    Returns
    -------
    Replication

    Raises
    ------
    ValueError
        An argument that cannot be used; every cell is too short; or `out` holds a replication of other bars or with
        another training.
    FileExistsError
        `out` holds something else.
    ImportError
        jinja2 or torch is not installed.
    BlockingIOError
        Another process works in `out`.
    """
    request = Request(
        cells=cells_of(cells),
        splits=splits_of(splits),
        models=_models(controls),
        seeds=whole_number(seeds, "seeds", 1),
        tables=Tables.of(tables),
        universe=Universe.of(universe),
        markets={_checked_name(name): Panel.of(market) for name, market in (transfer or {}).items()},
    )
    panel = Panel.of(panel)
    return run_replication(panel, Path(out), request, training or Training(), client, echo)


def run_replication(
    panel: Panel,
    out: Path,
    request: Request,
    training: Training,
    client: Client | None,
    echo: Callable[[str], Any],
    *,
    title: str = _TITLE,
    truth: Truth | None = None,
) -> Replication:
    """Do what `replicate` does with checked arguments; `truth` is what is known of a simulated market."""
    # Not after hours of training.
    pages.check_installed()
    training = training.resolved(panel)
    context = Context(out, panel, training)
    request = replace(request, cells=tuple(cell.rebuilt(training.rebuild) for cell in request.cells))
    _check_folder(context)
    if request.universe.top is not None and "market_cap" not in panel.fields:
        raise ValueError(
            f"a universe of the {request.universe.top} largest needs market caps, and the panel has none: map a column "
            "to market_cap, or choose by min_dollar_volume"
        )
    named = {cell.image_name for cell in request.cells}
    if unknown := [name for name in training.stores if name not in named]:
        raise ValueError(
            f"stores names {unknown[0]!r}, and no cell has such images: the cells have {', '.join(sorted(named))}"
        )
    request.tables.own(Market.of(panel, panel.instruments))
    markets = other_markets(context, request)
    plan = make_plan(context, request.cells, request.splits, request.models, request.seeds)
    merged = {
        number: cell.rebuilt(training.rebuild) for number, cell in scales_of(request.tables.numbers).items()
    }
    plan.add(make_plan(context, tuple(merged.values()), request.splits, ("cnn",), request.seeds))
    if not plan.tasks:
        reasons = "\n".join(f"  {cell}, {split}: {why}" for (split, cell), why in plan.skipped.items())
        raise ValueError(f"no cell can be learned from {panel!r}:\n{reasons}")
    missing = plan.missing(context)
    _tell("", plan, context, missing, echo)
    for name, target, own in markets:
        _tell(f"transfer to {name}, ", own, target, own.missing(target), echo)
    out.mkdir(parents=True, exist_ok=True)
    with WriteLock(Location.of(out), "replication"):
        root = {"format_version": FORMAT_VERSION, "panel": panel.digest, "training": training.describe()}
        write_json(out / _ROOT, root)
        run_tasks(context, missing, client, echo)
        for _, target, own in markets:
            run_tasks(target, own.missing(target), client, echo)
        results = _results(context, plan, request)
        sections = []
        for split in request.splits:
            of_split = [r for r in results if r.split == split]
            if not of_split:
                continue
            longer = _merged_results(context, plan, merged, split, request.seeds)
            maps = [found for r in of_split if (found := heat_maps(context, plan, r)) is not None]
            section = section_of(context, split, of_split, request, truth, longer)
            sections.append(section._replace(maps=maps))
        for foreign in markets:
            sections += transferred(context, plan, request, foreign)
        tables = [table for section in sections for table in section.tables]
        pages.write_tables(tables, out / "tables")
        skipped = [(f"{cell}, split {split}", why) for (split, cell), why in plan.skipped.items()]
        page = pages.write_page(
            Page(title, _lead(panel, request), _notes(panel), skipped, sections), out / "paper.html"
        )
    echo(f"wrote {page}")
    return Replication(out, page, tables, plan.skipped, results)


def scores_path(result: CellResult) -> Path:
    """Return where the scores of a cell are, below the folder of a replication."""
    return Path("scores") / f"{result.cell.folder}_{result.split}.parquet"


def _checked_name(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"transfer: {name!r} names a folder; give letters, digits and underscores")
    return name


def _models(controls: str | Iterable[str]) -> tuple[str, ...]:
    if controls == "all":
        return MODELS
    named = (controls,) if isinstance(controls, str) else tuple(controls)
    chosen = {check_model(name) for name in named}
    return tuple(model for model in MODELS if model == "cnn" or model in chosen)


def _check_folder(context: Context) -> None:
    """Refuse a folder that holds something else, or a replication of other bars or with another training."""
    out = context.folder
    root = out / _ROOT
    if not root.exists():
        if out.is_dir() and any(path.name not in ("_build", f"{_ROOT}.tmp") for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no replication; give a new folder")
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"{out} is a file; give a folder")
        return
    try:
        found = json.loads(root.read_text(encoding="utf-8"))
        version = found["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root} is damaged: restore it, or give a new folder") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{out} was written in format {version!r}, this release writes {FORMAT_VERSION}: give a new folder"
        )
    if found.get("panel") != context.panel.digest:
        raise ValueError(f"{out} holds a replication on other bars: give those, or a new folder")
    before, now = found.get("training", {}), context.training.describe()
    for name, value in now.items():
        if before.get(name) != json.loads(json.dumps(value)):
            raise ValueError(
                f"{out} holds a replication with another training: {name} was {before.get(name)!r}, is {value!r}; give "
                "the same, or a new folder"
            )


def _tell(
    where: str, plan: Plan, context: Context, missing: Sequence[Task], echo: Callable[[str], Any]
) -> None:
    """Say what is planned, skipped and left, and what it will take."""
    for (split, cell), why in plan.skipped.items():
        echo(f"{where}skipped {cell}, split {split}: {why}")
    done = len(plan.tasks) - len(missing)
    echo(f"{where}plan: {len(plan.tasks)} networks, {done} of them done")
    if missing:
        echo(f"{where}estimate: {plan.estimate(context, missing)}")


def _merged_results(
    context: Context, plan: Plan, merged: Mapping[str, Cell], split: str, seeds: int
) -> dict[str, CellResult]:
    """Scores of the merged cells of a split, by table, with those of networks that never saw such images."""
    found = {}
    for number, cell in merged.items():
        if (split, cell.name) in plan.parts:
            own = cell_result(context, plan, cell, split, ("cnn",), seeds)
            source = Cell.of(SOURCE).rebuilt(context.training.rebuild)
            found[number] = with_direct_scores(context, plan, source, seeds, context, own)
    return found


def _results(context: Context, plan: Plan, request: Request) -> list[CellResult]:
    """Average the scores of every cell, and write them."""
    found = []
    (context.folder / "scores").mkdir(exist_ok=True)
    for split in request.splits:
        for cell in request.cells:
            if (split, cell.name) in plan.parts:
                result = cell_result(context, plan, cell, split, request.models, request.seeds)
                with atomic_file(context.folder / scores_path(result)) as partial:
                    result.to_polars(context).write_parquet(partial)
                found.append(result)
    return found


def _lead(panel: Panel, request: Request) -> str:
    time = panel.calendar
    first, last = (panel.stamp(int(t))[:10] for t in (time[0], time[-1]))
    networks = f"{request.seeds} network{'s' if request.seeds > 1 else ''}"
    return (
        f"{panel.n_instruments:,} instruments, {len(time):,} bars from {first} to {last}; {networks} averaged in every "
        f"cell; universe: {request.universe}."
    )


def _notes(panel: Panel) -> list[str]:
    notes = []
    if "market_cap" not in panel.fields:
        notes.append("The panel has no market caps: value weights and the largest names are left out.")
    if not has_statsmodels():
        notes.append(
            "statsmodels is not installed: Tables VI to VIII are left out (pip install 'pricepix[paper]')."
        )
    if find_spec("captum") is None:
        notes.append("captum is not installed: Grad-CAM is left out (pip install 'pricepix[attribution]').")
    return notes
