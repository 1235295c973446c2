"""Line 7 of Alg. 1: random batches of the memory, each image with its target and label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exml_fast.continual.ex_model.config import DistillationConfig
from exml_fast.continual.ex_model.head import Head
from exml_fast.continual.ex_model.latents import LatentTeachers
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
    latents: Tensor
    """(N, D) features of the teachers; D is 0 without latent distillation."""


class Batches:
    """Batches for the steps with one expert.

    Args:
        memory: the images, all of whose views are shown.
        teachers: who gives the targets.
        config: of the distillation.
        head: the ex-model's units.
        relabel: the images belong to no class: each is labelled with the class of its highest target.
        generator: decides the rows, augmentation and blends; on the CPU.
        latents: who gives the features; None without latent distillation.
    """

    def __init__(
        self,
        memory: Memory,
        teachers: Teachers,
        config: DistillationConfig,
        head: Head,
        *,
        relabel: bool,
        generator: torch.Generator,
        latents: LatentTeachers | None = None,
    ) -> None:
        self.memory, self.teachers, self.config, self.generator = memory, teachers, config, generator
        self.positions = memory.positions(head)
        live = config.targets.change_with(config.training.augmentation)
        targets = None if live and not relabel else teachers.of_all(memory, self.positions)
        if relabel:
            assert targets is not None
            best = targets[0].masked_fill(~teachers.seen_mask, -math.inf).argmax(1)
            self.positions = memory.relabel(self.positions, best, head)
        self.labels = memory.without_background((torch.cumsum(teachers.seen_mask, 0) - 1)[self.positions])
        self.targets = None if live else targets
        """Targets and mask (rows, K) of all rows; None where every step needs its own."""
        rows = len(self.positions)
        none = torch.empty(rows, 0, device=memory.device)
        self._live_latents = latents if live else None
        self._latents = none if latents is None or live else latents.of_all(memory, rows)
        self._bounds = memory.spec.bounds(memory.device)
        self.block_steps = max(
            1, min(BLOCK_STEPS, BLOCK_BYTES // (config.training.batch_size * memory.bytes_per_image))
        )

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """Batches for the steps ``step``, ``step`` + 1, … (:class:`exml_fast.training.Batches`), prepared together."""
        size, augmentation = self.config.training.batch_size, self.config.training.augmentation
        index = torch.randint(len(self.positions), (limit * size,), generator=self.generator)
        images = self.memory.rows(index)
        index = index.to(self.memory.device)
        if augmentation.active:
            images = augmentation(images, self._bounds, self.generator)
        if self.config.targets.mixup:
            images, _ = blended(images, self.config.targets.mixup, self.generator)
        if self.targets is None:
            target, mask = self.teachers(images, self.positions[index])
        else:
            target, mask = (tensor[index] for tensor in self.targets)
        latents = self._latents[index] if self._live_latents is None else self._live_latents(images)
        parts = (images, target, mask, self.labels[index], latents)
        return map(Batch._make, zip(*(part.split(size) for part in parts), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What decides the batches to come."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.generator.set_state(state["generator"].cpu())
