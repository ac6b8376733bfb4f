"""What a network learns. Made where forward returns are, since a loop of anyone's own needs it without training."""

from __future__ import annotations

from pricepix.windows.targets import Balance, Targets, balanced, class_weights, make_targets

__all__ = ["Balance", "Targets", "balanced", "class_weights", "make_targets"]
