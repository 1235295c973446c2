"""Statistics of the whole synthetic set, so that the set matches the BatchNorms and not each batch alone.

A batch of images whose own statistics equal the running ones has nothing that another batch lacks. Real batches differ:
only their set has the running statistics. Two sources match the set. Fang 2022 ("Up to 100x Faster Data-free Knowledge
Distillation") mixes a batch with an exponential average of earlier batches. Dikstein 2024 (arXiv 2410.22110, DGH) pools
the first and second moments of all batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from exml_fast.engine.statistics import LayerStatistics
from exml_fast.validation import require

__all__ = ["SetStatistics"]


class SetStatistics:
    """Means and variances of the inputs of BatchNorms over finished images, with which the current batch is mixed.

    With s the share of the current batch, m and v its mean and variance, and M and V those of the finished images, the
    pooled moments are (Dikstein 2024, which averages second moments)::

        mean = s m + (1 − s) M
        var  = s v + (1 − s) V + s (1 − s) (m − M)²

    ``memory`` decides s. A number is the weight 1 − s of the finished images, each batch of which counts ``memory``
    times as much as the next (Fang 2022, 0.9). "set" counts every image alike: s is the batch's share of all images.
    The first batch has s = 1.

    The gradient of a batch's statistics is divided by s. The loss of :mod:`exml_fast.inversion.objective` is a sum over
    images, so the term of a whole set has 1/s times the weight of a batch's term, and the recipe's weight keeps its
    meaning however many images there are.

    A batch counts when it is finished, not at each of its steps: the statistics of a batch in progress would count
    many times, most of them from images that were still noise. DGH takes steps on all batches in turn and replaces a
    batch's statistics after each step. Here batches follow one another, so a later batch makes up for the earlier ones.

    Args:
        memory: a number in [0, 1), or "set". ValueError for anything else.
    """

    def __init__(self, memory: float | Literal["set"]) -> None:
        fits = memory == "set" or (isinstance(memory, int | float) and 0 <= memory < 1)
        require(fits, "memory", "a number from 0 to below 1, or 'set'", memory)
        self.memory = memory
        self.images = 0
        self._mean = self._var = torch.empty(0)

    def share(self, count: int) -> float:
        """s of a batch of ``count`` images."""
        if self.images == 0:
            return 1.0
        return count / (self.images + count) if self.memory == "set" else 1 - self.memory

    def mixed(self, layers: Sequence[LayerStatistics], count: int) -> list[LayerStatistics]:
        """``layers`` of a batch of ``count`` images with the pooled moments; differentiable as the class says.

        ValueError if the finished images had another number of channels.
        """
        if self.images == 0:
            return list(layers)
        share, mean, var = self.share(count), *_flat(layers)
        if mean.shape != self._mean.shape:
            raise ValueError(
                f"memory must hold statistics of this network's {len(mean)} channels, it has {len(self._mean)}"
            )
        past_mean, past_var = self._mean.to(mean), self._var.to(var)
        # s · spread + (1 − s) · past_var is the pooled variance; the detached parts divide the gradients by s.
        spread = var + (1 - share) * (mean - past_mean).square()
        mean = mean + ((1 - share) * (past_mean - mean)).detach()
        var = spread + ((1 - share) * (past_var - spread)).detach()
        sizes = [len(layer.mean) for layer in layers]
        parts = zip(layers, mean.split(sizes), var.split(sizes), strict=True)
        return [layer._replace(mean=m, var=v) for layer, m, v in parts]

    def add(self, layers: Sequence[LayerStatistics], count: int) -> None:
        """Count a finished batch of ``count`` images."""
        mean, var = (part.detach().clone() for part in _flat(self.mixed(layers, count)))
        self._mean, self._var, self.images = mean, var, self.images + count

    def to(self, device: torch.device) -> SetStatistics:
        """A copy with tensors on ``device``."""
        copy = SetStatistics(self.memory)
        copy.images, copy._mean, copy._var = self.images, self._mean.to(device), self._var.to(device)
        return copy

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and tensors on the CPU that later batches do not change."""
        return {"images": self.images, "mean": self._mean.cpu(), "var": self._var.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.images, self._mean, self._var = state["images"], state["mean"], state["var"]


def _flat(layers: Iterable[LayerStatistics]) -> tuple[Tensor, Tensor]:
    """Means and variances of all layers, one after another."""
    layers = list(layers)
    return torch.cat([layer.mean for layer in layers]), torch.cat([layer.var for layer in layers])
