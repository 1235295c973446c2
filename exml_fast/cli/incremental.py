"""`exml-fast incremental`: one network learns classes task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    Data,
    DataRoot,
    Device,
    Json,
    Overwrite,
    Page,
    Resume,
    TensorBoardFolder,
    Threads,
    Watch,
)
from exml_fast.cli.parsing import given_options, parse_device, parse_pairs, require_report, use_threads
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.continual.class_incremental import METHODS
from exml_fast.reproduction.incremental_learned import Learned
from exml_fast.reproduction.incremental_page import rows_of_learned, write_incremental_page
from exml_fast.reproduction.incremental_settings import IncrementalSettings
from exml_fast.reproduction.incremental_study import IncrementalStudy
from exml_fast.reproduction.lab_settings import require_package
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import save_json
from exml_fast.validation import Count, Natural, named, settings, to_dict

__all__ = ["incremental"]


@settings
class IncrementalRun:
    """What ``incremental`` was asked for."""

    study: IncrementalSettings
    seed: Natural
    seeds: Count
    device: str
    data_root: str | None
    threads: Count | None
    report: bool

    def study_of(self, seed: int, out: Path, progress: Viewer | None = None) -> IncrementalStudy:
        """The study with one of the seeds."""
        return IncrementalStudy(
            self.study, out / "learners" / f"seed_{seed}", seed=seed, data_root=self.data_root, device=self.device,
            progress=progress,
        )  # fmt: skip


def incremental(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for networks, results and checkpoints.")] = Path("incremental"),
    data: Data = "digits",
    data_root: DataRoot = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable; default: icarl. One of {', '.join(METHODS)}.", show_default=False),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable; default: b0-5. bB-T: a first task of B classes (none for 0), then T tasks of equal size.",
            show_default=False,
        ),
    ] = None,
    order_seed: Annotated[int, typer.Option(min=0, help="Seed of the class order, to which --seed is added.")] = 1993,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Name of a network, as cifar_resnet, resnet18_cifar or torchvision/<name>; default: ResNet-32 for "
            "colour images of 32×32, LeNet-5 with BatchNorm for grey ones.",
            show_default=False,
        ),
    ] = None,
    argument: ArchitectureArgument = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each task; default: 15.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]NAME=VALUE",
            help="Change a setting of all methods that have it, as total=500, or of one, as icarl.total=500; "
            "repeatable.",
        ),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(min=0, help="Test on so many training images of each class instead, to choose settings."),
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds; rows hold mean and deviation.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    report: Page = False,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Teach one network classes task by task, by one or several methods, and test it after each task."""
    with Guard(context) as guard:
        report = report or watch
        if report:
            require_report()
            require_package("sklearn", "eval", "scikit-learn")
        chosen, protocols = method or ["icarl"], protocol or ["b0-5"]
        shared, own = _settings(chosen, changes)
        given = IncrementalRun(
            study=IncrementalSettings(
                data=data, methods={name: {"method": name} | own.get(name, {}) for name in chosen},
                protocols=tuple(protocols), order_seed=order_seed, architecture=architecture,
                arguments=parse_pairs("--argument", argument), settings=given_options(epochs=epochs) | shared,
                held_out=held_out, maps=_mapped(protocols) if report else (),
            ),
            seed=seed, seeds=seeds, device=parse_device(device), data_root=data_root, threads=threads, report=report,
        )  # fmt: skip
        if not resume:  # whatever is wrong shows before an earlier run in the folder is touched
            given.study_of(seed, out)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.threads)
        with Viewer(
            out,
            f"Class-incremental learning of {run.study.data}",
            watch=watch,
            tensorboard=tensorboard,
            followed=run.report,
        ) as progress:
            found = _found(run, out, progress)
            study = run.study_of(run.seed, out)
            rows = rows_of_learned(study, found)
            origin = provenance(run.device)
            public = to_dict(run.study) | {
                "data": study.data.name,
                "seed": run.seed,
                "seeds": run.seeds,
                "device": run.device,
            }
            save_json(out / "results.json", {**origin, "settings": public, "rows": rows})
            page = None
            if run.report:
                progress.say("writing the page")
                page = write_incremental_page(
                    out / "report" / "index.html", study, found[0], rows, origin,
                    public | {"network": f"{study.architecture} {study.arguments}"},
                )  # fmt: skip
        close_run(out)
        if as_json:
            print_json({"out": str(out), "report": page and str(page), **origin, "rows": rows})
        else:
            _print(rows, f"{study.data.name}: {len(study.data.classes)} classes")
            typer.echo(f"networks and results: {out}" + (f", page: {page}" if page else ""))


def _found(run: IncrementalRun, out: Path, progress: Viewer) -> list[list[Learned]]:
    """What the learners reached with each seed."""

    def say(learned: Learned) -> None:
        progress.say(
            f"{learned.row}, {learned.protocol}: {100 * learned.average:.2f} % on average, {100 * learned.last:.2f} % "
            f"at the end, {learned.seconds:.0f} s"
        )

    return [run.study_of(seed, out, progress).run(say) for seed in range(run.seed, run.seed + run.seeds)]


def _settings(chosen: list[str], changes: list[str] | None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of ``--set`` for all methods, and those for one by its name; ValueError naming what is wrong."""
    shared: list[str] = []
    own: dict[str, list[str]] = {}
    for name in chosen:
        named("--method", name, METHODS)
        if chosen.count(name) > 1:
            raise ValueError(f"--method {name} must be given once")
    for change in changes or []:
        name, dot, rest = change.partition("=")[0].rpartition(".")
        if not dot:
            shared.append(change)
            continue
        if name not in chosen:
            raise ValueError(f"--set {change}: {name!r} must be one of the methods, {', '.join(chosen)}")
        own.setdefault(name, []).append(rest + change[len(name) + 1 + len(rest) :])
    return parse_pairs("--set", shared), {name: parse_pairs("--set", pairs) for name, pairs in own.items()}


def _mapped(protocols: list[str]) -> tuple[int, ...]:
    """Numbers of the first, a middle and the last task of the longest protocol."""
    counts = [int(text.partition("-")[2]) + (not text.startswith("b0-")) for text in protocols if _is_protocol(text)]
    return tuple(sorted({1, *(-(-count // 2) for count in counts), *counts}))


def _is_protocol(text: str) -> bool:
    """Whether the number of tasks can be read; a study refuses other texts."""
    return text.partition("-")[2].isdecimal()


def _print(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    several = len({row["protocol"] for row in rows}) > 1
    table.add_column("method")
    for name in ("average, %", "last, %", "time, s", "peak MB", "old, MB"):
        table.add_column(name, justify="right")
    table.add_column("images of old classes")
    for row in rows:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        table.add_row(
            f"{row['name']}, {row['protocol']}" if several else row["name"], f"{row['average']:.2f}{spread}",
            f"{row['last']:.2f}", f"{sum(row['seconds_per_task']):.1f}", f"{row['peak_mb']:.0f}",
            f"{row['bytes'] / 1e6:.2f}", _images(row),
        )  # fmt: skip
    Console(highlight=False).print(table)


def _images(row: dict[str, Any]) -> str:
    """Real and synthetic images of old classes that a learner has in its last task."""
    if row["synthetic"] is None:
        return "of a generator"
    if row["synthetic"]:
        return f"{row['synthetic']} synthetic"
    return f"{row['real_exemplars']} real" if row["real_exemplars"] else "none"
