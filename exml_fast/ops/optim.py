"""The optimiser's step on the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast._native import COMPILED
from exml_fast.ops import _checks as check
from exml_fast.ops._fake import fake
from exml_fast.ops._registration import define, implement, kernels


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
    _call(x, grad, exp_avg, exp_avg_sq, step, lr, *betas, eps, low, high, active)
    return x


def _adam_clip(x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *settings: Any) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("adam_clip_: x requires grad and is written in place: call it under torch.no_grad()")
    with torch.no_grad():
        kernels._adam_clip_(x, grad, exp_avg, exp_avg_sq, *settings)
    # A graph that saved one of these tensors then raises an error.
    torch.autograd.graph.increment_version([t for t in (x, exp_avg, exp_avg_sq) if not t.is_inference()])


_call = define("adam_clip_", _adam_clip)


def _without_views(x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *settings: Any) -> None:
    """The same where a tensor is a view that is negated, conjugated, or zero without memory.

    PyTorch's own fallback for such views assumes that an op returns what it mutates. Without a result it corrupts the
    stack. Here such constants are made real, and such states are refused.
    """
    for name, t in (("x", x), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        check.own_memory("adam_clip_", name, t)
    real = [_real(setting) if isinstance(setting, Tensor) else setting for setting in settings]
    kernels._adam_clip_(x, _real(grad), exp_avg, exp_avg_sq, *real)


def _real(t: Tensor) -> Tensor:
    if t._is_zerotensor():
        return torch.zeros(t.shape, dtype=t.dtype, device=t.device)
    return t.resolve_conj().resolve_neg()


if COMPILED:
    for key in ("Negative", "Conjugate", "ZeroTensor"):
        implement("_adam_clip_", _without_views, key)


@fake("_adam_clip_")
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
