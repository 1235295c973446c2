"""Networks made smaller on images that need not be real: accuracy, bytes and measured speed.

    python benches/compression.py --data cifar10.npz --weights FOLDER --photographs FOLDER --networks resnet20
    python benches/compression.py --data cifar10.npz --weights FOLDER --cells resnet20:int8:adaptive:0
    python benches/compression.py --data tiny_imagenet100.npz --teacher FOLDER --networks expert
    python benches/compression.py --data cifar10.npz --weights FOLDER --measure resnet20:int8:adaptive:0
    python benches/compression.py --data cifar10.npz --weights FOLDER --networks resnet20 --tables  # before pruning
    python benches/compression.py --collect                                          # only writes the rows

A cell is a network, a task, a set of images and a seed. The sets of a network are made once for a seed
(benches/compression_images.py). "real" are all training images; labels are not used. A killed cell continues when the
same command runs again; several processes may share --folder. The table of latencies has batches of 64 images and one
thread; --tables measures it before other processes use it. --measure times the networks of finished cells beside the
float network, in interleaved rounds with two threads, both compiled ahead of time with frozen weights. Tables and
--measure need a quiet machine. "w4a4" computes in float32 what 4 bits would compute, so it has no speed.

--set NAME=VALUE changes a setting (of the fine-tuning, or of Quantization); changed cells need a --folder of their own.
--validation tests on a tenth of the training images, which are then not learned from; its seeds are 100 or more.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from class_incremental import tenth_of
from compression_images import IMAGES, Domain
from deep_inversion import SPEC, network
from measure import RESULTS, as_row, interleaved, with_stored, write_results
from time_to_accuracy import changed, locked
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import Split
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_json, save_json, save_tensors
from exml_fast.transfer import LatencyTable, Pruning, compiled, export, load_pruned, load_quantized
from exml_fast.transfer.pruning.latency import layers_of

KEYS = ("name", "task", "images", "seed")
NETWORKS = ("resnet20", "resnet56", "expert")
TASKS = ("prune-filters-20", "prune-latency-40", "int8", "w4a4")
# Share, target and settings. Latencies fall in steps of eight filters, which a vector register holds.
PRUNED: dict[str, tuple[float, Any, dict[str, int]]] = {
    "prune-filters-20": (0.2, "filters", {}), "prune-latency-40": (0.4, "latency", {"chunk": 8}),
}  # fmt: skip
FINE_TUNING: dict[str, Any] = {
    "steps": 600, "batch_size": 128, "lr": 0.01, "schedule": "cosine", "temperature": 5.0, "lambda_features": 300.0,
    "precision": "auto",
}  # fmt: skip
# Chosen with seed 100 of --validation: made images teach more when they also vary in size and direction, real images
# teach less.
AUGMENTATION = {"shift": 4, "flip": 0.5}
AUGMENTATION_OF_MADE = {**AUGMENTATION, "scale": 0.3, "rotation": 15}
BITS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "sensitivity": 0},
    "w4a4": {"bits": 4, "sensitivity": 0, "steps": 200, "batch_size": 64, "lr": 1e-3},
}
BATCH, ROUNDS, THREADS, TABLE_BATCH = 500, 51, 2, 64


def domain_of(name: str, args: argparse.Namespace) -> Domain:
    """A network with its data."""
    data = xf.data.load(str(args.data))
    data = data.with_held_out(tenth_of(data) if args.validation else 0)
    photographs = tuple(args.photographs)
    if name == "expert":
        expert = xf.Expert.load(args.teacher)
        arguments = expert.card.arguments
        title = f"{expert.card.architecture} {' '.join(str(value) for value in arguments.values())}"
        model, spec = expert.model.eval(), expert.card.input_spec
    else:
        depth = int(name.removeprefix("resnet"))
        model, spec, title = network(depth, args.weights), SPEC, f"ResNet-{depth}"
    return Domain(name, f"{title}, {data.name}", model, spec, data, photographs, args.folder)


def accuracy(run: Any, split: Split, spec: xf.InputSpec) -> float:
    """In percent. All batches but the last have the same size, for which ``run`` may be compiled."""
    right = 0
    with torch.no_grad():
        for images, labels in split.batches(spec, BATCH):
            filled = torch.cat([images, images[:1].expand(BATCH - len(images), *images.shape[1:])])
            right += int((run(filled)[: len(labels)].argmax(1) == labels).sum())
    return 100 * right / len(split)


def run_cell(domain: Domain, task: str, images: str, seed: int, args: argparse.Namespace, stop: Any) -> None:
    """A network, a task, a set of images and a seed, from where it was interrupted."""
    place = args.folder / domain.name / task / images / f"seed{seed}"
    with locked(place / "lock", wait=False) as free:
        if not free or (place / "cell.json").is_file():
            return
        given = domain.images(images, seed)
        if not (args.folder / domain.name / "float.json").is_file():
            value = accuracy(domain.model, domain.data.test, domain.spec)
            save_json(args.folder / domain.name / "float.json", {"accuracy": value})
            save_tensors(args.folder / domain.name / "float.safetensors", domain.model.state_dict())
        begun = time.monotonic()

        def progress(*_: Any) -> None:
            if stop():
                raise SystemExit(75)

        same: dict[str, Any] = {
            "spec": domain.spec, "seed": seed, "progress": progress, "checkpoint_dir": place / "checkpoints",
        }  # fmt: skip
        cell: dict[str, Any] = {"network": domain.title, "task": task, "images": images, "seed": seed}
        if task in PRUNED:
            cell |= pruned(domain, task, images, given, same, place, args)
        else:
            cell |= quantized(domain, task, given, same, place, args)
        cell |= {
            "float": load_json(args.folder / domain.name / "float.json")["accuracy"], "test_images":
            len(domain.data.test), "minutes": (time.monotonic() - begun) / 60, "commit": str(provenance()["commit"]),
            "float_bytes": (args.folder / domain.name / "float.safetensors").stat().st_size,
        }  # fmt: skip
        save_json(place / "cell.json", cell)
        print(f"{place}: {cell['accuracy']:.2f} of {cell['float']:.2f}, {cell['minutes']:.1f} minutes", flush=True)


def pruned(
    domain: Domain, task: str, images: str, given: Any, same: Any, place: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """A cell of pruning."""
    ratio, target, changes = PRUNED[task]
    table = table_of(domain)
    augmentation = AUGMENTATION if images == "real" else AUGMENTATION_OF_MADE
    config = xf.Distillation().replace(**changed({**FINE_TUNING, "augmentation": augmentation}, args.set))
    pruning = Pruning().replace(**changes)
    found = xf.prune(domain.model, given, ratio, target=target, config=pruning, table=table, fine_tuning=config, **same)
    export(found, place / "network.pt")
    save_tensors(place / "network.safetensors", found.model.state_dict())
    left = {key: found.rounds[-1][key] for key in ("filters", "flops", "latency")}
    return {
        "accuracy": accuracy(found.model, domain.data.test, domain.spec), "left": left, "widths": found.widths,
        "bytes": (place / "network.safetensors").stat().st_size, "rounds": found.rounds,
        "settings": {"pruning": pruning.to_dict(), "fine_tuning": config.to_dict()},
    }  # fmt: skip


def table_of(domain: Domain) -> LatencyTable:
    """Latencies on this machine."""
    return LatencyTable(batch_size=TABLE_BATCH, threads=1, path=domain.folder / domain.name / "latency.json")


def fill_table(domain: Domain) -> None:
    """Measure all latencies that pruning may ask for."""
    table = table_of(domain)
    table.fill(layers_of(domain.model, torch.zeros(1, *domain.spec.shape)), PRUNED["prune-latency-40"][2]["chunk"])


def quantized(
    domain: Domain, task: str, given: Any, same: Any, place: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """A cell of quantisation."""
    settings = changed(BITS[task], args.set)
    found = xf.quantize(domain.model, given, **settings, **same)
    found.save(place / "network", overwrite=True)
    run = found.compiled() if task == "int8" else found.model
    cell: dict[str, Any] = {
        "accuracy": accuracy(run, domain.data.test, domain.spec),
        "bytes": (place / "network" / "model.safetensors").stat().st_size, "settings": found.settings,
    }  # fmt: skip
    if task == "w4a4":
        before = xf.quantize(domain.model, given, spec=domain.spec, seed=same["seed"], **settings, learn=False)
        cell["before"] = accuracy(before.model, domain.data.test, domain.spec)
    return cell


def measured(domain: Domain, whole: Any, task: str, images: str, seed: int, args: argparse.Namespace) -> None:
    """Time the network of a finished cell beside ``whole``, the compiled float network."""
    place = args.folder / domain.name / task / images / f"seed{seed}"
    if task in PRUNED:
        small: nn.Module = load_pruned(place / "network.pt", domain.model)
    else:
        small = load_quantized(place / "network", domain.model)
    contenders, speed = {"float": whole, "small": compiled(small)}, dict[str, Any]()
    for count in (1, 64):
        x = torch.randn(count, *domain.spec.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            timings = interleaved({key: called(run, x) for key, run in contenders.items()}, ROUNDS, 5)
        faster = timings["float"].median / timings["small"].median
        speed[str(count)] = {**as_row(timings), "faster": round(faster, 3)}
        print(f"{place}: {count} images, {faster:.2f} times as fast", flush=True)
    origin = {"commit": str(provenance()["commit"]), "compiler": "AOTInductor", "threads": THREADS, "rounds": ROUNDS}
    save_json(place / "speed.json", {**origin, "images": speed})


def called(run: Any, x: Tensor) -> Any:
    """A call without arguments."""
    return lambda: run(x)


def cells_of(folder: Path, results: Path) -> list[dict[str, Any]]:
    """All cells that are done, with their speed if it was measured: in the folder, or in the results of before."""
    found = []
    for path in sorted(folder.glob("*/*/*/seed*/cell.json")):
        speed = path.with_name("speed.json")
        name = {"name": path.relative_to(folder).parts[0]}
        found.append(name | load_json(path) | {"speed": load_json(speed) if speed.is_file() else None})
    return with_stored(results, found, KEYS)


def recovered(before: dict[str, float] | None, after: dict[str, float]) -> dict[str, float] | None:
    """What fine-tuning gained with each set of images, as a share of what it gained with real images.

    Both gains count from the network whose ranges real images gave. None where real images gained nothing.
    """
    if before is None or "real" not in before or after["real"] <= before["real"]:
        return None
    whole = after["real"] - before["real"]
    return {images: (value - before["real"]) / whole for images, value in after.items()}


def rows_of(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each network and task: accuracy by images, mean over seeds, with the values of all."""
    rows = []
    for name, task in ((name, task) for name in NETWORKS for task in TASKS):
        done = sorted((c for c in every if (c["name"], c["task"]) == (name, task)), key=lambda cell: cell["seed"])
        if not done:
            continue
        cells = {images: [cell for cell in done if cell["images"] == images] for images in IMAGES}
        cells = {images: found for images, found in cells.items() if found}
        values = {images: [cell["accuracy"] for cell in found] for images, found in cells.items()}
        row: dict[str, Any] = {"network": done[0]["network"], "task": task, "float": done[0]["float"]}
        row |= {images.replace("-", "_"): statistics.fmean(found) for images, found in values.items()}
        best = [images for images in ("adaptive", "deep-inversion") if images in values]
        row["synthetic"] = statistics.fmean(values[best[0]]) if best else None
        row["before"] = {
            images: statistics.fmean(cell["before"] for cell in found)
            for images, found in cells.items() if "before" in found[0]
        } or None  # fmt: skip
        row["recovered"] = recovered(
            row["before"], {images: statistics.fmean(found) for images, found in values.items()}
        )
        speeds = [cell["speed"] for cell in done if cell["speed"]]
        row["faster"] = {
            count: {
                "ratio": statistics.median(speed["images"][count]["faster"] for speed in speeds),
                "values": [speed["images"][count] for speed in speeds],
            }
            for count in ("1", "64")
        } if speeds else None  # fmt: skip
        row |= {
            "timed": {
                **{key: speeds[0][key] for key in ("compiler", "threads", "rounds")}, "networks": len(speeds),
                "commits": sorted({speed["commit"] for speed in speeds}),
            } if speeds else None,
            "bytes": statistics.fmean(cell["bytes"] for cell in cells[best[0] if best else next(iter(cells))]),
            "float_bytes": done[0]["float_bytes"],
            "left": {images: found[0].get("left") for images, found in cells.items()}, "values": values,
            "seeds": {images: [cell["seed"] for cell in found] for images, found in cells.items()},
            "test_images": done[0]["test_images"],
            "settings": {images: found[0]["settings"] for images, found in cells.items()},
            "commits": sorted({cell["commit"] for cell in done}),
        }  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--weights", type=Path, help="folder of the files of the published ResNets")
    parser.add_argument("--teacher", type=Path, help="folder of the expert that is the network 'expert'")
    parser.add_argument("--photographs", type=Path, nargs="+", default=[], help="files or folders")
    parser.add_argument("--networks", nargs="+", default=["resnet20"], choices=NETWORKS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--images", nargs="+", default=list(IMAGES), choices=IMAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", nargs="+", metavar="NETWORK:TASK:IMAGES:SEED", help="exactly these, in this order")
    parser.add_argument("--tables", action="store_true", help="only measure the tables of latencies of --networks")
    parser.add_argument("--measure", nargs="+", metavar="NETWORK:TASK:IMAGES:SEED", help="time finished cells")
    parser.add_argument("--folder", type=Path, default=Path("compression"), help="of images, networks and cells")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="a setting, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="test on held-out training images; seeds from 100")
    parser.add_argument("--stop-after", type=float, help="end this process after so many minutes, ready to continue")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the rows of the cells in --folder")
    args = parser.parse_args()
    torch.set_num_threads(THREADS if args.measure else args.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    if args.validation:
        args.folder /= "validation"
    if args.tables:
        for name in args.networks:
            fill_table(domain_of(name, args))
        return
    asked = args.measure or args.cells or [
        f"{name}:{task}:{images}:{seed}"
        for seed in args.seeds for name in args.networks for task in args.tasks for images in args.images
    ]  # fmt: skip
    cells = [cell.split(":") for cell in asked]
    for cell in cells:
        if len(cell) != 4 or cell[0] not in NETWORKS or cell[1] not in TASKS or cell[2] not in IMAGES:
            parser.error(f"cells must be NETWORK:TASK:IMAGES:SEED, got {':'.join(cell)!r}")
    if args.measure and any(cell[1] == "w4a4" for cell in cells):
        parser.error("--measure takes no cells of w4a4, which compute in float32")
    if not args.collect and any((int(cell[3]) >= 100) != args.validation for cell in cells):
        parser.error("--validation takes seeds of 100 or more, which the reported figures leave out")
    runs = not args.collect and not args.measure
    if runs and not args.photographs and any(cell[2] == "photographs" for cell in cells):
        parser.error("cells of photographs need --photographs")

    def stop() -> bool:
        return args.stop_after is not None and time.monotonic() - begun > 60 * args.stop_after

    domains, wholes = dict[str, Domain](), dict[str, Any]()
    for name, task, images, seed in [] if args.collect else cells:
        if name not in domains:
            domains[name] = domain_of(name, args)
            wholes[name] = compiled(domains[name].model)
        if args.measure:
            measured(domains[name], wholes[name], task, images, int(seed), args)
        elif not stop():
            run_cell(domains[name], task, images, int(seed), args, stop)
    if args.collect:
        results = (args.folder if args.validation else RESULTS) / "compression.json"
        done = cells_of(args.folder, results)
        write_results(results, rows_of(done), cells=done)


if __name__ == "__main__":
    main()
