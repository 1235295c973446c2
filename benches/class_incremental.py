"""Class-incremental learners on a data set: accuracy after each task, time and bytes of each method.

    python benches/class_incremental.py --data tiny_imagenet100.npz --methods icarl deep-inversion --protocols b50-5
    python benches/class_incremental.py --data tiny_imagenet100.npz --cells icarl:b0-10:0 skd:b50-10:1
    python benches/class_incremental.py --data tiny_imagenet100.npz --collect      # only writes the rows

A cell is a method, a protocol and a seed, which also decides the class order (1993 + seed). The cells of a seed are
parts of one exml_fast.reproduction.IncrementalStudy. Methods that learn the first task alike share its network. "icarl"
also gives the cells of the methods that differ from it in the classifier alone. A killed cell continues when the same
command runs again. Several processes may share --folder; one that needs the first network of a seed waits while another
trains one. Cells of the committed results are not run again. Each takes one thread unless --threads says else.

--set NAME=VALUE changes a setting of all methods of this call; the changed cells need a --folder of their own.
--validation tests on a tenth of the training images, which are then not learned from, for choices of settings; its
seeds are 100 or more.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, with_stored, write_results
from time_to_accuracy import changed, locked

from exml_fast.continual.class_incremental import METHODS, ICaRL
from exml_fast.data import ImageData, load
from exml_fast.reproduction.incremental_learned import Learned
from exml_fast.reproduction.incremental_settings import IncrementalSettings
from exml_fast.reproduction.incremental_study import IncrementalStudy
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_json, save_json

KEYS = ("method", "protocol", "seed")
NOTE = "reduced: {epochs} epochs a task, one-cycle; the papers train 70 to 500"


def methods_with(method: str) -> list[str]:
    """A method and those whose network is the same: iCaRL's with other classifiers."""
    others = [name for name, m in METHODS.items() if m.learner is ICaRL and set(m.settings) == {"classifier"}]
    return [method, *others] if method == "icarl" else [method]


def tenth_of(data: ImageData) -> int:
    """A tenth of the training images of a class."""
    return len(data.train) // (10 * len(data.classes))


def study_of(
    args: argparse.Namespace, method: str, protocol: str, seed: int, held_out: int, stop: Callable[[], bool]
) -> IncrementalStudy:
    """The study of a cell."""

    def progress(stage: str, step: int, total: int, terms: Mapping[str, float]) -> None:
        if stop():
            raise SystemExit(75)

    settings = IncrementalSettings(
        data=args.data, methods={name: {"method": name} for name in methods_with(method)}, protocols=(protocol,),
        settings=changed({"epochs": args.epochs}, args.set), arguments=changed({}, args.arguments),
        held_out=held_out,
    )  # fmt: skip
    return IncrementalStudy(settings, args.folder / f"seed{seed}", seed=seed, progress=progress)


def run_cell(study: IncrementalStudy, method: str, protocol: str) -> None:
    """A method and a protocol of a study, from where it was interrupted."""
    with locked(study.place(method, protocol) / "lock", wait=False) as free:
        if not free or (study.place(method, protocol) / "cell.json").is_file():
            return
        with locked(study.folder / "first.lock", wait=True):
            study.first(method, protocol)
        study.learned(method, protocol)
        for name in reversed(methods_with(method)):
            cell = cell_of(study, name, protocol)
            if name != method:
                cell["note"] += f"; the network of {method}"
            save_json(study.place(name, protocol) / "cell.json", cell)
        curve = " ".join(f"{value:.1f}" for value in cell["curve"])
        minutes = sum(cell["seconds"]) / 60
        print(f"{method}:{protocol}:{study.seed}: last {cell['last']:.2f}, average {cell['average']:.2f} ({curve}), "
              f"{minutes:.0f} minutes", flush=True)  # fmt: skip


def cell_of(study: IncrementalStudy, method: str, protocol: str) -> dict[str, Any]:
    """What a study measured of a method and a protocol."""
    found: Learned = study.learned(method, protocol)
    config = study.learner(method, protocol).config
    return {
        "method": method, "protocol": protocol, "seed": study.seed, "data": study.data.name, "last": 100 * found.last,
        "average": 100 * found.average, "curve": [100 * task.accuracy for task in found.tasks],
        "accuracies": [task.accuracies for task in found.tasks], "seconds": [task.seconds for task in found.tasks],
        "stages": [task.stages for task in found.tasks], "synthesis": [task.synthesis for task in found.tasks],
        "peak_mb": [task.peak_mb for task in found.tasks],
        "bytes": found.tasks[-1].kept_bytes, "working_bytes": max(task.working_bytes for task in found.tasks),
        "real_exemplars": found.real_exemplars, "synthetic": found.synthetic, "settings": config.to_dict(),
        "note": NOTE.format(epochs=config.epochs), "commits": [str(provenance()["commit"])],
    }  # fmt: skip


def cells_of(folder: Path, results: Path) -> list[dict[str, Any]]:
    """All cells that are done: in the folder, or in the results of an earlier call."""
    found = [load_json(path) for path in sorted(folder.glob("seed*/*/*/cell.json"))]
    return with_stored(results, found, KEYS)


def rows_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and protocol, over the seeds that are done."""
    rows = []
    for method, protocol in sorted({(cell["method"], cell["protocol"]) for cell in cells}, key=in_order):
        done = [cell for cell in cells if (cell["method"], cell["protocol"]) == (method, protocol)]
        done.sort(key=lambda cell: cell["seed"])
        last, average = ([cell[key] for cell in done] for key in ("last", "average"))
        rows.append(
            {
                "method": method, "protocol": protocol, "average": statistics.fmean(average),
                "last": statistics.fmean(last), "std": statistics.stdev(average) if len(done) > 1 else None,
                "values": average, "values_last": last, "seeds": [cell["seed"] for cell in done],
                "bytes": done[0]["bytes"], "working_bytes": done[0]["working_bytes"],
                "real_exemplars": done[0]["real_exemplars"], "synthetic": done[0]["synthetic"] != 0,
                "seconds_per_task": statistics.fmean(s for cell in done for s in cell["seconds"][1:]),
                "seconds": statistics.fmean(sum(cell["seconds"]) for cell in done),
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
    parser.add_argument("--arguments", nargs="+", default=[], metavar="NAME=VALUE", help="of the network, as depth=20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="test on held-out training images; seeds from 100")
    parser.add_argument("--stop-after", type=float, help="end this process after so many minutes, ready to continue")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the rows of the cells in --folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    cells = [tuple(cell.split(":")) for cell in args.cells or []] or [
        (method, protocol, str(seed)) for seed in args.seeds for protocol in args.protocols for method in args.methods
    ]
    if args.validation and min(int(seed) for *_, seed in cells) < 100:
        parser.error("--validation takes seeds of 100 or more")

    def stop() -> bool:
        return args.stop_after is not None and time.monotonic() - begun > 60 * args.stop_after

    data = load(args.data)
    held_out = tenth_of(data) if args.validation else 0
    results = args.folder if args.validation else RESULTS
    results /= f"class-incremental-{data.name.replace('_', '-')}.json"
    if args.collect:
        done = cells_of(args.folder, results)
        write_results(results, rows_of(done), cells=done)
        return
    done = {tuple(str(cell[key]) for key in KEYS) for cell in with_stored(results, [], KEYS)}
    for method, protocol, seed in cells:
        if (method, protocol, seed) not in done or args.set:
            run_cell(study_of(args, method, protocol, int(seed), held_out, stop), method, protocol)


if __name__ == "__main__":
    main()
