"""The answers of a frozen teacher, which a student learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import device_of
from exml_fast.engine.substitution import twin
from exml_fast.engine.teacher import FrozenTeacher
from exml_fast.training.batches import Batch
from exml_fast.training.config import Training
from exml_fast.training.precision import Rounded, resolved

__all__ = ["Answers"]


class Answers:
    """Logits of ``teacher``, without gradients.

    On a CPU a :class:`exml_fast.FrozenTeacher` computes them, if the network can be frozen. Otherwise, and on other
    devices, the teacher's twin does (:func:`exml_fast.engine.substitution.twin`).

    Args:
        teacher: a classifier that returns logits (N, K), on its device and in evaluation mode.
        spec: its input.
        config: precision and batch size; whether the images of a step are changed; and the number of images of all
            steps.
    """

    def __init__(self, teacher: nn.Module, spec: InputSpec, config: Training) -> None:
        device = device_of(teacher)
        precision = resolved(config.precision, device)
        self._config, self._device = config, device
        self._frozen: FrozenTeacher | None = None
        self._table: Tensor | None = None
        if device.type == "cpu":
            try:
                self._frozen = FrozenTeacher(teacher, spec, precision=precision, batch_size=config.batch_size)
            except ValueError:  # a network that only runs as it is
                self._frozen = None
        if self._frozen is None:
            self._network = Rounded(twin(teacher), precision)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K), at least float32, of normalised images (N, C, H, W)."""
        logits: Tensor = self._network(images) if self._frozen is None else self._frozen(images)[0]
        return logits

    def remember(self, images: Tensor) -> None:
        """Compute the answers for all ``images`` (M, C, H, W), for :meth:`of` to read them by ``Batch.rows``.

        Does nothing where augmentation, mixup or CutMix change the images, or where the steps see fewer than M images.
        """
        config = self._config
        changed = config.augmentation.active or config.mixup or config.cutmix
        if not changed and config.steps * config.batch_size >= len(images):
            self._table = torch.cat([self(part.to(self._device)) for part in images.split(config.batch_size)])

    def of(self, batch: Batch) -> Tensor:
        """Logits (N, K) of the batch's images: remembered ones, or new ones."""
        if self._table is None or batch.rows is None:
            return self(batch.images)
        return self._table[batch.rows]
