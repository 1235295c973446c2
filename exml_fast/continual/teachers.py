"""Teachers by name: an expert's folder, torchvision, timm, or an architecture of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec
from exml_fast.engine.freezing import device_of, dtype_of, frozen, probe
from exml_fast.engine.memory import require_memory
from exml_fast.models import OWN, create
from exml_fast.storage import load_checkpoint, load_tensors
from exml_fast.training import seeded
from exml_fast.validation import like

__all__ = ["Teacher", "expert_of", "open_teacher", "pretrained_weights"]

RANDOM = "random"
"""Instead of weights: the network's first ones."""

# torchvision sets this with the weights that it downloads: its Inceptions normalise once more inside.
NORMALISES_INSIDE = {"googlenet", "inception_v3"}


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
        by_name: dict[str, list[int]] = {}
        for unit, name in self.class_names.items():
            by_name.setdefault(name.casefold(), []).append(unit)
        ids = []
        for item in wanted:
            named = by_name.get(item.casefold(), [])
            if len(named) > 1 and not item.isdigit():
                raise ValueError(f"classes: {item!r} is the name of the classes {named} of {self.name}: give the id")
            if named and not (item.isdigit() and int(item) in self.class_names):
                ids.append(named[0])
            elif item.isdigit():
                ids.append(int(item))
            else:
                raise ValueError(f"classes: {item!r} is no class of {self.name}, {self._known_classes(item)}")
        units = self.units or tuple(range(self.outputs()))
        if missing := [i for i in ids if i not in units]:
            raise ValueError(f"classes: {self.name} has no classes {missing}, only {units[0]} to {units[-1]}")
        return ids

    def _known_classes(self, item: str) -> str:
        known = self.class_names if self.classes is None else self.classes
        names = [self.class_names[each] for each in known if each in self.class_names]
        if not names:
            return "whose classes have no names: give ids"
        if found := like(item, names):
            return f"whose nearest names are {', '.join(found)}"
        return f"which knows {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"

    def outputs(self, option: str = "input") -> int:
        """The number of its logits. ValueError naming ``option`` if it does not take its images or has no room."""
        device = device_of(self.model)
        try:
            require_memory(self.model, self.spec, 1, device)
            example = torch.zeros(1, *self.spec.shape, device=device, dtype=dtype_of(self.model))
            with frozen(self.model):
                return probe(self.model, example, self.spec).shape[1]
        except ValueError as error:
            raise ValueError(f"{option} of {self.name}: {error}") from error


def open_teacher(
    source: str,
    *,
    weights: str = "DEFAULT",
    device: str = "cpu",
    arguments: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Teacher:
    """Open an expert's folder, ``torchvision/<name>``, ``timm/<name>``, or an architecture of ours with its weights.

    Args:
        weights: "DEFAULT" (downloaded), a member of torchvision's weights enum, or a local file (.safetensors, or a
            torch file of tensors only). "random" (always the same) tries a network without its weights.
        arguments: of the architecture, with a local file or "random".
        spec: the input, with channels, size, mean and std, where it is not the one that the network carries.

    ValueError naming what is wrong.
    """
    library, _, name = source.partition("/")
    if not Path(source).exists() and (library in ("torchvision", "timm") or source in OWN):
        if arguments and not _is_local(weights):
            raise ValueError(f"arguments need weights from a local file or 'random' for {source}, got {weights!r}")
        if source in OWN:
            return _own(source, weights, device, arguments or {}, spec)
        loader = _torchvision if library == "torchvision" else _timm
        teacher = loader(source, name, weights, device, arguments or {})
        return teacher if spec is None else dataclasses.replace(teacher, spec=InputSpec.from_dict(spec))
    if not Path(source).is_dir():
        raise ValueError(
            f"{source!r} is neither an expert's folder nor torchvision/<name>, timm/<name> or one of {sorted(OWN)}"
        )
    if arguments or weights != "DEFAULT":
        raise ValueError(f"weights and arguments are for architectures; {source} is an expert's folder")
    expert = Expert.load(source, device)
    names = dict(zip(expert.units, expert.card.class_names, strict=True))
    taken = expert.input_spec if spec is None else InputSpec.from_dict(spec)
    return Teacher(source, expert.model, taken, expert.units, expert.classes, names)


def expert_of(
    source: str,
    *,
    weights: str = "DEFAULT",
    arguments: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
) -> Expert:
    """An expert of :func:`open_teacher`'s network, one class a logit. ValueError for another number of names."""
    if Path(source).exists():
        raise ValueError(f"{source!r} is a file or folder: give an architecture, and the file as weights")
    teacher = open_teacher(source, weights=weights, arguments=arguments, spec=spec)
    teacher.outputs()  # says what does not fit
    example = torch.randn(1, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    with frozen(teacher.model), torch.no_grad():
        logits = probe(teacher.model, example, teacher.spec)
    count = logits.shape[1]
    names = tuple(class_names) or tuple(teacher.class_names.get(unit, str(unit)) for unit in range(count))
    if len(names) != count:
        raise ValueError(f"class_names must name the {count} logits of {source}, got {len(names)} names")
    units = tuple(range(count))
    complete = complete_arguments(source, arguments or {}, count, teacher.spec)
    # A card holds arguments and weights. Some loaders set more, as torchvision's of inception_v3 does.
    again = create(source, **complete).eval()
    again.load_state_dict(teacher.model.state_dict())
    with torch.no_grad():
        if not torch.allclose(again(example), logits, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"arguments: with {complete}, {source} computes something else than the network that was loaded; give "
                "the arguments it was made with, and its weights as a local file"
            )
    return Expert(again, Card(source, complete, units, units, names, teacher.spec))


def pretrained_weights(architecture: str, weights: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights with the names and shapes in ``like``; other layers, as the head, are left out."""
    found = open_teacher(architecture, weights=weights).model.state_dict()
    return {name: value for name, value in found.items() if name in like and value.shape == like[name].shape}


def _own(
    source: str, weights: str, device: str, arguments: Mapping[str, Any], spec: Mapping[str, Any] | None
) -> Teacher:
    if not _is_local(weights):
        raise ValueError(f"weights must be a local file or 'random' for {source}, got {weights!r}")
    if spec is None:
        raise ValueError(f"input is missing: {source} carries no channels, size, mean and std of its input")
    model = _local(source, weights, arguments)
    return Teacher(source, model.to(device), InputSpec.from_dict(spec), None, None, {})


def _torchvision(source: str, name: str, weights: str, device: str, arguments: Mapping[str, Any]) -> Teacher:
    import torchvision

    if name in NORMALISES_INSIDE:
        arguments = {"transform_input": True, "init_weights": False, **arguments}
    try:
        enum: Any = torchvision.models.get_model_weights(name)
    except ValueError:
        raise ValueError(f"torchvision has no model {name!r}") from None
    members = list(enum.__members__)
    if _is_local(weights):
        model = _local(source, weights, arguments)
        chosen = enum["DEFAULT"]
    elif weights in members:
        chosen = enum[weights]
        with _download(source):
            model = torchvision.models.get_model(name, weights=chosen)
    else:
        expected = f"one of {members}, a local file or 'random' for {source}"
        raise ValueError(f"weights must be {expected}, got {weights!r}")
    categories = chosen.meta.get("categories", [])
    # Weights from a file may be of other classes, random ones are of none.
    same = weights != RANDOM and arguments.get("num_classes", len(categories)) == len(categories)
    names = categories if same else []
    return Teacher(source, model.to(device), InputSpec.of(chosen), None, None, dict(enumerate(names)))


def _timm(source: str, name: str, weights: str, device: str, arguments: Mapping[str, Any]) -> Teacher:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{source} needs timm: pip install 'exml_fast[timm]'") from error
    if weights != "DEFAULT" and not _is_local(weights):
        raise ValueError(f"weights must be DEFAULT, a local file or 'random' for {source}, got {weights!r}")
    if _is_local(weights):
        model = _local(source, weights, arguments)
    else:
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}")
        with _download(source):
            model = timm.create_model(name, pretrained=True)
    known = weights != RANDOM and model.num_classes == 1000
    names = ResNet18_Weights.DEFAULT.meta["categories"] if known else []
    return Teacher(source, model.to(device), InputSpec.of(model), None, None, dict(enumerate(names)))


@contextmanager
def _download(source: str) -> Iterator[None]:
    """OSError that says what to do where the weights of ``source`` cannot be downloaded."""
    try:
        yield
    except Exception as error:  # each library raises errors of its own HTTP client
        if isinstance(error, ValueError | TypeError | NotImplementedError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hub = "; weights that the Hugging Face cache holds are found with HF_HUB_OFFLINE=1"
        raise OSError(
            f"the weights of {source} cannot be downloaded ({reason}): give a local file as weights, on the command "
            f"line --weights FILE, or random for a trial{hub if source.startswith('timm/') else ''}"
        ) from error


def _is_local(weights: str) -> bool:
    return weights == RANDOM or Path(weights).is_file()


def _local(source: str, weights: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network with weights that nobody needs to download."""
    with seeded(0, torch.device("cpu")):
        model = create(source, **arguments)
    if weights != RANDOM:
        _load_file(model, Path(weights))
    return model


def _load_file(model: nn.Module, file: Path) -> None:
    try:
        state = load_tensors(file) if file.suffix == ".safetensors" else load_checkpoint(file)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if state and all(str(key).startswith("module.") for key in state):  # saved from nn.DataParallel
            state = {key.removeprefix("module."): value for key, value in state.items()}
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it is no dictionary of tensors")
        if differing := _differences(model.state_dict(), state):
            raise ValueError(f"{differing}; arguments of its architecture must be given too")
        with torch.no_grad():
            model.load_state_dict(state)
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise ValueError(f"weights: {file} does not fit this model, a {type(model).__name__}: {reason}") from error


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What of ``found`` does not fit, in numbers and one example each; "" if all does."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    parts = []
    if reshaped:
        name = reshaped[0]
        shapes = f"expected {tuple(expected[name].shape)}, got {tuple(found[name].shape)}"
        parts.append(f"{len(reshaped)} tensors of other shapes (first {name}: {shapes})")
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} tensors missing (first {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} unknown tensors (first {unknown[0]})")
    return ", ".join(parts)
