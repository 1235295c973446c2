"""What a run of Ex-Model Distillation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual.expert import Expert
from exml_fast.continual.metrics import average_accuracy, forgetting
from exml_fast.data.buffer import ImageBuffer

__all__ = ["ExModelResult"]


@dataclass
class ExModelResult:
    """What :meth:`exml_fast.continual.ExModelDistillation.run` returns.

    Attributes:
        expert: the ex-model with a card of its own (``classes``: all that were seen).
        buffer: the final buffer.
        history: one entry an expert: lists "step", "loss", the name of the distance, "ce" (means over blocks of steps).
        evaluations: what ``evaluate`` returned after each expert.
        seconds: one {"generate", "distil", "evaluate"} an expert.
        peak_mb: the most memory held in these stages (:class:`exml_fast.profiling.Meter`).
    """

    expert: Expert
    buffer: ImageBuffer
    history: list[dict[str, list[float]]]
    evaluations: list[Any]
    seconds: list[dict[str, float]]
    peak_mb: list[dict[str, float]]

    @property
    def model(self) -> nn.Module:
        """The ex-model's network."""
        return self.expert.model

    @property
    def matrix(self) -> Tensor:
        """(experts, experiences): accuracy on experience j after expert i.

        For an ``evaluate`` that returns the accuracies of all experiences, as
        :func:`exml_fast.continual.experience_accuracies` does; ValueError otherwise.
        """
        if not self.evaluations or not all(isinstance(row, list) and row for row in self.evaluations):
            raise ValueError("evaluate must have returned a list of accuracies after each expert")
        return torch.tensor(self.evaluations, dtype=torch.float64)

    @property
    def average_accuracy(self) -> float:
        """Mean over the experiences after the last expert (:func:`exml_fast.continual.average_accuracy`)."""
        return average_accuracy(self.matrix)

    @property
    def forgetting(self) -> float:
        """What was lost of the best accuracy (:func:`exml_fast.continual.forgetting`)."""
        return forgetting(self.matrix)
