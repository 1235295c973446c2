"""What a run of Ex-Model Distillation starts from: its settings, a new ex-model and an empty memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from exml_fast.continual.ex_model.calibration import ResponseCalibration
from exml_fast.continual.ex_model.config import Background, DistillationConfig
from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.strategies import Strategy
from exml_fast.continual.ex_model.student import Student
from exml_fast.continual.expert import Expert, complete_arguments, require_fit
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.engine.freezing import chosen_device
from exml_fast.models import OWN, create, final_linear, is_known, takes
from exml_fast.storage import PathLike
from exml_fast.training import with_head
from exml_fast.validation import require

__all__ = ["Setup"]


class Setup:
    """The settings of :class:`exml_fast.continual.ExModelDistillation`, which describes them."""

    def __init__(
        self,
        strategy: Strategy,
        config: DistillationConfig | None = None,
        *,
        model: nn.Module | Expert | None = None,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        units: Sequence[int] | None = None,
        spec: InputSpec | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        calibration: ResponseCalibration | None = None,
        background: Background | None = None,
        buffer_dir: PathLike | None = None,
    ) -> None:
        named = architecture is not None or arguments is not None
        if isinstance(model, Expert):
            require(not named, "architecture", "None with an Expert, whose card names it", architecture)
            card = model.card
            model, architecture, arguments = model.model, card.architecture, card.arguments
            units, spec = card.units if units is None else units, spec or card.input_spec
        elif model is None and named:
            raise ValueError("architecture and arguments must be given with model: they say how it is rebuilt")
        if model is not None and units is None:
            raise ValueError("units must be given with model: the global class id of each logit")
        if arguments is not None and architecture is None:
            raise ValueError("architecture must be given with arguments")
        self.strategy = strategy
        self.config = config or DistillationConfig()
        self.config.require_fit(background, strategy.once)
        self.model, self.architecture, self.arguments = model, architecture, arguments
        self.units, self.spec = units, spec
        self.seed = seed
        self.device = chosen_device(device)
        self.calibration = calibration
        self.background = background
        self.buffer_dir = buffer_dir

    def new_student(self, stream: ExpertStream, units: list[int], spec: InputSpec) -> Student:
        """The ex-model: a copy of the given model, or the first expert's network with new weights."""
        arguments: dict[str, Any] = {}
        if self.model is not None:
            model, architecture = copy.deepcopy(self.model), self.architecture or type(self.model).__name__
            if self.architecture is not None:
                arguments = complete_arguments(architecture, self.arguments, len(units), spec)
        elif not _makes_heads(stream.cards[0].architecture) and units != list(stream.cards[0].units):
            first = stream[0]
            model, architecture = _with_units(_anew(first), first, units), first.card.architecture
        elif not is_known(stream.cards[0].architecture):
            first = stream[0]
            model, architecture, arguments = _anew(first), first.card.architecture, dict(first.card.arguments)
        else:
            card = stream.cards[0]
            architecture = card.architecture
            given = {k: v for k, v in card.arguments.items() if k != "num_classes"}
            arguments = complete_arguments(architecture, given, len(units), spec)
            model = create(architecture, **arguments)
        require_fit(model.to(self.device), spec, len(units))
        return Student(model, architecture, arguments, self.device)

    def new_memory(self, spec: InputSpec, experts: int) -> Memory:
        """An empty buffer, before it the background; ValueError if it has less room than one image an expert."""
        size, background = self.config.buffer_size, self.background
        fixed = 0 if background is None else round(background.share * size)
        if size - fixed < experts:
            share = 0.0 if background is None else background.share
            raise ValueError(
                f"buffer_size {size} with background_share {share} leaves {size - fixed} images for {experts} experts"
            )
        drawn = None
        if background is not None:
            drawn = background.source.draw(fixed, spec, torch.Generator().manual_seed(self.seed))
        return Memory(
            size - fixed, spec, background=drawn, views=self.config.targets.views, seed=self.seed,
            device=self.device, folder=self.buffer_dir,
        )  # fmt: skip


def _makes_heads(architecture: str) -> bool:
    """Whether :func:`create` makes this network with any number of logits."""
    return is_known(architecture) and (architecture not in OWN or takes(architecture, "num_classes"))


def _anew(expert: Expert) -> nn.Module:
    """A copy of the expert's network with new random weights, for a network that has no factory.

    A layer that cannot draw its own weights, as a network with a parameter of its own, gets the values of each of its
    tensors in random order.
    """
    model = copy.deepcopy(expert.model).train().requires_grad_(True)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
            continue
        for parameter in module.parameters(recurse=False):
            values = parameter.detach().flatten()
            order = torch.randperm(len(values)).to(values.device)
            parameter.data.copy_(values[order].view_as(parameter))
    return model


def _with_units(model: nn.Module, expert: Expert, units: list[int]) -> nn.Module:
    """``model`` with a logit for each of ``units``; ValueError if no linear layer gives its logits."""
    problem = ""
    try:
        example = torch.zeros(2, *expert.input_spec.shape, device=expert.device)
        layer = final_linear(model, example)
        if layer.out_features == len(expert.units):
            name = next(name for name, module in model.named_modules() if module is layer)
            made = with_head(model, len(units), name)
            require_fit(made, expert.input_spec, len(units))
            return made
        problem = f"its last linear layer has {layer.out_features} outputs"
    except ValueError as error:
        problem = str(error)
    raise ValueError(
        f"the ex-model needs logits for the classes {units}, and the first expert's network has logits for "
        f"{list(expert.units)}, whose layer cannot be replaced ({problem}). Give model and units, or call "
        f"exml_fast.models.register({expert.card.architecture!r}, factory) with a factory that takes num_classes"
    )
