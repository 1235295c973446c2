"""The optimiser's step on the images."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import fake


def adam_clip_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor | int,
    lr: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    low: Tensor | None = None,
    high: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """One step of Adam on images and the clip to their range, in place and in one pass (Yin 2020, Eq. 16).

    With t = ``step``, as ``torch.optim.Adam`` without weight decay, then the clip of each channel:

    - ``exp_avg`` m ← β₁ m + (1 − β₁) g, ``exp_avg_sq`` v ← β₂ v + (1 − β₂) g²
    - x ← clip(x − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps), low, high)

    A NaN gradient gives a NaN pixel: the clip does not hide it. With eps = 0 a pixel whose gradient has always been
    zero becomes NaN (0 / 0), as in the formula. A negative ``lr`` ascends. Where ``low`` is above ``high``, the pixel
    becomes ``high``; a bound that is NaN is none. Not differentiable.

    Args:
        x: (N, C, ...) of rank 2 to 5, float32 or float64, contiguous or channels_last; written. ``x`` and the moments
            share memory neither with each other nor with another argument, and are no negated or conjugated views.
        grad: of x's shape, any strides; bfloat16 is widened on the way.
        exp_avg, exp_avg_sq: the moments, in x's dtype, shape and memory format; written.
        step: t ≥ 1, an int64 or float32 scalar tensor on x's device, so that a CUDA graph reads its value at
            each replay, or a number.
        lr: a floating-point scalar tensor on x's device, or a number.
        betas: each in [0, 1).
        low, high: (C,), floating point, on x's device; no bound where None.
        active: bool (N,), on x's device; images that are False, and their moments, stay as they are.

    Returns:
        ``x``.

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype, device, memory format or range, or shared memory; for
            ``step`` below 1 if it is a number or on the CPU.
        RuntimeError: if ``x`` requires grad and grad mode is on.
    """
    if not isinstance(step, Tensor):
        if not 1 <= step < 2**63:
            raise ValueError(f"adam_clip_: step counts from 1 and must fit into int64, got {step}")
        step = torch.full((), step, dtype=torch.int64, device=x.device)
    if not isinstance(lr, Tensor):
        lr = torch.full((), lr, dtype=x.dtype, device=x.device)
    torch.ops.exml.adam_clip_(x, grad, exp_avg, exp_avg_sq, step, lr, *betas, eps, low, high, active)
    return x


@fake("adam_clip_")
def _(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    low: Tensor | None = None,
    high: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    return None
