"""Presets: TOML files with the settings of an experiment, the paper's figures, and the published lengths.

A preset names its task, which reads all other tables. ``[paper]`` holds the paper's figures by cell. ``[published]``
holds the published lengths, as ``"impressions.count" = 24000``; a shorter run is labelled reduced. ``note`` says what
else differs from the paper, as the data. A change of the data to ``published_data`` removes the note.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from exml_fast.storage import PathLike
from exml_fast.validation import nearest

__all__ = ["Preset", "changed", "lengths", "names", "read_preset", "shortened", "shorter"]

Preset = dict[str, Any]
# Endings of settings that make a run shorter when they are smaller.
LENGTHS = ("steps", "count", "_images", "batch_size")
# Images are inverted in batches, but all of them are.
NO_LENGTHS = ("impressions.batch_size",)
# Settings with which the paper's figures no longer say anything about the run.
OTHERS = re.compile(
    r"(teacher|student)(\.expert|\.architecture)?|architecture|arguments(\..+)?|protocols|held_out|methods(\..+\.method)?"
)
# Tables that describe the paper or the preset itself, not the experiment.
NOTES = ("paper", "published", "published_data", "usual", "note")


def names() -> list[str]:
    """Names of the presets in the package, as "nayak2021/table1"."""
    root = files("exml_fast.reproduction").joinpath("presets")
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.toml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    )


def read_preset(name: PathLike) -> Preset:
    """Read a preset by name or from a ``.toml`` file; ValueError for an unknown name or a file that is not TOML."""
    path = Path(name)
    if path.suffix == ".toml":
        text = path.read_text(encoding="utf-8")
    elif str(name) in (known := names()):
        text = files("exml_fast.reproduction").joinpath(f"presets/{name}.toml").read_text("utf-8")
    else:
        expected = f"expected a .toml file or one of {', '.join(known)}"
        raise ValueError(f"no preset {str(name)!r}{nearest(name, known)}; {expected}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"preset {name}: {error}") from error


def changed(preset: Preset, changes: Mapping[str, Any], name: str, *, streams: bool) -> Preset:
    """A copy of ``preset`` with ``changes`` by dotted key; see :func:`exml_fast.reproduction.runner.load_preset`.

    ``streams``: the preset is for experts of a stream; such a study compares its lengths with the paper's itself.
    """
    before, preset = preset, copy.deepcopy(preset)
    if not streams:
        _check_figures(name, preset)
    for key, value in changes.items():
        if key == "task":
            raise ValueError(f"preset {name}: task cannot be changed")
        if key == "data" and Path(str(value)).stem == preset.get("published_data"):
            preset.pop("note", None)
        elif not streams and _is_another(key, value, _look_up(preset, key)):
            preset.pop("paper", None)
        _change(preset, key, value)
    if not streams and (usual := shorter(preset, before)):
        preset["usual"] = usual
    return preset


def shorter(preset: Preset, before: Preset) -> dict[str, int | str]:
    """By dotted key, the lengths of ``before`` that are smaller in ``preset``; see :func:`lengths`.

    Where ``before`` does not have the key, a number of images is "all", and a batch size that of ``Training``.
    """
    from exml_fast.training.config import Training

    usual: dict[str, int | str] = {**lengths(before)}
    others = [key for key in lengths(preset) if key not in usual]
    usual |= {key: "all" for key in others if key.endswith("_images")}
    usual |= {key: Training().batch_size for key in others if key.endswith("batch_size")}
    return {key: length for key, length in usual.items() if _is_less(_look_up(preset, key), length)}


def lengths(preset: Preset) -> dict[str, int]:
    """By dotted key, the numbers of steps and of images in a preset, which decide how long a run takes."""
    found: dict[str, int] = {}
    for name, value in preset.items():
        if isinstance(value, dict) and name not in NOTES:
            inside = {f"{name}.{key}": length for key, length in lengths(value).items()}
            found |= {key: length for key, length in inside.items() if key not in NO_LENGTHS}
        elif isinstance(value, int) and not isinstance(value, bool) and name.endswith(LENGTHS):
            found[name] = value
    return found


def shortened(preset: Preset) -> list[str]:
    """Each length below the published or usual one, as "impressions.count 2000 instead of 24000"."""
    return [
        f"{key} {_look_up(preset, key)} instead of {usual}"
        for key, usual in {**preset.get("usual", {}), **preset.get("published", {})}.items()
        if _is_less(_look_up(preset, key), usual)
    ]


def _look_up(preset: Preset, key: str) -> Any:
    """The value at a dotted key, or None if there is none."""
    value: Any = preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_less(value: Any, usual: float | str) -> bool:
    return isinstance(value, int) and (isinstance(usual, str) or value < usual)


def _is_another(key: str, value: Any, before: Any) -> bool:
    """Whether a change takes different data, networks or tasks than the paper.

    A file "cifar10.npz" counts as "cifar10".
    """
    data = key in ("data", "adaptation.target") and Path(str(value)).stem != Path(str(before)).stem
    return data or OTHERS.fullmatch(key) is not None


def _check_figures(name: PathLike, preset: Preset) -> None:
    for table, numbers in ((table, preset.get(table, {})) for table in ("paper", "published")):
        if not isinstance(numbers, dict) or not all(isinstance(v, int | float) for v in numbers.values()):
            raise ValueError(f"preset {name}: {table} must be a table of numbers, got {numbers!r}")
    for key in preset.get("published", {}):
        if not isinstance(_look_up(preset, key), int | float):
            raise ValueError(f"preset {name}: [published] has {key!r}, which is not a number in the preset")


def _change(preset: Preset, key: str, value: Any) -> None:
    *path, last = key.split(".")
    table: Any = preset
    for part in path:  # a preset may leave out a table; unknown tables are refused when the task reads the preset
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"preset: {part!r} is no table to set {key!r} in, but {table!r}")
    table[last] = value
