"""Random shifts, flips, rotations and crops of the images before each forward pass (Yin 2020, B.1; Carta 2022, 4.1).

One draw a step serves the whole batch, and a run draws all of its steps beforehand. A step is then a pure function
of tensors, and an image does not depend on the other images of its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exml_fast import ops
from exml_fast.validation import Natural, NonNegative, require, settings

__all__ = ["Augmentation", "Draws"]


@dataclass(frozen=True)
class Draws:
    """The random transforms of each of S steps, on the images' device; None for a transform that is off."""

    shift: Tensor | None
    """(S, 2) int64: pixels down, right."""
    flip: Tensor | None
    """(S,) bool: left to right."""
    affine: Tensor | None
    """(S, 2, 3) float32: the matrix of ``torch.nn.functional.affine_grid``."""
    border: Tensor | None = None
    """(C, 1, 1): the values around the images, where they are not zero."""


@settings
class Augmentation:
    """Ranges of the random transforms: the last group of a recipe's settings. ValueError names a field out of range."""

    jitter: Natural = 0
    """Largest shift in pixels, in each direction."""
    border: Literal["wrap", "zero", "black"] = "wrap"
    """What a shift, a rotation or a crop shows beyond the image: "wrap", its other side (Yin 2020); "zero" (Carta
    2022); "black", the lowest valid pixel, as in the padded crops of the usual training on CIFAR-10."""
    flip: bool = False
    """Flip left to right with probability 1/2."""
    rotate: NonNegative = 0.0
    """Largest rotation in degrees, in each direction."""
    crop: tuple[float, float] = (1.0, 1.0)
    """Range of the area of a random resized crop with an aspect ratio from 3/4 to 4/3; (1, 1) is none."""

    def check(self) -> None:
        """The crop is a range of shares; ValueError."""
        low, high = self.crop
        require(0 < low <= high <= 1, "crop", "(low, high) with 0 < low <= high <= 1", self.crop)

    def draw(
        self,
        steps: int,
        size: tuple[int, int],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        low: Tensor | None = None,
    ) -> Draws:
        """Independent draws for ``steps`` steps on images of ``size`` (H, W) on ``device``.

        ``generator`` is on the CPU. The border "black" needs the lowest valid pixel ``low`` (C, 1, 1) on ``device``
        (InputSpec.bounds); ValueError without it.
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
        """The transformed images of ``x`` (N, C, H, W) at ``step`` (a number, or int64 (1,)); differentiable."""
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
