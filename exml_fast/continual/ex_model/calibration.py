"""Put the logits of separately trained experts on one scale, without any of their data."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, NamedTuple, cast

import torch
from pydantic import Field, SkipValidation
from torch import Tensor, nn

from exml_fast.continual.expert import Expert
from exml_fast.data import ImageSource
from exml_fast.engine.statistics import bn_layers
from exml_fast.validation import Count, NonNegative, Positive, settings

__all__ = ["Measured", "ResponseCalibration", "statistics_distance"]

# Number of images whose statistics are computed at once.
BLOCK_IMAGES = 512
# Distances whose relative deviation is smaller differ by rounding only.
SAME = 1e-4


class Measured(NamedTuple):
    """What a :class:`ResponseCalibration` measured of an expert."""

    scale: Tensor
    """Factors (C,) of the logits of its C own classes."""
    usual: Tensor
    """Mean and standard deviation (2, L), over images of the source, of the distance at each of L calls of a BatchNorm;
    L = 0 without typicality or BatchNorms."""


@settings
class ResponseCalibration:
    """Scale each logit by its largest values on random images: z ← level · z / mean of the largest values.

    Experts of different classes are trained separately, so their logits need not be comparable. The largest values that
    a logit reaches on random images are a scale that needs no data of its class.

    An expert may be certain of images that are unlike its own data. With ``typicality`` t > 0 such images lower the
    logits of an expert whose BatchNorms keep statistics: z ← z − t · mean over the BatchNorms of (d − m) / s. Here d is
    the distance of the image's statistics from the running statistics (:func:`statistics_distance`); m and s are the
    mean and deviation of d on images of the source.

    Attributes:
        source: of the random images.
        images: how many are drawn; they are the same for every expert.
        share: of the images, those with the largest logits, that the mean is over.
        level: the mean of the largest logits afterwards.
        typicality: t.
    """

    source: Annotated[ImageSource, SkipValidation]
    images: Count = 20000
    share: Annotated[float, Field(gt=0, le=1)] = 0.001
    level: Positive = 10.0
    typicality: NonNegative = 0.0

    def measure(self, expert: Expert, generator: torch.Generator) -> Measured:
        """Compute an expert's scale from its logits of images of the source.

        ValueError if the largest logits of a class are not positive or not finite, or if all images are equally typical
        (as a single image is).
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
                f"images of {self.source.describe()} have all the same distance to the running statistics of a "
                "BatchNorm of the expert: choose another source, or typicality 0"
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
        """Logits (N, C) of the expert's own classes, and with typicality the distances (N, L) of the statistics."""
        own, found, distances = expert.positions(expert.classes), [], list[Tensor]()

        def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            # Now, as the network may change the input in place, and the inputs of a large network would not fit.
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
    """Distance (N,) of the statistics of each image of ``x`` (N, C, ...) from a BatchNorm's running statistics.

    The root of the mean over the channels of m₁² + (m₂ − 1)², where m₁ and m₂ are the mean and the mean square over
    the image of the layer's input, standardised by its running statistics. It is zero for an image with these
    statistics.
    """
    mean, var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
    pixels = x.reshape(*x.shape[:2], -1).to(torch.promote_types(x.dtype, torch.float32))
    standardised = (pixels - mean[:, None]) / (var[:, None] + cast(float, layer.eps)).sqrt()
    means, squares = standardised.mean(2), standardised.square().mean(2)
    return (means.square() + (squares - 1).square()).mean(1).sqrt()
