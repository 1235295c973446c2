"""The page on a network that was made smaller: accuracy, speed and size, its layers, and where it errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.teachers import Teacher
from exml_fast.report import charts
from exml_fast.report.page import Report, Samples, write_report
from exml_fast.storage import PathLike

__all__ = ["Compressed", "write_compression_page"]

READING = (
    "The small network was made from the network above on the images that the settings name; labels are not used. "
    "Agreement is the share of images to which both networks give the same class.",
    "Times are medians of interleaved rounds on this machine. A point further left and higher up in the first picture "
    "is better.",
)
# Images on which the networks disagree, of each class.
MOST_IMAGES = 200


@dataclass(frozen=True)
class Compressed:
    """What the page shows.

    Attributes:
        title: of the page.
        rows: the networks by name, with "accuracy" (percent, or None), "bytes", and "milliseconds" by number of images.
        agreement: in percent.
        layers: rows of a table of the layers.
        curves: by title, points (x, y) by line, and the names of the axes.
        images: (N, C, H, W) in [0, 1] on which both networks disagree, and (N,) positions of the float network's class.
        seconds: by stage.
    """

    title: str
    rows: Mapping[str, Mapping[str, Any]]
    agreement: float
    layers: Sequence[Mapping[str, Any]]
    curves: Mapping[str, tuple[Mapping[str, list[tuple[float, float]]], tuple[str, str]]] = field(default_factory=dict)
    images: tuple[Tensor, Tensor] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def write_compression_page(
    path: PathLike, found: Compressed, teacher: Teacher, origin: Mapping[str, Any], settings: Mapping[str, Any]
) -> Path:
    """Write the page to ``path`` and return it.

    Args:
        path: of the page.
        found: what it shows.
        teacher: the network before.
        origin: provenance (command, commit, date, machine).
        settings: of the run, as JSON values.

    Raises:
        ImportError: if the extra "report" is missing.
    """
    units = teacher.units or tuple(range(teacher.outputs()))
    first = next(iter(found.rows.values()))
    table = []
    for name, row in found.rows.items():
        accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        entry = {"Network": name, "Test accuracy, %": accuracy, "Bytes": f"{row['bytes']:,}"}
        for count, ms in row["milliseconds"].items():
            faster = first["milliseconds"][count] / ms
            entry[f"{count} image{'s' if count != '1' else ''}, ms"] = f"{ms:.2f} (×{faster:.2f})"
        table.append(entry)
    pictures = dict[str, str]()
    for count in first["milliseconds"]:
        if first["accuracy"] is not None:
            points = {name: [(row["milliseconds"][count], row["accuracy"])] for name, row in found.rows.items()}
            title = f"Accuracy against time, {count} image{'s' if count != '1' else ''}"
            pictures[title] = charts.curves(points, title, ("milliseconds", "test accuracy, %"))
    for title, (lines, axes) in found.curves.items():
        pictures[title] = charts.curves(dict(lines), title, axes)
    samples = []
    if found.images is not None and len(found.images[1]):
        samples = [
            Samples("Images on which the networks disagree, by the float network's class", *_first(found.images))
        ]
    tables: dict[str, Any] = {"Accuracy, size and time": table, "Layers": list(found.layers)}
    report = Report(
        title=found.title,
        summary=f"Both networks agree on {found.agreement:.1f} % of the images.",
        command=origin["command"],
        settings=settings,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=[teacher.class_names.get(c, str(c)) for c in units],
        reading=READING,
        tables={name: rows for name, rows in tables.items() if rows},
        samples=samples,
        leading=pictures,
        seconds={"this run": found.seconds} if found.seconds else {},
    )
    return write_report(path, report)


def _first(images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    order = torch.arange(len(images[1]))[:MOST_IMAGES]
    return images[0][order], images[1][order]
