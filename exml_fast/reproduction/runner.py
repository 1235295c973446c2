"""Tables of papers by name: presets (TOML), the tasks that run them, and rows with the paper's figure beside ours.

A preset names its task; every other table is read by that task. ``[paper]`` holds the published figures by cell, and
``[published]`` the published lengths, as ``"impressions.count" = 24000``: a run below one of them is labelled reduced.
Another paper joins with TOML files of its own and, where no task here does what it needs, ``@task("name")``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from exml_fast.progress import Progress
from exml_fast.storage import PathLike, load_json, load_tensors, save_json, save_tensors

__all__ = [
    "TASKS",
    "WHOLE",
    "Context",
    "Outcome",
    "Whole",
    "check",
    "load_preset",
    "names",
    "run",
    "seed_folders",
    "shorter",
    "task",
    "whole_task",
]

Preset = dict[str, Any]
# How settings end that make a run shorter where a change makes them smaller.
LENGTHS = ("steps", "count", "_images")


@dataclass(frozen=True)
class Context:
    """Where a task works: ``folder`` is its own and outlives an interruption."""

    folder: Path
    seed: int
    data_root: str | None
    device: str
    progress: Progress | None


@dataclass
class Outcome:
    """What a task found with one seed.

    Attributes:
        values: figures in percent by cell.
        seconds: by stage.
        settings: JSON values beside the preset's.
        samples: images in [0, 1] (N, C, H, W) and labels (N,) by title; negative labels are of no class.
        lines: by title, points (x, y) of each line.
        axes: by title of lines, the names of x and y.
        logarithmic: titles of lines whose x is logarithmic.
        points: by title, points (N, 2) of each group.
        matrices: by title, (K, K) numbers from 0 upwards.
        class_names: of the labels.
        pages: of whole tasks only: by title, what writes a page of its own to a path, given the run's provenance.
    """

    values: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lines: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    axes: dict[str, tuple[str, str]] = field(default_factory=dict)
    logarithmic: set[str] = field(default_factory=set)
    points: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    pages: dict[str, Callable[[Path, dict[str, Any]], Path]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write everything but ``pages``, which only whole tasks have, to a folder."""
        tensors = {f"matrices/{k}": matrix for k, matrix in enumerate(self.matrices.values())}
        for k, (images, labels) in enumerate(self.samples.values()):
            tensors |= {f"images/{k}": images, f"labels/{k}": labels}
        for k, groups in enumerate(self.points.values()):
            tensors |= {f"points/{k}/{g}": points for g, points in enumerate(groups.values())}
        save_tensors(folder / "pictures.safetensors", tensors)
        plain = ("values", "seconds", "settings", "lines", "axes", "class_names")
        written = {name: getattr(self, name) for name in plain} | {
            "logarithmic": sorted(self.logarithmic), "samples": list(self.samples), "matrices": list(self.matrices),
            "points": {title: list(groups) for title, groups in self.points.items()},
        }  # fmt: skip
        save_json(folder / "outcome.json", written)

    @classmethod
    def load(cls, folder: Path) -> Outcome:
        """What :meth:`save` wrote."""
        stored, tensors = load_json(folder / "outcome.json"), load_tensors(folder / "pictures.safetensors")
        samples = {
            title: (tensors[f"images/{k}"], tensors[f"labels/{k}"]) for k, title in enumerate(stored.pop("samples"))
        }
        matrices = {title: tensors[f"matrices/{k}"] for k, title in enumerate(stored.pop("matrices"))}
        points = {
            title: {name: tensors[f"points/{k}/{g}"] for g, name in enumerate(names)}
            for k, (title, names) in enumerate(stored.pop("points").items())
        }
        logarithmic = set(stored.pop("logarithmic"))
        return cls(**stored, samples=samples, matrices=matrices, points=points, logarithmic=logarithmic)


@dataclass(frozen=True)
class Whole:
    """Where a task that sees to all seeds itself works, and keeps what is finished."""

    folder: Path
    seeds: Sequence[int]
    data_root: str | None
    device: str
    progress: Progress | None


Task = Callable[[Preset, Context], Outcome]
# Raises what is wrong with a preset, given the folder of the data and the device, before anything is computed.
Check = Callable[[Preset, str | None, str], None]
TASKS: dict[str, Task] = {}
CHECKS: dict[str, Check] = {}
WholeTask = Callable[[Preset, Whole], tuple[list[dict[str, Any]], Outcome]]
WHOLE: dict[str, WholeTask] = {}


def task(name: str, check: Check | None = None) -> Callable[[Task], Task]:
    """Register a task under the name that presets give, and what checks such a preset."""

    def register(function: Task) -> Task:
        if name in TASKS:
            raise ValueError(f"task {name!r} is registered already")
        TASKS[name] = function
        if check is not None:
            CHECKS[name] = check
        return function

    return register


def whole_task(name: str) -> Callable[[WholeTask], WholeTask]:
    """Register a task that returns rows as :func:`rows_of` does, of all seeds."""

    def register(function: WholeTask) -> WholeTask:
        WHOLE[name] = function
        return function

    return register


def names() -> list[str]:
    """Of the presets that come with the package, as "nayak2021/table1"."""
    root = files("exml_fast.reproduction").joinpath("presets")
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.toml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    )


def load_preset(name: PathLike, changes: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name or from a ``.toml`` file, with ``changes`` as ``{"impressions.count": 2000}``.

    Its table ``usual`` holds the lengths that a change made shorter, as they were. With other data, a network of
    another architecture or a teacher of one's own it loses ``paper``. ValueError for an unknown name, a file that is
    not TOML, an unknown task, or a change within what is no table.
    """
    _load_tasks()
    path = Path(name)
    if path.suffix == ".toml":
        text = path.read_text(encoding="utf-8")
    elif str(name) in names():
        text = files("exml_fast.reproduction").joinpath(f"presets/{name}.toml").read_text("utf-8")
    else:
        raise ValueError(f"no preset {str(name)!r}: expected a .toml file or one of {', '.join(names())}")
    try:
        preset = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"preset {name}: {error}") from error
    if preset.get("task") not in {*TASKS, *WHOLE}:
        raise ValueError(f"preset {name}: task must be one of {sorted({*TASKS, *WHOLE})}, got {preset.get('task')!r}")
    own, before = preset["task"] in TASKS, copy.deepcopy(preset)  # streams say themselves what was shortened
    if own:
        _check_figures(name, preset)
    for key, value in (changes or {}).items():
        if key == "task":
            raise ValueError(f"preset {name}: task cannot be changed")
        if own and _is_another(key, value, _look_up(preset, key)):
            preset.pop("paper", None)
        _change(preset, key, value)
    if own and (usual := shorter(preset, before)):
        preset["usual"] = usual
    return preset


def shorter(preset: Preset, before: Preset) -> dict[str, int | str]:
    """What ``preset`` has less of than another, as that has it: numbers of steps and of images by dotted key.

    "all" where the other does not limit a number of images.
    """
    usual: dict[str, int | str] = {**lengths(before)}
    usual |= {key: "all" for key in lengths(preset) if key.endswith("_images") and key not in usual}
    return {key: length for key, length in usual.items() if _is_less(_look_up(preset, key), length)}


def lengths(preset: Preset) -> dict[str, int]:
    """What decides how long a run takes, by dotted key: numbers of steps and of images."""
    found: dict[str, int] = {}
    for name, value in preset.items():
        if isinstance(value, dict) and name not in ("paper", "published", "usual"):
            found |= {f"{name}.{key}": length for key, length in lengths(value).items()}
        elif isinstance(value, int) and not isinstance(value, bool) and name.endswith(LENGTHS):
            found[name] = value
    return found


def check(preset: Preset, data_root: str | None = None, device: str = "cpu") -> None:
    """ValueError or ImportError for what a preset cannot be run with; nothing is computed."""
    _load_tasks()
    if preset["task"] in CHECKS:
        CHECKS[preset["task"]](copy.deepcopy(preset), data_root, device)


def run(
    preset: Preset,
    out: PathLike,
    *,
    seeds: Sequence[int] = (0,),
    data_root: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], Outcome | None]:
    """Run a preset with each seed; its rows, and the outcome of the first seed.

    What a seed found is kept in ``out/parts/seed_<k>`` with its preset: a later run with the same preset takes it from
    there, finished or not; one with another preset begins anew.
    """
    _load_tasks()
    if preset["task"] in WHOLE:
        whole = Whole(Path(out), list(seeds), data_root, device, progress)
        return WHOLE[preset["task"]](copy.deepcopy(preset), whole)
    folders, plain = seed_folders(out, seeds), json.loads(json.dumps(preset))
    anew = [folder for folder in folders if not (f := folder / "preset.json").is_file() or load_json(f) != plain]
    if anew:
        check(preset, data_root, device)
    for folder in anew:
        shutil.rmtree(folder, ignore_errors=True)
        save_json(folder / "preset.json", preset)
    first: Outcome | None = None
    found: list[dict[str, float]] = []
    for seed, folder in zip(seeds, folders, strict=True):
        if not (folder / "outcome.json").is_file():
            outcome = TASKS[preset["task"]](copy.deepcopy(preset), Context(folder, seed, data_root, device, progress))
            outcome.save(folder)
        outcome = Outcome.load(folder)
        first = first or outcome
        found.append(outcome.values)
    return rows_of(preset, found), first


def seed_folders(out: PathLike, seeds: Sequence[int]) -> list[Path]:
    """Where :func:`run` keeps what each seed made; ValueError for a folder with files that no preset made."""
    folders = [Path(out) / "parts" / f"seed_{seed}" for seed in seeds]
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "preset.json").is_file():
            raise ValueError(f"{folder} holds files of another making: remove them, or take another folder")
    return folders


def rows_of(preset: Preset, found: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row a cell: the paper's figure, our mean, deviation and values over the seeds, and whether it was reduced."""
    paper, shorter = preset.get("paper", {}), shortened(preset)
    rows = []
    for cell in found[0]:
        values = [run[cell] for run in found]
        rows.append(
            {
                "cell": cell, "paper": paper.get(cell), "ours": round(statistics.mean(values), 3),
                "std": round(statistics.stdev(values), 3) if len(values) > 1 else None, "seeds": len(values),
                "values": [round(value, 3) for value in values], "reduced": bool(shorter), "note": "; ".join(shorter),
            }
        )  # fmt: skip
    return rows


def shortened(preset: Preset) -> list[str]:
    """Where the preset is shorter than published or usual, as "impressions.count 2000 instead of 24000"."""
    return [
        f"{key} {_look_up(preset, key)} instead of {usual}"
        for key, usual in {**preset.get("usual", {}), **preset.get("published", {})}.items()
        if _is_less(_look_up(preset, key), usual)
    ]


def _look_up(preset: Preset, key: str) -> Any:
    """None for what is not there."""
    value: Any = preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_less(value: Any, usual: float | str) -> bool:
    return isinstance(value, int) and (isinstance(usual, str) or value < usual)


def _is_another(key: str, value: Any, before: Any) -> bool:
    """Whether a change makes it another experiment than the paper's: "cifar10.npz" is "cifar10"."""
    data = key in ("data", "adaptation.target") and Path(str(value)).stem != Path(str(before)).stem
    return data or re.fullmatch(r"(teacher|student)(\.expert|\.architecture)?", key) is not None


def _check_figures(name: PathLike, preset: Preset) -> None:
    for table, numbers in ((table, preset.get(table, {})) for table in ("paper", "published")):
        if not isinstance(numbers, dict) or not all(isinstance(v, int | float) for v in numbers.values()):
            raise ValueError(f"preset {name}: {table} must be a table of numbers, got {numbers!r}")
    for key in preset.get("published", {}):
        if not isinstance(_look_up(preset, key), int | float):
            raise ValueError(f"preset {name}: [published] has {key!r}, which is no number of it")


def _change(preset: Preset, key: str, value: Any) -> None:
    *path, last = key.split(".")
    table: Any = preset
    for part in path:  # a preset need not name a table to have it; the tasks refuse what they do not know
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"preset: {part!r} is no table to set {key!r} in, but {table!r}")
    table[last] = value


def _load_tasks() -> None:
    import exml_fast.reproduction.experiments

    with contextlib.suppress(ImportError):  # those of streams report their progress, which takes the extra cli
        import exml_fast.reproduction.tables  # noqa: F401
