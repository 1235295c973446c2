"""What the commands can take a network from: an expert's folder, torchvision, timm, or an architecture of ours."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torchvision.models import ResNet18_Weights

from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec
from exml_fast.inversion.teacher import frozen, probe
from exml_fast.models import OWN, create, final_linear
from exml_fast.storage import load_checkpoint, load_tensors

__all__ = ["ArchitectureArgument", "Input", "Teacher", "Weights", "expert_of", "open_teacher"]

Weights = Annotated[str, typer.Option(help="DEFAULT, a torchvision weights name or a local file.")]
ArchitectureArgument = Annotated[
    list[str] | None, typer.Option("--argument", metavar="NAME=VALUE", help="Of the architecture; repeatable.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="JSON", help="channels, size, mean, std, if not what the network carries.",
        show_default=False,
    ),
]  # fmt: skip


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
        units = self.units
        if units is None:
            with contextlib.suppress(ValueError):
                units = tuple(range(final_linear(self.model).out_features))
        if units is not None and (missing := [i for i in ids if i not in units]):
            raise ValueError(f"--classes: {self.name} has no classes {missing}, only {units[0]} to {units[-1]}")
        return ids


def open_teacher(
    source: str,
    weights: str = "DEFAULT",
    device: str = "cpu",
    arguments: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Teacher:
    """Open an expert's folder, ``torchvision/<name>``, ``timm/<name>``, or an architecture of ours with its weights.

    Args:
        weights: "DEFAULT" (downloaded), a member of torchvision's weights enum, or a local file (.safetensors, or a
            torch file of tensors only), which architectures of ours need.
        arguments: of the architecture, with a local file.
        spec: the input, with channels, size, mean and std, where it is not the one that the network carries.

    ValueError naming what is wrong.
    """
    library, _, name = source.partition("/")
    if not Path(source).exists() and (library in ("torchvision", "timm") or source in OWN):
        if arguments and not Path(weights).is_file():
            raise ValueError(f"--argument needs --weights with a local file for {source}, got {weights!r}")
        if source in OWN:
            return _own(source, weights, device, arguments or {}, spec)
        loader = _torchvision if library == "torchvision" else _timm
        teacher = loader(source, name, weights, device, arguments or {})
        return teacher if spec is None else dataclasses.replace(teacher, spec=InputSpec.from_dict(spec))
    if not Path(source).is_dir():
        raise ValueError(
            f"{source!r} is neither an expert's folder nor torchvision/<name>, timm/<name> or one of {sorted(OWN)}"
        )
    expert = Expert.load(source, device)
    names = dict(zip(expert.units, expert.card.class_names, strict=True))
    return Teacher(source, expert.model, expert.input_spec, expert.units, expert.classes, names)


def expert_of(
    source: str,
    weights: str,
    arguments: Mapping[str, Any],
    spec: Mapping[str, Any] | None,
    class_names: Sequence[str] = (),
) -> Expert:
    """An expert of :func:`open_teacher`'s network, one class a logit. ValueError for another number of names."""
    if Path(source).exists():
        raise ValueError(f"{source!r} is a file or folder: give an architecture, and the file as --weights")
    teacher = open_teacher(source, weights, arguments=arguments, spec=spec)
    example = torch.randn(1, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    with frozen(teacher.model), torch.no_grad():
        logits = probe(teacher.model, example, teacher.spec)
    count = logits.shape[1]
    names = tuple(class_names) or tuple(teacher.class_names.get(unit, str(unit)) for unit in range(count))
    if len(names) != count:
        raise ValueError(f"--class-names must name the {count} logits of {source}, got {len(names)} names")
    units = tuple(range(count))
    complete = complete_arguments(source, arguments, count, teacher.spec)
    # A card holds arguments and weights. Some loaders set more, as torchvision's of inception_v3 does.
    again = create(source, **complete).eval()
    again.load_state_dict(teacher.model.state_dict())
    with torch.no_grad():
        if not torch.allclose(again(example), logits, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"--argument: with {complete}, {source} computes something else than the network that was loaded; give "
                "the arguments it was made with, and its weights as a local file"
            )
    return Expert(again, Card(source, complete, units, units, names, teacher.spec))


def _own(
    source: str, weights: str, device: str, arguments: Mapping[str, Any], spec: Mapping[str, Any] | None
) -> Teacher:
    if not Path(weights).is_file():
        raise ValueError(f"--weights must be a local file for {source}, got {weights!r}")
    if spec is None:
        raise ValueError(f"--input is missing: {source} carries no channels, size, mean and std of its input")
    model = create(source, **arguments)
    _load_file(model, Path(weights))
    return Teacher(source, model.to(device), InputSpec.from_dict(spec), None, None, {})


def _torchvision(source: str, name: str, weights: str, device: str, arguments: Mapping[str, Any]) -> Teacher:
    import torchvision

    file = Path(weights)
    model = create(source, **arguments) if file.is_file() else None
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
    categories = chosen.meta.get("categories", [])
    # Weights from a file may be of other classes.
    names = categories if arguments.get("num_classes", len(categories)) == len(categories) else []
    return Teacher(source, model.to(device), InputSpec.of(chosen), None, None, dict(enumerate(names)))


def _timm(source: str, name: str, weights: str, device: str, arguments: Mapping[str, Any]) -> Teacher:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{source} needs timm: pip install 'exml_fast[timm]'") from error
    file = Path(weights)
    if weights != "DEFAULT" and not file.is_file():
        raise ValueError(f"--weights must be DEFAULT or a local file for {source}, got {weights!r}")
    if file.is_file():
        model = create(source, **arguments)
        _load_file(model, file)
    else:
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}")
        model = timm.create_model(name, pretrained=True)
    names = ResNet18_Weights.DEFAULT.meta["categories"] if model.num_classes == 1000 else []
    return Teacher(source, model.to(device), InputSpec.of(model), None, None, dict(enumerate(names)))


def _load_file(model: nn.Module, file: Path) -> None:
    try:
        state = load_tensors(file) if file.suffix == ".safetensors" else load_checkpoint(file)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if state and all(str(key).startswith("module.") for key in state):  # saved from nn.DataParallel
            state = {key.removeprefix("module."): value for key, value in state.items()}
        with torch.no_grad():
            model.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"--weights: {file} does not fit this model: {' '.join(str(error).split())[:300]}") from error
