"""Losses of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import accumulator, fake


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy of softmax(``logits / temperature``) with ``target`` (Nayak 2021, Eq. 2; Carta 2022, 4).

    −Σ_k target_k log softmax(logits / τ)_k for every row. No factor τ² is applied. Differentiable once, with respect
    to ``logits``.

    Args:
        logits: (N, K), float32, bfloat16 or float64.
        target: class indices (N,) int64, or soft targets (N, K), floating point, which need not sum to one; a constant.
        temperature: τ > 0.
        reduction: ``"mean"`` over the rows, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or (N,) for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype, device or temperature, an empty batch, or a target
            that requires grad.
        IndexError: for a class index outside [0, K) on the CPU. On CUDA such a row's loss is NaN.
    """
    return torch.ops.exml.soft_cross_entropy(logits, target, temperature, reduction)


@fake("_soft_cross_entropy_forward")
def _(logits: Tensor, target: Tensor, temperature: float, reduction: str) -> tuple[Tensor, Tensor]:
    dtype, rows = accumulator(logits), logits.shape[0]
    return logits.new_empty((rows,) if reduction == "none" else (), dtype=dtype), logits.new_empty((rows,), dtype=dtype)


@fake("_soft_cross_entropy_backward")
def _(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, temperature: float, reduction: str) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Competition 1 − JS(p, q) of a student with its teacher (Yin 2020, Eq. 8): low where they disagree.

    For every row p = softmax(``teacher_logits / temperature``), q = softmax(``student_logits / temperature``) and
    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ (p + q), in nats: 1 where they agree, 1 − ln 2 where they have no
    class in common. Probabilities are not clamped. No factor τ² is applied. Differentiable once, with respect to both
    logits.

    Args:
        teacher_logits: (N, K), float32, bfloat16 or float64.
        student_logits: the same shape, dtype and device. The two may be exchanged.
        temperature: τ > 0.
        reduction: ``"mean"`` over the rows, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or (N,) for ``"none"``; float32 (float64 for float64 logits). A NaN or an infinity among a row's logits,
        or its logits / τ, gives NaN for the row and its gradients. This includes a class that both logits exclude by
        −∞: give such a class a large negative number instead.

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype, device or temperature, an unknown ``reduction``, or
            an empty batch.
    """
    return torch.ops.exml.jensen_shannon(teacher_logits, student_logits, temperature, reduction)


@fake("_jensen_shannon_forward")
def _(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, rows = accumulator(teacher_logits), teacher_logits.shape[0]
    loss = teacher_logits.new_empty((rows,) if reduction == "none" else (), dtype=dtype)
    return loss, teacher_logits.new_empty((rows,), dtype=dtype), teacher_logits.new_empty((rows,), dtype=dtype)


@fake("_jensen_shannon_backward")
def _(
    grad: Tensor,
    logits: Tensor,
    other_logits: Tensor,
    lse: Tensor,
    other_lse: Tensor,
    temperature: float,
    reduction: str,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
