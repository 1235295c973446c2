"""What rounding one layer alone does to the network's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from exml_fast.training import softened_kl

__all__ = ["Switch", "most_sensitive", "sensitivities"]


class Switch(Protocol):
    """A part of a network that rounds, or does not."""

    def switch(self, on: bool) -> None:
        """Round, or do not."""
        ...


@torch.no_grad()
def sensitivities(
    network: nn.Module,
    layers: Mapping[str, Sequence[Switch]],
    images: Tensor,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """KL(float ‖ quantised) of the softmax outputs when one layer alone is rounded, mean over the images, by layer.

    Args:
        network: its layers are not rounded afterwards.
        layers: the switches of each layer.
        images: network input (N, C, H, W).
        progress: called with the number of layers that are done, and of all.
    """

    def logits() -> Tensor:
        return torch.cat([network(part) for part in images.split(batch_size)])

    for switches in layers.values():
        _turn(switches, False)
    wanted, found = logits(), dict[str, float]()
    for name, switches in layers.items():
        _turn(switches, True)
        found[name] = max(0.0, float(softened_kl(wanted, logits())))
        _turn(switches, False)
        if progress is not None:
            progress(len(found), len(layers))
    return found


def most_sensitive(found: Mapping[str, float], count: float) -> list[str]:
    """The ``count`` layers (below 1: this share of them, rounded) with the highest sensitivity, in the given order.

    ValueError if no layer is left to be quantised.
    """
    number = round(count * len(found)) if count < 1 else int(count)
    if number >= len(found):
        raise ValueError(f"float_layers must leave a layer of the {len(found)} to be quantised, got {count:g}")
    chosen = sorted(found, key=lambda name: -found[name])[:number]
    return [name for name in found if name in chosen]


def _turn(switches: Sequence[Switch], on: bool) -> None:
    for switch in switches:
        switch.switch(on)
