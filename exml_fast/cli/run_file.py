"""The file `run.json` of a run's folder: what was asked for, and whether the run has finished."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import Field

from exml_fast.cli.factories import typed_factories
from exml_fast.cli.guard import Guard
from exml_fast.reproduction.study_settings import RunOptions, Settings
from exml_fast.storage import load_json, save_json
from exml_fast.validation import Count, from_mapping, settings, shown, to_dict

__all__ = ["StudyRun", "close_run", "open_run", "was_typed"]

T = TypeVar("T")

RUN_FILE = "run.json"
# What runs leave in their folders. A new run refuses a folder that holds such a file or folder of other making.
PRODUCTS = (
    "experts",
    "expert_*",
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
    "network",
    "network.*",
    "images",
    "png",
)


@settings
class RunFile:
    """The content of ``run.json``; ``settings`` are read as the class that the command asks for."""

    version: Annotated[int, Field(ge=1, le=1)]
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

    A finished run of the same command in ``out`` is replaced: the files that it wrote are deleted, and no others. Until
    the guard ends, other processes cannot write into ``out``.

    Raises:
        ValueError: if there is nothing to resume, options are given beside --resume, a file is damaged, ``out`` holds
            an unfinished run, one of another command or files that no run made, or another process writes into ``out``.
    """
    command, file = _command(context), out / RUN_FILE
    factories = [*(context.find_root().params.get("architecture") or []), *typed_factories(context.params)]
    own = [word for factory in dict.fromkeys(factories) for word in ("--architecture", factory)]
    again = shlex.join(["exml-fast", *own, *command.split(), "--out", str(out), "--resume"])
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    stored = _stored(file)
    if resume:
        if stored is None or stored.command != command:
            found = f"it holds a run of {shown(stored.command)}" if stored else f"{RUN_FILE} is missing"
            raise ValueError(f"--resume: no run of {command!r} in {out}: {found}")
        free = {"out", "resume", "as_json", "watch", "tensorboard"}
        typed = [p for p in context.params if was_typed(context, p) and p not in free]
        if typed and to_dict(given) != stored.settings:
            arguments = {p.name for p in context.command.params if p.param_type_name == "argument"}
            names = ", ".join(p.upper() if p in arguments else f"--{p.replace('_', '-')}" for p in typed)
            raise ValueError(f"--resume takes all settings from {file}, which differ: leave out {names}")
        guard.own(out)
        guard.resume = again
        return from_mapping(type(given), stored.settings, f"{file}, settings")
    if stored is not None and stored.command != command:
        raise ValueError(f"{out} holds a run of {shown(stored.command)}: give another --out")
    if stored is not None and not stored.finished and not overwrite:
        raise ValueError(f"{out} holds an unfinished run: go on with `{again}`, or give --overwrite or another --out")
    folder = guard.own(out)
    foreign = [path for name in PRODUCTS for path in out.glob(name) if not folder.holds(path)]
    if foreign:
        raise ValueError(f"{foreign[0]} was not written by a run in {out}: move it or give another --out")
    if stored is not None:
        folder.remove()
    save_json(file, to_dict(RunFile(version=1, command=command, settings=to_dict(given))))
    guard.resume = again
    return given


def _stored(file: Path) -> RunFile | None:
    if not os.path.lexists(file):
        return None
    try:
        return from_mapping(RunFile, load_json(file))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is damaged or no file of a run, give another --out: {error}") from error


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
