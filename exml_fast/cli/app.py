"""The command `exml-fast`: its groups and commands, each a file."""

from __future__ import annotations

from typing import Annotated

import typer

from exml_fast.cli.lazy import LazyGroup

__all__ = ["app"]

app = typer.Typer(
    name="exml-fast",
    cls=LazyGroup,
    help="Data-free learning from trained models: images out of classifiers, and models that learn from them alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from exml_fast import build_info

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
    if not architecture:
        return
    from exml_fast.cli.factories import register_factory
    from exml_fast.cli.guard import ERROR

    try:
        for factory in architecture:
            register_factory(factory)
    except ValueError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ERROR) from None
