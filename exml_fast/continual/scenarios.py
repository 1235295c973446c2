"""Which classes each experience brings, and the accuracies that are measured on them (Carta 2022, sec. 2, 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert
from exml_fast.data import ImageData, InputSpec

__all__ = [
    "MultiHead",
    "Predictor",
    "confusion_matrix",
    "experience_accuracies",
    "joint",
    "new_classes",
    "new_instances",
    "stream_accuracy",
]


class Predictor(Protocol):
    """Anything that maps normalised images to global class ids: an Expert, a baseline, an ex-model."""

    @property
    def input_spec(self) -> InputSpec:
        """The input it expects."""
        ...

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,); ``task`` is the experience the images come from, for predictors that are given it."""
        ...


def joint(data: ImageData) -> list[list[int]]:
    """One experience with all classes."""
    return [data.classes]


def new_classes(data: ImageData, classes_per_step: int | Sequence[int] = 2, seed: int | None = None) -> list[list[int]]:
    """Experiences of new classes, ascending or (with a seed) shuffled; the last may be smaller.

    ``classes_per_step``: number of classes of each; the last number of a sequence repeats ([10, 5] for CORe50).
    """
    sizes = [classes_per_step] if isinstance(classes_per_step, int) else list(classes_per_step)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"classes_per_step must be positive, got {classes_per_step}")
    order = data.classes
    if seed is not None:
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist()
    steps: list[list[int]] = []
    while order:
        size = sizes[min(len(steps), len(sizes) - 1)]
        steps, order = [*steps, order[:size]], order[size:]
    return steps


def new_instances(data: ImageData, steps: int, seed: int = 0) -> list[ImageData]:
    """``data`` in ``steps`` parts, each with all classes, all test images and its own share of the training images.

    If the data set has ``steps`` groups (:attr:`exml_fast.data.Split.groups`, as CORe50's sessions), these are its
    parts; otherwise each class is divided at random. ValueError if a class has fewer images than parts.
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    train = data.train
    if train.groups is not None and len(train.groups.unique()) == steps:
        place = torch.unique(train.groups, return_inverse=True)[1]
    else:
        place = torch.empty_like(train.labels)
        generator = torch.Generator().manual_seed(seed)
        for c in data.classes:
            members = torch.nonzero(train.labels == c)[:, 0]
            if len(members) < steps:
                raise ValueError(f"steps must be at most {len(members)}, the images of class {c}, got {steps}")
            place[members[torch.randperm(len(members), generator=generator)]] = torch.arange(len(members)) % steps
    return [dataclasses.replace(data, train=train.subset(place == part)) for part in range(steps)]


class MultiHead:
    """A predictor that is given the task: the largest logit among the classes of the images' experience.

    If the last layer is linear, its rows by experience are the heads of a multi-head model.
    """

    def __init__(self, expert: Expert, experiences: Sequence[Sequence[int]]) -> None:
        self.expert, self.experiences = expert, [list(classes) for classes in experiences]
        for classes in self.experiences:
            expert.positions(classes)

    @property
    def input_spec(self) -> InputSpec:
        """The network's input."""
        return self.expert.input_spec

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,) of images that all come from experience ``task``."""
        if task is None or not 0 <= task < len(self.experiences):
            raise ValueError(f"task must be an experience, 0 to {len(self.experiences) - 1}, got {task!r}")
        classes = self.experiences[task]
        best = self.expert.logits(images)[:, self.expert.positions(classes)].argmax(1)
        return torch.tensor(classes)[best.cpu()]


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
    """Test accuracy in [0, 1] over the whole stream, each image counted once an experience (Carta 2022, Eq. 2)."""
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
