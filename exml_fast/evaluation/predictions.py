"""Accuracy of a network on labelled images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec, Split
from exml_fast.evaluation.features import logits

__all__ = ["accuracy", "class_accuracies"]


def accuracy(model: nn.Module, split: Split, spec: InputSpec) -> float:
    """Share of the images, in [0, 1], whose largest logit is that of their label."""
    right = sum(int((logits(model, x, len(x)).argmax(1) == y).sum()) for x, y in split.batches(spec))
    return right / len(split)


def class_accuracies(model: nn.Module, split: Split, spec: InputSpec, classes: int) -> Tensor:
    """Accuracy on the images of each class, float64 (classes,). NaN for a class without images."""
    found = torch.cat([logits(model, x, len(x)).argmax(1) for x, _ in split.batches(spec)])
    right = torch.bincount(split.labels[found == split.labels], minlength=classes).double()
    return right / torch.bincount(split.labels, minlength=classes)
