"""VGG-11 with BatchNorm for 32×32 images (Simonyan 2015, configuration A)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Vgg11BnCifar"]

# Channels of each 3×3 convolution. None stands for a pooling that halves the image.
LAYERS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class Vgg11BnCifar(nn.Module):
    """VGG-11 with BatchNorm and one linear layer, a teacher and student in Table 1 of Yin 2020.

    The defaults give 9,231,114 parameters.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the first convolution. The other layers scale with it; 64 gives the published widths.

    Raises:
        ValueError: for a ``width`` below 1.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        layers: list[nn.Module] = []
        channels = in_channels
        for published in LAYERS:
            if published is None:
                layers.append(nn.MaxPool2d(2))
            else:
                outputs = published * width // 64
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, 32, 32)."""
        return self.classifier(self.features(x).flatten(1))
