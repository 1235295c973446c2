"""Tasks about streams of experts (Carta 2022): a study ("learn"), the studies of a table, a sweep of the buffer size.

A preset of "learn" holds the fields of :class:`Settings`. A "table" names presets by row. A "sweep" names one preset as
``base`` and ``sizes``. Other settings beside them hold for all studies. Studies with equal experts train them once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exml_fast.data.core50 import EVERY
from exml_fast.report.charts import save_curves
from exml_fast.reproduction.methods import check_methods
from exml_fast.reproduction.outcome import Outcome, StreamContext
from exml_fast.reproduction.preset import NOTES, Preset, read_preset
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_page import settings_of_study, summary_of, write_page
from exml_fast.reproduction.study_rows import rows_of_study, shorter_than_published
from exml_fast.reproduction.study_settings import RunOptions, Settings, chosen_strategies
from exml_fast.validation import from_mapping, settings, to_dict

__all__ = [
    "check",
    "choose_rows",
    "choose_strategies",
    "folder_of",
    "learn_preset",
    "run_sweep",
    "run_table",
    "settings_of",
]


@settings
class Table:
    """Presets of "learn" by row; other settings beside ``rows`` hold for all of them."""

    rows: dict[str, str]


@settings
class Sweep:
    """A preset of "learn" and the sizes of its buffer."""

    base: str
    sizes: tuple[int, ...]


def learn_preset(name: str | Path) -> dict[str, Any]:
    """The settings in a preset of "learn", by name or from a .toml file; ValueError for a preset of another task."""
    preset = read_preset(name)
    if preset.get("task") != "learn":
        raise ValueError(f"preset {name} is for task {preset.get('task')!r}, expected 'learn'")
    values = {key: value for key, value in preset.items() if key not in ("task", *NOTES)}
    settings_of(values)
    return values


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Checked settings from JSON values; ValueError for an unknown name, a wrong type or methods that do not fit."""
    values = dict(values)
    if isinstance(values.get("strategies"), list):
        values["strategies"] = chosen_strategies(values["strategies"])
    found = from_mapping(Settings, values, "preset")
    check_methods(found)
    return found


def check(preset: Preset, _data_root: str | None = None, _device: str = "cpu") -> None:
    """ValueError for settings of a study that do not fit; nothing is computed."""
    for values in _planned(preset).values():
        settings_of(values)


def choose_rows(preset: Preset, rows: Sequence[str]) -> None:
    """Keep only these rows of a table, in place."""
    table = preset.get("rows")
    if not isinstance(table, dict):
        raise ValueError(f"--rows is for tables; a preset of task {preset['task']!r} has no rows")
    if unknown := [row for row in rows if row not in table]:
        raise ValueError(f"--rows: no row {unknown[0]!r}, expected some of {','.join(table)}")
    preset["rows"] = {row: table[row] for row in rows}


def choose_strategies(preset: Preset, strategies: Sequence[str]) -> None:
    """Take these strategies in all studies of a preset, in place."""
    preset["strategies"] = list(strategies)


def run_table(preset: Preset, context: StreamContext) -> tuple[list[dict[str, Any]], Outcome]:
    """One study, or one for each row of a table (Carta 2022, Tables 2 and 3)."""
    outcome = Outcome()
    return [row for _, rows in _finished(preset, context, outcome) for row in rows], outcome


def run_sweep(preset: Preset, context: StreamContext) -> tuple[list[dict[str, Any]], Outcome]:
    """Accuracy by buffer size (Carta 2022, Fig. 3), with the plot ``buffer_sizes.png``.

    Baselines have no buffer, so they are among the rows once.
    """
    outcome = Outcome()
    rows: list[dict[str, Any]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for study, found in _finished(preset, context, outcome):
        size, first = study.settings.distillation["buffer_size"], not rows
        for row in found:
            if row["kind"] == "strategy":
                short = [part for part in shorter_than_published(study, row["slug"]) if not part.endswith(" images")]
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
        save_curves(context.folder / "buffer_sizes.png", lines, axes, logarithmic=True)
    except ImportError as error:
        outcome.settings["plot"] = str(error)
    return rows, outcome


def _finished(preset: Preset, context: StreamContext, outcome: Outcome) -> Iterator[tuple[Study, list[dict[str, Any]]]]:
    """Run each study and yield it with its rows; ``outcome`` notes settings and times. All are checked first."""
    options = RunOptions(
        seed=context.seeds[0], seeds=len(context.seeds), device=context.device, data_root=context.data_root
    )
    chosen = {name: settings_of(values) for name, values in _planned(preset).items()}
    for name, found in chosen.items():
        folder = context.folder / "parts" / folder_of(name)
        trained = context.folder / "experts" / experts_folder(found)
        study = Study(found, options, folder, progress=context.progress, title=name, trained=trained)
        study.run()
        rows = rows_of_study(study)
        title = name or study.data.name
        outcome.settings[title] = {**found.public(), "seed": options.seed, "seeds": options.seeds}
        outcome.pages[title] = _page_of(study)
        outcome.seconds |= {", ".join(filter(None, [name, row["name"]])): row["seconds"] for row in rows}
        yield study, rows


def folder_of(title: str) -> str:
    """A study's title as the name of its folder."""
    return title.replace("/", "-").replace(" ", "-")


def experts_folder(found: Settings) -> str:
    """A folder's name for everything that decides the experts; multi-task has the experts of new classes."""
    scenario = {"multi-task": "new-classes"}.get(found.scenario, found.scenario)
    values = [scenario, found.data, list(found.classes_per_step), found.parts, to_dict(found.resolved_experts())]
    if found.every != EVERY:
        values.append(found.every)
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return f"{Path(found.data).stem}-{scenario}-{digest[:8]}"


def _page_of(study: Study) -> Callable[[Path, dict[str, Any]], Path]:
    """What writes the page of a finished study, as ``learn --report`` does."""

    given = study.settings, study.options, study.out
    title, trained = study.title, study.trained

    def write(path: Path, origin: dict[str, Any]) -> Path:
        study = Study(*given, title=title, trained=trained)  # anew, so that no data stay in memory until then
        heading = f"{study.title}: learning from experts of {study.data.name}".removeprefix(": ")
        shown = settings_of_study(study, origin["machine"]["threads"])
        return write_page(path, study, None, heading, summary_of(study), origin, shown)

    return write


def _planned(preset: Preset) -> dict[str, dict[str, Any]]:
    """The settings of each study by its name."""
    kind = {"table": Table, "sweep": Sweep}.get(preset["task"])
    own = {} if kind is None else {f.name: preset[f.name] for f in dataclasses.fields(kind) if f.name in preset}
    common = {key: value for key, value in preset.items() if key not in ("task", *NOTES, *own)}
    if kind is None:
        return {"": common}
    found: Any = from_mapping(kind, own, "preset")
    if isinstance(found, Table):
        return {row: _merged(learn_preset(name), common) for row, name in found.rows.items()}
    base = _merged(learn_preset(found.base), common)
    held = {size: {"buffer_size": size} for size in sorted(set(found.sizes))}
    return {f"buffer {size}": _merged(base, {"distillation": one, "random_images": one}) for size, one in held.items()}


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``; tables are merged field by field."""
    merged = dict(values)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
