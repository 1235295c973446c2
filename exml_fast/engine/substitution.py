"""Replaces layers of a network with faster equivalents that share their parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from exml_fast.engine.activation import FrozenTanh
from exml_fast.engine.batch_norm import FusedBatchNorm2d, FusedSequential
from exml_fast.engine.learned_conv import LearnedConv2d
from exml_fast.engine.pooling import AveragePool2d

__all__ = ["copied", "substitute", "twin"]


def substitute(model: nn.Module) -> None:
    """Replace convolutions, BatchNorms, average poolings and hyperbolic tangents inside ``model``."""
    for name, module in list(model.named_modules()):
        LearnedConv2d.adopt(module)
        FusedBatchNorm2d.adopt(module)
        FusedSequential.adopt(module)
        same = AveragePool2d.of(module) or FrozenTanh.of(module)
        if same is not None and name:
            model.set_submodule(name, same)


def copied(model: nn.Module, shared: Sequence[object] = ()) -> nn.Module:
    """A copy of ``model`` that shares the objects ``shared`` with it; ``model`` itself where it cannot be copied."""
    try:
        return copy.deepcopy(model, {id(each): each for each in shared})
    except (RuntimeError, TypeError):  # tensors of a graph (torch.nn.utils.prune leaves some), or a lock
        return model


def twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with faster layers that shares its parameters and buffers: training one trains the other.

    ``model`` itself is returned where it cannot be copied, or where a module that is not PyTorch's has buffers: such a
    module may replace a buffer, which the copy would not see.
    """
    if any(next(m.buffers(recurse=False), None) is not None and not _is_torch(m) for m in model.modules()):
        return model
    made = copied(model, (*model.parameters(), *model.buffers()))
    # A copy of a TorchScript module shares nothing.
    if made is model or any(a is not b for a, b in zip(model.parameters(), made.parameters(), strict=True)):
        return model
    substitute(made)
    return made


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
