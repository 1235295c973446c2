"""A trained classifier with a card that says what it knows: the unit of the stream (Carta 2022, sec. 2)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.checks import is_count
from exml_fast.data import Augmentation, ImageData, InputSpec
from exml_fast.engine.substitution import twin
from exml_fast.models import create, takes
from exml_fast.progress import Progress
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors, sha256
from exml_fast.training import arranged, forward, one_cycle

__all__ = ["Card", "Expert", "train_expert"]

FORMAT_VERSION = 1
SCHEDULES = ("constant", "onecycle")
ARITHMETIC = ("float32", "bfloat16")
# Training images that take no more than this as float32 are normalised once, others batch by batch.
PREPARED_BYTES = 2**28
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"


@dataclass(frozen=True)
class Card:
    """What an expert is, as plain JSON values.

    Attributes:
        architecture, arguments: for :func:`exml_fast.models.create`.
        units: ``units[j]`` is the global class id of logit j.
        classes: the global ids the expert was trained on, a subset of ``units``.
        class_names: ``class_names[j]`` is the name of class ``units[j]``.
        input_spec: the input the network expects.
        training: how it was trained and how well it does (data, epochs, lr, accuracy ...).
        licence: of the weights, if known.
        sha256: of the weights file; empty until saved.
        format_version: of the card.
    """

    architecture: str
    arguments: dict[str, Any]
    units: tuple[int, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    input_spec: InputSpec
    training: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    sha256: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"card: format_version must be {FORMAT_VERSION}, got {self.format_version!r}")
        for name in ("architecture", "sha256"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"card: {name} must be a string, got {getattr(self, name)!r}")
        for name in ("arguments", "training"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"card: {name} must be an object, got {getattr(self, name)!r}")
        if self.licence is not None and not isinstance(self.licence, str):
            raise ValueError(f"card: licence must be a string or null, got {self.licence!r}")
        for name in ("units", "classes"):
            ids = getattr(self, name)
            if not isinstance(ids, list | tuple) or not ids or not all(is_count(i, 0) for i in ids):
                raise ValueError(f"card: {name} must list class ids (integers from 0 upwards), got {ids!r}")
            if len(set(ids)) != len(ids):
                raise ValueError(f"card: {name} must not repeat a class id, got {ids!r}")
            object.__setattr__(self, name, tuple(ids))
        if extra := sorted(set(self.classes) - set(self.units)):
            raise ValueError(f"card: classes {extra} are not among the units {list(self.units)}")
        names = self.class_names
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise ValueError(f"card: class_names must list strings, got {names!r}")
        if len(names) != len(self.units):
            raise ValueError(f"card: class_names must name the {len(self.units)} units, got {len(names)} names")
        object.__setattr__(self, "class_names", tuple(names))
        if not isinstance(self.input_spec, InputSpec):
            raise ValueError(f"card: input_spec must be an InputSpec, got {self.input_spec!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_dict`."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return value | {
            "units": list(self.units),
            "classes": list(self.classes),
            "class_names": list(self.class_names),
            "input_spec": self.input_spec.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Card:
        """ValueError naming the field that is missing, unknown or wrong."""
        if not isinstance(value, Mapping):
            raise ValueError(f"card: expected a JSON object, got {type(value).__name__}")
        if value.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"card: format_version must be {FORMAT_VERSION}, got {value.get('format_version')!r}")
        names = [f.name for f in dataclasses.fields(cls)]
        for name in names:
            if name not in value:
                raise ValueError(f"card: {name} is missing")
        if unknown := sorted(str(k) for k in value if k not in names):
            raise ValueError(f"card: unknown field {unknown[0]!r}")
        if not isinstance(value["input_spec"], Mapping):
            raise ValueError(f"card: input_spec must be an object, got {value['input_spec']!r}")
        try:
            spec = InputSpec.from_dict(value["input_spec"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"card: input_spec: {error}") from error
        return cls(**{**value, "input_spec": spec})


class Expert:
    """A classifier in evaluation mode and its card."""

    def __init__(self, model: nn.Module, card: Card) -> None:
        self.model = model.eval()
        self.card = card

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

    def save(self, folder: str | os.PathLike[str]) -> Card:
        """Write ``model.safetensors`` and then ``card.json`` into ``folder``; returns the card with the hash."""
        path = Path(folder)
        save_tensors(path / MODEL_FILE, self.model.state_dict())
        self.card = dataclasses.replace(self.card, sha256=sha256(path / MODEL_FILE))
        save_json(path / CARD_FILE, self.card.to_dict())
        return self.card

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> Expert:
        """Read an expert; no code from the folder is run, the card reaches only :func:`exml_fast.models.create`.

        ValueError naming the file, field or weight for: a wrong format version or field, a wrong hash, an unknown
        architecture or argument, a missing or unexpected weight, a wrong shape or dtype, a non-finite weight,
        another number of outputs than units. The caller's random state is left alone.
        """
        path = Path(folder)
        card = read_card(path)
        if (found := sha256(path / MODEL_FILE)) != card.sha256:
            raise ValueError(f"{path / MODEL_FILE}: sha256 is {found}, the card says {card.sha256!r}")
        tensors = load_tensors(path / MODEL_FILE)
        try:
            # On "meta" nothing is allocated, whatever sizes the card asks for.
            with torch.device("meta"):
                skeleton = create(card.architecture, **card.arguments)
        except (ValueError, NotImplementedError):
            pass  # wrong arguments, or a constructor that needs real tensors: shown below
        else:
            _check_tensors(path, tensors, skeleton)
        with torch.random.fork_rng(devices=[]):
            model = create(card.architecture, **card.arguments)
        _check_tensors(path, tensors, model)
        model.load_state_dict(tensors)
        try:
            require_fit(model, card.input_spec, len(card.units))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(model.to(device), card)


@torch.no_grad()
def require_fit(model: nn.Module, spec: InputSpec, units: int) -> None:
    """ValueError if ``model`` does not take an image of ``spec``, or has not ``units`` logits for it."""
    training = model.training
    try:
        outputs = model.eval()(next(model.parameters()).new_zeros(1, *spec.shape))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the network does not take the images {spec.shape} of its specification: {reason}") from error
    finally:
        model.train(training)
    if tuple(outputs.shape) != (1, units):
        raise ValueError(f"the model has {outputs.shape[-1]} outputs, the card lists {units} units")


def read_card(folder: str | os.PathLike[str]) -> Card:
    """The card of the expert in ``folder``; FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no expert in {folder}: {CARD_FILE} is missing")
    try:
        return Card.from_dict(load_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def train_expert(
    data: ImageData,
    classes: Sequence[int] | None = None,
    *,
    architecture: str = "lenet5",
    arguments: Mapping[str, Any] | None = None,
    head: str = "all",
    spec: InputSpec | None = None,
    initial: Mapping[str, Tensor] | None = None,
    epochs: int = 20,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 32,
    schedule: str = "constant",
    augmentation: Augmentation | None = None,
    arithmetic: str = "float32",
    seed: int = 0,
    device: str | torch.device = "cpu",
    licence: str | None = None,
    progress: Progress | None = None,
) -> Expert:
    """Train an expert on the images of ``classes`` (default: all) with cross-entropy over its whole head.

    Defaults are Carta 2022, App. A: SGD, momentum 0.9, weight decay 5e-4, batches of 32 without the incomplete
    last one; MNIST lr 0.01, 20 epochs for new classes and 100 for joint.

    Args:
        head: "all" gives a logit to every class of ``data``, as the paper's code; "own" only to ``classes``.
        spec: the network's input if it is not the data's own; images are fitted to it.
        schedule: "constant", or "onecycle" with ``lr`` as its peak.
        augmentation: of each image at each step (CIFAR-10: ``Augmentation(shift=4, flip=0.5)``).
        arithmetic: of convolutions and linear layers, "float32" or "bfloat16".
        initial: a state dict to start from (a stream's experts share it); default a random one from ``seed``.
        progress: called once an epoch with the mean loss.
    """
    classes = list(data.classes if classes is None else classes)
    if unknown := sorted(set(classes) - set(data.classes)):
        raise ValueError(f"classes {unknown} are not in {data.name!r}, which has {len(data.classes)} classes")
    if head not in ("all", "own"):
        raise ValueError(f"head must be 'all' or 'own', got {head!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {list(SCHEDULES)}, got {schedule!r}")
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"arithmetic must be one of {list(ARITHMETIC)}, got {arithmetic!r}")
    units = data.classes if head == "all" else classes
    spec = spec or data.spec
    arguments = complete_arguments(architecture, arguments, len(units), spec)
    split = data.train.of_classes(classes)
    steps = len(split) // batch_size
    if steps == 0:
        raise ValueError(f"batch_size {batch_size} is larger than the {len(split)} training images")
    started = time.perf_counter()
    device = torch.device(device)
    position = torch.full((len(data.classes),), -1)
    position[torch.tensor(units)] = torch.arange(len(units))
    images, labels = split.images.to(device), position[split.labels].to(device)
    prepared = 4 * len(split) * math.prod(spec.shape) <= PREPARED_BYTES
    if prepared:
        images = spec.prepare(images)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = create(architecture, **arguments)
        if initial is not None:
            model.load_state_dict(dict(initial))
        network = twin(arranged(model.to(device), arithmetic)).train()
        bounds = spec.bounds(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        for epoch in range(epochs):
            order = torch.randperm(len(labels), generator=generator)[: steps * batch_size].to(device)
            total = torch.zeros((), device=device)
            for step, index in enumerate(order.view(steps, batch_size).unbind(), epoch * steps):
                inputs = images[index] if prepared else spec.prepare(images[index])
                if augmentation is not None and augmentation.active:
                    inputs = augmentation(inputs, bounds, generator)
                loss = ops.soft_cross_entropy(forward(network, inputs, arithmetic), labels[index])
                if schedule == "onecycle":
                    for group in optimizer.param_groups:
                        group["lr"] = one_cycle(lr, step, epochs * steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
            mean_loss = float(total) / steps
            if not math.isfinite(mean_loss):
                raise RuntimeError(f"training diverged in epoch {epoch + 1}: loss {mean_loss}, lr {lr}")
            if progress is not None:
                progress("train", epoch + 1, epochs, {"ce": mean_loss})
    card = Card(
        architecture,
        arguments,
        tuple(units),
        tuple(classes),
        tuple(data.class_names[u] for u in units),
        spec,
        licence=licence,
    )
    expert = Expert(arranged(model, arithmetic, torch.contiguous_format), card)
    test = data.test.of_classes(classes)
    right = sum(int((expert.predict(x).cpu() == y).sum()) for x, y in test.batches(spec))
    training = {
        "data": data.name, "samples": len(split), "epochs": epochs, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "batch_size": batch_size, "schedule": schedule, "arithmetic": arithmetic,
        "augmentation": None if augmentation is None else dataclasses.asdict(augmentation), "seed": seed, "head": head,
        "accuracy": right / len(test) if len(test) else None, "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    expert.card = dataclasses.replace(card, training=training)
    return expert


def complete_arguments(
    architecture: str, arguments: Mapping[str, Any] | None, outputs: int, spec: InputSpec
) -> dict[str, Any]:
    """``arguments`` with the number of classes and channels filled in where they are not given."""
    complete: dict[str, Any] = {"num_classes": outputs}
    if takes(architecture, "in_channels"):
        complete["in_channels"] = spec.channels
    elif architecture.startswith("timm/"):
        complete["in_chans"] = spec.channels
    return complete | dict(arguments or {})


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    file = path / MODEL_FILE
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"{file}: weight {missing[0]!r} is missing")
    if unexpected := sorted(set(tensors) - set(expected)):
        raise ValueError(f"{file}: unexpected weight {unexpected[0]!r}")
    for name, want in expected.items():
        have = tensors[name]
        if have.shape != want.shape:
            raise ValueError(f"{file}: weight {name!r} has shape {tuple(have.shape)}, expected {tuple(want.shape)}")
        if have.dtype != want.dtype:
            raise ValueError(f"{file}: weight {name!r} has dtype {have.dtype}, expected {want.dtype}")
        if have.is_floating_point() and not bool(torch.isfinite(have).all()):
            raise ValueError(f"{file}: weight {name!r} is not finite everywhere")
