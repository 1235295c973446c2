"""Corrections of an ex-model after it learned from an expert: its BatchNorms, and the bias of its classifier."""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.targets import BLOCK_IMAGES, outputs
from exml_fast.models import final_linear
from exml_fast.training.running_statistics import reset_batch_norms
from exml_fast.validation import Share, require, settings

__all__ = ["Align", "Debias", "Postprocessing", "Renormalise", "Situation", "Step"]


@dataclass(frozen=True)
class Situation:
    """What a step may use beside the ex-model.

    Attributes:
        memory: the images.
        seen: logits of the classes seen so far.
        classifier: name of the final linear layer; empty if no step needs it.
    """

    memory: Memory
    seen: list[int]
    classifier: str = ""

    def layer(self, model: nn.Module) -> Any:
        """The final linear layer."""
        return model.get_submodule(self.classifier)


class Step(abc.ABC):
    """Changes an ex-model in place, after each expert.

    ``returned_only``: it changes the copy that is returned and evaluated; the ex-model goes on learning without it.
    """

    returned_only: ClassVar[bool] = True
    needs_classifier: ClassVar[bool] = True
    needs_bias: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, model: nn.Module, situation: Situation) -> None:
        """Change ``model``, which is in evaluation mode if it is a copy."""


@settings
class Renormalise(Step):
    """The running statistics of the BatchNorms become those of the strategy's images in the buffer.

    A background's statistics are not those of the classes. An ex-model that is a copy of the first expert is left as
    it is.
    """

    returned_only: ClassVar[bool] = False
    needs_classifier: ClassVar[bool] = False

    def __call__(self, model: nn.Module, situation: Situation) -> None:
        """See :class:`Step`."""
        memory = situation.memory
        images = memory.buffer.images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(memory.seed))
        blocks = order.tensor_split(max(1, len(images) // BLOCK_IMAGES))
        reset_batch_norms(model, (images[rows.to(images.device)].to(memory.device) for rows in blocks))


@settings
class Align(Step):
    """The rows of the final linear layer, centred over the classes seen, get the same norm.

    The biases are scaled with them (after weight aligning, Zhao 2020, "Maintaining Discrimination and Fairness in Class
    Incremental Learning", which scales the rows of new classes together). Use it when later
    classes have smaller logits. With a single class there is nothing to align.
    """

    def __call__(self, model: nn.Module, situation: Situation) -> None:
        """See :class:`Step`."""
        layer, seen = situation.layer(model), situation.seen
        if len(seen) < 2:
            return
        layer.weight[seen] -= layer.weight[seen].mean(0)  # the softmax does not change
        norms = layer.weight[seen].norm(dim=1)
        factors = torch.where(norms > 0, norms.mean() / norms, 1.0)  # a row of zeros stays one
        layer.weight[seen] *= factors[:, None]
        if layer.bias is not None:
            layer.bias[seen] = (layer.bias[seen] - layer.bias[seen].mean()) * factors


@settings
class Debias(Step):
    """On random images no class should have a higher mean logit: the means are subtracted from the biases.

    Needs a background.

    Attributes:
        share: of the mean logits that is subtracted.
    """

    needs_bias: ClassVar[bool] = True
    share: Share = 1.0

    def __call__(self, model: nn.Module, situation: Situation) -> None:
        """See :class:`Step`."""
        memory, seen = situation.memory, situation.seen
        said = outputs(model, memory.background.to(memory.device)).mean(0)[seen]
        situation.layer(model).bias[seen] -= self.share * (said - said.mean())

    def check(self) -> None:
        """A share of 0 would do nothing."""
        require(self.share > 0, "debias", "positive", self.share)


class Postprocessing:
    """The steps of a run, in order.

    ValueError if a step needs a final linear layer that gives the logits, and ``model`` has none.
    """

    def __init__(self, steps: Sequence[Step], model: nn.Module, example: Tensor) -> None:
        self.steps = tuple(steps)
        needed = any(step.needs_classifier for step in steps)
        self._classifier = classifier_name(model, example, any(step.needs_bias for step in steps)) if needed else ""

    @torch.no_grad()
    def while_learning(self, model: nn.Module, memory: Memory) -> None:
        """Apply the steps that change the ex-model with which learning goes on."""
        for step in self.steps:
            if not step.returned_only:
                step(model, Situation(memory, []))

    @torch.no_grad()
    def returned(self, model: nn.Module, memory: Memory, seen: list[int]) -> nn.Module:
        """A corrected copy of the ex-model in evaluation mode; ``model`` where no step changes the copy."""
        steps = [step for step in self.steps if step.returned_only]
        if not steps:
            return model
        model = copy.deepcopy(model).eval()
        for step in steps:
            step(model, Situation(memory, seen, self._classifier))
        return model


@torch.no_grad()
def classifier_name(model: nn.Module, example: Tensor, bias: bool = False) -> str:
    """Name of the linear layer whose outputs are the logits; ValueError if there is none, or no ``bias``."""
    found = list[Tensor]()
    model = copy.deepcopy(model).eval()
    try:
        layer = final_linear(model, example)
    except ValueError as error:
        raise ValueError(f"align and debias need a final linear layer: {error}") from error
    layer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    if not torch.equal(model(example), found[-1]):
        raise ValueError("align and debias need a final linear layer that gives the logits, got one before others")
    if "weight" not in layer._parameters:
        raise ValueError("align and debias need a final linear layer with its own weight, got a parametrised one")
    if bias and layer.bias is None:
        raise ValueError("debias needs a final linear layer with a bias, got one without")
    return next(name for name, module in model.named_modules() if module is layer)
