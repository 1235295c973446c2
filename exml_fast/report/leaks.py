"""The page on what synthetic images give away of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import Split
from exml_fast.evaluation import Distances, Leaks, Membership
from exml_fast.inversion import Result
from exml_fast.report import charts
from exml_fast.report.page import Report, Samples, write_report
from exml_fast.storage import PathLike

__all__ = ["leak_verdict", "write_leaks_page"]

READING = (
    "A copy is an image that is nearer to a training image than unseen real images are. The curves show, for each "
    "distance, the share of images that are at most as far from their nearest training image. Where the curve of the "
    "synthetic images rises before that of the held-out images, images may be copies.",
    "A membership attack says of a real image whether the network was trained on it, by the network's loss. Area under "
    "the curve: 50 % is chance, 100 % tells every image. Calibrated: the loss is compared with that of networks that "
    "were trained on other images.",
    "These are measurements and no guarantee. Stronger attacks exist, changed copies (turned, cut, recoloured) can be "
    "far by these distances, and properties of the training set other than single images are not examined.",
)
# Images that are shown, and points of a curve.
SHOWN, POINTS = 10, 30


def leak_verdict(found: Leaks) -> str:
    """The result in words."""
    distances = found.features or found.pixels
    text = "The images hold copies of training images" if found.copies else "No sign of copies among the images"
    text += (
        f": {100 * max(found.pixels.near, distances.near):.1f} % are nearer to a training image than 99 % of unseen "
    )
    text += "real images are"
    for name, each in (found.calibrated or found.loss).items():
        told = "reveals" if each.reveals else "shows no sign of"
        text += f"; {name} {told} who was in its training set (AUC {100 * each.auc:.1f} %)"
    return text + "."


def write_leaks_page(
    path: PathLike,
    found: Leaks,
    images: Result,
    training: Split,
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write the page to ``path`` and return it.

    Args:
        path: of the page.
        found: of :func:`exml_fast.evaluation.leaks`.
        images, training: as given there.
        origin: provenance (command, commit, date, machine).
        settings: as JSON values.

    Raises:
        ImportError: if the extra "report" is missing.
    """
    spaces = {"pixels": found.pixels} | ({} if found.features is None else {"features": found.features})
    suspicious = (found.features or found.pixels).shares.argsort()[:SHOWN]
    nearest = (found.features or found.pixels).nearest[suspicious]
    place = torch.arange(len(suspicious))
    attacks = [
        _attack(name, kind, each)
        for kind, group in (("loss", found.loss), ("calibrated loss", found.calibrated)) for name, each in group.items()
    ]  # fmt: skip
    tables = {"Nearest training images": [_line(name, each) for name, each in spaces.items()]}
    report = Report(
        title="What the images give away",
        summary=f"{len(images)} synthetic images, beside {len(training)} training images.",
        command=origin["command"],
        settings=settings,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=[str(i + 1) for i in range(SHOWN)],
        reading=READING,
        tables=tables | ({"Who was in the training set": attacks} if attacks else {}),
        samples=[
            Samples("Synthetic images, the most suspicious first", images.pixels()[suspicious], place),
            Samples("The training image nearest to each", images.spec.fit(training.images[nearest]), place),
        ],
        leading={f"Distance to the nearest training image, by {name}": _curves(name, d) for name, d in spaces.items()},
        verdict=leak_verdict(found),
        columns="Each column has a synthetic image, and below it the training image that is nearest to it.",
    )
    return write_report(path, report)


def _curves(name: str, found: Distances) -> str:
    lines = {"synthetic images": _cumulative(found.synthetic), "held-out real images": _cumulative(found.held_out)}
    text = f"Share of images by distance to the nearest training image, by {name}"
    return charts.curves(lines, text, (f"distance, by {name}", "images at most as far, %"))


def _cumulative(distances: Tensor) -> list[tuple[float, float]]:
    low = distances.double().sort().values
    chosen = torch.linspace(0, len(low) - 1, min(POINTS, len(low))).round().long().unique()
    return [(float(low[i]), 100 * (i + 1) / len(low)) for i in chosen.tolist()]


def _line(name: str, found: Distances) -> dict[str, str]:
    return {
        "By": name, "Nearer than 99 % of held-out images, %": f"{100 * found.near:.1f}",
        "Copies": "yes" if found.copies else "no sign", "Smallest distance": f"{float(found.synthetic.min()):.4g}",
        "Median": f"{float(found.synthetic.median()):.4g}", "Held-out median": f"{float(found.held_out.median()):.4g}",
    }  # fmt: skip


def _attack(name: str, kind: str, found: Membership) -> dict[str, str]:
    return {
        "Network": name, "Attack by": kind, "AUC, %": f"{100 * found.auc:.1f} ± {100 * found.error:.1f}",
        "Found at 1 % false alarms, %": f"{100 * found.found:.1f}", "Reveals": "yes" if found.reveals else "no sign",
    }  # fmt: skip
