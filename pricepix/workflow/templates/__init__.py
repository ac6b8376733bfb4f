"""Commented configurations to begin with, which do what the paper and other projects did: YAML files beside this."""

from __future__ import annotations

from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Final

from pricepix._checks import choice

__all__ = ["TEMPLATES", "init_config"]

TEMPLATES: Final = ("image_trading", "cnn_for_trading", "jkx")


def init_config(like: str, path: str | PathLike[str] | None = None) -> str:
    """Return a commented configuration of ours that does what another project did.

    Parameters
    ----------
    like : {"image_trading", "cnn_for_trading", "jkx"}
    path : str or path, optional
        Also write it there; a file that exists is not overwritten.

    Raises
    ------
    ValueError
        Another project; the message names the nearest.
    FileExistsError
        There is a file at `path`.
    """
    choice(like, "like", TEMPLATES)
    text = files(__package__).joinpath(f"{like}.yaml").read_text(encoding="utf-8")
    text = text.replace("$NAME", "config.yaml" if path is None else Path(path).name)
    if path is not None:
        if Path(path).exists():
            raise FileExistsError(f"{path} exists already: give another path")
        Path(path).write_text(text, encoding="utf-8")
    return text
