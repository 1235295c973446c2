"""Run a preset with several seeds: its rows hold our figures beside the paper's.

What a seed found is kept in the run's folder, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exml_fast.ownership import remove_tree
from exml_fast.progress import Progress
from exml_fast.reproduction.outcome import Context, Outcome, StreamContext
from exml_fast.reproduction.preset import Preset, changed, read_preset, shortened
from exml_fast.reproduction.tasks import STREAM_TASKS, TASKS
from exml_fast.storage import PathLike, load_json, save_json
from exml_fast.validation import nearest

__all__ = ["check", "load_preset", "rows_of", "run", "seed_folders"]


def load_preset(name: PathLike, changes: Mapping[str, Any] | None = None) -> Preset:
    """Read a preset by name or from a ``.toml`` file and change it, as ``{"impressions.count": 2000}``.

    Its table ``usual`` holds the lengths that a change made shorter. With different data, another architecture or a
    given teacher the preset loses ``paper``. ValueError for an unknown name, a file that is not TOML, an unknown task,
    or a change inside a value that is no table.
    """
    preset = read_preset(name)
    known = sorted({*TASKS, *STREAM_TASKS})
    if (task := preset.get("task")) not in known:
        raise ValueError(f"preset {name}: task must be one of {known}, got {task!r}{nearest(task, known)}")
    return changed(preset, changes or {}, str(name), streams=task in STREAM_TASKS)


def check(preset: Preset, data_root: str | None = None, device: str = "cpu") -> None:
    """ValueError or ImportError for a preset that cannot be run; nothing is computed."""
    task = STREAM_TASKS.get(preset["task"]) or TASKS[preset["task"]]
    task.check(copy.deepcopy(preset), data_root, device)


def run(
    preset: Preset,
    out: PathLike,
    *,
    seeds: Sequence[int] = (0,),
    data_root: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], Outcome]:
    """Run a preset with each seed; returns its rows and the outcome of the first seed.

    ``out/parts/seed_<k>`` keeps the preset and what seed k has computed. A later run with the same preset continues
    from there; a run with a different preset begins anew.
    """
    name = preset["task"]
    if name in STREAM_TASKS:
        context = StreamContext(Path(out), list(seeds), data_root, device, progress)
        return STREAM_TASKS[name].run(copy.deepcopy(preset), context)
    folders, plain = seed_folders(out, seeds), json.loads(json.dumps(preset))
    anew = [folder for folder in folders if not (f := folder / "preset.json").is_file() or load_json(f) != plain]
    if anew:
        check(preset, data_root, device)
    for folder in anew:
        remove_tree(folder)
        save_json(folder / "preset.json", preset)
    outcomes = []
    for seed, folder in zip(seeds, folders, strict=True):
        if not (folder / "outcome.json").is_file():
            outcome = TASKS[name].run(copy.deepcopy(preset), Context(folder, seed, data_root, device, progress))
            outcome.save(folder)
        outcomes.append(Outcome.load(folder))
    return rows_of(preset, [outcome.values for outcome in outcomes]), outcomes[0]


def seed_folders(out: PathLike, seeds: Sequence[int]) -> list[Path]:
    """The folders in which :func:`run` keeps each seed; ValueError for a folder with files of something else."""
    folders = [Path(out) / "parts" / f"seed_{seed}" for seed in seeds]
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "preset.json").is_file():
            raise ValueError(
                f"{folder} holds files that no run of a preset made: remove them, or choose another folder"
            )
    return folders


def rows_of(preset: Preset, found: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each cell: the paper's figure, our mean and deviation, and whether lengths were reduced."""
    paper, shorter = preset.get("paper", {}), shortened(preset)
    note = "; ".join([*shorter, *filter(None, [preset.get("note")])])
    rows = []
    for cell in found[0]:
        values = [run[cell] for run in found]
        rows.append(
            {
                "cell": cell, "paper": paper.get(cell), "ours": round(statistics.mean(values), 3),
                "std": round(statistics.stdev(values), 3) if len(values) > 1 else None, "seeds": len(values),
                "values": [round(value, 3) for value in values], "reduced": bool(shorter), "note": note,
            }
        )  # fmt: skip
    return rows
