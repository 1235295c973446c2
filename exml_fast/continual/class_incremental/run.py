"""A learner on all tasks of a protocol, with the accuracies after each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, fingerprint
from exml_fast.continual.class_incremental.learner import LearnedTask, Learner
from exml_fast.continual.class_incremental.tasks import Task, positions
from exml_fast.data import Split
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike

__all__ = ["IncrementalResult", "TaskResult", "incremental", "tested"]

CHECKPOINT_FILE = "incremental.pt"


@dataclass
class TaskResult:
    """What is known after a task.

    Attributes:
        accuracies: share of right predictions, in [0, 1], on the test images of each task so far.
        accuracy: the same on all of them together.
        confusion: int64 (K, K), true class by predicted class, in the order in which the K classes came.
        learned: what the learner reports.
    """

    accuracies: list[float]
    accuracy: float
    confusion: Tensor
    learned: LearnedTask


@dataclass
class IncrementalResult:
    """What :func:`incremental` returns.

    Attributes:
        learner: after the last task.
        tasks: one entry a task.
    """

    learner: Learner
    tasks: list[TaskResult] = field(default_factory=list)

    @property
    def average(self) -> float:
        """Average incremental accuracy: the mean over the tasks of the accuracy on all classes so far."""
        return sum(task.accuracy for task in self.tasks) / len(self.tasks)

    @property
    def last(self) -> float:
        """Accuracy on all classes after the last task."""
        return self.tasks[-1].accuracy


@reports_progress
def incremental(
    learner: Learner,
    tasks: Sequence[Task],
    test: Split,
    *,
    first: nn.Module | None = None,
    after: Callable[[IncrementalResult], None] | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> IncrementalResult:
    """Teach ``learner`` the tasks one after the other, and test it after each.

    Args:
        learner: before its first task; it is taught in place.
        tasks: of :func:`exml_fast.continual.class_incremental.tasks_of`.
        test: test images of all classes; labels are class ids.
        first: a network that knows the first task (:meth:`Learner.adopt`), which is then not learned.
        after: called with the result so far after each task. An interruption may repeat the last call.
        progress: ``progress("task 2: learn", step, steps, terms)``.
        checkpoint_dir: a folder from which the same call continues after an interruption, with the same bits at the
            end. The learner after the last task stays in the file incremental.pt, so that a finished run is tested
            again without learning.

    Raises:
        ValueError: for no tasks, a learner that knows classes already, a class without test images, what
            :meth:`Learner.learn` raises, or a checkpoint of another run.
    """
    progress = callback_of(progress)
    if not tasks:
        raise ValueError("tasks must hold at least one task")
    if learner.classes:
        raise ValueError(f"learner must be before its first task, but knows {len(learner.classes)} classes")
    ids = list[int]()
    for task in tasks:
        if twice := sorted(set(ids) & set(task.classes)):
            raise ValueError(f"tasks must have each class once, got {twice[:8]} twice")
        ids += task.classes
        learner.check(task, len(ids))
    if missing := sorted(set(ids) - set(test.labels.tolist())):
        raise ValueError(f"test has no images of the classes {missing[:8]}")
    result = IncrementalResult(learner)
    checkpoint = Checkpoint(None, "")
    if checkpoint_dir is not None:
        checkpoint = Checkpoint(Path(checkpoint_dir) / CHECKPOINT_FILE, _identity(learner, tasks, test, first))
    learned = None
    if (state := checkpoint.load()) is not None:
        learner.load_state_dict(state["learner"])
        result.tasks = [_result(entry) for entry in state["tasks"]]
        learned = LearnedTask(**state["learned"])
    for number in range(len(result.tasks), len(tasks)):
        task = tasks[number]
        if learner.number == number:
            if number == 0 and first is not None:
                learned = learner.adopt(task, first)
            else:
                learned = learner.learn(task, progress=progress, checkpoint_dir=checkpoint_dir)
            state = {
                "learner": learner.state_dict(), "learned": asdict(learned),
                "tasks": [asdict(entry) for entry in result.tasks],
            }  # fmt: skip
            checkpoint.keep(functools.partial(dict, state), write=True)
        assert learned is not None
        result.tasks.append(tested(learner, tasks[: number + 1], test, learned))
        if after is not None:
            after(result)
    return result


def tested(learner: Learner, tasks: Sequence[Task], test: Split, learned: LearnedTask) -> TaskResult:
    """What ``learner`` reaches on the test images of ``tasks``, which are all that it has learned."""
    split, count = test.of_classes(learner.classes), len(learner.classes)
    predicted = torch.cat([learner.predict(images) for images, _ in split.batches(learner.spec)])
    truth, named = positions(split.labels, learner.classes), positions(predicted, learner.classes)
    confusion = torch.zeros(count * count, dtype=torch.int64)
    confusion = confusion.index_add_(0, truth * count + named, torch.ones_like(truth)).view(count, count)
    accuracies, start = [], 0
    for task in tasks:
        rows = confusion[start : start + len(task.classes)]
        accuracies.append(int(rows.diagonal(start).sum()) / int(rows.sum()))
        start += len(task.classes)
    return TaskResult(accuracies, int(confusion.diagonal().sum()) / len(split), confusion, learned)


def _result(entry: dict[str, Any]) -> TaskResult:
    return TaskResult(**entry | {"learned": LearnedTask(**entry["learned"])})


def _identity(learner: Learner, tasks: Sequence[Task], test: Split, first: nn.Module | None) -> str:
    images = [tensor for task in tasks for tensor in (task.split.images, task.split.labels)]
    weights = [] if first is None else list(first.state_dict().values())
    settings = [type(learner).__name__, learner.config.to_dict(), learner.spec.to_dict(), learner.seed]
    return fingerprint(
        [*learner.network.state_dict().values(), *weights, *images, test.images, test.labels],
        [settings, [list(task.classes) for task in tasks]],
    )
