"""What a learner of a class-incremental study reached, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from exml_fast.data import Split
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors

__all__ = ["FeatureMap", "Learned"]


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


@dataclass
class Learned:
    """What a learner of a study reached.

    Attributes:
        row, method, protocol: which one.
        classes: how many each task has.
        accuracy, current: after each task, on the test images of all classes so far and of the task's own, in [0, 1].
        accuracies: the same on each task so far.
        seconds, peak_mb: of each task, with the first network's training.
        kept_bytes, working_bytes: of :class:`exml_fast.continual.class_incremental.LearnedTask`, for each task.
        stages: seconds by stage, of all tasks together.
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
    classes: list[int]
    accuracy: list[float]
    current: list[float]
    accuracies: list[list[float]]
    seconds: list[float]
    peak_mb: list[float]
    kept_bytes: list[int]
    working_bytes: list[int]
    stages: dict[str, float]
    real_exemplars: int
    synthetic: int | None
    confusion: Tensor
    exemplars: Split | None = None
    old: Split | None = None
    maps: dict[int, FeatureMap] = field(default_factory=dict)

    @property
    def average(self) -> float:
        """Average incremental accuracy, in [0, 1]."""
        return sum(self.accuracy) / len(self.accuracy)

    @property
    def last(self) -> float:
        """Accuracy on all classes after the last task, in [0, 1]."""
        return self.accuracy[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of what the last task had of earlier ones beside the network."""
        return max(self.kept_bytes[-1], self.working_bytes[-1])

    @property
    def seen(self) -> list[int]:
        """Number of classes after each task."""
        return [sum(self.classes[: k + 1]) for k in range(len(self.classes))]

    def save(self, folder: Path) -> None:
        """Write everything but the maps, which are on file already."""
        tensors = {"confusion": self.confusion}
        for name in ("exemplars", "old"):
            split: Split | None = getattr(self, name)
            if split is not None:
                tensors |= {f"{name}/images": split.images, f"{name}/labels": split.labels}
        save_tensors(folder / "pictures.safetensors", tensors)
        plain = {
            name: value for name, value in vars(self).items() if name not in ("confusion", "exemplars", "old", "maps")
        }
        save_json(folder / "learned.json", plain)

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
        return cls(
            **load_json(folder / "learned.json"), confusion=tensors["confusion"], exemplars=split("exemplars"),
            old=split("old"), maps=maps,
        )  # fmt: skip
