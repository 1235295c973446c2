"""Experts trained with cross-entropy on the images of some classes (Carta 2022, App. A)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, Stateful, fingerprint, load_state, random_state, set_random_state, state_of
from exml_fast.continual.expert import Card, Expert, complete_arguments
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import ImageData, InputSpec
from exml_fast.engine.freezing import chosen_device
from exml_fast.models import create
from exml_fast.profiling import Meter
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, ImageBatches, Loop, Training, TrainingResult, mixed_cross_entropy
from exml_fast.training.loop import seeded
from exml_fast.validation import require, to_dict

__all__ = ["TrainedExpert", "train_expert", "train_stream"]

DEFAULTS = Training(optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=32, schedule="constant")
"""Carta 2022, App. A."""
# Training images that take no more than this as float32 are normalised once, others batch by batch.
PREPARED_BYTES = 2**28
CHECKPOINT_FILE = "expert.pt"


@dataclass(repr=False)
class TrainedExpert(TrainingResult):
    """What :func:`train_expert` returns; ``history`` has one entry an epoch.

    Attributes:
        expert: the network with its card.
    """

    expert: Expert


@reports_progress
def train_expert(
    data: ImageData,
    classes: Sequence[int] | None = None,
    *,
    architecture: str = "lenet5",
    arguments: Mapping[str, Any] | None = None,
    head: str = "all",
    spec: InputSpec | None = None,
    initial: Mapping[str, Tensor] | None = None,
    epochs: int = 20,
    seed: int = 0,
    device: str | torch.device = "cpu",
    licence: str | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **training: Any,
) -> TrainedExpert:
    """Train an expert on the images of ``classes`` (default: all) with cross-entropy over its whole head.

    Defaults are Carta 2022, App. A: SGD, momentum 0.9, weight decay 5e-4, batches of 32 without the incomplete
    last one; MNIST lr 0.01, 20 epochs for new classes and 100 for joint.

    Args:
        architecture, arguments: for :func:`exml_fast.models.create`.
        head: "all" gives a logit to every class of ``data``, as the paper's code; "own" only to ``classes``.
        spec: the network's input if it is not the data's own; images are fitted to it.
        initial: a state dict to start from (a stream's experts share it); default a random one from ``seed``.
        epochs: how often every image is seen.
        licence: of the weights, for the card.
        progress: called once an epoch with the mean loss.
        checkpoint_dir: a folder where the state at the end of an epoch is saved, once a minute and on Ctrl-C (which is
            raised on). The same call continues from there and ends with the same bits; the file is removed at the end.
        training: fields of :class:`exml_fast.training.Training`, as ``lr``, ``batch_size``, ``schedule``,
            ``augmentation`` and ``precision``.

    Raises:
        ValueError: for classes that the data do not have, a setting out of its range, or a checkpoint of another run.
        RuntimeError: if the loss is not finite.
    """
    progress = callback_of(progress)
    classes = list(data.classes if classes is None else classes)
    if unknown := sorted(set(classes) - set(data.classes)):
        raise ValueError(f"classes {unknown} are not in {data.name!r}, which has {len(data.classes)} classes")
    require(head in ("all", "own"), "head", "'all' or 'own'", head)
    require("steps" not in training, "steps", "left out, as epochs decide it", training.get("steps"))
    require(isinstance(epochs, int) and epochs >= 0, "epochs", "an integer of at least 0", epochs)
    units, spec, device = data.classes if head == "all" else classes, spec or data.spec, chosen_device(device)
    config = DEFAULTS.replace(**training)
    split = data.train.of_classes(classes)
    an_epoch = len(split) // config.batch_size
    if an_epoch == 0:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {len(split)} training images")
    config = config.replace(steps=max(1, epochs * an_epoch))
    arguments = complete_arguments(architecture, arguments, len(units), spec)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return mixed_cross_entropy(network(batch.images), batch.labels, batch.share)

    def report(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if progress is not None:
            progress(stage, step // an_epoch, total // an_epoch, terms)

    with Meter(device) as meter, seeded(seed, device):
        position = torch.full((len(data.classes),), -1)
        position[torch.tensor(units)] = torch.arange(len(units))
        images, prepared = split.images.to(device), 4 * len(split) * math.prod(spec.shape) <= PREPARED_BYTES
        batches = ImageBatches(
            spec.prepare(images) if prepared else images, position[split.labels], config, spec,
            torch.Generator().manual_seed(seed), device, None if prepared else spec.prepare,
        )  # fmt: skip
        model = create(architecture, **arguments)
        if initial is not None:
            model.load_state_dict(dict(initial))
        path = None if checkpoint_dir is None else Path(checkpoint_dir) / CHECKPOINT_FILE
        identity = path and fingerprint(
            [*model.state_dict().values(), split.images, split.labels],
            [architecture, arguments, units, classes, spec.to_dict(), config.to_dict(), epochs, seed],
        )
        loop = Loop(model.to(device), loss, config, progress=report)
        if epochs:
            _run(loop, batches, Checkpoint(path, identity), an_epoch, device)
        names = tuple(data.class_names[unit] for unit in units)
        card = Card(architecture, arguments, tuple(units), tuple(classes), names, spec, licence=licence)
        expert = Expert(loop.finished(), card)
        test = data.test.of_classes(classes)
        right = sum(int((expert.predict(x).cpu() == y).sum()) for x, y in test.batches(spec))
    shown = ("lr", "momentum", "weight_decay", "batch_size", "schedule", "precision")
    facts = {
        "data": data.name, "samples": len(split), "epochs": epochs, **{name: getattr(config, name) for name in shown},
        "augmentation": to_dict(config.augmentation), "seed": seed, "head": head,
        "accuracy": right / len(test) if len(test) else None, "seconds": round(meter.seconds, 3),
    }  # fmt: skip
    expert.card = dataclasses.replace(card, training=facts)
    return TrainedExpert(expert.model, loop.history, {"train": meter.seconds}, meter.peak_mb, expert)


def _run(loop: Loop[Batch], batches: ImageBatches, checkpoint: Checkpoint, an_epoch: int, device: torch.device) -> None:
    """All epochs that are left. The network was drawn from the seed, so :func:`exml_fast.training.train`, which seeds
    again, would draw other dropout."""
    parts: dict[str, Stateful | torch.Generator] = {"loop": loop, "batches": batches}
    if (state := checkpoint.load(device)) is not None:
        load_state(parts, state["parts"])
        set_random_state(state["random"], device)

    def keep() -> None:
        checkpoint.keep(lambda: {"parts": state_of(parts), "random": random_state(device)})

    with checkpoint:
        loop.run(batches, keep, block_steps=an_epoch)
    checkpoint.remove()


@reports_progress
def train_stream(
    data: ImageData | Sequence[ImageData],
    experiences: Sequence[Sequence[int]],
    folder: PathLike | None = None,
    *,
    common_initialisation: bool = True,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **options: Any,
) -> ExpertStream:
    """Train one expert an experience with :func:`train_expert`, which takes ``options``, and save each when it is done.

    Args:
        data: a data set, or one for each experience (:func:`new_instances`) of the same classes.
        folder: experts go to ``folder/expert_01`` and so on, and the stream reads them from there; None keeps
            them in memory. Folders of an earlier run are overwritten.
        common_initialisation: all experts start from the same weights (needs ``head="all"``).
        seed: of the initialisation; expert i shuffles with seed + i.
        checkpoint_dir: expert i keeps its checkpoint in the subfolder ``expert_01`` and so on. The same call continues
            the expert that was interrupted; experts that were finished are trained again.
    """
    progress = callback_of(progress)
    parts = [data] * len(experiences) if isinstance(data, ImageData) else list(data)
    if len(parts) != len(experiences):
        raise ValueError(f"data must be one data set or {len(experiences)}, one an experience, got {len(parts)}")
    data, initial = parts[0], None
    if common_initialisation and options.get("initial") is None:
        if options.get("head", "all") != "all":
            raise ValueError("common_initialisation needs head='all': own heads may differ in size")
        architecture = options.get("architecture", "lenet5")
        spec = options.get("spec") or data.spec
        arguments = complete_arguments(architecture, options.get("arguments"), len(data.classes), spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = create(architecture, **arguments).state_dict()
        options["initial"] = initial
    items: list[Any] = []
    for i, classes in enumerate(experiences):

        def report(stage: str, step: int, total: int, terms: dict[str, float], i: int = i) -> None:
            if progress is not None:
                progress(f"expert {i + 1}/{len(experiences)}: {stage}", step, total, terms)

        kept = None if checkpoint_dir is None else Path(checkpoint_dir) / f"expert_{i + 1:02d}"
        expert = train_expert(parts[i], classes, seed=seed + i, progress=report, checkpoint_dir=kept, **options).expert
        expert.card.training["common_initialisation"] = common_initialisation
        if folder is None:
            items.append(expert)
        else:
            items.append(Path(folder) / f"expert_{i + 1:02d}")
            expert.save(items[-1])
    return ExpertStream(items, options.get("device", "cpu"))
