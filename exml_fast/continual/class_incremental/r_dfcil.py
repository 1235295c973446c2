"""Relation-guided representation learning for data-free class-incremental learning (R-DFCIL, Gao 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.continual.class_incremental.deep_inversion import freeze_batch_norm, with_synthetic
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import balanced_cross_entropy, local_cross_entropy
from exml_fast.continual.class_incremental.synthesis import SyntheticLearner, SyntheticSettings
from exml_fast.engine.substitution import copied
from exml_fast.training import Batch
from exml_fast.validation import NonNegative, Positive, Share, settings

__all__ = ["RDFCIL", "RDFCILSettings", "angles"]


@settings
class RDFCILSettings(SyntheticSettings):
    """Settings of :class:`RDFCIL`; weights are those published for CIFAR-100.

    Attributes:
        lambda_labels: of the local cross-entropy on new images.
        lambda_answers: of the distance to the old logits on synthetic images.
        lambda_relations: of the angles between the features of three new images.
        refine_share: steps of the second stage, in which the final layer alone learns, as a share of the first's.
        refine_lr: its learning rate. The published 0.005 is for 40 epochs at a constant rate; short lessons need more.
    """

    lambda_labels: NonNegative = 0.5
    lambda_answers: NonNegative = 0.15
    lambda_relations: NonNegative = 0.5
    refine_share: Share = 0.2
    refine_lr: Positive = 0.1


class RDFCIL(SyntheticLearner[RDFCILSettings]):
    """Representation first, with the relations of new images as the old network saw them; then the classifier."""

    settings = RDFCILSettings

    def teach(self, lesson: Lesson) -> nn.Module:
        """Gao 2022, Alg. 1."""
        config, previous, old, new = self.config, lesson.before(), lesson.old, lesson.known - lesson.old
        alpha, beta = math.log2(new / 2 + 1), math.sqrt(old / new)  # Gao 2022, Eq. 9
        width = lesson.before().classifier.in_features
        both = nn.ModuleDict({name: nn.Linear(width, 2 * width) for name in ("before", "now")}).to(lesson.device)
        synthetic = config.synthesis.of_old_classes(lesson)

        def represent(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            assert batch.labels is not None
            before, now = previous(batch.images), lesson.observed(network, batch.images)
            labels = local_cross_entropy(now.logits[:real, : lesson.known], batch.labels[:real], old)
            answers = F.l1_loss(now.logits[real:, :old], before.logits[real:])
            relations = F.l1_loss(
                angles(both["now"](now.features[:real])), angles(both["before"](before.features[:real]))
            )
            total = config.lambda_labels * (1 + 1 / alpha) / beta * labels
            total = total + alpha * beta * (config.lambda_answers * answers + config.lambda_relations * relations)
            return {"loss": total, "labels": labels, "answers": answers, "relations": relations}

        network = with_synthetic(lesson, synthetic, represent, lesson.training, stage="represent", beside=both)
        if not config.refine_share:
            return network

        def refine(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            assert batch.labels is not None
            freeze_batch_norm(network)
            logits = network(batch.images)[:, : lesson.known]
            labels = balanced_cross_entropy(logits, batch.labels, old)
            answers = F.l1_loss(logits[real:, :old], previous(batch.images[real:]).logits)
            total = config.lambda_labels * labels + config.lambda_answers * alpha * beta * answers
            return {"loss": total, "labels": labels, "answers": answers}

        steps = max(1, round(config.refine_share * lesson.training.steps))
        training = lesson.training.replace(lr=config.refine_lr, steps=steps)
        fixed = copied(network).requires_grad_(False)
        fixed.get_submodule(lesson.layer).requires_grad_(True)
        refined = with_synthetic(lesson, synthetic, refine, training, stage="refine", network=fixed)
        network.load_state_dict(refined.state_dict())
        return network


def angles(features: Tensor) -> Tensor:
    """Cosines (N, N, N) of the angles at image i between the ways to images j and k (Park 2019, Eq. 7)."""
    ways = F.normalize(features[None] - features[:, None], dim=2)
    return torch.bmm(ways, ways.transpose(1, 2))
