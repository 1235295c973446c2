"""`exml-fast catalogue`: a folder of experts, and streams as folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import ArchitectureArgument, Input, Json, Weights
from exml_fast.cli.parsing import parse_input, parse_pairs
from exml_fast.continual.catalogue import Catalogue, Entry, matches
from exml_fast.continual.expert import Card
from exml_fast.continual.stream import stream_folders
from exml_fast.continual.teachers import expert_of
from exml_fast.reading import printable
from exml_fast.validation import like

__all__ = ["app"]

app = typer.Typer(help="Choose among experts in a folder, check them, and hand them on.", no_args_is_help=True)

DAMAGED = 1
SHOWN_CLASSES = 6
# Greatest length of a text in a table.
CELL = 1000
# A pipe has no width, so each expert gets one line.
PIPED_WIDTH = 1000

Folder = Annotated[Path, typer.Argument(help="The catalogue: a folder of experts' folders.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was written there before.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default=False)]
Count = Annotated[int | None, typer.Option(min=0, show_default=False)]


@app.command("list")
def list_command(context: typer.Context, folder: Folder, as_json: Json = False) -> None:
    """The cards of all experts."""
    with Guard(context):
        catalogue = Catalogue(folder)
        _show(catalogue, catalogue.experts, as_json)


@app.command()
def find(
    context: typer.Context,
    folder: Folder,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class it was trained on; repeatable.")
    ] = None,
    any_class: Annotated[bool, typer.Option("--any", help="One of the classes is enough.")] = False,
    architecture: Annotated[str | None, typer.Option(help="Architecture as on the card.", show_default=False)] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.", show_default=False)] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Least accuracy on the test images of its own classes, from 0 to 1.", show_default=False),
    ] = None,
    min_parameters: Count = None,
    max_parameters: Count = None,
    min_bytes: Count = None,
    max_bytes: Count = None,
    as_json: Json = False,
) -> None:
    """The experts that meet every condition. In texts, * and ? are wildcards and case does not count."""
    with Guard(context):
        catalogue = Catalogue(folder)
        found = catalogue.find(
            classes or [], match="any" if any_class else "all", architecture=architecture, licence=licence,
            min_accuracy=min_accuracy, min_parameters=min_parameters, max_parameters=max_parameters,
            min_bytes=min_bytes, max_bytes=max_bytes,
        )  # fmt: skip
        _show(catalogue, found, as_json)
        if not found:
            _say_nearest(catalogue, classes or [])


@app.command()
def add(
    context: typer.Context,
    folder: Folder,
    experts: Annotated[list[Path], typer.Argument(metavar="EXPERT...", help="Experts' folders.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Name in the catalogue, for a single expert; default: the name of its folder.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence to write on the cards of the copies.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check experts and copy them in."""
    with Guard(context):
        if name is not None and len(experts) > 1:
            raise ValueError(f"--name takes one expert, got {len(experts)}")
        catalogue = Catalogue(folder)
        _show(catalogue, [catalogue.add(e, name, licence=licence, overwrite=overwrite) for e in experts], as_json)


@app.command()
def new(
    context: typer.Context,
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name of the expert in the catalogue.", show_default=False)],
    model: Annotated[
        str, typer.Argument(help="torchvision/<name>, timm/<name> or an architecture of ours.", show_default=False)
    ],
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    class_names: Annotated[
        str,
        typer.Option(help="Class names of the logits in order, separated by commas; default: known names, or numbers."),
    ] = "",
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.", show_default=False)] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make an expert of published weights, with a card that names their classes."""
    with Guard(context):
        expert = expert_of(
            model, weights=weights, arguments=parse_pairs("--argument", argument), spec=parse_input(input_spec),
            class_names=[part.strip() for part in class_names.split(",") if part.strip()],
        )  # fmt: skip
        catalogue = Catalogue(folder)
        _show(catalogue, [catalogue.add(expert, name, licence=licence, overwrite=overwrite)], as_json)


@app.command()
def verify(
    context: typer.Context,
    folder: Folder,
    names: Annotated[
        list[str] | None, typer.Argument(help="Experts to check; default: all.", show_default=False)
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also read experts that were verified before and have not changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check hash, weights' names, shapes and finiteness of every expert. Exit code 1 if anything is wrong."""
    with Guard(context):
        catalogue = Catalogue(folder)
        checked = names or catalogue.names
        problems = catalogue.verify(names or None, full=full)
        if as_json:
            print_json({"catalogue": str(folder), "checked": checked, "problems": problems})
        else:
            for name, problem in problems.items():
                typer.echo(f"{_plain(name)}: {_plain(problem)}")
            typer.echo(f"{len(checked)} experts checked, {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    if problems:
        raise typer.Exit(DAMAGED)


@app.command("export")
def export_command(
    context: typer.Context,
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Folder for the stream.", show_default=False)],
    expert: Annotated[
        list[str] | None, typer.Option(help="Name of an expert, repeatable, in the stream's order; default: all.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write experts as a stream: one folder with their order, for `learn --experts` and `catalogue import`."""
    with Guard(context):
        Catalogue(folder).export(out, expert or None, overwrite=overwrite)
        _show(Catalogue(out), [Entry.read(place) for place in stream_folders(out)], as_json)


@app.command("import")
def import_command(
    context: typer.Context,
    folder: Folder,
    stream: Annotated[Path, typer.Argument(help="Folder of a stream.", show_default=False)],
    prefix: Annotated[str, typer.Option(help="Prefix of every name.")] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check a stream's experts and copy them in. Damaged ones are left out and named; exit code 1 if there are any."""
    with Guard(context):
        catalogue, damaged = Catalogue(folder), dict[str, str]()
        copied = catalogue.import_(stream, prefix=prefix, overwrite=overwrite, damaged=damaged)
        _show(catalogue, copied, as_json, {"damaged": damaged})
        for name, problem in damaged.items():
            typer.echo(f"not imported: {_plain(name)}: {_plain(problem)}", err=True)
    if damaged:
        raise typer.Exit(DAMAGED)


@app.command()
def push(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder of an expert or a stream.", show_default=False)],
    repo: Annotated[
        str, typer.Argument(help="Repository owner/name; it is created if it does not exist.", show_default=False)
    ],
    revision: Revision = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Check an expert or a stream and upload it to the Hugging Face Hub."""
    with Guard(context):
        from exml_fast.continual import hub

        commit = hub.push(source, repo, revision=revision, private=private, message=message)
        if as_json:
            print_json({"repo": repo, "commit": commit})
        else:
            typer.echo(commit)


@app.command()
def pull(
    context: typer.Context,
    repo: Annotated[str, typer.Argument(help="Repository owner/name.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder for the expert or the stream.", show_default=False)],
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Download an expert or a stream from the Hugging Face Hub, and check it."""
    with Guard(context):
        from exml_fast.continual import hub

        cards = hub.pull(repo, out, revision=revision, overwrite=overwrite)
        if as_json:
            print_json({"out": str(out), "experts": [card.to_dict() for card in cards]})
        else:
            for card in cards:
                typer.echo(f"{card.sha256[:8]} {_plain(card.architecture)}: {_classes(card)}")


def _show(catalogue: Catalogue, entries: Sequence[Entry], as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Print the entries, and on stderr the experts that cannot be read."""
    unreadable = catalogue.unreadable
    if as_json:
        experts = [entry.to_dict() for entry in entries]
        shown = {"catalogue": str(catalogue.folder), "experts": experts, "unreadable": unreadable}
        print_json(shown | dict(more or {}))
    else:
        _print_table(entries, f"{len(entries)} experts in {catalogue.folder}")
    for name, problem in unreadable.items():
        typer.echo(f"not readable: {_plain(name)}: {_plain(problem)}", err=True)


def _say_nearest(catalogue: Catalogue, wanted: Sequence[str]) -> None:
    """On stderr, the nearest names of the classes that no expert knows."""
    known = list(dict.fromkeys(name for entry in catalogue.experts for name in entry.classes))
    for name in wanted:
        if not any(matches(each, name) for each in known):
            names = ", ".join(like(name, known) or known[:SHOWN_CLASSES]) or "none"
            typer.echo(f"no expert knows a class {_plain(name)}; the nearest names are {_plain(names)}", err=True)


def _print_table(entries: Sequence[Entry], title: str) -> None:
    table = Table(title=Text(_plain(title)), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("name", "classes", "architecture", "input"):
        table.add_column(name, overflow="fold")
    for name in ("params", "MB", "test, %"):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("data", "licence"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        card, accuracy = entry.card, entry.accuracy
        shown = (
            entry.name, _classes(card), card.architecture, "×".join(map(str, card.input_spec.shape)),
            f"{entry.parameters:,}", f"{entry.bytes / 1e6:.2f}", "-" if accuracy is None else f"{100 * accuracy:.2f}",
            card.training.get("data", "-"), card.licence or "-",
        )  # fmt: skip
        # Cards may come from untrusted sources, so markup and escape sequences are not interpreted.
        table.add_row(*(Text(_plain(cell)) for cell in shown))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)


def _classes(card: Card) -> str:
    place = dict(zip(card.units, card.class_names, strict=True))
    names = [place[c] for c in card.classes]
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return _plain(", ".join(names[:SHOWN_CLASSES]) + more)


def _plain(value: Any) -> str:
    return printable(str(value).replace("\n", "�").replace("\t", "�"), CELL)
