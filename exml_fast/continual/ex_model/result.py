"""What a run of Ex-Model Distillation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert
from exml_fast.continual.metrics import average_accuracy, forgetting
from exml_fast.data.buffer import ImageBuffer
from exml_fast.training import TrainingResult

__all__ = ["STAGES", "ExModelResult", "Learned"]

STAGES = ("generate", "distil", "evaluate")


@dataclass
class Learned:
    """What happened with one expert.

    Attributes:
        history: lists "step", "loss", the name of the distance ("mse" or "kl"), "ce" and, with ``lambda_latent``,
            "latent": means over blocks of steps.
        seconds: by stage, "generate", "distil" and "evaluate".
        peak_mb: the most memory held in each stage (:class:`exml_fast.profiling.Meter`).
        evaluation: what ``evaluate`` returned; None without it.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    peak_mb: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    evaluation: Any = None


@dataclass(repr=False)
class ExModelResult(TrainingResult):
    """What :meth:`exml_fast.continual.ExModelDistillation.run` returns.

    ``history`` holds the values of all experts one after the other, with their number from 1 in "expert"; ``seconds``
    are sums over the experts.

    Attributes:
        expert: the ex-model with a card of its own (``classes``: all that were seen).
        buffer: the final buffer.
        learned: one entry an expert.
    """

    expert: Expert
    buffer: ImageBuffer
    learned: list[Learned]

    @classmethod
    def of(cls, expert: Expert, buffer: ImageBuffer, learned: list[Learned]) -> Self:
        """The result of a run."""
        history: dict[str, list[float]] = {"expert": []}
        for number, each in enumerate(learned, 1):
            history["expert"] += [float(number)] * len(each.history["step"])
            for name, values in each.history.items():
                history.setdefault(name, []).extend(values)
        seconds = {stage: sum(each.seconds[stage] for each in learned) for stage in STAGES}
        peak = max((max(each.peak_mb.values()) for each in learned), default=0.0)
        return cls(expert.model, history, seconds, peak, expert, buffer, learned)

    @property
    def evaluations(self) -> list[Any]:
        """What ``evaluate`` returned after each expert; empty without it."""
        return [each.evaluation for each in self.learned if each.evaluation is not None]

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
