"""Layers of networks that learn, with all gradients, on a CPU: made of the kernels of frozen layers.

They check nothing: :mod:`exml_fast.engine` calls them for layers that it has found to fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from exml_fast.ops.convolution import winograd_weights

__all__ = ["batch_norm_act", "learned_winograd_conv2d"]


def learned_winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """A 3×3 convolution of stride 1 by Winograd's F(4×4, 3×3) (Lavin 2016); the weight's gradient is PyTorch's.

    Args:
        x: (N, C, H, W) channels_last, float32 or bfloat16.
        weight: (K, C, 3, 3) in the dtype of ``x``, or float32.
        bias: (K,), likewise.
        padding: rows and columns of zeros on each side.

    Returns:
        (N, K, H', W') in the dtype of ``x``. It has no second derivatives.
    """
    y: Tensor = _Winograd.apply(x, weight, bias, padding)
    return y


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """act(weight (x − mean) / √(var + eps) + bias + residual) with the batch's own statistics (Ioffe 2015, sec. 3).

    Args:
        x: (N, C, H, W) channels_last, float32 or bfloat16, of more than one value a channel.
        weight, bias: (C,) float32.
        residual: like ``x``, or None.
        eps: added to the variance.
        activation: "none" or "relu".

    Returns:
        The output, like ``x``; mean and biased variance of ``x``, (C,) float32, without gradients. There are no second
        derivatives.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Normalised.apply(x, weight, bias, residual, eps, activation)
    return found


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.bias = padding, None if bias is None else bias.dtype
        panels = _transformed(weight.detach())
        y: Tensor = torch.ops.exml._frozen_conv2d_forward(
            x, _shape_of(weight, x), None if bias is None else bias.detach().to(x.dtype), (1, 1), padding, (1, 1), 1,
            panels, "winograd", False,
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            panels = _transformed(weight.transpose(0, 1).flip(2, 3))
            of_x = torch.ops.exml._frozen_conv2d_backward(
                grad, _shape_of(weight, x), x.shape, True, (1, 1), ctx.padding, (1, 1), 1, panels, "winograd",
                "convolution",
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            same = weight.to(x.dtype)
            of_weight = torch.ops.aten.convolution_backward(
                grad, x, same, None, (1, 1), ctx.padding, (1, 1), False, (0, 0), 1, (False, True, False)
            )[1].to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias)
        return of_x, of_weight, of_bias, None


def _transformed(weight: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # it would round the matrix products of the transform
        return winograd_weights(weight)


def _shape_of(weight: Tensor, x: Tensor) -> Tensor:
    """The shape of ``weight`` in the dtype of ``x``, without memory: the kernel reads transformed weights alone."""
    return x.new_empty(()).expand(weight.shape)


class _Normalised(torch.autograd.Function):
    """Only ``x`` and the output are saved; the layers around save them too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        zeros = torch.zeros_like(weight)
        # The gradient of Σ mean² + Σ var² has the slope 4 var / M in each of M values, so its pass gives both moments.
        _, found = torch.ops.exml._bn_match_forward(x, zeros, zeros, "squared", "var")
        mean, var = found[2], found[1] * (x.numel() // x.shape[1] / 4)
        inverse = (var + eps).rsqrt()
        scale = weight * inverse
        shift = bias - scale * mean
        y = torch.ops.exml._frozen_bn_act_forward(x, scale, shift, residual, activation, 0.0, False)[0]
        ctx.save_for_backward(x, y if activation == "relu" else None, weight, mean, inverse)
        ctx.eps, ctx.added = eps, residual is not None
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, inverse = ctx.saved_tensors
        d = grad.contiguous(memory_format=torch.channels_last)
        if y is not None:
            d = torch.ops.aten.threshold_backward(d, y, 0)
        # Σ d (x − mean) / √(var + eps), and Σ d.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            d, x, weight, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        of_x = None
        if ctx.needs_input_grad[0]:
            scale = weight * inverse
            # scale (d − of_bias / M − (x − mean) inverse of_weight / M), as gradients of mean and variance.
            of_moments = -scale * of_bias, scale * inverse * of_weight / -2
            (of_x,) = torch.ops.exml._frozen_bn_act_backward(
                d, *of_moments, x, scale, scale, None, mean, None, "none", 0.0, False
            )
        return of_x, of_weight, of_bias, d if ctx.added else None, None, None
