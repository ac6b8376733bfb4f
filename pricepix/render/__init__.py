"""Rendering: windows of OHLCV bars in, exact chart images out."""

from pricepix.render.draw import RenderResult, render_windows, widen
from pricepix.render.reasons import REASONS

__all__ = ["REASONS", "RenderResult", "render_windows", "widen"]
