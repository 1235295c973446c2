"""The convolution layer of a frozen network: constant weights, prepared once for its plan; it saves no activation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.conv_plan import VECTOR, ConvShape, Plan
from exml_fast.engine.freezing import is_untouched

__all__ = ["FrozenConv2d"]


class Packing(NamedTuple):
    """The arguments of a convolution for which the CPU's library lays out weights."""

    padding: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    input: tuple[int, int, int, int]

    def __call__(self, weight: Tensor) -> Tensor:
        """Weights (K, C / groups, h, w) in the library's own layout."""
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *self)
        return packed


class FrozenConv2d(nn.Module):
    """``conv`` with constant weights in ``dtype``; the input is cast to that dtype.

    Args:
        conv: a convolution that :meth:`takes` accepts.
        dtype: float32, bfloat16 or float64.
        shape: the shape for which the plan was chosen; inputs of other sizes are computed correctly.
        plan: the algorithm on the CPU; on other devices the library decides.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, shape: ConvShape, plan: Plan) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype)
        plan = plan if weight.device.type == "cpu" else Plan()
        self.dtype, self.shape, self.plan = dtype, shape, plan
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.memory_format = torch.channels_last if shape.channels_last else torch.contiguous_format
        # ``contiguous`` keeps the strides of a single channel, but our kernels read the format from the strides.
        plain = torch.empty_like(weight, memory_format=self.memory_format).copy_(weight)
        self.forward_weight: Tensor | None = None
        self._packings: dict[str, Packing] = {}
        if plan.forward == "packed":
            packing = Packing(shape.padding, shape.stride, shape.dilation, shape.groups, shape.input)
            self.forward_weight, self._packings["forward_weight"] = packing(plain), packing
        elif plan.forward == "winograd":
            self.forward_weight = ops.winograd_weights(conv.weight.detach())
        # Winograd's products are in float32 for every dtype of the pixels.
        source = conv.weight.detach() if plan.adjoint_weights == "winograd" else plain
        self.adjoint_weight, adjoint = _adjoint_weight(source, shape, plan)
        if adjoint is not None:
            self._packings["adjoint_weight"] = adjoint
        # No algorithm of this plan reads the plain weight: keep its shape without its memory.
        unread = self.forward_weight is not None and plan.adjoint not in ("library", "lanes")
        self.weight = plain.new_empty(()).expand(plain.shape) if unread else plain

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether ``conv`` is a plain nn.Conv2d with numeric zero padding and without hooks."""
        plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return plain and is_untouched(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W') in ``dtype``."""
        s = self.shape
        # PyTorch's copy that changes both dtype and format takes longer than the two one after the other.
        x = x.to(self.dtype).contiguous(memory_format=self.memory_format)
        lanes = self.plan.forward == "lanes"
        return ops.frozen_conv2d(
            x,
            self.weight,
            self.bias,
            s.stride,
            s.padding,
            s.dilation,
            s.groups,
            forward_weight=self.forward_weight,
            forward_layout="plain" if lanes else self.plan.forward,
            lanes=lanes,
            adjoint_weight=self.adjoint_weight,
            adjoint_layout=self.plan.adjoint_weights,
            adjoint=self.plan.adjoint,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights can be neither copied nor pickled: their state is dense."""
        return vars(self) | {name: getattr(self, name).to_dense(self.dtype) for name in self._packings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, packing in self._packings.items():
            setattr(self, name, packing(getattr(self, name)))

    def extra_repr(self) -> str:
        """Dtype and plan."""
        return f"{tuple(self.weight.shape)}, {self.dtype}, {self.plan}"


def _adjoint_weight(weight: Tensor, shape: ConvShape, plan: Plan) -> tuple[Tensor | None, Packing | None]:
    """The weights of the convolution that computes the gradient of the input, and their packing; None for none."""
    if plan.adjoint in ("library", "lanes"):
        return None, None
    count, groups = shape.input[0], shape.groups
    out = shape.output_size
    if plan.adjoint == "subpixel":
        prepared, padding, dilation = _subpixel(weight, shape.stride[0]), (_taps(shape) - 1,) * 2, (1, 1)
        seen, groups = (count, weight.shape[0], *out), 1
    else:
        # (groups · out, in, ...) with out and in exchanged within each group, taps reversed
        grouped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        prepared, padding, dilation = grouped.flip(2, 3), shape.flipped_padding, shape.dilation
        # A 1×1 kernel gets its zeros afterwards.
        if plan.adjoint == "zero_stuffed" and not shape.pointwise:
            reach = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
            # Pairs, whose length mypy does not see.
            out = tuple(n - 2 * p + r for n, p, r in zip(shape.input[2:], padding, reach, strict=True))  # type: ignore[assignment]
        seen = (count, weight.shape[0], *out)
    format_ = torch.channels_last if shape.channels_last else torch.contiguous_format
    prepared = prepared.contiguous(memory_format=format_)
    if plan.adjoint_weights == "winograd":
        return ops.winograd_weights(prepared), None
    if plan.adjoint_weights == "windows":
        return _windows(prepared), None
    if plan.adjoint_weights != "packed":
        return prepared, None
    packing = Packing(padding, (1, 1), dilation, groups, seen)
    return packing(prepared), packing


def _windows(weight: Tensor) -> Tensor:
    """(K, C, h, w) to (K, h, S): the values of a row of taps as channels_last images have them, zeros to a vector."""
    weight = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    rows = weight.permute(0, 2, 3, 1).flatten(2)
    return nn.functional.pad(rows, (0, -rows.shape[2] % (VECTOR // rows.element_size()))).contiguous()


def _taps(shape: ConvShape) -> int:
    return -(-max(shape.weight[2:]) // shape.stride[0])


def _subpixel(weight: Tensor, stride: int) -> Tensor:
    """(K, C, h, w) to (stride²·C, K, t, t): tap m of position a is tap stride·m + a of the original, reversed."""
    count, channels, height, width = weight.shape
    taps = -(-max(height, width) // stride)
    padded = nn.functional.pad(weight, (0, taps * stride - width, 0, taps * stride - height))
    split = padded.view(count, channels, taps, stride, taps, stride).flip(2, 4)
    return split.permute(3, 5, 1, 0, 2, 4).reshape(channels * stride * stride, count, taps, taps)
