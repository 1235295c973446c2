"""A task while a learner learns it: its networks and images, and stages that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, fingerprint
from exml_fast.data import InputSpec, Split
from exml_fast.engine.freezing import device_of
from exml_fast.engine.substitution import copied, twin
from exml_fast.evaluation.features import features
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, Renamed
from exml_fast.training import Batch, Batches, ImageBatches, Loss, Rounded, Training, inputs_of, seeded, train
from exml_fast.training.precision import arranged, resolved

__all__ = ["Lesson", "Observed", "Previous", "Record", "observed"]

# Images that are made network input at a time.
BATCH = 1024
# Images of each earlier class that are shown to the user.
SAMPLES = 4


class Observed(NamedTuple):
    """What a network computes for images."""

    features: Tensor
    """(N, D), the input of the final linear layer, float32."""
    logits: Tensor
    """(N, K)."""


def observed(network: nn.Module, images: Tensor, layer: str) -> Observed:
    """Features and logits of one pass of ``network``, as a loss is given it (:data:`exml_fast.training.Loss`).

    ``layer`` is the name of the final linear layer.
    """
    with inputs_of(network.get_submodule("model").get_submodule(layer)) as seen:
        logits = network(images)
    return Observed(seen[-1].float(), logits)


class Previous:
    """A network that answers for images, in evaluation mode, and does not learn.

    Args:
        model: a copy of it answers.
        layer: name of its final linear layer.
        precision: as :class:`exml_fast.Training`.
    """

    def __init__(self, model: nn.Module, layer: str, precision: str) -> None:
        self.model, self._layer = copied(model).eval().requires_grad_(False), layer
        precision = resolved(precision, device_of(model))
        self._network = Rounded(twin(arranged(self.model, precision)), precision)

    @property
    def classifier(self) -> nn.Linear:
        """The final linear layer."""
        return cast(nn.Linear, self.model.get_submodule(self._layer))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Observed:
        """Features (N, D) and logits (N, K) of normalised images (N, C, H, W)."""
        return observed(self._network, images, self._layer)


@dataclass
class Record:
    """What a task took so far.

    Attributes:
        seconds: by stage, also of the parts before an interruption.
        history: terms of the losses, by "stage/term".
        peak_mb: the most memory that a stage held.
        samples: some images of earlier classes that the task learned from; labels are logit positions.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: float = 0.0
    samples: Split | None = None

    def add(self, stage: str, meter: Meter) -> None:
        """A stage that ended now. Its seconds may be known already, if it began before an interruption."""
        self.seconds[stage] = max(self.seconds.get(stage, 0.0), meter.seconds)
        self.peak_mb = max(self.peak_mb, meter.peak_mb)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"seconds": dict(self.seconds), "history": dict(self.history), "peak_mb": self.peak_mb}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave in an earlier process."""
        self.seconds, self.history, self.peak_mb = state["seconds"], state["history"], state["peak_mb"]


@dataclass
class Lesson:
    """A task while it is learned."""

    number: int
    """Of the task, from 0."""
    split: Split
    """Images of the task, uint8 and of the size of ``spec``; labels are logit positions."""
    old: int
    """Number of classes of earlier tasks."""
    known: int
    """Number of classes with those of this task."""
    network: nn.Module
    """A copy of the learner's network, with a logit for each known class or more; a method trains copies of it."""
    layer: str
    """Name of the network's final linear layer."""
    previous: Previous | None
    """The network before the task, with the logits of the ``old`` classes alone. None in the first task."""
    spec: InputSpec
    config: Training
    """Of the learner's settings."""
    epochs: int
    seed: int
    """Of this task."""
    progress: Progress | None
    folder: Path | None = None
    """Where the task's stages keep what they have done."""
    identity: str = ""
    """Of the learner and the task."""
    record: Record = field(default_factory=Record)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return device_of(self.network)

    @property
    def training(self) -> Training:
        """The settings for as many epochs over the task's images as are wanted."""
        return self.training_on(len(self.split))

    def training_on(self, images: int) -> Training:
        """The settings for as many epochs over so many images."""
        size = min(self.config.batch_size, images)
        return self.config.replace(batch_size=size, steps=max(1, self.epochs * (images // size)))

    def before(self) -> Previous:
        """The network before the task; not in the first one."""
        assert self.previous is not None
        return self.previous

    def batches(self, split: Split, training: Training, seed: int = 0) -> ImageBatches:
        """The images, augmented, in random order; labels are logit positions."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * seed)
        return ImageBatches(split.images, split.labels, training, self.spec, generator, self.device, self.spec.prepare)

    def observed(self, network: nn.Module, images: Tensor) -> Observed:
        """Features and logits of a network that a loss is given."""
        return observed(network, images, self.layer)

    def classifier(self, network: nn.Module) -> nn.Module:
        """The final linear layer of a network that a loss is given."""
        return network.get_submodule("model").get_submodule(self.layer)

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """Features (N, D) of pixels (N, C, H, W), on the CPU."""
        return torch.cat([features(network, self.spec.prepare(part)) for part in images.split(BATCH)])

    # Stages.

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

        ``beside``, as in :class:`exml_fast.training.Loop`, is trained in place.
        """
        beside = nn.Module() if beside is None else beside

        def make() -> dict[str, Any]:
            result = train(
                network, batches, loss, training, beside=beside, identity=self.identity, seed=self.seed, stage=stage,
                progress=self.report(stage), checkpoint_dir=self.folder,
            )  # fmt: skip
            self.record.seconds |= result.seconds
            self.record.history |= {f"{stage}/{name}": values for name, values in result.history.items()}
            return {"network": result.model.state_dict(), "beside": beside.state_dict()}

        found = self.kept(stage, make)
        taught = copied(network)
        taught.load_state_dict(found["network"])
        beside.load_state_dict(found["beside"])
        return taught.eval()

    def kept(self, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives: tensors and plain values. A task that is interrupted later does not make it again.

        ``make`` draws from torch's global generators as if it were the only stage.
        """
        path = None if self.folder is None else self.folder / f"{stage}-result.pt"
        checkpoint = Checkpoint(path, fingerprint([], [self.identity, stage]))
        state = checkpoint.load()
        if state is None:
            with seeded(self.seed, self.device), Meter(self.device) as meter:
                made = make()
            self.record.add(stage, meter)
            state = {"made": made, "record": self.record.state_dict()}
            checkpoint.keep(lambda: state, write=True)
        else:
            self.record.load_state_dict(state["record"])
        found: dict[str, Any] = state["made"]
        return found

    def show(self, old: Split) -> None:
        """Remember some of the images of earlier classes that the task learns from; labels are logit positions."""
        chosen = [torch.nonzero(old.labels == unit)[:SAMPLES, 0] for unit in old.labels.unique().tolist()]
        self.record.samples = old.subset(torch.cat(chosen))

    def report(self, stage: str) -> Progress | None:
        """The caller's progress, with the task's number in the stage's name."""
        progress = self.progress
        if progress is None:
            return None
        return Renamed(progress, lambda _stage: f"task {self.number + 1}: {stage}")

    def place(self, name: str) -> Path | None:
        """A folder for the checkpoints of a function that has its own; None where nothing is kept."""
        if self.folder is None:
            return None
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place
