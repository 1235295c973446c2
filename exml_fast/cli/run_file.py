"""The file `run.json` of a run's folder: what was asked for, and whether the run has finished."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, Literal, TypeVar

import typer

from exml_fast.cli.guard import Guard
from exml_fast.reproduction.study_settings import RunOptions, Settings
from exml_fast.storage import load_json, save_json
from exml_fast.validation import Count, from_mapping, settings, to_dict

__all__ = ["StudyRun", "close_run", "open_run", "was_typed"]

T = TypeVar("T")

RUN_FILE = "run.json"
# Everything that a run may leave in its folder; a new run removes it.
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
    "generator",
    "learners",
    "images",
    "png",
    RUN_FILE,
)


@settings
class RunFile:
    """The content of ``run.json``; ``settings`` are read as the class that the command asks for."""

    version: Literal[1]
    command: str
    settings: dict[str, Any]
    finished: bool = False


@settings
class StudyRun:
    """What ``train-experts``, ``learn`` and ``demo`` were asked for."""

    study: Settings
    options: RunOptions
    threads: Count | None = None
    report: bool = False


def open_run(context: typer.Context, guard: Guard, out: Path, given: T, *, resume: bool, overwrite: bool) -> T:
    """The settings of a run in ``out``: ``given``, or with ``resume`` those on file. Sets ``guard.resume``.

    ValueError if there is nothing to resume, if options are given beside --resume, if the file is damaged, or if
    ``out`` holds an unfinished run. A finished run in ``out`` is replaced.
    """
    command, file = _command(context), out / RUN_FILE
    again = shlex.join(["exml-fast", *command.split(), "--out", str(out), "--resume"])
    stored = from_mapping(RunFile, load_json(file), str(file)) if file.is_file() else None
    if resume:
        if stored is None or stored.command != command:
            found = f"it holds a run of {stored.command!r}" if stored else f"{RUN_FILE} is missing"
            raise ValueError(f"--resume: no run of {command!r} in {out}: {found}")
        free = {"out", "resume", "as_json"}
        typed = [p for p in context.params if was_typed(context, p) and p not in free]
        if typed:
            arguments = {p.name for p in context.command.params if p.param_type_name == "argument"}
            names = ", ".join(p.upper() if p in arguments else f"--{p.replace('_', '-')}" for p in typed)
            raise ValueError(f"--resume takes all settings from {file}: leave out {names}")
        guard.resume = again
        return from_mapping(type(given), stored.settings, f"{file}, settings")
    if stored is not None and not stored.finished and not overwrite:
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
    save_json(file, to_dict(RunFile(version=1, command=command, settings=to_dict(given))))
    guard.resume = again
    return given


def close_run(out: Path) -> None:
    """Mark the run in ``out`` as finished."""
    save_json(out / RUN_FILE, load_json(out / RUN_FILE) | {"finished": True})


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _command(context: typer.Context) -> str:
    """As typed, without the program's name: "learn", "transfer zskd"."""
    above = context.parent
    return str(context.info_name) if above is None or above.parent is None else f"{above.info_name} {context.info_name}"
