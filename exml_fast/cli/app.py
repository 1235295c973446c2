"""The commands. Each turns its options into a call of the library and prints what came out."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from exml_fast import build_info
from exml_fast.cli import catalogue
from exml_fast.cli.guard import (
    Guard,
    Json,
    close_run,
    open_run,
    parse_device,
    parse_pairs,
    print_json,
    require_report,
    was_typed,
)
from exml_fast.cli.progress import Reporter
from exml_fast.cli.provenance import provenance
from exml_fast.cli.reproduce import reproduce_command, transfer
from exml_fast.cli.synthesis import (
    history_rows,
    learned_row,
    parse_input,
    prepared_inversion,
    prepared_transfer,
    save_images,
    save_report,
)
from exml_fast.cli.teachers import ArchitectureArgument, Input, Weights
from exml_fast.continual import Card, Expert, ExpertStream, confusion_matrix
from exml_fast.data import SOURCES, load
from exml_fast.data.buffer import IMAGES_FILE
from exml_fast.data.sets import NAMES
from exml_fast.distillation import distill as distill_model
from exml_fast.engine import PRECISIONS
from exml_fast.evaluation.features import logits as logits_of
from exml_fast.inversion import Result
from exml_fast.inversion import invert as invert_model
from exml_fast.progress import TensorBoard
from exml_fast.reproduction.study import ALL, RECIPES, STRATEGIES, Settings, Study, train_experts
from exml_fast.reproduction.summary import joint_rows, print_rows, settings_of_study, summary_of, write_page
from exml_fast.reproduction.tables import learn_preset
from exml_fast.storage import save_json

__all__ = ["app"]

app = typer.Typer(
    name="exml-fast",
    help="Data-free learning from trained models: images out of classifiers, and models that learn from them alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(catalogue.app, name="catalogue")

app.add_typer(transfer, name="transfer")
app.command("reproduce")(reproduce_command)

Seed = Annotated[int, typer.Option(help="Decides everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<n>.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice if not given.")]
OneThread = Annotated[
    int, typer.Option(min=1, help="CPU threads. One suits small networks: on a busy machine more wait for each other.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Throw away an unfinished run in --out (a finished one is replaced).")
]
Data = Annotated[str, typer.Option(help=f"{', '.join(NAMES)}, a .npz file or an image folder.")]
DataRoot = Annotated[
    str | None,
    typer.Option(
        help="Where downloaded data sets and core50_128x128 are kept.", envvar="EXML_FAST_DATA", show_envvar=True
    ),
]
Scenario = Annotated[str, typer.Option(help="joint, new-classes, multi-task or new-instances.")]
PerStep = Annotated[
    str, typer.Option(help="Classes of each expert in new-classes and multi-task; 10,5: ten, then five each.")
]
Parts = Annotated[int, typer.Option(min=1, help="Experts in new-instances.")]
Architecture = Annotated[str, typer.Option(help="lenet5, torchvision/<name> or timm/<name>.")]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
        help="An independent network to ask about the images, as cifar_resnet:depth=56=resnet56.th; repeatable.",
        show_default=False,
    ),
]  # fmt: skip
Real = Annotated[
    str | None,
    typer.Option(help="Data set or folder of real images to look for copies among.", show_default=False),
]
Png = Annotated[bool, typer.Option("--png", help="Also write each image as a PNG.")]
Statistics = Annotated[
    str | None,
    typer.Option(
        help="Data set or folder of real images whose statistics are matched instead of BatchNorm's.",
        show_default=False,
    ),
]  # fmt: skip
StatisticsCount = Annotated[int, typer.Option(min=1, help="How many of them.")]
Layer = Annotated[
    list[str] | None,
    typer.Option(help="Layer to match there, * for anything; repeatable. For networks without BatchNorm."),
]
Page = Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="MNIST: 100 joint, 20 new classes; digits: 40; others: 20.")]

# For small data such as digits, where the paper's settings for MNIST would take hours for nothing: the demo ends in
# about two minutes on two cores. Other data get the recipe as published, and Carta 2022's distillation.
SMALL: dict[str, dict[str, Any]] = {
    "inversion": {"steps": 200, "lr": 0.05, "blur": 0.01, "stop_confidence": None},
    "distillation": {"buffer_size": 300, "iterations": 800, "lr": 0.02},
    "random_images": {"buffer_size": 1000, "iterations": 400},
}
PUBLISHED: dict[str, dict[str, Any]] = {"inversion": {}, "distillation": {"buffer_size": 5000, "iterations": 30000}}


def _show_version(wanted: bool) -> None:
    if wanted:
        for name, value in build_info().items():
            typer.echo(f"{name:<15} {value if value is not None else 'none'}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="What was built, and exit.")
    ] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command("train-experts")
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
    lr: Annotated[float, typer.Option(help="Learning rate, with onecycle its peak.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: constant or onecycle.")] = "constant",
    augment: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="shift, flip, rotation, scale; repeatable: --augment shift=4."),
    ] = None,
    arithmetic: Annotated[str, typer.Option(help="Of convolutions: float32 or bfloat16.")] = "float32",
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one expert an experience and save each as a folder with model.safetensors and card.json."""
    with Guard(context) as guard:
        arguments = parse_pairs("--argument", argument)
        given = Settings(
            data=data, data_root=data_root, scenario=scenario, parts=parts,
            classes_per_step=_sizes(classes_per_step), seed=seed, device=parse_device(device),
            architecture=architecture,
            arguments=arguments, epochs=epochs, expert_lr=lr, expert_batch_size=batch_size, expert_schedule=schedule,
            expert_augmentation=parse_pairs("--augment", augment), expert_arithmetic=arithmetic,
        )  # fmt: skip
        given.check()
        loaded = load(data, data_root) if not resume else None
        settings, used_threads, _ = _open(context, guard, out, given, threads, False, resume, overwrite)
        _use_threads(used_threads)
        loaded = loaded or load(settings.data, settings.data_root)
        with Reporter() as report:
            stream = train_experts(loaded, out, settings, settings.seed, report)
        close_run(out)
        if as_json:
            cards = [{"folder": str(out / f"expert_{i + 1:02d}"), **c.to_dict()} for i, c in enumerate(stream.cards)]
            print_json({"out": str(out), **provenance(settings.device), "experts": cards})
        else:
            _print_cards(stream, out)


@app.command()
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
            help="By default deep_inversion (for large images deep_inversion/imagenet-transferable), and "
            "model_inversion without BatchNorm.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Ids or names, with commas between; all if not given.")] = "",
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps; the recipe's if not given.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the recipe's if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images together; the recipe's if not given.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the network inside: auto, float32 or bfloat16.")] = "auto",
    parametrisation: Annotated[
        str | None,
        typer.Option(
            help="Optimise the parameters of images of a kind in place of pixels: pen-strokes.", show_default=False
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
            help="Whom adaptive_deep_inversion competes with.",
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
        if report:
            require_report()
        overrides = parse_pairs("--set", override)
        overrides |= _given(steps=steps, lr=lr, batch_size=batch_size)
        if precision not in PRECISIONS:
            raise ValueError(f"--precision must be one of {list(PRECISIONS)}, got {precision!r}")
        given: dict[str, Any] = {
            "model": model, "weights": weights, "arguments": parse_pairs("--argument", argument),
            "input": parse_input(input_spec), "recipe": recipe, "classes": classes, "per_class": per_class,
            "overrides": overrides, "precision": precision, "parametrisation": parametrisation, "student": student,
            "statistics": statistics, "statistics_count": statistics_count, "layers": layer or [],
            "judges": judge or [], "real": real, "png": png, "report": report, "seed": seed,
            "device": parse_device(device), "threads": threads,
        }  # fmt: skip
        # Whatever is wrong with the options shows before an earlier run in the folder is touched.
        ready = None if resume else prepared_inversion(given)
        run = open_run(context, guard, out, given, resume, overwrite)
        _use_threads(run["threads"])
        teacher, wanted, chosen, options, asked = ready or prepared_inversion(run)
        with Reporter() as reporter:
            result = invert_model(
                teacher.model, wanted, run["per_class"], chosen, teacher.spec, run["seed"], run["device"],
                run["precision"], units=teacher.units, progress=reporter, layers=run["layers"],
                checkpoint=out / "inversion.pt", **options,
            )  # fmt: skip
        save_images(result, out, run["per_class"], run["png"])
        found = asked.ask(result)
        origin = provenance(run["device"])
        save_report(out, result, teacher, found, origin, _published(run), run["report"], asked)
        close_run(out)
        summary = {
            "out": str(out), "model": run["model"], "classes": sorted(set(result.labels.tolist())),
            "seconds": round(result.seconds, 3), **result.summary, **found.to_dict(), **origin,
        }  # fmt: skip
        if as_json:
            print_json(summary)
        else:
            others = "".join(
                f", {100 * found.judges[judge]['top1']:.1f} % by {judge}" for judge in list(found.judges)[1:]
            )
            without = "" if chosen.bn > 0 and not result.summary["absent"] else ", without statistics"
            typer.echo(
                f"{len(result)} images by {chosen.name}{without} in {result.seconds:.1f} s "
                f"({result.summary['images_per_second']:.1f} a second), "
                f"{100 * result.summary['teacher_accuracy']:.1f} % recognised by the network{others}: "
                f"{out / 'grid.png'}"
            )


@app.command()
def distill(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="The teacher; as for invert.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the student, its images and the results.")] = Path("distilled"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    student: Annotated[
        str,
        typer.Option(help="Architecture, freshly initialised: torchvision/<name>, timm/<name>, cifar_resnet, lenet5."),
    ] = "lenet5",
    student_argument: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the student's architecture; repeatable.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of an inversion to learn from.", show_default=False)
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Of images made meanwhile; without --images adaptive_deep_inversion (for large images "
            "adaptive_deep_inversion/imagenet-transferable). Repeatable: each round takes one of them by chance.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Ids or names, with commas between; all if not given.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the student's training; 48750.")] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds of generation; as many as the steps allow.")] = None,
    inversion: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any setting of the transfer, as temperature=3; repeatable."),
    ] = None,
    pool_dir: Annotated[
        Path | None, typer.Option(help="Keep the images in a file there, not in memory.", show_default=False)
    ] = None,
    statistics: Statistics = None,
    statistics_count: StatisticsCount = 100,
    layer: Layer = None,
    judge: Judge = None,
    real: Real = None,
    png: Png = False,
    data: Annotated[
        str | None, typer.Option(help="Data set to test the student on; it never learns from it.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
    precision: Annotated[str, typer.Option(help="As for invert.")] = "auto",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's files.", show_default=False)
    ] = None,
    report: Page = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Teach a fresh network what a classifier knows, on images made from the classifier alone."""
    with Guard(context) as guard:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        if report:
            require_report()
        if precision not in PRECISIONS:
            raise ValueError(f"--precision must be one of {list(PRECISIONS)}, got {precision!r}")
        given: dict[str, Any] = {
            "model": model, "weights": weights, "arguments": parse_pairs("--argument", argument),
            "input": parse_input(input_spec), "student": student,
            "student_arguments": parse_pairs("--student-argument", student_argument),
            "images": None if images is None else str(images),
            "recipes": recipe or [], "classes": classes,
            "inversion": parse_pairs("--set", inversion),
            "transfer": _given(steps=steps, rounds=rounds) | parse_pairs("--transfer", transfer),
            "pool_dir": None if pool_dir is None else str(pool_dir),
            "statistics": statistics, "statistics_count": statistics_count, "layers": layer or [],
            "judges": judge or [], "real": real, "png": png, "data": data, "data_root": data_root,
            "precision": precision, "tensorboard": None if tensorboard is None else str(tensorboard),
            "report": report, "seed": seed, "device": parse_device(device), "threads": threads,
        }  # fmt: skip
        ready = None if resume else prepared_transfer(given)
        run = open_run(context, guard, out, given, resume, overwrite)
        _use_threads(run["threads"])
        ready = ready or prepared_transfer(run)
        teacher, wanted, fresh, config, test = ready.teacher, ready.classes, ready.student, ready.config, ready.test

        units = teacher.units or tuple(range(teacher.outputs()))

        def accuracy(network: torch.nn.Module) -> float:
            assert test is not None
            ids = torch.tensor(units)
            with torch.no_grad():
                right = [
                    (ids[network(x.to(run["device"])).argmax(1).cpu()] == y).sum()
                    for x, y in test.batches(teacher.spec)
                ]
            return float(sum(right)) / len(test)

        with contextlib.ExitStack() as stack:
            progress: Any = stack.enter_context(Reporter())
            if run["tensorboard"]:
                progress = stack.enter_context(TensorBoard(run["tensorboard"], progress))
            taught = distill_model(
                teacher.model, fresh, ready.images, recipe=ready.recipes or None, config=config, spec=teacher.spec,
                classes=wanted, units=teacher.units, statistics=ready.statistics, layers=run["layers"],
                seed=run["seed"], device=run["device"], precision=run["precision"],
                evaluate=accuracy if test is not None else None, progress=progress, checkpoint_dir=out / "checkpoints",
                pool_dir=run["pool_dir"],
            )  # fmt: skip
        known = tuple(wanted or units)
        origin = provenance(run["device"])
        test_accuracy = taught.evaluations[-1][1] if taught.evaluations else None
        made_by = [recipe.to_dict() for recipe in ready.recipes]
        training = {
            "method": "distillation", "teacher": run["model"], "recipes": made_by, "config": config.to_dict(),
            "images": len(taught.images), "seed": run["seed"], "accuracy": test_accuracy,
        }  # fmt: skip
        names = tuple(teacher.class_names.get(u, str(u)) for u in units)
        card = Card(run["student"], ready.arguments, units, known, names, teacher.spec, training=training)
        Expert(taught.student.cpu(), card).save(out / "student")
        seconds = {name: round(value, 3) for name, value in taught.seconds.items()}
        learned = {
            "student": run["student"], "steps": config.steps, "agreement": taught.history["agreement"][-1],
            "accuracy": test_accuracy, "seconds": seconds, "rounds": taught.rounds,
        }  # fmt: skip
        pool = Result(
            taught.images, taught.labels, None, teacher.spec, {}, taught.seconds["generate"],
            {"recipes": made_by, "distillation": learned}, logits_of(teacher.model, taught.images),
        )  # fmt: skip
        save_images(pool, out / "images", None, run["png"])
        found = ready.panel.ask(pool, **{f"{run['student']} (student)": taught.student.to(run["device"])})
        tables = {"The student": [learned_row(learned)], "Its learning": history_rows(taught.history)}
        save_report(out, pool, teacher, found, origin, _published(run), run["report"], ready.panel, tables)
        summary = {
            "out": str(out), "images": len(pool), **learned, "student": str(out / "student"),
            **found.to_dict(), **origin,
        }  # fmt: skip
        save_json(out / "results.json", {**summary, "history": taught.history, "settings": _published(run)})
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        if run["pool_dir"]:
            (Path(run["pool_dir"]) / IMAGES_FILE).unlink(missing_ok=True)  # they are in out / "images" now
        close_run(out)
        if as_json:
            print_json(summary)
        else:
            tested = (
                "" if test_accuracy is None else f", {100 * test_accuracy:.2f} % of the test images of {run['data']}"
            )
            typer.echo(
                f"student in {out / 'student'}: agrees with its teacher on {100 * summary['agreement']:.1f} % of the "
                f"last images{tested} ({sum(seconds.values()):.0f} s, {len(pool)} images)"
            )


@app.command()
def learn(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the ex-model, results and checkpoints.")] = Path("learned"),
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings by name, as carta2022/mnist-nc, or of a .toml file; other options go before them.",
            show_default=False,
        ),
    ] = None,
    experts: Annotated[
        Path | None, typer.Option(help="Folder of experts; trained first if not given.", show_default=False)
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(STRATEGIES)}; all: the paper's, the first three.", show_default=False),
    ] = None,
    data: Data = "digits",
    data_root: DataRoot = None,
    scenario: Scenario = "new-classes",
    classes_per_step: PerStep = "2",
    parts: Parts = 8,
    auxiliary: Annotated[
        str, typer.Option(help="Data set, or folder of any images, of auxiliary-data.")
    ] = "fashion-mnist",
    variant: Annotated[str, typer.Option(help="Published variant of the recipes: mnist, cifar10 or core50.")] = "mnist",
    buffer: Annotated[int | None, typer.Option(min=1, help="Images kept; 5000, digits: 300.")] = None,
    buffer_dir: Annotated[
        Path | None, typer.Option(help="Keep those images in a file there, not in memory.", show_default=False)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Distillation steps for each expert; 30000, digits: 800.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Inversion steps; the recipe's, digits: 200.")] = None,
    inversion: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    distillation: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any field of the distillation; repeatable.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help=f"Experts' logits on one scale, by {', '.join(SOURCES)}, or none; random images: their own.",
            show_default=False,
        ),
    ] = None,
    architecture: Architecture = "lenet5",
    argument: ArchitectureArgument = None,
    epochs: Epochs = None,
    expert_lr: Annotated[float, typer.Option(help="Learning rate of the experts.")] = 0.01,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds: mean and deviation.")] = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    report: Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")] = False,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn one model from a stream of experts without their data, beside the baselines on the same experts."""
    with Guard(context) as guard:
        usual: dict[str, Any] = SMALL if data == "digits" else PUBLISHED
        values: dict[str, Any] = {
            "data": data, "scenario": scenario, "classes_per_step": _sizes(classes_per_step), "parts": parts,
            "architecture": architecture, "arguments": parse_pairs("--argument", argument), "epochs": epochs,
            "expert_lr": expert_lr, "auxiliary": auxiliary, "variant": variant,
            "strategies": list(dict.fromkeys(strategy or ["model-inversion"])), "calibration": calibration,
        }  # fmt: skip
        if preset is not None:
            options = {"argument": "arguments", "strategy": "strategies"}
            typed = {options.get(name, name) for name in context.params if was_typed(context, name)}
            usual = learn_preset(preset)
            values = usual | {name: value for name, value in values.items() if name in typed}
        if "all" in values["strategies"]:
            values["strategies"] = ALL
        values["inversion"] = usual.get("inversion", {}) | _given(steps=steps) | parse_pairs("--inversion", inversion)
        asked = _given(buffer_size=buffer, iterations=iterations) | parse_pairs("--distillation", distillation)
        for table in ("distillation", "random_images"):
            values[table] = usual.get(table, {}) | asked
        if buffer_dir is not None:
            values["buffer_dir"] = str(buffer_dir)
        given = Settings(
            **values, data_root=data_root, seed=seed, seeds=seeds, device=parse_device(device),
            experts=None if experts is None else str(experts),
        )  # fmt: skip
        given.check()
        if not resume:
            study = Study(given, out, Reporter())
            if experts is not None:
                study.stream(given.seed)
            if report:
                require_report()
        settings, used_threads, report = _open(context, guard, out, given, threads, report, resume, overwrite)
        _use_threads(used_threads)
        with Reporter() as reporter:
            study = Study(settings, out, reporter)
            rows = study.run()
        origin = provenance(settings.device)
        save_json(out / "results.json", {**origin, "settings": settings.published(), "rows": rows})
        page = None
        if report:
            page = write_page(
                out / "report" / "index.html", study, None, f"Learning from experts of {settings.data}",
                summary_of(study), origin, settings_of_study(study, used_threads),
            )  # fmt: skip
        close_run(out)
        if as_json:
            print_json({"out": str(out), "report": page and str(page), **origin, "rows": rows})
        else:
            print_rows(rows, f"{settings.data}, {settings.scenario}, {len(study.experiences)} experts")
            typer.echo(f"ex-model and results: {out}" + (f", page: {page}" if page else ""))


@app.command()
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
        _use_threads(threads)
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


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the page, the results and the models.")] = Path("demo"),
    data: Data = "digits",
    data_root: DataRoot = None,
    classes_per_step: PerStep = "2",
    steps: Annotated[int, typer.Option(min=1, help="Inversion steps.")] = SMALL["inversion"]["steps"],
    iterations: Annotated[int, typer.Option(min=1, help="Distillation steps for each expert.")] = SMALL["distillation"][
        "iterations"
    ],
    buffer: Annotated[int, typer.Option(min=1, help="Images kept.")] = SMALL["distillation"]["buffer_size"],
    epochs: Epochs = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """All of it in minutes: experts on digits, three ways to learn from them, baselines, joint training, a page."""
    with Guard(context) as guard:
        require_report()
        asked = {"buffer_size": buffer, "iterations": iterations}
        typed = {name: asked[name] for name in asked if was_typed(context, name.removesuffix("_size"))}
        given = Settings(
            data=data, data_root=data_root, classes_per_step=_sizes(classes_per_step), seed=seed,
            device=parse_device(device), epochs=epochs,
            strategies=["model-inversion", "data-impression", "natural-fields"],
            inversion=SMALL["inversion"] | {"steps": steps},
            distillation=SMALL["distillation"] | asked, random_images=SMALL["random_images"] | typed,
        )  # fmt: skip
        given.check()
        if not resume:
            load(data, data_root)
        settings, used_threads, _ = _open(context, guard, out, given, threads, True, resume, overwrite)
        _use_threads(used_threads)
        inverting = [name for name in settings.strategies if name in RECIPES]
        joint_settings = Settings(**{**asdict(settings), "scenario": "joint", "strategies": inverting})
        with Reporter() as report:
            study = Study(settings, out, report, "stream")
            study.run()
            beside = Study(joint_settings, out / "joint", report, "joint expert")
            beside.run()
        rows = study.rows() + joint_rows(beside)
        origin = provenance(settings.device)
        save_json(out / "results.json", {**origin, "settings": settings.published(), "rows": rows})
        page = write_page(
            out / "report" / "index.html", study, beside, f"Learning without data: {study.data.name}",
            summary_of(study) + " The settings are the demo's: few steps, so that it ends in minutes.", origin,
            settings_of_study(study, used_threads),
        )  # fmt: skip
        close_run(out)
        if as_json:
            print_json({"out": str(out), "report": str(page), **origin, "rows": rows})
        else:
            print_rows(rows, f"{study.data.name}: {len(study.experiences)} experts, and one joint expert")
            typer.echo(f"page: {page}")


def _open(
    context: typer.Context,
    guard: Guard,
    out: Path,
    given: Settings,
    threads: int | None,
    report: bool,
    resume: bool,
    overwrite: bool,
) -> tuple[Settings, int | None, bool]:
    """Settings, threads and whether a page is wanted: as given, or as stored."""
    own = asdict(given) | {"threads": threads, "report": report}
    stored = open_run(context, guard, out, own, resume, overwrite)
    threads, report = stored.pop("threads", None), bool(stored.pop("report", False))
    return Settings(**stored), threads, report


def _sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--classes-per-step must be whole numbers with commas between, got {text!r}") from None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _published(run: dict[str, Any]) -> dict[str, Any]:
    """Settings for results: names of networks, no folders of this machine."""
    hidden = {"images", "statistics", "real", "data_root", "tensorboard", "weights", "judges", "pool_dir"}
    shown = {name: value for name, value in run.items() if name not in hidden and value not in (None, [], {}, "")}
    networks = {name: str(shown[name]).partition("=")[0] for name in ("model", "student") if name in shown}
    return shown | {name: Path(source).name if Path(source).exists() else source for name, source in networks.items()}


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
