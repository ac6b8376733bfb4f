"""What a network minimises: of classes, of numbers, or of the order of a date's windows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pricepix._checks import choice, short
from pricepix.train.models import Network

__all__ = ["LOSSES", "Labels", "Losses", "Objective", "check_loss", "quantile_of"]

LOSSES = ("auto", "huber", "pairwise", "listwise", "pinball:Q")
_PINBALL = "pinball:"
BY_DATE = ("pairwise", "listwise")
"""Losses over the windows of one date: batches then hold whole dates."""


class Losses(NamedTuple):
    """Sums over a batch, on its device: of the losses, of their weights, and of right answers."""

    loss: Tensor
    weight: Tensor
    right: Tensor


class Labels:
    """The targets of a batch with the weights of its samples, or their dates.

    Parameters
    ----------
    values : Tensor
        Classes int64, or numbers float32: (b,), or (b, heads).
    weight : Tensor, optional
        float32 (b,).
    date : Tensor, optional
        int64 (b,): equal for windows of one date.
    """

    def __init__(self, values: Tensor, weight: Tensor | None = None, date: Tensor | None = None) -> None:
        self.values, self.weight, self.date = values, weight, date

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device, non_blocking: bool = False) -> Labels:
        """Return the labels on a device."""
        parts = (self.values, self.weight, self.date)
        return Labels(*(None if x is None else x.to(device, non_blocking=non_blocking) for x in parts))  # type: ignore[arg-type]

    def pin_memory(self) -> Labels:
        """Return the labels in pinned memory."""
        parts = (self.values, self.weight, self.date)
        return Labels(*(x.pin_memory() if x is not None and x.device.type == "cpu" else x for x in parts))  # type: ignore[arg-type]


def quantile_of(loss: str) -> float | None:
    """Return the quantile that ``pinball:Q`` learns, above 0 and below 1; None of another loss."""
    if not isinstance(loss, str) or not loss.startswith(_PINBALL):
        return None
    try:
        found = float(loss.removeprefix(_PINBALL))
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise ValueError(
            f"loss={short(loss)}: give the quantile to learn, above 0 and below 1, as in 'pinball:0.9'"
        )
    return found


def check_loss(loss: str, outputs: int, heads: int) -> str:
    """Return a loss that suits a network's outputs, or raise ValueError."""
    if quantile_of(loss) is None:
        choice(loss, "loss", LOSSES)
    if loss != "auto" and outputs != 1:
        raise ValueError(
            f"loss={loss!r} is of numbers, the target has {outputs} classes: take 'rank' or 'return'"
        )
    if loss in BY_DATE and heads > 1:
        raise ValueError(f"loss={loss!r} orders windows by one number: give one horizon, not {heads}")
    return loss


class Objective:
    """The loss of a network's logits.

    ``auto`` is cross-entropy, or the squared error in a network with one output, ``huber`` the squared error that
    grows on a line beyond one standard deviation. ``pairwise`` (RankNet, Burges et al. 2005) is the cross-entropy of
    which of two windows of a date has the higher target; ``listwise`` (ListNet, Cao et al. 2007) that of the
    softmax of a date's targets, in standard deviations, against the softmax of its outputs. ``pinball:Q`` (Koenker and
    Bassett 1978) learns the quantile Q of the targets: what lies above the output weighs Q, what lies below 1 - Q.

    Parameters
    ----------
    network : Network
        Gives the number of outputs, and for a regression the scale of its targets.
    class_weights : Tensor, optional
        Weight of each class in the cross-entropy.
    loss : {"auto", "huber", "pairwise", "listwise"} or str
        ``pinball:Q`` with a quantile Q, such as ``pinball:0.9``.
    """

    def __init__(self, network: Network, class_weights: Tensor | None = None, loss: str = "auto") -> None:
        self._network, self._class_weights, self._loss = network, class_weights, loss
        self._quantile = quantile_of(loss)

    def to(self, device: torch.device) -> Objective:
        """Move the class weights to a device."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(device)
        return self

    def __call__(self, logits: Tensor, target: Tensor | Labels) -> Losses:
        labels = target if isinstance(target, Labels) else Labels(target)
        spec, weight = self._network.spec, labels.weight
        logits, values = self._network.by_head(logits.float()), labels.values
        if spec.outputs == 1:
            values = values / self._network.scale
        if spec.heads > 1:
            logits, values = logits.flatten(0, 1), values.flatten()
            weight = None if weight is None else weight.repeat_interleave(spec.heads)
        count = torch.tensor(float(len(values)), device=logits.device)
        if spec.outputs == 1:
            right = ((logits[:, 0] > 0) == (values > 0)).sum() / spec.heads
            if self._loss in BY_DATE:
                assert labels.date is not None
                ordered = _pairwise if self._loss == "pairwise" else _listwise
                return Losses(*ordered(logits[:, 0], values, labels.date, weight), right)
            if weight is None and self._quantile is None:
                return Losses(self._fault(logits[:, 0], values, reduction="sum"), count, right)
            each = self._each(logits[:, 0], values)
            own = torch.ones_like(each) if weight is None else weight
            return Losses((each * own).sum(), own.sum(), right)
        right = (logits.argmax(1) == values).sum() / spec.heads
        classes = self._class_weights
        if weight is None:
            loss = functional.cross_entropy(logits, values, weight=classes, reduction="sum")
            return Losses(loss, count if classes is None else classes[values].sum(), right)
        each = functional.cross_entropy(logits, values, weight=classes, reduction="none")
        both = weight if classes is None else weight * classes[values]
        return Losses((each * weight).sum(), both.sum(), right)

    @property
    def _fault(self) -> Any:
        return functional.huber_loss if self._loss == "huber" else functional.mse_loss

    def _each(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Loss of each output."""
        if self._quantile is None:
            found: Tensor = self._fault(outputs, values, reduction="none")
            return found
        above = values - outputs
        return torch.maximum(self._quantile * above, (self._quantile - 1) * above)


def _pairwise(scores: Tensor, values: Tensor, date: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over all pairs of one date of which the first has the higher target, and the pairs' weights."""
    first, second = torch.nonzero(
        (date[:, None] == date[None, :]) & (values[:, None] > values[None, :]), as_tuple=True
    )
    each = functional.softplus(scores[second] - scores[first])
    share = torch.ones_like(each) if weight is None else weight[first] * weight[second]
    return (each * share).sum(), _above_zero(share.sum())


def _listwise(scores: Tensor, values: Tensor, date: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over dates of two windows or more, each as heavy as its windows, and the weights."""
    _, place, count = torch.unique(date, return_inverse=True, return_counts=True)
    groups = len(count)

    def log_softmax(x: Tensor) -> Tensor:
        top = torch.full((groups,), -torch.inf, device=x.device).scatter_reduce(0, place, x, "amax")
        shifted = x - top.detach()[place]
        total = torch.zeros(groups, device=x.device).scatter_add(0, place, shifted.exp())
        return shifted - total.log()[place]

    own = torch.ones_like(scores) if weight is None else weight
    heavy = torch.zeros(groups, device=scores.device).scatter_add(0, place, own) * (count > 1)
    each = torch.zeros(groups, device=scores.device).scatter_add(
        0, place, -log_softmax(values).exp() * log_softmax(scores)
    )
    return (each * heavy).sum(), _above_zero(heavy.sum())


def _above_zero(weight: Tensor) -> Tensor:
    """A batch without a pair has a loss of 0, not of 0 / 0."""
    return torch.where(weight > 0, weight, torch.ones_like(weight))
