"""Mixtures of images (Zhang 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast import ops

__all__ = ["blended", "mixup", "mixup_shares"]


def mixup(images: Tensor, share: Tensor, order: Tensor) -> Tensor:
    """``share · images + (1 − share) · images[order]`` (Zhang 2018); ``share`` broadcasts, ``order`` (N,)."""
    return torch.lerp(images[order], images, share.to(images))


def mixup_shares(count: int, a: float, generator: torch.Generator) -> Tensor:
    """Shares (count,) from Beta(a, a), on the CPU; ``generator`` is on the CPU."""
    first = torch.zeros(count, dtype=torch.int64)
    return ops.dirichlet_targets(torch.ones(2, 2), first, a, generator)[:, 0]


def blended(images: Tensor, a: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each of ``images`` (N, C, H, W) mixed with the one before it, and the shares (N,) of the images themselves.

    Rows are drawn at random, so the previous row is as good a partner as any.
    """
    share = mixup_shares(len(images), a, generator).to(images.device)
    order = torch.arange(len(images)).roll(1).to(images.device)
    return mixup(images, share[:, None, None, None], order), share
