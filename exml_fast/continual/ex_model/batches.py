"""Line 7 of Alg. 1: random batches of the memory, each image with its target and label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from exml_fast.continual.ex_model.config import DistillationConfig
from exml_fast.continual.ex_model.head import Head
from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.targets import Teachers
from exml_fast.training import blended

__all__ = ["Batch", "Batches"]

# Inputs and targets are prepared for a block of steps at once: at most so many steps, at most so much memory.
BLOCK_STEPS, BLOCK_BYTES = 100, 2**26


class Batch(NamedTuple):
    """N images as the ex-model sees them."""

    images: Tensor
    """(N, C, H, W)."""
    target: Tensor
    """(N, K) of Eq. 8."""
    mask: Tensor
    """(N, K) bool: units that have a target."""
    labels: Tensor
    """(N,) positions among the units seen; -1 for an image of no class."""


class Batches:
    """Batches for the steps with one expert.

    Args:
        memory: the images, all of whose views are shown.
        teachers: who gives the targets.
        config: of the distillation.
        head: the ex-model's units.
        relabel: the images belong to no class: each is labelled with the class of its highest target.
    """

    def __init__(
        self, memory: Memory, teachers: Teachers, config: DistillationConfig, head: Head, relabel: bool
    ) -> None:
        self.memory, self.teachers, self.config = memory, teachers, config
        self.positions = memory.positions(head)
        live = config.targets.change_with(config.buffer.augmentation)
        targets = None if live and not relabel else teachers.of_all(memory, self.positions)
        if relabel:
            assert targets is not None
            best = targets[0].masked_fill(~teachers.seen_mask, -math.inf).argmax(1)
            self.positions = memory.relabel(self.positions, best, head)
        self.labels = memory.without_background((torch.cumsum(teachers.seen_mask, 0) - 1)[self.positions])
        self.targets = None if live else targets
        """Targets and mask (rows, K) of all rows; None where every step needs its own."""
        self._bounds = memory.spec.bounds(memory.device)
        self.block_steps = max(
            1, min(BLOCK_STEPS, BLOCK_BYTES // (config.optimizer.batch_size * memory.bytes_per_image))
        )

    def block(self, steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches for some steps, prepared together."""
        size, augmentation = self.config.optimizer.batch_size, self.config.buffer.augmentation
        index = torch.randint(len(self.positions), (steps * size,), generator=generator)
        images = self.memory.rows(index)
        index = index.to(self.memory.device)
        if augmentation.active:
            images = augmentation(images, self._bounds, generator)
        if self.config.targets.mixup:
            images, _ = blended(images, self.config.targets.mixup, generator)
        if self.targets is None:
            target, mask = self.teachers(images, self.positions[index])
        else:
            target, mask = (tensor[index] for tensor in self.targets)
        parts = (images, target, mask, self.labels[index])
        return map(Batch._make, zip(*(part.split(size) for part in parts), strict=True))
