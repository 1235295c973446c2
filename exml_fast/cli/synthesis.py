"""What `invert` and `distill` share: networks and images by name, and the report on the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.cli.teachers import Teacher, open_teacher
from exml_fast.data import InputSpec, some_images
from exml_fast.evaluation import Evaluation, evaluate
from exml_fast.inversion import Result
from exml_fast.storage import atomic_path, save_json

__all__ = ["ask", "parse_input", "real_statistics", "save_images", "save_report", "write_images_page"]

READING = (
    "The images below were made from the network alone: no training image was used. A network recognises an image if "
    "the class it was made for has the largest logit. Networks that were not used to make the images show whether they "
    "hold what the class looks like, or only what fools one network (Yin 2020, Table 2).",
    "The Inception score is computed with the network in its row, on these images: it compares sets of images of the "
    "same classes, not papers. Diversity is the mean cosine distance between the features of a class's images, 0 for "
    "copies. Features are what the final linear layer reads.",
)


def parse_input(text: str | None) -> dict[str, Any] | None:
    """``--input``: a JSON object; ValueError naming the option."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        InputSpec.from_dict(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'--input must be like {{"channels": 3, "size": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}}: {error}'
        ) from error
    return value


def real_statistics(source: str | None, spec: InputSpec, count: int) -> str | Tensor:
    """``--statistics``: network input of some real images, or "running"."""
    return "running" if source is None else spec.prepare(some_images(source, spec.size, count))


def ask(result: Result, teacher: Teacher, judges: Sequence[str], real: str | None, device: str) -> Evaluation:
    """The teacher and other networks, each ``SOURCE`` or ``SOURCE=WEIGHTS``, about images."""
    found = {teacher.name: teacher}
    for judge in judges:
        source, _, weights = judge.partition("=")
        found[judge] = open_teacher(source, weights or "DEFAULT", device)
    pixels = None if real is None else some_images(real, result.spec.size, 10_000)
    return evaluate(result, found, pixels)


def save_images(result: Result, out: Path, per_class: int | None, png: bool) -> None:
    """Shard, grid, and each image as a PNG."""
    from torchvision.utils import save_image

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
) -> None:
    """``report.json``, and with ``page`` ``report/index.html``."""
    summary = {**result.summary, "seconds": round(result.seconds, 3)}
    save_json(out / "report.json", {**origin, "settings": settings, **summary, **evaluation.to_dict()})
    if page:
        write_images_page(out / "report" / "index.html", result, teacher, evaluation, origin, settings)


def write_images_page(
    path: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
) -> Path:
    """The page of an inversion. ImportError where the extra is missing."""
    from exml_fast.report import Report, Samples, write_report

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
    counts = torch.bincount(torch.tensor([rank[c] for c in result.labels.tolist()])).tolist()
    classes = [
        {"Class": names[rank[c]], "Images": counts[rank[c]]}
        | {f"{name}, %": f"{100 * judge['by_class'][str(c)]:.0f}" for name, judge in evaluation.judges.items()}
        | {"Diversity": f"{evaluation.diversity[c]:.3f}" if c in evaluation.diversity else "–"}
        for c in evaluation.classes
    ]
    tables = {"Recognised by": asked, "By class": classes}
    memory = evaluation.to_dict().get("memorisation")
    if memory:
        tables["Nearest real images, in feature space"] = [
            {
                "Median distance": f"{memory['median_distance']:.3f}",
                "Smallest": f"{memory['smallest_distance']:.3f}",
                "Usual between real images": f"{memory['usual_distance_among_real']:.3f}",
                "Nearer than half of that, %": f"{100 * memory['memorised']:.1f}",
            }
        ]
    shown = settings | {"Recipe": result.summary.get("recipe", {}).get("name"), "Images": len(result)}
    report = Report(
        title=f"Images out of {teacher.name}",
        summary=f"{len(result)} images of {len(names)} classes in {result.seconds:.1f} s.",
        command=origin["command"],
        settings=shown,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=names,
        reading=READING,
        tables=tables,
        samples=[Samples("Inverted", result.pixels(), torch.tensor([rank[c] for c in result.labels.tolist()]))],
        confusions=evaluation.confusion if 1 < len(names) <= 100 else {},
    )
    return write_report(path, report)
