"""Class-incremental learners on the same tasks: figures and tables of Lardizzone, Yin, Nayak and Ye."""

from __future__ import annotations

from typing import Literal

from exml_fast.reproduction.incremental_learned import Learned
from exml_fast.reproduction.incremental_page import feature_plane, sheets
from exml_fast.reproduction.incremental_settings import IncrementalSettings
from exml_fast.reproduction.incremental_study import IncrementalStudy
from exml_fast.reproduction.lab_settings import read_settings, require_package
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.validation import settings

__all__ = ["IncrementalTask", "check", "run"]

SUMMARY = "One network learns classes task by task, and is tested on all classes so far; figures are on test images."


@settings
class IncrementalTask(IncrementalSettings):
    """A preset of task "incremental".

    Attributes:
        figures: the cells of each method, in percent: "average" incremental accuracy, the "last" accuracy, "each" of
            the accuracies by number of classes, the mean accuracy on the "current" task's test images when it has
            been learned; and by "group", the accuracy on the test images of each task after the last one, with their
            mean "combined" (Yin 2020, Table 7).
    """

    figures: tuple[Literal["average", "last", "each", "current", "group"], ...] = ("average", "last")


def run(preset: Preset, context: Context) -> Outcome:
    """Accuracies of all methods, confusion matrices, images of earlier classes, and maps of features."""
    study = _study(preset, context)
    found, outcome = study.run(), Outcome(class_names=[], summary=SUMMARY)
    task = study.settings
    assert isinstance(task, IncrementalTask)
    outcome.class_names = study.class_names(task.protocols[0])
    titles = {(each.row, each.protocol): _title(each, study) for each in found}
    for each in found:
        title = titles[each.row, each.protocol]
        outcome.values |= {
            f"{study.data.name}/{title}/{name}": 100 * share for name, share in _figures(each, task).items()
        }
        outcome.seconds[title] = round(each.seconds, 3)
        counts = each.confusion.double()
        outcome.matrices[f"Confusion matrix, {title}"] = counts / counts.sum(1, keepdim=True).clamp_min(1)
        _curves(outcome, each, task)
        for number in sorted(each.maps):
            if len(each.maps[number].kept):
                name = f"Features after task {number}, {title}"
                plane = feature_plane(study, each, number)
                outcome.points[name] = {
                    group: points
                    for label, pair in plane.items()
                    for group, points in zip((f"{label}, training images", label), pair, strict=True)
                }
                outcome.overlaid.add(name)
    outcome.samples = {group.name: (group.images, group.labels) for group in sheets(study, found, titles)}
    outcome.settings["data"] = {
        "name": study.data.name, "classes": len(study.data.classes), "training images": len(study.data.train),
        "test images": len(study.data.test),
    }  # fmt: skip
    outcome.settings["network"] = {"architecture": study.architecture, "arguments": study.arguments}
    outcome.settings["learners"] = {
        titles[each.row, each.protocol]: {
            "method": each.method, "accuracy": [round(100 * task.accuracy, 3) for task in each.tasks],
            "seconds_per_task": [round(task.seconds, 3) for task in each.tasks], "peak_mb": each.peak_mb,
            "bytes": each.nbytes, "kept_bytes": each.tasks[-1].kept_bytes,
            "real_exemplars": each.real_exemplars, "synthetic": each.synthetic,
        }
        for each in found
    }  # fmt: skip
    return outcome


def check(preset: Preset, context: Context) -> None:
    """ValueError or ImportError for a preset that cannot be run; nothing is trained."""
    study = _study(preset, context)
    if study.settings.maps:
        require_package("sklearn", "eval", "scikit-learn")


def _study(preset: Preset, context: Context) -> IncrementalStudy:
    return IncrementalStudy(
        read_settings(IncrementalTask, preset), context.folder, seed=context.seed, data_root=context.data_root,
        device=context.device, progress=context.progress,
    )  # fmt: skip


def _title(learned: Learned, study: IncrementalStudy) -> str:
    return learned.row if len(study.settings.protocols) == 1 else f"{learned.row}, {learned.protocol}"


def _figures(learned: Learned, task: IncrementalTask) -> dict[str, float]:
    """By name of the cell, in [0, 1]."""
    found: dict[str, float] = {}
    if "each" in task.figures:
        found |= {f"{reached.classes} classes": reached.accuracy for reached in learned.tasks}
    if "group" in task.figures:
        groups = learned.tasks[-1].accuracies
        found["combined"] = sum(groups) / len(groups)
        found |= {f"task {number + 1}": share for number, share in enumerate(groups)}
    own = {
        "average": learned.average, "last": learned.last,
        "current": sum(reached.current for reached in learned.tasks) / len(learned.tasks),
    }  # fmt: skip
    return found | {name: share for name, share in own.items() if name in task.figures}


def _curves(outcome: Outcome, learned: Learned, task: IncrementalTask) -> None:
    """Add a line to the curves of the learner's protocol."""
    kinds = {"Accuracy on all classes so far": [reached.accuracy for reached in learned.tasks]}
    if "current" in task.figures:
        kinds["Accuracy on the current task"] = [reached.current for reached in learned.tasks]
    for kind, values in kinds.items():
        title = f"{kind}, {learned.protocol}"
        points = [(float(r.classes), 100 * share) for r, share in zip(learned.tasks, values, strict=True)]
        outcome.lines.setdefault(title, {})[learned.row] = points
        outcome.axes[title] = ("classes", "test accuracy, %")
