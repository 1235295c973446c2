"""What `exml-fast invert` can take a network from: an expert's folder, torchvision or timm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exml_fast.continual import Expert
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.storage import load_checkpoint, load_tensors

__all__ = ["Teacher", "open_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A network with its input, the class id of each logit, those it knows, and their names."""

    name: str
    model: nn.Module
    spec: InputSpec
    units: tuple[int, ...] | None
    classes: tuple[int, ...] | None
    class_names: dict[int, str]

    def class_ids(self, wanted: Sequence[str]) -> list[int] | None:
        """Class ids from ids and names; None (all it knows) when nothing is asked for."""
        if not wanted:
            return None if self.classes is None else list(self.classes)
        by_name = {name.casefold(): unit for unit, name in self.class_names.items()}
        ids = []
        for item in wanted:
            if item.casefold() in by_name and not (item.isdigit() and int(item) in self.class_names):
                ids.append(by_name[item.casefold()])
            elif item.isdigit():
                ids.append(int(item))
            else:
                known = ", ".join(list(self.class_names.values())[:8]) or "ids only"
                raise ValueError(
                    f"--classes: {item!r} is neither a class id nor a class name of {self.name} ({known} …)"
                )
        return ids


def open_teacher(source: str, weights: str = "DEFAULT", device: str = "cpu") -> Teacher:
    """Open an expert's folder, ``torchvision/<name>`` or ``timm/<name>``.

    ``weights``: for the latter two "DEFAULT" (downloaded), a member of torchvision's weights enum, or a local file
    (.safetensors, or a torch file of tensors only). ValueError naming what is wrong.
    """
    library, _, name = source.partition("/")
    if library in ("torchvision", "timm") and not Path(source).exists():
        loader = _torchvision if library == "torchvision" else _timm
        return loader(source, name, weights, device)
    if not Path(source).is_dir():
        raise ValueError(f"{source!r} is neither an expert's folder nor torchvision/<name> or timm/<name>")
    expert = Expert.load(source, device)
    names = dict(zip(expert.units, expert.card.class_names, strict=True))
    return Teacher(source, expert.model, expert.input_spec, expert.units, expert.classes, names)


def _torchvision(source: str, name: str, weights: str, device: str) -> Teacher:
    import torchvision

    file = Path(weights)
    model = create(source) if file.is_file() else None
    try:
        enum: Any = torchvision.models.get_model_weights(name)
    except ValueError:
        raise ValueError(f"torchvision has no model {name!r}") from None
    members = list(enum.__members__)
    if model is not None:
        _load_file(model, file)
        chosen = enum["DEFAULT"]
    elif weights in members:
        chosen = enum[weights]
        model = torchvision.models.get_model(name, weights=chosen)
    else:
        raise ValueError(f"--weights must be one of {members} or a local file for {source}, got {weights!r}")
    names = dict(enumerate(chosen.meta.get("categories", [])))
    return Teacher(source, model.to(device), InputSpec.of(chosen), None, None, names)


def _timm(source: str, name: str, weights: str, device: str) -> Teacher:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{source} needs timm: pip install 'exml_fast[timm]'") from error
    file = Path(weights)
    if weights != "DEFAULT" and not file.is_file():
        raise ValueError(f"--weights must be DEFAULT or a local file for {source}, got {weights!r}")
    if file.is_file():
        model = create(source)
        _load_file(model, file)
    else:
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}")
        model = timm.create_model(name, pretrained=True)
    return Teacher(source, model.to(device), InputSpec.of(model), None, None, {})


def _load_file(model: nn.Module, file: Path) -> None:
    try:
        state = load_tensors(file) if file.suffix == ".safetensors" else load_checkpoint(file)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        with torch.no_grad():
            model.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"--weights: {file} does not fit this model: {' '.join(str(error).split())[:300]}") from error
