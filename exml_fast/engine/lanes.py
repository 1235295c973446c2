"""A convolution of few channels, for training and evaluation on a CPU, with one image a vector lane."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.conv_plan import ConvShape
from exml_fast.engine.conv_tuning import lanes_are_faster
from exml_fast.engine.freezing import is_untouched

__all__ = ["LaneConv2d"]

DTYPES = (torch.float32, torch.float64)


class LaneConv2d(nn.Conv2d):
    """``nn.Conv2d`` that uses :func:`exml_fast.ops.lane_conv2d` where that op is faster on this machine.

    :func:`exml_fast.engine.conv_tuning.lanes_are_faster` times each shape once. The op has no second derivatives.
    """

    _chosen: dict[tuple[object, ...], bool]

    @classmethod
    def adopt(cls, conv: nn.Module) -> bool:
        """Turn ``conv`` into this class, with its parameters and attributes; False for other than a plain nn.Conv2d."""
        if type(conv) is not nn.Conv2d or not is_untouched(conv):
            return False
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return False
        conv.__class__ = cls
        vars(conv)["_chosen"] = {}
        return True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        weight = self.weight
        at_home = x.device == weight.device and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if at_home and x.dim() == 4 and x.dtype == weight.dtype and x.dtype in DTYPES:
            pulled = torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and weight.requires_grad
            # The library decides the format of a single channel by the strides.
            last = not x.is_contiguous() or weight.stride(1) == 1
            key = (x.shape, x.dtype, last, torch.get_num_threads(), *pulled)
            if key not in self._chosen:
                self._chosen[key] = self._lanes_are_faster(x, last, *pulled)
            if self._chosen[key]:
                # A pair by the check of adopt, which mypy does not see.
                return ops.lane_conv2d(x, weight, self.bias, self.padding)  # type: ignore[arg-type]
        return super().forward(x)

    def _lanes_are_faster(self, x: Tensor, last: bool, of_input: bool, of_weight: bool) -> bool:
        if x.shape[1] != self.in_channels:
            return False  # the library raises the error
        shape = ConvShape.of(self, x.shape, last)
        return shape.by_lanes and lanes_are_faster(shape, x.dtype, of_input, of_weight)
