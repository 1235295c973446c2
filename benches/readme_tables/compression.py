"""The table of pruned and quantised networks (benches/compression.py)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from exml_fast.storage import load_json
from readme_tables.common import number, source, table

TASKS = {
    "prune-filters-20": "−20 % filters", "prune-latency-40": "−40 % latency", "int8": "8 bits", "w4a4": "4 bits",
}  # fmt: skip
IMAGES = {
    "real": "real", "adaptive": "adaptive", "deep-inversion": "DeepInversion", "photographs": "photographs",
    "natural-fields": "natural fields", "noise": "noise",
}  # fmt: skip


def compression(path: Path) -> str:
    """Accuracy by images, speed and size of each network and task."""
    results = load_json(path)
    header = ["accuracy in %", "task", "float", *IMAGES.values(), "seeds", "time, 1 / 64 images", "bytes"]
    notes = (
        "Means over the seeds, ± their deviation. Columns name the images on which filters were ranked, ranges set and "
        "the network learned again. "
        "*real* are all training images, without labels. Time and bytes are shares of the float network's; both "
        "networks are compiled (AOTInductor) and have two threads."
    )
    for row in results["rows"]:
        if "real" in (row["before"] or {}):
            before = number(row["before"]["real"], 2)
            notes += f" 4 bits before learning, with ranges of real images, {row['network']}: {before}."
    return "\n\n".join([table(header, [line(row) for row in results["rows"]]), notes, source(path, results)])


def agreement_in_8_bits(path: Path) -> str:
    """How often the int8 network of ImageNet names the float network's class, by the images that set its ranges."""
    results = load_json(path)
    rows = {row["images"]: row for row in results["rows"]}
    header = ["agreement in %", *(title for images, title in IMAGES.items() if images in rows)]
    shown = [row for images in IMAGES if (row := rows.get(images))]
    lines = [
        [title, *(mean(row["values"][name]) for row in shown)]
        for name, title in (("tiny_imagenet", "Tiny-ImageNet, enlarged"), ("photographs", "crops of photographs"))
    ]
    calibration, seeds = shown[0]["settings"]["calibration"], max(len(row["seeds"]) for row in shown)
    notes = (
        f"{results['network']} in 8 bits and in float32, on {results['tested']} images each. Columns name the "
        f"{calibration} images that set the ranges; up to {seeds} seeds, ± their deviation. *real* are training images "
        "of Tiny-ImageNet, enlarged."
    )
    return "\n\n".join([table(header, lines), notes, source(path, results)])


def line(row: dict[str, Any]) -> list[str]:
    """A network and a task."""
    shown = [mean(row["values"].get(images, [])) for images in IMAGES]
    counts = sorted({len(seeds) for seeds in row["seeds"].values()})
    speed = row["faster"]
    times = " / ".join(number(1 / speed[count]["ratio"], 2) for count in ("1", "64")) if speed else "–"
    return [
        row["network"], TASKS[row["task"]], number(row["float"], 2), *shown, " to ".join(map(str, counts)), times,
        number(row["bytes"] / row["float_bytes"], 2),
    ]  # fmt: skip


def mean(values: list[float]) -> str:
    """With the deviation, where there are several."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"
