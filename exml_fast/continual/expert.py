"""A trained classifier with a card that says what it knows: the unit of the stream (Carta 2022, sec. 2)."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import FailFast, Field
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.memory import require_memory
from exml_fast.engine.substitution import copied
from exml_fast.models import OWN, is_known, takes
from exml_fast.models.skeleton import filled, require_header, skeleton
from exml_fast.models.weights import require_same_weights
from exml_fast.reading import CARD_BYTES
from exml_fast.storage import PathLike, load_json, load_tensors, save_json, save_tensors, sha256, tensor_header
from exml_fast.validation import Natural, field_names, from_mapping, require, settings, to_dict

__all__ = ["Card", "Expert", "complete_arguments", "read_card", "require_fit"]

FORMAT_VERSION = 1
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"
ClassIds = Annotated[tuple[Annotated[Natural, Field(lt=2**63)], ...], Field(min_length=1), FailFast()]
Names = Annotated[tuple[str, ...], FailFast()]
# Values of an image for which the free memory is asked.
LARGE = 2**24
# Names of classes in a repr.
SHOWN_CLASSES = 8


@settings
class Card:
    """What an expert is, as plain JSON values.

    Attributes:
        architecture, arguments: for :func:`exml_fast.models.create`.
        units: ``units[j]`` is the global class id of logit j.
        classes: the global ids the expert was trained on, a subset of ``units``.
        class_names: ``class_names[j]`` is the name of class ``units[j]``.
        input_spec: the input the network expects.
        training: how it was trained and how accurate it is (data, epochs, lr, accuracy ...).
        licence: of the weights, if known.
        sha256: of the weights file; empty until saved.
        format_version: of the card.

    Raises:
        ValueError: naming the field that is wrong.
    """

    architecture: Annotated[str, Field(max_length=200)]
    arguments: dict[str, Any]
    units: ClassIds
    classes: ClassIds
    class_names: Names
    input_spec: InputSpec
    training: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    sha256: str = ""
    format_version: int = FORMAT_VERSION

    def check(self) -> None:
        """Rules between the fields."""
        require(self.format_version == FORMAT_VERSION, "format_version", str(FORMAT_VERSION), self.format_version)
        for name in ("units", "classes"):
            ids = getattr(self, name)
            if len(set(ids)) != len(ids):
                raise ValueError(f"{name} must not repeat a class id, got {list(ids)}")
        if extra := sorted(set(self.classes) - set(self.units)):
            raise ValueError(f"classes {extra} are not among the units {list(self.units)}")
        if len(self.class_names) != len(self.units):
            raise ValueError(f"class_names must name the {len(self.units)} units, got {len(self.class_names)} names")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_dict`."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Card:
        """ValueError naming the field that is missing, unknown or wrong."""
        if not isinstance(value, Mapping):
            raise ValueError(f"card: expected a JSON object, got {type(value).__name__}")
        version = value.get("format_version")
        require(version == FORMAT_VERSION and version is not True, "card: format_version", str(FORMAT_VERSION), version)
        if missing := [name for name in field_names(cls) if name not in value]:
            raise ValueError(f"card: {missing[0]} is missing")
        return from_mapping(cls, value, "card")


class Expert:
    """A classifier in evaluation mode, and its card.

    Args:
        model: kept as it is if it is in evaluation mode; otherwise a copy in evaluation mode is kept.
        card: what it knows.
    """

    def __init__(self, model: nn.Module, card: Card) -> None:
        training = any(module.training for module in model.modules())
        self.model = copied(model).eval() if training else model
        self.card = card

    @classmethod
    def wrap(
        cls,
        model: nn.Module,
        spec: InputSpec,
        classes: Sequence[int],
        *,
        units: Sequence[int] | None = None,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Expert:
        """An expert of a copy of your own network.

        Args:
            model: takes normalised images (N, C, H, W) and returns logits (N, len(units)).
            spec: the input the network expects.
            classes: global ids of the classes it was trained on.
            units: global class id of each logit; ``classes`` by default.
            architecture: the name given to :func:`exml_fast.models.register`, without which the expert cannot be
                saved; the name of the network's class by default.
            arguments: with which :func:`exml_fast.models.create` makes the network. ``num_classes`` and
                ``in_channels`` may be left out.
            class_names: the name of each unit; the ids by default.

        Raises:
            ValueError: if the network does not take the input, or has another number of logits than units.
        """
        units = tuple(classes if units is None else units)
        names = tuple(class_names or map(str, units))
        name = architecture or type(model).__name__
        complete = complete_arguments(name, arguments, len(units), spec)
        card = Card(name, complete, units, tuple(classes), names, spec)
        model = copy.deepcopy(model)
        require_fit(model, spec, len(units))
        return cls(model.eval(), card)

    def __repr__(self) -> str:
        card, accuracy = self.card, self.card.training.get("accuracy")
        names = [name for unit, name in zip(card.units, card.class_names, strict=True) if unit in set(card.classes)]
        shown = ", ".join(names[:SHOWN_CLASSES]) + (" …" if len(names) > SHOWN_CLASSES else "")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        tested = f", accuracy {100 * accuracy:.1f} %" if isinstance(accuracy, int | float) else ""
        return (
            f"Expert: {card.architecture}, {parameters:,} parameters, on {self.device}\n"
            f"input {'×'.join(map(str, card.input_spec.shape))}, {len(card.units)} logits{tested}\n"
            f"{len(names)} classes: {shown}"
        )

    @property
    def input_spec(self) -> InputSpec:
        """The input the network expects."""
        return self.card.input_spec

    @property
    def units(self) -> tuple[int, ...]:
        """Global class id of each logit."""
        return self.card.units

    @property
    def classes(self) -> tuple[int, ...]:
        """Global ids of the classes it was trained on."""
        return self.card.classes

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def positions(self, classes: Sequence[int]) -> Tensor:
        """Logit positions (len(classes),) int64 of these global ids; ValueError for one the head does not have."""
        place = {unit: j for j, unit in enumerate(self.units)}
        if missing := [c for c in classes if c not in place]:
            raise ValueError(f"classes {missing} are not among the expert's units {list(self.units)}")
        return torch.tensor([place[c] for c in classes], dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Logits (N, len(units)) of normalised images (N, C, H, W), in evaluation mode, without gradient."""
        self.model.eval()
        device = self.device
        return torch.cat([self.model(chunk.to(device)) for chunk in images.split(batch_size)])

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global class ids (N,) of normalised images: the largest logit among ``classes``. ``task`` is ignored."""
        classes = torch.tensor(self.classes, device=self.device)
        return classes[self.logits(images)[:, self.positions(self.classes)].argmax(1)]

    def fingerprint(self) -> str:
        """SHA-256 of the weights as they are now."""
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.model.state_dict().items()}
        return hashlib.sha256(tensors_to_bytes(state)).hexdigest()

    def save(self, folder: PathLike) -> Card:
        """Write ``model.safetensors`` and then ``card.json`` into ``folder``; returns the card with the hash.

        ValueError for an expert that :meth:`load` could not rebuild; nothing is written then.
        """
        path = Path(folder)
        self._require_loadable()
        save_tensors(path / MODEL_FILE, self.model.state_dict())
        self.card = dataclasses.replace(self.card, sha256=sha256(path / MODEL_FILE))
        save_json(path / CARD_FILE, self.card.to_dict())
        return self.card

    def _require_loadable(self) -> None:
        card, tensors = self.card, self.model.state_dict()
        try:
            like = skeleton(card.architecture, card.arguments, len(tensors))
            require_same_weights(tensors, like)
            require_fit(self.model, card.input_spec, len(card.units))
        except ValueError as error:
            raise ValueError(
                f"the expert cannot be saved, because Expert.load could not rebuild it: {error}. For a network of your "
                "own, call exml_fast.models.register(name, factory), and give its name and arguments in the card: "
                "Expert.wrap(model, spec, classes, architecture=name, arguments=…)"
            ) from error

    @classmethod
    def load(cls, folder: PathLike, device: str | torch.device = "cpu") -> Expert:
        """Read an expert; no code from the folder is run, the card reaches only :func:`exml_fast.models.create`.

        Memory and time are bounded by the size of the weights file: its header is compared with the network on the
        device "meta", which takes an image there, before the weights are read. The caller's random state is left alone.

        Raises:
            FileNotFoundError: if there is no card or no weights file.
            ValueError: naming the file, field or weight for: a file that is no regular one or a link out of the folder,
                a wrong format version or field, an unknown architecture or argument, a network that cannot be built on
                "meta" or does not take the images of the card, another number of outputs than units, a missing or
                unexpected weight, a wrong shape or dtype, a wrong hash, a weight that is not finite, a negative
                variance of a BatchNorm.
            ImportError: for a timm model if timm is missing.
        """
        path, card = Path(folder), read_card(folder)
        file = path / MODEL_FILE
        header = tensor_header(file, within=path)
        try:
            shapes = skeleton(card.architecture, card.arguments, len(header))
            require_header(header, shapes, f"{MODEL_FILE}: ")
            require_fit(shapes, card.input_spec, len(card.units))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if (found := sha256(file, within=path)) != card.sha256:
            raise ValueError(f"{file}: sha256 is {found}, the card says {card.sha256!r}")
        tensors = load_tensors(file, within=path)
        require_same_weights(tensors, shapes, f"{file}: ")
        return cls(filled(shapes, card.architecture, card.arguments, tensors).to(device), card)


@torch.no_grad()
def require_fit(model: nn.Module, spec: InputSpec, units: int) -> None:
    """ValueError if ``model`` does not take an image of ``spec``, or has not ``units`` logits for it.

    ``model`` may be on "meta". A large image must fit into the free memory.
    """
    if math.prod(spec.shape) > LARGE:
        require_memory(model, spec, 1, torch.device("cpu"))
    training = model.training
    try:
        outputs = model.eval()(next(model.parameters()).new_zeros(1, *spec.shape))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the network does not take the images {spec.shape} of its specification: {reason}") from error
    finally:
        model.train(training)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the network must return its logits as a tensor, got {type(outputs).__name__}")
    if tuple(outputs.shape) != (1, units):
        raise ValueError(
            f"the model has {outputs.shape[-1]} outputs, the card lists {units} units: the classes, or units where the "
            "model has more outputs than classes that it knows"
        )


def read_card(folder: PathLike) -> Card:
    """The card of the expert in ``folder``; FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / CARD_FILE
    if not os.path.lexists(path):
        inside = next((each.parent.name for each in sorted(path.parent.glob(f"*/{CARD_FILE}"))), None)
        hint = "" if inside is None else f"; the folder holds experts, the first is {Path(folder) / inside}"
        raise FileNotFoundError(f"no expert in {folder}: {CARD_FILE} is missing{hint}")
    try:
        return Card.from_dict(load_json(path, limit=CARD_BYTES, within=folder))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def complete_arguments(
    architecture: str, arguments: Mapping[str, Any] | None, outputs: int, spec: InputSpec
) -> dict[str, Any]:
    """``arguments`` with the number of classes and channels filled in where they are not given.

    Those of an unknown architecture stay as they are.
    """
    complete: dict[str, Any] = {}
    if takes(architecture, "num_classes") or (is_known(architecture) and architecture not in OWN):
        complete["num_classes"] = outputs
    if takes(architecture, "in_channels"):
        complete["in_channels"] = spec.channels
    elif architecture.startswith("timm/"):
        complete["in_chans"] = spec.channels
    return complete | dict(arguments or {})
