"""Helpers of the fake kernels."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` are formed and losses returned."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_device(op: str, names: str, x: Tensor, *others: Tensor | None) -> None:
    """ValueError unless all ``others`` are on x's device: meta tensors would otherwise pass as any device's."""
    for other in others:
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: {names} must be on x's device {x.device}, got {other.device}")


def is_channels_last(x: Tensor) -> bool:
    """Whether the library takes ``x`` (N, C, H, W) as channels_last. Of a single channel, the strides decide."""
    return suggest_memory_format(x) == torch.channels_last


def empty_like(x: Tensor, sizes: object, channels_last: bool) -> Tensor:
    """An empty tensor of these sizes in x's dtype, on x's device."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    # torch's annotations of empty know no sizes of an unknown kind; here they may be symbolic.
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=form)  # type: ignore[call-overload]
