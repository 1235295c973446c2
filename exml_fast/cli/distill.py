"""`exml-fast distill`: a student that learns from images out of its teacher."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from exml_fast.cli.asked import (
    DistillRun,
    JudgeOptions,
    MachineOptions,
    StatisticsOptions,
    StudentOptions,
    TeacherOptions,
    public,
)
from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    DataRoot,
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
    FAST,
    SOURCE_NAMES,
    given_options,
    parse_device,
    parse_input,
    parse_pairs,
    parse_precision,
    require_report,
    use_threads,
)
from exml_fast.cli.preparation import prepared_distillation
from exml_fast.cli.run_file import RUN_FILE, close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.continual import Card, Expert
from exml_fast.data.buffer import IMAGES_FILE
from exml_fast.evaluation import accuracy
from exml_fast.evaluation.features import logits as logits_of
from exml_fast.inversion import Result
from exml_fast.ownership import remove_tree
from exml_fast.ranks import started
from exml_fast.report.images import history_rows, learned_row, save_images, save_report
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_json, save_json
from exml_fast.transfer import distill as distill_model
from exml_fast.validation import from_mapping, to_dict

__all__ = ["distill"]


def distill(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Teacher: an expert's folder, torchvision/<name>, timm/<name>, cifar_resnet or lenet5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the student, its images and the results.")] = Path("distilled"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    student: Annotated[
        str,
        typer.Option(
            help="Architecture of the student, which starts from random weights: torchvision/<name>, timm/<name>, …"
        ),
    ] = "lenet5",
    student_argument: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the student's architecture; repeatable.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Folder that `exml-fast invert` or `synthesize` wrote; the student learns from its images. Or random "
            "images, drawn "
            f"while the student learns: {', '.join(SOURCE_NAMES)}. Or {FAST}: images of a meta-generator (Fang 2022).",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe of the images that are made while the student learns; default without --images: "
            "adaptive_deep_inversion (for large images adaptive_deep_inversion/imagenet-transferable). Repeatable: "
            "each round draws one of them.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Ids or names of classes, separated by commas; default: all.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps of the student; default: 48750.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds of new images; default: one every generate_every steps.")
    ] = None,
    inversion: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"Change any field of the recipe, or of --images {FAST}; repeatable.",
        ),
    ] = None,
    distillation: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change any field of the distillation, as temperature=3; repeatable."),
    ] = None,
    pool_dir: Annotated[
        Path | None,
        typer.Option(help="Folder in which the images are kept in a file instead of in memory.", show_default=False),
    ] = None,
    statistics: Statistics = None,
    statistics_count: StatisticsCount = 100,
    layer: Layer = None,
    judge: Judge = None,
    real: Real = None,
    png: Png = False,
    data: Annotated[
        str | None,
        typer.Option(help="Data set that tests the student, which never learns from it.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the inverted network: auto, float32 or bfloat16.")
    ] = "auto",
    tensorboard: TensorBoardFolder = None,
    report: Page = False,
    watch: Watch = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Teach a fresh network what a classifier knows, on images made from the classifier alone."""
    with Guard(context) as guard, started() as ranks:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        report = report or watch
        if report:
            require_report()
        given = DistillRun(
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
            learning=StudentOptions(
                student=student, student_arguments=parse_pairs("--student-argument", student_argument),
                distillation=given_options(steps=steps, rounds=rounds) | parse_pairs("--distillation", distillation),
                data=data, data_root=data_root,
            ),
            images=images, recipes=tuple(recipe or ()),
            inversion=parse_pairs("--set", inversion), pool_dir=None if pool_dir is None else str(pool_dir),
            png=png, report=report,
        )  # fmt: skip
        ready = None if resume else prepared_distillation(given)
        run = given
        if ranks.first and _restarted(out, given):
            guard.own(out)
        elif ranks.first:
            run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        ranks.wait()
        if not ranks.first and resume:
            run = from_mapping(DistillRun, load_json(out / RUN_FILE)["settings"], str(out / RUN_FILE))
        use_threads(run.machine.threads)
        if ranks.count > 1 and run.machine.device == "cuda":
            machine = dataclasses.replace(run.machine, device=f"cuda:{os.environ['LOCAL_RANK']}")
            run, ready = dataclasses.replace(run, machine=machine), None
        ready = ready or prepared_distillation(run)
        teacher, wanted, fresh, config, test = ready.teacher, ready.classes, ready.student, ready.config, ready.test

        units = teacher.units or tuple(range(teacher.outputs()))

        viewer = Viewer(
            out,
            f"Distilling {run.teacher.model}",
            watch=watch and ranks.first,
            followed=run.report,
            tensorboard=tensorboard if ranks.first else None,
        )
        with contextlib.ExitStack() as stack:
            progress: Any = stack.enter_context(viewer) if ranks.first else None
            taught = distill_model(
                teacher.model, fresh, ready.source or ready.images, recipe=ready.recipes or None, config=config,
                spec=teacher.spec, classes=None if ready.drawn else wanted, units=teacher.units,
                statistics=ready.statistics, layers=run.matching.layers, seed=run.machine.seed,
                device=run.machine.device,
                evaluate=None if test is None else lambda network: accuracy(network, test, teacher.spec, units),
                progress=progress, checkpoint_dir=out / "checkpoints", pool_dir=run.pool_dir,
                ranks=ranks,
            )  # fmt: skip
        if not ranks.first:
            return
        known = tuple(wanted or units)
        origin = provenance(run.machine.device)
        test_accuracy = taught.evaluations[-1][1] if taught.evaluations else None
        made_by = [recipe.to_dict() for recipe in ready.recipes]
        drawn_by = ready.described()
        training = {
            "method": "distillation", "teacher": run.teacher.model, "recipes": made_by, "source": drawn_by,
            "config": config.to_dict(), "images": len(taught.images), "seed": run.machine.seed,
            "accuracy": test_accuracy,
        }  # fmt: skip
        names = tuple(teacher.class_names.get(u, str(u)) for u in units)
        card = Card(run.learning.student, ready.arguments, units, known, names, teacher.spec, training=training)
        Expert(taught.model.cpu(), card).save(out / "student")
        seconds = {name: round(value, 3) for name, value in taught.seconds.items()}
        learned = {
            "student": run.learning.student, "steps": config.training.steps,
            "agreement": taught.history["agreement"][-1],
            "accuracy": test_accuracy, "seconds": seconds, "rounds": taught.rounds,
        }  # fmt: skip
        pool = Result(
            taught.images, taught.labels, None, teacher.spec, {}, taught.seconds["generate"],
            {"recipes": made_by, "source": drawn_by, "distillation": learned}, logits_of(teacher.model, taught.images),
        )  # fmt: skip
        save_images(pool, out / "images", None, run.png)
        found = ready.panel.ask(pool, **{f"{run.learning.student} (student)": taught.model.to(run.machine.device)})
        tables = {"The student": [learned_row(learned)], "Its learning": history_rows(taught.history)}
        save_report(out, pool, teacher, found, origin, public(run), run.report, ready.panel.real, tables, viewer.film)
        summary = {
            "out": str(out), "images": len(pool), **learned, "student": str(out / "student"),
            **found.to_dict(), **origin,
        }  # fmt: skip
        save_json(out / "results.json", {**summary, "history": taught.history, "settings": public(run)})
        remove_tree(out / "checkpoints")
        if run.pool_dir:
            (Path(run.pool_dir) / IMAGES_FILE).unlink(missing_ok=True)  # they are in out / "images" now
        close_run(out)
        if as_json:
            print_json(summary)
        else:
            tested = (
                ""
                if test_accuracy is None
                else f", {100 * test_accuracy:.2f} % of the test images of {run.learning.data}"
            )
            typer.echo(
                f"student in {out / 'student'}: agrees with its teacher on {100 * summary['agreement']:.1f} % of the "
                f"last images{tested} ({sum(seconds.values()):.0f} s, {len(pool)} images)"
            )


def _restarted(out: Path, given: DistillRun) -> bool:
    """Whether torchrun has restarted this run, which then goes on from its checkpoint without --resume."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0 or not (out / RUN_FILE).is_file():
        return False
    stored = load_json(out / RUN_FILE)
    return not stored["finished"] and stored["settings"] == to_dict(given)
