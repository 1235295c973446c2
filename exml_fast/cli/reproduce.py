"""`exml-fast transfer …` and `exml-fast reproduce …`: presets of published experiments, with changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import Json, TensorBoardFolder, Watch
from exml_fast.cli.parsing import parse_device, parse_pairs, require_report
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.reproduction.outcome import Outcome
from exml_fast.reproduction.preset import Preset, names
from exml_fast.reproduction.provenance import command_line, provenance
from exml_fast.reproduction.runner import check, load_preset, run, seed_folders
from exml_fast.reproduction.stream import choose_rows, choose_strategies, folder_of
from exml_fast.reproduction.tasks import STREAM_TASKS, TASKS
from exml_fast.storage import save_json
from exml_fast.validation import Count, Natural, settings

__all__ = ["reproduce_command", "transfer"]

IMPRESSIONS = "What learned from impressions has not seen the teacher's training images; figures are on test images."

transfer = typer.Typer(help="Experiments with the impressions of a network (Nayak 2021).", no_args_is_help=True)

Seeds = Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds; rows hold mean and deviation.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change any setting, as impressions.count=2000; repeatable."),
]
Data = Annotated[str | None, typer.Option(help="Data set in place of the preset's.", show_default=False)]
DataRoot = Annotated[
    str | None, typer.Option(help="Folder of downloaded data sets.", envvar="EXML_FAST_DATA", show_envvar=True)
]
Expert = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Folder of an expert that is the teacher, so that none is trained (not for robustness).",
        show_default=False,
    ),
]
Impressions = Annotated[
    int | None, typer.Option(min=1, help="Number of impressions of all classes together.", show_default=False)
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimisation steps of each impression.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<n>.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Page = Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an unfinished run in --out (a finished run is always replaced).")
]
FromPreset = Annotated[str, typer.Option(help="Name of a preset, as nayak2021/table1, or a .toml file.")]
Out = Annotated[Path, typer.Option(help="Folder for results, networks and images.")]


@settings
class PresetRun:
    """What ``transfer`` and ``reproduce`` were asked for; ``typed`` is the command line."""

    name: str
    preset: dict[str, Any]
    seeds: Count
    seed: Natural
    device: str
    data_root: str | None
    threads: Count
    report: bool
    typed: str
    results: str | None = None


def _command(task: str, usual: str, about: str) -> None:
    def command(
        context: typer.Context,
        preset: FromPreset = usual,
        out: Out = Path(task),
        data: Data = None,
        data_root: DataRoot = None,
        teacher: Expert = None,
        impressions: Impressions = None,
        steps: Steps = None,
        changes: Set = None,
        seeds: Seeds = 1,
        seed: Seed = 0,
        device: Device = "cpu",
        threads: Threads = 1,
        report: Page = False,
        watch: Watch = False,
        tensorboard: TensorBoardFolder = None,
        as_json: Json = False,
        resume: Resume = False,
        overwrite: Overwrite = False,
    ) -> None:
        with Guard(context) as guard:
            given = _pairs(changes)
            if teacher is not None and (typed := [name for name in given if name.split(".")[0] == "teacher"]):
                raise ValueError(f"--teacher takes a trained network: leave out --set {typed[0]}")
            short = {
                "data": data,
                "teacher": None if teacher is None else {"expert": teacher},
                "impressions.count": impressions,
                "impressions.steps": steps,
            }
            given |= {name: value for name, value in short.items() if value is not None}
            found = load_preset(preset, given)
            if found["task"] != task:
                raise ValueError(f"--preset {preset} is for `exml-fast transfer {found['task']}`")
            asked = PresetRun(
                name=preset, preset=found, seeds=seeds, seed=seed, device=device, data_root=data_root, threads=threads,
                report=report or watch, typed=command_line(),
            )  # fmt: skip
            _run(context, guard, asked, out, as_json, resume, overwrite, watch, tensorboard)

    command.__doc__ = about
    transfer.command(task)(command)


_command("zskd", "digits/zskd", "Zero-shot distillation: a student learns from impressions of its teacher alone.")
_command(
    "robustness", "digits/robustness", "Measure whether a student of impressions inherits its teacher's robustness."
)
_command("adapt", "nayak2021/table5-usps-mnist", "Adapt a network to unlabelled images of another domain, source-free.")
_command("perturb", "digits/perturb", "Perturbations that fool a network on any image, from its impressions.")


def reproduce_command(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a preset, as nayak2021/table1, or a .toml file; without it, all names are printed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: reproduced/<name>.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Also write the rows to this JSON file.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Rows of a table, separated by commas, as mnist/NC,mnist/Joint; default: all.", show_default=False
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(help="Strategies of a stream, separated by commas; default: the preset's.", show_default=False),
    ] = None,
    changes: Set = None,
    seeds: Seeds = 3,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    report: Page = False,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compute a published table again and print the paper's figures beside ours; shorter runs are labelled reduced."""
    with Guard(context) as guard:
        if resume and out is None:
            raise ValueError("--resume needs --out, the folder of the run")
        if name is None and not resume:
            typer.echo("\n".join(names()))
            return
        preset: Preset = {} if name is None else load_preset(name, _pairs(changes))
        if rows is not None:
            choose_rows(preset, _words(rows))
        if strategies is not None:
            if preset["task"] not in STREAM_TASKS:
                raise ValueError(f"--strategies is for presets of streams; this one is of task {preset['task']!r}")
            choose_strategies(preset, _words(strategies))
        given = PresetRun(
            name=str(name), preset=preset, seeds=seeds, seed=seed, device=device, data_root=data_root, threads=threads,
            report=report or watch, results=None if results is None else str(results.resolve()), typed=command_line(),
        )  # fmt: skip
        _run(
            context, guard, given, out or Path("reproduced") / str(name), as_json, resume, overwrite, watch, tensorboard
        )


def _run(
    context: typer.Context,
    guard: Guard,
    given: PresetRun,
    out: Path,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    watch: bool,
    tensorboard: Path | None,
) -> None:
    """Run a preset, write ``results.json`` and the page, and print the rows."""
    if not resume:
        _check(given, out)
    asked = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
    torch.set_num_threads(asked.threads)
    device = parse_device(asked.device)
    with Viewer(out, asked.name, watch=watch, tensorboard=tensorboard, followed=asked.report) as progress:
        seeds = range(asked.seed, asked.seed + asked.seeds)
        rows, outcome = run(asked.preset, out, seeds=seeds, data_root=asked.data_root, device=device, progress=progress)
        whole = {
            **provenance(device, asked.typed), "settings": asked.preset, "seconds": outcome.seconds, "rows": rows,
            "details": outcome.settings,
        }  # fmt: skip
        save_json(out / "results.json", whole)
        if asked.results is not None:
            save_json(asked.results, whole)
        page = out / "report" / "index.html"
        if asked.report:
            _write_page(page, asked.name, asked.preset, whole, outcome)
    close_run(out)
    if as_json:
        print_json({"out": str(out), "report": str(page) if asked.report else None, **whole})
    else:
        _print(rows, asked.name)
        typer.echo(f"results: {out / 'results.json'}" + (f", page: {page}" if asked.report else ""))


def _check(given: PresetRun, out: Path) -> None:
    """ValueError or ImportError for whatever is wrong, before an earlier run in the folder is touched."""
    torch.set_num_threads(given.threads)
    device = parse_device(given.device)
    if given.report:
        require_report()
    results = None if given.results is None else Path(given.results)
    if results is not None and results.is_dir():
        raise ValueError(f"--results must be a file, {results} is a folder")
    check(given.preset, given.data_root, device)
    if given.preset["task"] in TASKS:
        seed_folders(out, range(given.seed, given.seed + given.seeds))
        _refuse_replaced(given.preset, out)
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)


def _refuse_replaced(preset: dict[str, Any], out: Path) -> None:
    """ValueError if a source lies in the folder of parts, which a new run removes."""
    parts = (out / "parts").resolve()
    sources = {"--data": preset["data"], "--teacher": preset.get("teacher", {}).get("expert")}
    sources["adaptation.target"] = preset.get("adaptation", {}).get("target")
    for name, source in sources.items():
        if source is not None and Path(source).resolve().is_relative_to(parts):
            raise ValueError(f"{name} {source} lies in --out {out}, which the run would replace: give another --out")


def _write_page(path: Path, name: str, preset: dict[str, Any], whole: dict[str, Any], outcome: Outcome) -> None:
    from exml_fast.reproduction.page import ExperimentPage, write_experiment

    shown = {key: value for key, value in preset.items() if key not in ("paper", "published")}
    machine = {**whole["machine"], "commit": whole["commit"], "date": whole["date"]}
    page = ExperimentPage(name, outcome.summary or IMPRESSIONS, whole["command"], shown, machine, whole["rows"])
    origin = {name: whole[name] for name in ("command", "commit", "date", "machine")}
    folder = path.parent
    pages = {title: write(folder / folder_of(title) / "index.html", origin) for title, write in outcome.pages.items()}
    links = {title: page.relative_to(folder).as_posix() for title, page in pages.items()}
    write_experiment(path, page, outcome, links)


def _print(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("cell", "paper, %", "ours, %"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for row in rows:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
        table.add_row(row["cell"], paper, f"{row['ours']:.2f}{spread}" + (" *" if row["reduced"] else ""))
    console = Console(highlight=False)
    console.print(table)
    for note in dict.fromkeys(row["note"] for row in rows if row["reduced"]):
        console.print(f"* reduced: {note}", soft_wrap=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(changes: list[str] | None) -> dict[str, Any]:
    # parse_pairs asks for identifiers, and a dotted name is none.
    values: dict[str, Any] = {}
    for change in changes or []:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {change!r}")
        (values[name],) = parse_pairs("--set", [name.replace(".", "_") + equals + text]).values()
    return values
