"""The report on synthetic images: image files, scores as JSON, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from exml_fast.continual.teachers import Teacher
from exml_fast.evaluation import Evaluation
from exml_fast.inversion import Result
from exml_fast.report import charts
from exml_fast.report.film import Film
from exml_fast.report.page import Report, Samples, write_report
from exml_fast.storage import atomic_path, save_json

__all__ = [
    "history_rows", "learned_row", "loss_chart", "save_images", "save_report", "verdict_of", "write_images_page",
]  # fmt: skip

# Points of the curve of the loss.
MOST_POINTS = 200

READING = (
    "The images below were made from the network alone, without any training image. A network recognises an image if "
    "the class that the image was made for has the largest logit. If other networks recognise the images too, the "
    "images show the class, and not only a pattern that misleads one network (Yin 2020, Table 2).",
    "The Inception score is computed with the network in its row. It is comparable between sets of images of the same "
    "classes, but not with published scores. Diversity is the mean cosine distance between the features of a class's "
    "images, 0 for copies. Features are the input of the final linear layer.",
)


def save_images(result: Result, out: Path, per_class: int | None, png: bool) -> None:
    """Write the images into the folder ``out``: as a shard, as ``grid.png``, and with ``png`` as one PNG each.

    ``per_class`` sets the number of columns of the grid; None lets the grid choose.
    """
    result.save(out)
    columns = len(result) // per_class if per_class and len(result) <= 400 else None
    result.save_grid(out / "grid.png", columns=columns)
    if png:
        for i, (image, label) in enumerate(zip(result.pixels(), result.labels.tolist(), strict=True)):
            with atomic_path(out / "png" / f"{i:05d}_class_{label}.png") as temporary:
                save_image(image, temporary)


def save_report(
    out: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
    page: bool,
    real: Tensor | None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    film: Film | None = None,
) -> None:
    """Write ``report.json`` into the folder ``out``, and with ``page`` also ``report/index.html``.

    Args:
        out: the folder.
        result: the images.
        teacher: the network that the images were made from.
        evaluation: the scores of the images.
        origin: provenance (command, commit, date, machine).
        settings: of the run, as JSON values.
        page: write the page too. ImportError if the extra "report" is missing.
        real: pixels (M, C, H, W) among which ``evaluation`` found the nearest.
        tables: further tables, shown first on the page.
        film: the images after some of the steps.
    """
    summary = {**result.summary, "seconds": round(result.seconds, 3)}
    save_json(out / "report.json", {**origin, "settings": settings, **summary, **evaluation.to_dict()})
    if page:
        path = out / "report" / "index.html"
        write_images_page(path, result, teacher, evaluation, origin, settings, real, tables, film)


def write_images_page(
    path: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
    real: Tensor | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    film: Film | None = None,
) -> Path:
    """Write the page of :func:`save_report` to ``path``. With ``real`` it shows the nearest real image to each image.

    ImportError if the extra "report" is missing.
    """
    names = [teacher.class_names.get(c, str(c)) for c in evaluation.classes]
    rank = {c: i for i, c in enumerate(evaluation.classes)}
    asked = [
        {
            "Network": name,
            "Recognised, %": f"{100 * judge['top1']:.1f}",
            "Among the five largest logits, %": f"{100 * judge['top5']:.1f}",
            "Inception score": f"{judge['inception_score']:.2f}",
        }
        for name, judge in evaluation.judges.items()
    ]
    labels = torch.tensor([rank[c] for c in result.labels.tolist()])
    counts = torch.bincount(labels).tolist()
    classes = [
        {"Class": names[rank[c]], "Images": counts[rank[c]]}
        | {f"{name}, %": f"{100 * judge['by_class'][str(c)]:.0f}" for name, judge in evaluation.judges.items()}
        | {"Diversity": f"{evaluation.diversity[c]:.3f}" if c in evaluation.diversity else "–"}
        for c in evaluation.classes
    ]
    shown_tables = {**(tables or {}), "Recognised by": asked, "By class": classes}
    samples = [Samples("Inverted", result.pixels(), labels)]
    if real is not None and evaluation.neighbours is not None:
        nearest = real[evaluation.neighbours.index[:, 0]]
        nearest = nearest.float() / 255 if nearest.dtype == torch.uint8 else nearest
        samples.append(Samples("Nearest real image, in feature space", nearest, labels))
    memory = evaluation.to_dict().get("memorisation")
    if memory:
        shown_tables["Nearest real images, in feature space"] = [
            {
                "Median distance": f"{memory['median_distance']:.3f}",
                "Smallest": f"{memory['smallest_distance']:.3f}",
                "Usual among real images": f"{memory['usual_distance_among_real']:.3f}",
                "Nearer than half of the usual, %": f"{100 * memory['memorised']:.1f}",
            }
        ]
    made_by = result.summary.get("recipes") or [
        result.summary.get("recipe", {})
    ]  # no recipe if the images were given to distill
    names_of = ", ".join(recipe["name"] for recipe in made_by if recipe)
    drawn_by = (result.summary.get("source") or {}).get("source")
    shown = settings | {"Recipe": names_of or None, "Drawn by": drawn_by, "Images": len(result)}
    report = Report(
        title=f"Images from {teacher.name}",
        summary=f"{len(result)} images of {len(names)} classes in {result.seconds:.1f} s.",
        command=origin["command"],
        settings=shown,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=names,
        reading=READING,
        tables=shown_tables,
        samples=samples,
        confusions=evaluation.confusion if 1 < len(names) <= 100 else {},
        leading=loss_chart(result),
        verdict=verdict_of(evaluation, memory),
        film=film,
    )
    return write_report(path, report)


def loss_chart(result: Result) -> dict[str, str]:
    """The weighted loss by step as SVG, by its heading; empty without a history."""
    values = result.history.get("loss")
    if values is None or len(values) < 2:
        return {}
    chosen = torch.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().long().unique().tolist()
    points = [(float(i + 1), float(values[i])) for i in chosen if values[i].isfinite()]
    if len(points) < 2:
        return {}
    text = f"Loss of the images by step: {points[0][1]:.4g} at first, {points[-1][1]:.4g} at the end"
    return {"Loss of the images": charts.curves({"loss": points}, text, ("step", "loss"))}


def verdict_of(evaluation: Evaluation, memory: Mapping[str, Any] | None) -> str:
    """Which share of the images each network recognises, and how many are near copies of real images, in words."""
    (first, own), *others = evaluation.judges.items()
    text = f"{first} recognises {100 * own['top1']:.0f} % of the images"
    for name, judge in others:
        text += f"; {name}, which did not make them, {100 * judge['top1']:.0f} %"
    if memory:
        text += (
            f". {100 * memory['memorised']:.0f} % are much nearer to a real image than real images are to each other"
        )
    return text + "."


def learned_row(learned: Mapping[str, Any]) -> dict[str, str]:
    """The results of a student as a row of a table."""
    accuracy = learned["accuracy"]
    return {
        "Network": learned["student"],
        "Steps": str(learned["steps"]),
        "Agreement with its teacher on the last images, %": f"{100 * learned['agreement']:.1f}",
        "Test accuracy, %": "–" if accuracy is None else f"{100 * accuracy:.2f}",
    }


def history_rows(history: Mapping[str, Sequence[float]], most: int = 12) -> list[dict[str, str]]:
    """The history of a student as rows of a table: at most ``most``, evenly spaced, including the last."""
    count = len(history["step"])
    chosen = torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
    return [
        {"Step": str(int(history["step"][i])), "Divergence from the teacher": f"{history['kl'][i]:.4f}",
         "Agreement, %": f"{100 * history['agreement'][i]:.1f}"}
        for i in chosen
    ]  # fmt: skip
