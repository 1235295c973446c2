"""Always Be Dreaming: features kept through the old classifier, new classes learned among themselves (Smith 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from exml_fast.continual.class_incremental.deep_inversion import with_synthetic
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import balanced_cross_entropy, local_cross_entropy
from exml_fast.continual.class_incremental.synthesis import SyntheticLearner, SyntheticSettings
from exml_fast.training import Batch
from exml_fast.validation import NonNegative, settings

__all__ = ["AlwaysBeDreaming", "AlwaysBeDreamingSettings"]


@settings
class AlwaysBeDreamingSettings(SyntheticSettings):
    """Settings of :class:`AlwaysBeDreaming`.

    Attributes:
        lambda_features: weight of the distillation; 0.1 is published.
    """

    lambda_features: NonNegative = 0.1


class AlwaysBeDreaming(SyntheticLearner[AlwaysBeDreamingSettings]):
    """Local labels, features as the old classifier sees them, and a balanced classifier (Smith 2021, sec. 5)."""

    settings = AlwaysBeDreamingSettings

    def teach(self, lesson: Lesson) -> nn.Module:
        """One training on new and synthetic images, half and half."""
        previous, old = lesson.before(), lesson.old
        classifier = previous.classifier

        def loss(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            assert batch.labels is not None
            before, now = previous(batch.images), lesson.observed(network, batch.images)
            # The published code gives new labels this weight, here and in the balanced loss.
            share = (lesson.known - old) / lesson.known
            new = share * local_cross_entropy(now.logits[:real, : lesson.known], batch.labels[:real], old)
            # Features count by what they change in the old logits.
            features = (classifier(now.features) - classifier(before.features)).square().mean()
            # The final layer learns all classes; the features do not follow.
            logits = lesson.classifier(network)(now.features.detach())[:, : lesson.known]
            classification = balanced_cross_entropy(logits, batch.labels, old)
            total = new + classification + self.config.lambda_features * features
            return {"loss": total, "new": new, "features": features, "classification": classification}

        return with_synthetic(lesson, self.config.synthesis.of_old_classes(lesson), loss, lesson.training)
