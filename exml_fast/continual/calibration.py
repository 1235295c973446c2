"""Outputs of experts that never met, on one scale, without any of their data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert
from exml_fast.data import ImageSource

__all__ = ["ResponseCalibration"]


@dataclass(frozen=True)
class ResponseCalibration:
    """Each logit in units of the highest that images of a source reach: z ← level · z / mean of its largest values.

    Experts of different classes are trained apart, and nothing makes the logit of one comparable with another's. The
    highest that a unit reaches is a scale that needs no data of its class.

    ``images`` are drawn from ``source`` for each expert, the same for all; ``share`` of them, those of the highest
    response, count. ``level``: the highest response afterwards.
    """

    source: ImageSource
    images: int = 20000
    share: float = 0.001
    level: float = 10.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be more than 0 and at most 1, got {self.share!r}")
        if not self.level > 0:
            raise ValueError(f"level must be positive, got {self.level!r}")

    def scale(self, expert: Expert, generator: torch.Generator) -> Tensor:
        """Factors (len(expert.classes),) of the logits of the expert's own classes.

        ValueError if a unit's highest response is not positive, or not finite.
        """
        images = self.source.draw(self.images, expert.input_spec, generator)
        logits = expert.logits(images)[:, expert.positions(expert.classes)]
        highest = logits.topk(max(1, round(self.share * self.images)), 0).values.mean(0)
        for unit, response in zip(expert.classes, highest.tolist(), strict=True):
            if not 0 < response < float("inf"):
                raise ValueError(
                    f"the expert's logit of class {unit} reaches {response:.3g} on images of {self.source.describe()}: "
                    "expected a positive number; choose another source"
                )
        return self.level / highest

    def describe(self) -> dict[str, Any]:
        """Settings as plain JSON values."""
        return {**dataclasses.asdict(self), "source": self.source.describe()}
