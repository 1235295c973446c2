"""How commands end: a summary as JSON, an error as one line, Ctrl-C with the command that resumes the run."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer

from exml_fast.cli import INTERRUPTED
from exml_fast.cli.factories import register_typed
from exml_fast.ownership import RunFolder
from exml_fast.progress import silent
from exml_fast.reading import shortened

__all__ = ["ERROR", "Guard", "print_json"]

ERROR = 2
# Greatest length of an error; the texts of files may be part of it.
LINE = 2000
# Begins the error of an exception that is no message for users.
UNEXPECTED = "internal error:"


class Guard:
    """``with Guard(context) as guard``: exit code 2 and one line for an error, 130 and a hint for Ctrl-C."""

    def __init__(self, context: typer.Context) -> None:
        self._typed = context.params
        self._debug = bool((context.find_root().obj or {}).get("debug"))
        self.resume: str | None = None
        """The command that continues the run after Ctrl-C, once the run has a folder."""
        self._folder: RunFolder | None = None
        self._stack = ExitStack()

    def own(self, out: Path) -> RunFolder:
        """Write into ``out``, as the only process, until the command ends; see :class:`RunFolder`."""
        self._folder = RunFolder(out).__enter__()
        return self._folder

    def __enter__(self) -> Self:
        self._stack.enter_context(silent())  # a command shows its own progress
        try:
            register_typed(self._typed)
        except ValueError as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._folder is not None:
            self._folder.__exit__(None, None, None)
        if isinstance(error, KeyboardInterrupt):
            kept = f"What was done is kept. To go on:\n  {self.resume}" if self.resume else "Nothing was kept."
            typer.echo(f"\nInterrupted. {kept}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        # typer raises its own errors of usage, which are RuntimeErrors or unknown here.
        if isinstance(error, Exception) and not type(error).__module__.startswith(("typer", "click")):
            if self._debug:
                return
            known = isinstance(error, ValueError | RuntimeError | OSError | ImportError) and str(error)
            text = str(error) if known else f"{UNEXPECTED} {type(error).__name__}: {error}; --debug shows where"
            text = ". ".join([text, *getattr(error, "__notes__", [])])
            resume = f" To go on: {self.resume}" if self.resume and hasattr(error, "__notes__") else ""
            typer.echo(f"error: {shortened(' '.join(text.split()), LINE)}{resume}", err=True)
            raise typer.Exit(ERROR) from None


def print_json(value: dict[str, Any]) -> None:
    """The summary of ``--json`` on stdout."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # a name of a file that is no UTF-8
        text = json.dumps(value)
    typer.echo(text)
