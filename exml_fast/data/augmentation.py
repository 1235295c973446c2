"""Random changes of training images."""

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

# Elastic displacements are drawn on a grid of this many points a side, and interpolated between them.
ELASTIC_GRID = 4


@settings
class Augmentation:
    """Random changes of training images. Each image draws its own; uncovered pixels get the lowest valid value.

    A change whose field is 0, or (0, 0), is left out. The default changes nothing.

    Args:
        shift: greatest shift along each axis, in pixels. 4 equals a random 32×32 crop of an image padded by 4.
        rotation: greatest rotation, in degrees, with bilinear interpolation.
        flip: probability of a horizontal flip.
        scale: greatest relative change of the size. 0.2 draws a factor between 0.8 and 1.2.
        stretch: greatest relative change of the width and of the height, drawn separately.
        shear: greatest shear, as the tangent of its angle.
        elastic: standard deviation of a smooth displacement field, in pixels (Simard 2003).
        contrast: smallest and largest steepness k of a contrast curve. The curve maps a pixel p in [0, 1] to
            σ(k(p − m)), rescaled so that 0 and 1 keep their values.
        midpoint: smallest and largest m of the contrast curve.

    Raises:
        ValueError: naming the field that is outside its range.
    """

    shift: Natural = 0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    flip: Share = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stretch: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: NonNegative = 0.0
    elastic: NonNegative = 0.0
    contrast: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    midpoint: tuple[Share, Share] = (0.25, 0.6)

    def check(self) -> None:
        """ValueError if a range has its larger number first."""
        for name in ("contrast", "midpoint"):
            ends = getattr(self, name)
            require(ends[0] <= ends[1], name, "two ascending numbers", ends)

    @property
    def active(self) -> bool:
        """False if every change is switched off."""
        return bool(self.shift or self.flip or self._warps or self.contrast[1])

    @property
    def _warps(self) -> bool:
        return bool(self.rotation or self.scale or self.stretch or self.shear or self.elastic)

    def __call__(
        self, images: Tensor, bounds: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Change each image at random.

        Args:
            images: (N, C, H, W), normalised.
            bounds: lowest and highest valid value of each channel, each (C, 1, 1), as ``InputSpec.bounds`` returns.
            generator: source of the random draws, on the CPU.

        Returns:
            Changed images of the same shape. With every change switched off, ``images`` itself.
        """
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

        # Near k = 0 the curve is the identity; at 0 its rescaling divides by 0.
        steepness, middle = uniform(self.contrast).clamp(min=1e-2), uniform(self.midpoint)
        lowest, highest = (-steepness * middle).sigmoid(), (steepness * (1 - middle)).sigmoid()
        return ((steepness * (pixels - middle)).sigmoid() - lowest) / (highest - lowest)

    def _grid(self, images: Tensor, shift: Tensor, generator: torch.Generator | None) -> Tensor:
        """Position from which each output pixel is read: (N, H, W, 2), in the coordinates of ``grid_sample``."""
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
    """Bicubic interpolation along one axis as a matrix (size, ELASTIC_GRID); much faster than F.interpolate."""
    points = torch.eye(ELASTIC_GRID)[None, None]
    return F.interpolate(points, (size, ELASTIC_GRID), mode="bicubic", align_corners=False)[0, 0]


def _moved(images: Tensor, low: Tensor, shift: Tensor, most: int) -> Tensor:
    """Read image n from ``shift[0, n]`` pixels further right and ``shift[1, n]`` further down, at most ``most``."""
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * most, width + 2 * most)
    padded[:] = low
    padded[:, :, most : most + height, most : most + width] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: windows[n, :, down, right]
    return windows[torch.arange(count, device=images.device), :, shift[1] + most, shift[0] + most]
