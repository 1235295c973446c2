"""What a network says of images, and the features it says it from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.engine.freezing import device_of, dtype_of, frozen
from exml_fast.models import final_linear

__all__ = ["features", "logits"]


def logits(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """(N, K) float32, CPU, of normalised images (N, C, H, W), in evaluation mode; the network is left as it was.

    ValueError if the network gives something else than finite logits.
    """
    found = _run(network, images, batch_size)
    if found.dim() != 2 or not bool(found.isfinite().all()):
        raise ValueError(f"{type(network).__name__} must give finite logits (N, K), got {tuple(found.shape)}")
    return found


def features(network: nn.Module, images: Tensor, layer: str | None = None, batch_size: int = 256) -> Tensor:
    """(N, D) float32, CPU: what the final linear layer reads (ResNet-50's pooled features, Yin 2020, Fig. 8).

    Without one it is what the last convolution reads (SqueezeNet's classifier). ``layer``: the name of another module,
    whose output is taken. Dimensions beyond (N, C) are averaged. ValueError for a layer that does not run, or without
    any of these.
    """
    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(
            f"layer {layer!r} is not in {type(network).__name__}: it has {', '.join(list(modules)[1:13])} …"
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
        raise ValueError(f"layer {layer!r} must run once a pass and give (N, ...)")
    return torch.cat([(x.flatten(2).mean(2) if x.dim() > 2 else x).float().cpu() for x in seen])


def _last_read(network: nn.Module, example: Tensor) -> nn.Module:
    """The classifier: the last linear layer that runs, or the last convolution."""
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
