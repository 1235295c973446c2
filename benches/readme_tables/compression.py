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
        "the network learned again. *real* are all training images, without labels. Bytes are a share of the float "
        "network's."
    )
    notes += " " + learned(results["rows"])
    if timed := [row["timed"] for row in results["rows"] if row["timed"]]:
        networks = sorted({each["networks"] for each in timed})
        commits = sorted({commit for each in timed for commit in each["commits"]})
        notes += (
            f" Time is a share of the float network's, the median of {' to '.join(map(str, networks))} networks "
            f"({timed[0]['rounds']} rounds each, {timed[0]['compiler']}, {timed[0]['threads']} threads, commit "
            f"{', '.join(commits)})."
        )
    for row in results["rows"]:
        if "real" in (row["before"] or {}):
            before = number(row["before"]["real"], 2)
            notes += f" 4 bits before learning, with ranges of real images, {row['network']}: {before}."
    return "\n\n".join([table(header, [line(row) for row in results["rows"]]), notes, source(path, results)])


def learned(rows: list[dict[str, Any]]) -> str:
    """How many images there were, and how networks learned again."""
    sentences = []
    tuning = {task: settings_of(row) for row in rows if (task := row["task"]) != "int8"}
    for task, shown in (("prune-filters-20", "Pruned networks"), ("w4a4", "Those of 4 bits")):
        if task in tuning:
            every = list(tuning[task].values())
            steps, sizes = (sorted({str(each[name]) for each in every}) for name in ("steps", "batch_size"))
            sentences.append(f"{shown} learned for {' or '.join(steps)} steps of {' or '.join(sizes)} images.")
    by_images = tuning.get("prune-filters-20", {})
    real, made = (by_images.get(images, {}).get("augmentation") for images in ("real", "deep-inversion"))
    if real and made and real != made:
        sentences.append(
            "When pruned networks learned, images that are not real were also scaled by up to "
            f"{made['scale']:g} and rotated by up to {made['rotation']:g}°: on held-out training images "
            "of another seed, made images taught more so, and real ones less."
        )
    counts = {
        images: each["source"]["images"]
        for row in rows if row["task"] in ("int8", "w4a4") for images, each in row["settings"].items()
        if "images" in each["source"]
    }  # fmt: skip
    if counts:
        sentences.append(
            f"A set has {', '.join(f'{count} ({IMAGES[name]})' for name, count in counts.items())} images."
        )
    return " ".join(sentences)


def settings_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How the network of a task learned, by images."""
    return {images: each.get("fine_tuning", each)["training"] for images, each in row["settings"].items()}


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
    settings, seeds = shown[0]["settings"], max(len(row["seeds"]) for row in shown)
    notes = (
        f"{results['network']} in 8 bits and in float32, on {results['tested']} images each. Columns name the "
        f"{settings['calibration']} images that set the ranges; activations have {settings['activation_bits']} bits; "
        f"up to {seeds} seeds, ± their deviation. *real* are training images of Tiny-ImageNet, enlarged."
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
