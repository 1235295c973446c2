"""`exml-fast transfer …` and `exml-fast reproduce …`: presets of published experiments, with changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import Json
from exml_fast.cli.parsing import parse_device, parse_pairs, require_report
from exml_fast.cli.progress import Reporter
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.reproduction import runner as reproduce
from exml_fast.reproduction.provenance import command_line, provenance
from exml_fast.reproduction.tables import choose, folder_of
from exml_fast.storage import save_json

__all__ = ["reproduce_command", "transfer"]

transfer = typer.Typer(help="What impressions of a network are good for (Nayak 2021).", no_args_is_help=True)

Seeds = Annotated[int, typer.Option(min=1, help="Repeat with so many seeds: mean and deviation.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as impressions.count=2000; repeatable."),
]
Data = Annotated[str | None, typer.Option(help="Another data set than the preset's.", show_default=False)]
DataRoot = Annotated[
    str | None, typer.Option(help="Where downloaded data are kept.", envvar="EXML_FAST_DATA", show_envvar=True)
]
Expert = Annotated[
    str | None,
    typer.Option(
        "--teacher", help="An expert's folder, instead of training one (not for robustness).", show_default=False
    ),
]
Impressions = Annotated[int | None, typer.Option(min=1, help="Impressions of all classes.", show_default=False)]
Steps = Annotated[int | None, typer.Option(min=1, help="Updates of each impression.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<n>.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Page = Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Throw away an unfinished run in --out (a finished one is replaced).")
]
FromPreset = Annotated[str, typer.Option(help="A name, as nayak2021/table1, or a .toml file.")]
Out = Annotated[Path, typer.Option(help="Folder for results, networks and images.")]


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
            found = reproduce.load_preset(preset, given)
            if found["task"] != task:
                raise ValueError(f"--preset {preset} is for `exml-fast transfer {found['task']}`")
            _run(
                context, guard, found, preset, out, data_root, seeds, seed, device, threads, report, as_json, resume,
                overwrite,
            )  # fmt: skip

    command.__doc__ = about
    transfer.command(task)(command)


_command("zskd", "digits/zskd", "Zero-shot distillation: a student learns from impressions of its teacher alone.")
_command("robustness", "digits/robustness", "Does a student of impressions inherit its teacher's robustness?")
_command("adapt", "nayak2021/table5-usps-mnist", "Adapt a network to unlabelled images of another domain, source-free.")
_command("perturb", "digits/perturb", "Perturbations that fool a network on any image, from its impressions.")


def reproduce_command(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="As nayak2021/table1; all names if not given.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; reproduced/<name> if not given.", show_default=False)
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Also write the rows to this JSON file.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
    rows: Annotated[
        str | None, typer.Option(help="Of a table, with commas between, as mnist/NC,mnist/Joint.", show_default=False)
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Of streams, with commas between; the preset's if not given.", show_default=False)
    ] = None,
    changes: Set = None,
    seeds: Seeds = 3,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    report: Page = False,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compute a published table again, the paper's figures beside ours; shorter runs are labelled reduced."""
    with Guard(context) as guard:
        if resume and out is None:
            raise ValueError("--resume needs --out, the folder of the run")
        if name is None and not resume:
            typer.echo("\n".join(reproduce.names()))
            return
        preset = {} if name is None else reproduce.load_preset(name, _pairs(changes))
        choose(preset, _words(rows), _words(strategies))
        out = out or Path("reproduced") / str(name)
        _run(
            context, guard, preset, str(name), out, data_root, seeds, seed, device, threads, report, as_json, resume,
            overwrite, results,
        )  # fmt: skip


def _run(
    context: typer.Context,
    guard: Guard,
    preset: dict[str, Any],
    name: str,
    out: Path,
    data_root: str | None,
    seeds: int,
    seed: int,
    device: str,
    threads: int,
    report: bool,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    results: Path | None = None,
) -> None:
    """Run, write ``results.json`` and the page, print."""
    if not resume:
        torch.set_num_threads(threads)
        device = parse_device(device)
        if report:
            require_report()
        if results is not None and results.is_dir():
            raise ValueError(f"--results must be a file, {results} is a folder")
        reproduce.check(preset, data_root, device)
        if preset["task"] in reproduce.TASKS:
            reproduce.seed_folders(out, range(seed, seed + seeds))
            _refuse_replaced(preset, out)
        if results is not None:
            results.resolve().parent.mkdir(parents=True, exist_ok=True)
    given = {"preset": preset, "seeds": seeds, "seed": seed, "device": device, "threads": threads, "report": report}
    given |= {"name": name, "data_root": data_root, "typed": command_line()}
    given["results"] = None if results is None else str(results.resolve())
    stored = open_run(context, guard, out, given, resume, overwrite)
    if resume:
        preset, seeds, seed, device = (stored[key] for key in ("preset", "seeds", "seed", "device"))
        name, data_root, report, threads = (stored[key] for key in ("name", "data_root", "report", "threads"))
        results = None if stored.get("results") is None else Path(stored["results"])
        torch.set_num_threads(threads)
        parse_device(device)
    with Reporter() as reporter:
        rows, outcome = reproduce.run(
            preset, out, seeds=range(seed, seed + seeds), data_root=data_root, device=device, progress=reporter
        )
    seconds = outcome.seconds if outcome is not None else {}
    whole = {**provenance(device, stored.get("typed")), "settings": preset, "seconds": seconds, "rows": rows}
    if outcome is not None:
        whole["details"] = outcome.settings
    for file in filter(None, (out / "results.json", results)):
        save_json(file, whole)
    page = out / "report" / "index.html"
    if report:
        _write_page(page, name, preset, whole, outcome)
    close_run(out)
    if as_json:
        print_json({"out": str(out), "report": str(page) if report else None, **whole})
    else:
        _print(rows, name)
        typer.echo(f"results: {out / 'results.json'}" + (f", page: {page}" if report else ""))


def _refuse_replaced(preset: dict[str, Any], out: Path) -> None:
    """A run begins by removing what an earlier one left in its folder."""
    parts = (out / "parts").resolve()
    sources = {"--data": preset["data"], "--teacher": preset["teacher"].get("expert")}
    sources["adaptation.target"] = preset.get("adaptation", {}).get("target")
    for name, source in sources.items():
        if source is not None and Path(source).resolve().is_relative_to(parts):
            raise ValueError(f"{name} {source} lies in --out {out}, which the run would replace: give another --out")


def _write_page(
    path: Path, name: str, preset: dict[str, Any], whole: dict[str, Any], outcome: reproduce.Outcome | None
) -> None:
    from exml_fast.reproduction.page import ExperimentPage, write_experiment

    settings = {key: value for key, value in preset.items() if key not in ("paper", "published")}
    machine = {**whole["machine"], "commit": whole["commit"], "date": whole["date"]}
    summary = "What learned from impressions has not seen the teacher's training images; figures are on test images."
    page = ExperimentPage(name, summary, whole["command"], settings, machine, whole["rows"])
    parts = {} if outcome is None else outcome.pages
    origin = {name: whole[name] for name in ("command", "commit", "date", "machine")}
    pages = {title: write(path.parent / folder_of(title) / "index.html", origin) for title, write in parts.items()}
    links = {title: page.relative_to(path.parent).as_posix() for title, page in pages.items()}
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


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _pairs(changes: list[str] | None) -> dict[str, Any]:
    # A dotted name is no identifier, which is what the other commands' options ask for.
    values: dict[str, Any] = {}
    for change in changes or []:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {change!r}")
        (values[name],) = parse_pairs("--set", [name.replace(".", "_") + equals + text]).values()
    return values
