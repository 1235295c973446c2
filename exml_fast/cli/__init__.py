"""The command `exml-fast`. Needs the extra `cli`; everything it does is a few calls of the package's public parts."""

from __future__ import annotations

import os
import sys

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Entry point. One line on stderr and exit code 2 where typer or rich is missing."""
    try:
        _run()
    except KeyboardInterrupt:  # before the command began
        sys.stderr.write("\nInterrupted. Nothing was kept.\n")
        raise SystemExit(INTERRUPTED) from None


def _run() -> None:
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f'exml-fast needs {error.name}: pip install "exml_fast[cli,report]"\n')
        raise SystemExit(2) from None
    from exml_fast.cli.app import app

    try:
        app(prog_name="exml-fast")
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # A Ctrl-C that hit code compiled at run time makes Python end by the signal instead of with this code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
