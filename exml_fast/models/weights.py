"""The weights of a network: do saved ones belong to it, and new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["redraw", "require_same_weights"]


def require_same_weights(tensors: Mapping[str, Tensor], model: nn.Module, where: str = "") -> None:
    """ValueError naming the first weight of ``model`` that does not fit among ``tensors``.

    It is missing or unexpected, has another shape or dtype, is not finite, or is the variance of a BatchNorm and
    negative. ``where`` begins the message. ``model`` may be on "meta".
    """
    expected = model.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"{where}weight {missing[0]!r} is missing")
    if unexpected := sorted(set(tensors) - set(expected)):
        raise ValueError(f"{where}unexpected weight {unexpected[0]!r}")
    for name, want in expected.items():
        have = tensors[name]
        if have.shape != want.shape:
            raise ValueError(f"{where}weight {name!r} has shape {tuple(have.shape)}, expected {tuple(want.shape)}")
        if have.dtype != want.dtype:
            raise ValueError(f"{where}weight {name!r} has dtype {have.dtype}, expected {want.dtype}")
        if have.is_floating_point() and not bool(torch.isfinite(have).all()):
            raise ValueError(f"{where}weight {name!r} is not finite everywhere")
        if name.rpartition(".")[2] == "running_var" and bool((have < 0).any()):
            raise ValueError(f"{where}weight {name!r} is the variance of a BatchNorm and must not be negative")


def redraw(model: nn.Module, where: str = "") -> nn.Module:
    """``model`` with new weights from torch's global generator, in place.

    ValueError, which begins with ``where``, for a layer that does not know how to draw its own.
    """
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif own:
            raise ValueError(
                f"{where}layer {name!r} ({type(module).__name__}) has no reset_parameters, so new weights cannot be "
                "drawn"
            )
    return model
