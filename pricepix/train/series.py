"""The series that networks learn from in place of images: made where images are, for scoring needs them too."""

from __future__ import annotations

from pricepix.images.series import window_series

__all__ = ["window_series"]
