"""A class-incremental learner: one network that learns classes task by task."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import fingerprint
from exml_fast.continual.class_incremental.lesson import BATCH, Lesson, Previous
from exml_fast.continual.class_incremental.losses import Classification, cross_entropy
from exml_fast.continual.class_incremental.tasks import Task, positions
from exml_fast.data import Augmentation, InputSpec, Split
from exml_fast.engine.freezing import chosen_device, device_of, frozen, probe
from exml_fast.engine.substitution import copied
from exml_fast.evaluation.features import features, logits
from exml_fast.models import final_linear
from exml_fast.models.weights import require_same_weights
from exml_fast.ownership import remove_tree
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, Loss, Training, placed, seeded, with_head
from exml_fast.validation import Count, Flat, require, settings, to_dict, with_flat_changes

__all__ = ["TRAINING", "LearnedTask", "Learner", "LearnerSettings", "as_bytes", "labelled", "with_head"]

S = TypeVar("S", bound="LearnerSettings")

# Short runs: the papers train 70 to 500 epochs a task.
TRAINING = Training(
    optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, batch_size=128, schedule="onecycle", precision="auto",
    augmentation=Augmentation(shift=4, flip=0.5),
)  # fmt: skip


@settings
class LearnerSettings:
    """Settings of every learner.

    Attributes:
        training: of the network in each task, without mixup and CutMix; ``epochs`` decides its steps.
        epochs: how often each task shows its images.
        first_epochs: the same for the first task; ``epochs`` when None.
        head: "growing" adds a logit for each new class. "full" keeps the head as it is given, with a logit for every
            class to come (Lardizzone 2020, sec. 2.2).
    """

    training: Flat[Training] = TRAINING
    epochs: Count = 15
    first_epochs: Count | None = None
    head: Literal["growing", "full"] = "growing"

    def check(self) -> None:
        """ValueError for mixed images, whose second label no loss here reads."""
        for name in ("mixup", "cutmix"):
            value = getattr(self.training, name)
            require(value == 0, name, "0 in class-incremental learning", value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, those of groups by their own names; ValueError naming an unknown one."""
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_dict(self)


@dataclass
class LearnedTask:
    """What a learner reports about a task.

    Attributes:
        seconds: by stage, and "all", with what is between the stages. Stages that were interrupted count whole.
        peak_mb: the most memory that a stage held (:class:`exml_fast.profiling.Meter`).
        nbytes: what is kept for later tasks beside the network, in bytes.
        working_bytes: size of the images of earlier classes, or of what makes them, that the task learned from.
        history: terms of the losses, by "stage/term".
    """

    seconds: dict[str, float]
    peak_mb: float
    nbytes: int
    working_bytes: int
    history: dict[str, list[float]]


class Learner(ABC, Generic[S]):
    """One network that learns classes task by task. A method is a subclass that says how a task is learned.

    Args:
        network: a classifier with a final linear layer that gives the logits. The learner changes a copy of it.
        spec: of the network's input.
        config: the method's settings; its defaults when None. ``overrides`` are fields of it, as ``epochs=15``.
        seed: decides everything random.
        device: where to learn; where the network is when None.

    Raises:
        ValueError: for a network that cannot be copied, rejects images of ``spec`` or has no final linear layer, or for
            an unknown setting.
    """

    settings: ClassVar[type[LearnerSettings]] = LearnerSettings

    def __init__(
        self,
        network: nn.Module,
        spec: InputSpec,
        *,
        config: S | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        **overrides: Any,
    ) -> None:
        require(isinstance(network, nn.Module), "network", "a torch.nn.Module", type(network).__name__)
        require("steps" not in overrides, "steps", "left out, as epochs decides it", overrides.get("steps"))
        given = config or self.settings()
        require(isinstance(given, self.settings), "config", f"a {self.settings.__name__}", type(given).__name__)
        self.config = cast(S, given.replace(**overrides))
        own = copied(network)
        if own is network:
            raise ValueError(f"network must be one that can be copied, got {type(network).__name__}")
        self.spec, self.seed = spec, seed
        self.network = placed(own, chosen_device(device, network)).eval()
        self.layer = _final_layer(self.network, spec)
        """Name of the final linear layer."""
        self.classes: list[int] = []
        """Class id of each logit that is in use."""
        self.number = 0
        """Tasks learned so far."""
        self.samples: Split | None = None
        """Some images of earlier classes that the last task learned from, for reports; labels are logit positions."""

    # What a method says.

    @abstractmethod
    def teach(self, lesson: Lesson) -> nn.Module:
        """The network after a task that is not the first; the learner is as it was before."""

    def label_loss(self) -> Classification:
        """The loss of labels, with which the first task is learned."""
        return cross_entropy

    def check(self, task: Task, classes: int) -> None:
        """ValueError if ``task``, with which there are ``classes`` classes in all, cannot be learned.

        It is called before anything is learned.
        """
        if self.config.head == "full":
            most = self._head(self.network).out_features
            require(classes <= most, "task", f"within the {most} logits of the full head", f"{classes} classes")

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Remember something of the task that was learned: exemplars, statistics."""

    @property
    def nbytes(self) -> int:
        """Size of what is kept for later tasks beside the network, in bytes."""
        return 0

    def working_bytes(self, lesson: Lesson) -> int:
        """Size of the images of earlier classes, or of what makes them, that this task learned from."""
        return self.nbytes

    def memory(self) -> dict[str, Any]:
        """The state of what is kept for later tasks, of tensors and plain values. No tensor of it changes later."""
        return {}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`memory` gave."""

    def answers(self, images: Tensor) -> Tensor:
        """Logit positions (N,) for normalised images (N, C, H, W); by the highest logit unless a method says else."""
        return logits(self.network, images)[:, : len(self.classes)].argmax(1)

    # What all methods share.

    @reports_progress
    def learn(
        self, task: Task, *, progress: ProgressOption = None, checkpoint_dir: PathLike | None = None
    ) -> LearnedTask:
        """Learn the task's classes; nothing changes if this is interrupted or raises.

        Args:
            progress: ``progress("task 2: learn", step, steps, terms)``.
            checkpoint_dir: a folder in which the stages of the task keep what they have done. The same call after an
                interruption continues from there, and ends with the same bits. What was kept is removed at the end.

        Raises:
            ValueError: for a class that is known, a task that the method cannot learn (:meth:`check`), images that do
                not fit the network, or a checkpoint of another run.
            RuntimeError: if a loss is not finite.
        """
        progress = callback_of(progress)
        return self._learned(task, self._first if not self.classes else self.teach, progress, checkpoint_dir)

    def adopt(self, task: Task, network: nn.Module) -> LearnedTask:
        """Take a network that knows the task's classes as the outcome of the first task.

        Args:
            task: the classes, in the order of the network's logits, and the images from which exemplars are chosen.
            network: of the learner's architecture, with a logit for each class; with a full head, for every class to
                come.

        Raises:
            ValueError: after the first task, or for a network of another architecture or number of logits.
        """
        require(not self.classes, "task", "the first one", f"task {self.number + 1}")

        def teach(lesson: Lesson) -> nn.Module:
            weights = network.state_dict()
            require_same_weights(weights, lesson.network, "network of the first task: ")
            lesson.network.load_state_dict(weights)
            return lesson.network.eval()

        return self._learned(task, teach, None, None)

    def predict(self, images: Tensor) -> Tensor:
        """Class ids (N,) for normalised images (N, C, H, W). ValueError before the first task."""
        require(bool(self.classes), "learner", "asked after its first task", "no task yet")
        return torch.tensor(self.classes)[self.answers(images)]

    def features(self, images: Tensor) -> Tensor:
        """Input (N, D) of the final linear layer for normalised images (N, C, H, W), on the CPU."""
        return features(self.network, images)

    def state_dict(self) -> dict[str, Any]:
        """Network, classes, memory and samples; nothing of it changes later."""
        return {
            "network": copy.deepcopy(self.network.state_dict()),
            "classes": list(self.classes),
            "number": self.number,
            "memory": self.memory(),
            "samples": None if self.samples is None else vars(self.samples),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        network, classes = copy.deepcopy(self.network), list(state["classes"])
        if classes and self.config.head == "growing":
            with seeded(0, device_of(network)):
                network = with_head(network, len(classes), self.layer)
        network.load_state_dict(state["network"])
        self.load_memory(state["memory"])
        self.network, self.classes, self.number = network, classes, state["number"]
        self.samples = None if state["samples"] is None else Split(**state["samples"])

    def _head(self, network: nn.Module) -> nn.Linear:
        return cast(nn.Linear, network.get_submodule(self.layer))

    def _first(self, lesson: Lesson) -> nn.Module:
        batches = lesson.batches(lesson.split, lesson.training)
        return lesson.learn(lesson.network, batches, labelled(self.label_loss()), lesson.training)

    def _learned(
        self, task: Task, teach: Callable[[Lesson], nn.Module], progress: Progress | None, folder: PathLike | None
    ) -> LearnedTask:
        if twice := sorted(set(task.classes) & set(self.classes)):
            raise ValueError(f"task has the classes {twice[:8]}, which earlier tasks had")
        self.check(task, len(self.classes) + len(task.classes))
        before = self.memory()
        try:
            lesson = self._lesson(task, progress, folder)
            with Meter(lesson.device) as meter, seeded(lesson.seed, lesson.device):
                network = teach(lesson)
                working = self.working_bytes(lesson) if lesson.old else 0
                self.after(lesson, network)
        except BaseException:
            self.load_memory(before)
            raise
        self.network, self.number, self.classes = network, self.number + 1, [*self.classes, *task.classes]
        self.samples = lesson.record.samples
        if lesson.folder is not None:
            remove_tree(lesson.folder)
        record = lesson.record
        whole = max(meter.seconds, sum(record.seconds.values()))  # stages may have begun before an interruption
        peak = max(record.peak_mb, meter.peak_mb)
        return LearnedTask(record.seconds | {"all": whole}, peak, self.nbytes, working, record.history)

    def _lesson(self, task: Task, progress: Progress | None, folder: PathLike | None) -> Lesson:
        classes, config = [*self.classes, *task.classes], self.config
        old, seed = len(self.classes), self.seed + 1009 * self.number
        previous = None
        with seeded(seed, device_of(self.network)):
            network = copy.deepcopy(self.network)
            if config.head == "growing":
                network = with_head(network, len(classes), self.layer, keep=old)
            if old:  # without the logits of later classes, which a full head has
                previous = with_head(self.network, old, self.layer, keep=old)
        epochs = config.epochs if self.number or config.first_epochs is None else config.first_epochs
        labels = positions(task.split.labels.cpu(), classes)
        lesson = Lesson(
            self.number, Split(_pixels(task.split.images.cpu(), self.spec), labels), old, len(classes), network,
            self.layer, None if previous is None else Previous(previous, self.layer, config.training.precision),
            self.spec, config.training, epochs, seed, progress,
        )  # fmt: skip
        if folder is not None:
            lesson.folder = Path(folder) / f"task_{self.number + 1:02d}"
            lesson.folder.mkdir(parents=True, exist_ok=True)
            lesson.identity = fingerprint(
                [*network.state_dict().values(), lesson.split.images, labels],
                [type(self).__name__, config.to_dict(), self.spec.to_dict(), seed, classes, self.memory()],
            )
        return lesson


def labelled(classification: Classification) -> Loss[Batch]:
    """The loss of labels alone."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return classification(network(batch.images), batch.labels, 0)

    return loss


def as_bytes(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images (N, C, H, W) as uint8 pixels, in which they take a quarter of the memory."""
    return _rounded(spec.denormalize(images).clamp(0, 1))


def _pixels(images: Tensor, spec: InputSpec) -> Tensor:
    """Images of any size, uint8 or float in [0, 1], as uint8 of the size of ``spec``."""
    if images.dtype == torch.uint8 and tuple(images.shape[1:]) == spec.shape:
        return images
    return torch.cat([_rounded(spec.fit(part)) for part in images.split(BATCH)])


def _rounded(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def _final_layer(network: nn.Module, spec: InputSpec) -> str:
    """Name of the final linear layer; ValueError unless it runs on images of ``spec`` and gives the logits."""
    example = torch.zeros(2, *spec.shape, device=device_of(network))
    with frozen(network):
        outputs = probe(network, example, spec).shape[1]
    layer = final_linear(network, example)
    if layer.out_features != outputs:
        raise ValueError(
            f"network must have a final linear layer that gives its {outputs} logits, but the last nn.Linear of "
            f"{type(network).__name__} has {layer.out_features} outputs"
        )
    return next(name for name, module in network.named_modules() if module is layer)
