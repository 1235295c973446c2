"""The report on synthetic images: files, figures, and a page."""

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
from exml_fast.report.page import Report, Samples, write_report
from exml_fast.storage import atomic_path, save_json

__all__ = ["history_rows", "learned_row", "save_images", "save_report", "write_images_page"]

READING = (
    "The images below were made from the network alone: no training image was used. A network recognises an image if "
    "the class it was made for has the largest logit. Networks that were not used to make the images show whether they "
    "hold what the class looks like, or only what fools one network (Yin 2020, Table 2).",
    "The Inception score is computed with the network in its row, on these images: it compares sets of images of the "
    "same classes, not papers. Diversity is the mean cosine distance between the features of a class's images, 0 for "
    "copies. Features are what the final linear layer reads.",
)


def save_images(result: Result, out: Path, per_class: int | None, png: bool) -> None:
    """Write the images as a shard and a grid, and with ``png`` each as a PNG."""
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
) -> None:
    """Write ``report.json``, and with ``page`` also ``report/index.html``, on which ``tables`` come first."""
    summary = {**result.summary, "seconds": round(result.seconds, 3)}
    save_json(out / "report.json", {**origin, "settings": settings, **summary, **evaluation.to_dict()})
    if page:
        path = out / "report" / "index.html"
        write_images_page(path, result, teacher, evaluation, origin, settings, real, tables)


def write_images_page(
    path: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
    real: Tensor | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write the page of an inversion; with ``real`` images it shows the nearest one to each image.

    ImportError if the extra "report" is missing.
    """
    names = [teacher.class_names.get(c, str(c)) for c in evaluation.classes]
    rank = {c: i for i, c in enumerate(evaluation.classes)}
    asked = [
        {
            "Network": name,
            "Recognised, %": f"{100 * judge['top1']:.1f}",
            "Among its first five, %": f"{100 * judge['top5']:.1f}",
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
        samples.append(Samples("The real image nearest to each, in feature space", nearest, labels))
    memory = evaluation.to_dict().get("memorisation")
    if memory:
        shown_tables["Nearest real images, in feature space"] = [
            {
                "Median distance": f"{memory['median_distance']:.3f}",
                "Smallest": f"{memory['smallest_distance']:.3f}",
                "Usual between real images": f"{memory['usual_distance_among_real']:.3f}",
                "Nearer than half of that, %": f"{100 * memory['memorised']:.1f}",
            }
        ]
    made_by = result.summary.get("recipes") or [result.summary.get("recipe", {})]  # none: images given to distill
    names_of = ", ".join(recipe["name"] for recipe in made_by if recipe)
    shown = settings | {"Recipe": names_of or None, "Images": len(result)}
    report = Report(
        title=f"Images out of {teacher.name}",
        summary=f"{len(result)} images of {len(names)} classes in {result.seconds:.1f} s.",
        command=origin["command"],
        settings=shown,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=names,
        reading=READING,
        tables=shown_tables,
        samples=samples,
        confusions=evaluation.confusion if 1 < len(names) <= 100 else {},
    )
    return write_report(path, report)


def learned_row(learned: Mapping[str, Any]) -> dict[str, str]:
    """The results of a student as a row of the page."""
    accuracy = learned["accuracy"]
    return {
        "Network": learned["student"],
        "Steps": str(learned["steps"]),
        "Agrees with its teacher on the last images, %": f"{100 * learned['agreement']:.1f}",
        "Right on the test images, %": "–" if accuracy is None else f"{100 * accuracy:.2f}",
    }


def history_rows(history: Mapping[str, Sequence[float]], most: int = 12) -> list[dict[str, str]]:
    """At most ``most`` evenly spaced points of a student's history, including the last."""
    count = len(history["step"])
    chosen = torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
    return [
        {"Step": str(int(history["step"][i])), "Divergence from the teacher": f"{history['kl'][i]:.4f}",
         "Agreement, %": f"{100 * history['agreement'][i]:.1f}"}
        for i in chosen
    ]  # fmt: skip
