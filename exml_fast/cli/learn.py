"""`exml-fast learn` and `exml-fast demo`: an ex-model from a stream of experts."""

from __future__ import annotations

from dataclasses import asdict
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
)
from exml_fast.cli.parsing import given_options, parse_device, parse_pairs, parse_sizes, require_report, use_threads
from exml_fast.cli.progress import Reporter
from exml_fast.cli.rows import print_rows
from exml_fast.cli.run_file import close_run, open_study, was_typed
from exml_fast.data import SOURCES, load
from exml_fast.reproduction.provenance import provenance
from exml_fast.reproduction.study import ALL, RECIPES, STRATEGIES, Settings, Study
from exml_fast.reproduction.study_page import joint_rows, settings_of_study, summary_of, write_page
from exml_fast.reproduction.tables import learn_preset
from exml_fast.storage import save_json

__all__ = ["demo", "learn"]

# For small data such as digits, where the paper's settings for MNIST would take hours for nothing: the demo ends in
# about two minutes on two cores. Other data get the recipe as published, and Carta 2022's distillation.
SMALL: dict[str, dict[str, Any]] = {
    "inversion": {"steps": 200, "lr": 0.05, "blur": 0.01, "stop_confidence": None},
    "distillation": {"buffer_size": 300, "iterations": 800, "lr": 0.02},
    "random_images": {"buffer_size": 1000, "iterations": 400},
}
PUBLISHED: dict[str, dict[str, Any]] = {"inversion": {}, "distillation": {"buffer_size": 5000, "iterations": 30000}}


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
            "data": data, "scenario": scenario, "classes_per_step": parse_sizes(classes_per_step), "parts": parts,
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
        values["inversion"] = (
            usual.get("inversion", {}) | given_options(steps=steps) | parse_pairs("--inversion", inversion)
        )
        asked = given_options(buffer_size=buffer, iterations=iterations) | parse_pairs("--distillation", distillation)
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
        settings, used_threads, report = open_study(context, guard, out, given, threads, report, resume, overwrite)
        use_threads(used_threads)
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
            data=data, data_root=data_root, classes_per_step=parse_sizes(classes_per_step), seed=seed,
            device=parse_device(device), epochs=epochs,
            strategies=["model-inversion", "data-impression", "natural-fields"],
            inversion=SMALL["inversion"] | {"steps": steps},
            distillation=SMALL["distillation"] | asked, random_images=SMALL["random_images"] | typed,
        )  # fmt: skip
        given.check()
        if not resume:
            load(data, data_root)
        settings, used_threads, _ = open_study(context, guard, out, given, threads, True, resume, overwrite)
        use_threads(used_threads)
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
