"""What the fake kernels share."""

import torch
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` are formed and losses returned."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
