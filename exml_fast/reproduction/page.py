"""The page of a reproduced table: our figures beside the paper's, images, curves and similarities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exml_fast.reading import printable
from exml_fast.report import charts
from exml_fast.report.page import STRIP_CLASSES, Samples, load_template, strips_of, write_picture
from exml_fast.reproduction.runner import Outcome
from exml_fast.storage import PathLike, atomic_path

__all__ = ["ExperimentPage", "write_experiment"]


@dataclass(frozen=True)
class ExperimentPage:
    """Title, a sentence, the command, tables of settings and machine, and the rows that the runner returns.

    ``verdict`` says in words how many rows reach the paper's figures.
    """

    title: str
    summary: str
    command: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def verdict(self) -> str:
        compared = [row for row in self.rows if row["paper"] is not None]
        if not compared:
            return ""
        reached = sum(row["ours"] >= row["paper"] for row in compared)
        return f"{reached} of {len(compared)} rows are at least at the paper's figure."


def write_experiment(
    path: PathLike, page: ExperimentPage, outcome: Outcome | None = None, links: Mapping[str, str] | None = None
) -> Path:
    """Write the page, with the pictures of an outcome and links to pages by title, to ``path`` and return it.

    The pictures also lie beside it as PNG files, each called as its title, and the images as ``images.png``.
    """
    path = Path(path)
    names = outcome.class_names if outcome is not None else []
    pictures: dict[str, str] = {}
    groups: list[dict[str, Any]] = []
    if outcome is not None:
        samples = [Samples(name, *images) for name, images in outcome.samples.items()]
        groups = strips_of(samples, names, range(min(len(names), STRIP_CLASSES)))
        if samples:
            # What is of no class takes the columns from the first on.
            columns = [torch.where(group.labels < 0, -1 - group.labels, group.labels) for group in samples]
            drawn = [Samples(g.name, g.images, column) for g, column in zip(samples, columns, strict=True)]
            write_picture(path.with_name("images.png"), drawn)
        for title, lines in outcome.lines.items():
            axes = outcome.axes.get(title, ("transfer set, % of the training images", "test accuracy, %"))
            logarithmic = title in outcome.logarithmic
            pictures[title] = charts.curves(lines, title, axes, logarithmic)
            charts.save_curves(_beside(path, title), lines, axes, logarithmic)
        for title, points in outcome.points.items():
            if title in outcome.overlaid:
                each = list(points.values())
                pairs = dict(zip(list(points)[1::2], zip(each[::2], each[1::2], strict=True), strict=True))
                pictures[title] = charts.overlaid(pairs, title)
                charts.save_overlaid(_beside(path, title), pairs)
                continue
            pictures[title] = charts.scatter(points, title)
            charts.save_scatter(_beside(path, title), points)
        for title, matrix in outcome.matrices.items():
            pictures[title] = charts.heatmap(matrix, names, title, written="{:.2f}")
            charts.save_similarity(_beside(path, title), matrix, names)
    html = load_template("experiment.html").render(
        report=page, rows=page.rows, groups=groups, pictures=pictures, links=links or {},
        columns=max(min(len(names), STRIP_CLASSES), 1),
        note="; ".join(dict.fromkeys(row["note"] for row in page.rows if row["reduced"])),
        of_first=any(row["seeds"] > 1 for row in page.rows),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(printable(html), encoding="utf-8")
    return path


def _beside(path: Path, title: str) -> Path:
    return path.with_name(re.sub(r"\W+", "-", title.lower()).strip("-")[:100] + ".png")
