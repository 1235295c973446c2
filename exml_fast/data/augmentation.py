"""Random changes of the images that a network learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each image while a network learns from it, background filled with the lowest valid pixel.

    ``shift``: up to so many pixels in both directions (MNIST: 4, a 32-crop of a padded image); ``rotation``: up to
    so many degrees (bilinear); ``flip``: probability of a horizontal flip; ``scale``: enlarged or shrunk by up to this
    share (0.2: to between 0.8 and 1.2 times the size).
    """

    shift: int = 4
    rotation: float = 0.0
    flip: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.shift, int) or isinstance(self.shift, bool) or self.shift < 0:
            raise ValueError(f"shift must be an integer from 0 upwards, got {self.shift!r}")
        for name in ("rotation", "flip", "scale"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be between 0 and 180 degrees, got {self.rotation!r}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability, got {self.flip!r}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must be at least 0 and less than 1, got {self.scale!r}")

    @property
    def active(self) -> bool:
        """Whether any image can change."""
        return bool(self.shift or self.rotation or self.flip or self.scale)

    def __call__(self, images: Tensor, low: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented copies of ``images`` (N, C, H, W); ``low`` (C, 1, 1) is the background (InputSpec.bounds)."""
        count, _, height, width = images.shape
        device = images.device
        if self.flip:
            flipped = torch.rand(count, generator=generator).to(device) < self.flip
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        shift = torch.randint(-self.shift, self.shift + 1, (2, count), generator=generator).to(device)
        if self.rotation or self.scale:
            angle = (2 * torch.rand(count, generator=generator) - 1).to(device) * math.radians(self.rotation)
            cos, sin = angle.cos(), angle.sin()
            if self.scale:
                factor = 1 + (2 * torch.rand(count, generator=generator) - 1).to(device) * self.scale
                cos, sin = cos / factor, sin / factor  # the grid maps the output to the input
            dx, dy = 2 * shift[0] / width, 2 * shift[1] / height
            rows = (cos, -sin * height / width, dx, sin * width / height, cos, dy)
            grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
            return F.grid_sample(images - low, grid, align_corners=False) + low
        if not self.shift:
            return images
        side = self.shift
        padded = images.new_empty(count, images.shape[1], height + 2 * side, width + 2 * side)
        padded[:] = low
        padded[:, :, side : side + height, side : side + width] = images
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: windows[n, :, down, right]
        return windows[torch.arange(count, device=device), :, shift[1] + side, shift[0] + side]
