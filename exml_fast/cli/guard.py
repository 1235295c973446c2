"""How commands end: a summary as JSON, errors as one line, Ctrl-C with the command that resumes what can be resumed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import torch
import typer

from exml_fast.storage import load_json, save_json

__all__ = [
    "Guard",
    "Json",
    "close_run",
    "open_run",
    "parse_device",
    "parse_pairs",
    "print_json",
    "require_report",
    "was_typed",
]

Json = Annotated[bool, typer.Option("--json", help="A machine-readable summary on stdout instead of tables.")]

RUN_FILE = "run.json"
ERROR, INTERRUPTED = 2, 130
# What a run may leave in its folder, and so what --overwrite may remove.
PRODUCTS = (
    "experts",
    "checkpoints",
    "parts",
    "ex-model",
    "joint",
    "report",
    "results.json",
    "report.json",
    "student",
    "images",
    "png",
    "inversion.pt",
    "inversion.pt.coarse",
    RUN_FILE,
)


class Guard:
    """``with Guard(context) as guard``: exit code 2 and one line for an error, 130 and a hint for Ctrl-C."""

    def __init__(self, context: typer.Context) -> None:
        self._debug = bool((context.find_root().obj or {}).get("debug"))
        self.resume: str | None = None
        """The command that goes on after Ctrl-C, once there is something to go on from."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            kept = f"What was done is kept. To go on:\n  {self.resume}" if self.resume else "Nothing was kept."
            typer.echo(f"\nInterrupted. {kept}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(error, ValueError | RuntimeError | OSError | ImportError) and not isinstance(error, typer.Exit):
            if self._debug:
                return
            text = ". ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
            resume = f" To go on: {self.resume}" if self.resume and hasattr(error, "__notes__") else ""
            typer.echo(f"error: {' '.join(text.split())}{resume}", err=True)
            raise typer.Exit(ERROR) from None


def open_run(
    context: typer.Context, guard: Guard, out: Path, settings: dict[str, Any], resume: bool, overwrite: bool
) -> dict[str, Any]:
    """The settings of a run in ``out``: those given, or with ``resume`` those on file. Sets ``guard.resume``.

    ValueError if there is nothing to resume, if options are given beside --resume, or if ``out`` holds an
    unfinished run. A finished run in ``out`` is replaced.
    """
    command, file = _command(context), out / RUN_FILE
    again = shlex.join(["exml-fast", *command.split(), "--out", str(out), "--resume"])
    stored = load_json(file) if file.is_file() else None
    if resume:
        if stored is None or stored.get("command") != command:
            found = f"it holds a run of {stored['command']!r}" if stored else f"{RUN_FILE} is missing"
            raise ValueError(f"--resume: no run of {command!r} in {out}: {found}")
        free = {"out", "resume", "as_json"}
        given = [p for p in context.params if was_typed(context, p) and p not in free]
        if given:
            arguments = {p.name for p in context.command.params if p.param_type_name == "argument"}
            names = ", ".join(p.upper() if p in arguments else f"--{p.replace('_', '-')}" for p in given)
            raise ValueError(f"--resume takes all settings from {file}: leave out {names}")
        guard.resume = again
        return dict(stored["settings"])
    if stored is not None and not stored.get("finished") and not overwrite:
        raise ValueError(f"{out} holds an unfinished run: go on with `{again}`, or give --overwrite or another --out")
    if stored is not None:
        for name in PRODUCTS:
            product = out / name
            if product.is_dir():
                shutil.rmtree(product)
            else:
                product.unlink(missing_ok=True)
        for product in out.glob("expert_*/card.json"):
            shutil.rmtree(product.parent)
    save_json(file, {"command": command, "settings": settings, "finished": False})
    guard.resume = again
    return settings


def close_run(out: Path) -> None:
    """Mark the run in ``out`` as finished."""
    save_json(out / RUN_FILE, load_json(out / RUN_FILE) | {"finished": True})


def require_report() -> None:
    """ImportError unless a report can be written."""
    for module in ("jinja2", "matplotlib"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f"the report needs {module}: pip install 'exml_fast[report]'") from error


def parse_device(name: str) -> str:
    """The device of --device; ValueError for one that is not here."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:<n>, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device is available here")
    return str(torch.device(name))


def parse_pairs(option: str, pairs: list[str] | None) -> dict[str, Any]:
    """``["lr=0.1", "flip=true"]`` to JSON values (what is no JSON is a string); ValueError naming the option."""
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{option} must be NAME=VALUE, got {pair!r}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return values


def _command(context: typer.Context) -> str:
    """As typed, without the program's name: "learn", "transfer zskd"."""
    above = context.parent
    return str(context.info_name) if above is None or above.parent is None else f"{above.info_name} {context.info_name}"


def print_json(value: dict[str, Any]) -> None:
    """The summary of ``--json`` on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
