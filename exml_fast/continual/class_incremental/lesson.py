"""A task while a learner learns it: its networks and images, and stages that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, fingerprint
from exml_fast.data import InputSpec, Split
from exml_fast.engine.freezing import device_of
from exml_fast.engine.substitution import copied, twin
from exml_fast.models import final_linear
from exml_fast.profiling import Meter
from exml_fast.progress import Progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, Batches, ImageBatches, Loss, Rounded, Training, final_features, train
from exml_fast.training.precision import arranged, resolved

__all__ = ["Lesson", "Observed", "Previous", "observed"]

# Images of each earlier class that are shown to the user.
SAMPLES = 4


class Observed(NamedTuple):
    """What a network computes for images."""

    features: Tensor
    """(N, D), the input of the final linear layer, float32."""
    logits: Tensor
    """(N, K)."""


def observed(network: nn.Module, images: Tensor) -> Observed:
    """Features and logits of one pass of ``network``, as a loss is given it (:data:`exml_fast.training.Loss`)."""
    with final_features(network.get_submodule("model")) as seen:
        logits = network(images)
    return Observed(seen[-1].float(), logits)


class Previous:
    """The network before the task. It does not learn, and is in evaluation mode."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model = copied(model).eval().requires_grad_(False)
        precision = resolved(precision, device_of(model))
        self._network = Rounded(twin(arranged(self.model, precision)), precision)

    @property
    def classifier(self) -> nn.Linear:
        """The final linear layer."""
        return final_linear(self.model)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Observed:
        """Features (N, D) and logits (N, old) of normalised images (N, C, H, W)."""
        return observed(self._network, images)


@dataclass
class Lesson:
    """A task while it is learned."""

    number: int
    """Of the task, from 0."""
    split: Split
    """Images of the task; labels are logit positions."""
    old: int
    """Number of classes of earlier tasks."""
    known: int
    """Number of classes with those of this task."""
    network: nn.Module
    """A copy of the learner's network with a logit for each known class; a method trains copies of it."""
    previous: Previous | None
    """None in the first task."""
    spec: InputSpec
    training: Training
    """For as many epochs over ``split`` as are wanted."""
    epochs: int
    seed: int
    """Of this task."""
    progress: Progress | None
    folder: Path | None
    """Where the task's stages keep what they have done."""
    identity: str
    """Of the learner and the task."""
    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: float = 0.0
    samples: Split | None = None
    """See :meth:`show`."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return device_of(self.network)

    def before(self) -> Previous:
        """The network before the task; not in the first one."""
        assert self.previous is not None
        return self.previous

    def training_on(self, images: int, batch_size: int | None = None) -> Training:
        """The settings for as many epochs over so many images."""
        size = min(batch_size or self.training.batch_size, images)
        return self.training.replace(batch_size=size, steps=max(1, self.epochs * (images // size)))

    def batches(self, split: Split, training: Training, seed: int = 0) -> ImageBatches:
        """The images, augmented, in random order; labels are logit positions."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * seed)
        return ImageBatches(
            split.images, split.labels, training, self.spec, generator, self.device, self.spec.prepare
        )  # fmt: skip

    def learn(
        self,
        network: nn.Module,
        batches: Batches[Batch],
        loss: Loss[Batch],
        training: Training,
        *,
        stage: str = "learn",
        beside: nn.Module | None = None,
    ) -> nn.Module:
        """A copy of ``network`` after the steps of ``training``; continues from the stage's checkpoint.

        ``beside`` as :class:`exml_fast.training.Loop`.
        """
        found = self.kept(f"{stage}-result", lambda: self._learned(network, batches, loss, training, stage, beside))
        taught = copied(network)
        taught.load_state_dict(found)
        return taught.eval()

    def _learned(
        self,
        network: nn.Module,
        batches: Batches[Batch],
        loss: Loss[Batch],
        training: Training,
        stage: str,
        beside: nn.Module | None,
    ) -> dict[str, Any]:
        result = train(
            network, batches, loss, training, beside=beside, identity=self.identity, seed=self.seed, stage=stage,
            progress=self.report(stage), checkpoint_dir=self.folder,
        )  # fmt: skip
        self.seconds |= {stage: result.seconds[stage]}
        self.history |= {f"{stage}/{name}": values for name, values in result.history.items()}
        self.peak_mb = max(self.peak_mb, result.peak_mb)
        return dict(result.model.state_dict())

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives: tensors and plain values. A task that is interrupted later does not make it again."""
        path = None if self.folder is None else self.folder / f"{name}.pt"
        checkpoint = Checkpoint(path, fingerprint([], [self.identity, name]))
        state = checkpoint.load(self.device)
        if state is None:
            with Meter(self.device) as meter:
                made = make()
            self.seconds.setdefault(name.removesuffix("-result"), meter.seconds)
            self.peak_mb = max(self.peak_mb, meter.peak_mb)
            state = {"made": made, "seconds": dict(self.seconds), "history": self.history, "peak_mb": self.peak_mb}
            checkpoint.keep(lambda: state, write=True)
        else:
            self.seconds, self.history, self.peak_mb = state["seconds"], state["history"], state["peak_mb"]
        found: dict[str, Any] = state["made"]
        return found

    def show(self, old: Split) -> None:
        """Remember some of the images of earlier classes that the task learns from; labels are logit positions."""
        order = old.labels.argsort(stable=True)
        sizes = old.labels.bincount()
        place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[old.labels[order]]
        self.samples = old.subset(order[place < SAMPLES])

    def report(self, stage: str) -> Progress | None:
        """The caller's progress, with the task's number in the stage's name."""
        progress = self.progress
        if progress is None:
            return None
        return lambda _stage, step, total, terms: progress(f"task {self.number + 1}: {stage}", step, total, terms)

    def place(self, name: str) -> PathLike | None:
        """A folder for the checkpoints of a function that has its own; None where nothing is kept."""
        if self.folder is None:
            return None
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place
