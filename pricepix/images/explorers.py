"""What ``ImageSet.explore`` opens. It stands above this package, so it is handed down and not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["open_explorer", "register_explorer"]

_explorers: list[Callable[..., Any]] = []


def register_explorer(explorer: Callable[..., Any]) -> None:
    """Say what opens a page to look through images; it is called with them and the arguments of ``explore``."""
    _explorers[:] = [explorer]


def open_explorer(images: Any, **options: Any) -> Any:
    """Open the page of some images."""
    return _explorers[0](images, **options)
