"""Which classes each experience brings, and the accuracies that are measured on them (Carta 2022, sec. 2, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert, Progress, complete_arguments, train_expert
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import ImageData, InputSpec
from exml_fast.models import create

__all__ = [
    "Predictor",
    "confusion_matrix",
    "experience_accuracies",
    "joint",
    "new_classes",
    "stream_accuracy",
    "train_stream",
]


class Predictor(Protocol):
    """Anything that maps normalised images to global class ids: an Expert, a baseline, an ex-model."""

    @property
    def input_spec(self) -> InputSpec:
        """The input it expects."""
        ...

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,); ``task`` is the experience the images come from, for those that may know it."""
        ...


def joint(data: ImageData) -> list[list[int]]:
    """One experience with all classes."""
    return [data.classes]


def new_classes(data: ImageData, classes_per_step: int = 2, seed: int | None = None) -> list[list[int]]:
    """Experiences of ``classes_per_step`` new classes, ascending or (with a seed) shuffled; the last may be smaller."""
    if classes_per_step < 1:
        raise ValueError(f"classes_per_step must be positive, got {classes_per_step}")
    order = data.classes
    if seed is not None:
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[i : i + classes_per_step] for i in range(0, len(order), classes_per_step)]


def train_stream(
    data: ImageData,
    experiences: Sequence[Sequence[int]],
    folder: str | Path | None = None,
    *,
    common_initialisation: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> ExpertStream:
    """Train one expert an experience (:func:`train_expert`, which takes ``options``) and save it as it is done.

    Args:
        folder: experts go to ``folder/expert_01`` and so on, and the stream reads them from there; None keeps
            them in memory. Folders of an earlier run are overwritten.
        common_initialisation: all experts start from the same weights (needs ``head="all"``).
        seed: of the initialisation; expert i shuffles with seed + i.
    """
    initial = None
    if common_initialisation and options.get("initial") is None:
        if options.get("head", "all") != "all":
            raise ValueError("common_initialisation needs head='all': own heads may differ in size")
        architecture = options.get("architecture", "lenet5")
        spec = options.get("spec") or data.spec
        arguments = complete_arguments(architecture, options.get("arguments"), len(data.classes), spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = create(architecture, **arguments).state_dict()
        options["initial"] = initial
    items: list[Any] = []
    for i, classes in enumerate(experiences):

        def report(stage: str, step: int, total: int, terms: dict[str, float], i: int = i) -> None:
            if progress is not None:
                progress(f"expert {i + 1}/{len(experiences)}: {stage}", step, total, terms)

        expert = train_expert(data, classes, seed=seed + i, progress=report, **options)
        expert.card.training["common_initialisation"] = common_initialisation
        if folder is None:
            items.append(expert)
        else:
            items.append(Path(folder) / f"expert_{i + 1:02d}")
            expert.save(items[-1])
    return ExpertStream(items, options.get("device", "cpu"))


def experience_accuracies(
    predictor: Predictor, data: ImageData, experiences: Sequence[Sequence[int]], batch_size: int = 1000
) -> list[float]:
    """Test accuracy in [0, 1] on each experience's classes; NaN where it has no test image."""
    accuracies = []
    for task, classes in enumerate(experiences):
        split = data.test.of_classes(classes)
        right = sum(
            int((predictor.predict(x, task=task).cpu() == y).sum())
            for x, y in split.batches(predictor.input_spec, batch_size)
        )
        accuracies.append(right / len(split) if len(split) else float("nan"))
    return accuracies


def stream_accuracy(predictor: Predictor, data: ImageData, experiences: Sequence[Sequence[int]] | None = None) -> float:
    """Test accuracy in [0, 1] over the whole stream, every image counted once an experience (Carta 2022, Eq. 2)."""
    experiences = joint(data) if experiences is None else experiences
    sizes = [len(data.test.of_classes(classes)) for classes in experiences]
    accuracies = experience_accuracies(predictor, data, experiences)
    return sum(a * n for a, n in zip(accuracies, sizes, strict=True) if n) / sum(sizes)


def confusion_matrix(predictor: Predictor, data: ImageData, experiences: Sequence[Sequence[int]]) -> Tensor:
    """(K, K) int64: test images of class [row] predicted as [column]."""
    count = len(data.classes)
    matrix = torch.zeros(count * count, dtype=torch.int64)
    for task, classes in enumerate(experiences):
        split = data.test.of_classes(classes)
        for x, y in split.batches(predictor.input_spec, 1000):
            predicted = predictor.predict(x, task=task).cpu()
            matrix += torch.bincount(y * count + predicted, minlength=count * count)
    return matrix.view(count, count)


_: type[Predictor] = Expert  # an Expert is a Predictor: checked by mypy
