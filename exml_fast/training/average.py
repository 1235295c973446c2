"""An exponential moving average of a network's weights while it learns (Polyak 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """w ← d w + (1 − d) new for parameters and statistics; counters and integers are copied.

    Args:
        model: the network that learns; its weights are the first average.
        decay: d, in [0, 1). After n steps it is at most (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of ``model`` after ``step`` steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, new = list[Tensor](), list[Tensor]()
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        for average, value in pairs:
            if average.is_floating_point():
                mine.append(average)
                new.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(mine, new, share)
