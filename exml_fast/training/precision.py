"""In which arithmetic and memory format a network learns."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

__all__ = ["Rounded", "arranged", "format_of", "forward", "placed", "resolved"]

# Input channels from which a layer of a network on a CPU is faster in channels_last: fewer are LeNet's.
MANY_CHANNELS = 32


def resolved(precision: str, device: torch.device) -> str:
    """ "float32" or "bfloat16"; "auto" is bfloat16 where the device multiplies matrices in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """Logits, at least float32. "bfloat16" runs under torch.autocast: convolutions and linear layers round to it.

    Some networks return several outputs in training (GoogLeNet, Inception); the first of them are the logits.
    """
    rounded = precision == "bfloat16"
    with torch.autocast(inputs.device.type, torch.bfloat16) if rounded else contextlib.nullcontext():
        output = model(inputs)
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Rounded(nn.Module):
    """``model`` with forward and backward passes in ``precision`` (:func:`forward`)."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, K), at least float32."""
        return forward(self.model, inputs, self.precision)


def format_of(model: nn.Module) -> torch.memory_format:
    """Memory format of the convolution kernels: channels_last if one of them has it, else contiguous."""
    contiguous = all(p.is_contiguous() for p in model.parameters() if p.dim() == 4)
    return torch.contiguous_format if contiguous else torch.channels_last


def arranged(model: nn.Module, precision: str, format: torch.memory_format = torch.channels_last) -> nn.Module:
    """``model``, with its convolution kernels in ``format`` where channels_last is faster.

    That is in "bfloat16", and in "float32" on a CPU where a convolution has at least MANY_CHANNELS input channels.
    """
    kernels = [p for p in model.parameters() if p.dim() == 4]
    many = any(p.device.type == "cpu" and p.shape[1] >= MANY_CHANNELS for p in kernels)
    if precision == "bfloat16" or many:
        for p in kernels:
            p.data = p.data.contiguous(memory_format=format)
    return model


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` on the device; on a CPU in channels_last, in which its convolutions are faster."""
    model.to(device)
    # torch's annotations of Module.to leave out that a memory format may stand alone.
    return model.to(memory_format=torch.channels_last) if device.type == "cpu" else model  # type: ignore[call-overload]
