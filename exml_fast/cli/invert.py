"""`exml-fast invert`: images out of a classifier."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from exml_fast.cli.asked import InvertRun, JudgeOptions, MachineOptions, StatisticsOptions, TeacherOptions, public
from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    Device,
    Input,
    Json,
    Judge,
    Layer,
    Overwrite,
    Page,
    Png,
    Real,
    Resume,
    Seed,
    Statistics,
    StatisticsCount,
    TensorBoardFolder,
    Threads,
    Watch,
    Weights,
)
from exml_fast.cli.parsing import (
    given_options,
    parse_device,
    parse_input,
    parse_pairs,
    parse_precision,
    require_report,
    use_threads,
)
from exml_fast.cli.preparation import prepared_inversion
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.inversion import invert as invert_model
from exml_fast.ownership import remove_tree
from exml_fast.report.images import save_images, save_report
from exml_fast.reproduction.provenance import provenance

__all__ = ["invert"]


def invert(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="An expert's folder, torchvision/<name>, timm/<name>, cifar_resnet or lenet5.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("inverted"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Default: deep_inversion, for networks without BatchNorm model_inversion. From 96 pixels on: "
            "deep_inversion/imagenet-transferable, for networks without BatchNorm with bn=0.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Ids or names of classes, separated by commas; default: all.")] = "",
    per_class: Annotated[int, typer.Option(min=1, help="Number of images of each class.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps; default: the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a batch; default: the recipe's.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the network: auto, float32 or bfloat16.")] = "auto",
    parametrisation: Annotated[
        str | None,
        typer.Option(help="Optimise the parameters of drawings instead of pixels: pen-strokes.", show_default=False),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
            help="Student that adaptive_deep_inversion competes with.",
            show_default=False,
        ),
    ] = None,
    statistics: Statistics = None,
    statistics_count: StatisticsCount = 100,
    layer: Layer = None,
    judge: Judge = None,
    real: Real = None,
    png: Png = False,
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
    """Make images of a classifier's classes from the classifier alone."""
    with Guard(context) as guard:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        report = report or watch
        if report:
            require_report()
        overrides = parse_pairs("--set", override)
        overrides |= given_options(steps=steps, lr=lr, batch_size=batch_size)
        given = InvertRun(
            teacher=TeacherOptions(
                model=model, weights=weights, arguments=parse_pairs("--argument", argument),
                input=parse_input(input_spec), classes=classes,
            ),
            matching=StatisticsOptions(
                statistics=statistics, statistics_count=statistics_count, layers=tuple(layer or ())
            ),
            judging=JudgeOptions(judges=tuple(judge or ()), real=real),
            machine=MachineOptions(
                seed=seed, device=parse_device(device), precision=parse_precision(precision), threads=threads
            ),
            recipe=recipe, per_class=per_class, overrides=overrides, parametrisation=parametrisation, student=student,
            png=png, report=report,
        )  # fmt: skip
        # Mistakes in the options are reported before an earlier run in the folder is replaced.
        ready = None if resume else prepared_inversion(given)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.machine.threads)
        teacher, wanted, chosen, options, asked = ready or prepared_inversion(run)
        begun = time.monotonic()
        with Viewer(
            out, f"Images from {run.teacher.model}", watch=watch, tensorboard=tensorboard, followed=run.report
        ) as reporter:
            result = invert_model(
                teacher.model, wanted, per_class=run.per_class, recipe=chosen, spec=teacher.spec,
                seed=run.machine.seed, device=run.machine.device, precision=run.machine.precision,
                units=teacher.units, progress=reporter, layers=run.matching.layers,
                checkpoint_dir=out / "checkpoints", **options,
            )  # fmt: skip
        beside = time.monotonic() - begun - result.seconds  # the choice of algorithms, and what judges the images
        save_images(result, out, run.per_class, run.png)
        remove_tree(out / "checkpoints")
        found = asked.ask(result)
        origin = provenance(run.machine.device)
        save_report(out, result, teacher, found, origin, public(run), run.report, asked.real, film=reporter.film)
        close_run(out)
        summary = {
            "out": str(out), "model": run.teacher.model, "classes": sorted(set(result.labels.tolist())),
            "seconds": round(result.seconds, 3), **result.summary, **found.to_dict(), **origin,
        }  # fmt: skip
        if as_json:
            print_json(summary)
        else:
            others = "".join(
                f", {100 * found.judges[judge]['top1']:.1f} % by {judge}" for judge in list(found.judges)[1:]
            )
            without = "" if chosen.matching.bn > 0 and not result.summary["absent"] else ", without statistics"
            typer.echo(
                f"{len(result)} images by {chosen.name}{without} in {result.seconds:.1f} s "
                f"({result.summary['images_per_second']:.1f} a second), {max(beside, 0):.1f} s beside the steps, "
                f"{100 * result.summary['teacher_accuracy']:.1f} % recognised by the network{others}: "
                f"{out / 'grid.png'}"
            )
