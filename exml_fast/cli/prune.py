"""`exml-fast prune`: a network with fewer filters, on images that need not be real."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from exml_fast.cli.compression import (
    CompressionOptions,
    Exports,
    Images,
    Opened,
    Speed,
    opened,
    written,
)
from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    DataRoot,
    Device,
    Input,
    Json,
    Overwrite,
    Page,
    Resume,
    Seed,
    TensorBoardFolder,
    Threads,
    Watch,
    Weights,
)
from exml_fast.cli.parsing import given_options, parse_pairs, require_report, use_threads
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.continual import Card, Expert
from exml_fast.models import widths_of
from exml_fast.ownership import remove_tree
from exml_fast.transfer import FINE_TUNING, Distillation, LatencyTable, PruneResult, Pruning
from exml_fast.transfer import prune as prune_network
from exml_fast.transfer.pruning.filters import pruning
from exml_fast.transfer.pruning.prune import Target
from exml_fast.validation import named, settings, to_dict

__all__ = ["prune"]

TARGETS: dict[str, Target] = {"filters": "filters", "flops": "flops", "latency": "latency"}


@settings
class PruneRun:
    """What ``prune`` was asked for."""

    options: CompressionOptions
    ratio: float
    target: Target
    pruning: dict[str, Any]
    tuning: dict[str, Any]
    tuned: bool
    table: str | None
    latency_images: int = 1

    def configs(self) -> tuple[Pruning, Distillation | None]:
        """Settings of the pruning and of the fine-tuning."""
        return Pruning().replace(**self.pruning), FINE_TUNING.replace(**self.tuning) if self.tuned else None


def prune(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Network: an expert's folder, torchvision/<name>, timm/<name>, cifar_resnet or lenet5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the network and the results.")] = Path("pruned"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    images: Images = None,
    ratio: Annotated[float, typer.Option(help="Share to remove, between 0 and 1.")] = 0.2,
    target: Annotated[str, typer.Option(help="What is removed: filters, flops or latency.")] = "filters",
    table: Annotated[
        Path | None,
        typer.Option("--latency-table", help="File that keeps measured latencies for later runs.", show_default=False),
    ] = None,
    latency_images: Annotated[
        int, typer.Option(min=1, help="Images at once when latencies are measured, as the network will run.")
    ] = 1,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change any field of Pruning, as chunk=8; repeatable."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the fine-tuning; default: 2000.")] = None,
    tuning: Annotated[
        list[str] | None,
        typer.Option("--tuning", metavar="NAME=VALUE", help="Change any field of the fine-tuning; repeatable."),
    ] = None,
    tuned: Annotated[bool, typer.Option("--fine-tuning/--no-fine-tuning", help="Learn afterwards.")] = True,
    data: Annotated[
        str | None, typer.Option(help="Data set that tests the networks; nothing is learned from it.")
    ] = None,
    data_root: DataRoot = None,
    formats: Exports = None,
    speed: Speed = True,
    report: Page = False,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Remove the filters of a classifier that matter least, on images that need not be real (Yin 2020)."""
    with Guard(context) as guard:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        report = report or watch
        if report:
            require_report()
        pruning()
        given = PruneRun(
            options=CompressionOptions.asked(
                model=model, weights=weights, argument=argument, input_spec=input_spec, images=images, data=data,
                data_root=data_root, formats=formats, speed=speed, report=report, seed=seed, device=device,
                threads=threads,
            ),
            ratio=ratio, target=named("--target", target, TARGETS), pruning=parse_pairs("--set", changes),
            tuning=given_options(steps=steps) | parse_pairs("--tuning", tuning), tuned=tuned,
            table=None if table is None else str(table), latency_images=latency_images,
        )  # fmt: skip
        if not 0 < ratio < 1:
            raise ValueError(f"--ratio must be between 0 and 1, both left out, got {ratio:g}")
        given.configs()
        ready = None if resume else opened(given.options)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.options.machine.threads)
        ready = ready or opened(run.options)
        config, fine_tuning = run.configs()
        network = ready.teacher.model
        latencies = LatencyTable.of(network, batch_size=run.latency_images, path=run.table)
        with Viewer(out, "Pruning", watch=watch, tensorboard=tensorboard, followed=run.options.report) as progress:
            result = prune_network(
                network, ready.images, run.ratio, target=run.target, config=config,
                fine_tuning=fine_tuning, table=latencies, spec=ready.spec,
                seed=run.options.machine.seed, progress=progress, checkpoint_dir=out / "checkpoints",
            )  # fmt: skip
        summary = _saved(run, ready, result, out)
        remove_tree(out / "checkpoints")
        close_run(out)
        if as_json:
            print_json(summary)
        else:
            before, after = summary["networks"].values()
            tested = "" if after["accuracy"] is None else f", {after['accuracy']:.2f} % of {before['accuracy']:.2f} %"
            left = ", ".join(f"{100 * v:.0f} % of the {k}" for k, v in summary["left"].items() if v is not None)
            typer.echo(f"network in {out / 'network'}: {left}{tested}, agrees on {summary['agreement']:.1f} %")


def _saved(run: PruneRun, ready: Opened, result: PruneResult, out: Path) -> dict[str, Any]:
    teacher, small = ready.teacher, result.model
    units = teacher.units or tuple(range(teacher.outputs()))
    names = tuple(teacher.class_names.get(unit, str(unit)) for unit in units)
    architecture, arguments = result.architecture(*ready.architecture)
    training = {"method": "pruning", "network": run.options.teacher.model, "ratio": run.ratio, "target": run.target}
    card = Card(architecture, arguments, units, teacher.classes or units, names, teacher.spec, training=training)
    Expert(small, card).save(out / "network")
    before = widths_of(teacher.model)
    layers = [
        {"Layer": name, "Channels before": "/".join(map(str, before[name])), "Channels now": "/".join(map(str, now))}
        for name, now in result.widths.items()
    ]  # fmt: skip
    left = {key: result.rounds[-1][key] for key in ("filters", "flops", "latency")}
    removed = [(100 * (1 - entry[run.target]), entry["loss"]) for entry in result.rounds]
    curves = {"Divergence before each removal": ({"loss": removed}, (f"removed {run.target}, %", "divergence"))}
    networks = {"before": teacher.model, "pruned": small}
    sizes = {name: sum(t.nbytes for t in network.state_dict().values()) for name, network in networks.items()}
    more = {"left": left, "rounds": result.rounds, "fixed": result.fixed}
    asked = {name: value for name, value in to_dict(run).items() if name not in ("options", "table")}
    return written(out, run.options, ready, result, networks, sizes, layers, curves, more, asked)
