"""Helpers of the fake kernels."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from exml_fast._native import COMPILED


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` are formed and losses returned."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


F = TypeVar("F", bound=Callable[..., Any])


def fake(op: str) -> Callable[[F], F]:
    """Register the fake kernel of ``exml::op``, after a check that all tensors are on one device.

    A tensor on "meta" among others would otherwise bring the others here, and the result would be memory without
    values.
    """

    def register(kernel: F) -> F:
        @functools.wraps(kernel)
        def checked(*args: Any, **kwargs: Any) -> Any:
            devices = {tensor.device for tensor in _tensors((*args, *kwargs.values()))}
            if len(devices) > 1:
                public = op.strip("_").removesuffix("_forward").removesuffix("_backward")
                found = ", ".join(sorted(map(str, devices)))
                raise ValueError(f"{public}: all tensors must be on one device, got {found}")
            return kernel(*args, **kwargs)

        if COMPILED or not op.startswith("_"):  # there are no private ops without the extension
            torch.library.register_fake(f"exml::{op}")(checked)
        return kernel

    return register


def _tensors(values: tuple[Any, ...] | list[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def check_device(op: str, names: str, x: Tensor, *others: Tensor | None) -> None:
    """ValueError unless all ``others`` are on x's device: meta tensors would otherwise pass as any device's."""
    for other in others:
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: {names} must be on x's device {x.device}, got {other.device}")


def is_channels_last(x: Tensor) -> bool:
    """Whether the library takes ``x`` (N, C, H, W) as channels_last. Of a single channel, the strides decide."""
    if x.shape[1] > 1 and x.shape[3] > 1 and x.is_contiguous():  # the quick answer in most cases
        return False
    return suggest_memory_format(x) == torch.channels_last


def empty_like(x: Tensor, sizes: object, channels_last: bool) -> Tensor:
    """An empty tensor of these sizes in x's dtype, on x's device."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    # torch's annotations of empty know no sizes of an unknown kind; here they may be symbolic.
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=form)  # type: ignore[call-overload]
