"""The networks of a run: the classifier that is inverted, and the student that the images compete with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.conv_plan import Plan
from exml_fast.engine.conv_tuning import Plans
from exml_fast.engine.eager import EagerTeacher
from exml_fast.engine.freezing import dtype_of, frozen_copy
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import require_running_statistics
from exml_fast.engine.teacher import FrozenTeacher
from exml_fast.inversion.settings import Matching, StudentCompetition

__all__ = ["Networks"]

Network = FrozenTeacher | EagerTeacher
SavedPlans = dict[str, tuple[str, tuple[Any, ...]]]


class Networks:
    """A copy of the classifier, its frozen teacher and, with a weight ``compete``, a frozen student.

    Args: see :class:`exml_fast.inversion.Synthesizer`; ``batch_size`` is the usual number of images of a call.

    Raises:
        ValueError: if the network cannot be frozen, if the recipe matches BatchNorm statistics and the network has none
            (unless the recipe's ``bn_optional``), or if one image needs more memory than there is.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec,
        matching: Matching,
        competition: StudentCompetition,
        *,
        batch_size: int,
        device: torch.device,
        precision: str,
        engine: bool,
        statistics: str | Tensor,
        layers: Sequence[str],
    ) -> None:
        self.spec, self.device, self.precision, self.engine = spec, device, precision, engine
        self.compete, self.batch_size = competition.compete, batch_size
        self.statistics, self.layers = statistics, (layers,) if isinstance(layers, str) else tuple(layers)
        self.model = frozen_copy(model, device)
        if matching.bn > 0 and not self.layers:
            require_running_statistics(self.model)
        require_memory(self.model, spec, 1, device)
        self.teacher = self._freeze_teacher()
        self.student: Network | None = None
        if matching.bn > 0 and not self.matches_statistics and not matching.bn_optional:
            raise ValueError(
                f"the recipe matches BatchNorm statistics (bn={matching.bn}), but {type(model).__name__} runs no "
                "BatchNorm layer: give some real images as statistics and names of layers as layers, or set bn=0 (or "
                "bn_optional=True) to rely on the image priors alone"
            )

    @property
    def num_classes(self) -> int:
        """The number of the teacher's logits, K."""
        return self.teacher.num_classes

    @property
    def matches_statistics(self) -> bool:
        """Whether the teacher gives statistics to match."""
        return self.teacher.matched_calls > 0

    def compete_with(self, student: nn.Module | None, plans: Plans | None = None) -> None:
        """Freeze a copy of the student, with a weight ``compete``; ValueError if the student does not fit."""
        self.student = None
        if self.compete == 0:
            return
        if not isinstance(student, nn.Module):
            raise ValueError(
                f"the recipe competes with a student (compete={self.compete}): student must be a "
                f"torch.nn.Module, got {type(student).__name__}"
            )
        frozen_student = self._freeze(student, plans)
        if frozen_student.num_classes != self.num_classes:
            raise ValueError(
                f"student must give the teacher's {self.num_classes} logits, {type(student).__name__} gives "
                f"{frozen_student.num_classes}"
            )
        self.student = frozen_student

    def plans(self) -> dict[str, SavedPlans]:
        """How the convolutions of both networks compute, as plain values for a checkpoint."""
        return {"teacher": _saved_plans(self.teacher), "student": _saved_plans(self.student)}

    def use_plans(self, saved: dict[str, SavedPlans], student: nn.Module | None) -> None:
        """Compute as a checkpoint says: plans that are measured again may differ, and with them the rounding."""
        now = self.plans()
        if saved["teacher"] != now["teacher"]:
            self.teacher = self._freeze_teacher(_plans(saved["teacher"]))
        if saved["student"] != now["student"]:
            self.compete_with(student, _plans(saved["student"]))

    def judge(self, images: Tensor) -> Tensor:
        """Logits (N, K) float32, CPU, of the classifier as it was given, for images (N, C, H, W)."""
        dtype = dtype_of(self.model)
        with torch.no_grad():
            # PyTorch's own layers need more memory for an image than a step of the teacher does.
            parts = images.split(-(-self.batch_size // 4))
            return torch.cat([self.model(part.to(self.device, dtype)).float().cpu() for part in parts])

    def tensors(self, student: nn.Module | None) -> list[Tensor]:
        """Everything that decides what the networks compute."""
        given = [*self.model.state_dict().values()]
        if isinstance(self.statistics, Tensor):
            given.append(self.statistics)
        if self.student is not None and student is not None:
            given += student.state_dict().values()
        return given

    def _freeze_teacher(self, plans: Plans | None = None) -> Network:
        return self._freeze(self.model, plans, statistics=self.statistics, layers=self.layers)

    def _freeze(self, model: nn.Module, plans: Plans | None, **statistics: Any) -> Network:
        if not self.engine:
            return EagerTeacher(model, self.spec, device=self.device, **statistics)
        return FrozenTeacher(
            model, self.spec, device=self.device, precision=self.precision, batch_size=self.batch_size,
            plans=plans, **statistics,
        )  # fmt: skip


def _saved_plans(network: Network | None) -> SavedPlans:
    plans = network.plans.items() if isinstance(network, FrozenTeacher) else ()
    return {name: (dtype, dataclasses.astuple(plan)) for name, (dtype, plan) in plans}


def _plans(saved: SavedPlans) -> Plans:
    return {name: (dtype, Plan(*plan)) for name, (dtype, plan) in saved.items()}
