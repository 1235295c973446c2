"""Outputs of experts that never met, on one scale, without any of their data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from exml_fast.continual.expert import Expert
from exml_fast.data import ImageSource
from exml_fast.engine.statistics import bn_layers

__all__ = ["Measured", "ResponseCalibration", "statistics_distance"]

# Statistics of so many images are taken at once.
BLOCK_IMAGES = 512
# Relative: distances that vary by no more are the same but for rounding.
SAME = 1e-4


class Measured(NamedTuple):
    """What a :class:`ResponseCalibration` found out about an expert."""

    scale: Tensor
    """Factors (C,) of the logits of its C own classes."""
    usual: Tensor
    """Mean and standard deviation (2, L) of the distances of images of the source, L calls of BatchNorms; L = 0
    without typicality or BatchNorms."""


@dataclass(frozen=True)
class ResponseCalibration:
    """Each logit in units of the highest that images of a source reach: z ← level · z / mean of its largest values.

    Experts of different classes are trained apart, and nothing makes the logit of one comparable with another's. The
    highest that a unit reaches is a scale that needs no data of its class.

    ``images`` are drawn from ``source`` for each expert, the same for all; ``share`` of them, those of the highest
    response, count. ``level``: the highest response afterwards.

    ``typicality`` t > 0 lowers the responses of an expert with BatchNorms (that keep statistics) to images that are
    unlike its own data, on which it may be certain all the same: z ← z − t · mean over the BatchNorms of (d − m) / s.
    There d is the distance of the image's statistics from those that the layer remembers
    (:func:`statistics_distance`), m and s its mean and deviation on images of the source.
    """

    source: ImageSource
    images: int = 20000
    share: float = 0.001
    level: float = 10.0
    typicality: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be more than 0 and at most 1, got {self.share!r}")
        if not self.level > 0:
            raise ValueError(f"level must be positive, got {self.level!r}")
        if not 0 <= self.typicality < math.inf:
            raise ValueError(f"typicality must not be negative, got {self.typicality!r}")

    def measure(self, expert: Expert, generator: torch.Generator) -> Measured:
        """Look at an expert's answers to images of the source.

        ValueError if a unit's highest response is not positive, or not finite, or if all images are equally typical
        (of a single one as well).
        """
        images = self.source.draw(self.images, expert.input_spec, generator)
        logits, distances = self._answers(expert, images)
        highest = logits.topk(max(1, round(self.share * self.images)), 0).values.mean(0)
        for unit, response in zip(expert.classes, highest.tolist(), strict=True):
            if not 0 < response < math.inf:
                raise ValueError(
                    f"the expert's logit of class {unit} reaches {response:.3g} on images of {self.source.describe()}: "
                    "expected a positive number; choose another source"
                )
        mean = distances.mean(0)
        deviation = (distances - mean).square().mean(0).sqrt()
        if not (deviation > SAME * mean).all():
            raise ValueError(
                f"images of {self.source.describe()} are all as far from what a BatchNorm of the expert remembers: "
                "choose another source, or typicality 0"
            )
        return Measured(self.level / highest, torch.stack([mean, deviation]))

    def responses(self, expert: Expert, images: Tensor, measured: Measured) -> Tensor:
        """Calibrated logits (N, C) of the expert's own classes for images (N, C, H, W) of its input."""
        logits, distances = self._answers(expert, images)
        responses = logits * measured.scale
        if not distances.shape[1]:
            return responses
        mean, deviation = measured.usual
        return responses - self.typicality * ((distances - mean) / deviation).mean(1, keepdim=True)

    def _answers(self, expert: Expert, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of the expert's own classes, and the distances (N, L) of its statistics, where they count."""
        own, found, distances = expert.positions(expert.classes), [], list[Tensor]()

        def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            # At once: the network may change the input in place, and a large one could not keep them all.
            distances.append(statistics_distance(inputs[0], layer))

        layers = [m for _, m in bn_layers(expert.model) if m.running_mean is not None] if self.typicality else []
        handles = [layer.register_forward_pre_hook(look) for layer in layers]
        try:
            for block in images.split(BLOCK_IMAGES):
                distances.clear()
                logits = expert.logits(block, BLOCK_IMAGES)[:, own]
                far = torch.stack(distances, 1).to(logits) if distances else logits.new_empty(len(block), 0)
                found.append((logits, far))
        finally:
            for handle in handles:
                handle.remove()
        logits, far = (torch.cat(blocks) for blocks in zip(*found, strict=True))
        return logits, far

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        return {**dataclasses.asdict(self), "source": self.source.describe()}


@torch.no_grad()
def statistics_distance(x: Tensor, layer: nn.Module) -> Tensor:
    """How far the statistics of each image of ``x`` (N, C, ...) are from those that a BatchNorm remembers: (N,).

    The root of the mean over the channels of m₁² + (m₂ − 1)², where m₁ and m₂ are the mean and the mean square over
    the image of the layer's input, standardised by its running statistics. Zero where the image alone has them.
    """
    mean, var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
    pixels = x.reshape(*x.shape[:2], -1).to(torch.promote_types(x.dtype, torch.float32))
    standardised = (pixels - mean[:, None]) / (var[:, None] + cast(float, layer.eps)).sqrt()
    means, squares = standardised.mean(2), standardised.square().mean(2)
    return (means.square() + (squares - 1).square()).mean(1).sqrt()
