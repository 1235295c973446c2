"""ResNet-18 and 34 with a stem for 32×32 images: the usual teachers and students on CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from exml_fast.models.cifar_resnet import BasicBlock
from exml_fast.models.rectified import rectified

__all__ = ["ResNet18Cifar", "ResNet34Cifar", "SlimResNet18"]


class _WideCifarResNet(nn.Module):
    """A 3×3 stem and four stages of ``blocks`` basic blocks with 1, 2, 4 and 8 times ``width`` channels.

    ValueError for a ``width`` below 1.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")

        def stage(place: int) -> nn.Sequential:
            outputs = width << place
            inputs, stride = (outputs // 2, 2) if place else (width, 1)
            first = BasicBlock(inputs, outputs, stride)
            if inputs != outputs:  # the shortcut is a convolution: option B of He et al. 2016
                conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                first.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks[place] - 1)))

        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(stage, range(4))
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W) of at least 8×8 pixels."""
        x = rectified(self.bn1, self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


class ResNet18Cifar(_WideCifarResNet):
    """ResNet-18 for CIFAR, a student in Table 1 of Yin 2020; 11,173,962 parameters at the defaults."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__((2, 2, 2, 2), num_classes, in_channels, width)


class ResNet34Cifar(_WideCifarResNet):
    """ResNet-34 for CIFAR, a teacher in Table 1 of Yin 2020; 21,282,122 parameters at the defaults."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__((3, 4, 6, 3), num_classes, in_channels, width)


class SlimResNet18(_WideCifarResNet):
    """ResNet-18 with narrow layers (Lopez-Paz 2017: ``width`` 20), the usual network of continual learning on CIFAR.

    The code of Carta 2022 uses it for CIFAR-10. The defaults give 1,094,750 parameters.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 20) -> None:
        super().__init__((2, 2, 2, 2), num_classes, in_channels, width)
