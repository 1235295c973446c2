"""The page on a trained generator: its images, its losses, and the features of its images (Ye 2022, Fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.teachers import Teacher
from exml_fast.evaluation.features import features, logits
from exml_fast.inversion import Result
from exml_fast.report import charts
from exml_fast.report.page import Report, Samples, write_report
from exml_fast.storage import PathLike
from exml_fast.transfer import tsne

__all__ = ["feature_map", "write_generator_page"]

READING = (
    "The images below were made by a generator that was trained on the network alone, without any training image. The "
    "network labels each image with its largest logit. The images need not look natural: the generator is trained to "
    "make images from which a student learns what the network knows (Ye 2022).",
    "The imitation loss is one minus the cosine of the student's and the network's features. The exploration moves the "
    "images to where the student fails. The map shows features, the input of the final linear layer, in two dimensions "
    "(t-SNE); distances between far points mean nothing.",
)
# Points of each kind in the map, and classes that have a colour of their own.
MOST_POINTS, MOST_CLASSES = 500, 10
LOSSES = ("imitation", "explore", "category", "diversity", "features")


def feature_map(teacher: Teacher, images: Tensor, real: Tensor | None, seed: int) -> dict[str, str]:
    """The features of generated and of real images, mapped to the plane together and drawn as SVG (Ye 2022, Fig. 4).

    Args:
        teacher: the network whose features are shown. It also names the class of each image.
        images: of the generator, network input (N, C, H, W), at least 5. At most 500 are shown.
        real: the same of real images, or None.
        seed: of the mapping.

    Returns:
        Pictures by title: one for each kind of images, coloured by class, and both kinds in one.

    Raises:
        ImportError: without scikit-learn.
    """
    kinds = {"generated": images[:MOST_POINTS]} | ({} if real is None else {"real": real[:MOST_POINTS]})
    flat = dict(zip(kinds, tsne([features(teacher.model, x) for x in kinds.values()], seed), strict=True))
    named = {kind: logits(teacher.model, x).argmax(1) for kind, x in kinds.items()}
    frequent = torch.cat(list(named.values())).bincount().argsort(descending=True)[:MOST_CLASSES].sort().values.tolist()
    units = teacher.units or tuple(range(teacher.outputs()))
    title = "Features of {} images, by the class that the network names"
    pictures = {}
    for kind, points in flat.items():
        by_class = {
            teacher.class_names.get(units[c], str(units[c])): points[named[kind] == c]
            for c in frequent if (named[kind] == c).any()
        }  # fmt: skip
        pictures[title.format(kind)] = charts.scatter(by_class, title.format(kind))
    if real is not None:
        both = "Features of real and generated images"
        pictures[both] = charts.scatter({"real": flat["real"], "generated": flat["generated"]}, both)
    return pictures


def write_generator_page(
    path: PathLike,
    result: Result,
    teacher: Teacher,
    history: Mapping[str, Sequence[float]],
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, str],
) -> Path:
    """Write the page to ``path`` and return it.

    Args:
        path: of the page.
        result: images of the generator, labelled by the teacher.
        teacher: the network that the generator was trained on.
        history: of :class:`exml_fast.generators.Delegation`.
        origin: provenance (command, commit, date, machine).
        settings: of the run, as JSON values.
        tables: shown first, by heading.
        pictures: SVG by heading, as of :func:`feature_map`.

    Raises:
        ImportError: if the extra "report" is missing.
    """
    classes = sorted(set(result.labels.tolist()))
    rank = {c: place for place, c in enumerate(classes)}
    lines = {
        name: list(zip(history["step"], history[name], strict=True))
        for name in LOSSES if any(value == value for value in history.get(name, ()))
    }  # fmt: skip
    drawn = {name: charts.curves({name: points}, f"Loss: {name}", ("round", name)) for name, points in lines.items()}
    report = Report(
        title=f"A generator of what {teacher.name} knows",
        summary=f"Trained in {result.seconds:.1f} s; {len(result)} of its images.",
        command=origin["command"],
        settings=settings,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=[teacher.class_names.get(c, str(c)) for c in classes],
        reading=READING,
        tables=tables,
        samples=[Samples("Generated", result.pixels(), torch.tensor([rank[c] for c in result.labels.tolist()]))],
        pictures={f"Loss: {name}": picture for name, picture in drawn.items()} | dict(pictures),
    )
    return write_report(path, report)
