"""The same network by our ops, where they are faster than PyTorch's modules."""

from __future__ import annotations

import copy

from torch import nn

from exml_fast.inversion.activation import FrozenTanh
from exml_fast.inversion.lanes import LaneConv2d
from exml_fast.inversion.pooling import AveragePool2d

__all__ = ["substitute", "twin"]


def substitute(model: nn.Module) -> None:
    """Convolutions of few channels, average poolings and hyperbolic tangents inside ``model`` become ours."""
    for name, module in list(model.named_modules()):
        LaneConv2d.adopt(module)
        same = AveragePool2d.of(module) or FrozenTanh.of(module)
        if same is not None and name:
            model.set_submodule(name, same)


def twin(model: nn.Module, shared: bool = True) -> nn.Module:
    """A copy of ``model`` by our ops; with the same parameters and buffers: training one trains the other.

    ``model`` itself where one of its own modules has buffers to share (it might bind them anew instead of changing
    them), or where it cannot be copied. ``shared=False``: with tensors of its own.
    """
    if shared and any(next(m.buffers(recurse=False), None) is not None and not _is_torch(m) for m in model.modules()):
        return model
    tensors = (*model.parameters(), *model.buffers()) if shared else ()
    try:
        made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except (RuntimeError, TypeError):  # it holds tensors of a graph, as torch.nn.utils.prune leaves them, or a lock
        return model
    # TorchScript copies all.
    if shared and any(a is not b for a, b in zip(model.parameters(), made.parameters(), strict=True)):
        return model
    substitute(made)
    return made


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
