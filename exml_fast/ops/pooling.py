"""Average pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import empty_like, fake, is_channels_last
from exml_fast.ops._registration import define, kernels


def average_pool2d(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Means of windows that do not overlap, as ``torch.nn.functional.avg_pool2d(x, kernel)``.

    y[n, c, i, j] = Σ_{u < h, v < w} x[n, c, h·i + u, w·j + v] / (h·w) with (h, w) = ``kernel``; pixels beyond the last
    whole window are left out. There is a kernel for channels_last on the CPU; otherwise torch computes it. No
    activation is saved. Differentiable once.

    Args:
        x: (N, C, H, W) with C > 0, float32, bfloat16 or float64; contiguous and channels_last are read in place.
        kernel: height and width of a window, from 1 to x's.

    Returns:
        (N, C, H // h, W // w) in x's dtype and memory format.

    Raises:
        ValueError: naming the argument, for a wrong rank, dtype or window.
    """
    y: Tensor = _call(x, kernel)
    return y


class _AveragePool2d(Derivative):
    op = "average_pool2d"

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        y: Tensor = kernels._average_pool2d_forward(x, kernel)
        ctx.settings = x.shape, kernel, x.is_contiguous(memory_format=torch.channels_last)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = kernels._average_pool2d_backward
        return once_differentiable("average_pool2d", (grad,), lambda: backward(grad, *ctx.settings)), None


def _average_pool2d(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    y: Tensor = _AveragePool2d.apply(x, kernel)
    return y


_call = define("average_pool2d", _average_pool2d)


@fake("_average_pool2d_forward")
def _(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    out = (*x.shape[:2], x.shape[2] // kernel[0], x.shape[3] // kernel[1])
    return empty_like(x, out, is_channels_last(x))


@fake("_average_pool2d_backward")
def _(grad: Tensor, sizes: list[int], kernel: tuple[int, int], channels_last: bool) -> Tensor:
    return empty_like(grad, sizes, channels_last)
