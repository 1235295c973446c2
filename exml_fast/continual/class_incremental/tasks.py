"""The tasks of class-incremental learning: disjoint sets of classes, in an order that a seed decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exml_fast.data import ImageData, Split

__all__ = ["CLASS_ORDER_SEED", "Task", "class_order", "divided", "positions", "tasks_of"]

# The seed of iCaRL's published order of CIFAR-100's classes, which later papers share.
CLASS_ORDER_SEED = 1993


@dataclass(frozen=True)
class Task:
    """New classes and their training images.

    Raises:
        ValueError: for no or repeated classes, a class without images, images of other classes, or float pixels that
            are not within [0, 1].
    """

    classes: tuple[int, ...]
    """Ids, in the order of their logits."""
    split: Split
    """Labels are class ids."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(int, self.classes)))
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be at least one, without repetition, got {self.classes}")
        present = set(self.split.labels.unique().tolist())
        if missing := [c for c in self.classes if c not in present]:
            raise ValueError(f"the task has no images of its classes {missing[:8]}")
        if others := sorted(present - set(self.classes)):
            raise ValueError(f"the task has images of the classes {others[:8]}, which are not among its own")
        images = self.split.images
        if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError("images of a task must be uint8, or float pixels in [0, 1] without NaN")


def positions(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The place in ``classes``, which is the logit, of each class id in ``labels`` (N,); all of them occur there."""
    ids, places = torch.tensor(classes).sort()
    return places[torch.searchsorted(ids, labels)]


def class_order(classes: int, seed: int | None = CLASS_ORDER_SEED) -> list[int]:
    """The ids 0 to ``classes`` − 1 in NumPy's random order of ``seed``, as in iCaRL's code; ascending for None."""
    ids = np.arange(classes)
    return [int(c) for c in (ids if seed is None else np.random.RandomState(seed).permutation(ids))]


def divided(classes: int, protocol: str) -> list[int]:
    """How many classes each task has.

    Args:
        classes: in all.
        protocol: "bB-T". "b0-10": ten tasks of equal size. "b50-5": a first task of 50 classes, then five of equal
            size. Sizes differ by at most one where T does not divide the classes.

    Raises:
        ValueError: for another form, or fewer classes than tasks.
    """
    form = re.fullmatch(r"b(\d+)-(\d+)", protocol)
    base, count = (int(form[1]), int(form[2])) if form else (0, 0)
    if count < 1 or classes - base < count:
        raise ValueError(
            f"protocol must be 'bB-T', as 'b0-10' or 'b50-5', with at least a class for each of its tasks, "
            f"got {protocol!r} for {classes} classes"
        )
    size, larger = divmod(classes - base, count)
    return [base] * bool(base) + [size + (k < larger) for k in range(count)]


def tasks_of(data: ImageData, protocol: str | Sequence[Sequence[int]] = "b0-10", seed: int | None = 1993) -> list[Task]:
    """The tasks of a data set.

    Args:
        protocol: as :func:`divided`; or the class ids of each task.
        seed: of the class order (:func:`class_order`); only for a protocol that is a name.

    Raises:
        ValueError: for an unknown protocol, or classes that the data do not have or that occur twice.
    """
    if isinstance(protocol, str):
        order, groups = class_order(len(data.classes), seed), list[list[int]]()
        for size in divided(len(order), protocol):
            groups, order = [*groups, order[:size]], order[size:]
    else:
        groups = [list(group) for group in protocol]
        ids = [c for group in groups for c in group]
        if unknown := sorted(set(ids) - set(data.classes)):
            raise ValueError(f"protocol names the classes {unknown[:8]}, which {data.name!r} does not have")
        if len(set(ids)) < len(ids):
            raise ValueError(f"protocol must name each class once, got {groups}")
    return [Task(tuple(group), data.train.of_classes(group)) for group in groups]
