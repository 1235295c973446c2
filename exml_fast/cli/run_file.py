"""The file `run.json` of a run's folder: what was asked for, and whether the run has finished."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from exml_fast.cli.guard import Guard
from exml_fast.reproduction.study import Settings
from exml_fast.storage import load_json, save_json

__all__ = ["close_run", "open_run", "open_study", "was_typed"]

RUN_FILE = "run.json"
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
    RUN_FILE,
)


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


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _command(context: typer.Context) -> str:
    """As typed, without the program's name: "learn", "transfer zskd"."""
    above = context.parent
    return str(context.info_name) if above is None or above.parent is None else f"{above.info_name} {context.info_name}"


def open_study(
    context: typer.Context,
    guard: Guard,
    out: Path,
    given: Settings,
    threads: int | None,
    report: bool,
    resume: bool,
    overwrite: bool,
) -> tuple[Settings, int | None, bool]:
    """Settings, threads and whether a page is wanted: as given, or as stored."""
    own = asdict(given) | {"threads": threads, "report": report}
    stored = open_run(context, guard, out, own, resume, overwrite)
    threads, report = stored.pop("threads", None), bool(stored.pop("report", False))
    return Settings(**stored), threads, report
