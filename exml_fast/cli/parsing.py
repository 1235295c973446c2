"""Values of options: pairs NAME=VALUE, devices, inputs and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast, get_args

import torch

from exml_fast.data import SOURCES, ImageSource, InputSpec, Photographs
from exml_fast.engine.freezing import chosen_device
from exml_fast.generators import Generator
from exml_fast.validation import Precision

__all__ = [
    "FAST",
    "SOURCE_NAMES",
    "given_options",
    "parse_device",
    "parse_input",
    "parse_pairs",
    "parse_precision",
    "parse_sizes",
    "parse_source",
    "require_report",
    "source_name",
    "use_threads",
]


# Sources that are made of files, written as NAME=FOLDER.
OF_FOLDERS: dict[str, Callable[[str], ImageSource]] = {"photographs": Photographs, "generator": Generator.load}
# The meta-generator (exml_fast.generators.Fast) as a value of --images.
FAST = "fast"
SOURCE_NAMES = [*SOURCES, *(f"{name}=FOLDER" for name in OF_FOLDERS)]


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


def parse_device(name: str) -> str:
    """The device of --device; ValueError for one that is not here."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:<n>, got {name!r}")
    return str(chosen_device(name))


def parse_input(text: str | None) -> dict[str, Any] | None:
    """``--input``: a JSON object; ValueError naming the option."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        InputSpec.from_dict(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'--input must be like {{"channels": 3, "size": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}}: {error}'
        ) from error
    return value


def parse_sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--classes-per-step must be whole numbers with commas between, got {text!r}") from None


def source_name(text: str | None) -> str | None:
    """The kind of random images that a value of ``--images`` names, as "dead-leaves"; None for a folder of images."""
    name, equals, _ = (text or "").partition("=")
    return name if name in (OF_FOLDERS if equals else SOURCES) else None


def parse_source(text: str | None) -> ImageSource | None:
    """The source of random images that a value of ``--images`` names; None for a folder of images."""
    name = source_name(text)
    if text is None or name is None:
        return None
    return OF_FOLDERS[name](text.partition("=")[2]) if name in OF_FOLDERS else SOURCES[name]()


def given_options(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def require_report() -> None:
    """ImportError unless a report can be written."""
    for module in ("jinja2", "matplotlib"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f"the report needs {module}: pip install 'exml_fast[report]'") from error


def parse_precision(name: str) -> Precision:
    """The value of ``--precision``."""
    if name not in get_args(Precision):
        raise ValueError(f"--precision must be one of {', '.join(get_args(Precision))}, got {name!r}")
    return cast(Precision, name)
