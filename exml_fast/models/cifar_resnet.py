"""ResNets for 32×32 images (He et al. 2016, sec. 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.models.rectified import rectified

__all__ = ["BasicBlock", "CifarResNet"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions plus a shortcut (He et al. 2016).

    ``shortcut`` is the identity. A network replaces it in each block whose output has another shape than its input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = rectified(self.bn1, self.conv1(x))
        return rectified(self.bn2, self.conv2(y), self.shortcut(x))


class _Padding(nn.Module):
    """Shortcut without parameters: subsamples the pixels and adds channels of zeros (option A of the paper)."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class CifarResNet(nn.Module):
    """A ResNet of any depth 6n + 2 (20, 32, 44, 56, 110) for images (N, 3, 32, 32).

    Parameter names equal those of the published CIFAR-10 weights. Depth 20 has 269,722 parameters, depth 56 853,018.

    Raises:
        ValueError: for a ``depth`` that is not 6n + 2 with n of at least 1.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n of at least 1, got {depth}")
        blocks = (depth - 2) // 6

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = BasicBlock(inputs, outputs, stride)
            if outputs > inputs:
                first.shortcut = _Padding(outputs - inputs, stride)
            return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, 32, 32)."""
        x = rectified(self.bn1, self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
