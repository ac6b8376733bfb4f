"""Drawing on a dask cluster: workers get paths, not bars."""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import optional_module
from pricepix.bars.panel import Panel
from pricepix.build.chunk_writer import ChunkWriter, run_task
from pricepix.build.plan import Plan, Task
from pricepix.location import BUILD, Folder, Location
from pricepix.spec import ImageSpec
from pricepix.windows.index import WindowIndex

if TYPE_CHECKING:
    from distributed import Client

PANEL: Final = f"{BUILD}/panel"
# How often a partition may raise, or its worker die, before the build stops.
RETRIES: Final = 3

_loaded: dict[str, ChunkWriter] = {}
_loading = threading.Lock()


def run_on_cluster(
    client: Client, where: Location, plan: Plan, windows: WindowIndex, tasks: Sequence[Task]
) -> Iterator[Task]:
    """Do work on the workers of a cluster; yield what is done.

    The panel and the windows are written below ``_build/panel`` of the store once. Workers map those files, so
    that the processes of a machine share one copy; from an object store each process reads them once.
    """
    from distributed import as_completed
    from distributed.comm import CommClosedError

    if not tasks:
        return
    token = write_panel(where, plan, windows)
    run = uuid.uuid4().hex[:8]
    futures = [
        client.submit(
            run_remote_task,
            where,
            plan,
            windows.spec,
            token,
            task,
            key=f"pricepix-{run}-{task.kind}-{task.first}",
            pure=False,
            retries=RETRIES,
        )
        for task in tasks
    ]
    try:
        for future in as_completed(futures):
            yield Task(*future.result())
    except (CancelledError, CommClosedError) as error:
        raise ConnectionError(
            "the cluster lost the work that was given to it: its scheduler was stopped or restarted"
        ) from error
    finally:
        # A scheduler that is gone has nothing to cancel, and must not hide why the build stopped.
        with suppress(Exception):
            client.cancel(futures, asynchronous=False, force=True)


def write_panel(where: Location, plan: Plan, windows: WindowIndex) -> str:
    """Write the arrays of a panel and its windows below a store, unless they are there; return their digest."""
    panel = windows.panel
    token = f"{plan.panel_digest}-{plan.windows_digest}"
    stored = where.get(f"{PANEL}/panel.json")
    if stored is not None and json.loads(bytes(stored)).get("token") == token:
        return token
    arrays: dict[str, NDArray[Any]] = {
        "bars": panel.bars,
        "offsets": panel.offsets,
        "instruments": panel.instruments,
        "time": panel.time,
        "row": windows.row,
        "instrument": windows.instrument,
        **{f"field-{name}": values for name, values in panel.fields.items()},
    }
    for name, values in arrays.items():
        if isinstance(where, Folder):
            path = where.path / PANEL / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values, allow_pickle=False)
        else:
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            where.put(f"{PANEL}/{name}.npy", buffer.getvalue())
    described = {"token": token, "tz": panel.tz, "arrays": sorted(arrays)}
    where.put(f"{PANEL}/panel.json", json.dumps(described).encode())
    return token


def run_remote_task(
    where: Location, plan: Plan, spec: ImageSpec, token: str, task: Task
) -> tuple[str, int, int]:
    """Do one piece of work, on the worker that this runs on."""
    done = run_task(_chunk_writer(where, plan, spec, token), Task(*task))
    return (done.kind, done.first, done.last)


def _chunk_writer(where: Location, plan: Plan, spec: ImageSpec, token: str) -> ChunkWriter:
    """This process's writer for a plan. Only the last one is kept: a panel may fill half the memory."""
    name = f"{where.name} {token} {plan!r}"
    with _loading:
        if name not in _loaded:
            _loaded.clear()
            _loaded[name] = _open_writer(where, plan, spec, token)
        return _loaded[name]


def _open_writer(where: Location, plan: Plan, spec: ImageSpec, token: str) -> ChunkWriter:
    stored = where.get(f"{PANEL}/panel.json")
    if stored is None:
        raise FileNotFoundError(
            f"this worker finds no {PANEL} in {where.name}: the path must be the same folder on every machine"
        )
    described = json.loads(bytes(stored))
    if described["token"] != token:
        raise ValueError(f"store {where.name} is now being built from a different panel")

    def read(name: str) -> NDArray[Any]:
        if isinstance(where, Folder):
            return np.asarray(np.load(where.path / PANEL / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        content = where.get(f"{PANEL}/{name}.npy")
        if content is None:
            raise FileNotFoundError(
                f"{where.name} holds no {PANEL}/{name}.npy: build it again with mode='resume'"
            )
        found: NDArray[Any] = np.load(io.BytesIO(bytes(content)), allow_pickle=False)
        return found

    fields = {name: read(name) for name in described["arrays"] if name.startswith("field-")}
    panel = Panel(
        read("bars"),
        read("offsets"),
        read("instruments"),
        read("time"),
        described["tz"],
        {name.removeprefix("field-"): values for name, values in fields.items()},
    )
    windows = WindowIndex(panel, spec, read("row"), read("instrument"), {}, {})
    return ChunkWriter(where, plan.geometry, windows, plan.rule)


@contextmanager
def client_of(scheduler: str | None) -> Iterator[Client | None]:
    """Connect to the dask scheduler at an address; None for no scheduler."""
    if scheduler is None:
        yield None
        return
    distributed = optional_module("distributed", "distributed", "--scheduler")
    with distributed.Client(scheduler) as client:
        yield client
