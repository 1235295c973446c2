"""Learning without Forgetting: the network before the task answers for new images (Li 2016; Lardizzone 2020, 3.3)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import (
    Classification,
    Pair,
    bce,
    bce_of_old,
    kl_of_old,
    local_cross_entropy,
)
from exml_fast.training import Batch
from exml_fast.validation import NonNegative, settings

__all__ = ["LwF", "LwFSettings"]

LOSSES = {"ce-kl": Pair(local_cross_entropy, kl_of_old), "bce-bce": Pair(bce, bce_of_old)}


@settings
class LwFSettings(LearnerSettings):
    """Settings of :class:`LwF`.

    Attributes:
        losses: "ce-kl", cross-entropy over the new logits and KL at τ = 2 over the old ones (Li 2016); "bce-bce",
            binary cross-entropies, which is LwF.MC of Rebuffi 2017 and the LwF of Lardizzone 2020.
        lambda_old: weight of the distillation.
    """

    losses: Literal["ce-kl", "bce-bce"] = "ce-kl"
    lambda_old: NonNegative = 1.0


class LwF(Learner[LwFSettings]):
    """New images teach the new classes by their labels, and keep the old ones by the old network's answers."""

    settings = LwFSettings

    def label_loss(self) -> Classification:
        """Of the pair."""
        return LOSSES[self.config.losses].classification

    def teach(self, lesson: Lesson) -> nn.Module:
        """One training on the task's images."""
        pair, old = LOSSES[self.config.losses], lesson.old
        batches = lesson.batches(lesson.split, lesson.training)
        previous = lesson.before()

        def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
            assert batch.labels is not None
            logits = network(batch.images)
            new = pair.classification(logits, batch.labels, old)
            kept = pair.distillation(logits, previous(batch.images).logits)
            return {"loss": new + self.config.lambda_old * kept, "classification": new, "distillation": kept}

        return lesson.learn(lesson.network, batches, loss, lesson.training)
