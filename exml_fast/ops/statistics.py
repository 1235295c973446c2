"""Matching of batch-normalisation statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exml_fast.ops import _checks as check
from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import accumulator, fake
from exml_fast.ops._registration import define, kernels


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
    loss: Tensor = _call_bn_match(x, mean, var, distance, moment)
    return loss


class _BNMatch(Derivative):
    op = "bn_match"

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, distance: str, moment: str) -> Tensor:
        loss, coefficients = kernels._bn_match_forward(x, mean, var, distance, moment)
        ctx.save_for_backward(x, coefficients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coefficients = ctx.saved_tensors
        backward = kernels._bn_match_backward
        return (
            once_differentiable("bn_match", (grad, x), lambda: backward(grad, x, coefficients)),
            None,
            None,
            None,
            None,
        )


def _bn_match(x: Tensor, mean: Tensor, var: Tensor, distance: str = "l2", moment: str = "var") -> Tensor:
    check.constant("bn_match", mean=mean, var=var)
    loss: Tensor = _BNMatch.apply(x, mean, var, distance, moment)
    return loss


_call_bn_match = define("bn_match", _bn_match)


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
    loss: Tensor = _call_match_statistics(means, variances, target_means, target_variances, weights, distance, moment)
    return loss


class _MatchStatistics(Derivative):
    op = "match_statistics"

    @staticmethod
    def forward(
        ctx: Any, layers: int, weights: Sequence[float] | None, distance: str, moment: str, *tensors: Tensor
    ) -> Tensor:
        lists = [tensors[i : i + layers] for i in range(0, 4 * layers, layers)]
        loss, sums = kernels._match_statistics_forward(*lists, weights, distance, moment)
        ctx.save_for_backward(*tensors, sums)
        ctx.settings = layers, weights, distance, moment
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers, *settings = ctx.settings
        *tensors, sums = ctx.saved_tensors
        lists = [tensors[i : i + layers] for i in range(0, 4 * layers, layers)]
        backward = kernels._match_statistics_backward
        gradient = once_differentiable(
            "match_statistics", (grad, *lists[0], *lists[1]), lambda: backward(grad, *lists, sums, *settings)
        )
        channels = [mean.shape[0] for mean in lists[0]]
        of_means, of_variances = (row.split(channels) for row in gradient.unbind())
        return None, None, None, None, *of_means, *of_variances, *[None] * (2 * layers)


def _match_statistics(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    distance: str = "l2",
    moment: str = "var",
) -> Tensor:
    lists = {"means": means, "variances": variances, "target_means": target_means, "target_variances": target_variances}
    check.lengths("match_statistics", len(means), **lists, weights=weights)
    for name in ("target_means", "target_variances"):
        for t in lists[name]:
            check.constant("match_statistics", **{name: t})
    tensors = (*means, *variances, *target_means, *target_variances)
    loss: Tensor = _MatchStatistics.apply(len(means), weights, distance, moment, *tensors)
    return loss


_call_match_statistics = define("match_statistics", _match_statistics)


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
