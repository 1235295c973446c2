"""How a student is taught."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exml_fast.checks import is_count, is_number
from exml_fast.data import Augmentation
from exml_fast.training import ARITHMETIC

__all__ = ["TransferConfig"]

SCHEDULES = ("step", "cosine", "constant")
COUNTS = {"steps": 1, "batch_size": 1, "decay_every": 1, "generate_every": 1, "per_round": 1, "warmup": 0}


@dataclass(frozen=True)
class TransferConfig:
    """The defaults are Yin 2020, A.1 (CIFAR-10): 250 epochs of 195 steps, learning rate 0.1, a tenth of it each 100.

    Momentum, weight decay and augmentation are the usual ones for CIFAR-10 (the paper gives none), τ = 3 is that of
    its sec. 4.4. ValueError naming the field that leaves its range.

    Attributes:
        steps, batch_size, lr, momentum, weight_decay, optimizer: of the student's training, "sgd" or "adam".
        schedule: "step" (times ``decay`` every ``decay_every`` steps), "cosine" (to zero) or "constant".
        warmup: steps over which the learning rate rises linearly.
        temperature: τ of the divergence (Eq. 1).
        lambda_ce: weight of a cross-entropy with the images' labels, which the paper does without.
        arithmetic: of teacher and student while the student learns, "float32" or "bfloat16" (torch.autocast: weights,
            their updates, BatchNorm's statistics and the losses stay float32).
        mixup: a of the shares Beta(a, a) with which pairs of images are mixed (sec. 4.4), of 0 for none. The teacher
            sees the mixed images.
        augmentation: of each image at each step, before teacher and student see it.
        generate_every: steps between two rounds of image generation.
        per_round: images of a round. The next step learns from them alone; they join the pool, from which all
            other steps draw.
        rounds: how many, at most; without end when None.
        pool_size: images kept, balanced over the classes, of all rounds and those given; all when None.
    """

    steps: int = 48750
    batch_size: int = 256
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    decay: float = 0.1
    decay_every: int = 19500
    warmup: int = 0
    arithmetic: str = "float32"
    temperature: float = 3.0
    lambda_ce: float = 0.0
    mixup: float = 0.0
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(shift=4, flip=0.5))
    generate_every: int = 50
    per_round: int = 256
    rounds: int | None = None
    pool_size: int | None = None

    def __post_init__(self) -> None:
        choices = {"schedule": SCHEDULES, "optimizer": ("sgd", "adam"), "arithmetic": ARITHMETIC}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name, least in COUNTS.items():
            if not is_count(getattr(self, name), least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}")
        for name, least in (("rounds", 0), ("pool_size", 1)):
            value = getattr(self, name)
            if value is not None and not is_count(value, least):
                raise ValueError(f"{name} must be None or an integer of at least {least}, got {value!r}")
        for name in ("lr", "temperature", "decay"):
            if not (is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("momentum", "weight_decay", "lambda_ce", "mixup"):
            if not (is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)!r}")
        if isinstance(self.augmentation, Mapping):
            known = [f.name for f in dataclasses.fields(Augmentation)]
            if unknown := [name for name in self.augmentation if name not in known]:
                raise ValueError(f"augmentation has no field {unknown[0]!r}: expected one of {', '.join(known)}")
            object.__setattr__(self, "augmentation", Augmentation(**self.augmentation))
        elif not isinstance(self.augmentation, Augmentation):
            raise ValueError(f"augmentation must be an Augmentation, or its fields, got {self.augmentation!r}")

    def replace(self, **changes: Any) -> TransferConfig:
        """A copy with some fields changed; ValueError naming one that does not exist."""
        known = [f.name for f in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in known]:
            raise ValueError(f"the transfer has no setting {unknown[0]!r}: expected one of {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``TransferConfig(**value)`` is the inverse."""
        return dataclasses.asdict(self)

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. steps − 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "step":
            return self.lr * self.decay ** (step // self.decay_every)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
        return self.lr
