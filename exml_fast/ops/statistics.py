"""Matching of batch-normalisation statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exml_fast.ops._fake import accumulator, fake


def bn_match(x: Tensor, mean: Tensor, var: Tensor, distance: str = "l2", moment: str = "var") -> Tensor:
    """Distance between the per-channel statistics of ``x`` and given ones (Yin 2020, Eq. 4; Carta 2022, 4.1).

    With m, v the mean and biased variance of ``x`` over all dimensions but the second, and s(v) = v or, for
    ``moment="std"``, sqrt(v):

    - ``l2``: ‖m − mean‖₂ + ‖s(v) − s(var)‖₂ (Yin 2020, Eq. 4; with ``std`` Ye 2022, Eq. 7)
    - ``squared``: ‖m − mean‖₂² + ‖s(v) − s(var)‖₂² (Carta 2022, 4.1)
    - ``gaussian_kl``: Σ_c KL(N(m, v) ‖ N(mean, var)); ``moment`` has no effect

    The forward and the backward pass read ``x`` once each; only ``x`` itself is saved. Differentiable once, with
    respect to ``x``. A norm's gradient at zero is zero. NaN in ``x`` gives a NaN loss.

    Args:
        x: (N, C, ...) of rank 2 to 5, float32, bfloat16 or float64; any strides, dense contiguous and channels_last
            are read in place.
        mean, var: (C,), floating point, on ``x``'s device; constants.

    Returns:
        Scalar, float32 (float64 for float64 ``x``).

    Raises:
        ValueError: naming the argument, for a wrong rank, shape, dtype or device, an empty ``x``, an unknown
            ``distance`` or ``moment``, or a ``mean`` or ``var`` that requires grad.
    """
    return torch.ops.exml.bn_match(x, mean, var, distance, moment)


@fake("_bn_match_forward")
def _(x: Tensor, mean: Tensor, var: Tensor, distance: str, moment: str) -> tuple[Tensor, Tensor]:
    dtype = accumulator(x)
    return x.new_empty((), dtype=dtype), x.new_empty((3, x.shape[1]), dtype=dtype)


@fake("_bn_match_backward")
def _(grad: Tensor, x: Tensor, coefficients: Tensor) -> Tensor:
    return torch.empty_like(x)


def match_statistics(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    distance: str = "l2",
    moment: str = "var",
) -> Tensor:
    """Distance between the channel statistics of several layers and their targets (Yin 2020, Eq. 4; Carta 2022, 4.1).

    Σ_l weights[l] · d(means[l], variances[l]; target_means[l], target_variances[l]), with the
    distance d of :func:`bn_match`. The statistics are given, not computed. All layers take one launch. Differentiable
    once, with respect to ``means`` and ``variances``. A norm's gradient at zero is zero.

    Args:
        means, variances: one (C_l,) tensor a layer, all float32 or all float64, on one device.
        target_means, target_variances: (C_l,), floating point, on the same device; constants.
        weights: one number a layer; 1 each when None.
        distance, moment: as in :func:`bn_match`.

    Returns:
        Scalar, in the dtype of ``means``.

    Raises:
        ValueError: naming the argument, for lists that are empty or differ in length, a wrong shape, dtype or device,
            an unknown ``distance`` or ``moment``, or a target that requires grad.
    """
    if len(means) == 0:
        raise ValueError("match_statistics: means must hold at least one layer, got none")
    return torch.ops.exml.match_statistics(means, variances, target_means, target_variances, weights, distance, moment)


@fake("_match_statistics_forward")
def _(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    weights: Sequence[float] | None,
    distance: str,
    moment: str,
) -> tuple[Tensor, Tensor]:
    return means[0].new_empty(()), means[0].new_empty((len(means), 2), dtype=torch.float64)


@fake("_match_statistics_backward")
def _(
    grad: Tensor,
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    sums: Tensor,
    weights: Sequence[float] | None,
    distance: str,
    moment: str,
) -> Tensor:
    return means[0].new_empty((2, sum(mean.shape[0] for mean in means)))
