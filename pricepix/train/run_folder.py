"""The folder of a run: its resolved configuration, and the rules by which it is started, resumed and taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pricepix.store.sealed_files import read_sealed_yaml, write_sealed_yaml
from pricepix.train.hyper import is_first_rank

__all__ = [
    "CONFIG",
    "DONE",
    "START",
    "SUMMARY",
    "find_run_folder",
    "is_run",
    "missing_member",
    "open_run_folder",
    "read_config",
    "started_with",
]

CONFIG, SUMMARY, DONE = "config.yaml", "summary.json", "done.json"
START = "start.pt"
"""Weights that a module was given with: all of the run's folds start from them."""
# Of a resolved configuration, what may differ when a run resumes: where it runs, not what it learns.
_FREE = ("device", "pricepix", "store_location")


def find_run_folder(
    out: str | os.PathLike[str] | None, name: str, config: dict[str, Any], resume: bool
) -> Path:
    """Return the folder that a run starts or resumes in.

    Parameters
    ----------
    out : str or path, optional
        By default ``runs/<name>_<number>``, with the next free number.
    name : str
    config : dict
        Plain values; what a run is resumed with must agree with what it was started with.
    resume : bool
        A folder that is empty, as a kill at the very start leaves it, is started anew.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        If the folder is not empty, or `resume` is True and it holds no run, or one of another configuration.
    """
    if out is None:
        if resume:
            raise ValueError("resume=True resumes the run in a folder: give out")
        return _next_folder(name)
    folder = Path(out)
    saved = folder / CONFIG
    if _is_blank(folder):
        return folder
    if resume or (saved.exists() and not is_first_rank()):
        if not saved.exists():
            raise FileNotFoundError(f"{folder} holds no run to resume ({CONFIG} is missing)")
        _check_same(folder, read_config(folder), config)
    elif folder.exists():
        raise FileExistsError(
            f"{folder} exists and is not empty; resume=True resumes its run, another out starts a new one"
        )
    return folder


def _is_blank(folder: Path) -> bool:
    """Whether a folder has nothing but what a run leaves that is killed before it wrote its configuration."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {f"{CONFIG}.tmp"}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the resolved configuration of the run in a folder; ValueError if it is damaged or was edited."""
    return read_sealed_yaml(folder / CONFIG, "restore it, or start a new run")


def started_with(out: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """Return on what device, and how, the run in a folder was started; None if there is none."""
    if out is None or not (Path(out) / CONFIG).exists():
        return None
    device = read_config(Path(out)).get("device")
    return device if isinstance(device, dict) else None


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a run, in any state."""
    folder = Path(path)
    return (folder / CONFIG).exists() or any(folder.glob("member_*")) or any(folder.glob("fold_*/member_*"))


def missing_member(folder: Path) -> Path | None:
    """Return the first folder without a ``best.ckpt`` of the networks that a run, or a fold of one, must have.

    None where all are there, and for a folder of members that belongs to no run.
    """
    place = folder.parent if folder.name.startswith("fold_") else folder
    if not (place / CONFIG).exists():
        return None
    count = read_config(place).get("ensemble")
    members = (folder / f"member_{i}" for i in range(count if isinstance(count, int) else 0))
    return next((own for own in members if not (own / "best.ckpt").exists()), None)


def _next_folder(name: str) -> Path:
    number = 0
    while (Path("runs") / f"{name}_{number}").exists():
        number += 1
    # The first rank makes the folder, and starts the others after that.
    return Path("runs") / f"{name}_{number if is_first_rank() else number - 1}"


def _check_same(folder: Path, before: dict[str, Any], config: dict[str, Any]) -> None:
    # What one of them does not name is at its default there.
    for key in {**config, **before}:
        value = config.get(key)
        if key not in _FREE and before.get(key) != value:
            raise ValueError(
                f"{folder} was started with another {key}: {_difference(before.get(key), value)}. "
                "Resume with the same arguments, or start a new run"
            )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if before.get(key) != now[key]:
                return f"{key} was {before.get(key)!r}, is {now[key]!r}"
    return f"was {before!r}, is {now!r}"


@contextmanager
def open_run_folder(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Make the folder of a run, and take it back if the run fails before its first checkpoint.

    Such a folder would hold nothing to resume from, and be in the way of the next run.
    """
    saved = folder / CONFIG
    if saved.exists():
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed_yaml(saved, config)
    try:
        yield
    except BaseException:
        if next(folder.rglob("*.ckpt"), None) is None:
            for own in (*folder.glob("member_*"), *folder.glob("fold_*")):
                shutil.rmtree(own, ignore_errors=True)
            saved.unlink(missing_ok=True)
            (folder / START).unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    folder.rmdir()
        raise
