"""Logits and features that a network computes for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.engine.freezing import device_of, dtype_of, frozen
from exml_fast.models import final_linear
from exml_fast.validation import nearest

__all__ = ["features", "logits"]


def logits(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Run a network on images, in evaluation mode. The network is not changed.

    Args:
        network: a classifier.
        images: normalised (N, C, H, W), with N of at least 1.
        batch_size: images per forward pass.

    Returns:
        Logits, float32 (N, K), on the CPU.

    Raises:
        ValueError: if the output is not (N, K) or not finite.
    """
    found = _run(network, images, batch_size)
    if found.dim() != 2 or not bool(found.isfinite().all()):
        raise ValueError(f"{type(network).__name__} must return finite logits (N, K), got shape {tuple(found.shape)}")
    return found


def features(network: nn.Module, images: Tensor, layer: str | None = None, batch_size: int = 256) -> Tensor:
    """Run a network on images and return the input of its classifier as features.

    The classifier is the final linear layer (ResNet-50: the pooled features, Yin 2020, Fig. 8), or the last convolution
    of a network without a linear layer (SqueezeNet). Dimensions beyond (N, C) are averaged.

    Args:
        network: a classifier. It is not changed.
        images: normalised (N, C, H, W), with N of at least 1.
        layer: name of a module whose output is returned instead.
        batch_size: images per forward pass.

    Returns:
        Features, float32 (N, D), on the CPU.

    Raises:
        ValueError: if ``layer`` does not exist or does not run once per pass, the network has no classifier, or a
            feature is not finite.
    """
    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(
            f"layer {layer!r} is not in {type(network).__name__}{nearest(layer, modules)}: "
            f"it has {', '.join(list(modules)[1:13])} …"
        )
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0] if layer is None else output)

    target: nn.Module
    if layer is None:
        example = images[:1].to(device_of(network), dtype_of(network))
        target = _last_read(network, example)
    else:
        target = modules[layer]
    handle = target.register_forward_hook(keep)
    try:
        _run(network, images, batch_size)
    finally:
        handle.remove()
    if sum(len(x) for x in seen) != len(images):
        raise ValueError(f"layer {layer!r} must run once per forward pass and return a tensor (N, ...)")
    found = torch.cat([(x.flatten(2).mean(2) if x.dim() > 2 else x).float().cpu() for x in seen])
    if not found.isfinite().all():
        raise ValueError(f"the features of {type(network).__name__} must be finite, but hold NaN or infinity")
    return found


def _last_read(network: nn.Module, example: Tensor) -> nn.Module:
    """The last linear layer that runs, or the last convolution if no linear layer runs."""
    try:
        return final_linear(network, example)
    except ValueError as error:
        ran: list[nn.Module] = []
        kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d
        handles = [
            module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
            for module in network.modules() if isinstance(module, kinds)
        ]  # fmt: skip
        try:
            _run(network, example.float(), 1)
        finally:
            for handle in handles:
                handle.remove()
        if not ran:
            raise error
        return ran[-1]


def _run(network: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images must be (N, C, H, W) with N > 0, got {tuple(images.shape)}")
    device, dtype = device_of(network), dtype_of(network)
    with frozen(network), torch.no_grad():
        return torch.cat([network(part.to(device, dtype)).float().cpu() for part in images.split(batch_size)])
