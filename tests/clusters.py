"""Clusters of dask for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def local_client(
    workers: int = 1, threads: int = 1, *, processes: bool = False, **options: Any
) -> Iterator[Any]:
    """Yield a client of a cluster on this machine; skips the test without dask.distributed.

    Its dashboard takes any free port: tests that run side by side would want the same one.
    """
    distributed = pytest.importorskip(
        "distributed", reason="needs dask.distributed: pip install 'pricepix[distributed]'"
    )
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=threads, processes=processes, dashboard_address="127.0.0.1:0",
            **options,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client
