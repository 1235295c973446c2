"""What a learner of a class-incremental study reached, and its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from exml_fast.data import Split
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors

__all__ = ["FeatureMap", "Learned", "TaskFigures"]


@dataclass(frozen=True)
class FeatureMap:
    """Features of some classes of the first task, after a later task.

    Attributes:
        real, kept: (N, D) of training images, and of exemplars or synthetic images.
        real_classes, kept_classes: (N,), positions in the class order.
    """

    real: Tensor
    real_classes: Tensor
    kept: Tensor
    kept_classes: Tensor


@dataclass(frozen=True)
class TaskFigures:
    """What was measured in a task.

    Attributes:
        classes: so far.
        accuracy: on the test images of all of them, in [0, 1].
        accuracies: the same on those of each task so far.
        stages: seconds by stage, with those of the first network's training.
        peak_mb: the most memory.
        kept_bytes, working_bytes: ``nbytes`` and ``working_bytes`` of
            :class:`exml_fast.continual.class_incremental.LearnedTask`.
        synthesis: "accuracy" and "confidence" of the old network on the inverted images; empty where there are none.
    """

    classes: int
    accuracy: float
    accuracies: list[float]
    stages: dict[str, float]
    peak_mb: float
    kept_bytes: int
    working_bytes: int
    synthesis: dict[str, float] = field(default_factory=dict)

    @property
    def current(self) -> float:
        """Accuracy on the task's own classes, in [0, 1]."""
        return self.accuracies[-1]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(self.stages.values())


@dataclass
class Learned:
    """What a learner of a study reached.

    Attributes:
        row, method, protocol: which one.
        tasks: one entry a task.
        real_exemplars: real images of earlier tasks that are kept after the last task.
        synthetic: synthetic images of earlier classes in the last task; None where each step draws new ones.
        confusion: int64 (K, K) after the last task, true class by predicted class, in the order of the classes.
        exemplars, old: images that are kept, and some that the last task learned from; labels are positions in the
            order of the classes. None where there are none.
        maps: by number of the task, from 1.
    """

    row: str
    method: str
    protocol: str
    tasks: list[TaskFigures]
    real_exemplars: int
    synthetic: int | None
    confusion: Tensor
    exemplars: Split | None = None
    old: Split | None = None
    maps: dict[int, FeatureMap] = field(default_factory=dict)

    @property
    def average(self) -> float:
        """Average incremental accuracy, in [0, 1]."""
        return sum(task.accuracy for task in self.tasks) / len(self.tasks)

    @property
    def last(self) -> float:
        """Accuracy on all classes after the last task, in [0, 1]."""
        return self.tasks[-1].accuracy

    @property
    def seconds(self) -> float:
        """Of all tasks."""
        return sum(task.seconds for task in self.tasks)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage, of all tasks together."""
        names = dict.fromkeys(name for task in self.tasks for name in task.stages)
        return {name: sum(task.stages.get(name, 0.0) for task in self.tasks) for name in names}

    @property
    def peak_mb(self) -> float:
        """The most memory that a task held."""
        return max(task.peak_mb for task in self.tasks)

    @property
    def nbytes(self) -> int:
        """Bytes of what the last task had of earlier ones beside the network."""
        return max(self.tasks[-1].kept_bytes, self.tasks[-1].working_bytes)

    def save(self, folder: Path) -> None:
        """Write everything but the maps, which are on file already."""
        tensors = {"confusion": self.confusion}
        for name in ("exemplars", "old"):
            split: Split | None = getattr(self, name)
            if split is not None:
                tensors |= {f"{name}/images": split.images, f"{name}/labels": split.labels}
        save_tensors(folder / "pictures.safetensors", tensors)
        plain = {name: getattr(self, name) for name in ("row", "method", "protocol", "real_exemplars", "synthetic")}
        save_json(folder / "learned.json", plain | {"tasks": [asdict(task) for task in self.tasks]})

    @classmethod
    def load(cls, folder: Path) -> Learned:
        """Read what :meth:`save` wrote, and the maps."""
        tensors = load_tensors(folder / "pictures.safetensors")

        def split(name: str) -> Split | None:
            if f"{name}/images" not in tensors:
                return None
            return Split(tensors[f"{name}/images"], tensors[f"{name}/labels"])

        maps = {
            int(file.stem.removeprefix("map_")): FeatureMap(**load_tensors(file))
            for file in sorted(folder.glob("map_*.safetensors"))
        }
        plain = load_json(folder / "learned.json")
        tasks = [TaskFigures(**task) for task in plain.pop("tasks")]
        return cls(
            **plain, tasks=tasks, confusion=tensors["confusion"], exemplars=split("exemplars"),
            old=split("old"), maps=maps,
        )  # fmt: skip
