"""Cross-entropy on labelled images: teachers, robust teachers, baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Stateful
from exml_fast.data import InputSpec, Split
from exml_fast.engine.freezing import device_of
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training.batches import Batch, ImageBatches
from exml_fast.training.config import Training
from exml_fast.training.loop import train
from exml_fast.training.losses import mixed_cross_entropy
from exml_fast.training.result import TrainingResult

__all__ = ["Perturb", "train_classifier"]

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``perturb(network, images, labels)``: images that the network shall learn from instead."""


@reports_progress
def train_classifier(
    model: nn.Module,
    split: Split,
    spec: InputSpec,
    *,
    config: Training | None = None,
    perturb: Perturb | None = None,
    parts: Mapping[str, Stateful] | None = None,
    identity: Any = (),
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Train a copy of ``model`` on real images.

    Args:
        model: returns logits (N, K); on its own device.
        split: images and labels, which are logit positions.
        spec: of the network input.
        config: Adam at 0.001 for 5000 steps of 128 when None.
        perturb: makes other images of each batch, as an attack does.
        parts: objects whose state is saved in the checkpoint, as that of ``perturb``, by name.
        identity: plain values that decide ``perturb``.
        seed, progress, checkpoint_dir: as :func:`exml_fast.training.train`.
    """
    progress = callback_of(progress)
    config = config or Training()
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    batches = ImageBatches(spec.prepare(split.images), split.labels, config, spec, generator, device)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        images = batch.images if perturb is None else perturb(network, batch.images, batch.labels)
        return mixed_cross_entropy(network(images), batch.labels, batch.share, batch.others)

    return train(
        model, batches, loss, config, parts=parts, identity=(split.images, split.labels, spec.to_dict(), identity),
        seed=seed, progress=progress, checkpoint_dir=checkpoint_dir,
    )  # fmt: skip
