"""Synthetic images of the old classes, made from the network before the task."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings, as_bytes
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.tasks import Task
from exml_fast.data import InputSpec, Split
from exml_fast.inversion import Synthesizer, recipes
from exml_fast.validation import Count, Flat, Precision, require, settings

__all__ = ["Synthesis", "SyntheticLearner", "SyntheticSettings"]


@settings
class Synthesis:
    """How images of the old classes are made. They are forgotten after the task.

    Attributes:
        images: how many, of all old classes together in equal numbers. 2000 take as many bytes as 2000 exemplars.
        recipe: of the inversion (:mod:`exml_fast.inversion.recipes`).
        recipe_steps: its steps; its own when None.
        engine_precision: of the network during the inversion.
    """

    images: Count = 2000
    recipe: str = "deep_inversion/cifar10-quick"
    recipe_steps: Count | None = None
    engine_precision: Precision = "auto"

    def check(self) -> None:
        """ValueError for an unknown recipe."""
        recipes.get(self.recipe)

    def require_fit(self, network: nn.Module, spec: InputSpec) -> None:
        """ValueError if the recipe cannot make images from ``network``, as a recipe that matches absent BatchNorms."""
        Synthesizer(network, spec, recipes.get(self.recipe))

    def nbytes(self, lesson: Lesson) -> int:
        """Size of the images."""
        return int(self.images * lesson.split.images[0].nbytes)

    def of_old_classes(self, lesson: Lesson) -> Split:
        """Images as uint8; labels are the logit positions that the old network names.

        An interrupted task does not make them again. The history has "synthesis/accuracy", the share of images that
        the old network names as they were wanted, and "synthesis/confidence".
        """

        def make() -> dict[str, Any]:
            recipe = recipes.get(self.recipe)
            if self.recipe_steps is not None:
                recipe = recipe.overridden(steps=self.recipe_steps)
            # A batch holds at least two images of each class.
            size = min(self.images, max(recipe.optimisation.batch_size, 2 * lesson.old))
            synthesizer = Synthesizer(
                lesson.before().model, lesson.spec, recipe.replace(batch_size=size), precision=self.engine_precision
            )
            result = synthesizer.run(
                torch.arange(self.images) % lesson.old, seed=lesson.seed, classes=list(range(lesson.old)),
                progress=lesson.report("synthesis"), checkpoint_dir=lesson.place("synthesis"),
            )  # fmt: skip
            lesson.record.seconds["synthesis"] = result.seconds
            for name, key in (("accuracy", "teacher_accuracy"), ("confidence", "confidence")):
                lesson.record.history[f"synthesis/{name}"] = [float(result.summary[key])]
            assert result.logits is not None
            return {"images": as_bytes(result.images, lesson.spec), "labels": result.logits.argmax(1)}

        made = lesson.kept("synthesis", make)
        images = Split(made["images"], made["labels"])
        lesson.show(images)
        return images


@settings
class SyntheticSettings(LearnerSettings):
    """Settings of a :class:`SyntheticLearner`.

    Attributes:
        synthesis: of the old classes.
    """

    synthesis: Flat[Synthesis] = Synthesis()


S = TypeVar("S", bound=SyntheticSettings)


class SyntheticLearner(Learner[S]):
    """A learner that makes images of the old classes anew in each task."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.config.synthesis.require_fit(self.network, self.spec)

    def check(self, task: Task, classes: int) -> None:
        """Also ValueError for fewer images than old classes."""
        super().check(task, classes)
        images, old = self.config.synthesis.images, classes - len(task.classes)
        require(images >= old, "images", f"at least the number of old classes, {old}", images)

    def working_bytes(self, lesson: Lesson) -> int:
        """Size of the synthetic images."""
        return self.config.synthesis.nbytes(lesson)
