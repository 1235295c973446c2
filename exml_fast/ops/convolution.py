"""Convolutions of small and of frozen networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops import _checks as check
from exml_fast.ops import _twins
from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import check_device, empty_like, fake, is_channels_last
from exml_fast.ops._registration import define, kernels

Pair = tuple[int, int]


def lane_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: Pair = (0, 0)) -> Tensor:
    """Convolution of few channels, computed with one image in each lane of a vector.

    y[n, k, i, j] = bias_k + Σ_{c,u,v} weight[k, c, u, v] x[n, c, i + u − padding₀, j + v − padding₁]: stride 1, one
    group, no dilation. Libraries vectorise over channels and compute 16 of them or none; here each product is a vector
    of the pixels of many images times one weight, so that one channel fills a vector as well as sixteen (ours). The
    kernels are for the CPU; on other devices the library's convolution computes the same. Differentiable once, with
    respect to ``x``, ``weight`` and ``bias``.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float64; contiguous and channels_last are read in place.
        weight: (K, C, h, w), in x's dtype and on x's device.
        bias: (K,), in x's dtype and on x's device; no bias when None.
        padding: rows above and below, and columns left and right; from 0 to the kernel's size less one.

    Returns:
        (N, K, H + 2·padding₀ − h + 1, W + 2·padding₁ − w + 1) in x's dtype; channels_last if ``x`` or ``weight`` is.

    Raises:
        ValueError: naming the argument, for a wrong rank, shape, dtype, device or padding.
    """
    y: Tensor = _call_lane_conv2d(x, weight, bias, padding)
    return y


class _LaneConv2d(Derivative):
    op = "lane_conv2d"

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
        y: Tensor = kernels._lane_conv2d_forward(x, weight, bias, padding)
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _gradient(kernels._lane_conv2d_input, grad, weight, x.shape, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient(kernels._lane_conv2d_weight, grad, x, weight.shape, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _gradient(op: Any, grad: Tensor, other: Tensor, sizes: torch.Size, padding: Pair) -> Tensor:
    result: Tensor = once_differentiable("lane_conv2d", (grad, other), lambda: op(grad, other, sizes, padding))
    return result


def _lane_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
    y: Tensor = _LaneConv2d.apply(x, weight, bias, padding)
    return y


_call_lane_conv2d = define("lane_conv2d", _lane_conv2d)


@fake("_lane_conv2d_forward")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
    check_device("lane_conv2d", "weight and bias", x, weight, bias)
    last = is_channels_last(x) or is_channels_last(weight)
    out = [size + 2 * p - k + 1 for size, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True)]
    return empty_like(x, (x.shape[0], weight.shape[0], *out), last)


@fake("_lane_conv2d_input")
def _(grad: Tensor, weight: Tensor, sizes: list[int], padding: Pair) -> Tensor:
    last = is_channels_last(grad) or is_channels_last(weight)
    return empty_like(grad, sizes, last)


@fake("_lane_conv2d_weight")
def _(grad: Tensor, x: Tensor, sizes: list[int], padding: Pair) -> Tensor:
    return grad.new_empty(sizes)


def winograd_weights(weight: Tensor) -> Tensor:
    """The weights of a 3×3 convolution, transformed for Winograd's F(4×4, 3×3) (Lavin 2016, Eq. 12).

    G w Gᵀ for each pair of an output and an input channel, with the points 0, ±1, ±2 and infinity:
    G = [[1/4, 0, 0], [−1/6, −1/6, −1/6], [−1/6, 1/6, −1/6], [1/24, 1/12, 1/6], [1/24, −1/12, 1/6], [0, 0, 1]].

    Args:
        weight: (K, C, 3, 3), float32, bfloat16 or float64, on the CPU; a constant.

    Returns:
        (⌈K / 32⌉, 6, 6, C, 32) float32, contiguous: panels of 32 output channels, filled with zeros beyond K.

    Raises:
        ValueError: for a wrong shape or dtype, or a ``weight`` that requires grad.
    """
    panels: Tensor = _call_winograd_weights(weight)
    return panels


_call_winograd_weights = define("winograd_weights", _twins.winograd_weights)


@fake("winograd_weights")
def _(weight: Tensor) -> Tensor:
    return weight.new_empty((-(-weight.shape[0] // 32), 6, 6, weight.shape[1], 32), dtype=torch.float32)


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: Pair = (0, 0),
    panels: Tensor | None = None,
    adjoint_panels: Tensor | None = None,
) -> Tensor:
    """3×3 convolution with constant weights by Winograd's F(4×4, 3×3) (Lavin 2016), on the CPU.

    y[n, k, i, j] = bias_k + Σ_{c,u,v} weight[k, c, u, v] x[n, c, i + u − padding₀, j + v − padding₁], as 36 matrix
    products in float32 with a quarter of the multiplications. Differentiable once, with respect to ``x``; its gradient
    is the same convolution of the output's gradient. An infinity or NaN in ``x`` makes the outputs of its tile of 4×4
    pixels NaN.

    Args:
        x: (N, C, H, W), float32 or bfloat16, with at least 16 channels; channels_last is read in place.
        weight: (K, C, 3, 3), in x's dtype; a constant. K is at least 16 where ``x`` requires grad.
        bias: (K,); a constant; no bias when None.
        padding: rows above and below, and columns left and right; from 0 to 2 where ``x`` requires grad.
        panels: ``winograd_weights(weight)``; computed here when None.
        adjoint_panels: ``winograd_weights(weight.transpose(0, 1).flip(2, 3))``, for the gradient; computed here when
            None and ``x`` requires grad.

    Returns:
        (N, K, H + 2·padding₀ − 2, W + 2·padding₁ − 2) in x's dtype, channels_last.

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype or device, or a ``weight`` or ``bias`` that requires
            grad.
    """
    if panels is None:
        panels = winograd_weights(weight)
    if adjoint_panels is None and x.requires_grad:
        adjoint_panels = winograd_weights(weight.transpose(0, 1).flip(2, 3))
    return frozen_conv2d(
        x, weight, bias, padding=padding, forward_weight=panels, forward_layout="winograd",
        adjoint_weight=adjoint_panels, adjoint_layout="winograd", adjoint="convolution",
    )  # fmt: skip


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    *,
    forward_weight: Tensor | None = None,
    forward_layout: str = "plain",
    lanes: bool = False,
    adjoint_weight: Tensor | None = None,
    adjoint_layout: str = "plain",
    adjoint: str = "library",
) -> Tensor:
    """Convolution with constant weights: ``torch.nn.functional.conv2d`` that saves no activation.

    The caller chooses how the output and the input gradient are computed, and prepares weights for that once
    (:mod:`exml_fast.engine.frozen_conv` does both). All ways compute the same up to rounding. Prepared layouts and
    lanes have kernels on the CPU only. Differentiable once, with respect to ``x``.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float64.
        weight: (K, C / groups, h, w), in x's dtype and on x's device; a constant. Its values are not read where
            prepared weights replace them in both directions.
        bias: (K,), or None; a constant.
        stride, padding, dilation, groups: as of ``torch.nn.functional.conv2d``.
        forward_weight: the weight in ``forward_layout``; for "plain", ``weight`` is used instead.
        forward_layout: "plain"; "packed" in a layout of oneDNN's own; or "winograd", as :func:`winograd_weights`
            returns it, for 3×3 kernels of stride 1 and one group.
        lanes: compute the output as :func:`lane_conv2d` does; then ``forward_layout`` is "plain".
        adjoint_weight: for an ``adjoint`` of "convolution", "zero_stuffed" or "subpixel": the weight of that
            convolution in ``adjoint_layout``.
        adjoint_layout: as ``forward_layout``, or "windows" for few input channels: (C', h', S) contiguous float32
            (float64 for float64 ``x``), where C' and h' are the output channels and the kernel height of the
            convolution of the gradient, and S values hold one row of the kernel in all channels, filled with zeros to
            a multiple of 64 bytes.
        adjoint: how the input gradient is computed. "library": by torch; "convolution", for stride 1: a convolution
            with the flipped, transposed weight; "zero_stuffed": the same on a gradient with zeros between its values,
            or for 1×1 kernels with the zeros between the results;
            "subpixel", on the CPU: one convolution whose output channels are (row, column, channel) of each place of
            stride × stride pixels; "lanes": as of :func:`lane_conv2d`.

    Returns:
        (N, K, H', W') in x's dtype.

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype, device, layout or adjoint, or a ``weight`` or
            ``bias`` that requires grad. An error in what the gradient needs is raised by the backward pass.
    """
    y: Tensor = _call_frozen_conv2d(
        x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes, adjoint_weight,
        adjoint_layout, adjoint,
    )  # fmt: skip
    return y


class _FrozenConv2d(Derivative):
    op = "frozen_conv2d"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        forward_weight: Tensor | None,
        forward_layout: str,
        lanes: bool,
        adjoint_weight: Tensor | None,
        adjoint_layout: str,
        adjoint: str,
    ) -> Tensor:
        y: Tensor = kernels._frozen_conv2d_forward(
            x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes
        )
        # Weights are constants: there is no version to watch, and oneDNN's tensors have none.
        ctx.settings = (
            weight, x.shape, is_channels_last(x), stride, padding, dilation, groups, adjoint_weight, adjoint_layout,
            adjoint,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = kernels._frozen_conv2d_backward
        of_x = once_differentiable("frozen_conv2d", (grad,), lambda: backward(grad, *ctx.settings))
        return of_x, *[None] * 12


def _frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    forward_weight: Tensor | None = None,
    forward_layout: str = "plain",
    lanes: bool = False,
    adjoint_weight: Tensor | None = None,
    adjoint_layout: str = "plain",
    adjoint: str = "library",
) -> Tensor:
    check.constant("frozen_conv2d", weight=weight, bias=bias)
    y: Tensor = _FrozenConv2d.apply(
        x, weight, bias, stride, padding, dilation, groups, forward_weight, forward_layout, lanes, adjoint_weight,
        adjoint_layout, adjoint,
    )  # fmt: skip
    return y


_call_frozen_conv2d = define("frozen_conv2d", _frozen_conv2d)


@fake("_frozen_conv2d_forward")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    forward_weight: Tensor | None,
    forward_layout: str,
    lanes: bool,
) -> Tensor:
    check_device("frozen_conv2d", "weight", x, weight)
    out = torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if lanes:
        return empty_like(x, out.shape, is_channels_last(x) or is_channels_last(weight))
    return empty_like(x, out.shape, True) if forward_layout == "winograd" else out


@fake("_frozen_conv2d_backward")
def _(
    grad: Tensor,
    weight: Tensor,
    sizes: list[int],
    channels_last: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    adjoint_weight: Tensor | None,
    adjoint_layout: str,
    adjoint: str,
) -> Tensor:
    return empty_like(grad, sizes, channels_last)
