"""What `invert`, `distill` and `generator` were asked for, as stored in `run.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from exml_fast.cli.parsing import source_name
from exml_fast.validation import Count, Precision, settings, to_dict

__all__ = [
    "DistillRun", "GeneratorRun", "InvertRun", "JudgeOptions", "MachineOptions", "StatisticsOptions", "StudentOptions",
    "TeacherOptions", "public",
]  # fmt: skip

# Files and folders of this machine, which decide no result or are named elsewhere.
HIDDEN = {"images", "start", "statistics", "real", "data_root", "weights", "judges", "pool_dir"}


@settings
class TeacherOptions:
    """The network, where its weights are, and the classes that are asked for."""

    model: str | None
    weights: str
    arguments: dict[str, Any]
    input: dict[str, Any] | None
    classes: str


@settings
class StatisticsOptions:
    """Real images whose statistics are matched, and the layers."""

    statistics: str | None
    statistics_count: Count
    layers: tuple[str, ...]


@settings
class JudgeOptions:
    """Independent networks, and real images among which copies are looked for."""

    judges: tuple[str, ...]
    real: str | None


@settings
class MachineOptions:
    """Seed, device, precision and threads."""

    seed: int
    device: str
    precision: Precision
    threads: Count | None


@settings
class InvertRun:
    """Options of ``invert``."""

    teacher: TeacherOptions
    matching: StatisticsOptions
    judging: JudgeOptions
    machine: MachineOptions
    recipe: str | None
    per_class: Count
    overrides: dict[str, Any]
    parametrisation: str | None
    student: str | None
    png: bool
    report: bool


@settings
class StudentOptions:
    """The student's architecture, its training, and the data on which it is tested."""

    student: str
    student_arguments: dict[str, Any]
    distillation: dict[str, Any]
    data: str | None
    data_root: str | None


@settings
class DistillRun:
    """Options of ``distill``."""

    teacher: TeacherOptions
    matching: StatisticsOptions
    judging: JudgeOptions
    machine: MachineOptions
    learning: StudentOptions
    images: str | None
    recipes: tuple[str, ...]
    inversion: dict[str, Any]
    pool_dir: str | None
    png: bool
    report: bool


@settings
class GeneratorRun:
    """Options of ``generator``."""

    teacher: TeacherOptions
    machine: MachineOptions
    student: str | None
    student_arguments: dict[str, Any]
    start: str | None
    delegator: dict[str, Any]
    count: Count
    data: str | None
    data_root: str | None
    real: str | None
    png: bool
    report: bool


def public(run: Any) -> dict[str, Any]:
    """Settings for files of results: all options in one table, networks by name, without folders of this machine.

    "images" is the kind of random images, if they are drawn.
    """
    flat: dict[str, Any] = {}
    for name, value in to_dict(run).items():
        flat |= value if dataclasses.is_dataclass(getattr(run, name)) else {name: value}
    shown = {name: value for name, value in flat.items() if name not in HIDDEN and value not in (None, [], {}, "")}
    if (source := source_name(flat.get("images"))) is not None:
        shown["images"] = source
    networks = {name: str(shown[name]).partition("=")[0] for name in ("model", "student") if name in shown}
    return shown | {name: Path(source).name if Path(source).exists() else source for name, source in networks.items()}
