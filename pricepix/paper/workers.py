"""Tasks one after the other in this process, or side by side on the workers of a dask cluster."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pricepix._version import __version__
from pricepix.paper.bars_folder import open_bars, save_bars
from pricepix.paper.context import Context
from pricepix.paper.tasks import Task, run_task
from pricepix.paper.training import Training

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["run_tasks"]

RETRIES: Final = 3
"""How often a task may fail, or its worker die, before the replication stops."""

_contexts: dict[tuple[str, str], Context] = {}
_opening = threading.Lock()


def run_tasks(
    context: Context, tasks: Sequence[Task], client: Client | None, told: Callable[[str], Any]
) -> None:
    """Run tasks; tell each that is done.

    On a cluster each worker trains one network at a time for each of its threads: start it with one thread a worker.
    The task of a worker that is lost resumes on another one from its last checkpoint.

    Raises
    ------
    ConnectionError
        The cluster was stopped, or its workers have no pricepix.
    """
    if client is None:
        for number, task in enumerate(tasks, 1):
            run_task(context, task)
            told(f"{number} of {len(tasks)}: {task.name}")
        return
    if not tasks:
        return
    folder = context.folder.resolve()
    save_bars(folder / "bars", context.panel)
    _check_workers(client, folder, context.panel.digest)
    _run_on_workers(client, folder, context, tasks, told)


def _run_on_workers(
    client: Client, folder: Path, context: Context, tasks: Sequence[Task], told: Callable[[str], Any]
) -> None:
    from distributed import as_completed
    from distributed.comm import CommClosedError

    futures = {
        client.submit(
            _run_remote, str(folder), context.panel.digest, context.training, task,
            key=f"pricepix-{task.path}-{task.digest(context)}", pure=False, retries=RETRIES,
            # The longest first, so that no worker is left with a large network at the end.
            priority=task.input_size(context),
        ): task
        for task in tasks
    }  # fmt: skip
    try:
        for number, future in enumerate(as_completed(list(futures)), 1):
            future.result()
            told(f"{number} of {len(tasks)}: {futures[future].name}")
    except (CancelledError, CommClosedError) as error:
        raise ConnectionError(
            "the cluster lost the tasks that were given to it: its scheduler was stopped or restarted; the same call "
            "resumes from what is done"
        ) from error
    finally:
        with suppress(Exception):
            client.cancel(list(futures), asynchronous=False, force=True)


def _check_workers(client: Client, folder: Path, digest: str) -> None:
    """Refuse workers without the package, with another release of it, or that do not see the folder."""
    try:
        found = client.run(_worker_faults, str(folder), digest, on_error="return")
    except Exception as error:
        raise ConnectionError(
            f"the workers cannot run pricepix: {error}; install it on every machine"
        ) from error
    if not found:
        raise ConnectionError("the cluster has no workers: start some, or leave client out")
    for address, fault in found.items():
        if missing := _missing_module(fault):
            raise ConnectionError(
                f"worker {address} has no {missing}: install pricepix[train] {__version__} on every machine"
            )
        if isinstance(fault, BaseException):
            raise ConnectionError(f"worker {address} cannot take part: {fault}")
        if fault != __version__:
            raise ConnectionError(
                f"worker {address} has pricepix {fault}, this process {__version__}: install the same"
            )


def _missing_module(fault: Any) -> str | None:
    """Name the module that a worker lacks; None if it lacks none.

    What cannot be unpickled there comes back as an exception that only quotes the first one.
    """
    if isinstance(fault, ModuleNotFoundError):
        return fault.name
    quoted = (
        re.search(r"ModuleNotFoundError\(.*?'(\w+)", str(fault)) if isinstance(fault, BaseException) else None
    )
    return quoted[1] if quoted else None


def _worker_faults(folder: str, digest: str) -> str:
    open_bars(Path(folder) / "bars", digest)
    return __version__


def _run_remote(folder: str, digest: str, training: Training, task: Task) -> str:
    run_task(_context(folder, digest, training), task)
    return task.path


def _context(folder: str, digest: str, training: Training) -> Context:
    """This process's context of a replication. Only the last one is kept: a panel may fill half the memory."""
    with _opening:
        known = _contexts.get((folder, digest))
        if known is None or known.training != training:
            _contexts.clear()
            _contexts[folder, digest] = Context(
                Path(folder), open_bars(Path(folder) / "bars", digest), training
            )
        return _contexts[folder, digest]
