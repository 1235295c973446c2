"""A generator that holds the old classes: the Self-distilled Knowledge Delegator (Ye 2022, III.C and Alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.continual.class_incremental.deep_inversion import with_synthetic
from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings, as_bytes
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import cross_entropy
from exml_fast.continual.class_incremental.synthesis import Synthesis
from exml_fast.data import Split
from exml_fast.evaluation.features import logits
from exml_fast.generators import Delegator, Generator, delegate
from exml_fast.training import Batch, DrawnImages, Mixture
from exml_fast.validation import Count, Flat, Positive, settings

__all__ = ["DelegatedLearner", "DelegatedLearnerSettings", "consolidation"]

# Images of the generator from which those of :attr:`Learner.samples` are taken.
SHOWN = 256


@settings
class DelegatedLearnerSettings(LearnerSettings):
    """Settings of :class:`DelegatedLearner`.

    Attributes:
        source: of the images of old classes: "generator" (Alg. 1), "inversion" (``synthesis``), or None: new images
            alone (Table III, "w/o SKD").
        rounds: of the generator's training in each task (:class:`exml_fast.Delegator`), whose rates fall to zero.
        generator_batch_size: images of a step of that training; 256 in the paper.
        generator_width: of its network.
        beta: β of the weight of the cross-entropy (Eq. 12).
        tasks: N of Eq. 12, all tasks after the first one.
        adaptive_weighting: False keeps the weight of the cross-entropy at 1 (Table III, "w/o ALW").
        synthesis: of the images, with source "inversion".
    """

    source: Literal["generator", "inversion"] | None = "generator"
    rounds: Count = 300
    generator_batch_size: Count = 128
    generator_width: Count = 64
    beta: Positive = 5.0
    tasks: Count = 5
    adaptive_weighting: bool = True
    synthesis: Flat[Synthesis] = Synthesis()


class DelegatedLearner(Learner[DelegatedLearnerSettings]):
    """Learns new labels and old features on new images and on those of a generator, half and half."""

    settings = DelegatedLearnerSettings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.generator: Generator | None = None
        self._trained: Generator | None = None
        self.base = 0
        if self.config.source == "inversion":
            self.config.synthesis.require_fit(self.network, self.spec)
        elif self.config.source == "generator":
            self._new_generator()  # ValueError for images that it cannot make

    def teach(self, lesson: Lesson) -> nn.Module:
        """Ye 2022, Alg. 1: train the generator, then the network."""
        previous, gamma = lesson.before(), self.weight(lesson)

        def loss(network: nn.Module, batch: Batch, real: int) -> dict[str, Tensor]:
            assert batch.labels is not None
            before, now = previous(batch.images), lesson.observed(network, batch.images)
            # Pseudo labels of synthetic images: what the old network says (Eq. 5).
            labels = torch.cat([batch.labels[:real], before.logits[real:].argmax(1)])
            classification = cross_entropy(now.logits[:, : lesson.known], labels, lesson.old)  # Eq. 10
            features = consolidation(before.features, now.features)  # Eq. 9
            return {"loss": gamma * classification + features, "classification": classification, "features": features}

        if self.config.source == "inversion":
            return with_synthetic(lesson, self.config.synthesis.of_old_classes(lesson), loss, lesson.training)
        real = lesson.training.batch_size
        sources: list[Any] = [lesson.batches(lesson.split, lesson.training)]
        if self.config.source == "generator":
            self._trained = self._taught(lesson)
            sources.append(_drawn(self._trained, lesson))
            lesson.show(_sampled(self._trained, lesson))
        return lesson.learn(
            lesson.network, Mixture(sources), lambda network, batch: loss(network, batch, real), lesson.training
        )

    def weight(self, lesson: Lesson) -> float:
        """γ of the cross-entropy: β / (N · number of classes learned after the first task, with this one) (Eq. 12)."""
        if not self.config.adaptive_weighting:
            return 1.0
        return float(self.config.beta / (self.config.tasks * (lesson.known - self.base)))

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Keep the generator, which the next task trains on."""
        if lesson.previous is None:
            self.base = lesson.known
        self.generator = self._trained or self.generator

    @property
    def nbytes(self) -> int:
        """Size of the generator's weights and statistics."""
        tensors = [] if self.generator is None else self.generator.network.state_dict().values()
        return sum(tensor.nbytes for tensor in tensors)

    def working_bytes(self, lesson: Lesson) -> int:
        """Size of the generator, or of the synthetic images."""
        if self.config.source == "inversion":
            return self.config.synthesis.nbytes(lesson)
        tensors = [] if self._trained is None else self._trained.network.state_dict().values()
        return sum(tensor.nbytes for tensor in tensors)

    def memory(self) -> dict[str, Any]:
        """The generator, and the number of classes of the first task."""
        weights = None if self.generator is None else self.generator.network.state_dict()
        return {"base": self.base, "generator": weights}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """See :meth:`memory`."""
        self.base, self._trained = state["base"], None
        self.generator = None if state["generator"] is None else self._rebuilt(state["generator"])

    def _taught(self, lesson: Lesson) -> Generator:
        """The generator of the task before, trained on with the network before the task (Alg. 1, lines 3 to 15)."""

        def make() -> dict[str, Any]:
            config = Delegator().replace(
                steps=self.config.rounds, batch_size=self.config.generator_batch_size, schedule="cosine",
                width=self.config.generator_width, precision=self.config.training.precision,
            )  # fmt: skip
            delegation = delegate(
                lesson.before().model, generator=self.generator, config=config, spec=self.spec, seed=lesson.seed,
                device=lesson.device, progress=lesson.report("generator"), checkpoint_dir=lesson.place("delegate"),
            )  # fmt: skip
            lesson.record.seconds["generator"] = delegation.seconds["delegate"]
            return dict(delegation.generator.network.state_dict())

        return self._rebuilt(lesson.kept("generator", make))

    def _new_generator(self) -> Generator:
        return Generator.create("upsampling", self.spec, width=self.config.generator_width)

    def _rebuilt(self, weights: Mapping[str, Tensor]) -> Generator:
        made = self._new_generator()
        made.network.load_state_dict(weights)
        made.network.to(next(self.network.parameters()).device)
        return made


def _sampled(generator: Generator, lesson: Lesson) -> Split:
    """Some images of the generator as uint8, labelled by the old network."""
    images = generator.sample(SHOWN, lesson.seed)
    return Split(as_bytes(images, lesson.spec), logits(lesson.before().model, images).argmax(1))


def _drawn(generator: Generator, lesson: Lesson) -> DrawnImages:
    """New images of the generator in each step. Their labels say nothing, as the old network names them."""

    def draw(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        return generator.draw(count, lesson.spec, source), torch.zeros(count, dtype=torch.int64)

    source = torch.Generator().manual_seed(lesson.seed + 1)
    return DrawnImages(draw, lesson.training, lesson.spec, source, lesson.device)


def consolidation(before: Tensor, now: Tensor) -> Tensor:
    """1 − cosine of the features (N, D) before the task and now, mean over the images (Ye 2022, Eqs. 1 and 9)."""
    return 1 - F.cosine_similarity(before, now, dim=1).mean()
