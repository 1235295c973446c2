"""What a convolution of a frozen network computes (ConvShape), and the ways in which it can compute it (Plan).

oneDNN reorders plain weights at each call, and its input gradients of some layers (strided depthwise in bfloat16, a
stem of stride 2) take many times as long as the forward pass. Constant weights avoid both costs: a layer can pack them
once, and it can compute the gradient as another convolution. :mod:`exml_fast.engine.conv_tuning` chooses a plan for
each layer; :mod:`exml_fast.engine.frozen_conv` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from exml_fast._native import COMPILED

__all__ = ["LANE_IMAGES", "VECTOR", "ConvShape", "Plan", "can_pack"]

# The convolution with one image a vector lane: most channels, images in a vector, and bytes of memory a thread.
LANE_CHANNELS, LANE_IMAGES, LANE_BYTES = 64, 16, 2**23
# Bytes of a vector register.
VECTOR = 64
# The fewest channels of a layer for Winograd's algorithm.
TILE_CHANNELS = 16


@dataclass(frozen=True)
class ConvShape:
    """The geometry and the memory format of a convolution: what decides which plans it allows and how fast they are."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    channels_last: bool

    @classmethod
    def of(cls, conv: nn.Module, input: Sequence[int], channels_last: bool) -> ConvShape:
        """The shape of ``conv``, an nn.Conv2d with numeric padding, for an ``input`` of the shape (N, C, H, W)."""
        assert isinstance(conv, nn.Conv2d)
        settings = (input, conv.weight.shape, conv.stride, conv.padding, conv.dilation)
        # Pairs and fours, whose length mypy does not see.
        input, weight, stride, padding, dilation = (tuple(int(v) for v in values) for values in settings)
        return cls(input, weight, stride, padding, dilation, conv.groups, channels_last)  # type: ignore[arg-type]

    @property
    def depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.groups == self.weight[0] == self.input[1] > 1

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1×1."""
        return self.weight[2:] == (1, 1)

    @property
    def by_lanes(self) -> bool:
        """Whether the kernel with one image a vector lane (csrc/ops/lane_conv2d.h) can compute it and may be fast."""
        outputs, inputs, *kernel = self.weight
        pixels = inputs * self.input[2] * (self.input[3] + 2 * self.padding[1]) + outputs * math.prod(self.input[2:])
        return (
            self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and max(outputs, inputs) <= LANE_CHANNELS
            and self.input[0] >= LANE_IMAGES // 2
            and pixels * VECTOR <= LANE_BYTES
            and all(0 <= p < k for p, k in zip(self.padding, kernel, strict=True))
        )

    @property
    def by_winograd(self) -> bool:
        """Whether Winograd's algorithm (csrc/ops/winograd_conv2d.h) can compute it, forward and backward."""
        return (
            self.channels_last
            and self.weight[2:] == (3, 3)
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and min(self.weight[:2]) >= TILE_CHANNELS
            and max(self.padding) <= 2
        )

    @property
    def flipped_padding(self) -> tuple[int, int]:
        """Padding of the convolution that is the adjoint of this one."""
        height, width = (d * (k - 1) for d, k in zip(self.dilation, self.weight[2:], strict=True))
        return height - self.padding[0], width - self.padding[1]

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // stride + 1
            for n, p, d, k, stride in zip(
                self.input[2:], self.padding, self.dilation, self.weight[2:], self.stride, strict=True
            )
        )
        return height, width


@dataclass(frozen=True)
class Plan:
    """The algorithm of a layer, forward and for the gradient of its input (the adjoint).

    Attributes:
        forward: the forward pass.
            "plain": the library, with plain weights.
            "packed": the library, with weights in oneDNN's layout.
            "lanes": our kernel for few channels, with one image a vector lane (csrc/ops/lane_conv2d.h).
            "winograd": our kernel for 3×3 layers, with a quarter of the products (csrc/ops/winograd_conv2d.h).
        adjoint: the gradient of the input.
            "library": the library's gradient.
            "convolution": for stride 1, a convolution with the flipped, transposed weights.
            "zero_stuffed": the same, on an output gradient with zeros between its values, or for 1×1 kernels with
            the zeros between the results.
            "subpixel": one convolution for each position modulo the stride; their results become pixels side by side.
            "lanes": the kernel of the forward "lanes".
        adjoint_weights: the weights of the adjoints "convolution", "zero_stuffed" and "subpixel".
            "plain", "packed" and "winograd": as in ``forward``.
            "windows": for our kernel to few output channels (csrc/ops/window_conv2d.h).
    """

    forward: str = "plain"
    adjoint: str = "library"
    adjoint_weights: str = "plain"

    def without_winograd(self, dtype: torch.dtype) -> Plan:
        """The plan with the library's convolutions in place of Winograd's, which round more."""
        weights = "packed" if can_pack(dtype) else "plain"
        forward, adjoint_weights = (
            weights if way == "winograd" else way for way in (self.forward, self.adjoint_weights)
        )
        return Plan(forward, self.adjoint, adjoint_weights)

    def on_this_machine(self, dtype: torch.dtype) -> Plan:
        """The same algorithms, if this machine has them: a plan of another one may need what is not here."""
        if not COMPILED:
            return Plan()
        ways = {} if can_pack(dtype) else {"packed": "plain"}
        forward, weights = (ways.get(way, way) for way in (self.forward, self.adjoint_weights))
        return Plan(forward, self.adjoint, weights)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN can pack weights of this dtype; of bfloat16 on a CPU with AVX-512 or AVX-NE-CONVERT."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
