"""`exml-fast learn` and `exml-fast demo`: an ex-model from a stream of experts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

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
    Watch,
)
from exml_fast.cli.parsing import given_options, parse_device, parse_pairs, parse_sizes, require_report, use_threads
from exml_fast.cli.rows import print_rows
from exml_fast.cli.run_file import StudyRun, close_run, open_run, was_typed
from exml_fast.cli.watch import Viewer
from exml_fast.data import SOURCES, load
from exml_fast.reproduction.methods import STRATEGIES
from exml_fast.reproduction.provenance import provenance
from exml_fast.reproduction.stream import learn_preset, settings_of
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_page import joint_rows, settings_of_study, summary_of, write_page
from exml_fast.reproduction.study_rows import rows_of_study
from exml_fast.reproduction.study_settings import ALL, SMALL_DATA, RunOptions, usual_settings
from exml_fast.storage import save_json

__all__ = ["demo", "learn"]

# The demo's own method, and its settings for experts without BatchNorm, each with first weights of its own. Experts and
# settings were chosen on a held-out quarter of the training digits, with the experts of seeds from 100
# (docs/lab_notes.md).
DEMO: dict[str, Any] = {
    "strategies": ["inverted-strokes", "model-inversion", "data-impression"],
    "random_images": {
        "buffer_size": 1000, "background_share": 0.6, "views": 8, "steps": 800, "batch_size": 128, "lambda_ce": 1.0,
    },
    "drawn_inversion": {"batch_size": 100},
}  # fmt: skip
# scikit-learn's digits fill their images, and their lines are thick.
DIGITS_PEN: dict[str, dict[str, Any]] = {"pen-strokes": {"box": 0.9, "pen": [0.0375, 0.0875]}}


def learn(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the ex-model, results and checkpoints.")] = Path("learned"),
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset by name, as carta2022/mnist-nc, or a .toml file; other options override it.",
            show_default=False,
        ),
    ] = None,
    experts_dir: Annotated[
        Path | None,
        typer.Option("--experts", help="Folder of experts; they are trained first if not given.", show_default=False),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(STRATEGIES)}; all: those of the paper, the first three. photographs=FOLDER names a file "
            "or folder of one or a few photographs.",
            show_default=False,
        ),
    ] = None,
    data: Data = "digits",
    data_root: DataRoot = None,
    scenario: Scenario = "new-classes",
    classes_per_step: PerStep = "2",
    parts: Parts = 8,
    auxiliary: Annotated[
        str, typer.Option(help="Data set, or folder of images, for auxiliary-data.")
    ] = "fashion-mnist",
    variant: Annotated[str, typer.Option(help="Published variant of the recipes: mnist, cifar10 or core50.")] = "mnist",
    buffer: Annotated[int | None, typer.Option(min=1, help="Images in the buffer; default: 5000, digits 300.")] = None,
    buffer_dir: Annotated[
        Path | None,
        typer.Option(help="Folder in which the buffer is kept in a file instead of in memory.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Distillation steps for each expert; default: 30000, digits 800.")
    ] = None,
    inversion_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimisation steps of the images; default: the recipe's, digits 200.")
    ] = None,
    inversion: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Change any field of the recipe; repeatable.")
    ] = None,
    distillation: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Change any field of the distillation; repeatable.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help=f"Images that bring the experts' logits to one scale: {', '.join(SOURCES)}, or none. Default: "
            "random images calibrate on themselves, other strategies not.",
            show_default=False,
        ),
    ] = None,
    architecture: Architecture = "lenet5",
    argument: ArchitectureArgument = None,
    epochs: Epochs = None,
    expert_lr: Annotated[float, typer.Option(help="Learning rate of the experts.")] = 0.01,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds; rows hold mean and deviation.")] = 1,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    report: Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")] = False,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn one model from a stream of experts without their data, beside the baselines on the same experts."""
    with Guard(context) as guard:
        report = report or watch
        values = usual_settings(data) if preset is None else learn_preset(preset)
        typed: dict[str, Any] = {
            "data": data, "scenario": scenario, "classes_per_step": parse_sizes(classes_per_step), "parts": parts,
            "auxiliary": auxiliary, "variant": variant, "strategies": strategy or ["model-inversion"],
            "calibration": calibration,
        }  # fmt: skip
        experts = {
            "architecture": architecture, "arguments": parse_pairs("--argument", argument), "epochs": epochs,
            "lr": expert_lr,
        }  # fmt: skip
        if preset is not None:  # only options that were typed override the preset
            typed = _typed(context, typed, {"strategies": "strategy"})
            experts = _typed(context, experts, {"arguments": "argument", "lr": "expert_lr"})
        if "strategies" in typed:
            typed |= _with_photographs(typed["strategies"])
        values |= typed
        values["experts"] = values.get("experts", {}) | experts
        changes = given_options(steps=inversion_steps) | parse_pairs("--inversion", inversion)
        for table in ("inversion", "drawn_inversion"):
            values[table] = values.get(table, {}) | changes
        asked = given_options(buffer_size=buffer, steps=steps) | parse_pairs("--distillation", distillation)
        for table in ("distillation", "random_images"):
            values[table] = values.get(table, {}) | asked
        given = StudyRun(
            study=settings_of(values),
            options=RunOptions(
                seed=seed, seeds=seeds, device=parse_device(device), data_root=data_root,
                experts_dir=None if experts_dir is None else str(experts_dir),
                buffer_dir=None if buffer_dir is None else str(buffer_dir),
            ),
            threads=threads, report=report,
        )  # fmt: skip
        if not resume:  # whatever is wrong shows before an earlier run in the folder is touched
            study = Study(given.study, given.options, out)
            if experts_dir is not None:
                study.stream(seed)
            if report:
                require_report()
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.threads)
        with Viewer(
            out, f"Learning from experts of {run.study.data}", watch=watch, tensorboard=tensorboard, followed=run.report
        ) as progress:
            study = Study(run.study, run.options, out, progress=progress)
            study.run()
            rows = rows_of_study(study)
            origin = provenance(run.options.device)
            save_json(out / "results.json", {**origin, "settings": _public(run), "rows": rows})
            page = None
            if run.report:
                page = write_page(
                    out / "report" / "index.html", study, None, f"Learning from experts of {run.study.data}",
                    summary_of(study), origin, settings_of_study(study, run.threads),
                )  # fmt: skip
        close_run(out)
        if as_json:
            print_json({"out": str(out), "report": page and str(page), **origin, "rows": rows})
        else:
            print_rows(rows, f"{run.study.data}, {run.study.scenario}, {len(study.experiences)} experts")
            typer.echo(f"ex-model and results: {out}" + (f", page: {page}" if page else ""))


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the page, the results and the models.")] = Path("demo"),
    data: Data = "digits",
    data_root: DataRoot = None,
    classes_per_step: PerStep = "2",
    steps: Annotated[int, typer.Option(min=1, help="Distillation steps for each expert.")] = SMALL_DATA["distillation"][
        "steps"
    ],
    inversion_steps: Annotated[int, typer.Option(min=1, help="Optimisation steps of the images.")] = SMALL_DATA[
        "inversion"
    ]["steps"],
    buffer: Annotated[int, typer.Option(min=1, help="Images in the buffer.")] = SMALL_DATA["distillation"][
        "buffer_size"
    ],
    epochs: Epochs = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: OneThread = 1,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Show everything in minutes: experts on digits, three ways to learn from them, baselines and a page.

    Each expert starts from random weights of its own, as experts of strangers do.
    """
    with Guard(context) as guard:
        require_report()
        asked, drawn = {"buffer_size": buffer, "steps": steps}, {"steps": inversion_steps}
        given = StudyRun(
            study=settings_of(
                {
                    **DEMO, "data": data, "classes_per_step": parse_sizes(classes_per_step),
                    "experts": {"epochs": epochs, "initial": "own"},
                    "inversion": SMALL_DATA["inversion"] | {"steps": inversion_steps},
                    "drawn_inversion": DEMO["drawn_inversion"] | _typed(context, drawn, {"steps": "inversion_steps"}),
                    "distillation": SMALL_DATA["distillation"] | asked,
                    "random_images": DEMO["random_images"] | _typed(context, asked, {"buffer_size": "buffer"}),
                    "sources": DIGITS_PEN if data == "digits" else {},
                }
            ),
            options=RunOptions(seed=seed, device=parse_device(device), data_root=data_root),
            threads=threads, report=True,
        )  # fmt: skip
        if not resume:
            load(data, data_root)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.threads)
        inverting = tuple(name for name in run.study.strategies if name in ALL)
        joint_settings = dataclasses.replace(run.study, scenario="joint", strategies=inverting)
        with Viewer(out, f"Learning without data: {run.study.data}", watch=watch, tensorboard=tensorboard) as progress:
            study = Study(run.study, run.options, out, progress=progress, title="stream")
            study.run()
            beside = Study(joint_settings, run.options, out / "joint", progress=progress, title="joint expert")
            beside.run()
            rows = rows_of_study(study) + joint_rows(beside)
            origin = provenance(run.options.device)
            save_json(out / "results.json", {**origin, "settings": _public(run), "rows": rows})
            page = write_page(
                out / "report" / "index.html", study, beside, f"Learning without data: {study.data.name}",
                summary_of(study) + " The settings are the demo's: few steps, so that it ends in minutes.", origin,
                settings_of_study(study, run.threads),
            )  # fmt: skip
        close_run(out)
        if as_json:
            print_json({"out": str(out), "report": str(page), **origin, "rows": rows})
        else:
            print_rows(rows, f"{study.data.name}: {len(study.experiences)} experts, and one joint expert")
            typer.echo(f"page: {page}")


def _with_photographs(strategies: list[str]) -> dict[str, Any]:
    """``strategies`` and ``photographs`` of a study; "photographs=FOLDER" names the folder."""
    prefix = "photographs="
    folders = [strategy.removeprefix(prefix) for strategy in strategies if strategy.startswith(prefix)]
    if len(folders) > 1:
        raise ValueError(f"--strategy photographs must be given once, got the folders {', '.join(folders)}")
    names = ["photographs" if strategy.startswith(prefix) else strategy for strategy in strategies]
    return {"strategies": names} | ({"photographs": folders[0]} if folders else {})


def _typed(context: typer.Context, values: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """The values whose option stood on the command line; ``options`` names those that differ from the setting."""
    return {name: value for name, value in values.items() if was_typed(context, options.get(name, name))}


def _public(run: StudyRun) -> dict[str, Any]:
    """Settings for the file of results."""
    return {**run.study.public(), "seed": run.options.seed, "seeds": run.options.seeds, "device": run.options.device}
