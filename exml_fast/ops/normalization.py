"""Batch normalisation of a frozen network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops import _checks as check
from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import accumulator, fake
from exml_fast.ops._registration import define, kernels


def frozen_bn_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frozen batch normalisation, residual and activation, and the statistics of ``x``, all in one pass.

    With ``scale`` = γ / sqrt(running variance + ε) and ``shift`` = β − ``scale`` · running mean:

    - y = act(scale_c x + shift_c + residual)
    - mean_c, var_c: mean and biased variance of ``x`` over all dimensions but the second (Yin 2020, Eq. 4 compares them
      with the running ones)

    The backward pass is one pass too: with d = act'(z) ∂y, the gradient of ``x`` is scale_c d + ∂mean_c / M +
    2 ∂var_c (x − mean_c) / M for M values a channel, that of ``residual`` d. Only ``x`` is saved and, under an
    activation, ``residual``; ReLU saves a byte a value instead of it. Differentiable once, with respect to ``x`` and
    ``residual``. Activations and their derivatives at the kinks are PyTorch's. NaN in gives NaN out.

    Args:
        x: (N, C, ...) of rank 2 to 5, float32, bfloat16 or float64; any strides, dense contiguous and channels_last
            are read in place.
        scale, shift: (C,), floating point, on ``x``'s device; constants.
        residual: added before the activation; of ``x``'s shape, dtype and device.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"silu"``, ``"hardswish"``, ``"leaky_relu"``, ``"gelu"``,
            ``"gelu_tanh"`` or ``"tanh"``.
        negative_slope: of ``"leaky_relu"``.

    Returns:
        ``y`` in ``x``'s dtype and memory format; ``mean``, ``var`` (C,), float32 (float64 for float64 ``x``).

    Raises:
        ValueError: naming the argument, for a wrong rank, shape, dtype or device, an empty ``x``, an unknown
            ``activation``, or a ``scale`` or ``shift`` that requires grad.
    """
    results: tuple[Tensor, Tensor, Tensor] = _call(x, scale, shift, residual, activation, negative_slope)
    return results


class _FrozenBNAct(Derivative):
    op = "frozen_bn_act"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with_mask = activation == "relu" and residual is not None and any(ctx.needs_input_grad)
        y, mean, var, mask = kernels._frozen_bn_act_forward(
            x, scale, shift, residual, activation, negative_slope, with_mask
        )
        ctx.set_materialize_grads(False)
        # Without an activation, the gradient does not depend on the values of the residual.
        kept = None if with_mask or activation == "none" else residual
        ctx.save_for_backward(x, scale, shift, kept, mean, mask if with_mask else None)
        ctx.settings = activation, negative_slope
        return y, mean, var

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_mean: Tensor | None, grad_var: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        of_residual = ctx.needs_input_grad[3] and grad_y is not None
        computed = of_residual and ctx.settings[0] != "none"
        backward = kernels._frozen_bn_act_backward
        results = once_differentiable(
            "frozen_bn_act",
            (grad_y, grad_mean, grad_var, *saved),
            lambda: tuple(backward(grad_y, grad_mean, grad_var, *saved, *ctx.settings, computed)),
        )
        return results[0], None, None, results[1] if computed else grad_y if of_residual else None, None, None


def _frozen_bn_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    check.constant("frozen_bn_act", scale=scale, shift=shift)
    results: tuple[Tensor, Tensor, Tensor] = _FrozenBNAct.apply(x, scale, shift, residual, activation, negative_slope)
    return results


_call = define("frozen_bn_act", _frozen_bn_act)


@fake("_frozen_bn_act_forward")
def _(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    with_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[1],), dtype=accumulator(x))
    mask = torch.empty_like(x, dtype=torch.uint8) if with_mask else x.new_empty(0, dtype=torch.uint8)
    return torch.empty_like(x), mean, torch.empty_like(mean), mask


@fake("_frozen_bn_act_backward")
def _(
    grad_y: Tensor | None,
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    mask: Tensor | None,
    activation: str,
    negative_slope: float,
    with_residual: bool,
) -> list[Tensor]:
    return [torch.empty_like(x) for _ in range(1 + with_residual)]
