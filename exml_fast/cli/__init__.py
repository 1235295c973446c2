"""The command `exml-fast`. Needs the extra `cli`; everything it does is a few calls of the package's public parts."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point. One line on stderr and exit code 2 where typer or rich is missing."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f'exml-fast needs {error.name}: pip install "exml_fast[cli,report]"\n')
        raise SystemExit(2) from None
    from exml_fast.cli.app import app

    app(prog_name="exml-fast")
