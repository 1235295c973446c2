"""Accuracy against time: students of one teacher that learn without its data, each method with the same budget.

    python benches/time_to_accuracy.py cifar10 --data cifar10.npz --weights FOLDER --photographs FOLDER --minutes 40
    python benches/time_to_accuracy.py tiny-imagenet100 --data tiny_imagenet100.npz --teacher FOLDER --minutes 40
    python benches/time_to_accuracy.py cifar10 --data cifar10.npz --weights FOLDER --collect    # only writes the rows

A cell is a method, a budget and a seed. All cells of a seed begin with the same student. Time is the CPU time of all
threads, from the first image to the last step of the student, without evaluations on real images; on CUDA it is wall
time. A cell takes one thread, so its minutes are core minutes, and cells can run side by side: give several processes
the same --folder. Minutes of two cores are half the core minutes.

The first process of a method and a budget measures a round of images and a step of the student. The numbers of rounds
and steps that fill the budget follow from these two and are kept in --folder, so all seeds take the same. Learning
rates fall to zero at the end of the budget: to know the time to an accuracy, run several budgets. A killed cell
continues from its checkpoint when the same command runs again, and the time of repeated work is not counted twice.

"published" is the loop of published implementations (benches/published_loop.py) with the settings of Yin 2020, A.1, and
stops when the budget is spent. --set NAME=VALUE changes a setting of all methods: of the schedule (share, until,
image_steps), of the student (a field of exml_fast.Distillation) or of the images (recipe.NAME). --validation evaluates
on training images, for choices; its seeds are 100 or more.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deep_inversion import SPEC, network
from measure import RESULTS, write_results
from time_budget import Clock, row_of, scheduled
from time_methods import METHODS, Cell, Domain, Method, delegator_of

import exml_fast as xf
from exml_fast.continual import train_expert
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_checkpoint, load_json, save_json

MARKS = {"cifar10": (75.0, 85.0, 89.0), "tiny-imagenet100": (30.0, 38.0, 43.0)}
# How the teacher of Tiny-ImageNet-100 is trained where --teacher does not exist yet.
TEACHER: dict[str, Any] = {
    "architecture": "cifar_resnet", "arguments": {"depth": 32}, "epochs": 15, "seed": 0, "schedule": "onecycle",
    "lr": 0.2, "batch_size": 128, "weight_decay": 5e-4, "precision": "auto",
    "augmentation": {"shift": 4, "flip": 0.5},
}  # fmt: skip
VALIDATION_IMAGES = 5000

# Cells.


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock of this name; False where another process holds it and ``wait`` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def planned(
    domain: Domain, method: Method, settings: dict[str, Any], minutes: float, folder: Path, evaluations: int
) -> dict[str, Any]:
    """Steps and rounds of a method and a budget; measured once, and kept in the folder.

    ValueError if the folder's were made with other settings.
    """
    path = folder / "schedule.json"
    with locked(folder / "schedule.lock", wait=True):
        if path.is_file():
            plan = load_json(path)
            if plan["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(f"{path} has the settings {plan['settings']}, not {settings}; give another --folder")
            return dict(plan["schedule"])
        schedule = scheduled(settings, minutes, lambda: method.costs(domain, settings))
        schedule["evaluate_every"] = settings.get("evaluate_every") or max(1, schedule["steps"] // evaluations)
        plan = {"known": method.known(domain), "settings": settings, "minutes": minutes, "schedule": schedule}
        save_json(path, plan)
        return schedule


def step_in(folder: Path, settings: Mapping[str, Any]) -> int:
    """Step of the student in a cell's checkpoint, of the delegator the round; 0 where there is none."""
    if (path := folder / "delegate.pt").is_file():
        turns = delegator_of(settings, 1).round_steps
        return int(load_checkpoint(path)["state"]["parts"]["loop"]["step"]) // turns
    if (path := folder / "distill.pt").is_file():
        return int(load_checkpoint(path)["state"]["parts"]["loop"]["step"])
    if (path := folder / "published.pt").is_file():
        return int(load_checkpoint(path)["state"]["step"])
    return 0


def collected(name: str, folder: Path, device: str, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all cells in a folder: one for each method and number of threads."""
    rows = []
    for method in METHODS:
        runs: dict[str, dict[float, list[Any]]] = {}
        known = ""
        for path in sorted((folder / method).glob("*/seed*/cell.json")):
            plan, threads = load_json(path.parents[1] / "schedule.json"), path.parents[1].name.partition("-threads-")[2]
            cell, known = load_json(path) | {name: plan[name] for name in ("schedule", "settings")}, plan["known"]
            runs.setdefault(threads, {}).setdefault(plan["minutes"], []).append(cell)
        for threads, found in sorted(runs.items()):
            row = row_of(method, known, found, MARKS[name], device == "cuda")
            rows += [row | head | {"threads": int(threads or 1)}] if row else []
    return rows


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=list(MARKS))
    parser.add_argument("--data", type=Path, required=True, help=".npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--weights", type=Path, help="folder of the file of the published ResNet-20")
    parser.add_argument("--teacher", type=Path, help="folder of the expert that is the teacher, instead of --weights")
    parser.add_argument("--student", help="architecture of the student; default: the teacher's")
    parser.add_argument("--photographs", type=Path, nargs="+", default=[], help="files or folders")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--minutes", nargs="+", type=float, default=[40.0], help="budgets, in core minutes; GPU minutes on CUDA"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", nargs="+", metavar="METHOD:MINUTES:SEED", help="exactly these cells, in this order")
    parser.add_argument("--folder", type=Path, default=Path("time-to-accuracy"), help="of checkpoints and curves")
    parser.add_argument("--evaluations", type=int, default=24, help="of each cell")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="a setting, as JSON")
    parser.add_argument("--validation", action="store_true", help="evaluate on training images; seeds from 100")
    parser.add_argument("--test-images", type=int, help="fewer than all, for trials")
    parser.add_argument(
        "--stop-after", type=float, help="end this process after so many minutes of wall time, ready to continue"
    )
    parser.add_argument(
        "--collect", action="store_true", help="run nothing; write the results of the cells in --folder"
    )
    parser.add_argument("--results", type=Path, help="JSON; default: benches/results/, or --folder with --validation")
    args = parser.parse_args()
    for cell in args.cells or []:
        if len(cell.split(":")) != 3 or cell.split(":")[0] not in METHODS:
            parser.error(f"--cells must be METHOD:MINUTES:SEED with one of {', '.join(METHODS)}, got {cell!r}")
    run(args, parser)


def cells_of(args: argparse.Namespace) -> list[tuple[str, float, int]]:
    """Methods, budgets and seeds; all first seeds come first. A method whose steps are given has one curve for all."""
    if args.cells is None:
        budgets = {name: args.minutes for name in args.methods}
        budgets |= {name: [max(args.minutes)] for name in args.methods if "steps" in METHODS[name].settings}
        return [
            (name, minutes, seed)
            for seed in args.seeds
            for minutes in args.minutes
            for name in args.methods
            if minutes in budgets[name]
        ]
    found = [cell.split(":") for cell in args.cells]
    return [(name, float(minutes), int(seed)) for name, minutes, seed in found]


def changed(settings: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    """Settings with NAME=VALUE changes; a value that is not JSON is a string."""
    found = dict(settings)
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign:
            raise ValueError(f"--set must be NAME=VALUE, got {change!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def domain_of(args: argparse.Namespace, data: xf.data.ImageData) -> Domain:
    """Teacher, student and the images of evaluations."""
    if args.teacher is None:
        teacher, spec, student = network(20, args.weights), SPEC, ("cifar_resnet", {"depth": 20})
    else:
        if not args.teacher.exists():
            place = args.teacher.with_name(args.teacher.name + ".training")
            train_expert(data, checkpoint_dir=place, device=args.device, **TEACHER).expert.save(args.teacher)
        expert = xf.Expert.load(args.teacher)
        teacher, spec = expert.model, expert.card.input_spec
        student = (expert.card.architecture, expert.card.arguments)
    if args.student is not None:
        student = (args.student, {"num_classes": len(data.classes)})
    images, labels = data.test.images, data.test.labels
    count = args.test_images or len(labels)
    if args.validation:
        images, labels, count = data.train.images, data.train.labels, args.test_images or VALIDATION_IMAGES
    chosen = torch.linspace(0, len(labels) - 1, count).long()
    return Domain(
        args.domain, teacher.to(args.device).eval(), spec, len(data.classes), student, images[chosen], labels[chosen],
        args.device, tuple(args.photographs),
    )  # fmt: skip


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """All cells that are asked for, one after the other."""
    if args.weights is None and args.teacher is None:
        parser.error("--weights or --teacher is missing")
    if args.validation and min(seed for _, _, seed in cells_of(args)) < 100:
        parser.error("--validation takes seeds of 100 or more")
    if args.validation is False and (args.set or args.test_images) and args.results is None:
        parser.error("--results must be given with --set or --test-images")
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun, commit = time.monotonic(), str(provenance()["commit"])
    domain = domain_of(args, xf.data.load(str(args.data)))
    suffix = ""
    if args.teacher is not None and args.domain == "cifar10":
        pair = (load_json(args.teacher / "card.json")["architecture"], domain.student[0])
        suffix = "".join(f"-{name.removesuffix('_cifar')}" for name in pair)
    folder = args.folder / (args.domain + suffix + ("-validation" if args.validation else ""))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "domain.json").is_file():
        save_json(folder / "domain.json", {"teacher": domain.accuracy(domain.teacher), "images": len(domain.labels)})
    head = {"teacher": load_json(folder / "domain.json")["teacher"], "test_images": len(domain.labels)}
    name = f"time-to-accuracy-{args.domain}{suffix}.json"
    results = args.results or ((folder if args.validation else RESULTS) / name)

    def write() -> None:
        write_results(results, collected(args.domain, folder, args.device, head), args.device)

    def stop() -> bool:
        return args.stop_after is not None and time.monotonic() - begun > 60 * args.stop_after

    for name, minutes, seed in [] if args.collect else cells_of(args):
        method = METHODS[name]
        settings = changed(method.settings, args.set)
        place = folder / name / (f"{minutes:g}" + (f"-threads-{args.threads}" if args.threads > 1 else ""))
        schedule = planned(domain, method, settings, minutes, place, args.evaluations)
        at = place / f"seed{seed}"
        with locked(at / "lock", wait=False) as free:
            path = at / "cell.json"
            if not free or (path.is_file() and load_json(path)["done"]):
                continue
            (at / "pool").mkdir(exist_ok=True)
            clock = Clock(at / "clock.jsonl", step_in(at, settings))
            cell = Cell(domain, settings, minutes, seed, at, schedule, clock, commit, stop, write)
            method.run(cell)
            save_json(path, {**load_json(path), "done": True})
            for left in [*at.glob("*.pt"), *(at / "pool").glob("*")]:
                left.unlink()
    write()


if __name__ == "__main__":
    main()
