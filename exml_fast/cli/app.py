"""The command `exml-fast`: its groups and commands, each a file."""

from __future__ import annotations

from typing import Annotated

import typer

from exml_fast import build_info
from exml_fast.cli import catalogue
from exml_fast.cli.distill import distill
from exml_fast.cli.doctor import doctor
from exml_fast.cli.experts import evaluate, train_experts_command
from exml_fast.cli.factories import register_factory
from exml_fast.cli.generator import generator
from exml_fast.cli.guard import ERROR
from exml_fast.cli.incremental import incremental
from exml_fast.cli.invert import invert
from exml_fast.cli.learn import demo, learn
from exml_fast.cli.prune import prune
from exml_fast.cli.quantize import quantize
from exml_fast.cli.reproduce import reproduce_command, transfer
from exml_fast.cli.synthesize import synthesize

__all__ = ["app"]

app = typer.Typer(
    name="exml-fast",
    help="Data-free learning from trained models: images out of classifiers, and models that learn from them alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        for name, value in build_info().items():
            typer.echo(f"{name:<15} {value if value is not None else 'none'}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Network of your own that cards may name, as package.module:factory; repeatable.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="What was built, and exit.")
    ] = False,
) -> None:
    context.obj = {"debug": debug}
    try:
        for factory in architecture or []:
            register_factory(factory)
    except ValueError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ERROR) from None


app.command("train-experts")(train_experts_command)
app.command()(invert)
app.command()(synthesize)
app.command()(distill)
app.command()(generator)
app.command()(prune)
app.command()(quantize)
app.command()(learn)
app.command()(incremental)
app.command()(evaluate)
app.command()(demo)
app.command()(doctor)
app.command("reproduce")(reproduce_command)
app.add_typer(catalogue.app, name="catalogue")
app.add_typer(transfer, name="transfer")
