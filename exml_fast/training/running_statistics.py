"""BatchNorm statistics that are measured anew on given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["reset_batch_norms"]


@torch.no_grad()
def reset_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Make the running statistics of all BatchNorms of ``model`` the average over ``batches``, in place.

    All other layers are in evaluation mode while the batches (N, C, H, W) pass. A network without BatchNorm is left as
    it is.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
