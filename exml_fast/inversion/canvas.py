"""What the optimiser changes: pixels, or the parameters of images; their initial values and their limits."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.data import InputSpec
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.settings import Pixels
from exml_fast.inversion.spectrum import NaturalSpectrum
from exml_fast.inversion.state import generator_for

__all__ = ["Canvas"]


class Canvas:
    """Pixels by a recipe's settings ``pixels``; or a parametrisation in their place."""

    def __init__(
        self, spec: InputSpec, pixels: Pixels, device: torch.device, parametrisation: Parametrisation | None
    ) -> None:
        self.parametrisation = parametrisation
        self._spec, self._pixels, self._device = spec, pixels, device
        self.bounds = self._clip_bounds()
        """Lowest and highest values, (C,) or (P,) each; None twice without a clip."""
        self.spectrum: NaturalSpectrum | None = None
        if parametrisation is None and (pixels.spectrum or pixels.correlation):
            self.spectrum = NaturalSpectrum(pixels.spectrum, pixels.correlation, spec.shape, device)

    def images(self, x: Tensor) -> Tensor:
        """Images (R, C, H, W) of ``x``: images, or parameters (R, P); differentiable."""
        return x if self.parametrisation is None else self.parametrisation.render(x, self._spec)

    def begin(self, rows: Tensor, seed: int, start: Tensor | None) -> Tensor:
        """The initial values of the images with the indices ``rows`` (R,): of ``start`` (N, …), or random."""
        x = self._random(rows, seed) if start is None else start[rows]
        return x.to(self._device, torch.float32).contiguous()

    def checked_start(self, start: Tensor | None, count: int) -> Tensor | None:
        """A copy of ``start`` on the CPU; ValueError unless it has ``count`` images or rows of parameters."""
        if start is None:
            return None
        what, shape = "images", torch.Size((count, *self._spec.shape))
        if self.parametrisation is not None:
            what, shape = "parameters", torch.Size((count, *self.parametrisation.limits(self._spec)[0].shape))
        if start.shape != shape or not start.is_floating_point():
            raise ValueError(
                f"start must be floating-point {what} {tuple(shape)}, got {start.dtype} {tuple(start.shape)}"
            )
        return start.detach().to("cpu", torch.float32).clone()

    def _random(self, rows: Tensor, seed: int) -> Tensor:
        """Random values, each image from a generator of its own: they do not depend on the other images."""
        generators = [generator_for(f"image {n}", seed) for n in rows.tolist()]
        if self.parametrisation is not None:
            return torch.cat([self.parametrisation.parameters(1, self._spec, generator) for generator in generators])
        make = torch.randn if self._pixels.init == "normal" else torch.rand
        x = torch.stack([make(self._spec.shape, generator=generator) for generator in generators]).to(self._device)
        if self._pixels.init == "uniform":
            x = self._spec.normalize(x)
        elif self.spectrum is not None:
            x = self.spectrum(x)
        return self._pixels.init_scale * x

    def _clip_bounds(self) -> tuple[Tensor | None, Tensor | None]:
        clip, channels = self._pixels.clip, self._spec.channels
        if self.parametrisation is not None:
            low, high = self.parametrisation.limits(self._spec)
            return low.to(self._device), high.to(self._device)
        if clip is None:
            return None, None
        if clip == "valid":
            low, high = self._spec.bounds(self._device)
            return low.flatten().expand(channels).contiguous(), high.flatten().expand(channels).contiguous()
        limit = torch.full((channels,), float(clip), device=self._device)
        return -limit, limit
