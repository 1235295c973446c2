"""Reports as one HTML file that contains its style and all pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from exml_fast.reading import printable
from exml_fast.report import charts
from exml_fast.report.film import Film
from exml_fast.storage import PathLike, atomic_path
from exml_fast.validation import named

__all__ = ["Learning", "Report", "Row", "Similarities", "Samples", "render", "write_picture", "write_report"]

KINDS = {"strategy": "ex-model", "baseline": "baseline", "joint": "real data"}
STRIP_CLASSES, STRIP_IMAGES = 10, 4
CLASS_COLUMNS = (
    "Columns are classes. Synthetic images show what the network reacts to; they can teach without looking like real "
    "images."
)


@dataclass(frozen=True)
class Row:
    """A row of the table of results.

    Args:
        name: the method.
        kind: "strategy" (an ex-model learned from experts alone), "baseline", or "joint" (trained on real data).
        accuracy, std: in percent. ``std`` is over seeds.
        seconds, peak_mb: time and greatest memory of the run.
        note: what the method uses.

    Raises:
        ValueError: for another ``kind``.
    """

    name: str
    kind: str
    accuracy: float
    std: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        named("kind", self.kind, KINDS)


@dataclass(frozen=True)
class Samples:
    """A group of images, shown class by class under a heading.

    Args:
        name: the heading.
        images: (N, C, H, W) in [0, 1].
        labels: (N,), the class of each image, negative for images without a class.
        stretch: draw the 0.5th percentile of the pixels as black and the 99.5th as white. The page says so.

    Raises:
        ValueError: for another shape.
    """

    name: str
    images: Tensor
    labels: Tensor
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"samples {self.name!r}: images must be (N, C, H, W) and labels (N,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def shown(self) -> Tensor:
        """The images as they are drawn, stretched if ``stretch`` is set."""
        if not self.stretch or self.images.numel() == 0:
            return self.images
        values = self.images.float().flatten().sort().values
        edge = round(0.005 * (len(values) - 1))
        low, high = values[edge], values[-1 - edge]
        return ((self.images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


@dataclass(frozen=True)
class Learning:
    """Test accuracy, in percent, after each expert of a stream.

    Attributes:
        accuracies: for each strategy the accuracy after each expert.
        references: accuracies by name, drawn as horizontal lines in the plot.
        seen: share of the test images whose class has been seen after each expert.
    """

    accuracies: Mapping[str, Sequence[float]]
    references: Mapping[str, float] = field(default_factory=dict)
    seen: Sequence[float] = ()


@dataclass(frozen=True)
class Similarities:
    """Class similarities (K, K) of a network, and the names of its K classes; None uses those of the report."""

    matrix: Tensor
    class_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Report:
    """The contents of a page. Empty parts are left out.

    Attributes:
        title, summary: the heading, and one or two sentences under it.
        command: the command that made the results.
        settings, machine: names and JSON values, shown as a table.
        class_names: name of each global class.
        rows: results.
        reading: paragraphs that explain the page. The default explains experts and ex-models.
        tables: further tables by heading. Each row maps columns to values, and all rows have the same columns.
        samples: groups of images, real images first.
        learning: accuracies after each expert, drawn as a plot.
        confusions: counts (K, K), true class by predicted class, by name.
        similarities: class similarities (K, K) of experts, by name.
        seconds: for each run the seconds of each stage.
        pictures: further pictures, SVG by heading.
        leading: the same, shown before the images.
        verdict: what came out, in words and figures; the first lines of the page.
        film: the images of an inversion after some of its steps.
        columns: what the columns of the images are.
    """

    title: str
    summary: str
    command: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    class_names: Sequence[str]
    rows: Sequence[Row] = ()
    reading: Sequence[str] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: Sequence[Samples] = ()
    learning: Learning | None = None
    confusions: Mapping[str, Tensor] = field(default_factory=dict)
    similarities: Mapping[str, Similarities] = field(default_factory=dict)
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    leading: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    film: Film | None = None
    columns: str = CLASS_COLUMNS


def render(report: Report) -> str:
    """The page as HTML. ImportError if jinja2 or matplotlib is missing."""
    names = list(report.class_names)
    template = load_template("page.html")
    classes = sorted({int(c) for group in report.samples for c in group.labels.tolist()})[:STRIP_CLASSES]
    groups = strips_of(report.samples, names, classes)
    return template.render(
        report=report,
        kinds=KINDS,
        best=max((row.accuracy for row in report.rows if row.kind == "strategy"), default=None),
        groups=groups,
        columns=len(classes),
        frames=[] if report.film is None else report.film.pictures(),
        lines="" if report.learning is None else _lines(report.learning),
        confusions={
            name: charts.heatmap(
                100 * matrix.double() / matrix.double().sum(1, keepdim=True).clamp_min(1),
                names,
                f"Confusion matrix of {name}: {_right(matrix):.1f} % of the images on the diagonal",
                ("true class", "predicted class"),
            )
            for name, matrix in report.confusions.items()
        },
        similarities={
            name: charts.heatmap(
                found.matrix,
                found.class_names or names,
                f"Class similarities of {name}, {len(found.matrix)} by {len(found.matrix)}",
                written="{:.2f}",
            )
            for name, found in report.similarities.items()
        },
        bars=charts.stage_bars(report.seconds, _bars_alt(report)) if report.seconds else "",
    )


def load_template(name: str) -> Any:
    """Load a jinja2 template of this package. ImportError if jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'exml_fast[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["cell"] = _cell
    environment.globals |= {"style": _read_template("page.css"), "script": _read_template("page.js")}
    return environment.get_template(name)


def _read_template(name: str) -> str:
    return files("exml_fast.report").joinpath(f"templates/{name}").read_text("utf-8")


def strips_of(samples: Sequence[Samples], names: Sequence[str], classes: Sequence[int]) -> list[dict[str, Any]]:
    """The groups as the template reads them. Images with a negative label get no name."""
    return [
        {
            "name": group.name,
            "stretched": group.stretch,
            "strips": [
                {
                    "name": names[c] if c >= 0 else "",
                    "picture": picture,
                    "alt": group.name + (f": images of class {names[c]}" if c >= 0 else ""),
                }
                for c, picture in charts.class_strips(
                    group.shown(),
                    group.labels,
                    [*classes, *group.labels[group.labels < 0].unique().flip(0).tolist()],
                    STRIP_IMAGES,
                )
            ],
        }
        for group in samples
    ]


def write_report(path: PathLike, report: Report) -> Path:
    """Write the page of :func:`render` to ``path``, creating missing folders; returns the path.

    ImportError if jinja2 or matplotlib is missing.
    """
    page = render(report)
    with atomic_path(path) as temporary:
        temporary.write_text(printable(page), encoding="utf-8")
    return Path(path)


def write_picture(path: PathLike, samples: Sequence[Samples], each: int = 2, scale: int = 2) -> Path:
    """Write a PNG with one row for each group of images.

    Args:
        path: of the PNG.
        samples: the groups, at least one.
        each: images of each class, side by side.
        scale: factor by which the pixels are enlarged.

    Raises:
        ValueError: if there is no group.
    """
    if not samples:
        raise ValueError("samples must hold at least one group")
    classes = sorted({int(c) for group in samples for c in group.labels.tolist()})[:STRIP_CLASSES]
    picture = charts.group_rows([(group.shown(), group.labels) for group in samples], classes, each)
    with atomic_path(path) as temporary:
        picture.resize((picture.width * scale, picture.height * scale), resample=0).save(temporary, "PNG")
    return Path(path)


def _lines(learning: Learning) -> str:
    ends = (f"{name}: {', '.join(f'{v:.1f}' for v in values)}" for name, values in learning.accuracies.items())
    text = f"Test accuracy in percent after each expert. {'; '.join(ends)}"
    return charts.accuracy_lines(learning.accuracies, learning.references, text, learning.seen)


def _bars_alt(report: Report) -> str:
    totals = "; ".join(f"{name}: {sum(parts.values()):.1f} s" for name, parts in report.seconds.items())
    return f"Time of each stage. {totals}"


def _right(matrix: Tensor) -> float:
    return 100 * float(matrix.diagonal().sum()) / max(float(matrix.sum()), 1)


def _cell(value: Any) -> str:
    """A JSON value as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(v)}" for name, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "none"
    return "none" if value is None else json.dumps(value)
