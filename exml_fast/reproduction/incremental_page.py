"""Rows and page of a class-incremental study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.class_incremental import METHODS
from exml_fast.data import Split
from exml_fast.report import Report, Samples, charts, write_picture, write_report
from exml_fast.reproduction.incremental_learned import Learned
from exml_fast.reproduction.incremental_study import MAP_CLASSES, IncrementalStudy
from exml_fast.storage import PathLike
from exml_fast.transfer import tsne

__all__ = ["feature_plane", "rows_of_learned", "sheets", "verdict_of", "write_incremental_page"]

READING = (
    "One network learns classes task by task. After each task it is tested on the test images of all classes so far. "
    "The average incremental accuracy is the mean of these accuracies over the tasks.",
    "Exemplars are images that a learner keeps of earlier classes. Other learners make synthetic images of them, from "
    "the network before the task; these are forgotten after the task. Memory is counted in bytes for both: what is "
    "kept between tasks beside the network, and the images of earlier classes, or their generator, that the last task "
    "learned from.",
    "Maps show features, the input of the final linear layer, in two dimensions (t-SNE): training images pale, kept or "
    "synthetic images dark. Distances between far points mean nothing.",
)
# Epochs a task in Lardizzone 2020; the other papers train longer.
PUBLISHED_EPOCHS = 70


def rows_of_learned(study: IncrementalStudy, found: Sequence[Sequence[Learned]]) -> list[dict[str, Any]]:
    """A row for each method and protocol, accuracies in percent.

    Args:
        study: of any of the seeds.
        found: for each seed, what :meth:`IncrementalStudy.run` returned.
    """
    rows = []
    for alike in zip(*found, strict=True):
        first = alike[0]
        values = [round(100 * each.average, 3) for each in alike]
        config = study.learner(first.row, first.protocol).config
        epochs = config.epochs
        short = epochs < PUBLISHED_EPOCHS
        notes = [METHODS[first.method].source] + ([f"{epochs} epochs a task"] if short else [])
        rows.append(
            {
                "name": first.row, "method": first.method, "data": study.data.name, "protocol": first.protocol,
                "average": _mean(values), "std": round(statistics.stdev(values), 3) if len(values) > 1 else None,
                "last": _mean([100 * each.last for each in alike]), "values": values,
                "accuracy_after_each_task": _means([[task.accuracy for task in each.tasks] for each in alike], 100),
                "accuracy_on_each_new_task": _means([[task.current for task in each.tasks] for each in alike], 100),
                "bytes": first.nbytes, "kept_bytes": first.tasks[-1].kept_bytes,
                "working_bytes": first.tasks[-1].working_bytes,
                "real_exemplars": first.real_exemplars, "synthetic": first.synthetic,
                "seconds_per_task": _means([[task.seconds for task in each.tasks] for each in alike], 1),
                "peak_mb": max(each.peak_mb for each in alike),
                "seeds": len(values), "reduced": short, "note": ", ".join(notes),
            }
        )  # fmt: skip
    return rows


def write_incremental_page(
    path: PathLike,
    study: IncrementalStudy,
    found: Sequence[Learned],
    rows: Sequence[Mapping[str, Any]],
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write the page to ``path`` and return it; its images are also in ``samples.png`` beside it.

    Args:
        path: of the page.
        study: with the seed of ``found``.
        found: of one seed.
        rows: of :func:`rows_of_learned`.
        origin: provenance (command, commit, date, machine).
        settings: of the run, as JSON values.

    Raises:
        ImportError: if the extra "report" is missing, or "eval" where features are mapped.
    """
    several = len(study.settings.protocols) > 1
    titles = {(each.row, each.protocol): f"{each.row}, {each.protocol}" if several else each.row for each in found}
    protocol = study.settings.protocols[0]
    samples = sheets(study, found, titles)
    maps = {
        f"{titles[each.row, each.protocol]}: features after task {number}": charts.overlaid(
            feature_plane(study, each, number), f"Features of {titles[each.row, each.protocol]}, task {number}"
        )
        for each in found
        for number in sorted(each.maps) if len(each.maps[number].kept)
    }  # fmt: skip
    sizes = f"{len(study.data.train)} training and {len(study.data.test)} test images"
    report = Report(
        title=f"Class-incremental learning of {study.data.name}",
        summary=f"{sizes} of {len(study.data.classes)} classes; protocol {', '.join(study.settings.protocols)}.",
        command=origin["command"],
        settings=settings,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=study.class_names(protocol),
        reading=READING,
        tables={
            "Accuracy, time and memory": [_line(row, several) for row in rows],
            "Each task": [line for each in found for line in _tasks(each, titles[each.row, each.protocol])],
        },
        samples=samples,
        confusions={titles[each.row, each.protocol]: each.confusion for each in found},
        seconds={titles[each.row, each.protocol]: each.stages for each in found},
        leading={
            "Accuracy after each task" + (f", {name}" if several else ""): accuracy_chart(found, name)
            for name in study.settings.protocols
        },
        pictures=maps,
        verdict=verdict_of(rows),
    )
    page = write_report(path, report)
    write_picture(page.with_name("samples.png"), samples)
    return page


def verdict_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best learner of the first protocol, and the best of those without real exemplars, in words."""
    rows = [row for row in rows if row["protocol"] == rows[0]["protocol"]]
    named = {
        "Best": [row for row in rows if row["method"] != "joint"],
        "best without real images of earlier classes": [row for row in rows if not METHODS[row["method"]].real],
        "all images at once": [row for row in rows if row["method"] == "joint"],
    }
    parts, seen = [], set[str]()
    for words, among in named.items():
        if among and (best := max(among, key=lambda row: row["average"]))["name"] not in seen:
            seen.add(best["name"])
            parts.append(f"{words}: {best['name']}, {best['average']:.1f} % average incremental accuracy")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def accuracy_chart(found: Sequence[Learned], protocol: str) -> str:
    """Accuracy on all classes so far by their number, a line for each method, as SVG."""
    lines = {
        each.row: [(task.classes, 100 * task.accuracy) for task in each.tasks]
        for each in found if each.protocol == protocol
    }  # fmt: skip
    ends = "; ".join(f"{name}: {points[-1][1]:.1f} % at the end" for name, points in lines.items())
    text = f"Test accuracy by number of classes, {protocol}. {ends}"
    return charts.curves(lines, text, ("classes", "accuracy on all classes so far, %"))


def sheets(study: IncrementalStudy, found: Sequence[Learned], titles: Mapping[tuple[str, str], str]) -> list[Samples]:
    """Training images, and the exemplars and synthetic images of each learner; labels are places in the class order."""
    order = [c for task in study.tasks(study.settings.protocols[0]) for c in task.classes]
    rows = torch.cat([torch.nonzero(study.data.train.labels == c)[:4, 0] for c in order])
    place = torch.tensor([order.index(c) for c in study.data.classes])
    real = study.data.train.subset(rows)
    groups = [Samples("Training images", _pixels(study, real), place[real.labels])]
    for each in found:
        title = titles[each.row, each.protocol]
        if each.exemplars is not None:
            groups.append(Samples(f"{title}: exemplars", _pixels(study, each.exemplars), each.exemplars.labels))
        elif each.old is not None:
            groups.append(Samples(f"{title}: images of earlier classes", _pixels(study, each.old), each.old.labels))
    return groups


def feature_plane(study: IncrementalStudy, learned: Learned, number: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By name of the class, points of training images and of kept or synthetic images (Lardizzone 2020, Fig. 4).

    ImportError without scikit-learn.
    """
    found, names = learned.maps[number], study.class_names(learned.protocol)
    real, kept = tsne([found.real, found.kept], study.seed)
    return {
        names[c]: (real[found.real_classes == c], kept[found.kept_classes == c])
        for c in range(min(MAP_CLASSES, learned.tasks[0].classes))
    }


def _line(row: Mapping[str, Any], several: bool) -> dict[str, str]:
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    synthetic = "new in each step" if row["synthetic"] is None else str(row["synthetic"])
    return {
        "Method": row["name"], **({"Protocol": row["protocol"]} if several else {}),
        "Average accuracy, %": f"{row['average']:.2f}{spread}", "Last, %": f"{row['last']:.2f}",
        "Seconds a task": f"{statistics.mean(row['seconds_per_task']):.1f}",
        "Seconds": f"{sum(row['seconds_per_task']):.1f}", "Peak memory, MB": f"{row['peak_mb']:.0f}",
        "Memory of earlier tasks, MB": f"{row['bytes'] / 1e6:.2f}",
        "of these kept, MB": f"{row['kept_bytes'] / 1e6:.2f}",
        "Real exemplars": str(row["real_exemplars"]), "Synthetic images": synthetic, "Source": row["note"],
    }  # fmt: skip


def _tasks(learned: Learned, title: str) -> list[dict[str, str]]:
    """A line for each task."""
    return [
        {
            "Method": title, "Task": str(number + 1), "Classes so far": str(task.classes),
            "Accuracy on them, %": f"{100 * task.accuracy:.2f}", "On the task's own, %": f"{100 * task.current:.2f}",
            "Seconds": f"{task.seconds:.1f}", "Peak memory, MB": f"{task.peak_mb:.0f}",
            "Kept, MB": f"{task.kept_bytes / 1e6:.2f}",
            "Images of earlier classes or their source, MB": f"{task.working_bytes / 1e6:.2f}",
        }
        for number, task in enumerate(learned.tasks)
    ]  # fmt: skip


def _pixels(study: IncrementalStudy, split: Split) -> Tensor:
    """The images in [0, 1]."""
    return study.data.spec.fit(split.images)


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 3)


def _means(lists: Sequence[Sequence[float]], scale: float) -> list[float]:
    """Entry by entry."""
    return [round(scale * statistics.mean(entries), 3) for entries in zip(*lists, strict=True)]
