"""Random shifts and flips of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import fake


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
    return torch.ops.exml.jitter_flip(x, shift, flip, dtype, memory_format, border)


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
