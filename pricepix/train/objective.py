"""What a network minimises: cross-entropy of classes, or the squared error of a number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pricepix.train.models import PriceCNN, SeriesCNN

__all__ = ["Losses", "Objective"]


class Losses(NamedTuple):
    """Sums over a batch, on its device: of the losses, of their weights, and of right answers."""

    loss: Tensor
    weight: Tensor
    right: Tensor


class Objective:
    """The loss of a network's logits: cross-entropy, or the squared error in a network with one output.

    Parameters
    ----------
    network : PriceCNN or SeriesCNN
        Gives the number of outputs, and for a regression the scale of its targets.
    class_weights : Tensor, optional
        Weight of each class in the cross-entropy.
    """

    def __init__(self, network: PriceCNN | SeriesCNN, class_weights: Tensor | None = None) -> None:
        self._network, self._class_weights = network, class_weights

    def to(self, device: torch.device) -> Objective:
        """Move the class weights to a device."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(device)
        return self

    def __call__(self, logits: Tensor, target: Tensor) -> Losses:
        logits = logits.float()
        count = torch.tensor(float(len(target)), device=logits.device)
        if self._network.spec.outputs == 1:
            loss = functional.mse_loss(logits[:, 0], target / self._network.scale, reduction="sum")
            return Losses(loss, count, ((logits[:, 0] > 0) == (target > 0)).sum())
        weights = self._class_weights
        loss = functional.cross_entropy(logits, target, weight=weights, reduction="sum")
        weight = count if weights is None else weights[target].sum()
        return Losses(loss, weight, (logits.argmax(1) == target).sum())
