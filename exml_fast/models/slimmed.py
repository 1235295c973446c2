"""Networks whose layers have fewer channels than their architecture says: what pruning leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_depthwise", "resize_layers", "widths_of"]

Widths = dict[str, list[int]]
"""[output channels, input channels] of convolutions and linear layers, [channels] of BatchNorms, by name."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution reads one input channel, its own."""
    return (
        isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels == module.out_channels
    )


def widths_of(model: nn.Module) -> Widths:
    """The channels of each layer."""
    found: Widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            found[name] = [module.out_channels, module.in_channels]
        elif isinstance(module, nn.Linear):
            found[name] = [module.out_features, module.in_features]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            found[name] = [module.num_features]
    return found


def resize_layers(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """Give the layers of ``model`` these channels, in place. Weights of changed layers are not initialised.

    A depthwise convolution stays one.

    Raises:
        ValueError: for a layer that the network does not have, or that is of no kind above, or counts below 1.
    """
    modules = dict(model.named_modules())
    for name, counts in widths.items():
        module = modules.get(name)
        kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
        expected = 1 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 2
        if not isinstance(module, kinds) or len(counts) != expected:
            raise ValueError(f"widths names {name!r}, which is no layer of {type(model).__name__} with {counts}")
        if any(not isinstance(count, int) or isinstance(count, bool) or count < 1 for count in counts):
            raise ValueError(f"widths of {name!r} must be integers of at least 1, got {list(counts)}")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_features = counts[0]
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
                ("weight", "bias", "running_mean", "running_var"), (counts[0],)
            )
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = counts
            shapes = {"weight": (counts[0], counts[1]), "bias": (counts[0],)}
        else:
            if is_depthwise(module):
                module.groups = counts[0]
            module.out_channels, module.in_channels = counts
            kernel = (counts[0], counts[1] // module.groups, *module.kernel_size)
            shapes = {"weight": kernel, "bias": (counts[0],)}
        for tensor, shape in shapes.items():
            _resize(module, tensor, shape)
    return model


def _resize(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old: Any = getattr(module, name)
    if not isinstance(old, Tensor) or tuple(old.shape) == shape:
        return
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
