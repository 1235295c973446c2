"""Class-incremental learning with DeepInversion (Yin 2020, sec. 4.5 and E.1)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import cross_entropy
from exml_fast.continual.class_incremental.synthesis import SyntheticLearner, SyntheticSettings
from exml_fast.data import Split
from exml_fast.training import Batch, Mixture, Training, softened_kl
from exml_fast.validation import NonNegative, settings

__all__ = [
    "DeepInversion",
    "DeepInversionSettings",
    "MixedLoss",
    "freeze_batch_norm",
    "kl_with_zeros",
    "with_synthetic",
]

MixedLoss = Callable[[nn.Module, Batch, int], Tensor | dict[str, Tensor]]
"""``f(network, batch, real)``: the first ``real`` images of the batch are of new classes, the others of old ones."""


@settings
class DeepInversionSettings(SyntheticSettings):
    """Settings of :class:`DeepInversion`.

    Attributes:
        freeze_bn: BatchNorm keeps its statistics and weights after the first task (E.1).
        clip_after_first: largest norm of the gradient after the first task (E.1); 0 for any.
        lambda_new_images: weight of the divergence on new images, the third term of Eq. 11.
    """

    freeze_bn: bool = True
    clip_after_first: NonNegative = 0.1
    lambda_new_images: NonNegative = 1.0


class DeepInversion(SyntheticLearner[DeepInversionSettings]):
    """Images of the old classes by DeepInversion, with the old network's answers (Yin 2020, Eq. 11)."""

    settings = DeepInversionSettings

    def teach(self, lesson: Lesson) -> nn.Module:
        """Eq. 11, on as many synthetic as new images in each step."""
        previous, old = lesson.before(), lesson.old

        def loss(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            if self.config.freeze_bn:
                freeze_batch_norm(network)
            assert batch.labels is not None
            logits = network(batch.images)[:, : lesson.known]
            answers = previous(batch.images).logits
            # The answers give no probability to new classes.
            synthetic = kl_with_zeros(answers[real:], logits[real:])
            new = cross_entropy(logits[:real], batch.labels[:real], old)
            kept = softened_kl(answers[:real], logits[:real, :old])
            total = synthetic + new + self.config.lambda_new_images * kept
            return {"loss": total, "synthetic": synthetic, "new": new, "kept": kept}

        training = lesson.training.replace(clip=self.config.clip_after_first)
        return with_synthetic(lesson, self.config.synthesis.of_old_classes(lesson), loss, training)


def with_synthetic(
    lesson: Lesson,
    synthetic: Split,
    loss: MixedLoss,
    training: Training,
    *,
    stage: str = "learn",
    network: nn.Module | None = None,
    beside: nn.Module | None = None,
) -> nn.Module:
    """Train on equal batches of the task's images and of synthetic ones.

    ``network`` is the lesson's when None; ``beside`` as :class:`exml_fast.training.Loop`.
    """
    size = training.batch_size
    given = training.replace(batch_size=min(size, len(synthetic)))
    batches = Mixture([lesson.batches(lesson.split, training), lesson.batches(synthetic, given, 1)])
    return lesson.learn(
        lesson.network if network is None else network, batches, lambda n, batch: loss(n, batch, size), training,
        stage=stage, beside=beside,
    )  # fmt: skip


def freeze_batch_norm(network: nn.Module) -> None:
    """Leave the statistics of BatchNorm layers as they are in this step, and their weights without gradients.

    ``network`` is that of a training, which works on a copy.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def kl_with_zeros(answers: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ q), mean over the images, where p gives the old classes the answers' softmax and the new ones zero."""
    log_p = answers.log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1)[:, : answers.shape[1]])).sum(1).mean()
