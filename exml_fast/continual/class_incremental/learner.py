"""A class-incremental learner: one network that learns classes task by task."""

from __future__ import annotations

import copy
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import fingerprint
from exml_fast.continual.class_incremental.lesson import Lesson, Previous
from exml_fast.continual.class_incremental.losses import Classification, cross_entropy
from exml_fast.continual.class_incremental.tasks import Task
from exml_fast.data import Augmentation, InputSpec, Split
from exml_fast.engine.freezing import device_of
from exml_fast.engine.substitution import copied
from exml_fast.evaluation.features import features, logits
from exml_fast.models import final_linear
from exml_fast.profiling import Meter
from exml_fast.progress import Progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, Loss, Training, grow_head, placed, seeded
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
        training: of the network in each task; ``epochs`` decides its steps.
        epochs: how often each task shows its images.
        first_epochs: the same for the first task; ``epochs`` when None.
        head: "growing" adds a logit for each new class. "full" keeps the head as it is given, with a logit for every
            class to come (Lardizzone 2020, sec. 2.2).
    """

    training: Flat[Training] = TRAINING
    epochs: Count = 15
    first_epochs: Count | None = None
    head: Literal["growing", "full"] = "growing"

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
        seconds: by stage.
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
        network: a classifier with a final linear layer. The learner changes a copy of it.
        spec: of the network's input.
        config: the method's settings; its defaults when None. ``overrides`` are fields of it, as ``epochs=15``.
        seed: decides everything random.
        device: where to learn; where the network is when None.

    Raises:
        ValueError: for a network without a final linear layer, or an unknown setting.
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
        given = config or self.settings()
        require(isinstance(given, self.settings), "config", f"a {self.settings.__name__}", type(given).__name__)
        self.config = cast(S, given.replace(**overrides))
        final_linear(network)
        self.spec, self.seed = spec, seed
        self.network = placed(copied(network), torch.device(device or device_of(network))).eval()
        self.classes: list[int] = []
        """Class id of each logit that is in use."""
        self.number = 0
        """Tasks learned so far."""
        self.samples: Split | None = None
        """Some images of earlier classes that the last task learned from; labels are logit positions."""

    # What a method says.

    @abstractmethod
    def teach(self, lesson: Lesson) -> nn.Module:
        """The network after a task that is not the first; the learner is as it was before."""

    def label_loss(self) -> Classification:
        """The loss of labels, with which the first task is learned."""
        return cross_entropy

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
        """The state of what is kept for later tasks, of tensors and plain values."""
        return {}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`memory` gave."""

    def answers(self, images: Tensor) -> Tensor:
        """Logit positions (N,) for normalised images (N, C, H, W); by the highest logit unless a method says else."""
        return logits(self.network, images)[:, : len(self.classes)].argmax(1)

    # What all methods share.

    def learn(
        self, task: Task, *, progress: Progress | None = None, checkpoint_dir: PathLike | None = None
    ) -> LearnedTask:
        """Learn the task's classes; nothing changes if this is interrupted.

        Args:
            progress: ``progress("task 2: learn", step, steps, terms)``.
            checkpoint_dir: a folder in which the stages of the task keep what they have done. The same call after an
                interruption continues from there, and ends with the same bits. What was kept is removed at the end.

        Raises:
            ValueError: for a class that is known, more classes than a full head has logits, images that do not fit the
                network, or a checkpoint of another run.
            RuntimeError: if a loss is not finite.
        """
        lesson = self._lesson(task, progress, checkpoint_dir)
        with Meter(lesson.device) as meter, seeded(lesson.seed, lesson.device):
            network = self._first(lesson) if lesson.previous is None else self.teach(lesson)
            learned = self._commit(task, lesson, network)
        return _measured(learned, meter)

    def adopt(self, task: Task, network: nn.Module) -> LearnedTask:
        """Take a network that knows the task's classes as the outcome of the first task.

        Args:
            task: the classes, in the order of the network's logits, and the images from which exemplars are chosen.
            network: of the learner's architecture, with a logit for each class; with a full head, for every class to
                come.

        Raises:
            ValueError: after the first task, or for another number of logits.
        """
        require(not self.classes, "task", "the first one", f"task {self.number + 1}")
        lesson = self._lesson(task, None, None)
        outputs, expected = final_linear(network).out_features, final_linear(lesson.network).out_features
        require(outputs == expected, "network", f"a classifier with {expected} logits", f"{outputs} logits")
        with Meter(lesson.device) as meter, seeded(lesson.seed, lesson.device):
            learned = self._commit(task, lesson, placed(copied(network), lesson.device).eval())
        return _measured(learned, meter)

    def predict(self, images: Tensor) -> Tensor:
        """Class ids (N,) for normalised images (N, C, H, W). ValueError before the first task."""
        require(bool(self.classes), "learner", "asked after its first task", "no task yet")
        return torch.tensor(self.classes)[self.answers(images)]

    def features(self, images: Tensor) -> Tensor:
        """Input (N, D) of the final linear layer for normalised images (N, C, H, W)."""
        return features(self.network, images)

    def state_dict(self) -> dict[str, Any]:
        """Network, classes and memory: a copy."""
        return {
            "network": copy.deepcopy(self.network.state_dict()),
            "classes": list(self.classes),
            "number": self.number,
            "memory": self.memory(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.classes, self.number = list(state["classes"]), state["number"]
        if self.classes and self.config.head == "growing":
            self.network = with_head(self.network, len(self.classes))
        self.network.load_state_dict(state["network"])
        self.load_memory(state["memory"])

    def _first(self, lesson: Lesson) -> nn.Module:
        batches = lesson.batches(lesson.split, lesson.training)
        return lesson.learn(lesson.network, batches, labelled(self.label_loss()), lesson.training)

    def _lesson(self, task: Task, progress: Progress | None, folder: PathLike | None) -> Lesson:
        if twice := sorted(set(task.classes) & set(self.classes)):
            raise ValueError(f"task has the classes {twice[:8]}, which earlier tasks had")
        classes, config = [*self.classes, *task.classes], self.config
        seed = self.seed + 1009 * self.number
        with seeded(seed, device_of(self.network)):
            network = self._grown(len(classes))
        epochs = config.epochs if self.number or config.first_epochs is None else config.first_epochs
        position = torch.full((max(classes) + 1,), -1)
        position[torch.tensor(classes)] = torch.arange(len(classes))
        split = Split(task.split.images, position[task.split.labels])
        if tuple(split.images.shape[1:]) != self.spec.shape:
            split = Split(as_bytes(self.spec.prepare(split.images), self.spec), split.labels)
        lesson = Lesson(
            self.number, split, len(self.classes), len(classes), network,
            Previous(self.network, config.training.precision) if self.classes else None,
            self.spec, config.training, epochs, seed, progress, None, "",
        )  # fmt: skip
        lesson.training = lesson.training_on(len(split))
        if folder is not None:
            lesson.folder = Path(folder) / f"task_{self.number + 1:02d}"
            lesson.folder.mkdir(parents=True, exist_ok=True)
            lesson.identity = fingerprint(
                [*network.state_dict().values(), split.images, split.labels],
                [type(self).__name__, config.to_dict(), self.spec.to_dict(), seed, classes, self.memory()],
            )
        return lesson

    def _grown(self, outputs: int) -> nn.Module:
        """A copy of the network with so many logits, those of known classes first."""
        if self.config.head == "full":
            most = final_linear(self.network).out_features
            require(outputs <= most, "task", f"within the {most} logits of the full head", f"{outputs} classes")
            return copy.deepcopy(self.network)
        return grow_head(self.network, outputs) if self.classes else with_head(self.network, outputs)

    def _commit(self, task: Task, lesson: Lesson, network: nn.Module) -> LearnedTask:
        working = self.working_bytes(lesson) if lesson.previous is not None else 0
        self.after(lesson, network)
        self.network, self.number, self.samples = network, self.number + 1, lesson.samples
        self.classes += task.classes
        if lesson.folder is not None:
            shutil.rmtree(lesson.folder)
        return LearnedTask(lesson.seconds, lesson.peak_mb, self.nbytes, working, lesson.history)


def _measured(learned: LearnedTask, meter: Meter) -> LearnedTask:
    """With the time and memory of the whole task; an interrupted one took at least the time of its stages."""
    learned.seconds["all"] = max(meter.seconds, sum(learned.seconds.values()))
    learned.peak_mb = max(learned.peak_mb, meter.peak_mb)
    return learned


def labelled(classification: Classification, old: int = 0) -> Loss[Batch]:
    """The loss of labels alone; the first ``old`` logits are those of earlier tasks."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return classification(network(batch.images), batch.labels, old)

    return loss


def with_head(model: nn.Module, outputs: int) -> nn.Module:
    """A copy of ``model`` with a new final linear layer, drawn from torch's global generator."""
    made = copy.deepcopy(model)
    old = final_linear(made)
    new = nn.Linear(old.in_features, outputs, old.bias is not None, old.weight.device, old.weight.dtype)
    name = next(name for name, module in made.named_modules() if module is old)
    if not name:
        return new
    made.set_submodule(name, new)
    return made


def as_bytes(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images (N, C, H, W) as uint8 pixels, in which they take a quarter of the memory."""
    return (spec.denormalize(images).clamp(0, 1) * 255).round().to(torch.uint8)
