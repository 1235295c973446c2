"""iCaRL and its variants (Rebuffi 2017; Lardizzone 2020, sec. 3.4, 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from exml_fast.continual.class_incremental.classifiers import CLASSIFIERS, FeatureClassifier
from exml_fast.continual.class_incremental.exemplars import ExemplarMemory, collages, herded
from exml_fast.continual.class_incremental.fine_tuning import joined
from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings, as_bytes
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.losses import PAIRS, Classification
from exml_fast.continual.class_incremental.tasks import Task
from exml_fast.engine.substitution import copied
from exml_fast.inversion import Synthesizer, recipes
from exml_fast.models import redraw
from exml_fast.training import Batch, with_head
from exml_fast.validation import Count, Flat, require, settings

__all__ = ["Exemplars", "ICaRL", "ICaRLSettings"]


@settings
class Exemplars:
    """Which images are kept.

    Attributes:
        total: K, of all classes together.
        selection: "herding" (Rebuffi 2017, Alg. 4) or "random".
        collage: four images in one: "resized", "random-crop" or "center-crop" (Lardizzone 2020, sec. 5.1). They are
            chosen at random.
        inversion: a recipe by which each exemplar is made from the network after the task (sec. 5.2); None keeps real
            images. Adaptive recipes compete with a network of new weights.
        inversion_start: what the recipe starts from: "noise", or the images that ``selection`` chooses.
        inversion_steps: steps of the recipe; its own when None.
    """

    total: Count = 2000
    selection: Literal["herding", "random"] = "herding"
    collage: Literal["resized", "random-crop", "center-crop"] | None = None
    inversion: str | None = None
    inversion_start: Literal["noise", "images"] = "noise"
    inversion_steps: Count | None = None

    def check(self) -> None:
        """ValueError for collages that are inverted, or an unknown recipe."""
        require(self.collage is None or self.inversion is None, "collage", "None with inversion", self.collage)
        if self.inversion is not None:
            recipes.get(self.inversion)


@settings
class ICaRLSettings(LearnerSettings):
    """Settings of :class:`ICaRL`.

    Attributes:
        exemplars: what is kept.
        losses: a pair of classification and distillation loss (Lardizzone 2020, sec. 4.1).
        classifier: "nearest-mean" of the exemplars' features; "logits", the network itself (Hybrid1); "k-nearest",
            "mlp" or "svm" on the exemplars' features (sec. 4.2).
    """

    exemplars: Flat[Exemplars] = Exemplars()
    losses: Literal["bce-bce", "ce-mse", "bce-mse", "mse-mse", "ce-bce", "ce-kl"] = "bce-bce"
    classifier: Literal["nearest-mean", "logits", "k-nearest", "mlp", "svm"] = "nearest-mean"


class ICaRL(Learner[ICaRLSettings]):
    """Learns from new images and exemplars, with the old network's answers, and asks the nearest mean of exemplars."""

    settings = ICaRLSettings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.exemplars = ExemplarMemory(self.config.exemplars.total)
        self._classifier: FeatureClassifier | None = None
        if (recipe := self.config.exemplars.inversion) is not None:
            Synthesizer(self.network, self.spec, recipes.get(recipe))  # ValueError for a network that it cannot invert

    def label_loss(self) -> Classification:
        """Of the pair."""
        return PAIRS[self.config.losses].classification

    def check(self, task: Task, classes: int) -> None:
        """Also ValueError for fewer exemplars than classes, or for images of which no collage can be made."""
        super().check(task, classes)
        self.exemplars.quota(classes)
        if self.config.exemplars.collage is not None:
            few = [c for c in task.classes if int((task.split.labels == c).sum()) < 4]
            require(not few, "task", "one with at least four images of each class for collages", few)
            even = all(side % 2 == 0 for side in self.spec.size)
            require(even, "collage", "None for images with an odd side", self.spec.size)

    def teach(self, lesson: Lesson) -> nn.Module:
        """Rebuffi 2017, Alg. 3: the network learns from new images and exemplars together."""
        pair, old = PAIRS[self.config.losses], lesson.old
        kept_images = self.exemplars.split()
        assert kept_images is not None
        lesson.show(kept_images)
        previous, split = lesson.before(), joined(kept_images, lesson.split)
        training = lesson.training_on(len(split))

        def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
            assert batch.labels is not None
            logits = network(batch.images)
            new = pair.classification(logits, batch.labels, old)
            kept = pair.distillation(logits, previous(batch.images).logits)
            return {"loss": new + kept, "classification": new, "distillation": kept}

        return lesson.learn(lesson.network, lesson.batches(split, training), loss, training)

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Rebuffi 2017, Alg. 2: exemplars of old classes make room for those of new ones."""
        quota = self.exemplars.quota(lesson.known)
        units = range(lesson.old, lesson.known)

        def make() -> dict[str, Tensor]:
            chosen = {unit: self._chosen(lesson, network, unit, quota) for unit in units}
            if self.config.exemplars.inversion is not None:
                chosen = self._inverted(lesson, network, chosen)
            return {str(unit): images for unit, images in chosen.items()}

        made = lesson.kept("exemplars", make)
        self.exemplars.reduce(quota)
        for unit in units:
            self.exemplars.add(made[str(unit)])
        self._classifier = None

    def answers(self, images: Tensor) -> Tensor:
        """By the classifier of the settings."""
        if self.config.classifier == "logits":
            return super().answers(images)
        if self._classifier is None:
            split = self.exemplars.split()
            assert split is not None
            kept = self.features(self.spec.prepare(split.images))
            self._classifier = CLASSIFIERS[self.config.classifier](kept, split.labels, self.seed)
        return self._classifier(self.features(images))

    @property
    def nbytes(self) -> int:
        """Size of the exemplars."""
        return self.exemplars.nbytes

    def memory(self) -> dict[str, Any]:
        """The exemplars."""
        return self.exemplars.state_dict()

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """See :meth:`memory`."""
        self.exemplars.load_state_dict(state)
        self._classifier = None

    def _chosen(self, lesson: Lesson, network: nn.Module, unit: int, quota: int) -> Tensor:
        """The images of a class to keep, the most important first; collages are made of four each."""
        settings = self.config.exemplars
        images = lesson.split.images[lesson.split.labels == unit]
        generator = torch.Generator().manual_seed(lesson.seed + unit)
        if settings.collage is not None:
            order = torch.randperm(len(images), generator=generator)[: 4 * min(quota, len(images) // 4)]
            return collages(images[order], settings.collage, generator)
        if settings.selection == "random":
            return images[torch.randperm(len(images), generator=generator)[:quota]]
        return images[herded(lesson.features(network, images), quota)]

    def _inverted(self, lesson: Lesson, network: nn.Module, chosen: dict[int, Tensor]) -> dict[int, Tensor]:
        """Images that the network recognises in place of the chosen ones (Lardizzone 2020, sec. 5.2)."""
        settings = self.config.exemplars
        assert settings.inversion is not None
        recipe = recipes.get(settings.inversion)
        if settings.inversion_steps is not None:
            recipe = recipe.overridden(steps=settings.inversion_steps)
        labels = torch.repeat_interleave(
            torch.tensor(list(chosen)), torch.tensor([len(images) for images in chosen.values()])
        )
        # The classes take turns, so that each batch holds all of them.
        turn = torch.cat([torch.arange(len(images)) for images in chosen.values()]).argsort(stable=True)
        start = torch.cat(list(chosen.values()))[turn] if settings.inversion_start == "images" else None
        teacher = with_head(network, lesson.known, lesson.layer, keep=lesson.known)  # a full head has more logits
        synthesizer = Synthesizer(teacher, lesson.spec, recipe)
        student = redraw(copied(teacher)) if recipe.competition.compete else None
        made = synthesizer.run(
            labels[turn], seed=lesson.seed, classes=list(range(lesson.known)), student=student,
            start=None if start is None else lesson.spec.prepare(start),
            progress=lesson.report("exemplars"), checkpoint_dir=lesson.place("exemplars"),
        )  # fmt: skip
        lesson.record.seconds["exemplars"] = made.seconds
        images = as_bytes(made.images, lesson.spec)
        return {unit: images[made.labels == unit] for unit in chosen}
