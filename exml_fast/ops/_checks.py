"""Argument checks in Python: all of those of the twins, and the few that the compiled ops do not have in csrc/ops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PIXELS = (torch.float32, torch.bfloat16, torch.float64)
STATISTICS = (torch.float32, torch.float64)


def expect(condition: bool, message: str) -> None:
    """ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def is_real(*tensors: Tensor) -> bool:
    """Whether the values of all ``tensors`` are on the CPU and can be read: none is traced or on another device."""
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)


def pixels(op: str, name: str, x: Tensor, low: int = 0, high: int = 99) -> None:
    """x must be dense, of one of the three dtypes, with ``low`` to ``high`` dimensions."""
    expect(x.dtype in PIXELS, f"{op}: {name} must be float32, bfloat16 or float64, got {x.dtype}")
    expect(x.layout == torch.strided, f"{op}: {name} must be a dense tensor, got {x.layout}")
    count = str(low) if low == high else f"{low} to {high}"
    expect(low <= x.dim() <= high, f"{op}: {name} must have {count} dimensions, got shape {tuple(x.shape)}")


def not_empty(op: str, name: str, x: Tensor) -> None:
    """x must hold a value."""
    expect(x.numel() > 0, f"{op}: {name} must not be empty, got shape {tuple(x.shape)}")


def same_device(op: str, anchor: str, x: Tensor, **others: Tensor | None) -> None:
    """All ``others`` must be on x's device."""
    for name, t in others.items():
        expect(
            t is None or t.device == x.device,
            f"{op}: {name} must be on {anchor}'s device {x.device}, got {t.device if t is not None else None}",
        )


def lengths(op: str, layers: int, **lists: Sequence[object] | None) -> None:
    """All ``lists`` must have one entry for each of the layers, of which there is at least one."""
    expect(layers > 0, f"{op}: means must hold at least one layer, got none")
    for name, given in lists.items():
        expect(
            given is None or len(given) == layers,
            f"{op}: {name} must have one entry for each of the {layers} means, got {len(given or ())}",
        )


def shaped(op: str, name: str, t: Tensor, *shapes: Sequence[int]) -> None:
    """t must have one of these shapes."""
    expect(
        any(tuple(t.shape) == tuple(shape) for shape in shapes),
        f"{op}: {name} must have shape {' or '.join(str(tuple(s)) for s in shapes)}, got {tuple(t.shape)}",
    )


def floating(op: str, **tensors: Tensor) -> None:
    """All ``tensors`` must be floating point."""
    for name, t in tensors.items():
        expect(t.is_floating_point(), f"{op}: {name} must be floating point, got {t.dtype}")


def constant(op: str, **tensors: Tensor | None) -> None:
    """No tensor may require grad."""
    for name, t in tensors.items():
        expect(
            t is None or not t.requires_grad,
            f"{op}: {name} is taken as a constant and must not require grad; detach it",
        )


def one_of(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """value must be one of ``choices``."""
    known = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
    expect(value in choices, f"{op}: {name} must be {known}, got '{value}'")


def positive(op: str, name: str, value: float) -> None:
    """value must be positive and finite."""
    expect(value > 0 and math.isfinite(value), f"{op}: {name} must be positive and finite, got {value}")


def own_memory(op: str, name: str, t: Tensor) -> None:
    """t, which is written, must be no view without memory of its own."""
    expect(
        not (t.is_neg() or t.is_conj() or t._is_zerotensor()),
        f"{op}: {name} is written in place and "
        "must have memory of its own, got a view that is negated, conjugated or zero",
    )


def apart(op: str, written: dict[str, Tensor], read: dict[str, Tensor | None]) -> None:
    """What is written must share memory neither with each other nor with what is read."""
    tensors = {name: t for name, t in {**written, **read}.items() if t is not None and is_real(t) and t.numel() > 0}
    names = list(tensors)
    for i, first in enumerate(name for name in names if name in written):
        for second in names[i + 1 :]:
            a, b = _extent(tensors[first]), _extent(tensors[second])
            expect(a[1] <= b[0] or b[1] <= a[0], f"{op}: {first} is written and must not share memory with {second}")


def _extent(t: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()
