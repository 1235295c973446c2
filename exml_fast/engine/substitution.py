"""The same network by our ops, where they are faster than PyTorch's modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from exml_fast.engine.activation import FrozenTanh
from exml_fast.engine.lanes import LaneConv2d
from exml_fast.engine.pooling import AveragePool2d

__all__ = ["copied", "substitute", "twin"]


def substitute(model: nn.Module) -> None:
    """Convolutions of few channels, average poolings and hyperbolic tangents inside ``model`` become ours."""
    for name, module in list(model.named_modules()):
        LaneConv2d.adopt(module)
        same = AveragePool2d.of(module) or FrozenTanh.of(module)
        if same is not None and name:
            model.set_submodule(name, same)


def copied(model: nn.Module, shared: Sequence[Tensor] = ()) -> nn.Module:
    """A copy of ``model`` that has the ``shared`` tensors itself; ``model`` where it cannot be copied."""
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    except (RuntimeError, TypeError):  # it holds tensors of a graph, as torch.nn.utils.prune leaves them, or a lock
        return model


def twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` by our ops; with the same parameters and buffers: training one trains the other.

    ``model`` itself where one of its own modules has buffers to share (it might bind them anew instead of changing
    them), or where it cannot be copied.
    """
    if any(next(m.buffers(recurse=False), None) is not None and not _is_torch(m) for m in model.modules()):
        return model
    made = copied(model, (*model.parameters(), *model.buffers()))
    # TorchScript copies all.
    if made is model or any(a is not b for a, b in zip(model.parameters(), made.parameters(), strict=True)):
        return model
    substitute(made)
    return made


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
