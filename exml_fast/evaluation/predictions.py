"""Accuracy of a network on labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec, Split
from exml_fast.evaluation.features import logits

__all__ = ["accuracy", "class_accuracies"]


def accuracy(model: nn.Module, split: Split, spec: InputSpec, units: Sequence[int] | None = None) -> float:
    """Share of the images, in [0, 1], whose largest logit is that of their label.

    ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
    """
    right = 0
    for images, labels in split.batches(spec):
        found = logits(model, images, len(images)).argmax(1)
        right += int(((found if units is None else torch.tensor(units)[found]) == labels).sum())
    return right / len(split)


def class_accuracies(model: nn.Module, split: Split, spec: InputSpec, classes: int) -> Tensor:
    """Accuracy on the images of each class, float64 (classes,). NaN for a class without images."""
    found = torch.cat([logits(model, x, len(x)).argmax(1) for x, _ in split.batches(spec)])
    right = torch.bincount(split.labels[found == split.labels], minlength=classes).double()
    return right / torch.bincount(split.labels, minlength=classes)
