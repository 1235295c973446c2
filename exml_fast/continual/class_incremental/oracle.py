"""Real images in place of synthetic ones: the oracles of Yin 2020, sec. 4.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exml_fast.continual.class_incremental.deep_inversion import freeze_batch_norm, kl_with_zeros, with_synthetic
from exml_fast.continual.class_incremental.exemplars import ExemplarMemory
from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import cross_entropy
from exml_fast.continual.class_incremental.tasks import Task
from exml_fast.training import Batch
from exml_fast.validation import Count, NonNegative, settings

__all__ = ["Oracle", "OracleSettings"]


@settings
class OracleSettings(LearnerSettings):
    """Settings of :class:`Oracle`.

    Attributes:
        total: real images that are kept, of all classes together; chosen at random.
        targets: of the old classes: "answers" of the network before the task, or "labels".
        freeze_bn, clip_after_first: as :class:`~exml_fast.continual.class_incremental.DeepInversion`.
    """

    total: Count = 2000
    targets: Literal["answers", "labels"] = "answers"
    freeze_bn: bool = True
    clip_after_first: NonNegative = 0.1


class Oracle(Learner[OracleSettings]):
    """Learns as DeepInversion from real images of the old classes, without the third term of Eq. 11."""

    settings = OracleSettings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.exemplars = ExemplarMemory(self.config.total)

    def check(self, task: Task, classes: int) -> None:
        """Also ValueError for fewer images than classes."""
        super().check(task, classes)
        self.exemplars.quota(classes)

    def teach(self, lesson: Lesson) -> nn.Module:
        """Yin 2020, Eq. 11 without its third term, on as many old as new images in each step."""
        previous, old, kept = lesson.before(), lesson.old, self.exemplars.split()
        assert kept is not None
        lesson.show(kept)

        def loss(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            if self.config.freeze_bn:
                freeze_batch_norm(network)
            assert batch.labels is not None
            logits = network(batch.images)[:, : lesson.known]
            new = cross_entropy(logits[:real], batch.labels[:real], old)
            if self.config.targets == "labels":
                before = cross_entropy(logits[real:], batch.labels[real:], old)
            else:
                before = kl_with_zeros(previous(batch.images[real:]).logits, logits[real:])
            return {"loss": new + before, "new": new, "old": before}

        training = lesson.training.replace(clip=self.config.clip_after_first)
        return with_synthetic(lesson, kept, loss, training)

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Images of old classes make room for those of new ones."""
        quota = self.exemplars.quota(lesson.known)
        self.exemplars.reduce(quota)
        generator = torch.Generator().manual_seed(lesson.seed)
        for unit in range(lesson.old, lesson.known):
            images = lesson.split.images[lesson.split.labels == unit]
            self.exemplars.add(images[torch.randperm(len(images), generator=generator)[:quota]])

    @property
    def nbytes(self) -> int:
        """Size of the images."""
        return self.exemplars.nbytes

    def memory(self) -> dict[str, Any]:
        """The images."""
        return self.exemplars.state_dict()

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """See :meth:`memory`."""
        self.exemplars.load_state_dict(state)
