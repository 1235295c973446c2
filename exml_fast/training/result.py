"""What everything that trains returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["TrainingResult"]


@dataclass
class TrainingResult:
    """A trained network and how it came about.

    Attributes:
        model: in evaluation mode; the network that was given is unchanged.
        history: "step" and each term of the loss, means over blocks of steps.
        seconds: by stage, as "train" or "generate".
        peak_mb: the most memory that was held (:class:`exml_fast.profiling.Meter`).
    """

    model: nn.Module
    history: dict[str, list[float]]
    seconds: dict[str, float]
    peak_mb: float
