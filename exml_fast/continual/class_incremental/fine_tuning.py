"""Learners without any protection of old classes, and the upper bound (Lardizzone 2020, 3.1, 3.2; Nayak 2021, 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings, labelled
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import Classification, bce, cross_entropy
from exml_fast.data import Split
from exml_fast.engine.substitution import copied
from exml_fast.training import Batch, ImageBatches
from exml_fast.validation import settings

__all__ = ["FineTuning", "FixedRepresentation", "Joint", "LabelSettings", "joined"]

LABEL_LOSSES: dict[str, Classification] = {"ce": cross_entropy, "bce": bce}


@settings
class LabelSettings(LearnerSettings):
    """Settings of a learner that only has labels.

    Attributes:
        classification: "ce", cross-entropy over all logits, or "bce", binary cross-entropy of each (Lardizzone 2020,
            sec. 2.4).
    """

    classification: Literal["ce", "bce"] = "ce"


class _Labelled(Learner[LabelSettings]):
    """Learns from labels, by the loss of its settings."""

    settings = LabelSettings

    def label_loss(self) -> Classification:
        """See :class:`LabelSettings`."""
        return LABEL_LOSSES[self.config.classification]


class FineTuning(_Labelled):
    """Learns the labels of new images, and forgets (Lardizzone 2020, sec. 3.2)."""

    def teach(self, lesson: Lesson) -> nn.Module:
        """One training on the task's images."""
        return self._first(lesson)


class Joint(_Labelled):
    """Learns from the images of all tasks so far: the upper bound (Lardizzone 2020, sec. 3.1)."""

    seen: Split | None = None

    def teach(self, lesson: Lesson) -> nn.Module:
        """One training on all images so far, from the weights of before."""
        split = joined(self.seen, lesson.split)
        training = lesson.training_on(len(split))
        return lesson.learn(lesson.network, lesson.batches(split, training), labelled(self.label_loss()), training)

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Keep every image."""
        self.seen = joined(self.seen, lesson.split)

    @property
    def nbytes(self) -> int:
        """Size of all images so far."""
        return 0 if self.seen is None else self.seen.images.nbytes

    def memory(self) -> dict[str, Any]:
        """All images so far."""
        return {} if self.seen is None else {"images": self.seen.images, "labels": self.seen.labels}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """See :meth:`memory`."""
        self.seen = Split(state["images"].cpu(), state["labels"].cpu()) if state else None


class FixedRepresentation(_Labelled):
    """Only the new rows of the final layer learn; the rest of the network is that of the first task (Nayak 2021, 4.3).

    The new rows compete with the old ones, which do not change. Features are computed once, of each image and its
    mirror image.
    """

    def teach(self, lesson: Lesson) -> nn.Module:
        """A linear layer on the features of the first task's network."""
        images = lesson.split.images
        found = lesson.features(lesson.network, torch.cat([images, images.flip(3)])).to(lesson.device)
        old_rows, rows = lesson.before().classifier, slice(lesson.old, lesson.known)
        new = nn.Linear(found.shape[1], lesson.known - lesson.old, old_rows.bias is not None).to(lesson.device)
        with torch.no_grad():
            fixed = old_rows(found)
        training = lesson.training_on(2 * len(images)).replace(augmentation={}, precision="float32")
        batches = ImageBatches(
            found[:, :, None, None], lesson.split.labels.repeat(2), training, lesson.spec,
            torch.Generator().manual_seed(lesson.seed), lesson.device,
        )  # fmt: skip

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            assert batch.labels is not None and batch.rows is not None
            all_logits = torch.cat([fixed[batch.rows], network(batch.images.flatten(1))], 1)
            return self.label_loss()(all_logits, batch.labels, 0)

        taught = lesson.learn(new, batches, loss, training)
        network = copied(lesson.network)
        head = network.get_submodule(lesson.layer)
        with torch.no_grad():
            for name, weights in taught.named_parameters():
                head.get_parameter(name)[rows] = weights
        return network.eval()


def joined(first: Split | None, second: Split) -> Split:
    """The images of both."""
    if first is None:
        return second
    return Split(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]))
