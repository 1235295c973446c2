"""The loss of an ex-model: distillation (Carta 2022, Eq. 9) and cross-entropy, weighted (Eq. 10)."""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

import torch
from torch import Tensor

from exml_fast import ops
from exml_fast.training import softened_kl
from exml_fast.validation import Positive, settings

__all__ = ["UNLABELLED", "Divergence", "Loss", "SquaredError", "distillation_loss"]

UNLABELLED = -1
"""Label of an image of no class."""


class Loss(abc.ABC):
    """A distance between the ex-model's logits and their targets. Units outside the mask count for nothing."""

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean over the batch; ``logits`` and ``target`` (N, K), ``mask`` (N, K) bool."""


@settings
class SquaredError(Loss):
    """Eq. 9.

    Attributes:
        reduction: "mean" over the units in the mask, as the published code, or "sum", the squared norm of Eq. 9.
    """

    name: ClassVar[str] = "mse"
    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Loss`."""
        squares = ((logits - target) * mask).square().sum(1)
        return (squares / mask.sum(1).clamp(min=1)).mean() if self.reduction == "mean" else squares.mean()


@settings
class Divergence(Loss):
    """Kullback-Leibler divergence of the softmax over the units in the mask, times the square of ``temperature``."""

    name: ClassVar[str] = "kl"
    temperature: Positive = 2.0

    def __call__(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Loss`."""
        return softened_kl(target, logits, self.temperature, mask)


def distillation_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor,
    labels: Tensor,
    seen: Tensor,
    loss: Loss,
    *,
    task_labels: bool = False,
    unlabelled: bool = False,
) -> tuple[Tensor, Tensor]:
    """The two terms of Eq. 10, distillation and cross-entropy, means over the batch.

    Args:
        logits: (N, K) of the ex-model.
        target, mask: (N, K), of :func:`exml_fast.continual.ex_model.targets.combined_targets`.
        labels: (N,) positions among the units ``seen``, not among all K.
        seen: int64 positions of the units that any expert has been trained on so far.
        loss: the distance of Eq. 9.
        task_labels: the mask is the image's head, and the cross-entropy is over this head alone.
        unlabelled: ``labels`` may be -1, an image without a label, which adds nothing to the cross-entropy.
    """
    term = loss(logits, target, mask)
    if task_labels:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    logits = logits if len(seen) == logits.shape[1] else logits[:, seen]
    if not unlabelled:
        return term, ops.soft_cross_entropy(logits, labels)
    each = ops.soft_cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return term, torch.where(labels == UNLABELLED, 0.0, each).mean()
