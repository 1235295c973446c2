"""Where a run stands, and how its images are put into batches and its random draws seeded."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import InputSpec

__all__ = ["State", "generator_for", "mixed_batches"]

ON_DEVICE = ("x", "exp_avg", "exp_avg_sq", "active")
CHANGED_IN_PLACE = (*ON_DEVICE, "rows", "history", "counted")


@dataclass
class State:
    """Where a run of N images stands at the end of a block of steps.

    Rows are the R images of the current batch that are still in the loop; T terms include the weighted sum.
    """

    batch: int
    step: int
    x: Tensor
    """(R, C, H, W) images, or (R, P) parameters of images."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rows: Tensor
    """(R,) int64, CPU: the indices of these images in the run."""
    active: Tensor
    """(R,) bool: True until the image is stopped."""
    images: Tensor
    """(N, C, H, W), CPU: the finished images."""
    stopped_at: Tensor
    """(N,) int64, CPU: the number of steps that each image took."""
    history: Tensor
    """(steps, T) float64, CPU: sums of the terms over images."""
    counted: Tensor
    """(steps,) float64, CPU: the number of images in each sum."""
    seconds: float
    start: Tensor | None = None
    """(N, …) like ``x``, CPU: the initial images; noise when None."""
    earlier: Tensor | None = None
    """(steps, T) float64, CPU: the history, as means over images, of the smaller images from which these began."""
    soft: Tensor | None = None
    """(N, K) float32, CPU: the soft targets, drawn on the device where the run began."""
    matched: dict[str, Any] | None = None
    """State of the :class:`~exml_fast.inversion.set_statistics.SetStatistics` of the finished batches, if any."""

    @classmethod
    def begin(
        cls, count: int, spec: InputSpec, steps: int, terms: int, device: torch.device, start: Tensor | None
    ) -> State:
        """The state of ``count`` images before the first batch of ``steps`` steps, with ``terms`` terms."""
        none = torch.empty(0, *spec.shape, device=device)
        return cls(
            batch=0, step=0, x=none, exp_avg=none, exp_avg_sq=none, rows=torch.empty(0, dtype=torch.int64),
            active=torch.ones(0, dtype=torch.bool, device=device), images=torch.zeros(count, *spec.shape),
            stopped_at=torch.full((count,), steps), history=torch.zeros(steps, terms, dtype=torch.float64),
            counted=torch.zeros(steps, dtype=torch.float64), seconds=0.0, start=start,
        )  # fmt: skip

    def snapshot(self) -> State:
        """A copy that further steps do not change.

        ``images`` and ``stopped_at`` are shared: a block that is repeated writes the same values there again.
        """
        copies: dict[str, Any] = {name: getattr(self, name).clone() for name in CHANGED_IN_PLACE}
        return dataclasses.replace(self, **copies)

    def to(self, device: torch.device) -> State:
        """The state with the tensors of the loop on ``device``."""
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in ON_DEVICE})

    def enter(self, rows: Tensor, x: Tensor) -> None:
        """Begin a batch: images with the indices ``rows`` (R,) and the values ``x`` (R, …), on the device."""
        self.x = x
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(x), torch.zeros_like(x)
        self.rows = rows.clone()
        self.active = torch.ones(len(rows), dtype=torch.bool, device=x.device)

    def retire(self, chosen: Tensor, images: Tensor) -> None:
        """Take the rows ``chosen`` (R,) bool, CPU, out of the loop and keep their ``images`` (chosen, C, H, W)."""
        keep = ~chosen
        on_device = keep.to(self.x.device)
        self.images[self.rows[chosen]] = images.cpu()
        for name in ON_DEVICE:
            setattr(self, name, getattr(self, name)[on_device])
        self.rows = self.rows[keep]


def generator_for(purpose: str, seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose of a run; the global random state is neither read nor changed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def mixed_batches(positions: Tensor, size: int) -> list[Tensor]:
    """Indices of at most ``size`` samples a batch, balanced in number and in classes; ``positions``: (N,) int64."""
    order = positions.argsort(stable=True)
    count = math.ceil(len(order) / size)
    return [order[start::count] for start in range(count)]
