"""Random shifts, flips, rotations and crops of the images before each forward pass (Yin 2020, B.1; Carta 2022, 4.1).

One draw a step serves the whole batch, and a run draws all of its steps beforehand: a step is then a pure function
of its tensors, and an image does not depend on the batch it happens to be in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from exml_fast import ops

__all__ = ["Augmentation", "Draws"]


@dataclass(frozen=True)
class Draws:
    """What happens at each of S steps; None where nothing does. On the images' device."""

    shift: Tensor | None
    """(S, 2) int64: pixels down, right."""
    flip: Tensor | None
    """(S,) bool: left to right."""
    affine: Tensor | None
    """(S, 2, 3) float32: the matrix of ``torch.nn.functional.affine_grid``."""
    border: Tensor | None = None
    """(C, 1, 1): what lies around the images, where that is not zero."""


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transforms.

    jitter: shift by up to so many pixels, inclusive, each way; border: "wrap" (roll, Yin 2020), "zero" (the crop of
    an image padded with zeros, Carta 2022) or "black" (padded with the lowest valid pixel: what networks saw, and
    their statistics hold, that were trained on such crops, as is usual for CIFAR-10). flip: left to right, every
    other time. rotate: up to so many degrees each way. crop: range of the area of a random resized crop, its aspect
    ratio between 3/4 and 4/3; (1, 1) is none.
    """

    jitter: int = 0
    border: str = "wrap"
    flip: bool = False
    rotate: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)

    def draw(
        self,
        steps: int,
        size: tuple[int, int],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        low: Tensor | None = None,
    ) -> Draws:
        """Independent draws for ``steps`` steps, images of ``size`` (H, W) on ``device``; a CPU generator.

        A black border needs ``low`` (C, 1, 1), on the device (InputSpec.bounds).
        """
        if self.border == "black" and low is None:
            raise ValueError("low must be the lowest valid pixel (C, 1, 1) for border 'black', got None")
        shift = flip = affine = None
        if self.jitter:
            shift = torch.randint(-self.jitter, self.jitter + 1, (steps, 2), generator=generator).to(device)
        if self.flip:
            flip = (torch.rand(steps, generator=generator) < 0.5).to(device)
        if self.rotate or self.crop != (1.0, 1.0):
            affine = self._affine(torch.rand(steps, 5, generator=generator), size).to(device)
        return Draws(shift, flip, affine, low if self.border == "black" else None)

    def __call__(self, x: Tensor, draws: Draws, step: int | Tensor) -> Tensor:
        """``x`` (N, C, H, W) as the network sees it at ``step`` (a number, or int64 (1,)); differentiable."""
        index = torch.full((1,), step, device=x.device) if isinstance(step, int) else step
        if draws.border is None:
            return self._transform(x, draws, index)
        return self._transform(x - draws.border, draws, index) + draws.border

    def _transform(self, x: Tensor, draws: Draws, index: Tensor) -> Tensor:
        if draws.affine is not None:
            theta = draws.affine.index_select(0, index).to(x.dtype)
            grid = F.affine_grid(theta, [1, *x.shape[1:]], align_corners=False)
            x = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="zeros", align_corners=False)
        if draws.shift is not None or draws.flip is not None:
            shift = index.new_zeros(2) if draws.shift is None else draws.shift.index_select(0, index)[0]
            flip = index.new_zeros((), dtype=torch.bool)
            if draws.flip is not None:
                flip = draws.flip.index_select(0, index)[0]
            x = ops.jitter_flip(x, shift, flip, border="wrap" if self.border == "wrap" else "zero")
        return x

    def _affine(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        angle = torch.deg2rad((2 * u[:, 0] - 1) * self.rotate)
        width = height = torch.ones(len(u))
        if self.crop != (1.0, 1.0):
            area = self.crop[0] + (self.crop[1] - self.crop[0]) * u[:, 1]
            ratio = torch.exp((2 * u[:, 2] - 1) * math.log(4 / 3))
            width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        right, down = (2 * u[:, 3] - 1) * (1 - width), (2 * u[:, 4] - 1) * (1 - height)
        aspect = size[0] / size[1]
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([width * cos, -height * sin * aspect, right], 1),
            torch.stack([width * sin / aspect, height * cos, down], 1),
        ]
        return torch.stack(rows, 1)
