"""Classification losses."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import accumulator


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


@torch.library.register_fake("exml::_soft_cross_entropy_forward")
def _(logits: Tensor, target: Tensor, temperature: float, reduction: str) -> tuple[Tensor, Tensor]:
    dtype, rows = accumulator(logits), logits.shape[0]
    return logits.new_empty((rows,) if reduction == "none" else (), dtype=dtype), logits.new_empty((rows,), dtype=dtype)


@torch.library.register_fake("exml::_soft_cross_entropy_backward")
def _(grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, temperature: float, reduction: str) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
