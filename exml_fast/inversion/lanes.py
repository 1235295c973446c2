"""Convolutions of few channels in training and in evaluation on a CPU, with one image a vector lane."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.inversion.convolution import ConvShape, is_untouched, lanes_are_faster

__all__ = ["LaneConv2d"]

DTYPES = (torch.float32, torch.float64)


class LaneConv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes by csrc/ops/lane_conv2d.h where that is faster on this machine (measured once)."""

    _chosen: dict[tuple[object, ...], bool]

    @classmethod
    def of(cls, conv: nn.Module) -> LaneConv2d | None:
        """The same as ``conv``, with its parameters, or None where it is something else."""
        if type(conv) is not nn.Conv2d or not is_untouched(conv):
            return None
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return None
        same: LaneConv2d = nn.utils.skip_init(
            cls, conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, bias=conv.bias is not None,
        )  # fmt: skip
        same.weight, same.bias = conv.weight, conv.bias
        same._chosen = {}
        return same.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        if x.device.type == "cpu" and x.dim() == 4 and x.dtype == self.weight.dtype and x.dtype in DTYPES:
            pulled = torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and self.weight.requires_grad
            key = (x.shape, x.dtype, *pulled)
            if key not in self._chosen:
                self._chosen[key] = self._lanes_are_faster(x, *pulled)
            if self._chosen[key] and not torch.is_autocast_enabled("cpu"):
                result: Tensor = torch.ops.exml._lane_conv2d(x, self.weight, self.bias, self.padding)
                return result
        return super().forward(x)

    def _lanes_are_faster(self, x: Tensor, of_input: bool, of_weight: bool) -> bool:
        if x.shape[1] != self.in_channels:
            return False  # the library says what is wrong
        shape = ConvShape.of(self, x.shape, not x.is_contiguous())
        return shape.by_lanes and lanes_are_faster(shape, x.dtype, of_input, of_weight)
