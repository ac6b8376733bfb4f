"""The bars of a replication on disk, where the workers of a cluster map them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from pricepix.bars.panel import Panel
from pricepix.location import atomic_file, write_json

__all__ = ["open_bars", "save_bars"]

FORMAT_VERSION: Final = 1
_ROOT: Final = "bars.json"
_ARRAYS: Final = ("bars", "offsets", "instruments", "time")


def save_bars(folder: Path, panel: Panel) -> None:
    """Write a panel's arrays into a folder, unless it has them."""
    if _digest(folder) == panel.digest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ROOT).unlink(missing_ok=True)
    arrays = {name: getattr(panel, name) for name in _ARRAYS}
    arrays |= {f"field-{name}": values for name, values in panel.fields.items()}
    for name, values in arrays.items():
        with atomic_file(folder / f"{name}.npy") as partial, open(partial, "wb") as file:
            np.save(file, values, allow_pickle=False)
    root = {
        "format_version": FORMAT_VERSION,
        "digest": panel.digest,
        "tz": panel.tz,
        "fields": list(panel.fields),
    }
    write_json(folder / _ROOT, root)


def open_bars(folder: Path, digest: str) -> Panel:
    """Open the panel of a digest, mapped and not read.

    Raises
    ------
    FileNotFoundError
        The folder is not there: the path is that of another machine.
    ValueError
        It holds other bars, or those of another version.
    """
    if not (folder / _ROOT).is_file():
        raise FileNotFoundError(
            f"this worker finds no bars in {folder}: the folder of the replication must be the same on every machine"
        )
    root = json.loads((folder / _ROOT).read_text(encoding="utf-8"))
    if root.get("format_version") != FORMAT_VERSION or root.get("digest") != digest:
        raise ValueError(
            f"{folder} holds bars of version {root.get('format_version')!r} and digest {root.get('digest')!r}, not "
            f"version {FORMAT_VERSION} and digest {digest!r}: start the replication again"
        )

    def read(name: str) -> np.ndarray:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    fields = {name: read(f"field-{name}") for name in root["fields"]}
    bars, offsets, instruments, time = (read(name) for name in _ARRAYS)
    return Panel(bars, offsets, instruments, time, root["tz"], fields)


def _digest(folder: Path) -> str | None:
    try:
        root = json.loads((folder / _ROOT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root.get("digest") if root.get("format_version") == FORMAT_VERSION else None
