"""Batch normalisation of a frozen network."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import accumulator, fake


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
    activation, ``residual``. Differentiable once, with respect to ``x`` and ``residual``. Activations and their
    derivatives at the kinks are PyTorch's. NaN in gives NaN out.

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
    return torch.ops.exml.frozen_bn_act(x, scale, shift, residual, activation, negative_slope)


@fake("_frozen_bn_act_forward")
def _(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[1],), dtype=accumulator(x))
    return torch.empty_like(x), mean, torch.empty_like(mean)


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
    activation: str,
    negative_slope: float,
    with_residual: bool,
) -> list[Tensor]:
    return [torch.empty_like(x) for _ in range(1 + with_residual)]
