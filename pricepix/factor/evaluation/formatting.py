"""How figures are written for people."""

from __future__ import annotations

import numpy as np

__all__ = ["format_number", "format_percent"]


def format_number(value: float, digits: int) -> str:
    """Write a number, a dash if it is not known."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def format_percent(value: float, digits: int = 1) -> str:
    """Write a share as a percentage, a dash if it is not known."""
    return f"{100 * value:.{digits}f}%" if np.isfinite(value) else "-"
