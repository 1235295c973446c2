"""Losses of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops import _checks as check
from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import accumulator, fake
from exml_fast.ops._registration import define, kernels


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
    loss: Tensor = _call_soft_cross_entropy(logits, target, temperature, reduction)
    return loss


class _SoftCrossEntropy(Derivative):
    op = "soft_cross_entropy"

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, temperature: float, reduction: str) -> Tensor:
        loss, lse = kernels._soft_cross_entropy_forward(logits, target, temperature, reduction)
        ctx.save_for_backward(logits, target, lse)
        ctx.settings = temperature, reduction
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        backward = kernels._soft_cross_entropy_backward
        of_logits = once_differentiable(
            "soft_cross_entropy", (grad, saved[0]), lambda: backward(grad, *saved, *ctx.settings)
        )
        return of_logits, None, None, None


def _soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    check.constant("soft_cross_entropy", target=target)
    loss: Tensor = _SoftCrossEntropy.apply(logits, target, temperature, reduction)
    return loss


_call_soft_cross_entropy = define("soft_cross_entropy", _soft_cross_entropy)


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
    loss: Tensor = _call_jensen_shannon(teacher_logits, student_logits, temperature, reduction)
    return loss


class _JensenShannon(Derivative):
    op = "jensen_shannon"

    @staticmethod
    def forward(ctx: Any, teacher_logits: Tensor, student_logits: Tensor, temperature: float, reduction: str) -> Tensor:
        loss, *lses = kernels._jensen_shannon_forward(teacher_logits, student_logits, temperature, reduction)
        ctx.save_for_backward(teacher_logits, student_logits, *lses)
        ctx.settings = temperature, reduction
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        teacher, student, teacher_lse, student_lse = ctx.saved_tensors
        backward = kernels._jensen_shannon_backward

        def gradient(wanted: bool, *tensors: Tensor) -> Tensor | None:
            if not wanted:
                return None
            result: Tensor = once_differentiable(
                "jensen_shannon", (grad, teacher, student), lambda: backward(grad, *tensors, *ctx.settings)
            )
            return result

        of_teacher = gradient(ctx.needs_input_grad[0], teacher, student, teacher_lse, student_lse)
        of_student = gradient(ctx.needs_input_grad[1], student, teacher, student_lse, teacher_lse)
        return of_teacher, of_student, None, None


def _jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    loss: Tensor = _JensenShannon.apply(teacher_logits, student_logits, temperature, reduction)
    return loss


_call_jensen_shannon = define("jensen_shannon", _jensen_shannon)


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
