"""A network that learns in several processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from exml_fast.training.precision import Rounded

__all__ = ["Parallel"]


class Parallel(DistributedDataParallel):
    """``network`` with gradients averaged over the ranks of torch.distributed, and buffers of rank 0.

    ``Parallel(network).model`` is ``network.model``, as a loss expects.
    """

    def __init__(self, network: Rounded, device: torch.device) -> None:
        super().__init__(network, device_ids=[device] if device.type == "cuda" else None)

    @property
    def model(self) -> nn.Module:
        """The model inside, with its layers under their own names."""
        inside: nn.Module = self.module.model
        return inside
