"""Presets of streams (Carta 2022): one study (task "learn"), the studies of a table, or a sweep of the buffer size.

A preset of "learn" holds the fields of :class:`exml_fast.reproduction.study.Settings`. A "table" names presets by row.
A "sweep" names one preset as ``base`` and ``sizes``. Other settings beside them hold for all studies. Studies with equal
experts train them once. Finished parts are kept in the run's folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exml_fast.cli.progress import Reporter
from exml_fast.data.core50 import EVERY
from exml_fast.reproduction import runner as reproduce
from exml_fast.reproduction.runner import Outcome, Preset, Whole, whole_task
from exml_fast.reproduction.study import ALL, Settings, Study
from exml_fast.reproduction.study_page import settings_of_study, summary_of, write_page

__all__ = ["choose", "folder_of", "learn_preset", "settings_of"]

OF_THE_RUN = ("seed", "seeds", "device", "data_root", "experts")
TRAINING = (
    "classes_per_step",
    "parts",
    "architecture",
    "arguments",
    "expert_lr",
    "expert_batch_size",
    "expert_schedule",
    "expert_augmentation",
    "expert_arithmetic",
    "pretrained",
)


def learn_preset(name: str | Path) -> dict[str, Any]:
    """The settings in a preset of "learn", by name or from a .toml file; ValueError for another task's."""
    preset = reproduce.load_preset(name)
    if preset["task"] != "learn":
        raise ValueError(f"--preset {name} is for task {preset['task']!r}, expected 'learn'")
    values = {key: value for key, value in preset.items() if key != "task"}
    settings_of(values)
    return values


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Checked settings; ValueError for a name or a type that they have not, or what the command decides."""
    for name, value in values.items():
        if name in OF_THE_RUN:
            raise ValueError(f"preset: {name!r} is an option of the command")
        kind = KINDS.get(name)
        if kind is None:
            raise ValueError(f"preset: {name!r} is not a setting of learn; expected one of {', '.join(KINDS)}")
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"preset: {name} must be of type {kind.__name__}, got {value!r}")
    settings = Settings(**values)
    if "all" in settings.strategies:
        settings.strategies = ALL
    settings.check()
    return settings


def choose(preset: Preset, rows: Sequence[str] | None, strategies: Sequence[str] | None) -> None:
    """Keep only these rows of a table, and these strategies in all its studies; ValueError for bad settings."""
    if rows is not None:
        table = preset.get("rows")
        if not isinstance(table, dict):
            raise ValueError(f"--rows is for tables; a preset of task {preset['task']!r} has no rows")
        if unknown := [row for row in rows if row not in table]:
            raise ValueError(f"--rows: no row {unknown[0]!r}, expected some of {','.join(table)}")
        preset["rows"] = {row: table[row] for row in rows}
    if strategies is not None:
        if preset["task"] not in reproduce.WHOLE:
            raise ValueError(f"--strategies is for presets of streams; this one is of task {preset['task']!r}")
        preset["strategies"] = list(strategies)
    if preset.get("task") in reproduce.WHOLE:
        for values in _planned(preset).values():
            settings_of(values)


@whole_task("learn")
@whole_task("table")
def run_table(preset: Preset, run: Whole) -> tuple[list[dict[str, Any]], Outcome]:
    """One study, or one for each row of a table (Carta 2022, Tables 2 and 3)."""
    outcome = Outcome()
    return [row for _, rows in _finished(preset, run, outcome) for row in rows], outcome


@whole_task("sweep")
def run_sweep(preset: Preset, run: Whole) -> tuple[list[dict[str, Any]], Outcome]:
    """Accuracy by the buffer's size (Carta 2022, Fig. 3), with the plot ``buffer_sizes.png``.

    Baselines have no buffer: they are among the rows once.
    """
    outcome = Outcome()
    rows: list[dict[str, Any]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for study, found in _finished(preset, run, outcome):
        size, first = study.settings.distillation["buffer_size"], not rows
        for row in found:
            if row["kind"] == "strategy":
                short = [part for part in study.shorter(row["slug"]) if not part.endswith(" images")]
                # The paper's figures in the tables are those of its full buffer.
                row |= {"cell": f"{row['cell']}, buffer {size}", "buffer_size": size, "paper": None}
                row |= {"reduced": bool(short), "note": ", ".join(short)}
                lines.setdefault(row["name"], []).append((float(size), row["ours"]))
            if row["kind"] == "strategy" or first:
                rows.append(row)
    title, axes = "Test accuracy by buffer size", ("images in the buffer", "test accuracy, %")
    outcome.lines[title], outcome.axes[title] = lines, axes
    outcome.logarithmic.add(title)
    try:
        from exml_fast.report.charts import save_curves

        save_curves(run.folder / "buffer_sizes.png", lines, axes, logarithmic=True)
    except ImportError as error:
        outcome.settings["plot"] = str(error)
    return rows, outcome


def _finished(preset: Preset, run: Whole, outcome: Outcome) -> Iterator[tuple[Study, list[dict[str, Any]]]]:
    """Each study, one at a time, with its rows; settings and times are noted in ``outcome``. All are checked first."""
    report = run.progress if isinstance(run.progress, Reporter) else Reporter()
    chosen: dict[str, Settings] = {}
    for name, values in _planned(preset).items():
        chosen[name] = dataclasses.replace(
            settings_of(values), device=run.device, data_root=run.data_root, seed=run.seeds[0], seeds=len(run.seeds)
        )
    for name, settings in chosen.items():
        folder = run.folder / "parts" / folder_of(name)
        study = Study(settings, folder, report, name, run.folder / "experts" / _experts_of(settings))
        rows = study.run()
        outcome.settings[name or study.data.name] = settings.published()
        outcome.pages[name or study.data.name] = _page_of(settings, folder, study.trained, name)
        outcome.seconds |= {", ".join(filter(None, [name, row["name"]])): row["seconds"] for row in rows}
        yield study, rows


def folder_of(title: str) -> str:
    """A study's title as the name of its folder."""
    return title.replace("/", "-").replace(" ", "-")


def _page_of(settings: Settings, out: Path, trained: Path, name: str) -> Callable[[Path, dict[str, Any]], Path]:
    """What writes the page that ``learn --report`` writes, of a study that is finished."""

    def write(path: Path, origin: dict[str, Any]) -> Path:
        study = Study(settings, out, Reporter(), name, trained)
        title = f"{study.title}: learning from experts of {study.data.name}".removeprefix(": ")
        shown = settings_of_study(study, origin["machine"]["threads"])
        return write_page(path, study, None, title, summary_of(study), origin, shown)

    return write


def _planned(preset: Preset) -> dict[str, dict[str, Any]]:
    """The settings of each study by its name."""
    own = {"learn": (), "table": ("rows",), "sweep": ("base", "sizes")}[preset["task"]]
    if missing := [key for key in own if not preset.get(key)]:
        raise ValueError(f"preset: {missing[0]!r} is missing")
    common = {key: value for key, value in preset.items() if key not in ("task", *own)}
    if preset["task"] == "learn":
        return {"": common}
    if preset["task"] == "table":
        return {row: _merged(learn_preset(name), common) for row, name in preset["rows"].items()}
    base, sizes = _merged(learn_preset(preset["base"]), common), sorted(set(preset["sizes"]))
    held = {size: {"buffer_size": size} for size in sizes}
    return {f"buffer {size}": _merged(base, {"distillation": one, "random_images": one}) for size, one in held.items()}


def _experts_of(settings: Settings) -> str:
    """A name for what decides the experts: those of multi-task are those of new classes."""
    scenario = {"multi-task": "new-classes"}.get(settings.scenario, settings.scenario)
    values = [settings.data, settings.expert_epochs(), *(getattr(settings, name) for name in TRAINING)]
    if settings.every != EVERY:
        values.append(settings.every)
    digest = hashlib.sha256(json.dumps([scenario, *values]).encode()).hexdigest()
    return f"{Path(settings.data).stem}-{scenario}-{digest[:8]}"


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, those of tables field by field."""
    merged = dict(values)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


# Of each setting; None stands for an unnamed text, or the experts' usual epochs.
KINDS: dict[str, type] = {
    name: type(default) if default is not None else int if name == "epochs" else str
    for name, default in vars(Settings()).items()
}
