"""A convolution of networks that learn: on a CPU by the fastest of three kernels, two of them ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.conv_plan import ConvShape
from exml_fast.engine.conv_tuning import lanes_are_faster, winograd_is_faster
from exml_fast.engine.freezing import is_untouched
from exml_fast.ops.training import learned_winograd_conv2d

__all__ = ["LearnedConv2d"]

LANE_DTYPES = (torch.float32, torch.float64)
WINOGRAD_DTYPES = (torch.float32, torch.bfloat16)
# With fewer input channels, on a CPU without AVX-512, the weight gradient of PyTorch's strided 1×1 convolution in
# channels_last writes beyond its memory (oneDNN's avx2 kernel, PyTorch 2.11). Without the stride it does not.
SAFE_CHANNELS = 8


class LearnedConv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes a layer by the kernel that is fastest on this machine.

    The kernels are PyTorch's, :func:`exml_fast.ops.lane_conv2d` and :func:`exml_fast.ops.winograd_conv2d`. Each shape
    is timed once (:mod:`exml_fast.engine.conv_tuning`). Strided 1×1 layers of few channels read every s-th pixel and
    run without the stride (see ``SAFE_CHANNELS``). Under autocast to bfloat16 Winograd's kernel transforms the
    float32 weight. Our kernels have no second derivatives.
    """

    _chosen: dict[tuple[object, ...], str]

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
        if x.dim() == 4 and x.device == weight.device and x.device.type == "cpu" and x.is_floating_point():
            half = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if half and weight.dtype == torch.float32 else x.dtype
            if half or x.dtype == weight.dtype:
                way = self._way(x, dtype, half)
                if way == "lanes":
                    # A pair by the check of adopt, which mypy does not see.
                    return ops.lane_conv2d(x, weight, self.bias, self.padding)  # type: ignore[arg-type]
                if way == "winograd":
                    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
                    return learned_winograd_conv2d(x, weight, self.bias, self.padding)  # type: ignore[arg-type]
                if way == "subsampled":
                    down, right = self.stride
                    return F.conv2d(x[:, :, ::down, ::right], weight, self.bias, groups=self.groups)
        return super().forward(x)

    def _way(self, x: Tensor, dtype: torch.dtype, half: bool) -> str:
        weight = self.weight
        pulled = torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and weight.requires_grad
        # The library decides the format of a single channel by the strides.
        last = not x.is_contiguous() or weight.stride(1) == 1
        key = (x.shape, dtype, half, last, torch.get_num_threads(), *pulled)
        if key not in self._chosen:
            self._chosen[key] = "plain"
            if x.shape[1] == self.in_channels:  # otherwise the library raises the error
                shape = ConvShape.of(self, x.shape, last)
                lanes = shape.by_lanes and not half and dtype in LANE_DTYPES
                subsamples = shape.pointwise and shape.padding == (0, 0) and shape.stride != (1, 1)
                if subsamples and weight.shape[1] < SAFE_CHANNELS:
                    self._chosen[key] = "subsampled"
                elif lanes and lanes_are_faster(shape, dtype, *pulled):
                    self._chosen[key] = "lanes"
                elif shape.by_winograd and dtype in WINOGRAD_DTYPES and winograd_is_faster(shape, dtype):
                    self._chosen[key] = "winograd"
        return self._chosen[key]
