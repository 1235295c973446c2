"""Images as functions of parameters: the optimiser then changes the parameters in place of pixels."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from exml_fast.data import InputSpec

__all__ = ["Parametrisation"]


class Parametrisation(Protocol):
    """A family of images, like :class:`exml_fast.data.PenStrokes`. ``domain`` names what the images show."""

    domain: ClassVar[str]

    def parameters(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """``count`` random rows of parameters: float32 (count, P), on the CPU."""
        ...

    def limits(self, spec: InputSpec) -> tuple[Tensor, Tensor]:
        """Lowest and highest values that an optimiser may give the parameters, (P,) each, on the CPU."""
        ...

    def render(self, parameters: Tensor, spec: InputSpec) -> Tensor:
        """Normalised images (N, C, H, W) of parameters (N, P), on their device; differentiable.

        On CUDA it is captured in a graph: no copies from or to the host.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        ...
