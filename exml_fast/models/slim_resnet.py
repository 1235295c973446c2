"""ResNet-18 for 32×32 images with narrow layers, the usual network of continual learning on CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.models.cifar_resnet import BasicBlock

__all__ = ["SlimResNet18"]


class SlimResNet18(nn.Module):
    """ResNet-18 with a 3×3 stem and ``width``, 2, 4 and 8 times ``width`` channels (Lopez-Paz 2017: 20).

    Carta 2022's code takes it for CIFAR-10. Images (N, in_channels, H, W), at least 8×8; logits (N, num_classes);
    1,094,750 parameters at the defaults.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 20) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = BasicBlock(inputs, outputs, stride)
            if inputs != outputs:  # a convolution on the shortcut (option B of He et al. 2016)
                conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                first.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            return nn.Sequential(first, BasicBlock(outputs, outputs, 1))

        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2 = stage(width, width, 1), stage(width, 2 * width, 2)
        self.layer3, self.layer4 = stage(2 * width, 4 * width, 2), stage(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))
