"""Old classes from Data Impressions, and a network for the new ones alone: dual distillation (Nayak 2021, sec. 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.continual.class_incremental.deep_inversion import with_synthetic
from exml_fast.continual.class_incremental.learner import labelled, with_head
from exml_fast.continual.class_incremental.lesson import Lesson, Previous
from exml_fast.continual.class_incremental.losses import cross_entropy
from exml_fast.continual.class_incremental.synthesis import Synthesis, SyntheticLearner, SyntheticSettings
from exml_fast.data import Split
from exml_fast.training import Batch
from exml_fast.validation import Flat, Positive, settings

__all__ = ["DualDistillation", "DualDistillationSettings", "double_distillation"]


@settings
class DualDistillationSettings(SyntheticSettings):
    """Settings of :class:`DualDistillation`.

    Attributes:
        synthesis: 2400 Data Impressions in all, as the paper has, in a tenth of its steps.
        lr_new: learning rate of the network for the new classes alone; the paper has 0.1.
        lr_combined: of the network that learns from both. The paper has 0.01, and 0.001 in the last task, for up to 500
            epochs; the loss is a mean over all known classes, so that short lessons need more.
    """

    synthesis: Flat[Synthesis] = Synthesis(images=2400, recipe="data_impressions/nayak-quick")
    lr_new: Positive = 0.1
    lr_combined: Positive = 0.1


class DualDistillation(SyntheticLearner[DualDistillationSettings]):
    """Two teachers, of the old classes and of the new, teach one network on impressions and new images."""

    settings = DualDistillationSettings

    def teach(self, lesson: Lesson) -> nn.Module:
        """A network for the new classes alone, then the combined one; both begin with the weights of before."""
        old_teacher, old = lesson.before(), lesson.old
        alone = Split(lesson.split.images, lesson.split.labels - old)
        training = lesson.training.replace(lr=self.config.lr_new)
        new_network = lesson.learn(
            with_head(lesson.network, lesson.known - old, lesson.layer), lesson.batches(alone, training),
            labelled(cross_entropy), training, stage="new classes",
        )  # fmt: skip
        new_teacher = Previous(new_network, lesson.layer, training.precision)

        def loss(network: nn.Module, batch: Batch, real: int) -> Tensor:
            logits = network(batch.images)[:, : lesson.known]
            return double_distillation(logits, old_teacher(batch.images).logits, new_teacher(batch.images).logits)

        impressions = self.config.synthesis.of_old_classes(lesson)
        return with_synthetic(lesson, impressions, loss, lesson.training.replace(lr=self.config.lr_combined))


def double_distillation(logits: Tensor, old_answers: Tensor, new_answers: Tensor) -> Tensor:
    """Mean squared error with both teachers' logits, each without its mean over its own classes (Zhang 2020, Eq. 3).

    Args:
        logits: (N, old + new).
        old_answers, new_answers: (N, old) and (N, new).
    """
    wanted = torch.cat([answers - answers.mean(1, keepdim=True) for answers in (old_answers, new_answers)], 1)
    return (logits - wanted).square().mean()
