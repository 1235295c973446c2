"""Synthetic images of the old classes, made from the network before the task."""

from __future__ import annotations

from typing import Literal

import torch

from exml_fast.continual.class_incremental.learner import as_bytes
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.data import Split
from exml_fast.inversion import Synthesizer, recipes
from exml_fast.validation import Count, settings

__all__ = ["Synthesis"]


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
    engine_precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def check(self) -> None:
        """ValueError for an unknown recipe."""
        recipes.get(self.recipe)

    def nbytes(self, lesson: Lesson) -> int:
        """Size of the images."""
        return int(self.images * lesson.split.images[0].nbytes)

    def of_old_classes(self, lesson: Lesson) -> Split:
        """Images as uint8; labels are logit positions. An interrupted task does not make them again."""

        def make() -> dict[str, torch.Tensor]:
            recipe = recipes.get(self.recipe)
            if self.recipe_steps is not None:
                recipe = recipe.replace(steps=self.recipe_steps)
            size = min(self.images, max(recipe.optimisation.batch_size, min(self.images, 2 * lesson.old)))
            synthesizer = Synthesizer(
                lesson.before().model, lesson.spec, recipe.replace(batch_size=size), precision=self.engine_precision
            )
            labels = torch.arange(self.images) % lesson.old  # the classes take turns, so each batch holds all of them
            result = synthesizer.run(
                labels, seed=lesson.seed, classes=list(range(lesson.old)), progress=lesson.report("synthesis"),
                checkpoint_dir=lesson.place("synthesis-checkpoint"),
            )  # fmt: skip
            return {"images": as_bytes(result.images, lesson.spec), "labels": result.labels}

        made = lesson.kept("synthesis", make)
        images = Split(made["images"].cpu(), made["labels"].cpu())
        lesson.show(images)
        return images
