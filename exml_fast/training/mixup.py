"""Mixtures of two images: mixup (Zhang 2018) and CutMix (Yun 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast import ops

__all__ = ["blended", "boxes", "mixed", "mixup", "mixup_shares"]


def mixup(images: Tensor, share: Tensor, order: Tensor) -> Tensor:
    """``share · images + (1 − share) · images[order]`` (Zhang 2018); ``share`` broadcasts, ``order`` (N,)."""
    return torch.lerp(images[order], images, share.to(images))


def mixup_shares(count: int, a: float, generator: torch.Generator) -> Tensor:
    """Shares (count,) from Beta(a, a), on the CPU; ``generator`` is on the CPU."""
    first = torch.zeros(count, dtype=torch.int64)
    return ops.dirichlet_targets(torch.ones(2, 2), first, a, generator)[:, 0]


def boxes(shares: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Masks (N, 1, H, W) of CutMix, 0 in a box and 1 around it; ``shares`` (N,) are wanted around it.

    The box has the image's ratio of sides and its centre anywhere in the image (Yun 2019, Eq. 2). It is cut off at the
    edges, so that the mean of a mask may be larger than its share.
    """
    side = (1 - shares).sqrt()

    def outside(length: int) -> Tensor:
        centre = length * torch.rand(len(shares), generator=generator)
        distance = (torch.arange(length) + 0.5 - centre[:, None]).abs()
        return distance >= length * side[:, None] / 2

    rows, columns = outside(size[0]), outside(size[1])
    return (rows[:, :, None] | columns[:, None, :])[:, None].float()


def blended(images: Tensor, a: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each of ``images`` (N, C, H, W) mixed with the one before it, and the shares (N,) of the images themselves.

    Rows are drawn at random, so the previous row is as good a partner as any.
    """
    share = mixup_shares(len(images), a, generator).to(images.device)
    return _with_row_before(images, share[:, None, None, None]), share


def mixed(images: Tensor, mixup: float, cutmix: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As :func:`blended`, by mixup or CutMix: where both are asked for, each image takes one, equally probable.

    Args:
        images: (N, C, H, W).
        mixup, cutmix: a of the shares Beta(a, a); 0 for none. At least one is positive.
        generator: on the CPU.
    """
    if not cutmix:
        return blended(images, mixup, generator)
    height, width = images.shape[-2:]
    weights = boxes(mixup_shares(len(images), cutmix, generator), (height, width), generator)
    if mixup:
        smooth = mixup_shares(len(images), mixup, generator)[:, None, None, None]
        cut = torch.rand(len(images), generator=generator)[:, None, None, None] < 0.5
        weights = torch.where(cut, weights, smooth)
    return _with_row_before(images, weights.to(images.device)), weights.mean((1, 2, 3)).to(images.device)


def _with_row_before(images: Tensor, share: Tensor) -> Tensor:
    return mixup(images, share, torch.arange(len(images)).roll(1).to(images.device))
