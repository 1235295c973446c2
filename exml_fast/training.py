"""What training loops here share: learning rates, and the arithmetic of forward and backward pass."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn

from exml_fast import ops

__all__ = ["ARITHMETIC", "Rounded", "arranged", "blended", "forward", "mixup", "one_cycle", "placed"]

ARITHMETIC = ("float32", "bfloat16")


def one_cycle(peak: float, step: int, steps: int) -> float:
    """Cosine from ``peak`` / 25 up in the first 30 % of ``steps``, cosine down to ``peak`` / 10,000 (Smith 2018)."""
    rise = max(1, round(0.3 * steps))
    low, at = peak / 25, step / rise
    if step >= rise:
        low, at = peak / 1e4, 1 - (step - rise) / max(1, steps - 1 - rise)
    return low + (peak - low) * 0.5 * (1 - math.cos(math.pi * at))


def forward(model: nn.Module, inputs: Tensor, arithmetic: str) -> Tensor:
    """Logits, at least float32; for "bfloat16" under torch.autocast: convolutions and linear layers round to it.

    Of a network that returns several outputs in training (GoogLeNet, Inception) the first, which are the logits.
    """
    rounded = arithmetic == "bfloat16"
    with torch.autocast(inputs.device.type, torch.bfloat16) if rounded else contextlib.nullcontext():
        output = model(inputs)
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Rounded(nn.Module):
    """``model`` whose forward and backward passes are in ``arithmetic`` (:func:`forward`)."""

    def __init__(self, model: nn.Module, arithmetic: str) -> None:
        super().__init__()
        self.model, self.arithmetic = model, arithmetic

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, K), at least float32."""
        return forward(self.model, inputs, self.arithmetic)


def arranged(model: nn.Module, arithmetic: str, format: torch.memory_format = torch.channels_last) -> nn.Module:
    """``model``; for "bfloat16", whose convolutions are faster in channels_last, with its kernels in ``format``."""
    if arithmetic == "bfloat16":
        for p in model.parameters():
            if p.dim() == 4:
                p.data = p.data.contiguous(memory_format=format)
    return model


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` on the device; on a CPU in the order of memory in which its convolutions are faster."""
    model.to(device)
    # torch's annotations of Module.to leave out that a memory format may stand alone.
    return model.to(memory_format=torch.channels_last) if device.type == "cpu" else model  # type: ignore[call-overload]


def mixup(images: Tensor, share: Tensor, order: Tensor) -> Tensor:
    """``share · images + (1 − share) · images[order]`` (Zhang 2018); ``share`` broadcasts, ``order`` (N,)."""
    return torch.lerp(images[order], images, share.to(images))


def blended(images: Tensor, a: float, generator: torch.Generator) -> Tensor:
    """Each of ``images`` (N, C, H, W) mixed with the one before it, in shares from Beta(a, a) (Zhang 2018).

    Of rows that were drawn at random the one before is as good as any. ``generator`` is on the CPU.
    """
    first = torch.zeros(len(images), dtype=torch.int64)
    shares = ops.dirichlet_targets(torch.ones(2, 2), first, a, generator)[:, 0, None, None, None]
    return mixup(images, shares, torch.arange(len(images)).roll(1).to(images.device))
