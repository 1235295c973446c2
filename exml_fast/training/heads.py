"""The final linear layer: heads that grow with new classes, and the features that enter it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from exml_fast.models import final_linear

__all__ = ["final_features", "grow_head"]


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
    grown = copy.deepcopy(model)
    old = final_linear(grown, example)
    if outputs < old.out_features:
        raise ValueError(f"outputs must be at least the {old.out_features} that the head has, got {outputs}")
    new = nn.Linear(old.in_features, outputs, old.bias is not None, old.weight.device, old.weight.dtype)
    with torch.no_grad():
        new.weight[: old.out_features] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias[: old.out_features] = old.bias
    new.train(old.training)
    name = next(name for name, module in grown.named_modules() if module is old)
    if not name:
        return new
    grown.set_submodule(name, new)
    return grown


@contextmanager
def final_features(model: nn.Module, example: Tensor | None = None) -> Iterator[list[Tensor]]:
    """A list to which each forward pass in the block appends the input (N, H) of the final linear layer.

    For losses of features; gradients flow through them. The caller clears the list.
    """
    seen: list[Tensor] = []
    head = final_linear(model, example)
    handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()
