"""`exml-fast train-experts` and `exml-fast evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    Architecture,
    ArchitectureArgument,
    Data,
    DataRoot,
    Device,
    Epochs,
    Json,
    OneThread,
    Overwrite,
    Parts,
    PerStep,
    Resume,
    Scenario,
    Seed,
    TensorBoardFolder,
    Threads,
)
from exml_fast.cli.parsing import parse_device, parse_pairs, parse_sizes, use_threads
from exml_fast.cli.progress import Reporter
from exml_fast.cli.run_file import StudyRun, close_run, open_run
from exml_fast.continual import Expert, ExpertStream, confusion_matrix
from exml_fast.data import load
from exml_fast.reproduction.experts import experiences_of, train_experts
from exml_fast.reproduction.provenance import provenance
from exml_fast.reproduction.stream import settings_of
from exml_fast.reproduction.study_settings import RunOptions
from exml_fast.storage import save_json

__all__ = ["evaluate", "train_experts_command"]


def train_experts_command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the experts.")] = Path("experts"),
    data: Data = "digits",
    data_root: DataRoot = None,
    scenario: Scenario = "new-classes",
    classes_per_step: PerStep = "2",
    parts: Parts = 8,
    architecture: Architecture = "lenet5",
    argument: ArchitectureArgument = None,
    epochs: Epochs = None,
    lr: Annotated[float, typer.Option(help="Learning rate; the peak with onecycle.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    schedule: Annotated[str, typer.Option(help="Schedule of the learning rate: constant or onecycle.")] = "constant",
    augment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Augmentation: shift, flip, rotation or scale, as --augment shift=4; repeatable."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the convolutions: float32 or bfloat16.")] = "float32",
    initial: Annotated[
        str, typer.Option(help="First weights: common to all experts, or own, as of experts of strangers.")
    ] = "common",
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    tensorboard: TensorBoardFolder = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one expert an experience and save each as a folder with model.safetensors and card.json."""
    with Guard(context) as guard:
        experts = {
            "architecture": architecture, "arguments": parse_pairs("--argument", argument), "epochs": epochs, "lr": lr,
            "batch_size": batch_size, "schedule": schedule, "augmentation": parse_pairs("--augment", augment),
            "precision": precision, "initial": initial,
        }  # fmt: skip
        values = {
            "data": data, "scenario": scenario, "classes_per_step": parse_sizes(classes_per_step), "parts": parts,
            "experts": experts,
        }  # fmt: skip
        given = StudyRun(
            study=settings_of(values), options=RunOptions(seed=seed, device=parse_device(device), data_root=data_root),
            threads=threads,
        )  # fmt: skip
        loaded = load(data, data_root) if not resume else None
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.threads)
        options = run.options
        loaded = loaded or load(run.study.data, options.data_root)
        with Reporter(tensorboard=tensorboard) as progress:
            stream = train_experts(
                experiences_of(loaded, run.study, options.seed), out, run.study.resolved_experts(), seed=options.seed,
                device=options.device, progress=progress,
            )  # fmt: skip
        close_run(out)
        if as_json:
            cards = [{"folder": str(out / f"expert_{i + 1:02d}"), **c.to_dict()} for i, c in enumerate(stream.cards)]
            print_json({"out": str(out), **provenance(options.device), "experts": cards})
        else:
            _print_cards(stream, out)


def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of an expert or ex-model.")],
    data: Data = "digits",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the figures to this JSON file.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Accuracy of an expert or ex-model on a data set's test images: overall, by class, and the confusion matrix."""
    with Guard(context):
        use_threads(threads)
        torch.manual_seed(seed)
        expert = Expert.load(model, parse_device(device))
        loaded = load(data, data_root)
        if extra := sorted(set(expert.units) - set(loaded.classes)):
            raise ValueError(f"{model} has outputs for classes {extra}, {loaded.name!r} has only {len(loaded.classes)}")
        matrix = confusion_matrix(expert, loaded, [loaded.classes])
        counts, right = matrix.sum(1), matrix.diagonal()
        known = torch.tensor(sorted(expert.classes))
        by_class = {
            loaded.class_names[c]: {
                "images": int(counts[c]),
                "accuracy": float(right[c] / counts[c]) if counts[c] else None,
                "known": c in expert.classes,
            }
            for c in loaded.classes
        }
        summary = {
            "model": str(model), "data": loaded.name, "images": int(counts.sum()),
            "accuracy": float(right.sum() / counts.sum().clamp_min(1)),
            "accuracy_known_classes": float(right[known].sum() / counts[known].sum().clamp_min(1)),
            "by_class": by_class, "confusion": matrix.tolist(),
        }  # fmt: skip
        if out is not None:
            save_json(out, {**provenance(parse_device(device)), **summary})
        if as_json:
            print_json(summary)
        else:
            _print_evaluation(summary, loaded.class_names)


def _print_cards(stream: ExpertStream, out: Path) -> None:
    table = Table(title=f"experts in {out}", title_justify="left")
    for name in ("folder", "classes", "architecture", "images", "epochs", "own test, %", "sha256"):
        table.add_column(name, justify="right" if name in ("images", "epochs", "own test, %") else "left")
    for i, card in enumerate(stream.cards):
        accuracy = card.training.get("accuracy")
        names = dict(zip(card.units, card.class_names, strict=True))
        table.add_row(
            f"expert_{i + 1:02d}", ", ".join(names[c] for c in card.classes), card.architecture,
            str(card.training.get("samples", "")), str(card.training.get("epochs", "")),
            "-" if accuracy is None else f"{100 * accuracy:.2f}", card.sha256[:8],
        )  # fmt: skip
    Console(highlight=False).print(table)


def _print_evaluation(summary: dict[str, Any], names: list[str]) -> None:
    console = Console(highlight=False)
    console.print(
        f"{summary['model']} on {summary['images']} test images of {summary['data']}: "
        f"{100 * summary['accuracy']:.2f} %, on the classes it was trained on "
        f"{100 * summary['accuracy_known_classes']:.2f} %",
        soft_wrap=True,
    )
    table = Table(title="by class; confusion: rows are true classes, columns predictions", title_justify="left")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("right, %", justify="right")
    shown = names if len(names) <= 12 else []
    for name in shown:
        table.add_column(name, justify="right")
    for name, row in zip(names, summary["confusion"], strict=True):
        entry = summary["by_class"][name]
        right = "-" if entry["accuracy"] is None else f"{100 * entry['accuracy']:.1f}"
        cells = [str(value) if value else "·" for value in row] if shown else []
        table.add_row(name if entry["known"] else f"{name} (unknown)", str(entry["images"]), right, *cells)
    console.print(table)
