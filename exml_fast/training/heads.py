"""The final linear layer: heads that grow with new classes, and the features that enter it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from exml_fast.models import final_linear

__all__ = ["final_features", "grow_head", "inputs_of", "with_head"]


def grow_head(model: nn.Module, outputs: int, example: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` whose final linear layer has ``outputs`` logits; the first ones keep their weights.

    New rows are initialised as ``nn.Linear`` does, from torch's global generator.

    Args:
        model: with a final linear layer that gives the logits.
        outputs: number of logits, at least as many as now.
        example: a batch of network input, to find the layer by running the model
            (:func:`exml_fast.models.final_linear`).

    Raises:
        ValueError: for fewer outputs than there are.
    """
    head = final_linear(model, example)
    if outputs < head.out_features:
        raise ValueError(f"outputs must be at least the {head.out_features} that the head has, got {outputs}")
    name = next(name for name, module in model.named_modules() if module is head)
    return with_head(model, outputs, name, keep=head.out_features)


def with_head(model: nn.Module, outputs: int, layer: str | None = None, *, keep: int = 0) -> nn.Module:
    """A copy of ``model`` with a new final linear layer of ``outputs`` logits.

    Args:
        model: with a final linear layer.
        outputs: number of logits.
        layer: name of the final linear layer; found by :func:`exml_fast.models.final_linear` when None.
        keep: so many of the first rows keep their weights. The others are initialised as ``nn.Linear`` does, from
            torch's global generator.
    """
    made = copy.deepcopy(model)
    if layer is None:
        found = final_linear(made)
        layer = next(name for name, module in made.named_modules() if module is found)
    old = made.get_submodule(layer)
    assert isinstance(old, nn.Linear)
    new = nn.Linear(old.in_features, outputs, old.bias is not None, old.weight.device, old.weight.dtype)
    with torch.no_grad():
        new.weight[:keep] = old.weight[:keep]
        if old.bias is not None and new.bias is not None:
            new.bias[:keep] = old.bias[:keep]
    new.train(old.training)
    if not layer:
        return new
    made.set_submodule(layer, new)
    return made


@contextmanager
def final_features(model: nn.Module, example: Tensor | None = None) -> Iterator[list[Tensor]]:
    """A list to which each forward pass in the block appends the input (N, H) of the final linear layer.

    For losses of features; gradients flow through them. The caller clears the list.
    """
    with inputs_of(final_linear(model, example)) as seen:
        yield seen


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which each forward pass in the block appends the input of ``layer``, flattened to (N, H)."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()
