"""The experts of a study: which classes each learns, and their training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exml_fast.continual import ExpertStream, joint, new_classes, new_instances, train_stream
from exml_fast.continual.expert import complete_arguments
from exml_fast.continual.teachers import pretrained_weights
from exml_fast.data import ImageData
from exml_fast.models import create
from exml_fast.progress import Progress
from exml_fast.reproduction.study_settings import ExpertSettings, Settings

__all__ = ["experiences_of", "train_experts"]

# Between the seeds of two experts' first weights, so that those of neighbouring runs differ.
OWN_SEEDS = 1_000_000


def experiences_of(data: ImageData, settings: Settings, seed: int) -> list[tuple[ImageData, list[int]]]:
    """The training data and the classes of each experience; ``seed`` decides the parts of new-instances."""
    if settings.scenario == "new-instances":
        return [(part, data.classes) for part in new_instances(data, settings.parts, seed)]
    classes = joint(data) if settings.scenario == "joint" else new_classes(data, list(settings.classes_per_step))
    return [(data, each) for each in classes]


def train_experts(
    experiences: Sequence[tuple[ImageData, list[int]]],
    folder: Path,
    experts: ExpertSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ExpertStream:
    """Train one expert for each (data, classes) and save it to ``folder``; experts that are there already are kept.

    ``experts.epochs`` must be given (:meth:`Settings.resolved_experts`).
    """
    data = experiences[0][0]
    common = _initial(data, experts, seed) if experts.initial == "common" else None
    assert experts.epochs is not None
    for i, (part, classes) in enumerate(experiences):
        place = folder / f"expert_{i + 1:02d}"
        if (place / "card.json").is_file():
            continue
        initial = _initial(data, experts, seed + OWN_SEEDS * (i + 1)) if common is None else common

        def report(_stage: str, step: int, total: int, terms: dict[str, float], i: int = i) -> None:
            if progress is not None:
                progress(f"training expert {i + 1}/{len(experiences)}, epochs", step, total, terms)

        (expert,) = train_stream(
            part, [classes], seed=seed + i, progress=report, initial=initial, architecture=experts.architecture,
            arguments=experts.arguments, epochs=experts.epochs, lr=experts.lr, batch_size=experts.batch_size,
            schedule=experts.schedule, augmentation=experts.augmented(), precision=experts.precision, device=device,
        )  # fmt: skip
        expert.save(place)
    return ExpertStream(folder, device)


def _initial(data: ImageData, experts: ExpertSettings, seed: int) -> dict[str, Tensor]:
    """Random weights, or pretrained ones with a random head."""
    arguments = complete_arguments(experts.architecture, experts.arguments, len(data.classes), data.spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initial: dict[str, Tensor] = create(experts.architecture, **arguments).state_dict()
    if experts.pretrained is not None:
        initial |= pretrained_weights(experts.architecture, experts.pretrained, initial)
    return initial
