"""The folder of a run: its resolved configuration, and the rules by which it is started, resumed and taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pricepix.location import RUN_YAML_NODES, atomic_file, read_yaml
from pricepix.train.hyper import is_first_rank

__all__ = ["CONFIG", "START", "find_run_folder", "open_run_folder"]

CONFIG = "config.yaml"
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
        _check_same(folder, _read_config(saved), config)
    elif folder.exists():
        raise FileExistsError(
            f"{folder} exists and is not empty; resume=True resumes its run, another out starts a new one"
        )
    return folder


def _is_blank(folder: Path) -> bool:
    """Whether a folder has nothing but what a run leaves that is killed before it wrote its configuration."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {f"{CONFIG}.tmp"}


def _read_config(path: Path) -> dict[str, Any]:
    found = read_yaml(path, RUN_YAML_NODES)
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} is damaged: it does not hold the settings of a run; restore it, or start a new run"
        )
    return found


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
    with atomic_file(saved) as partial:
        partial.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
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
