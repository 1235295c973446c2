"""Losses for new and for old classes, and their pairs (Lardizzone 2020, sec. 4.1).

Logits are in the order in which the classes came: the first ``old`` of them belong to earlier tasks. Sums run over the
logits, means over the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exml_fast import ops
from exml_fast.training import softened_kl

__all__ = [
    "PAIRS",
    "Classification",
    "Pair",
    "balanced_cross_entropy",
    "bce",
    "bce_of_old",
    "cross_entropy",
    "kl_of_old",
    "local_cross_entropy",
    "mse",
    "mse_of_old",
]

Classification = Callable[[Tensor, Tensor, int], Tensor]
"""``f(logits (N, K), labels (N,), old)``."""
Distillation = Callable[[Tensor, Tensor], Tensor]
"""``f(logits (N, K), answers (N, old))``: the answers are the logits of the network before the task."""

# Of Li 2016, sec. 3.
TEMPERATURE = 2.0


class Pair(NamedTuple):
    """A classification loss and a distillation loss."""

    classification: Classification
    distillation: Distillation


def cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy over all logits (Lardizzone 2020, Eq. 1)."""
    return ops.soft_cross_entropy(logits, labels)


def local_cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy over the logits of the new classes, for images of these (Li 2016); others must be left out."""
    return ops.soft_cross_entropy(logits[:, old:], labels - old)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy over all logits of a batch whose one half is of old classes; each class counts alike."""
    known = logits.shape[1]
    weights = torch.where(labels < old, 2 * old / known, 2 - 2 * old / known)
    return (weights * ops.soft_cross_entropy(logits, labels, reduction="none")).mean()


def bce(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Binary cross-entropy of each new class's sigmoid (Rebuffi 2017, Alg. 3). Images of old classes are negatives."""
    wanted = F.one_hot(labels, logits.shape[1])[:, old:].to(logits)
    return F.binary_cross_entropy_with_logits(logits[:, old:], wanted, reduction="sum") / len(logits)


def mse(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Squared error of the softmax over all logits (Lardizzone 2020, Eq. 2)."""
    return (logits.softmax(1) - F.one_hot(labels, logits.shape[1]).to(logits)).square().sum(1).mean()


def bce_of_old(logits: Tensor, answers: Tensor) -> Tensor:
    """Binary cross-entropy of each old class with the sigmoid of the answer (Rebuffi 2017, Alg. 3)."""
    old = answers.shape[1]
    return F.binary_cross_entropy_with_logits(logits[:, :old], answers.sigmoid(), reduction="sum") / len(logits)


def mse_of_old(logits: Tensor, answers: Tensor) -> Tensor:
    """Squared error of the softmax over the old logits."""
    return (logits[:, : answers.shape[1]].softmax(1) - answers.softmax(1)).square().sum(1).mean()


def kl_of_old(logits: Tensor, answers: Tensor) -> Tensor:
    """τ² KL of the softened answers, over the old logits, with τ = 2 (Li 2016, Eq. 2)."""
    return softened_kl(answers, logits[:, : answers.shape[1]], TEMPERATURE)


PAIRS = {
    "bce-bce": Pair(bce, bce_of_old),
    "ce-mse": Pair(cross_entropy, mse_of_old),
    "bce-mse": Pair(bce, mse_of_old),
    "mse-mse": Pair(mse, mse_of_old),
    "ce-bce": Pair(cross_entropy, bce_of_old),
    "ce-kl": Pair(cross_entropy, kl_of_old),
}
"""By name: loss of the labels, loss of the old network's answers. The first five are Lardizzone's."""
