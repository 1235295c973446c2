"""What learners of a class-incremental study share: first networks, and one network for several classifiers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exml_fast.continual import Expert
from exml_fast.continual.class_incremental import ICaRL, IncrementalResult, LearnedTask, Learner, Task, TaskResult
from exml_fast.continual.class_incremental.icarl import ICaRLSettings
from exml_fast.continual.class_incremental.run import tested
from exml_fast.data import Split
from exml_fast.storage import load_json, save_json

__all__ = ["FirstNetwork", "OtherClassifiers"]

# A test learns nothing.
NOTHING = LearnedTask({}, 0.0, 0, 0, {})


class FirstNetwork:
    """A network that knows the first task, on file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def known(self) -> bool:
        """Whether it is there."""
        return (self.folder / "cost.json").is_file()

    def cost(self) -> dict[str, float]:
        """Seconds and memory of its training."""
        found: dict[str, float] = load_json(self.folder / "cost.json")
        return found

    def network(self) -> nn.Module:
        """The network."""
        return Expert.load(self.folder / "network").model

    def keep(self, expert: Expert, learned: LearnedTask) -> None:
        """Write the network of a learner that has just learned the first task."""
        expert.save(self.folder / "network")
        seconds = learned.seconds.get("learn", learned.seconds["all"])
        save_json(self.folder / "cost.json", {"seconds": seconds, "peak_mb": learned.peak_mb})


class OtherClassifiers:
    """What classifiers beside a learner's own say about its features, on file until the last task.

    Args:
        folder: of a file for each task.
        settings: by row, those of a learner with this classifier.
    """

    def __init__(self, folder: Path, settings: Mapping[str, ICaRLSettings]) -> None:
        self.folder, self.settings = folder, settings

    def test(self, pupil: Learner[Any], tasks: Sequence[Task], test: Split) -> None:
        """Ask the classifiers after the last of ``tasks``."""
        found = {}
        for row, config in self.settings.items():
            assert isinstance(pupil, ICaRL)
            other = copy.copy(pupil)
            other.config = config
            other.load_memory(pupil.memory())
            reached = tested(other, tasks, test, NOTHING)
            found[row] = vars(reached) | {"confusion": reached.confusion.tolist(), "learned": None}
        if found:
            save_json(self.folder / f"{len(tasks)}.json", found)

    def results(self, result: IncrementalResult) -> dict[str, IncrementalResult]:
        """By row, as if the learner had had this classifier; ``result`` is its own."""
        found = {}
        for row in self.settings:
            asked = [load_json(self.folder / f"{number + 1}.json")[row] for number in range(len(result.tasks))]
            found[row] = IncrementalResult(
                result.learner,
                [
                    TaskResult(**one | {"confusion": torch.tensor(one["confusion"]), "learned": task.learned})
                    for one, task in zip(asked, result.tasks, strict=True)
                ],
            )
        return found
