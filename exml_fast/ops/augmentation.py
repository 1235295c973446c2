"""Random shifts and flips of the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops._autograd import Derivative
from exml_fast.ops._fake import fake, is_channels_last
from exml_fast.ops._registration import define, kernels


def jitter_flip(
    x: Tensor,
    shift: Tensor,
    flip: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    border: str = "wrap",
) -> Tensor:
    """Shifts images, then mirrors them left to right, in the network's dtype and memory format (Yin 2020, B.1).

    With (d, r) = ``shift``: ``y[n, c, i, j] = x[n, c, i − d, j' − r]`` with ``j' = W − 1 − j`` where ``flip`` is set
    and ``j`` elsewhere. Indices outside the image wrap around (``torch.roll``, Yin 2020) or read zero (the crop of an
    image padded with zeros, Carta 2022). Shift and flip are read on the device, so that a CUDA graph uses new ones at
    each replay. Linear in ``x``, differentiable any number of times; the gradient has x's dtype and memory format.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float64, any strides.
        shift: pixels down and right, int64 (2,) for the batch or (N, 2), on x's device.
        flip: bool () for the batch or (N,), on x's device.
        dtype: of the result, one of the three; x's when None.
        memory_format: of the result, ``torch.contiguous_format`` (None) or ``torch.channels_last``.
        border: ``"wrap"`` or ``"zero"``.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: naming the argument, for a wrong rank, shape, dtype, device, memory format or border.
    """
    y: Tensor = _call(x, shift, flip, dtype, memory_format, border)
    return y


class _JitterFlip(Derivative):
    """Linear in ``x``: its derivative is its adjoint, and derivatives of any order exist."""

    op = "jitter_flip"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor,
        flip: Tensor,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        border: str,
        adjoint: bool,
    ) -> Tensor:
        y: Tensor = kernels._jitter_flip(x, shift, flip, dtype, memory_format, border, adjoint)
        ctx.save_for_backward(shift, flip)
        form = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        ctx.settings = x.dtype, form, border, not adjoint
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _JitterFlip.apply(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None, None


def _jitter_flip(
    x: Tensor,
    shift: Tensor,
    flip: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    border: str = "wrap",
) -> Tensor:
    form = torch.contiguous_format if memory_format is None else memory_format
    y: Tensor = _JitterFlip.apply(x, shift, flip, dtype or x.dtype, form, border, False)
    return y


_call = define("jitter_flip", _jitter_flip)


@fake("_jitter_flip")
def _(
    x: Tensor,
    shift: Tensor,
    flip: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    border: str,
    adjoint: bool,
) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=memory_format)
