"""How a network is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from exml_fast.data import Augmentation
from exml_fast.training.schedules import learning_rate
from exml_fast.validation import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Precision,
    require,
    settings,
    to_dict,
    with_changes,
)

__all__ = ["Training"]


Below1 = Annotated[float, Field(ge=0, lt=1)]


@settings
class Training:
    """Settings of the one training loop; every method has defaults of its own.

    Attributes:
        steps, batch_size: gradient steps and images a step.
        optimizer: "adam" or "sgd".
        lr, momentum, weight_decay: of the optimiser; Adam has no ``momentum``.
        clip: the largest l2 norm of the gradient of all parameters, which is scaled down to it; 0 for any norm.
        average: d of an exponential moving average of the weights and BatchNorm statistics, w ← d w + (1 − d) new,
            in which the training results; 0 for the weights themselves. In the middle of a training the average is
            nearly as good as the weights are once the learning rate has fallen. After n steps d is at most
            (1 + n) / (10 + n).
        schedule, warmup, decay, decay_every: of the learning rate (:func:`~exml_fast.training.learning_rate`).
        precision: of the network that learns, and of a teacher beside it. "bfloat16" is torch.autocast: weights,
            their updates, BatchNorm statistics and losses stay float32.
        augmentation: of each image at each step; a table of its fields too. A table in :meth:`replace` replaces the
            whole augmentation: fields that are not in it are 0.
        mixup: a of the shares Beta(a, a) with which each augmented image is mixed with another (Zhang 2018); 0 for
            none.
        cutmix: the same with rectangles: a box of another image covers a part of each image (Yun 2019), on average the
            part that mixup would give to the other image. With both, each image takes one of the two at random.

    Raises:
        ValueError: naming the field that leaves its range.
    """

    steps: Count = 5000
    batch_size: Count = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Positive = 1e-3
    momentum: NonNegative = 0.9
    weight_decay: NonNegative = 0.0
    clip: NonNegative = 0.0
    average: Below1 = 0.0
    schedule: Literal["constant", "step", "cosine", "onecycle"] = "cosine"
    warmup: Natural = 0
    decay: Positive = 0.1
    decay_every: Count = 19500
    precision: Precision = "float32"
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0

    def check(self) -> None:
        """ValueError for a warm-up of schedule "onecycle", which rises by itself."""
        require(self.schedule != "onecycle" or self.warmup == 0, "warmup", "0 with schedule 'onecycle'", self.warmup)

    def rate(self, step: int) -> float:
        """Learning rate of step 0 … ``steps`` − 1."""
        return learning_rate(
            self.schedule, self.lr, step, self.steps, warmup=self.warmup, decay=self.decay, decay_every=self.decay_every
        )

    def new_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Of those parameters that require a gradient; ValueError if none does."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            raise ValueError("model has no parameter that requires a gradient, so nothing can be trained")
        if self.optimizer == "adam":
            return torch.optim.Adam(trained, self.lr, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(trained, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=True)

    def replace(self, **changes: Any) -> Training:
        """A copy with some fields changed; ValueError naming one that does not exist."""
        return with_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Training(**value)`` is the inverse."""
        return to_dict(self)
