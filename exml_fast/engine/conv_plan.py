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

__all__ = ["LANE_IMAGES", "VECTOR", "ConvShape", "Plan", "can_pack"]

# The convolution with one image a vector lane: most channels, images in a vector, and bytes of memory a thread.
LANE_CHANNELS, LANE_IMAGES, LANE_BYTES = 64, 16, 2**23
# Bytes of a vector register.
VECTOR = 64
# The fewest channels of a layer for Winograd's algorithm.
TILE_CHANNELS = 16


@dataclass(frozen=True)
class ConvShape:
    """What decides how fast a convolution is."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    channels_last: bool

    @classmethod
    def of(cls, conv: nn.Module, input: Sequence[int], channels_last: bool) -> ConvShape:
        """Of a convolution with numeric padding for such an input."""
        assert isinstance(conv, nn.Conv2d)
        settings = (input, conv.weight.shape, conv.stride, conv.padding, conv.dilation)
        # Pairs and fours, whose length mypy does not see.
        input, weight, stride, padding, dilation = (tuple(int(v) for v in values) for values in settings)
        return cls(input, weight, stride, padding, dilation, conv.groups, channels_last)  # type: ignore[arg-type]

    @property
    def depthwise(self) -> bool:
        """One filter a channel."""
        return self.groups == self.weight[0] == self.input[1] > 1

    @property
    def by_lanes(self) -> bool:
        """Whether the convolution with one image a vector lane (csrc/ops/lane_conv2d.h) can do it, and may be fast."""
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
        """Whether Winograd's algorithm (csrc/ops/winograd_conv2d.h) can do it, forward and back."""
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
    """How a layer computes.

    Attributes:
        forward: "plain" weights; "packed" in oneDNN's layout; "lanes": one image a vector lane, for few channels
            (csrc/ops/lane_conv2d.h); "winograd": of 3×3 layers, a quarter of the products, in float32
            (csrc/ops/winograd_conv2d.h).
        adjoint: of the input gradient. "library": as the library does it; "convolution": for stride 1, a convolution
            with the flipped, transposed weights; "zero_stuffed": the same on a gradient with zeros between its values;
            "subpixel": stride² convolutions, one for each position modulo the stride, as the channels of one, then a
            pixel shuffle; "lanes" as above.
        adjoint_weights: of "convolution", "zero_stuffed" and "subpixel": "plain", "packed" in oneDNN's layout,
            "windows", for our own convolution to few channels (csrc/ops/window_conv2d.h), or "winograd" as above.
    """

    forward: str = "plain"
    adjoint: str = "library"
    adjoint_weights: str = "plain"

    def without_winograd(self, dtype: torch.dtype) -> Plan:
        """The same with the library's convolutions in its place, which round less."""
        weights = "packed" if can_pack(dtype) else "plain"
        forward, adjoint_weights = (
            weights if way == "winograd" else way for way in (self.forward, self.adjoint_weights)
        )
        return Plan(forward, self.adjoint, adjoint_weights)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN can pack weights of this dtype."""
    return dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
