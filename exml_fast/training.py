"""What every training loop here shares: learning rates, and the arithmetic of forward and backward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ARITHMETIC", "arranged", "forward", "one_cycle"]

ARITHMETIC = ("float32", "bfloat16")


def one_cycle(peak: float, step: int, steps: int) -> float:
    """Cosine from ``peak`` / 25 up in the first 30 % of ``steps``, cosine down to ``peak`` / 10,000 (Smith 2018)."""
    rise = max(1, round(0.3 * steps))
    low, at = peak / 25, step / rise
    if step >= rise:
        low, at = peak / 1e4, 1 - (step - rise) / max(1, steps - 1 - rise)
    return low + (peak - low) * 0.5 * (1 - math.cos(math.pi * at))


def forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """Logits, at least float32, with convolutions and linear layers in ``precision``, one of ``ARITHMETIC``."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = model(inputs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def arranged(model: nn.Module, precision: str) -> nn.Module:
    """``model``, its weights in the memory format that suits ``precision``."""
    suited = torch.channels_last if precision == "bfloat16" else torch.contiguous_format
    return model.to(memory_format=suited)  # type: ignore[call-overload]  # missing in its annotation
