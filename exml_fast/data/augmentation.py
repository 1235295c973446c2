"""Random changes of the images that a network learns from."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from exml_fast.validation import Natural, NonNegative, Share, require, settings

__all__ = ["Augmentation"]

# Points of the grid, each way, on which elastic displacements are drawn.
ELASTIC_GRID = 4


@settings
class Augmentation:
    """Random changes of each image while a network learns from it, background filled with the lowest valid pixel.

    ``shift``: up to so many pixels in both directions (MNIST: 4, a 32-crop of a padded image); ``rotation``: up to
    so many degrees (bilinear); ``flip``: probability of a horizontal flip; ``scale``: enlarged or shrunk by up to this
    share (0.2: to between 0.8 and 1.2 times the size); ``stretch``: width and height by up to this share, each by its
    own; ``shear``: up to this tangent; ``elastic``: standard deviation in pixels of smooth displacements (Simard
    2003); ``contrast``: least and greatest steepness k of the curve σ(k(p − m)), stretched to [0, 1], that pixels p in
    [0, 1] are sent through (0, 0: as they are); ``midpoint``: least and greatest m.
    """

    shift: Natural = 4
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    flip: Share = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stretch: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: NonNegative = 0.0
    elastic: NonNegative = 0.0
    contrast: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    midpoint: tuple[Share, Share] = (0.25, 0.6)

    def check(self) -> None:
        """ValueError unless the two ends of each range ascend."""
        for name in ("contrast", "midpoint"):
            ends = getattr(self, name)
            require(ends[0] <= ends[1], name, "two ascending numbers", ends)

    @property
    def active(self) -> bool:
        """Whether any image can change."""
        return bool(self.shift or self.flip or self._warps or self.contrast[1])

    @property
    def _warps(self) -> bool:
        return bool(self.rotation or self.scale or self.stretch or self.shear or self.elastic)

    def __call__(
        self, images: Tensor, bounds: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Augmented copies of ``images`` (N, C, H, W); ``bounds``: lowest and highest pixel (InputSpec.bounds)."""
        if len(images) == 0:
            return images
        low, high = bounds
        count, device = len(images), images.device
        if self.flip:
            flipped = torch.rand(count, generator=generator).to(device) < self.flip
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        shift = torch.randint(-self.shift, self.shift + 1, (2, count), generator=generator).to(device)
        if self._warps:
            grid = self._grid(images, shift, generator)
            images = F.grid_sample(images - low, grid, align_corners=False) + low
        elif self.shift:
            images = _moved(images, low, shift, self.shift)
        if self.contrast[1]:
            pixels = self._curved((images - low) / (high - low), generator)
            images = low + (high - low) * pixels
        return images

    def _curved(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        def uniform(ends: tuple[float, float]) -> Tensor:
            draws = torch.rand(len(pixels), 1, 1, 1, generator=generator).to(pixels.device)
            return ends[0] + (ends[1] - ends[0]) * draws

        steepness, middle = uniform(self.contrast).clamp(min=1e-2), uniform(self.midpoint)  # towards 0 the identity
        lowest, highest = (-steepness * middle).sigmoid(), (steepness * (1 - middle)).sigmoid()
        return ((steepness * (pixels - middle)).sigmoid() - lowest) / (highest - lowest)

    def _grid(self, images: Tensor, shift: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where each pixel comes from, (N, H, W, 2) as grid_sample reads it."""
        count, _, height, width = images.shape

        def uniform(most: float) -> Tensor:
            return (2 * torch.rand(count, generator=generator) - 1).to(images.device) * most

        angle = uniform(math.radians(self.rotation))
        across = down = 1 + uniform(self.scale) if self.scale else torch.ones_like(angle)
        if self.stretch:
            across, down = across * (1 + uniform(self.stretch)), down * (1 + uniform(self.stretch))
        shear = uniform(self.shear) if self.shear else torch.zeros_like(angle)
        cos, sin = angle.cos(), angle.sin()
        rows = (
            cos / across, (shear * cos - sin / down) * height / width, 2 * shift[0] / width,
            sin / across * width / height, shear * sin + cos / down, 2 * shift[1] / height,
        )  # fmt: skip
        grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
        if self.elastic:
            coarse = torch.randn(count, 2, ELASTIC_GRID, ELASTIC_GRID, generator=generator).to(images.device)
            vertical, horizontal = (_bicubic(size).to(coarse) for size in (height, width))
            smooth = vertical @ coarse @ horizontal.T
            pixel = grid.new_tensor([2 / width, 2 / height])
            grid = grid + self.elastic * pixel * smooth.permute(0, 2, 3, 1)
        return grid


@functools.cache
def _bicubic(size: int) -> Tensor:
    """(size, ELASTIC_GRID): interpolation along one axis as a matrix, where F.interpolate takes many times as long."""
    points = torch.eye(ELASTIC_GRID)[None, None]
    return F.interpolate(points, (size, ELASTIC_GRID), mode="bicubic", align_corners=False)[0, 0]


def _moved(images: Tensor, low: Tensor, shift: Tensor, most: int) -> Tensor:
    """Each image by its own ``shift`` (2, N): right and down, at most ``most`` pixels."""
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * most, width + 2 * most)
    padded[:] = low
    padded[:, :, most : most + height, most : most + width] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: windows[n, :, down, right]
    return windows[torch.arange(count, device=images.device), :, shift[1] + most, shift[0] + most]
