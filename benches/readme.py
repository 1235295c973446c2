"""Writes the tables of README.md and docs/ from the JSON files under benches/results/: figures are never typed by hand.

python benches/readme.py            # rewrites the tables
python benches/readme.py --check    # exits with 1 if a file is not what this command would write
python benches/readme.py --pictures # draws the curves in docs/ anew
"""

from __future__ import annotations

import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import cluster_cost

from exml_fast.continual import METHODS
from exml_fast.data import SOURCES
from exml_fast.report.charts import save_curves
from exml_fast.reproduction.preset import shortened, shorter
from exml_fast.reproduction.published import published
from exml_fast.reproduction.runner import load_preset
from exml_fast.reproduction.study_settings import SCENARIOS
from exml_fast.storage import atomic_path, load_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "results"
CHANGED = "+changes"
"""Ends the commit of results that were measured in a tree with changes."""


NETWORKS = {
    "cifar_resnet": "ResNet-20", "vgg11_bn_cifar": "VGG-11-BN", "resnet18_cifar": "ResNet-18",
    "resnet34_cifar": "ResNet-34",
}  # fmt: skip


# Of Yin 2020, Table 1: teachers' accuracy in %, and pairs of teacher and student.
YIN_TEACHERS = {"vgg11_bn_cifar": 92.34, "resnet34_cifar": 95.42}
PAIRS = ("vgg11_bn-vgg11_bn", "vgg11_bn-resnet18", "resnet34-resnet18")


@dataclass(frozen=True)
class Headline:
    """A row of the table of headlines."""

    what: str
    file: str
    cell: str
    """Of our figure."""
    published: str | None
    """The paper's figure: a cell of the same file, or the best method of Carta 2022 in a scenario, as "mnist/NC"."""
    teacher: str
    """Cell of the teacher's accuracy, or of the experts' ensemble."""
    page: str
    known: str = "–"
    """What was known of the domain, besides the networks."""
    tested: bool = False
    """Whether settings were chosen with these test images, too."""
    chosen: int = 1
    """Number of seeds that took part in a choice: the first of each file. They are left out."""


HEADLINES = [
    Headline("LeNet-5 → half a LeNet-5, MNIST", "nayak2021-table1", "ZSKD", "ZSKD", "Teacher-CE", "transfer"),
    Headline("the same, Fashion-MNIST", "nayak2021-table2", "ZSKD", "ZSKD", "Teacher-CE", "transfer",
             "natural spectrum"),
    Headline("AlexNet → half an AlexNet, CIFAR-10", "calibrated-cifar10-zskd", "ZSKD", "ZSKD", "Teacher-CE", "transfer",
             "natural spectrum", tested=True),
    Headline("MNIST network adapted to USPS", "nayak2021-table5-mnist-usps", "Rehearsal/Avg", "Ours/Avg",
             "Baseline/Avg", "transfer", "unlabelled USPS images", tested=True),
    Headline("USPS network adapted to MNIST", "nayak2021-table5-usps-mnist", "Rehearsal/Avg", "Ours/Avg",
             "Baseline/Avg", "transfer", "unlabelled MNIST images", tested=True),
    Headline("a robust LeNet-5 → half a LeNet-5, under PGD at 0.3", "nayak2021-table4-mnist",
             "robust Student under attack/pgd A_adv", "robust Student/pgd A_adv", "robust Teacher/pgd A_adv",
             "transfer"),
    Headline("five experts of two classes each, MNIST", "calibrated-mnist-nc-inverted", "MNIST/NC/Inverted Strokes ED",
             "mnist/NC", "MNIST/NC/Ensemble Avg.", "ex_model", "pen drawings", tested=True),
    Headline("the same, experts with BatchNorm", "calibrated-mnist-nc-bn-inverted", "MNIST/NC/Inverted Strokes ED",
             None, "MNIST/NC/Ensemble Avg.", "ex_model", "pen drawings", tested=True),
]  # fmt: skip
# What each op computes, and where it comes from.
OPS = {
    "bn_match": ("distance between an activation's channel statistics and given statistics",
                 "Yin 2020, Eq. 4; Carta 2022, 4.1; Ye 2022, Eq. 7"),
    "frozen_bn_act": ("normalisation, residual, activation, and the input's channel statistics, in one pass",
                      "Yin 2020, Eq. 4"),
    "match_statistics": ("the distances of all layers' statistics in one launch", "as `bn_match`"),
    "image_prior": ("total variation, blur residual and l2 norm of images", "Yin 2020, Eq. 3; Carta 2022, 4.1"),
    "soft_cross_entropy": ("temperature-softened cross-entropy with indices or soft targets", "Nayak 2021, Eq. 2"),
    "jensen_shannon": ("competition of student and teacher: one minus their Jensen–Shannon divergence",
                       "Yin 2020, Eq. 8"),
    "dirichlet_targets": ("Dirichlet draws from class similarities, exact for concentrations of 0.01 and less",
                          "Nayak 2021, Alg. 1"),
    "jitter_flip": ("shift, flip, cast and change of memory format", "Yin 2020, B.1"),
    "adam_clip_": ("one step of Adam on the images and the clip to their range, in place", "Yin 2020, Eq. 16"),
    "lane_conv2d": ("convolution of few channels, one image in each lane of a vector (CPU)", "ours"),
    "winograd_conv2d": ("3×3 convolution by F(4×4, 3×3), weights transformed once (CPU)", "Lavin 2016"),
    "frozen_conv2d": ("convolution with constant, prepared weights; saves no activation", "ours"),
    "average_pool2d": ("means of windows that do not overlap, in channels_last (CPU)", "`torch.nn.AvgPool2d`"),
}  # fmt: skip


def distillation_steps(settings: dict[str, Any]) -> int:
    """Steps for each expert; earlier files call them iterations."""
    found = settings["distillation"]
    return int(found["steps"] if "steps" in found else found["iterations"])


# Rows of the README, and a name that needs no row before it.
FULL_NAME = "five experts of two classes each, with BatchNorm, MNIST"
FIVE = (
    "LeNet-5 → half a LeNet-5, MNIST",
    "AlexNet → half an AlexNet, CIFAR-10",
    "USPS network adapted to MNIST",
    "five experts of two classes each, MNIST",
    "the same, experts with BatchNorm",
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source(path: Path, results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    commit = results["commit"].replace(CHANGED, ", with changes")
    return (
        f"`{results['command']}` at commit {commit} on {where}, torch {machine['torch']} "
        f"([{path.name}](benches/results/{path.name}))."
    )


def clean(path: Path) -> dict[str, Any]:
    """Results for a headline; ValueError if the tree had changes when they were measured."""
    results = load_json(path)
    if results["commit"].endswith(CHANGED):
        raise ValueError(f"{path.name} cannot be a headline: it was measured at {results['commit']}")
    return results


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def reached(row: dict[str, Any], digits: int = 1) -> str:
    """Mean and deviation over the seeds."""
    return number(row["ours"], digits) + ("" if row["std"] is None else f" ± {row['std']:.{digits}f}")


def best_of_carta(scenario: str) -> tuple[str, float]:
    """Name and accuracy of the best method of Carta 2022 without the experts' data in a scenario, as "mnist/NC"."""
    data, _, short = scenario.partition("/")
    found = published(data, next(name for name, shown in SCENARIOS.items() if shown == short))
    assert found is not None
    methods = {name: value for name, value in found.paper.items() if name.startswith(("Model", "Data", "Auxiliary"))}
    best = max(methods, key=lambda name: methods[name])
    return best, methods[best]


def headline(row: Headline, folder: Path) -> list[str]:
    """Our figure, of the seeds that took part in no choice, beside the paper's."""
    found = {cell["cell"]: cell for cell in clean(folder / f"{row.file}.json")["rows"]}
    ours, teacher = found[row.cell], found[row.teacher]
    values = ours["values"][row.chosen :]
    if len(values) < 2:
        raise ValueError(f"{row.what} cannot be a headline: {len(values)} of its seeds took part in no choice")
    paper = None
    if row.published is not None:
        paper = found[row.published]["paper"] if row.published in found else best_of_carta(row.published)[1]
    signs = " †" * ours["reduced"] + " ‡" * row.tested
    accuracies = f"{number(teacher['paper'] if row.published else None)} / {number(teacher['ours'])}"
    mean = f"**{statistics.mean(values):.1f}** ± {statistics.stdev(values):.1f}{signs}"
    return [row.what, row.known, number(paper), mean, str(len(values)), accuracies, f"[{row.page}]({row.page}.md)"]


def headlines(folder: Path) -> str:
    """Our figures beside the published ones; all of :data:`HEADLINES`."""
    header = ["trained without the teachers' data: accuracy in %", "known of the domain", "published ᵃ", "ours"]
    header += ["seeds ᵇ", "teacher, published / ours ᶜ", "page"]
    notes = (
        "ᵃ The paper's best figure for the same knowledge, images of other data sets included. Carta 2022 has no "
        "experts with BatchNorm on MNIST. Nayak 2021 does not give the bound of the robust student.\n"
        "ᵇ Seed 0 took part in choices of settings and is left out. The pages have all seeds, and rows of one seed.\n"
        "ᶜ Of the adapted networks: before adaptation. Of five experts: the average of all of their outputs, where "
        "they may be kept. Where ours is better than the paper's, so may be what is learned from it.\n"
        "† The run was shorter than published, or than our preset.\n"
        "‡ Some settings were chosen with these test images, on seed 0 or before; the page says which. Most rows use a "
        "method of ours."
    )
    return table(header, [headline(row, folder) for row in HEADLINES]) + "\n\n" + notes


def five_headlines(folder: Path) -> str:
    """The rows :data:`FIVE` of :func:`headlines`, with the names of their tasks in full."""
    lines = headlines(folder).splitlines()
    chosen = [next(line for line in lines if line.startswith(f"| {what} |")) for what in FIVE]
    shown = [line.replace("| the same, experts with BatchNorm |", f"| {FULL_NAME} |") for line in chosen]
    text = "\n".join([*lines[:2], *shown]).replace("](", "](docs/")
    notes = (
        "† Shorter than published. ‡ Some settings were chosen with these test images. "
        "All signs, and reservations: [results](docs/results.md#all-headlines)."
    )
    return f"{text}\n\n{notes}"


def demo(path: Path) -> str:
    """The demo's run of seed 0; with runs of further seeds beside it, the accuracy of each and their mean."""
    files = [path, *sorted(path.parent.glob(f"{path.stem}-seed-*.json"))]
    results, *more = [load_json(file) for file in files]
    rows = []
    for row in results["rows"]:
        others = [next(other["ours"] for other in run["rows"] if other["cell"] == row["cell"]) for run in more]
        accuracies = [row["ours"], *others, *([statistics.mean([row["ours"], *others])] if more else [])]
        shown = [number(value, 1, " %") for value in accuracies]
        rows.append([row["name"], *shown, number(row["seconds"], 0, " s"), number(row["peak_mb"], 0, " MB")])
    seeds = [f"seed {run['settings']['seed']}" for run in (results, *more)]
    header = ["scikit-learn's digits: accuracy", *seeds, "mean"] if more else ["scikit-learn's digits", "accuracy"]
    note = ["Time and memory are those of seed 0."] if more else []
    sources = [source(file, run) for file, run in zip(files, (results, *more), strict=True)]
    return "\n\n".join([table([*header, "time", "peak memory"], rows), *note, *sources])


def carta(path: Path) -> str:
    results = load_json(path)
    settings, rows = results["settings"], []
    for row in results["rows"]:
        ours = reached(row) + (" ¹" if row["reduced"] else "")
        rows.append([row["cell"].split("/", 2)[-1], number(row["paper"]), ours, number(row["seconds"] / 60, 1, " min")])
    shorter = f"\n\n¹ {distillation_steps(settings)} distillation steps for each expert; the paper takes 30,000."
    what = "five experts of two classes each" if settings["scenario"] == "new-classes" else "one expert of ten classes"
    header = [f"MNIST, {what}: accuracy in %", "Carta 2022, Table 2", f"ours, {settings['seeds']} seeds", "time"]
    footnote = shorter if any(row["reduced"] for row in results["rows"]) else ""
    return table(header, rows) + footnote + "\n\n" + source(path, results)


def calibrated(path: Path) -> str:
    """Methods first; studies of the same experts share the baselines."""
    results = load_json(path)
    found = {row["cell"]: row for row in results["rows"]}
    rows = []
    for row in sorted(found.values(), key=lambda row: row["kind"] != "strategy"):
        ours = row["kind"] == "strategy"
        known = SOURCES[METHODS[row["slug"]].source or ""].domain if ours else "–"
        name = row["cell"].split("/", 2)[-1] + (" ¹¹" if ours else "")
        rows.append([name, known, reached(row), number(row["seconds"] / 60, 1, " min")])
    batch_norm = any(values["arguments"].get("batch_norm") for values in results["details"].values())
    experts = "LeNet-5 with BatchNorm" if batch_norm else "LeNet-5"
    header = [f"MNIST, five {experts} of two classes each: accuracy in %", "knowledge of the domain"]
    seeds = f"{results['rows'][0]['seeds']} seeds"
    shares = {
        (METHODS["inverted-strokes"].settings | values["random_images"])["background_share"]
        for values in results["details"].values()
        if any(METHODS[name].inverts_source for name in values["strategies"])
    }
    inverted = "".join(f", {1 - share:.0%} of them inverted from the experts" for share in sorted(shares))
    views = max(values.get("random_images", {}).get("views", 1) for values in results["details"].values())
    forms = f", each in {views} views" if views > 1 else ""
    images = f"5000 in the buffer{forms}{inverted}"
    published = f"the best method of Carta 2022 without the experts' data reaches {best_of_carta('mnist/NC')[1]:.1f} %"
    note = f"¹¹ Calibrated responses to random images, {images}; {published}. "
    note += "Some settings were chosen with these test digits ([which](lab_notes.md#what-each-part-contributes))."
    return table([*header, seeds, "time"], rows) + "\n\n" + note + "\n\n" + source(path, results)


def cifar10(path: Path) -> str:
    """Our methods first, in every scenario; with what was shorter than published."""
    results = load_json(path)
    rows, notes = [], []
    for row in sorted(results["rows"], key=lambda row: row["kind"] != "strategy"):
        rows.append([row["cell"].split("/", 1)[1], number(row["paper"]), reached(row)])
        rows[-1].append(number(row["seconds"] / 60, 1, " min"))
        if row["kind"] == "strategy":
            scenario = row["cell"].split("/")[1]
            best, accuracy = best_of_carta(f"cifar10/{scenario}")
            notes.append(f"{scenario}: {row['note']}. The paper's best method here is {best} ({accuracy:.1f} %).")
    seeds = results["rows"][0]["seeds"]
    scenarios = {row["cell"].split("/")[1] for row in results["rows"]}
    experts = ", one slim ResNet-18 of ten classes" if scenarios == {"Joint"} else ""
    header = [f"CIFAR-10{experts}, reduced: accuracy in %", "Carta 2022, Table 2"]
    header += ["one seed" if seeds == 1 else f"{seeds} seeds", "time"]
    return table(header, rows) + "\n\n" + " ".join(dict.fromkeys(notes)) + "\n\n" + source(path, results)


def rates(path: Path) -> str:
    """Experts trained as the text of Carta 2022, App. A says, beside those of its table (docs/results.md)."""
    by_table, by_text = load_json(path.with_name("carta2022-table2-mnist-nc.json")), load_json(path)
    theirs = {row["cell"]: row for row in by_table["rows"]}
    (settings,) = by_text["details"].values()
    rows = [
        [row["cell"].split("/", 2)[-1], number(row["paper"])] + [reached(found) for found in (theirs[row["cell"]], row)]
        for row in by_text["rows"]
    ]
    paper = published("mnist", "new-classes")
    assert paper is not None
    usual = paper.epochs
    trained = [f"experts at {s['expert_lr']}, {s['epochs'] or usual} epochs" for s in (by_table["settings"], settings)]
    length = (by_text["rows"][0]["seeds"], distillation_steps(settings))
    shown = (by_table["settings"]["seeds"], distillation_steps(by_table["settings"]))
    if length != shown:
        raise ValueError(f"{path.name}: seeds and steps are {length}, those of the table in docs/results.md {shown}")
    note = f"{length[0]} seeds; {length[1]} distillation steps for each expert."
    header = ["MNIST NC: accuracy in %", "Carta 2022, Table 2", *trained]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, by_text)


def strategies(path: Path) -> str:
    """Strategies that are not in docs/results.md, beside those that are, on the same experts."""
    shown, others = load_json(path.with_name("carta2022-table2-mnist-nc.json")), load_json(path)
    settings = [shown["settings"], *others["details"].values()]
    steps = {distillation_steps(each) for each in settings}
    found = [row for results in (shown, others) for row in results["rows"] if row["kind"] == "strategy"]
    seeds = {row["seeds"] for row in found}
    oracles = [row["ours"] for results in (shown, others) for row in results["rows"] if row["name"] == "Oracle"]
    if len(steps) > 1 or len(seeds) > 1 or abs(oracles[0] - oracles[1]) > 0.05:
        raise ValueError(
            f"{path.name}: steps {steps}, seeds {seeds} and oracles {oracles} differ from the table in docs/results.md"
        )
    rows = [[row["cell"].split("/", 2)[-1], number(row["paper"]), reached(row)] for row in found]
    note = f"{seeds.pop()} seeds; {steps.pop()} distillation steps for each expert, the paper takes 30,000."
    header = ["MNIST NC: accuracy in %", "Carta 2022, Table 2", "ours"]
    note += " The first three rows come from [results.md](results.md), the others from the command below."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, others)


def buffer_sizes(path: Path) -> str:
    """Strategies by the buffer's size."""
    results = load_json(path)
    found: dict[str, dict[int, float]] = {}
    for row in results["rows"]:
        if row["kind"] == "strategy":
            found.setdefault(row["name"], {})[row["buffer_size"]] = row["ours"]
    sizes = sorted({size for ours in found.values() for size in ours})
    rows = [[name, *(number(ours[size]) for size in sizes)] for name, ours in found.items()]
    note = next(row["note"] for row in results["rows"] if row["kind"] == "strategy")
    seeds = results["rows"][0]["seeds"]
    header = ["MNIST NC: accuracy in %, by images in the buffer", *map(str, sizes)]
    return table(header, rows) + f"\n\n{seeds} seed{'s' if seeds > 1 else ''}; {note}. " + source(path, results)


def merging(path: Path) -> str:
    """Baselines that merge weights: accuracy on all classes, and among those of the task, by source of images."""
    results = load_json(path)
    found = {(row["name"], row["images"]): row for row in results["rows"]}
    sources = [source for source in dict.fromkeys(images for _, images in found) if source]

    def cell(row: dict[str, Any] | None) -> str:
        return "–" if row is None else f"{number(row['accuracy'])} / {number(row.get('task_accuracy'))}"

    rows = [
        [name, *([cell(found[name, ""])] * len(sources) if (name, "") in found else
                 [cell(found.get((name, source))) for source in sources])]
        for name in dict.fromkeys(name for name, _ in found)
    ]  # fmt: skip
    network = path.stem.removeprefix("merging-").replace("-batch-norm", ", LeNet-5 with BatchNorm")
    header = [f"{network}: class- / task-incremental accuracy in %", *(f"images: {source}" for source in sources)]
    note = f"{results['rows'][0]['seeds']} seeds; five experts of two classes each, which start from common weights."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def calibration(path: Path) -> str:
    """Ensembles by source; ex-models below."""
    results = load_json(path)
    name = path.stem.removeprefix("calibration-")
    sources = [s for s in dict.fromkeys(row["source"] for row in results["rows"]) if s in SOURCES]
    text = []
    for kind, title in (("ensemble", "ensemble of the experts' own logits"), ("ex-model", "ex-model, few steps")):
        found = {(row["what"], row["source"]): row["accuracy"] for row in results["rows"] if row["kind"] == kind}
        if not found:
            continue
        rows = []
        for what in dict.fromkeys(what for what, _ in found):
            single = [value for (w, source), value in found.items() if w == what and source not in sources]
            rows.append([what, *(number(v) for v in (single * 3 if single else [found[what, s] for s in sources]))])
        text.append(table([f"{name}, {title}: accuracy in %", *sources], rows))
    return "\n\n".join([*text, source(path, results)])


def agreement(path: Path) -> str:
    results = load_json(path)
    rows = [
        [row["cell"].partition("/")[2], str(row["steps"]),
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
    return table([*header, "diversity", "images a second"], rows) + "\n\n" + note + "\n\n" + source(path, results)


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
    published = any(row["paper"] is not None for row in results["rows"])
    header = [f"a fresh {NETWORKS[first['student']]} taught by {NETWORKS[first['teacher']]} without any real image ¹⁰"]
    header += ["Yin 2020, Table 1"] * published + ["accuracy", "images", "time"]
    theirs = f" (the paper's {YIN_TEACHERS[first['teacher']]} %)" if first["teacher"] in YIN_TEACHERS else ""
    reduced = "Reduced: " * any(row["reduced"] for row in results["rows"])
    ours = (
        "The first row is the paper's Noise (L). The other rows use our recipe: without statistics, with "
        "statistics, and with statistics and competition. Students learn with mixup, τ = 8 and a cosine schedule. "
        "Mixup, τ and learning rates were chosen on 2000 of the test images with ResNet-20. "
    )
    recipes = "Recipes and schedule are the paper's. " if first.get("published") else ours
    note = f"¹⁰ {reduced}{'; '.join(sorted(notes))}. {recipes}Teacher {tested['ours']:.2f} % {tested['note']}{theirs}."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def over_pytorch(row: dict[str, Any]) -> float | None:
    """How many times as fast as plain PyTorch an op was."""
    names = ("published", "pytorch", "torch.optim", "torch.distributions")
    return next((row["times_faster"][name] for name in names if name in row["times_faster"]), None)


def over_best(row: dict[str, Any]) -> float | None:
    """How many times as fast as torch.compile an op was, or as eager PyTorch where compiling gains nothing."""
    return min(row["times_faster"].values()) if "compiled" in row["times_faster"] else None


def case_of(row: dict[str, Any]) -> str:
    size = " × ".join(map(str, row["shape"])) if "shape" in row else f"{row['layers']} layers"
    what = [size, *(row[key] for key in ("layer", "activation", "memory_format", "target") if key in row)]
    dtype = row.get("to", row["dtype"])
    return ", ".join([*what, *([dtype] if dtype != "float32" else [])])


def ops(path: Path) -> str:
    """Medians over the cases of each op (shapes, memory formats and dtypes), and the worst case."""

    def summary(own: list[dict[str, Any]], over: Callable[[dict[str, Any]], float | None]) -> list[str]:
        known = {case_of(row): value for row in own if (value := over(row)) is not None}
        if not known:
            return ["–", "–"]
        worst = min(known, key=lambda case: known[case])
        return [f"{statistics.median(known.values()):.1f}×", f"{known[worst]:.1f}×: {worst}"]

    results, rows = load_json(path), []
    for name, (computes, origin) in OPS.items():
        own = [row for row in results["rows"] if row["op"] == name]
        rows.append([f"`{name}`", computes, origin, *summary(own, over_pytorch), *summary(own, over_best)])
    header = ["op", "computes", "source", "over PyTorch: median", "worst case", "over the best ¹: median", "worst case"]
    lines = table(header, rows).replace("| --- | ---: | ---: |", "| --- | --- | --- |", 1)
    note = "¹ torch.compile, or eager PyTorch where that is faster: there compiling only copies it."
    return lines + "\n\n" + note + "\n\n" + source(path, results)


def all_ops(path: Path) -> str:
    results = load_json(path)
    rows = []
    for row in results["rows"]:
        others = row["times_faster"]
        memory = row.get("peak_mb")
        rows.append(
            [
                f"`{row['op']}` {case_of(row)}",
                number(row["ms"]["exml_fast"]["median"], 2, " ms"),
                number(over_pytorch(row), 1, "×"),
                number(others.get("var_mean"), 1, "×"),
                number(others.get("compiled"), 1, "×"),
                "–" if memory is None else f"{memory['exml_fast']:.1f} / {max(memory.values()):.1f} MB",
            ]
        )
    header = ["forward + backward", "time", "speed-up over PyTorch ²", "over `var_mean`", "over torch.compile"]
    notes = (
        "² `bn_match`, `frozen_bn_act`, `match_statistics`: the published hook's formula; `image_prior`, "
        "`soft_cross_entropy`, `jensen_shannon`: the eager formula; `lane_conv2d`, `winograd_conv2d`, "
        "`frozen_conv2d`: torch's convolution; `average_pool2d`: torch's pooling; `jitter_flip`: torch.roll and flip; "
        "`adam_clip_` (one step): torch.optim.Adam and the clip; "
        "`dirichlet_targets` (one draw): torch.distributions.\n"
        "³ Of the op / of the contender that needs most."
    )
    return table([*header, "peak memory ³"], rows) + "\n\n" + notes + "\n\n" + source(path, results)


def fastest(path: Path) -> str:
    """Each network in its faster dtype; docs/results.md has both."""
    best: dict[str, dict[str, Any]] = {}
    for row in steps_of(clean(path)):
        other = best.get(row["teacher"])
        if other is None or row["engine_ms"] < other["engine_ms"]:
            best[row["teacher"]] = row
    return inversion(path, list(best.values()))


def steps_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with a step of the engine; those that say which option of torch.compile was fastest have none.

    Earlier files have the bare network in the dtype of each row, where later ones have it in the faster dtype.
    """
    rows = [row for row in results["rows"] if row.get("engine_ms") is not None]
    for row in rows:
        if "floor_ms" in row:
            both = {other["dtype"]: other["floor_ms"] for other in rows if other["teacher"] == row["teacher"]}
            row["bare"] = min(both, key=lambda dtype: both[dtype])
            row["bare_ms"] = both[row["bare"]]
            times = row["alternatives_ms"]
            row["alternative"] = min(times, key=lambda name: times[name]) if times else None
    return rows


def step_name(row: dict[str, Any]) -> str:
    return f"{row['teacher']} {row['size']}², batch {row['batch']}, {row['dtype']}"


def inversion(path: Path, shown: Sequence[dict[str, Any]] | None = None) -> str:
    results = load_json(path)
    steps = steps_of(results)
    bounds_path = path.with_name(path.name.replace("inversion", "roofline"))
    bounds = load_json(bounds_path) if bounds_path.exists() else {"rows": []}
    ideal = {(row["teacher"], row["batch"], row["dtype"]): row for row in bounds["rows"]}
    rows = []
    for row in steps if shown is None else shown:
        engine, setup = row["engine_ms"], row["setup_s"]
        low, high = row["spread"]["engine"]
        faster = {
            kind: None if row[f"{kind}_ms"] is None else row[f"{kind}_ms"] / engine
            for kind in ("reference", "alternative")
        }
        bound = ideal.get((row["teacher"], row["batch"], row["dtype"]), {})
        rows.append(
            [
                step_name(row),
                f"{engine:.1f} ms ({low:.1f} to {high:.1f})",
                number(faster["reference"], 2, "×"),
                number(faster["alternative"], 2, "×") + (f" ({row['alternative']})" if row["alternative"] else ""),
                f"{engine / row['bare_ms']:.2f}× ({row['bare']})",
                f"{number(bound.get('ideal_ms'))} / {number(bound.get('convolutions_ms'))} ms",
                " / ".join(number(row[f"{kind}_peak_mb"], 0) for kind in ("engine", "alternative", "reference"))
                + " MB",
                f"{number(setup['engine'], 1)} / {number(setup.get('alternative'), 0)} s",
            ]
        )
    header = ["one step", "time (quartiles)", "over published ⁴", "over torch.compile ⁵", "time / bare network ⁶"]
    header += ["bounds ⁷", "peak memory ⁸", "set-up ⁹"]
    same = all("plain_ms" in row for row in steps)
    reuse = "All contenders run in the engine's reused memory" if same else (
        "Ours and the bare network run in the engine's reused memory, the other two with the C library's allocation"
    )  # fmt: skip
    sources = [source(path, results)] + ([source(bounds_path, bounds)] if bounds["rows"] else [])
    notes = [
        f"{reuse}. Medians of {steps[0]['rounds']} interleaved rounds.",
        "⁴ Published style: hooks, weight gradients, "
        + ("float16 autocast." if results["machine"]["gpu"] else "float32."),
        "⁵ The same loss, compiled with the network frozen, under the fastest of the options that were tried: "
        + ("float32, cast weights and autocast, then max-autotune, and that with freezing." if same else "dtypes."),
        "⁶ Forward and input gradient of the network alone in eager PyTorch, BatchNorm folded, in the faster dtype.",
        "⁷ What the machine could do at best (`benches/roofline.py`): direct convolutions at the speed of a large "
        "matrix product, and each activation moved once / the convolutions alone, each measured with its fastest "
        "algorithm.",
        "⁸ Without weights and images: ours / torch.compile / published.",
        "⁹ Before the first step: ours / torch.compile.",
    ]
    parts = [table(header, rows), "\n".join(notes), *sources]
    return "\n\n".join([*parts, reuse_alone(steps)] if same and shown is None else parts)


def reuse_alone(steps: Sequence[dict[str, Any]]) -> str:
    """Time and memory of each contender with the C library's allocation, over those in reused memory."""
    kinds = {"engine": "ours", "alternative": "torch.compile", "bare": "bare network", "reference": "published"}
    rows = []
    for row in steps:
        plain, peaks = row["plain_ms"], row["plain_peak_mb"]
        ratios = [number(plain[kind] / row[f"{kind}_ms"], 2, "×") if kind in plain else "–" for kind in kinds]
        over = number(plain["alternative"] / plain["engine"], 2, "×") if "alternative" in plain else "–"
        memory = " / ".join(number(peaks.get(kind), 0) for kind in ("engine", "alternative", "reference")) + " MB"
        rows.append([step_name(row), *ratios, over, memory])
    header = ["the C library's allocation: time over that in reused memory", *kinds.values()]
    return table([*header, "then ours over torch.compile", "then peak memory ⁸"], rows)


def precision(path: Path) -> str:
    def spread(value: float | None, digits: int) -> str:
        return "" if value is None else f" ± {value:.{digits}f}"

    results, asked = load_json(path), {"teacher": 1, "judge": 1, "objective": 2}
    rows = [
        [
            f"{row['network']}, {row['images']} images, {row['steps']} steps, {row['precision']}",
            *(f"{row[key]:.{digits}f}" + spread(row[f"{key}_std"], digits) for key, digits in asked.items()),
            number(row["seconds"], 0, " s"),
        ]
        for row in results["rows"]
    ]
    others = " and ".join(dict.fromkeys(row["asked"] for row in results["rows"]))
    fewest = min(row["images"] for row in results["rows"])
    note = f"With {fewest} images, one image is {100 / fewest:.0f} points: such rows cannot tell the dtypes apart."
    header = [
        f"{results['rows'][0]['seeds']} seeds",
        "recognised by the teacher, in %",
        f"by {others}, in %",
        "objective",
        "time",
    ]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def ex_model(path: Path) -> str:
    results = load_json(path)
    rows = [
        [f"{row['cell']}, {row['asked']}", number(row["published_hours"], 2, " h"), number(row["ours_hours"], 2, " h"),
         number(row["times_faster"], 2, "×")]
        for row in results["rows"]
    ]  # fmt: skip
    first = results["rows"][0]
    steps = first["step_cpu_ms"]
    parts = ", ".join(
        f"{what} {steps[f'published {key}']['median']:.1f} and {steps[f'own {mine}']['median']:.1f} ms"
        for what, key, mine in (
            ("inversion of 256 images", "inversion", f"inversion, {results['rows'][-1]['asked']}"),
            ("distillation from the first expert", "distillation, first expert", "distillation, first expert"),
            ("distillation from later experts", "distillation, later experts", "distillation, later experts"),
        )
    )
    note = (
        f"Computed from the time of single steps, published and ours: {parts}. {first['weights'].capitalize()} weights."
    )
    note += f" Other load: {first['note']}." if first["note"] else ""
    header = ["a whole run, CPU time of one thread", "published style", "ours", "speed-up"]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def impressions(path: Path) -> str:
    """24,000 impressions of 1500 updates. The bench has a loop of its own around the engine's teacher."""
    results, by_hand = load_json(path), "fused teacher, loop of the bench"
    rows = [
        [f"{row['activation']}, {row['loop'].replace('engine', by_hand)}",
         number(row["update_cpu_ms"]["median"], 1, " ms"), number(row["cpu_minutes"], 0, " min"),
         number(row["times_faster"], 1, "×")]
        for row in results["rows"]
    ]  # fmt: skip
    header = ["LeNet-5, CPU time of one thread", "one update of a batch", "24,000 impressions", "speed-up"]
    return table(header, rows) + "\n\n" + source(path, results)


def less_than_usual(path: Path, settings: dict[str, Any]) -> list[str]:
    """What a run had shorter than published, or than its preset."""
    preset = load_preset(path.stem.replace("-", "/", 1))
    return shortened(settings | {"usual": shorter(settings, preset), "published": preset["published"]})


def nayak(path: Path) -> str:
    """Averages and totals; the file has the single classes too."""
    results = load_json(path)
    rows = [
        [row["cell"], number(row["paper"], 2), reached(row, 2)]
        for row in results["rows"]
        if not re.search(r"/C\d+$", row["cell"])
    ]  # fmt: skip
    seeds = results["rows"][0]["seeds"]
    less = less_than_usual(path, results["settings"])
    reduced = f"Reduced: {'; '.join(less)}. " if less else ""
    ours = "ours" if seeds == 1 else f"ours, {seeds} seeds"
    header = [f"{path.stem.removeprefix('nayak2021-')}, in %", "Nayak 2021", ours]
    return table(header, rows) + "\n\n" + reduced + source(path, results)


def time_to_accuracy(path: Path) -> str:
    """Minutes to each mark, and the accuracy of the longest run, by method."""
    results = load_json(path)
    rows = []
    for row in results["rows"]:
        threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
        marks = [name for name in row if re.fullmatch(r"minutes_to_[\d.]+", name)]
        last = f"{reached(row)} after {row['minutes']:.0f}"
        rows.append([row["method"] + threads, row["known"], *(number(row[m]) for m in marks), last, str(row["seeds"])])
    data = path.stem.removeprefix("time-to-accuracy-")
    unit = "minutes of the GPU" if results["machine"]["gpu"] else "core minutes"
    header = [f"{data}: {unit} to", "known of the domain", *(f"{m.split('_')[-1]} %" for m in marks)]
    budgets = {row["method"]: " and ".join(f"{run['budget']:g}" for run in row["runs"]) for row in results["rows"]}
    listed = "; ".join(f"{method}: {minutes}" for method, minutes in budgets.items())
    note = (
        f"The teacher has {results['rows'][0]['teacher']:.1f} %. Times are those of the first evaluation that reaches "
        "the mark, means over the seeds. Each is the shortest over the budgets that were run, because a run's learning "
        f"rate falls to zero at the end of its budget ({listed}). The accuracy is that of the longest budget."
    )
    return (
        table([*header, "accuracy, %, after minutes", "seeds"], rows) + "\n\n" + note + "\n\n" + source(path, results)
    )


def reliability(path: Path) -> str:
    """Cases of each test, and the longest and largest process."""
    results = load_json(path)
    rows = [
        [
            row["test"],
            f"{row['tried']:,}",
            f"{row['failed']:,}",
            number(row["worst_seconds"]),
            number(row["worst_mb"], 0),
        ]
        for row in results["rows"]
    ]
    header = ["test", "tried", "failed", "longest process, s", "most memory over the base, MB"]
    return table(header, rows) + "\n\n" + source(path, results)


def judged_quality(path: Path) -> str:
    """Time and agreement of the published-style loop and of ours."""
    results = load_json(path)
    summary = results["rows"][0]
    sides = {"published": "the published loop", "ours": "ours"}
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
    """The same in a sentence."""
    summary = clean(path)["rows"][0]
    judges = " and ".join(summary["unseen"])
    (steps,), (published_steps,) = summary["ours_steps"], summary["published_steps"]
    ours, published = (f"{summary['judged'][side]:.0f} %" for side in ("ours", "published"))
    return fill(
        f"**{summary['images']} CIFAR-10 images out of ResNet-20 in {summary['ours_seconds']:.1f} s of one core**, "
        f"{summary['faster']:.0f} times faster than the published loop ({summary['published_seconds']:.0f} s). The "
        f"judges are {judges}, which no choice of settings has seen. They recognise {ours} of our images and "
        f"{published} of the loop's. These are means of {len(summary['seeds'])} seeds, for {steps} and "
        f"{published_steps} steps ([details](docs/deep_inversion.md#images-of-judged-quality)).",
        width=120,
        break_on_hyphens=False,
    )


def student(path: Path) -> str:
    """A step of distillation; the same command at an earlier commit gives the column "before"."""
    results = load_json(path)
    cases = [row for row in results["rows"] if "ours" in row]
    earlier = path.with_name(f"{path.stem}-before.json")
    before = load_json(earlier) if earlier.exists() else {"rows": []}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("network", "batch", "threads", "dtype"))

    def over(row: dict[str, Any] | None, name: str) -> float | None:
        return row[name]["step"]["median"] / row["ours"]["step"]["median"] if row and name in row else None

    old = {key(row): row for row in before["rows"] if "ours" in row}
    rows, parts = [], []
    names = list(cases[0]["ours"])
    for row in cases:
        what = f"{row['network']}, {row['batch']} images, {row['dtype']}"
        what += ", two threads" if row["threads"] == 2 else ""
        plain, ours = row["plain"]["step"], row["ours"]["step"]
        spread = f"{ours['median']:.0f} ({ours['low']:.0f} to {ours['high']:.0f})"
        ratios = [over(old.get(key(row)), "plain"), over(row, "plain"), over(row, "alternative")]
        rows.append([what, number(plain["median"], 0), spread, *(number(ratio, 2, "×") for ratio in ratios)])
        if row["threads"] == 1 and row["batch"] == 128:
            for name in ("plain", "ours"):
                parts.append([f"{what}: {name}", *(number(row[name][part]["median"], 1) for part in names)])
    header = [
        "a step of distillation",
        "plain, ms",
        "ours, ms",
        "over plain, before",
        "over plain",
        "over torch.compile",
    ]
    note = "Medians, of ours with quartiles. With one thread, times are CPU time of the process, with two wall time."
    if before["rows"]:
        note += f" *Before* is the same command at commit {before['commit']}."
    shares = [sum(r["ours"][n]["median"] for n in names[:2]) / r["ours"]["step"]["median"] for r in cases]
    low, high = 100 * min(shares), 100 * max(shares)
    note += f" Rows and augmentation take {low:.1f} to {high:.1f} % of our steps: the most that a thread could gain"
    note += " which prepares them in the background."
    texts = [table(header, rows), note, table(["parts of a step, ms", *names], parts)]
    for row in results["rows"]:
        if found := row.get("scaling"):
            one, two, both = (found[f"{name}_ms"] for name in ("one_thread", "two_threads", "two_processes"))
            text = f"{found['network']}, {found['batch']} images, {found['dtype']}: "
            text += f"two threads take {one / two:.2f} times as many steps a second as one; "
            text += f"two processes of one thread side by side take {2 * one / both:.2f} "
            texts.append(text + "times as many.")
    return "\n\n".join([*texts, source(path, results)])


def cluster(make: Callable[[list[dict[str, Any]]], str]) -> Callable[[Path], str]:
    """A table of benches/cluster_cost.py, with its source."""

    def shown(path: Path) -> str:
        results = load_json(path)
        return make(results["rows"]) + "\n\n" + source(path, results)

    return shown


TABLES: dict[str, list[tuple[str, Callable[[Path], str]]]] = {
    "faults": [("cluster.json", cluster(cluster_cost.fault_table))],
    "cost": [("cluster.json", cluster(cluster_cost.cost_table))],
    "limits": [("cluster.json", cluster(cluster_cost.first_limits))],
    "headlines": [("", headlines)],
    "five-headlines": [("", five_headlines)],
    "speed": [("inversion-cuda.json", fastest), ("inversion-cpu.json", fastest)],
    "results": [
        ("demo-digits.json", demo),
        ("carta2022-table2-mnist-nc.json", carta),
        ("calibrated-mnist-nc.json", calibrated),
        ("calibrated-mnist-nc-inverted.json", calibrated),
        ("calibrated-mnist-nc-bn-inverted.json", calibrated),
        ("calibrated-mnist-nc-bn.json", calibrated),
        ("calibrated-mnist-nc-bn-fields.json", calibrated),
        ("carta2022-table2-mnist-joint.json", carta),
        ("calibrated-cifar10-joint.json", cifar10),
    ],
    "images": [
        ("yin2020-efficientnet-lite0-chosen.json", imagenet),
        ("yin2020-efficientnet-lite0.json", imagenet),
        ("yin2020-cifar10-agreement.json", agreement),
        ("yin2020-cifar10-students.json", students),
        *((f"yin2020-table1-{pair}.json", students) for pair in PAIRS),
    ],
    "ablation": [
        ("yin2020-cifar10-ablation.json", agreement),
        ("yin2020-cifar10-students-published.json", students),
    ],
    "judged-quality": [(f"judged-quality-{name}.json", judged_quality) for name in ("cifar10", "efficientnet-lite0")],
    "judged-headline": [("judged-quality-cifar10.json", judged_headline)],
    "inversion": [("inversion-cuda.json", inversion), ("inversion-cpu.json", inversion)],
    "inversion-2-threads": [("inversion-cpu-2-threads.json", inversion)],
    "precision": [("precision-cpu.json", precision)],
    "ops": [("ops-cuda.json", ops), ("ops-cpu.json", ops)],
    "all-ops": [("ops-cuda.json", all_ops), ("ops-cpu.json", all_ops)],
    "ex-model": [("ex-model-cpu.json", ex_model)],
    "impressions": [("impressions-cpu.json", impressions)],
    "student": [("student-cpu.json", student)],
    "strategies": [("carta2022-table2-mnist-nc-replay.json", strategies)],
    "time-to-accuracy": [
        (f"time-to-accuracy-{name}.json", time_to_accuracy)
        for name in ("cifar10", *(f"cifar10-{pair}" for pair in PAIRS), "tiny-imagenet100")
    ],
    "reliability": [("reliability.json", reliability)],
    "buffer-sizes": [("carta2022-figure3-mnist-nc.json", buffer_sizes)],
    "rates": [("carta2022-table2-mnist-nc-lr01.json", rates)],
    "merging": [
        (f"merging-{name}.json", merging) for name in ("digits", "digits-batch-norm", "mnist", "mnist-batch-norm")
    ],
    "cifar10": [(f"calibrated-cifar10-{scenario}.json", cifar10) for scenario in ("joint", "nc", "mt-joint")],
    "calibration": [(f"calibration-{name}.json", calibration) for name in ("mnist-held-out", "usps", "fashion-mnist")],
    "nayak": [
        (f"{name}.json", nayak)
        for name in (
            "nayak2021-table1",
            "nayak2021-table2",
            "calibrated-cifar10-zskd",
            "nayak2021-figure4-mnist",
            "nayak2021-figure4-fashion-mnist",
            "nayak2021-table4-mnist",
            "nayak2021-table5-mnist-usps",
            "nayak2021-table5-usps-mnist",
            "nayak2021-table7-mnist",
            "nayak2021-table7-fashion-mnist",
        )
    ],
}
FILES = {
    "README.md": ["judged-headline", "five-headlines"],
    "docs/scale.md": ["faults", "cost", "limits"],
    "docs/results.md": ["headlines", "results", "images", "inversion"],
    "docs/transfer.md": ["nayak", "impressions", "time-to-accuracy"],
    "docs/ex_model.md": ["strategies", "merging", "ex-model"],
    "docs/lab_notes.md": ["buffer-sizes", "rates", "cifar10", "calibration"],
    "docs/deep_inversion.md": ["judged-quality", "ablation"],
    "docs/training.md": ["student"],
    "docs/reliability.md": ["reliability"],
    "docs/engine.md": ["precision", "inversion-2-threads", "speed", "ops", "all-ops"],
}


def render(file: str, text: str) -> str:
    for name in FILES[file]:
        parts = TABLES[name]
        body = "\n\n".join(make(RESULTS / result) for result, make in parts if (RESULTS / result).exists())
        body = body.replace("](benches/", "](" + "../" * file.count("/") + "benches/")
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, body=body: f"{m[1]}\n{body}\n\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise ValueError(f"{file} must hold the markers of table {name!r} once, found {count}")
    return text


def take_demo(folder: Path) -> None:
    """A demo's results into benches/results/, and the picture of seed 0 into docs/."""
    seed = load_json(folder / "results.json")["settings"]["seed"]
    taken = {"results.json": RESULTS / ("demo-digits.json" if seed == 0 else f"demo-digits-seed-{seed}.json")}
    if seed == 0:
        taken["report/samples.png"] = ROOT / "docs/demo.png"
    for source, target in taken.items():
        with atomic_path(target) as temporary:
            shutil.copyfile(folder / source, temporary)


def draw_curves() -> None:
    """Figure 4 and Table 7 of Nayak 2021, and accuracy against time, from the figures in their files."""
    lines: dict[str, list[tuple[float, float]]]
    for data in ("mnist", "fashion-mnist"):
        lines = {}
        for row in load_json(RESULTS / f"nayak2021-figure4-{data}.json")["rows"]:
            if found := re.fullmatch(r"(.+), (\d+)", row["cell"]):
                lines.setdefault(found[1], []).append((float(found[2]), row["ours"]))
        axes = ("images in the transfer set", "test accuracy, %")
        save_curves(ROOT / f"docs/transfer_sizes_{data}.png", lines, axes, logarithmic=True)
        results, lines = load_json(RESULTS / f"nayak2021-table7-{data}.json"), {}
        usual = results["settings"]["perturbation"]["epsilon"]
        for row in results["rows"]:
            name, _, bound = row["cell"].partition(" at ε = ")
            if name != "Accuracy":
                lines.setdefault(name, []).append((float(bound or usual), row["ours"]))
        axes = ("ε, pixels being in [0, 1]", "fooling rate, %")
        save_curves(ROOT / f"docs/perturbation_bounds_{data}.png", lines, axes)
    if (path := RESULTS / "time-to-accuracy-cifar10.json").exists():
        rows = [row for row in load_json(path)["rows"] if row["threads"] == 1]
        lines = {row["method"]: [(minutes, accuracy) for minutes, accuracy in row["curve"]] for row in rows}
        axes = ("core minutes, images included", "test accuracy, %")
        save_curves(ROOT / "docs/time_to_accuracy.png", lines, axes, logarithmic=True)


def main() -> None:
    if "--pictures" in sys.argv[1:]:
        draw_curves()
    if "--demo" in sys.argv[1:]:
        take_demo(Path(sys.argv[sys.argv.index("--demo") + 1]))
    for file in FILES:
        path = ROOT / file
        old = path.read_text()
        new = render(file, old)
        if old == new:
            continue
        if "--check" in sys.argv[1:]:
            sys.exit(f"{file}'s tables are stale: run python benches/readme.py")
        with atomic_path(path) as temporary:
            Path(temporary).write_text(new)


if __name__ == "__main__":
    main()
