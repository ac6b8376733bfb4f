"""Verifying whatever lies at a location: a store, a factor cache, an embedding, a run, a checkpoint, or a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pricepix.factor.cache import is_factor_cache, open_cache
from pricepix.factor.embedding import is_embedding, open_embedding
from pricepix.store.format import ROOT
from pricepix.store.image_store import open_store
from pricepix.train.run_folder import is_run
from pricepix.workflow.record import RECORD, Record

__all__ = ["verify_location"]


def verify_location(
    location: str, read_bars: Callable[[], Any] | None, progress: bool, **options: Any
) -> list[tuple[str, Any]]:
    """Verify what is at a location; return what it is and its report, or those of all that a pipeline made.

    Parameters
    ----------
    location : str
        An image store, a factor cache, an embedding, the folder of a run, a checkpoint, or the folder of a pipeline.
    read_bars : callable, optional
        Reads the bars that a store was made from; called only for a store.
    progress : bool
        Show a progress bar.
    **options
        Of ``ImageStore.verify``; what is no store takes none of them.
    """
    folder = Path(location)
    if not is_factor_cache(location) and not is_embedding(location) and not _is_of_run(folder):
        bars = None if read_bars is None else read_bars()
        return [("image store", open_store(location).verify(bars, progress=progress, **options))]
    if read_bars or options["depth"] not in (None, "checksums") or options["sample"] is not None:
        raise ValueError(f"{location} is not an image store: leave --panel, --depth and --sample out")
    if is_factor_cache(location):
        return [("factor cache", open_cache(location).verify(progress=progress))]
    if is_embedding(location):
        return [("embedding", open_embedding(location).verify(progress=progress))]
    if (folder / RECORD).exists():
        Record(folder)
        products = [folder / name for name in ("store.zarr", "run", "factor.zarr")]
        return [
            found
            for path in products
            if path.exists()
            for found in verify_location(str(path), None, progress, **options)
        ]
    from pricepix.train.run_verify import verify_run

    return [("checkpoint" if folder.is_file() else "run", verify_run(folder, progress=progress))]


def _is_of_run(path: Path) -> bool:
    """Whether a path is a file, as checkpoints are, or the folder of a run or a pipeline."""
    if not path.exists() or (path / ROOT).exists():
        return False
    return not path.is_dir() or (path / RECORD).exists() or is_run(path)
