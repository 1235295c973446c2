"""Tables of synthetic images: who recognises them, and what students learn from them (Yin 2020)."""

from __future__ import annotations

import statistics
from pathlib import Path
from textwrap import fill
from typing import Any

from exml_fast.inversion import recipes
from exml_fast.storage import load_json
from readme_tables.common import NETWORKS, clean, number, source, table

# Of Yin 2020, Table 1: teachers' accuracy in %, and pairs of teacher and student.
YIN_TEACHERS = {"vgg11_bn_cifar": 92.34, "resnet34_cifar": 95.42}
# With images of this seed the recipe was searched from which the quick one comes.
CHOSEN_SEEDS = {0}
# Our recipe in the headline.
QUICK = "deep_inversion/cifar10-quick"


def agreement(path: Path) -> str:
    results = load_json(path)
    rows = [
        [row["cell"].partition("/")[2], steps_taken(row),
         number(row["teacher"], 1, " %"), number(row["ours"], 1, " %"),
         number(row["inception_score"], 2), number(row["diversity"], 3), number(row["images_per_second"], 2)]
        for row in results["rows"] if "steps" in row
    ]  # fmt: skip
    images = max(row["images"] for row in results["rows"] if "images" in row)
    header = [
        "images out of a CIFAR-10 ResNet-20", "steps", "recognised by the teacher", "by ResNet-56", "Inception score ⁹",
    ]  # fmt: skip
    note = (
        f"⁹ Computed with ResNet-56 on {images} images each. Images a second are those of one core of a machine with "
        "other load. Our recipe was tuned with the same two networks, on different images. "
        "The paper takes 2000 steps and other networks for CIFAR-10, so it has no figures to compare."
    )
    if any(" of " in row[1] for row in rows):
        note += " Rows of fewer steps than the recipe has are reduced."
    return table([*header, "diversity", "images a second"], rows) + "\n\n" + note + "\n\n" + source(path, results)


def steps_taken(row: dict[str, Any]) -> str:
    """Steps of the images, and of how many where the run was shorter than the recipe."""
    usual = recipes.get(row["recipe"]).optimisation.steps
    return f"{row['steps']} of {usual}" if row["steps"] < usual else str(row["steps"])


def imagenet(path: Path) -> str:
    results = load_json(path)
    (row,) = results["rows"]
    judges = [
        [name, number(100 * j["top1"], 0, " %"), number(100 * j["top5"], 0, " %")] for name, j in row["judges"].items()
    ]
    header = [f"{row['images']} images out of EfficientNet-Lite0, 224²: recognised by", "top-1", "top-5"]
    note = f"{row['images_per_second']:.2f} images a second: {row['note']}. "
    note += f"At that time the example had {len(row['classes'])} classes."
    if row.get("shown"):
        each, classes = row["images"] // len(row["classes"]), len(row["classes"])
        note = f"{each} images of each of {classes} classes (`--per-class {each} --seed {row['seed']} --save`). "
        note += "The images in the picture were chosen by eye."
    note += " EfficientNet-Lite1 was seen when the recipe was chosen."
    return table(header, judges) + "\n\n" + note + "\n\n" + source(path, results)


def students(path: Path) -> str:
    results = load_json(path)
    rows = [
        [row["cell"].removeprefix("student/"), *([number(row["paper"], 2, " %")] if row["paper"] is not None else []),
         number(row["ours"], 2, " %"), str(row["images"]), number(row["seconds"] / 60, 1, " min")]
        for row in results["rows"] if row["cell"].startswith("student/")
    ]  # fmt: skip
    notes = {row["note"] for row in results["rows"] if row["cell"].startswith("student/")}
    tested = next(row for row in results["rows"] if row["cell"].startswith("network/"))
    first = next(row for row in results["rows"] if "student" in row)
    compared = any(row["paper"] is not None for row in results["rows"])
    header = [f"a fresh {NETWORKS[first['student']]} taught by {NETWORKS[first['teacher']]} without any real image ¹⁰"]
    header += ["Yin 2020, Table 1"] * compared + ["accuracy", "images", "time"]
    theirs = f" (the paper's {YIN_TEACHERS[first['teacher']]} %)" if first["teacher"] in YIN_TEACHERS else ""
    reduced = "Reduced: " * any(row["reduced"] for row in results["rows"])
    ours = (
        "The first row is the paper's Noise (L). The other rows use our recipe: without statistics, with "
        "statistics, and with statistics and competition. Students learn with mixup, τ = 8 and a cosine schedule. "
        "Mixup, τ and the rate of ResNet-20 were chosen on 2000 of the test images. "
    )
    config = first["config"].get("training", first["config"])  # without groups in earlier files
    ours = f"A step has {config['batch_size']} images, the paper's 256. Rate {config['lr']}. {ours}"
    published = "Recipes and schedule are the paper's, shortened to the steps named here. "
    recipes = published if first.get("published") else ours
    note = f"¹⁰ {reduced}{'; '.join(sorted(notes))}. {recipes}Teacher {tested['ours']:.2f} % {tested['note']}{theirs}."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def judged_quality(path: Path) -> str:
    """Time and agreement of the published-style loop and of ours."""
    results = load_json(path)
    summary = results["rows"][0]
    weight = summary["published_recipe"]["bn"]
    sides = {"published": f"the published loop with weight {weight:g} of the statistics", "ours": "ours"}
    rows = []
    for side, name in sides.items():
        steps = " + ".join(map(str, summary[f"{side}_steps"]))
        faster = "1" if side == "published" else f"{summary['faster']:.0f}×"
        found = [number(share, 1, " %") for share in summary["agreement"][side].values()]
        # Not the time on the clock: the machine had other work, too.
        rows.append([f"{name}, {steps} steps", number(summary[f"{side}_seconds"], 1, " s"), faster, *found])
    judges = [name + ("" if name in summary["unseen"] else " ᵃ") for name in summary["agreement"]["ours"]]
    seeds = f"{len(summary['seeds'])} seeds" if len(summary["seeds"]) > 1 else "one seed"
    header = [f"{summary['images']} images of {summary['size']}², {seeds}", "CPU time", "speed-up", *judges]
    real = ", ".join(f"{name} {share:.1f} %" for name, share in summary["accuracy_of_judges"].items())
    note = "ᵃ Seen when settings were chosen." + (
        f" Accuracy of the judges on real test images: {real}." if real else ""
    )
    sampled = [steps for steps in summary["sampled_steps"] if steps is not None]
    if sampled:
        note += (
            f" The published loop was timed over five times {sampled[0]} steps of each image size, and the times were"
            " multiplied by its number of steps. Our engine made its images, with the same loss in float32."
        )
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def judged_headline(path: Path) -> str:
    """The same in sentences, from the seeds that took part in no choice."""
    summary, *rows = clean(path)["rows"]
    rows = [row for row in rows if row["seed"] not in CHOSEN_SEEDS]
    judges = " and ".join(summary["unseen"])
    (steps,), (published_steps,) = summary["ours_steps"], summary["published_steps"]
    seconds = {side: statistics.fmean(row[f"{side}_seconds"] for row in rows) for side in ("ours", "published")}
    judged = {
        side: statistics.fmean(row["agreement"][side][judge] for row in rows for judge in summary["unseen"])
        for side in seconds
    }
    a_step = (seconds["published"] / published_steps) / (seconds["ours"] / steps)
    return fill(
        f"**{summary['images']} CIFAR-10 images out of ResNet-20 in {seconds['ours']:.1f} CPU seconds of one core**, "
        f"{seconds['published'] / seconds['ours']:.0f} times faster than "
        f"[our plain-PyTorch copy](benches/inversion_contenders.py) of the published loop "
        f"({seconds['published']:.0f} s). The loop's weight of the statistics is "
        f"{summary['published_recipe']['bn']:g}, the smallest that the paper tries. Our recipe, `{QUICK}`, takes "
        f"{published_steps / steps:.0f} times fewer steps. A step takes {a_step:.1f} times "
        f"less time, in {summary['precision']} instead of the loop's float32. The judges are "
        f"{judges}, which no choice of settings has seen. They recognise {judged['ours']:.0f} % of our images and "
        f"{judged['published']:.0f} % of the loop's (means of {len(rows)} seeds; "
        "[details](docs/deep_inversion.md#images-of-judged-quality)).",
        width=120,
        break_on_hyphens=False,
    )
