"""Dirichlet-distributed soft targets."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.ops._fake import fake
from exml_fast.ops._registration import define, kernels
from exml_fast.ops._twins import check_dirichlet_targets


def dirichlet_targets(
    similarity: Tensor, classes: Tensor, betas: Tensor | float, generator: torch.Generator | None = None
) -> Tensor:
    """Soft targets drawn from class similarities (Nayak 2021, Alg. 1; Carta 2022, 4).

    Row n is a draw from Dirichlet(``betas[n] * similarity[classes[n]]``). Gamma variates are drawn in log space, so the
    draws are exact for concentrations of 0.01 and below, where the variates themselves would underflow. A component
    that is too small for the dtype is zero; float64 keeps more of them. There is a kernel for CUDA; elsewhere PyTorch
    draws the variates.

    Args:
        similarity: (K, K), float32 or float64, positive: row k holds the concentration of class k.
        classes: (N,) int64, the class of each draw.
        betas: scaling factors (N,), positive, or one number for all.
        generator: the source of randomness; the default generator of ``similarity``'s device when None. The
            same generator state gives the same draws, whatever the number of threads. On CUDA it may be recorded in
            a CUDA graph.

    Returns:
        (N, K), rows summing to one, in ``similarity``'s dtype and on its device.

    Raises:
        ValueError: naming the argument, for a wrong shape, dtype or device, or a concentration that is not positive
            and finite.
        IndexError: for a class outside [0, K).
    """
    if not isinstance(betas, Tensor):
        betas = torch.full(classes.shape, float(betas), dtype=similarity.dtype, device=similarity.device)
    targets: Tensor = _call(similarity, classes, betas, generator=generator)
    return targets


def _dirichlet_targets(
    similarity: Tensor, classes: Tensor, betas: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    check_dirichlet_targets(similarity, classes, betas)
    # The stable ABI of torch 2.11 has no generators, so that the kernel gets a number of 64 random bits. It is drawn on
    # the device: a CUDA graph draws a new one at each replay.
    seed = torch.empty((), dtype=torch.int64, device=similarity.device).random_(-(2**63), None, generator=generator)
    targets: Tensor = kernels._dirichlet_targets(similarity, classes, betas, seed)
    return targets


# On the CPU PyTorch's gamma variates are faster than a kernel of our own was.
_call = define("dirichlet_targets", _dirichlet_targets, devices=("meta", "cuda"))


@fake("_dirichlet_targets")
def _(similarity: Tensor, classes: Tensor, betas: Tensor, seed: Tensor) -> Tensor:
    return similarity.new_empty((classes.shape[0], similarity.shape[1]))


@fake("dirichlet_targets")
def _(similarity: Tensor, classes: Tensor, betas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return similarity.new_empty((classes.shape[0], similarity.shape[1]))
