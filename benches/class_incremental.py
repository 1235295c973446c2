"""Class-incremental learners on a data set: accuracy after each task, time and bytes of each method.

    python benches/class_incremental.py --data tiny_imagenet100.npz --methods icarl deep-inversion --protocols b50-5
    python benches/class_incremental.py --data tiny_imagenet100.npz --cells icarl:b0-10:0 skd:b50-10:1
    python benches/class_incremental.py --data tiny_imagenet100.npz --collect      # only writes the rows

A cell is a method, a protocol and a seed, which also decides the class order (1993 + seed). Methods whose first task is
learned with the same loss share its network, which is trained once. "icarl" also gives the cells of the methods that
differ from it in the classifier alone. A killed cell continues when the same command runs again; several processes may
share --folder. Cells of the committed results are not run again. Each takes one thread unless --threads says else.

--set NAME=VALUE changes a setting of all methods of this call; the changed cells need a --folder of their own.
--validation tests on a tenth of the training images, which are then not learned from, for choices of settings; its
seeds are 100 or more.
"""

from __future__ import annotations

import argparse
import copy
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, with_stored, write_results
from time_to_accuracy import changed, locked
from torch import nn

from exml_fast.continual.class_incremental import (
    METHODS,
    ICaRL,
    IncrementalResult,
    Learner,
    Task,
    incremental,
    learner,
    tasks_of,
)
from exml_fast.continual.class_incremental.losses import bce, cross_entropy
from exml_fast.continual.class_incremental.tasks import CLASS_ORDER_SEED
from exml_fast.data import ImageData, load
from exml_fast.models import create
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_checkpoint, load_json, save_checkpoint, save_json
from exml_fast.training.heads import with_head

HELD_OUT = 10
KEYS = ("method", "protocol", "seed")
NOTE = "reduced: {epochs} epochs a task, one-cycle; the papers train 70 to 500"
LABEL_LOSSES = {cross_entropy: "ce", bce: "bce"}


def held_out(data: ImageData) -> ImageData:
    """Every tenth training image of each class is a test image."""
    labels = data.train.labels
    place = torch.empty_like(labels)
    for c in data.classes:
        members = torch.nonzero(labels == c)[:, 0]
        place[members] = torch.arange(len(members))
    chosen = place % HELD_OUT == 0
    return ImageData(data.name, data.train.subset(~chosen), data.train.subset(chosen), data.class_names, data.spec)


def new_learner(method: str, data: ImageData, tasks: list[Task], seed: int, settings: dict[str, Any]) -> Learner[Any]:
    """On a ResNet-32 whose first weights depend on the seed alone."""
    torch.manual_seed(seed)
    network = create("cifar_resnet", depth=32, num_classes=len(data.classes))
    return learner(method, network, data.spec, tasks=len(tasks) - 1, seed=seed, **settings)


def first_network(
    taught: Learner[Any],
    data: ImageData,
    tasks: list[Task],
    seed: int,
    settings: dict[str, Any],
    folder: Path,
    progress: Any,
) -> nn.Module | None:
    """The network after the first task, trained once for all methods that learn it alike; None for others."""
    loss = LABEL_LOSSES.get(taught.label_loss())
    shared = {
        name: value for name, value in settings.items() if hasattr(taught.config.training, name) or "epochs" in name
    }
    if loss is None:
        return None
    base = new_learner("fine-tuning", data, tasks, seed, {**shared, "classification": loss})
    if base.config.training != taught.config.training or taught.config.head != "growing":
        return None
    size = len(tasks[0].classes)
    place = folder / "first" / f"{loss}-{size}-seed{seed}"
    with locked(place / "lock", wait=True):
        if not (place / "network.pt").is_file():
            learned = base.learn(tasks[0], progress=progress, checkpoint_dir=place)
            save_checkpoint(
                place / "network.pt", {"network": base.network.state_dict(), "seconds": learned.seconds["learn"]}
            )
        network = with_head(base.network, size)
        network.load_state_dict(load_checkpoint(place / "network.pt")["network"])
    return network


def siblings_of(method: str) -> list[str]:
    """Methods that differ from iCaRL in the classifier alone, whose network is that of iCaRL."""
    return [n for n, m in METHODS.items() if m.learner is ICaRL and set(m.settings) == {"classifier"}] * (
        method == "icarl"
    )


def by_other_classifiers(taught: Learner[Any], data: ImageData) -> dict[str, float]:
    """Accuracy on all classes so far, in percent, of iCaRL's network with each sibling's classifier."""
    split, found = data.test.of_classes(taught.classes), {}
    for name in siblings_of("icarl"):
        other = copy.copy(taught)
        other.config = taught.config.replace(**METHODS[name].settings)
        other.load_memory(taught.memory())
        right = sum(int((other.predict(x) == y).sum()) for x, y in split.batches(data.spec))
        found[name] = 100 * right / len(split)
    return found


def cells_of(folder: Path, results: Path) -> list[dict[str, Any]]:
    """All cells that are done: in the folder, or in the results of an earlier call."""
    found = [load_json(path) for path in sorted(folder.glob("*/*/seed*/cell.json"))]
    return with_stored(results, found, KEYS)


def rows_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and protocol, over the seeds that are done."""
    rows = []
    for method, protocol in sorted({(cell["method"], cell["protocol"]) for cell in cells}, key=in_order):
        done = [cell for cell in cells if (cell["method"], cell["protocol"]) == (method, protocol)]
        done.sort(key=lambda cell: cell["seed"])
        last, average = ([cell[key] for cell in done] for key in ("last", "average"))
        inverted = done[0]["working_bytes"] > 0 and (not METHODS[method].real or "inver" in method)
        rows.append(
            {
                "method": method, "protocol": protocol, "average": statistics.fmean(average),
                "last": statistics.fmean(last), "std": statistics.stdev(average) if len(done) > 1 else None,
                "values": average, "values_last": last, "seeds": [cell["seed"] for cell in done],
                "bytes": done[0]["bytes"], "working_bytes": done[0]["working_bytes"],
                "real_exemplars": METHODS[method].real, "synthetic": inverted,
                "seconds_per_task": statistics.fmean(s for cell in done for s in cell["seconds"][1:]),
                "peak_mb": max(peak for cell in done for peak in cell["peak_mb"]),
                "curve": [statistics.fmean(at) for at in zip(*(cell["curve"] for cell in done), strict=True)],
                "source": METHODS[method].source, "data": done[0]["data"], "reduced": True,
                "note": done[0]["note"], "settings": done[0]["settings"],
                "commits": sorted({commit for cell in done for commit in cell["commits"]}),
            }
        )  # fmt: skip
    return rows


def in_order(row: tuple[str, str]) -> tuple[str, int]:
    """By protocol, then as in METHODS."""
    return row[1], list(METHODS).index(row[0])


def run_cell(args: argparse.Namespace, data: ImageData, method: str, protocol: str, seed: int, stop: Any) -> None:
    """A method, a protocol and a seed, from where it was interrupted."""
    place = args.folder / method / protocol / f"seed{seed}"
    with locked(place / "lock", wait=False) as free:
        if not free or (place / "cell.json").is_file():
            return
        tasks = tasks_of(data, protocol, CLASS_ORDER_SEED + seed)
        settings = changed({"epochs": args.epochs}, args.set)
        taught = new_learner(method, data, tasks, seed, settings)

        def progress(stage: str, step: int, total: int, terms: Mapping[str, float]) -> None:
            if stop():
                raise SystemExit(75)

        first = first_network(taught, data, tasks, seed, settings, args.folder, progress)
        begun = time.monotonic()
        others = load_json(place / "others.json") if (place / "others.json").is_file() else {}

        def after(result: IncrementalResult) -> None:
            if siblings_of(method):
                others[str(len(result.tasks))] = by_other_classifiers(taught, data)
                save_json(place / "others.json", others)

        found = incremental(taught, tasks, data.test, first=first, after=after, progress=progress, checkpoint_dir=place)
        learned = [task.learned for task in found.tasks]
        seconds = [task.seconds["all"] for task in learned]
        cell = {
            "method": method, "protocol": protocol, "seed": seed, "data": data.name, "last": 100 * found.last,
            "average": 100 * found.average, "curve": [100 * task.accuracy for task in found.tasks],
            "accuracies": [task.accuracies for task in found.tasks], "seconds": seconds,
            "stages": [task.seconds for task in learned], "peak_mb": [task.peak_mb for task in learned],
            "bytes": learned[-1].nbytes, "working_bytes": max(task.working_bytes for task in learned),
            "settings": taught.config.to_dict(), "note": NOTE.format(epochs=taught.config.epochs),
            "commits": [str(provenance()["commit"])],
        }  # fmt: skip
        for name in siblings_of(method):
            curve = [others[str(number + 1)][name] for number in range(len(tasks))]
            same = {"method": name, "curve": curve, "last": curve[-1], "average": statistics.fmean(curve)}
            note = f"{cell['note']}; the network of icarl"
            settings = cell["settings"] | METHODS[name].settings
            save_json(
                args.folder / name / protocol / f"seed{seed}" / "cell.json",
                {**cell, **same, "note": note, "settings": settings, "accuracies": None},
            )
        save_json(place / "cell.json", cell)
        (place / "incremental.pt").unlink()
        curve = " ".join(f"{value:.1f}" for value in cell["curve"])
        print(f"{place}: last {cell['last']:.2f}, average {cell['average']:.2f} ({curve}), "
              f"{(time.monotonic() - begun) / 60:.0f} minutes", flush=True)  # fmt: skip


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as exml_fast.data.load")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--protocols", nargs="+", default=["b0-10", "b50-5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", nargs="+", metavar="METHOD:PROTOCOL:SEED", help="exactly these, in this order")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("class-incremental"), help="of checkpoints and cells")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="a setting, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="test on held-out training images; seeds from 100")
    parser.add_argument("--stop-after", type=float, help="end this process after so many minutes, ready to continue")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the rows of the cells in --folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    data = load(args.data)
    cells = [tuple(cell.split(":")) for cell in args.cells or []] or [
        (method, protocol, str(seed)) for seed in args.seeds for protocol in args.protocols for method in args.methods
    ]
    if args.validation:
        if min(int(seed) for *_, seed in cells) < 100:
            parser.error("--validation takes seeds of 100 or more")
        data = held_out(data)

    def stop() -> bool:
        return args.stop_after is not None and time.monotonic() - begun > 60 * args.stop_after

    results = (args.folder if args.validation else RESULTS) / f"class-incremental-{data.name.replace('_', '-')}.json"
    if args.collect:
        done = cells_of(args.folder, results)
        write_results(results, rows_of(done), cells=done)
        return
    done = {tuple(str(cell[key]) for key in KEYS) for cell in with_stored(results, [], KEYS)}
    for method, protocol, seed in cells:
        if (method, protocol, seed) not in done or args.set:
            run_cell(args, data, method, protocol, int(seed), stop)


if __name__ == "__main__":
    main()
