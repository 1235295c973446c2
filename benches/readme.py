"""Writes the tables of README.md and docs/ from the JSON files under benches/results/: figures are never typed by hand.

python benches/readme.py            # rewrites the tables
python benches/readme.py --check    # exits with 1 if a file is not what this command would write
python benches/readme.py --pictures # draws the curves in docs/ anew
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cluster_cost
from readme_tables.architectures import architectures
from readme_tables.common import RESULTS, ROOT
from readme_tables.compression import agreement_in_8_bits, compression
from readme_tables.engine import all_ops, fastest, impressions, inversion, ops, precision, student
from readme_tables.faults import cluster, reliability
from readme_tables.headlines import five_headlines, headlines
from readme_tables.images import agreement, imagenet, judged_headline, judged_quality, students
from readme_tables.incremental import class_incremental
from readme_tables.streams import (
    buffer_sizes,
    calibrated,
    calibration,
    carta,
    cifar10,
    demo,
    ex_model,
    merging,
    rates,
    strategies,
)
from readme_tables.transfer import nayak, time_to_accuracy

from exml_fast.report.charts import save_curves
from exml_fast.storage import atomic_path, load_json

PAIRS = ("vgg11_bn-vgg11_bn", "vgg11_bn-resnet18", "resnet34-resnet18")


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
    "inversion-avx2": [("inversion-cpu-avx2.json", inversion)],
    "precision": [("precision-cpu.json", precision)],
    "architectures": [("architectures-cpu.json", architectures)],
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
    "compression": [
        ("compression.json", compression),
        ("compression-efficientnet-lite0.json", agreement_in_8_bits),
    ],
    "class-incremental": [("class-incremental-tiny-imagenet100.json", class_incremental)],
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
    "docs/class_incremental.md": ["class-incremental"],
    "docs/compression.md": ["compression"],
    "docs/deep_inversion.md": ["judged-quality", "ablation"],
    "docs/training.md": ["student"],
    "docs/reliability.md": ["reliability"],
    "docs/architectures.md": ["architectures"],
    "docs/engine.md": ["precision", "inversion-2-threads", "inversion-avx2", "speed", "ops", "all-ops"],
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
