"""Always Be Dreaming: features kept through the old classifier, new classes learned among themselves (Smith 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.continual.class_incremental.deep_inversion import with_synthetic
from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings
from exml_fast.continual.class_incremental.lesson import Lesson, observed
from exml_fast.continual.class_incremental.losses import local_cross_entropy
from exml_fast.continual.class_incremental.synthesis import Synthesis
from exml_fast.models import final_linear
from exml_fast.training import Batch
from exml_fast.validation import Flat, NonNegative, settings

__all__ = ["AlwaysBeDreaming", "AlwaysBeDreamingSettings"]


@settings
class AlwaysBeDreamingSettings(LearnerSettings):
    """Settings of :class:`AlwaysBeDreaming`.

    Attributes:
        synthesis: of the old classes.
        lambda_features: weight of the distillation; 0.1 is published.
    """

    synthesis: Flat[Synthesis] = Synthesis()
    lambda_features: NonNegative = 0.1


class AlwaysBeDreaming(Learner[AlwaysBeDreamingSettings]):
    """Local labels, features as the old classifier sees them, and a balanced classifier (Smith 2021, sec. 5)."""

    settings = AlwaysBeDreamingSettings

    def teach(self, lesson: Lesson) -> nn.Module:
        """One training on new and synthetic images, half and half."""
        previous, old = lesson.before(), lesson.old
        classifier = previous.classifier
        # Half of each batch is of old classes: weights give them their share of all classes.
        weights = torch.tensor([old / lesson.known, 1 - old / lesson.known], device=lesson.device)

        def loss(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            assert batch.labels is not None
            before, now = previous(batch.images), observed(network, batch.images)
            new = local_cross_entropy(now.logits[:real, : lesson.known], batch.labels[:real], old)
            # Features count by what they change in the old logits.
            change = classifier(now.features) - classifier(before.features)
            features = change[:, :old].square().mean()
            # The final layer learns all classes; the features do not follow.
            logits = final_linear(network.get_submodule("model"))(now.features.detach())[:, : lesson.known].float()
            each = ops.soft_cross_entropy(logits, batch.labels, reduction="none")
            classification = (weights[(batch.labels >= old).long()] * each).mean()
            total = new + classification + self.config.lambda_features * features
            return {"loss": total, "new": new, "features": features, "classification": classification}

        return with_synthetic(lesson, self.config.synthesis.of_old_classes(lesson), loss, lesson.training)

    def working_bytes(self, lesson: Lesson) -> int:
        """Size of the synthetic images."""
        return self.config.synthesis.nbytes(lesson)
