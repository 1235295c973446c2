"""What the knowledge delegator and its student minimise (Ye 2022, sec. III.B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exml_fast import ops
from exml_fast.engine.statistics import LayerStatistics

__all__ = ["category_loss", "diversity_loss", "feature_discrepancy", "feature_regularization", "scaled_gradient"]


def feature_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """1 − cos of the features (N, F) of two networks, mean over the rows: a scalar in [0, 2] (Ye 2022, Eqs. 1, 2)."""
    return (1 - torch.nn.functional.cosine_similarity(teacher.float(), student.float(), dim=1)).mean()


def category_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (N, K) with their own largest entry, mean over the rows (Ye 2022, Eqs. 4, 5)."""
    return ops.soft_cross_entropy(logits, logits.detach().argmax(1))


def diversity_loss(logits: Tensor) -> Tensor:
    """Σ_k w_k log w_k of the mean probabilities w (K,) of a batch of logits (N, K) (Ye 2022, Eq. 6).

    Between −log K, where the batch has every class equally often, and 0, where it has one class.
    """
    log_mean = logits.log_softmax(1).logsumexp(0) - torch.tensor(float(len(logits))).log()
    return (log_mean.exp() * log_mean).sum()


def feature_regularization(layers: Sequence[LayerStatistics], moment: str = "var") -> Tensor:
    """Σ_l ‖μ_l − μ̂_l‖₂ + ‖σ_l − σ̂_l‖₂ of the inputs of the teacher's BatchNorms: a scalar (Ye 2022, Eq. 7).

    Args:
        layers: statistics of a batch and running statistics of each BatchNorm (Yin 2020, Eq. 4).
        moment: what σ is: "var" as in the paper's text, "std" as its symbol suggests.
    """
    _, means, variances, target_means, target_variances = map(list, zip(*layers, strict=True))
    return ops.match_statistics(means, variances, target_means, target_variances, None, "l2", moment)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor`` on its way back. With 0, ``x`` is detached."""
    if factor == 0:
        return x.detach()
    scaled: Tensor = _ScaledGradient.apply(x, factor)
    return scaled
